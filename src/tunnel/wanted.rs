//! Pure: how many lanes there are to be: at once more when more are of use, fewer only after a while.

use std::time::{Duration, Instant};

use crate::config::{LaneCount, MOST_AUTO};

#[derive(Debug)]
pub(super) struct Wanted {
    count: LaneCount,
    /// What is of use now.
    need: usize,
    level: usize,
    /// When the level was last of use.
    used: Option<Instant>,
    /// The most that was of use since.
    since: usize,
}

impl Wanted {
    pub(super) fn new(count: LaneCount) -> Self {
        Self { count, need: 1, level: 1, used: None, since: 1 }
    }

    /// So many lanes would be of use from now on.
    pub(super) fn set_need(&mut self, need: usize, now: Instant) {
        self.lanes(now);
        if self.need >= self.level {
            self.used = Some(now);
        }
        self.need = need.clamp(1, MOST_AUTO);
        self.since = self.since.max(self.need);
        self.lanes(now);
    }

    pub(super) fn lanes(&mut self, now: Instant) -> usize {
        if let LaneCount::Exactly(count) = self.count {
            return usize::from(count);
        }
        if self.need >= self.level {
            (self.level, self.since, self.used) = (self.need, 1, Some(now));
        } else if self.falls_at().is_some_and(|at| at <= now) {
            (self.level, self.used) = (self.since.max(self.need), Some(now));
            self.since = self.need;
        }
        self.level
    }

    /// When there may be fewer.
    pub(super) fn falls_at(&self) -> Option<Instant> {
        if self.count != LaneCount::Auto || self.need >= self.level {
            return None;
        }
        self.used.map(|used| used + KEPT)
    }
}

/// How long a lane is kept that is of no use now.
const KEPT: Duration = Duration::from_secs(60);

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn it_grows_at_once_and_shrinks_after_a_minute_to_what_was_used_last() {
        let start = Instant::now();
        let mut wanted = Wanted::new(LaneCount::Auto);
        assert_eq!(wanted.lanes(start), 1);
        wanted.set_need(4, start);
        assert_eq!(wanted.lanes(start), 4);
        wanted.set_need(100, start);
        assert_eq!(wanted.lanes(start), 8, "never more than eight");

        wanted.set_need(0, start + 10 * SECOND);
        wanted.set_need(3, start + 20 * SECOND);
        wanted.set_need(0, start + 30 * SECOND);
        assert_eq!(wanted.falls_at(), Some(start + 70 * SECOND));
        assert_eq!(wanted.lanes(start + 69 * SECOND), 8);
        assert_eq!(wanted.lanes(start + 70 * SECOND), 3, "three were of use in that minute");
        assert_eq!(wanted.lanes(start + 129 * SECOND), 3);
        assert_eq!(wanted.lanes(start + 130 * SECOND), 1);
        assert_eq!(wanted.falls_at(), None);
    }

    #[test]
    fn a_level_that_is_of_use_now_and_then_stays() {
        let start = Instant::now();
        let mut wanted = Wanted::new(LaneCount::Auto);
        for round in 0..10 {
            wanted.set_need(5, start + round * 50 * SECOND);
            wanted.set_need(0, start + (round * 50 + 1) * SECOND);
            assert_eq!(wanted.lanes(start + (round * 50 + 49) * SECOND), 5);
        }
    }

    #[test]
    fn an_exact_number_is_just_that() {
        let start = Instant::now();
        let mut wanted = Wanted::new(LaneCount::Exactly(3));
        wanted.set_need(8, start);
        assert_eq!((wanted.lanes(start), wanted.falls_at()), (3, None));
    }
}
