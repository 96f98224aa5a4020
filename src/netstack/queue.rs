//! Pure: slots that wait for a turn, and when slots want to be woken.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Instant;

/// Slots in the order they were first marked; each at most once.
#[derive(Default)]
pub(super) struct Queue {
    order: VecDeque<u32>,
    queued: Vec<bool>,
}

impl Queue {
    pub(super) fn push(&mut self, slot: u32) {
        let at = slot as usize;
        if at >= self.queued.len() {
            self.queued.resize(at + 1, false);
        }
        if !self.queued[at] {
            self.queued[at] = true;
            self.order.push_back(slot);
        }
    }

    pub(super) fn pop(&mut self) -> Option<u32> {
        let slot = self.order.pop_front()?;
        self.queued[slot as usize] = false;
        Some(slot)
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub(super) fn contains(&self, slot: u32) -> bool {
        self.queued.get(slot as usize).copied().unwrap_or(false)
    }
}

/// Wake-ups by time. A slot remembers its own next one; entries that no longer say that time are ignored.
#[derive(Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, u32)>>,
}

impl Timers {
    pub(super) fn push(&mut self, at: Instant, slot: u32) {
        self.heap.push(Reverse((at, slot)));
    }

    /// Takes the next entry that is due.
    pub(super) fn pop(&mut self, now: Instant) -> Option<(Instant, u32)> {
        let Reverse((at, _)) = self.heap.peek()?;
        if *at > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }

    /// Keeps the entries that are wanted, each once: a slot used again at the same instant has the same entry twice.
    pub(super) fn retain(&mut self, mut wanted: impl FnMut(Instant, u32) -> bool) {
        let mut entries = std::mem::take(&mut self.heap).into_vec();
        entries.retain(|Reverse((at, slot))| wanted(*at, *slot));
        entries.sort_unstable();
        entries.dedup();
        self.heap = entries.into();
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_slot_stands_in_the_queue_once() {
        let mut queue = Queue::default();
        for slot in [7, 3, 7, 3, 9] {
            queue.push(slot);
        }
        assert_eq!(queue.pop(), Some(7));
        queue.push(7);
        assert_eq!([queue.pop(), queue.pop(), queue.pop(), queue.pop()], [Some(3), Some(9), Some(7), None]);
    }

    #[test]
    fn timers_fire_in_order_and_not_before_their_time() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut timers = Timers::default();
        timers.push(at(3), 1);
        timers.push(at(1), 2);
        timers.push(at(2), 3);
        timers.push(at(3), 1);
        timers.retain(|_, slot| slot != 3);
        assert_eq!(timers.next(), Some(at(1)));
        assert_eq!(timers.pop(start), None);
        assert_eq!(timers.pop(at(2)), Some((at(1), 2)));
        assert_eq!(timers.pop(at(2)), None);
        assert_eq!(timers.pop(at(3)), Some((at(3), 1)));
        assert_eq!(timers.len(), 0);
    }
}
