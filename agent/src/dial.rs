//! The agent's local ends: sockets to the targets, in one collection without a task, lock or channel
//! per flow.
//!
//! One edge-triggered poll of the system tells of all of them, and `poll_io` looks at those slots only that it
//! names. What is to be told waits as flags in the end itself, so nothing queues without bound.
//! An end's life: (resolving ->) dialling -> connected -> over; `over` lasts until it was told. Flows of
//! datagrams dial nobody: (resolving ->) datagrams -> over.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use self::inbox::Inbox;
use self::limits::{Spent, Tally};
use self::names::{Answer, Names, Question};
use self::post::Post;
use self::rules::Rules;
use self::slot::{Dial, News, Slot, State};
use self::tcp::{Connection, Read, Sent};
use crate::local_end::{EndEvent, EndId, LocalEnds};
use crate::wire::datagram::LONGEST_SILENCE;
use crate::wire::open::{Kind, Open, Refusal, Target};

mod datagrams;
mod echo;
mod inbox;
mod limits;
mod names;
mod poller;
mod post;
pub mod rules;
mod slot;
mod system;
mod tcp;

/// What may be dialled, and how much of it.
#[derive(Clone, Debug)]
pub struct DialConfig {
    pub rules: Rules,
    /// How long a target may take to answer, its name included.
    pub timeout: Duration,
    /// Flows at once, of all trunks.
    pub max_flows: usize,
    /// Dials in progress at once, of all trunks.
    pub max_dials: usize,
    /// Flows that may begin in a second, of all trunks.
    pub dials_per_second: u32,
    /// How long a flow of datagrams may be silent; the client's own limits are no longer.
    pub idle: Duration,
    /// Bytes that may wait for one target that does not take them.
    pub window: usize,
}

impl Default for DialConfig {
    fn default() -> Self {
        Self {
            rules: Rules::default(),
            timeout: Duration::from_secs(10),
            max_flows: 32_768,
            max_dials: 1_024,
            // Above what one engine was seen to connect (33,000), so that only a flood meets it.
            dials_per_second: 50_000,
            idle: LONGEST_SILENCE,
            window: 4 << 20,
        }
    }
}

/// Makes the ends of each trunk, which share the limits.
#[derive(Clone, Debug)]
pub struct Dialer {
    config: Arc<DialConfig>,
    tally: Arc<Tally>,
}

impl Dialer {
    pub fn new(config: DialConfig) -> Self {
        Self { config: Arc::new(config), tally: Arc::default() }
    }

    /// An empty collection for one trunk. It is to be used in the task of a tokio runtime.
    pub fn sockets(&self) -> Sockets {
        let inbox = Arc::new(Inbox::default());
        Sockets {
            config: self.config.clone(),
            tally: self.tally.clone(),
            names: Names::new(inbox.clone()),
            inbox,
            slots: Vec::new(),
            free: Vec::new(),
            heard: VecDeque::new(),
            news: VecDeque::new(),
            deadlines: BTreeSet::new(),
            spent: Spent::default(),
            post: Post::default(),
            serial: 0,
            at_io: false,
        }
    }

    /// Flows of all trunks, dials in progress included.
    pub fn flows(&self) -> usize {
        self.tally.flows()
    }
}

/// The sockets of one trunk's flows. Dropping it resets them all.
#[derive(Debug)]
pub struct Sockets {
    config: Arc<DialConfig>,
    tally: Arc<Tally>,
    inbox: Arc<Inbox>,
    names: Names,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Slots to look at in `poll_io`.
    heard: VecDeque<u32>,
    /// Slots that have something to tell; each stands in it once at most.
    news: VecDeque<u32>,
    /// Of the dials in progress and the flows of datagrams.
    deadlines: BTreeSet<(Instant, u32)>,
    spent: Spent,
    /// What flows of datagrams share.
    post: Post,
    /// Counts the dials, so that a late answer finds the right one or none.
    serial: u64,
    /// Inside `poll_io`, whose answer says whether there is something to tell.
    at_io: bool,
}

