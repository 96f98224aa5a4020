//! Pure: the one table of flows: 5-tuple -> slot -> flow.
//!
//! A slot's number is the flow's public id. A flow keeps its slot until the owner of the stack knows that it
//! is gone, but its tuple only as long as packets may still belong to it, so a port can be used again at once.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use agent::wire::open::Kind;

/// The addresses and ports of a flow, as the application sees them. Of UDP the first target, which is no part of what
/// the flow is found by; of an echo the identifier as the source's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tuple {
    pub(super) kind: Kind,
    pub(super) source: SocketAddr,
    pub(super) target: SocketAddr,
}

/// A tuple as the table keeps it, in little more than half of its size. IPv4 addresses stand in the IPv4-mapped range,
/// which no IPv6 packet we take may use.
#[derive(Clone, Copy)]
struct Key {
    /// In words, since a `u128` would be aligned to 16 bytes.
    source: [u64; 2],
    target: [u64; 2],
    ports: [u16; 2],
    kind: Kind,
}

impl Key {
    fn of(tuple: &Tuple) -> Self {
        let Tuple { kind, source, target } = *tuple;
        Self {
            source: words(source.ip()),
            target: words(target.ip()),
            ports: [source.port(), target.port()],
            kind,
        }
    }

    fn tuple(&self) -> Tuple {
        let [source_port, target_port] = self.ports;
        let address = |[low, high]: [u64; 2]| {
            Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low)).to_canonical()
        };
        Tuple {
            kind: self.kind,
            source: SocketAddr::new(address(self.source), source_port),
            target: SocketAddr::new(address(self.target), target_port),
        }
    }

    /// What a flow is found by.
    fn name(&self) -> [u64; 5] {
        let [source_port, target_port] = self.ports.map(u64::from);
        let kind = self.kind as u64;
        let (target, target_port) =
            if self.kind == Kind::Udp { ([0; 2], 0) } else { (self.target, target_port) };
        [self.source[0], self.source[1], target[0], target[1], kind << 32 | source_port << 16 | target_port]
    }
}

fn words(address: IpAddr) -> [u64; 2] {
    let bits = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    };
    [bits as u64, (bits >> 64) as u64]
}

pub(super) struct FlowTable<F> {
    seed: Seed,
    /// The first slot of each chain of flows whose names have the same hash but for its high bits; a power of two of
    /// them. The flows themselves are the links, so that a flow is stored once and found at the cost of a word or two.
    chains: Vec<u32>,
    slots: Vec<Option<Entry<F>>>,
    free: Vec<u32>,
    mapped: usize,
    max: usize,
}

struct Entry<F> {
    key: Key,
    mapped: bool,
    /// The next slot of the chain, if it is mapped.
    next: u32,
    flow: F,
}

impl<F> FlowTable<F> {
    pub(super) fn new(max: usize, seed: u64) -> Self {
        Self {
            seed: Seed(seed),
            chains: vec![NONE; FEWEST_CHAINS],
            slots: Vec::new(),
            free: Vec::new(),
            mapped: 0,
            max: max.min(NONE as usize),
        }
    }

    /// The slot that packets of this tuple belong to.
    pub(super) fn find(&self, tuple: &Tuple) -> Option<u32> {
        let name = Key::of(tuple).name();
        let mut slot = self.chains[self.chain(&name)];
        while let Some(Some(entry)) = self.slots.get(slot as usize) {
            if entry.key.name() == name {
                return Some(slot);
            }
            slot = entry.next;
        }
        None
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
        self.slots[slot as usize] = Some(Entry { key: Key::of(&tuple), mapped: true, next: NONE, flow });
        self.mapped += 1;
        if self.mapped > self.chains.len() {
            self.chains = vec![NONE; 2 * self.chains.len()];
            (0..self.slots.len()).for_each(|slot| self.link(slot as u32));
        } else {
            self.link(slot);
        }
        slot
    }

