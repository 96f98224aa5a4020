//! What keeps the path busy.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use netstack_tests::vpc::Vpc;
use serde_json::Value;

/// Gbit/s that arrived.
pub(crate) fn iperf(world: &Vpc, host: &str, seconds: u32, extra: &[&str]) -> Result<f64> {
    let mut said = Value::Null;
    for _ in 0..50 {
        let mut command: Command = world.laptop.command("iperf3");
        let output = command.args(["-c", host, "-J", "-t", &seconds.to_string()]).args(extra).output()?;
        let report: Value = serde_json::from_slice(&output.stdout)?;
        if let Some(bits) = report["end"]["sum_received"]["bits_per_second"].as_f64() {
            return Ok(bits / 1e9);
        }
        // The server takes a moment to end the test before.
        said = report["error"].clone();
        std::thread::sleep(Duration::from_millis(100));
    }
    anyhow::bail!("iperf3 said {said}")
}

/// So many flows of iperf3 each way, until dropped.
pub(crate) struct Load<'w> {
    world: &'w Vpc,
    iperf: Child,
    began: Instant,
    carried: u64,
}

impl<'w> Load<'w> {
    pub(crate) fn start(world: &'w Vpc, host: &str, flows: usize) -> Result<Self> {
        for _ in 0..20 {
            // The server takes a moment to end the test before, and bulk a moment to reach its pace.
            std::thread::sleep(SETTLE);
            let mut command = world.laptop.command("iperf3");
            command.args(["-c", host, "-t", "600", "--bidir", "-P", &flows.to_string()]);
            let mut iperf = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
            std::thread::sleep(SETTLE);
            if iperf.try_wait()?.is_none() {
                return Ok(Self { world, iperf, began: Instant::now(), carried: carried(world)? });
            }
        }
        anyhow::bail!("iperf3 to {host} always ends at once")
    }

    /// Gbit/s of both directions together since the start.
    pub(crate) fn pace(&self) -> Result<f64> {
        Ok((carried(self.world)? - self.carried) as f64 * 8e-9 / self.began.elapsed().as_secs_f64())
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.iperf.kill();
        let _ = self.iperf.wait();
    }
}

/// Bytes over the wire between the namespaces, which the lane crosses too.
fn carried(world: &Vpc) -> Result<u64> {
    let link: Value = serde_json::from_str(&world.laptop.ip("-s -j link show wire0")?)?;
    let count = |way: &str| link[0]["stats64"][way]["bytes"].as_u64();
    Ok(count("rx").context("bytes received")? + count("tx").context("bytes sent")?)
}

/// Where iperf3's server listens.
pub(crate) const IPERF_PORT: u16 = 5201;
const SETTLE: Duration = Duration::from_secs(1);
