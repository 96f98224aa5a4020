//! Pure: one lane of a trunk: its two directions, its part of the talk, and whether it lives.
//!
//! Timers: `ack` (a segment waits to be acknowledged for at most 5 ms), `ping` (each interval while pings are
//! wanted). A lane is dead after three intervals without a frame while a ping is unanswered; what is
//! acknowledged too late is the matter of `stripe.rs`.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::delay::Micros;
use super::inbound::{ACK_DELAY, Inbound};
use super::outbound::Outbound;
use super::ping::Pings;
use super::profile::LaneProfile;
use super::rate::Meter;
use super::segment::Parser;
use super::{LaneFault, LaneId, LaneKind, LaneStats, Role};

pub(super) struct Lane {
    pub(super) id: LaneId,
    pub(super) kind: LaneKind,
    /// Digest of the hello that attached it.
    pub(super) hello: [u8; 32],
    pub(super) parser: Parser,
    /// Broken or dead: nothing is sent or taken any more.
    pub(super) closed: bool,
    /// What the peer has received was told since the attach, so nothing is sent again in vain.
    pub(super) informed: bool,
    pub(super) said_goodbye: bool,
    /// Its IO takes a record now, as far as the owner has told.
    pub(super) ready: bool,
    pub(super) retirement: Retirement,
    pub(super) outbound: Outbound,
    pub(super) inbound: Inbound,
    pub(super) pings: Pings,
    pub(super) pongs: VecDeque<u64>,
    epoch: Instant,
    attached: Instant,
    last_heard: Instant,
    rtt: Rtt,
    bytes_sent: u64,
    bytes_received: u64,
    sending: Meter,
    receiving: Meter,
}

/// A lane that is to go: nothing new is put on it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Retirement {
    /// We were asked for it: an event tells when it is drained.
    pub(super) ours: bool,
    /// One of the two sides wants it.
    pub(super) begun: bool,
    said: bool,
    heard: bool,
    told: bool,
}

#[derive(Default)]
struct Rtt {
    smoothed: Option<Duration>,
    least: Option<Duration>,
}

impl Lane {
    /// `epoch` is when our clock for the peer's delays began.
    pub(super) fn new(
        id: LaneId,
        kind: LaneKind,
        role: Role,
        hello: [u8; 32],
        entropy: u64,
        epoch: Instant,
        now: Instant,
    ) -> Self {
        Self {
            id,
            kind,
            hello,
            parser: Parser::default(),
            closed: false,
            informed: false,
            said_goodbye: false,
            ready: true,
            retirement: Retirement::default(),
            outbound: Outbound::new(LaneProfile::of(kind, role)),
            inbound: Inbound::new(LaneProfile::of(kind, role.other())),
            pings: Pings::new(role, entropy ^ id.0),
            pongs: VecDeque::new(),
            epoch,
            attached: now,
            last_heard: now,
            rtt: Rtt::default(),
            bytes_sent: 0,
            bytes_received: 0,
            sending: Meter::default(),
            receiving: Meter::default(),
        }
    }

    /// Bytes arrived on the lane.
    pub(super) fn received(&mut self, bytes: usize, now: Instant) {
        self.bytes_received += bytes as u64;
        self.receiving.add(bytes, now);
    }

    /// Bytes go out on the lane.
    pub(super) fn sent(&mut self, bytes: usize, now: Instant) {
        self.bytes_sent += bytes as u64;
        self.sending.add(bytes, now);
    }

    /// A whole frame arrived.
    pub(super) fn heard(&mut self, now: Instant) {
        self.last_heard = self.last_heard.max(now);
        self.pings.heard = true;
    }

    /// A segment goes out; its sequence number.
    pub(super) fn send(&mut self, offset: u64, length: usize, now: Instant) -> u32 {
        let micros = self.micros(now);
        self.outbound.send(offset, length, now, micros)
    }

    /// A segment arrived.
    pub(super) fn taken(&mut self, sequence: u32, length: usize, now: Instant) {
        let micros = self.micros(now);
        self.inbound.taken(sequence, length, now, micros);
    }

