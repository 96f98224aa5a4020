//! Local ends that follow a script: what each flow does is told by its number and the seed alone.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::Random;
use crate::local_end::{EndEvent, EndFigures, EndId, LocalEnds};
use crate::wire::open::{Kind, Open, Refusal, Target};

/// What one flow does; index 0 is the application's side, 1 the target's.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Ends of UDP have all their bytes at once, before any answer.
    pub(super) kind: Kind,
    pub(super) dial: Dial,
    /// How long the target's side takes to decide.
    pub(super) dial_time: Duration,
    /// Bytes each side sends.
    pub(super) bytes: [usize; 2],
    /// Bytes each side's buffer takes.
    pub(super) buffer: [usize; 2],
    /// Whether a side finishes only after the other has.
    pub(super) waits: [bool; 2],
    /// A side resets once it has received so many bytes.
    pub(super) reset: Option<(usize, usize)>,
    /// The application goes away after this time without an answer.
    pub(super) patience: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dial {
    Connect,
    RefuseAtOnce(Refusal),
    Refuse(Refusal),
    Never,
}

impl Plan {
    /// Connects and does nothing unusual.
    pub(super) fn plain() -> Self {
        Self {
            kind: Kind::Tcp,
            dial: Dial::Connect,
            dial_time: Duration::ZERO,
            bytes: [0; 2],
            buffer: [60_000; 2],
            waits: [false; 2],
            reset: None,
            patience: None,
        }
    }

    pub(super) fn of(seed: u64, flow: u32) -> Self {
        let mut random = Random(seed ^ u64::from(flow) << 32);
        let size = |random: &mut Random| match random.below(4) {
            0 => 0,
            1 => random.below(50) as usize,
            2 => random.below(5_000) as usize,
            _ => random.below(50_000) as usize,
        };
        let refusals = [Refusal::Refused, Refusal::Denied, Refusal::TimedOut, Refusal::UnknownName];
        let refusal = refusals[random.below(4) as usize];
        let dial = match random.below(12) {
            0 => Dial::RefuseAtOnce(refusal),
            1 | 2 => Dial::Refuse(refusal),
            3 => Dial::Never,
            _ => Dial::Connect,
        };
        let bytes = [size(&mut random), size(&mut random)];
        let impatient = dial == Dial::Never || random.below(10) == 0;
        let waiter = random.below(3) as usize;
        let resetter = random.below(2) as usize;
        let buffer = [0; 2].map(|_| {
            let most = if random.below(2) == 0 { 300 } else { 60_000 };
            200 + random.below(most) as usize
        });
        Self {
            kind: Kind::Tcp,
            dial,
            dial_time: Duration::from_micros(random.below(30_000)),
            bytes,
            buffer,
            waits: [waiter == 0, waiter == 1],
            reset: (random.below(6) == 0)
                .then(|| (resetter, random.below(bytes[1 - resetter] as u64 + 1) as usize)),
            patience: impatient.then(|| Duration::from_micros(1 + random.below(40_000))),
        }
    }
}

/// The byte that `side` of `flow` sends at `offset`.
fn byte(flow: u32, side: usize, offset: usize) -> u8 {
    if flow % 3 == 2 {
        // Nothing that could be packed.
        return (offset as u64 + 1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29)
            .wrapping_mul(0xbf58_476d_1ce4_e5b9)
            .to_be_bytes()[1];
    }
    (offset * 31 + offset / 256 + flow as usize * 7 + side * 101) as u8
}

/// How a side's end of a flow went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Log {
    pub(super) began: bool,
    pub(super) connected: bool,
    pub(super) read: usize,
    pub(super) received: usize,
    pub(super) far_finished: bool,
    pub(super) over: Option<Over>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    Closed,
    ResetHere,
    ResetByFar,
    GaveUp,
    Refused(Refusal),
}

/// What both sides' ends share with the test.
pub(super) struct Stage {
    pub(super) clock: Rc<Cell<Instant>>,
    pub(super) plans: Vec<Plan>,
    pub(super) logs: Vec<[Log; 2]>,
    pub(super) random: Random,
    /// This side takes nothing of what it gets.
    pub(super) stalled: Option<usize>,
}

