//! The netstack against applications on a second TCP stack, in virtual time.

#![allow(clippy::disallowed_methods)]

mod figures;
mod finishes;
mod repeats;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use agent::wire::open::Refusal;
use netstack_tests::app::{App, AppSocket, RawSegment};
use netstack_tests::link::{Faults, Link, Random};
use smoltcp::socket::tcp::State;
use smoltcp::wire::{TcpControl, TcpPacket};
use ssm_proxy::netstack::rings::{Memory, Place};
use ssm_proxy::netstack::{Config, DropReason, Event, FlowId, Stack};
use ssm_proxy::os::arena::Arena;

#[test]
fn bytes_pass_both_ways_and_both_ends_finish() {
    for family in [V4, V6] {
        let mut world = World::new(Faults::default(), 1);
        let socket = world.connect(family, 40_000);
        let flow = world.opened();
        let (up, down) = (Random::new(2).bytes(300_000), Random::new(3).bytes(700_000));
        world.far(flow).outgoing = down.clone();
        world.far(flow).finish_when_sent = true;
        let received = world.exchange(socket, &up);
        assert!(received == down);
        world.app.close(socket);
        world.run_until(|world| world.far(flow).end.is_some());
        assert!(world.far(flow).received == up);
        assert_eq!(world.far(flow).end, Some(End::Closed));
        world.run_until(|world| {
            world.app.state(socket) == State::Closed || world.app.state(socket) == State::TimeWait
        });
        assert_eq!(world.stack.counters().flows_now, 0);
    }
}

#[test]
fn bytes_survive_loss_repeats_and_disorder() {
    let faults = Faults {
        delay: Duration::from_millis(1),
        lost: 20,
        repeated: 20,
        late: 100,
        jitter: Duration::from_millis(5),
    };
    for seed in 0..10 {
        let mut world = World::with_mtu(faults, seed, if seed % 2 == 0 { 1500 } else { 65_535 });
        let socket = world.connect(V4, 40_000);
        let flow = world.opened();
        let (up, down) = (Random::new(seed + 10).bytes(400_000), Random::new(seed + 20).bytes(400_000));
        world.far(flow).outgoing = down.clone();
        world.far(flow).finish_when_sent = true;
        let received = world.exchange(socket, &up);
        assert!(received == down, "seed {seed}");
        world.app.close(socket);
        world.run_until(|world| world.far(flow).end.is_some());
        assert!(world.far(flow).received == up, "seed {seed}");
        assert_eq!(world.far(flow).end, Some(End::Closed), "seed {seed}");
    }
}

#[test]
fn the_application_sees_nothing_before_the_far_side_answered() {
    let mut world = World::new(Faults::default(), 1);
    world.policy = Policy::Hold;
    let socket = world.connect(V4, 40_000);
    world.run_for(Duration::from_secs(20));
    assert_eq!(world.app.state(socket), State::SynSent);
    assert!(world.down_packets.is_empty());
    assert_eq!(world.events.len(), 1, "{:?}", world.events);
    assert!(world.stack.counters().syns_repeated >= 2);
    let Event::Connect { flow, source, target, .. } = world.events[0] else { panic!("{:?}", world.events) };
    assert_eq!((source, target), (V4.source(40_000), V4.target()));
    world.stack.accept(flow, world.now);
    world.run_until(|world| world.app.state(socket) == State::Established);
}

#[test]
fn a_refusal_resets_and_an_unreachable_target_is_an_icmp_error() {
    let cases = [
        (Refusal::Refused, None, None),
        (Refusal::Exhausted, None, None),
        (Refusal::NetUnreachable, Some((3, 0)), Some((1, 0))),
        (Refusal::HostUnreachable, Some((3, 1)), Some((1, 3))),
        (Refusal::TimedOut, Some((3, 1)), Some((1, 3))),
        (Refusal::Denied, Some((3, 13)), Some((1, 1))),
    ];
    for (why, v4, v6) in cases {
        for (family, expected) in [(V4, v4), (V6, v6)] {
            let mut world = World::new(Faults::default(), 1);
            world.policy = Policy::Refuse(why);
            let socket = world.connect(family, 40_000);
            world.run_for(Duration::from_millis(10));
            assert_eq!(world.down_packets.len(), 1);
            let packet = &world.down_packets[0];
            let (header, protocol) = family.header(packet);
            match expected {
                None => assert_eq!(world.app.state(socket), State::Closed),
                Some((kind, code)) => {
                    assert_eq!(protocol, family.icmp);
                    assert_eq!((packet[header], packet[header + 1]), (kind, code));
                    let quoted = &packet[header + 8..];
                    assert_eq!(
                        quoted[family.header..family.header + 4],
                        world.up_packets[0][family.header..][..4]
                    );
                    family.check_icmp_sum(packet);
                }
            }
            assert_eq!(world.stack.counters().flows_now, 0);
        }
    }
}

