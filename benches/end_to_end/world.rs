//! Client and agent joined by one plain TCP lane, with iperf3's server at the target.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use netstack_tests::servers;
use netstack_tests::vpc::{self, Process, Vpc};

use crate::load;
use crate::process::Usage;

pub(crate) struct TcpWorld {
    // Ends before the namespaces do.
    pub(crate) client: Process,
    _iperf: Process,
    pub(crate) vpc: Vpc,
}

impl TcpWorld {
    pub(crate) fn new() -> Result<Self> {
        let listen = format!("{}:{}", vpc::LINK, vpc::TCP_LANE_PORT);
        // What is measured is how fast it can be, not how fast it is allowed to be.
        let world = Vpc::new(&["--listen", &listen, "--key-file", "@key", "--dials-per-second", "1000000"])?;
        let key = world.key_file();
        let key = key.to_str().context("a path of text")?;
        let client = world.up(&[], &["--via", &format!("tcp://{listen}"), "--key-file", key])?;
        Ok(Self { client, _iperf: servers::iperf(&world)?, vpc: world })
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        Usage::of(&self.client, self.vpc.agent.as_ref().context("the agent runs")?)
    }

    /// Gbit/s through the tunnel, and CPU seconds per gigabyte of client and agent.
    pub(crate) fn measured(&self, seconds: u32, extra: &[&str]) -> Result<Run> {
        let usage = self.usage()?;
        let gbit = load::iperf(&self.vpc, vpc::TARGET, seconds, extra)?;
        let gigabytes = gbit / 8.0 * f64::from(seconds);
        Ok(Run { gbit, cpu: usage.spent().map(|spent| spent / gigabytes) })
    }

    /// The same address and port past the tunnel, and through it.
    pub(crate) fn both_ways(port: u16) -> Result<[SocketAddr; 2]> {
        Ok([SocketAddr::new(vpc::LINK.parse()?, port), SocketAddr::new(vpc::TARGET.parse()?, port)])
    }
}

/// One run of iperf3 through the tunnel.
pub(crate) struct Run {
    pub(crate) gbit: f64,
    /// Seconds per gigabyte of client and agent.
    pub(crate) cpu: [f64; 2],
}
