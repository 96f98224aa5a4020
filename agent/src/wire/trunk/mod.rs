//! Pure: one ordered byte stream each way over one or more lanes.
//!
//! Order of use, at both ends: `attach` a lane after its handshake. Then, whenever bytes arrive,
//! `handle_bytes`; whenever a timer is due, `handle_timeout`; whenever something may have changed, let the mux
//! write into `spare` as far as `send_room` goes (`commit`), then `poll_record` for each lane that takes a
//! record, until nothing moves; then `poll_event`. `detach` a lane that ended, or that a fault or event says is
//! to be closed. A trunk without a lane keeps everything and waits.
//!
//! Rules that make it safe:
//! - Bytes are kept until the peer has acknowledged them; those of a dead lane go out again on the others.
//! - Nobody passes the peer's credit, and credit is given back as bytes are placed, so a lane is always read.
//! - Acks are sent on receipt, apart from the mux, and are never acknowledged themselves.
//! - Every frame is harmless when it comes twice. One that does not add up closes its lane, never the trunk.
//!
//! Limits: bytes kept ([`TrunkConfig::replay`]), bytes held beyond a gap ([`TrunkConfig::credit`]), segments in
//! flight on a lane (1,024), and one cut frame for each lane.

mod fault;
mod lane;
mod ping;
mod receive;
mod record;
pub mod segment;
mod send;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

pub use self::fault::{GoodbyeReason, LaneFault, LaneReason};
use self::lane::Lane;
pub use self::lane::LaneProfile;
use self::receive::Receiver;
use self::segment::{Frame, Parser};
use self::send::Sender;
pub use super::Role;
use super::hello;

/// Names a lane for the whole life of its trunk; chosen at random by the client for each lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(pub u64);

/// What a lane is made of; decides its pacing at both ends. Told in the hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneKind {
    Ssm,
    Tcp,
}

#[derive(Clone, Debug)]
pub struct TrunkConfig {
    pub role: Role,
    /// How many bytes beyond the placed ones we take: the most that is held beyond a gap.
    pub credit: u64,
    /// The most bytes kept for the peer's acknowledgement.
    pub replay: usize,
    /// The most bytes that wait for a lane: what a keystroke of the mux waits for besides those in flight.
    pub unsent: usize,
    /// Where the ids of pings begin.
    pub entropy: u64,
}

impl TrunkConfig {
    pub const fn new(role: Role, entropy: u64) -> Self {
        Self { role, credit: 4 << 20, replay: 4 << 20, unsent: 128 * 1024, entropy }
    }
}

/// One end of a trunk.
pub struct Trunk {
    config: TrunkConfig,
    lanes: Vec<Lane>,
    sender: Sender,
    receiver: Receiver,
    events: VecDeque<TrunkEvent>,
    ping_interval: Option<Duration>,
    /// Set by our side: nothing but the farewell is sent any more.
    farewell: Option<GoodbyeReason>,
    heard_goodbye: bool,
    /// The latest time any call has told.
    clock: Option<Instant>,
    attached_before: bool,
    resumes: u64,
    faults: u64,
}

/// What the owner of a trunk is to act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrunkEvent {
    /// The lane is to be closed and detached.
    LaneDead { lane: LaneId, reason: LaneReason },
    /// The peer ended the trunk.
    Goodbye { reason: GoodbyeReason, text: String },
}

/// Counts since the trunk was made, and what it keeps now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrunkStats {
    /// Bytes of the stream sent, each counted once.
    pub sent: u64,
    /// Bytes of the stream placed.
    pub received: u64,
    /// Bytes sent again after a lane was lost.
    pub resent: u64,
    /// Bytes that came more than once.
    pub duplicates: u64,
    /// Lanes closed because a frame did not add up.
    pub faults: u64,
    /// Attaches of a lane after there was none.
    pub resumes: u64,
    /// Bytes kept for the peer's acknowledgement.
    pub unacknowledged: usize,
    /// Bytes held beyond a gap.
    pub held: usize,
    pub lanes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneStats {
    pub lane: LaneId,
    pub kind: LaneKind,
    pub rtt: Option<Duration>,
    pub least_rtt: Option<Duration>,
    /// Bytes of the stream on their way to the peer.
    pub in_flight: usize,
    pub window: usize,
    /// Bytes on the lane, frames and all.
    pub sent: u64,
    pub received: u64,
    pub attached: Instant,
    /// When the last whole frame arrived.
    pub last_heard: Instant,
}

impl Trunk {
    pub fn new(config: TrunkConfig) -> Self {
        Self {
            lanes: Vec::new(),
            sender: Sender::new(INITIAL_CREDIT, config.replay),
            receiver: Receiver::new(config.credit),
            events: VecDeque::new(),
            ping_interval: None,
            farewell: None,
            heard_goodbye: false,
            clock: None,
            attached_before: false,
            resumes: 0,
            faults: 0,
            config,
        }
    }

