//! UDP and echo through the netstack, in virtual time: packets on one side, messages on the other.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test")]

mod bounds;
mod echo;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use agent::wire::datagram::{Message, Reader, Trouble};
use agent::wire::open::{Kind, Refusal};
use netstack_tests::app::ip_packet;
use proptest::prelude::*;
use smoltcp::wire::{IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet, UdpPacket};
use ssm_proxy::netstack::{Config, DropReason, Event, FlowId, Stack};

#[test]
fn a_datagram_goes_to_its_peer_and_the_answer_comes_from_there() {
    for family in FAMILIES {
        let mut world = World::new(Config::default());
        let (app, peer) = (family.app(5000), family.peer(1, 53));
        world.give(&udp(app, peer, b"who is it"));
        let flow = FlowId(0);
        let connect = Event::Connect { flow, kind: Kind::Udp, source: app, target: peer };
        assert_eq!(world.events(), [connect, Event::Readable { flow }]);
        assert_eq!(world.read(flow), [(peer, b"who is it".to_vec())]);
        world.stack.accept(flow, world.now);
        world.write(flow, peer, b"it is me");
        assert_eq!(world.datagrams(), [(peer, app, b"it is me".to_vec())]);
        assert!(world.events().is_empty());
    }
}

#[test]
fn one_socket_has_one_flow_whatever_its_peers() {
    for family in FAMILIES {
        let mut world = World::new(Config::default());
        let app = family.app(5000);
        let peers = [1, 2, 3].map(|host| family.peer(host, 53));
        for peer in peers {
            world.give(&udp(app, peer, &[peer.port() as u8]));
        }
        world.give(&udp(family.app(5001), peers[0], b"another"));
        let connects = world.events().into_iter().filter(|event| matches!(event, Event::Connect { .. }));
        assert_eq!(connects.count(), 2);
        let read = world.read(FlowId(0));
        assert_eq!(read.iter().map(|(peer, _)| *peer).collect::<Vec<_>>(), peers);
        for peer in peers.into_iter().rev() {
            world.write(FlowId(0), peer, b"!");
        }
        let sources: Vec<_> = world.datagrams().into_iter().map(|(source, ..)| source).collect();
        assert_eq!(sources, peers.into_iter().rev().collect::<Vec<_>>());
    }
}

#[test]
fn what_an_application_sends_may_be_read_before_the_answer_and_cut_anywhere() {
    let mut world = World::new(Config::default());
    let (app, peer) = (V4.app(5000), V4.peer(1, 53));
    for byte in 0..5u8 {
        world.give(&udp(app, peer, &[byte; 300]));
    }
    let mut reader = Reader::default();
    let mut got = Vec::new();
    let mut buf = [0; 7];
    loop {
        let count = world.stack.read(FlowId(0), &mut buf, world.now);
        if count == 0 {
            break;
        }
        reader.push(&buf[..count], &mut |message| got.push(own(message).1.unwrap()[0])).unwrap();
    }
    assert_eq!(got, [0, 1, 2, 3, 4]);
    world.events();
    world.give(&udp(app, peer, b"more"));
    assert_eq!(world.events(), [Event::Readable { flow: FlowId(0) }]);
}

#[test]
fn the_largest_datagrams_pass_both_ways() {
    for (family, up, down) in [(V4, 65_507, 65_507), (V6, 65_487, 65_527)] {
        let mut world = World::new(Config::default());
        let (app, peer) = (family.app(5000), family.peer(1, 53));
        let payload: Vec<u8> = (0..up).map(|at| (at * 7 / 3) as u8).collect();
        world.give(&udp(app, peer, &payload));
        assert_eq!(world.read(FlowId(0)), [(peer, payload)]);
        world.write(FlowId(0), peer, &vec![7; down]);
        world.write(FlowId(0), peer, &vec![7; down + 1]);
        assert_eq!(world.datagrams(), [(peer, app, vec![7; down])]);
        assert_eq!(world.stack.counters().datagrams_lost_down, 1);
    }
}

