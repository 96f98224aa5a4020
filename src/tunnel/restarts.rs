//! Pure: when the next trunk may begin after the agent ended one: at once, unless that one had only just begun.

use std::time::{Duration, Instant};

use super::backoff::Backoff;

#[derive(Debug)]
pub(super) struct Restarts {
    backoff: Backoff,
    /// When the trunk's first lane was attached.
    began: Option<Instant>,
    not_before: Option<Instant>,
}

impl Restarts {
    /// `most` is the longest pause.
    pub(super) fn new(most: Duration) -> Self {
        Self { backoff: Backoff::new(LEAST_PAUSE.min(most), most), began: None, not_before: None }
    }

    /// A lane of the trunk is attached.
    pub(super) fn attached(&mut self, now: Instant) {
        self.began.get_or_insert(now);
    }

    /// The trunk is gone, for whatever reason.
    pub(super) fn ended(&mut self) {
        self.began = None;
    }

    /// The agent ended it, or no longer knew it; `random` spreads clients that lost theirs together.
    pub(super) fn failed(&mut self, random: u32, now: Instant) {
        if self.began.is_some_and(|began| now.saturating_duration_since(began) >= LIVED) {
            self.backoff.reset();
            self.not_before = None;
        } else {
            self.not_before = Some(now + self.backoff.next_delay(random));
        }
    }

    pub(super) fn not_before(&self) -> Option<Instant> {
        self.not_before
    }
}

/// A trunk that lived so long was a good one.
const LIVED: Duration = Duration::from_secs(10);
const LEAST_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn trunks_that_end_at_once_begin_slower_and_slower_and_one_that_lived_ends_that() {
        let (mut restarts, mut now) = (Restarts::new(Duration::from_secs(5)), Instant::now());
        let mut end_after = |lived: Duration| {
            restarts.attached(now);
            now += lived;
            restarts.attached(now);
            restarts.failed(u32::MAX, now);
            restarts.ended();
            let pause = restarts.not_before().map(|at| at - now);
            now += pause.unwrap_or_default();
            pause.map(|pause| pause.as_millis())
        };
        assert_eq!(end_after(LIVED), None, "the agent was restarted");
        let pauses: Vec<_> = (0..7).map(|_| end_after(Duration::from_secs(1))).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000].map(Some));
        assert_eq!(end_after(LIVED), None);
        assert_eq!(end_after(Duration::ZERO), Some(100), "and counts anew");
    }
}
