//! Pure: flows that have fallen silent give their rings' pages back.
//!
//! A flow that was used is looked at every five seconds until it has been silent from one look to the next with
//! empty rings; so an idle stack has no timer, and the cost does not grow with the flows that are silent.

use std::time::{Duration, Instant};

use super::queue::Queue;
use super::{Flow, Stack, State};

/// Which flows may have pages to give back.
#[derive(Default)]
pub(super) struct Resting {
    used: Queue,
    /// Set while a flow is used.
    next: Option<Instant>,
}

impl Resting {
    pub(super) fn note_use(&mut self, slot: u32, now: Instant) {
        self.used.push(slot);
        self.next.get_or_insert(now + LOOK_EVERY);
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    pub(super) fn check_invariants(&self) {
        assert!(self.next.is_some() || self.used.is_empty(), "used flows are never looked at");
    }
}

impl Stack {
    pub(super) fn rest_quiet_flows(&mut self, now: Instant) {
        if self.resting.next.is_none_or(|at| at > now) {
            return;
        }
        for _ in 0..self.resting.used.len() {
            let Some(slot) = self.resting.used.pop() else { break };
            if !self.rest(slot) {
                self.resting.used.push(slot);
            }
        }
        self.resting.next = (!self.resting.used.is_empty()).then(|| now + LOOK_EVERY);
    }

    /// Whether the flow needs no further look.
    fn rest(&mut self, slot: u32) -> bool {
        let Some(Flow { state: State::Open(connection), .. }) = self.table.get_mut(slot) else { return true };
        if !(connection.was_quiet() && connection.is_empty()) {
            return false;
        }
        connection.rest(self.memory.as_deref_mut());
        self.counters.rests += 1;
        true
    }
}

const LOOK_EVERY: Duration = Duration::from_secs(5);
