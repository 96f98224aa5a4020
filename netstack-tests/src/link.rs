//! Pure: one direction of a link in virtual time, with latency, loss, repeats and disorder from a seed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What a [`Link`] does to packets; the odds are out of 1,000.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub delay: Duration,
    pub lost: u32,
    pub repeated: u32,
    /// Packets that take up to `jitter` longer, and so may arrive behind later ones.
    pub late: u32,
    pub jitter: Duration,
}

pub struct Link {
    pub faults: Faults,
    random: Random,
    packets: BTreeMap<(Instant, u64), Vec<u8>>,
    sent: u64,
}

impl Link {
    pub fn new(faults: Faults, seed: u64) -> Self {
        Self { faults, random: Random::new(seed), packets: BTreeMap::new(), sent: 0 }
    }

    pub fn send(&mut self, packet: &[u8], now: Instant) {
        if self.random.odds(self.faults.lost) {
            return;
        }
        self.put(packet, now);
        if self.random.odds(self.faults.repeated) {
            self.put(packet, now);
        }
    }

    /// The next packet that has arrived.
    pub fn receive(&mut self, now: Instant) -> Option<Vec<u8>> {
        let (at, _) = self.next_key()?;
        if at > now {
            return None;
        }
        self.packets.pop_first().map(|(_, packet)| packet)
    }

    /// When the next packet arrives.
    pub fn next(&self) -> Option<Instant> {
        self.next_key().map(|(at, _)| at)
    }

    /// How many packets were handed in.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    fn next_key(&self) -> Option<(Instant, u64)> {
        self.packets.first_key_value().map(|(key, _)| *key)
    }

    fn put(&mut self, packet: &[u8], now: Instant) {
        let mut at = now + self.faults.delay;
        if self.random.odds(self.faults.late) {
            let most = u64::try_from(self.faults.jitter.as_micros()).unwrap_or(u64::MAX);
            at += Duration::from_micros(self.random.below(most.saturating_add(1)));
        }
        self.packets.insert((at, self.sent), packet.to_vec());
        self.sent += 1;
    }
}

/// Numbers from a seed (xorshift64*); the same seed gives the same run.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`; 0 when there is none.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { (self.word() >> 11) % bound }
    }

    pub fn odds(&mut self, of_thousand: u32) -> bool {
        of_thousand > 0 && self.below(1000) < u64::from(of_thousand)
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.word() as u8).collect()
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    fn run(faults: Faults, seed: u64) -> Vec<u8> {
        let start = Instant::now();
        let mut link = Link::new(faults, seed);
        for number in 0..200 {
            link.send(&[number], start + Duration::from_millis(number.into()));
        }
        let end = start + Duration::from_secs(10);
        std::iter::from_fn(|| link.receive(end)).map(|packet| packet[0]).collect()
    }

    #[test]
    fn a_perfect_link_keeps_all_in_order() {
        let all: Vec<u8> = (0..200).collect();
        assert_eq!(run(Faults::default(), 1), all);
    }

    #[test]
    fn faults_happen_and_repeat_from_their_seed() {
        let faults = Faults {
            lost: 100,
            repeated: 100,
            late: 200,
            jitter: Duration::from_millis(20),
            ..Faults::default()
        };
        let arrived = run(faults, 7);
        assert_eq!(arrived, run(faults, 7));
        assert_ne!(arrived, run(faults, 8));
        assert!(!arrived.is_sorted());
        assert!((0..200).any(|number| !arrived.contains(&number)));
        assert!((0..200).any(|number| arrived.iter().filter(|other| **other == number).count() == 2));
    }
}
