//! Pure: how much may be in flight on a lane.
//!
//! Each ack tells when, on the peer's clock, the newest segment arrived. The two clocks have no common start, so
//! arrival less departure is the one-way delay plus a constant; less the least of these it is the time the
//! segment stood in queues of its own direction. What the acks wait for on their way back does not count,
//! so a busy other direction takes nothing from this one.
//!
//! - The rate is the best of the last ten rounds (round trips), each sample taken over about one round trip
//!   by both clocks; one taken while there was nothing to send never lowers it.
//! - The window is `rate x (round trip without our own queue + the queue we want)`, about 10 to 20 ms of it.
//!   While there is hardly a queue it grows: by what is acknowledged at first, later by a quarter every other round.
//! - Bytes that come in bursts (a stream got its credit back) are spread: no more go out at a time than the wanted
//!   queue holds. Where the way is shorter than that queue, the window alone does.
//!   Every sixth round a bit more is tried.
//! - When even the least delay of two rounds in a row is far above the wanted one, the path got slower, or longer.
//!   Then, and every ten seconds in which the least delay was not seen again, the window shrinks until our own
//!   queue is gone, for one round. The least delay of that round is the new base: so a standing queue
//!   of ours never becomes the base, and clocks that drift apart do no harm. All lanes do so at the same
//!   moment, for they may share a bottleneck.

use std::time::Duration;

use super::delay::{Delay, LONGEST, Micros, micros};
use super::rate::{BestRate, per_second};

/// Bounds of what is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PaceLimits {
    /// The window of a lane that nothing is known of.
    pub start: usize,
    pub least: usize,
    pub most: usize,
    /// How long bytes may stand in queues below us.
    pub queue: Duration,
}

#[derive(Debug)]
pub(super) struct Pace {
    limits: PaceLimits,
    window: usize,
    phase: Phase,
    /// Bytes the peer has, as far as it told.
    delivered: u64,
    /// When the newest of them arrived (its clock) and was sent (ours).
    arrived: Micros,
    departed: Micros,
    /// Samples are of little worth until this much is delivered: there was nothing to send.
    idle_until: u64,
    rate: BestRate,
    /// The rate is the lane's, not only what there was to send.
    proven: bool,
    delay: Delay,
    round: Round,
    /// Rounds in a row that had far too long a queue.
    late_rounds: u8,
    /// Acks in a row that did.
    late_acks: u8,
    /// The window grew: the next round does not yet tell what that did.
    grown: bool,
    probed: u32,
    rounds: u8,
    /// The rate at which bursts are spread, if they are.
    spread: Option<u64>,
    /// When what was sent so far would have left, had it gone at the lane's rate.
    gone_at: Micros,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Doubles each round trip until a queue shows.
    Fast,
    Steady,
    /// Waits until what was in flight before is delivered, then one more round.
    Drain {
        until: u64,
        drained: bool,
    },
}

#[derive(Debug, Default)]
struct Round {
    /// Ends when a segment is acknowledged that was sent with so much delivered.
    ends: u64,
    least_queued: Option<Micros>,
    least_delay: Option<Micros>,
    /// The window was in the way.
    limited: bool,
    /// A sample of it could lower the rate.
    telling: bool,
}

/// What is remembered of a segment until its ack.
#[derive(Clone, Copy, Debug)]
pub(super) struct Departure {
    at: Micros,
    delivered: u64,
    arrived: Micros,
    departed: Micros,
    idle: bool,
}

impl Round {
    fn note(&mut self, one_way: Micros, queued: Micros) {
        self.least_queued = Some(self.least_queued.map_or(queued, |least| least.min(queued)));
        self.least_delay = match self.least_delay {
            Some(least) if (one_way.wrapping_sub(least) as i32) >= 0 => Some(least),
            Some(_) | None => Some(one_way),
        };
    }
}

