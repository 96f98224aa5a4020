//! Pure: the receiving half of a trunk: puts bytes in order, drops what it has, keeps the peer to its credit.

use std::collections::BTreeMap;

use super::{INITIAL_CREDIT, LaneFault};

pub(super) struct Receiver {
    /// All bytes below have been handed on.
    placed: u64,
    /// The highest offset the peer was ever told it may reach.
    told: u64,
    /// How far beyond `placed` the peer may go.
    credit: u64,
    /// Bytes beyond a gap by offset; never overlapping, never touching `placed`.
    held: BTreeMap<u64, Vec<u8>>,
    held_bytes: usize,
    pub(super) most_held: usize,
    pub(super) duplicates: u64,
}

impl Receiver {
    pub(super) fn new(credit: u64) -> Self {
        Self {
            placed: 0,
            told: INITIAL_CREDIT,
            credit,
            held: BTreeMap::new(),
            held_bytes: 0,
            most_held: 0,
            duplicates: 0,
        }
    }

    /// Hands on what is next in order, without a copy, and holds what is not.
    pub(super) fn handle_segment(
        &mut self,
        offset: u64,
        bytes: &[u8],
        place: &mut dyn FnMut(&[u8]),
    ) -> Result<(), LaneFault> {
        let end = offset + bytes.len() as u64;
        if end > self.told {
            return Err(LaneFault::BeyondCredit { end, credit: self.told });
        }
        if end <= self.placed {
            self.duplicates += bytes.len() as u64;
            return Ok(());
        }
        let known = self.placed.saturating_sub(offset);
        self.duplicates += known;
        let (offset, bytes) = (offset + known, &bytes[known as usize..]);
        self.compare(offset, bytes)?;
        if offset == self.placed {
            place(bytes);
            self.placed = end;
            self.release(place);
            Ok(())
        } else {
            self.hold(offset, bytes)
        }
    }

    /// The credit as the next ack tells it.
    pub(super) fn tell_credit(&mut self) -> u64 {
        self.told = self.told.max(self.placed + self.credit);
        self.told
    }

    pub(super) fn placed(&self) -> u64 {
        self.placed
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Bytes that are held already must be the same when they come again.
    fn compare(&self, offset: u64, bytes: &[u8]) -> Result<(), LaneFault> {
        let end = offset + bytes.len() as u64;
        for (&start, piece) in self.overlapping(offset, end) {
            let from = start.max(offset);
            let to = end.min(start + piece.len() as u64);
            let new = &bytes[(from - offset) as usize..(to - offset) as usize];
            let held = &piece[(from - start) as usize..(to - start) as usize];
            if new != held {
                return Err(LaneFault::Contradiction { offset: from });
            }
        }
        Ok(())
    }

    /// Hands on what is held and has become next; part of the first may have been handed on already.
    fn release(&mut self, place: &mut dyn FnMut(&[u8])) {
        while let Some(first) = self.held.first_entry()
            && *first.key() <= self.placed
        {
            let (start, piece) = first.remove_entry();
            self.held_bytes -= piece.len();
            let known = ((self.placed - start) as usize).min(piece.len());
            self.duplicates += known as u64;
            let new = &piece[known..];
            if !new.is_empty() {
                place(new);
                self.placed += new.len() as u64;
            }
        }
    }

    /// Stores those of the bytes that are not held yet.
    fn hold(&mut self, offset: u64, bytes: &[u8]) -> Result<(), LaneFault> {
        let end = offset + bytes.len() as u64;
        let taken: Vec<(u64, u64)> = self
            .overlapping(offset, end)
            .map(|(&start, piece)| (start, start + piece.len() as u64))
            .chain([(end, end)])
            .collect();
        let mut from = offset;
        for (start, after) in taken {
            if start > from {
                self.insert(from, &bytes[(from - offset) as usize..(start - offset) as usize])?;
            }
            self.duplicates += after.min(end).saturating_sub(start.max(from));
            from = from.max(after);
        }
        self.most_held = self.most_held.max(self.held_bytes);
        Ok(())
    }

    fn insert(&mut self, start: u64, bytes: &[u8]) -> Result<(), LaneFault> {
        self.held_bytes += bytes.len();
        if let Some((&before, piece)) = self.held.range_mut(..start).next_back()
            && before + piece.len() as u64 == start
            && piece.len() + bytes.len() <= LONGEST_PIECE
        {
            piece.extend_from_slice(bytes);
            return Ok(());
        }
        if self.held.len() >= MOST_PIECES {
            self.held_bytes -= bytes.len();
            return Err(LaneFault::TooManyPieces);
        }
        self.held.insert(start, bytes.to_vec());
        Ok(())
    }

    fn overlapping(&self, offset: u64, end: u64) -> impl Iterator<Item = (&u64, &Vec<u8>)> {
        let first = self
            .held
            .range(..=offset)
            .next_back()
            .filter(|(start, piece)| **start + piece.len() as u64 > offset)
            .map_or(offset, |(start, _)| *start);
        self.held.range(first..end)
    }
}

/// Neighbours are joined up to this length.
const LONGEST_PIECE: usize = 64 * 1024;
/// A peer of ours has at most one gap for each segment in flight.
const MOST_PIECES: usize = 32 * super::outbound::MOST_IN_FLIGHT;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn order_is_restored_and_repeats_are_dropped() {
        let mut end = End::new();
        end.segment(3, b"def").unwrap();
        end.segment(8, b"ij").unwrap();
        end.segment(3, b"def").unwrap();
        assert_eq!((end.placed.as_slice(), end.receiver.held_bytes()), (b"".as_slice(), 5));
        end.segment(0, b"abc").unwrap();
        end.segment(0, b"abc").unwrap();
        assert_eq!(end.placed, b"abcdef");
        end.segment(4, b"efghi").unwrap();
        assert_eq!(end.placed, b"abcdefghij");
        assert_eq!((end.receiver.placed(), end.receiver.held_bytes()), (10, 0));
        assert_eq!(end.receiver.duplicates, 3 + 3 + 2 + 1);
    }

