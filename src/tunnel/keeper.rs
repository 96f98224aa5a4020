//! Pure: what is to be done now so that there are as many good lanes as are wanted.
//!
//! A lane is `Good`, or `Doubtful` (it stands still), or `Leaving` (nothing new is put on it). A good one whose time is
//! over is *due*. Neither a doubtful nor a due lane counts, so another is dialled; only when that is there does the
//! old one go, a due lane in order (`Retire`, then `Drop` once it is drained), a doubtful one at once.
//!
//! Calls: tell what happened, then [`Keeper::poll_action`] until it gives nothing; again at [`Keeper::poll_timeout`].

use std::time::{Duration, Instant};

use agent::wire::trunk::LaneId;

use super::gate::{Gate, LIVED};
use super::wanted::Wanted;
use crate::config::LanePlan;

/// Keeps one trunk's lanes.
#[derive(Debug)]
pub(super) struct Keeper {
    plan: LanePlan,
    wanted: Wanted,
    gate: Gate,
    lanes: Vec<Slot>,
    dials: usize,
    /// That of the next dial.
    round: Round,
    /// The most lanes the agent takes; one until it has said so, for only the first can make the trunk.
    most: usize,
    /// Connections are open.
    busy: bool,
    idle_since: Instant,
    /// Rounds that failed in a row while there was no lane.
    failures: u32,
    /// The last lane was lost, or a dial failed, and nothing was there any more.
    end: Option<End>,
}

#[derive(Debug)]
struct Slot {
    lane: LaneId,
    since: Instant,
    /// When it is to be replaced.
    replace_at: Option<Instant>,
    condition: Condition,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Good,
    Doubtful,
    Leaving { drop_at: Instant },
}

/// Dials that began before the first of them failed: what they met is one failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Round(u64);

/// What the driver is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Make a lane; `dialled` or `dial_failed` follows.
    Dial(Round),
    /// Put nothing new on it.
    Retire(LaneId),
    /// Close it; it is forgotten here.
    Drop(LaneId, Why),
    /// Close the trunk until there is something to carry.
    Sleep,
    GiveUp(End),
}

/// Why a lane is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It stood still, and another has taken its place.
    Stalled,
    /// It was retired.
    Retired,
}

impl Why {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Stalled => "it stood still",
            Self::Retired => "it was retired",
        }
    }
}

/// Why no more lanes are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The connection was lost and is not to be made anew.
    Lost,
    /// So many tries have failed in a row; those that were under way together are one.
    Tries(u32),
}

impl Keeper {
    pub(super) fn new(plan: LanePlan, now: Instant) -> Self {
        Self {
            wanted: Wanted::new(plan.count),
            gate: Gate::new(plan.reconnect_delay),
            plan,
            lanes: Vec::new(),
            dials: 0,
            round: Round(0),
            most: 1,
            busy: false,
            idle_since: now,
            failures: 0,
            end: None,
        }
    }

    /// A lane is attached; it is to be replaced after `span`. The agent takes `most` lanes.
    pub(super) fn dialled(&mut self, lane: LaneId, most: usize, span: Option<Duration>, now: Instant) {
        self.dials = self.dials.saturating_sub(1);
        self.most = most.max(1);
        self.failures = 0;
        self.gate.succeeded(now);
        let replace_at = span.map(|span| now + span);
        self.lanes.push(Slot { lane, since: now, replace_at, condition: Condition::Good });
    }

    /// A dial of this round failed; `None` where that is not known.
    pub(super) fn dial_failed(&mut self, round: Option<Round>, throttled: bool, random: u32, now: Instant) {
        self.dials = self.dials.saturating_sub(1);
        let is_news = round.is_none_or(|round| round == self.round);
        if is_news || throttled {
            self.gate.failed(throttled, random, now);
        }
        if !is_news {
            return;
        }
        self.round.0 += 1;
        if self.lanes.is_empty() {
            self.failures = self.failures.saturating_add(1);
            if self.plan.max_retries > 0 && self.failures >= self.plan.max_retries {
                self.end = Some(End::Tries(self.failures));
            }
        }
    }

