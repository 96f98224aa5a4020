//! Two engines over lanes of memory in virtual time, with scripted local ends on both sides.
//!
//! An engine runs only when its waker was called or its deadline has come, so a lost wake-up shows as a
//! flow that never ends.
#![allow(clippy::disallowed_methods)]

mod accounts;
mod blocks;
mod datagrams;
mod greetings;
mod link;
mod readiness;
mod script;
mod snapshot;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

use proptest::prelude::*;

use self::link::{Link, Nature};
use self::script::{Dial, Log, Over, Plan, Script, Stage};
use super::flows::EARLY;
use super::*;
use crate::wire::mux::MuxFault;
use crate::wire::open::Refusal;
use crate::wire::trunk::LaneKind;

#[test]
fn flows_of_all_kinds_end_as_planned_over_one_steady_lane() {
    let world = World::run(Setting { seed: 1, flows: 250, ..Setting::default() });
    let stage = world.stage.borrow();
    let count = |over| stage.logs.iter().filter(|log| log[0].over == Some(over)).count();
    let refused = stage.logs.iter().filter(|log| matches!(log[0].over, Some(Over::Refused(_))));
    assert!(count(Over::Closed) > 50 && count(Over::GaveUp) > 10 && refused.count() > 30);
    assert!(count(Over::ResetHere) > 3 && count(Over::ResetByFar) > 3);
    for side in &world.sides {
        let stats = side.engine().trunk.stats();
        assert_eq!((stats.resumes, stats.resent, stats.faults), (0, 0, 0));
    }
}

#[test]
fn flows_outlive_a_hundred_lanes() {
    let world = World::run(Setting { seed: 2, flows: 150, cuts: 100, repeats: 10, ..Setting::default() });
    assert_eq!(world.cuts, 100);
    assert!(world.sides[1].engine().trunk.stats().duplicates > 0);
}

