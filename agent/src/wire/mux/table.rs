//! Pure: the streams of one mux, found by id in O(1), and queues threaded through them.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::{Index, IndexMut};

use super::Token;
use super::frame::Flags;
use super::window::Window;

/// No slot.
const NIL: u32 = u32::MAX;

/// Queues that a stream may stand in at the same time.
pub(super) const TURNS: usize = 0;
pub(super) const UPDATES: usize = 1;

/// The flag our first frame of a stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Greeting {
    Syn,
    Ack,
    Done,
}

/// Where a stream waits for its turn to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    None,
    Sparse,
    Bulk,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: u32,
    pub(super) token: Token,
    pub(super) window: Window,
    /// Bytes we may send.
    pub(super) credit: u32,
    /// Bytes it may send before its turn is over; below zero after a frame that was longer.
    pub(super) deficit: i32,
    /// The round in which the deficit was last filled.
    pub(super) round: u32,
    links: [Link; 2],
    pub(super) greeting: Greeting,
    pub(super) turn: Turn,
    pub(super) in_updates: bool,
    /// The owner has bytes, as far as known.
    pub(super) ready: bool,
    /// The owner gives no more bytes than it has.
    pub(super) finishing: bool,
    pub(super) fin_sent: bool,
    pub(super) fin_seen: bool,
}

impl Stream {
    pub(super) fn new(id: u32, token: Token, window: u32, greeting: Greeting) -> Self {
        Self {
            id,
            token,
            window: Window::new(window),
            credit: window,
            deficit: 0,
            round: 0,
            links: [Link::default(); 2],
            greeting,
            turn: Turn::None,
            in_updates: false,
            ready: false,
            finishing: false,
            fin_sent: false,
            fin_seen: false,
        }
    }

    /// Whether a data frame could be made, as far as the mux can know.
    pub(super) fn can_send(&self) -> bool {
        !self.fin_sent && if self.ready { self.credit > 0 } else { self.finishing }
    }

    /// The flag due on the next frame; it is due once.
    pub(super) fn greet(&mut self) -> Flags {
        match std::mem::replace(&mut self.greeting, Greeting::Done) {
            Greeting::Syn => Flags::SYN,
            Greeting::Ack => Flags::ACK,
            Greeting::Done => Flags::NONE,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Link {
    before: u32,
    after: u32,
}

impl Default for Link {
    fn default() -> Self {
        Self { before: NIL, after: NIL }
    }
}

/// Streams in slots; a slot's number is valid until `remove`.
#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Vec<Stream>,
    free: Vec<u32>,
    slot_by_id: HashMap<u32, u32, BuildHasherDefault<IdHasher>>,
}

impl Table {
    pub(super) fn insert(&mut self, stream: Stream) -> u32 {
        let id = stream.id;
        let slot = match self.free.pop() {
            Some(slot) => {
                self[slot] = stream;
                slot
            }
            None => {
                self.slots.push(stream);
                (self.slots.len() - 1) as u32
            }
        };
        self.slot_by_id.insert(id, slot);
        slot
    }

    /// Forgets a stream that stands in no queue.
    pub(super) fn remove(&mut self, slot: u32) {
        let id = self[slot].id;
        self.slot_by_id.remove(&id);
        self.free.push(slot);
    }

    pub(super) fn find(&self, id: u32) -> Option<u32> {
        self.slot_by_id.get(&id).copied()
    }

    pub(super) fn len(&self) -> usize {
        self.slot_by_id.len()
    }
}

impl Index<u32> for Table {
    type Output = Stream;

    fn index(&self, slot: u32) -> &Stream {
        &self.slots[slot as usize]
    }
}

impl IndexMut<u32> for Table {
    fn index_mut(&mut self, slot: u32) -> &mut Stream {
        &mut self.slots[slot as usize]
    }
}

/// A first-in first-out queue through the links `KIND` of the streams; whoever uses it knows who is in it.
#[derive(Debug)]
pub(super) struct Queue<const KIND: usize> {
    first: u32,
    last: u32,
}

impl<const KIND: usize> Default for Queue<KIND> {
    fn default() -> Self {
        Self { first: NIL, last: NIL }
    }
}

impl<const KIND: usize> Queue<KIND> {
    pub(super) fn push(&mut self, table: &mut Table, slot: u32) {
        table[slot].links[KIND] = Link { before: self.last, after: NIL };
        match self.last {
            NIL => self.first = slot,
            last => table[last].links[KIND].after = slot,
        }
        self.last = slot;
    }

    pub(super) fn remove(&mut self, table: &mut Table, slot: u32) {
        let Link { before, after } = table[slot].links[KIND];
        match before {
            NIL => self.first = after,
            before => table[before].links[KIND].after = after,
        }
        match after {
            NIL => self.last = before,
            after => table[after].links[KIND].before = before,
        }
    }

    pub(super) fn first(&self) -> Option<u32> {
        (self.first != NIL).then_some(self.first)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first == NIL
    }
}

/// One multiplication, both halves folded: ids are few bits that differ at the low end.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }

    fn write_u32(&mut self, id: u32) {
        let product = u128::from(self.0 ^ u64::from(id) ^ 0x2d35_8dcc_aa6c_78a5) * 0x8bb8_4b93_962e_acc9;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(streams: u32) -> Table {
        let mut table = Table::default();
        for id in 0..streams {
            table.insert(Stream::new(id, Token(id), 0, Greeting::Done));
        }
        table
    }

    fn drain(queue: &mut Queue<TURNS>, table: &mut Table) -> Vec<u32> {
        let mut order = Vec::new();
        while let Some(slot) = queue.first() {
            queue.remove(table, slot);
            order.push(slot);
        }
        order
    }

    #[test]
    fn leaving_a_queue_anywhere_keeps_the_order_of_the_others() {
        for leaver in 0..4 {
            let mut table = table(4);
            let mut queue = Queue::default();
            for slot in 0..4 {
                queue.push(&mut table, slot);
            }

            queue.remove(&mut table, leaver);

            let expected: Vec<u32> = (0..4).filter(|&slot| slot != leaver).collect();
            assert_eq!(drain(&mut queue, &mut table), expected);
            assert!(queue.is_empty());
        }
    }

    #[test]
    fn a_slot_is_used_again_and_the_old_id_is_unknown() {
        let mut table = table(2);

        table.remove(1);
        let slot = table.insert(Stream::new(7, Token(7), 0, Greeting::Done));

        assert_eq!(slot, 1);
        assert_eq!((table.find(1), table.find(7), table.len()), (None, Some(1), 2));
    }

    #[test]
    fn a_stream_is_small() {
        assert!(size_of::<Stream>() <= 96, "{} bytes", size_of::<Stream>());
    }
}