    /// Adds a lane whose handshake is done. `hello` is the digest of its hello, whose repeats are dropped.
    ///
    /// A lane of the same name is replaced.
    pub fn attach(&mut self, lane: LaneId, kind: LaneKind, hello: [u8; 32], now: Instant) {
        self.detach(lane, now);
        self.tick(now);
        self.resumes += u64::from(self.attached_before && self.lanes.is_empty());
        self.attached_before = true;
        let mut lane = Lane::new(lane, kind, self.config.role, hello, self.config.entropy, now);
        lane.pings.set(self.ping_interval, now);
        self.lanes.push(lane);
    }

    /// What the client's hello on this lane says it has received, so that it is not sent again.
    pub fn peer_received(&mut self, lane: LaneId, cum: u64) -> Result<(), LaneFault> {
        let index = self.position(lane)?;
        self.sender.acknowledge(cum).inspect_err(|_| self.faults += 1)?;
        self.lanes[index].informed = true;
        Ok(())
    }

    /// Forgets a lane. What it had in flight goes out again on the others, or on the next one.
    pub fn detach(&mut self, lane: LaneId, now: Instant) {
        self.tick(now);
        let Ok(index) = self.position(lane) else { return };
        let lane = self.lanes.swap_remove(index);
        for (offset, length) in lane.outbound.in_flight() {
            self.sender.lost(offset, length);
        }
        let id = lane.id;
        self.events.retain(|event| !matches!(event, TrunkEvent::LaneDead { lane, .. } if *lane == id));
        if self.lanes.is_empty() {
            self.sender.shrink();
        }
    }

    /// Takes what a lane gave, cut anywhere; `place` gets the bytes of the stream in order.
    ///
    /// After a fault the lane is closed: it takes and gives nothing more and is to be detached.
    pub fn handle_bytes(
        &mut self,
        lane: LaneId,
        bytes: &[u8],
        now: Instant,
        place: &mut dyn FnMut(&[u8]),
    ) -> Result<(), LaneFault> {
        let index = self.position(lane)?;
        if self.lanes[index].closed {
            return Err(LaneFault::Closed);
        }
        self.tick(now);
        self.lanes[index].received(bytes.len());
        let mut parser = std::mem::take(&mut self.lanes[index].parser);
        let result = self.handle_frames(index, &mut parser, bytes, now, place);
        let lane = &mut self.lanes[index];
        lane.parser = parser;
        if result.is_err() {
            lane.closed = true;
            self.faults += 1;
        }
        result
    }

    /// Fills `record` with whole frames for the lane, at most `room` bytes; `false` when there is nothing to send.
    ///
    /// A `room` under [`LEAST_RECORD`] may be too small for any frame.
    pub fn poll_record(&mut self, lane: LaneId, room: usize, record: &mut Vec<u8>, now: Instant) -> bool {
        let Ok(index) = self.position(lane) else { return false };
        self.tick(now);
        let lane = &mut self.lanes[index];
        if lane.closed {
            return false;
        }
        let before = record.len();
        if let Some(reason) = self.farewell {
            record::say_goodbye(lane, reason, room, record);
        } else {
            let segments = self.sender.next(lane.informed).is_some() && lane.outbound.room() > 0;
            record::put_control(lane, &mut self.receiver, segments, room, record, now);
            record::put_segments(lane, &mut self.sender, room, record, now);
        }
        lane.bytes_sent += (record.len() - before) as u64;
        record.len() > before
    }

    /// Where the mux writes next: contiguous, at most `send_room`.
    pub fn spare(&mut self) -> &mut [u8] {
        let room = self.send_room();
        self.sender.spare(room)
    }

    /// Takes the first `written` bytes of what `spare` gave.
    pub fn commit(&mut self, written: usize) {
        self.sender.commit(written);
    }

    /// The next thing to act on.
    pub fn poll_event(&mut self) -> Option<TrunkEvent> {
        self.events.pop_front()
    }

    /// The trunk ends: told on every lane, now or attached later; nothing else is sent any more.
    pub fn goodbye(&mut self, reason: GoodbyeReason) {
        self.farewell.get_or_insert(reason);
    }

    /// Asks on each lane in this interval whether it lives; to be set while flows are open.
    pub fn set_ping(&mut self, interval: Option<Duration>) {
        self.ping_interval = interval;
        if let Some(now) = self.clock {
            self.lanes.iter_mut().for_each(|lane| lane.pings.set(interval, now));
        }
    }

