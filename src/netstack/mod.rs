//! Pure: packets in, packets out, flows: every TCP connection an application opens through the tunnel ends
//! here, and its bytes come out as a flow. So do the datagrams of each UDP socket, and the echo requests of each
//! `ping`, as messages.
//!
//! Drive a [`Stack`] in this order: [`handle_packet`](Stack::handle_packet) for each packet of a batch,
//! [`poll_event`](Stack::poll_event) until `None`, then `accept`, `refuse`, `read`, `write`, `finish` and
//! `reset` as the events ask for, then [`poll_packet`](Stack::poll_packet) while
//! [`wants_poll`](Stack::wants_poll), and [`handle_timeout`](Stack::handle_timeout) at
//! [`poll_timeout`](Stack::poll_timeout). Answers leave only in `poll_packet`, so a batch costs one
//! acknowledgement per flow.
//!
//! A SYN makes a pending flow and no socket; smoltcp sees it after `accept`. Each socket lives in a
//! `SocketSet` of its own behind the flow table: smoltcp walks a whole set for each packet, so that a
//! packet costs the same whatever the number of flows.

mod association;
mod counters;
mod datagrams;
mod device;
mod egress;
mod event;
mod flow_table;
mod fragments;
mod icmp;
mod ingress;
mod mailbox;
mod meter;
mod packet;
mod peers;
mod queue;
mod recency;
mod reply;
mod rest;
pub mod rings;
mod tcp;

use std::time::{Duration, Instant};

use agent::local_end::EndFigures;
use agent::wire::open::{Kind, Refusal};

use self::association::Association;
pub use self::counters::{Counters, DropReason};
use self::datagrams::Datagrams;
use self::device::{Buffer, Outbox, Traits};
use self::event::Untold;
pub use self::event::{Event, FlowId};
use self::flow_table::{FlowTable, Tuple};
use self::fragments::Fragments;
use self::icmp::{Answer, RateLimit};
use self::meter::Meter;
use self::packet::{Packet, Segment, Syn};
use self::queue::{Queue, Timers};
use self::rest::Resting;
use self::rings::{Memory, Rings};
use self::tcp::{Connection, Io};

/// Sizes, bounds and the seed of a [`Stack`].
#[derive(Clone, Debug)]
pub struct Config {
    /// The device's MTU in bytes.
    pub mtu: usize,
    /// Bytes that wait to be read, per flow; this is the window offered to the application. Rounded down to
    /// a size whose window can be told exactly.
    pub receive_ring: usize,
    /// Bytes the application has not acknowledged yet, per flow: no less than the largest window of the mux, or this is
    /// what bounds one flow over a long way. With 1 MiB a download got 4 MB/s at 160 ms.
    pub send_ring: usize,
    pub max_flows: usize,
    /// Flows that wait for `accept` or `refuse`; SYNs beyond are dropped and come again.
    pub max_pending: usize,
    /// From the system's random source: sequence numbers and the table's hash depend on it.
    pub seed: u64,
    /// Whether packets that nobody vouches for may have been damaged or never summed.
    pub verify_checksums: bool,
    /// Whether TCP and UDP checksums are whole; if not, they cover the pseudo-header and the device does the rest.
    /// IP and ICMP ones always are.
    pub emit_checksums: bool,
    /// UDP associations; when they are so many, the one idle for longest makes room for another.
    pub max_associations: usize,
    /// The same for pairs of an echo identifier and a target.
    pub max_echoes: usize,
    /// How long an association may be idle: after one datagram and its answers, otherwise, and for an echo.
    pub udp_pair_timeout: Duration,
    pub udp_timeout: Duration,
    pub echo_timeout: Duration,
    /// Bytes of datagrams that wait in one association, each way, and in all.
    pub datagram_queue: usize,
    pub datagram_memory: usize,
}

impl Config {
    /// The bytes that the rings of one connection take.
    pub fn rings(&self) -> usize {
        let (receive, send) = self.ring_sizes();
        receive + send
    }

    fn ring_sizes(&self) -> (usize, usize) {
        (tcp::receive_capacity(self.receive_ring), self.send_ring)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mtu: 65_535,
            receive_ring: 512 * 1024,
            send_ring: 4 << 20,
            max_flows: 65_536,
            max_pending: 1_024,
            seed: 0,
            verify_checksums: true,
            emit_checksums: true,
            max_associations: 8_192,
            max_echoes: 1_024,
            udp_pair_timeout: Duration::from_secs(30),
            udp_timeout: Duration::from_secs(300),
            echo_timeout: Duration::from_secs(30),
            datagram_queue: 256 * 1024,
            datagram_memory: 32 << 20,
        }
    }
}

