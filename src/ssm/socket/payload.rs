//! Pure: how large one lane's upstream messages may be: twice as large once a size is proven, small after a cut
//! that may be theirs.

use std::time::{Duration, Instant};

use crate::ssm::channel::MIN_PAYLOAD;

pub(super) struct Payload {
    size: usize,
    most: usize,
    /// The largest size of which enough have passed.
    proven: usize,
    /// When the first message went out that only this size allows.
    first: Option<Instant>,
    sent: u32,
    /// How many messages had passed at the last cut, and the cuts since the first one at which it was as many.
    blamed: Option<(u64, u32)>,
}

impl Payload {
    pub(super) fn new(start: usize, most: usize) -> Self {
        Self { size: start, most: most.max(start), proven: 0, first: None, sent: 0, blamed: None }
    }

    /// The largest message now.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// The largest size that has passed, 0 before that is known.
    pub(super) fn proven(&self) -> usize {
        self.proven
    }

    /// A message goes out while `unacked` of those before it wait; true when there may be larger ones from now on.
    pub(super) fn sent(&mut self, length: usize, unacked: usize, now: Instant) -> bool {
        if length <= self.below() {
            return false;
        }
        let first = *self.first.get_or_insert(now);
        self.sent = self.sent.saturating_add(1);
        // As many as wait may all be of this size, and the last acknowledgement says nothing of a cut to come.
        let passed = self.sent.saturating_sub(u32::try_from(unacked).unwrap_or(u32::MAX));
        if passed < ENOUGH || now.saturating_duration_since(first) < SUSPECT_WITHIN {
            return false;
        }
        self.proven = self.proven.max(self.size);
        if self.size >= self.most {
            return false;
        }
        self.size = (self.size * 2).min(self.most);
        (self.first, self.sent) = (None, 0);
        true
    }

    /// The websocket was cut when so many messages had passed, `None` if that says nothing of those on the way; true
    /// when the size of messages may be why.
    pub(super) fn cut(&mut self, passed: Option<u64>, now: Instant) -> bool {
        let suspect = self.first.is_some_and(|at| now.saturating_duration_since(at) < SUSPECT_WITHIN);
        self.blamed = passed.and_then(|passed| {
            let again = self.blamed.filter(|(before, _)| *before == passed).map(|(_, cuts)| cuts + 1);
            Some((passed, again.or(self.has_sent_large().then_some(1))?))
        });
        if suspect {
            self.size = self.proven.max(MIN_PAYLOAD);
            self.most = self.size;
        }
        suspect && self.proven == 0
    }

    /// Whether the message that is next does not pass, however often it is sent: it was cut into its size before.
    pub(super) fn is_stuck(&self) -> bool {
        self.blamed.is_some_and(|(_, cuts)| cuts >= STUCK)
    }

    /// Whether messages went out that not every path takes.
    pub(super) fn has_sent_large(&self) -> bool {
        self.first.is_some() || self.proven > MIN_PAYLOAD
    }

    /// A message of at most this length proves nothing about the size.
    fn below(&self) -> usize {
        if self.proven == 0 { MIN_PAYLOAD } else { self.proven.min(self.size / 2).max(MIN_PAYLOAD) }
    }
}

/// A cut so soon after the first message of a size may be because of it.
const SUSPECT_WITHIN: Duration = Duration::from_secs(2);
const ENOUGH: u32 = 32;
/// So many websockets lost over one message are enough.
const STUCK: u32 = 3;

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn messages_grow_when_enough_have_passed_for_long_enough() {
        let start = Instant::now();
        let mut payload = Payload::new(8192, 32768);
        for _ in 0..1000 {
            assert!(!payload.sent(8192, 10, start + SECOND), "too soon to tell");
        }
        assert!(!payload.sent(500, 0, start + 9 * SECOND), "a small one proves nothing");
        assert!(!payload.sent(8192, 980, start + 9 * SECOND), "most of them wait");
        assert!(payload.sent(8192, 0, start + 9 * SECOND));
        assert_eq!((payload.size(), payload.proven()), (16384, 8192));
        let grown = |payload: &mut Payload, from| {
            (0..100).any(|count| payload.sent(16384, 0, from + count * SECOND / 10))
        };
        assert!(grown(&mut payload, start + 10 * SECOND));
        assert_eq!(payload.size(), 32768);
        for count in 0..100 {
            assert!(!payload.sent(32768, 0, start + 30 * SECOND + count * SECOND / 10), "never larger");
        }
        assert_eq!(payload.proven(), 32768);
    }

    #[test]
    fn a_cut_right_after_the_first_large_message_makes_them_small() {
        let start = Instant::now();
        let mut payload = Payload::new(8192, 32768);
        assert!(!payload.cut(Some(0), start), "nothing large was sent");
        assert!(!payload.has_sent_large());
        payload.sent(1025, 0, start);
        assert!(payload.cut(Some(0), start + SECOND));
        assert_eq!(payload.size(), 1024);
    }

    #[test]
    fn a_message_that_costs_one_websocket_after_the_other_is_stuck() {
        let start = Instant::now();
        let mut payload = Payload::new(8192, 32768);
        payload.sent(8192, 0, start);
        for cuts in 1..=3 {
            payload.cut(Some(5), start + cuts * SECOND);
            assert_eq!(payload.is_stuck(), cuts == 3);
        }
        payload.cut(Some(6), start + 9 * SECOND);
        assert!(!payload.is_stuck(), "it has passed");
        let mut small = Payload::new(1024, 1024);
        small.sent(1024, 0, start);
        (0..9).for_each(|_| assert!(!small.cut(Some(0), start)));
        assert!(!small.is_stuck());
        let mut idle = Payload::new(8192, 32768);
        idle.sent(8192, 0, start);
        (0..9).for_each(|_| _ = idle.cut(None, start));
        assert!(!idle.is_stuck());
    }

    #[test]
    fn a_cut_after_growth_goes_back_to_what_was_proven() {
        let start = Instant::now();
        let mut payload = Payload::new(8192, 32768);
        (0..100).for_each(|count| {
            payload.sent(8192, 0, start + count * SECOND / 10);
        });
        assert_eq!(payload.size(), 16384);
        payload.sent(16384, 0, start + 20 * SECOND);
        assert!(!payload.cut(Some(0), start + 21 * SECOND), "small ones are not called for");
        assert_eq!(payload.size(), 8192);
        (0..100).for_each(|count| {
            payload.sent(8192, 0, start + (30 + count) * SECOND);
        });
        assert_eq!(payload.size(), 8192, "it does not try again");
    }

    #[test]
    fn a_late_cut_is_not_the_sizes_fault() {
        let start = Instant::now();
        let mut payload = Payload::new(8192, 32768);
        payload.sent(8192, 0, start);
        assert!(!payload.cut(Some(0), start + 2 * SECOND));
        assert_eq!(payload.size(), 8192);
    }
}