    /// Dials that were under way are called off.
    pub(super) fn dials_dropped(&mut self) {
        self.dials = 0;
    }

    /// The lane is gone.
    pub(super) fn lost(&mut self, lane: LaneId, random: u32, now: Instant) {
        let before = self.lanes.len();
        let died_young = |slot: &Slot| slot.lane == lane && now.saturating_duration_since(slot.since) < LIVED;
        if self.lanes.iter().any(died_young) {
            self.gate.failed(false, random, now);
        }
        self.lanes.retain(|slot| slot.lane != lane);
        if self.lanes.is_empty() && before > 0 && !self.plan.reconnect && self.is_needed() {
            self.end = Some(End::Lost);
        }
    }

    /// Whether the lane stands still.
    pub(super) fn doubt(&mut self, lane: LaneId, doubtful: bool) {
        let Some(slot) = self.lanes.iter_mut().find(|slot| slot.lane == lane) else { return };
        slot.condition = match (slot.condition, doubtful) {
            (Condition::Good, true) => Condition::Doubtful,
            (Condition::Doubtful, false) => Condition::Good,
            (same, _) => same,
        };
    }

    /// It is known now that the lane should go by then.
    pub(super) fn replace_before(&mut self, lane: LaneId, at: Instant) {
        if let Some(slot) = self.lanes.iter_mut().find(|slot| slot.lane == lane) {
            slot.replace_at = slot.replace_at.map(|before| before.min(at));
        }
    }

    pub(super) fn has_doubts(&self) -> bool {
        self.lanes.iter().any(|slot| slot.condition == Condition::Doubtful)
    }

    /// A retired lane carries nothing more.
    pub(super) fn drained(&mut self, lane: LaneId, now: Instant) {
        if let Some(slot) = self.lanes.iter_mut().find(|slot| slot.lane == lane)
            && matches!(slot.condition, Condition::Leaving { .. })
        {
            slot.condition = Condition::Leaving { drop_at: now };
        }
    }

    pub(super) fn set_busy(&mut self, busy: bool, now: Instant) {
        if self.busy && !busy {
            self.idle_since = now;
        }
        self.busy = busy;
    }

    pub(super) fn is_busy(&self) -> bool {
        self.busy
    }

    /// So many lanes would be of use.
    pub(super) fn set_need(&mut self, need: usize, now: Instant) {
        self.wanted.set_need(need, now);
    }

    /// Nothing is dialled before then.
    pub(super) fn hold(&mut self, until: Instant) {
        self.gate.hold(until);
    }

    /// The machine woke or the network is another one.
    pub(super) fn nudge(&mut self) {
        self.gate.nudge();
    }

    /// Whether there is to be any lane now.
    pub(super) fn is_needed(&self) -> bool {
        self.busy || !self.plan.lazy
    }

    /// How many lanes there are to be now.
    pub(super) fn target(&mut self, now: Instant) -> usize {
        let wanted = self.wanted.lanes(now).min(self.most);
        // Without a need the lanes that live stay, and nobody misses those that go.
        if self.is_needed() { wanted } else { wanted.min(self.staying().count()) }
    }

    pub(super) fn poll_action(&mut self, now: Instant) -> Option<Action> {
        if let Some(end) = self.end {
            return Some(Action::GiveUp(end));
        }
        if self.sleeps_at().is_some_and(|at| at <= now) {
            return Some(Action::Sleep);
        }
        if let Some(at) = self.lanes.iter().position(|slot| slot.drop_at().is_some_and(|at| at <= now)) {
            return Some(Action::Drop(self.lanes.swap_remove(at).lane, Why::Retired));
        }
        let target = self.target(now);
        if self.is_short(target, now) && self.gate.opens_at(self.dials, now).is_some_and(|at| at <= now) {
            self.dials += 1;
            self.gate.asked(now);
            return Some(Action::Dial(self.round));
        }
        (self.staying().count() > target).then(|| self.dismiss(now)).flatten()
    }