/// A TCP/IP stack for flows that end in us.
pub struct Stack {
    config: Config,
    io: Io,
    table: FlowTable<Flow>,
    /// Flows with events to tell.
    events: Queue,
    /// Flows that may have packets to send.
    dirty: Queue,
    timers: Timers,
    datagrams: Datagrams,
    fragments: Fragments,
    outbox: Outbox,
    /// The packet of a flow that the device did not take yet.
    out: Buffer,
    /// Where rings lie; without it each connection has its own from the allocator.
    memory: Option<Box<dyn Memory>>,
    /// Connections that have ended, for the next flows: what is leased has no way back. Each costs less than a KiB, all but
    /// [`MAX_WARM`] of them are at rest.
    spare: Vec<Connection>,
    resting: Resting,
    replies: RateLimit,
    scratch: Vec<u8>,
    counters: Counters,
    /// The figures of the flow that was removed last, until its owner can no longer ask for them.
    parted: Option<(FlowId, EndFigures)>,
}

struct Flow {
    state: State,
    untold: Untold,
    /// The one entry among the timers that counts.
    armed: Option<Instant>,
    meter: Meter,
}

enum State {
    /// The SYN, and when it was last heard.
    Pending(Syn, Instant),
    Open(Connection),
    /// UDP or echo.
    Datagrams(Box<Association>),
    /// Only its last event is left.
    Gone,
}

impl Stack {
    pub fn new(config: Config, now: Instant) -> Self {
        Self::with_memory(config, None, now)
    }

    /// A stack whose rings lie in `memory`, places of [`Config::rings`] bytes.
    pub fn with_memory(config: Config, memory: Option<Box<dyn Memory>>, now: Instant) -> Self {
        let config = Config { mtu: config.mtu.clamp(MIN_MTU, MAX_MTU), ..config };
        let traits = Traits { mtu: config.mtu, emit_checksums: config.emit_checksums };
        Self {
            io: Io::new(traits, config.seed, now),
            table: FlowTable::new(config.max_flows, config.seed),
            events: Queue::default(),
            dirty: Queue::default(),
            timers: Timers::default(),
            datagrams: Datagrams::default(),
            fragments: Fragments::default(),
            outbox: Outbox::default(),
            out: Buffer::default(),
            memory,
            spare: Vec::new(),
            resting: Resting::default(),
            replies: RateLimit::new(now),
            scratch: Vec::new(),
            counters: Counters::default(),
            parted: None,
            config,
        }
    }

    /// Takes a packet from the device. Whatever is wrong with it is counted, nothing else.
    pub fn handle_packet(&mut self, bytes: &[u8], now: Instant) {
        self.handle(bytes, self.config.verify_checksums, now);
    }

    /// Takes a packet that the system made or has checked: its TCP or UDP checksum may not be complete.
    pub fn handle_vouched_packet(&mut self, bytes: &[u8], now: Instant) {
        self.handle(bytes, false, now);
    }

    fn handle(&mut self, bytes: &[u8], verify: bool, now: Instant) {
        self.counters.packets_in += 1;
        self.counters.bytes_in += bytes.len() as u64;
        if let Err(reason) = self.sort(bytes, verify, now) {
            self.counters.drop(reason);
        }
        self.note_work();
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.parted = None;
        loop {
            let slot = self.events.pop()?;
            let Some(tuple) = self.table.tuple(slot) else { continue };
            let Some(flow) = self.table.get_mut(slot) else { continue };
            let Some(event) = flow.untold.take(FlowId(slot), tuple) else { continue };
            if flow.untold.any() {
                self.events.push(slot);
            }
            if matches!(event, Event::Reset { .. } | Event::Closed { .. }) {
                self.remove(slot);
            }
            return Some(event);
        }
    }

    /// Completes the connection: the application gets its SYN-ACK, or a reset where there is no memory for it; then the
    /// owner hears of its end.
    pub fn accept(&mut self, flow: FlowId, now: Instant) {
        let FlowId(slot) = flow;
        let Some(Tuple { target, .. }) = self.table.tuple(slot) else { return };
        let Some(flow) = self.table.get_mut(slot) else { return };
        let syn = match &flow.state {
            State::Pending(syn, _) => syn,
            State::Datagrams(association) => {
                self.counters.echo_prohibited &= association.kind != Kind::Echo;
                return;
            }
            State::Open(_) | State::Gone => return,
        };
        let (receive, send) = self.config.ring_sizes();
        let memory = self.memory.as_mut();
        let fresh = || Rings::new(memory, receive, send).map(Connection::new);
        let Some(mut connection) = self.spare.pop().or_else(fresh) else {
            let syn = *syn;
            self.turn_away(&syn, Refusal::Exhausted);
            return self.lose(slot);
        };
        connection.wake(self.memory.as_deref_mut());
        let opened = connection.open(&mut self.io, syn, target.port(), now);
        flow.state = State::Open(connection);
        self.counters.flows_pending -= 1;
        if opened {
            self.dirty.push(slot);
        } else {
            self.lose(slot);
        }
    }

