//! The laptop, the VPC and the simulated service between them; and their end.

use std::ffi::{OsStr, OsString};
use std::io;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use netstack_tests::bins::Bins;
use netstack_tests::ssm::{self, Instance, Simulator};
use rustix::process::{Signal, kill_process};
use tempfile::TempDir;
use tokio::process::Command;

use crate::child::Child;
use crate::netns::Netns;
use crate::servers;

pub(crate) const INSTANCE: &str = "i-0123456789abcdef0";
pub(crate) const CIDR: &str = "10.20.0.0/16";

pub(crate) struct World {
    pub(crate) laptop: Netns,
    pub(crate) vpc: Netns,
    dir: TempDir,
    bins: Bins,
    simulator: Option<Simulator>,
    agent: Option<Child>,
    up: Option<Child>,
}

impl World {
    /// Two networks with nothing in them.
    pub(crate) fn new(bins: Bins) -> Result<Self> {
        Ok(Self {
            laptop: Netns::new().context("make the laptop's network namespace")?,
            vpc: Netns::new().context("make the VPC's network namespace")?,
            dir: tempfile::Builder::new().prefix("ssm-proxy-demo-").tempdir()?,
            bins,
            simulator: None,
            agent: None,
            up: None,
        })
    }

    pub(crate) async fn make_networks(&self) -> Result<()> {
        self.laptop.ip("link set lo up").await?;
        self.vpc.ip("link set lo up").await?;
        self.vpc.ip(&format!("address add {}/32 dev lo", servers::TARGET)).await?;
        std::fs::create_dir(self.home())?;
        Ok(())
    }

    /// The agent, as an instance would run it.
    pub(crate) async fn start_agent(&mut self) -> Result<()> {
        let mut command = self.vpc.command(&self.bins.agent);
        clean(&mut command);
        command.arg("--state-dir").arg(self.dir.path().join("agent"));
        let agent = self.agent.insert(Child::start("ssm-proxy-agent", command)?);
        agent.wait_for(|line| line.contains("listening")).await
    }

    /// The service is heard on the laptop's loopback; its SSM agent dials in the VPC. Gives its address.
    pub(crate) fn start_simulator(&mut self) -> Result<String> {
        let (laptop, vpc) = (self.laptop.clone(), self.vpc.clone());
        let dial = ssm::dial::by_thread(move |port| {
            vpc.enter_here()?;
            TcpStream::connect(("localhost", port))
        });
        let on_thread: Arc<dyn Fn() -> io::Result<()> + Send + Sync> = Arc::new(move || laptop.enter_here());
        let simulator = Simulator::start(ssm::Config {
            instances: vec![Instance { dial: Some(dial), ..Instance::named(INSTANCE, "bastion") }],
            on_thread: Some(on_thread),
            ..ssm::Config::default()
        })?;
        Ok(self.simulator.insert(simulator).endpoint())
    }

    /// Starts `ssm-proxy up` and shows what it prints until it is up.
    pub(crate) async fn start_up(&mut self, arguments: &[&str]) -> Result<()> {
        let mut command = self.on_laptop(&self.bins.client);
        command.args(arguments);
        let up = self.up.insert(Child::start("ssm-proxy up", command)?);
        // The last line of the summary says how to stop it.
        up.show_until(|line| line.trim_start().starts_with("Stop")).await
    }

    /// A command on the laptop, with an environment that knows our AWS only.
    pub(crate) fn on_laptop(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.laptop.command(program);
        self.prepare(&mut command);
        command
    }

    /// The same for what the user talks to.
    pub(crate) fn on_laptop_for_user(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.laptop.shared_command(program);
        self.prepare(&mut command);
        command
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    pub(crate) fn client(&self) -> &Path {
        &self.bins.client
    }

    fn prepare(&self, command: &mut Command) {
        clean(command);
        command
            .current_dir(self.home())
            .env("HOME", self.home())
            .env("SSM_PROXY_RUN_DIR", self.dir.path().join("run"))
            .env("PATH", self.path())
            .envs(self.simulator.iter().flat_map(Simulator::env));
    }

    /// Ours first, so that `ssm-proxy` is the one just built.
    fn path(&self) -> OsString {
        let own = self.bins.client.parent().map(Path::to_owned);
        let given = std::env::var_os("PATH").unwrap_or_default();
        let all = own.into_iter().chain(std::env::split_paths(&given));
        std::env::join_paths(all).unwrap_or(given)
    }

    /// Takes everything down, however far it was built, and says so.
    pub(crate) async fn end(mut self) -> Result<String> {
        let up = end(&mut self.up, Signal::INT).await;
        // A session of the user's own ends while service and agent still live.
        let on_laptop = end_strays(&self.laptop).await;
        let service = self.simulator.as_ref().map_or(Ok(0), settled);
        let agent = end(&mut self.agent, Signal::TERM).await;
        let in_vpc = end_strays(&self.vpc).await;
        drop((self.simulator.take(), self.agent.take(), self.up.take()));
        let dir = self.dir.path().to_owned();
        self.dir.close().with_context(|| format!("remove {}", dir.display()))?;

        let code = up?.and_then(|status| status.code());
        ensure!(matches!(code, None | Some(0 | 130)), "ssm-proxy up ended with code {code:?}");
        agent?;
        let (sessions, strays) = (service?, on_laptop? + in_vpc?);
        let yours = if strays == 0 { String::new() } else { format!(" ({strays} of yours ended)") };
        Ok(format!(
            "nothing is left: SSM sessions ({sessions} started, {sessions} ended), namespaces, files, processes{yours}"
        ))
    }
}

/// Ends what was started from the shell and still runs.
async fn end_strays(network: &Netns) -> Result<usize> {
    let mut found = 0;
    for round in 0..ROUNDS {
        let left = network.processes()?;
        if left.is_empty() {
            return Ok(found);
        }
        // A command of the tour that was interrupted is about to end by itself.
        if round > 0 {
            found = found.max(left.len());
            let signal = if round < ROUNDS / 2 { Signal::TERM } else { Signal::KILL };
            for pid in left {
                // It may have ended meanwhile.
                let _ = kill_process(pid, signal);
            }
        }
        tokio::time::sleep(ROUND).await;
    }
    bail!("processes in the demo's namespaces do not end")
}

async fn end(child: &mut Option<Child>, signal: Signal) -> Result<Option<ExitStatus>> {
    match child {
        Some(child) => child.end(signal).await,
        None => Ok(None),
    }
}

/// The service's view of the end: no session lives, and nobody broke the protocol. Gives how many there were.
fn settled(simulator: &Simulator) -> Result<usize> {
    let left: Vec<String> = simulator.active_sessions().into_iter().map(|session| session.id).collect();
    ensure!(left.is_empty(), "SSM sessions were left: {}", left.join(", "));
    let violations = simulator.violations();
    ensure!(violations.is_empty(), "the protocol was broken: {}", violations.join("; "));
    Ok(simulator.sessions().len())
}

/// Takes away what would lead to the user's own AWS, proxy or settings.
fn clean(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy().to_ascii_uppercase();
        let ours = ["AWS_", "SSM_PROXY_", "SUDO_"].iter().any(|prefix| text.starts_with(prefix));
        if ours || text.ends_with("_PROXY") {
            command.env_remove(name);
        }
    }
}

const ROUND: Duration = Duration::from_millis(50);
/// Half of them for an end of its own.
const ROUNDS: usize = 200;
