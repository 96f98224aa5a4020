//! Pure: the flows as the mux sees them for one call.

use std::time::Instant;

use super::flow::{Culprit, FlowState};
use super::flows::{Flows, Task};
use crate::local_end::LocalEnds;
use crate::wire::mux::{StreamId, Streams, Token};
use crate::wire::open::{Answer, Open, OpenFault, Refusal};

pub(super) struct View<'a, E> {
    pub(super) flows: &'a mut Flows<E>,
    pub(super) now: Instant,
}

impl<E: LocalEnds> Streams for View<'_, E> {
    fn accept(&mut self, id: StreamId) -> Option<Token> {
        let token = self.flows.add(FlowState::Greeting, self.now);
        self.flows.greetings.insert((self.now, token.0));
        self.flows.slot_mut(token)?.stream = Some(id);
        self.flows.errand(token, Task::Room);
        Some(token)
    }

    fn pull(&mut self, token: Token, buf: &mut [u8]) -> usize {
        let Flows { slots, ends, ledger, press, .. } = &mut *self.flows;
        let Some(flow) = slots.get_mut(token.0 as usize).and_then(Option::as_mut) else { return 0 };
        if !flow.preface.is_empty() {
            let count = flow.preface.len().min(buf.len());
            buf[..count].copy_from_slice(&flow.preface[..count]);
            flow.preface.drop_front(count);
            return count;
        }
        if !flow.may_send() {
            return 0;
        }
        let mut read = |buf: &mut [u8]| {
            // An end that is gone has been read to its last byte, which may wait in a block.
            let Some(end) = flow.end else { return 0 };
            let read = ends.read(end, buf, self.now);
            flow.sent += read as u64;
            ledger.tally.bytes_sent += read as u64;
            read
        };
        match &mut flow.blocks {
            None => read(buf),
            Some(blocks) => blocks.pull(buf, press, read),
        }
    }

    fn push(&mut self, token: Token, bytes: &[u8]) {
        let Some(flow) = self.flows.slot_mut(token) else { return };
        match flow.state {
            FlowState::Open | FlowState::Closing => self.deliver(token, bytes),
            FlowState::Opening => self.push_answer(token, bytes),
            FlowState::Greeting => self.push_open(token, bytes),
            // Bounded by the room told to the mux.
            FlowState::Dialling => flow.held.extend(bytes),
            FlowState::Refused(_) | FlowState::Closed | FlowState::Reset => {}
        }
    }

    fn finished(&mut self, token: Token) {
        let Some(flow) = self.flows.slot_mut(token) else { return };
        flow.far_finished = true;
        match flow.state {
            FlowState::Dialling => flow.finish_due = true,
            FlowState::Opening | FlowState::Greeting => self.broken(token),
            FlowState::Open | FlowState::Closing if flow.is_cut() => self.broken(token),
            FlowState::Open | FlowState::Closing => {
                flow.state = FlowState::Closing;
                flow.finish_due = !flow.held.is_empty();
                if let Some(end) = flow.end.filter(|_| !flow.finish_due) {
                    self.flows.ends.finish(end, self.now);
                }
            }
            FlowState::Refused(_) | FlowState::Closed | FlowState::Reset => {}
        }
    }

    fn reset(&mut self, token: Token) {
        let Some(flow) = self.flows.slot_mut(token) else { return };
        let opening = flow.state == FlowState::Opening;
        flow.blame(if opening { Culprit::FarEngine } else { Culprit::FarSide });
        if !matches!(flow.state, FlowState::Refused(_)) {
            flow.state = if flow.has_datagrams() && !opening { FlowState::Closed } else { FlowState::Reset };
        }
        self.end_near_side(token, opening.then_some(Refusal::Exhausted));
        self.flows.leave_stream(token, self.now);
    }

    fn broken_off(&mut self, token: Token) {
        if let Some(flow) = self.flows.slot_mut(token) {
            flow.blame(Culprit::FarEngine);
        }
        self.reset(token);
    }

    fn closed(&mut self, token: Token) {
        self.flows.leave_stream(token, self.now);
    }
}

