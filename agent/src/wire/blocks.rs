//! Pure: how the bytes of a TCP flow lie in a stream where both ends agreed on blocks in the hello.
//!
//! Behind the open or answer message each direction is a sequence of blocks:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 1 | 0 plain, 1 packed |
//! | 1 | 3 | length of what follows, big-endian, at least 1 |
//! | 4 | length | plain: bytes of the flow; packed: one zstd frame of at most 65,536 bytes of the flow |
//!
//! A plain block may be announced before its bytes are there: they are passed on one by one as they come, and
//! the flow may finish within it. A packed block is shorter than what it holds, thus at most 65,535 bytes, and
//! refers to no other block: nothing can be learnt from its length about another flow, and both ends need
//! only one zstd context for all flows.
//!
//! Example: `ab` in a plain block that may go on for 4 KiB, then nothing more:
//!
//! ```text
//! 00 001000 6162
//! ```

use std::fmt;

/// What stands at the head of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    Plain(usize),
    Packed(usize),
}

/// What stands in a stream is no block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockFault {
    Kind(u8),
    Length(usize),
    /// Not one zstd frame, or more bytes than a block holds.
    Content,
    /// All flows together store too much for slow readers.
    Crowded,
}

/// The length of a block's head.
pub const HEAD: usize = 4;
/// The most bytes of a flow in a packed block.
pub const BLOCK: usize = 64 << 10;
/// The longest plain block.
pub const LONGEST: usize = (1 << 24) - 1;

impl Block {
    /// The length must suit the kind.
    pub fn encode(self) -> [u8; HEAD] {
        let (kind, length) = match self {
            Self::Plain(length) => (PLAIN, length),
            Self::Packed(length) => (PACKED, length),
        };
        let [_, length @ ..] = (length as u32).to_be_bytes();
        [kind, length[0], length[1], length[2]]
    }

    /// Reads the head at the start of `input`; `None` when part of it is missing.
    pub fn decode(input: &[u8]) -> Result<Option<Self>, BlockFault> {
        let Some(&[kind, high, middle, low]) = input.first_chunk::<HEAD>() else {
            return input.first().map_or(Ok(None), |kind| known(*kind).map(|()| None));
        };
        known(kind)?;
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        let (block, most) =
            if kind == PLAIN { (Self::Plain(length), LONGEST) } else { (Self::Packed(length), BLOCK - 1) };
        if (1..=most).contains(&length) { Ok(Some(block)) } else { Err(BlockFault::Length(length)) }
    }
}

fn known(kind: u8) -> Result<(), BlockFault> {
    if kind <= PACKED { Ok(()) } else { Err(BlockFault::Kind(kind)) }
}

impl fmt::Display for BlockFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(kind) => write!(f, "a block of kind {kind} is none"),
            Self::Length(length) => write!(f, "no block of its kind has {length} bytes"),
            Self::Content => f.write_str("a packed block cannot be unpacked"),
            Self::Crowded => f.write_str("too many bytes wait for slow readers"),
        }
    }
}

impl std::error::Error for BlockFault {}

const PLAIN: u8 = 0;
const PACKED: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn example_of_the_doc_decodes() {
        let wire = [0, 0, 0x10, 0, b'a', b'b'];

        assert_eq!(Block::decode(&wire), Ok(Some(Block::Plain(4096))));
        assert_eq!(wire[..HEAD], Block::Plain(4096).encode());
        for cut in 0..HEAD {
            assert_eq!(Block::decode(&wire[..cut]), Ok(None));
        }
    }

    #[test]
    fn lengths_of_both_kinds_are_bounded() {
        for block in [Block::Plain(1), Block::Plain(LONGEST), Block::Packed(1), Block::Packed(BLOCK - 1)] {
            assert_eq!(Block::decode(&block.encode()), Ok(Some(block)));
        }
        for block in [Block::Plain(0), Block::Packed(0), Block::Packed(BLOCK)] {
            assert!(matches!(Block::decode(&block.encode()), Err(BlockFault::Length(_))));
        }
        assert_eq!(Block::decode(&[2]), Err(BlockFault::Kind(2)));
        assert_eq!(Block::decode(&[0xff; 4]), Err(BlockFault::Kind(0xff)));
    }
}
