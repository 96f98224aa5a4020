//! Pure: whether more lanes would help.
//!
//! The trunk is *full* while the mux has something to send and every lane is at its window or takes no record.
//! A trunk that was full for most of the last third of a second wants twice its lanes; one that hardly ever is wants as
//! many as its rate fills. A lane that came while the trunk was full is on trial: when the rate a while later has
//! not grown by a quarter of its fair part, something else is the bottleneck (acks of the other direction, or
//! the network), and for a minute no more lanes are wanted than there were before.
//! Lanes that are as fast as a whole network ask for no others: what holds them up are the processors.

use std::time::{Duration, Instant};

use super::{LEAST_ROOM, Trunk};

/// How many lanes would be of use now; 0 when nothing was sent lately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// For what we send.
    pub ours: u8,
    /// For what the peer sends, as it told.
    pub peers: u8,
}

impl Demand {
    /// What a maker of lanes is to aim at.
    pub fn lanes(self) -> usize {
        usize::from(self.ours.max(self.peers))
    }
}

#[derive(Debug, Default)]
pub(super) struct Appetite {
    /// Part of the time that the trunk was full, lately.
    fullness: f32,
    full: bool,
    seen: Option<Instant>,
    busy: Option<Instant>,
    wanted: u8,
    trial: Option<Trial>,
    /// No more lanes than these, until then.
    held: Option<(usize, Instant)>,
}

#[derive(Clone, Copy, Debug)]
struct Trial {
    lanes: usize,
    rate: u64,
    ends: Instant,
}

/// What the lanes are at.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    pub(super) lanes: usize,
    /// Bytes a second that go out.
    pub(super) rate: u64,
    /// Bytes a second that all lanes together were seen to carry.
    pub(super) capacity: u64,
    pub(super) full: bool,
    pub(super) in_flight: bool,
}

impl Trunk {
    /// To be told after all lanes had their records: whether the mux has more to send.
    pub fn note_backlog(&mut self, backlog: bool, now: Instant) {
        self.tick(now);
        self.backlog = backlog;
        if self.appetite.update(self.load(backlog), now) {
            self.lanes.iter_mut().for_each(|lane| lane.inbound.ack_now = true);
        }
    }

    /// How many lanes would be of use now, each way.
    pub fn demand(&self) -> Demand {
        Demand { ours: self.appetite.wanted(), peers: self.peer_wants }
    }

    /// Whether lanes that were added lately did not make what we send any faster.
    pub fn is_limited_elsewhere(&self) -> bool {
        self.appetite.is_held()
    }

    pub(super) fn load(&self, backlog: bool) -> Load {
        let usable = || self.lanes.iter().filter(|lane| lane.is_usable());
        let Some(now) = self.clock else { return Load::default() };
        // Without a lane nothing shows that one would not do.
        let all_full =
            usable().next().is_some() && usable().all(|lane| !lane.ready || lane.room(now) < LEAST_ROOM);
        Load {
            lanes: usable().count(),
            rate: self.sending.get(now),
            capacity: usable().filter_map(|lane| lane.outbound.pace().proven_rate()).sum(),
            full: backlog && all_full,
            in_flight: !self.is_drained(),
        }
    }

    /// When a lane has room for what waits.
    pub(super) fn room_timeout(&self) -> Option<Instant> {
        let now = self.clock.filter(|_| self.backlog || self.unsent() > 0)?;
        self.lanes.iter().filter(|lane| lane.ready).filter_map(|lane| lane.room_at(now)).min()
    }
}

impl Appetite {
    pub(super) fn wanted(&self) -> u8 {
        self.wanted
    }

    /// Whether the latest lane that came while the trunk was full was of no use.
    pub(super) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Looks at the lanes; `true` when what is wanted has changed.
    pub(super) fn update(&mut self, load: Load, now: Instant) -> bool {
        let elapsed =
            self.seen.replace(now).map_or(0.0, |seen| now.saturating_duration_since(seen).as_secs_f32());
        let weight = (elapsed / MEMORY).min(1.0);
        self.fullness += weight * (f32::from(u8::from(self.full)) - self.fullness);
        self.full = load.full;
        if load.full || load.in_flight {
            self.busy = Some(now);
        }
        self.judge(load, now);
        let wanted = self.count(load, now);
        let changed = wanted != self.wanted;
        self.wanted = wanted;
        changed
    }

    /// A lane was added to so many others.
    pub(super) fn added(&mut self, load: Load, now: Instant) {
        if self.fullness < FULL || load.lanes == 0 {
            self.trial = None;
            return;
        }
        let before = self.trial.filter(|trial| trial.ends > now);
        let (lanes, rate) = before.map_or((load.lanes, load.rate), |trial| (trial.lanes, trial.rate));
        self.trial = Some(Trial { lanes, rate, ends: now + TRIAL });
    }

