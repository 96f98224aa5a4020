//! Pure: streams over one ordered byte stream, in yamux's wire format (`frame.rs` has the byte table).
//!
//! Order of use: whatever arrives goes through [`Mux::handle_bytes`]; whatever the owner has to say through
//! `open`, `ready`, `finish`, `reset` and `set_room`; then [`Mux::poll_frames`] fills what is to be sent.
//! All of them may be called at any time in any order, but never from inside a [`Streams`] callback.
//!
//! - A stream begins with a window of [`MuxConfig::initial_window`] both ways, without a word. Its owner has
//!   that much room when it opens or accepts the stream, and tells the true room at once with `set_room`.
//! - Credit is never given beyond the owner's room, nor beyond the window less what the owner has not
//!   consumed; windows double with use, see `window.rs`.
//! - SYN and ACK ride on a stream's first frame each way, FIN on its last.
//! - Control frames go first, then sparse streams, then bulk, see `schedule.rs`.
//! - Every queue holds a stream at most once; pongs and resets are bounded by numbers of their own.
//!
//! Nothing here walks over the streams: each call costs the same with one and with 65,536 of them.

mod frame;
mod receive;
mod schedule;
mod send;
mod table;
mod window;

#[cfg(test)]
mod tests;

use std::fmt;
use std::time::{Duration, Instant};

pub use frame::Violation;

pub use super::Role;
pub(in crate::wire) use frame::HEADER;
use receive::Incoming;
use schedule::Schedule;
use send::Control;
use table::{Greeting, Queue, Stream, Table, UPDATES};

/// Names a stream on the wire: odd from the client, even from the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u32);

/// The owner's own name for a stream, given at `open` or `accept`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u32);

/// Where the mux gets the bytes of its streams, and where it puts them.
pub trait Streams {
    /// The far side opened a stream; `None` resets it.
    fn accept(&mut self, id: StreamId) -> Option<Token>;
    /// Moves waiting bytes of the stream into `buf`; 0 means nothing now (call [`Mux::ready`] when there is).
    /// Called until it gives 0 or `buf` is full.
    fn pull(&mut self, token: Token, buf: &mut [u8]) -> usize;
    /// Takes bytes that arrived; never more than was granted.
    fn push(&mut self, token: Token, bytes: &[u8]);
    /// The far side finished its direction.
    fn finished(&mut self, token: Token);
    /// The far side reset the stream, which is gone from the mux.
    fn reset(&mut self, token: Token);
    /// The far side broke the stream's rules: it was reset, and is gone from the mux.
    fn broken_off(&mut self, token: Token) {
        self.reset(token);
    }
    /// Both directions are finished: the stream is gone from the mux.
    fn closed(&mut self, token: Token);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MuxConfig {
    /// Decides whose stream ids are odd.
    pub role: Role,
    /// Bytes each side may send on a new stream; both ends must agree on it.
    pub initial_window: u32,
    /// Largest receive window of one stream.
    pub max_window: u32,
    /// Streams open at a time, whoever opened them. The peer's next one is reset.
    pub max_streams: usize,
    /// Largest payload of a data frame we send.
    pub max_frame: usize,
    /// Bytes by which all receive windows together may exceed their initial size.
    pub budget: usize,
    /// Whether to acknowledge a stream before there is anything else to say on it. Foreign peers hold
    /// back opens, or close, while too many are unacknowledged.
    pub prompt_ack: bool,
}

impl MuxConfig {
    /// For a peer that runs this mux too.
    pub fn new(role: Role) -> Self {
        Self {
            role,
            initial_window: 16 << 10,
            max_window: 4 << 20,
            max_streams: 65_536,
            max_frame: 16 << 10,
            budget: 64 << 20,
            prompt_ack: false,
        }
    }

    /// For any other yamux peer: the windows its specification wants.
    pub fn foreign(role: Role) -> Self {
        Self { initial_window: 256 << 10, prompt_ack: true, ..Self::new(role) }
    }
}

/// Why no stream can be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MuxFull {
    /// As many streams are open as the configuration allows: refuse the flow, later ones may succeed.
    Streams,
    /// This mux has used up its stream ids: a new trunk is needed.
    Ids,
    /// The peer said that it leaves, or the mux has failed: a new trunk is needed.
    Left,
}