    pub(super) fn poll_timeout(&mut self, now: Instant) -> Option<Instant> {
        let target = self.target(now);
        let dial = self.is_short(target, now).then(|| self.gate.opens_at(self.dials, now)).flatten();
        let due = self.staying().filter_map(|slot| slot.replace_at).filter(|at| self.busy && *at > now).min();
        let leave = self.lanes.iter().filter_map(Slot::drop_at).min();
        [dial, due, leave, self.sleeps_at(), self.wanted.falls_at()].into_iter().flatten().min()
    }

    fn sleeps_at(&self) -> Option<Instant> {
        let asleep = self.lanes.is_empty() && self.dials == 0 && self.plan.lazy;
        let timeout = self.plan.idle_timeout.filter(|_| !self.busy && !asleep)?;
        Some(self.idle_since + timeout)
    }

    fn staying(&self) -> impl Iterator<Item = &Slot> {
        self.lanes.iter().filter(|slot| slot.drop_at().is_none())
    }

    fn is_short(&self, target: usize, now: Instant) -> bool {
        let good = self.staying().filter(|slot| self.rank(slot, now) == Rank::Good).count();
        let all = self.lanes.len() + self.dials;
        // A lane that leaves counts for the agent until it is gone.
        good + self.dials < target && all < 2 * self.most
    }

    /// Lets the lane go that is worth least; `None` when all that may go would be missed.
    fn dismiss(&mut self, now: Instant) -> Option<Action> {
        let worst =
            (0..self.lanes.len()).filter(|&at| self.lanes[at].drop_at().is_none()).min_by_key(|&at| {
                let slot = &self.lanes[at];
                (self.rank(slot, now), slot.replace_at)
            })?;
        let lane = self.lanes[worst].lane;
        if self.lanes[worst].condition == Condition::Doubtful {
            self.lanes.swap_remove(worst);
            return Some(Action::Drop(lane, Why::Stalled));
        }
        self.lanes[worst].condition = Condition::Leaving { drop_at: now + DRAINING };
        Some(Action::Retire(lane))
    }

    fn rank(&self, slot: &Slot, now: Instant) -> Rank {
        match slot.condition {
            Condition::Doubtful | Condition::Leaving { .. } => Rank::Doubtful,
            // An idle lane is not worth another session; when it is used it is replaced.
            Condition::Good if self.busy && slot.replace_at.is_some_and(|at| at <= now) => Rank::Due,
            Condition::Good => Rank::Good,
        }
    }
}

impl Slot {
    fn drop_at(&self) -> Option<Instant> {
        match self.condition {
            Condition::Leaving { drop_at } => Some(drop_at),
            Condition::Good | Condition::Doubtful => None,
        }
    }
}

/// What a lane is worth, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Doubtful,
    Due,
    Good,
}

