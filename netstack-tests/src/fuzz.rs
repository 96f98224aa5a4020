//! Pure: what a hostile peer can reach, driven by bytes: parsers and state machines, with input good and bad in any
//! order.
//!
//! A run panics when what it drives breaks a rule of its own. The fuzz targets are these functions; `cargo test --test
//! fuzz` replays their corpus and many cases of its own ([`Target::random_case`]).
//!
//! An input is a first byte of settings and then steps: a byte that names the step, and its arguments. An input that
//! ends early reads as zeros.

pub mod handshake;
pub mod messages;
pub mod mux;
pub mod netstack;
pub mod ssm;
pub mod trunk;

use std::collections::BTreeSet;
use std::time::Instant;

use crate::link::Random;

/// What can be driven; each has its corpus in `fuzz/corpus` under this name.
pub const TARGETS: [Target; 6] = [
    Target { name: "handshake", run: handshake::run, steps: handshake::STEPS },
    Target { name: "messages", run: messages::run, steps: messages::STEPS },
    Target { name: "mux", run: mux::run, steps: mux::STEPS },
    Target { name: "netstack", run: netstack::run, steps: netstack::STEPS },
    Target { name: "ssm", run: ssm::run, steps: ssm::STEPS },
    Target { name: "trunk", run: trunk::run, steps: trunk::STEPS },
];

pub struct Target {
    pub name: &'static str,
    /// Plays an input. The time only names the beginning of virtual time.
    pub run: fn(&[u8], Instant) -> Sights,
    /// The steps of a random case, each as often as it shall come.
    steps: &'static [u8],
}

/// What a run came across; inputs that come across something new are worth keeping.
pub type Sights = BTreeSet<String>;

impl Target {
    /// An input of steps in which something comes about and lives for a while.
    pub fn random_case(&self, seed: u64) -> Vec<u8> {
        let mut random = Random::new(seed);
        let steps = 1 + random.below(120);
        let mut input = vec![random.word() as u8];
        for _ in 0..steps {
            input.push(self.steps[random.below(self.steps.len() as u64) as usize]);
            let arguments = random.below(10) as usize;
            // Small numbers are near what fits.
            input.extend(
                random.bytes(arguments).iter().map(|byte| if byte & 0x80 == 0 { byte & 7 } else { *byte }),
            );
        }
        input
    }
}

/// What is left of an input.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn short(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    fn long(&mut self) -> u32 {
        u32::from(self.short()) << 16 | u32::from(self.short())
    }

    fn take(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A number near zero, or any.
    fn near(&mut self) -> i64 {
        match self.byte() {
            far @ 0xf8.. => i64::from(self.long()) << (8 * u32::from(far & 3)),
            near => i64::from(near as i8),
        }
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.byte()) % of.len()]
    }
}

/// The byte at a place of a stream; neighbours and far places differ.
fn pattern(at: u32) -> u8 {
    (at.wrapping_mul(0x9e37_79b1) >> 24) as u8
}

/// The name of an enum's variant.
fn variant(what: &impl std::fmt::Debug) -> String {
    let text = format!("{what:?}");
    text.split(|char: char| !char.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

/// A frame of a lane with the right checksum, whatever its type and body.
fn lane_frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = (body.len() as u32).to_be_bytes();
    let head = [kind, length[0], length[1], length[2]];
    let sum = !head.iter().chain(body).fold(!0u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ ((sum & 1) * 0xedb8_8320))
    });
    [&head, &sum.to_be_bytes()[..], body].concat()
}
