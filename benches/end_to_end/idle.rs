//! What an `up` costs that nobody uses.

use std::time::Duration;

use anyhow::{Context as _, Result};
use netstack_tests::ssm;
use netstack_tests::vpc::{self, Vpc};

use crate::Options;
use crate::process::{Usage, resident, wakeups};
use crate::row::Row;

pub(crate) fn rows(_: &Options) -> Result<Vec<Row>> {
    let world = Vpc::new(&[])?;
    let simulator = world.simulator(ssm::Config::default())?;
    let client = world.up(&simulator.env(), &["--instance", vpc::INSTANCE])?;
    let agent = world.agent.as_ref().context("the agent runs")?;
    std::thread::sleep(Duration::from_secs(5));
    let usage = Usage::of(&client, agent)?;
    let before = wakeups(client.id())?;
    std::thread::sleep(OBSERVED);
    let woken = wakeups(client.id())? - before;
    let [spent, _] = usage.spent();
    let seconds = OBSERVED.as_secs_f64();
    Ok(vec![
        Row::new("idle up, resident", resident(client.id())? / 1e6, "MB"),
        Row::new("idle up, CPU", spent / seconds * 100.0, "% of a core"),
        Row::new("idle up, wake-ups", woken / seconds, "1/s"),
        Row::new("idle agent, resident", resident(agent.id())? / 1e6, "MB"),
    ])
}

const OBSERVED: Duration = Duration::from_secs(60);