impl Pace {
    pub(super) fn new(limits: PaceLimits) -> Self {
        Self {
            limits,
            window: limits.start,
            phase: Phase::Fast,
            delivered: 0,
            arrived: 0,
            departed: 0,
            idle_until: 0,
            rate: BestRate::default(),
            proven: false,
            delay: Delay::default(),
            round: Round::default(),
            late_rounds: 0,
            late_acks: 0,
            grown: false,
            probed: 0,
            rounds: 0,
            spread: None,
            gone_at: 0,
        }
    }

    pub(super) fn window(&self) -> usize {
        self.window
    }

    /// Bytes a second that were the lane's limit rather than ours.
    pub(super) fn proven_rate(&self) -> Option<u64> {
        self.rate.get().filter(|_| self.proven)
    }

    pub(super) fn delay(&self) -> &Delay {
        &self.delay
    }

    /// When a byte sent now arrives, by the difference of the clocks; only to compare with other lanes.
    pub(super) fn arrival(&self, in_flight: usize) -> Option<Micros> {
        let (base, _) = self.delay.base?;
        let queue = match self.proven_rate() {
            Some(rate) => time_of(in_flight, rate).saturating_sub(self.delay.unqueued.unwrap_or(0)),
            None => self.delay.queued,
        };
        Some(base.wrapping_add(queue))
    }

    /// How many bytes may go out now, when so many are in flight.
    pub(super) fn room(&self, in_flight: usize, now: Micros) -> usize {
        let window = self.window.saturating_sub(in_flight);
        let Some(rate) = self.spread else { return window };
        let ahead = self.ahead(now);
        if ahead > self.queue() * 3 / 4 {
            return 0;
        }
        window.min(bytes_in(rate, self.queue() - ahead).max(LEAST_BURST))
    }

    /// How long until there is room again, if bursts are what is in the way.
    pub(super) fn room_in(&self, now: Micros) -> Option<Duration> {
        self.spread?;
        let over = self.ahead(now).checked_sub(self.queue() * 3 / 4).filter(|over| *over > 0)?;
        Some(micros(over))
    }

    /// The rate to send at, where the way is longer than the wanted queue: the lane's, and more or less as the queue
    /// is shorter or longer than wanted, so that half of the difference is made up for in a round trip.
    fn spread_at(&self) -> Option<u64> {
        let unqueued = self.delay.unqueued.filter(|unqueued| *unqueued > self.queue())?;
        let rate = self.rate.get().filter(|_| self.phase != Phase::Fast)?;
        let queued = self.delay.recent.into_iter().min().unwrap_or(0);
        let missing = i64::from(self.queue()) - i64::from(queued);
        let per_mille =
            (1000 + missing * 500 / i64::from(unqueued + self.queue())).clamp(500, MOST_PER_MILLE);
        // Delay that comes from elsewhere would press the rate down for ever, were it never tried for more.
        let tries = self.rounds.is_multiple_of(TRY_EVERY) && self.late_rounds == 0;
        let per_mille = match (self.grown, tries) {
            (true, _) => MOST_PER_MILLE,
            (false, true) => per_mille.max(TRY),
            (false, false) => per_mille,
        };
        let least = per_second(self.limits.least as u64, micros(unqueued + self.queue()));
        Some((rate.saturating_mul(per_mille as u64) / 1000).max(least))
    }

    #[cfg(test)]
    pub(super) fn brief(&self) -> String {
        format!(
            "{:?} rate {} spread {} queued {} unqueued {} late {} limited {}",
            self.phase,
            self.rate.get().unwrap_or(0),
            self.spread.unwrap_or(0),
            self.delay.queued,
            self.delay.unqueued.unwrap_or(0),
            self.late_rounds,
            self.round.limited
        )
    }

    /// How far what was sent is ahead of the lane.
    fn ahead(&self, now: Micros) -> Micros {
        (self.gone_at.wrapping_sub(now) as i32).max(0) as u32
    }

