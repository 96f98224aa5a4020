//! Throughput by iperf3 beside plain veth, and what a gigabyte costs.

use anyhow::Result;
use netstack_tests::vpc;

use crate::Options;
use crate::load::iperf;
use crate::row::{Row, median};
use crate::world::World;

pub(crate) fn rows(options: &Options) -> Result<Vec<Row>> {
    let world = World::tcp()?;
    let mut rows = Vec::new();
    for (flows, share_up, share_down) in [("1", 0.40, 0.45), ("8", 0.35, 0.35), ("64", 0.35, 0.35)] {
        for (way, flag, share, [client, agent]) in
            [("up", None, share_up, [0.50, 0.35]), ("down", Some("-R"), share_down, [0.30, 0.45])]
        {
            let arguments: Vec<&str> = ["-P", flows].into_iter().chain(flag).collect();
            let (mut veth, mut runs) = (Vec::new(), Vec::new());
            for _ in 0..options.rounds {
                veth.push(iperf(&world.vpc, vpc::LINK, options.seconds, &arguments)?);
                runs.push(world.measured(options.seconds, &arguments)?);
            }
            let name = format!("{flows} flow{} {way}", if flows == "1" { "" } else { "s" });
            let gbit = median(runs.iter().map(|run| run.gbit).collect());
            rows.push(Row::new(&name, gbit, "Gbit/s").base(median(veth)).share(share));
            for (side, who, bound) in [(0, "client", client), (1, "agent", agent)] {
                let cpu = median(runs.iter().map(|run| run.cpu[side]).collect());
                rows.push(Row::new(format!("{name}, {who} CPU"), cpu, "s/GB").at_most(bound));
            }
        }
    }
    Ok(rows)
}
