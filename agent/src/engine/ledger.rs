//! Pure: the flows that ended, and everything else of flows that outlives a trunk.

use std::collections::VecDeque;

use super::flow::FlowReport;

/// The numbers given to flows, what was counted, and the flows that ended last.
#[derive(Debug, Default)]
pub struct Ledger {
    begun: u64,
    recent: VecDeque<FlowReport>,
    pub(super) tally: Tally,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) refused: u64,
    /// Streams of the far side whose open message did not come in time.
    pub(super) unopened: u64,
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
}

/// Some flows, live ones by the places they have and, on the last page, those that ended.
#[derive(Clone, Debug, Default)]
pub struct FlowPage {
    pub flows: Vec<FlowReport>,
    /// Where the next page begins.
    pub next: Option<u32>,
}

impl Ledger {
    /// The serial of a new flow: 1, 2, 3...
    pub(super) fn begin(&mut self) -> u64 {
        self.begun += 1;
        self.begun
    }

    pub(super) fn end(&mut self, flow: FlowReport) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(flow);
    }

    pub(super) fn total(&self) -> u64 {
        self.begun
    }

    pub(super) fn recent(&self) -> impl ExactSizeIterator<Item = &FlowReport> {
        self.recent.iter()
    }
}

/// How many ended flows are still shown.
pub(super) const RECENT: usize = 128;
