//! What the small benchmarks share: their arguments, their clock, and the table or JSON they print.
//! [`row`] is every benchmark's.
//!
//! The clock is the CPU time of the one thread that works, so that a busy machine does not spoil the figures.

use std::time::Duration;

use clock::cpu;
use row::Row;

pub(crate) mod clock;
#[allow(dead_code, reason = "not every benchmark has targets of every kind")]
pub(crate) mod row;

/// The rows of one run.
pub(crate) struct Report {
    json: bool,
    check: bool,
    rounds: usize,
    round: Duration,
    rows: Vec<Row>,
}

impl Report {
    /// Reads `[--json] [--check] [--rounds N] [--millis N]`; ends the process with 2 on anything else.
    pub(crate) fn from_args() -> Self {
        let round = Duration::from_millis(200);
        let mut report = Self { json: false, check: false, rounds: 5, round, rows: Vec::new() };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut number =
                || arguments.next().and_then(|value| value.parse::<u32>().ok()).filter(|n| *n > 0);
            let known = match argument.as_str() {
                "--json" => {
                    report.json = true;
                    true
                }
                "--check" => {
                    report.check = true;
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
                eprintln!("error: {argument}: the flags are --json, --check, --rounds N and --millis N");
                std::process::exit(2);
            }
        }
        report
    }

    /// CPU seconds that one call of `work` takes: the median over the rounds, each as many calls as fit into its time.
    pub(crate) fn seconds_per_call(&self, mut work: impl FnMut()) -> f64 {
        work();
        self.median(|| self.one_round(&mut work))
    }

    /// The same of two that take turns, so that a machine that changes its pace tells against neither.
    #[allow(dead_code, reason = "not every benchmark compares")]
    pub(crate) fn seconds_per_call_of_both(&self, mut works: [impl FnMut(); 2]) -> [f64; 2] {
        works.iter_mut().for_each(|work| work());
        let rounds: Vec<[f64; 2]> =
            (0..self.rounds).map(|_| works.each_mut().map(|work| self.one_round(work))).collect();
        [0, 1].map(|at| row::median(rounds.iter().map(|round| round[at]).collect()))
    }

    fn one_round(&self, mut work: impl FnMut()) -> f64 {
        let (began, mut calls) = (cpu(), 0_u32);
        while cpu() - began < self.round {
            (0..BATCH).for_each(|_| work());
            calls += BATCH;
        }
        (cpu() - began).as_secs_f64() / f64::from(calls)
    }

    /// The median of what `measure` gives in each round.
    pub(crate) fn median(&self, mut measure: impl FnMut() -> f64) -> f64 {
        row::median((0..self.rounds).map(|_| measure()).collect())
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

    /// A figure without a target.
    pub(crate) fn row(&mut self, what: impl Into<String>, value: f64, unit: &'static str) {
        self.add(Row::new(what, value, unit));
    }

    pub(crate) fn add(&mut self, row: Row) {
        if !self.json {
            println!("{row}");
        }
        self.rows.push(row);
    }

    /// Prints what is left to print; ends the process with 1 when a check was asked for and fails.
    pub(crate) fn end(self) {
        if self.json {
            println!("{}", row::json(&self.rows));
        }
        if let Some(missed) = row::missed(&self.rows).filter(|_| self.check) {
            eprintln!("error: {missed}");
            std::process::exit(1);
        }
    }
}

/// The clock is read once for so many calls.
const BATCH: u32 = 64;