    /// A segment of `bytes` goes out when so many bytes are in flight.
    pub(super) fn depart(&mut self, bytes: usize, in_flight: usize, now: Micros) -> Departure {
        let time = self.spread.map_or(0, |rate| time_of(bytes, rate));
        self.gone_at = now.wrapping_add(self.ahead(now)).wrapping_add(time);
        if in_flight == 0 {
            self.delay.forget_stale(now);
            self.departed = now;
            self.arrived = now.wrapping_add(self.delay.base.map_or(0, |(base, _)| base));
        }
        Departure {
            at: now,
            delivered: self.delivered,
            arrived: self.arrived,
            departed: self.departed,
            idle: self.delivered < self.idle_until || self.delay.base.is_none(),
        }
    }

    /// The window is in the way of more.
    pub(super) fn held_back(&mut self) {
        self.round.limited = true;
    }

    /// There was nothing more to send, with so many bytes in flight.
    pub(super) fn idle(&mut self, in_flight: usize) {
        self.idle_until = self.delivered + in_flight as u64;
    }

    /// `bytes` more are delivered, the newest of them sent as `newest` says and arrived at `arrived`.
    pub(super) fn delivered(
        &mut self,
        bytes: usize,
        newest: Departure,
        in_flight: usize,
        arrived: Micros,
        now: Micros,
    ) {
        self.delivered += bytes as u64;
        (self.arrived, self.departed) = (arrived, newest.at);
        let (one_way, near) = (arrived.wrapping_sub(newest.at), (self.queue() / 8).max(1000));
        let queued = self.delay.sample(one_way, now.wrapping_sub(newest.at), near, now);
        self.round.note(one_way, queued);
        self.measure_rate(newest, in_flight, arrived);
        self.grow_fast(bytes);
        if newest.delivered >= self.round.ends {
            self.end_round(in_flight, now);
        }
        self.spread = self.spread_at();
    }

    fn measure_rate(&mut self, newest: Departure, in_flight: usize, arrived: Micros) {
        let by_peer = arrived.wrapping_sub(newest.arrived) as i32;
        let by_us = newest.at.wrapping_sub(newest.departed) as i32;
        let interval = by_peer.max(by_us).max(0) as u32;
        // A shorter one tells of bursts rather than of the path.
        if interval < (self.delay.unqueued.unwrap_or(0) / 2).max(LEAST_INTERVAL) {
            return;
        }
        let rate = per_second(self.delivered - newest.delivered, micros(interval));
        // What stood in a queue of some size met the lane's own limit, however little there was to send later.
        let queues = self.delay.queued > self.queue() / 2 && in_flight >= self.limits.least;
        let telling = !newest.idle || queues;
        if telling {
            self.round.telling = true;
            self.proven = true;
        }
        if telling || self.rate.get().is_none_or(|best| rate > best) {
            self.rate.sample(rate);
        }
    }

    fn grow_fast(&mut self, bytes: usize) {
        if self.phase != Phase::Fast {
            return;
        }
        self.late_acks = if self.delay.queued > self.queue() { self.late_acks.saturating_add(1) } else { 0 };
        if self.late_acks >= 3 && self.proven {
            self.phase = Phase::Steady;
            self.set_window(self.fitting());
        } else if self.round.limited && self.late_acks == 0 {
            self.set_window(self.window + bytes);
        }
    }

    fn end_round(&mut self, in_flight: usize, now: Micros) {
        self.rounds = self.rounds.wrapping_add(1);
        self.delay.end_round();
        let round = std::mem::replace(&mut self.round, Round { ends: self.delivered, ..Round::default() });
        let least = round.least_queued.unwrap_or(0);
        if round.telling {
            self.rate.next_round();
        }
        match self.phase {
            Phase::Fast => {}
            Phase::Drain { until, .. } if self.delivered < until => {}
            Phase::Drain { drained: false, .. } => {
                self.phase = Phase::Drain { until: self.delivered + in_flight as u64, drained: true };
            }
            Phase::Drain { drained: true, .. } => {
                self.delay.base = round.least_delay.map(|least| (least, now));
                self.phase = Phase::Steady;
                self.set_window(self.fitting());
            }
            Phase::Steady => self.steer(least, &round),
        }
        self.probe(least, in_flight, now);
    }

