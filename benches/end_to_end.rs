//! The whole path with the real binaries in two network namespaces, and plain veth in the same run as the base.
//!
//!     cargo bench --bench end_to_end -- [--seconds N] [--rounds N] [--json] [tcp] [ssm] [idle]
//!
//! `tcp`: TUN, engine, trunk over a plain TCP lane, agent, target: throughput by iperf3, 1-byte round trips, connects
//! per second. `ssm`: one lane of the simulated service at its faithful defaults, download and upload. `idle`: memory,
//! CPU and wake-ups of an idle `up` over 60 s. Needs root and iperf3.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints its figures")]
#![allow(clippy::disallowed_methods, reason = "it measures")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use netstack_tests::netns;
use netstack_tests::ssm;
use netstack_tests::vpc::{self, Process, Vpc};
use serde_json::{Value, json};

struct Options {
    seconds: u32,
    rounds: usize,
    json: bool,
    parts: Vec<String>,
}

fn main() -> Result<()> {
    let options = options()?;
    if let Some(reason) = netns::why_not().or_else(|| netns::missing(&["iperf3"])) {
        eprintln!("SKIPPED: end_to_end: {reason}");
        return Ok(());
    }
    let wanted = |part: &str| options.parts.is_empty() || options.parts.iter().any(|wanted| wanted == part);
    let mut rows = Vec::new();
    if wanted("tcp") {
        rows.extend(tcp(&options)?);
    }
    if wanted("ssm") {
        rows.extend(ssm_lane(&options)?);
    }
    if wanted("idle") {
        rows.extend(idle()?);
    }
    if options.json {
        println!("{}", json!({ "schema": 1, "rows": rows }));
    } else {
        for row in &rows {
            println!("{}", line(row));
        }
    }
    Ok(())
}

fn options() -> Result<Options> {
    let mut options = Options { seconds: 5, rounds: 3, json: false, parts: Vec::new() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--seconds" => options.seconds = arguments.next().context("--seconds needs a number")?.parse()?,
            "--rounds" => options.rounds = arguments.next().context("--rounds needs a number")?.parse()?,
            "--json" => options.json = true,
            // What cargo bench passes on.
            "--bench" => {}
            part @ ("tcp" | "ssm" | "idle") => options.parts.push(part.to_owned()),
            other => anyhow::bail!("unknown argument {other}: see the head of benches/end_to_end.rs"),
        }
    }
    ensure!(options.rounds > 0 && options.seconds > 0, "--rounds and --seconds must be at least 1");
    Ok(options)
}

fn line(row: &Value) -> String {
    let text = |key: &str| row[key].as_str().unwrap_or("").to_owned();
    let number =
        |key: &str| row[key].as_f64().map(|value| format!("{value:>10.3}")).unwrap_or_else(|| " ".repeat(10));
    format!(
        "{:<34} {} {:<10} base {} ratio {}",
        text("what"),
        number("value"),
        text("unit"),
        number("base"),
        number("ratio")
    )
}

