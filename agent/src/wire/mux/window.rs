//! Pure: what one stream may still be sent, and how its receive window grows.
//!
//! The window bounds all bytes of a stream that are on their way or not yet consumed by the owner. Credit
//! is given only for room that the owner has, so what was granted can always be pushed. The owner tells
//! its room; room that came back is what it consumed.
//!
//! A window doubles when the owner consumed a whole window within the interval the caller names (about
//! two round trips): then the window, not the owner, was what the peer waited for. It never shrinks.

use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Window {
    size: u32,
    /// Bytes the peer may send and has not.
    outstanding: u32,
    /// Bytes the owner takes, as far as known.
    room: u32,
    /// Bytes pushed and, as far as known, not yet consumed.
    unconsumed: u32,
    /// Bytes consumed since `since`.
    consumed: u32,
    since: Option<Instant>,
}

impl Window {
    /// Both ends start from the same window without a word; the owner has at least that much room.
    pub(super) fn new(size: u32) -> Self {
        Self { size, outstanding: size, room: size, unconsumed: 0, consumed: 0, since: None }
    }

    /// Counts bytes that arrived; false when they exceed what was granted.
    pub(super) fn arrived(&mut self, bytes: u32) -> bool {
        let Some(left) = self.outstanding.checked_sub(bytes) else { return false };
        self.outstanding = left;
        self.room = self.room.saturating_sub(bytes);
        self.unconsumed = self.unconsumed.saturating_add(bytes);
        true
    }

    /// Sets the owner's room. True when a whole window was consumed within `brisk`.
    pub(super) fn set_room(&mut self, room: usize, now: Instant, brisk: Duration) -> bool {
        let room = u32::try_from(room).unwrap_or(u32::MAX);
        let consumed = room.saturating_sub(self.room).min(self.unconsumed);
        self.room = room;
        self.unconsumed -= consumed;
        match self.since {
            Some(since) if now.saturating_duration_since(since) <= brisk => {
                self.consumed = self.consumed.saturating_add(consumed);
            }
            // Consumed during the interval that is over: says nothing about the one that begins.
            Some(_) | None => {
                self.since = Some(now);
                self.consumed = 0;
            }
        }
        if self.consumed < self.size {
            return false;
        }
        self.since = Some(now);
        self.consumed = 0;
        true
    }

    pub(super) fn grow(&mut self, by: u32) {
        self.size += by;
    }

    /// Credit that could be given and has not been announced.
    pub(super) fn credit(&self) -> u32 {
        self.room.min(self.size.saturating_sub(self.unconsumed)).saturating_sub(self.outstanding)
    }

    /// Whether the credit is worth a frame: as much as the peer has left (half a window, or half the room
    /// if that is less) but no crumbs, or anything for a peer that has none left.
    pub(super) fn is_due(&self) -> bool {
        let credit = self.credit();
        credit > 0 && (self.outstanding == 0 || credit >= self.outstanding.max(self.size / 8))
    }

    /// Gives all credit there is; the caller announces it.
    pub(super) fn take_credit(&mut self) -> u32 {
        let credit = self.credit();
        self.outstanding += credit;
        credit
    }

    pub(super) fn size(&self) -> u32 {
        self.size
    }

    pub(super) fn outstanding(&self) -> u32 {
        self.outstanding
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    const BRISK: Duration = Duration::from_millis(100);

    #[test]
    fn credit_comes_back_at_half_a_window() {
        let now = Instant::now();
        let mut window = Window::new(1000);
        window.set_room(1000, now, BRISK);

        assert!(window.arrived(499));
        window.set_room(1000, now, BRISK);
        assert!(!window.is_due());

        assert!(window.arrived(1));
        window.set_room(1000, now, BRISK);
        assert!(window.is_due());
        assert_eq!(window.take_credit(), 500);
        assert_eq!(window.outstanding(), 1000);
    }

    #[test]
    fn credit_comes_back_at_half_the_room_of_a_small_ring() {
        let now = Instant::now();
        let mut window = Window::new(1000);
        assert!(window.arrived(1000));
        window.set_room(400, now, BRISK);
        assert_eq!(window.take_credit(), 400);

        assert!(window.arrived(199));
        window.set_room(400, now, BRISK);
        assert!(!window.is_due());
        assert!(window.arrived(1));
        window.set_room(400, now, BRISK);
        assert!(window.is_due());
    }

    #[test]
    fn a_peer_without_credit_gets_the_little_there_is() {
        let now = Instant::now();
        let mut window = Window::new(1000);
        assert!(window.arrived(1000));

        window.set_room(0, now, BRISK);
        assert!(!window.is_due());
        window.set_room(3, now, BRISK);
        assert!(window.is_due());
        assert_eq!(window.take_credit(), 3);
    }

    #[test]
    fn more_than_granted_is_noticed() {
        let mut window = Window::new(10);

        assert!(window.arrived(10));
        assert!(!window.arrived(1));
    }

    #[test]
    fn an_owner_that_consumes_nothing_holds_no_more_than_a_window() {
        let now = Instant::now();
        let mut window = Window::new(1000);
        window.set_room(500_000, now, BRISK);

        assert!(window.arrived(1000));
        window.set_room(499_000, now, BRISK);

        assert_eq!(window.credit(), 0);
    }

    #[test]
    fn a_window_used_up_within_the_interval_asks_to_grow() {
        let start = Instant::now();
        let mut window = Window::new(1000);
        window.set_room(5000, start, BRISK);
        let mut consume = |bytes, after| {
            assert!(window.arrived(bytes));
            let grows = window.set_room(5000, start + after, BRISK);
            window.take_credit();
            grows
        };

        assert!(!consume(600, BRISK / 2));
        assert!(consume(400, BRISK));
        assert!(!consume(600, BRISK * 3 / 2));
        assert!(!consume(400, BRISK * 3), "too late");
        assert!(!consume(1000, BRISK * 5), "a burst after a pause");
    }
}
