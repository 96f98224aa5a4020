//! One lane of the simulated SSM service.

use anyhow::Result;
use netstack_tests::vpc::{self, Vpc};
use netstack_tests::{servers, ssm};

use crate::Options;
use crate::load::iperf;
use crate::row::Row;

pub(crate) fn rows(options: &Options) -> Result<Vec<Row>> {
    let world = Vpc::new(&[])?;
    let simulator = world.simulator(ssm::Config::default())?;
    let _client = world.up(&simulator.env(), &["--instance", vpc::INSTANCE])?;
    let _server = servers::iperf(&world)?;
    let seconds = options.seconds.max(10);
    let down = iperf(&world, vpc::TARGET, seconds, &["-R"])? * MEGABYTES;
    let up = iperf(&world, vpc::TARGET, seconds, &[])? * MEGABYTES;
    Ok(vec![
        Row::new("one SSM lane, download", down, "MB/s").base(pace()),
        Row::new("one SSM lane, upload", up, "MB/s"),
    ])
}

/// What the simulated SSM agent's pump gives at most: 1,024 bytes for each message and pause.
fn pace() -> f64 {
    let agent = ssm::Config::default().knobs.agent;
    agent.read_size as f64 / agent.pause.as_secs_f64() / 1e6
}

/// In a gigabit.
const MEGABYTES: f64 = 125.0;
