//! The whole path with the real binaries in two network namespaces, and plain veth in the same run as the base.
//!
//!     cargo bench --bench end_to_end -- [--seconds N] [--rounds N] [--most-flows N] [--json] [--check] [PART]...
//!
//! Over a plain TCP lane:
//!
//! - `tcp`: TUN, engine, trunk, agent, target: throughput by iperf3 with 1, 8 and 64 flows.
//! - `udp`: datagrams a second each way, what is lost, round trips.
//! - `latency`: 1-byte round trips, idle and under load, and connects per second.
//! - `flows`: memory of idle flows, one busy flow beside them.
//! - `stalled`: readers that take nothing.
//!
//! Over lanes of the simulated service, faithful unless a row says otherwise:
//!
//! - `ssm`: 1 to 16 lanes, 0 to 80 ms one way: download, upload, CPU.
//! - `ssm-latency`: 1-byte round trips, idle and beside 1 to 8 bulk flows each way.
//! - `recovery`: how long a running transfer stands still after each kind of fault.
//! - `idle`: memory, CPU and wake-ups of an idle `up` over 60 s.
//!
//! Without any binary of ours:
//!
//! - `tun`: a TUN device with the netstack alone behind it, and with both engines and a lane of memory.
//!
//! All of them when none is named, each within three minutes. Figures with a target say whether they reach it; with
//! `--check` one that misses it by more than a fifth makes the run fail. The targets are for two cores with nothing else
//! to do: on a busy machine CPU seconds per gigabyte and ratios within the run still tell something. `tcp` and `latency`
//! also measure two bare relays in the place of client and agent: what is left to gain. Needs root and iperf3.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints its figures")]
#![allow(clippy::disallowed_methods, reason = "it measures")]

#[path = "../report/clock.rs"]
mod clock;
#[path = "../engines/mod.rs"]
mod engines;
mod flows;
mod held;
mod idle;
mod latency;
mod load;
mod process;
mod recovery;
mod relays;
#[path = "../report/row.rs"]
mod row;
mod ssm_latency;
mod ssm_throughput;
mod stalled;
mod throughput;
mod transfer;
mod tun;
mod udp;
mod world;

use anyhow::{Context as _, Result, ensure};
use netstack_tests::netns;
use row::Row;

/// What was asked for.
pub(crate) struct Options {
    pub(crate) seconds: u32,
    pub(crate) rounds: usize,
    pub(crate) most_flows: usize,
    json: bool,
    check: bool,
    parts: Vec<String>,
}

type Part = fn(&Options) -> Result<Vec<Row>>;

const PARTS: [(&str, Part); 10] = [
    ("tcp", throughput::rows),
    ("udp", udp::rows),
    ("latency", latency::rows),
    ("flows", flows::rows),
    ("stalled", stalled::rows),
    ("ssm", ssm_throughput::rows),
    ("ssm-latency", ssm_latency::rows),
    ("recovery", recovery::rows),
    ("idle", idle::rows),
    ("tun", tun::rows),
];

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some(held::FAR_ENDS) => return held::far_ends(),
        Some(relays::RELAY) => return relays::relay(std::env::args().skip(2)),
        Some(_) | None => {}
    }
    let options = options()?;
    if let Some(reason) = netns::why_not().or_else(|| netns::missing(&["iperf3"])) {
        eprintln!("SKIPPED: end_to_end: {reason}");
        return Ok(());
    }
    let mut rows = Vec::new();
    for (name, part) in PARTS {
        if options.parts.is_empty() || options.parts.iter().any(|wanted| wanted == name) {
            let more = part(&options).with_context(|| format!("measuring {name}"))?;
            if !options.json {
                more.iter().for_each(|row| println!("{row}"));
            }
            rows.extend(more);
        }
    }
    if options.json {
        println!("{}", row::json(&rows));
    }
    match row::missed(&rows).filter(|_| options.check) {
        Some(missed) => anyhow::bail!(missed),
        None => Ok(()),
    }
}

fn options() -> Result<Options> {
    let mut options =
        Options { seconds: 3, rounds: 3, most_flows: 20_000, json: false, check: false, parts: Vec::new() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().with_context(|| format!("{argument} needs a number"));
        match argument.as_str() {
            "--seconds" => options.seconds = number()?.parse()?,
            "--rounds" => options.rounds = number()?.parse()?,
            "--most-flows" => options.most_flows = number()?.parse()?,
            "--json" => options.json = true,
            "--check" => options.check = true,
            // What cargo bench passes on.
            "--bench" => {}
            part if PARTS.iter().any(|(name, _)| *name == part) => options.parts.push(part.to_owned()),
            other => anyhow::bail!("unknown argument {other}: see the head of benches/end_to_end/main.rs"),
        }
    }
    ensure!(options.rounds > 0 && options.seconds > 0, "--rounds and --seconds must be at least 1");
    Ok(options)
}
