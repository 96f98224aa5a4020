//! The loop both ends run: flows, mux, trunk and lanes over local ends, in one task.
//!
//! One turn of the loop: local ends do their system calls, then what they tell is acted on, then every
//! lane is read (its bytes go through the trunk and the mux straight into local ends), then every lane that
//! has room gets records, whose bytes the mux pulls from local ends at that moment. Nothing is queued between
//! mux and trunk beyond one record, so a short flow never waits behind bytes that were pulled too early.

mod asked;
mod command;
mod flow;
mod flows;
mod greetings;
mod in_blocks;
mod lanes;
mod ledger;
mod squeeze;
mod streams;
#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::Sleep;

use crate::local_end::LocalEnds;
use crate::wire::Role;
use crate::wire::mux::{Mux, MuxConfig, MuxFault};
use crate::wire::trunk::{Demand, GoodbyeReason, LaneId, Trunk, TrunkConfig, TrunkEvent};

pub use command::{Attach, Command, Config, Kill, LaneNews, Outcome, Pinging, Remains, Report};
pub use flow::{Culprit, FlowReport, FlowState};
use flows::Flows;
use lanes::{Lanes, Loss};
pub use ledger::{FlowPage, Ledger};
pub use squeeze::Gain;
use squeeze::Press;

/// One trunk's engine.
pub struct Engine<E> {
    trunk: Trunk,
    mux: Mux,
    flows: Flows<E>,
    lanes: Lanes,
    /// What a lane is read into.
    buffer: Box<[u8]>,
    on_lane: Box<dyn FnMut(LaneNews)>,
    role: Role,
    ping_interval: Duration,
    pinging: Pinging,
    /// When the first of the lanes came, if there is one.
    lanes_since: Option<Instant>,
    busy: bool,
    demand: Demand,
    fault: Option<MuxFault>,
    goodbye: Option<String>,
    closing: bool,
}

impl<E: LocalEnds> Engine<E> {
    #[expect(clippy::disallowed_methods, reason = "the press only measures its own work with it")]
    pub fn new(config: Config, ends: E) -> Self {
        let mut flows = Flows::new(ends);
        flows.press = Press::new(Instant::now);
        Self {
            trunk: Trunk::new(TrunkConfig::new(config.role, config.entropy)),
            mux: Mux::new(MuxConfig::new(config.role)),
            flows,
            lanes: Lanes::default(),
            buffer: vec![0; READ_BUFFER].into_boxed_slice(),
            on_lane: config.on_lane,
            role: config.role,
            ping_interval: config.ping_interval,
            pinging: Pinging::default(),
            lanes_since: None,
            busy: false,
            demand: Demand::default(),
            fault: None,
            goodbye: None,
            closing: false,
        }
    }

    /// Goes on with the ledger of the engine before.
    #[must_use]
    pub fn with_ledger(mut self, ledger: Ledger) -> Self {
        self.flows.ledger = ledger;
        self
    }

    pub fn with_pinging(mut self, pinging: Pinging) -> Self {
        self.pinging = pinging;
        self
    }

