//! Pure: a netstack: packets good and bad, timers and its owner's actions.
//!
//! Rules: its invariants, the order of its events, every byte of a stream in its place, sound packets, no flow and no
//! timer left at the end.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use agent::wire::open::Refusal;
use smoltcp::wire::{IpAddress, Ipv4Packet, TcpControl, TcpPacket};
use ssm_proxy::netstack::{Config, DropReason, Event, FlowId, Stack};

use super::{Bytes, Sights, pattern};
use crate::app::RawSegment;

pub fn run(input: &[u8], start: Instant) -> Sights {
    let mut bytes = Bytes(input);
    let mut world = World::new(bytes.byte(), start);
    while !bytes.0.is_empty() {
        world.step(&mut bytes);
        world.stack.check_invariants();
    }
    world.wind_up()
}

struct World {
    now: Instant,
    mtu: usize,
    stack: Stack,
    peers: HashMap<u8, Peer>,
    owned: Vec<(FlowId, Owned)>,
    /// Nothing was sent that could carry other bytes than those of the pattern.
    honest: bool,
    sights: Sights,
}

/// What the machine knows of one of its tuples.
#[derive(Clone, Copy, Default)]
struct Peer {
    /// What fits next.
    seq: u32,
    ack: u32,
    /// The last SYN's number, and that of the last answer to one.
    syn: u32,
    answer: Option<u32>,
}

/// What the owner knows of a flow.
#[derive(Default)]
struct Owned {
    peer: u8,
    accepted: bool,
    /// The sequence number of the first byte.
    first: u32,
    read: u32,
    written: u32,
    readable: bool,
    finished: bool,
    finish_sent: bool,
}

impl World {
    fn new(settings: u8, now: Instant) -> Self {
        let pick = |shift: u8, of: [usize; 4]| of[usize::from(settings >> shift & 3)];
        let config = Config {
            mtu: pick(0, [1500, 1280, 9000, 65_535]),
            receive_ring: pick(2, [140_000, 4096, 65_535, 524_288]),
            send_ring: pick(4, [70_000, 5000, 200_000, 1 << 20]),
            max_flows: 5,
            max_pending: 3,
            seed: 7,
            verify_checksums: settings & 0x40 == 0,
            ..Config::default()
        };
        Self {
            now,
            mtu: config.mtu,
            stack: Stack::new(config, now),
            peers: HashMap::new(),
            owned: Vec::new(),
            honest: true,
            sights: Sights::new(),
        }
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.byte() % 14 {
            0 => self.open(bytes.byte()),
            1 => self.segment(
                bytes.byte(),
                TcpControl::Syn,
                Fit { seq: bytes.long(), ack: None, whole: true },
                bytes,
                0,
            ),
            2 => self.any_segment(bytes),
            3 => self.flags(bytes),
            4 => {
                let length = usize::from(bytes.byte());
                self.honest = false;
                self.handle(bytes.take(length));
            }
            5 => self.edited(bytes),
            6 => self.accept(bytes.byte()),
            7 => self.read(bytes.byte(), usize::from(bytes.short()) + 1),
            8 => self.write(bytes.byte(), usize::from(bytes.short())),
            9 => self.finish(bytes.byte()),
            10 => self.drop_flow(bytes.byte(), bytes.byte()),
            11 => self.wait(bytes),
            12 => self.flush(if bytes.byte() & 1 == 0 { usize::MAX } else { usize::from(bytes.byte() & 7) }),
            _ => self.events(),
        }
    }

    /// A whole handshake, as far as the bounds allow.
    fn open(&mut self, peer: u8) {
        let fit = Fit { seq: 1000, ack: None, whole: true };
        self.segment(peer, TcpControl::Syn, fit, &mut Bytes(&[]), 0);
        self.events();
        for pick in 0..self.owned.len() {
            self.accept(pick as u8);
        }
        self.flush(usize::MAX);
        self.segment(peer, TcpControl::None, Fit::NEXT, &mut Bytes(&[]), 0);
        self.events();
    }

    fn any_segment(&mut self, bytes: &mut Bytes<'_>) {
        let peer = bytes.byte();
        let what = bytes.byte();
        let control = match what % 8 {
            0..=3 => TcpControl::None,
            4 => TcpControl::Psh,
            5 => TcpControl::Fin,
            6 => TcpControl::Syn,
            _ => TcpControl::Rst,
        };
        let seq = place(what >> 3 & 3, bytes);
        let ack = place(what >> 5 & 3, bytes);
        let data = match what >> 7 {
            0 => usize::from(bytes.byte()) * 8,
            _ => usize::from(bytes.short()).min(60_000),
        };
        self.segment(peer, control, Fit { seq, ack: Some(ack), whole: false }, bytes, data);
    }

