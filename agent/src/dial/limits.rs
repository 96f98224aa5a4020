//! Pure: how much is dialled at once and how fast, counted over all trunks.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How much there is of what [`DialConfig`](super::DialConfig) limits.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) flows: AtomicUsize,
    pub(super) dials: AtomicUsize,
    pace: Mutex<Pace>,
}

impl Tally {
    pub(super) fn flows(&self) -> usize {
        self.flows.load(Ordering::Relaxed)
    }

    pub(super) fn dials(&self) -> usize {
        self.dials.load(Ordering::Relaxed)
    }

    /// Whether one more flow may begin now; if so, it is counted.
    pub(super) fn admits(&self, per_second: u32, now: Instant) -> bool {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner).admits(per_second, now)
    }
}

/// A rate with what one second allows as its burst: each event takes its share of a second, and may
/// be ahead of time by a second at most.
#[derive(Debug, Default)]
struct Pace {
    due: Option<Instant>,
}

impl Pace {
    fn admits(&mut self, per_second: u32, now: Instant) -> bool {
        let share = Duration::from_secs(1) / per_second.max(1);
        let next = self.due.map_or(now, |due| due.max(now)) + share;
        let admitted = next <= now + Duration::from_secs(1);
        if admitted {
            self.due = Some(next);
        }
        admitted
    }
}

/// Targets that no port was left for. The system goes through all its ports to find that out, which takes
/// milliseconds, so it is not asked again at once.
#[derive(Debug, Default)]
pub(super) struct Spent([Option<(SocketAddr, Instant)>; SPENT_AT_ONCE]);

impl Spent {
    pub(super) fn note(&mut self, target: SocketAddr, now: Instant) {
        let oldest = self.0.iter_mut().min_by_key(|place| place.map(|(_, until)| until));
        if let Some(place) = oldest {
            *place = Some((target, now + SPENT_FOR));
        }
    }

    pub(super) fn holds(&self, target: SocketAddr, now: Instant) -> bool {
        self.0.iter().flatten().any(|&(spent, until)| spent == target && now < until)
    }
}

const SPENT_AT_ONCE: usize = 8;
/// At 3.3 ms for each look through 28,000 ports, 2% of the time at most.
const SPENT_FOR: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)]

    use super::*;

    #[test]
    fn a_second_of_burst_then_the_rate() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let admitted = |pace: &mut Pace, now| (0..1_000).filter(|_| pace.admits(100, now)).count();
        assert_eq!(admitted(&mut pace, start), 100);
        assert_eq!(admitted(&mut pace, start + Duration::from_millis(250)), 25);
        assert_eq!(admitted(&mut pace, start + Duration::from_millis(255)), 0);
        assert_eq!(admitted(&mut pace, start + Duration::from_secs(9)), 100);
        assert!(Pace::default().admits(1, start) && Pace::default().admits(0, start));
    }

    #[test]
    fn twelve_thousand_a_second_pass_at_the_default() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let rate = super::super::DialConfig::default().dials_per_second;
        for connect in 0..120_000u32 {
            assert!(pace.admits(rate, start + Duration::from_secs(1) * connect / 12_000));
        }
    }

    #[test]
    fn a_spent_target_is_left_alone_for_a_while_and_the_oldest_is_forgotten_first() {
        let (mut spent, start) = (Spent::default(), Instant::now());
        let target = |port| SocketAddr::from(([10, 0, 0, 1], port));
        spent.note(target(1), start);
        assert!(spent.holds(target(1), start) && !spent.holds(target(2), start));
        assert!(!spent.holds(target(1), start + SPENT_FOR));
        let later = start + SPENT_FOR / 2;
        (2..10).for_each(|port| spent.note(target(port), later));
        assert!(!spent.holds(target(1), later) && (2..10).all(|port| spent.holds(target(port), later)));
    }
}
