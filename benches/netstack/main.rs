//! The netstack alone, and both engines around it without any device or target.
//!
//!     cargo bench --bench netstack -- [--json] [--rounds N] [--millis N]
//!
//! First packets made in memory, in real time, beside none, 1,000 and 10,000 idle flows. `up` is from the application:
//! the packet is handled, its bytes are read, and what the stack answers is taken. `down` is to the application: bytes
//! are written, their packets taken, and the application's ACKs handled. Then a flood of SYNs, and the memory of flows.
//!
//! Last, one flow through the client's engine, a lane, and the agent's engine: from an application of hand-made packets
//! to an end that takes or gives what it can. The lane is memory, all in one thread; or a TCP connection over the
//! loopback between two threads. A busy machine spoils Gbit/s by wall clock, not those and the seconds by CPU.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints its figures")]
#![allow(clippy::disallowed_methods, reason = "it measures")]

mod app;
mod device;
mod engines;
mod far;
mod flood;
mod memory_lane;
mod packets;
#[path = "../report/mod.rs"]
mod report;

use packets::Bench;
use report::Report;

fn main() {
    let mut report = Report::from_args();
    for idle in [0, 1_000, 10_000] {
        let mut bench = Bench::new(idle);
        bench.one_flow(&mut report);
        bench.set_up(&mut report);
    }
    flood::rows(&mut report);
    memory(&mut report);
    engines::rows(&mut report);
    report.end();
}

/// What 10,000 idle flows add to the process.
fn memory(report: &mut Report) {
    const FLOWS: u16 = 10_000;
    let before = resident();
    let bench = Bench::new(FLOWS);
    let grown = resident().saturating_sub(before);
    report.row("memory of an idle flow", grown as f64 / f64::from(FLOWS), "bytes");
    assert_eq!(bench.stack.counters().flows_now, usize::from(FLOWS) + 1);
}

pub(crate) fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}