impl LocalEnds for Sockets {
    fn open(&mut self, open: &Open, now: Instant) -> Result<EndId, Refusal> {
        self.admit(open, now)?;
        let give_up = now + self.config.timeout;
        let slot = match &open.target {
            Target::Address(address, port) => {
                let target = SocketAddr::new(*address, *port);
                let slot = self.occupy(State::Free);
                let begun = match open.kind {
                    Kind::Tcp if !self.config.rules.permits(*address) => Err(Refusal::Denied),
                    Kind::Tcp => self.attempt(slot, vec![target], give_up, now),
                    Kind::Udp | Kind::Echo | Kind::Dns => self.associate(slot, open.kind, target, now),
                };
                if let Err(refusal) = begun {
                    self.release(slot);
                    return Err(refusal);
                }
                slot
            }
            Target::Name(name, port) => {
                self.serial += 1;
                let serial = self.serial;
                let slot = self.occupy(State::Resolving { serial, kind: open.kind, give_up });
                self.names.ask(Question { serial, slot, name: name.clone(), port: *port });
                slot
            }
        };
        self.inbox.nudge();
        Ok(EndId(slot))
    }

    /// A target is dialled, so there is nobody to be told.
    fn accept(&mut self, _end: EndId, _local: SocketAddr, _remote: SocketAddr, _now: Instant) {}

    fn refuse(&mut self, end: EndId, _refusal: Refusal, now: Instant) {
        self.reset(end, now);
    }

    fn read(&mut self, end: EndId, buf: &mut [u8], now: Instant) -> usize {
        if let Some((flow, post, config)) = self.datagrams(end) {
            let count = flow.read(buf, &config.rules, post, now);
            self.tell_datagrams(end.0);
            return count;
        }
        let Some(connection) = self.connection(end) else { return 0 };
        match connection.read(buf) {
            Read::Bytes(count) => count,
            Read::Nothing => 0,
            Read::Finished => {
                self.slots[end.0 as usize].news.finished = true;
                self.tell(end.0);
                self.end_if_closed(end);
                0
            }
            Read::Reset => {
                self.end(end.0, EndEvent::Reset { end });
                0
            }
        }
    }

    fn write(&mut self, end: EndId, bytes: &[u8], now: Instant) {
        if let Some((flow, post, config)) = self.datagrams(end) {
            match flow.write(bytes, end.0, &config.rules, post, now) {
                Ok(()) => self.tell_datagrams(end.0),
                Err(_no_message) => self.end(end.0, EndEvent::Reset { end }),
            }
            return;
        }
        let Some(connection) = self.connection(end) else { return };
        let sent = connection.write(bytes);
        self.sent(end, sent);
    }

    fn room(&self, end: EndId) -> usize {
        match self.slots.get(end.0 as usize).map(|slot| &slot.state) {
            Some(State::Connected(connection)) => self.config.window.saturating_sub(connection.pending()),
            // They never wait: they are sent or dropped.
            Some(State::Datagrams(_)) => self.config.window.min(DATAGRAM_ROOM),
            Some(State::Free | State::Resolving { .. } | State::Dialling(_) | State::Over(_)) | None => 0,
        }
    }

    fn finish(&mut self, end: EndId, _now: Instant) {
        if self.datagrams(end).is_some() {
            // Without a source nobody waits for answers.
            return self.end(end.0, EndEvent::Closed { end });
        }
        let Some(connection) = self.connection(end) else { return };
        let sent = connection.finish();
        self.sent(end, sent);
    }

    fn reset(&mut self, end: EndId, _now: Instant) {
        if self.slots.get(end.0 as usize).is_some_and(|slot| !matches!(slot.state, State::Free)) {
            self.reset_slot(end.0);
        }
    }

    fn poll_event(&mut self) -> Option<EndEvent> {
        while let Some(&slot) = self.news.front() {
            let entry = &mut self.slots[slot as usize];
            if let Some(event) = entry.news.next(EndId(slot)) {
                return Some(event);
            }
            entry.in_news = false;
            self.news.pop_front();
            if let State::Over(event) = &entry.state {
                let event = EndEvent::clone(event);
                entry.state = State::Free;
                self.release(slot);
                return Some(event);
            }
        }
        None
    }

    fn poll_io(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<()> {
        self.at_io = true;
        for answer in self.inbox.take(cx) {
            self.names.answered();
            self.resolved(answer, now);
        }
        // Behind what may have made the first socket.
        let more = self.hear(cx);
        for _ in 0..SLOTS_A_TURN {
            let Some(slot) = self.heard.pop_front() else { break };
            self.look_at(slot, now);
        }
        self.at_io = false;
        if self.heard.is_empty() && self.news.is_empty() && !more { Poll::Pending } else { Poll::Ready(()) }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(deadline, slot)) = self.deadlines.first()
            && deadline <= now
        {
            if matches!(self.slots[slot as usize].state, State::Datagrams(_)) {
                self.expire(slot, now);
            } else {
                self.dial_failed(slot, Refusal::TimedOut, now);
            }
        }
    }