impl fmt::Display for MuxFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Streams => "as many streams are open as one trunk takes; close some connections",
            Self::Ids => "the trunk has used up its stream ids; it must be replaced",
            Self::Left => "the other end takes no more streams on this trunk; it must be replaced",
        })
    }
}

impl std::error::Error for MuxFull {}

/// Why the mux, and the trunk below it, cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MuxFault {
    /// The peer broke the protocol.
    Peer(Violation),
    /// The peer opens streams that are reset, and does not read the resets.
    Flood,
    /// The peer gave up: reason 1 says that we broke the protocol, others that it failed inside.
    GivenUp(u32),
}

impl fmt::Display for MuxFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(violation) => write!(f, "the other end broke the mux protocol: {violation}"),
            Self::Flood => f.write_str("the other end opens streams without reading that they are reset"),
            Self::GivenUp(1) => f.write_str("the other end says that this end broke the mux protocol"),
            Self::GivenUp(reason) => write!(f, "the other end's mux failed with reason {reason}"),
        }
    }
}

impl std::error::Error for MuxFault {}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MuxStats {
    /// Streams open now.
    pub open: usize,
    /// Streams opened by either side since the beginning.
    pub opened: u64,
    pub resets_sent: u64,
    pub resets_received: u64,
    /// Streams of the peer reset because `max_streams` were open.
    pub refused: u64,
    /// Streams reset because the peer broke their rules.
    pub violations: u64,
    /// Frames without effect: for streams that are gone, of the far side's late or needless kind.
    pub ignored: u64,
    /// Bytes that peers may send now, over all streams.
    pub granted: u64,
    /// Bytes by which receive windows exceed their initial size: the part of the budget in use.
    pub grown: usize,
}

/// Streams over one ordered byte stream.
#[derive(Debug)]
pub struct Mux {
    config: MuxConfig,
    table: Table,
    schedule: Schedule,
    updates: Queue<UPDATES>,
    control: Control,
    incoming: Incoming,
    next_id: Option<u32>,
    rtt: Duration,
    peer_left: bool,
    fault: Option<MuxFault>,
    stats: MuxStats,
}

impl Mux {
    pub fn new(config: MuxConfig) -> Self {
        let mut mux = Self {
            table: Table::default(),
            schedule: Schedule::default(),
            updates: Queue::default(),
            control: Control::default(),
            incoming: Incoming::default(),
            next_id: Some(match config.role {
                Role::Client => 1,
                Role::Agent => 2,
            }),
            rtt: FIRST_RTT,
            peer_left: false,
            fault: None,
            stats: MuxStats::default(),
            config,
        };
        mux.set_max_frame(config.max_frame);
        mux
    }

    /// Begins a stream. The far side hears of it with the first data frame, window update or FIN.
    pub fn open(&mut self, token: Token) -> Result<StreamId, MuxFull> {
        if self.peer_left || self.fault.is_some() {
            return Err(MuxFull::Left);
        }
        if self.table.len() >= self.config.max_streams {
            return Err(MuxFull::Streams);
        }
        let id = self.next_id.ok_or(MuxFull::Ids)?;
        self.next_id = id.checked_add(2);
        self.insert(id, token, Greeting::Syn);
        Ok(StreamId(id))
    }

    /// [`Streams::pull`] would give bytes. Needed again after `pull` gave 0, harmless at other times.
    pub fn ready(&mut self, id: StreamId) {
        if let Some(slot) = self.table.find(id.0) {
            self.table[slot].ready = true;
            self.join(slot);
        }
    }

    /// No more bytes will come than `pull` has or `ready` told of; FIN goes once `pull` has given 0.
    pub fn finish(&mut self, id: StreamId) {
        if let Some(slot) = self.table.find(id.0) {
            self.table[slot].finishing = true;
            self.join(slot);
        }
    }

    /// Ends both directions at once: the stream is gone from the mux without a callback.
    pub fn reset(&mut self, id: StreamId) {
        if let Some(slot) = self.table.find(id.0) {
            self.abort(slot);
        }
    }