#[test]
fn a_datagram_that_the_applications_kernel_cut_arrives_whole() {
    let mut world = World::new(Config { mtu: 1500, ..Config::default() });
    let (app, peer) = (V4.app(5000), V4.peer(1, 53));
    let payload: Vec<u8> = (0..2000).map(|at| (at % 251) as u8).collect();
    let whole = udp(app, peer, &payload);
    for (start, end) in [(20 + 1480, whole.len()), (20, 20 + 1480)] {
        let mut packet = [&whole[..20], &whole[start..end]].concat();
        let place = ((start - 20) / 8) as u16 | u16::from(end < whole.len()) << 13;
        let length = packet.len() as u16;
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet[6..8].copy_from_slice(&place.to_be_bytes());
        fix_header(&mut packet);
        world.give(&packet);
    }
    assert_eq!(world.read(FlowId(0)), [(peer, payload)]);
}

#[test]
fn an_empty_datagram_is_one() {
    let mut world = World::new(Config::default());
    let (app, peer) = (V6.app(5000), V6.peer(1, 53));
    world.give(&udp(app, peer, b""));
    assert_eq!(world.read(FlowId(0)), [(peer, vec![])]);
    world.write(FlowId(0), peer, b"");
    assert_eq!(world.datagrams(), [(peer, app, vec![])]);
}

#[test]
fn trouble_is_told_as_the_network_would() {
    let refused = |why| Trouble::Refusal(why);
    let cases = [
        (refused(Refusal::Refused), (3, 3, 0), (1, 4, 0)),
        (refused(Refusal::NetUnreachable), (3, 0, 0), (1, 0, 0)),
        (refused(Refusal::HostUnreachable), (3, 1, 0), (1, 3, 0)),
        (refused(Refusal::TimedOut), (3, 1, 0), (1, 3, 0)),
        (refused(Refusal::Exhausted), (3, 1, 0), (1, 3, 0)),
        (refused(Refusal::Prohibited), (3, 13, 0), (1, 1, 0)),
        (refused(Refusal::Denied), (3, 13, 0), (1, 1, 0)),
        (Trouble::TooBig(1400), (3, 4, 1400), (2, 0, 1400)),
        (Trouble::TooBig(0), (3, 4, 1500), (2, 0, 1280)),
        (Trouble::TooBig(70), (3, 4, 576), (2, 0, 1280)),
    ];
    for (trouble, v4, v6) in cases {
        for (family, expected) in [(V4, v4), (V6, v6)] {
            let mut world = World::new(Config::default());
            let (app, peer) = (family.app(5000), family.peer(1, 53));
            let packet = udp(app, peer, &[7; 3000]);
            world.give(&packet);
            world.trouble(FlowId(0), peer, trouble);
            let error = world.error(family);
            assert_eq!((error.kind, error.code, error.mtu), expected, "{trouble:?}");
            assert_eq!(error.quote, packet[..family.header + 8]);
            assert_eq!((error.source, error.target), (peer.ip(), app.ip()));
            // Nothing was sent there.
            world.trouble(FlowId(0), family.peer(1, 54), trouble);
            world.trouble(FlowId(0), family.peer(2, 53), trouble);
            // That was long ago.
            world.now += Duration::from_secs(31);
            world.trouble(FlowId(0), peer, trouble);
            assert!(world.packets().is_empty());
        }
    }
}

#[test]
fn a_datagram_that_may_be_cut_on_the_way_is_never_too_big() {
    let mut world = World::new(Config::default());
    let (app, peer) = (V4.app(5000), V4.peer(1, 53));
    let mut packet = udp(app, peer, &[7; 3000]);
    packet[6] = 0;
    fix_header(&mut packet);
    world.give(&packet);
    world.trouble(FlowId(0), peer, Trouble::TooBig(1400));
    assert!(world.packets().is_empty());
}

#[test]
fn a_flood_of_trouble_is_limited() {
    let mut world = World::new(Config::default());
    let (app, peer) = (V4.app(5000), V4.peer(1, 53));
    world.give(&udp(app, peer, b"?"));
    for _ in 0..1000 {
        world.trouble(FlowId(0), peer, Trouble::Refusal(Refusal::Refused));
    }
    assert!(world.packets().len() <= 50);
    assert!(world.stack.counters().dropped(DropReason::ReplyRate) >= 950);
}

#[test]
fn an_answer_that_no_network_brings_is_dropped() {
    let mut world = World::new(Config::default());
    let app = V4.app(5000);
    world.give(&udp(app, V4.peer(1, 53), b"?"));
    let strange = [
        "127.0.0.1:53",
        "255.255.255.255:53",
        "224.0.0.1:53",
        "10.0.1.1:0",
        "[fd00:1::1]:53",
        "10.99.0.1:53",
    ];
    for peer in strange {
        world.write(FlowId(0), peer.parse().unwrap(), b"!");
    }
    assert!(world.packets().is_empty());
    assert_eq!(world.stack.counters().datagrams_lost_down, 6);
}

