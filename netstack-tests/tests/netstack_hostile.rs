//! Packets no honest kernel sends: each is dropped, counted by its reason, never answered wrongly, and hurts nobody else.

#![allow(clippy::disallowed_methods)]

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use agent::wire::open::Refusal;
use netstack_tests::app::{RawSegment, ip_packet};
use smoltcp::wire::{IpAddress, IpProtocol, TcpControl, TcpPacket};
use ssm_proxy::netstack::{Config, DropReason, Event, FlowId, Stack};
use ssm_proxy::os::arena::Arena;

/// A stack and one open connection of it, from the machine's side.
struct Bench {
    stack: Stack,
    now: Instant,
    flow: FlowId,
    /// What the machine sends and acknowledges next.
    seq: u32,
    ack: u32,
    source: SocketAddr,
    target: SocketAddr,
}

#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

const BOTH: [Family; 2] = [Family::V4, Family::V6];
const WINDOW: u32 = 65_535;
const SCTP: IpProtocol = IpProtocol::Unknown(132);

fn config() -> Config {
    Config { mtu: 1500, receive_ring: WINDOW as usize, send_ring: 100_000, seed: 3, ..Config::default() }
}

fn addresses(family: Family, port: u16) -> (SocketAddr, SocketAddr) {
    let (source, target) = match family {
        Family::V4 => ("10.99.0.1:1", "10.0.1.5:5432"),
        Family::V6 => ("[fd00:99::1]:1", "[fd00:1::5]:5432"),
    };
    let mut source: SocketAddr = source.parse().expect("an address");
    source.set_port(port);
    (source, target.parse().expect("an address"))
}

fn syn(family: Family, port: u16) -> RawSegment<'static> {
    let (source, target) = addresses(family, port);
    RawSegment { source, target, control: TcpControl::Syn, seq: 1000, ack: None, window: 64_000, data: b"" }
}

fn header(packet: &[u8]) -> usize {
    if packet[0] >> 4 == 4 { 20 } else { 40 }
}

fn tcp(packet: &[u8]) -> TcpPacket<&[u8]> {
    TcpPacket::new_checked(&packet[header(packet)..]).expect("the stack sends sound packets")
}

fn drain(stack: &mut Stack, now: Instant) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    while stack.wants_poll() {
        stack.poll_packet(now, &mut |packet| {
            packets.push(packet.to_vec());
            true
        });
    }
    packets
}

impl Bench {
    fn new(family: Family) -> Self {
        Self::with(config(), family)
    }

    fn with(config: Config, family: Family) -> Self {
        let now = Instant::now();
        let mut stack = Stack::new(config, now);
        let (flow, seq, ack) = connect(&mut stack, family, 40_000, now);
        let (source, target) = addresses(family, 40_000);
        Self { stack, now, flow, seq, ack, source, target }
    }

    fn segment(&self) -> RawSegment<'static> {
        let Self { source, target, seq, ack, .. } = *self;
        RawSegment { source, target, control: TcpControl::None, seq, ack: Some(ack), window: 1000, data: b"" }
    }

    fn handle(&mut self, packet: &[u8]) -> Vec<Vec<u8>> {
        self.stack.handle_packet(packet, self.now);
        self.stack.check_invariants();
        drain(&mut self.stack, self.now)
    }

    /// The reasons that were counted, and how often.
    fn drops(&self) -> Vec<(DropReason, u64)> {
        self.stack.counters().drops().filter(|(_, count)| *count > 0).collect()
    }

    /// The connection still carries bytes both ways, and nothing else was told of it.
    fn works(&mut self) {
        let answers = self.handle(&RawSegment { data: b"ping", ..self.segment() }.packet());
        self.seq = self.seq.wrapping_add(4);
        assert!(answers.iter().any(|answer| tcp(answer).ack_number().0 as u32 == self.seq));
        assert_eq!(self.stack.poll_event(), Some(Event::Readable { flow: self.flow }));
        let mut bytes = [0; 10];
        assert_eq!(self.stack.read(self.flow, &mut bytes, self.now), 4);
        assert_eq!(self.stack.read(self.flow, &mut bytes, self.now), 0);
        assert_eq!(&bytes[..4], b"ping");
        assert_eq!(self.stack.write(self.flow, b"pong", self.now), 4);
        let packets = drain(&mut self.stack, self.now);
        let data: Vec<u8> = packets.iter().flat_map(|packet| tcp(packet).payload().to_vec()).collect();
        assert_eq!(data, b"pong");
        self.ack = self.ack.wrapping_add(4);
        self.handle(&self.segment().packet());
        let events: Vec<_> = std::iter::from_fn(|| self.stack.poll_event()).collect();
        assert!(events.iter().all(|event| *event == Event::Room { flow: self.flow }), "{events:?}");
    }
}

