//! Pure: one lane of a trunk: what is in flight on it, what it owes the peer, and whether it lives.
//!
//! Timers: `ack` (a segment waits to be acknowledged for at most 5 ms), `ping` (each interval while pings are
//! wanted). A lane is dead after three intervals without a frame while a ping is unanswered.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::ping::Pings;
use super::segment::{MAX_SEGMENT, Parser, SEGMENT_OVERHEAD};
use super::{LaneFault, LaneId, LaneKind, LaneStats, Role};
use crate::wire::mux;

/// How one direction of a lane is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneProfile {
    /// The most bytes in flight.
    pub window: usize,
    /// The most bytes in one segment.
    pub segment: usize,
    /// The most payload of a mux frame: 1 to 2 ms of lane time, and within one segment with its header.
    pub frame: usize,
    /// The receiver acknowledges at the latest after so many bytes.
    pub ack_after: usize,
}

impl LaneProfile {
    pub const fn of(kind: LaneKind, sender: Role) -> Self {
        match (kind, sender) {
            // The SSM agent sends 1,024 bytes per 1.1 ms: a frame is two of its messages, and what is in
            // flight is what a keystroke waits for.
            (LaneKind::Ssm, Role::Agent) => Self {
                window: 128 * 1024,
                segment: 2048 - SEGMENT_OVERHEAD,
                frame: 2048 - SEGMENT_OVERHEAD - mux::HEADER,
                ack_after: 32 * 1024,
            },
            // Each ack costs the SSM agent one of its 800 messages a second.
            (LaneKind::Ssm, Role::Client) => Self {
                window: 4 << 20,
                segment: MAX_SEGMENT,
                frame: 8192 - SEGMENT_OVERHEAD - mux::HEADER,
                ack_after: 128 * 1024,
            },
            // Nothing paces it but the systems' own buffers, so fewer and longer is better.
            (LaneKind::Tcp, Role::Agent | Role::Client) => Self {
                window: 4 << 20,
                segment: MAX_SEGMENT,
                frame: MAX_SEGMENT - mux::HEADER,
                ack_after: 256 * 1024,
            },
        }
    }
}

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
    pub(super) outbound: Outbound,
    pub(super) inbound: Inbound,
    pub(super) pings: Pings,
    pub(super) pongs: VecDeque<u64>,
    attached: Instant,
    last_heard: Instant,
    rtt: Rtt,
    pub(super) bytes_sent: u64,
    bytes_received: u64,
}

/// Segments on their way to the peer.
pub(super) struct Outbound {
    profile: LaneProfile,
    /// In the order of their sequence numbers, the oldest right after `acked`.
    in_flight: VecDeque<InFlight>,
    bytes: usize,
    /// Highest sequence number the peer has received; the first segment is 1.
    acked: u32,
}

#[derive(Clone, Copy)]
struct InFlight {
    offset: u64,
    length: u32,
    sent_at: Instant,
}

/// Segments from the peer, and the ack it is owed for them.
pub(super) struct Inbound {
    ack_after: usize,
    /// Highest sequence number received.
    pub(super) sequence: u32,
    unacknowledged: usize,
    ack_at: Option<Instant>,
    ack_now: bool,
}

#[derive(Default)]
struct Rtt {
    smoothed: Option<Duration>,
    least: Option<Duration>,
}