#[test]
fn bytes_that_are_no_message_end_the_flow() {
    let mut world = World::new(Config::default());
    let (app, peer) = (V4.app(5000), V4.peer(1, 53));
    world.give(&udp(app, peer, b"?"));
    world.events();
    let flow = FlowId(0);
    assert_eq!(world.stack.write(flow, &[9, 9, 9], world.now), 3);
    assert_eq!(world.events(), [Event::Reset { flow }]);
    assert_eq!((world.stack.counters().messages_broken, world.stack.counters().flows_now), (1, 0));
    world.give(&udp(app, peer, b"again"));
    assert!(matches!(world.events()[0], Event::Connect { .. }));
}

#[test]
fn a_low_hop_limit_changes_nothing() {
    for family in FAMILIES {
        for mut packet in [
            udp(family.app(5000), family.peer(1, 33_434), b"traceroute"),
            echo(family.app(0).ip(), family.peer(1, 0).ip(), 1, 1, b"traceroute"),
        ] {
            let mut world = World::new(Config::default());
            packet[if family.header == 20 { 8 } else { 7 }] = 1;
            fix_header(&mut packet);
            world.give(&packet);
            assert!(matches!(world.events()[..], [Event::Connect { .. }, Event::Readable { .. }]));
            assert!(world.packets().is_empty(), "no hop is made up");
        }
    }
}

#[test]
fn bad_datagrams_are_dropped_by_reason() {
    let good = udp(V4.app(5000), V4.peer(1, 53), b"question");
    let good6 = udp(V6.app(5000), V6.peer(1, 53), b"question");
    let edit = |packet: &[u8], edits: &[(usize, u8)]| {
        let mut packet = packet.to_vec();
        edits.iter().for_each(|(at, byte)| packet[*at] = *byte);
        packet
    };
    let cases = [
        (edit(&good, &[(25, 7)]), DropReason::Length),
        (edit(&good, &[(24, 1)]), DropReason::Length),
        (edit(&good, &[(30, 7)]), DropReason::Checksum),
        (edit(&good6, &[(46, 0), (47, 0)]), DropReason::Checksum),
        (edit(&udp(V4.app(0), V4.peer(1, 53), b""), &[]), DropReason::UdpPort),
        (edit(&udp(V6.app(1), V6.peer(1, 0), b""), &[]), DropReason::UdpPort),
    ];
    for (packet, reason) in cases {
        let mut world = World::new(Config::default());
        world.give(&packet);
        assert_eq!(world.stack.counters().dropped(reason), 1, "{packet:02x?}");
        assert!(world.events().is_empty() && world.packets().is_empty());
    }
    // IPv4 needs no checksum, and bytes behind the datagram are not its payload.
    let unsummed = edit(&good, &[(26, 0), (27, 0), (25, 8 + 4)]);
    let mut world = World::new(Config::default());
    world.give(&unsummed);
    assert_eq!(world.read(FlowId(0)), [(V4.peer(1, 53), b"ques".to_vec())]);
}

#[test]
fn checksums_are_completed_by_the_device_where_it_does_that() {
    let mut world = World::new(Config { emit_checksums: false, ..Config::default() });
    let (app, peer) = (V6.app(5000), V6.peer(1, 53));
    world.give(&udp(app, peer, b"?"));
    world.write(FlowId(0), peer, b"!");
    let mut packet = world.packets().remove(0);
    let rest = !smoltcp::wire::checksum::data(&packet[40..]);
    packet[46..48].copy_from_slice(&rest.to_be_bytes());
    let whole = UdpPacket::new_checked(&packet[40..]).unwrap();
    assert!(whole.verify_checksum(&peer.ip().into(), &app.ip().into()));
}

