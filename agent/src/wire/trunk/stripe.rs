//! Pure: which lane sends the next segment, and what becomes of a lane that falls behind.
//!
//! - Of the lanes that could send at once, the one that would deliver first does. How soon a lane delivers is
//!   its least one-way delay plus the time its own queue takes; both ends of all lanes go by the same two clocks, so
//!   these compare. A lane whose window is full is not waited for. One that was silent while another was heard may have
//!   died, and is passed by as long as that one takes more.
//! - A segment that is not acknowledged within one and a half round trips is given to the other lanes, too. Its lane
//!   is *suspect* then and gets nothing new until it has delivered it: so one that died or stopped holds nobody up.
//! - A lane on which nothing at all is acknowledged for a second or so is *stalled*, which is told, so that
//!   another can be made. While other lanes go on it is dead a second later; when all stand still, the network may
//!   be away, and only after ten.

use std::time::{Duration, Instant};

use super::lane::Lane;
use super::{LEAST_ROOM, LaneReason, Trunk, TrunkEvent};

/// Whether another lane that could send at once would deliver the next segment clearly sooner, or more surely.
pub(super) fn is_better_elsewhere(lanes: &[Lane], index: usize, now: Instant) -> bool {
    let here = &lanes[index];
    let others = || {
        let others = lanes.iter().enumerate().filter(|(other, _)| *other != index);
        others.map(|(_, lane)| lane).filter(|lane| lane.ready && lane.room(now) >= LEAST_ROOM)
    };
    let Some(heard) = others().map(Lane::last_heard).max() else { return false };
    let heard = heard.max(here.last_heard());
    let is_quiet = |lane: &Lane| lane.last_heard() + QUIET < heard;
    if is_quiet(here) {
        return true;
    }
    let arrival = |lane: &Lane| lane.outbound.pace().arrival(lane.outbound.bytes());
    let Some(here) = arrival(here) else { return false };
    others()
        .filter(|lane| !is_quiet(lane))
        .filter_map(arrival)
        .any(|there| here.wrapping_sub(there) as i32 > MARGIN)
}

impl Trunk {
    /// Gives away what is overdue, and tells of lanes that stand still.
    pub(super) fn check_progress(&mut self, now: Instant) {
        for index in 0..self.lanes.len() {
            if self.lanes[index].closed {
                continue;
            }
            while self.has_other_usable(index)
                && let Some((offset, length)) = self.lanes[index].outbound.give_away(now)
            {
                self.sender.lost(offset, length);
            }
            self.check_stall(index, now);
        }
    }

    /// When `check_progress` may have something to do.
    pub(super) fn progress_timeout(&self) -> Option<Instant> {
        let open = self.lanes.iter().enumerate().filter(|(_, lane)| !lane.closed);
        open.flat_map(|(index, lane)| {
            let overdue = lane.outbound.overdue_at().filter(|_| self.has_other_usable(index));
            let stall = lane.outbound.waiting_since().map(|since| {
                since
                    + if lane.outbound.has_told_stall() {
                        self.dead_after(index)
                    } else {
                        stalled_after(lane)
                    }
            });
            [overdue, stall].into_iter().flatten()
        })
        .min()
    }

    /// When the last other lane is gone: what was given away is for this one again.
    pub(super) fn settle_suspects(&mut self) {
        if self.lanes.iter().any(Lane::is_usable) {
            return;
        }
        let Self { lanes, sender, .. } = self;
        for lane in lanes {
            lane.outbound.take_back(&mut |offset, length| sender.arrived(offset, length));
        }
    }

    fn check_stall(&mut self, index: usize, now: Instant) {
        let dead_after = self.dead_after(index);
        let lane = &mut self.lanes[index];
        let waiting = lane.outbound.waiting(now);
        let told = lane.outbound.has_told_stall();
        let due = if told { dead_after } else { stalled_after(lane) };
        if waiting < due {
            return;
        }
        if waiting > due + ASLEEP {
            // Nobody looked when it was time: the program was stopped, or the machine slept.
            lane.outbound.wait_anew(now);
        } else if told {
            lane.closed = true;
            self.events.push_back(TrunkEvent::LaneDead { lane: lane.id, reason: LaneReason::NoAcks });
        } else if lane.outbound.tell_stall() {
            self.events.push_back(TrunkEvent::LaneStalled { lane: lane.id });
        }
    }

    fn has_other_usable(&self, index: usize) -> bool {
        self.lanes.iter().enumerate().any(|(other, lane)| other != index && lane.is_usable())
    }

    fn dead_after(&self, index: usize) -> Duration {
        let others_go_on = self
            .lanes
            .iter()
            .enumerate()
            .any(|(other, lane)| other != index && lane.is_usable() && !lane.outbound.has_told_stall());
        if others_go_on { stalled_after(&self.lanes[index]) + DEAD_AFTER_STALL } else { DEAD_ALONE }
    }
}

fn stalled_after(lane: &Lane) -> Duration {
    let round_trip = lane.outbound.pace().delay().round_trip().unwrap_or_default();
    (STALLED + 2 * round_trip).min(MOST_STALLED)
}

/// A lane that is sooner by less is not worth waiting for, in microseconds.
const MARGIN: i32 = 2_000;
/// Lanes that carry something are heard more often.
const QUIET: Duration = Duration::from_millis(250);
const STALLED: Duration = Duration::from_millis(1200);
const MOST_STALLED: Duration = Duration::from_millis(2000);
const DEAD_AFTER_STALL: Duration = Duration::from_millis(900);
const DEAD_ALONE: Duration = Duration::from_secs(10);
/// A timer that late was not looked at in time.
const ASLEEP: Duration = Duration::from_secs(1);
