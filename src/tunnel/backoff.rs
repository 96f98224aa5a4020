//! Pure: when to try again.

use std::time::Duration;

/// Doubling delays with full jitter below an upper bound.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    least: Duration,
    most: Duration,
    tries: u32,
}

impl Backoff {
    pub(super) fn new(least: Duration, most: Duration) -> Self {
        Self { least, most, tries: 0 }
    }

    /// The next delay; `random` spreads clients that lost their lanes together.
    pub(super) fn next_delay(&mut self, random: u32) -> Duration {
        let ceiling = self.least.saturating_mul(1 << self.tries.min(16)).min(self.most);
        self.tries = self.tries.saturating_add(1);
        self.least.max(ceiling.mul_f64(f64::from(random) / f64::from(u32::MAX)))
    }

    pub(super) fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_bound_and_start_again_after_a_reset() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let delays: Vec<u128> = (0..8).map(|_| backoff.next_delay(u32::MAX).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(backoff.next_delay(0), Duration::from_millis(100));
        backoff.reset();
        assert_eq!(backoff.next_delay(u32::MAX), Duration::from_millis(100));
    }
}