#[test]
fn a_far_end_that_finishes_ends_the_flow_and_the_next_datagram_begins_another() {
    let mut world = World::new(Config::default());
    let (app, peer) = (V4.app(5000), V4.peer(1, 53));
    world.give(&udp(app, peer, b"?"));
    world.events();
    world.stack.finish(FlowId(0), world.now);
    assert_eq!(world.events(), [Event::Closed { flow: FlowId(0) }]);
    world.give(&udp(app, peer, b"?"));
    assert_eq!(world.events().len(), 2);
    world.stack.reset(FlowId(0), world.now);
    assert!(world.events().is_empty() && world.packets().is_empty());
    assert_eq!(world.stack.counters().flows_now, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_things_breaks_a_bound(steps in prop::collection::vec(step(), 1..150)) {
        let config = Config {
            max_flows: 12,
            max_associations: 5,
            max_echoes: 3,
            datagram_queue: 8_000,
            datagram_memory: 20_000,
            ..Config::default()
        };
        let mut world = World::new(config);
        for step in steps {
            world.take(step);
            world.stack.check_invariants();
        }
        world.wait(Duration::from_secs(700));
        world.events();
        prop_assert_eq!(world.stack.counters().flows_now, 0);
        prop_assert_eq!(world.stack.poll_timeout(), None);
        world.stack.check_invariants();
    }
}

#[derive(Clone, Debug)]
enum Step {
    Udp { v6: bool, port: u8, host: u8, length: u16, edits: Vec<(u8, u8)> },
    Echo { v6: bool, identifier: u8, host: u8, length: u16, edits: Vec<(u8, u8)> },
    Message { pick: u8, v6: bool, host: u8, port: u8, length: u16 },
    Trouble { pick: u8, v6: bool, host: u8, port: u8, code: u8 },
    Bytes { pick: u8, bytes: Vec<u8> },
    Read { pick: u8, most: u16 },
    Accept { pick: u8 },
    Refuse { pick: u8, why: Refusal },
    Finish { pick: u8 },
    Reset { pick: u8 },
    Wait { millis: u32 },
    Flush { most: u8 },
    Events,
}

fn step() -> impl Strategy<Value = Step> {
    let small = || prop_oneof![Just(0u16), 0..200u16, 0..9_000u16];
    let edits = || prop_oneof![4 => Just(vec![]), 1 => prop::collection::vec((0..80u8, any::<u8>()), 1..4)];
    let why = prop::sample::select(
        &[Refusal::Refused, Refusal::Prohibited, Refusal::Denied, Refusal::Exhausted][..],
    );
    prop_oneof![
        8 => (any::<bool>(), 1..9u8, 0..4u8, small(), edits())
            .prop_map(|(v6, port, host, length, edits)| Step::Udp { v6, port, host, length, edits }),
        5 => (any::<bool>(), 1..5u8, 0..3u8, small(), edits())
            .prop_map(|(v6, identifier, host, length, edits)| Step::Echo { v6, identifier, host, length, edits }),
        6 => (0..12u8, any::<bool>(), 0..4u8, 0..3u8, small())
            .prop_map(|(pick, v6, host, port, length)| Step::Message { pick, v6, host, port, length }),
        3 => (0..12u8, any::<bool>(), 0..4u8, 0..3u8, 1..9u8)
            .prop_map(|(pick, v6, host, port, code)| Step::Trouble { pick, v6, host, port, code }),
        1 => (0..12u8, prop::collection::vec(0..7u8, 0..9)).prop_map(|(pick, bytes)| Step::Bytes { pick, bytes }),
        4 => (0..12u8, any::<u16>()).prop_map(|(pick, most)| Step::Read { pick, most }),
        2 => (0..12u8).prop_map(|pick| Step::Accept { pick }),
        1 => (0..12u8, why).prop_map(|(pick, why)| Step::Refuse { pick, why }),
        1 => (0..12u8).prop_map(|pick| Step::Finish { pick }),
        1 => (0..12u8).prop_map(|pick| Step::Reset { pick }),
        2 => (0..100_000u32).prop_map(|millis| Step::Wait { millis }),
        3 => (0..9u8).prop_map(|most| Step::Flush { most }),
        5 => Just(Step::Events),
    ]
}

struct World {
    stack: Stack,
    now: Instant,
}

struct Error {
    source: IpAddr,
    target: IpAddr,
    kind: u8,
    code: u8,
    mtu: u16,
    quote: Vec<u8>,
}

impl World {
    fn new(config: Config) -> Self {
        let now = Instant::now();
        Self { stack: Stack::new(config, now), now }
    }

    fn take(&mut self, step: Step) {
        let (now, flow) = (self.now, |pick: u8| FlowId(pick.into()));
        let edited = |mut packet: Vec<u8>, edits: Vec<(u8, u8)>| {
            for (at, byte) in edits {
                if let Some(place) = packet.get_mut(usize::from(at)) {
                    *place = byte;
                }
            }
            packet
        };
        match step {
            Step::Udp { v6, port, host, length, edits } => {
                let family = FAMILIES[usize::from(v6)];
                let packet = udp(family.app(port.into()), family.peer(host, 53), &vec![1; length.into()]);
                self.give(&edited(packet, edits));
            }
            Step::Echo { v6, identifier, host, length, edits } => {
                let family = FAMILIES[usize::from(v6)];
                let (app, target) = (family.app(0).ip(), family.peer(host, 0).ip());
                self.give(&edited(echo(app, target, identifier.into(), 1, &vec![1; length.into()]), edits));
            }
            Step::Message { pick, v6, host, port, length } => {
                let peer = FAMILIES[usize::from(v6)].peer(host, 52 + u16::from(port));
                self.write(flow(pick), peer, &vec![2; length.into()]);
            }
            Step::Trouble { pick, v6, host, port, code } => {
                let peer = FAMILIES[usize::from(v6)].peer(host, 52 + u16::from(port));
                let trouble = match code {
                    1 => Trouble::Refusal(Refusal::Refused),
                    2 => Trouble::Refusal(Refusal::NetUnreachable),
                    code => Trouble::TooBig(u16::from(code) * 300),
                };
                self.trouble(flow(pick), peer, trouble);
            }
            Step::Bytes { pick, bytes } => {
                self.stack.write(flow(pick), &bytes, now);
            }
            Step::Read { pick, most } => {
                self.stack.read(flow(pick), &mut vec![0; most.into()], now);
            }
            Step::Accept { pick } => self.stack.accept(flow(pick), now),
            Step::Refuse { pick, why } => self.stack.refuse(flow(pick), why, now),
            Step::Finish { pick } => self.stack.finish(flow(pick), now),
            Step::Reset { pick } => self.stack.reset(flow(pick), now),
            Step::Wait { millis } => self.wait(Duration::from_millis(millis.into())),
            Step::Flush { most } => {
                let mut left = most;
                self.stack.poll_packet(now, &mut |_| {
                    left = left.saturating_sub(1);
                    left > 0
                });
            }
            Step::Events => drop(self.events()),
        }
    }

    fn give(&mut self, packet: &[u8]) {
        self.stack.handle_packet(packet, self.now);
    }

    fn write(&mut self, flow: FlowId, peer: SocketAddr, payload: &[u8]) {
        let mut bytes = Vec::new();
        Message::Datagram { peer, payload }.encode(&mut bytes);
        self.stack.write(flow, &bytes, self.now);
    }

    fn trouble(&mut self, flow: FlowId, peer: SocketAddr, trouble: Trouble) {
        let mut bytes = Vec::new();
        Message::Trouble { peer, trouble }.encode(&mut bytes);
        self.stack.write(flow, &bytes, self.now);
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.stack.poll_event()).collect()
    }

    /// What the application sent, read to the end.
    fn read(&mut self, flow: FlowId) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut reader = Reader::default();
        let mut messages = Vec::new();
        let mut buf = [0; 1000];
        loop {
            let count = self.stack.read(flow, &mut buf, self.now);
            if count == 0 {
                assert_eq!(reader.waiting(), 0);
                return messages;
            }
            let mut take = |message: Message<'_>| {
                let (peer, payload) = own(message);
                messages.push((peer, payload.unwrap()));
            };
            reader.push(&buf[..count], &mut take).unwrap();
        }
    }

    fn packets(&mut self) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        while self.stack.wants_poll() {
            self.stack.poll_packet(self.now, &mut |packet| {
                packets.push(packet.to_vec());
                true
            });
        }
        packets
    }

    /// Source, target and payload of the datagrams to the application; all sums hold.
    fn datagrams(&mut self) -> Vec<(SocketAddr, SocketAddr, Vec<u8>)> {
        self.packets()
            .iter()
            .map(|packet| {
                let (source, target, header) = addresses(packet);
                let udp = UdpPacket::new_checked(&packet[header..]).unwrap();
                assert!(udp.checksum() != 0 && udp.verify_checksum(&source.into(), &target.into()));
                let (from, to) =
                    (SocketAddr::new(source, udp.src_port()), SocketAddr::new(target, udp.dst_port()));
                (from, to, udp.payload().to_vec())
            })
            .collect()
    }

    /// The one packet there is, which is an ICMP error.
    fn error(&mut self, family: Family) -> Error {
        let packets = self.packets();
        assert_eq!(packets.len(), 1);
        let (source, target, header) = addresses(&packets[0]);
        let icmp = &packets[0][header..];
        family.check_icmp_sum(source, target, icmp);
        let mtu = u16::from_be_bytes([icmp[6], icmp[7]]);
        Error { source, target, kind: icmp[0], code: icmp[1], mtu, quote: icmp[8..].to_vec() }
    }

    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.stack.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.stack.handle_timeout(self.now);
        }
        self.now = end;
    }
}

