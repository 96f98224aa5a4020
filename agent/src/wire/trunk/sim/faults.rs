//! Lanes that are cut, fall silent, stall or change under load.

use super::*;

#[test]
fn one_of_four_lanes_lost_stalls_nobody() {
    for (seed, told) in [(1, true), (2, false)] {
        let mut world = World::ssm(seed, 4, 20 * MS);
        world.replace_after = Some(300 * MS);
        world.open(Kind::Upload, 4);
        world.open(Kind::Download, 4);
        world.open(Kind::Exchange, 2);
        world.run_for(2 * SECOND);
        world.reset_figures();
        let fault = if told { Fault::Cut(2) } else { Fault::BlackHole(2) };
        world.fault(0, fault);
        world.run_for(4 * SECOND);
        let gaps = world.ends.each_ref().map(|end| end.apps.gap() / 1000);
        let slowest = world.ends[0].apps.exchanges.iter().max().expect("there were exchanges") / 1000;
        eprintln!("{fault:?}: longest gaps {gaps:?} ms, slowest exchange {slowest} ms, {:?}", world.told);
        assert!(gaps.iter().all(|gap| *gap <= 600) && slowest <= 600, "{gaps:?} {slowest}");
        if !told {
            let found = world.told.iter().find(|(_, _, event)| matches!(event, TrunkEvent::LaneDead { .. }));
            assert!(found.is_some_and(|(at, ..)| *at <= 5 * SECOND), "{:?}", world.told);
        }
        let dead = world.ends[1].trunk.lane_stats().filter(|lane| lane.lane == LaneId(2)).count();
        assert_eq!(dead, 0);
    }
}

#[test]
fn a_lane_that_stalls_is_told_and_lives_on() {
    let mut world = World::ssm(3, 4, 20 * MS);
    world.open(Kind::Download, 4);
    world.run_for(2 * SECOND);
    world.reset_figures();
    world.fault(0, Fault::Stall(3, 1, 1_800 * MS));
    world.run_for(4 * SECOND);
    let gap = world.ends[0].apps.gap() / 1000;
    eprintln!("stall of 1.8 s: longest gap {gap} ms, {:?}", world.told);
    assert!(gap <= 300, "{gap}");
    assert!(
        matches!(world.told[..], [(_, 1, TrunkEvent::LaneStalled { lane: LaneId(3) })]),
        "{:?}",
        world.told
    );
    world.reset_figures();
    world.run_for(2 * SECOND);
    assert!(world.rates()[1] >= 0.93 * 4.0 * PACING, "{:?}", world.rates());
}

#[test]
fn a_lone_lane_that_never_acknowledges_is_found() {
    let mut world = World::ssm(4, 1, 20 * MS);
    world.open(Kind::Upload, 1);
    world.run_for(SECOND);
    world.fault(0, Fault::Stall(1, 1, 3600 * SECOND));
    world.run_for(12 * SECOND);
    let stats = world.ends[0].trunk.stats();
    let bound = LaneProfile::of(LaneKind::Ssm, Role::Client).pace.most + world.ends[0].trunk.config.unsent;
    assert!(stats.unacknowledged <= bound, "{stats:?}");
    world.told.retain(|(_, side, _)| *side == 0);
    let [(stalled, _, TrunkEvent::LaneStalled { .. }), (dead, _, TrunkEvent::LaneDead { reason, .. })] =
        world.told[..]
    else {
        panic!("{:?}", world.told)
    };
    assert_eq!(reason, LaneReason::NoAcks);
    assert!(stalled <= 4 * SECOND && dead <= 11_500 * MS, "{stalled} {dead}");
}

#[test]
fn a_path_that_gets_slower_longer_or_faster_is_learned() {
    let mut world = World::ssm(5, 1, 20 * MS);
    world.open(Kind::Exchange, 2);
    world.open(Kind::Upload, 2);
    world.run_for(2 * SECOND);
    for (fault, rate, idle) in [
        (Fault::Pump(1, 0, Pump::Rate(3_000_000)), 3e6, 40.0),
        (Fault::Delay(1, 60 * MS), 3e6, 120.0),
        (Fault::Pump(1, 0, Pump::Rate(12_000_000)), 12e6, 120.0),
        (Fault::Delay(1, 10 * MS), 12e6, 20.0),
    ] {
        world.fault(0, fault);
        world.run_for(12 * SECOND);
        world.reset_figures();
        world.run_for(3 * SECOND);
        if std::env::var_os("DETAIL").is_some() {
            eprintln!("{}", world.describe());
        }
        let (rates, [_, p99]) = (world.rates(), world.exchange());
        eprintln!("{fault:?}: {:.2} MB/s, p99 {p99:.1} ms", rates[0] / 1e6);
        assert!(rates[0] >= 0.96 * rate * UP_SHARE, "{rates:?}");
        assert!(p99 <= idle + 45.0, "{p99}");
    }
}

