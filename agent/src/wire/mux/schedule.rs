//! Pure: whose turn it is to send.
//!
//! Time goes in rounds. In each round every stream may send about one quantum. A stream that has some of it
//! left is *sparse* and goes before all others; one that has used it up is *bulk* and waits in line, and its
//! next quantum comes when the line has come round to it. So a stream that asks for less than its share
//! never waits for a queue, however often it asks, and bulk streams share the rest evenly.

use super::table::{Queue, TURNS, Table, Turn};

/// Quanta that sparse streams may send in a row while bulk streams wait, so that no flood of new streams
/// brings these to a halt.
const SPARSE_QUANTA: i32 = 16;

#[derive(Debug)]
pub(super) struct Schedule {
    sparse: Queue<TURNS>,
    /// Ordered by `round`, since a stream joins at the end with its quantum of the round used up.
    bulk: Queue<TURNS>,
    round: u32,
    /// Bytes of sparse streams since a bulk stream had its turn.
    sparse_bytes: i32,
}

impl Default for Schedule {
    /// Begins in a round that no stream has had a quantum for.
    fn default() -> Self {
        Self { sparse: Queue::default(), bulk: Queue::default(), round: 1, sparse_bytes: 0 }
    }
}

impl Schedule {
    /// Lets a stream wait for its turn if it has something to send and does not wait yet.
    pub(super) fn join(&mut self, table: &mut Table, slot: u32, quantum: i32) {
        let stream = &mut table[slot];
        if stream.turn != Turn::None || !stream.can_send() {
            return;
        }
        if stream.round != self.round {
            stream.round = self.round;
            stream.deficit = refilled(stream.deficit, quantum);
        }
        if stream.deficit > 0 {
            stream.turn = Turn::Sparse;
            self.sparse.push(table, slot);
        } else {
            stream.turn = Turn::Bulk;
            self.bulk.push(table, slot);
        }
    }

    pub(super) fn leave(&mut self, table: &mut Table, slot: u32) {
        match std::mem::replace(&mut table[slot].turn, Turn::None) {
            Turn::None => {}
            Turn::Sparse => self.sparse.remove(table, slot),
            Turn::Bulk => self.bulk.remove(table, slot),
        }
    }

    /// The stream to send now; it stays until `leave`, or until `charge` ends its turn.
    pub(super) fn next(&mut self, table: &mut Table, quantum: i32) -> Option<u32> {
        if self.bulk.is_empty() {
            self.sparse_bytes = 0;
        }
        if self.sparse_bytes < quantum.saturating_mul(SPARSE_QUANTA)
            && let Some(slot) = self.sparse.first()
        {
            return Some(slot);
        }
        let slot = self.bulk.first()?;
        let stream = &mut table[slot];
        if stream.deficit <= 0 {
            if stream.round == self.round {
                self.round = self.round.wrapping_add(1);
            }
            stream.round = self.round;
            stream.deficit = refilled(stream.deficit, quantum);
        }
        Some(slot)
    }

    /// Counts what the stream whose turn it is has sent.
    pub(super) fn charge(&mut self, table: &mut Table, slot: u32, bytes: i32) {
        let stream = &mut table[slot];
        stream.deficit = stream.deficit.saturating_sub(bytes);
        let over = stream.deficit <= 0;
        match stream.turn {
            Turn::None => return,
            Turn::Sparse => self.sparse_bytes = self.sparse_bytes.saturating_add(bytes),
            Turn::Bulk => self.sparse_bytes = 0,
        }
        if over {
            self.leave(table, slot);
            table[slot].turn = Turn::Bulk;
            self.bulk.push(table, slot);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sparse.is_empty() && self.bulk.is_empty()
    }
}

/// Positive, and never more than one quantum: what was not used in a round is lost.
fn refilled(deficit: i32, quantum: i32) -> i32 {
    deficit.saturating_add(quantum).clamp(1, quantum.max(1))
}

#[cfg(test)]
mod tests {
    use super::super::Token;
    use super::super::table::{Greeting, Stream};
    use super::*;

    const QUANTUM: i32 = 1000;

    struct World {
        table: Table,
        schedule: Schedule,
    }

    impl World {
        fn new(streams: u32) -> Self {
            let mut world = Self { table: Table::default(), schedule: Schedule::default() };
            for id in 0..streams {
                let slot = world.table.insert(Stream::new(id, Token(id), 1 << 20, Greeting::Done));
                world.ready(slot);
            }
            world
        }

        fn ready(&mut self, slot: u32) {
            self.table[slot].ready = true;
            self.schedule.join(&mut self.table, slot, QUANTUM);
        }

        fn send(&mut self, bytes: i32) -> u32 {
            let slot = self.schedule.next(&mut self.table, QUANTUM).expect("somebody waits");
            self.schedule.charge(&mut self.table, slot, bytes);
            slot
        }
    }

    #[test]
    fn bulk_streams_take_turns() {
        let mut world = World::new(3);

        let order: Vec<u32> = (0..9).map(|_| world.send(QUANTUM)).collect();

        assert_eq!(order, [0, 1, 2, 0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn turns_are_counted_in_bytes() {
        let mut world = World::new(2);
        let mut sent = [0; 2];

        for _ in 0..3000 {
            let slot = world.schedule.next(&mut world.table, QUANTUM).expect("both wait");
            let bytes = [1000, 100][slot as usize];
            world.schedule.charge(&mut world.table, slot, bytes);
            sent[slot as usize] += bytes;
        }

        assert!((sent[0] - sent[1]).abs() <= 2 * QUANTUM, "{sent:?}");
    }

    #[test]
    fn a_stream_below_its_share_goes_first_every_time() {
        let mut world = World::new(65);
        world.schedule.leave(&mut world.table, 64);
        for _ in 0..64 {
            world.send(QUANTUM);
        }

        for _ in 0..200 {
            for _ in 0..8 {
                assert_ne!(world.send(QUANTUM), 64);
            }
            world.ready(64);
            assert_eq!(world.send(13), 64);
            world.schedule.leave(&mut world.table, 64);
        }
    }

    #[test]
    fn a_stream_above_its_share_cannot_stay_in_front() {
        let mut world = World::new(3);
        let mut sent = [0; 3];

        for _ in 0..3000 {
            let slot = world.schedule.next(&mut world.table, QUANTUM).expect("somebody waits");
            world.schedule.charge(&mut world.table, slot, 500);
            sent[slot as usize] += 1;
            if slot == 0 {
                world.schedule.leave(&mut world.table, 0);
                world.ready(0);
            }
        }

        assert!(sent.iter().all(|&n| (980..=1020).contains(&n)), "{sent:?}");
    }

    #[test]
    fn a_flood_of_new_streams_does_not_halt_bulk() {
        let mut world = World::new(2000);
        for slot in 1..2000 {
            world.schedule.leave(&mut world.table, slot);
        }
        world.send(QUANTUM);
        for slot in 1..2000 {
            world.ready(slot);
        }

        let mut bulk = 0;
        for _ in 1..2000 {
            let slot = world.send(100);
            if slot == 0 {
                bulk += 1;
            } else {
                world.schedule.leave(&mut world.table, slot);
            }
        }

        assert!((10..=20).contains(&bulk), "{bulk}");
    }
}
