//! Connections whose sides finish, in any order.

use super::*;

#[test]
fn the_application_finishes_first_and_still_receives() {
    let mut world = World::new(Faults::default(), 1);
    let socket = world.connect(V4, 40_000);
    let flow = world.opened();
    assert_eq!(world.app.send(socket, b"question"), 8);
    world.app.close(socket);
    world.run_until(|world| world.far(flow).finished);
    assert_eq!(world.far(flow).received, b"question");
    assert_eq!(world.far(flow).end, None);
    world.far(flow).outgoing = b"a late answer".to_vec();
    world.run_for(Duration::from_secs(120));
    assert_eq!(world.receive(socket), b"a late answer");
    world.far(flow).finish_when_sent = true;
    world.run_until(|world| world.far(flow).end.is_some());
    assert_eq!(world.far(flow).end, Some(End::Closed));
}

#[test]
fn the_far_side_finishes_first_and_still_receives() {
    let mut world = World::new(Faults::default(), 1);
    let socket = world.connect(V4, 40_000);
    let flow = world.opened();
    world.far(flow).outgoing = b"hello".to_vec();
    world.far(flow).finish_when_sent = true;
    world.run_until(|world| world.app.state(socket) == State::CloseWait);
    assert_eq!(world.receive(socket), b"hello");
    world.run_for(Duration::from_secs(3600));
    assert_eq!(world.app.send(socket, b"a late word"), 11);
    world.app.close(socket);
    world.run_until(|world| world.far(flow).end.is_some());
    assert_eq!(world.far(flow).received, b"a late word");
    assert_eq!(world.far(flow).end, Some(End::Closed));
}

#[test]
fn both_sides_finish_at_once() {
    let mut world = World::new(Faults { delay: Duration::from_millis(5), ..Faults::default() }, 1);
    let socket = world.connect(V4, 40_000);
    let flow = world.opened();
    world.app.close(socket);
    world.far(flow).finish_when_sent = true;
    world.run_until(|world| world.far(flow).end.is_some());
    assert_eq!(world.far(flow).end, Some(End::Closed));
    assert_eq!(world.stack.counters().flows_now, 0);
}

#[test]
fn a_finish_before_the_handshake_is_done_waits_for_it() {
    let mut world = World::new(Faults { delay: Duration::from_millis(5), ..Faults::default() }, 1);
    let socket = world.connect(V4, 40_000);
    world.run_until(|world| !world.events.is_empty());
    let flow = world.first_flow();
    world.far(flow).finish_when_sent = true;
    world.run_until(|world| world.app.is_finished(socket));
    world.app.close(socket);
    world.run_until(|world| world.far(flow).end.is_some());
    assert_eq!(world.far(flow).end, Some(End::Closed));
}

#[test]
fn what_the_far_side_says_right_after_the_answer_waits_for_the_handshake() {
    let delay = Duration::from_millis(5);
    for (family, seed, finishes, lost) in
        [(V4, 1, false, 0), (V6, 2, true, 0), (V4, 3, true, 200), (V6, 4, false, 200)]
    {
        let mut world = World::new(Faults { delay, lost, ..Faults::default() }, seed);
        world.policy = Policy::Hold;
        let socket = world.connect(family, 40_000);
        world.run_until(|world| !world.events.is_empty());
        let flow = world.first_flow();
        let banner = Random::new(seed).bytes(16 << 10);
        assert_eq!(world.stack.room(flow), 0, "nobody has answered yet");
        world.stack.accept(flow, world.now);
        for part in banner.chunks(5_000) {
            assert_eq!(world.stack.write(flow, part, world.now), part.len());
        }
        let room = world.stack.room(flow);
        assert_eq!(room, world.config.send_ring - banner.len());
        world.far(flow).sent = banner.len();
        world.far(flow).outgoing = banner.clone();
        if finishes {
            world.stack.finish(flow, world.now);
            world.far(flow).finish_sent = true;
            assert_eq!((world.stack.room(flow), world.stack.write(flow, b"late", world.now)), (0, 0));
        }
        let mut received = Vec::new();
        world.run_until(|world| {
            received.extend(world.receive(socket));
            received.len() == banner.len() && (!finishes || world.app.is_finished(socket))
        });
        assert!(received == banner, "seed {seed}");
        if !finishes {
            world.run_for(Duration::from_secs(10));
            assert_eq!(world.stack.room(flow), world.config.send_ring);
            world.stack.finish(flow, world.now);
            world.far(flow).finish_sent = true;
        }
        world.app.close(socket);
        world.run_until(|world| world.far(flow).end.is_some());
        assert_eq!(world.far(flow).end, Some(End::Closed));
        world.run_for(Duration::from_secs(200));
        assert_eq!(world.stack.counters().flows_now, 0);
    }
}