#[test]
fn a_standing_queue_never_becomes_the_base() {
    let mut world = World::ssm(6, 1, 20 * MS);
    world.open(Kind::Exchange, 2);
    world.open(Kind::Download, 8);
    world.run_for(45 * SECOND);
    world.reset_figures();
    world.run_for(12 * SECOND);
    let (rates, [_, p99]) = (world.rates(), world.exchange());
    eprintln!("after 45 s: {:.3} MB/s, p99 {p99:.1} ms", rates[1] / 1e6);
    assert!(p99 <= 75.0 && rates[1] >= 0.95 * PACING, "{p99} {rates:?}");
}

#[test]
fn after_a_lane_came_back_the_first_byte_is_soon_there() {
    let delay = 20 * MS;
    for side in 0..2 {
        let mut world = World::ssm(7, 1, delay);
        world.open(if side == 0 { Kind::Download } else { Kind::Upload }, 1);
        world.run_for(SECOND);
        world.cut(0);
        world.run_for(SECOND);
        // What the cut left on the way has arrived; the agent gets the hello now, the client its welcome later.
        let begun = world.time;
        let before = world.ends[side].apps.bulk;
        world.connect(LaneKind::Ssm, [Path::ssm_up(delay, UP_RATE), Path::ssm_down(delay)], 0);
        world.run_until(SECOND, |world| world.ends[side].apps.bulk > before);
        let took = (world.time - begun) / MS;
        eprintln!("first byte to side {side}: {took} ms after the hello arrived");
        assert!(took <= 2 * 40 + 10, "{took}");
    }
}

#[test]
fn after_all_lanes_came_back_every_flow_goes_on_within_a_second() {
    let delay = 20 * MS;
    let mut world = World::ssm(11, 4, delay);
    world.open(Kind::Upload, 8);
    world.open(Kind::Download, 8);
    world.open(Kind::Exchange, 2);
    world.run_for(2 * SECOND);
    (0..4).for_each(|index| world.cut(index));
    world.run_for(30 * SECOND);
    assert_eq!(world.links.len(), 0);
    for end in &world.ends {
        let (stats, credit) = (end.trunk.stats(), end.trunk.config.credit as usize);
        assert!(stats.unacknowledged <= credit && stats.most_held <= credit, "{stats:?}");
    }
    let (back, exchanged) = (world.time, world.ends[0].apps.exchanges.len());
    for _ in 0..4 {
        world.connect(LaneKind::Ssm, [Path::ssm_up(delay, UP_RATE), Path::ssm_down(delay)], 0);
    }
    world.run_until(SECOND, |world| {
        world.ends.iter().all(|end| end.apps.all_got_some_since(back))
            && world.ends[0].apps.exchanges.len() >= exchanged + 2
    });
    eprintln!("every flow goes on {} ms after the network's return", (world.time - back) / MS);
}

