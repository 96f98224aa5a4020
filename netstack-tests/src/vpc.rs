//! A laptop and a VPC as two network namespaces, the simulated SSM service between them, and the real
//! client and agent binaries.
//!
//! What a program on the laptop reaches at [`TARGET`], it reaches through the tunnel: targets are addresses on the
//! VPC's loopback device. A veth link joins the namespaces for the plain TCP lane and as the base of comparisons.

use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::bins;
use crate::netns::{self, Netns, veth};
use crate::patience::now;
use crate::ssm::{self, Instance, Simulator};

/// The target of every test, at an IPv4 and an IPv6 address of the VPC.
pub const TARGET: &str = "10.20.1.5";
pub const TARGET6: &str = "fd20::5";
/// What `up` captures.
pub const CIDRS: [&str; 2] = ["10.20.0.0/16", "fd20::/64"];
/// The instance that has the agent.
pub const INSTANCE: &str = "i-0123456789abcdef0";
/// The VPC's end of the veth link, which is not captured, and the port of its TCP lane.
pub const LINK: &str = "192.168.99.2";
pub const TCP_LANE_PORT: u16 = 7420;

/// The two namespaces, a directory for files, and the agent.
pub struct Vpc {
    pub laptop: Netns,
    pub vpc: Netns,
    pub dir: TempDir,
    pub agent: Option<Process>,
    agent_arguments: Vec<String>,
}

impl Vpc {
    /// Makes the namespaces and starts the agent in one of them, as an instance would.
    pub fn new(agent_arguments: &[&str]) -> Result<Self> {
        let laptop = Netns::new("laptop")?;
        let vpc = Netns::new("vpc")?;
        veth(
            (&laptop, "wire0", &["192.168.99.1/24", "fd99::1/64"]),
            (&vpc, "wire0", &["192.168.99.2/24", "fd99::2/64"]),
        )?;
        vpc.ip(&format!("address add {TARGET}/32 dev lo"))?;
        vpc.ip(&format!("address add {TARGET6}/128 dev lo nodad"))?;
        let arguments = agent_arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut world =
            Self { laptop, vpc, dir: tempfile::tempdir()?, agent: None, agent_arguments: arguments };
        fs::write(world.key_file(), "a key of more than sixteen bytes for tests\n")?;
        rustix::fs::chmod(world.key_file(), rustix::fs::Mode::from_raw_mode(0o600))?;
        world.start_agent()?;
        Ok(world)
    }

    /// The simulated service, heard on the laptop's loopback, with [`INSTANCE`] in the VPC.
    pub fn simulator(&self, config: ssm::Config) -> Result<Simulator> {
        let (laptop, vpc) = (self.laptop.name().to_owned(), self.vpc.name().to_owned());
        let dial = ssm::dial::by_thread(move |port| {
            netns::enter_here(&vpc)?;
            TcpStream::connect(("localhost", port))
        });
        let instance = Instance { dial: Some(dial), ..Instance::named(INSTANCE, "bastion") };
        let on_thread: Arc<dyn Fn() -> io::Result<()> + Send + Sync> =
            Arc::new(move || netns::enter_here(&laptop));
        Simulator::start(ssm::Config { instances: vec![instance], on_thread: Some(on_thread), ..config })
    }

    /// Starts the agent, which has ended or was killed.
    pub fn start_agent(&mut self) -> Result<()> {
        self.agent = None;
        let mut command = self.vpc.command(bins::agent());
        command.arg("--state-dir").arg(self.dir.path().join("agent"));
        for argument in &self.agent_arguments {
            // The key file's path is not known before the world is.
            if argument == "@key" {
                command.arg(self.key_file())
            } else {
                command.arg(argument)
            };
        }
        let mut agent = Process::start(&mut command)?;
        agent.wait_for("listening", DEADLINE).context("the agent did not begin to listen")?;
        self.agent = Some(agent);
        Ok(())
    }

