//! Pure: how many bytes a second.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The best rate of the last rounds, in bytes a second.
#[derive(Debug, Default)]
pub(super) struct BestRate {
    /// The best of each round, the present one last.
    rounds: VecDeque<u64>,
    best: u64,
}

impl BestRate {
    pub(super) fn get(&self) -> Option<u64> {
        (self.best > 0).then_some(self.best)
    }

    /// A sample that was taken while there was little to send never lowers the rate, but may raise it.
    pub(super) fn sample(&mut self, rate: u64) {
        match self.rounds.back_mut() {
            Some(best) => *best = rate.max(*best),
            None => self.rounds.push_back(rate),
        }
        self.best = self.best.max(rate);
    }

    /// The present round is over, and was one that could tell the rate.
    pub(super) fn next_round(&mut self) {
        if self.rounds.back().is_some_and(|best| *best > 0) {
            self.rounds.push_back(0);
            if self.rounds.len() > ROUNDS {
                self.rounds.pop_front();
                self.best = self.rounds.iter().copied().max().unwrap_or(0);
            }
        }
    }

    /// The path has changed: only the last two rounds tell anything.
    pub(super) fn forget(&mut self) {
        let old = self.rounds.len().saturating_sub(2);
        if self.rounds.iter().skip(old).any(|best| *best > 0) {
            self.rounds.drain(..old);
            self.best = self.rounds.iter().copied().max().unwrap_or(0);
        }
    }
}

/// Bytes a second over the last second, as shown to people.
#[derive(Debug, Default)]
pub(super) struct Meter {
    since: Option<Instant>,
    bytes: u64,
    last: u64,
}

impl Meter {
    pub(super) fn add(&mut self, bytes: usize, now: Instant) {
        self.roll(now);
        self.bytes += bytes as u64;
    }

    fn roll(&mut self, now: Instant) {
        let since = *self.since.get_or_insert(now);
        let elapsed = now.saturating_duration_since(since);
        if elapsed >= INTERVAL {
            self.last = per_second(self.bytes, elapsed);
            (self.since, self.bytes) = (Some(now), 0);
        }
    }

    pub(super) fn get(&self, now: Instant) -> u64 {
        let Some(since) = self.since else { return 0 };
        let elapsed = now.saturating_duration_since(since);
        if elapsed < INTERVAL { self.last } else { per_second(self.bytes, elapsed) }
    }
}

pub(super) fn per_second(bytes: u64, time: Duration) -> u64 {
    let micros = time.as_micros().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000 / micros).unwrap_or(u64::MAX)
}

/// Rounds for which a rate counts.
const ROUNDS: usize = 10;
const INTERVAL: Duration = Duration::from_millis(500);

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn the_best_of_ten_rounds_counts_and_silent_rounds_age_nothing() {
        let mut best = BestRate::default();
        assert_eq!(best.get(), None);
        best.sample(500);
        best.sample(300);
        (0..50).for_each(|_| best.next_round());
        assert_eq!(best.get(), Some(500));
        for _ in 0..9 {
            best.sample(400);
            best.next_round();
        }
        assert_eq!(best.get(), Some(400));
        best.sample(100);
        best.next_round();
        best.sample(90);
        best.forget();
        assert_eq!(best.get(), Some(100));
    }

    #[test]
    fn a_meter_tells_what_passed_lately() {
        let start = Instant::now();
        let mut meter = Meter::default();
        for tick in 0..20 {
            meter.add(1000, start + Duration::from_millis(100) * tick);
        }
        let now = start + Duration::from_millis(1900);
        assert_eq!(meter.get(now), 10_000);
        assert!(meter.get(now + Duration::from_secs(10)) < 500);
    }
}
