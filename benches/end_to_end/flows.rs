//! Many idle flows: what each costs, and what they cost a busy one.

use std::time::Duration;

use anyhow::Result;

use crate::Options;
use crate::held::{Held, raise_limit};
use crate::row::{Row, median};
use crate::world::World;

pub(crate) fn rows(options: &Options) -> Result<Vec<Row>> {
    let most = raise_limit()?.min(options.most_flows);
    let world = World::tcp()?;
    let mut held = Held::listen(&world.vpc)?;
    // What the first flows touch is no flow's own.
    held.grow_to(&world.vpc, 64)?;
    held.end()?;
    world.measured(1, &[])?;
    world.measured(1, &["-R"])?;
    let mut held = Held::listen(&world.vpc)?;
    // What the bulk leaves in pools is no flow's own either.
    let mut busy = vec![Busy::measure(&world, options, 0)?];
    std::thread::sleep(SILENCE);
    let usage = world.usage()?;
    let mut rows = Vec::new();
    let mut counts = [1_000, 10_000, 20_000].map(|flows: usize| flows.min(most)).to_vec();
    counts.dedup();
    for flows in counts {
        held.grow_to(&world.vpc, flows)?;
        std::thread::sleep(SILENCE);
        let [client, agent] = usage.grown()?.map(|bytes| bytes / flows as f64);
        rows.push(
            Row::new(format!("client, memory for each of {flows} idle flows"), client, "B").at_most(1_500.0),
        );
        rows.push(
            Row::new(format!("agent, memory for each of {flows} idle flows"), agent, "B").at_most(500.0),
        );
        busy.push(Busy::measure(&world, options, flows)?);
    }
    held.end()?;
    std::thread::sleep(Duration::from_secs(1));
    let again = Busy::measure(&world, options, 0)?;
    for way in [UP, DOWN] {
        // Before and after, so that a machine that changes its pace does not tell against the flows.
        let alone = |of: fn(&Way) -> f64| (of(&busy[0].ways[way]) + of(&again.ways[way])) / 2.0;
        for busy in &busy[1..] {
            let (name, flows) = (["up", "down"][way], busy.idle);
            let Way { gbit, cpu } = busy.ways[way];
            let what = format!("1 flow {name} beside {flows} idle ones");
            let base = alone(|way| way.cpu);
            rows.push(Row::new(&what, gbit, "Gbit/s").base(alone(|way| way.gbit)).share(0.95));
            rows.push(
                Row::new(format!("{what}, CPU of both ends"), cpu, "s/GB").base(base).at_most(base / 0.95),
            );
        }
    }
    Ok(rows)
}

/// One busy flow beside idle ones.
struct Busy {
    idle: usize,
    ways: [Way; 2],
}

struct Way {
    gbit: f64,
    /// Of client and agent together.
    cpu: f64,
}

impl Busy {
    fn measure(world: &World, options: &Options, idle: usize) -> Result<Self> {
        let mut gbit = [Vec::new(), Vec::new()];
        let mut cpu = [Vec::new(), Vec::new()];
        for _ in 0..options.rounds {
            for (way, arguments) in [(UP, &[][..]), (DOWN, &["-R"][..])] {
                let run = world.measured(options.seconds.min(2), arguments)?;
                gbit[way].push(run.gbit);
                cpu[way].push(run.cpu.iter().sum());
            }
        }
        let [up, down] = gbit.map(median);
        let [cpu_up, cpu_down] = cpu.map(median);
        Ok(Self { idle, ways: [Way { gbit: up, cpu: cpu_up }, Way { gbit: down, cpu: cpu_down }] })
    }
}

const UP: usize = 0;
const DOWN: usize = 1;
/// The netstack gives pages of a silent flow back after 5 to 10 s.
pub(crate) const SILENCE: Duration = Duration::from_secs(11);
