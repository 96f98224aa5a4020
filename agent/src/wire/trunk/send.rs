//! Pure: the sending half of a trunk: bytes that may have to go out again, and which go next.
//!
//! Bytes are kept from `commit` until the peer has acknowledged them. `acked <= sent <= end`, all offsets of
//! the trunk; ranges between `acked` and `sent` that a dead or overdue lane may have lost wait in `resend`.

use std::collections::VecDeque;

use super::LaneFault;
use super::ranges::Ranges;

pub(super) struct Sender {
    acked: u64,
    sent: u64,
    end: u64,
    /// The highest offset the peer takes.
    credit: u64,
    /// The most bytes kept.
    limit: usize,
    chunks: VecDeque<Chunk>,
    pool: Vec<Box<[u8]>>,
    resend: Ranges,
    pub(super) resent: u64,
}

struct Chunk {
    start: u64,
    filled: usize,
    bytes: Box<[u8]>,
}

impl Chunk {
    fn end(&self) -> u64 {
        self.start + self.filled as u64
    }
}

/// Bytes that a lane may send next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) length: usize,
    again: bool,
}

impl Sender {
    pub(super) fn new(credit: u64, limit: usize) -> Self {
        Self {
            acked: 0,
            sent: 0,
            end: 0,
            credit,
            limit,
            chunks: VecDeque::new(),
            pool: Vec::new(),
            resend: Ranges::default(),
            resent: 0,
        }
    }

    /// Contiguous free space, at most `room`; a whole frame of the mux finds place in it when `room` allows.
    pub(super) fn spare(&mut self, room: usize) -> &mut [u8] {
        if room == 0 {
            return &mut [];
        }
        let short = |chunk: &Chunk| CHUNK - chunk.filled < room.min(LEAST_SPARE);
        if self.chunks.back().is_none_or(short) {
            let bytes = self.pool.pop().unwrap_or_else(|| vec![0; CHUNK].into_boxed_slice());
            self.chunks.push_back(Chunk { start: self.end, filled: 0, bytes });
        }
        self.chunks.back_mut().map_or(&mut [], |chunk| {
            let end = CHUNK.min(chunk.filled.saturating_add(room));
            &mut chunk.bytes[chunk.filled..end]
        })
    }

    /// Takes the first `written` bytes of what `spare` gave.
    pub(super) fn commit(&mut self, written: usize) {
        if let Some(chunk) = self.chunks.back_mut() {
            let written = written.min(CHUNK - chunk.filled);
            chunk.filled += written;
            self.end += written as u64;
        }
    }

    /// The peer has all bytes below `cum`, now or earlier.
    pub(super) fn acknowledge(&mut self, cum: u64) -> Result<(), LaneFault> {
        if cum > self.sent {
            return Err(LaneFault::AckOfUnsent { cum, sent: self.sent });
        }
        if cum <= self.acked {
            return Ok(());
        }
        self.acked = cum;
        while let Some(chunk) = self.chunks.front_mut() {
            if chunk.end() > cum {
                break;
            }
            if self.chunks.len() == 1 {
                self.restart_last();
                break;
            }
            self.recycle_front();
        }
        self.resend.remove(0, cum);
        Ok(())
    }

    pub(super) fn raise_credit(&mut self, credit: u64) {
        self.credit = self.credit.max(credit);
    }

    /// A dead or overdue lane had these bytes; they go out again unless the peer has them.
    pub(super) fn lost(&mut self, offset: u64, length: usize) {
        self.resend.insert(offset.max(self.acked), offset + length as u64);
    }

    /// The peer has these bytes, though perhaps not all below them.
    pub(super) fn arrived(&mut self, offset: u64, length: usize) {
        self.resend.remove(offset, offset + length as u64);
    }

