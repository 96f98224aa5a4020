//! Two ends, each a trunk and a mux, over simulated lanes in virtual time: what a session feels like.
//!
//! The same seed gives the same run. The turn of an end is that of `engine.rs`.
#![allow(clippy::disallowed_methods)]

mod apps;
mod faults;
mod path;
mod scenarios;

use std::time::{Duration, Instant};

use self::apps::{Apps, Kind};
use self::path::{Path, Pipe, Pump};
use super::*;
use crate::wire::mux::{Mux, MuxConfig};

struct World {
    random: Random,
    start: Instant,
    /// Microseconds since the start.
    time: u64,
    ends: [End; 2],
    links: Vec<Link>,
    next_lane: u64,
    /// A lane that is lost is made again after so long.
    replace_after: Option<u64>,
    faults: Vec<(u64, Fault)>,
    /// What ends told, by time and side.
    told: Vec<(u64, usize, TrunkEvent)>,
    figures_since: u64,
    record: Vec<u8>,
    steps: u64,
    turns: u64,
    loops: u64,
    polls: u64,
}

struct End {
    trunk: Trunk,
    mux: Mux,
    apps: Apps,
    dirty: bool,
}

/// One lane; `pipes[0]` leads to the agent.
struct Link {
    id: LaneId,
    kind: LaneKind,
    paths: [Path; 2],
    attach_at: [u64; 2],
    attached: [bool; 2],
    detach_at: [u64; 2],
    detached: [bool; 2],
    cut: bool,
    pipes: [Pipe; 2],
}

/// What goes wrong with the lane that was the so many-th to be made.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Both ends learn of it soon.
    Cut(u64),
    /// Nobody learns of it.
    BlackHole(u64),
    /// Nothing passes for so long.
    Stall(u64, usize, u64),
    Delay(u64, u64),
    Pump(u64, usize, Pump),
}

impl World {
    fn new(seed: u64) -> Self {
        eprintln!("seed {seed}");
        let end = |role| End {
            trunk: Trunk::new(TrunkConfig::new(role, seed)),
            mux: Mux::new(MuxConfig::new(role)),
            apps: Apps::new(role == Role::Client),
            dirty: true,
        };
        let mut world = Self {
            random: Random(seed | 1),
            start: Instant::now(),
            time: 0,
            ends: [end(Role::Client), end(Role::Agent)],
            links: Vec::new(),
            next_lane: 0,
            replace_after: None,
            faults: Vec::new(),
            told: Vec::new(),
            figures_since: 0,
            record: Vec::new(),
            steps: 0,
            turns: 0,
            loops: 0,
            polls: 0,
        };
        world.ends.iter_mut().for_each(|end| end.trunk.set_ping(Some(Duration::from_secs(5))));
        world
    }

    /// SSM lanes as they are found: paced down, a rate of their own up.
    fn ssm(seed: u64, lanes: usize, delay: u64) -> Self {
        let mut world = Self::new(seed);
        for _ in 0..lanes {
            world.connect(LaneKind::Ssm, [Path::ssm_up(delay, UP_RATE), Path::ssm_down(delay)], 0);
        }
        world
    }

    fn connect(&mut self, kind: LaneKind, paths: [Path; 2], after: u64) -> LaneId {
        self.next_lane += 1;
        let at = self.time + after;
        let id = LaneId(self.next_lane);
        self.links.push(Link {
            id,
            kind,
            paths,
            attach_at: [at + paths[1].delay, at],
            attached: [false; 2],
            detach_at: [u64::MAX; 2],
            detached: [false; 2],
            cut: false,
            pipes: paths.map(Pipe::new),
        });
        id
    }

    fn open(&mut self, kind: Kind, count: usize) {
        let End { mux, apps, dirty, .. } = &mut self.ends[0];
        (0..count).for_each(|_| apps.open(kind, mux));
        *dirty = true;
    }

    fn fault(&mut self, after: u64, fault: Fault) {
        self.faults.push((self.time + after, fault));
        self.faults.sort_by_key(|(at, _)| *at);
    }

    fn reset_figures(&mut self) {
        self.figures_since = self.time;
        self.ends.iter_mut().for_each(|end| end.apps.reset_figures());
    }

    /// Bytes of bulk a second since `reset_figures`, up and down.
    fn rates(&self) -> [f64; 2] {
        let seconds = (self.time - self.figures_since) as f64 / 1e6;
        [self.ends[1].apps.bulk as f64 / seconds, self.ends[0].apps.bulk as f64 / seconds]
    }

    /// Median and 99th percentile of the exchanges, in ms.
    fn exchange(&mut self) -> [f64; 2] {
        let all = &mut self.ends[0].apps.exchanges;
        all.sort_unstable();
        assert!(all.len() > 20, "{} exchanges", all.len());
        [all.len() / 2, all.len() * 99 / 100].map(|index| all[index] as f64 / 1e3)
    }

