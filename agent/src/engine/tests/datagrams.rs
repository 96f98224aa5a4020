//! Flows of datagrams: they speak before the answer, stop without an end, and pass bulk by.

use super::*;
use crate::local_end::{EndEvent, EndId, LocalEnds};
use crate::wire::open::Kind;

#[test]
fn datagrams_pass_before_the_answer() {
    let mut world = world(&[Plan { dial: Dial::Never, ..udp([1_000, 0]) }], Setting::default());
    world.run_for(Duration::from_millis(50));
    let logs = world.stage.borrow().logs[0].clone();
    assert_eq!((logs[0].read, logs[0].connected), (1_000, false));
    let agent = world.sides[1].engine();
    let held: Vec<usize> = agent.flows.slots.iter().flatten().map(|flow| flow.held.len()).collect();
    assert_eq!(held, [1_000], "they are there before the dial is done");
}

#[test]
fn what_passed_before_the_answer_is_bounded_and_arrives_after_it() {
    let dial_time = Duration::from_millis(100);
    let mut world = world(&[Plan { dial_time, ..udp([50_000, 0]) }], Setting::default());
    world.run_for(Duration::from_millis(90));
    let read = world.stage.borrow().logs[0][0].read;
    assert!((EARLY..=EARLY + 20_000).contains(&read), "{read} bytes were taken for {EARLY}");
    world.run_for(Duration::from_secs(2));
    assert_eq!(world.stage.borrow().logs[0][1].received, 50_000);
}

#[test]
fn bytes_of_a_connection_wait_for_the_answer() {
    let plan = Plan { kind: Kind::Tcp, dial: Dial::Never, bytes: [1_000, 0], ..Plan::plain() };
    let mut world = world(&[plan], Setting::default());
    world.run_for(Duration::from_millis(50));
    assert_eq!(world.stage.borrow().logs[0][0].read, 0);
}

#[test]
fn a_refused_association_is_told_so_whatever_it_sent() {
    let dial = Dial::RefuseAtOnce(Refusal::Prohibited);
    let mut world = world(&[Plan { dial, ..udp([40_000, 0]) }], Setting::default());
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.stage.borrow().logs[0][0].over, Some(Over::Refused(Refusal::Prohibited)));
    assert!(world.sides.iter().all(|side| side.engine().mux.is_empty()));
}

#[test]
fn an_association_that_ends_ends_at_both_sides_and_counts_as_closed() {
    let mut world = world(&[udp([1_000, 0])], Setting::default());
    world.run_for(Duration::from_millis(50));
    let client = world.sides[0].engine_mut();
    let end = EndId(0);
    client.flows.handle_event(EndEvent::Closed { end }, &mut client.mux, world.clock.get());
    // The script is not asked, so its end is taken away by hand.
    client.flows.ends.reset(end, world.clock.get());
    world.sides[0].flag.0.store(true, Ordering::Relaxed);
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.stage.borrow().logs[0][1].over, Some(Over::ResetByFar));
    for side in &world.sides {
        let flows = side.engine().flows.page(0, world.clock.get()).flows;
        assert_eq!(flows.iter().map(|flow| flow.state).collect::<Vec<_>>(), [FlowState::Closed]);
    }
}

/// A lane of 0.8 MB/s that is full of bulk.
#[test]
fn a_datagram_does_not_wait_for_bulk() {
    let setting = Setting { capacity: 8_000, delay: 10_000, record: 2_000, ..Setting::default() };
    let bulk = Plan { bytes: [1 << 20, 0], buffer: [1 << 20; 2], ..Plan::plain() };
    let mut plans = vec![bulk; 8];
    plans.push(udp([200, 0]));
    let mut world = world_before(&plans, setting);
    for flow in 0..8 {
        world.sides[0].engine_mut().flows.ends.want(flow);
    }
    world.run_for(Duration::from_millis(500));
    let moved =
        |world: &World| world.stage.borrow().logs[..8].iter().map(|log| log[1].received).sum::<usize>();
    let before = moved(&world);
    world.sides[0].engine_mut().flows.ends.want(8);
    world.sides[0].flag.0.store(true, Ordering::Relaxed);
    let asked = world.clock.get();
    while world.stage.borrow().logs[8][1].received < 200 {
        world.run_for(Duration::from_millis(1));
    }
    let waited = world.clock.get() - asked;
    // The records that the lane holds already, and its delay.
    assert!(waited < Duration::from_millis(45), "{waited:?}");
    assert!(moved(&world) > before, "bulk goes on");
}

fn udp(bytes: [usize; 2]) -> Plan {
    Plan { kind: Kind::Udp, bytes, waits: [true, true], ..Plan::plain() }
}

/// A world whose flows have all been asked for.
fn world(plans: &[Plan], setting: Setting) -> World {
    let mut world = world_before(plans, setting);
    for flow in 0..plans.len() {
        world.sides[0].engine_mut().flows.ends.want(flow as u32);
    }
    world
}

fn world_before(plans: &[Plan], setting: Setting) -> World {
    let world = World::new(Setting { flows: 0, ..setting });
    world.stage.borrow_mut().plans = plans.to_vec();
    world.stage.borrow_mut().logs = vec![Default::default(); plans.len()];
    world
}
