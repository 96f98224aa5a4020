//! Waiting, in real time, for what other processes and threads do.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::vpc::DEADLINE;

/// The time, for tests of real processes.
#[expect(clippy::disallowed_methods, reason = "real processes live in real time")]
pub fn now() -> Instant {
    Instant::now()
}

/// Waits until it is so; panics with `what` is awaited when that takes too long.
#[track_caller]
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let waited = found(what, || Ok(so().then_some(())));
    waited.unwrap_or_else(|error| panic!("{error}"));
}

/// Looks until there is something; an error of the look ends it.
pub fn found<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = now() + DEADLINE;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(now() < deadline, "{what} did not come about");
        thread::sleep(LOOK_EVERY);
    }
}

const LOOK_EVERY: Duration = Duration::from_millis(10);
