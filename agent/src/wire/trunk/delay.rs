//! Pure: how long a lane's segments and their acks are under way.

use std::time::Duration;

/// Microseconds of a clock that wraps.
pub(super) type Micros = u32;

#[derive(Debug, Default)]
pub(super) struct Delay {
    /// Least one-way delay plus the difference of the clocks, and when something like it was last seen.
    pub(super) base: Option<(Micros, Micros)>,
    /// Time in queues of our own direction, of the newest segment.
    pub(super) queued: Micros,
    /// The same of the newest few acks: the least of them is what jitter adds nothing to.
    pub(super) recent: [Micros; 4],
    round_trip: Option<Micros>,
    /// The least round trip since the round began, and that of most rounds: a pause that was made good hardly changes it.
    least: Option<Micros>,
    usual: Option<Micros>,
    variation: Micros,
    /// Smoothed round trip less our own queue.
    pub(super) unqueued: Option<Micros>,
}

impl Delay {
    /// A segment took `one_way` by both clocks, and `round_trip` until its ack was here; how long it stood in
    /// queues of its direction. What is within `near` of the least delay counts as it.
    pub(super) fn sample(
        &mut self,
        one_way: Micros,
        round_trip: Micros,
        near: Micros,
        now: Micros,
    ) -> Micros {
        let round_trip = round_trip.min(LONGEST);
        let (base, seen) = self.base.unwrap_or((one_way, now));
        let above = one_way.wrapping_sub(base) as i32;
        let is_near = above <= i32::try_from(near).unwrap_or(i32::MAX);
        self.base = Some((if above < 0 { one_way } else { base }, if is_near { now } else { seen }));
        // A queue of ours cannot be longer than the round trip it is a part of.
        self.queued = (above.max(0) as u32).min(round_trip);
        self.recent.rotate_left(1);
        self.recent[3] = self.queued;

        let smoothed = |old: Option<u32>, new: u32| old.map_or(new, |old| old - old / 8 + new / 8);
        let error = self.round_trip.map_or(round_trip / 2, |old| old.abs_diff(round_trip));
        self.variation = self.variation - self.variation / 4 + error / 4;
        self.round_trip = Some(smoothed(self.round_trip, round_trip));
        self.unqueued = Some(smoothed(self.unqueued, round_trip - self.queued));
        self.least = Some(self.least.map_or(round_trip, |least| least.min(round_trip)));
        self.queued
    }

    pub(super) fn end_round(&mut self) {
        if let Some(least) = self.least.take() {
            self.usual = Some(self.usual.map_or(least, |usual| usual - usual / 4 + least / 4));
        }
    }

    /// Clocks drift: a base that was not seen for long is worth nothing on a lane that was idle.
    pub(super) fn forget_stale(&mut self, now: Micros) {
        if self.base.is_some_and(|(_, seen)| now.wrapping_sub(seen) > STALE) {
            self.base = None;
        }
    }

    /// When a segment counts as overdue, and is worth to be sent on another lane.
    pub(super) fn patience(&self) -> Duration {
        let Some(round_trip) = self.round_trip else { return FIRST_PATIENCE };
        let micros = u64::from(round_trip) * 3 / 2 + 4 * u64::from(self.variation);
        (Duration::from_micros(micros) + SLACK).min(MOST_PATIENCE)
    }

    /// For how long a lane may acknowledge nothing at all before all that is under way on it counts as overdue.
    pub(super) fn longest_silence(&self) -> Duration {
        let Some(usual) = self.usual else { return FIRST_PATIENCE };
        (2 * micros(usual) + MOST_PAUSE).min(MOST_PATIENCE)
    }

    pub(super) fn round_trip(&self) -> Option<Duration> {
        self.round_trip.map(micros)
    }
}

pub(super) fn micros(micros: Micros) -> Duration {
    Duration::from_micros(u64::from(micros))
}

/// Until a lane has a round trip to go by.
const FIRST_PATIENCE: Duration = Duration::from_secs(1);
const MOST_PATIENCE: Duration = Duration::from_secs(2);
/// Acks are kept back, and programs are not always scheduled at once.
const SLACK: Duration = Duration::from_millis(10);
/// Longer than programs are kept from running, and far shorter than what a lane that lost its websocket takes.
const MOST_PAUSE: Duration = Duration::from_millis(200);
/// Longer round trips count as this.
pub(super) const LONGEST: Micros = 60_000_000;
const STALE: Micros = 30_000_000;