    /// Sends a segment whose data is that of the pattern at its place.
    fn segment(&mut self, peer: u8, control: TcpControl, fit: Fit, bytes: &mut Bytes<'_>, data: usize) {
        let number = peer % PEERS;
        let (source, target) = addresses(number);
        let peer = self.peers.entry(number).or_insert(Peer { seq: 1000, ..Peer::default() });
        let seq = if fit.whole { fit.seq } else { peer.seq.wrapping_add(fit.seq) };
        let ack = fit.ack.map(|by| peer.ack.wrapping_add(by));
        if control == TcpControl::Syn && ack.is_none() {
            peer.syn = seq;
        }
        let window = if bytes.0.is_empty() { 60_000 } else { bytes.short() };
        // The byte right behind a SYN's number is the stream's first.
        let data: Vec<u8> = (0..data as u32).map(|at| pattern(seq.wrapping_add(at))).collect();
        let segment = RawSegment { source, target, control, seq, ack, window, data: &data };
        self.handle(&segment.packet());
    }

    /// A segment with any flags at all.
    fn flags(&mut self, bytes: &mut Bytes<'_>) {
        let (number, flags) = (bytes.byte() % PEERS, bytes.byte());
        let (source, target) = addresses(number);
        let peer = self.peers.entry(number).or_default();
        let (seq, ack) = (peer.seq, Some(peer.ack));
        if flags & 0x17 == 2 {
            peer.syn = seq;
        }
        let segment =
            RawSegment { source, target, control: TcpControl::None, seq, ack, window: 9000, data: b"" };
        let mut packet = segment.packet();
        let at = header(&packet);
        packet[at + 13] = flags;
        let (source, target): (IpAddress, IpAddress) = (source.ip().into(), target.ip().into());
        TcpPacket::new_unchecked(&mut packet[at..]).fill_checksum(&source, &target);
        self.handle(&packet);
    }

    fn edited(&mut self, bytes: &mut Bytes<'_>) {
        self.honest = false;
        let number = bytes.byte() % PEERS;
        let (source, target) = addresses(number);
        let peer = self.peers.get(&number).copied().unwrap_or_default();
        let ack = Some(peer.ack);
        let (control, data) = (TcpControl::None, &b"some data"[..]);
        let mut packet =
            RawSegment { source, target, control, seq: peer.seq, ack, window: 900, data }.packet();
        for _ in 0..bytes.byte() % 6 {
            let at = usize::from(bytes.byte()) % packet.len();
            packet[at] = bytes.byte();
        }
        let length = packet.len() - usize::from(bytes.byte() & 0x1f).min(packet.len());
        if packet[0] >> 4 == 4 && bytes.byte() & 1 == 0 {
            let mut ip = Ipv4Packet::new_unchecked(&mut packet);
            if ip.header_len() == 20 {
                ip.fill_checksum();
            }
        }
        self.handle(&packet[..length]);
    }

    fn handle(&mut self, packet: &[u8]) {
        self.stack.handle_packet(packet, self.now);
    }

    fn pick(&self, pick: u8) -> Option<usize> {
        (!self.owned.is_empty()).then(|| usize::from(pick) % self.owned.len())
    }

    fn accept(&mut self, pick: u8) {
        let Some(at) = self.pick(pick) else { return };
        let (flow, owned) = &mut self.owned[at];
        if !std::mem::replace(&mut owned.accepted, true) {
            owned.first = self.peers.get(&owned.peer).map_or(0, |peer| peer.syn.wrapping_add(1));
        }
        self.stack.accept(*flow, self.now);
    }

    fn read(&mut self, pick: u8, most: usize) {
        let Some(at) = self.pick(pick) else { return };
        let (flow, owned) = &mut self.owned[at];
        let mut buf = vec![0; most];
        let count = self.stack.read(*flow, &mut buf, self.now);
        assert!(count == 0 || !owned.finished, "bytes after the finish");
        if self.honest {
            for (byte, offset) in buf[..count].iter().zip(owned.read..) {
                assert_eq!(*byte, pattern(owned.first.wrapping_add(offset)), "byte {offset} of a stream");
            }
        }
        owned.read = owned.read.wrapping_add(count as u32);
        if count == 0 {
            owned.readable = false;
        }
    }