    /// Runs until the trunk ends. Every flow is reset then.
    #[expect(clippy::disallowed_methods, reason = "the driver of the loop reads the clock")]
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>) -> (Outcome, Remains<E>) {
        let mut sleep = Box::pin(tokio::time::sleep(Duration::from_secs(3600)));
        let mut armed = None;
        let outcome = loop {
            let turns = poll_fn(|cx| {
                for _ in 0..TURNS {
                    let now = Instant::now();
                    let moved = self.turn(cx, &mut commands, now);
                    if let Some(outcome) = self.outcome() {
                        self.part(cx, &outcome, now);
                        return Poll::Ready(Some(outcome));
                    }
                    if !moved && !self.arm(cx, sleep.as_mut(), &mut armed) {
                        return Poll::Pending;
                    }
                }
                Poll::Ready(None)
            });
            if let Some(outcome) = turns.await {
                break outcome;
            }
            // A task that wakes itself is run dozens of times before the runtime asks the system what is ready: a
            // keystroke would wait for all of them.
            tokio::task::yield_now().await;
        };
        let farewell = poll_fn(|cx| self.poll_farewell(cx, Instant::now()));
        // A lane that does not take its farewell in time is dropped without it.
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
        let now = Instant::now();
        let mut remains = self.flows.into_remains(now);
        // The resets go out as far as the system takes them at once.
        poll_fn(|cx| Poll::Ready(remains.ends.poll_io(cx, now).is_ready())).await;
        (outcome, remains)
    }

    /// Sets the timer for the next deadline; true when that deadline has passed already.
    fn arm(&self, cx: &mut Context<'_>, mut sleep: Pin<&mut Sleep>, armed: &mut Option<Instant>) -> bool {
        let Some(deadline) = self.poll_timeout() else { return false };
        if *armed != Some(deadline) {
            sleep.as_mut().reset(deadline.into());
            *armed = Some(deadline);
        }
        if sleep.poll(cx).is_ready() {
            *armed = None;
            return true;
        }
        false
    }

    fn poll_timeout(&self) -> Option<Instant> {
        [self.trunk.poll_timeout(), self.flows.ends.poll_timeout(), self.greeting_due()]
            .into_iter()
            .flatten()
            .min()
    }

    fn greeting_due(&self) -> Option<Instant> {
        self.flows.greeting_due(self.lanes_since?)
    }

    /// Does what can be done now; false when nothing moved and all wakers are armed.
    fn turn(&mut self, cx: &mut Context<'_>, commands: &mut mpsc::Receiver<Command>, now: Instant) -> bool {
        let mut moved = false;
        moved |= self.handle_commands(cx, commands, now);
        self.handle_timers(now);
        moved |= self.flows.ends.poll_io(cx, now).is_ready();
        moved |= self.handle_end_events(now);
        moved |= self.read_lanes(cx, now);
        moved |= self.handle_end_events(now);
        self.keep_pinging();
        moved |= self.write_lanes(cx, now);
        moved
    }

    fn outcome(&mut self) -> Option<Outcome> {
        if let Some(fault) = &self.fault {
            return Some(Outcome::Fault(*fault));
        }
        if let Some(text) = self.flows.ends.failure() {
            return Some(Outcome::Ends { text });
        }
        if let Some(text) = &self.goodbye {
            return Some(Outcome::Goodbye { text: text.clone() });
        }
        if (self.flows.is_spent() || self.mux.peer_left()) && self.flows.open() == 0 {
            return Some(Outcome::Spent);
        }
        self.closing.then_some(Outcome::Closed)
    }

    /// Begins to end: says why on every lane, after the mux's last word if it has one.
    fn part(&mut self, cx: &mut Context<'_>, outcome: &Outcome, now: Instant) {
        self.on_lane = Box::new(|_| {});
        let reason = match (outcome, self.role) {
            (Outcome::Fault(_), _) => GoodbyeReason::Fault,
            (Outcome::Closed | Outcome::Ends { .. }, Role::Agent) => GoodbyeReason::Shutdown,
            (Outcome::Closed | Outcome::Ends { .. }, Role::Client) => GoodbyeReason::Done,
            (Outcome::Goodbye { .. } | Outcome::Spent, _) => GoodbyeReason::Done,
        };
        if reason == GoodbyeReason::Fault {
            self.write_lanes(cx, now);
        }
        self.trunk.goodbye(reason);
    }

    fn poll_farewell(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<()> {
        self.write_lanes(cx, now);
        let Self { trunk, lanes, .. } = self;
        lanes.poll_close(cx, |lane| !trunk.wants_to_send(lane))
    }

    fn handle_commands(
        &mut self,
        cx: &mut Context<'_>,
        commands: &mut mpsc::Receiver<Command>,
        now: Instant,
    ) -> bool {
        let mut moved = false;
        while let Poll::Ready(command) = commands.poll_recv(cx) {
            moved = true;
            match command {
                Some(Command::Attach(attach)) => self.attach(attach, now),
                Some(Command::LiveLanes(live)) => {
                    let stale: Vec<LaneId> = self.lanes.ids().filter(|id| !live.contains(id)).collect();
                    for id in stale {
                        self.lose(id, "the client no longer has this lane".to_owned(), now);
                    }
                }
                Some(Command::Retire(lane)) => self.trunk.retire(lane),
                Some(Command::Ping(lane)) => self.trunk.ask(lane),
                Some(Command::Drop(lane, reason)) => self.lose(lane, reason, now),
                Some(Command::Report(reply)) => {
                    // Who asked may have gone; then nobody misses the answer.
                    let _ = reply.send(self.report());
                }
                Some(Command::Flows(from, reply)) => {
                    let _ = reply.send(self.flows.page(from, now));
                }
                Some(Command::Kill(serials, reply)) => {
                    let _ = reply.send(self.flows.kill(&serials, &mut self.mux, now));
                }
                Some(Command::Close) | None => {
                    self.closing = true;
                    return true;
                }
            }
        }
        moved
    }

    fn attach(&mut self, attach: Attach, now: Instant) {
        let Attach { lane, kind, hello, peer_received, in_blocks, io, leftover } = attach;
        self.flows.in_blocks.get_or_insert(in_blocks);
        self.lose(lane, "another lane took its name".to_owned(), now);
        self.trunk.attach(lane, kind, hello, now);
        self.lanes.add(lane, io);
        self.lanes_since.get_or_insert(now);
        (self.on_lane)(LaneNews::Attached { lane, lanes: self.lanes.len() });
        let informed = peer_received.map_or(Ok(()), |received| self.trunk.peer_received(lane, received));
        if let Err(loss) = informed.map_err(Loss::Fault).and_then(|()| self.place(lane, &leftover, now)) {
            self.lose(lane, loss.to_string(), now);
        }
    }

    fn lose(&mut self, lane: LaneId, reason: String, now: Instant) {
        if self.lanes.remove(lane) {
            self.trunk.detach(lane, now);
            self.lanes_since = self.lanes_since.filter(|_| self.lanes.len() > 0);
            (self.on_lane)(LaneNews::Lost { lane, lanes: self.lanes.len(), reason });
        }
    }

    /// Frames of the mux last 1 to 2 ms on the slowest lane as it is now, so that a short flow need not wait for more.
    fn suit_frames(&mut self) {
        if let Some(bytes) = self.trunk.longest_frame() {
            self.mux.set_max_frame(bytes);
        }
    }

    fn handle_timers(&mut self, now: Instant) {
        if self.trunk.poll_timeout().is_some_and(|at| at <= now) {
            self.trunk.handle_timeout(now);
        }
        if self.flows.ends.poll_timeout().is_some_and(|at| at <= now) {
            self.flows.ends.handle_timeout(now);
        }
        if let Some(since) = self.lanes_since {
            self.flows.reset_late_greetings(since, &mut self.mux, now);
        }
        while let Some(event) = self.trunk.poll_event() {
            match event {
                TrunkEvent::LaneDead { lane, reason } => self.lose(lane, reason.to_string(), now),
                TrunkEvent::LaneStalled { lane } => (self.on_lane)(LaneNews::Stalled { lane }),
                TrunkEvent::LaneDrained { lane } => (self.on_lane)(LaneNews::Drained { lane }),
                TrunkEvent::Goodbye { text, .. } => self.goodbye = Some(text),
            }
        }
    }

    fn handle_end_events(&mut self, now: Instant) -> bool {
        let mut moved = false;
        while let Some(event) = self.flows.ends.poll_event() {
            moved = true;
            self.flows.handle_event(event, &mut self.mux, now);
        }
        moved
    }

    /// Trunk pings count as client input for SSM's idle timer: by default only while flows are open, or bytes are
    /// under way that a lane may have taken along when it died in silence.
    fn keep_pinging(&mut self) {
        let busy = self.flows.open() > 0 || !self.trunk.is_settled();
        if busy != self.busy {
            self.busy = busy;
            (self.on_lane)(LaneNews::Busy(busy));
        }
        let demand = self.trunk.demand();
        if demand != self.demand {
            self.demand = demand;
            (self.on_lane)(LaneNews::Demand(demand));
        }
        let wanted = match self.pinging {
            Pinging::WhileBusy => busy,
            Pinging::Always => true,
            Pinging::Never => false,
        };
        // Under load nobody may wait long for a lane that is silent; the agent has its own segments to go by.
        let loaded = self.role == Role::Client && busy && demand.lanes() > 0;
        let interval = if loaded { Some(self.ping_interval.min(PING_UNDER_LOAD)) } else { None };
        self.trunk.set_ping(interval.or(wanted.then_some(self.ping_interval)));
    }

    fn read_lanes(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut moved = false;
        let mut buffer = std::mem::take(&mut self.buffer);
        for index in 0..self.lanes.len() {
            for _ in 0..READS {
                let Some((lane, read)) = self.lanes.poll_read(index, &mut buffer, cx) else { break };
                moved = true;
                if let Err(loss) = self.place(lane, &buffer[..read], now) {
                    self.lanes.lose(index, loss);
                }
            }
        }
        self.buffer = buffer;
        self.lose_lost(now) || moved
    }

    /// Brings bytes of a lane through the trunk and the mux to local ends.
    fn place(&mut self, lane: LaneId, bytes: &[u8], now: Instant) -> Result<(), Loss> {
        let Self { trunk, mux, flows, fault, .. } = self;
        let placed = trunk.handle_bytes(lane, bytes, now, &mut |bytes| {
            if fault.is_none()
                && let Err(broken) = mux.handle_bytes(bytes, &mut flows.streams(now), now)
            {
                *fault = Some(broken);
            }
        });
        if let Some(rtt) = trunk.usual_rtt() {
            mux.set_rtt(rtt);
        }
        flows.settle(mux, now);
        placed.map_err(Loss::Fault)
    }

    fn write_lanes(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut moved = false;
        self.suit_frames();
        for index in 0..self.lanes.len() {
            let ready = self.lanes.poll_ready(index, cx).is_some();
            self.trunk.set_ready(self.lanes.id(index), ready);
        }
        for index in 0..self.lanes.len() {
            for _ in 0..RECORDS {
                let Some((lane, most)) = self.lanes.poll_ready(index, cx) else {
                    self.trunk.set_ready(self.lanes.id(index), false);
                    break;
                };
                // A local end that gave bytes has news for its near side, sent or not.
                moved |= self.fill(most, now);
                let Some(record) = self.trunk.poll_parts(lane, most, now) else { break };
                moved = true;
                if !self.lanes.send(index, &record) {
                    break;
                }
            }
            self.lanes.poll_flush(index, cx);
        }
        self.trunk.note_backlog(self.mux.wants_to_send(), now);
        self.lose_lost(now) || moved
    }

    fn lose_lost(&mut self, now: Instant) -> bool {
        let lost = self.lanes.take_lost();
        let any = !lost.is_empty();
        for (lane, loss) in lost {
            self.lose(lane, loss.to_string(), now);
        }
        any
    }

    /// Lets the mux write into the trunk until a record of `most` bytes can be made; false when it has nothing.
    fn fill(&mut self, most: usize, now: Instant) -> bool {
        let mut moved = false;
        let fits = |unsent: usize| unsent == 0 || unsent + LEAST_FILL <= most;
        while fits(self.trunk.unsent()) && self.mux.wants_to_send() {
            let Self { trunk, mux, flows, .. } = self;
            // No sparse stream passes what the mux has written: it may not run ahead of the record.
            let lacking = most - trunk.unsent();
            let spare = trunk.spare();
            let usable = spare.len().min(lacking);
            let spare = &mut spare[..usable];
            if spare.is_empty() {
                break;
            }
            let written = mux.poll_frames(spare, &mut flows.streams(now));
            trunk.commit(written);
            flows.settle(mux, now);
            if written == 0 {
                break;
            }
            moved = true;
        }
        moved
    }

    /// Panics unless all parts agree with each other. To be called between turns.
    #[doc(hidden)]
    pub fn check_invariants(&self) {
        self.flows.check_invariants(&self.mux);
        let lanes: Vec<LaneId> = self.lanes.ids().collect();
        assert_eq!(self.trunk.lane_stats().count(), lanes.len());
        assert!(self.trunk.lane_stats().all(|stats| lanes.contains(&stats.lane)));
    }

    fn report(&self) -> Report {
        let mut counters = vec![("flows_unopened", self.flows.ledger.tally.unopened)];
        self.flows.ends.counters(&mut |name, value| counters.push((name, value)));
        Report {
            counters,
            trunk: self.trunk.stats(),
            demand: self.trunk.demand(),
            mux: self.mux.stats(),
            lanes: self.trunk.lane_stats().collect(),
            flows_open: self.flows.open() as u64,
            flows_total: self.flows.total(),
            flows_refused: self.flows.ledger.tally.refused,
            bytes_sent: self.flows.ledger.tally.bytes_sent,
            bytes_received: self.flows.ledger.tally.bytes_received,
        }
    }
}

/// What is silent for three of these is dead.
const PING_UNDER_LOAD: Duration = Duration::from_secs(1);
/// With less space a record is full: a frame would be cut too short.
const LEAST_FILL: usize = 128;
/// How long lanes have to take the goodbye.
const FAREWELL: Duration = Duration::from_secs(1);
/// Turns before the runtime looks for what else is ready; the second one mostly finds nothing more to do.
const TURNS: usize = 2;
/// Reads of one lane in a turn.
const READS: usize = 4;
/// Records to one lane in a turn.
const RECORDS: usize = 4;

/// The most bytes taken from a lane at once.
const READ_BUFFER: usize = 256 * 1024;