    /// A lane is gone: nothing can be told from the rates any more.
    pub(super) fn removed(&mut self) {
        self.trial = None;
    }

    fn judge(&mut self, load: Load, now: Instant) {
        if self.held.is_some_and(|(_, until)| until <= now) {
            self.held = None;
        }
        let Some(trial) = self.trial.filter(|trial| trial.ends <= now) else { return };
        self.trial = None;
        let added = load.lanes.saturating_sub(trial.lanes) as u64;
        let least = trial.rate + trial.rate * added / (4 * trial.lanes as u64);
        if self.fullness >= FULL && load.rate < least {
            self.held = Some((trial.lanes, now + HELD));
        }
    }

    fn count(&self, load: Load, now: Instant) -> u8 {
        let idle = self.busy.is_none_or(|busy| now.saturating_duration_since(busy) >= IDLE);
        let wanted = if idle {
            0
        } else if self.fullness >= FULL {
            if self.trial.is_some() {
                // While a trial runs the last answer stands.
                usize::from(self.wanted)
            } else if load.rate.max(load.capacity) >= ENOUGH * load.lanes as u64 {
                load.lanes
            } else {
                load.lanes * 2
            }
        } else if self.fullness <= SLACK {
            let each = load.capacity / load.lanes.max(1) as u64;
            let filled = if each == 0 { 1 } else { (load.rate * 5 / 4).div_ceil(each) };
            usize::try_from(filled).unwrap_or(MOST).clamp(1, load.lanes.max(1))
        } else {
            load.lanes
        };
        let most = self.held.map_or(MOST, |(lanes, _)| lanes);
        wanted.min(most) as u8
    }
}

/// Lanes a trunk may have.
pub(super) const MOST: usize = 32;
/// In seconds.
const MEMORY: f32 = 0.2;
const FULL: f32 = 0.7;
const SLACK: f32 = 0.1;
/// Bytes a second on a lane that is not what holds the trunk up.
const ENOUGH: u64 = 100_000_000;
const TRIAL: Duration = Duration::from_millis(1500);
const HELD: Duration = Duration::from_secs(60);
const IDLE: Duration = Duration::from_secs(1);

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    /// Looks at such a load for so many milliseconds, each 10.
    fn watch(appetite: &mut Appetite, load: Load, from: Instant, millis: u64) -> Instant {
        for tick in 0..millis / 10 {
            appetite.update(load, from + Duration::from_millis(10 * tick));
        }
        from + Duration::from_millis(millis)
    }

    fn full(lanes: usize, rate: u64) -> Load {
        Load { lanes, rate, capacity: rate, full: true, in_flight: true }
    }

    #[test]
    fn a_full_trunk_wants_twice_its_lanes_within_a_second_and_none_when_idle() {
        let (mut appetite, start) = (Appetite::default(), Instant::now());
        let now = watch(&mut appetite, full(1, 900), start, 500);
        assert_eq!(appetite.wanted(), 2);
        let calm = Load { lanes: 4, rate: 1000, capacity: 4000, full: false, in_flight: true };
        let now = watch(&mut appetite, calm, now, 1000);
        assert_eq!(appetite.wanted(), 2);
        watch(&mut appetite, Load { in_flight: false, rate: 0, ..calm }, now, 1500);
        assert_eq!(appetite.wanted(), 0);
    }

    #[test]
    fn a_lane_as_fast_as_a_network_asks_for_no_other() {
        let (mut appetite, start) = (Appetite::default(), Instant::now());
        let now = watch(&mut appetite, full(1, ENOUGH), start, 1000);
        assert_eq!(appetite.wanted(), 1);
        watch(&mut appetite, full(1, ENOUGH / 2), now, 1000);
        assert_eq!(appetite.wanted(), 2);
    }

    #[test]
    fn lanes_that_do_not_help_are_not_asked_for_again() {
        let (mut appetite, start) = (Appetite::default(), Instant::now());
        let now = watch(&mut appetite, full(2, 1000), start, 1000);
        appetite.added(full(2, 1000), now);
        let now = watch(&mut appetite, full(3, 1100), now, 2000);
        assert_eq!((appetite.wanted(), appetite.is_held()), (2, true));
        let now = watch(&mut appetite, full(3, 1100), now, 61_000);
        assert_eq!((appetite.wanted(), appetite.is_held()), (6, false));

        appetite.added(full(3, 1000), now);
        watch(&mut appetite, full(4, 1300), now, 2000);
        assert_eq!((appetite.wanted(), appetite.is_held()), (8, false));
    }
}
