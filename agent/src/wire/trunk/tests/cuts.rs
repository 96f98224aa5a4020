//! Two trunks whose lanes are cut, repeat and fall silent, in virtual time.

use std::sync::OnceLock;

use proptest::prelude::*;

use super::super::*;
use super::trunk;

#[test]
fn resume_over_1000_cuts_with_repeats() {
    let started = Instant::now();
    let world =
        World::run(Plan { seed: 1, cuts: 1000, slowest: 10_000, most_written: 800, ..Plan::default() });
    eprintln!("1000 cuts: {:?}, carried {:?}", started.elapsed(), world.ends.each_ref().map(|end| end.got));
    assert!(world.cuts >= 1000);
    let [client, agent] = world.ends.each_ref().map(|end| end.trunk.stats());
    assert!(client.resumes > 0 && agent.resumes > 0);
    assert!(client.resent > 0 && agent.resent > 0);
    assert!(agent.duplicates > 0);
}

#[test]
fn one_ssm_lane_carries_both_ways() {
    let world = World::run(Plan {
        seed: 2,
        cuts: 0,
        lanes: 1,
        bytes: 3_000_000,
        most_written: 60_000,
        ..Plan::default()
    });
    for end in &world.ends {
        assert_eq!((end.trunk.stats().resent, end.trunk.stats().faults), (0, 0));
    }
}

#[test]
fn silent_lanes_are_found_by_pings_alone() {
    let world = World::run(Plan { seed: 3, cuts: 30, lanes: 1, told: false, ..Plan::default() });
    assert!(world.deaths >= 30, "{}", world.deaths);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn any_lanes_cuts_delays_and_repeats_give_the_same_bytes(
        seed in any::<u64>(),
        lanes in 1usize..=4,
        cuts in 0usize..25,
        kind in prop::sample::select(&[LaneKind::Ssm, LaneKind::Tcp][..]),
        slowest in 1u64..80_000,
        most_written in 1usize..40_000,
        told in any::<bool>(),
        credit in prop::sample::select(&[64u64 << 10, 300 << 10, 4 << 20][..]),
    ) {
        World::run(Plan { seed, cuts, lanes, kind, slowest, bytes: 200_000, most_written, told, credit });
    }

    #[test]
    fn random_frames_never_panic_and_never_pass_the_bounds(
        frames in proptest::collection::vec((0u8..11, any::<u64>(), 0u64..600_000, 0u32..6, 1usize..3000), 0..60),
        role in prop::sample::select(&[Role::Client, Role::Agent][..]),
    ) {
        let now = Instant::now();
        let mut trunk = trunk(role, &[1], now);
        let bytes = vec![7; 3000];
        for (which, wild, near, sequence, length) in frames {
            let offset = if which == 0 { wild } else { near };
            let frame = match which {
                0..=4 => Frame::Segment { offset, sequence, bytes: &bytes[..length] },
                5 => Frame::Ack { cum: near, credit: wild, sequence, arrived: wild as u32, wanted: wild as u8 },
                6 => Frame::Ping { id: wild },
                7 => Frame::Pong { id: wild },
                8 => Frame::Hello(&bytes[..10]),
                9 => Frame::Retire,
                _ => Frame::Goodbye { reason: sequence as u8, text: "bye" },
            };
            let mut wire = Vec::new();
            frame.encode(&mut wire);
            let result = trunk.handle_bytes(LaneId(1), &wire, now, &mut |_| {});
            if result.is_err() {
                trunk.attach(LaneId(1), LaneKind::Tcp, [0; 32], now);
            }
            let mut record = Vec::new();
            trunk.poll_record(LaneId(1), 2000, &mut record, now);
            trunk.handle_timeout(now);
            prop_assert!(record.len() <= 2000);
            prop_assert!(trunk.stats().held <= 16 << 20);
        }
    }
}

