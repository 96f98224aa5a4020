//! What lanes of the simulated service carry, near and far, and what that costs.

use std::time::{Duration, Instant};

use anyhow::Result;
use netstack_tests::ssm::{AgentKnobs, Knobs};

use crate::Options;
use crate::engines::Way;
use crate::row::Row;
use crate::transfer::Transfer;
use crate::world::World;

pub(crate) fn rows(options: &Options) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (one_way, lanes) in [(20, 1), (20, 2), (20, 4), (20, 8), (20, 16), (0, 1), (0, 8), (80, 1), (80, 8)] {
        rows.extend(with_lanes(lanes, one_way, options)?);
    }
    Ok(rows)
}

fn with_lanes(lanes: u32, one_way: u32, options: &Options) -> Result<Vec<Row>> {
    let world = World::ssm(lanes, far(one_way))?;
    let [down, up] = [Way::Down, Way::Up].map(|way| one_flow(&world, way, one_way, options));
    let (down, up) = (down?, up?);
    let named = |what: &str| format!("{}, {one_way} ms one way, {what}", lanes_of(lanes));
    let download = Row::new(named("download"), down.megabytes, "MB/s").base(pace() * f64::from(lanes));
    let upload = Row::new(named("upload"), up.megabytes, "MB/s");
    // What is to be reached is said for this delay.
    let mut rows = if one_way == 20 {
        vec![download.share(if lanes == 1 { 0.95 } else { 0.9 }), upload.at_least(20.0)]
    } else {
        vec![download, upload]
    };
    for (way, Run { cpu: [client, agent], .. }) in [("download", down), ("upload", up)] {
        rows.push(Row::new(named(&format!("{way}, client CPU")), client, "s/GB"));
        rows.push(Row::new(named(&format!("{way}, agent CPU")), agent, "s/GB"));
    }
    Ok(rows)
}

struct Run {
    /// A second.
    megabytes: f64,
    /// Seconds per gigabyte of client and agent.
    cpu: [f64; 2],
}

fn one_flow(world: &World, way: Way, one_way: u32, options: &Options) -> Result<Run> {
    let transfer = Transfer::start(&world.vpc, way)?;
    // Its window grows with use, by the round trip.
    std::thread::sleep(WARM_UP + Duration::from_millis(one_way.into()) * 40);
    let (usage, began) = (world.usage()?, Instant::now());
    transfer.mark();
    std::thread::sleep(Duration::from_secs(options.seconds.into()));
    let (megabytes, time) = (transfer.bytes() as f64 / 1e6, began.elapsed().as_secs_f64());
    let cpu = usage.spent().map(|spent| spent / megabytes * 1e3);
    Ok(Run { megabytes: megabytes / time, cpu })
}

/// The faithful service, so many milliseconds away.
fn far(one_way: u32) -> Knobs {
    Knobs { hop_delay: Duration::from_millis(one_way.into()) / HOPS, ..Knobs::default() }
}

pub(crate) fn lanes_of(lanes: u32) -> String {
    if lanes == 1 { "1 SSM lane".to_owned() } else { format!("{lanes} SSM lanes") }
}

/// What the simulated SSM agent's pump gives at most: 1,024 bytes for each message and pause.
fn pace() -> f64 {
    let AgentKnobs { read_size, pause, .. } = AgentKnobs::default();
    read_size as f64 / pause.as_secs_f64() / 1e6
}

/// From client to gateway, and from there to the SSM agent.
const HOPS: u32 = 2;
const WARM_UP: Duration = Duration::from_secs(1);
