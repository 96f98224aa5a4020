//! A long run of mixed real programs over four lanes, with a random fault every few seconds: no program meets an
//! error, no byte is wrong, and neither end's memory grows.
//!
//! `SOAK_SECONDS` says how long (180 without it), `SOAK_SEED` repeats the faults of an earlier run. Thirty minutes:
//!
//! ```text
//! SOAK_SECONDS=1800 cargo test -p netstack-tests --test soak -- --nocapture
//! ```

#![expect(clippy::print_stderr, reason = "a long run tells how far it is")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netstack_tests::netns::{self, Netns};
use netstack_tests::patience::now;
use netstack_tests::servers::{self, noise};
use netstack_tests::ssm::{self, Count, Fault, Rng, Simulator};
use netstack_tests::vpc::{INSTANCE, Process, TARGET, Vpc};
use rustix::process::Signal;
use sha2::{Digest as _, Sha256};

/// What a program may use of its time before it counts as hung.
const PATIENCE: &str = "120";
/// Between two faults, at least and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1000), Duration::from_millis(3000));
/// What either end may use more than at its height while the first of each fault passed.
const GROWTH: u64 = 16 << 20;
/// A line that takes longer is told of.
const SLOW: Duration = Duration::from_secs(2);
const BLOB: usize = 3 << 20;

/// Unpaced, with the repeated message that a cut of the SSM agent leaves behind.
fn calm() -> ssm::Knobs {
    ssm::Knobs { repeat_after_agent_cut: 1.0, ..ssm::Knobs::fast() }
}

struct World {
    client: Process,
    simulator: Simulator,
    vpc: Vpc,
}

impl World {
    fn new(seed: u64) -> Result<Self> {
        let vpc = Vpc::new(&[])?;
        let config = ssm::Config { knobs: calm(), seed, ..ssm::Config::fast() };
        let simulator = vpc.simulator(config)?;
        let client = vpc.up(&simulator.env(), &["--instance", INSTANCE, "--lanes", "4"])?;
        Ok(Self { client, simulator, vpc })
    }

    fn finish(mut self) -> Result<()> {
        let status = self.client.end(Signal::INT)?;
        ensure!(status.code() == Some(130), "it ended with {status}:\n{}", self.client.seen.join("\n"));
        self.simulator.assert_clean();
        let left = self.simulator.active_sessions();
        ensure!(left.is_empty(), "sessions were left: {left:?}");
        Ok(())
    }
}

/// Where programs run, for all threads.
#[derive(Clone, Copy)]
struct Laptop<'a> {
    namespace: &'a Netns,
    dir: &'a Path,
    /// Options for ssh and scp alike.
    ssh: &'a [String],
}

impl Laptop<'_> {
    /// A program that is killed when it hangs.
    fn program(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = self.namespace.command("timeout");
        command.args([PATIENCE, name]).args(arguments).stdin(Stdio::null());
        command
    }
}

/// Runs a program to its end, which must be a good one, and gives what it printed.
fn succeeds(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{command:?} ended with {}: {said}", output.status);
    Ok(output.stdout)
}

/// Does one thing again and again until it is time; how often it did is the result.
fn again_until(over: &AtomicBool, mut once: impl FnMut(u64) -> Result<()>) -> Result<u64> {
    let mut count = 0;
    while !over.load(Ordering::Relaxed) {
        once(count).with_context(|| format!("round {count}"))?;
        count += 1;
    }
    Ok(count)
}

fn pgbench(laptop: Laptop<'_>, over: &AtomicBool) -> Result<u64> {
    let at = ["-h", TARGET, "-U", "postgres"];
    succeeds(laptop.program("pgbench", &at).args(["-i", "-q", "-s", "1", "postgres"]))?;
    let rounds = again_until(over, |_| {
        let told = succeeds(laptop.program("pgbench", &at).args(["-n", "-c", "4", "-T", "5", "postgres"]))?;
        let told = String::from_utf8_lossy(&told);
        ensure!(told.contains("number of failed transactions: 0 "), "{told}");
        Ok(())
    })?;
    let sql =
        "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)";
    let same = succeeds(laptop.program("psql", &at).args(["-At", "-c", sql]))?;
    ensure!(same == b"t\n", "accounts and history differ: {}", String::from_utf8_lossy(&same));
    Ok(rounds)
}

fn redis(laptop: Laptop<'_>, over: &AtomicBool) -> Result<u64> {
    again_until(over, |_| {
        let arguments =
            ["-h", TARGET, "-c", "5", "-n", "1000", "-d", "500", "-q", "-t", "set,get,lrange_100"];
        let told = succeeds(&mut laptop.program("redis-benchmark", &arguments))?;
        let told = String::from_utf8_lossy(&told);
        ensure!(!told.contains("rror") && told.contains("LRANGE_100"), "{told}");
        Ok(())
    })
}