    /// Sets how many bytes [`Streams::push`] takes from now on, all granted ones included. Room that grows
    /// is what the owner consumed.
    ///
    /// Called once as soon as the owner has the stream: bytes that came before the first call count as
    /// consumed. Then whenever room grew; in between the mux counts it down itself.
    pub fn set_room(&mut self, id: StreamId, room: usize, now: Instant) {
        let Some(slot) = self.table.find(id.0) else { return };
        let brisk = self.rtt.saturating_mul(2).saturating_add(TURNAROUND);
        let window = &mut self.table[slot].window;
        if window.set_room(room, now, brisk) {
            let most = self.config.max_window.saturating_sub(window.size());
            let budget = self.config.budget.saturating_sub(self.stats.grown);
            let by = window.size().min(most).min(u32::try_from(budget).unwrap_or(u32::MAX));
            window.grow(by);
            self.stats.grown += by as usize;
        }
        self.offer_credit(slot);
    }

    /// Hints at the least round trip of the trunk; windows that last shorter than two of them grow.
    pub fn set_rtt(&mut self, rtt: Duration) {
        self.rtt = rtt;
    }

    /// Sets the largest payload of a data frame, for all frames from now on.
    pub fn set_max_frame(&mut self, bytes: usize) {
        self.config.max_frame = bytes.clamp(MIN_PAYLOAD, MAX_PAYLOAD);
    }

    /// Tells the peer to open no more streams. Those that are open go on.
    pub fn leave(&mut self) {
        self.control.go_away = Some(frame::REASON_LEAVING);
    }

    /// Whether [`Mux::poll_frames`] may have something to write.
    pub fn wants_to_send(&self) -> bool {
        !self.control.is_empty()
            || self.fault.is_none() && !(self.updates.is_empty() && self.schedule.is_empty())
    }

    /// Streams open now.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the peer said that it leaves: it takes no new streams, those that are open go on.
    pub fn peer_left(&self) -> bool {
        self.peer_left
    }

    pub fn stats(&self) -> MuxStats {
        MuxStats { open: self.len(), ..self.stats }
    }

    fn insert(&mut self, id: u32, token: Token, greeting: Greeting) -> u32 {
        self.stats.opened += 1;
        self.stats.granted += u64::from(self.config.initial_window);
        self.table.insert(Stream::new(id, token, self.config.initial_window, greeting))
    }

    /// Forgets a stream and gives back all that it held.
    fn remove(&mut self, slot: u32) -> Token {
        self.schedule.leave(&mut self.table, slot);
        if self.table[slot].in_updates {
            self.updates.remove(&mut self.table, slot);
        }
        let stream = &self.table[slot];
        let token = stream.token;
        self.stats.grown -= (stream.window.size() - self.config.initial_window) as usize;
        self.stats.granted -= u64::from(stream.window.outstanding());
        self.table.remove(slot);
        token
    }

    /// Forgets a stream, and tells the far side if that has heard of it.
    fn abort(&mut self, slot: u32) -> Token {
        let stream = &self.table[slot];
        if stream.greeting != Greeting::Syn {
            self.control.resets.push_back(stream.id);
            self.stats.resets_sent += 1;
        }
        self.remove(slot)
    }

    fn join(&mut self, slot: u32) {
        self.schedule.join(&mut self.table, slot, quantum(&self.config));
    }

    fn offer_credit(&mut self, slot: u32) {
        let stream = &self.table[slot];
        if !stream.fin_seen && stream.window.is_due() {
            self.queue_update(slot);
        }
    }

    fn queue_update(&mut self, slot: u32) {
        if !std::mem::replace(&mut self.table[slot].in_updates, true) {
            self.updates.push(&mut self.table, slot);
        }
    }
}

/// What one turn may send: a whole frame.
fn quantum(config: &MuxConfig) -> i32 {
    // `set_max_frame` keeps it below MAX_PAYLOAD.
    (config.max_frame + HEADER) as i32
}

/// Until the owner knows better: a far region.
const FIRST_RTT: Duration = Duration::from_millis(100);
/// What both ends may take to answer, beside the round trip.
const TURNAROUND: Duration = Duration::from_millis(4);
/// A frame is not cut shorter than this to fill the rest of a buffer.
const MIN_PAYLOAD: usize = 64;
/// The yamux crate takes no longer frames.
const MAX_PAYLOAD: usize = 1 << 20;
