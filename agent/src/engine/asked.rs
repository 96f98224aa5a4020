//! Pure: what the owner of an engine asks of its flows.

use std::collections::HashMap;
use std::time::Instant;

use super::command::Kill;
use super::flow::{Culprit, Flow, FlowReport, FlowState};
use super::flows::Flows;
use super::ledger::FlowPage;
use crate::local_end::LocalEnds;
use crate::wire::mux::{Mux, Token};
use crate::wire::open::Refusal;

impl<E: LocalEnds> Flows<E> {
    /// Flows that end between two pages come again with the last one.
    pub(super) fn page(&self, from: u32, now: Instant) -> FlowPage {
        let from = from as usize;
        let next = from.saturating_add(PAGE);
        let is_last = next >= self.slots.len();
        let live = self.slots.iter().skip(from).take(PAGE).flatten().map(|flow| self.tell(flow, now));
        let ended = self.ledger.recent().take(if is_last { usize::MAX } else { 0 }).cloned();
        let flows = live.chain(ended).collect();
        FlowPage { flows, next: (!is_last).then_some(next as u32) }
    }

    fn tell(&self, flow: &Flow, now: Instant) -> FlowReport {
        let figures = flow.end.map_or_else(|| flow.last_figures(), |end| self.ends.figures(end));
        FlowReport { figures, ..flow.report(now) }
    }

    /// Resets flows at both sides because the owner wants it.
    pub(super) fn kill(&mut self, serials: &[u64], mux: &mut Mux, now: Instant) -> Vec<Kill> {
        let mut wanted = serials.to_vec();
        wanted.sort_unstable();
        let is_wanted = |flow: &&Flow| !flow.is_ended() && wanted.binary_search(&flow.serial).is_ok();
        let places = self.slots.iter().zip(0..).filter_map(|(slot, place)| {
            let flow = slot.as_ref().filter(is_wanted)?;
            Some((flow.serial, Token(place)))
        });
        let mut places: HashMap<u64, Token> = places.collect();
        let begun = 1..=self.ledger.total();
        let kill = |serial: &u64| match places.remove(serial) {
            Some(token) => self.kill_one(token, mux, now),
            None if begun.contains(serial) => Kill::Over,
            None => Kill::Unknown,
        };
        serials.iter().map(kill).collect()
    }

    fn kill_one(&mut self, token: Token, mux: &mut Mux, now: Instant) -> Kill {
        let Some(flow) = self.slot_mut(token) else { return Kill::Over };
        flow.blame(Culprit::Owner);
        let opening = flow.state == FlowState::Opening;
        let report = self.slot(token).map(|flow| self.tell(flow, now));
        self.streams(now).end_near_side(token, opening.then_some(Refusal::Refused));
        self.abort(token, now);
        self.settle(mux, now);
        report.map_or(Kill::Over, |report| Kill::Done(Box::new(report)))
    }
}

/// Flows' places in one page: a fraction of a millisecond's work.
const PAGE: usize = 1024;