/// What a run of the simulation does; the same plan gives the same run.
#[derive(Clone, Debug)]
struct Plan {
    seed: u64,
    cuts: usize,
    lanes: usize,
    kind: LaneKind,
    /// The longest way of a record, in microseconds.
    slowest: u64,
    /// At least so many go each way.
    bytes: u64,
    most_written: usize,
    /// Whether both ends learn of a cut by themselves.
    told: bool,
    credit: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            seed: 0,
            cuts: 10,
            lanes: 1,
            kind: LaneKind::Ssm,
            slowest: 30_000,
            bytes: 100_000,
            most_written: 10_000,
            told: true,
            credit: 4 << 20,
        }
    }
}

struct World {
    plan: Plan,
    random: Random,
    start: Instant,
    /// Microseconds since the start.
    time: u64,
    ends: [End; 2],
    links: Vec<Link>,
    next_lane: u64,
    next_cut: u64,
    cuts: usize,
    deaths: usize,
    draining: bool,
}

struct End {
    trunk: Trunk,
    written: u64,
    got: u64,
}

/// One lane and the bytes on it; `pipes[0]` leads to the agent.
struct Link {
    id: LaneId,
    /// When each end attaches and, once cut, learns of it.
    attach_at: [u64; 2],
    attached: [bool; 2],
    detach_at: [u64; 2],
    detached: [bool; 2],
    cut: bool,
    pipes: [VecDeque<(u64, Vec<u8>)>; 2],
}

impl World {
    fn run(plan: Plan) -> Self {
        let config = |role| TrunkConfig { credit: plan.credit, ..TrunkConfig::new(role, plan.seed) };
        let end = |role| End { trunk: Trunk::new(config(role)), written: 0, got: 0 };
        let mut world = Self {
            random: Random(plan.seed | 1),
            start: Instant::now(),
            time: 0,
            ends: [end(Role::Client), end(Role::Agent)],
            links: Vec::new(),
            next_lane: 0,
            next_cut: 0,
            cuts: 0,
            deaths: 0,
            draining: false,
            plan,
        };
        world.ends.iter_mut().for_each(|end| end.trunk.set_ping(Some(PING)));
        let mut steps = 0u64;
        while !world.finished() {
            world.step();
            steps += 1;
            assert!(steps < 3_000_000, "no end in sight: {}", world.describe());
        }
        world
    }

    fn finished(&mut self) -> bool {
        let [client, agent] = &self.ends;
        let enough = client.written >= self.plan.bytes && agent.written >= self.plan.bytes;
        self.draining = enough && self.cuts >= self.plan.cuts;
        self.draining && client.got == agent.written && agent.got == client.written
    }

    fn step(&mut self) {
        while self.links.iter().filter(|link| !link.cut).count() < self.plan.lanes {
            self.connect();
        }
        self.cut();
        for index in 0..self.links.len() {
            self.turn(index);
            for side in 0..2 {
                self.deliver(index, side);
            }
        }
        for side in 0..2 {
            self.ends[side].trunk.handle_timeout(self.now());
            self.events(side);
            self.fill(side);
            for index in 0..self.links.len() {
                self.transmit(index, side);
            }
        }
        self.links.retain(|link| !(link.detached[0] && link.detached[1]));
        self.check();
        self.advance();
    }

    fn connect(&mut self) {
        self.next_lane += 1;
        let agent = self.time + self.random.below(self.plan.slowest);
        let client = agent + self.random.below(self.plan.slowest);
        let mut hello = Vec::new();
        Frame::Hello(b"hello").encode(&mut hello);
        let repeats = self.random.below(3);
        self.links.push(Link {
            id: LaneId(self.next_lane),
            attach_at: [client, agent],
            attached: [false; 2],
            detach_at: [u64::MAX; 2],
            detached: [false; 2],
            cut: false,
            pipes: [(0..repeats).map(|_| (agent, hello.clone())).collect(), VecDeque::new()],
        });
    }