#[test]
fn a_reset_of_the_application_ends_the_flow() {
    let mut world = World::new(Faults::default(), 1);
    let socket = world.connect(V4, 40_000);
    let flow = world.opened();
    world.app.send(socket, b"cut");
    world.app.abort(socket);
    world.run_until(|world| world.far(flow).end.is_some());
    assert_eq!(world.far(flow).end, Some(End::Reset));
    assert_eq!(world.stack.counters().flows_now, 0);
}

#[test]
fn a_reset_of_the_far_side_reaches_the_application() {
    for family in [V4, V6] {
        let mut world = World::new(Faults::default(), 1);
        let socket = world.connect(family, 40_000);
        let flow = world.opened();
        world.far(flow).outgoing = b"never to be finished".to_vec();
        world.run_for(Duration::from_millis(10));
        world.stack.reset(flow, world.now);
        world.run_until(|world| world.app.state(socket) == State::Closed);
        assert_eq!(world.stack.counters().flows_now, 0);
        world.run_for(Duration::from_secs(5));
    }
}

#[test]
fn a_port_is_used_again_right_after_a_close() {
    let mut world = World::new(Faults::default(), 1);
    for round in 0..20u8 {
        let socket = world.connect(V4, 40_000);
        let flow = world.opened();
        world.far(flow).finish_when_sent = true;
        assert_eq!(world.app.send(socket, &[round; 100]), 100);
        world.app.close(socket);
        world.run_until(|world| world.far(flow).end.is_some());
        assert_eq!(world.far(flow).received, [round; 100]);
        assert_eq!(world.far(flow).end, Some(End::Closed));
        world.app.forget(socket);
        world.forget(flow);
    }
    assert_eq!(world.stack.counters().flows_opened, 20);
}

#[test]
fn a_new_connection_replaces_one_its_machine_forgot() {
    for finished in [false, true] {
        let mut world = World::new(Faults::default(), 1);
        let old = world.connect(V4, 40_000);
        let flow = world.opened();
        if finished {
            world.app.close(old);
            world.run_until(|world| world.far(flow).finished);
        }
        world.app.forget(old);
        world.forget_links();
        if finished {
            world.far(flow).finish_when_sent = true;
        }
        let new = world.connect(V4, 40_000);
        world.run_until(|world| world.app.state(new) == State::Established);
        assert!(world.events.iter().filter(|event| matches!(event, Event::Connect { .. })).count() == 2);
        assert!(world.far(flow).end.is_some() || world.first_flow() == flow);
    }
}

#[test]
fn an_application_that_gives_up_while_it_waits_is_told_of() {
    let mut world = World::new(Faults::default(), 1);
    world.policy = Policy::Hold;
    let syn = syn(V4, 40_000, 1000);
    world.stack.handle_packet(&syn.packet(), world.now);
    let Some(Event::Connect { flow, .. }) = world.stack.poll_event() else { panic!("no connect") };
    let wrong = RawSegment { control: TcpControl::Rst, seq: 7, ..syn };
    world.stack.handle_packet(&wrong.packet(), world.now);
    assert_eq!(world.stack.poll_event(), None);
    let reset = RawSegment { control: TcpControl::Rst, seq: 1001, ..syn };
    world.stack.handle_packet(&reset.packet(), world.now);
    assert_eq!(world.stack.poll_event(), Some(Event::Reset { flow }));
    world.stack.accept(flow, world.now);
    assert!(!world.stack.wants_poll());
    assert_eq!(world.stack.counters().flows_now, 0);
    world.stack.check_invariants();
}

#[test]
fn a_connection_given_up_before_it_was_told_of_never_was() {
    let mut world = World::new(Faults::default(), 1);
    let syn = syn(V4, 40_000, 1000);
    world.stack.handle_packet(&syn.packet(), world.now);
    let reset = RawSegment { control: TcpControl::Rst, seq: 1001, ..syn };
    world.stack.handle_packet(&reset.packet(), world.now);
    assert_eq!(world.stack.poll_event(), None);
    assert_eq!(world.stack.counters().flows_now, 0);
    world.stack.check_invariants();
}

/// The owner has the flow's name until it is told that the flow is gone; a new flow of that name before would get
/// the old one's bytes.
#[test]
fn a_connection_that_finds_no_memory_is_refused_and_its_owner_is_told() {
    let mut world = World::new(Faults::default(), 1);
    world.policy = Policy::Hold;
    world.stack = Stack::with_memory(world.config.clone(), Some(Box::new(NoMemory)), world.now);
    world.stack.handle_packet(&syn(V4, 40_000, 1000).packet(), world.now);
    let Some(Event::Connect { flow, .. }) = world.stack.poll_event() else { panic!("no connect") };
    world.stack.accept(flow, world.now);
    world.stack.handle_packet(&syn(V4, 40_001, 1000).packet(), world.now);
    world.stack.check_invariants();
    assert_eq!(world.stack.poll_event(), Some(Event::Reset { flow }));
    let Some(Event::Connect { flow: next, .. }) = world.stack.poll_event() else { panic!("no connect") };
    assert_ne!(next, flow);
    let mut told = Vec::new();
    world.stack.poll_packet(world.now, &mut |packet| {
        told.push(TcpPacket::new_unchecked(&packet[20..]).rst());
        true
    });
    assert_eq!(told, [true]);
}