fn scp(laptop: Laptop<'_>, over: &AtomicBool) -> Result<u64> {
    let path = |name: &str| laptop.dir.join(name);
    let remote = format!("root@{TARGET}:{}", path("there").display());
    again_until(over, |round| {
        let original = noise(BLOB, round + 100);
        fs::write(path("original"), &original)?;
        let (local, back) = (path("original").display().to_string(), path("back").display().to_string());
        for (from, to) in [(&local, &remote), (&remote, &back)] {
            let mut scp = laptop.program("scp", &["-q", "-P", &servers::SSH_PORT.to_string()]);
            succeeds(scp.args(laptop.ssh).args([from, to]))?;
        }
        ensure!(fs::read(path("back"))? == original, "scp brought back other bytes");
        Ok(())
    })
}

fn curl(laptop: Laptop<'_>, over: &AtomicBool) -> Result<u64> {
    let url = format!("http://{TARGET}:{}/blob", servers::HTTP_PORT);
    let expected = Sha256::digest(noise(BLOB, 3));
    again_until(over, |_| {
        let body = succeeds(&mut laptop.program("curl", &["-sSf", "--noproxy", "*", &url]))?;
        ensure!(Sha256::digest(&body) == expected, "curl got other bytes, {} of them", body.len());
        thread::sleep(Duration::from_millis(100));
        Ok(())
    })
}

/// A shell's connection: what is typed comes back.
struct Terminal {
    child: Child,
    typed: ChildStdin,
    shown: BufReader<ChildStdout>,
}

impl Terminal {
    fn open(laptop: Laptop<'_>) -> Result<Self> {
        let mut command = laptop.namespace.command("ssh");
        let at = format!("root@{TARGET}");
        command.args(laptop.ssh).args(["-q", "-p", &servers::SSH_PORT.to_string(), &at, "cat"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let typed = child.stdin.take().context("stdin is piped")?;
        let shown = BufReader::new(child.stdout.take().context("stdout is piped")?);
        Ok(Self { child, typed, shown })
    }

    /// How long a line took there and back.
    fn line(&mut self, text: &str) -> Result<Duration> {
        let began = now();
        writeln!(self.typed, "{text}")?;
        let mut line = String::new();
        self.shown.read_line(&mut line)?;
        ensure!(line.trim_end() == text, "ssh showed {line:?} for {text:?}");
        Ok(began.elapsed())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Types a line four times a second; gives each line's time.
fn typist(laptop: Laptop<'_>, over: &AtomicBool) -> Result<Vec<Duration>> {
    let mut terminal = Terminal::open(laptop)?;
    let mut times = Vec::new();
    again_until(over, |round| {
        let took = terminal.line(&format!("line {round}"))?;
        if took > SLOW {
            eprintln!("        a typed line took {took:?}");
        }
        times.push(took);
        thread::sleep(Duration::from_millis(250));
        Ok(())
    })?;
    times.sort_unstable();
    Ok(times)
}

/// Nothing is typed from the first line to the last.
fn idler(laptop: Laptop<'_>, over: &AtomicBool) -> Result<()> {
    let mut terminal = Terminal::open(laptop)?;
    terminal.line("before")?;
    while !over.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(100));
    }
    terminal.line("after").map(drop)
}

/// Memory of the client and of the agent, in bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Memory {
    client: u64,
    agent: u64,
}

impl Memory {
    fn of(client: u64, agent: u64) -> Result<Self> {
        Ok(Self { client: anonymous(client)?, agent: anonymous(agent)? })
    }

    fn max(self, other: Self) -> Self {
        Self { client: self.client.max(other.client), agent: self.agent.max(other.agent) }
    }
}

/// What a process holds that is no file's.
fn anonymous(pid: u64) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024)
}

/// What a storm left behind.
#[derive(Default)]
struct Storm {
    /// How often each fault was one, in the order of [`Fault::ALL`].
    faults: [u32; Fault::ALL.len()],
    /// The heights of memory while the first round of all faults passed, and after it.
    warm: Memory,
    height: Memory,
}

/// Strikes until `length` has passed.
fn storm(world: &World, length: Duration, rng: &mut Rng, over: &AtomicBool) -> Result<Storm> {
    let client = world.vpc.status()?["pid"].as_u64().context("status tells the pid")?;
    let agent = u64::from(world.vpc.agent.as_ref().context("the agent runs")?.id());
    let (began, mut deck, mut struck) = (now(), Vec::new(), 0);
    let mut storm = Storm::default();
    while began.elapsed() < length && !over.load(Ordering::Relaxed) {
        if deck.is_empty() {
            deck = Fault::ALL.to_vec();
        }
        let fault = deck.swap_remove(rng.between(0, deck.len() as u64 - 1) as usize);
        let was_one = fault.strike(&world.simulator, rng);
        storm.faults[fault as usize] += u32::from(was_one);
        thread::sleep(rng.duration(PAUSE.0, PAUSE.1));
        struck += 1;
        let memory = Memory::of(client, agent)?;
        let heights = if struck <= Fault::ALL.len() { &mut storm.warm } else { &mut storm.height };
        *heights = heights.max(memory);
        let nothing = if was_one { "" } else { " met nothing" };
        eprintln!("{:>5} s  {fault:?}{nothing}, {memory:?}", began.elapsed().as_secs());
    }
    Ok(storm)
}

