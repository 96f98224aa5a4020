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
//! A UDP datagram or an echo request gets what the network told the agent about it, as ICMP. `Refused` is then
//! port unreachable (3/3, 1/4: ECONNREFUSED), `Exhausted` the host unreachable of the table, for that passes, and
//! a datagram too big for the way gets the MTU of the way (3/4, 2/0: EMSGSIZE).
//!
//! A packet of a protocol that nobody here carries (SCTP, GRE...) gets what a host without it says: protocol unreachable
//! (3/2: ENOPROTOOPT), unrecognized next header (4/1: EPROTO).

use std::net::IpAddr;
use std::time::{Duration, Instant};

use agent::wire::datagram::Trouble;
use agent::wire::open::Refusal;

use super::packet::{self, Packet, V4_HEADER};

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

/// An ICMP or ICMPv6 error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Error {
    pub(super) kind: u8,
    pub(super) code: u8,
    /// The MTU of the way, or the place of what is wrong, where that is the error.
    pub(super) detail: u16,
}

/// The error for the datagram whose beginning is `quote`; `None` where a network would say nothing.
pub(super) fn error(trouble: Trouble, quote: &[u8]) -> Option<Error> {
    let v6 = quote.first()? >> 4 == 6;
    let code = match trouble {
        Trouble::TooBig(mtu) => return too_big(mtu, v6, quote),
        Trouble::Refusal(Refusal::Refused) if v6 => 4,
        Trouble::Refusal(Refusal::Refused) => 3,
        Trouble::Refusal(Refusal::Exhausted) => {
            return error(Trouble::Refusal(Refusal::HostUnreachable), quote);
        }
        Trouble::Refusal(why) => match answer(why, v6) {
            Answer::Unreachable(code) => code,
            Answer::Reset => return None,
        },
    };
    Some(Error { kind: if v6 { 1 } else { 3 }, code, detail: 0 })
}

/// The error for a packet of a protocol we do not carry; `None` for what may be an error itself, or has no content.
pub(super) fn unknown_protocol(packet: &Packet<'_>) -> Option<Error> {
    match (packet.target, packet.protocol) {
        (_, packet::ICMP | packet::ICMP6) | (IpAddr::V6(_), NO_NEXT_HEADER) => None,
        (IpAddr::V4(_), _) => Some(Error { kind: 3, code: 2, detail: 0 }),
        (IpAddr::V6(_), _) => Some(Error { kind: 4, code: 1, detail: NEXT_HEADER_AT }),
    }
}

fn too_big(mtu: u16, v6: bool, quote: &[u8]) -> Option<Error> {
    let header = quote.get(..V4_HEADER)?;
    if v6 {
        let mtu = if mtu == 0 { MIN_V6 } else { mtu.max(MIN_V6) };
        return Some(Error { kind: 2, code: 0, detail: mtu });
    }
    // What may be cut on the way is never too big.
    let may_be_cut = header[6] & 0x40 == 0;
    let length = packet::u16_at(header, 2);
    let usual = || MTUS.into_iter().find(|usual| *usual < length).unwrap_or(MIN_V4);
    let mtu = if mtu == 0 { usual() } else { mtu.max(MIN_V4) };
    (!may_be_cut).then_some(Error { kind: 3, code: 4, detail: mtu })
}

/// Nothing follows (RFC 8200, 4.7).
const NO_NEXT_HEADER: u8 = 59;
/// In the IPv6 header.
const NEXT_HEADER_AT: u16 = 6;
/// What ways allow most often.
const MTUS: [u16; 3] = [9001, 1500, 1280];
const MIN_V6: u16 = 1280;
/// The least that every host takes (RFC 791).
const MIN_V4: u16 = 576;

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
