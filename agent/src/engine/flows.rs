//! Pure: the flows of one engine: what stands between a stream of the mux and a local end.
//!
//! A flow begins on the side that has the application: `Wanted` -> stream with an open message -> the
//! other side's `LocalEnds::open` -> answer message -> `accept` or `refuse`. From then on bytes pass
//! without being held here, but for those of a stream's first window that find no room.
//!
//! While the mux calls in ([`View`]) it cannot be called; what it must be told then waits as an errand.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Instant;

use super::command::Remains;
use super::flow::{Culprit, Flow, FlowState};
use super::ledger::{Ledger, RECENT};
use super::squeeze::Press;
use super::streams::View;
use crate::local_end::{EndEvent, EndId, LocalEnds};
use crate::wire::blocks::BLOCK;
use crate::wire::mux::{Mux, MuxFull, StreamId, Token};
use crate::wire::open::{Answer, Open, Refusal};

/// What the mux must be told of a stream, unless its flow has left the stream by then.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Errand {
    token: Token,
    stream: StreamId,
    task: Task,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    Room,
    Ready,
    Finish,
    Reset,
}

pub(super) struct Flows<E> {
    pub(super) ends: E,
    pub(super) slots: Vec<Option<Flow>>,
    free: Vec<u32>,
    /// By the number of the end.
    flow_by_end: Vec<Option<Token>>,
    /// Those of the flows in state `Greeting`, by when they began.
    pub(super) greetings: BTreeSet<(Instant, u32)>,
    errands: Vec<Errand>,
    pub(super) ledger: Ledger,
    pub(super) press: Press,
    /// Whether the bytes of TCP flows lie in blocks, once the first lane has told.
    pub(super) in_blocks: Option<bool>,
    /// No stream can be opened on this trunk any more.
    spent: bool,
}

impl<E: LocalEnds> Flows<E> {
    pub(super) fn new(ends: E) -> Self {
        Self {
            ends,
            slots: Vec::new(),
            free: Vec::new(),
            flow_by_end: Vec::new(),
            greetings: BTreeSet::new(),
            errands: Vec::new(),
            ledger: Ledger::default(),
            press: Press::default(),
            in_blocks: None,
            spent: false,
        }
    }

