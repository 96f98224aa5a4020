//! The numbers to reach: throughput, and what an exchange of one byte takes meanwhile.

use super::*;

/// Rates up and down in bytes a second, and the exchange's median and p99 in ms.
struct Figures {
    rates: [f64; 2],
    p99: f64,
}

/// So many bulk streams each way over SSM lanes, 20 ms one way.
fn figures(lanes: usize, up: usize, down: usize, up_rate: u64) -> Figures {
    let delay = 20 * MS;
    let mut world = World::new(1);
    for _ in 0..lanes {
        world.connect(LaneKind::Ssm, [Path::ssm_up(delay, up_rate), Path::ssm_down(delay)], 0);
    }
    let shorter = if lanes > 1 { 2 } else { 1 };
    measure(&mut world, up, down, [2 * SECOND, 3 * SECOND / shorter])
}

fn measure(world: &mut World, up: usize, down: usize, [before, time]: [u64; 2]) -> Figures {
    let began = Instant::now();
    world.open(Kind::Exchange, 2);
    world.open(Kind::Upload, up);
    world.open(Kind::Download, down);
    world.run_for(before);
    world.reset_figures();
    world.run_for(time);
    let (rates, [p50, p99]) = (world.rates(), world.exchange());
    eprintln!(
        "{} lanes, bulk {up} up {down} down: {:.2} up {:.3} down MB/s, p50 {p50:.1} p99 {p99:.1} ms (took {:?})",
        world.links.len(),
        rates[0] / 1e6,
        rates[1] / 1e6,
        began.elapsed(),
    );
    if std::env::var_os("DETAIL").is_some() {
        eprintln!("{}", world.describe());
    }
    Figures { rates, p99 }
}

/// Bulk up and down, alone and both ways at once.
const ONE_WAY: [(usize, usize); 6] = [(0, 1), (0, 8), (0, 64), (1, 0), (8, 0), (64, 0)];
const BOTH_WAYS: [(usize, usize); 3] = [(1, 1), (8, 8), (64, 64)];

/// With each of these an exchange takes at most so much more than idle, at 98 % of what the lanes carry.
fn hardly_waits(lanes: usize, bulk: &[(usize, usize)], up_rate: u64, most: f64) {
    let idle = figures(lanes, 0, 0, up_rate).p99;
    assert!((40.0..42.0).contains(&idle), "{idle}");
    for &(up, down) in bulk {
        let Figures { rates, p99 } = figures(lanes, up, down, up_rate);
        assert!(p99 <= idle + most, "{p99} ms with {up} up and {down} down");
        let whole = [up_rate as f64 * UP_SHARE, PACING * DOWN_SHARE].map(|rate| rate * lanes as f64);
        for (bulk, rate, whole) in [(up, rates[0], whole[0]), (down, rates[1], whole[1])] {
            assert!(bulk == 0 || rate >= 0.98 * whole, "{rate} of {whole} with {up} up and {down} down");
        }
    }
}

#[test]
fn an_exchange_on_one_lane_hardly_waits_for_bulk() {
    hardly_waits(1, &ONE_WAY, UP_RATE, 35.0);
    hardly_waits(1, &BOTH_WAYS, UP_RATE, 35.0);
}

#[test]
fn an_exchange_on_eight_lanes_hardly_waits_for_bulk_one_way() {
    hardly_waits(8, &ONE_WAY, UP_RATE / 8, 60.0);
}

#[test]
fn an_exchange_on_eight_lanes_hardly_waits_for_bulk_both_ways() {
    hardly_waits(8, &BOTH_WAYS, UP_RATE / 8, 60.0);
}

#[test]
fn sixteen_lanes_are_fourteen_times_as_fast() {
    let one = figures(1, 0, 16, UP_RATE).rates[1];
    let eight = figures(8, 0, 16, UP_RATE).rates[1];
    let sixteen = figures(16, 0, 16, UP_RATE).rates[1];
    eprintln!("8 lanes {:.2} times, 16 lanes {:.2} times", eight / one, sixteen / one);
    assert!(eight >= 7.4 * one && sixteen >= 14.0 * one);
}

#[test]
fn thirty_two_lanes_add_up_within_the_credit() {
    let one = figures(1, 0, 16, UP_RATE).rates[1];
    let mut world = World::ssm(1, 32, 20 * MS);
    let Figures { rates, p99 } = measure(&mut world, 0, 16, [SECOND, SECOND]);
    eprintln!("32 lanes {:.2} times", rates[1] / one);
    assert!(rates[1] >= 0.97 * 32.0 * one, "{rates:?} are {:.2} times {one}", rates[1] / one);
    assert!(p99 <= 40.0 + 60.0, "{p99} ms");
    for end in &world.ends {
        let (stats, credit) = (end.trunk.stats(), end.trunk.config.credit as usize);
        assert!(stats.unacknowledged <= credit && stats.most_held <= credit, "{stats:?}");
        assert!(end.trunk.lane_stats().all(|lane| lane.in_flight <= 256 << 10), "{}", world.describe());
    }
}