impl<E: LocalEnds> View<'_, E> {
    /// Brings bytes to the local end; what it has no room for is held, and told to the mux as room less.
    fn deliver(&mut self, token: Token, bytes: &[u8]) {
        let Flows { slots, ends, ledger, .. } = &mut *self.flows;
        let Some(flow) = slots.get_mut(token.0 as usize).and_then(Option::as_mut) else { return };
        if flow.blocks.is_some() {
            return self.deliver_blocks(token, bytes);
        }
        flow.received += bytes.len() as u64;
        ledger.tally.bytes_received += bytes.len() as u64;
        let Some(end) = flow.end else { return };
        let room = if flow.held.is_empty() { ends.room(end) } else { 0 };
        let (taken, rest) = bytes.split_at(bytes.len().min(room));
        if !taken.is_empty() {
            ends.write(end, taken, self.now);
        }
        flow.held.extend(rest);
        // What went straight on to the near side leaves room as it was, which no event tells.
        self.flows.errand(token, Task::Room);
    }

    fn push_answer(&mut self, token: Token, bytes: &[u8]) {
        let now = self.now;
        let Some(flow) = self.flows.slot_mut(token) else { return };
        flow.held.extend(bytes);
        let (answer, used) = match Answer::decode(&flow.held) {
            Ok(Some(whole)) => whole,
            Ok(None) => return,
            Err(_unusable) => return self.broken(token),
        };
        let rest = flow.held.take().split_off(used);
        let Some(end) = flow.end else { return };
        match answer {
            Answer::Opened { local, remote } => {
                flow.state = FlowState::Open;
                flow.dialled = Some(now.saturating_duration_since(flow.began));
                self.flows.ends.accept(end, local, remote, now);
                self.flows.errand(token, Task::Ready);
                if self.flows.begin_blocks(token, now) {
                    self.deliver(token, &rest);
                }
            }
            Answer::Refused(refusal) => {
                flow.state = FlowState::Refused(refusal);
                // Datagrams that found no credit would keep a finish waiting for ever.
                let task = if flow.has_datagrams() { Task::Reset } else { Task::Finish };
                self.flows.ledger.tally.refused += 1;
                self.end_near_side(token, Some(refusal));
                self.flows.errand(token, task);
            }
        }
    }

    fn push_open(&mut self, token: Token, bytes: &[u8]) {
        let Some(flow) = self.flows.slot_mut(token) else { return };
        flow.held.extend(bytes);
        let (began, decoded) = (flow.began, Open::decode(&flow.held));
        if !matches!(decoded, Ok(None)) {
            self.flows.greetings.remove(&(began, token.0));
        }
        let (open, used) = match decoded {
            Ok(Some(whole)) => whole,
            Ok(None) => return,
            Err(OpenFault::Kind(_)) => return self.flows.answer_refused(token, Refusal::Unsupported),
            Err(OpenFault::Length(_) | OpenFault::Form(_) | OpenFault::Name | OpenFault::Answer(_)) => {
                return self.broken(token);
            }
        };
        let Some(flow) = self.flows.slot_mut(token) else { return };
        flow.held.drop_front(used);
        flow.open = Some(open.clone());
        match self.flows.ends.open(&open, self.now) {
            Ok(end) => {
                self.flows.bind_end(end, token);
                if let Some(flow) = self.flows.slot_mut(token) {
                    flow.state = FlowState::Dialling;
                }
            }
            Err(refusal) => self.flows.answer_refused(token, refusal),
        }
    }

    fn deliver_blocks(&mut self, token: Token, bytes: &[u8]) {
        match self.flows.take_blocks(token, bytes, self.now) {
            Ok(()) => self.flows.errand(token, Task::Room),
            Err(_unusable) => self.broken(token),
        }
    }

    /// The far side said something no flow carries: both sides of this flow are reset.
    pub(super) fn broken(&mut self, token: Token) {
        let Some(flow) = self.flows.slot_mut(token) else { return };
        let opening = flow.state == FlowState::Opening;
        flow.blame(Culprit::FarEngine);
        self.end_near_side(token, opening.then_some(Refusal::HostUnreachable));
        self.flows.abort(token, self.now);
    }

    /// Takes the local end away from its flow: refused when it still waits to be connected, else reset.
    pub(super) fn end_near_side(&mut self, token: Token, refusal: Option<Refusal>) {
        let Some(end) = self.flows.slot_mut(token).and_then(|flow| flow.end) else { return };
        self.flows.forget_end(end);
        match refusal {
            Some(refusal) => self.flows.ends.refuse(end, refusal, self.now),
            None => self.flows.ends.reset(end, self.now),
        }
    }
}