#[test]
fn rings_at_rest_give_their_pages_back_and_no_byte_is_lost() {
    let jitter = Duration::from_millis(5);
    let faults = Faults { delay: jitter, lost: 3, late: 10, jitter, ..Faults::default() };
    let mut world = World::new(faults, 5);
    let arena = Box::new(Arena::new(world.config.rings()));
    world.stack = Stack::with_memory(world.config.clone(), Some(arena), world.now);
    let socket = world.connect(V4, 40_000);
    let flow = world.opened();
    let (mut up, mut received) = (Vec::new(), Vec::new());
    let mut rests = 0;
    for round in 0..8 {
        let burst = Random::new(round).bytes(90_000);
        world.far(flow).outgoing.extend(Random::new(round + 100).bytes(50_000));
        let mut sent = 0;
        while sent < burst.len() {
            sent += world.app.send(socket, &burst[sent..]);
            world.run_for(Duration::from_millis(100));
        }
        world.run_for(Duration::from_secs(60));
        received.extend(world.receive(socket));
        world.run_for(Duration::from_secs(30));
        up.extend(burst);
        assert!(
            world.stack.counters().rests > rests,
            "round {round}: the flow was silent and kept its pages"
        );
        rests = world.stack.counters().rests;
    }
    assert!(world.far(flow).received == up);
    let down: Vec<u8> = (0..8).flat_map(|round| Random::new(round + 100).bytes(50_000)).collect();
    assert!(received == down);
    assert_eq!(world.stack.poll_timeout(), None, "a silent stack has no timer");
}

#[test]
fn a_segment_beyond_a_gap_keeps_the_rings_awake() {
    let mut world = World::new(Faults::default(), 1);
    world.policy = Policy::Hold;
    let arena = Box::new(Arena::new(world.config.rings()));
    world.stack = Stack::with_memory(world.config.clone(), Some(arena), world.now);
    let syn = RawSegment { window: 65_535, ..syn(V4, 40_000, 1000) };
    world.stack.handle_packet(&syn.packet(), world.now);
    let Some(Event::Connect { flow, .. }) = world.stack.poll_event() else { panic!("no flow") };
    world.stack.accept(flow, world.now);
    let answer = world.drain();
    let seq = TcpPacket::new_checked(&answer[0][V4.header..]).unwrap().seq_number().0 as u32;
    let ack = RawSegment { seq: 1001, ack: Some(seq.wrapping_add(1)), control: TcpControl::None, ..syn };
    world.stack.handle_packet(&ack.packet(), world.now);
    world.stack.handle_packet(&RawSegment { seq: 1004, data: b"def", ..ack }.packet(), world.now);
    world.drain();
    for _ in 0..10 {
        world.now += Duration::from_secs(5);
        world.stack.handle_timeout(world.now);
    }
    assert_eq!(world.stack.counters().rests, 0);
    world.stack.handle_packet(&RawSegment { data: b"abc", ..ack }.packet(), world.now);
    let mut buf = [0; 16];
    let count = world.stack.read(flow, &mut buf, world.now);
    assert_eq!(&buf[..count], b"abcdef");
    world.drain();
    for _ in 0..3 {
        world.now += Duration::from_secs(5);
        world.stack.handle_timeout(world.now);
    }
    assert_eq!(world.stack.counters().rests, 1);
    world.stack.check_invariants();
}

#[test]
fn a_pending_flow_whose_syns_stop_is_given_up() {
    let mut world = World::new(Faults::default(), 1);
    world.policy = Policy::Hold;
    let socket = world.connect(V4, 40_000);
    world.run_until(|world| !world.events.is_empty());
    world.app.forget(socket);
    world.run_for(Duration::from_secs(200));
    let flow = world.first_flow();
    assert_eq!(world.events.last(), Some(&Event::Reset { flow }));
}

#[test]
fn an_application_that_vanished_before_the_answer_is_a_reset() {
    let mut world = World::new(Faults::default(), 1);
    world.policy = Policy::Hold;
    let socket = world.connect(V4, 40_000);
    world.run_until(|world| !world.events.is_empty());
    world.app.forget(socket);
    let flow = world.first_flow();
    world.stack.accept(flow, world.now);
    world.run_until(|world| world.far(flow).end.is_some());
    assert_eq!(world.far(flow).end, Some(End::Reset));
}

