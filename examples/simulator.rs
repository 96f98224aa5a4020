//! Runs the SSM simulator and prints the environment variables that point a client at it.
//!
//! ```text
//! cargo run --example simulator -- --target-port 742=127.0.0.1:9000
//! ```
//!
//! The variables go to stdout as `export` lines, everything else to stderr. Ctrl-C ends it; the exit
//! code is 1 when a client broke the protocol.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example prints")]

use std::collections::HashMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use netstack_tests::ssm::{Config, Count, Document, Instance, Knobs, Refusal, Simulator, dial};
use tokio::signal::unix::{SignalKind, signal};

/// A simulated AWS Systems Manager: API, message gateway and SSM agent
#[derive(Parser)]
struct Arguments {
    /// Where to listen, port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The host that clients are told, when it is not the one listened on
    #[arg(long, value_name = "HOST")]
    advertise: Option<String>,
    /// Where a port of the instance leads; may be repeated. Without any, ports lead to localhost
    #[arg(long, value_name = "PORT=ADDRESS:PORT", value_parser = target_port)]
    target_port: Vec<(u16, SocketAddr)>,
    /// Serve HTTPS and WSS with a certificate authority of its own
    #[arg(long)]
    tls: bool,
    #[arg(long, default_value = "eu-central-1")]
    region: String,
    /// An instance and its Name tag; may be repeated
    #[arg(long, value_name = "ID[=NAME]", value_parser = instance)]
    instance: Vec<Instance>,
    /// A session document that pins one port, beside AWS-StartSSHSession; may be repeated
    #[arg(long, value_name = "NAME=PORT", value_parser = document)]
    document: Vec<Document>,
    /// Start from knobs without delay, pacing or chance
    #[arg(long)]
    fast: bool,
    /// The SSM agent does not sleep after its messages
    #[arg(long)]
    unpaced: bool,
    /// One way from client to SSM agent, in milliseconds
    #[arg(long, value_name = "MS")]
    delay: Option<u64>,
    /// The most that is added to the delay of a hop, in milliseconds
    #[arg(long, value_name = "MS")]
    jitter: Option<u64>,
    /// Bytes a second each way on the client's hop
    #[arg(long, value_name = "BYTES")]
    bandwidth: Option<u64>,
    /// The chance that a message is lost, each way
    #[arg(long, value_name = "0..1", value_parser = chance)]
    loss: Option<f64>,
    /// The chance that a message is doubled, each way
    #[arg(long, value_name = "0..1", value_parser = chance)]
    duplicate: Option<f64>,
    /// The chance that a message is overtaken, each way
    #[arg(long, value_name = "0..1", value_parser = chance)]
    reorder: Option<f64>,
    /// Close the client's websocket after so many seconds
    #[arg(long, value_name = "SECONDS")]
    client_recycle: Option<f64>,
    /// Close the SSM agent's websocket after so many seconds
    #[arg(long, value_name = "SECONDS")]
    agent_recycle: Option<f64>,
    /// The chance that a message is written twice after a cut of the SSM agent's websocket
    #[arg(long, value_name = "0..1", value_parser = chance)]
    repeat_after_agent_cut: Option<f64>,
    /// Close the websocket with 1009 on longer messages
    #[arg(long, value_name = "BYTES")]
    max_message: Option<usize>,
    /// End sessions without client input for so many seconds
    #[arg(long, value_name = "SECONDS")]
    idle_timeout: Option<f64>,
    /// End sessions after so many seconds
    #[arg(long, value_name = "SECONDS")]
    max_duration: Option<f64>,
    /// Allow so many StartSession calls a second
    #[arg(long, value_name = "NUMBER")]
    starts_per_second: Option<u32>,
    /// What a client sees of a refused port
    #[arg(long, value_enum, default_value = "vanish")]
    refusal: RefusalChoice,
    /// Do not answer websocket pings
    #[arg(long)]
    suppress_pongs: bool,
    /// Record violations but let sessions go on
    #[arg(long)]
    lenient: bool,
    /// Take websocket upgrades without a signature
    #[arg(long)]
    unsigned_upgrades: bool,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum RefusalChoice {
    /// Silence, as measured
    Vanish,
    /// channel_closed with the reason
    Explain,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True when no client broke the protocol.
fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let simulator = Simulator::start(config(arguments)?)?;
    for (name, value) in simulator.env() {
        println!("export {name}='{value}'");
    }
    std::io::stdout().flush().context("print the variables")?;
    eprintln!("The simulated SSM listens on {}; end it with Ctrl-C.", simulator.endpoint());
    wait_for_the_end(&simulator)?;
    let (up, down) = (simulator.count(Count::TargetBytesUp), simulator.count(Count::TargetBytesDown));
    eprintln!("{} sessions, {up} bytes to targets, {down} bytes from them", simulator.sessions().len());
    Ok(simulator.violations().is_empty())
}

/// Tells of violations as they come, until a signal to end.
fn wait_for_the_end(simulator: &Simulator) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let mut told = 0;
        loop {
            for violation in simulator.violations().iter().skip(told) {
                told += 1;
                eprintln!("violation: {violation}");
            }
            tokio::select! {
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
            }
        }
    })
}