fn row(what: &str, unit: &str, value: f64, base: Option<f64>) -> Value {
    json!({ "what": what, "unit": unit, "value": value, "base": base, "ratio": base.map(|base| value / base) })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn tcp(options: &Options) -> Result<Vec<Value>> {
    let world =
        Vpc::new(&["--listen", &format!("{}:{}", vpc::LINK, vpc::TCP_LANE_PORT), "--key-file", "@key"])?;
    let via = format!("tcp://{}:{}", vpc::LINK, vpc::TCP_LANE_PORT);
    let key = world.key_file();
    let client = world.up(&[], &["--via", &via, "--key-file", key.to_str().context("a path of text")?])?;
    let _server = Server::start(&world)?;
    let mut rows = Vec::new();
    for (name, extra) in [
        ("1 flow up", &[][..]),
        ("1 flow down", &["-R"][..]),
        ("8 flows up", &["-P", "8"]),
        ("8 flows down", &["-R", "-P", "8"]),
    ] {
        let mut tunnel = Vec::new();
        let mut veth = Vec::new();
        let cpu = Cpu::of(&client, &world);
        for _ in 0..options.rounds {
            veth.push(iperf(&world, vpc::LINK, options.seconds, extra)?);
            tunnel.push(iperf(&world, vpc::TARGET, options.seconds, extra)?);
        }
        let gigabytes: f64 = tunnel.iter().map(|gbit| gbit / 8.0 * f64::from(options.seconds)).sum();
        let spent = cpu.spent();
        rows.push(row(name, "Gbit/s", median(tunnel), Some(median(veth))));
        rows.push(row(&format!("{name}, client CPU"), "s/GB", spent.0 / gigabytes, None));
        rows.push(row(&format!("{name}, agent CPU"), "s/GB", spent.1 / gigabytes, None));
    }
    let echo = echo_server(&world)?;
    let (mut tunnel, mut veth) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        veth.extend(round_trips(&world, SocketAddr::new(vpc::LINK.parse()?, echo.port()))?);
        tunnel.extend(round_trips(&world, SocketAddr::new(vpc::TARGET.parse()?, echo.port()))?);
    }
    for (name, at) in [("p50", 0.5), ("p99", 0.99)] {
        let (through, direct) = (quantile(&mut tunnel, at), quantile(&mut veth, at));
        rows.push(row(&format!("1-byte round trip {name}"), "us", through, Some(direct)));
        rows.push(row(&format!("1-byte round trip {name}, added"), "us", through - direct, None));
    }
    let accepted = acceptors(&world)?;
    let direct = connects(&world, SocketAddr::new(vpc::LINK.parse()?, accepted.port()))?;
    let through = connects(&world, SocketAddr::new(vpc::TARGET.parse()?, accepted.port()))?;
    rows.push(row("connects, 50 at a time", "1/s", through, Some(direct)));
    Ok(rows)
}

fn ssm_lane(options: &Options) -> Result<Vec<Value>> {
    let world = Vpc::new(&[])?;
    let simulator = world.simulator(ssm::Config::default())?;
    let client = world.up(&simulator.env(), &["--instance", vpc::INSTANCE])?;
    let _server = Server::start(&world)?;
    let seconds = options.seconds.max(10);
    let down = iperf(&world, vpc::TARGET, seconds, &["-R"])? * 125.0;
    let up = iperf(&world, vpc::TARGET, seconds, &[])? * 125.0;
    let ceiling = pace();
    drop(client);
    Ok(vec![
        row("one SSM lane, download", "MB/s", down, Some(ceiling)),
        row("one SSM lane, upload", "MB/s", up, None),
    ])
}

/// What the simulated SSM agent's pump gives at most: 1,024 bytes for each message and pause.
fn pace() -> f64 {
    let agent = ssm::Config::default().knobs.agent;
    agent.read_size as f64 / agent.pause.as_secs_f64() / 1e6
}

fn idle() -> Result<Vec<Value>> {
    let world = Vpc::new(&[])?;
    let simulator = world.simulator(ssm::Config::default())?;
    let client = world.up(&simulator.env(), &["--instance", vpc::INSTANCE])?;
    std::thread::sleep(Duration::from_secs(5));
    let cpu = Cpu::of(&client, &world);
    let before = wakeups(client.id())?;
    std::thread::sleep(Duration::from_secs(60));
    let woken = wakeups(client.id())? - before;
    let spent = cpu.spent();
    Ok(vec![
        row("idle up, resident", "MB", resident(client.id())? / 1e6, None),
        row("idle up, CPU", "% of a core", spent.0 / 60.0 * 100.0, None),
        row("idle up, wake-ups", "1/s", woken / 60.0, None),
        row(
            "idle agent, resident",
            "MB",
            resident(world.agent.as_ref().context("the agent runs")?.id())? / 1e6,
            None,
        ),
    ])
}

