//! Flows in blocks, end to end.

use super::*;
use crate::engine::flow::{Culprit, FlowState};
use crate::wire::blocks::{BLOCK, Block};
use crate::wire::mux::{Streams, Token};

#[test]
fn flows_in_blocks_end_as_planned_and_give_back_what_they_used() {
    let setting = Setting { seed: 3, flows: 200, cuts: 20, in_blocks: true, ..Setting::default() };

    let world = World::run(setting);

    for side in &world.sides {
        let press = &side.engine().flows.press;
        assert_eq!((press.waiting, press.stored, press.is_at_rest()), (0, 0, true));
    }
}

#[test]
fn a_flow_that_can_be_packed_needs_less_of_the_lane_and_tells_how_much() {
    let world = with_plan(Plan { bytes: [400_000, 0], ..Plan::plain() });

    let [client, agent] = gains(&world);

    assert!(client.sent < 200_000, "{client:?}");
    assert_eq!((client.sent, client.received), (agent.received, agent.sent));
    assert!(world.sides[0].engine().trunk.stats().sent < 210_000);
}

#[test]
fn an_end_that_takes_nothing_stops_the_other_and_bounds_what_is_stored() {
    for stalled in [0, 1] {
        let mut bytes = [0; 2];
        bytes[1 - stalled] = 8 << 20;
        let mut world = prepared(Plan { bytes, buffer: [50_000; 2], ..Plan::plain() });
        world.stage.borrow_mut().stalled = Some(stalled);
        world.run_for(Duration::from_secs(20));

        let read = world.stage.borrow().logs[0][1 - stalled].read;

        let stored = world.sides[stalled].engine().flows.press.stored;
        assert!(stored <= 2 * BLOCK, "{stored} bytes are stored");
        assert!((50_000..4 << 20).contains(&read), "{read} bytes were taken");
        world.stage.borrow_mut().stalled = None;
        world.sides[stalled].engine_mut().flows.ends.wake_all();
        world.run_for(Duration::from_secs(60));
        assert_eq!(world.stage.borrow().logs[0][stalled].received, 8 << 20);
    }
}

/// Whatever stands where a block should: only its flow ends.
#[test]
fn garbage_resets_the_flow_and_nothing_else() {
    let bad: [&[u8]; 4] = [
        &[7],
        &Block::Plain(0).encode(),
        &Block::Packed(BLOCK).encode(),
        &[1, 0, 0, 4, b'j', b'u', b'n', b'k'],
    ];
    for bad in bad {
        let mut world = prepared(Plan { waits: [true; 2], ..Plan::plain() });
        world.stage.borrow_mut().plans.push(Plan { bytes: [30_000; 2], ..Plan::plain() });
        world.stage.borrow_mut().logs.push(Default::default());
        world.run_for(Duration::from_millis(20));
        let agent = world.sides[1].engine_mut();
        let token = Token(0);
        let now = world.clock.get();
        agent.flows.streams(now).push(token, bad);
        let Engine { flows, mux, .. } = agent;
        flows.settle(mux, now);
        world.sides[1].flag.0.store(true, Ordering::Relaxed);
        world.sides[0].engine_mut().flows.ends.want(1);
        world.run_for(Duration::from_secs(2));

        let page = world.sides[1].engine().flows.page(0, world.clock.get());

        let states: Vec<_> = page.flows.iter().map(|flow| (flow.state, flow.culprit)).collect();
        let reset = (FlowState::Reset, Some(Culprit::FarEngine));
        assert_eq!(states, [reset, (FlowState::Closed, None)], "{bad:?}");
        let over = world.stage.borrow().logs[0].clone().map(|log| log.over);
        assert_eq!(over, [Some(Over::ResetByFar); 2]);
    }
}

#[test]
fn a_finish_within_a_packed_block_resets_the_flow() {
    let mut world = prepared(Plan { waits: [true; 2], ..Plan::plain() });
    world.run_for(Duration::from_millis(20));
    let now = world.clock.get();
    let Engine { flows, mux, .. } = world.sides[1].engine_mut();
    flows.streams(now).push(Token(0), &Block::Packed(100).encode());
    assert_eq!(flows.press.stored, 4);
    flows.streams(now).finished(Token(0));
    flows.settle(mux, now);
    world.sides[1].flag.0.store(true, Ordering::Relaxed);
    world.run_for(Duration::from_secs(1));

    assert_eq!(world.stage.borrow().logs[0][1].over, Some(Over::ResetByFar));
    assert_eq!(world.sides[1].engine().flows.press.stored, 0);
}

/// Beside a flow that fills the lane with packed blocks.
#[test]
fn a_few_bytes_arrive_as_soon_as_without_blocks() {
    let arrival = |in_blocks| {
        let mut world = World::new(Setting {
            flows: 0,
            in_blocks,
            capacity: 20_000,
            delay: 20_000,
            ..Setting::default()
        });
        let bulk = Plan { bytes: [8 << 20, 0], ..Plan::plain() };
        world.stage.borrow_mut().plans =
            vec![bulk, Plan { bytes: [5, 0], waits: [true; 2], ..Plan::plain() }];
        world.stage.borrow_mut().logs = vec![Default::default(); 2];
        world.sides[0].engine_mut().flows.ends.want(0);
        world.run_for(Duration::from_secs(1));
        world.sides[0].engine_mut().flows.ends.want(1);
        let began = world.clock.get();
        while world.stage.borrow().logs[1][1].received < 5 {
            world.step(began + Duration::from_secs(5));
        }
        assert_eq!(world.stage.borrow().logs[0][0].over, None, "the lane is still busy");
        world.clock.get() - began
    };

    let (plain, packed) = (arrival(false), arrival(true));

    assert!(packed < plain + Duration::from_millis(5), "{plain:?} became {packed:?}");
}

fn gains(world: &World) -> [Gain; 2] {
    world.sides.each_ref().map(|side| {
        let page = side.engine().flows.page(0, world.clock.get());
        page.flows[0].gain.expect("its bytes lay in blocks")
    })
}

fn with_plan(plan: Plan) -> World {
    let mut world = prepared(plan);
    world.run_for(Duration::from_secs(20));
    assert_eq!(world.stage.borrow().logs[0][0].over, Some(Over::Closed));
    world
}

/// A world whose only flow is asked for.
fn prepared(plan: Plan) -> World {
    let mut world = World::new(Setting { flows: 0, in_blocks: true, ..Setting::default() });
    world.stage.borrow_mut().plans = vec![plan];
    world.stage.borrow_mut().logs = vec![Default::default()];
    world.sides[0].engine_mut().flows.ends.want(0);
    world
}