fn own(message: Message<'_>) -> (SocketAddr, Result<Vec<u8>, Trouble>) {
    match message {
        Message::Datagram { peer, payload } => (peer, Ok(payload.to_vec())),
        Message::Trouble { peer, trouble } => (peer, Err(trouble)),
    }
}

fn udp(source: SocketAddr, target: SocketAddr, data: &[u8]) -> Vec<u8> {
    let (from, to): (IpAddress, IpAddress) = (source.ip().into(), target.ip().into());
    ip_packet(from, to, IpProtocol::Udp, 8 + data.len(), |bytes| {
        bytes[..2].copy_from_slice(&source.port().to_be_bytes());
        bytes[2..4].copy_from_slice(&target.port().to_be_bytes());
        let mut udp = UdpPacket::new_unchecked(bytes);
        udp.set_len(8 + data.len() as u16);
        udp.payload_mut().copy_from_slice(data);
        udp.fill_checksum(&from, &to);
    })
}

fn echo(source: IpAddr, target: IpAddr, identifier: u16, sequence: u16, data: &[u8]) -> Vec<u8> {
    let (kind, protocol) = if source.is_ipv4() { (8, IpProtocol::Icmp) } else { (128, IpProtocol::Icmpv6) };
    ip_packet(source.into(), target.into(), protocol, 8 + data.len(), |bytes| {
        bytes[0] = kind;
        bytes[4..6].copy_from_slice(&identifier.to_be_bytes());
        bytes[6..8].copy_from_slice(&sequence.to_be_bytes());
        bytes[8..].copy_from_slice(data);
        let sum = icmp_sum(source, target, bytes);
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    })
}