    /// Acts on timers that are due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.tick(now);
        for lane in &mut self.lanes {
            if lane.handle_timeout(now) {
                self.events
                    .push_back(TrunkEvent::LaneDead { lane: lane.id, reason: LaneReason::PingsMissed });
            }
        }
    }

    /// When `handle_timeout` wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.lanes.iter().filter_map(Lane::poll_timeout).min()
    }

    /// Bytes the mux may add now, as far as credit, memory and the lanes' windows go; 0 without a lane.
    ///
    /// It comes in steps: a room that is hardly worth a frame counts as none while more will follow.
    pub fn send_room(&self) -> usize {
        if self.farewell.is_some() || self.heard_goodbye {
            return 0;
        }
        let waiting = self.sender.waiting();
        let lanes: usize = self.open_lanes().map(|lane| lane.outbound.room()).sum();
        let room = self
            .sender
            .room()
            .min(lanes.saturating_sub(waiting))
            .min(self.config.unsent.saturating_sub(waiting));
        if room < LEAST_ROOM { 0 } else { room }
    }

    /// Bytes that wait for a lane.
    pub fn unsent(&self) -> usize {
        self.sender.waiting()
    }

    /// Whether `poll_record` has something for the lane, given room.
    pub fn wants_to_send(&self, lane: LaneId) -> bool {
        self.open_lanes().find(|open| open.id == lane).is_some_and(|lane| match self.farewell {
            Some(_) => !lane.said_goodbye,
            None => lane.owes() || (lane.outbound.room() > 0 && self.sender.next(lane.informed).is_some()),
        })
    }

    /// How many bytes of the stream have arrived in order: told in the hello of the next lane.
    pub fn received(&self) -> u64 {
        self.receiver.placed()
    }

    /// Whether everything committed has been acknowledged.
    pub fn is_drained(&self) -> bool {
        self.sender.unacknowledged() == 0
    }

    /// Whether nothing waits for an acknowledgement, neither of the peer nor of a lane.
    pub fn is_settled(&self) -> bool {
        self.is_drained() && self.lanes.iter().all(|lane| lane.outbound.is_idle())
    }

    pub fn stats(&self) -> TrunkStats {
        TrunkStats {
            sent: self.sender.sent(),
            received: self.receiver.placed(),
            resent: self.sender.resent,
            duplicates: self.receiver.duplicates,
            faults: self.faults,
            resumes: self.resumes,
            unacknowledged: self.sender.unacknowledged(),
            held: self.receiver.held_bytes(),
            lanes: self.lanes.len(),
        }
    }

    pub fn lane_stats(&self) -> impl Iterator<Item = LaneStats> {
        self.lanes.iter().map(Lane::stats)
    }

    /// The shortest round trip that any lane has seen.
    pub fn least_rtt(&self) -> Option<Duration> {
        self.lanes.iter().filter_map(Lane::least_rtt).min()
    }

    /// The longest frame of the mux that suits every lane.
    pub fn longest_frame(&self) -> Option<usize> {
        self.open_lanes().map(|lane| lane.outbound.longest_frame()).min()
    }

    fn handle_frames(
        &mut self,
        index: usize,
        parser: &mut Parser,
        mut input: &[u8],
        now: Instant,
        place: &mut dyn FnMut(&[u8]),
    ) -> Result<(), LaneFault> {
        while let Some(frame) = parser.next_frame(&mut input).map_err(LaneFault::Frame)? {
            let lane = &mut self.lanes[index];
            lane.heard(now);
            match frame {
                Frame::Segment { offset, sequence, bytes } => {
                    if lane.inbound.is_next(sequence)? {
                        self.receiver.handle_segment(offset, bytes, place)?;
                        lane.inbound.taken(sequence, bytes.len(), now);
                    } else {
                        self.receiver.duplicates += bytes.len() as u64;
                    }
                }
                Frame::Ack { cum, credit, sequence } => {
                    lane.handle_ack(sequence, now)?;
                    self.sender.acknowledge(cum)?;
                    self.sender.raise_credit(credit);
                }
                Frame::Ping { id } => lane.handle_ping(id),
                Frame::Pong { id } => lane.handle_pong(id, now),
                Frame::Goodbye { reason, text } => self.handle_goodbye(reason, text),
                Frame::Greeting(_) | Frame::Welcome(_) if self.config.role == Role::Client => {}
                Frame::Hello(body) if self.config.role == Role::Agent => {
                    if hello::digest(body) != lane.hello {
                        return Err(LaneFault::OtherHello);
                    }
                }
                Frame::Greeting(_) | Frame::Hello(_) | Frame::Welcome(_) | Frame::Deny { .. } => {
                    return Err(LaneFault::Handshake);
                }
            }
        }
        Ok(())
    }

    fn handle_goodbye(&mut self, reason: u8, text: &str) {
        if !std::mem::replace(&mut self.heard_goodbye, true) {
            let text = text.chars().filter(|char| !char.is_control()).collect();
            self.events.push_back(TrunkEvent::Goodbye { reason: GoodbyeReason::from_code(reason), text });
        }
    }

    fn open_lanes(&self) -> impl Iterator<Item = &Lane> {
        self.lanes.iter().filter(|lane| !lane.closed)
    }

    fn position(&self, lane: LaneId) -> Result<usize, LaneFault> {
        self.lanes.iter().position(|attached| attached.id == lane).ok_or(LaneFault::UnknownLane)
    }

    fn tick(&mut self, now: Instant) {
        self.clock = Some(self.clock.map_or(now, |clock| clock.max(now)));
    }
}

/// The credit both ends have before the first ack.
pub const INITIAL_CREDIT: u64 = 256 * 1024;
/// Every control frame finds place in a record of this size.
pub const LEAST_RECORD: usize = 64;
const LEAST_ROOM: usize = 1024;
