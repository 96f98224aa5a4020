//! The netstack alone: packets made in memory, in real time, beside none, 1,000 and 10,000 idle flows.
//!
//!     cargo bench --bench netstack -- [--json] [--rounds N] [--millis N]
//!
//! `up` is from the application: the packet is handled, its bytes are read, and what the stack answers is taken.
//! `down` is to the application: bytes are written, their packets taken, and the application's ACKs handled.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints its figures")]
#![allow(clippy::disallowed_methods, reason = "it measures")]

mod report;

use std::net::SocketAddr;
use std::time::Instant;

use netstack_tests::app::ip_packet;
use report::Report;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};
use ssm_proxy::netstack::{Config, Event, FlowId, Stack};

fn main() {
    let mut report = Report::from_args();
    for idle in [0, 1_000, 10_000] {
        let mut bench = Bench::new(idle);
        bench.one_flow(&mut report);
        bench.set_up(&mut report);
    }
    memory(&mut report);
    report.end();
}

struct Bench {
    stack: Stack,
    idle: u16,
    app: App,
    flow: FlowId,
    buffer: Vec<u8>,
}

impl Bench {
    fn new(idle: u16) -> Self {
        // As `up` has it on Linux: the kernel's own packets need no check, but a sum for its firewall.
        let config = Config { mtu: MTU, seed: 7, verify_checksums: false, ..Config::default() };
        let mut stack = Stack::new(config, Instant::now());
        for port in 0..idle {
            App::open(&mut stack, FIRST_PORT + port);
        }
        let (app, flow) = App::open(&mut stack, FIRST_PORT - 1);
        Self { stack, idle, app, flow, buffer: vec![0; 1 << 20] }
    }

    fn one_flow(&mut self, report: &mut Report) {
        let idle = self.idle;
        for (name, size) in [("1-byte packets", 1), ("64 KiB packets", MOST)] {
            let mut packet = self.app.data(size);
            let seconds = report.seconds_per_call(|| self.up(&mut packet, size));
            report.row(format!("up, {name}, {idle} idle"), seconds * 1e9, "ns/packet");
            if size > 1 {
                report.row(format!("up, {name}, {idle} idle"), size as f64 * 8e-9 / seconds, "Gbit/s");
            }
        }
        let mut ack = self.app.segment(TcpControl::None, &[]);
        for (name, size) in [("1-byte packets", 1), ("64 KiB packets", MOST)] {
            let seconds = report.seconds_per_call(|| self.down(&mut ack, size));
            report.row(format!("down, {name}, {idle} idle"), seconds * 1e9, "ns/packet");
            if size > 1 {
                report.row(format!("down, {name}, {idle} idle"), size as f64 * 8e-9 / seconds, "Gbit/s");
            }
        }
    }

    /// One packet from the application, read whole, and the ACK for it.
    fn up(&mut self, packet: &mut [u8], size: usize) {
        let now = Instant::now();
        self.app.stamp(packet);
        self.stack.handle_packet(packet, now);
        while self.stack.poll_event().is_some() {}
        let mut read = 0;
        loop {
            let count = self.stack.read(self.flow, &mut self.buffer, now);
            read += count;
            if count == 0 {
                break;
            }
        }
        assert_eq!(read, size);
        self.app.sequence = self.app.sequence.wrapping_add(size as u32);
        let acknowledged = take_packets(&mut self.stack, now, |header| header.acknowledges);
        assert_eq!(acknowledged, Some(self.app.sequence));
    }

    /// One packet to the application, and its ACK.
    fn down(&mut self, ack: &mut [u8], size: usize) {
        let now = Instant::now();
        assert_eq!(self.stack.write(self.flow, &self.buffer[..size], now), size);
        let end = take_packets(&mut self.stack, now, |header| header.end);
        self.app.expected = self.app.expected.wrapping_add(size as u32);
        assert_eq!(end, Some(self.app.expected));
        self.app.stamp(ack);
        self.stack.handle_packet(ack, now);
        while self.stack.poll_event().is_some() {}
        take_packets(&mut self.stack, now, |_| ());
    }

    /// A flow that is opened, and one that is opened and reset by the application.
    fn set_up(&mut self, report: &mut Report) {
        let seconds = report.seconds_per_call(|| {
            let (app, flow) = App::open(&mut self.stack, CHURN_PORT);
            let reset = app.segment(TcpControl::Rst, &[]);
            self.stack.handle_packet(&reset, Instant::now());
            assert_eq!(self.stack.poll_event(), Some(Event::Reset { flow }));
        });
        report.row(format!("a flow opened and reset, {} idle", self.idle), seconds * 1e9, "ns");
    }
}

/// What 10,000 idle flows add to the process.
fn memory(report: &mut Report) {
    const FLOWS: u16 = 10_000;
    let before = resident();
    let bench = Bench::new(FLOWS);
    let grown = resident().saturating_sub(before);
    report.row("memory of an idle flow", grown as f64 / f64::from(FLOWS), "bytes");
    assert_eq!(bench.stack.counters().flows_now, usize::from(FLOWS) + 1);
}

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

/// The application's end of a connection, as far as its packets need it.
struct App {
    source: SocketAddr,
    /// Of the next byte it sends.
    sequence: u32,
    /// Of the next byte it receives.
    expected: u32,
}

impl App {
    fn open(stack: &mut Stack, port: u16) -> (Self, FlowId) {
        let now = Instant::now();
        let source = SocketAddr::from(([169, 254, 77, 1], port));
        let mut app = Self { source, sequence: 1_000, expected: 0 };
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

    fn data(&self, size: usize) -> Vec<u8> {
        self.segment(TcpControl::Psh, &vec![0x5a; size])
    }

    fn segment(&self, control: TcpControl, data: &[u8]) -> Vec<u8> {
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
    fn stamp(&self, packet: &mut [u8]) {
        packet[IP + 4..IP + 8].copy_from_slice(&self.sequence.to_be_bytes());
        packet[IP + 8..IP + 12].copy_from_slice(&self.expected.to_be_bytes());
    }
}

/// Two fields of a packet from the stack.
struct Header {
    acknowledges: u32,
    /// The sequence number behind its bytes.
    end: u32,
}

/// Takes all packets; what `field` says of the last.
fn take_packets<T>(stack: &mut Stack, now: Instant, field: fn(&Header) -> T) -> Option<T> {
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
const FIRST_PORT: u16 = 2_000;
const CHURN_PORT: u16 = 1_000;
const MTU: usize = 65_535;
/// Bytes in the longest segment.
const MOST: usize = MTU - IP - 20;
/// Length of an IPv4 header without options.
const IP: usize = 20;
const SYN: u8 = 2;
