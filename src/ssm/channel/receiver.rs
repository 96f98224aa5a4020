//! Pure: the downstream half of a channel: puts messages in order and knows which were seen.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::Bytes;

use crate::ssm::message::PayloadType;

pub(super) struct Receiver {
    expected: i64,
    early: BTreeMap<i64, (PayloadType, Bytes)>,
    early_bytes: usize,
    limit: usize,
    gap_since: Option<Instant>,
    pub(super) duplicates: u64,
}

/// What becomes of an arrived message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// It is the expected one: process it, acknowledge it, then take what `next_early` gives.
    InOrder,
    /// It was kept, or seen before: acknowledge it.
    Acknowledge,
    /// There is no room to keep it.
    Full,
}

impl Receiver {
    pub(super) fn new(limit: usize) -> Self {
        Self { expected: 0, early: BTreeMap::new(), early_bytes: 0, limit, gap_since: None, duplicates: 0 }
    }

    pub(super) fn handle(
        &mut self,
        sequence: i64,
        payload_type: PayloadType,
        payload: &[u8],
        now: Instant,
    ) -> Arrival {
        if sequence == self.expected {
            self.expected += 1;
            self.gap_since = (!self.early.is_empty()).then_some(now);
            return Arrival::InOrder;
        }
        if sequence < self.expected || self.early.contains_key(&sequence) {
            self.duplicates += 1;
            return Arrival::Acknowledge;
        }
        if self.early_bytes + cost(payload) > self.limit {
            return Arrival::Full;
        }
        self.gap_since.get_or_insert(now);
        self.early_bytes += cost(payload);
        // A copy: the websocket's buffer, of which `payload` may be a small part, must not be held.
        self.early.insert(sequence, (payload_type, Bytes::copy_from_slice(payload)));
        Arrival::Acknowledge
    }

    /// The next kept message that is now in order.
    pub(super) fn next_early(&mut self) -> Option<(PayloadType, Bytes)> {
        let (payload_type, payload) = self.early.remove(&self.expected)?;
        self.expected += 1;
        self.early_bytes -= cost(&payload);
        if self.early.is_empty() {
            self.gap_since = None;
        }
        Some((payload_type, payload))
    }

    pub(super) fn early_bytes(&self) -> usize {
        self.early_bytes
    }

    /// Since when the oldest missing message holds up later ones.
    pub(super) fn gap_since(&self) -> Option<Instant> {
        self.gap_since
    }
}

fn cost(payload: &[u8]) -> usize {
    payload.len() + ENTRY_COST
}

/// What an entry takes beside its payload, roughly.
const ENTRY_COST: usize = 128;

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn shuffled_messages_come_out_in_order() {
        let mut receiver = Receiver::new(1 << 20);

        let out: Vec<_> =
            [2, 0, 4, 1, 3].into_iter().flat_map(|sequence| arrive(&mut receiver, sequence)).collect();

        assert_eq!(out, [0, 1, 2, 3, 4]);
        assert_eq!((receiver.early_bytes(), receiver.gap_since()), (0, None));
    }

    #[test]
    fn duplicates_are_acknowledged_and_counted() {
        let mut receiver = Receiver::new(1 << 20);
        arrive(&mut receiver, 0);
        arrive(&mut receiver, 2);
        for sequence in [0, 2] {
            assert_eq!(
                receiver.handle(sequence, PayloadType::OUTPUT, b"x", Instant::now()),
                Arrival::Acknowledge
            );
        }
        assert_eq!(receiver.duplicates, 2);
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_missing_message_still_gets_in() {
        let mut receiver = Receiver::new(3 * (1 + ENTRY_COST));
        (1..=3).for_each(|sequence| assert!(arrive(&mut receiver, sequence).is_empty()));

        assert_eq!(receiver.handle(4, PayloadType::OUTPUT, b"4", Instant::now()), Arrival::Full);
        assert_eq!(arrive(&mut receiver, 0), [0, 1, 2, 3]);
    }

    #[test]
    fn a_second_gap_counts_from_its_own_start() {
        let (mut receiver, start) = (Receiver::new(1 << 20), Instant::now());
        let later = start + std::time::Duration::from_secs(1);
        receiver.handle(1, PayloadType::OUTPUT, b"1", start);
        receiver.handle(3, PayloadType::OUTPUT, b"3", start);
        assert_eq!(receiver.gap_since(), Some(start));

        receiver.handle(0, PayloadType::OUTPUT, b"0", later);
        receiver.next_early();

        assert_eq!(receiver.gap_since(), Some(later));
    }

    fn arrive(receiver: &mut Receiver, sequence: i64) -> Vec<i64> {
        let payload = [sequence as u8];
        let arrival = receiver.handle(sequence, PayloadType::OUTPUT, &payload, Instant::now());
        let mut out = Vec::new();
        if arrival == Arrival::InOrder {
            out.push(sequence);
            out.extend(
                std::iter::from_fn(|| receiver.next_early()).map(|(_, payload)| i64::from(payload[0])),
            );
        }
        out
    }
}