    /// The key that both ends of a TCP lane share; `@key` among the agent's arguments.
    pub fn key_file(&self) -> PathBuf {
        self.dir.path().join("key")
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// The client on the laptop, with nothing of the machine's own AWS settings.
    pub fn client(&self, environment: &[(String, String)], arguments: &[&str]) -> Command {
        let mut command = self.laptop.command(bins::ssm_proxy());
        for (name, _) in std::env::vars() {
            if name.starts_with("AWS_")
                || name.to_ascii_lowercase().ends_with("_proxy")
                || name.starts_with("SUDO_")
            {
                command.env_remove(name);
            }
        }
        command
            .env("HOME", self.dir.path())
            .env("SSM_PROXY_RUN_DIR", self.run_dir())
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .args(arguments);
        command
    }

    /// Lays `text` over a file of /etc for the programs on the laptop, for as long as this world exists.
    pub fn etc(&self, file: &str, text: &str) -> Result<()> {
        fs::create_dir_all(self.etc_dir())?;
        Ok(fs::write(self.etc_dir().join(file), text)?)
    }

    /// Where `ip netns exec` looks for such files.
    fn etc_dir(&self) -> PathBuf {
        PathBuf::from("/etc/netns").join(self.laptop.name())
    }

    /// The files of sessions; none is left when none runs.
    pub fn run_files(&self) -> Result<Vec<String>> {
        let entries = match fs::read_dir(self.run_dir()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let names: io::Result<Vec<String>> = names.collect();
        // The lock that guards the directory itself stays.
        Ok(names?.into_iter().filter(|name| name != ".lock").collect())
    }

    /// Runs `up` until it says that the networks are captured.
    pub fn up(&self, environment: &[(String, String)], arguments: &[&str]) -> Result<Process> {
        let mut command = self.client(environment, &["up"]);
        for cidr in CIDRS {
            command.args(["--cidr", cidr]);
        }
        let mut client = Process::start(command.args(arguments))?;
        client.wait_for(UP, DEADLINE)?;
        Ok(client)
    }

    /// `status --json` of the session.
    pub fn status(&self) -> Result<serde_json::Value> {
        let output = self.client(&[], &["status", "--json"]).output()?;
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("status printed {}", String::from_utf8_lossy(&output.stderr)))?;
        Ok(answer["sessions"][0].clone())
    }

    /// Everything of the laptop that `up` could have changed.
    pub fn traces(&self) -> Result<String> {
        let mut traces = String::new();
        for command in
            ["rule show", "-6 rule show", "route show table all", "-6 route show table all", "-br link"]
        {
            traces += &self.laptop.ip(command)?;
        }
        Ok(traces)
    }
}

impl Drop for Vpc {
    fn drop(&mut self) {
        // Most worlds have none.
        let _ = fs::remove_dir_all(self.etc_dir());
    }
}

/// The line by which `up` says that it is done.
pub const UP: &str = "Routed";
/// For what takes a moment on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A child whose output is read by threads, so that a test can wait for a line of it; killed when dropped.
pub struct Process {
    child: Child,
    lines: mpsc::Receiver<String>,
    pub seen: Vec<String>,
}

impl Process {
    pub fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let (sender, lines) = mpsc::channel();
        let errors = BufReader::new(child.stderr.take().context("stderr is piped")?);
        let output = BufReader::new(child.stdout.take().context("stdout is piped")?);
        let other = sender.clone();
        thread::spawn(move || errors.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| other.send(line)));
        Ok(Self { child, lines, seen: Vec::new() })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line that holds `text` and gives it.
    pub fn wait_for(&mut self, text: &str, patience: Duration) -> Result<String> {
        let deadline = now() + patience;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(text) {
                        return Ok(line);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!("no line with {text:?} within {patience:?}; it printed:\n{}", self.seen.join("\n"))
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.wait(patience)?;
                    bail!("it ended with {status} before a line with {text:?}:\n{}", self.seen.join("\n"))
                }
            }
        }
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    /// Waits for its end; everything it printed is in `seen` then.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let deadline = now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(1)) {
                    self.seen.push(line);
                }
                return Ok(status);
            }
            ensure!(now() < deadline, "it did not end within {patience:?}:\n{}", self.seen.join("\n"));
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends a signal and waits for the end.
    pub fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        self.signal(signal)?;
        self.wait(DEADLINE)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