/// The target's side is to be reset by bytes that a silently dead lane took along, and nothing else is open
/// at the side that sent them.
#[test]
fn a_lane_that_dies_in_silence_with_the_last_bytes_is_found() {
    World::run(Setting {
        seed: 18_054_194_941_445_989_539,
        flows: 12,
        lanes: 3,
        cuts: 21,
        silent: true,
        kind: LaneKind::Ssm,
        delay: 21_941,
        capacity: 100,
        ..Setting::default()
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn any_lanes_cuts_and_flows_give_what_was_planned(
        seed in any::<u64>(),
        flows in 1u32..40,
        lanes in 1usize..4,
        cuts in 0u32..25,
        silent in any::<bool>(),
        repeats in prop::sample::select(&[0u64, 3, 20][..]),
        kind in prop::sample::select(&[LaneKind::Ssm, LaneKind::Tcp][..]),
        delay in 0u64..40_000,
        capacity in prop::sample::select(&[100usize, 5_000, 300_000][..]),
        record in prop::sample::select(&[300usize, 8_192, 140_000][..]),
        in_blocks in any::<bool>(),
    ) {
        World::run(Setting { seed, flows, lanes, cuts, silent, repeats, kind, delay, capacity, record, in_blocks });
    }
}

#[test]
fn a_side_that_takes_nothing_stops_the_other_at_its_buffer() {
    for stalled in [0, 1] {
        let mut world = World::new(Setting { flows: 0, ..Setting::default() });
        let mut bytes = [0; 2];
        bytes[1 - stalled] = 3 << 20;
        let plan = Plan { bytes, buffer: [50_000; 2], ..Plan::plain() };
        world.stage.borrow_mut().plans = vec![plan];
        world.stage.borrow_mut().logs = vec![Default::default()];
        world.stage.borrow_mut().stalled = Some(stalled);
        world.sides[0].engine_mut().flows.ends.want(0);
        world.run_for(Duration::from_secs(5));
        let read = world.stage.borrow().logs[0][1 - stalled].read;
        assert!((EARLY..=50_000).contains(&read), "{read} bytes were taken for a buffer of 50,000");
        for side in &world.sides {
            assert!(side.engine().trunk.is_drained(), "nothing waits on the way");
        }
    }
}

#[test]
fn an_idle_pair_owes_nothing_and_has_no_timer() {
    let mut world = World::run(Setting { flows: 5, ..Setting::default() });
    world.run_for(Duration::from_secs(60));
    for side in &world.sides {
        let engine = side.engine();
        assert_eq!(engine.poll_timeout(), None);
        assert!(engine.trunk.lane_stats().all(|stats| stats.in_flight == 0));
    }
    let turns = world.turns;
    world.run_for(Duration::from_secs(3600));
    assert_eq!(world.turns, turns, "an idle engine is not woken");
}

#[test]
fn the_owner_closes_and_the_other_side_hears_why() {
    for (closer, text) in [(0, "session"), (1, "stopping")] {
        let mut world = World::new(Setting { flows: 3, capacity: 100, ..Setting::default() });
        world.run_for(Duration::from_millis(8));
        world.sides[closer].commands.try_send(Command::Close).unwrap();
        world.run_for(Duration::from_secs(2));
        assert_eq!(world.sides[closer].outcome, Some(Outcome::Closed));
        let Some(Outcome::Goodbye { text: heard }) = &world.sides[1 - closer].outcome else {
            panic!("{:?}", world.sides[1 - closer].outcome)
        };
        assert!(heard.contains(text), "{heard}");
        for side in &world.sides {
            assert_eq!(side.ends.as_ref().map(Script::len), Some(0), "every end was reset or refused");
        }
    }
}

#[test]
fn a_broken_mux_ends_both_engines_and_says_so() {
    let mut world = World::new(Setting { flows: 4, ..Setting::default() });
    world.run_for(Duration::from_millis(8));
    let trunk = &mut world.sides[0].engine_mut().trunk;
    trunk.spare()[..12].fill(0xff);
    trunk.commit(12);
    world.sides[0].flag.0.store(true, Ordering::Relaxed);
    world.run_for(Duration::from_secs(2));
    assert!(matches!(world.sides[1].outcome, Some(Outcome::Fault(MuxFault::Peer(_)))));
    assert_eq!(world.sides[0].outcome, Some(Outcome::Fault(MuxFault::GivenUp(1))));
}

#[test]
fn a_trunk_whose_peer_leaves_ends_with_its_last_flow() {
    let mut world = World::new(Setting { flows: 0, ..Setting::default() });
    let plan = Plan { bytes: [400_000; 2], ..Plan::plain() };
    world.stage.borrow_mut().plans = vec![plan.clone(), plan];
    world.stage.borrow_mut().logs = vec![Default::default(); 2];
    world.sides[0].engine_mut().flows.ends.want(0);
    world.run_for(Duration::from_millis(8));
    world.sides[1].engine_mut().mux.leave();
    world.sides[1].flag.0.store(true, Ordering::Relaxed);
    world.run_for(Duration::from_millis(8));
    assert_eq!(world.sides[0].outcome, None);
    world.sides[0].engine_mut().flows.ends.want(1);
    world.run_for(Duration::from_secs(2));
    let logs = world.stage.borrow().logs.clone();
    assert_eq!((logs[0][0].over, logs[0][0].received), (Some(Over::Closed), 400_000));
    assert_eq!(logs[1][0].over, Some(Over::Refused(Refusal::Exhausted)));
    assert_eq!(world.sides[0].outcome, Some(Outcome::Spent));
}

/// What a run is like.
#[derive(Clone, Copy, Debug)]
struct Setting {
    seed: u64,
    flows: u32,
    lanes: usize,
    cuts: u32,
    /// A cut may stay unknown to one side.
    silent: bool,
    repeats: u64,
    kind: LaneKind,
    /// Microseconds.
    delay: u64,
    capacity: usize,
    record: usize,
    in_blocks: bool,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            seed: 7,
            flows: 10,
            lanes: 1,
            cuts: 0,
            silent: false,
            repeats: 0,
            kind: LaneKind::Tcp,
            delay: 500,
            capacity: 100_000,
            record: 8_192,
            in_blocks: false,
        }
    }
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One engine and its owner.
struct Side {
    engine: Option<Engine<Script>>,
    ends: Option<Script>,
    commands: mpsc::Sender<Command>,
    inbox: mpsc::Receiver<Command>,
    flag: Arc<Flag>,
    outcome: Option<Outcome>,
    live: Rc<RefCell<Vec<LaneId>>>,
}

impl Side {
    fn new(role: Role, stage: &Rc<RefCell<Stage>>) -> Self {
        let live = Rc::new(RefCell::new(Vec::new()));
        let lanes = live.clone();
        let on_lane = Box::new(move |news| match news {
            LaneNews::Attached { lane, .. } => lanes.borrow_mut().push(lane),
            LaneNews::Lost { lane, .. } => lanes.borrow_mut().retain(|live| *live != lane),
            LaneNews::Stalled { .. } | LaneNews::Drained { .. } | LaneNews::Busy(_) | LaneNews::Demand(_) => {
            }
        });
        let config = Config { role, ping_interval: Duration::from_millis(300), entropy: 1, on_lane };
        let (commands, inbox) = mpsc::channel(16);
        let script = Script::new(if role == Role::Client { 0 } else { 1 }, stage.clone());
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        let engine = Some(Engine::new(config, script));
        Self { engine, ends: None, commands, inbox, flag, outcome: None, live }
    }

    fn engine(&self) -> &Engine<Script> {
        self.engine.as_ref().expect("the engine runs")
    }

    fn engine_mut(&mut self) -> &mut Engine<Script> {
        self.engine.as_mut().expect("the engine runs")
    }

    fn deadline(&self) -> Option<Instant> {
        self.engine.as_ref().filter(|_| self.outcome.is_none()).and_then(Engine::poll_timeout)
    }

    /// As `Engine::run` does it: turns until nothing moves. How many they were.
    fn poll(&mut self, now: Instant) -> u64 {
        let due = self.deadline().is_some_and(|at| at <= now);
        let woken = self.flag.0.swap(false, Ordering::Relaxed);
        let Some(engine) = self.engine.as_mut().filter(|_| woken || due) else { return 0 };
        let waker = Waker::from(self.flag.clone());
        let mut cx = Context::from_waker(&waker);
        for turn in 1..100_000 {
            if self.outcome.is_some() {
                if engine.poll_farewell(&mut cx, now).is_ready()
                    && let Some(engine) = self.engine.take()
                {
                    self.ends = Some(engine.flows.into_remains(now).ends);
                }
                return turn;
            }
            let moved = engine.turn(&mut cx, &mut self.inbox, now);
            engine.check_invariants();
            let stats = engine.trunk.stats();
            assert!(stats.unacknowledged <= 4 << 20 && stats.held <= 4 << 20, "{stats:?}");
            if let Some(outcome) = engine.outcome() {
                engine.part(&mut cx, &outcome, now);
                self.outcome = Some(outcome);
            } else if !moved && engine.poll_timeout().is_none_or(|at| at > now) {
                return turn;
            }
        }
        panic!("the engine does not come to rest");
    }
}

struct World {
    setting: Setting,
    clock: Rc<Cell<Instant>>,
    start: Instant,
    stage: Rc<RefCell<Stage>>,
    sides: [Side; 2],
    links: Vec<Rc<RefCell<Link>>>,
    random: Random,
    next_lane: u64,
    cuts: u32,
    next_cut: Option<Instant>,
    /// When each flow is asked for, the last first.
    starts: Vec<(Instant, u32)>,
    /// What is told to a side later: the client hears of a new lane after the agent.
    later: Vec<(Instant, Command)>,
    turns: u64,
}

impl World {
    fn new(setting: Setting) -> Self {
        let start = Instant::now();
        let clock = Rc::new(Cell::new(start));
        let mut random = Random(setting.seed);
        let stage = Rc::new(RefCell::new(Stage {
            clock: clock.clone(),
            plans: (0..setting.flows).map(|flow| Plan::of(setting.seed, flow)).collect(),
            logs: vec![Default::default(); setting.flows as usize],
            random: Random(setting.seed ^ 99),
            stalled: None,
        }));
        let mut starts: Vec<_> = (0..setting.flows)
            .map(|flow| (start + Duration::from_micros(random.below(200_000)), flow))
            .collect();
        starts.sort();
        starts.reverse();
        let sides = [Role::Client, Role::Agent].map(|role| Side::new(role, &stage));
        let next_cut = (setting.cuts > 0).then_some(start);
        Self {
            setting,
            clock,
            start,
            stage,
            sides,
            links: Vec::new(),
            random,
            next_lane: 1,
            cuts: 0,
            next_cut,
            starts,
            later: Vec::new(),
            turns: 0,
        }
    }

    /// Runs until every flow is over, and checks that all went as planned and nothing is left.
    fn run(setting: Setting) -> Self {
        let mut world = Self::new(setting);
        let limit = world.start + Duration::from_secs(600);
        while !(world.is_over() && world.cuts == setting.cuts) {
            assert!(world.clock.get() < limit, "flows hang: {}", world.describe());
            world.step(limit);
        }
        // Long enough to find a lane that died in silence.
        world.run_for(Duration::from_secs(3));
        world.check();
        world
    }

    fn is_over(&self) -> bool {
        self.starts.is_empty()
            && self.stage.borrow().logs.iter().all(|log| log[0].over.is_some())
            && self.sides.iter().all(|side| side.engine().flows.ends.len() == 0)
    }

    fn describe(&self) -> String {
        let stage = self.stage.borrow();
        let hanging = stage.logs.iter().zip(&stage.plans).enumerate();
        let hangs = |log: &[Log; 2]| log.iter().any(|log| log.over.is_none());
        let hanging: Vec<_> = hanging.filter(|(_, (log, _))| hangs(log)).take(3).collect();
        let [client, agent] =
            self.sides.each_ref().map(|side| (side.engine().trunk.stats(), side.engine().mux.stats()));
        let live = self.sides.each_ref().map(|side| side.live.borrow().clone());
        format!(
            "{:?}, {} cuts, lanes {live:?} of {}, {:?}\n{hanging:#?}\n{client:?}\n{agent:?}",
            self.setting,
            self.cuts,
            self.links.len(),
            self.next_cut.map(|at| at - self.start)
        )
    }

    fn run_for(&mut self, time: Duration) {
        let limit = self.clock.get() + time;
        while self.clock.get() < limit {
            self.step(limit);
        }
    }

    /// Does what there is to do now, then goes on to the next moment, at most `limit`.
    fn step(&mut self, limit: Instant) {
        let now = self.clock.get();
        self.connect(now);
        while let Some((_, flow)) = self.starts.pop_if(|(at, _)| *at <= now) {
            if let Some(engine) = &mut self.sides[0].engine {
                engine.flows.ends.want(flow);
            }
        }
        while let Some(at) = self.later.iter().position(|(at, _)| *at <= now) {
            let (_, command) = self.later.remove(at);
            // The engine may have ended.
            let _ = self.sides[0].commands.try_send(command);
        }
        if self.next_cut.is_some_and(|at| at <= now) {
            self.cut(now);
        }
        let mut quiet = false;
        while !quiet {
            self.links.iter().for_each(|link| link.borrow_mut().handle_timeout());
            let turns: u64 = self.sides.iter_mut().map(|side| side.poll(now)).sum();
            self.turns += turns;
            quiet = turns == 0;
        }
        self.forget_links();
        let links = self.links.iter().filter_map(|link| link.borrow().poll_timeout());
        let sides = self.sides.iter().filter_map(Side::deadline);
        let plans = self.starts.last().map(|(at, _)| *at).into_iter();
        let later = self.later.iter().map(|(at, _)| *at);
        let lane = (self.links.len() < self.setting.lanes).then(|| now + Duration::from_millis(1));
        let next = links.chain(sides).chain(plans).chain(later).chain(self.next_cut).chain(lane).min();
        self.clock.set(next.unwrap_or(limit).clamp(now + Duration::from_micros(1), limit));
    }

    /// As the client does: a new lane tells the agent which lanes live and how much has arrived.
    fn connect(&mut self, now: Instant) {
        let live: Vec<LaneId> = self.sides[0].live.borrow().clone();
        let under_way = self.forget_links();
        let ended = self.sides.iter().any(|side| side.outcome.is_some());
        if ended || under_way || self.links.len() >= self.setting.lanes {
            return;
        }
        let Setting { delay, capacity, record, repeats, kind, .. } = self.setting;
        let delay = Duration::from_micros(delay);
        let nature = Nature { delay, capacity, record, repeats };
        let id = self.next_lane;
        self.next_lane += 1;
        let link = Link::new(id, nature, self.clock.clone(), self.random.below(u64::MAX));
        self.links.push(link.clone());
        let attach = |side, peer_received| {
            Command::Attach(Attach {
                in_blocks: self.setting.in_blocks,
                lane: LaneId(id),
                kind,
                hello: [id as u8; 32],
                peer_received,
                io: Box::new(link::Side(link.clone(), side)),
                leftover: Vec::new(),
            })
        };
        let received = self.sides[0].engine().trunk.received();
        let all = live.into_iter().chain([LaneId(id)]).collect();
        let agent = &self.sides[1].commands;
        assert!(agent.try_send(Command::LiveLanes(all)).is_ok());
        assert!(agent.try_send(attach(1, Some(received))).is_ok());
        self.later.push((now + delay, attach(0, None)));
    }

    /// Forgets links the client has lost; true while it waits for a new one.
    fn forget_links(&mut self) -> bool {
        let live = self.sides[0].live.borrow();
        let under_way: Vec<u64> = self.later.iter().filter_map(|(_, command)| lane_of(command)).collect();
        self.links.retain(|link| {
            let id = link.borrow().id;
            live.contains(&LaneId(id)) || under_way.contains(&id)
        });
        !under_way.is_empty()
    }

    fn cut(&mut self, now: Instant) {
        self.next_cut = Some(now + Duration::from_micros(self.random.below(20_000)));
        if self.links.is_empty() {
            return;
        }
        let link = self.links[self.random.below(self.links.len() as u64) as usize].clone();
        if !self.sides[0].live.borrow().contains(&LaneId(link.borrow().id)) {
            return;
        }
        let deaf = if self.setting.silent { self.random.below(3) as usize } else { 2 };
        link.borrow_mut().cut([deaf != 0, deaf != 1]);
        self.cuts += 1;
        if self.cuts == self.setting.cuts {
            self.next_cut = None;
        }
    }

    fn check(&self) {
        let stage = self.stage.borrow();
        for (flow, (plan, log)) in stage.plans.iter().zip(&stage.logs).enumerate() {
            let [near, far] = log.each_ref().map(|log| log.over);
            let context = || format!("flow {flow}: {plan:?} {log:#?}");
            let undisturbed = plan.patience.is_none();
            match plan.dial {
                Dial::RefuseAtOnce(why) | Dial::Refuse(why) if undisturbed => {
                    assert_eq!(near, Some(Over::Refused(why)), "{}", context());
                }
                Dial::Connect if undisturbed && plan.reset.is_none() => {
                    assert_eq!([near, far], [Some(Over::Closed); 2], "{}", context());
                }
                Dial::Connect if undisturbed => {
                    let pair = (near, far);
                    let resets = [
                        // The reset overtook the answer.
                        (Some(Over::Refused(Refusal::Exhausted)), Some(Over::ResetHere)),
                        (Some(Over::ResetHere), Some(Over::ResetByFar)),
                        (Some(Over::ResetByFar), Some(Over::ResetHere)),
                        (Some(Over::Closed), Some(Over::Closed)),
                        // The last bytes and both finishes had passed before the reset was due.
                        (Some(Over::Closed), Some(Over::ResetHere)),
                        (Some(Over::ResetHere), Some(Over::Closed)),
                    ];
                    assert!(resets.contains(&pair), "{}", context());
                }
                Dial::Connect | Dial::Refuse(_) | Dial::RefuseAtOnce(_) | Dial::Never => {
                    assert!(near.is_some() && (far.is_some() || !log[1].began), "{}", context());
                }
            }
            for side in [0, 1] {
                let (us, peer) = (&log[side], &log[1 - side]);
                assert!(us.received <= peer.read, "{}", context());
                if us.over == Some(Over::Closed) {
                    assert_eq!(us.received, plan.bytes[1 - side], "{}", context());
                }
            }
        }
        for side in &self.sides {
            let engine = side.engine();
            assert_eq!((engine.flows.open(), engine.mux.len(), engine.flows.ends.len()), (0, 0, 0));
            assert!(!engine.mux.wants_to_send() && engine.trunk.is_drained());
            assert_eq!(engine.trunk.unsent(), 0);
            let report = engine.report();
            assert!(report.lanes.iter().all(|lane| lane.in_flight == 0), "{:?}", report.lanes);
            assert_eq!(report.mux.grown, 0);
        }
        let [client, agent] = self.sides.each_ref().map(|side| side.engine().report());
        assert_eq!(client.flows_total, u64::from(self.setting.flows));
        assert!(agent.flows_total <= client.flows_total);
        assert_eq!((client.trunk.sent, agent.trunk.sent), (agent.trunk.received, client.trunk.received));
    }
}

fn lane_of(command: &Command) -> Option<u64> {
    match command {
        Command::Attach(attach) => Some(attach.lane.0),
        Command::LiveLanes(_)
        | Command::Retire(_)
        | Command::Ping(_)
        | Command::Drop(..)
        | Command::Report(_)
        | Command::Flows(..)
        | Command::Kill(..)
        | Command::Close => None,
    }
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % bound.max(1)
    }
}