    /// Lets the tuple go; the flow stays.
    pub(super) fn unmap(&mut self, slot: u32) {
        if !self.is_mapped(slot) {
            return;
        }
        let Some(Some(entry)) = self.slots.get_mut(slot as usize) else { return };
        entry.mapped = false;
        self.mapped -= 1;
        let (next, name) = (entry.next, entry.key.name());
        let chain = self.chain(&name);
        let mut before = self.chains[chain];
        if before == slot {
            self.chains[chain] = next;
        }
        while let Some(Some(entry)) = self.slots.get_mut(before as usize) {
            if entry.next == slot {
                entry.next = next;
                break;
            }
            before = entry.next;
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
        self.slots.get(slot as usize)?.as_ref().map(|entry| entry.key.tuple())
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
        let mapped = self.slots.iter().flatten().filter(|entry| entry.mapped).count();
        assert_eq!(self.mapped, mapped, "mapped flows are miscounted");
        assert!(self.mapped <= self.chains.len(), "chains are long");
        let full = self.slots.iter().flatten().count();
        assert_eq!(full, self.len(), "a free slot is occupied, or the reverse");
        let free: HashSet<u32> = self.free.iter().copied().collect();
        for (slot, entry) in self.slots.iter().enumerate() {
            let Some(entry) = entry else {
                assert!(free.contains(&(slot as u32)), "slot {slot} is lost");
                continue;
            };
            let found = self.find(&entry.key.tuple());
            assert!(!entry.mapped || found == Some(slot as u32), "slot {slot} is not where its tuple leads");
        }
    }

    /// Puts a mapped flow at the head of its chain.
    fn link(&mut self, slot: u32) {
        let Some(Some(Entry { key, mapped: true, .. })) = self.slots.get(slot as usize) else { return };
        let chain = self.chain(&key.name());
        let next = std::mem::replace(&mut self.chains[chain], slot);
        if let Some(entry) = &mut self.slots[slot as usize] {
            entry.next = next;
        }
    }

    fn chain(&self, name: &[u64]) -> usize {
        self.seed.hash(name) as usize & (self.chains.len() - 1)
    }
}

/// Of a hash of one folded multiplication per word: cheap, and every bit of the name reaches every bit of the result.
#[derive(Clone, Copy)]
struct Seed(u64);

impl Seed {
    fn hash(self, name: &[u64]) -> u64 {
        let fold = |hash: u64, word: &u64| folded(hash ^ word).wrapping_add(word.rotate_left(32));
        folded(name.iter().fold(self.0 ^ FACTOR, fold))
    }
}

fn folded(word: u64) -> u64 {
    let product = u128::from(word) * u128::from(FACTOR);
    product as u64 ^ (product >> 64) as u64
}

/// No slot: the table never grows so long.
const NONE: u32 = u32::MAX;
const FEWEST_CHAINS: usize = 64;
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
    fn flows_are_found_among_many_that_come_and_go() {
        let mut table = FlowTable::new(10_000, 7);
        let slots: Vec<_> = (1..5_000).map(|port| table.insert(tuple(port, 1), port)).collect();
        for (slot, port) in slots.iter().zip(1..).filter(|(_, port)| port % 3 == 0) {
            assert_eq!(table.remove(*slot), Some(port));
        }
        table.check_invariants();
        for (slot, port) in slots.iter().zip(1..) {
            assert_eq!(table.find(&tuple(port, 1)), (port % 3 != 0).then_some(*slot));
        }
    }

    #[test]
    fn a_tuple_comes_back_as_it_was_and_of_udp_only_the_source_counts() {
        let mut table = FlowTable::new(10, 1);
        let six = SocketAddr::new("2001:db8::7".parse().unwrap(), 5353);
        let four = SocketAddr::from(([192, 0, 2, 1], 53));
        for (source, target) in
            [(six, "[ff::1]:9".parse().unwrap()), (four, SocketAddr::from(([10, 0, 0, 1], 1)))]
        {
            let udp = Tuple { kind: Kind::Udp, source, target };
            let slot = table.insert(udp, ());
            assert_eq!(table.tuple(slot), Some(udp));
            assert_eq!(table.find(&Tuple { target: four, ..udp }), Some(slot));
            assert_eq!(table.find(&Tuple { kind: Kind::Tcp, ..udp }), None);
        }
        table.check_invariants();
    }

    #[test]
    fn flows_that_differ_in_one_field_spread_over_the_table() {
        for seed in 0..8 {
            let mut low = HashSet::new();
            let mut high = HashSet::new();
            for port in 0..4096u16 {
                let hash = Seed(seed).hash(&Key::of(&tuple(32_768 + port, 7)).name());
                low.insert(hash & 0xfff);
                high.insert(hash >> 52);
            }
            // 4,096 balls in 4,096 bins fill 63 % of them when thrown at random.
            assert!(low.len() > 2_400 && high.len() > 2_400, "seed {seed}: {} {}", low.len(), high.len());
        }
    }
}
