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
//! flight on a lane (1,024), and one cut frame for each lane. How much is in flight on a lane is the matter of
//! `pace.rs`, which lane sends what that of `stripe.rs`.

mod delay;
mod demand;
mod dispatch;
mod fault;
mod inbound;
mod lane;
mod outbound;
mod pace;
mod ping;
mod profile;
mod ranges;
mod rate;
mod receive;
mod record;
pub mod segment;
mod send;
#[cfg(test)]
mod sim;
mod stats;
mod stripe;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use self::demand::Appetite;
pub use self::demand::Demand;
pub use self::fault::{GoodbyeReason, LaneFault, LaneReason};
use self::lane::Lane;
pub use self::pace::PaceLimits;
pub use self::profile::LaneProfile;
use self::rate::Meter;
use self::receive::Receiver;
use self::record::Draft;
pub use self::record::Record;
#[cfg(test)]
use self::segment::{Frame, Parser};
use self::send::Sender;
pub use self::stats::{LaneStats, TrunkStats};
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
    /// The most bytes that wait for a lane; never more than lanes have room for and, for one lane, than fit in its record.
    pub unsent: usize,
    /// Where the ids of pings begin.
    pub entropy: u64,
}

impl TrunkConfig {
    pub const fn new(role: Role, entropy: u64) -> Self {
        Self { role, credit: 16 << 20, replay: 16 << 20, unsent: 512 * 1024, entropy }
    }
}

/// One end of a trunk.
pub struct Trunk {
    config: TrunkConfig,
    lanes: Vec<Lane>,
    sender: Sender,
    /// The record that was made last.
    draft: Draft,
    receiver: Receiver,
    events: VecDeque<TrunkEvent>,
    ping_interval: Option<Duration>,
    /// Set by our side: nothing but the farewell is sent any more.
    farewell: Option<GoodbyeReason>,
    heard_goodbye: bool,
    /// The latest time any call has told.
    clock: Option<Instant>,
    /// When our clock for the peer's delays began.
    epoch: Option<Instant>,
    appetite: Appetite,
    /// Bytes of the stream that go out for the first time.
    sending: Meter,
    /// The mux has more to send.
    backlog: bool,
    /// How many lanes the peer has use for.
    peer_wants: u8,
    attached_before: bool,
    resumes: u64,
    faults: u64,
}

/// What the owner of a trunk is to act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrunkEvent {
    /// The lane is to be closed and detached.
    LaneDead { lane: LaneId, reason: LaneReason },
    /// Nothing is acknowledged on the lane for a while. It may recover; a replacement should be made.
    LaneStalled { lane: LaneId },
    /// A lane we retire carries nothing more: it may be closed and detached.
    LaneDrained { lane: LaneId },
    /// The peer ended the trunk.
    Goodbye { reason: GoodbyeReason, text: String },
}

impl TrunkEvent {
    fn lane(&self) -> Option<LaneId> {
        match self {
            Self::LaneDead { lane, .. } | Self::LaneStalled { lane } | Self::LaneDrained { lane } => {
                Some(*lane)
            }
            Self::Goodbye { .. } => None,
        }
    }
}

impl Trunk {
    pub fn new(config: TrunkConfig) -> Self {
        Self {
            lanes: Vec::new(),
            sender: Sender::new(INITIAL_CREDIT, config.replay),
            draft: Draft::default(),
            receiver: Receiver::new(config.credit),
            events: VecDeque::new(),
            ping_interval: None,
            farewell: None,
            heard_goodbye: false,
            clock: None,
            epoch: None,
            appetite: Appetite::default(),
            sending: Meter::default(),
            backlog: false,
            peer_wants: 0,
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
        self.appetite.added(self.load(false), now);
        let epoch = *self.epoch.get_or_insert(now);
        let mut lane = Lane::new(lane, kind, self.config.role, hello, self.config.entropy, epoch, now);
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
        self.events.retain(|event| event.lane() != Some(id));
        self.appetite.removed();
        self.settle_suspects();
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
        self.lanes[index].received(bytes.len(), now);
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
        let parts = self.poll_parts(lane, room.saturating_sub(record.len()), now);
        parts.as_ref().into_iter().flat_map(Record::parts).for_each(|part| record.extend_from_slice(part));
        parts.is_some()
    }

    /// Gives the record that [`poll_record`](Self::poll_record) would fill in parts, without a copy of the stream's bytes.
    pub fn poll_parts(&mut self, lane: LaneId, room: usize, now: Instant) -> Option<Record<'_>> {
        let index = self.position(lane).ok()?;
        self.tick(now);
        let lane = &mut self.lanes[index];
        if lane.closed {
            return None;
        }
        let record = &mut self.draft;
        record.clear();
        if let Some(reason) = self.farewell {
            record::say_goodbye(lane, reason, room, record);
        } else {
            let waits = self.sender.next(lane.informed).is_some() && lane.room(now) > 0;
            let segments = waits && !stripe::is_better_elsewhere(&self.lanes, index, now);
            let lane = &mut self.lanes[index];
            let wanted = self.appetite.wanted();
            record::put_control(lane, &mut self.receiver, wanted, segments, room, record, now);
            if segments {
                let sent = self.sender.sent();
                record::put_segments(lane, &mut self.sender, room, record, now);
                self.sending.add((self.sender.sent() - sent) as usize, now);
            } else {
                lane.note_idle(now);
            }
        }
        let length = record.len();
        self.lanes[index].sent(length, now);
        (length > 0).then_some(Record { draft: &self.draft, sender: &self.sender })
    }

    /// Whether the lane's IO takes a record now. A lane that does not is not waited for.
    pub fn set_ready(&mut self, lane: LaneId, ready: bool) {
        if let Ok(index) = self.position(lane) {
            self.lanes[index].ready = ready;
        }
    }

    /// Puts nothing new on a lane, and asks the peer to do the same; [`TrunkEvent::LaneDrained`] follows once
    /// all that is under way on it has arrived. Its last bytes are acknowledged meanwhile.
    pub fn retire(&mut self, lane: LaneId) {
        if let Ok(index) = self.position(lane) {
            let retirement = &mut self.lanes[index].retirement;
            (retirement.ours, retirement.begun) = (true, true);
        }
    }

    /// Asks on this lane whether it lives, at once and once.
    pub fn ask(&mut self, lane: LaneId) {
        if let Ok(index) = self.position(lane) {
            self.lanes[index].pings.due = true;
        }
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
        self.check_progress(now);
    }

    /// When `handle_timeout` wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let lanes = self.lanes.iter().filter_map(Lane::poll_timeout);
        lanes.chain(self.progress_timeout()).chain(self.room_timeout()).min()
    }

    /// Bytes the mux may add now, as far as credit, memory and the lanes' windows go; 0 without a lane.
    ///
    /// It comes in steps: a room that is hardly worth a frame counts as none while more will follow.
    pub fn send_room(&self) -> usize {
        if self.farewell.is_some() || self.heard_goodbye {
            return 0;
        }
        let waiting = self.sender.waiting();
        let Some(now) = self.clock else { return 0 };
        let lanes: usize = self.lanes.iter().map(|lane| lane.room(now)).sum();
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
            None => {
                lane.owes()
                    || (self.clock.is_some_and(|now| lane.room(now) > 0)
                        && self.sender.next(lane.informed).is_some())
            }
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

    /// The longest frame of the mux that suits every lane.
    pub fn longest_frame(&self) -> Option<usize> {
        self.lanes.iter().filter(|lane| lane.is_usable()).map(|lane| lane.outbound.longest_frame()).min()
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
