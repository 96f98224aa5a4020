//! Pure: how each kind of lane is used.

use std::time::Duration;

use super::pace::PaceLimits;
use super::segment::{MAX_SEGMENT, SEGMENT_OVERHEAD};
use super::{LaneKind, Role};
use crate::wire::mux;

/// How one direction of a lane is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneProfile {
    /// How much may be in flight.
    pub pace: PaceLimits,
    /// The most bytes in one segment.
    pub segment: usize,
    /// The most payload of a mux frame, within one segment with its header.
    pub frame: usize,
    /// The most that is when the lane is slow: below, frames cost more than they save.
    pub least_frame: usize,
    /// The receiver acknowledges at the latest after so many bytes.
    pub ack_after: usize,
}

impl LaneProfile {
    pub const fn of(kind: LaneKind, sender: Role) -> Self {
        match (kind, sender) {
            // The SSM agent sends 1,024 bytes per 1.1 ms: a frame is two of its messages. After a hiccup it
            // sends again 10 KiB a second, so what is in flight is what a stall costs.
            (LaneKind::Ssm, Role::Agent) => Self {
                pace: PaceLimits {
                    start: 16 << 10,
                    least: 8 << 10,
                    most: 256 << 10,
                    queue: Duration::from_millis(13),
                },
                segment: 2048 - SEGMENT_OVERHEAD,
                frame: 2048 - SEGMENT_OVERHEAD - mux::HEADER,
                least_frame: 1024 - SEGMENT_OVERHEAD - mux::HEADER,
                ack_after: 32 * 1024,
            },
            // Each ack costs the SSM agent one of its 800 messages a second.
            (LaneKind::Ssm, Role::Client) => Self {
                pace: PaceLimits {
                    start: 64 << 10,
                    least: 16 << 10,
                    most: 4 << 20,
                    queue: Duration::from_millis(6),
                },
                segment: MAX_SEGMENT,
                frame: 32 * 1024 - SEGMENT_OVERHEAD - mux::HEADER,
                least_frame: 1024 - SEGMENT_OVERHEAD - mux::HEADER,
                ack_after: 128 * 1024,
            },
            // Often nothing is between but the systems' own buffers, so fewer and longer is better. A keystroke's round
            // trip stands in the queues of both directions, and jitter makes each longer than wanted.
            (LaneKind::Tcp, Role::Agent | Role::Client) => Self {
                pace: PaceLimits {
                    start: 512 << 10,
                    least: 16 << 10,
                    most: 4 << 20,
                    queue: Duration::from_millis(4),
                },
                segment: MAX_SEGMENT,
                frame: LARGEST_PACKET,
                least_frame: 2048,
                ack_after: 256 * 1024,
            },
        }
    }
}

/// What a TCP packet of the client's device carries at most: a longer frame would leave a packet of its few last bytes
/// behind each full one.
const LARGEST_PACKET: usize = 65_535 - 40;