#[test]
fn an_application_that_finishes_with_its_first_answer_still_gets_what_waits() {
    let mut world = World::new(Faults::default(), 1);
    world.policy = Policy::Hold;
    let syn = RawSegment { window: 65_535, ..syn(V4, 40_000, 1000) };
    world.stack.handle_packet(&syn.packet(), world.now);
    let Some(Event::Connect { flow, .. }) = world.stack.poll_event() else { panic!("no flow") };
    world.stack.accept(flow, world.now);
    assert_eq!(world.stack.write(flow, b"banner", world.now), 6);
    world.stack.finish(flow, world.now);
    let answer = world.drain();
    assert_eq!(answer.len(), 1, "the answer alone: nothing may follow it yet");
    let seq = TcpPacket::new_checked(&answer[0][V4.header..]).unwrap().seq_number().0 as u32;
    let fin = RawSegment { seq: 1001, ack: Some(seq.wrapping_add(1)), control: TcpControl::Fin, ..syn };
    world.stack.handle_packet(&fin.packet(), world.now);
    let packets = world.drain();
    let data: Vec<u8> = packets
        .iter()
        .flat_map(|packet| TcpPacket::new_checked(&packet[V4.header..]).unwrap().payload().to_vec())
        .collect();
    assert_eq!(data, b"banner");
    // smoltcp is closed once the application has acknowledged all of it; then the FIN follows.
    let ack = RawSegment { seq: 1002, ack: Some(seq.wrapping_add(7)), control: TcpControl::None, ..fin };
    world.stack.handle_packet(&ack.packet(), world.now);
    let fins = world.drain();
    assert!(
        packets.iter().chain(&fins).any(|packet| TcpPacket::new_checked(&packet[V4.header..]).unwrap().fin())
    );
}

#[test]
fn a_stalled_reader_closes_the_window_and_loses_nothing() {
    for (mtu, ring) in [(1500, 64 * 1024), (65_535, 256 * 1024), (9000, 100_000)] {
        let config = Config { mtu, receive_ring: ring, send_ring: ring, ..config(5) };
        let mut world = World::with_config(Faults::default(), 5, config);
        let socket = world.connect(V4, 40_000);
        let flow = world.opened();
        world.far(flow).reading = false;
        let up = Random::new(9).bytes(1_000_003);
        let mut at = world.app.send(socket, &up);
        world.run_for(Duration::from_secs(300));
        assert!(at < up.len());
        assert_eq!(world.far(flow).received, b"");
        world.far(flow).reading = true;
        world.far(flow).sip = Some(7_001);
        while at < up.len() {
            at += world.app.send(socket, &up[at..]);
            world.step();
        }
        world.app.close(socket);
        world.run_until(|world| world.far(flow).finished);
        assert!(world.far(flow).received == up);
    }
}

#[test]
fn an_application_that_does_not_read_stops_the_far_side() {
    let mut world = World::new(Faults::default(), 1);
    let socket = world.connect(V4, 40_000);
    let flow = world.opened();
    let down = Random::new(4).bytes(3_000_000);
    world.far(flow).outgoing = down.clone();
    world.far(flow).finish_when_sent = true;
    world.run_for(Duration::from_secs(1000));
    let sent = world.far(flow).sent;
    assert!(sent <= world.config.send_ring + APP_RING, "{sent}");
    assert_eq!(world.stack.room(flow), 0);
    let mut received = Vec::new();
    while received.len() < down.len() {
        received.extend(world.receive(socket));
        world.step();
    }
    assert!(received == down);
}

/// smoltcp overlooks a window that opens while it waits for the last acknowledgement.
#[test]
fn a_window_that_opens_after_both_sides_finished_is_used_at_once() {
    let mut world = World::new(Faults::default(), 1);
    let socket = world.connect(V4, 40_000);
    let flow = world.opened();
    world.app.close(socket);
    world.run_until(|world| world.far(flow).finished);
    let down = Random::new(4).bytes(APP_RING + 300_000);
    world.far(flow).outgoing = down.clone();
    world.far(flow).finish_when_sent = true;
    world.run_for(Duration::from_millis(100));
    assert!(world.far(flow).finish_sent);
    let start = world.now;
    let received = world.exchange(socket, b"");
    assert!(received == down);
    assert!(world.now - start < Duration::from_millis(100), "stalled for {:?}", world.now - start);
    world.run_until(|world| world.far(flow).end.is_some());
    assert_eq!(world.far(flow).end, Some(End::Closed));
}

#[test]
fn bytes_the_owner_has_not_read_outlive_the_connection() {
    let mut world = World::new(Faults::default(), 1);
    let socket = world.connect(V4, 40_000);
    let flow = world.opened();
    world.far(flow).reading = false;
    world.far(flow).finish_when_sent = true;
    let up = Random::new(4).bytes(50_000);
    assert_eq!(world.app.send(socket, &up), up.len());
    world.app.close(socket);
    world.run_for(Duration::from_secs(60));
    assert_eq!(world.far(flow).end, None);
    assert!(!world.far(flow).finished);

    // The port is free again although the old flow still has bytes.
    let again = world.connect(V4, 40_000);
    world.run_until(|world| world.app.state(again) == State::Established);
    world.far(flow).reading = true;
    world.run_until(|world| world.far(flow).end.is_some());
    assert!(world.far(flow).received == up);
    assert_eq!(world.far(flow).end, Some(End::Closed));
    assert_eq!(world.app.state(again), State::Established);
}
