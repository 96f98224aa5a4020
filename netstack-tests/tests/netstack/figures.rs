//! Turns, costs, and what the stack tells of its flows.

use super::*;

#[test]
fn a_full_device_loses_no_packet() {
    let mut world = World::with_mtu(Faults::default(), 1, 1500);
    let socket = world.connect(V4, 40_000);
    let flow = world.opened();
    world.device_takes = 3;
    let down = Random::new(4).bytes(500_000);
    world.far(flow).outgoing = down.clone();
    world.far(flow).finish_when_sent = true;
    let start = world.now;
    let received = world.exchange(socket, b"");
    assert!(received == down);
    assert!(world.now - start < Duration::from_millis(900), "a packet was sent again after its timeout");
}

#[test]
fn a_flow_with_much_to_send_lets_others_have_their_turn() {
    let mut world = World::with_mtu(Faults::default(), 1, 1500);
    let bulk = world.connect(V4, 40_000);
    let bulk_flow = world.opened();
    let short = world.connect(V4, 40_001);
    let short_flow = world.opened();
    let now = world.now;
    world.stack.write(bulk_flow, &vec![1; 700_000], now);
    world.stack.write(short_flow, b"!", now);
    let mut order = Vec::new();
    world.stack.poll_packet(now, &mut |packet| {
        order.push(u16::from_be_bytes([packet[22], packet[23]]));
        true
    });
    assert!(order.len() <= 33);
    assert_eq!(order.last(), Some(&40_001));
    assert!(world.stack.wants_poll());
    let _ = (bulk, short);
}

#[test]
fn a_packet_costs_the_same_with_ten_thousand_idle_flows() {
    let work = |idle: u16| {
        let mut world = World::new(Faults::default(), 1);
        for number in 0..idle {
            world.stack.handle_packet(&syn(V4, 1000 + number, 1).packet(), world.now);
            let Some(Event::Connect { flow, .. }) = world.stack.poll_event() else { panic!("no connect") };
            world.stack.accept(flow, world.now);
            let answer = world.drain();
            let seq = TcpPacket::new_unchecked(&answer[0][20..]).seq_number().0 as u32;
            let ack = Some(seq.wrapping_add(1));
            let done = RawSegment { control: TcpControl::None, seq: 2, ack, ..syn(V4, 1000 + number, 1) };
            world.stack.handle_packet(&done.packet(), world.now);
            assert_eq!(world.stack.poll_event(), Some(Event::Room { flow }));
            world.drain();
        }
        world.run_for(Duration::from_secs(5));
        let socket = world.connect(V4, 40_000);
        let flow = world.opened();
        let before = world.stack.counters().socket_polls;
        let packets = world.stack.counters().packets_in;
        world.far(flow).outgoing = vec![1; 200_000];
        world.exchange(socket, &[2; 200_000]);
        world.run_until(|world| world.far(flow).received.len() == 200_000);
        let counters = world.stack.counters();
        (counters.socket_polls - before, counters.packets_in - packets)
    };
    let (alone, few) = work(0);
    let (crowded, many) = work(10_000);
    assert_eq!(few, many);
    assert!(crowded <= alone + 20, "{alone} calls alone, {crowded} in a crowd");
    assert!(alone <= 4 * few + 20, "{alone} calls for {few} packets");
}

#[test]
fn the_figures_of_a_flow_are_what_passed() {
    let delay = Duration::from_millis(3);
    for (lost, repeated) in [(0, 0), (50, 50)] {
        let mut world = World::with_mtu(Faults { delay, lost, repeated, ..Faults::default() }, 5, 1500);
        let socket = world.connect(V4, 40_000);
        let flow = world.opened();
        let (up, down) = (Random::new(2).bytes(300_000), Random::new(3).bytes(300_000));
        world.far(flow).outgoing = down.clone();
        assert!(world.exchange(socket, &up) == down);
        world.run_until(|world| world.far(flow).received.len() == up.len());
        world.run_for(Duration::from_secs(1));

        let figures = world.stack.figures(flow);

        assert_eq!(figures.packets_to, world.down_packets.len() as u64);
        assert!(!figures.silent);
        let rtt = figures.rtt.expect("the SYN-ACK was acknowledged");
        if lost == 0 {
            assert_eq!(figures.packets_from, world.up_packets.len() as u64);
            assert_eq!((figures.repeats_from, figures.repeats_to), (0, 0));
            assert!((2 * delay..3 * delay).contains(&rtt), "{rtt:?}");
        } else {
            assert!(figures.repeats_from > 5 && figures.repeats_to > 5, "{figures:?}");
            assert!((2 * delay..200 * delay).contains(&rtt), "{rtt:?}");
        }
    }
}

#[test]
fn a_flow_that_is_gone_is_told_of_until_the_next_event() {
    let mut world = World::new(Faults::default(), 1);
    let (first, second) = (syn(V4, 1000, 7), syn(V4, 1001, 7));
    world.stack.handle_packet(&first.packet(), world.now);
    world.stack.handle_packet(&first.packet(), world.now);
    let Some(Event::Connect { flow, .. }) = world.stack.poll_event() else { panic!("no connect") };
    let reset = RawSegment { control: TcpControl::Rst, seq: 8, ..first };
    world.stack.handle_packet(&reset.packet(), world.now);
    world.stack.handle_packet(&second.packet(), world.now);

    assert_eq!(world.stack.poll_event(), Some(Event::Reset { flow }));
    let figures = world.stack.figures(flow);
    assert_eq!((figures.packets_from, figures.repeats_from), (3, 1));
    assert!(!figures.silent, "it did reset");
    assert!(matches!(world.stack.poll_event(), Some(Event::Connect { .. })));
    assert_eq!(world.stack.figures(flow).packets_from, 0);
}

#[test]
fn an_application_whose_system_is_gone_is_called_silent() {
    let mut world = World::new(Faults::default(), 1);
    world.stack.handle_packet(&syn(V4, 1000, 7).packet(), world.now);
    let Some(Event::Connect { flow, .. }) = world.stack.poll_event() else { panic!("no connect") };
    world.stack.accept(flow, world.now);
    let limit = world.now + Duration::from_secs(600);
    let event = loop {
        world.drain();
        world.now = world.stack.poll_timeout().expect("it waits for an answer");
        assert!(world.now < limit);
        world.stack.handle_timeout(world.now);
        if let Some(event) = world.stack.poll_event() {
            break event;
        }
    };
    assert_eq!(event, Event::Reset { flow });
    let figures = world.stack.figures(flow);
    assert!(figures.silent && figures.repeats_to > 1 && figures.rtt.is_none(), "{figures:?}");
}

#[test]
fn an_idle_flow_has_no_timer() {
    let mut world = World::new(Faults::default(), 1);
    let socket = world.connect(V4, 40_000);
    let flow = world.opened();
    world.far(flow).outgoing = vec![1; 10_000];
    world.exchange(socket, &[2; 10_000]);
    world.run_for(Duration::from_secs(200));
    assert_eq!(world.stack.poll_timeout(), None);
}