    fn write(&mut self, pick: u8, count: usize) {
        let Some(at) = self.pick(pick) else { return };
        let (flow, owned) = &mut self.owned[at];
        let room = self.stack.room(*flow);
        assert!(room == 0 || (owned.accepted && !owned.finish_sent));
        let data: Vec<u8> = (0..count as u32).map(|at| pattern(owned.written.wrapping_add(at))).collect();
        let taken = self.stack.write(*flow, &data, self.now);
        assert_eq!(taken, room.min(count));
        owned.written = owned.written.wrapping_add(taken as u32);
    }

    fn finish(&mut self, pick: u8) {
        let Some(at) = self.pick(pick) else { return };
        let (flow, owned) = &mut self.owned[at];
        if owned.accepted {
            owned.finish_sent = true;
            self.stack.finish(*flow, self.now);
        }
    }

    fn drop_flow(&mut self, pick: u8, why: u8) {
        let Some(at) = self.pick(pick) else { return };
        let (flow, _) = self.owned.swap_remove(at);
        let refusals = [
            Refusal::Refused,
            Refusal::NetUnreachable,
            Refusal::HostUnreachable,
            Refusal::Prohibited,
            Refusal::TimedOut,
            Refusal::Denied,
            Refusal::Exhausted,
            Refusal::UnknownName,
            Refusal::Unsupported,
        ];
        match refusals.get(usize::from(why % 16)) {
            Some(why) => self.stack.refuse(flow, *why, self.now),
            None => self.stack.reset(flow, self.now),
        }
    }

    fn wait(&mut self, bytes: &mut Bytes<'_>) {
        let millis =
            if bytes.byte() & 1 == 0 { u64::from(bytes.byte()) } else { u64::from(bytes.short()) * 4 };
        self.now += Duration::from_millis(millis);
        if self.stack.poll_timeout().is_some_and(|at| at <= self.now) {
            self.stack.handle_timeout(self.now);
            assert!(self.stack.poll_timeout().is_none_or(|at| at > self.now));
        }
    }

    /// Lets the stack send so many packets before the device is full.
    fn flush(&mut self, most: usize) {
        let mut packets = Vec::new();
        for _ in 0..4 {
            self.stack.poll_packet(self.now, &mut |packet| {
                let room = packets.len() < most;
                if room {
                    packets.push(packet.to_vec());
                }
                room
            });
        }
        for packet in packets {
            self.check_packet(&packet);
        }
    }

    /// A packet to the machine is sound, and says what belongs there.
    fn check_packet(&mut self, packet: &[u8]) {
        assert!(packet.len() <= self.mtu.max(1280), "longer than the device takes");
        let at = header(packet);
        let (protocol, source, target): (u8, IpAddress, IpAddress) = if at == 20 {
            let ip = Ipv4Packet::new_checked(packet).expect("a sound IPv4 header");
            assert!(
                ip.verify_checksum() && usize::from(ip.total_len()) == packet.len() && ip.header_len() == 20
            );
            (packet[9], ip.src_addr().into(), ip.dst_addr().into())
        } else {
            let ip = smoltcp::wire::Ipv6Packet::new_checked(packet).expect("a sound IPv6 header");
            assert_eq!(ip.total_len(), packet.len());
            (packet[6], ip.src_addr().into(), ip.dst_addr().into())
        };
        assert!(target.is_unicast() && source.is_unicast() && source != target, "{source} to {target}");
        self.sights.insert(format!("protocol {protocol}"));
        if protocol != 6 {
            assert!(matches!((at, protocol, packet[at]), (20, 1, 3) | (40, 58, 1 | 4)), "only unreachables");
            return;
        }
        let tcp = TcpPacket::new_checked(&packet[at..]).expect("a sound TCP header");
        assert!(tcp.verify_checksum(&source, &target), "a TCP checksum");
        self.sights.insert(format!("sent syn {} fin {} rst {}", tcp.syn(), tcp.fin(), tcp.rst()));
        let number = tcp.dst_port().wrapping_sub(FIRST_PORT);
        if self.honest && number < u16::from(PEERS) {
            self.note(number as u8, &tcp);
        }
    }

    /// Remembers what would fit as an answer, and checks the bytes.
    fn note(&mut self, number: u8, tcp: &TcpPacket<&[u8]>) {
        let peer = self.peers.entry(number).or_default();
        let seq = tcp.seq_number().0 as u32;
        if tcp.syn() {
            peer.answer = Some(seq);
        }
        if let Some(answer) = peer.answer {
            for (byte, at) in tcp.payload().iter().zip(seq.wrapping_sub(answer).wrapping_sub(1)..) {
                assert_eq!(*byte, pattern(at), "byte {at} to the machine");
            }
        }
        if tcp.ack() && !tcp.rst() {
            peer.seq = tcp.ack_number().0 as u32;
            peer.ack = seq.wrapping_add(tcp.segment_len() as u32);
        }
    }

