//! Pure: one flow, and how a report shows it.

use std::net::SocketAddr;
use std::ops::Deref;
use std::time::{Duration, Instant};

use super::squeeze::{Blocks, Gain};
use crate::local_end::{EndFigures, EndId};
use crate::wire::mux::StreamId;
use crate::wire::open::{Answer, Kind, Open, Refusal};

/// Where a flow is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowState {
    /// Our side asked; the answer has not come.
    Opening,
    /// The far side made the stream; its open message is not whole yet.
    Greeting,
    /// The local end is connecting.
    Dialling,
    Open,
    /// At least one direction is finished.
    Closing,
    Closed,
    Refused(Refusal),
    Reset,
}

/// Who ended a flow before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Culprit {
    NearSide,
    /// The near side's system answered no more.
    NearSilence,
    FarSide,
    /// The other engine, which could not take the flow or broke the protocol.
    FarEngine,
    /// The owner of this engine, by [`Command::Kill`](super::Command::Kill).
    Owner,
    /// The trunk ended with the flow on it.
    Trunk,
}

/// One flow as a report shows it.
#[derive(Clone, Debug)]
pub struct FlowReport {
    pub serial: u64,
    pub source: Option<SocketAddr>,
    pub open: Option<Open>,
    pub state: FlowState,
    pub sent: u64,
    pub received: u64,
    pub age: Duration,
    pub dial: Option<Duration>,
    pub figures: EndFigures,
    /// Set when the state is `Reset`, and for refusals that are not the far side's.
    pub culprit: Option<Culprit>,
    /// Set where the bytes lie in blocks.
    pub gain: Option<Gain>,
}

/// A flow lives as long as it has a stream or a local end.
pub(super) struct Flow {
    pub(super) serial: u64,
    pub(super) stream: Option<StreamId>,
    pub(super) end: Option<EndId>,
    pub(super) state: FlowState,
    pub(super) source: Option<SocketAddr>,
    pub(super) open: Option<Open>,
    /// Our open or answer message, as far as the mux has not pulled it.
    pub(super) preface: Waiting,
    /// The far side's message while it is not whole; later what the local end had no room for.
    pub(super) held: Waiting,
    /// The far side has finished.
    pub(super) far_finished: bool,
    /// The local end is to be finished once it has taken what is held.
    pub(super) finish_due: bool,
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) began: Instant,
    pub(super) dialled: Option<Duration>,
    /// The local end's last figures, once it is gone.
    pub(super) figures: Option<Box<EndFigures>>,
    pub(super) culprit: Option<Culprit>,
    /// Set where the bytes lie in blocks, from when the flow is connected.
    pub(super) blocks: Option<Box<Blocks>>,
}

impl Flow {
    pub(super) fn new(serial: u64, state: FlowState, now: Instant) -> Self {
        Self {
            serial,
            stream: None,
            end: None,
            state,
            source: None,
            open: None,
            preface: Waiting::default(),
            held: Waiting::default(),
            far_finished: false,
            finish_due: false,
            sent: 0,
            received: 0,
            began: now,
            dialled: None,
            figures: None,
            culprit: None,
            blocks: None,
        }
    }

    /// Whether bytes pass between stream and local end.
    pub(super) fn is_connected(&self) -> bool {
        matches!(self.state, FlowState::Open | FlowState::Closing)
    }

    /// Whether the stream may have what the local end says. Datagrams need not wait for the answer: to lose one
    /// to a refusal is what happens on any network.
    pub(super) fn may_send(&self) -> bool {
        self.is_connected() || self.state == FlowState::Opening && self.has_datagrams()
    }

    /// Whether it has no end that either side could tell the other: it just stops.
    pub(super) fn has_datagrams(&self) -> bool {
        self.open.as_ref().is_some_and(|open| matches!(open.kind, Kind::Udp | Kind::Echo))
    }

    /// Whether only its last words are left.
    pub(super) fn is_ended(&self) -> bool {
        match self.state {
            FlowState::Opening
            | FlowState::Greeting
            | FlowState::Dialling
            | FlowState::Open
            | FlowState::Closing => false,
            FlowState::Closed | FlowState::Refused(_) | FlowState::Reset => true,
        }
    }

    /// Keeps the figures of a local end that goes, if it counted anything.
    pub(super) fn keep_figures(&mut self, figures: EndFigures) {
        self.figures = (figures != EndFigures::default()).then(|| Box::new(figures));
    }

    pub(super) fn last_figures(&self) -> EndFigures {
        self.figures.as_deref().copied().unwrap_or_default()
    }

    /// The first to end it is the one that did.
    pub(super) fn blame(&mut self, culprit: Culprit) {
        self.culprit.get_or_insert(culprit);
    }

    pub(super) fn report(&self, now: Instant) -> FlowReport {
        FlowReport {
            serial: self.serial,
            source: self.source,
            open: self.open.clone(),
            state: self.state,
            sent: self.sent,
            received: self.received,
            age: now.saturating_duration_since(self.began),
            dial: self.dialled,
            figures: self.last_figures(),
            culprit: self.culprit,
            gain: self.blocks.as_ref().map(|blocks| blocks.gain),
        }
    }

    /// The last report of a flow that is over.
    pub(super) fn into_report(mut self, now: Instant) -> FlowReport {
        let open = self.open.take();
        FlowReport { open, ..self.report(now) }
    }
}

/// Bytes that wait, which few flows have: without any it is one word.
#[derive(Default)]
#[expect(clippy::box_collection, reason = "a vector would be three words in each of very many flows")]
pub(super) struct Waiting(Option<Box<Vec<u8>>>);

impl Waiting {
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.0.get_or_insert_default().extend_from_slice(bytes);
        }
    }

    pub(super) fn say(&mut self, answer: &Answer) {
        answer.encode(self.0.get_or_insert_default());
    }

    /// Forgets the first `count` bytes.
    pub(super) fn drop_front(&mut self, count: usize) {
        if count >= self.len() {
            self.0 = None;
        } else if let Some(bytes) = &mut self.0 {
            bytes.drain(..count);
        }
    }

    /// Leaves none.
    pub(super) fn take(&mut self) -> Vec<u8> {
        self.0.take().map_or_else(Vec::new, |bytes| *bytes)
    }
}

impl From<Vec<u8>> for Waiting {
    fn from(bytes: Vec<u8>) -> Self {
        Self((!bytes.is_empty()).then(|| Box::new(bytes)))
    }
}

impl Deref for Waiting {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |bytes| bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_flow_is_small() {
        assert!(size_of::<Option<Flow>>() <= 184, "{} bytes", size_of::<Option<Flow>>());
    }

    #[test]
    fn what_waits_is_kept_in_order_and_costs_nothing_once_it_is_gone() {
        let mut waiting = Waiting::from(b"ab".to_vec());
        waiting.extend(b"cd");
        waiting.drop_front(1);
        assert_eq!(&*waiting, b"bcd");
        waiting.drop_front(3);
        assert!(waiting.0.is_none());
        waiting.extend(b"e");
        assert_eq!((waiting.take(), waiting.0.is_none()), (b"e".to_vec(), true));
        waiting.extend(b"");
        assert!(waiting.0.is_none());
    }
}