    /// A cut loses what is on the way from a random byte on.
    fn cut(&mut self) {
        if self.cuts >= self.plan.cuts || self.time < self.next_cut {
            return;
        }
        self.next_cut = self.time + self.random.below(4 * self.plan.slowest + 1000);
        let whole: Vec<usize> = (0..self.links.len()).filter(|&index| !self.links[index].cut).collect();
        let Some(&index) = whole.get(self.random.below(whole.len() as u64 + 1) as usize) else { return };
        let link = &mut self.links[index];
        for pipe in &mut link.pipes {
            pipe.truncate(self.random.below(pipe.len() as u64 + 1) as usize);
            if let Some((_, bytes)) = pipe.back_mut() {
                bytes.truncate(self.random.below(bytes.len() as u64 + 1) as usize);
            }
        }
        link.cut = true;
        self.cuts += 1;
        for side in 0..2 {
            let late = self.random.below(3 * self.plan.slowest);
            let never_attached = !link.attached[side];
            if self.plan.told || never_attached {
                link.detach_at[side] = self.time + late;
            }
        }
    }

    /// Attaches and detaches what is due.
    fn turn(&mut self, index: usize) {
        let now = self.now();
        let (link, time) = (&mut self.links[index], self.time);
        for side in [1, 0] {
            let trunk = &mut self.ends[side].trunk;
            if !link.attached[side] && !link.cut && link.attach_at[side] <= time {
                link.attached[side] = true;
                trunk.attach(link.id, self.plan.kind, hello::digest(b"hello"), now);
            }
            if !link.detached[side] && link.detach_at[side] <= time {
                link.detached[side] = true;
                trunk.detach(link.id, now);
            }
        }
    }

    /// Gives the end at `side` what has arrived, cut anew.
    fn deliver(&mut self, index: usize, side: usize) {
        let now = self.now();
        let (link, end) = (&mut self.links[index], &mut self.ends[side]);
        if !link.attached[side] || link.detached[side] {
            return;
        }
        let pipe = &mut link.pipes[1 - side];
        let mut arrived = Vec::new();
        while pipe.front().is_some_and(|(at, _)| *at <= self.time) {
            arrived.extend(pipe.pop_front().into_iter().flat_map(|(_, bytes)| bytes));
        }
        let mut rest = arrived.as_slice();
        while !rest.is_empty() {
            let (bytes, after) = rest.split_at(1 + self.random.below(rest.len() as u64) as usize);
            rest = after;
            let got = &mut end.got;
            let mut place = |bytes: &[u8]| {
                assert!(is_stream(*got, 1 - side, bytes), "other bytes at {got}");
                *got += bytes.len() as u64;
            };
            let result = end.trunk.handle_bytes(link.id, bytes, now, &mut place);
            assert!(matches!(result, Ok(()) | Err(LaneFault::Closed)), "{result:?} in {:?}", self.plan);
        }
    }

    fn events(&mut self, side: usize) {
        while let Some(event) = self.ends[side].trunk.poll_event() {
            let lane = match event {
                TrunkEvent::LaneDead { lane, .. } => lane,
                TrunkEvent::LaneStalled { .. } => continue,
                TrunkEvent::LaneDrained { .. } | TrunkEvent::Goodbye { .. } => panic!("{event:?}"),
            };
            self.deaths += 1;
            // What found out tells the other end by closing, at the latest when that finds out by itself.
            if let Some(link) = self.links.iter_mut().find(|link| link.id == lane) {
                link.cut = true;
                link.detach_at[side] = self.time;
            }
        }
    }

    fn fill(&mut self, side: usize) {
        let end = &mut self.ends[side];
        if self.draining {
            return;
        }
        let most = self.random.below(self.plan.most_written as u64 + 1) as usize;
        let spare = end.trunk.spare();
        let written = spare.len().min(most);
        put_stream(end.written, side, &mut spare[..written]);
        end.trunk.commit(written);
        end.written += written as u64;
    }