struct End {
    flow: u32,
    state: State,
    /// Bytes that are there to be read.
    ready: usize,
    readable_told: bool,
    /// Bytes that were written and nobody has taken yet.
    waiting: usize,
    finished_told: bool,
    step_at: Option<Instant>,
    gives_up_at: Option<Instant>,
    over: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Wanted,
    Dialling,
    Open,
}

/// All ends of one side.
pub(super) struct Script {
    side: usize,
    stage: Rc<RefCell<Stage>>,
    slots: Vec<Option<End>>,
    free: Vec<u32>,
    events: VecDeque<EndEvent>,
    timers: BTreeSet<(Instant, u32)>,
    waker: Option<Waker>,
}

impl Script {
    pub(super) fn new(side: usize, stage: Rc<RefCell<Stage>>) -> Self {
        Self {
            side,
            stage,
            slots: Vec::new(),
            free: Vec::new(),
            events: VecDeque::new(),
            timers: BTreeSet::new(),
            waker: None,
        }
    }

    /// An application asks for a flow.
    pub(super) fn want(&mut self, flow: u32) {
        let now = self.stage.borrow().clock.get();
        let end = self.add(flow, State::Wanted);
        let Plan { kind, bytes, patience, .. } = self.stage.borrow().plans[flow as usize].clone();
        let gives_up_at = patience.map(|patience| now + patience);
        self.timers.extend(gives_up_at.map(|at| (at, end.0)));
        self.end(end).gives_up_at = gives_up_at;
        let source = SocketAddr::from((Ipv4Addr::LOCALHOST, 1000));
        let target = Target::Address(Ipv4Addr::from(flow).into(), 80);
        self.tell(EndEvent::Wanted { end, source, open: Open { kind, target } });
        if kind == Kind::Udp {
            self.end(end).ready = bytes[self.side];
            self.end(end).readable_told = true;
            self.tell(EndEvent::Readable { end });
        }
    }