#[test]
fn a_machine_that_falls_silent_does_not_hold_a_flow_for_ever() {
    let mut world = World::new(Faults::default(), 1);
    let _socket = world.connect(V4, 40_000);
    let flow = world.opened();
    world.up.faults.lost = 1000;
    world.run_for(Duration::from_secs(100_000));
    assert_eq!(world.far(flow).end, None, "an idle connection may be silent");
    world.far(flow).outgoing = b"anyone there?".to_vec();
    world.run_for(Duration::from_secs(500));
    assert_eq!(world.far(flow).end, None);
    world.run_for(Duration::from_secs(300));
    assert_eq!(world.far(flow).end, Some(End::Reset));
    assert_eq!(world.stack.poll_timeout().map(|at| at > world.now + Duration::from_secs(60)), None);
}

#[test]
fn stray_segments_get_the_reset_of_the_book() {
    for family in [V4, V6] {
        let mut world = World::new(Faults::default(), 1);
        let base = RawSegment { ack: Some(5000), data: b"xyz", ..syn(family, 40_000, 1000) };
        let cases = [
            (RawSegment { control: TcpControl::None, ..base }, Some((5000, None))),
            (RawSegment { control: TcpControl::Fin, ..base }, Some((5000, None))),
            (RawSegment { control: TcpControl::Syn, data: b"", ..base }, Some((5000, None))),
            (RawSegment { control: TcpControl::Rst, ..base }, None),
        ];
        for (segment, expected) in cases {
            world.stack.handle_packet(&segment.packet(), world.now);
            let answers = world.drain();
            let Some((seq, ack)) = expected else {
                assert!(answers.is_empty());
                continue;
            };
            let tcp = TcpPacket::new_checked(&answers[0][family.header..]).unwrap();
            assert!(
                tcp.rst() && tcp.verify_checksum(&family.target().ip().into(), &family.source(1).ip().into())
            );
            assert_eq!(tcp.seq_number().0 as u32, seq);
            assert_eq!(tcp.ack().then(|| tcp.ack_number().0 as u32), ack);
            assert_eq!((tcp.src_port(), tcp.dst_port()), (family.target().port(), 40_000));
        }
        assert_eq!(world.stack.poll_event(), None);
    }
}

/// One place is used again and again, at the same instant.
#[test]
fn timers_go_with_their_flows() {
    let mut world = World::new(Faults::default(), 1);
    let call = |world: &mut World, port: u16| {
        world.stack.handle_packet(&syn(V4, port, 1000).packet(), world.now);
        let reset = RawSegment { control: TcpControl::Rst, seq: 1001, ..syn(V4, port, 1000) };
        reset.packet()
    };
    let resets: Vec<_> = (1..=500).map(|port| call(&mut world, port)).collect();
    for _ in 0..500 {
        let reset = call(&mut world, 501);
        world.stack.handle_packet(&reset, world.now);
        world.stack.check_invariants();
    }
    call(&mut world, 501);
    for reset in resets {
        world.stack.handle_packet(&reset, world.now);
        world.stack.check_invariants();
    }
    assert_eq!(world.stack.counters().flows_now, 1);
}

#[test]
fn a_flood_of_syns_is_bounded() {
    let mut world = World::new(Faults::default(), 1);
    for number in 0..100_000u32 {
        let mut segment = syn(V4, 1 + (number % 60_000) as u16, number);
        segment.target.set_port(1 + (number / 60_000) as u16);
        world.stack.handle_packet(&segment.packet(), world.now);
    }
    let counters = world.stack.counters();
    assert_eq!(counters.flows_pending, world.config.max_pending);
    assert_eq!(counters.flows_now, world.config.max_pending);
    assert_eq!(counters.dropped(DropReason::PendingFull), 100_000 - world.config.max_pending as u64);
    assert!(world.drain().is_empty());
    world.stack.check_invariants();
    // Room again: each refusal lets one more in.
    let Some(Event::Connect { flow, .. }) = world.stack.poll_event() else { panic!("no connect") };
    world.stack.refuse(flow, Refusal::Refused, world.now);
    world.stack.handle_packet(&syn(V4, 60_001, 1).packet(), world.now);
    assert_eq!(world.stack.counters().flows_pending, world.config.max_pending);
    world.stack.check_invariants();
}

