//! Lanes of the simulated SSM service at its faithful defaults, without compression.

use std::time::Duration;

use anyhow::Result;
use netstack_tests::vpc::{self, Vpc};
use netstack_tests::{servers, ssm};

use crate::Options;
use crate::latency::{PAUSE, round_trips};
use crate::load::{Load, iperf};
use crate::row::{Row, quantile};

pub(crate) fn rows(options: &Options) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for lanes in [1, 2, 4, 8, 16] {
        rows.extend(with_lanes(lanes, options)?);
    }
    Ok(rows)
}

fn with_lanes(lanes: u32, options: &Options) -> Result<Vec<Row>> {
    let world = Vpc::new(&[])?;
    let simulator = world.simulator(ssm::Config::default())?;
    let number = lanes.to_string();
    let flags = ["--instance", vpc::INSTANCE, "--lanes", &number, "--compress", "off"];
    let _client = world.up(&simulator.env(), &flags)?;
    let _server = servers::iperf(&world)?;
    let echo = servers::serve(&world.vpc, "0.0.0.0:0", servers::echo)?.port();
    let echo = (vpc::TARGET.parse::<std::net::IpAddr>()?, echo).into();
    let seconds = options.seconds.max(10);
    // The lanes come one after the other, and a stream's window grows with use.
    iperf(&world, vpc::TARGET, 5, &["-R"])?;
    let down = iperf(&world, vpc::TARGET, seconds, &["-R"])? * MEGABYTES;
    let up = iperf(&world, vpc::TARGET, seconds, &[])? * MEGABYTES;
    let named = |what: &str| {
        if lanes == 1 { format!("1 SSM lane, {what}") } else { format!("{lanes} SSM lanes, {what}") }
    };
    let least = if lanes == 1 { 0.95 } else { 0.9 };
    let mut rows = vec![
        Row::new(named("download"), down, "MB/s").base(pace() * f64::from(lanes)).share(least),
        Row::new(named("upload"), up, "MB/s").at_least(20.0),
    ];
    if matches!(lanes, 1 | 8) {
        let mut idle = round_trips(&world, echo, Duration::from_secs(3), PAUSE)?;
        let load = Load::start(&world, vpc::TARGET, 4)?;
        let mut busy = round_trips(&world, echo, Duration::from_secs(8), PAUSE)?;
        load.pace()?;
        for (name, at) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
            let what = named(&format!("1 byte beside 4 bulk flows each way, {name}"));
            let (busy, idle) = (quantile(&mut busy, at), quantile(&mut idle, at));
            rows.push(Row::new(what, busy / 1e3, "ms").base(idle / 1e3));
        }
    }
    Ok(rows)
}

/// What the simulated SSM agent's pump gives at most: 1,024 bytes for each message and pause.
fn pace() -> f64 {
    let agent = ssm::Config::default().knobs.agent;
    agent.read_size as f64 / agent.pause.as_secs_f64() / 1e6
}

/// In a gigabit.
const MEGABYTES: f64 = 125.0;