    /// Turns the connection away with the error that `icmp.rs` lists for the reason. The flow is gone.
    pub fn refuse(&mut self, flow: FlowId, why: Refusal, now: Instant) {
        let FlowId(slot) = flow;
        let syn = match self.table.get(slot).map(|flow| &flow.state) {
            Some(State::Pending(syn, _)) => *syn,
            Some(State::Datagrams(_)) => return self.refuse_datagrams(slot, why, now),
            Some(State::Open(_) | State::Gone) | None => return self.reset(flow, now),
        };
        self.remove(slot);
        self.turn_away(&syn, why);
    }

    fn turn_away(&mut self, syn: &Syn, why: Refusal) {
        let Ok(packet) = Packet::parse(syn.bytes(), false) else { return };
        match icmp::answer(why, packet.source.is_ipv6()) {
            Answer::Unreachable(code) => reply::build_unreachable(&packet, code, &mut self.scratch),
            Answer::Reset => {
                let Ok(segment) = Segment::parse(&packet, false) else { return };
                reply::build_reset(&packet, &segment, self.config.emit_checksums, &mut self.scratch);
            }
        }
        self.post();
    }

    /// Moves waiting bytes into `buf`; 0 means nothing is there now.
    pub fn read(&mut self, flow: FlowId, buf: &mut [u8], now: Instant) -> usize {
        let Some(entry) = self.table.get_mut(flow.0) else { return 0 };
        let count = match &mut entry.state {
            State::Open(connection) => {
                let count = connection.read(buf);
                if count > 0 && !connection.is_over() {
                    self.dirty.push(flow.0);
                }
                count
            }
            State::Datagrams(_) => return self.read_messages(flow.0, buf, now),
            State::Pending(..) | State::Gone => return 0,
        };
        if count == 0 {
            entry.untold.readable = false;
        }
        self.tell(flow.0);
        count
    }

    /// Takes as many bytes for the application as there is room for.
    pub fn write(&mut self, flow: FlowId, bytes: &[u8], now: Instant) -> usize {
        let Some(Flow { state: State::Open(connection), .. }) = self.table.get_mut(flow.0) else {
            return self.write_messages(flow.0, bytes, now);
        };
        connection.wake(self.memory.as_deref_mut());
        let count = connection.write(bytes);
        if count > 0 {
            self.dirty.push(flow.0);
        }
        count
    }

    /// How many bytes `write` takes now.
    pub fn room(&self, flow: FlowId) -> usize {
        match self.table.get(flow.0).map(|flow| &flow.state) {
            Some(State::Open(connection)) => connection.room(),
            Some(State::Datagrams(_)) => datagrams::ROOM,
            Some(State::Pending(..) | State::Gone) | None => 0,
        }
    }

    /// No more bytes will be written; the application gets a FIN after those it has.
    ///
    /// A flow of datagrams is over then.
    pub fn finish(&mut self, flow: FlowId, _now: Instant) {
        if let Some(Flow { state: State::Datagrams(_), .. }) = self.table.get(flow.0) {
            return self.conclude(flow.0);
        }
        let Some(connection) = self.connection(flow.0) else { return };
        connection.finish();
        self.dirty.push(flow.0);
        self.tell(flow.0);
    }

    /// Ends both directions with a reset, behind as many of the bytes written before as the application's window takes
    /// at once. The flow is gone.
    pub fn reset(&mut self, flow: FlowId, now: Instant) {
        let FlowId(slot) = flow;
        self.send_last_words(slot, now);
        let Some(flow_state) = self.table.get_mut(slot) else { return };
        match &mut flow_state.state {
            State::Pending(..) => self.refuse(flow, Refusal::Refused, now),
            State::Open(connection) => {
                connection.abort(&mut self.io, now);
                self.remove(slot);
                self.post_reply();
            }
            State::Datagrams(_) | State::Gone => self.remove(slot),
        }
    }