fn config(arguments: &Arguments) -> anyhow::Result<Config> {
    let mut address_by_port = HashMap::new();
    for (port, address) in &arguments.target_port {
        anyhow::ensure!(
            address_by_port.insert(*port, *address).is_none(),
            "--target-port names {port} twice"
        );
    }
    let mut config = Config {
        listen: arguments.listen,
        advertise: arguments.advertise.clone(),
        tls: arguments.tls,
        region: arguments.region.clone(),
        knobs: knobs(arguments)?,
        seed: arguments.seed,
        lenient: arguments.lenient,
        unsigned_upgrades: arguments.unsigned_upgrades,
        ..Config::default()
    };
    if !address_by_port.is_empty() {
        config.dial = dial::to_ports(address_by_port);
    }
    if !arguments.instance.is_empty() {
        config.instances.clone_from(&arguments.instance);
    }
    config.documents.extend_from_slice(&arguments.document);
    Ok(config)
}

fn knobs(arguments: &Arguments) -> anyhow::Result<Knobs> {
    let mut knobs = if arguments.fast { Knobs::fast() } else { Knobs::default() };
    if arguments.unpaced {
        knobs.agent.pause = Duration::ZERO;
    }
    if let Some(delay) = arguments.delay {
        knobs.hop_delay = Duration::from_millis(delay) / 2;
    }
    if let Some(jitter) = arguments.jitter {
        knobs.jitter = Duration::from_millis(jitter);
    }
    for mix in [&mut knobs.up, &mut knobs.down] {
        mix.loss = arguments.loss.unwrap_or(mix.loss);
        mix.duplicate = arguments.duplicate.unwrap_or(mix.duplicate);
        mix.reorder = arguments.reorder.unwrap_or(mix.reorder);
        mix.reorder_distance = 8;
    }
    knobs.bandwidth = arguments.bandwidth;
    knobs.client_recycle = seconds("--client-recycle", arguments.client_recycle)?.or(knobs.client_recycle);
    knobs.agent_recycle = seconds("--agent-recycle", arguments.agent_recycle)?.or(knobs.agent_recycle);
    knobs.idle_timeout = seconds("--idle-timeout", arguments.idle_timeout)?.or(knobs.idle_timeout);
    knobs.max_duration = seconds("--max-duration", arguments.max_duration)?;
    knobs.repeat_after_agent_cut = arguments.repeat_after_agent_cut.unwrap_or(knobs.repeat_after_agent_cut);
    knobs.max_message = arguments.max_message.unwrap_or(knobs.max_message);
    knobs.starts_per_second = arguments.starts_per_second;
    knobs.suppress_pongs = arguments.suppress_pongs;
    knobs.agent.refusal = match arguments.refusal {
        RefusalChoice::Vanish => Refusal::Vanish,
        RefusalChoice::Explain => Refusal::Explain,
    };
    Ok(knobs)
}

fn seconds(flag: &str, value: Option<f64>) -> anyhow::Result<Option<Duration>> {
    let duration = |value| {
        Duration::try_from_secs_f64(value).with_context(|| format!("{flag} {value} is no number of seconds"))
    };
    value.map(duration).transpose()
}

fn target_port(text: &str) -> Result<(u16, SocketAddr), String> {
    let (port, address) =
        text.split_once('=').ok_or("write PORT=ADDRESS:PORT, for example 742=127.0.0.1:9000")?;
    let port = port.parse().map_err(|_| format!("{port:?} is no port"))?;
    let address =
        address.parse().map_err(|_| format!("{address:?} is no ADDRESS:PORT with a numeric address"))?;
    Ok((port, address))
}

fn instance(text: &str) -> Result<Instance, String> {
    let (id, name) = text.split_once('=').unwrap_or((text, "simulated"));
    if !id.starts_with("i-") && !id.starts_with("mi-") {
        return Err(format!("{id:?} is no instance id: it begins with i- or mi-"));
    }
    Ok(Instance::named(id, name))
}

fn document(text: &str) -> Result<Document, String> {
    let (name, port) = text.split_once('=').ok_or("write NAME=PORT, for example Company-Proxy=742")?;
    let port = port.parse().map_err(|_| format!("{port:?} is no port"))?;
    Ok(Document::pinned(name, port))
}

fn chance(text: &str) -> Result<f64, String> {
    let chance = text.parse().ok().filter(|chance| (0.0..=1.0).contains(chance));
    chance.ok_or_else(|| format!("{text:?} is no chance from 0 to 1"))
}
