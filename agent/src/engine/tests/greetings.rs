//! Streams on which the far side does not say what it wants.

use super::*;
use crate::engine::flow::{Culprit, FlowState};
use crate::engine::greetings::GREETING;
use crate::wire::mux::Token;

#[test]
fn a_stream_without_its_open_message_is_reset_in_time_and_counted() {
    let mut world = World::new(Setting { flows: 0, ..Setting::default() });
    let rest = open_in_part(&mut world);
    world.run_for(GREETING - Duration::from_millis(1));
    assert_eq!(stage_of(&world), [(FlowState::Greeting, None)]);

    world.run_for(Duration::from_secs(1));

    assert_eq!(stage_of(&world), [(FlowState::Reset, Some(Culprit::FarEngine))]);
    assert_eq!(unopened(&world), 1);
    assert_eq!(world.stage.borrow().logs[0][0].over, Some(Over::Refused(Refusal::Exhausted)));
    assert!(!rest.is_empty());
    world.run_for(Duration::from_secs(3));
    assert!(world.sides.iter().all(|side| side.engine().poll_timeout().is_none()));
}

/// The client's machine slept with the message on its way.
#[test]
fn the_time_without_a_lane_does_not_count() {
    let mut world = World::new(Setting { flows: 0, ..Setting::default() });
    let rest = open_in_part(&mut world);
    world.run_for(GREETING / 2);
    world.setting.lanes = 0;
    world.links[0].borrow_mut().cut([true; 2]);
    world.run_for(10 * GREETING);
    assert_eq!(stage_of(&world), [(FlowState::Greeting, None)]);

    world.setting.lanes = 1;
    world.run_for(GREETING - Duration::from_secs(1));
    let Engine { flows, mux, .. } = world.sides[0].engine_mut();
    let flow = flows.slot_mut(Token(0)).unwrap();
    flow.preface = rest.into();
    mux.ready(flow.stream.unwrap());
    world.sides[0].flag.0.store(true, Ordering::Relaxed);
    world.run_for(Duration::from_secs(5));

    assert_eq!(world.stage.borrow().logs[0][0].over, Some(Over::Closed));
    assert_eq!(unopened(&world), 0);
}

/// Has the client send three bytes of an open message; gives back the others.
fn open_in_part(world: &mut World) -> Vec<u8> {
    world.stage.borrow_mut().plans = vec![Plan::plain()];
    world.stage.borrow_mut().logs = vec![Default::default()];
    let now = world.clock.get();
    let engine = world.sides[0].engine_mut();
    engine.flows.ends.want(0);
    engine.handle_end_events(now);
    let flow = engine.flows.slot_mut(Token(0)).unwrap();
    let mut said = flow.preface.take();
    let rest = said.split_off(3);
    flow.preface = said.into();
    rest
}

fn stage_of(world: &World) -> Vec<(FlowState, Option<Culprit>)> {
    let page = world.sides[1].engine().flows.page(0, world.clock.get());
    page.flows.iter().map(|flow| (flow.state, flow.culprit)).collect()
}

fn unopened(world: &World) -> u64 {
    let report = world.sides[1].engine().report();
    report.counters.iter().find(|(name, _)| *name == "flows_unopened").unwrap().1
}