    /// What was counted of a flow; of one that is gone, until the next `poll_event`.
    pub fn figures(&self, flow: FlowId) -> EndFigures {
        match (self.table.get(flow.0), self.parted) {
            (Some(flow), _) => flow.meter.figures(),
            (None, Some((parted, figures))) if parted == flow => figures,
            (None, Some(_) | None) => EndFigures::default(),
        }
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Panics unless the parts agree with each other.
    #[doc(hidden)]
    pub fn check_invariants(&self) {
        self.table.check_invariants();
        let pending = self.table.iter().filter(|(_, flow)| matches!(flow.state, State::Pending(..))).count();
        assert_eq!(pending, self.counters.flows_pending);
        assert!(pending <= self.config.max_pending);
        assert_eq!(self.table.len(), self.counters.flows_now);
        assert!(self.spare.len() <= if self.memory.is_some() { self.config.max_flows } else { MAX_WARM });
        self.resting.check_invariants();
        self.check_datagrams();
        assert!(self.timers.len() <= 2 * self.table.len() + egress::TIMER_SLACK);
        for (slot, flow) in self.table.iter() {
            assert!(
                !flow.untold.any() || self.events.contains(slot),
                "slot {slot} has events no one will tell"
            );
            let ended = match &flow.state {
                State::Pending(..) | State::Datagrams(_) => false,
                State::Open(connection) => connection.is_over(),
                State::Gone => {
                    assert!(flow.untold.reset || flow.untold.closed, "slot {slot} is never freed");
                    true
                }
            };
            assert_eq!(ended, !self.table.is_mapped(slot), "slot {slot} and its tuple differ");
        }
    }

    /// Queues what there is to tell of an open flow, and lets its rings go when that is all.
    fn tell(&mut self, slot: u32) {
        let Some(flow) = self.table.get_mut(slot) else { return };
        let State::Open(connection) = &mut flow.state else { return };
        let news = connection.news();
        flow.untold.add(news);
        let spoken = connection.reset_until().is_some() && !connection.has_last_words();
        if flow.untold.any() {
            self.events.push(slot);
        }
        if spoken {
            return self.lose(slot);
        }
        if news.closed {
            let state = std::mem::replace(&mut flow.state, State::Gone);
            self.retire(slot, state);
        }
    }

    /// Keeps the rings of a connection that has ended for the next one: making them anew costs more than everything else
    /// a short connection needs. Those of a long one have too many touched pages to keep.
    fn retire(&mut self, slot: u32, state: State) {
        let connection = match state {
            State::Open(connection) => connection,
            State::Datagrams(association) => return self.datagrams.forget(slot, &association),
            State::Pending(..) | State::Gone => return,
        };
        let few = self.spare.len() < MAX_WARM && connection.is_cheap_to_keep();
        if !few && !connection.is_leased() {
            return;
        }
        let mut connection = connection.recycle();
        if !few {
            connection.rest(self.memory.as_deref_mut());
        }
        self.spare.push(connection);
    }

    /// The flow ends without the owner's doing: only its `Reset` is left to tell, if it was ever told of.
    fn lose(&mut self, slot: u32) {
        self.leave(slot, Untold { reset: true, ..Untold::default() });
    }

    /// Only `last` is left to tell of the flow, if it was ever told of.
    fn leave(&mut self, slot: u32, last: Untold) {
        let Some(flow) = self.table.get_mut(slot) else { return };
        if flow.untold.connect {
            return self.remove(slot);
        }
        if matches!(flow.state, State::Pending(..)) {
            self.counters.flows_pending -= 1;
        }
        let state = std::mem::replace(&mut flow.state, State::Gone);
        flow.untold = last;
        self.table.unmap(slot);
        self.events.push(slot);
        self.retire(slot, state);
    }

    fn remove(&mut self, slot: u32) {
        let Some(flow) = self.table.remove(slot) else { return };
        self.parted = Some((FlowId(slot), flow.meter.figures()));
        self.counters.flows_now -= 1;
        if matches!(flow.state, State::Pending(..)) {
            self.counters.flows_pending -= 1;
        }
        self.retire(slot, flow.state);
        self.prune_timers();
    }

    fn connection(&mut self, slot: u32) -> Option<&mut Connection> {
        match &mut self.table.get_mut(slot)?.state {
            State::Open(connection) => Some(connection),
            State::Pending(..) | State::Datagrams(_) | State::Gone => None,
        }
    }

    fn note_work(&mut self) {
        self.counters.socket_polls = self.io.polls;
    }
}

/// Longer than the longest pause between two SYNs of an application that still waits.
const PENDING_LIFE: Duration = Duration::from_secs(130);
/// Connections kept for reuse with the pages they have touched, each at most 64 KiB.
const MAX_WARM: usize = 64;
const MIN_MTU: usize = 1280;
const MAX_MTU: usize = 65_535;