    fn steer(&mut self, least: Micros, round: &Round) {
        self.late_rounds =
            if least > 2 * self.queue() + LATE { self.late_rounds.saturating_add(1) } else { 0 };
        let grows = least < self.queue() / 2 && round.limited && !self.grown;
        self.grown = grows;
        if grows {
            self.set_window(self.fitting().max(self.window + self.window / 4));
        } else {
            self.set_window(self.fitting());
        }
    }

    /// Begins to drain the queue when that is due.
    fn probe(&mut self, least: Micros, in_flight: usize, now: Micros) {
        let turn = now / PROBE_EVERY;
        let due = turn != self.probed
            && self.delay.base.is_some_and(|(_, seen)| now.wrapping_sub(seen) > PROBE_EVERY * 3 / 4);
        self.probed = turn;
        let late = self.late_rounds >= 2;
        let draining = matches!(self.phase, Phase::Drain { .. });
        if draining || self.phase == Phase::Fast || !(late || due && least > 0) {
            return;
        }
        if late {
            self.rate.forget();
            self.late_rounds = 0;
        }
        self.phase = Phase::Drain { until: self.delivered + in_flight as u64, drained: false };
        self.set_window(self.holding(self.delay.unqueued.unwrap_or(0)) * 3 / 4);
    }

    /// The window that the rate asks for.
    fn fitting(&self) -> usize {
        if self.rate.get().is_none() {
            return self.window;
        }
        // Where bytes are spread the window is only a bound.
        let queue = if self.spread.is_some() { 2 * self.queue() } else { self.queue() };
        self.holding(self.delay.unqueued.unwrap_or(0).saturating_add(queue))
    }

    /// What the lane carries in such a time.
    fn holding(&self, time: Micros) -> usize {
        bytes_in(self.rate.get().unwrap_or(0), time)
    }

    fn set_window(&mut self, window: usize) {
        self.window = window.clamp(self.limits.least, self.limits.most);
    }

    fn queue(&self) -> Micros {
        u32::try_from(self.limits.queue.as_micros()).unwrap_or(u32::MAX / 8)
    }
}

fn bytes_in(rate: u64, time: Micros) -> usize {
    usize::try_from(rate.saturating_mul(u64::from(time)) / 1_000_000).unwrap_or(usize::MAX)
}

/// How long so many bytes take; at most a minute.
fn time_of(bytes: usize, rate: u64) -> Micros {
    let time = (bytes as u64).saturating_mul(1_000_000) / rate.max(1);
    u32::try_from(time).unwrap_or(LONGEST).min(LONGEST)
}

