//! What the owner of an engine says to it and hears from it.

use std::fmt;
use std::time::Duration;

use tokio::sync::oneshot;

use super::flow::FlowReport;
use super::ledger::{FlowPage, Ledger};
use crate::lane::LaneIo;
use crate::wire::Role;
use crate::wire::mux::{MuxFault, MuxStats};
use crate::wire::trunk::{Demand, LaneId, LaneKind, LaneStats, TrunkStats};

/// What differs between the two ends and between lives of a trunk.
pub struct Config {
    pub role: Role,
    /// Ping each lane this often while flows are open or bytes under way.
    pub ping_interval: Duration,
    /// Randomness for ping ids.
    pub entropy: u64,
    /// Told of lanes as they come and go, until the engine begins to end.
    pub on_lane: Box<dyn FnMut(LaneNews)>,
}

/// A lane came or went.
#[derive(Clone, Debug)]
pub enum LaneNews {
    Attached {
        lane: LaneId,
        lanes: usize,
    },
    Lost {
        lane: LaneId,
        lanes: usize,
        reason: String,
    },
    /// Nothing is acknowledged on it for a second or more: time to make another.
    Stalled {
        lane: LaneId,
    },
    /// It was retired and carries nothing more: it may be closed.
    Drained {
        lane: LaneId,
    },
    /// Whether flows are open or bytes under way, with or without a lane.
    Busy(bool),
    /// How many lanes would be of use from now on.
    Demand(Demand),
}

impl LaneNews {
    /// The lane it is about, if not the trunk.
    pub fn lane(&self) -> Option<LaneId> {
        match self {
            Self::Attached { lane, .. }
            | Self::Lost { lane, .. }
            | Self::Stalled { lane }
            | Self::Drained { lane } => Some(*lane),
            Self::Busy(_) | Self::Demand(_) => None,
        }
    }
}

/// When lanes are asked whether they live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pinging {
    /// While flows are open or bytes under way.
    #[default]
    WhileBusy,
    Always,
    Never,
}

/// A lane whose hello is done.
pub struct Attach {
    pub lane: LaneId,
    pub kind: LaneKind,
    /// Digest of the hello frame: its repeats on this lane are dropped.
    pub hello: [u8; 32],
    /// How much of our stream the peer's hello says it has.
    pub peer_received: Option<u64>,
    /// What the hello says of TCP flows; the trunk's first lane decides.
    pub in_blocks: bool,
    pub io: Box<dyn LaneIo>,
    /// Bytes that came behind the hello or the welcome.
    pub leftover: Vec<u8>,
}

/// What the owner of an engine may ask of it.
pub enum Command {
    Attach(Attach),
    /// Lanes that the client no longer has are closed.
    LiveLanes(Vec<LaneId>),
    /// Nothing new is put on this lane any more; `LaneNews::Drained` follows.
    Retire(LaneId),
    /// Asks on this lane at once whether it lives.
    Ping(LaneId),
    /// Closes a lane for this reason.
    Drop(LaneId, String),
    Report(oneshot::Sender<Report>),
    /// Tells of the flows in a page that begins at this place; the first is 0, the next in the answer.
    Flows(u32, oneshot::Sender<FlowPage>),
    /// Resets the flows with these serials at both sides, and tells of each in this order.
    Kill(Vec<u64>, oneshot::Sender<Vec<Kill>>),
    /// Says goodbye on every lane and ends.
    Close,
}

/// What became of the wish to end a flow.
#[derive(Clone, Debug)]
pub enum Kill {
    /// It was reset; this is how it stood.
    Done(Box<FlowReport>),
    /// It had ended before.
    Over,
    /// There never was such a flow.
    Unknown,
}

/// What an engine leaves to its owner.
pub struct Remains<E> {
    /// Fit for another engine.
    pub ends: E,
    /// To be continued by the engine of the next trunk.
    pub ledger: Ledger,
}

/// How an engine stands.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub trunk: TrunkStats,
    /// How many lanes would be of use now.
    pub demand: Demand,
    pub mux: MuxStats,
    pub lanes: Vec<LaneStats>,
    pub flows_open: u64,
    pub flows_total: u64,
    pub flows_refused: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// What the flows and their local ends counted, by name.
    pub counters: Vec<(&'static str, u64)>,
}

/// Why an engine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The owner asked for it, or dropped its side of the channel.
    Closed,
    /// The far end said goodbye.
    Goodbye { text: String },
    /// The far end broke the mux's rules; nothing on this trunk can be trusted any more.
    Fault(MuxFault),
    /// No stream can be opened on this trunk any more, and the last that was open has closed.
    Spent,
    /// The near side of all flows is gone.
    Ends { text: String },
}

impl fmt::Debug for Attach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attach").field("lane", &self.lane).field("kind", &self.kind).finish_non_exhaustive()
    }
}
