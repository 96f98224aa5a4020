//! Pure: what ICMP and the system say of a datagram, as trouble to tell.

use crate::wire::datagram::Trouble;
use crate::wire::open::Refusal;

/// An ICMP error for IPv4. `info` is the MTU where the error has one.
pub(super) fn of_icmp(kind: u8, code: u8, info: u32) -> Trouble {
    match (kind, code) {
        (3, 4) => Trouble::TooBig(mtu(info)),
        (3, 0 | 6 | 11) => NET,
        // The target's own word: nobody listens, or the protocol is not spoken there.
        (3, 2 | 3) => REFUSED,
        (3, 9 | 10 | 13) => PROHIBITED,
        // Unreachable for another reason, lost in a loop, or not understood.
        _ => HOST,
    }
}

/// An ICMPv6 error. `info` is the MTU where the error has one.
pub(super) fn of_icmpv6(kind: u8, code: u8, info: u32) -> Trouble {
    match (kind, code) {
        (2, _) => Trouble::TooBig(mtu(info)),
        (1, 0 | 2) => NET,
        (1, 1 | 5 | 6) => PROHIBITED,
        (1, 4) => REFUSED,
        _ => HOST,
    }
}

pub(super) fn mtu(info: u32) -> u16 {
    u16::try_from(info).unwrap_or(u16::MAX)
}

const NET: Trouble = Trouble::Refusal(Refusal::NetUnreachable);
const HOST: Trouble = Trouble::Refusal(Refusal::HostUnreachable);
const REFUSED: Trouble = Trouble::Refusal(Refusal::Refused);
const PROHIBITED: Trouble = Trouble::Refusal(Refusal::Prohibited);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_its_meaning_in_both_families() {
        let table = [
            (3, 0, 1, 0, NET),
            (3, 1, 1, 3, HOST),
            (3, 3, 1, 4, REFUSED),
            (3, 13, 1, 1, PROHIBITED),
            (3, 9, 1, 5, PROHIBITED),
            (3, 4, 2, 0, Trouble::TooBig(1400)),
            (11, 0, 3, 0, HOST),
        ];
        for (v4, v4_code, v6, v6_code, trouble) in table {
            assert_eq!(of_icmp(v4, v4_code, 1400), trouble, "{v4}/{v4_code}");
            assert_eq!(of_icmpv6(v6, v6_code, 1400), trouble, "{v6}/{v6_code}");
        }
        assert_eq!(of_icmpv6(2, 0, 70_000), Trouble::TooBig(u16::MAX));
    }
}
