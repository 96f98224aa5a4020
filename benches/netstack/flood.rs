//! SYNs of strangers who never go on.

use std::time::Instant;

use smoltcp::wire::TcpControl;
use ssm_proxy::netstack::{Config, Event, Stack};

use crate::app::{App, MTU};
use crate::clock::cpu;
use crate::report::Report;
use crate::resident;

pub(crate) fn rows(report: &mut Report) {
    let syns: Vec<Vec<u8>> = (0..SYNS).map(syn).collect();
    let mut grown = 0;
    let seconds = report.median(|| {
        let mut stack = Stack::new(Config { mtu: MTU, seed: 7, ..Config::default() }, Instant::now());
        let (before, began) = (resident(), cpu());
        for syn in &syns {
            stack.handle_packet(syn, Instant::now());
            while let Some(event) = stack.poll_event() {
                assert!(matches!(event, Event::Connect { .. }));
            }
            stack.poll_packet(Instant::now(), &mut |_| true);
        }
        let spent = cpu() - began;
        // Only the first round has all its pages to touch.
        grown = grown.max(resident().saturating_sub(before));
        assert!(stack.counters().flows_pending <= Config::default().max_pending);
        spent.as_secs_f64()
    });
    report.row("a SYN of a flood of 100,000", seconds * 1e9 / f64::from(SYNS), "ns");
    report.row("memory a flood of 100,000 SYNs takes", grown as f64 / 1e3, "kB");
}

/// Each from a port or an address of its own.
fn syn(number: u32) -> Vec<u8> {
    let mut app = App::new((1_024 + number % 60_000) as u16);
    app.source.set_ip([169, 254, 77, (1 + number / 60_000) as u8].into());
    app.segment(TcpControl::Syn, &[])
}

const SYNS: u32 = 100_000;
