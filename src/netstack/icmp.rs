//! Pure: which error an application is told when its flow cannot be had, and how many we send.
//!
//! The codes are those a Linux application turns into the error it would see without a tunnel:
//!
//! | refusal                        | IPv4          | errno        | IPv6          | errno        |
//! |--------------------------------|---------------|--------------|---------------|--------------|
//! | `Refused`, `Exhausted`         | TCP reset     | ECONNREFUSED | TCP reset     | ECONNREFUSED |
//! | `NetUnreachable`               | ICMP 3/0      | ENETUNREACH  | ICMPv6 1/0    | ENETUNREACH  |
//! | `HostUnreachable`, `TimedOut`, | ICMP 3/1      | EHOSTUNREACH | ICMPv6 1/3    | EHOSTUNREACH |
//! | `UnknownName`                  |               |              |               |              |
//! | `Prohibited`, `Denied`,        | ICMP 3/13     | EHOSTUNREACH | ICMPv6 1/1    | EACCES       |
//! | `Unsupported`                  |               |              |               |              |
//!
//! UDP gets port unreachable (3/3, 1/4: ECONNREFUSED) and an echo request prohibited (3/13, 1/1), as long as
//! no relay serves them.

use std::time::{Duration, Instant};

use agent::wire::open::Refusal;

/// How a SYN is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Reset,
    /// Destination unreachable with this code.
    Unreachable(u8),
}

pub(super) fn answer(why: Refusal, v6: bool) -> Answer {
    let (code, code6) = match why {
        Refusal::Refused | Refusal::Exhausted => return Answer::Reset,
        Refusal::NetUnreachable => (0, 0),
        Refusal::HostUnreachable | Refusal::TimedOut | Refusal::UnknownName => (1, 3),
        Refusal::Prohibited | Refusal::Denied | Refusal::Unsupported => {
            return Answer::Unreachable(prohibited(v6));
        }
    };
    Answer::Unreachable(if v6 { code6 } else { code })
}

pub(super) fn port_unreachable(v6: bool) -> u8 {
    if v6 { 4 } else { 3 }
}

pub(super) fn prohibited(v6: bool) -> u8 {
    if v6 { 1 } else { 13 }
}

/// A token bucket for answers to datagrams, which anyone can send any number of.
pub(super) struct RateLimit {
    tokens: u32,
    refilled: Instant,
}

impl RateLimit {
    pub(super) fn new(now: Instant) -> Self {
        Self { tokens: Self::BURST, refilled: now }
    }

    /// Whether one more may be sent.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let due = now.saturating_duration_since(self.refilled).as_micros() / Self::EACH.as_micros();
        if due > 0 {
            let due = u32::try_from(due).unwrap_or(u32::MAX);
            self.tokens = self.tokens.saturating_add(due).min(Self::BURST);
            self.refilled = if self.tokens == Self::BURST { now } else { self.refilled + Self::EACH * due };
        }
        let some = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        some
    }

    const EACH: Duration = Duration::from_millis(10);
    const BURST: u32 = 50;
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_the_codes_of_the_table() {
        assert_eq!(answer(Refusal::Refused, false), Answer::Reset);
        assert_eq!(answer(Refusal::Exhausted, true), Answer::Reset);
        assert_eq!(answer(Refusal::NetUnreachable, true), Answer::Unreachable(0));
        assert_eq!(answer(Refusal::TimedOut, false), Answer::Unreachable(1));
        assert_eq!(answer(Refusal::HostUnreachable, true), Answer::Unreachable(3));
        assert_eq!(answer(Refusal::Denied, false), Answer::Unreachable(13));
        assert_eq!(answer(Refusal::Prohibited, true), Answer::Unreachable(1));
    }

    #[test]
    fn the_rate_is_a_hundred_a_second_after_a_burst() {
        let start = Instant::now();
        let mut limit = RateLimit::new(start);
        let at = |limit: &mut RateLimit, millis| {
            (0..1000).filter(|_| limit.take(start + Duration::from_millis(millis))).count()
        };
        assert_eq!(at(&mut limit, 0), 50);
        assert_eq!(at(&mut limit, 9), 0);
        assert_eq!(at(&mut limit, 25), 2);
        assert_eq!(at(&mut limit, 30), 1);
        assert_eq!(at(&mut limit, 60_000), 50);
    }
}