    /// Makes records as long as the lane takes them; the SSM agent may write one twice.
    fn transmit(&mut self, index: usize, side: usize) {
        let now = self.now();
        let (link, trunk) = (&mut self.links[index], &mut self.ends[side].trunk);
        if !link.attached[side] || link.detached[side] {
            return;
        }
        let mut record = Vec::new();
        while self.random.below(8) > 0 && link.pipes[side].len() < 16 {
            let room = [64, 300, 1024, 8192, 70_000][self.random.below(5) as usize];
            record.clear();
            if !trunk.poll_record(link.id, room, &mut record, now) {
                break;
            }
            assert!(record.len() <= room);
            if link.cut {
                continue;
            }
            let last = link.pipes[side].back().map_or(0, |(at, _)| *at);
            let at = last.max(self.time + self.random.below(self.plan.slowest));
            let times = if side == 0 && self.random.below(10) == 0 { 2 } else { 1 };
            (0..times).for_each(|_| link.pipes[side].push_back((at, record.clone())));
        }
    }

    fn check(&self) {
        for end in &self.ends {
            let stats = end.trunk.stats();
            assert!(stats.unacknowledged <= end.trunk.config.replay);
            assert!(stats.held as u64 <= self.plan.credit.max(INITIAL_CREDIT));
            let most = |lane: &LaneStats| LaneProfile::of(lane.kind, end.trunk.config.role).pace.most;
            assert!(end.trunk.lane_stats().all(|lane| lane.in_flight <= most(&lane)));
            assert_eq!(stats.faults, 0);
        }
    }

    /// To the next moment at which something happens.
    fn advance(&mut self) {
        let timers = self.ends.iter().filter_map(|end| end.trunk.poll_timeout());
        let timers = timers.map(|at| at.saturating_duration_since(self.start).as_micros() as u64 + 1);
        let links = self.links.iter().flat_map(|link| {
            let pipes = link.pipes.iter().filter_map(|pipe| pipe.front()).map(|(at, _)| *at);
            pipes.chain(link.attach_at).chain(link.detach_at)
        });
        let next = timers.chain(links).filter(|at| *at > self.time).min();
        let step = 1 + self.random.below(2000);
        self.time = next.map_or(self.time + step, |next| next.min(self.time + step));
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_micros(self.time)
    }

    fn describe(&self) -> String {
        let ends = self.ends.each_ref().map(|end| (end.written, end.got, end.trunk.stats()));
        format!("{:?} at {} us: {ends:?}", self.plan, self.time)
    }
}

/// The bytes that go from `side` at an offset; far from repeating at the size of any segment.
fn put_stream(offset: u64, side: usize, out: &mut [u8]) {
    let mut at = offset;
    for part in out.chunks_mut(LONGEST) {
        part.copy_from_slice(stream(at, side, part.len()));
        at += part.len() as u64;
    }
}

fn is_stream(offset: u64, side: usize, bytes: &[u8]) -> bool {
    bytes
        .chunks(LONGEST)
        .zip((offset..).step_by(LONGEST))
        .all(|(part, at)| part == stream(at, side, part.len()))
}

fn stream(at: u64, side: usize, length: usize) -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes = BYTES.get_or_init(|| {
        let mut random = Random(77);
        let period: Vec<u8> = (0..PERIOD).map(|_| random.below(256) as u8).collect();
        period.repeat(3)
    });
    let start = side * PERIOD / 2 + (at % PERIOD as u64) as usize;
    &bytes[start..start + length]
}

/// Prime, so that a segment put at a wrong offset is found.
const PERIOD: usize = 65_521;
const LONGEST: usize = 4096;

struct Random(u64);

impl Random {
    /// 0 to `bound` - 1; 0 for a bound of 0.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.checked_rem(bound).unwrap_or(0)
    }
}

const PING: Duration = Duration::from_millis(250);
