//! Pure: ICMP and ICMPv6 echo as sockets send and receive it.
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 1 | request 8, answer 0; in ICMPv6 128 and 129 |
//! | 1 | 1 | 0 |
//! | 2 | 2 | checksum |
//! | 4 | 2 | identifier |
//! | 6 | 2 | sequence number |
//! | 8 | n | payload |
//!
//! Example: a request with identifier 7, sequence number 2 and payload `hi`:
//!
//! ```text
//! 08 00 8f8d 0007 0002 6869
//! ```

/// An echo, without what tells a request from an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Echo<'a> {
    pub(super) id: u16,
    pub(super) sequence: u16,
    pub(super) payload: &'a [u8],
}

impl<'a> Echo<'a> {
    /// Writes a request into `out`. The checksum of ICMPv6, which covers addresses, is the system's to fill in.
    pub(super) fn request(&self, six: bool, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&[if six { REQUEST_V6 } else { REQUEST }, 0, 0, 0]);
        out.extend_from_slice(&self.id.to_be_bytes());
        out.extend_from_slice(&self.sequence.to_be_bytes());
        out.extend_from_slice(self.payload);
        if !six {
            let sum = checksum(out);
            out[2..4].copy_from_slice(&sum.to_be_bytes());
        }
    }

    /// Reads an answer.
    pub(super) fn answer(six: bool, bytes: &'a [u8]) -> Option<Self> {
        Self::read(if six { ANSWER_V6 } else { ANSWER }, bytes)
    }

    /// Reads the beginning of a request, as an ICMP error quotes it.
    pub(super) fn quoted(six: bool, bytes: &'a [u8]) -> Option<Self> {
        Self::read(if six { REQUEST_V6 } else { REQUEST }, bytes)
    }

    fn read(kind: u8, bytes: &'a [u8]) -> Option<Self> {
        let (&[first, code, _, _, i0, i1, s0, s1], payload) = bytes.split_first_chunk::<8>()?;
        let (id, sequence) = (u16::from_be_bytes([i0, i1]), u16::from_be_bytes([s0, s1]));
        (first == kind && code == 0).then_some(Self { id, sequence, payload })
    }
}

/// What stands behind the IPv4 header, with which raw sockets deliver.
pub(super) fn behind_ipv4(packet: &[u8]) -> &[u8] {
    let header = packet.first().map_or(0, |first| usize::from(first & 0x0f) * 4);
    packet.get(header..).unwrap_or_default()
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match *pair {
        [high, low] => u32::from(u16::from_be_bytes([high, low])),
        [high] => u32::from(high) << 8,
        _ => 0,
    });
    // 2^15 words of 16 bits fit.
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

const REQUEST: u8 = 8;
const ANSWER: u8 = 0;
const REQUEST_V6: u8 = 128;
const ANSWER_V6: u8 = 129;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_example_of_the_doc_is_written_and_read() {
        let echo = Echo { id: 7, sequence: 2, payload: b"hi" };
        let mut wire = Vec::new();
        echo.request(false, &mut wire);
        assert_eq!(wire, b"\x08\x00\x8f\x8d\x00\x07\x00\x02hi");
        assert_eq!(Echo::quoted(false, &wire), Some(echo));
        assert_eq!(Echo::answer(false, &wire), None);
        echo.request(true, &mut wire);
        assert_eq!(wire, b"\x80\x00\x00\x00\x00\x07\x00\x02hi");
        assert_eq!(Echo::quoted(true, &wire), Some(echo));
        wire[0] = 129;
        assert_eq!(Echo::answer(true, &wire), Some(echo));
    }

    #[test]
    fn the_ipv4_header_is_passed_over_with_its_options() {
        assert_eq!(behind_ipv4(&[&[0x46][..], &[0; 23], b"icmp"].concat()), b"icmp");
        assert_eq!(behind_ipv4(&[0x4f, 0, 0]), b"");
        assert_eq!(behind_ipv4(b""), b"");
    }

    proptest! {
        #[test]
        fn checksums_verify_and_random_bytes_never_panic(payload in any::<Vec<u8>>(), id: u16, sequence: u16) {
            let mut wire = Vec::new();
            Echo { id, sequence, payload: &payload }.request(false, &mut wire);
            prop_assert_eq!(checksum(&wire), 0);
            for six in [false, true] {
                let _ = (Echo::answer(six, &payload), Echo::quoted(six, behind_ipv4(&payload)));
            }
        }
    }
}
