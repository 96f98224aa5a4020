//! What the system counts of client and agent.

use anyhow::{Context as _, Result};
use netstack_tests::vpc::Process;

/// CPU seconds and memory of client and agent since `of`.
pub(crate) struct Usage {
    pids: [u32; 2],
    cpu: [f64; 2],
    memory: [f64; 2],
}

impl Usage {
    pub(crate) fn of(client: &Process, agent: &Process) -> Result<Self> {
        let pids = [client.id(), agent.id()];
        let [client, agent] = pids;
        Ok(Self { pids, cpu: pids.map(cpu), memory: [resident(client)?, resident(agent)?] })
    }

    /// CPU seconds since then.
    pub(crate) fn spent(&self) -> [f64; 2] {
        [0, 1].map(|side| cpu(self.pids[side]) - self.cpu[side])
    }

    /// Bytes of memory more than then.
    pub(crate) fn grown(&self) -> Result<[f64; 2]> {
        let [client, agent] = self.pids;
        Ok([resident(client)? - self.memory[0], resident(agent)? - self.memory[1]])
    }
}

fn cpu(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / TICKS
}

pub(crate) fn resident(pid: u32) -> Result<f64> {
    let pages = std::fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages: f64 = pages.split_whitespace().nth(1).context("statm has a second field")?.parse()?;
    Ok(pages * rustix::param::page_size() as f64)
}

/// Times any thread of the process went to sleep by itself, so far.
pub(crate) fn wakeups(pid: u32) -> Result<f64> {
    let mut sum = 0.0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = std::fs::read_to_string(thread?.path().join("status"))?;
        let line = status
            .lines()
            .find(|line| line.starts_with("voluntary_ctxt_switches"))
            .context("status counts switches")?;
        sum += line.split_whitespace().nth(1).context("a number")?.parse::<f64>()?;
    }
    Ok(sum)
}

/// Of Linux's clock in /proc, per second.
const TICKS: f64 = 100.0;
