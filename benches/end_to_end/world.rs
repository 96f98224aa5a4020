//! Client and agent joined by lanes, with iperf3's server at the target.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use netstack_tests::servers;
use netstack_tests::ssm::{self, Knobs, Simulator};
use netstack_tests::vpc::{self, Process, Vpc};

use crate::load;
use crate::process::Usage;

pub(crate) struct World {
    // Ends before the service and the namespaces do.
    client: Process,
    _iperf: Process,
    simulator: Option<Simulator>,
    pub(crate) vpc: Vpc,
}

impl World {
    /// Over one plain TCP lane.
    pub(crate) fn tcp() -> Result<Self> {
        let listen = format!("{}:{}", vpc::LINK, vpc::TCP_LANE_PORT);
        // What is measured is how fast it can be, not how fast it is allowed to be.
        let vpc = Vpc::new(&["--listen", &listen, "--key-file", "@key", "--dials-per-second", "1000000"])?;
        let key = vpc.key_file();
        let key = key.to_str().context("a path of text")?;
        let client = vpc.up(&[], &["--via", &format!("tcp://{listen}"), "--key-file", key])?;
        Ok(Self { client, _iperf: servers::iperf(&vpc)?, simulator: None, vpc })
    }

    /// Over so many lanes of the simulated service, without compression; all of them are there.
    pub(crate) fn ssm(lanes: u32, knobs: Knobs) -> Result<Self> {
        let vpc = Vpc::new(&[])?;
        let simulator = vpc.simulator(ssm::Config { knobs, ..ssm::Config::default() })?;
        let number = lanes.to_string();
        let flags = ["--instance", vpc::INSTANCE, "--lanes", &number, "--compress", "off"];
        let client = vpc.up(&simulator.env(), &flags)?;
        let world = Self { client, _iperf: servers::iperf(&vpc)?, simulator: Some(simulator), vpc };
        world.await_lanes(lanes as usize)?;
        Ok(world)
    }

    pub(crate) fn simulator(&self) -> Result<&Simulator> {
        self.simulator.as_ref().context("this world has no simulated service")
    }

    /// Waits until the client says that it has so many lanes.
    pub(crate) fn await_lanes(&self, lanes: usize) -> Result<()> {
        for _ in 0..100 {
            if self.vpc.status()?["lanes"].as_array().is_some_and(|there| there.len() == lanes) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        anyhow::bail!("there are not {lanes} lanes within 10 s");
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        Usage::of(&self.client, self.vpc.agent.as_ref().context("the agent runs")?)
    }

    /// iperf3 through the tunnel.
    pub(crate) fn measured(&self, seconds: u32, extra: &[&str]) -> Result<Run> {
        self.measured_by(self.usage()?, vpc::TARGET, seconds, extra)
    }

    /// iperf3 over what `usage` has counted from now on.
    pub(crate) fn measured_by(&self, usage: Usage, host: &str, seconds: u32, extra: &[&str]) -> Result<Run> {
        let gbit = load::iperf(&self.vpc, host, seconds, extra)?;
        let gigabytes = gbit / 8.0 * f64::from(seconds);
        Ok(Run { gbit, cpu: usage.spent().map(|spent| spent / gigabytes) })
    }

    /// The same address and port past the tunnel, and through it.
    pub(crate) fn both_ways(port: u16) -> Result<[SocketAddr; 2]> {
        Ok([SocketAddr::new(vpc::LINK.parse()?, port), through(port)?])
    }
}

/// A port of the target, through the tunnel.
pub(crate) fn through(port: u16) -> Result<SocketAddr> {
    Ok(SocketAddr::new(vpc::TARGET.parse()?, port))
}

/// One run of iperf3.
pub(crate) struct Run {
    pub(crate) gbit: f64,
    /// Seconds per gigabyte of client and agent, or of what stood in their place.
    pub(crate) cpu: [f64; 2],
}
