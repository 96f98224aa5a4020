//! One byte there and back over lanes of the simulated service, idle and beside bulk.

use std::time::Duration;

use anyhow::Result;
use netstack_tests::servers;
use netstack_tests::ssm::Knobs;
use netstack_tests::vpc;

use crate::Options;
use crate::latency::{PAUSE, round_trips};
use crate::load::Load;
use crate::row::{Row, quantile};
use crate::ssm_throughput::lanes_of;
use crate::world::{World, through};

pub(crate) fn rows(_: &Options) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    // How many ms p99 may be beyond a usual idle exchange.
    for (lanes, beyond) in [(1, 35.0), (8, 60.0)] {
        rows.extend(with_lanes(lanes, beyond)?);
    }
    Ok(rows)
}

fn with_lanes(lanes: u32, beyond: f64) -> Result<Vec<Row>> {
    let world = World::ssm(lanes, Knobs::default())?;
    let echo = through(servers::serve(&world.vpc.vpc, "0.0.0.0:0", servers::echo)?.port())?;
    let quantiles = |time: u64| -> Result<[f64; 3]> {
        let mut times = round_trips(&world.vpc, echo, Duration::from_secs(time), PAUSE)?;
        Ok([0.5, 0.99, 0.999].map(|at| quantile(&mut times, at) / 1e3))
    };
    let named = |what: &str| format!("{}, 1 byte {what}", lanes_of(lanes));
    let idle = quantiles(3)?;
    let mut rows: Vec<Row> = ["p50", "p99", "p99.9"]
        .into_iter()
        .zip(idle)
        .map(|(name, value)| Row::new(named(&format!("idle, {name}")), value, "ms"))
        .collect();
    for flows in [1, 2, 4, 8] {
        let load = Load::start(&world.vpc, vpc::TARGET, flows)?;
        let [p50, p99, p999] = quantiles(4)?;
        drop(load);
        let beside = |name: &str| named(&format!("beside {flows} bulk each way, {name}"));
        rows.push(Row::new(beside("p50"), p50, "ms").base(idle[0]));
        rows.push(Row::new(beside("p99"), p99, "ms").base(idle[1]).at_most(idle[0] + beyond));
        rows.push(Row::new(beside("p99.9"), p999, "ms").base(idle[2]));
    }
    Ok(rows)
}
