//! Pure: whether a lane lives.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Role;

/// Asks whether the lane lives. The client does so each interval, which also keeps the SSM session from idling out;
/// the agent only when it heard nothing.
pub(super) struct Pings {
    role: Role,
    interval: Option<Duration>,
    pub(super) tick_at: Option<Instant>,
    next_id: u64,
    /// A ping is to be sent.
    pub(super) due: bool,
    /// Sent and not answered, the oldest first.
    pub(super) asked: VecDeque<(u64, Instant)>,
    /// A frame arrived since the last tick.
    pub(super) heard: bool,
    silent_ticks: u8,
}

impl Pings {
    pub(super) fn new(role: Role, id: u64) -> Self {
        Self {
            role,
            interval: None,
            tick_at: None,
            next_id: id,
            due: false,
            asked: VecDeque::new(),
            heard: true,
            silent_ticks: 0,
        }
    }

    pub(super) fn set(&mut self, interval: Option<Duration>, now: Instant) {
        if self.interval == interval {
            return;
        }
        let Some(length) = interval else {
            *self = Self::new(self.role, self.next_id);
            return;
        };
        if self.interval.is_none() {
            self.tick_at = Some(now);
        } else {
            self.tick_at = self.tick_at.map(|at| at.min(now + length));
        }
        self.interval = interval;
    }

    /// The id of a ping that goes out now.
    pub(super) fn take(&mut self, now: Instant) -> Option<u64> {
        if !std::mem::take(&mut self.due) {
            return None;
        }
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        self.asked.push_back((id, now));
        if self.asked.len() > MOST_ASKED {
            self.asked.pop_front();
        }
        Some(id)
    }

    /// When the answered ping was sent.
    pub(super) fn answered(&mut self, id: u64) -> Option<Instant> {
        let index = self.asked.iter().position(|(asked, _)| *asked == id)?;
        self.asked.drain(..=index).next_back().map(|(_, sent_at)| sent_at)
    }

    /// `true` when the lane is dead. A tick that comes late counts once, so a program that was stopped finds
    /// its lanes alive.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        let Some(interval) = self.interval else { return false };
        if self.tick_at.is_none_or(|at| at > now) {
            return false;
        }
        self.tick_at = Some(now + interval);
        let heard = std::mem::take(&mut self.heard);
        self.silent_ticks = if heard { 0 } else { self.silent_ticks + 1 };
        if self.silent_ticks >= DEADLY_SILENCE && (self.due || !self.asked.is_empty()) {
            return true;
        }
        self.silent_ticks = self.silent_ticks.min(DEADLY_SILENCE);
        match self.role {
            Role::Client => self.due = true,
            Role::Agent => self.due |= !heard,
        }
        false
    }
}

pub(super) const MOST_ASKED: usize = 4;
/// In intervals.
const DEADLY_SILENCE: u8 = 3;