    pub(super) fn handle_ack(
        &mut self,
        sequence: u32,
        arrived: Micros,
        now: Instant,
        found: &mut dyn FnMut(u64, usize),
    ) -> Result<(), LaneFault> {
        let micros = self.micros(now);
        let acked = self.outbound.acknowledge(sequence, arrived, now, micros, found)?;
        if let Some(sent_at) = acked.sent_at {
            self.rtt.sample(now.saturating_duration_since(sent_at), ACK_DELAY);
        }
        self.informed = true;
        Ok(())
    }

    pub(super) fn handle_ping(&mut self, id: u64) {
        if self.pongs.contains(&id) {
            return;
        }
        if self.pongs.len() == MOST_PONGS {
            self.pongs.pop_front();
        }
        self.pongs.push_back(id);
    }

    pub(super) fn handle_pong(&mut self, id: u64, now: Instant) {
        if let Some(sent_at) = self.pings.answered(id) {
            self.rtt.sample(now.saturating_duration_since(sent_at), Duration::ZERO);
        }
    }

    /// The peer puts nothing new on the lane, and has no more on its way if we asked for that.
    pub(super) fn handle_retire(&mut self) {
        self.retirement.begun = true;
        self.retirement.heard = true;
    }

    /// Whether our word on its retirement is due: at once when it is our wish, else once all has arrived.
    pub(super) fn owes_retire(&self) -> bool {
        let Retirement { ours, begun, said, .. } = self.retirement;
        begun && !said && (ours || self.outbound.is_idle())
    }

    pub(super) fn said_retire(&mut self) {
        self.retirement.said = true;
    }

    /// `true` once, when a lane that we retire carries nothing more either way.
    pub(super) fn is_newly_drained(&mut self) -> bool {
        let Retirement { ours, said, heard, told, .. } = self.retirement;
        let drained = ours && said && heard && !told && self.outbound.is_idle();
        self.retirement.told |= drained;
        drained
    }

    /// Whether new segments may be put on it at all.
    pub(super) fn is_usable(&self) -> bool {
        !self.closed && !self.retirement.begun && !self.outbound.is_suspect()
    }

    /// How many bytes may go out now.
    pub(super) fn room(&self, now: Instant) -> usize {
        if self.is_usable() { self.outbound.room(self.micros(now)) } else { 0 }
    }

    /// It was asked for a segment and had nothing, or no room, to send one.
    pub(super) fn note_idle(&mut self, now: Instant) {
        let micros = self.micros(now);
        self.outbound.note_idle(micros);
    }

    /// When there is room again, if only bursts are in the way.
    pub(super) fn room_at(&self, now: Instant) -> Option<Instant> {
        let wait = self.outbound.pace().room_in(self.micros(now)).filter(|_| self.is_usable())?;
        Some(now + wait)
    }

    /// Whether a record would have more in it than segments.
    pub(super) fn owes(&self) -> bool {
        self.inbound.ack_now || self.pings.due || !self.pongs.is_empty() || self.owes_retire()
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        if self.closed {
            return None;
        }
        [self.inbound.ack_at, self.pings.tick_at].into_iter().flatten().min()
    }

    /// Acts on timers that are due; `true` when the lane has just died.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        if self.closed {
            return false;
        }
        self.inbound.handle_timeout(now);
        self.closed = self.pings.handle_timeout(now);
        self.closed
    }

    /// When a frame came last, or the lane itself.
    pub(super) fn last_heard(&self) -> Instant {
        self.last_heard
    }

    pub(super) fn least_rtt(&self) -> Option<Duration> {
        self.rtt.least
    }

    pub(super) fn usual_rtt(&self) -> Option<Duration> {
        Some(self.rtt.smoothed?.min(self.rtt.least? + USUAL_QUEUE))
    }

    pub(super) fn stats(&self, now: Instant) -> LaneStats {
        LaneStats {
            lane: self.id,
            kind: self.kind,
            rtt: self.rtt.smoothed,
            least_rtt: self.rtt.least,
            in_flight: self.outbound.bytes(),
            window: self.outbound.pace().window(),
            capacity: self.outbound.pace().proven_rate(),
            send_rate: self.sending.get(now),
            receive_rate: self.receiving.get(now),
            given_away: self.outbound.given_away,
            stalled: self.outbound.is_suspect() || self.outbound.has_told_stall(),
            retiring: self.retirement.begun,
            sent: self.bytes_sent,
            received: self.bytes_received,
            attached: self.attached,
            last_heard: self.last_heard,
        }
    }

    /// Our clock as the peer hears of it; it wraps.
    fn micros(&self, now: Instant) -> Micros {
        now.saturating_duration_since(self.epoch).as_micros() as Micros
    }
}