    pub(super) fn streams(&mut self, now: Instant) -> View<'_, E> {
        View { flows: self, now }
    }

    pub(super) fn handle_event(&mut self, event: EndEvent, mux: &mut Mux, now: Instant) {
        match event {
            EndEvent::Wanted { end, source, open } => self.want(end, source, open, mux, now),
            EndEvent::Connected { end, local, remote } => self.connected(end, local, remote, now),
            EndEvent::Refused { end, refusal } => {
                if let Some(token) = self.forget_end(end) {
                    self.answer_refused(token, refusal);
                }
            }
            EndEvent::Readable { end } => self.end_errand(end, Task::Ready),
            EndEvent::Room { end } => {
                if let Some(token) = self.token_of(end) {
                    self.flush(token, now);
                }
            }
            EndEvent::Finished { end } => {
                let flow = self.token_of(end).and_then(|token| self.slot_mut(token));
                if let Some(flow) = flow.filter(|flow| flow.is_connected()) {
                    flow.state = FlowState::Closing;
                }
                self.end_errand(end, Task::Finish);
            }
            EndEvent::Reset { end } => {
                if let Some(token) = self.forget_end(end) {
                    self.blame_near_side(token);
                    self.abort(token, now);
                }
            }
            EndEvent::Closed { end } => self.end_closed(end, now),
        }
        self.settle(mux, now);
    }

    /// Tells the mux what came up while it was at work.
    pub(super) fn settle(&mut self, mux: &mut Mux, now: Instant) {
        let mut errands = std::mem::take(&mut self.errands);
        for Errand { token, stream, task } in errands.drain(..) {
            let Some(flow) = self.slot(token).filter(|flow| flow.stream == Some(stream)) else { continue };
            match task {
                Task::Room => mux.set_room(stream, self.room(flow), now),
                Task::Ready => mux.ready(stream),
                Task::Finish => mux.finish(stream),
                Task::Reset => {
                    mux.reset(stream);
                    self.leave_stream(token, now);
                }
            }
        }
        // Nothing above makes an errand: only the capacity goes back.
        self.errands = errands;
    }

    /// How many bytes of the far side a flow takes now.
    fn room(&self, flow: &Flow) -> usize {
        let room = match (flow.state, flow.end) {
            (FlowState::Open | FlowState::Closing, Some(end)) => self.ends.room(end),
            (FlowState::Opening | FlowState::Greeting | FlowState::Dialling, _) => EARLY,
            (FlowState::Open | FlowState::Closing, None) => 0,
            (FlowState::Closed | FlowState::Refused(_) | FlowState::Reset, _) => 0,
        };
        match &flow.blocks {
            None => room.saturating_sub(flow.held.len()),
            Some(blocks) => blocks.room(room, flow.held.len()),
        }
    }

    fn want(&mut self, end: EndId, source: SocketAddr, open: Open, mux: &mut Mux, now: Instant) {
        let token = self.add(FlowState::Opening, now);
        let mut preface = Vec::new();
        let encoded = open.encode(&mut preface).is_ok();
        let opened = if encoded { mux.open(token) } else { Err(MuxFull::Streams) };
        let stream = match opened {
            Ok(stream) => stream,
            Err(full) => {
                self.spent |= full != MuxFull::Streams;
                return self.refuse_at_once(token, end, source, open, now);
            }
        };
        self.bind_end(end, token);
        let Some(flow) = self.slot_mut(token) else { return };
        flow.preface = preface.into();
        flow.stream = Some(stream);
        flow.source = Some(source);
        flow.open = Some(open);
        mux.set_room(stream, EARLY, now);
        mux.ready(stream);
    }

    fn connected(&mut self, end: EndId, local: SocketAddr, remote: SocketAddr, now: Instant) {
        let Some(token) = self.token_of(end) else { return };
        let Some(flow) = self.slot_mut(token).filter(|flow| flow.state == FlowState::Dialling) else {
            return;
        };
        flow.preface.say(&Answer::Opened { local, remote });
        flow.state = if flow.far_finished { FlowState::Closing } else { FlowState::Open };
        flow.dialled = Some(now.saturating_duration_since(flow.began));
        self.errand(token, Task::Ready);
        if self.begin_blocks(token, now) {
            self.flush(token, now);
        }
    }

    /// Gives the local end what is held, as far as it has room, and the far side's finish behind that.
    fn flush(&mut self, token: Token, now: Instant) {
        let Self { slots, ends, .. } = self;
        let Some(flow) = slots.get_mut(token.0 as usize).and_then(Option::as_mut) else { return };
        let Some(end) = flow.end.filter(|_| flow.is_connected()) else { return };
        let count = flow.held.len().min(ends.room(end));
        if count > 0 {
            ends.write(end, &flow.held[..count], now);
            flow.held.drop_front(count);
        }
        if flow.blocks.is_some() && !self.go_on(token, now) {
            return;
        }
        let Self { slots, ends, .. } = self;
        let Some(flow) = slots.get_mut(token.0 as usize).and_then(Option::as_mut) else { return };
        if flow.held.is_empty() && std::mem::take(&mut flow.finish_due) {
            ends.finish(end, now);
        }
        self.errand(token, Task::Room);
    }

    /// Answers that there is no such target; the stream ends with the answer.
    pub(super) fn answer_refused(&mut self, token: Token, refusal: Refusal) {
        self.ledger.tally.refused += 1;
        let Some(flow) = self.slot_mut(token) else { return };
        flow.state = FlowState::Refused(refusal);
        flow.held.take();
        flow.preface.say(&Answer::Refused(refusal));
        self.errand(token, Task::Ready);
        self.errand(token, Task::Finish);
    }

    fn end_closed(&mut self, end: EndId, now: Instant) {
        let Some(token) = self.forget_end(end) else { return };
        let Some(flow) = self.slot_mut(token) else { return };
        if flow.stream.is_some() && !flow.far_finished {
            if flow.has_datagrams() {
                flow.state = FlowState::Closed;
            }
            // An end that closed while the far side still talks: nobody would take what it says.
            self.blame_near_side(token);
            return self.abort(token, now);
        }
        self.errand(token, Task::Finish);
        self.drop_if_done(token, now);
    }

    /// There is no stream for it.
    fn refuse_at_once(&mut self, token: Token, end: EndId, source: SocketAddr, open: Open, now: Instant) {
        self.ledger.tally.refused += 1;
        self.ends.refuse(end, Refusal::Exhausted, now);
        let Some(mut flow) = self.free_slot(token) else { return };
        flow.state = FlowState::Refused(Refusal::Exhausted);
        flow.source = Some(source);
        flow.open = Some(open);
        flow.blame(Culprit::Trunk);
        self.ledger.end(flow.into_report(now));
    }

    fn blame_near_side(&mut self, token: Token) {
        let Some(flow) = self.slot_mut(token) else { return };
        flow.blame(if flow.last_figures().silent { Culprit::NearSilence } else { Culprit::NearSide });
    }

    /// The local end is gone: the stream goes too.
    pub(super) fn abort(&mut self, token: Token, now: Instant) {
        let Some(flow) = self.slot_mut(token) else { return };
        if !matches!(flow.state, FlowState::Refused(_) | FlowState::Closed) {
            flow.state = FlowState::Reset;
        }
        flow.held.take();
        self.errand(token, Task::Reset);
        self.drop_if_done(token, now);
    }

    /// Notes what the mux is to be told once it has let go of the flows.
    pub(super) fn errand(&mut self, token: Token, task: Task) {
        let Some(stream) = self.slot(token).and_then(|flow| flow.stream) else { return };
        let errand = Errand { token, stream, task };
        if self.errands.last() != Some(&errand) {
            self.errands.push(errand);
        }
    }

    fn end_errand(&mut self, end: EndId, task: Task) {
        if let Some(token) = self.token_of(end) {
            self.errand(token, task);
        }
    }

    /// The stream is gone from the mux.
    pub(super) fn leave_stream(&mut self, token: Token, now: Instant) {
        if let Some(flow) = self.slot_mut(token) {
            flow.stream = None;
        }
        self.drop_if_done(token, now);
    }

    pub(super) fn bind_end(&mut self, end: EndId, token: Token) {
        let at = end.0 as usize;
        if at >= self.flow_by_end.len() {
            self.flow_by_end.resize(at + 1, None);
        }
        self.flow_by_end[at] = Some(token);
        if let Some(flow) = self.slot_mut(token) {
            flow.end = Some(end);
        }
    }

    fn token_of(&self, end: EndId) -> Option<Token> {
        *self.flow_by_end.get(end.0 as usize)?
    }

    pub(super) fn forget_end(&mut self, end: EndId) -> Option<Token> {
        let token = self.flow_by_end.get_mut(end.0 as usize)?.take()?;
        let figures = self.ends.figures(end);
        if let Some(flow) = self.slot_mut(token) {
            flow.end = None;
            flow.keep_figures(figures);
        }
        Some(token)
    }

    pub(super) fn add(&mut self, state: FlowState, now: Instant) -> Token {
        let flow = Some(Flow::new(self.ledger.begin(), state, now));
        match self.free.pop() {
            Some(index) => {
                self.slots[index as usize] = flow;
                Token(index)
            }
            None => {
                self.slots.push(flow);
                Token(self.slots.len() as u32 - 1)
            }
        }
    }

    fn free_slot(&mut self, token: Token) -> Option<Flow> {
        let flow = self.slots.get_mut(token.0 as usize)?.take()?;
        self.free.push(token.0);
        self.greetings.remove(&(flow.began, token.0));
        if let Some(blocks) = &flow.blocks {
            self.press.let_go(blocks);
        }
        if self.open() == 0 {
            self.press.rest();
        }
        Some(flow)
    }

    pub(super) fn drop_if_done(&mut self, token: Token, now: Instant) {
        if self.slot(token).is_none_or(|flow| flow.stream.is_some() || flow.end.is_some()) {
            return;
        }
        let Some(mut flow) = self.free_slot(token) else { return };
        if flow.is_connected() {
            flow.state = FlowState::Closed;
        }
        self.ledger.end(flow.into_report(now));
    }

    pub(super) fn slot(&self, token: Token) -> Option<&Flow> {
        self.slots.get(token.0 as usize)?.as_ref()
    }

    pub(super) fn slot_mut(&mut self, token: Token) -> Option<&mut Flow> {
        self.slots.get_mut(token.0 as usize)?.as_mut()
    }

    /// Resets every flow.
    pub(super) fn into_remains(mut self, now: Instant) -> Remains<E> {
        for mut flow in std::mem::take(&mut self.slots).into_iter().flatten() {
            let Some(end) = flow.end else {
                self.ledger.end(flow.into_report(now));
                continue;
            };
            flow.keep_figures(self.ends.figures(end));
            if flow.state == FlowState::Opening {
                flow.state = FlowState::Refused(Refusal::HostUnreachable);
                self.ends.refuse(end, Refusal::HostUnreachable, now);
            } else {
                self.ends.reset(end, now);
                flow.state = FlowState::Reset;
            }
            flow.blame(Culprit::Trunk);
            self.ledger.end(flow.into_report(now));
        }
        Remains { ends: self.ends, ledger: self.ledger }
    }

    pub(super) fn open(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn total(&self) -> u64 {
        self.ledger.total()
    }

    pub(super) fn is_spent(&self) -> bool {
        self.spent
    }

    /// Panics unless flows, ends and streams agree with each other. To be called between turns.
    #[doc(hidden)]
    pub(super) fn check_invariants(&self, mux: &Mux) {
        assert!(self.errands.is_empty(), "an errand was left");
        let blocks = || self.slots.iter().flatten().filter_map(|flow| flow.blocks.as_ref());
        assert_eq!(self.press.stored, blocks().map(|blocks| blocks.stored).sum::<usize>());
        assert_eq!(self.press.waiting, blocks().map(|blocks| blocks.out.waiting()).sum::<usize>());
        assert!(self.ledger.recent().len() <= RECENT);
        assert_eq!(self.slots.iter().flatten().count(), self.open(), "a slot is lost");
        for (began, slot) in &self.greetings {
            let flow = self.slot(Token(*slot));
            assert!(flow.is_some_and(|flow| flow.state == FlowState::Greeting && flow.began == *began));
        }
        let greeting = |flow: &&Flow| flow.state == FlowState::Greeting;
        assert_eq!(self.slots.iter().flatten().filter(greeting).count(), self.greetings.len());
        let ended = self.flow_by_end.iter().flatten().count();
        assert_eq!(self.slots.iter().flatten().filter(|flow| flow.end.is_some()).count(), ended);
        let streams = self.slots.iter().flatten().filter(|flow| flow.stream.is_some()).count();
        assert_eq!(streams, mux.len(), "flows and streams differ in number");
        for (index, flow) in self.slots.iter().enumerate() {
            let Some(flow) = flow else {
                assert!(self.free.contains(&(index as u32)), "slot {index} is lost");
                continue;
            };
            assert!(flow.stream.is_some() || flow.end.is_some(), "slot {index} is never freed");
            assert!(flow.end.is_none_or(|end| self.token_of(end) == Some(Token(index as u32))));
            let most = if flow.blocks.is_some() { BLOCK } else { EARLY };
            assert!(flow.held.len() <= most, "{} bytes held", flow.held.len());
        }
    }
}

