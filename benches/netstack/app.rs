//! Packets of an application, made by hand: its own TCP would cost more than what is measured.

use std::net::SocketAddr;
use std::time::Instant;

use netstack_tests::app::ip_packet;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};
use ssm_proxy::netstack::{Event, FlowId, Stack};

/// The application's end of a connection, as far as its packets need it.
pub(crate) struct App {
    pub(crate) source: SocketAddr,
    /// Of the next byte it sends.
    pub(crate) sequence: u32,
    /// Of the next byte it receives.
    pub(crate) expected: u32,
}

impl App {
    pub(crate) fn new(port: u16) -> Self {
        Self { source: SocketAddr::from(([169, 254, 77, 1], port)), sequence: 1_000, expected: 0 }
    }

    /// Opens a connection on the stack, as its owner too.
    pub(crate) fn open(stack: &mut Stack, port: u16) -> (Self, FlowId) {
        let now = Instant::now();
        let mut app = Self::new(port);
        stack.handle_packet(&app.segment(TcpControl::Syn, &[]), now);
        let Some(Event::Connect { flow, .. }) = stack.poll_event() else { panic!("no flow for port {port}") };
        stack.accept(flow, now);
        app.sequence += 1;
        app.expected = take_packets(stack, now, |header| header.end).expect("a SYN-ACK");
        stack.handle_packet(&app.segment(TcpControl::None, &[]), now);
        while stack.poll_event().is_some() {}
        take_packets(stack, now, |_| ());
        (app, flow)
    }

    pub(crate) fn data(&self, size: usize) -> Vec<u8> {
        self.segment(TcpControl::Psh, &vec![0x5a; size])
    }

    pub(crate) fn segment(&self, control: TcpControl, data: &[u8]) -> Vec<u8> {
        let opens = control == TcpControl::Syn;
        let repr = TcpRepr {
            src_port: self.source.port(),
            dst_port: TARGET.port(),
            control,
            seq_number: TcpSeqNumber(self.sequence as i32),
            ack_number: (!opens).then_some(TcpSeqNumber(self.expected as i32)),
            window_len: u16::MAX,
            window_scale: opens.then_some(7),
            max_seg_size: opens.then_some(MOST as u16),
            sack_permitted: opens,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: data,
        };
        let (source, target) = (self.source.ip().into(), TARGET.ip().into());
        ip_packet(source, target, IpProtocol::Tcp, repr.buffer_len(), |payload| {
            let caps = ChecksumCapabilities::ignored();
            repr.emit(&mut TcpPacket::new_unchecked(payload), &source, &target, &caps);
        })
    }

    /// Brings a packet made before up to date.
    pub(crate) fn stamp(&self, packet: &mut [u8]) {
        packet[IP + 4..IP + 8].copy_from_slice(&self.sequence.to_be_bytes());
        packet[IP + 8..IP + 12].copy_from_slice(&self.expected.to_be_bytes());
    }
}

/// Two fields of a packet from the stack.
pub(crate) struct Header {
    pub(crate) acknowledges: u32,
    /// The sequence number behind its bytes.
    pub(crate) end: u32,
}

/// Takes all packets; what `field` says of the last.
pub(crate) fn take_packets<T>(stack: &mut Stack, now: Instant, field: fn(&Header) -> T) -> Option<T> {
    let mut last = None;
    while stack.wants_poll() {
        stack.poll_packet(now, &mut |packet| {
            let number =
                |at: usize| u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]);
            let (data, flags) = (IP + usize::from(packet[IP + 12] >> 4) * 4, packet[IP + 13]);
            let length = (packet.len() - data) as u32 + u32::from(flags & SYN != 0);
            let header = Header { acknowledges: number(IP + 8), end: number(IP + 4).wrapping_add(length) };
            last = Some(field(&header));
            true
        });
    }
    last
}

const TARGET: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 1, 5)), 5432);
pub(crate) const MTU: usize = 65_535;
/// Bytes in the longest segment.
pub(crate) const MOST: usize = MTU - IP - 20;
/// Length of an IPv4 header without options.
pub(crate) const IP: usize = 20;
pub(crate) const SYN: u8 = 2;