/// A retired lane that is not drained by then is closed all the same; what it carries goes out again.
const DRAINING: Duration = Duration::from_secs(10);

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use crate::config::LaneCount;

    const SECOND: Duration = Duration::from_secs(1);

    /// A keeper in virtual time, with the lanes it should have.
    struct World {
        keeper: Keeper,
        now: Instant,
        next: u64,
        carrying: Vec<u64>,
        retired: Vec<u64>,
        span: Option<Duration>,
        dials: u32,
        /// Those of the dials, the oldest first.
        rounds: Vec<Round>,
    }

    impl World {
        fn new(plan: LanePlan) -> Self {
            let now = Instant::now();
            let keeper = Keeper::new(plan, now);
            Self {
                keeper,
                now,
                next: 0,
                carrying: vec![],
                retired: vec![],
                span: None,
                dials: 0,
                rounds: vec![],
            }
        }

        fn with(count: LaneCount) -> Self {
            Self::new(LanePlan { count, ..LanePlan::default() })
        }

        /// Does what is asked for, dials aside; those are counted.
        fn act(&mut self) -> Vec<Action> {
            let mut rare = Vec::new();
            for _ in 0..100 {
                match self.keeper.poll_action(self.now) {
                    None => return rare,
                    Some(Action::Dial(round)) => {
                        self.dials += 1;
                        self.rounds.push(round);
                    }
                    Some(Action::Retire(LaneId(lane))) => self.retired.push(lane),
                    Some(Action::Drop(LaneId(lane), why)) => {
                        self.carrying.retain(|live| *live != lane);
                        self.retired.retain(|live| *live != lane);
                        if why == Why::Stalled {
                            rare.push(Action::Drop(LaneId(lane), why));
                        }
                    }
                    Some(end @ (Action::Sleep | Action::GiveUp(_))) => {
                        rare.push(end);
                        return rare;
                    }
                }
            }
            panic!("the keeper asks without end: {:?}", self.keeper);
        }

        fn succeed(&mut self) -> u64 {
            assert!(self.dials > 0, "nothing was dialled");
            self.dials -= 1;
            self.rounds.remove(0);
            self.next += 1;
            self.carrying.push(self.next);
            self.keeper.dialled(LaneId(self.next), 16, self.span, self.now);
            self.next
        }

        fn fail(&mut self, throttled: bool) {
            self.dials -= 1;
            let round = self.rounds.remove(0);
            self.keeper.dial_failed(Some(round), throttled, u32::MAX, self.now);
        }

        /// A lane that has lived for a while is gone.
        fn lose(&mut self, lane: u64) {
            self.after(LIVED).die(lane);
        }

        fn die(&mut self, lane: u64) {
            self.carrying.retain(|live| *live != lane);
            self.keeper.lost(LaneId(lane), u32::MAX, self.now);
        }

        /// Dials succeed until nothing is asked for any more.
        fn settle(&mut self) {
            self.act();
            while self.dials > 0 {
                self.succeed();
                self.act();
            }
        }

        fn after(&mut self, time: Duration) -> &mut Self {
            self.now += time;
            self
        }
    }

    #[test]
    fn the_first_lane_makes_the_trunk_and_the_others_come_two_at_a_time() {
        let mut world = World::with(LaneCount::Exactly(5));
        world.act();
        assert_eq!(world.dials, 1);
        world.succeed();
        world.act();
        assert_eq!(world.dials, 2);
        world.settle();
        assert_eq!(world.carrying, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn never_more_than_the_agent_takes() {
        let mut world = World::with(LaneCount::Exactly(32));
        world.settle();
        assert_eq!(world.carrying.len(), 16);
    }

    #[test]
    fn a_lost_lane_is_replaced_at_once_while_the_others_carry_on() {
        let mut world = World::with(LaneCount::Exactly(4));
        world.settle();
        world.lose(2);
        assert!(world.act().is_empty());
        assert_eq!(world.dials, 1);
        world.succeed();
        assert_eq!(world.carrying, [1, 3, 4, 5]);
        world.act();
        assert_eq!(world.dials, 0);
    }

    #[test]
    fn a_stalled_lane_goes_when_its_replacement_is_there() {
        let mut world = World::with(LaneCount::Exactly(2));
        world.settle();
        world.keeper.doubt(LaneId(1), true);
        assert!(world.act().is_empty(), "not before there is another");
        assert_eq!(world.dials, 1);
        world.succeed();
        assert_eq!(world.act(), [Action::Drop(LaneId(1), Why::Stalled)]);
        assert_eq!(world.carrying, [2, 3]);
    }

    #[test]
    fn a_lane_that_recovers_in_time_stays_and_the_surplus_is_retired() {
        let mut world = World::with(LaneCount::Exactly(1));
        world.settle();
        world.keeper.doubt(LaneId(1), true);
        world.act();
        world.keeper.doubt(LaneId(1), false);
        world.succeed();
        assert!(world.act().is_empty());
        assert_eq!(world.retired.len(), 1);
        let leaving = world.retired[0];
        world.keeper.drained(LaneId(leaving), world.now);
        world.act();
        assert_eq!(world.carrying.len(), 1);
    }

    #[test]
    fn planned_replacement_makes_before_it_breaks() {
        let mut world = World::with(LaneCount::Exactly(2));
        world.span = Some(60 * SECOND);
        world.settle();
        world.keeper.set_busy(true, world.now);
        assert_eq!(world.keeper.poll_timeout(world.now), Some(world.now + 60 * SECOND));
        world.after(60 * SECOND).act();
        assert_eq!((world.dials, world.retired.len()), (2, 0));
        world.succeed();
        world.act();
        assert_eq!(world.retired, [1], "one new, one goes");
        world.succeed();
        world.act();
        assert_eq!(world.retired, [1, 2]);
        world.keeper.drained(LaneId(1), world.now);
        world.act();
        assert_eq!(world.carrying, [2, 3, 4]);
        world.after(DRAINING).act();
        assert_eq!(world.carrying, [3, 4], "one that does not drain goes all the same");
    }

    #[test]
    fn what_was_learned_of_one_lane_holds_for_those_that_live() {
        let mut world = World::with(LaneCount::Exactly(2));
        world.span = Some(3000 * SECOND);
        world.settle();
        world.keeper.set_busy(true, world.now);
        let due = world.now + 60 * SECOND;
        world.keeper.replace_before(LaneId(1), due);
        world.keeper.replace_before(LaneId(1), due + 600 * SECOND);
        assert_eq!(world.keeper.poll_timeout(world.now), Some(due));
        world.after(60 * SECOND).settle();
        assert_eq!(world.retired, [1], "made before it breaks");
    }

    #[test]
    fn idle_lanes_are_not_replaced_by_plan() {
        let mut world = World::with(LaneCount::Exactly(1));
        world.span = Some(60 * SECOND);
        world.settle();
        world.after(600 * SECOND).act();
        assert_eq!(world.dials, 0);
        world.keeper.set_busy(true, world.now);
        world.act();
        assert_eq!(world.dials, 1, "when it is used it is");
    }

    #[test]
    fn auto_follows_the_need() {
        let mut world = World::with(LaneCount::Auto);
        world.settle();
        assert_eq!(world.carrying.len(), 1);
        world.keeper.set_busy(true, world.now);
        world.keeper.set_need(4, world.now);
        world.settle();
        assert_eq!(world.carrying.len(), 4);
        world.keeper.set_need(1, world.now);
        world.settle();
        assert_eq!(world.retired.len(), 0);
        world.after(60 * SECOND).act();
        assert_eq!(world.retired.len(), 3);
    }

    #[test]
    fn failures_wait_longer_and_longer_and_a_nudge_ends_the_wait() {
        let mut world = World::with(LaneCount::Exactly(1));
        for pause in [100, 200, 400] {
            world.act();
            assert_eq!(world.dials, 1);
            world.fail(false);
            world.act();
            assert_eq!(world.dials, 0);
            let opens = world.now + Duration::from_millis(pause);
            assert_eq!(world.keeper.poll_timeout(world.now), Some(opens));
            world.now = opens;
        }
        world.act();
        world.fail(false);
        world.keeper.nudge();
        world.act();
        assert_eq!(world.dials, 1);
    }

    #[test]
    fn an_hour_of_throttling_costs_few_calls() {
        let mut world = World::with(LaneCount::Exactly(8));
        world.settle();
        (1..=8).for_each(|lane| world.lose(lane));
        let end = world.now + 3600 * SECOND;
        let mut calls = 0;
        while world.now < end {
            world.act();
            while world.dials > 0 {
                calls += 1;
                world.fail(true);
            }
            world.act();
            world.now = world.keeper.poll_timeout(world.now).expect("it keeps trying");
        }
        assert!((30..80).contains(&calls), "{calls} calls");
    }

    #[test]
    fn lanes_that_die_at_once_are_made_slower_and_slower() {
        let mut world = World::with(LaneCount::Exactly(1));
        let end = world.now + 60 * SECOND;
        let mut dials = 0;
        while world.now < end {
            world.act();
            if world.dials > 0 {
                dials += 1;
                let lane = world.succeed();
                world.die(lane);
            }
            world.act();
            world.now = world.keeper.poll_timeout(world.now).expect("it keeps trying");
        }
        assert!((10..25).contains(&dials), "{dials} dials in a minute");

        world.settle();
        let lane = world.carrying[0];
        world.lose(lane);
        world.act();
        assert_eq!(world.dials, 1, "after one that lived the next comes at once");
        world.fail(false);
        let again = world.now + Duration::from_millis(100);
        assert_eq!(world.keeper.poll_timeout(world.now), Some(again), "and failures count anew");
    }

    #[test]
    fn so_many_tries_and_no_more() {
        let mut world = World::new(LanePlan { max_retries: 3, ..LanePlan::default() });
        world.settle();
        for round in [3, 3] {
            let lane = world.carrying[0];
            world.lose(lane);
            for _ in 1..round {
                assert!(world.act().is_empty());
                world.fail(false);
                world.after(10 * SECOND);
            }
            world.settle();
            assert_eq!(world.carrying.len(), 1, "a success starts the count anew");
        }
        let lane = world.carrying[0];
        world.lose(lane);
        for _ in 0..3 {
            assert!(world.act().is_empty());
            world.fail(false);
            world.after(10 * SECOND);
        }
        assert_eq!(world.act(), [Action::GiveUp(End::Tries(3))]);
    }

    #[test]
    fn dials_that_fail_together_are_one_try_and_double_the_pause_once() {
        let plan = LanePlan { max_retries: 3, count: LaneCount::Exactly(2), ..LanePlan::default() };
        let mut world = World::new(plan);
        world.settle();
        (1..=2).for_each(|lane| world.lose(lane));
        for pause in [100, 200] {
            assert!(world.act().is_empty());
            assert_eq!(world.dials, 2);
            world.fail(false);
            world.after(Duration::from_millis(1)).fail(false);
            assert!(world.act().is_empty());
            let opens = world.keeper.poll_timeout(world.now).unwrap();
            assert_eq!((opens - world.now).as_millis(), pause - 1);
            world.now = opens;
        }
        assert!(world.act().is_empty());
        world.fail(false);
        assert_eq!(world.act(), [Action::GiveUp(End::Tries(3))]);
    }

    #[test]
    fn a_dial_that_hangs_does_not_hide_the_failures_beside_it() {
        let plan = LanePlan { max_retries: 3, count: LaneCount::Exactly(2), ..LanePlan::default() };
        let mut world = World::new(plan);
        world.settle();
        (1..=2).for_each(|lane| world.lose(lane));
        assert!(world.act().is_empty());
        let hanging = world.rounds.remove(0);
        for _ in 1..3 {
            world.fail(false);
            assert!(world.after(10 * SECOND).act().is_empty());
        }
        world.keeper.dial_failed(Some(hanging), false, u32::MAX, world.now);
        assert!(world.after(10 * SECOND).act().is_empty(), "it was counted with the first");
        world.fail(false);
        assert_eq!(world.act(), [Action::GiveUp(End::Tries(3))]);
    }

    #[test]
    fn without_reconnection_the_loss_of_the_last_lane_is_the_end() {
        let plan = LanePlan { reconnect: false, count: LaneCount::Exactly(2), ..LanePlan::default() };
        let mut world = World::new(plan);
        world.settle();
        world.lose(1);
        assert!(world.act().is_empty());
        world.lose(2);
        assert_eq!(world.act(), [Action::GiveUp(End::Lost)]);
    }

    #[test]
    fn a_lazy_trunk_dials_when_there_is_something_to_carry() {
        let mut world = World::new(LanePlan { lazy: true, ..LanePlan::default() });
        world.after(3600 * SECOND).act();
        assert_eq!((world.dials, world.keeper.poll_timeout(world.now)), (0, None));
        world.keeper.set_busy(true, world.now);
        world.settle();
        assert_eq!(world.carrying, [1]);
        world.keeper.set_busy(false, world.now);
        world.act();
        assert_eq!(world.retired.len(), 0, "a lane that is there stays");
        world.lose(1);
        world.act();
        assert_eq!(world.dials, 0, "nobody misses it");
    }

    #[test]
    fn an_idle_trunk_sleeps_after_its_time_unless_something_is_open() {
        let mut world = World::new(LanePlan { idle_timeout: Some(60 * SECOND), ..LanePlan::default() });
        world.settle();
        world.keeper.set_busy(true, world.now);
        assert!(world.after(600 * SECOND).act().is_empty());
        world.keeper.set_busy(false, world.now);
        assert_eq!(world.keeper.poll_timeout(world.now), Some(world.now + 60 * SECOND));
        assert!(world.after(59 * SECOND).act().is_empty());
        assert_eq!(world.after(SECOND).act(), [Action::Sleep]);
    }
}