    /// The lowest bytes that may be sent now; those sent before only if `again`.
    ///
    /// They lie in one chunk, so that a segment ends where a frame of the mux ends if it can hold that much.
    pub(super) fn next(&self, again: bool) -> Option<Range> {
        let (offset, end, again) = match self.resend.first() {
            Some((offset, end)) if again => (offset, end, true),
            Some(_) | None => (self.sent, self.end, false),
        };
        let end = end.min(self.chunk(offset).map_or(offset, Chunk::end));
        let length = end.saturating_sub(offset) as usize;
        (length > 0).then_some(Range { offset, length, again })
    }

    /// The first `length` bytes of `range` go out now: here they are.
    pub(super) fn take(&mut self, range: Range, length: usize) -> &[u8] {
        let length = length.min(range.length);
        let end = range.offset + length as u64;
        if range.again {
            self.resent += length as u64;
            self.resend.remove(range.offset, end);
        } else {
            self.sent = end;
        }
        self.kept(range.offset, length)
    }

    /// Bytes that [`next`](Self::next) told of, and the peer has not acknowledged since.
    pub(super) fn kept(&self, offset: u64, length: usize) -> &[u8] {
        self.chunk(offset).map_or(&[], |chunk| {
            let from = (offset - chunk.start) as usize;
            &chunk.bytes[from..from + length]
        })
    }

    /// Gives back memory that is not needed now.
    pub(super) fn shrink(&mut self) {
        self.pool = Vec::new();
        if self.acked == self.end {
            self.chunks = VecDeque::new();
        }
    }

    /// How many bytes may be added as far as credit and memory go.
    pub(super) fn room(&self) -> usize {
        let credit = usize::try_from(self.credit.saturating_sub(self.end)).unwrap_or(usize::MAX);
        credit.min(self.limit.saturating_sub(self.unacknowledged()))
    }

    /// Bytes that wait for a lane.
    pub(super) fn waiting(&self) -> usize {
        (self.end - self.sent + self.resend.total()) as usize
    }

    /// Bytes kept.
    pub(super) fn unacknowledged(&self) -> usize {
        (self.end - self.acked) as usize
    }

    /// Bytes the peer takes beyond what has been added.
    pub(super) fn credit(&self) -> u64 {
        self.credit.saturating_sub(self.end)
    }

    /// Bytes of memory for what was added.
    pub(super) fn memory(&self) -> usize {
        (self.chunks.len() + self.pool.len()) * CHUNK
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// The chunk that holds the byte at `offset`.
    fn chunk(&self, offset: u64) -> Option<&Chunk> {
        self.chunks.get(self.chunks.partition_point(|chunk| chunk.end() <= offset))
    }

    /// The only chunk holds nothing that is needed: it is filled from its start again.
    fn restart_last(&mut self) {
        if let Some(chunk) = self.chunks.back_mut() {
            chunk.start = self.end;
            chunk.filled = 0;
        }
    }

    fn recycle_front(&mut self) {
        if let Some(chunk) = self.chunks.pop_front()
            && self.pool.len() < POOL
        {
            self.pool.push(chunk.bytes);
        }
    }
}

const CHUNK: usize = 64 * 1024;
/// A chunk with less free space is left as it is: a frame of the mux must fit.
const LEAST_SPARE: usize = 16 * 1024;
/// Chunks kept for the next bytes.
const POOL: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in_over_many_chunks() {
        let mut sender = Sender::new(u64::MAX, 1 << 20);
        let all = fill(&mut sender, 300_000);
        let mut out = Vec::new();
        while let Some(range) = sender.next(true) {
            out.extend_from_slice(sender.take(range, 65_536));
        }
        assert_eq!(out, all);
        assert_eq!((sender.waiting(), sender.unacknowledged()), (0, 300_000));

        sender.acknowledge(300_000).unwrap();
        assert_eq!(sender.unacknowledged(), 0);
        assert_eq!(sender.chunks.len(), 1);
    }

