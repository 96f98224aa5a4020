//! What the small benchmarks share: their arguments, their clock, and the table or JSON they print.
//!
//! The clock is the CPU time of the one thread that works, so that a busy machine does not spoil the figures.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

/// The rows of one run.
pub(crate) struct Report {
    json: bool,
    rounds: usize,
    round: Duration,
    rows: Vec<Value>,
}

impl Report {
    /// Reads `[--json] [--rounds N] [--millis N]`; ends the process with 2 on anything else.
    pub(crate) fn from_args() -> Self {
        let mut report = Self { json: false, rounds: 5, round: Duration::from_millis(300), rows: Vec::new() };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut number =
                || arguments.next().and_then(|value| value.parse::<u32>().ok()).filter(|n| *n > 0);
            let known = match argument.as_str() {
                "--json" => {
                    report.json = true;
                    true
                }
                "--rounds" => number().map(|count| report.rounds = count as usize).is_some(),
                "--millis" => {
                    number().map(|count| report.round = Duration::from_millis(count.into())).is_some()
                }
                // What cargo bench passes on.
                "--bench" => true,
                _ => false,
            };
            if !known {
                eprintln!("error: {argument}: the flags are --json, --rounds N and --millis N");
                std::process::exit(2);
            }
        }
        report
    }

    /// CPU seconds that one call of `work` takes: the median over the rounds, each as many calls as fit into its time.
    pub(crate) fn seconds_per_call(&self, mut work: impl FnMut()) -> f64 {
        work();
        self.median(|| {
            let (began, mut calls) = (cpu(), 0_u32);
            while cpu() - began < self.round {
                (0..BATCH).for_each(|_| work());
                calls += BATCH;
            }
            (cpu() - began).as_secs_f64() / f64::from(calls)
        })
    }

    /// The median of what `measure` gives in each round.
    pub(crate) fn median(&self, mut measure: impl FnMut() -> f64) -> f64 {
        let mut values: Vec<f64> = (0..self.rounds).map(|_| measure()).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    }

    /// How often each figure is measured.
    #[allow(dead_code, reason = "not every benchmark repeats by itself")]
    pub(crate) fn rounds(&self) -> usize {
        self.rounds
    }

    /// How long each time.
    #[allow(dead_code, reason = "not every benchmark repeats by itself")]
    pub(crate) fn round(&self) -> Duration {
        self.round
    }

    pub(crate) fn row(&mut self, what: impl Into<String>, value: f64, unit: &str) {
        let what = what.into();
        if !self.json {
            println!("{what:<52} {value:>12.3} {unit}");
        }
        self.rows.push(json!({ "what": what, "value": value, "unit": unit }));
    }

    /// Prints what is left to print.
    pub(crate) fn end(self) {
        if self.json {
            println!("{}", json!({ "schema": 1, "rows": self.rows }));
        }
    }
}

/// CPU time of this thread so far.
pub(crate) fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The clock is read once for so many calls.
const BATCH: u32 = 64;
