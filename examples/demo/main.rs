//! The demo: a simulated AWS on this machine, and the real `ssm-proxy` and agent working over it.
//!
//! ```text
//! cargo run --release --example demo
//! ```
//!
//! It makes a "laptop" and a "VPC" out of network namespaces. In the VPC are the agent and the targets; between
//! the two there is nothing but the simulated SSM service. In a terminal it ends with a shell on the laptop.
//!
//! In the order of a run: `privileges`, `world` (made of `netns`, `servers`, `child`), `tour`, `shell`;
//! `signals` may end it at any moment, `show` prints.

mod child;
mod netns;
mod privileges;
mod servers;
mod shell;
mod show;
mod signals;
mod tour;
mod world;

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use netstack_tests::bins::{self, Bins};
use ssm_proxy::cli::print::{ColorWhen, Printer};
use ssm_proxy::error::{Exit, UserError};

use signals::Signals;
use world::World;

/// Shows ssm-proxy at work on this machine alone: a simulated SSM service, the real client, agent and TUN device
#[derive(Parser)]
#[command(name = "demo")]
struct Arguments {
    /// Use the ssm-proxy and ssm-proxy-agent in this directory instead of building them
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
    /// End after the tour, also in a terminal
    #[arg(long)]
    no_shell: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(exit) => exit.into(),
        Err(error) => printer().failure(&error).into(),
    }
}

fn run(arguments: &Arguments) -> Result<Exit> {
    show::title("ssm-proxy demo: a laptop, a VPC and a simulated AWS; nothing leaves this machine");
    needs_programs()?;
    let bins = binaries(arguments)?;
    // No thread may run before this: a process with several cannot change its user namespace.
    show::ok(&privileges::obtain(&bins)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(demo(bins, !arguments.no_shell && on_terminal()))
}

/// Whatever happens on the way, the world is taken down in the end.
async fn demo(bins: Bins, with_shell: bool) -> Result<Exit> {
    let mut signals = Signals::new()?;
    let mut world = World::new(bins)?;
    let toured = tokio::select! {
        toured = tour::run(&mut world) => Some(toured),
        () = signals.any() => None,
    };
    let outcome = match toured {
        Some(Ok(())) if with_shell => shell::run(&world, &mut signals).await,
        Some(Ok(())) => Ok(Exit::Ok),
        Some(Err(error)) => Err(error),
        None => Ok(Exit::Interrupted),
    };
    match world.end().await {
        Ok(text) => show::ok(&text),
        // The first error is the cause, this one a consequence.
        Err(error) if outcome.is_err() => printer().warn(&format!("{error:#}")),
        Err(error) => return Err(error),
    }
    outcome
}

fn binaries(arguments: &Arguments) -> Result<Bins> {
    if let Some(dir) = &arguments.binaries {
        let dir = dir.canonicalize().with_context(|| format!("--binaries {}", dir.display()))?;
        return Ok(Bins { client: dir.join("ssm-proxy"), agent: dir.join("ssm-proxy-agent") });
    }
    show::doing("building ssm-proxy and ssm-proxy-agent; the first time takes minutes");
    let bins = bins::build()?;
    show::ok("built ssm-proxy and ssm-proxy-agent");
    Ok(bins)
}

fn needs_programs() -> Result<()> {
    match netstack_tests::netns::missing(&["ip", "curl"]) {
        None => Ok(()),
        Some(missing) => Err(UserError::new(Exit::Failure, format!("the demo {missing}"))
            .hint("sudo apt-get install iproute2 curl")
            .into()),
    }
}

fn printer() -> Printer {
    Printer::new(ColorWhen::Auto, false, false)
}

fn on_terminal() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}
