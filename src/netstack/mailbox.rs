//! Pure: whole pieces that wait for somebody to take them; where they are too many, the oldest goes.

use std::collections::VecDeque;
use std::time::Instant;

/// Messages for the agent, or packets for an application, of one flow.
#[derive(Default)]
pub(super) struct Mailbox {
    /// With the time of their arrival.
    pieces: VecDeque<(Instant, Vec<u8>)>,
    /// How much of the first piece has been read; such a piece stays until it is read whole.
    read: usize,
    held: usize,
}

impl Mailbox {
    /// Puts a piece behind the others, which together with it then hold at most `most` bytes; tells how many pieces,
    /// of which it may be one itself, were dropped for that.
    pub(super) fn push(&mut self, piece: Vec<u8>, most: usize, now: Instant) -> u64 {
        let size = cost(&piece);
        let mut dropped = 0;
        while self.held + size > most || self.pieces.len() >= MAX_PIECES {
            dropped += 1;
            if !self.drop_oldest() {
                return dropped;
            }
        }
        self.held += size;
        self.pieces.push_back((now, piece));
        dropped
    }

    /// Drops what came before `time`, but for a piece that is being read; tells how many.
    pub(super) fn drop_older(&mut self, time: Instant) -> u64 {
        let mut dropped = 0;
        let first = usize::from(self.read > 0);
        while self.pieces.get(first).is_some_and(|(came, _)| *came < time) && self.drop_oldest() {
            dropped += 1;
        }
        dropped
    }

    /// Moves bytes into `buf`, one piece after the other.
    pub(super) fn read(&mut self, buf: &mut [u8]) -> usize {
        let mut count = 0;
        while let Some((_, piece)) = self.pieces.front() {
            let rest = &piece[self.read..];
            let taken = rest.len().min(buf.len() - count);
            buf[count..count + taken].copy_from_slice(&rest[..taken]);
            count += taken;
            if taken < rest.len() {
                self.read += taken;
                break;
            }
            self.pop();
        }
        count
    }

    pub(super) fn front(&self) -> Option<&[u8]> {
        self.pieces.front().map(|(_, piece)| piece.as_slice())
    }

    pub(super) fn pop(&mut self) {
        self.read = 0;
        self.held -= self.pieces.pop_front().map_or(0, |(_, piece)| cost(&piece));
        if self.pieces.is_empty() {
            // What a busy moment needed is not kept.
            self.pieces = VecDeque::new();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Bytes of all pieces with what it costs to keep them.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    fn drop_oldest(&mut self) -> bool {
        // The reader has the beginning of the first piece and needs its end.
        let first = usize::from(self.read > 0);
        let Some((_, piece)) = self.pieces.remove(first) else { return false };
        self.held -= cost(&piece);
        true
    }
}

fn cost(piece: &[u8]) -> usize {
    piece.len() + EACH
}

/// What a piece takes beside its bytes.
const EACH: usize = 64;
const MAX_PIECES: usize = 1024;

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_oldest_goes_but_for_the_piece_that_is_being_read() {
        let mut mailbox = Mailbox::default();
        let most = 3 * (10 + EACH);
        for byte in 0..3 {
            assert_eq!(mailbox.push(vec![byte; 10], most, Instant::now()), 0);
        }
        let mut buf = [9; 4];
        assert_eq!(mailbox.read(&mut buf), 4);
        assert_eq!(mailbox.push(vec![3; 10], most, Instant::now()), 1);
        let mut rest = [9; 40];
        assert_eq!(mailbox.read(&mut rest), 26);
        assert_eq!(rest[..26], [[0; 6].as_slice(), &[2; 10], &[3; 10]].concat());
        assert_eq!((mailbox.held(), mailbox.len()), (0, 0));
    }

    #[test]
    fn a_piece_beyond_the_bound_is_dropped_itself() {
        let mut mailbox = Mailbox::default();
        assert_eq!(mailbox.push(vec![0; 100], 100, Instant::now()), 1);
        assert_eq!(mailbox.push(vec![0; 10], 100, Instant::now()), 0);
        mailbox.read(&mut [0; 1]);
        assert_eq!(mailbox.push(vec![1; 10], 100, Instant::now()), 1);
        assert_eq!(mailbox.read(&mut [0; 100]), 9);
        assert!(mailbox.is_empty());
    }

    #[test]
    fn the_old_goes_but_for_the_piece_that_is_being_read() {
        let start = Instant::now();
        let mut mailbox = Mailbox::default();
        for second in 0..4u8 {
            mailbox.push(vec![second; 2], 1000, start + Duration::from_secs(second.into()));
        }
        assert_eq!(mailbox.drop_older(start), 0);
        mailbox.read(&mut [0; 1]);
        assert_eq!(mailbox.drop_older(start + Duration::from_secs(3)), 2);
        let mut rest = [9; 10];
        assert_eq!(mailbox.read(&mut rest), 3);
        assert_eq!(rest[..3], [0, 3, 3]);
    }

    #[test]
    fn small_pieces_are_bounded_in_number() {
        let mut mailbox = Mailbox::default();
        let dropped: u64 =
            (0..MAX_PIECES + 5).map(|_| mailbox.push(vec![1], usize::MAX, Instant::now())).sum();
        assert_eq!((dropped, mailbox.len()), (5, MAX_PIECES));
    }
}