/// Opens a connection; what the machine sends and acknowledges next comes with it.
fn connect(stack: &mut Stack, family: Family, port: u16, now: Instant) -> (FlowId, u32, u32) {
    stack.handle_packet(&syn(family, port).packet(), now);
    let Some(Event::Connect { flow, .. }) = stack.poll_event() else { panic!("no connection was asked for") };
    stack.accept(flow, now);
    let answers = drain(stack, now);
    let answer = answers.iter().find(|answer| tcp(answer).syn()).expect("a SYN-ACK");
    let ack = (tcp(answer).seq_number().0 as u32).wrapping_add(1);
    let done = RawSegment { control: TcpControl::None, seq: 1001, ack: Some(ack), ..syn(family, port) };
    stack.handle_packet(&done.packet(), now);
    assert_eq!(stack.poll_event(), Some(Event::Room { flow }));
    (flow, 1001, ack)
}

#[test]
fn segments_that_cannot_belong_to_a_connection_do_it_no_harm() {
    use DropReason::{AckUnsent, ResetPlace, SynInside, Window};
    type Edit = fn(RawSegment<'static>) -> RawSegment<'static>;
    // Whether the sender is told where the connection stands.
    let cases: [(&str, Edit, DropReason, bool); 12] = [
        ("a reset one byte ahead", |s| reset(s, 1), ResetPlace, true),
        ("a reset at the window's end", |s| reset(s, WINDOW - 1), ResetPlace, true),
        ("a reset beyond the window", |s| reset(s, WINDOW), ResetPlace, false),
        ("a reset of the past", |s| reset(s, u32::MAX), ResetPlace, false),
        ("a reset from half the world away", |s| reset(s, 1 << 31), ResetPlace, false),
        ("a SYN", |s| RawSegment { control: TcpControl::Syn, ack: None, ..s }, SynInside, true),
        (
            "a SYN in the window",
            |s| RawSegment { control: TcpControl::Syn, ack: None, seq: s.seq + 9, ..s },
            SynInside,
            true,
        ),
        ("a SYN-ACK", |s| RawSegment { control: TcpControl::Syn, ..s }, SynInside, true),
        (
            "an acknowledgement of what was never sent",
            |s| RawSegment { ack: ahead(s.ack, 1), ..s },
            AckUnsent,
            true,
        ),
        (
            "the same with data",
            |s| RawSegment { ack: ahead(s.ack, 70_000), data: b"evil", ..s },
            AckUnsent,
            true,
        ),
        (
            "data right behind the window",
            |s| RawSegment { seq: s.seq.wrapping_add(WINDOW), data: b"far", ..s },
            Window,
            true,
        ),
        (
            "data far ahead",
            |s| RawSegment { seq: s.seq.wrapping_add(1 << 30), data: b"far", ..s },
            Window,
            true,
        ),
    ];
    for family in BOTH {
        for (name, edit, reason, told) in cases {
            let mut bench = Bench::new(family);
            let answers = bench.handle(&edit(bench.segment()).packet());
            assert_eq!(bench.drops(), [(reason, 1)], "{name}");
            assert_eq!(answers.len(), usize::from(told), "{name}");
            for answer in &answers {
                let answer = tcp(answer);
                assert!(answer.ack() && !answer.rst() && !answer.syn() && !answer.fin(), "{name}");
                assert_eq!(answer.ack_number().0 as u32, bench.seq, "{name}");
                assert_eq!(answer.seq_number().0 as u32, bench.ack, "{name}");
            }
            assert_eq!(bench.stack.poll_event(), None, "{name}");
            bench.works();
        }
    }
}

fn reset(segment: RawSegment<'static>, by: u32) -> RawSegment<'static> {
    RawSegment { control: TcpControl::Rst, seq: segment.seq.wrapping_add(by), ..segment }
}

fn ahead(ack: Option<u32>, by: u32) -> Option<u32> {
    ack.map(|ack| ack.wrapping_add(by))
}

#[test]
fn a_challenged_machine_that_meant_it_resets_at_the_right_place() {
    for family in BOTH {
        let mut bench = Bench::new(family);
        // A segment was lost on the way: the reset comes from behind it.
        let early = bench.handle(&reset(bench.segment(), 1460).packet());
        let place = tcp(&early[0]).ack_number().0 as u32;
        assert_eq!(bench.stack.poll_event(), None);
        bench.handle(&RawSegment { seq: place, control: TcpControl::Rst, ..bench.segment() }.packet());
        assert_eq!(bench.stack.poll_event(), Some(Event::Reset { flow: bench.flow }));
        assert_eq!(bench.stack.counters().flows_now, 0);
    }
}

#[test]
fn old_and_repeated_segments_change_nothing() {
    for family in BOTH {
        let mut bench = Bench::new(family);
        bench.works();
        let Bench { seq, ack, .. } = bench;
        for by in [1u32, 4, 1000, 1 << 20, (1 << 31) - 1] {
            let old = RawSegment { ack: Some(ack.wrapping_sub(by)), ..bench.segment() };
            assert!(bench.handle(&old.packet()).is_empty(), "an old acknowledgement needs no answer");
            let repeat = RawSegment { seq: seq.wrapping_sub(4), data: b"ping", ..bench.segment() };
            for answer in bench.handle(&repeat.packet()) {
                assert_eq!(tcp(&answer).ack_number().0 as u32, seq);
            }
            assert_eq!(bench.stack.poll_event(), None);
        }
        bench.works();
    }
}

#[test]
fn overlapping_segments_give_each_byte_once() {
    let mut bench = Bench::new(Family::V4);
    let stream: Vec<u8> = (0..=255).collect();
    for (from, to) in [(100, 200), (50, 150), (0, 10), (5, 60), (190, 256), (0, 256), (60, 61)] {
        let data = stream[from..to].to_vec().leak();
        let segment = RawSegment { seq: bench.seq + from as u32, data, ..bench.segment() };
        bench.handle(&segment.packet());
    }
    let mut received = [0; 1000];
    assert_eq!(bench.stack.read(bench.flow, &mut received, bench.now), 256);
    assert_eq!(received[..256], stream);
}

#[test]
fn data_into_a_window_of_zero_is_answered_and_left_out() {
    let mut bench = Bench::new(Family::V4);
    let full = vec![7; 1000].leak();
    let mut answers = Vec::new();
    for at in 0..66 {
        let segment = RawSegment { seq: bench.seq + at * 1000, data: full, ..bench.segment() };
        answers = bench.handle(&segment.packet());
    }
    let last = tcp(&answers[0]);
    assert_eq!((last.window_len(), last.ack_number().0 as u32), (0, bench.seq + WINDOW));
    for _ in 0..100 {
        let beyond = RawSegment { seq: bench.seq + WINDOW, data: b"more", ..bench.segment() };
        for answer in bench.handle(&beyond.packet()) {
            assert_eq!(tcp(&answer).ack_number().0 as u32, bench.seq + WINDOW);
        }
    }
    assert_eq!(bench.drops(), [(DropReason::Window, 100)]);
    let mut received = vec![0; 100_000];
    assert_eq!(bench.stack.read(bench.flow, &mut received, bench.now), WINDOW as usize);
}

/// smoltcp would take what fits, and the FIN for what comes next.
#[test]
fn a_fin_behind_data_beyond_the_window_ends_nothing() {
    for first in [WINDOW / 2, WINDOW - 7, WINDOW] {
        let mut bench = Bench::new(Family::V4);
        let stream: Vec<u8> = (0..2 * WINDOW).map(|at| (at * 31 / 7) as u8).collect();
        let stream: &'static [u8] = stream.leak();
        for at in (0..first as usize).step_by(1000) {
            let data = &stream[at..(at + 1000).min(first as usize)];
            let segment = RawSegment { seq: bench.seq + at as u32, data, ..bench.segment() };
            bench.handle(&segment.packet());
        }
        let data = &stream[first as usize..][..(WINDOW - first) as usize + 100];
        let beyond = RawSegment { control: TcpControl::Fin, seq: bench.seq + first, data, ..bench.segment() };
        bench.handle(&beyond.packet());
        assert_eq!(bench.drops(), [(DropReason::Window, 1)], "{first}");
        let mut received = vec![0; 200_000];
        assert_eq!(bench.stack.read(bench.flow, &mut received, bench.now), first as usize);
        drain(&mut bench.stack, bench.now);

        let data = &stream[first as usize..][..10];
        let rest = RawSegment { control: TcpControl::Fin, seq: bench.seq + first, data, ..bench.segment() };
        bench.handle(&rest.packet());
        assert_eq!(bench.stack.read(bench.flow, &mut received, bench.now), 10, "{first}");
        assert_eq!(&received[..10], data);
    }
}

#[test]
fn flags_that_contradict_each_other_are_dropped() {
    for family in BOTH {
        let mut bench = Bench::new(family);
        let honest = RawSegment { data: b"data", ..bench.segment() }.packet();
        for flags in 0..=255u8 {
            let (fin, syn, rst, ack) = (flags & 1, (flags >> 1) & 1, (flags >> 2) & 1, (flags >> 4) & 1);
            if fin + syn + rst <= 1 && syn + rst + ack > 0 {
                continue;
            }
            let mut packet = honest.clone();
            let at = header(&packet);
            packet[at + 13] = flags;
            sum_tcp(&mut packet);
            let before = bench.stack.counters().dropped(DropReason::TcpFlags);
            assert!(bench.handle(&packet).is_empty(), "{flags:#x}");
            assert_eq!(bench.stack.counters().dropped(DropReason::TcpFlags), before + 1, "{flags:#x}");
        }
        assert_eq!(bench.drops().len(), 1);
        bench.works();
    }
}

fn sum_tcp(packet: &mut [u8]) {
    let at = header(packet);
    let (source, target): (IpAddress, IpAddress) = if at == 20 {
        let octets = |at: usize| {
            IpAddress::from(std::net::Ipv4Addr::from(
                <[u8; 4]>::try_from(&packet[at..at + 4]).expect("four bytes"),
            ))
        };
        (octets(12), octets(16))
    } else {
        let octets = |at: usize| {
            IpAddress::from(std::net::Ipv6Addr::from(
                <[u8; 16]>::try_from(&packet[at..at + 16]).expect("sixteen bytes"),
            ))
        };
        (octets(8), octets(24))
    };
    let mut tcp = TcpPacket::new_unchecked(&mut packet[at..]);
    tcp.fill_checksum(&source, &target);
}

#[test]
fn options_of_tcp_that_do_not_add_up_do_no_harm() {
    // Kind and length at the SYN's first option: past the end, of no length, of the wrong length.
    for (kind, length) in
        [(2, 0), (2, 1), (2, 3), (2, 60), (3, 0), (3, 2), (5, 255), (8, 1), (255, 0), (255, 200)]
    {
        for family in BOTH {
            let now = Instant::now();
            let mut stack = Stack::new(config(), now);
            let mut packet = syn(family, 40_000).packet();
            let at = header(&packet) + 20;
            packet[at] = kind;
            packet[at + 1] = length;
            sum_tcp(&mut packet);
            stack.handle_packet(&packet, now);
            if let Some(Event::Connect { flow, .. }) = stack.poll_event() {
                stack.accept(flow, now);
            } else {
                assert_eq!(stack.counters().dropped(DropReason::TcpHeader), 1, "{kind} {length}");
            }
            drain(&mut stack, now);
            stack.check_invariants();
        }
    }
}

#[test]
fn every_truncation_of_a_packet_is_dropped() {
    for family in BOTH {
        let mut bench = Bench::new(family);
        let packet = RawSegment { data: b"some data", ..bench.segment() }.packet();
        for length in 0..packet.len() {
            assert!(bench.handle(&packet[..length]).is_empty());
        }
        assert_eq!(bench.drops(), [(DropReason::Length, packet.len() as u64)]);
        bench.works();
        // Bytes behind the packet's own end are nobody's.
        let mut longer = RawSegment { data: b"tail", ..bench.segment() }.packet();
        longer.extend_from_slice(b"garbage");
        bench.handle(&longer);
        let mut received = [0; 100];
        assert_eq!(bench.stack.read(bench.flow, &mut received, bench.now), 4);
    }
}

#[test]
fn addresses_no_single_host_has_are_dropped_whatever_is_asked() {
    let outside = [
        ("255.255.255.255", DropReason::Target),
        ("0.0.0.0", DropReason::Target),
        ("127.0.0.1", DropReason::Target),
        ("240.0.0.1", DropReason::Target),
        ("224.0.0.251", DropReason::Multicast),
        ("::1", DropReason::Target),
        ("::", DropReason::Target),
        ("::ffff:10.0.1.5", DropReason::Target),
        ("fe80::5", DropReason::Target),
        ("ff02::fb", DropReason::Multicast),
    ];
    for (address, reason) in outside {
        let address: IpAddress = address.parse().expect("an address");
        let (peer, icmp) = match address {
            IpAddress::Ipv4(_) => ("10.99.0.1".parse::<IpAddress>().expect("an address"), IpProtocol::Icmp),
            IpAddress::Ipv6(_) => ("fd00:99::1".parse().expect("an address"), IpProtocol::Icmpv6),
        };
        for protocol in [IpProtocol::Tcp, IpProtocol::Udp, icmp, SCTP] {
            let now = Instant::now();
            let mut stack = Stack::new(config(), now);
            let there = ip_packet(peer, address, protocol, 40, |bytes| bytes.fill(0x42));
            stack.handle_packet(&there, now);
            assert_eq!(stack.counters().dropped(reason), 1, "to {address}");
            let back = ip_packet(address, peer, protocol, 40, |bytes| bytes.fill(0x42));
            stack.handle_packet(&back, now);
            let wrong = address != "fe80::5".parse().expect("an address");
            assert_eq!(stack.counters().dropped(DropReason::Source), u64::from(wrong), "from {address}");
            let land = ip_packet(peer, peer, protocol, 40, |bytes| bytes.fill(0x42));
            stack.handle_packet(&land, now);
            assert_eq!(stack.counters().dropped(DropReason::SameAddress), 1);
            assert_eq!(stack.wants_poll(), !wrong && protocol == SCTP, "from {address}");
            assert!(stack.poll_event().is_none());
        }
    }
}

/// What the agent could not carry: as from a host that has no such protocol.
#[test]
fn a_protocol_of_no_use_is_answered_as_such_and_counted() {
    let answers = [("10.0.1.5", "10.99.0.1", (3, 2), 0u32), ("fd00:1::5", "fd00:99::1", (4, 1), 6)];
    for ((target, source, (kind, code), detail), length) in answers.into_iter().zip([600, 1400]) {
        let (target, source) = (address(target), address(source));
        let now = Instant::now();
        let mut stack = Stack::new(config(), now);
        let packet = ip_packet(source, target, SCTP, length, |bytes| bytes.fill(0x42));

        stack.handle_packet(&packet, now);

        let [answer] = &drain(&mut stack, now)[..] else { panic!("no single answer") };
        assert_eq!(stack.counters().dropped(DropReason::Protocol), 1);
        let (ip, icmp) = answer.split_at(header(answer));
        let (protocol, most, [there, here]) = match ip[0] >> 4 {
            4 => (ip[9], 576, [12..16, 16..20]),
            _ => (ip[6], 1280, [8..24, 24..40]),
        };
        assert_eq!((&ip[there.clone()], &ip[here.clone()]), (&packet[here], &packet[there]));
        assert_eq!(protocol, if ip[0] >> 4 == 4 { 1 } else { 58 });
        assert_eq!((icmp[0], icmp[1], &icmp[4..8]), (kind, code, &detail.to_be_bytes()[..]));
        assert_eq!((answer.len(), &icmp[8..]), (most, &packet[..most - ip.len() - 8]));
        if detail > 0 {
            assert_eq!(icmp[8 + detail as usize], 132, "the place of the fault");
        }
    }
}

#[test]
fn protocols_are_answered_at_a_rate_and_never_where_it_could_be_an_error() {
    let now = Instant::now();
    let mut stack = Stack::new(config(), now);
    let (v4, v6) = (["10.99.0.1", "10.0.1.5"].map(address), ["fd00:99::1", "fd00:1::5"].map(address));
    let to = |[source, target]: [IpAddress; 2], protocol: u8| {
        ip_packet(source, target, IpProtocol::from(protocol), 40, |bytes| bytes.fill(0x42))
    };
    let mut fragment = to(v4, 132);
    fragment[6..8].copy_from_slice(&[0x20, 0]);
    fragment[10..12].fill(0);
    let sum = !smoltcp::wire::checksum::data(&fragment[..20]);
    fragment[10..12].copy_from_slice(&sum.to_be_bytes());
    let silent = [
        (to(v4, 58), DropReason::Protocol),
        (to(v6, 1), DropReason::Protocol),
        (to(v6, 59), DropReason::Protocol),
        (to(v6, 60), DropReason::ExtensionHeader),
        (fragment, DropReason::Fragment),
    ];
    for (packet, reason) in silent {
        let before = stack.counters().dropped(reason);
        stack.handle_packet(&packet, now);
        assert_eq!(stack.counters().dropped(reason), before + 1);
        assert!(drain(&mut stack, now).is_empty(), "{packet:02x?}");
    }

    let answers = |stack: &mut Stack, now| {
        (0..1000).for_each(|_| stack.handle_packet(&to(v4, 47), now));
        drain(stack, now).len()
    };
    assert!((1..100).contains(&answers(&mut stack, now)));
    assert_eq!(answers(&mut stack, now), 0);
    assert_eq!(stack.counters().dropped(DropReason::Protocol), 2003);
    assert_eq!(answers(&mut stack, now + Duration::from_millis(100)), 10);
}

fn address(text: &str) -> IpAddress {
    text.parse().expect("an address")
}

/// A container's packets come out of the machine with the container's own address.
#[test]
fn sources_that_are_not_the_machines_own_are_served() {
    let now = Instant::now();
    let mut stack = Stack::new(config(), now);
    for source in ["172.17.0.2:5000", "192.168.1.77:5000", "[fd77::9]:5000"] {
        let family = if source.starts_with('[') { Family::V6 } else { Family::V4 };
        let source: SocketAddr = source.parse().expect("an address");
        stack.handle_packet(&RawSegment { source, ..syn(family, 1) }.packet(), now);
        assert!(matches!(stack.poll_event(), Some(Event::Connect { source: told, .. }) if told == source));
    }
}

#[test]
fn a_hundred_thousand_syns_take_no_memory_and_stop_nobody() {
    let _alone = ALONE.lock();
    let now = Instant::now();
    let bound = 1_024;
    let mut stack = Stack::new(Config { max_pending: bound, ..config() }, now);
    let (flow, seq, ack) = connect(&mut stack, Family::V6, 50_000, now);
    let before = resident();
    for number in 0..100_000u32 {
        let family = if number % 2 == 0 { Family::V4 } else { Family::V6 };
        let mut packet = syn(family, 1 + (number % 60_000) as u16);
        packet.target.set_port(6000 + (number / 60_000) as u16);
        packet.seq = number;
        stack.handle_packet(&packet.packet(), now);
    }
    let counters = stack.counters();
    assert_eq!(counters.flows_pending, bound);
    assert_eq!(counters.dropped(DropReason::PendingFull), 100_000 - bound as u64);
    let grown = resident().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes more for {bound} waiting connections");
    assert!(drain(&mut stack, now).is_empty());
    stack.check_invariants();

    // The open connection does not notice.
    let (source, target) = addresses(Family::V6, 50_000);
    let data =
        RawSegment { source, target, control: TcpControl::None, seq, ack: Some(ack), window: 9, data: b"hi" };
    stack.handle_packet(&data.packet(), now);
    assert_eq!(stack.read(flow, &mut [0; 9], now), 2);

    // Each answer makes room for one more, and the newcomer is served.
    let mut waiting: Vec<FlowId> = std::iter::from_fn(|| stack.poll_event())
        .filter_map(|event| if let Event::Connect { flow, .. } = event { Some(flow) } else { None })
        .collect();
    assert_eq!(waiting.len(), bound);
    stack.refuse(waiting.pop().expect("there are some"), Refusal::TimedOut, now);
    drain(&mut stack, now);
    connect(&mut stack, Family::V4, 61_000, now);

    // Those nobody answers are given up in the end.
    let mut at = now;
    while let Some(next) = stack.poll_timeout().filter(|next| *next < now + Duration::from_secs(400)) {
        at = next;
        stack.handle_timeout(at);
        drain(&mut stack, at);
    }
    assert_eq!(stack.counters().flows_pending, 0);
    assert!(at < now + Duration::from_secs(140));
    let told = std::iter::from_fn(|| stack.poll_event())
        .filter(|event| matches!(event, Event::Reset { .. }))
        .count();
    assert_eq!(told, bound - 1);
    assert_eq!(stack.counters().flows_now, 2);
    stack.check_invariants();
}

/// Each has carried a little, and all end at once.
#[test]
fn after_a_burst_of_flows_little_memory_stays_and_the_next_burst_takes_no_more() {
    let _alone = ALONE.lock();
    let mut now = Instant::now();
    let usual = Config::default();
    let config = Config {
        receive_ring: usual.receive_ring,
        send_ring: usual.send_ring,
        max_pending: FLOWS.into(),
        ..config()
    };
    let arena = Box::new(Arena::new(config.rings()));
    let mut stack = Stack::with_memory(config, Some(arena), now);
    let before = resident() + page_tables();
    for burst in 0..2 {
        let mut resets = Vec::new();
        for port in 1000..1000 + FLOWS {
            let (flow, seq, ack) = connect(&mut stack, Family::V4, port, now);
            let (source, target) = addresses(Family::V4, port);
            let ack = Some(ack);
            let data = [burst; 100];
            let control = TcpControl::None;
            let segment = RawSegment { source, target, control, seq, ack, window: 9000, data: &data };
            stack.handle_packet(&segment.packet(), now);
            assert_eq!(stack.write(flow, &data, now), data.len());
            let answers = drain(&mut stack, now);
            assert!(answers.iter().any(|answer| tcp(answer).payload() == data), "flow {port}");
            let mut received = [9; 200];
            assert_eq!(stack.read(flow, &mut received, now), data.len());
            assert_eq!(received[..100], data);
            while stack.poll_event().is_some() {}
            resets
                .push(RawSegment { control: TcpControl::Rst, seq: seq + 100, data: b"", ..segment }.packet());
        }
        let open = resident() + page_tables() - before;
        assert!(open > 100 << 20, "{open} bytes for {FLOWS} flows: nothing to give back");
        resets.iter().for_each(|reset| stack.handle_packet(reset, now));
        while stack.poll_event().is_some() {}
        while let Some(next) = stack.poll_timeout() {
            now = next;
            stack.handle_timeout(now);
            drain(&mut stack, now);
        }
        assert_eq!(stack.counters().flows_now, 0);
        stack.check_invariants();
        let left = (resident() + page_tables()).saturating_sub(before);
        assert!(left < 24 << 20, "{left} of {open} bytes stay after burst {burst}");
    }
}

/// An idle flow, or one that has an idle one's rings, says something; and before that has left, another one falls silent.
#[test]
fn bytes_of_a_flow_that_wakes_outlast_the_rest_of_all_others() {
    for reuses in [false, true] {
        let start = Instant::now();
        let config = config();
        let arena = Box::new(Arena::new(config.rings()));
        let mut stack = Stack::with_memory(config, Some(arena), start);
        let (mut waking, ..) = connect(&mut stack, Family::V4, 1000, start);
        let mut now = start;
        while let Some(next) = stack.poll_timeout() {
            now = next;
            stack.handle_timeout(now);
        }
        assert_eq!(stack.counters().rests, 1);
        connect(&mut stack, Family::V4, 1001, now);
        if reuses {
            stack.reset(waking, now);
            drain(&mut stack, now);
            (waking, ..) = connect(&mut stack, Family::V4, 1002, now);
        }
        now = stack.poll_timeout().expect("a flow is looked at");
        stack.handle_timeout(now);
        assert_eq!(stack.write(waking, b"good morning", now), 12);
        while stack.counters().rests < 2 {
            now = stack.poll_timeout().expect("the other flow is looked at");
            stack.handle_timeout(now);
        }

        let packets = drain(&mut stack, now);

        assert!(packets.iter().any(|packet| tcp(packet).payload() == b"good morning"), "reuses: {reuses}");
    }
}

const FLOWS: u16 = 10_000;

/// For tests that measure the whole process.
static ALONE: Mutex<()> = Mutex::new(());

/// The system's memory for this process's mappings.
fn page_tables() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPTE:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap_or(0) << 10
}

/// Bytes of this process in memory.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

#[test]
fn a_flow_nobody_reads_or_answers_delays_no_other() {
    let now = Instant::now();
    let mut stack = Stack::new(config(), now);
    // One whose owner does not read, one whose machine acknowledges nothing, one that is never accepted.
    let (unread, seq, ack) = connect(&mut stack, Family::V4, 40_001, now);
    for at in 0..60 {
        let data = vec![1; 1000].leak();
        let segment = RawSegment {
            seq: seq + at * 1000,
            control: TcpControl::None,
            ack: Some(ack),
            data,
            ..syn(Family::V4, 40_001)
        };
        stack.handle_packet(&segment.packet(), now);
    }
    while stack.poll_event().is_some() {}
    let (silent, ..) = connect(&mut stack, Family::V4, 40_002, now);
    stack.write(silent, &[2; 100_000], now);
    stack.handle_packet(&syn(Family::V4, 40_003).packet(), now);
    drain(&mut stack, now);
    while stack.poll_event().is_some() {}
    // A fourth moves bytes each millisecond for a minute and never waits a turn longer.
    let (busy, seq, ack) = connect(&mut stack, Family::V4, 40_004, now);
    for round in 0..60_000u32 {
        let now = now + Duration::from_millis(round.into());
        let segment = RawSegment {
            seq: seq.wrapping_add(round * 4),
            control: TcpControl::None,
            ack: Some(ack.wrapping_add(round * 4)),
            data: b"ping",
            ..syn(Family::V4, 40_004)
        };
        stack.handle_packet(&segment.packet(), now);
        if stack.poll_timeout().is_some_and(|at| at <= now) {
            stack.handle_timeout(now);
        }
        assert_eq!(stack.read(busy, &mut [0; 8], now), 4, "round {round}");
        assert_eq!(stack.write(busy, b"pong", now), 4, "round {round}");
        let sent = drain(&mut stack, now);
        let to_busy = sent.iter().filter(|packet| tcp(packet).dst_port() == 40_004);
        assert_eq!(to_busy.map(|packet| tcp(packet).payload().len()).sum::<usize>(), 4, "round {round}");
        while stack.poll_event().is_some() {}
    }
    let _ = unread;
}

#[test]
fn a_reset_waits_for_the_bytes_before_it_but_not_for_long() {
    for family in BOTH {
        for reads in [true, false] {
            let mut bench = Bench::new(family);
            bench
                .stack
                .handle_packet(&RawSegment { data: b"last words", ..bench.segment() }.packet(), bench.now);
            let behind = reset(bench.segment(), 10);
            bench.stack.handle_packet(&behind.packet(), bench.now);
            assert_eq!(bench.stack.poll_event(), Some(Event::Readable { flow: bench.flow }));
            assert_eq!(bench.stack.poll_event(), None, "what came before is to be read first");
            let room = bench.stack.room(bench.flow);
            assert_eq!(
                bench.stack.write(bench.flow, &vec![0; room], bench.now),
                room,
                "for nobody, but not in the way"
            );
            assert!(drain(&mut bench.stack, bench.now).is_empty());
            // The port is free at once.
            bench.stack.handle_packet(&syn(family, 40_000).packet(), bench.now);
            assert!(matches!(bench.stack.poll_event(), Some(Event::Connect { .. })));
            if reads {
                let mut words = [0; 100];
                assert_eq!(bench.stack.read(bench.flow, &mut words, bench.now), 10);
            } else {
                let end = bench.now + Duration::from_secs(3);
                while let Some(at) = bench.stack.poll_timeout().filter(|at| *at < end) {
                    bench.stack.handle_timeout(at);
                    drain(&mut bench.stack, at);
                }
            }
            assert_eq!(bench.stack.poll_event(), Some(Event::Reset { flow: bench.flow }));
            assert_eq!(bench.stack.counters().flows_now, 1);
            bench.stack.check_invariants();
        }
    }
}

#[test]
fn what_the_far_side_said_before_its_reset_goes_out_as_far_as_the_window() {
    // The window's scale is 7.
    for (window, expected) in [(64_000u16, 5_000), (24, 24 << 7), (0, 0)] {
        let mut bench = Bench::new(Family::V4);
        bench.handle(&RawSegment { window, ..bench.segment() }.packet());
        assert_eq!(bench.stack.write(bench.flow, &[9; 5_000], bench.now), 5_000);
        bench.stack.reset(bench.flow, bench.now);
        let packets = drain(&mut bench.stack, bench.now);
        let data: usize = packets.iter().map(|packet| tcp(packet).payload().len()).sum();
        assert_eq!(data, expected);
        let last = tcp(packets.last().expect("a reset at least"));
        assert!(last.rst());
        assert_eq!(last.seq_number().0 as u32, bench.ack.wrapping_add(expected as u32));
        assert_eq!(bench.stack.counters().flows_now, 0);
    }
}