#[test]
fn hostile_packets_are_dropped_by_reason() {
    let good = syn(V4, 40_000, 1).packet();
    let good6 = syn(V6, 40_000, 1).packet();
    let edit = |packet: &[u8], edits: &[(usize, u8)]| {
        let mut packet = packet.to_vec();
        for (at, byte) in edits {
            packet[*at] = *byte;
        }
        if packet[0] >> 4 == 4 && packet.len() >= 20 {
            packet[10..12].fill(0);
            let sum = smoltcp::wire::checksum::data(&packet[..20]);
            packet[10..12].copy_from_slice(&(!sum).to_be_bytes());
        }
        packet
    };
    let cases = [
        (vec![], DropReason::Length),
        (vec![0x50; 40], DropReason::Version),
        (good[..19].to_vec(), DropReason::Length),
        (good[..30].to_vec(), DropReason::Length),
        (edit(&good, &[(0, 0x44)]), DropReason::Length),
        (edit(&good, &[(2, 0xff)]), DropReason::Length),
        (edit(&good, &[(6, 0x20)]), DropReason::Fragment),
        (edit(&good, &[(7, 1)]), DropReason::Fragment),
        (edit(&good, &[(8, 0)]), DropReason::HopLimit),
        (edit(&good, &[(9, 132)]), DropReason::Protocol),
        (edit(&good, &[(12, 127)]), DropReason::Source),
        (edit(&good, &[(12, 224)]), DropReason::Source),
        (edit(&good, &[(12, 255), (13, 255), (14, 255), (15, 255)]), DropReason::Source),
        (edit(&good, &[(12, 0), (13, 0), (14, 0), (15, 0)]), DropReason::Source),
        (edit(&good, &[(16, 239)]), DropReason::Multicast),
        (edit(&good, &[(16, 127)]), DropReason::Target),
        (edit(&good, &[(16, 255), (17, 255), (18, 255), (19, 255)]), DropReason::Target),
        (edit(&good, &[(12, 10), (13, 0), (14, 1), (15, 5)]), DropReason::SameAddress),
        (edit(&good, &[(20, 0), (21, 0)]), DropReason::TcpHeader),
        (edit(&good, &[(32, 0x40)]), DropReason::TcpHeader),
        (edit(&good, &[(32, 0xf0)]), DropReason::TcpHeader),
        (edit(&good, &[(24, 9)]), DropReason::Checksum),
        ([&good[..10], &[1, 2], &good[12..]].concat(), DropReason::Checksum),
        (good6[..39].to_vec(), DropReason::Length),
        (edit(&good6, &[(7, 0)]), DropReason::HopLimit),
        (edit(&good6, &[(6, 44)]), DropReason::Fragment),
        (edit(&good6, &[(6, 0)]), DropReason::ExtensionHeader),
        (edit(&good6, &[(6, 60)]), DropReason::ExtensionHeader),
        (edit(&good6, &[(6, 1)]), DropReason::Protocol),
        (edit(&good6, &[(8, 0xff)]), DropReason::Source),
        (edit(&good6, &[(24, 0xff)]), DropReason::Multicast),
        (edit(&good6, &[(50, 9)]), DropReason::Checksum),
    ];
    for (packet, reason) in cases {
        let mut world = World::new(Faults::default(), 1);
        world.stack.handle_packet(&packet, world.now);
        let dropped: Vec<_> = world
            .stack
            .counters()
            .drops()
            .filter(|(_, count)| *count > 0)
            .map(|(reason, _)| reason)
            .collect();
        assert_eq!(dropped, [reason], "{packet:02x?}");
        let is_told = packet.get(9) == Some(&132);
        assert_eq!(world.stack.wants_poll(), is_told);
        assert_eq!(world.stack.poll_event(), None);
    }
    let mut unverified = Stack::new(Config { verify_checksums: false, ..config(1) }, Instant::now());
    unverified.handle_packet(&edit(&good, &[(24, 9)]), Instant::now());
    assert!(matches!(unverified.poll_event(), Some(Event::Connect { .. })));
}

#[test]
fn a_fragment_whose_rest_never_comes_does_not_stay() {
    let mut world = World::new(Faults::default(), 1);
    let mut first = syn(V4, 40_000, 1).packet();
    first.truncate(20);
    first.extend([7; 8]);
    // Length, more to come, UDP.
    (first[2], first[3], first[6], first[9]) = (0, 28, 0x20, 17);
    first[10..12].fill(0);
    let sum = smoltcp::wire::checksum::data(&first[..20]);
    first[10..12].copy_from_slice(&(!sum).to_be_bytes());
    world.stack.handle_packet(&first, world.now);
    assert_eq!(world.stack.counters().dropped(DropReason::Fragment), 0);
    let due = world.stack.poll_timeout().expect("a fragment waits");
    assert_eq!(due, world.now + Duration::from_secs(30));
    world.stack.handle_timeout(due);
    assert_eq!(world.stack.counters().dropped(DropReason::Fragment), 1);
    assert_eq!(world.stack.poll_timeout(), None);
}

