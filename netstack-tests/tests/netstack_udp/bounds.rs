//! How much may wait, and for how long.

use super::*;

#[test]
fn a_question_and_its_answers_are_forgotten_soon_and_others_later() {
    // Datagrams out and answers in, and how many seconds the association then lives.
    for (out, back, seconds) in [(1, 1, 30), (1, 3, 30), (1, 0, 300), (2, 0, 300), (2, 1, 300)] {
        let mut world = World::new(Config::default());
        let (app, peer) = (V4.app(5000), V4.peer(1, 53));
        for _ in 0..out {
            world.give(&udp(app, peer, b"?"));
            world.now += Duration::from_millis(100);
        }
        for _ in 0..back {
            world.write(FlowId(0), peer, b"!");
            world.now += Duration::from_millis(100);
        }
        world.read(FlowId(0));
        world.events();
        world.wait(Duration::from_secs(seconds) - Duration::from_millis(101));
        assert!(world.events().is_empty(), "{out} out, {back} back");
        world.wait(Duration::from_millis(2));
        assert_eq!(world.events(), [Event::Closed { flow: FlowId(0) }], "{out} out, {back} back");
        assert_eq!((world.stack.counters().flows_now, world.stack.counters().datagrams_lost_up), (0, 0));
    }
}

#[test]
fn use_keeps_an_association() {
    let mut world = World::new(Config { udp_timeout: Duration::from_secs(10), ..Config::default() });
    let (app, peer) = (V4.app(5000), V4.peer(1, 53));
    for _ in 0..5 {
        world.give(&udp(app, peer, b"?"));
        world.wait(Duration::from_secs(9));
        world.write(FlowId(0), peer, b"!");
        world.wait(Duration::from_secs(9));
    }
    assert_eq!(world.stack.counters().flows_opened, 1);
}

#[test]
fn the_association_idle_for_longest_makes_room() {
    let mut world = World::new(Config { max_associations: 3, ..Config::default() });
    let peer = V4.peer(1, 53);
    for port in 1..=3 {
        world.give(&udp(V4.app(port), peer, b"?"));
    }
    world.events();
    world.give(&udp(V4.app(1), peer, b"?"));
    world.write(FlowId(2), peer, b"!");
    world.give(&udp(V4.app(4), peer, b"?"));
    assert!(world.events().contains(&Event::Closed { flow: FlowId(1) }));
    for port in 5..1000 {
        world.give(&udp(V4.app(port), peer, b"?"));
    }
    let counters = world.stack.counters();
    assert_eq!((counters.flows_opened, counters.associations_evicted), (999, 996));
    world.events();
    assert_eq!(world.stack.counters().flows_now, 3);
}

#[test]
fn what_waits_too_long_goes_oldest_first_and_is_counted() {
    let mut world = World::new(Config { datagram_queue: 10_000, ..Config::default() });
    let (app, peer) = (V4.app(5000), V4.peer(1, 53));
    for byte in 0..100u8 {
        world.give(&udp(app, peer, &[byte; 900]));
        world.write(FlowId(0), peer, &[byte; 900]);
    }
    let up: Vec<u8> = world.read(FlowId(0)).iter().map(|(_, payload)| payload[0]).collect();
    assert_eq!(up, (90..100).collect::<Vec<u8>>());
    let down: Vec<u8> = world.datagrams().iter().map(|(_, _, payload)| payload[0]).collect();
    assert_eq!(down, (90..100).collect::<Vec<u8>>());
    let counters = world.stack.counters();
    assert_eq!((counters.datagrams_lost_up, counters.datagrams_lost_down), (90, 90));
}

#[test]
fn what_the_tunnel_could_not_take_in_time_is_not_sent_late() {
    let mut world = World::new(Config::default());
    let (app, peer) = (V4.app(5000), V4.peer(1, 53));
    world.give(&udp(app, peer, b"old"));
    world.wait(Duration::from_secs(8));
    world.give(&udp(app, peer, b"new"));
    world.wait(Duration::from_secs(3));
    assert_eq!(world.read(FlowId(0)), [(peer, b"new".to_vec())]);
    assert_eq!(world.stack.counters().datagrams_lost_up, 1);
}

#[test]
fn all_that_waits_is_bounded() {
    let mut world = World::new(Config { datagram_memory: 100_000, ..Config::default() });
    let peer = V4.peer(1, 53);
    for port in 1..=100 {
        world.give(&udp(V4.app(port), peer, &[0; 5000]));
    }
    assert!((75..85).contains(&world.stack.counters().datagrams_lost_up));
    for flow in 0..100 {
        world.write(FlowId(flow), peer, &[0; 5000]);
    }
    assert_eq!(world.stack.counters().datagrams_lost_down, 100);
    world.read(FlowId(0));
    world.write(FlowId(50), peer, &[0; 5000]);
    assert_eq!(world.datagrams().len(), 1);
}
