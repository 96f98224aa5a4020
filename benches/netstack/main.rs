//! The netstack alone, and both engines around it without any device or target.
//!
//!     cargo bench --bench netstack -- [--json] [--check] [--rounds N] [--millis N]
//!
//! First packets made in memory, in real time, of one flow beside none, 1,000 and 10,000 idle ones, and of 8 and 64 flows. `up` is from the application:
//! the packet is handled, its bytes are read, and what the stack answers is taken. `down` is to the application: bytes
//! are written, their packets taken, and the application's ACKs handled. Then a flood of SYNs, and the memory of flows.
//!
//! Last, 1, 8 and 64 flows through the client's engine, a lane, and the agent's engine: from applications of hand-made
//! packets to ends that take or give what they can. The lane is memory, all in one thread; or a TCP connection over the
//! loopback between two threads. A busy machine spoils Gbit/s by wall clock, not those and the seconds by CPU.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints its figures")]
#![allow(clippy::disallowed_methods, reason = "it measures")]

mod app;
mod device;
#[path = "../engines/mod.rs"]
mod engines;
mod flood;
mod packets;
mod path;
#[path = "../report/mod.rs"]
mod report;

use packets::Bench;
use report::row::Row;
use report::{Report, clock};

fn main() {
    let mut report = Report::from_args();
    packets::rows(&mut report);
    flood::rows(&mut report);
    memory(&mut report);
    path::rows(&mut report);
    report.end();
}

/// What 10,000 idle flows add to the process.
fn memory(report: &mut Report) {
    const FLOWS: u16 = 10_000;
    let before = resident();
    let bench = Bench::new(1, FLOWS);
    let grown = resident().saturating_sub(before);
    let each = grown as f64 / f64::from(FLOWS);
    report.add(Row::new("memory of an idle flow", each, "bytes").at_most(1_500.0));
    assert_eq!(bench.stack.counters().flows_now, usize::from(FLOWS) + 1);
}

pub(crate) fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}