/// More data than the window of the SYN-ACK allows: smoltcp itself would panic on it.
#[test]
fn a_sender_that_ignores_the_window_hurts_only_itself() {
    for ring in [64 * 1024, 100_000, 512 * 1024] {
        let config = Config { receive_ring: ring, ..config(3) };
        let mut world = World::with_config(Faults::default(), 3, config);
        let syn = syn(V4, 40_000, 1000);
        world.stack.handle_packet(&syn.packet(), world.now);
        let Some(Event::Connect { flow, .. }) = world.stack.poll_event() else { panic!("no connect") };
        world.stack.accept(flow, world.now);
        let answer = world.drain();
        let tcp = TcpPacket::new_checked(&answer[0][20..]).unwrap();
        let ack = Some((tcp.seq_number().0 as u32).wrapping_add(1));
        let data = vec![7; 60_000];
        for order in [[0u32, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [11, 9, 7, 5, 3, 1, 0, 2, 4, 6, 8, 10]] {
            for at in order {
                let seq = 1001 + at * 60_000;
                let control = if at == 11 { TcpControl::Fin } else { TcpControl::None };
                let segment = RawSegment { control, seq, ack, data: &data, ..syn };
                world.stack.handle_packet(&segment.packet(), world.now);
            }
        }
        world.drain();
        world.stack.check_invariants();
    }
}

/// smoltcp's window ends on a multiple of its scale, so data of an odd length moves the end back a little.
#[test]
fn what_was_ever_offered_is_accepted() {
    for size in [1, 3, 1460, 60_001] {
        let config = Config { receive_ring: 512 * 1024, ..config(3) };
        let mut world = World::with_config(Faults::default(), 3, config);
        let syn = syn(V4, 40_000, 1000);
        world.stack.handle_packet(&syn.packet(), world.now);
        let Some(Event::Connect { flow, .. }) = world.stack.poll_event() else { panic!("no connect") };
        world.stack.accept(flow, world.now);
        let told = |packet: &[u8]| {
            let tcp = TcpPacket::new_checked(&packet[20..]).unwrap();
            assert!(tcp.verify_checksum(&V4.target().ip().into(), &V4.source(0).ip().into()));
            let shift = if tcp.syn() { 0 } else { 3 };
            (tcp.seq_number().0 as u32, tcp.ack_number().0 as u32, usize::from(tcp.window_len()) << shift)
        };
        let (seq, _, window) = told(&world.drain()[0]);
        let stream = Random::new(1).bytes(600_000);
        let (mut sent, mut edge) = (0, window);
        while sent < edge {
            // Small steps only near the end, or the test takes long.
            let step = if edge - sent > 70_000 {
                60_001
            } else if edge - sent > 3_000 && size < 1000 {
                1_001
            } else {
                size
            };
            let next = edge.min(sent + step);
            let control = if next == edge && edge > 520_000 { TcpControl::Fin } else { TcpControl::None };
            let segment = RawSegment {
                control,
                seq: 1001 + sent as u32,
                ack: Some(seq.wrapping_add(1)),
                data: &stream[sent..next],
                ..syn
            };
            world.stack.handle_packet(&segment.packet(), world.now);
            sent = next;
            for packet in world.drain() {
                let (_, ack, window) = told(&packet);
                let fin = usize::from(control == TcpControl::Fin);
                assert_eq!(ack as usize, 1001 + sent + fin, "{size}");
                edge = edge.max(ack as usize - 1001 - fin + window);
            }
        }
        assert!(sent > 520_000);
        let mut received = vec![0; 600_000];
        let count = world.stack.read(flow, &mut received, world.now);
        assert!(received[..count] == stream[..sent], "{size}");
        let events: Vec<_> = std::iter::from_fn(|| world.stack.poll_event()).collect();
        assert!(events.contains(&Event::Finished { flow }), "{size}: {events:?}");
    }
}

// The world: an application's machine, a link, the stack, and an owner that does only what events allow.

const APP_RING: usize = 65_535 << 3;

struct World {
    now: Instant,
    config: Config,
    app: App,
    up: Link,
    down: Link,
    stack: Stack,
    policy: Policy,
    fars: HashMap<FlowId, Far>,
    events: Vec<Event>,
    up_packets: Vec<Vec<u8>>,
    down_packets: Vec<Vec<u8>>,
    /// Packets the device takes before it is full, each millisecond or so.
    device_takes: usize,
}

#[derive(Clone, Copy)]
enum Policy {
    Accept,
    Refuse(Refusal),
    Hold,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Closed,
    Reset,
}

/// The owner's side of a flow.
struct Far {
    reading: bool,
    /// How much one read takes; all when `None`.
    sip: Option<usize>,
    readable: bool,
    room: bool,
    received: Vec<u8>,
    outgoing: Vec<u8>,
    sent: usize,
    finish_when_sent: bool,
    finish_sent: bool,
    finished: bool,
    end: Option<End>,
}

fn config(seed: u64) -> Config {
    Config { mtu: 1500, receive_ring: 256 * 1024, send_ring: 512 * 1024, seed, ..Config::default() }
}

impl World {
    fn new(faults: Faults, seed: u64) -> Self {
        Self::with_mtu(faults, seed, 65_535)
    }

    fn with_mtu(faults: Faults, seed: u64, mtu: usize) -> Self {
        Self::with_config(faults, seed, Config { mtu, ..config(seed) })
    }

    fn with_config(faults: Faults, seed: u64, config: Config) -> Self {
        let now = Instant::now();
        let addresses = [V4.source(0).ip(), V6.source(0).ip()];
        Self {
            now,
            app: App::new(&addresses, config.mtu, APP_RING, seed + 100, now),
            up: Link::new(faults, seed + 1),
            down: Link::new(faults, seed + 2),
            stack: Stack::new(config.clone(), now),
            config,
            policy: Policy::Accept,
            fars: HashMap::new(),
            events: Vec::new(),
            up_packets: Vec::new(),
            down_packets: Vec::new(),
            device_takes: usize::MAX,
        }
    }

    fn connect(&mut self, family: Family, port: u16) -> AppSocket {
        self.app.connect(family.source(port), family.target()).expect("the socket is new")
    }

    /// Runs until the newest flow is open both ways.
    fn opened(&mut self) -> FlowId {
        let before = self.stack.counters().flows_opened;
        self.run_until(|world| {
            world.stack.counters().flows_opened > before && world.stack.counters().flows_pending == 0
        });
        let flow = self.newest_flow();
        self.run_until(|world| world.stack.room(flow) > 0);
        self.run_for(Duration::from_millis(20));
        flow
    }

    fn newest_flow(&self) -> FlowId {
        let connects = self
            .events
            .iter()
            .rev()
            .find_map(|event| if let Event::Connect { flow, .. } = event { Some(*flow) } else { None });
        connects.expect("no flow was opened")
    }

    fn first_flow(&self) -> FlowId {
        let Event::Connect { flow, .. } = self.events[0] else { panic!("{:?}", self.events[0]) };
        flow
    }

    fn far(&mut self, flow: FlowId) -> &mut Far {
        self.fars.get_mut(&flow).expect("the flow was opened")
    }

    fn forget(&mut self, flow: FlowId) {
        self.fars.remove(&flow);
    }

    fn forget_links(&mut self) {
        let later = self.now + Duration::from_secs(3600);
        while self.up.receive(later).is_some() {}
        while self.down.receive(later).is_some() {}
    }

    /// Sends `up` and receives until the far side has sent all it has.
    fn exchange(&mut self, socket: AppSocket, up: &[u8]) -> Vec<u8> {
        let mut at = 0;
        let mut received = Vec::new();
        let limit = self.now + Duration::from_secs(3600);
        loop {
            self.settle();
            let sent = self.app.send(socket, &up[at..]);
            let news = self.receive(socket);
            at += sent;
            received.extend_from_slice(&news);
            let outgoing: usize = self.fars.values().map(|far| far.outgoing.len()).sum();
            if at == up.len() && received.len() >= outgoing {
                return received;
            }
            if sent == 0 && news.is_empty() {
                self.now = self.next();
            }
            assert!(self.now < limit, "the exchange stalled at {at} up, {} down", received.len());
        }
    }

    fn receive(&mut self, socket: AppSocket) -> Vec<u8> {
        let mut all = Vec::new();
        let mut buf = vec![0; 65_536];
        loop {
            let count = self.app.receive(socket, &mut buf);
            if count == 0 {
                return all;
            }
            all.extend_from_slice(&buf[..count]);
        }
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.settle();
            self.now = self.next().min(end);
        }
        self.settle();
    }

    fn run_until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let limit = self.now + Duration::from_secs(3600);
        self.settle();
        while !done(self) {
            assert!(self.now < limit, "not reached in an hour; events {:?}", self.events);
            self.step();
        }
    }

    /// Does all there is to do now, then goes on to when there is more.
    fn step(&mut self) {
        self.settle();
        self.now = self.next();
    }

    fn next(&mut self) -> Instant {
        let soonest = self.now + Duration::from_micros(100);
        let times =
            [self.up.next(), self.down.next(), self.stack.poll_timeout(), self.app.poll_timeout(self.now)];
        let waiting = self.stack.wants_poll().then_some(soonest);
        let next = times.into_iter().flatten().chain(waiting).min();
        next.unwrap_or(self.now + Duration::from_secs(1)).max(soonest)
    }

    fn settle(&mut self) {
        let mut quiet = 0;
        let mut takes = self.device_takes;
        while quiet < 2 {
            quiet = if self.turn(&mut takes) { 0 } else { quiet + 1 };
        }
        self.stack.check_invariants();
    }

    fn turn(&mut self, takes: &mut usize) -> bool {
        let mut moved = false;
        while let Some(packet) = self.up.receive(self.now) {
            self.stack.handle_packet(&packet, self.now);
            moved = true;
        }
        if self.stack.poll_timeout().is_some_and(|at| at <= self.now) {
            self.stack.handle_timeout(self.now);
        }
        while let Some(event) = self.stack.poll_event() {
            self.handle_event(event);
            moved = true;
        }
        moved |= self.move_far_bytes();
        let (down, packets, now) = (&mut self.down, &mut self.down_packets, self.now);
        self.stack.poll_packet(now, &mut |packet| {
            if *takes == 0 {
                return false;
            }
            *takes -= 1;
            moved = true;
            packets.push(packet.to_vec());
            down.send(packet, now);
            true
        });
        while let Some(packet) = self.down.receive(self.now) {
            self.app.handle_packet(packet);
            moved = true;
        }
        for packet in self.app.poll(self.now) {
            self.up.send(&packet, self.now);
            self.up_packets.push(packet);
            moved = true;
        }
        moved
    }

    fn handle_event(&mut self, event: Event) {
        self.events.push(event);
        let now = self.now;
        match event {
            Event::Connect { flow, .. } => {
                let old = self.fars.insert(flow, Far::new());
                assert!(old.is_none_or(|old| old.end.is_some()), "{flow:?} is used twice");
                match self.policy {
                    Policy::Accept => self.stack.accept(flow, now),
                    Policy::Refuse(why) => {
                        self.stack.refuse(flow, why, now);
                        self.far(flow).end = Some(End::Reset);
                    }
                    Policy::Hold => {}
                }
            }
            Event::Readable { flow } => {
                let far = self.far(flow);
                assert!(!far.readable && far.end.is_none(), "readable twice: {flow:?}");
                far.readable = true;
            }
            Event::Room { flow } => self.far(flow).room = true,
            Event::Finished { flow } => {
                let far = self.far(flow);
                assert!(!far.finished && far.end.is_none());
                far.finished = true;
            }
            Event::Reset { flow } => {
                let far = self.far(flow);
                assert!(far.end.is_none());
                far.end = Some(End::Reset);
            }
            Event::Closed { flow } => {
                let far = self.far(flow);
                assert!(far.end.is_none() && far.finished && far.finish_sent);
                far.end = Some(End::Closed);
            }
        }
    }

    fn move_far_bytes(&mut self) -> bool {
        let mut moved = false;
        let mut buf = vec![0; 65_536];
        for (flow, far) in &mut self.fars {
            if far.end.is_some() {
                continue;
            }
            if far.readable && far.reading {
                let most = far.sip.unwrap_or(buf.len());
                let count = self.stack.read(*flow, &mut buf[..most], self.now);
                assert!(count == 0 || !far.finished, "bytes after the finish");
                far.received.extend_from_slice(&buf[..count]);
                far.readable = count > 0;
                moved = true;
            }
            if far.room && far.sent < far.outgoing.len() {
                let room = self.stack.room(*flow);
                let count = self.stack.write(*flow, &far.outgoing[far.sent..], self.now);
                assert_eq!(count, room.min(far.outgoing.len() - far.sent));
                far.sent += count;
                far.room = self.stack.room(*flow) > 0;
                moved = true;
            }
            if far.finish_when_sent && !far.finish_sent && far.sent == far.outgoing.len() {
                far.finish_sent = true;
                self.stack.finish(*flow, self.now);
                moved = true;
            }
        }
        moved
    }

    /// All packets the stack sends now.
    fn drain(&mut self) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        while self.stack.wants_poll() {
            self.stack.poll_packet(self.now, &mut |packet| {
                packets.push(packet.to_vec());
                true
            });
        }
        packets
    }
}