#[test]
fn lanes_that_stopped_again_after_a_pause_hold_nothing_back_from_new_ones() {
    let delay = 20 * MS;
    let mut world = World::ssm(12, 4, delay);
    world.open(Kind::Download, 4);
    world.open(Kind::Upload, 4);
    world.run_for(2 * SECOND);
    let stall = |world: &mut World, time| {
        for (lane, side) in (1..=4).flat_map(|lane| [(lane, 0), (lane, 1)]) {
            world.fault(0, Fault::Stall(lane, side, time));
        }
    };
    // Round trips vary by this much then.
    stall(&mut world, 300 * MS);
    world.run_for(350 * MS);
    stall(&mut world, 60 * SECOND);
    world.run_for(600 * MS);
    let back = world.time;
    for _ in 0..2 {
        world.connect(LaneKind::Ssm, [Path::ssm_up(delay, UP_RATE), Path::ssm_down(delay)], 0);
    }
    for (side, way) in ["downloads", "uploads"].into_iter().enumerate() {
        let before = world.ends[side].apps.bulk;
        world.run_until(SECOND, |world| world.ends[side].apps.bulk > before);
        let took = (world.time - back) / MS;
        eprintln!("{way} go on {took} ms after the first new lanes");
        assert!(took <= 100, "{way}: {took}");
    }
}
#[test]
fn a_thousand_cuts_over_four_lanes_lose_nothing() {
    let began = Instant::now();
    let mut cuts = 0;
    for lanes in 1..=4 {
        let mut world = World::new(10 + lanes as u64);
        world.replace_after = Some(20 * MS);
        for _ in 0..lanes {
            let up = Path { repeats: 10, jitter: 3 * MS, ..Path::ssm_up(5 * MS, 2_000_000) };
            world.connect(LaneKind::Ssm, [up, Path { jitter: 3 * MS, ..Path::ssm_down(5 * MS) }], 0);
        }
        world.open(Kind::Exchange, 2);
        world.open(Kind::Upload, 3);
        world.open(Kind::Download, 3);
        for _ in 0..250 {
            let wait = world.random.below(60 * MS);
            world.run_for(wait);
            let whole: Vec<usize> = (0..world.links.len()).filter(|&at| !world.links[at].cut).collect();
            let Some(&index) = whole.get(world.random.below(whole.len() as u64) as usize) else { continue };
            world.cut(index);
            cuts += 1;
        }
        world.ends.iter_mut().for_each(|end| end.apps.limit = 0);
        world.run_until(60 * SECOND, |world| world.ends.iter().all(|end| end.trunk.is_drained()));
        let [client, agent] = world.ends.each_ref().map(|end| end.trunk.stats());
        assert_eq!((client.faults, agent.faults), (0, 0));
        assert_eq!((client.sent, agent.sent), (agent.received, client.received));
        assert!(client.resent > 0 && agent.resent > 0 && agent.duplicates > 0);
        eprintln!("{lanes} lanes: {} up {} down bytes", client.sent, agent.sent);
    }
    eprintln!("{cuts} cuts took {:?}", began.elapsed());
    assert!(cuts > 900);
}

#[test]
fn a_retired_lane_drains_while_the_others_go_on() {
    let mut world = World::ssm(8, 2, 20 * MS);
    world.open(Kind::Upload, 2);
    world.open(Kind::Download, 2);
    world.run_for(SECOND);
    let begun = world.time;
    world.ends[0].trunk.retire(LaneId(1));
    world.ends[0].dirty = true;
    world.reset_figures();
    let drained = TrunkEvent::LaneDrained { lane: LaneId(1) };
    world
        .run_until(SECOND, |world| world.told.iter().any(|(_, side, event)| (*side, event) == (0, &drained)));
    eprintln!("drained after {} ms", (world.time - begun) / MS);
    for end in &world.ends {
        let lane = end.trunk.lane_stats().find(|lane| lane.lane == LaneId(1)).expect("it is attached");
        assert!(lane.retiring && lane.in_flight == 0);
    }
    let index = world.links.iter().position(|link| link.id == LaneId(1)).expect("it is there");
    world.cut(index);
    world.run_for(SECOND);
    let stats = world.ends.each_ref().map(|end| end.trunk.stats());
    assert_eq!(stats.map(|stats| (stats.resent, stats.faults)), [(0, 0); 2]);
    assert!(world.ends.iter().all(|end| end.apps.gap() < 100 * MS));
}

#[test]
fn more_lanes_are_wanted_when_they_help_and_told_to_the_client() {
    let mut world = World::ssm(9, 1, 20 * MS);
    world.open(Kind::Exchange, 1);
    world.run_for(3 * SECOND);
    assert!(world.ends[0].trunk.demand().lanes() <= 1);
    world.open(Kind::Download, 4);
    world.run_for(900 * MS);
    assert_eq!(world.ends[0].trunk.demand().peers, 2);
    for _ in 0..7 {
        world.connect(LaneKind::Ssm, [Path::ssm_up(20 * MS, UP_RATE), Path::ssm_down(20 * MS)], 0);
    }
    world.run_for(4 * SECOND);
    assert_eq!(world.ends[0].trunk.demand().peers, 16);
    assert!(!world.ends[1].trunk.is_limited_elsewhere());
    world.ends[1].apps.limit = 0;
    world.run_for(6 * SECOND);
    assert!(world.ends[0].trunk.demand().lanes() <= 1, "{:?}", world.ends[0].trunk.demand());
}