/// The shortest interval a rate is taken over.
const LEAST_INTERVAL: Micros = 500;
/// A queue this much above twice the wanted one is far too long.
const LATE: Micros = 5_000;
/// How often the base is looked for when it does not show by itself.
const PROBE_EVERY: Micros = 10_000_000;
/// Bytes that go out at once however slow the lane seems.
const LEAST_BURST: usize = 4096;
/// In rounds: how often a higher rate is tried, and which, in thousandths.
const TRY_EVERY: u8 = 6;
const TRY: i64 = 1050;
const MOST_PER_MILLE: i64 = 1250;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: PaceLimits =
        PaceLimits { start: 16 << 10, least: 8 << 10, most: 256 << 10, queue: Duration::from_millis(15) };

    /// A lane that carries `rate` bytes a second, 20 ms each way, with clocks that have nothing in common.
    struct Line {
        pace: Pace,
        rate: u64,
        now: Micros,
        free_at: Micros,
        /// Arrival (our clock), bytes and departure of what is in flight.
        under_way: std::collections::VecDeque<(Micros, usize, Departure)>,
        in_flight: usize,
    }

    impl Line {
        fn new(rate: u64) -> Self {
            let under_way = std::collections::VecDeque::new();
            Self { pace: Pace::new(LIMITS), rate, now: 5_000, free_at: 0, under_way, in_flight: 0 }
        }

        /// A millisecond passes; at most `bytes` are there to be sent.
        fn tick(&mut self, bytes: usize) {
            self.now += 1_000;
            while let Some(&(at, length, departure)) = self.under_way.front()
                && at + 20_000 <= self.now
            {
                self.under_way.pop_front();
                self.in_flight -= length;
                let peers_clock = at.wrapping_sub(77_777_777);
                self.pace.delivered(length, departure, self.in_flight, peers_clock, self.now);
            }
            let mut left = bytes;
            while left > 0 {
                let room = self.pace.room(self.in_flight, self.now).min(left).min(1_000);
                if room == 0 {
                    return self.pace.held_back();
                }
                let departure = self.pace.depart(room, self.in_flight, self.now);
                self.free_at = self.free_at.max(self.now) + time_of(room, self.rate);
                self.under_way.push_back((self.free_at + 20_000, room, departure));
                self.in_flight += room;
                left -= room;
            }
            self.pace.idle(self.in_flight);
        }

        fn queue_ms(&self) -> u32 {
            self.free_at.saturating_sub(self.now) / 1_000
        }
    }

    #[test]
    fn the_window_finds_the_rate_and_keeps_a_short_queue() {
        let mut line = Line::new(900_000);
        let mut longest = 0;
        for tick in 0..4_000 {
            line.tick(usize::MAX);
            if tick > 1_000 {
                longest = longest.max(line.queue_ms());
                assert!(line.queue_ms() > 0, "it ran dry at {tick} ms");
            }
        }
        assert!((850_000..1_000_000).contains(&line.pace.proven_rate().unwrap()), "{}", line.pace.brief());
        assert!(longest <= 30, "{longest} ms");
    }

    #[test]
    fn little_to_send_lowers_nothing() {
        let mut line = Line::new(900_000);
        (0..2_000).for_each(|_| line.tick(usize::MAX));
        let before = line.pace.proven_rate().unwrap();
        (0..20_000).for_each(|_| line.tick(20));
        assert!(line.pace.proven_rate().unwrap() >= before * 9 / 10, "{}", line.pace.brief());
    }

    #[test]
    fn a_trickle_over_a_way_that_got_longer_is_not_starved() {
        let mut line = Line::new(900_000);
        (0..3_000).for_each(|_| line.tick(2));
        line.free_at = line.now + 60_000;
        for _ in 0..3_000 {
            line.free_at = line.free_at.max(line.now + 60_000);
            line.tick(2);
        }
        assert!(line.pace.room(line.in_flight, line.now) >= 2_048, "{}", line.pace.brief());
    }

    #[test]
    fn a_slower_path_is_learned_and_its_queue_drained() {
        let mut line = Line::new(900_000);
        (0..2_000).for_each(|_| line.tick(usize::MAX));
        line.rate = 200_000;
        (0..4_000).for_each(|_| line.tick(usize::MAX));
        let longest = (0..2_000)
            .map(|_| {
                line.tick(usize::MAX);
                line.queue_ms()
            })
            .max()
            .unwrap();
        assert!(longest <= 45, "{longest} ms, {}", line.pace.brief());
        assert!(line.pace.proven_rate().unwrap() <= 260_000, "{}", line.pace.brief());
    }

    proptest! {
        #[test]
        fn whatever_the_peer_says_the_window_keeps_its_bounds(
            acks in proptest::collection::vec((any::<u32>(), 0u32..200_000, 1usize..40_000), 1..200),
        ) {
            let (mut pace, mut now) = (Pace::new(LIMITS), 0u32);
            for (arrived, later, bytes) in acks {
                let departure = pace.depart(bytes, 0, now);
                now = now.wrapping_add(later);
                pace.held_back();
                pace.delivered(bytes, departure, bytes, arrived, now);
                prop_assert!((LIMITS.least..=LIMITS.most).contains(&pace.window()));
                prop_assert!(pace.room(0, now) <= pace.window());
                prop_assert!(pace.delay().patience() <= Duration::from_secs(2));
                // However slow the lane was made to look, something may go out soon.
                let wait = pace.room_in(now).unwrap_or_default();
                let soon = now.wrapping_add(wait.as_micros() as u32);
                prop_assert!(pace.room(0, soon) >= 4096, "{}", pace.brief());
                prop_assert!(wait <= Duration::from_secs(60));
            }
        }
    }
}