    #[test]
    fn lost_bytes_go_out_again_lowest_first_and_cut_anew() {
        let mut sender = Sender::new(u64::MAX, 1 << 20);
        let all = fill(&mut sender, 10_000);
        let range = sender.next(true).unwrap();
        sender.take(range, 9_000);
        sender.lost(4_000, 1_000);
        sender.lost(1_000, 1_000);
        sender.lost(2_000, 500);
        sender.acknowledge(1_200).unwrap();
        assert_eq!(sender.resend.iter().collect::<Vec<_>>(), [(1_200, 2_500), (4_000, 5_000)]);
        sender.lost(2_400, 300);
        sender.arrived(2_500, 200);
        assert_eq!(sender.resend.iter().collect::<Vec<_>>(), [(1_200, 2_500), (4_000, 5_000)]);
        assert_eq!(sender.waiting(), 1_000 + 2_300);

        let (mut out, mut offsets) = (Vec::new(), Vec::new());
        while let Some(range) = sender.next(true) {
            offsets.push(range.offset);
            out.extend_from_slice(sender.take(range, 700));
        }
        assert_eq!(offsets, [1_200, 1_900, 4_000, 4_700, 9_000, 9_700]);
        assert_eq!(out, [&all[1_200..2_500], &all[4_000..5_000], &all[9_000..]].concat());
        assert_eq!(sender.resent, 2_300);
    }

    #[test]
    fn acknowledged_bytes_are_not_lost() {
        let mut sender = Sender::new(u64::MAX, 1 << 20);
        fill(&mut sender, 1_000);
        let range = sender.next(true).unwrap();
        sender.take(range, 1_000);
        sender.acknowledge(600).unwrap();
        sender.lost(0, 600);
        assert_eq!(sender.next(true), None);
        sender.lost(500, 200);
        assert_eq!(sender.next(true), Some(Range { offset: 600, length: 100, again: true }));
        assert_eq!(sender.next(false), None);
    }

    #[test]
    fn room_is_bounded_by_credit_and_memory() {
        let mut sender = Sender::new(50_000, 100_000);
        assert_eq!(sender.room(), 50_000);
        fill(&mut sender, 50_000);
        assert_eq!(sender.room(), 0);
        sender.raise_credit(1_000_000);
        sender.raise_credit(60_000);
        assert_eq!(sender.room(), 50_000);
        assert!(sender.spare(0).is_empty());
    }

    #[test]
    fn spare_holds_a_frame_of_the_mux() {
        let mut sender = Sender::new(u64::MAX, 1 << 20);
        for _ in 0..40 {
            assert!(sender.spare(100_000).len() >= 16 * 1024);
            sender.commit(5_000);
        }
        assert_eq!(sender.spare(100).len(), 100);
    }

    #[test]
    fn an_ack_of_what_was_not_sent_is_a_fault() {
        let mut sender = Sender::new(u64::MAX, 1 << 20);
        fill(&mut sender, 10);
        assert!(sender.acknowledge(1).is_err());
    }

    #[test]
    fn memory_is_used_again_and_given_back() {
        let mut sender = Sender::new(u64::MAX, 1 << 20);
        for round in 1..50 {
            fill(&mut sender, 500_000);
            let mut out = Vec::new();
            while let Some(range) = sender.next(true) {
                out.extend_from_slice(sender.take(range, 65_536));
            }
            sender.acknowledge(round * 500_000).unwrap();
            assert!(sender.pool.len() + sender.chunks.len() <= POOL + 1);
        }
        sender.shrink();
        assert_eq!((sender.pool.len(), sender.chunks.len()), (0, 0));
        assert_eq!(fill(&mut sender, 10).len(), 10);
    }

    fn fill(sender: &mut Sender, mut length: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while length > 0 {
            let spare = sender.spare(length);
            let written = spare.len().min(7_001);
            spare[..written].iter_mut().zip(all.len()..).for_each(|(byte, at)| *byte = (at * 31 / 7) as u8);
            all.extend_from_slice(&spare[..written]);
            sender.commit(written);
            length -= written;
        }
        all
    }
}