impl Rtt {
    /// `delay` is how long the peer may have kept its answer back.
    fn sample(&mut self, raw: Duration, delay: Duration) {
        let least = self.least.map_or(raw, |least| least.min(raw));
        let sample = raw.saturating_sub(delay).max(least);
        self.least = Some(least);
        self.smoothed = Some(self.smoothed.map_or(sample, |smoothed| (smoothed * 7 + sample) / 8));
    }
}

const MOST_PONGS: usize = 8;
/// What both directions' queues may add to a round trip.
const USUAL_QUEUE: Duration = Duration::from_millis(40);

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::super::outbound::MOST_IN_FLIGHT;
    use super::super::ping::MOST_ASKED;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_silent_lane_dies_after_three_intervals() {
        for role in [Role::Client, Role::Agent] {
            let (mut lane, start) = lane(role);
            lane.pings.set(Some(SECOND), start);
            let mut now = start;
            for tick in 0..3 {
                now = start + tick * SECOND;
                assert_eq!(lane.poll_timeout(), Some(now));
                assert!(!lane.handle_timeout(now));
                lane.pings.take(now);
            }
            assert!(lane.handle_timeout(now + SECOND), "{role:?}");
            assert_eq!(lane.poll_timeout(), None);
        }
    }

    #[test]
    fn a_ping_that_cannot_even_be_sent_counts() {
        let (mut lane, start) = lane(Role::Client);
        lane.pings.set(Some(SECOND), start);
        assert!((0..3).all(|tick| !lane.handle_timeout(start + tick * SECOND)));
        assert!(lane.handle_timeout(start + 3 * SECOND));
    }

    #[test]
    fn any_frame_keeps_a_lane_alive_and_a_late_tick_counts_once() {
        let (mut lane, start) = lane(Role::Client);
        lane.pings.set(Some(SECOND), start);
        for tick in 0..20 {
            assert!(!lane.handle_timeout(start + tick * SECOND));
            lane.pings.take(start);
            if tick % 3 == 2 {
                lane.heard(start + tick * SECOND);
            }
        }
        lane.heard(start + 20 * SECOND);
        assert!(!lane.handle_timeout(start + 1000 * SECOND));
        assert!(!lane.handle_timeout(start + 2000 * SECOND));
    }

    #[test]
    fn the_agent_does_not_ask_a_client_that_talks() {
        let (mut lane, start) = lane(Role::Agent);
        lane.pings.set(Some(SECOND), start);
        for tick in 0..5 {
            lane.heard(start + tick * SECOND);
            lane.handle_timeout(start + tick * SECOND);
            assert_eq!(lane.pings.take(start), None);
        }
        lane.handle_timeout(start + 6 * SECOND);
        assert!(lane.pings.take(start).is_some());
    }

    #[test]
    fn without_an_interval_silence_is_nothing() {
        let (mut lane, start) = lane(Role::Client);
        lane.pings.set(Some(SECOND), start);
        lane.handle_timeout(start);
        lane.pings.set(None, start);
        assert_eq!((lane.poll_timeout(), lane.pings.take(start)), (None, None));
        assert!((0..10).all(|tick| !lane.handle_timeout(start + tick * SECOND)));
    }

    #[test]
    fn round_trips_are_measured_from_pongs_and_acks() {
        let (mut lane, start) = lane(Role::Client);
        lane.pings.set(Some(SECOND), start);
        lane.handle_timeout(start);
        let id = lane.pings.take(start).unwrap();
        lane.handle_pong(id ^ 1, start + 3 * SECOND);
        assert_eq!(lane.stats(start).rtt, None);
        lane.handle_pong(id, start + Duration::from_millis(40));
        lane.handle_pong(id, start + Duration::from_millis(90));
        assert_eq!(lane.stats(start).rtt, Some(Duration::from_millis(40)));

        let sequence = lane.send(0, 10, start);
        ack(&mut lane, sequence, start + Duration::from_millis(45)).unwrap();
        assert_eq!(lane.stats(start).rtt, Some(Duration::from_millis(40)));
        assert_eq!(lane.stats(start).least_rtt, Some(Duration::from_millis(40)));
    }

    #[test]
    fn acks_free_the_window_and_old_ones_do_nothing() {
        let (mut lane, now) = lane(Role::Agent);
        let window = lane.room(now);
        for index in 1..=4u32 {
            assert_eq!(lane.send(u64::from(index) * 100, 100, now), index);
        }
        ack(&mut lane, 3, now).unwrap();
        ack(&mut lane, 1, now).unwrap();
        ack(&mut lane, 3, now).unwrap();
        assert_eq!(lane.room(now), window - 100);
        assert_eq!(lane.outbound.in_flight().collect::<Vec<_>>(), [(400, 100)]);
        assert_eq!(ack(&mut lane, 5, now), Err(LaneFault::AckOfUnsentSegment { sequence: 5 }));
        assert_eq!(lane.send(500, 1, now), 5);
    }

    #[test]
    fn sequence_numbers_go_round() {
        let (mut lane, now) = lane(Role::Agent);
        lane.outbound.count_from(u32::MAX - 1);
        lane.inbound.sequence = u32::MAX - 1;
        for expected in [u32::MAX, 0, 1] {
            assert_eq!(lane.send(0, 1, now), expected);
            assert_eq!(lane.inbound.is_next(expected), Ok(true));
            assert!(lane.inbound.is_next(expected.wrapping_add(1)).is_err());
            lane.taken(expected, 1, now);
            assert_eq!(lane.inbound.is_next(expected), Ok(false));
            assert_eq!(lane.inbound.is_next(expected.wrapping_sub(9)), Ok(false));
        }
        ack(&mut lane, 0, now).unwrap();
        ack(&mut lane, u32::MAX, now).unwrap();
        assert_eq!(lane.outbound.in_flight().count(), 1);
    }

    #[test]
    fn acks_go_after_enough_bytes_or_5_ms() {
        let (mut lane, now) = lane(Role::Client);
        assert!(lane.inbound.take_ack(false, now));
        lane.taken(1, 100, now);
        assert!(!lane.inbound.take_ack(false, now));
        assert_eq!(lane.poll_timeout(), Some(now + ACK_DELAY));
        lane.taken(2, 32 * 1024, now);
        assert!(lane.owes() && lane.inbound.take_ack(false, now));
        assert_eq!(lane.poll_timeout(), None);

        lane.taken(3, 1, now);
        assert!(lane.inbound.take_ack(true, now));
        lane.taken(4, 1, now);
        lane.handle_timeout(now + ACK_DELAY);
        assert!(lane.owes() && lane.inbound.take_ack(false, now));
        assert!(!lane.inbound.take_ack(true, now));
    }

    #[test]
    fn what_is_owed_is_bounded() {
        let (mut lane, now) = lane(Role::Client);
        (0..1000).for_each(|id| lane.handle_ping(id));
        assert_eq!(lane.pongs.len(), MOST_PONGS);
        lane.pings.set(Some(SECOND), now);
        for tick in 0..100 {
            lane.heard(now);
            lane.handle_timeout(now + tick * SECOND);
            lane.pings.take(now);
        }
        assert_eq!(lane.pings.asked.len(), MOST_ASKED);
        while lane.room(now) > 0 {
            lane.send(0, 1, now);
        }
        assert_eq!(lane.outbound.in_flight().count(), MOST_IN_FLIGHT);
    }

    fn lane(role: Role) -> (Lane, Instant) {
        let now = Instant::now();
        (Lane::new(LaneId(1), LaneKind::Ssm, role, [0; 32], 0, now, now), now)
    }

    fn ack(lane: &mut Lane, sequence: u32, now: Instant) -> Result<(), LaneFault> {
        lane.handle_ack(sequence, 0, now, &mut |_, _| {})
    }
}