#[test]
fn bloat_below_a_slow_tcp_lane_stays_empty() {
    let mut world = World::new(2);
    let path = Path {
        pump: Pump::Rate(750_000),
        delay: 30 * MS,
        jitter: 0,
        buffer: 4 << 20,
        record: 64 << 10,
        repeats: 0,
    };
    world.connect(LaneKind::Tcp, [path; 2], 0);
    let Figures { rates, p99 } = measure(&mut world, 0, 64, [8 * SECOND, 30 * SECOND]);
    assert!(p99 <= 60.0 + 35.0, "{p99} ms");
    assert!(rates[1] >= 0.96 * 750e3, "{}", rates[1]);
}

#[test]
fn an_exchange_on_a_tcp_lane_hardly_waits_for_bulk_either() {
    // A fast wire, a near network, a wireless one, a far one.
    for (rate, delay, jitter) in [
        (500_000_000, 20, 30),
        (100_000_000, 200, 500),
        (12_000_000, 2 * MS, 2 * MS),
        (12_000_000, 40 * MS, 5 * MS),
    ] {
        let mut world = World::new(2);
        let pump = Pump::Rate(rate);
        let path = Path { pump, delay, jitter, buffer: 8 << 20, record: 128 << 10, repeats: 0 };
        world.connect(LaneKind::Tcp, [path; 2], 0);
        let time = if rate > 200_000_000 { SECOND / 2 } else { 2 * SECOND };
        let Figures { rates, p99 } = measure(&mut world, 8, 8, [2 * time, time]);
        let idle = (2 * delay) as f64 / MS as f64;
        assert!(p99 <= idle + 35.0, "{p99} ms");
        assert!(rates.iter().all(|share| *share >= 0.98 * rate as f64), "{rates:?}");
    }
}

#[test]
fn jitter_and_repeats_cost_little() {
    let mut world = World::new(3);
    let noisy = |path: Path| Path { jitter: 10 * MS, repeats: 50, ..path };
    for _ in 0..2 {
        let paths =
            [noisy(Path::ssm_up(20 * MS, 5_000_000)), Path { jitter: 10 * MS, ..Path::ssm_down(20 * MS) }];
        world.connect(LaneKind::Ssm, paths, 0);
    }
    let Figures { rates, p99 } = measure(&mut world, 8, 8, [3 * SECOND, 4 * SECOND]);
    assert!(p99 <= 60.0 + 60.0, "{p99} ms");
    assert!(rates[0] >= 0.87 * 10e6 && rates[1] >= 0.90 * 2.0 * PACING, "{rates:?}");
}

#[test]
fn unequal_lanes_add_up() {
    let two = |rates: [u64; 2], delays: [u64; 2]| {
        let mut world = World::new(4);
        for (rate, delay) in rates.into_iter().zip(delays) {
            let path = Path { record: 16 << 10, ..Path::ssm_up(delay * MS, rate) };
            world.connect(LaneKind::Tcp, [path; 2], 0);
        }
        measure(&mut world, 0, 4, [8 * SECOND, 4 * SECOND]).rates[1]
    };
    let unequal_rates = two([8_000_000, 2_000_000], [20, 20]);
    assert!(unequal_rates >= 9.4e6, "{unequal_rates}");
    let unequal_delays = two([5_000_000, 5_000_000], [20, 120]);
    assert!(unequal_delays >= 9.2e6, "{unequal_delays}");
}

#[test]
fn a_keystroke_takes_the_fastest_lane() {
    let mut world = World::new(5);
    for delay in [120, 20, 60] {
        world.connect(LaneKind::Ssm, [Path::ssm_up(delay * MS, UP_RATE), Path::ssm_down(delay * MS)], 0);
    }
    // What each lane is like is known once it was used.
    measure(&mut world, 1, 1, [2 * SECOND, 3 * SECOND]);
    world.ends.iter_mut().for_each(|end| end.apps.limit = 0);
    world.run_for(SECOND);
    world.reset_figures();
    world.run_for(3 * SECOND);
    let [p50, _] = world.exchange();
    assert!(p50 <= 45.0, "{p50} ms");
}

#[test]
fn near_and_far_instances_are_no_exception() {
    for (delay, up_rate) in [(0, 24_000_000), (80, 24_000_000)] {
        for (up, down) in [(0, 8), (8, 0), (8, 8)] {
            let mut world = World::new(6);
            let delay = delay * MS;
            world.connect(LaneKind::Ssm, [Path::ssm_up(delay, up_rate), Path::ssm_down(delay)], 0);
            let Figures { rates, p99 } = measure(&mut world, up, down, [5 * SECOND, 4 * SECOND]);
            let idle = 2.0 * (delay / MS) as f64;
            assert!(p99 <= idle + 45.0, "{p99} ms at {idle} ms");
            // Far away 4 MiB in flight are the limit when the way back is busy, too.
            assert!(up == 0 || rates[0] >= 0.85 * up_rate as f64 * UP_SHARE, "{rates:?}");
            assert!(down == 0 || rates[1] >= 0.92 * PACING, "{rates:?}");
        }
    }
}