/// Bytes a flow may get before its local end is connected: the first window of a stream.
pub(super) const EARLY: usize = 16 << 10;

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)]

    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;
    use crate::dial::rules::Rules;
    use crate::dial::{DialConfig, Dialer};
    use crate::wire::datagram::Message;
    use crate::wire::mux::{MuxConfig, Streams};
    use crate::wire::open::{Kind, Target};
    use crate::wire::trunk::Role;

    /// A client's only stream.
    #[derive(Default)]
    struct Client {
        unsent: Vec<u8>,
        received: Vec<u8>,
    }

    impl Streams for Client {
        fn accept(&mut self, _id: StreamId) -> Option<Token> {
            None
        }

        fn pull(&mut self, _token: Token, buf: &mut [u8]) -> usize {
            let count = buf.len().min(self.unsent.len());
            buf[..count].copy_from_slice(&self.unsent[..count]);
            self.unsent.drain(..count);
            count
        }

        fn push(&mut self, _token: Token, bytes: &[u8]) {
            self.received.extend_from_slice(bytes);
        }

        fn finished(&mut self, _token: Token) {}

        fn reset(&mut self, _token: Token) {
            panic!("the stream was reset");
        }

        fn closed(&mut self, _token: Token) {}
    }

    /// A datagram longer than a stream's first window, with one before and one after it, all sent before the
    /// answer to the opening.
    #[test]
    fn datagrams_right_behind_the_opening_reach_their_peer() {
        let listener = UdpSocket::bind("127.0.0.1:0").unwrap();
        listener.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let peer = listener.local_addr().unwrap();
        let datagrams = [vec![1; 100], vec![2; 3 * EARLY], vec![3; 1]];
        let mut client = Client::default();
        let open = Open { kind: Kind::Udp, target: Target::Address(peer.ip(), peer.port()) };
        open.encode(&mut client.unsent).unwrap();
        for payload in &datagrams {
            Message::Datagram { peer, payload }.encode(&mut client.unsent);
        }
        let rules = Rules::new(vec!["127.0.0.0/8".parse().unwrap()], Vec::new());
        let dialer = Dialer::new(DialConfig { rules, ..DialConfig::default() });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let mut flows = Flows::new(dialer.sockets());
        let [mut near, mut far] = [Role::Client, Role::Agent].map(|role| Mux::new(MuxConfig::new(role)));
        let now = Instant::now();
        let stream = near.open(Token(0)).unwrap();
        near.set_room(stream, EARLY, now);
        near.ready(stream);

        let mut frames = vec![0; 256 << 10];
        let mut early = None;
        for _ in 0..20 {
            let count = near.poll_frames(&mut frames, &mut client);
            far.handle_bytes(&frames[..count], &mut flows.streams(now), now).unwrap();
            early.get_or_insert_with(|| flows.slot(Token(0)).unwrap().held.len());
            flows.settle(&mut far, now);
            while let Some(event) = flows.ends.poll_event() {
                flows.handle_event(event, &mut far, now);
            }
            let count = far.poll_frames(&mut frames, &mut flows.streams(now));
            near.handle_bytes(&frames[..count], &mut client, now).unwrap();
            flows.settle(&mut far, now);
            flows.check_invariants(&far);
        }

        assert!(early.unwrap() > 0, "nothing came before the answer");
        let mut buf = vec![0; 65_536];
        for payload in &datagrams {
            let (length, _) = listener.recv_from(&mut buf).unwrap();
            assert!(buf[..length] == *payload);
        }
        let (answer, _) = Answer::decode(&client.received).unwrap().unwrap();
        assert!(matches!(answer, Answer::Opened { remote, .. } if remote == peer));
        assert!(client.unsent.is_empty());
    }
}