    fn events(&mut self) {
        while let Some(event) = self.stack.poll_event() {
            let (Event::Connect { flow, .. }
            | Event::Readable { flow }
            | Event::Room { flow }
            | Event::Finished { flow }
            | Event::Reset { flow }
            | Event::Closed { flow }) = event;
            let at = self.owned.iter().position(|(known, _)| *known == flow);
            if let Event::Connect { source, .. } = event {
                assert!(at.is_none(), "{flow:?} is used twice");
                let peer = source.port().wrapping_sub(FIRST_PORT) as u8;
                self.owned.push((flow, Owned { peer, ..Owned::default() }));
                continue;
            }
            let at = at.unwrap_or_else(|| panic!("{event:?} of a flow that is gone"));
            self.heard(event, at);
        }
    }

    fn heard(&mut self, event: Event, at: usize) {
        let owned = &mut self.owned[at].1;
        match event {
            Event::Connect { .. } => {}
            Event::Readable { .. } => {
                assert!(!std::mem::replace(&mut owned.readable, true), "readable twice");
                assert!(!owned.finished && owned.accepted);
                self.sights.insert("readable".to_owned());
            }
            Event::Room { .. } => assert!(owned.accepted),
            Event::Finished { .. } => {
                assert!(!std::mem::replace(&mut owned.finished, true), "finished twice");
                self.sights.insert("finished".to_owned());
            }
            Event::Reset { .. } => {
                self.sights.insert(format!("reset, read {}", owned.read > 0));
                self.owned.swap_remove(at);
            }
            Event::Closed { .. } => {
                assert!(owned.finished && owned.finish_sent);
                self.sights.insert("closed".to_owned());
                self.owned.swap_remove(at);
            }
        }
    }

    /// The machine falls silent and the owner ends what it has: nothing may be left.
    fn wind_up(mut self) -> Sights {
        self.events();
        for (flow, _) in std::mem::take(&mut self.owned) {
            self.stack.reset(flow, self.now);
        }
        self.flush(usize::MAX);
        self.events();
        self.stack.check_invariants();
        assert_eq!(self.stack.counters().flows_now, 0);
        for round in 0.. {
            let Some(at) = self.stack.poll_timeout() else { break };
            assert!(round < 1000, "a timer that never ends");
            self.now = at;
            self.stack.handle_timeout(at);
        }
        for round in 0.. {
            if !self.stack.wants_poll() {
                break;
            }
            assert!(round < 1000, "packets without end");
            self.flush(usize::MAX);
        }
        let drops = self.stack.counters().drops().filter(|(_, count)| *count > 0);
        self.sights.extend(drops.map(|(reason, _): (DropReason, u64)| format!("drop {}", reason.name())));
        self.sights
    }
}

/// Where a segment lies: beside what fits next, or at a place of its own.
#[derive(Clone, Copy)]
struct Fit {
    seq: u32,
    ack: Option<u32>,
    /// `seq` is the number itself.
    whole: bool,
}

impl Fit {
    const NEXT: Self = Self { seq: 0, ack: Some(0), whole: false };
}

fn place(kind: u8, bytes: &mut Bytes<'_>) -> u32 {
    match kind {
        0 | 1 => 0,
        2 => u32::from(bytes.byte()).wrapping_sub(128),
        _ => bytes.long(),
    }
}

fn header(packet: &[u8]) -> usize {
    if packet.first().is_some_and(|byte| byte >> 4 == 4) { 20 } else { 40 }
}

fn addresses(peer: u8) -> (SocketAddr, SocketAddr) {
    let (source, target): (IpAddr, IpAddr) = if peer < PEERS / 2 {
        ([10, 99, 0, 1].into(), [10, 0, 1, 5].into())
    } else {
        ([0xfd00, 0, 0, 0, 0, 0, 0, 1].into(), [0xfd00, 1, 0, 0, 0, 0, 0, 5].into())
    };
    (SocketAddr::new(source, FIRST_PORT + u16::from(peer)), SocketAddr::new(target, 443))
}

const PEERS: u8 = 6;
const FIRST_PORT: u16 = 40_000;
pub(super) const STEPS: &[u8] =
    &[0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 3, 4, 5, 6, 7, 7, 8, 8, 8, 9, 10, 11, 12, 12, 12, 13, 13, 13];