impl Far {
    fn new() -> Self {
        Self {
            reading: true,
            sip: None,
            readable: false,
            room: false,
            received: Vec::new(),
            outgoing: Vec::new(),
            sent: 0,
            finish_when_sent: false,
            finish_sent: false,
            finished: false,
            end: None,
        }
    }
}

/// Addresses of one IP version and what its packets look like.
#[derive(Clone, Copy)]
struct Family {
    source: &'static str,
    target: &'static str,
    header: usize,
    icmp: u8,
}

const V4: Family = Family { source: "10.99.0.1", target: "10.0.1.5", header: 20, icmp: 1 };

const V6: Family = Family { source: "fd00:99::1", target: "fd00:1::5", header: 40, icmp: 58 };

impl Family {
    fn source(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.source.parse::<IpAddr>().expect("an address"), port)
    }

    fn target(&self) -> SocketAddr {
        SocketAddr::new(self.target.parse::<IpAddr>().expect("an address"), 5432)
    }

    fn header(&self, packet: &[u8]) -> (usize, u8) {
        (self.header, packet[if self.header == 20 { 9 } else { 6 }])
    }

    fn icmp_sum(&self, source: IpAddr, target: IpAddr, bytes: &[u8]) -> u16 {
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

    fn check_icmp_sum(&self, packet: &[u8]) {
        let icmp = &packet[self.header..];
        assert_eq!(self.icmp_sum(self.target().ip(), self.source(0).ip(), icmp), 0);
    }
}

struct NoMemory;

impl Memory for NoMemory {
    fn lease(&mut self, _length: usize) -> Option<(Place, &'static mut [u8])> {
        None
    }

    fn rest(&mut self, _place: Place) {}

    fn wake(&mut self, _place: Place) {}
}

fn syn(family: Family, port: u16, seq: u32) -> RawSegment<'static> {
    RawSegment {
        source: family.source(port),
        target: family.target(),
        control: TcpControl::Syn,
        seq,
        ack: None,
        window: 64_000,
        data: b"",
    }
}