    fn counters(&self, tell: &mut dyn FnMut(&'static str, u64)) {
        self.post.counts.tell(tell);
    }
}

impl Sockets {
    /// How many flows there are.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether one more flow is within the limits; its place in the pace is taken.
    fn admit(&self, open: &Open, now: Instant) -> Result<(), Refusal> {
        let dials = match (open.kind, &open.target) {
            (Kind::Dns, _) => return Err(Refusal::Unsupported),
            (Kind::Tcp, _) | (Kind::Udp | Kind::Echo, Target::Name(..)) => self.tally.dials(),
            (Kind::Udp | Kind::Echo, Target::Address(..)) => 0,
        };
        let fits = self.tally.flows() < self.config.max_flows
            && dials < self.config.max_dials
            && self.tally.admits(self.config.dials_per_second, now);
        fits.then_some(()).ok_or(Refusal::Exhausted)
    }

    /// Gives the state a slot, and counts it as a flow.
    fn occupy(&mut self, state: State) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            let slot = u32::try_from(self.slots.len()).expect("flows are limited far below 2^32");
            self.slots.push(Slot::default());
            slot
        });
        self.tally.flows.fetch_add(1, Ordering::Relaxed);
        self.replace(slot, state);
        slot
    }

    /// Changes the state and with it the dials in progress; gives back the old state.
    fn replace(&mut self, slot: u32, state: State) -> State {
        let (deadline, is_dial) = (state.deadline(), state.is_dial());
        let old = std::mem::replace(&mut self.slots[slot as usize].state, state);
        if let Some(deadline) = old.deadline() {
            self.deadlines.remove(&(deadline, slot));
        }
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, slot));
        }
        if is_dial {
            self.tally.dials.fetch_add(1, Ordering::Relaxed);
        }
        if old.is_dial() {
            self.tally.dials.fetch_sub(1, Ordering::Relaxed);
        }
        if let State::Resolving { serial, .. } = old {
            self.names.forget(serial);
        }
        old
    }

    /// Makes a slot, free by now, usable again.
    fn release(&mut self, slot: u32) {
        self.slots[slot as usize].news = News::default();
        self.free.push(slot);
        self.tally.flows.fetch_sub(1, Ordering::Relaxed);
    }

    fn reset_slot(&mut self, slot: u32) {
        self.replace(slot, State::Free).abort();
        self.release(slot);
    }

    fn connection(&mut self, end: EndId) -> Option<&mut Connection> {
        match &mut self.slots.get_mut(end.0 as usize)?.state {
            State::Connected(connection) => Some(connection),
            State::Free
            | State::Resolving { .. }
            | State::Dialling(_)
            | State::Datagrams(_)
            | State::Over(_) => None,
        }
    }

    /// Has the owner ask for news of the slot, also when it is about to wait.
    fn tell(&mut self, slot: u32) {
        let entry = &mut self.slots[slot as usize];
        if !std::mem::replace(&mut entry.in_news, true) {
            self.news.push_back(slot);
            if !self.at_io {
                self.inbox.nudge();
            }
        }
    }

    /// Takes the end away from its socket; `event` is the last thing told of it.
    fn end(&mut self, slot: u32, event: EndEvent) {
        let reset = matches!(event, EndEvent::Reset { .. });
        let old = self.replace(slot, State::Over(Box::new(event)));
        if reset {
            old.abort();
        }
        self.tell(slot);
    }

    fn end_if_closed(&mut self, end: EndId) {
        if self.connection(end).is_some_and(|connection| connection.is_closed()) {
            self.end(end.0, EndEvent::Closed { end });
        }
    }

    fn sent(&mut self, end: EndId, sent: Sent) {
        match sent {
            Sent::Reset => self.end(end.0, EndEvent::Reset { end }),
            Sent::Fine { freed } => {
                if freed > 0 {
                    self.slots[end.0 as usize].news.room = true;
                    self.tell(end.0);
                }
                self.tell_readable(end);
                self.end_if_closed(end);
            }
        }
    }

    fn tell_readable(&mut self, end: EndId) {
        if self.connection(end).is_some_and(Connection::is_news) {
            self.slots[end.0 as usize].news.readable = true;
            self.tell(end.0);
        }
    }

    /// Has the slots looked at whose sockets say something; true when more may have.
    fn hear(&mut self, cx: &mut Context<'_>) -> bool {
        let Self { post, slots, heard: to_look_at, .. } = self;
        post.poller.poll(cx, &mut |slot, heard| {
            if let Some(entry) = slots.get_mut(slot as usize) {
                entry.hear(heard, slot, to_look_at);
            }
        })
    }

    fn look_at(&mut self, slot: u32, now: Instant) {
        let end = EndId(slot);
        let entry = &mut self.slots[slot as usize];
        entry.heard = false;
        match &mut entry.state {
            State::Free | State::Resolving { .. } | State::Over(_) => {}
            State::Datagrams(_) => self.tell_datagrams(slot),
            State::Dialling(dial) => match tcp::outcome(&dial.stream, dial.remote) {
                Poll::Pending => {}
                Poll::Ready(Ok(local)) => self.connected(slot, local),
                Poll::Ready(Err(refusal)) => self.dial_failed(slot, refusal, now),
            },
            State::Connected(connection) => {
                let sent = connection.flush();
                self.sent(end, sent);
            }
        }
    }

    fn connected(&mut self, slot: u32, local: SocketAddr) {
        let State::Dialling(dial) = self.replace(slot, State::Free) else { return };
        self.slots[slot as usize].news.connected = Some(Box::new((local, dial.remote)));
        self.replace(slot, State::Connected(Connection::new(dial.stream, dial.heard)));
        self.tell(slot);
        // The target may have spoken already.
        self.tell_readable(EndId(slot));
    }

    /// Goes on to the target's next address, or tells the refusal.
    fn dial_failed(&mut self, slot: u32, refusal: Refusal, now: Instant) {
        let (rest, give_up) = match self.replace(slot, State::Free) {
            State::Dialling(dial) => (dial.rest, dial.give_up),
            State::Resolving { give_up, .. } => (Vec::new(), give_up),
            other @ (State::Free | State::Connected(_) | State::Datagrams(_) | State::Over(_)) => {
                self.replace(slot, other);
                return;
            }
        };
        self.dial(slot, rest, refusal, give_up, now);
    }

    /// Begins the next attempt in a slot whose state was taken out.
    fn dial(
        &mut self,
        slot: u32,
        addresses: Vec<SocketAddr>,
        otherwise: Refusal,
        give_up: Instant,
        now: Instant,
    ) {
        let begun = if addresses.is_empty() || now >= give_up {
            Err(otherwise)
        } else {
            self.attempt(slot, addresses, give_up, now)
        };
        if let Err(refusal) = begun {
            self.end(slot, EndEvent::Refused { end: EndId(slot), refusal });
        }
    }

    /// Begins to connect to the last address that can be tried at all, in a free slot.
    fn attempt(
        &mut self,
        slot: u32,
        addresses: Vec<SocketAddr>,
        give_up: Instant,
        now: Instant,
    ) -> Result<(), Refusal> {
        let Self { post, spent, .. } = self;
        let dial = Dial::begin(addresses, give_up, slot, &mut post.poller, spent, now)?;
        self.replace(slot, State::Dialling(Box::new(dial)));
        Ok(())
    }

    fn resolved(&mut self, answer: Answer, now: Instant) {
        let Answer { serial, slot, addresses } = answer;
        let (kind, give_up) = match self.slots.get(slot as usize).map(|slot| &slot.state) {
            Some(State::Resolving { serial: asked, kind, give_up }) if *asked == serial => (*kind, *give_up),
            Some(
                State::Free
                | State::Resolving { .. }
                | State::Dialling(_)
                | State::Connected(_)
                | State::Datagrams(_)
                | State::Over(_),
            )
            | None => return,
        };
        self.replace(slot, State::Free);
        let otherwise = if addresses.is_empty() { Refusal::UnknownName } else { Refusal::Denied };
        let mut allowed: Vec<_> =
            addresses.into_iter().filter(|address| self.config.rules.permits(address.ip())).collect();
        if kind != Kind::Tcp {
            let first = allowed.first().ok_or(otherwise);
            if let Err(refusal) = first.and_then(|&target| self.associate(slot, kind, target, now)) {
                self.end(slot, EndEvent::Refused { end: EndId(slot), refusal });
            }
            return;
        }
        allowed.reverse();
        self.dial(slot, allowed, otherwise, give_up, now);
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        for slot in (0..).take(self.slots.len()) {
            if !matches!(self.slots[slot as usize].state, State::Free) {
                self.reset_slot(slot);
            }
        }
    }
}

/// Looked at in one `poll_io`; a look costs a system call at most unless bytes wait to be written.
const SLOTS_A_TURN: usize = 256;
/// As much as may be under way to one source's peers; nothing waits here, so it is no delay.
const DATAGRAM_ROOM: usize = 1 << 20;
