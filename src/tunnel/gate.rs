//! Pure: when a lane may be asked for: two at once at most, later after each failure, and slowly where AWS throttles.

use std::time::{Duration, Instant};

use super::backoff::Backoff;

#[derive(Debug)]
pub(super) struct Gate {
    backoff: Backoff,
    not_before: Option<Instant>,
    /// The least time between two tries; zero where AWS does not throttle.
    spacing: Duration,
    /// Nothing has failed since then.
    calm_since: Option<Instant>,
}

impl Gate {
    /// `most` is the longest pause after a failure.
    pub(super) fn new(most: Duration) -> Self {
        let backoff = Backoff::new(LEAST_PAUSE.min(most), most);
        Self { backoff, not_before: None, spacing: Duration::ZERO, calm_since: None }
    }

    /// When the next lane may be asked for while `under_way` are; `None` before one of those is done.
    pub(super) fn opens_at(&self, under_way: usize, now: Instant) -> Option<Instant> {
        let at_once = if self.spacing.is_zero() { AT_ONCE } else { 1 };
        (under_way < at_once).then(|| self.not_before.unwrap_or(now).max(now))
    }

    pub(super) fn asked(&mut self, now: Instant) {
        if !self.spacing.is_zero() {
            self.hold(now + self.spacing);
        }
    }

    /// `random` spreads clients that failed together.
    pub(super) fn failed(&mut self, throttled: bool, random: u32, now: Instant) {
        if self.calm_since.take().is_some_and(|since| now.saturating_duration_since(since) >= LIVED) {
            self.backoff.reset();
        }
        let pause = self.backoff.next_delay(random);
        if throttled {
            self.spacing = (self.spacing * 2).clamp(LEAST_SPACING, MOST_SPACING);
            // Half of it for certain: the service says that it is asked too often.
            let part = 0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX);
            self.hold(now + self.spacing.mul_f64(part).max(pause));
        } else {
            self.hold(now + pause);
        }
    }

    /// A lane is there; a good one it is only once it has [`LIVED`].
    pub(super) fn succeeded(&mut self, now: Instant) {
        self.calm_since.get_or_insert(now);
        self.spacing = if self.spacing > LEAST_SPACING { self.spacing / 2 } else { Duration::ZERO };
        if self.spacing.is_zero() {
            self.not_before = None;
        }
    }

    /// The network is another one: what failed before says nothing any more, but AWS throttles all the same.
    pub(super) fn nudge(&mut self) {
        self.backoff.reset();
        if self.spacing.is_zero() {
            self.not_before = None;
        }
    }

    /// None before then.
    pub(super) fn hold(&mut self, until: Instant) {
        self.not_before = Some(self.not_before.map_or(until, |at| at.max(until)));
    }
}

/// Calls of StartSession that may be under way.
const AT_ONCE: usize = 2;
/// A lane that dies sooner counts as a try that failed: what kills each one at once must not be fed with sessions.
pub(super) const LIVED: Duration = Duration::from_secs(2);
const LEAST_PAUSE: Duration = Duration::from_millis(100);
const LEAST_SPACING: Duration = Duration::from_secs(2);
const MOST_SPACING: Duration = Duration::from_secs(60);

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn two_at_once_and_a_growing_pause_after_failures() {
        let now = Instant::now();
        let mut gate = Gate::new(5 * SECOND);
        assert_eq!(gate.opens_at(0, now), Some(now));
        assert_eq!(gate.opens_at(1, now), Some(now));
        assert_eq!(gate.opens_at(2, now), None);

        let mut pauses = Vec::new();
        let mut at = now;
        for _ in 0..8 {
            gate.failed(false, u32::MAX, at);
            let opens = gate.opens_at(0, at).unwrap();
            pauses.push((opens - at).as_millis());
            at = opens;
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        gate.nudge();
        assert_eq!(gate.opens_at(0, at), Some(at));
    }

    #[test]
    fn where_aws_throttles_calls_come_one_by_one_and_ever_slower() {
        let now = Instant::now();
        let mut gate = Gate::new(5 * SECOND);
        gate.failed(true, 0, now);
        assert_eq!(gate.opens_at(0, now), Some(now + SECOND));
        assert_eq!(gate.opens_at(1, now), None, "one at a time");
        gate.failed(true, u32::MAX, now);
        assert_eq!(gate.opens_at(0, now), Some(now + 4 * SECOND));
        gate.nudge();
        assert_eq!(gate.opens_at(0, now), Some(now + 4 * SECOND), "another network is still throttled");
        for _ in 0..20 {
            gate.failed(true, u32::MAX, now);
        }
        assert_eq!(gate.opens_at(0, now), Some(now + 60 * SECOND), "but not for ever");

        let later = now + 60 * SECOND;
        gate.succeeded(later);
        gate.asked(later);
        assert_eq!(gate.opens_at(0, later), Some(later + 30 * SECOND), "slowly back to full speed");
        for _ in 0..8 {
            gate.succeeded(later);
        }
        assert_eq!(gate.opens_at(1, later), Some(later));
    }
}
