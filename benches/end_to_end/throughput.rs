//! Throughput by iperf3 beside plain veth and two bare relays, and what a gigabyte costs.

use anyhow::Result;
use netstack_tests::vpc;

use crate::Options;
use crate::load::{IPERF_PORT, iperf};
use crate::relays::Relays;
use crate::row::{Row, median};
use crate::world::{Run, World};

pub(crate) fn rows(options: &Options) -> Result<Vec<Row>> {
    let world = World::tcp()?;
    let relays = Relays::to(&world.vpc, IPERF_PORT)?;
    let (host, port) = (relays.address.ip().to_string(), relays.address.port().to_string());
    let mut rows = Vec::new();
    for (flows, share_up, share_down) in [("1", 0.40, 0.45), ("8", 0.35, 0.35), ("64", 0.35, 0.35)] {
        for (way, flag, share, bounds) in
            [("up", None, share_up, [0.50, 0.35]), ("down", Some("-R"), share_down, [0.30, 0.45])]
        {
            let arguments: Vec<&str> = ["-P", flows].into_iter().chain(flag).collect();
            let past_us = [&arguments[..], &["-p", &port]].concat();
            let (mut veth, mut bare, mut ours) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..options.rounds {
                veth.push(iperf(&world.vpc, vpc::LINK, options.seconds, &arguments)?);
                bare.push(world.measured_by(relays.usage()?, &host, options.seconds, &past_us)?);
                ours.push(world.measured(options.seconds, &arguments)?);
            }
            let name = format!("{flows} flow{} {way}", if flows == "1" { "" } else { "s" });
            let (veth, pace, relayed) = (median(veth), pace(&ours), pace(&bare));
            rows.push(Row::new(&name, pace, "Gbit/s").base(veth).share(share));
            rows.push(Row::new(format!("{name}, two bare relays"), relayed, "Gbit/s").base(veth));
            for (side, who) in ["client", "agent"].into_iter().enumerate() {
                let row =
                    Row::new(format!("{name}, {who} CPU, base: a bare relay"), cpu(&ours, side), "s/GB");
                rows.push(row.base(cpu(&bare, side)).at_most(bounds[side]));
            }
        }
    }
    Ok(rows)
}

fn pace(runs: &[Run]) -> f64 {
    median(runs.iter().map(|run| run.gbit).collect())
}

fn cpu(runs: &[Run], side: usize) -> f64 {
    median(runs.iter().map(|run| run.cpu[side]).collect())
}