    fn run_for(&mut self, micros: u64) {
        let until = self.time + micros;
        while self.time < until {
            self.step(until);
        }
    }

    fn run_until(&mut self, most: u64, done: impl Fn(&Self) -> bool) {
        let until = self.time + most;
        while !done(self) {
            assert!(self.time < until, "no end in sight: {}", self.describe());
            self.step(until);
        }
    }

    fn step(&mut self, until: u64) {
        let now = self.now();
        self.steps += 1;
        self.break_things();
        for index in 0..self.links.len() {
            self.attach_and_detach(index);
            for side in 0..2 {
                let link = &mut self.links[index];
                self.ends[side].dirty |= link.pipes[side].serve(self.time, &mut self.random);
                self.deliver(index, side);
            }
        }
        self.links.retain(|link| link.detached != [true; 2]);
        for side in 0..2 {
            let end = &mut self.ends[side];
            end.apps.now = self.time;
            if end.trunk.poll_timeout().is_some_and(|at| at <= now) {
                end.trunk.handle_timeout(now);
                end.dirty = true;
            }
            if end.apps.next_at().is_some_and(|at| at <= self.time) {
                end.dirty = true;
            }
            self.act_on_events(side);
            if std::mem::take(&mut self.ends[side].dirty) {
                self.turn(side);
            }
        }
        self.advance(until);
    }

    fn break_things(&mut self) {
        while self.faults.first().is_some_and(|(at, _)| *at <= self.time) {
            let (_, fault) = self.faults.remove(0);
            let (Fault::Cut(id)
            | Fault::BlackHole(id)
            | Fault::Stall(id, ..)
            | Fault::Delay(id, _)
            | Fault::Pump(id, ..)) = fault;
            let Some(index) = self.links.iter().position(|link| link.id.0 == id) else { continue };
            let link = &mut self.links[index];
            match fault {
                Fault::Cut(_) => self.cut(index),
                Fault::BlackHole(_) => link.pipes.iter_mut().for_each(|pipe| pipe.black = true),
                Fault::Stall(_, side, time) => link.pipes[side].stalled_until = self.time + time,
                Fault::Delay(_, delay) => link.pipes.iter_mut().for_each(|pipe| pipe.path.delay = delay),
                Fault::Pump(_, side, pump) => link.pipes[side].path.pump = pump,
            }
        }
    }

    fn cut(&mut self, index: usize) {
        let link = &mut self.links[index];
        link.cut = true;
        for side in 0..2 {
            link.pipes[side].cut(&mut self.random);
            link.detach_at[side] = self.time + self.random.below(link.paths[side].delay + 1);
        }
        self.make_another(index);
    }

    fn make_another(&mut self, index: usize) {
        let Link { kind, paths, .. } = self.links[index];
        if let Some(after) = self.replace_after {
            self.connect(kind, paths, after);
        }
    }

    fn attach_and_detach(&mut self, index: usize) {
        let now = self.now();
        let received = self.ends[0].trunk.received();
        let (link, time) = (&mut self.links[index], self.time);
        for side in [1, 0] {
            let end = &mut self.ends[side];
            if !link.attached[side] && !link.cut && link.attach_at[side] <= time {
                link.attached[side] = true;
                end.dirty = true;
                end.trunk.attach(link.id, link.kind, [0; 32], now);
                if side == 1 {
                    end.trunk.peer_received(link.id, received).expect("the client is honest");
                }
            }
            if !link.detached[side] && link.detach_at[side] <= time {
                link.detached[side] = true;
                end.dirty = true;
                end.trunk.detach(link.id, now);
            }
        }
    }

    /// Gives the end at `side` what has arrived.
    fn deliver(&mut self, index: usize, side: usize) {
        let now = self.now();
        let link = &mut self.links[index];
        if !link.attached[side] || link.detached[side] {
            return;
        }
        let End { trunk, mux, apps, dirty } = &mut self.ends[side];
        apps.now = self.time;
        while let Some(bytes) = link.pipes[1 - side].arrived(self.time) {
            *dirty = true;
            let mut place =
                |bytes: &[u8]| mux.handle_bytes(bytes, apps, now).expect("the peer keeps the rules");
            let result = trunk.handle_bytes(link.id, &bytes, now, &mut place);
            assert!(matches!(result, Ok(()) | Err(LaneFault::Closed)), "{result:?}");
        }
        if *dirty {
            if let Some(rtt) = trunk.usual_rtt() {
                mux.set_rtt(rtt);
            }
            apps.settle(mux, now);
        }
    }