impl Lane {
    pub(super) fn new(
        id: LaneId,
        kind: LaneKind,
        role: Role,
        hello: [u8; 32],
        entropy: u64,
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
            outbound: Outbound::new(LaneProfile::of(kind, role)),
            inbound: Inbound::new(LaneProfile::of(kind, role.other())),
            pings: Pings::new(role, entropy ^ id.0),
            pongs: VecDeque::new(),
            attached: now,
            last_heard: now,
            rtt: Rtt::default(),
            bytes_sent: 0,
            bytes_received: 0,
        }
    }

    /// Bytes arrived on the lane.
    pub(super) fn received(&mut self, bytes: usize) {
        self.bytes_received += bytes as u64;
    }

    /// A whole frame arrived.
    pub(super) fn heard(&mut self, now: Instant) {
        self.last_heard = self.last_heard.max(now);
        self.pings.heard = true;
    }

    pub(super) fn handle_ack(&mut self, sequence: u32, now: Instant) -> Result<(), LaneFault> {
        if let Some(sent_at) = self.outbound.acknowledge(sequence)? {
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

    /// Whether a record would have more in it than segments.
    pub(super) fn owes(&self) -> bool {
        self.inbound.ack_now || self.pings.due || !self.pongs.is_empty()
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

    pub(super) fn least_rtt(&self) -> Option<Duration> {
        self.rtt.least
    }

    pub(super) fn stats(&self) -> LaneStats {
        LaneStats {
            lane: self.id,
            kind: self.kind,
            rtt: self.rtt.smoothed,
            least_rtt: self.rtt.least,
            in_flight: self.outbound.bytes,
            window: self.outbound.profile.window,
            sent: self.bytes_sent,
            received: self.bytes_received,
            attached: self.attached,
            last_heard: self.last_heard,
        }
    }
}

impl Outbound {
    fn new(profile: LaneProfile) -> Self {
        Self { profile, in_flight: VecDeque::new(), bytes: 0, acked: 0 }
    }

    /// A segment goes out; its sequence number.
    pub(super) fn send(&mut self, offset: u64, length: usize, now: Instant) -> u32 {
        self.in_flight.push_back(InFlight { offset, length: length as u32, sent_at: now });
        self.bytes += length;
        self.acked.wrapping_add(self.in_flight.len() as u32)
    }

    /// All segments up to `sequence` have arrived; when the last of them was sent, if that is news.
    fn acknowledge(&mut self, sequence: u32) -> Result<Option<Instant>, LaneFault> {
        let news = sequence.wrapping_sub(self.acked);
        if news > u32::MAX / 2 {
            return Ok(None);
        }
        if news as usize > self.in_flight.len() {
            return Err(LaneFault::AckOfUnsentSegment { sequence });
        }
        self.acked = sequence;
        let arrived = self.in_flight.drain(..news as usize);
        let (bytes, last) = arrived
            .fold((0, None), |(bytes, _), segment| (bytes + segment.length as usize, Some(segment.sent_at)));
        self.bytes -= bytes;
        Ok(last)
    }

    /// How many bytes may go out now.
    pub(super) fn room(&self) -> usize {
        if self.in_flight.len() >= MOST_IN_FLIGHT {
            0
        } else {
            self.profile.window.saturating_sub(self.bytes)
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    pub(super) fn longest_segment(&self) -> usize {
        self.profile.segment
    }

    pub(super) fn longest_frame(&self) -> usize {
        self.profile.frame
    }

    /// Offsets and lengths of what may not have arrived.
    pub(super) fn in_flight(&self) -> impl Iterator<Item = (u64, usize)> {
        self.in_flight.iter().map(|segment| (segment.offset, segment.length as usize))
    }
}

impl Inbound {
    /// The first ack is due at the attach: it tells what has arrived on other lanes.
    fn new(peer: LaneProfile) -> Self {
        Self { ack_after: peer.ack_after, sequence: 0, unacknowledged: 0, ack_at: None, ack_now: true }
    }

    /// Whether the segment is the next of the lane; `false` when it was here already.
    pub(super) fn is_next(&self, sequence: u32) -> Result<bool, LaneFault> {
        match sequence.wrapping_sub(self.sequence) {
            1 => Ok(true),
            0 | 0x8000_0000.. => Ok(false),
            _ => Err(LaneFault::Gap { expected: self.sequence.wrapping_add(1), got: sequence }),
        }
    }

    pub(super) fn taken(&mut self, sequence: u32, length: usize, now: Instant) {
        self.sequence = sequence;
        self.unacknowledged += length;
        if self.unacknowledged >= self.ack_after {
            self.ack_now = true;
        } else if self.ack_at.is_none() {
            self.ack_at = Some(now + ACK_DELAY);
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        if self.ack_at.is_some_and(|at| at <= now) {
            self.ack_at = None;
            self.ack_now = true;
        }
    }

    /// Whether an ack goes out now, given that a record with segments is made or not.
    pub(super) fn take_ack(&mut self, with_segments: bool, now: Instant) -> bool {
        let due = self.ack_now || self.ack_at.is_some_and(|at| at <= now || with_segments);
        if due {
            (self.unacknowledged, self.ack_at, self.ack_now) = (0, None, false);
        }
        due
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

/// Segments in flight on one lane; short ones wait and go out as one.
pub(super) const MOST_IN_FLIGHT: usize = 1024;
/// How long a receiver keeps an ack back.
const ACK_DELAY: Duration = Duration::from_millis(5);
const MOST_PONGS: usize = 8;

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
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
        assert_eq!(lane.stats().rtt, None);
        lane.handle_pong(id, start + Duration::from_millis(40));
        lane.handle_pong(id, start + Duration::from_millis(90));
        assert_eq!(lane.stats().rtt, Some(Duration::from_millis(40)));

        let sequence = lane.outbound.send(0, 10, start);
        lane.handle_ack(sequence, start + Duration::from_millis(45)).unwrap();
        assert_eq!(lane.stats().rtt, Some(Duration::from_millis(40)));
        assert_eq!(lane.stats().least_rtt, Some(Duration::from_millis(40)));
    }

    #[test]
    fn acks_free_the_window_and_old_ones_do_nothing() {
        let (mut lane, now) = lane(Role::Agent);
        let window = lane.outbound.room();
        for index in 1..=4u32 {
            assert_eq!(lane.outbound.send(u64::from(index) * 100, 100, now), index);
        }
        lane.handle_ack(3, now).unwrap();
        lane.handle_ack(1, now).unwrap();
        lane.handle_ack(3, now).unwrap();
        assert_eq!(lane.outbound.room(), window - 100);
        assert_eq!(lane.outbound.in_flight().collect::<Vec<_>>(), [(400, 100)]);
        assert_eq!(lane.handle_ack(5, now), Err(LaneFault::AckOfUnsentSegment { sequence: 5 }));
        assert_eq!(lane.outbound.send(500, 1, now), 5);
    }

    #[test]
    fn sequence_numbers_go_round() {
        let (mut lane, now) = lane(Role::Agent);
        lane.outbound.acked = u32::MAX - 1;
        lane.inbound.sequence = u32::MAX - 1;
        for expected in [u32::MAX, 0, 1] {
            assert_eq!(lane.outbound.send(0, 1, now), expected);
            assert_eq!(lane.inbound.is_next(expected), Ok(true));
            assert!(lane.inbound.is_next(expected.wrapping_add(1)).is_err());
            lane.inbound.taken(expected, 1, now);
            assert_eq!(lane.inbound.is_next(expected), Ok(false));
            assert_eq!(lane.inbound.is_next(expected.wrapping_sub(9)), Ok(false));
        }
        lane.handle_ack(0, now).unwrap();
        lane.handle_ack(u32::MAX, now).unwrap();
        assert_eq!(lane.outbound.in_flight().count(), 1);
    }

    #[test]
    fn acks_go_after_enough_bytes_or_5_ms() {
        let (mut lane, now) = lane(Role::Client);
        assert!(lane.inbound.take_ack(false, now));
        lane.inbound.taken(1, 100, now);
        assert!(!lane.inbound.take_ack(false, now));
        assert_eq!(lane.poll_timeout(), Some(now + ACK_DELAY));
        lane.inbound.taken(2, 32 * 1024, now);
        assert!(lane.owes() && lane.inbound.take_ack(false, now));
        assert_eq!(lane.poll_timeout(), None);

        lane.inbound.taken(3, 1, now);
        assert!(lane.inbound.take_ack(true, now));
        lane.inbound.taken(4, 1, now);
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
        while lane.outbound.room() > 0 {
            lane.outbound.send(0, 1, now);
        }
        assert_eq!(lane.outbound.in_flight().count(), MOST_IN_FLIGHT);
    }

    fn lane(role: Role) -> (Lane, Instant) {
        let now = Instant::now();
        (Lane::new(LaneId(1), LaneKind::Ssm, role, [0; 32], 0, now), now)
    }
}
