//! Pure: the one table of flows: 5-tuple -> slot -> flow.
//!
//! A slot's number is the flow's public id. A flow keeps its slot until the owner of the stack knows that it
//! is gone, but its tuple only as long as packets may still belong to it, so a port can be used again at once.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use agent::wire::open::Kind;

/// The addresses and ports of a flow, as the application sees them. Of UDP the first target, which is no part of what
/// the flow is found by; of an echo the identifier as the source's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tuple {
    pub(super) kind: Kind,
    pub(super) source: SocketAddr,
    pub(super) target: SocketAddr,
}

impl Tuple {
    fn key(&self) -> Key {
        let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        let target = if self.kind == Kind::Udp { any } else { self.target };
        let ports = u64::from(self.source.port()) << 16 | u64::from(target.port());
        let rest = (self.kind as u64) << 32 | ports;
        Key { source: bits(self.source.ip()), target: bits(target.ip()), rest }
    }
}

/// IPv4 addresses stand in the IPv4-mapped range, which no IPv6 packet we take may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    source: [u64; 2],
    target: [u64; 2],
    /// Kind and ports.
    rest: u64,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for word in [self.source, self.target].as_flattened() {
            state.write_u64(*word);
        }
        state.write_u64(self.rest);
    }
}

/// In words, since a `u128` would be aligned to 16 bytes.
fn bits(address: IpAddr) -> [u64; 2] {
    let bits = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    };
    [bits as u64, (bits >> 64) as u64]
}

pub(super) struct FlowTable<F> {
    slot_by_key: HashMap<Key, u32, Seed>,
    slots: Vec<Option<Entry<F>>>,
    free: Vec<u32>,
    mapped: usize,
    max: usize,
}

struct Entry<F> {
    tuple: Tuple,
    mapped: bool,
    flow: F,
}

impl<F> FlowTable<F> {
    pub(super) fn new(max: usize, seed: u64) -> Self {
        let slot_by_key = HashMap::with_hasher(Seed(seed));
        Self { slot_by_key, slots: Vec::new(), free: Vec::new(), mapped: 0, max: max.min(u32::MAX as usize) }
    }

    /// The slot that packets of this tuple belong to.
    pub(super) fn find(&self, tuple: &Tuple) -> Option<u32> {
        self.slot_by_key.get(&tuple.key()).copied()
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= self.max
    }

    /// Adds a flow whose tuple leads nowhere yet; the table is not full.
    pub(super) fn insert(&mut self, tuple: Tuple, flow: F) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        self.slot_by_key.insert(tuple.key(), slot);
        self.slots[slot as usize] = Some(Entry { tuple, mapped: true, flow });
        self.mapped += 1;
        slot
    }

    /// Lets the tuple go; the flow stays.
    pub(super) fn unmap(&mut self, slot: u32) {
        if let Some(Some(entry)) = self.slots.get_mut(slot as usize)
            && entry.mapped
        {
            entry.mapped = false;
            self.mapped -= 1;
            self.slot_by_key.remove(&entry.tuple.key());
        }
    }

    pub(super) fn remove(&mut self, slot: u32) -> Option<F> {
        self.unmap(slot);
        let entry = self.slots.get_mut(slot as usize)?.take()?;
        self.free.push(slot);
        Some(entry.flow)
    }

    pub(super) fn get(&self, slot: u32) -> Option<&F> {
        self.slots.get(slot as usize)?.as_ref().map(|entry| &entry.flow)
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut F> {
        self.slots.get_mut(slot as usize)?.as_mut().map(|entry| &mut entry.flow)
    }

    pub(super) fn tuple(&self, slot: u32) -> Option<Tuple> {
        self.slots.get(slot as usize)?.as_ref().map(|entry| entry.tuple)
    }

    pub(super) fn is_mapped(&self, slot: u32) -> bool {
        matches!(self.slots.get(slot as usize), Some(Some(entry)) if entry.mapped)
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &F)> {
        self.slots.iter().zip(0..).filter_map(|(entry, slot)| Some((slot, &entry.as_ref()?.flow)))
    }

    /// Panics unless tuples, slots and free list agree.
    pub(super) fn check_invariants(&self) {
        assert!(self.len() <= self.max, "more flows than allowed");
        assert_eq!(self.mapped, self.slot_by_key.len(), "tuples and mapped flows differ in number");
        let full = self.slots.iter().flatten().count();
        assert_eq!(full, self.len(), "a free slot is occupied, or the reverse");
        let free: HashSet<u32> = self.free.iter().copied().collect();
        for (slot, entry) in self.slots.iter().enumerate() {
            let Some(entry) = entry else {
                assert!(free.contains(&(slot as u32)), "slot {slot} is lost");
                continue;
            };
            let found = self.find(&entry.tuple);
            assert!(!entry.mapped || found == Some(slot as u32), "slot {slot} is not where its tuple leads");
        }
    }
}

/// Seeds a hash of one folded multiplication per word: cheap, and every bit of the key reaches every bit
/// of the result.
#[derive(Clone, Copy)]
struct Seed(u64);

impl BuildHasher for Seed {
    type Hasher = Fold;

    fn build_hasher(&self) -> Fold {
        Fold(self.0 ^ FACTOR)
    }
}

struct Fold(u64);

impl Hasher for Fold {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * u128::from(FACTOR);
        self.0 = (product as u64 ^ (product >> 64) as u64).wrapping_add(word.rotate_left(32));
    }

    fn finish(&self) -> u64 {
        let product = u128::from(self.0) * u128::from(FACTOR);
        product as u64 ^ (product >> 64) as u64
    }
}

/// Odd, with about as many ones as zeros: the golden ratio in 64 bits.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(source_port: u16, host: u8) -> Tuple {
        Tuple {
            kind: Kind::Tcp,
            source: SocketAddr::from(([10, 99, 0, 1], source_port)),
            target: SocketAddr::from(([10, 0, 1, host], 443)),
        }
    }

    #[test]
    fn a_tuple_can_be_used_again_while_its_old_flow_lingers() {
        let mut table = FlowTable::new(10, 1);
        let old = table.insert(tuple(1000, 1), "old");
        table.unmap(old);
        assert_eq!(table.find(&tuple(1000, 1)), None);
        let new = table.insert(tuple(1000, 1), "new");
        table.check_invariants();
        assert_eq!(table.remove(old), Some("old"));
        assert_eq!(table.find(&tuple(1000, 1)), Some(new));
        assert_eq!(table.remove(old), None);
        table.check_invariants();
    }

    #[test]
    fn flows_that_differ_in_one_field_spread_over_the_table() {
        for seed in 0..8 {
            let mut low = HashSet::new();
            let mut high = HashSet::new();
            for port in 0..4096u16 {
                let hash = Seed(seed).hash_one(tuple(32_768 + port, 7).key());
                low.insert(hash & 0xfff);
                high.insert(hash >> 52);
            }
            // 4,096 balls in 4,096 bins fill 63 % of them when thrown at random.
            assert!(low.len() > 2_400 && high.len() > 2_400, "seed {seed}: {} {}", low.len(), high.len());
        }
    }
}