    /// All ends go on, after a stall.
    pub(super) fn wake_all(&mut self) {
        let open = |end: &Option<End>| end.as_ref().is_some_and(|end| end.state == State::Open);
        let ends: Vec<_> =
            (0..).zip(&self.slots).filter(|(_, end)| open(end)).map(|(at, _)| EndId(at)).collect();
        ends.into_iter().for_each(|end| self.arm(end));
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn add(&mut self, flow: u32, state: State) -> EndId {
        let log = &mut self.stage.borrow_mut().logs[flow as usize][self.side];
        assert!(!log.began, "flow {flow} begins twice");
        log.began = true;
        let end = End {
            flow,
            state,
            ready: 0,
            readable_told: false,
            waiting: 0,
            finished_told: false,
            step_at: None,
            gives_up_at: None,
            over: false,
        };
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        self.slots[at as usize] = Some(end);
        EndId(at)
    }

    fn end(&mut self, end: EndId) -> &mut End {
        self.slots[end.0 as usize].as_mut().expect("the engine uses no end that is gone")
    }

    fn tell(&mut self, event: EndEvent) {
        self.events.push_back(event);
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    fn log<T>(&self, flow: u32, note: impl FnOnce(&mut Log) -> T) -> T {
        note(&mut self.stage.borrow_mut().logs[flow as usize][self.side])
    }

    /// The engine, or the last event, ended it.
    fn remove(&mut self, end: EndId, over: Over) {
        let gone = self.slots[end.0 as usize].take().expect("an end ends once");
        self.timers.retain(|(_, slot)| *slot != end.0);
        self.free.push(end.0);
        self.events.retain(|event| id(event) != end);
        self.log(gone.flow, |log| {
            assert_eq!(log.over, None);
            log.over = Some(over);
        });
    }

    fn now(&self) -> Instant {
        self.stage.borrow().clock.get()
    }

    fn arm(&mut self, end: EndId) {
        let now = self.now();
        let pause = Duration::from_micros(self.stage.borrow_mut().random.below(3_000));
        let entry = self.end(end);
        if entry.step_at.is_none() && !entry.over {
            entry.step_at = Some(now + pause);
            self.timers.insert((now + pause, end.0));
        }
    }

    /// The near side does something: takes bytes, has more, resets, ends.
    fn step(&mut self, end: EndId) {
        let side = self.side;
        let entry = self.end(end);
        let (flow, state) = (entry.flow, entry.state);
        let plan = self.stage.borrow().plans[flow as usize].clone();
        if state == State::Dialling {
            let (local, remote) =
                (SocketAddr::from(([1, 2, 3, 4], 5)), SocketAddr::from((Ipv4Addr::from(flow), 80)));
            return match plan.dial {
                Dial::Connect => {
                    self.end(end).state = State::Open;
                    self.log(flow, |log| log.connected = true);
                    self.tell(EndEvent::Connected { end, local, remote });
                    self.arm(end);
                }
                Dial::Refuse(refusal) => self.finish_off(end, EndEvent::Refused { end, refusal }),
                Dial::RefuseAtOnce(_) | Dial::Never => {}
            };
        }
        let log = self.stage.borrow().logs[flow as usize][side].clone();
        let (taken, more) = {
            let Stage { random, stalled, .. } = &mut *self.stage.borrow_mut();
            let taken = if *stalled == Some(side) { 0 } else { random.below(20_000) };
            (taken as usize, random.below(20_000) as usize)
        };
        let entry = self.end(end);
        let before = entry.waiting;
        entry.waiting = entry.waiting.saturating_sub(taken);
        entry.ready = (entry.ready + more).min(plan.bytes[side] - log.read);
        let news = entry.ready > 0 && !entry.readable_told;
        entry.readable_told |= news;
        let idle = entry.waiting == 0 && (entry.ready == plan.bytes[side] - log.read);
        if entry.waiting < before {
            self.tell(EndEvent::Room { end });
        }
        if news {
            self.tell(EndEvent::Readable { end });
        }
        if plan.reset.is_some_and(|(who, at)| who == side && log.received >= at) {
            return self.finish_off(end, EndEvent::Reset { end });
        }
        self.finish_if_due(end);
        let stalled = self.stage.borrow().stalled == Some(side);
        if !idle && !stalled {
            self.arm(end);
        }
    }

    /// Tells what is due of the end's own finish and of both.
    fn finish_if_due(&mut self, end: EndId) {
        let entry = self.end(end);
        if entry.over || entry.state != State::Open {
            return;
        }
        let flow = entry.flow;
        let plan = self.stage.borrow().plans[flow as usize].clone();
        let log = self.stage.borrow().logs[flow as usize][self.side].clone();
        let done = log.read == plan.bytes[self.side] && (log.far_finished || !plan.waits[self.side]);
        if done && !self.end(end).finished_told {
            self.end(end).finished_told = true;
            self.tell(EndEvent::Finished { end });
        }
        let entry = self.end(end);
        if entry.finished_told && log.far_finished && entry.waiting == 0 {
            self.finish_off(end, EndEvent::Closed { end });
        }
    }

    fn finish_off(&mut self, end: EndId, last: EndEvent) {
        self.end(end).over = true;
        self.tell(last);
    }
}

fn id(event: &EndEvent) -> EndId {
    match event {
        EndEvent::Wanted { end, .. }
        | EndEvent::Connected { end, .. }
        | EndEvent::Refused { end, .. }
        | EndEvent::Readable { end }
        | EndEvent::Room { end }
        | EndEvent::Finished { end }
        | EndEvent::Reset { end }
        | EndEvent::Closed { end } => *end,
    }
}

impl LocalEnds for Script {
    fn open(&mut self, open: &Open, now: Instant) -> Result<EndId, Refusal> {
        let Target::Address(std::net::IpAddr::V4(flow), _) = open.target else { panic!("{open:?}") };
        let flow = u32::from(flow);
        let plan = self.stage.borrow().plans[flow as usize].clone();
        if let Dial::RefuseAtOnce(refusal) = plan.dial {
            self.log(flow, |log| {
                log.began = true;
                log.over = Some(Over::Refused(refusal));
            });
            return Err(refusal);
        }
        let end = self.add(flow, State::Dialling);
        if plan.dial != Dial::Never {
            self.end(end).step_at = Some(now + plan.dial_time);
            self.timers.insert((now + plan.dial_time, end.0));
        }
        Ok(end)
    }

    fn accept(&mut self, end: EndId, _local: SocketAddr, remote: SocketAddr, _now: Instant) {
        let entry = self.end(end);
        assert!(entry.state == State::Wanted);
        entry.state = State::Open;
        entry.gives_up_at = None;
        let flow = entry.flow;
        assert_eq!(remote.ip(), Ipv4Addr::from(flow));
        self.log(flow, |log| log.connected = true);
        self.arm(end);
    }

    fn refuse(&mut self, end: EndId, refusal: Refusal, _now: Instant) {
        assert!(self.end(end).state == State::Wanted);
        self.remove(end, Over::Refused(refusal));
    }

    fn read(&mut self, end: EndId, buf: &mut [u8], _now: Instant) -> usize {
        let side = self.side;
        let entry = self.end(end);
        let (flow, state) = (entry.flow, entry.state);
        let kind = self.stage.borrow().plans[flow as usize].kind;
        assert!(state == State::Open || (state, kind) == (State::Wanted, Kind::Udp));
        let entry = self.end(end);
        let (flow, count) = (entry.flow, entry.ready.min(buf.len()));
        entry.ready -= count;
        entry.readable_told &= count > 0;
        let from = self.log(flow, |log| {
            log.read += count;
            log.read - count
        });
        for (at, place) in buf[..count].iter_mut().enumerate() {
            *place = byte(flow, side, from + at);
        }
        self.finish_if_due(end);
        let entry = self.end(end);
        if !entry.over && entry.state == State::Open {
            self.arm(end);
        }
        count
    }

    fn write(&mut self, end: EndId, bytes: &[u8], _now: Instant) {
        assert!(!bytes.is_empty() && bytes.len() <= self.room(end), "the engine keeps to the room");
        let side = self.side;
        let flow = self.end(end).flow;
        self.end(end).waiting += bytes.len();
        self.log(flow, |log| {
            assert!(!log.far_finished, "bytes after the finish of flow {flow}");
            for (at, place) in bytes.iter().enumerate() {
                assert_eq!(
                    *place,
                    byte(flow, 1 - side, log.received + at),
                    "flow {flow} at {}",
                    log.received
                );
            }
            log.received += bytes.len();
        });
        self.arm(end);
    }

    fn figures(&self, _end: EndId) -> EndFigures {
        EndFigures { packets_from: 7, ..EndFigures::default() }
    }

    fn room(&self, end: EndId) -> usize {
        let end = self.slots[end.0 as usize].as_ref().expect("the engine asks no end that is gone");
        self.stage.borrow().plans[end.flow as usize].buffer[self.side] - end.waiting
    }

    fn finish(&mut self, end: EndId, _now: Instant) {
        let flow = self.end(end).flow;
        self.log(flow, |log| assert!(!std::mem::replace(&mut log.far_finished, true), "finished twice"));
        self.finish_if_due(end);
        self.arm(end);
    }

    fn reset(&mut self, end: EndId, _now: Instant) {
        assert!(self.end(end).state != State::Wanted, "who waits is refused");
        self.remove(end, Over::ResetByFar);
    }

    fn poll_event(&mut self) -> Option<EndEvent> {
        let event = self.events.pop_front()?;
        let over = match event {
            EndEvent::Refused { refusal, .. } => Some(Over::Refused(refusal)),
            EndEvent::Closed { .. } => Some(Over::Closed),
            EndEvent::Reset { end } if self.end(end).state == State::Wanted => Some(Over::GaveUp),
            EndEvent::Reset { .. } => Some(Over::ResetHere),
            EndEvent::Wanted { .. }
            | EndEvent::Connected { .. }
            | EndEvent::Readable { .. }
            | EndEvent::Room { .. }
            | EndEvent::Finished { .. } => None,
        };
        if let Some(over) = over {
            self.remove(id(&event), over);
        }
        Some(event)
    }

    fn poll_io(&mut self, cx: &mut Context<'_>, _now: Instant) -> Poll<()> {
        self.waker = Some(cx.waker().clone());
        if self.events.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    fn handle_timeout(&mut self, now: Instant) {
        while let Some((at, slot)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, slot));
            let end = EndId(slot);
            let entry = self.end(end);
            if entry.step_at == Some(at) {
                entry.step_at = None;
                if !entry.over {
                    self.step(end);
                }
            } else if entry.gives_up_at == Some(at) && !entry.over {
                self.finish_off(end, EndEvent::Reset { end });
            }
        }
    }
}
