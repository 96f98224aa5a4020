//! What is told of flows, and that the owner can end them.

use super::*;
use crate::engine::flow::{Culprit, FlowState};
use tokio::sync::oneshot;

/// A flow with nothing to do is killed: while its target is being dialled, and when it is open.
#[test]
fn a_killed_flow_is_reset_at_both_sides_whatever_its_stage() {
    for (dial, near) in [(Dial::Never, Over::Refused(Refusal::Refused)), (Dial::Connect, Over::ResetByFar)] {
        let mut world = with_plans(vec![Plan { dial, waits: [true; 2], ..Plan::plain() }; 2]);
        for flow in 0..2 {
            world.sides[0].engine_mut().flows.ends.want(flow);
        }
        world.run_for(Duration::from_millis(20));

        let outcome = kill(&mut world, &[2, 2, 9]);

        assert!(matches!(&outcome[..], [Kill::Done(flow), Kill::Over, Kill::Unknown] if flow.serial == 2));
        assert!(matches!(kill(&mut world, &[2])[..], [Kill::Over]));
        let logs = world.stage.borrow().logs.clone();
        assert_eq!([logs[1][0].over, logs[1][1].over], [Some(near), Some(Over::ResetByFar)]);
        assert_eq!([logs[0][0].over, logs[0][1].over], [None; 2], "the other one goes on");
        let flow = told(&world, 0, 2);
        assert_eq!((flow.state, flow.culprit), (FlowState::Reset, Some(Culprit::Owner)));
        assert_eq!(told(&world, 1, 2).culprit, Some(Culprit::FarSide));
        assert!(!told(&world, 0, 1).state.eq(&FlowState::Reset));
    }
}

#[test]
fn who_reset_a_flow_is_told_at_both_sides() {
    for side in [0, 1] {
        let mut bytes = [0; 2];
        bytes[1 - side] = 5_000;
        let reset = Some((side, 4_000));
        let mut world = with_plans(vec![Plan { bytes, reset, waits: [true; 2], ..Plan::plain() }]);
        world.sides[0].engine_mut().flows.ends.want(0);
        world.run_for(Duration::from_secs(1));

        let culprits = [told(&world, 0, 1).culprit, told(&world, 1, 1).culprit];

        let (here, there) = (Some(Culprit::NearSide), Some(Culprit::FarSide));
        assert_eq!(culprits, if side == 0 { [here, there] } else { [there, here] });
    }
}

#[test]
fn a_flow_that_ended_well_has_no_culprit() {
    let mut world = with_plans(vec![Plan { bytes: [30_000, 500], ..Plan::plain() }]);
    world.sides[0].engine_mut().flows.ends.want(0);
    world.run_for(Duration::from_secs(1));

    let flow = told(&world, 0, 1);

    assert_eq!((flow.state, flow.culprit), (FlowState::Closed, None));
    assert_eq!((flow.sent, flow.received), (30_000, 500));
    assert_eq!(flow.figures.packets_from, 7, "the end's last figures");
}

#[test]
fn flows_that_a_trunk_takes_along_stay_in_the_ledger_and_their_serials_are_not_given_again() {
    let mut world = with_plans(vec![Plan { waits: [true; 2], ..Plan::plain() }; 2]);
    world.sides[0].engine_mut().flows.ends.want(0);
    world.run_for(Duration::from_millis(20));
    let engine = world.sides[0].engine.take().expect("the engine runs");

    let remains = engine.flows.into_remains(world.clock.get());

    let mut flows = Flows::new(remains.ends);
    flows.ledger = remains.ledger;
    let page = flows.page(0, world.clock.get());
    let [flow] = &page.flows[..] else { panic!("{page:?}") };
    assert_eq!((flow.serial, flow.state, flow.culprit), (1, FlowState::Reset, Some(Culprit::Trunk)));
    let token = flows.add(FlowState::Opening, world.clock.get());
    assert_eq!(flows.slot_mut(token).map(|flow| flow.serial), Some(2));
}

/// A page must not hold up packets, however many flows there are.
#[test]
fn twenty_thousand_flows_come_in_pages() {
    const FLOWS: u32 = 20_000;
    let mut world = with_plans(Vec::new());
    let now = world.clock.get();
    let flows = &mut world.sides[0].engine_mut().flows;
    for _ in 0..FLOWS {
        flows.add(FlowState::Opening, now);
    }

    let (mut from, mut serials, mut longest) = (0, Vec::new(), Duration::ZERO);
    loop {
        let began = Instant::now();
        let page = flows.page(from, now);
        longest = longest.max(began.elapsed());
        assert!(page.flows.len() <= 1024);
        serials.extend(page.flows.iter().map(|flow| flow.serial));
        match page.next {
            Some(next) => from = next,
            None => break,
        }
    }

    serials.sort_unstable();
    assert!(serials.into_iter().eq(1..=u64::from(FLOWS)));
    println!("the longest of the pages took {longest:?}");
    assert!(longest < Duration::from_millis(50), "{longest:?}");
}

fn with_plans(plans: Vec<Plan>) -> World {
    let world = World::new(Setting { flows: 0, ..Setting::default() });
    world.stage.borrow_mut().logs = vec![Default::default(); plans.len()];
    world.stage.borrow_mut().plans = plans;
    world
}

fn kill(world: &mut World, serials: &[u64]) -> Vec<Kill> {
    let (reply, mut answer) = oneshot::channel();
    let command = Command::Kill(serials.to_vec(), reply);
    assert!(world.sides[0].commands.try_send(command).is_ok());
    world.run_for(Duration::from_millis(20));
    answer.try_recv().expect("the engine answers")
}

fn told(world: &World, side: usize, serial: u64) -> FlowReport {
    let page = world.sides[side].engine().flows.page(0, world.clock.get());
    page.flows.into_iter().find(|flow| flow.serial == serial).expect("the flow is told of")
}
