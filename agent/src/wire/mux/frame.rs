//! Pure: the 12-byte header of yamux's wire format, version 0.
//!
//! | offset | bytes | field (numbers are big endian) |
//! |---|---|---|
//! | 0 | 1 | version: 0 |
//! | 1 | 1 | kind: 0 data, 1 window update, 2 ping, 3 go away |
//! | 2 | 2 | flags: 1 SYN (first frame of its opener), 2 ACK (first frame of its acceptor; answer to a ping), 4 FIN, 8 RST |
//! | 4 | 4 | stream id: odd from the client, even from the agent; 0 in pings and go aways |
//! | 8 | 4 | data: payload bytes behind the header; window update: credit added; ping: opaque; go away: reason |
//!
//! Example, the client's stream 3 opens with the payload `hi` and is finished by the same frame:
//!
//! | 0 | 1 | 2..4 | 4..8 | 8..12 | payload |
//! |---|---|---|---|---|---|
//! | `00` | `00` | `00 05` | `00 00 00 03` | `00 00 00 02` | `68 69` |
//!
//! Reasons of a go away: 0 the peer leaves, 1 it saw the protocol broken, 2 it failed inside.

use std::fmt;

pub(in crate::wire) const HEADER: usize = 12;

pub(super) const REASON_LEAVING: u32 = 0;
pub(super) const REASON_PROTOCOL: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Data = 0,
    WindowUpdate = 1,
    Ping = 2,
    GoAway = 3,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flags(u16);

impl Flags {
    pub(super) const NONE: Self = Self(0);
    pub(super) const SYN: Self = Self(1);
    pub(super) const ACK: Self = Self(2);
    pub(super) const FIN: Self = Self(4);
    pub(super) const RST: Self = Self(8);
    const KNOWN: u16 = 15;

    pub(super) fn has(self, flag: Self) -> bool {
        self.0 & flag.0 != 0
    }

    pub(super) fn and(self, flag: Self) -> Self {
        Self(self.0 | flag.0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) flags: Flags,
    pub(super) id: u32,
    /// Payload bytes of a data frame, credit of a window update, and so on: see the table.
    pub(super) length: u32,
}

/// How a peer broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// The version is not 0.
    Version(u8),
    /// No such kind of frame.
    Kind(u8),
    /// Flags that do not exist.
    Flags(u16),
    /// A stream frame on stream 0, or a stream opened with an id that is ours to give.
    WrongId(u32),
    /// An open stream was opened again.
    OpenedTwice(u32),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Version(version) => write!(f, "frame version {version} instead of 0"),
            Self::Kind(kind) => write!(f, "unknown kind of frame {kind}"),
            Self::Flags(flags) => write!(f, "unknown flags {flags:#06x}"),
            Self::WrongId(id) => write!(f, "stream id {id} is not the peer's to use here"),
            Self::OpenedTwice(id) => write!(f, "stream {id} was opened while it was open"),
        }
    }
}

impl Header {
    pub(super) fn encode(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[1] = self.kind as u8;
        bytes[2..4].copy_from_slice(&self.flags.0.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.id.to_be_bytes());
        bytes[8..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    pub(super) fn decode(bytes: [u8; HEADER]) -> Result<Self, Violation> {
        let [version, kind, f0, f1, i0, i1, i2, i3, l0, l1, l2, l3] = bytes;
        if version != 0 {
            return Err(Violation::Version(version));
        }
        let kind = match kind {
            0 => Kind::Data,
            1 => Kind::WindowUpdate,
            2 => Kind::Ping,
            3 => Kind::GoAway,
            other => return Err(Violation::Kind(other)),
        };
        let flags = u16::from_be_bytes([f0, f1]);
        if flags & !Flags::KNOWN != 0 {
            return Err(Violation::Flags(flags));
        }
        Ok(Self {
            kind,
            flags: Flags(flags),
            id: u32::from_be_bytes([i0, i1, i2, i3]),
            length: u32::from_be_bytes([l0, l1, l2, l3]),
        })
    }
}

/// Collects a header from bytes that are cut anywhere.
#[derive(Debug, Default)]
pub(super) struct HeaderBuffer {
    bytes: [u8; HEADER],
    len: usize,
}

impl HeaderBuffer {
    /// Takes what it needs from the front of `input`; the header once it is whole.
    pub(super) fn take(&mut self, input: &mut &[u8]) -> Option<[u8; HEADER]> {
        let (taken, rest) = input.split_at(input.len().min(HEADER - self.len));
        self.bytes[self.len..self.len + taken.len()].copy_from_slice(taken);
        self.len += taken.len();
        *input = rest;
        if self.len < HEADER {
            return None;
        }
        self.len = 0;
        Some(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: [u8; 14] = [0, 0, 0, 5, 0, 0, 0, 3, 0, 0, 0, 2, b'h', b'i'];

    fn example() -> Header {
        Header { kind: Kind::Data, flags: Flags::SYN.and(Flags::FIN), id: 3, length: 2 }
    }

    #[test]
    fn the_example_of_the_byte_table() {
        let mut input = &EXAMPLE[..];
        let header = HeaderBuffer::default().take(&mut input).map(Header::decode);

        assert_eq!(header, Some(Ok(example())));
        assert_eq!(input, b"hi");
        assert_eq!(example().encode(), EXAMPLE[..HEADER]);
    }

    #[test]
    fn every_prefix_of_a_header_is_not_yet_one() {
        for cut in 0..HEADER {
            let mut buffer = HeaderBuffer::default();
            let mut first = &EXAMPLE[..cut];
            assert_eq!(buffer.take(&mut first), None, "cut at {cut}");
            assert!(first.is_empty());
            let mut rest = &EXAMPLE[cut..];
            assert_eq!(buffer.take(&mut rest), Some(example().encode()), "cut at {cut}");
        }
    }

    #[test]
    fn what_is_not_yamux_is_refused() {
        let with = |at: usize, byte: u8| {
            let mut bytes = example().encode();
            bytes[at] = byte;
            Header::decode(bytes)
        };

        assert_eq!(with(0, 1), Err(Violation::Version(1)));
        assert_eq!(with(1, 4), Err(Violation::Kind(4)));
        assert_eq!(with(2, 1), Err(Violation::Flags(0x0105)));
        assert_eq!(with(3, 16), Err(Violation::Flags(0x0010)));
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_to_the_same_bytes(bytes: [u8; HEADER]) {
            if let Ok(header) = Header::decode(bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }

        #[test]
        fn headers_come_back(kind in 0u8..4, flags in 0u16..16, id: u32, length: u32) {
            let kind = [Kind::Data, Kind::WindowUpdate, Kind::Ping, Kind::GoAway][usize::from(kind)];
            let header = Header { kind, flags: Flags(flags), id, length };
            prop_assert_eq!(Header::decode(header.encode()), Ok(header));
        }
    }
}
