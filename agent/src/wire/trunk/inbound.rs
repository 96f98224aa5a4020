//! Pure: the segments that came on one lane, and the ack the peer is owed for them.

use std::time::{Duration, Instant};

use super::LaneFault;
use super::delay::Micros;
use super::profile::LaneProfile;

pub(super) struct Inbound {
    ack_after: usize,
    /// Highest sequence number received, and when.
    pub(super) sequence: u32,
    pub(super) arrived: Micros,
    unacknowledged: usize,
    pub(super) ack_at: Option<Instant>,
    pub(super) ack_now: bool,
}

impl Inbound {
    /// The first ack is due at the attach: it tells what has arrived on other lanes.
    pub(super) fn new(peer: LaneProfile) -> Self {
        Self {
            ack_after: peer.ack_after,
            sequence: 0,
            arrived: 0,
            unacknowledged: 0,
            ack_at: None,
            ack_now: true,
        }
    }

    /// Whether the segment is the next of the lane; `false` when it was here already.
    pub(super) fn is_next(&self, sequence: u32) -> Result<bool, LaneFault> {
        match sequence.wrapping_sub(self.sequence) {
            1 => Ok(true),
            0 | 0x8000_0000.. => Ok(false),
            _ => Err(LaneFault::Gap { expected: self.sequence.wrapping_add(1), got: sequence }),
        }
    }

    pub(super) fn taken(&mut self, sequence: u32, length: usize, now: Instant, micros: Micros) {
        self.sequence = sequence;
        self.arrived = micros;
        self.unacknowledged += length;
        if self.unacknowledged >= self.ack_after {
            self.ack_now = true;
        } else if self.ack_at.is_none() {
            self.ack_at = Some(now + ACK_DELAY);
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
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

/// How long a receiver keeps an ack back.
pub(super) const ACK_DELAY: Duration = Duration::from_millis(5);
