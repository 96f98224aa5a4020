//! Pure: what a trunk tells of itself.

use std::time::{Duration, Instant};

use super::lane::Lane;
use super::{LaneId, LaneKind, Trunk};

/// Counts since the trunk was made, and what it keeps now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrunkStats {
    /// Bytes of the stream sent, each counted once.
    pub sent: u64,
    /// Bytes of the stream placed.
    pub received: u64,
    /// Bytes sent again: a lane was lost, or fell behind.
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
    /// The most that ever were.
    pub most_held: usize,
    /// Bytes the peer takes beyond what was added.
    pub credit: u64,
    /// Memory of the sending side: bytes kept, and ready for more.
    pub memory: usize,
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
    /// How many there may be.
    pub window: usize,
    /// Bytes a second that the lane was seen to carry away from us.
    pub capacity: Option<u64>,
    /// Bytes a second now, frames and all.
    pub send_rate: u64,
    pub receive_rate: u64,
    /// Bytes that were overdue here and sent on other lanes, too.
    pub given_away: u64,
    /// It is behind with its acks and gets nothing new.
    pub stalled: bool,
    /// It is to go and gets nothing new.
    pub retiring: bool,
    /// Bytes on the lane, frames and all.
    pub sent: u64,
    pub received: u64,
    pub attached: Instant,
    /// When the last whole frame arrived.
    pub last_heard: Instant,
}

impl Trunk {
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
            most_held: self.receiver.most_held,
            credit: self.sender.credit(),
            memory: self.sender.memory(),
            lanes: self.lanes.len(),
        }
    }

    pub fn lane_stats(&self) -> impl Iterator<Item = LaneStats> {
        self.lanes.iter().filter_map(|lane| Some(lane.stats(self.clock?)))
    }

    /// The shortest round trip that any lane has seen.
    pub fn least_rtt(&self) -> Option<Duration> {
        self.lanes.iter().filter_map(Lane::least_rtt).min()
    }

    /// The round trip of the slowest lane as it is now, but for what queues add beyond the wanted: what an answer
    /// takes under load.
    pub fn usual_rtt(&self) -> Option<Duration> {
        self.lanes.iter().filter_map(Lane::usual_rtt).max()
    }
}