struct Server(#[allow(dead_code)] Process);

impl Server {
    fn start(world: &Vpc) -> Result<Self> {
        let mut command = world.vpc.command("iperf3");
        let mut server = Process::start(command.args(["-s", "--forceflush"]))?;
        server.wait_for("Server listening", vpc::DEADLINE)?;
        Ok(Self(server))
    }
}

/// Gbit/s that arrived.
fn iperf(world: &Vpc, host: &str, seconds: u32, extra: &[&str]) -> Result<f64> {
    let mut said = Value::Null;
    for _ in 0..20 {
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

/// A listener with a long queue whose connections are taken and dropped by a few threads.
fn acceptors(world: &Vpc) -> Result<SocketAddr> {
    let listener = world.vpc.enter(|| -> Result<TcpListener> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::from(([0, 0, 0, 0], 0)).into())?;
        socket.listen(4096)?;
        Ok(socket.into())
    })?;
    let address = listener.local_addr()?;
    for _ in 0..2 {
        let listener = listener.try_clone()?;
        std::thread::spawn(move || listener.incoming().for_each(drop));
    }
    Ok(address)
}

fn echo_server(world: &Vpc) -> Result<SocketAddr> {
    let listener = world.vpc.enter(|| TcpListener::bind("0.0.0.0:0"))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || echo(stream));
        }
    });
    Ok(address)
}

fn echo(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

/// Microseconds of each of 2,000 exchanges.
fn round_trips(world: &Vpc, target: SocketAddr) -> Result<Vec<f64>> {
    world.laptop.enter(|| {
        let mut stream = TcpStream::connect(target)?;
        stream.set_nodelay(true)?;
        let mut byte = [7];
        let mut times = Vec::new();
        for _ in 0..2_000 {
            let began = Instant::now();
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte)?;
            times.push(began.elapsed().as_secs_f64() * 1e6);
        }
        Ok(times)
    })
}

fn quantile(values: &mut [f64], at: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * at) as usize]
}

/// Connections made and closed per second by 50 threads in 3 s; all must succeed.
fn connects(world: &Vpc, target: SocketAddr) -> Result<f64> {
    let (made, failed, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let (began, laptop) = (Instant::now(), &world.laptop);
    std::thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| {
                laptop.enter(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let done = TcpStream::connect(target).and_then(|stream| {
                            // No TIME-WAIT, so that the ports do not run out.
                            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))
                        });
                        if done.is_ok() { &made } else { &failed }.fetch_add(1, Ordering::Relaxed);
                    }
                });
            });
        }
        std::thread::sleep(Duration::from_secs(3));
        stop.store(true, Ordering::Relaxed);
    });
    ensure!(failed.load(Ordering::Relaxed) == 0, "{failed:?} connects to {target} failed");
    Ok(made.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64())
}

/// CPU seconds of client and agent since `of`.
struct Cpu {
    client: u32,
    agent: Option<u32>,
    before: (f64, f64),
}

impl Cpu {
    fn of(client: &Process, world: &Vpc) -> Self {
        let agent = world.agent.as_ref().map(Process::id);
        Self { client: client.id(), agent, before: (cpu(client.id()), agent.map_or(0.0, cpu)) }
    }

    fn spent(&self) -> (f64, f64) {
        (cpu(self.client) - self.before.0, self.agent.map_or(0.0, cpu) - self.before.1)
    }
}

fn cpu(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

fn resident(pid: u32) -> Result<f64> {
    let pages = std::fs::read_to_string(format!("/proc/{pid}/statm"))?;
    Ok(pages.split_whitespace().nth(1).context("statm has a second field")?.parse::<f64>()? * 4096.0)
}

/// Times any thread of the process went to sleep by itself, so far.
fn wakeups(pid: u32) -> Result<f64> {
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