    fn act_on_events(&mut self, side: usize) {
        while let Some(event) = self.ends[side].trunk.poll_event() {
            self.told.push((self.time, side, event.clone()));
            if let TrunkEvent::LaneDead { lane, .. } = event
                && let Some(index) = self.links.iter().position(|link| link.id == lane)
            {
                let link = &mut self.links[index];
                let was_cut = std::mem::replace(&mut link.cut, true);
                link.detach_at[side] = self.time;
                let way = link.paths[side].delay;
                link.detach_at[1 - side] = link.detach_at[1 - side].min(self.time + way);
                if !was_cut {
                    self.make_another(index);
                }
                self.attach_and_detach(index);
            }
        }
    }

    /// As the engine does it.
    fn turn(&mut self, side: usize) {
        let now = self.now();
        self.turns += 1;
        let End { trunk, mux, apps, .. } = &mut self.ends[side];
        apps.settle(mux, now);
        if let Some(bytes) = trunk.longest_frame() {
            mux.set_max_frame(bytes);
        }
        let mut moved = true;
        while std::mem::take(&mut moved) {
            self.loops += 1;
            let links = self.links.iter_mut().filter(|link| link.attached[side] && !link.detached[side]);
            let mut links: Vec<&mut Link> = links.collect();
            for link in &links {
                trunk.set_ready(link.id, link.pipes[side].is_ready());
            }
            for link in &mut links {
                for _ in 0..16 {
                    if !link.pipes[side].is_ready() {
                        trunk.set_ready(link.id, false);
                        break;
                    }
                    let most = link.pipes[side].path.record;
                    moved |= fill(trunk, mux, apps, most);
                    apps.settle(mux, now);
                    self.record.clear();
                    self.polls += 1;
                    if !trunk.poll_record(link.id, most, &mut self.record, now) {
                        break;
                    }
                    moved = true;
                    link.pipes[side].send(&self.record, self.time, &mut self.random);
                }
            }
        }
        trunk.note_backlog(mux.wants_to_send(), now);
    }

    fn advance(&mut self, until: u64) {
        let timers = self.ends.iter().filter_map(|end| end.trunk.poll_timeout());
        let timers = timers.map(|at| at.saturating_duration_since(self.start).as_micros() as u64 + 1);
        let apps = self.ends[0].apps.next_at();
        let links = self.links.iter().flat_map(|link| {
            let pipes = link.pipes.iter().filter_map(Pipe::next_at).map(|at| at.max(self.time + 1));
            pipes.chain(link.attach_at).chain(link.detach_at)
        });
        let faults = self.faults.first().map(|(at, _)| *at);
        let next = timers.chain(apps).chain(links).chain(faults).filter(|at| *at > self.time).min();
        let dirty = self.ends.iter().any(|end| end.dirty);
        let next = if dirty { self.time + 1 } else { next.unwrap_or(until) };
        self.time = next.next_multiple_of(STEP).min(until);
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_micros(self.time)
    }

    fn describe(&self) -> String {
        use std::fmt::Write as _;
        let mut text = format!(
            "at {} us, {} steps, {} turns {} loops {} polls",
            self.time, self.steps, self.turns, self.loops, self.polls
        );
        for end in &self.ends {
            let _ = write!(text, "\n{:?} {:?}", end.trunk.stats(), end.trunk.demand());
            for lane in &end.trunk.lanes {
                let (stats, pace) = (lane.stats(self.now()), lane.outbound.pace());
                let _ = write!(
                    text,
                    "\n  rtt {:?} {} of {}, {}",
                    stats.rtt,
                    stats.in_flight,
                    stats.window,
                    pace.brief()
                );
            }
        }
        text
    }
}

/// Lets the mux write into the trunk until a record of `most` bytes can be made.
fn fill(trunk: &mut Trunk, mux: &mut Mux, apps: &mut Apps, most: usize) -> bool {
    let mut moved = false;
    while (trunk.unsent() == 0 || trunk.unsent() + 128 <= most) && mux.wants_to_send() {
        let wanted = most - trunk.unsent();
        let spare = trunk.spare();
        let room = spare.len().min(wanted);
        let written = mux.poll_frames(&mut spare[..room], apps);
        trunk.commit(written);
        if written == 0 {
            break;
        }
        moved = true;
    }
    moved
}

/// splitmix64.
#[derive(Debug)]
struct Random(u64);

impl Random {
    /// 0 to `bound` - 1; 0 for a bound of 0.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31).checked_rem(bound).unwrap_or(0)
    }
}

/// Nobody is woken more often.
const STEP: u64 = 100;
const MS: u64 = 1_000;
const SECOND: u64 = 1_000_000;
/// What one lane carries to the instance.
const UP_RATE: u64 = 24_000_000;
/// What the SSM agent takes from one lane.
const PACING: f64 = 1024.0 * 1e6 / 1_100.0;
/// What of an upload's bytes is payload: frames of the mux and segments have heads.
const UP_SHARE: f64 = 0.99;
/// The same of a download, whose segments are shorter.
const DOWN_SHARE: f64 = 0.97;