fn seed() -> Result<u64> {
    if let Ok(text) = std::env::var("SOAK_SEED") {
        return text.parse().context("SOAK_SEED");
    }
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no random seed: {error}"))?;
    Ok(u32::from_le_bytes(bytes).into())
}

/// Tells the others to stop when one of them meets an error.
fn telling<T>(over: &AtomicBool, name: &str, result: Result<T>) -> Result<T> {
    if let Err(error) = &result {
        eprintln!("{name} failed: {error:#}");
        over.store(true, Ordering::Relaxed);
    }
    result.with_context(|| name.to_owned())
}

#[test]
fn mixed_traffic_does_not_notice_a_storm_of_faults() -> Result<()> {
    let programs = "psql pgbench redis-server redis-benchmark ssh scp ssh-keygen setpriv curl nginx timeout";
    let programs: Vec<&str> = programs.split(' ').collect();
    let lacks = netns::why_not().or_else(|| netns::missing(&programs)).or_else(servers::missing_postgres);
    if let Some(reason) = lacks {
        netns::skipped(&reason);
        return Ok(());
    }
    let length =
        std::env::var("SOAK_SECONDS").map_or(Ok(180), |text| text.parse()).context("SOAK_SECONDS")?;
    let seed = seed()?;
    eprintln!("SOAK_SEED={seed}, {length} s");

    let world = World::new(seed)?;
    let _postgres = servers::postgres(&world.vpc)?;
    let _redis = servers::redis(&world.vpc)?;
    let _nginx = servers::nginx(&world.vpc, BLOB)?;
    let ssh = servers::ssh(&world.vpc)?;
    let (over, options) = (AtomicBool::new(false), ssh.options());
    let laptop = Laptop { namespace: &world.vpc.laptop, dir: world.vpc.dir.path(), ssh: &options };
    let over_ = &over;
    let (storm, times) = thread::scope(|scope| -> Result<_> {
        let counted: [(&str, _); 4] = [
            ("pgbench", scope.spawn(move || telling(over_, "pgbench", pgbench(laptop, over_)))),
            ("redis-benchmark", scope.spawn(move || telling(over_, "redis", redis(laptop, over_)))),
            ("scp there and back", scope.spawn(move || telling(over_, "scp", scp(laptop, over_)))),
            ("curl", scope.spawn(move || telling(over_, "curl", curl(laptop, over_)))),
        ];
        let typist = scope.spawn(move || telling(over_, "typed ssh", typist(laptop, over_)));
        let idler = scope.spawn(move || telling(over_, "idle ssh", idler(laptop, over_)));
        let storm = storm(&world, Duration::from_secs(length), &mut Rng::new(seed), &over);
        over.store(true, Ordering::Relaxed);
        for (name, program) in counted {
            eprintln!("{name}: {} rounds", program.join().expect("no panic")?);
        }
        idler.join().expect("no panic")?;
        let times = typist.join().expect("no panic")?;
        Ok((storm?, times))
    })?;
    let Storm { faults, warm, height } = storm;
    let middle = times.get(times.len() / 2).context("nothing was typed")?;
    eprintln!("typed lines: {}, median {middle:?}, slowest {:?}", times.len(), times.last());
    let count = |count| world.simulator.count(count);
    let (lost, twice) = (count(Count::LostInCut) + count(Count::LostByFault), count(Count::WrittenTwice));
    let sessions = world.simulator.sessions().len();
    eprintln!("{sessions} sessions, {lost} messages lost, {twice} written twice");
    ensure!(lost > 0, "no fault cost a message, so nothing was tried");
    let told = Fault::ALL.iter().zip(faults).map(|(fault, count)| format!("{fault:?} {count}"));
    let told = told.collect::<Vec<_>>().join(", ");
    eprintln!("SOAK_SEED={seed}: {told}");
    // By then each has had its turn twice.
    ensure!(length < 150 || !faults.contains(&0), "a fault never was one: {told}");
    eprintln!("memory in the first round {warm:?}, afterwards {height:?}");
    ensure!(height.client <= warm.client + GROWTH, "the client grew from {warm:?} to {height:?}");
    ensure!(height.agent <= warm.agent + GROWTH, "the agent grew from {warm:?} to {height:?}");
    world.finish()
}
