//! Lanes in virtual time: paced like the SSM agent or by a rate, with a buffer below, delay and faults.

use std::collections::VecDeque;

use super::Random;

/// One direction of a lane. Times are microseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Path {
    pub(super) pump: Pump,
    pub(super) delay: u64,
    pub(super) jitter: u64,
    /// Bytes that wait below the trunk before no more records are taken.
    pub(super) buffer: usize,
    /// The largest record.
    pub(super) record: usize,
    /// One record in so many is written twice; 0: none.
    pub(super) repeats: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Pump {
    /// 1,024 bytes at most, then a nap of 1.1 ms.
    Ssm,
    /// Bytes a second.
    Rate(u64),
}

impl Path {
    pub(super) const fn ssm_down(delay: u64) -> Self {
        Self { pump: Pump::Ssm, delay, jitter: 0, buffer: 64 << 10, record: 4096, repeats: 0 }
    }

    pub(super) const fn ssm_up(delay: u64, rate: u64) -> Self {
        Self { pump: Pump::Rate(rate), delay, jitter: 0, buffer: 4 << 20, record: 8192, repeats: 0 }
    }
}

/// What is under way in one direction.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) path: Path,
    waiting: VecDeque<Vec<u8>>,
    /// Of the first that waits, taken already.
    taken: usize,
    buffered: usize,
    free_at: u64,
    on_wire: VecDeque<(u64, Vec<u8>)>,
    last_at: u64,
    /// Nothing passes before.
    pub(super) stalled_until: u64,
    /// Everything is lost.
    pub(super) black: bool,
}

impl Pipe {
    pub(super) fn new(path: Path) -> Self {
        Self {
            path,
            waiting: VecDeque::new(),
            taken: 0,
            buffered: 0,
            free_at: 0,
            on_wire: VecDeque::new(),
            last_at: 0,
            stalled_until: 0,
            black: false,
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.buffered < self.path.buffer
    }

    pub(super) fn send(&mut self, record: &[u8], now: u64, random: &mut Random) {
        let times = if self.path.repeats > 0 && random.below(self.path.repeats) == 0 { 2 } else { 1 };
        for _ in 0..times {
            if self.buffered == 0 {
                self.free_at = self.free_at.max(now);
            }
            self.buffered += record.len();
            self.waiting.push_back(record.to_vec());
        }
    }

    /// Lets pass what is due; `true` when it has become ready for records.
    pub(super) fn serve(&mut self, now: u64, random: &mut Random) -> bool {
        let was_ready = self.is_ready();
        while self.buffered > 0 && self.starts_at() <= now {
            let start = self.starts_at();
            let (bytes, departs) = match self.path.pump {
                Pump::Ssm => {
                    self.free_at = start + 1_100;
                    (self.take(1024), start)
                }
                Pump::Rate(rate) => {
                    let bytes = self.take(usize::MAX);
                    self.free_at = start + (bytes.len() as u64 * 1_000_000).div_ceil(rate);
                    (bytes, self.free_at)
                }
            };
            let at = departs + self.path.delay + random.below(self.path.jitter + 1);
            self.last_at = self.last_at.max(at);
            if !self.black {
                self.on_wire.push_back((self.last_at, bytes));
            }
        }
        self.is_ready() && !was_ready
    }

    pub(super) fn arrived(&mut self, now: u64) -> Option<Vec<u8>> {
        self.on_wire.pop_front_if(|(at, _)| *at <= now && !self.black).map(|(_, bytes)| bytes)
    }

    /// A cut loses what is on the way from a random message on, which may arrive in part.
    pub(super) fn cut(&mut self, random: &mut Random) {
        self.waiting.clear();
        self.buffered = 0;
        self.on_wire.truncate(random.below(self.on_wire.len() as u64 + 1) as usize);
        if let Some((_, last)) = self.on_wire.back_mut() {
            last.truncate(random.below(last.len() as u64 + 1) as usize);
        }
        self.path.buffer = 0;
    }

    pub(super) fn next_at(&self) -> Option<u64> {
        let serve = (self.buffered > 0).then(|| self.starts_at());
        let arrive = self.on_wire.front().filter(|_| !self.black).map(|(at, _)| *at);
        serve.into_iter().chain(arrive).min()
    }

    fn starts_at(&self) -> u64 {
        self.free_at.max(self.stalled_until)
    }

    /// The next message: what is there, from as many records as it takes for SSM, else one record.
    fn take(&mut self, most: usize) -> Vec<u8> {
        if most == usize::MAX {
            let record = self.waiting.pop_front().unwrap_or_default();
            self.buffered -= record.len();
            return record;
        }
        let mut message = Vec::with_capacity(most);
        while message.len() < most
            && let Some(first) = self.waiting.front()
        {
            let rest = &first[self.taken..];
            let count = rest.len().min(most - message.len());
            message.extend_from_slice(&rest[..count]);
            self.taken += count;
            if self.taken == first.len() {
                self.waiting.pop_front();
                self.taken = 0;
            }
        }
        self.buffered -= message.len();
        message
    }
}