    #[test]
    fn other_bytes_at_the_same_offset_are_a_fault() {
        let mut end = End::new();
        end.segment(3, b"def").unwrap();
        assert_eq!(end.segment(2, b"cdX"), Err(LaneFault::Contradiction { offset: 3 }));
        assert_eq!(end.segment(0, b"abcdeX"), Err(LaneFault::Contradiction { offset: 3 }));
        assert_eq!(end.segment(5, b"Xg"), Err(LaneFault::Contradiction { offset: 5 }));
        end.segment(0, b"abcd").unwrap();
        assert_eq!(end.placed, b"abcdef");
    }

    #[test]
    fn credit_is_told_before_it_may_be_used() {
        let mut end = End::new();
        let beyond = end.segment(INITIAL_CREDIT - 1, b"ab");
        assert_eq!(beyond, Err(LaneFault::BeyondCredit { end: INITIAL_CREDIT + 1, credit: INITIAL_CREDIT }));
        end.segment(INITIAL_CREDIT - 1, b"a").unwrap();
        assert_eq!(end.receiver.tell_credit(), 1 << 20);
        end.segment((1 << 20) - 1, b"a").unwrap();
        assert!(end.segment(1 << 20, b"a").is_err());
        end.segment(0, b"a").unwrap();
        assert!(end.segment(1 << 20, b"a").is_err());
        assert_eq!(end.receiver.tell_credit(), (1 << 20) + 1);
        end.segment(1 << 20, b"a").unwrap();
    }

    #[test]
    fn scattered_single_bytes_are_bounded() {
        let mut end = End::new();
        end.receiver.tell_credit();
        let fault = (1..).find_map(|index| end.segment(index * 2, b"x").err());
        assert_eq!(fault, Some(LaneFault::TooManyPieces));
        assert_eq!(end.receiver.held.len(), MOST_PIECES);
        let mut whole = End::new();
        (1..20_000).for_each(|offset| whole.segment(offset, b"x").unwrap());
        assert_eq!(whole.receiver.held.len(), 1);
    }

    proptest! {
        #[test]
        fn any_pieces_in_any_order_give_the_same_bytes(
            pieces in proptest::collection::vec((0usize..400, 1usize..120), 0..60),
        ) {
            let all: Vec<u8> = (0..520).map(|at: usize| (at * 7 / 3) as u8).collect();
            let mut end = End::new();
            let mut covered = vec![false; all.len()];
            for (offset, length) in pieces {
                end.segment(offset as u64, &all[offset..offset + length]).unwrap();
                covered[offset..offset + length].fill(true);
                let whole = covered.iter().take_while(|covered| **covered).count();
                let total = covered.iter().filter(|covered| **covered).count();
                prop_assert_eq!(&end.placed, &all[..whole]);
                prop_assert_eq!(end.receiver.held_bytes(), total - whole);
            }
        }
    }

    struct End {
        receiver: Receiver,
        placed: Vec<u8>,
    }

    impl End {
        fn new() -> Self {
            Self { receiver: Receiver::new(1 << 20), placed: Vec::new() }
        }

        fn segment(&mut self, offset: u64, bytes: &[u8]) -> Result<(), LaneFault> {
            let placed = &mut self.placed;
            self.receiver.handle_segment(offset, bytes, &mut |bytes| placed.extend_from_slice(bytes))
        }
    }
}