fn addresses(packet: &[u8]) -> (IpAddr, IpAddr, usize) {
    if packet[0] >> 4 == 4 {
        let ip = Ipv4Packet::new_checked(packet).unwrap();
        assert!(ip.verify_checksum());
        (ip.src_addr().into(), ip.dst_addr().into(), 20)
    } else {
        let ip = Ipv6Packet::new_checked(packet).unwrap();
        (ip.src_addr().into(), ip.dst_addr().into(), 40)
    }
}

/// Makes the checksum of an IPv4 header right again.
fn fix_header(packet: &mut [u8]) {
    if packet[0] >> 4 == 4 {
        Ipv4Packet::new_unchecked(packet).fill_checksum();
    }
}

fn icmp_sum(source: IpAddr, target: IpAddr, bytes: &[u8]) -> u16 {
    use smoltcp::wire::checksum;
    let data = checksum::data(bytes);
    let sum = match (source, target) {
        (IpAddr::V6(source), IpAddr::V6(target)) => checksum::combine(&[
            checksum::data(&source.octets()),
            checksum::data(&target.octets()),
            bytes.len() as u16,
            58,
            data,
        ]),
        _ => data,
    };
    !sum
}

#[derive(Clone, Copy)]
struct Family {
    app: &'static str,
    peers: &'static str,
    header: usize,
}

const V4: Family = Family { app: "10.99.0.1", peers: "10.0.1.", header: 20 };

const V6: Family = Family { app: "fd00:99::1", peers: "fd00:1::", header: 40 };

const FAMILIES: [Family; 2] = [V4, V6];

impl Family {
    fn app(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.app.parse().unwrap(), port)
    }

    fn peer(&self, host: u8, port: u16) -> SocketAddr {
        SocketAddr::new(format!("{}{host}", self.peers).parse().unwrap(), port)
    }

    fn check_icmp_sum(&self, source: IpAddr, target: IpAddr, icmp: &[u8]) {
        assert_eq!(icmp_sum(source, target, icmp), 0, "of {} bytes", icmp.len());
    }
}
