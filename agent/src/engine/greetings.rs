//! Pure: flows whose open message is not whole yet, and how long the far side has for it.
//!
//! The message comes with the stream, but for what a cut between two frames keeps back. Who makes streams and says
//! nothing on them would hold places until the trunk ends.

use std::time::{Duration, Instant};

use super::flows::Flows;
use crate::local_end::LocalEnds;
use crate::wire::mux::{Mux, Token};

impl<E: LocalEnds> Flows<E> {
    /// When the next of them is late. While there was no lane, before `lanes_since`, nothing could come.
    pub(super) fn greeting_due(&self, lanes_since: Instant) -> Option<Instant> {
        let &(began, _) = self.greetings.first()?;
        Some(began.max(lanes_since) + GREETING)
    }

    pub(super) fn reset_late_greetings(&mut self, lanes_since: Instant, mux: &mut Mux, now: Instant) {
        while self.greeting_due(lanes_since).is_some_and(|due| due <= now)
            && let Some((_, slot)) = self.greetings.pop_first()
        {
            self.ledger.tally.unopened += 1;
            self.streams(now).broken(Token(slot));
            self.settle(mux, now);
        }
    }
}

/// A lane that is silent for so long is dead, at the usual interval of pings.
pub(super) const GREETING: Duration = Duration::from_secs(60);
