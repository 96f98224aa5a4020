//! Pure: packs a flow's bytes into blocks ([`wire::blocks`](crate::wire::blocks)) and unpacks them.
//!
//! What is there when the mux asks becomes one block, so no byte waits for others: little goes plain, more is
//! packed. Where packing does not pay, a plain block announces a long run that is passed on untouched; the
//! runs grow each time another try fails, so bytes that cannot be packed cost next to nothing.
//!
//! Blocks do not refer to each other. A lane that is full fills blocks to 64 KiB, where that loses 1 to 4 %
//! against a stream with history, and a flow needs no memory of its own but for the block under way. The two
//! zstd contexts (0.4 MB) belong to the engine and are freed when it has no flows.

use std::time::{Duration, Instant};

use zstd_safe::{CCtx, CParameter, DCtx};

use crate::wire::blocks::{BLOCK, Block, BlockFault, HEAD, LONGEST};

/// What an engine needs to pack and unpack.
#[derive(Default)]
pub(super) struct Press {
    /// Only for what packing costs.
    clock: Option<fn() -> Instant>,
    tools: Option<Box<Tools>>,
    /// Packed bytes of all flows that the mux has not pulled.
    pub(super) waiting: usize,
    /// Bytes of all flows that their local ends have no room for, or that are not whole.
    pub(super) stored: usize,
}

struct Tools {
    packer: CCtx<'static>,
    unpacker: DCtx<'static>,
    plain: Box<[u8]>,
    packed: Box<[u8]>,
}

/// The blocks of one flow, both ways.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    pub(super) out: Packer,
    pub(super) back: Unpacker,
    /// What of [`Press::stored`] is this flow's.
    pub(super) stored: usize,
    pub(super) gain: Gain,
}

/// What packing a flow brought and cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gain {
    /// Bytes in the stream, for [`FlowReport::sent`](super::FlowReport) bytes of the flow.
    pub sent: u64,
    pub received: u64,
    /// Processor time spent here to pack and unpack.
    pub work: Duration,
}

/// One direction of a flow on its way into blocks.
#[derive(Debug, Default)]
pub(super) struct Packer {
    /// A block that the mux pulls.
    block: Vec<u8>,
    pulled: usize,
    /// How much of a plain block is still to come.
    plain_left: usize,
    misses: u32,
}

/// One direction of a flow on its way out of blocks.
#[derive(Debug, Default)]
pub(super) struct Unpacker {
    /// What has come of blocks that could not be passed on.
    pub(super) wire: Vec<u8>,
    plain_left: usize,
}

impl Press {
    pub(super) fn new(clock: fn() -> Instant) -> Self {
        Self { clock: Some(clock), ..Self::default() }
    }

    /// A flow is over.
    pub(super) fn let_go(&mut self, blocks: &Blocks) {
        self.waiting -= blocks.out.waiting();
        self.stored -= blocks.stored;
    }

    /// There is no flow now.
    pub(super) fn rest(&mut self) {
        self.tools = None;
    }

    #[cfg(test)]
    pub(super) fn is_at_rest(&self) -> bool {
        self.tools.is_none()
    }

    /// `None` when there is no memory.
    fn tools(&mut self) -> Option<&mut Tools> {
        if self.tools.is_none() {
            self.tools = Tools::new();
        }
        self.tools.as_deref_mut()
    }
}

impl Tools {
    fn new() -> Option<Box<Self>> {
        let mut packer = CCtx::try_create()?;
        for parameter in [CParameter::CompressionLevel(LEVEL), CParameter::WindowLog(WINDOW_LOG)] {
            packer.set_parameter(parameter).ok()?;
        }
        let unpacker = DCtx::try_create()?;
        let [plain, packed] = [(); 2].map(|()| vec![0; BLOCK].into_boxed_slice());
        Some(Box::new(Self { packer, unpacker, plain, packed }))
    }

    /// Packs the first bytes of `plain`; `None` when that does not pay.
    fn pack(&mut self, length: usize) -> Option<&[u8]> {
        let most = length - length / LEAST_GAIN;
        let packed = self.packer.compress2(&mut self.packed[..most], &self.plain[..length]).ok()?;
        Some(&self.packed[..packed])
    }

    fn unpack(&mut self, packed: &[u8]) -> Result<&[u8], BlockFault> {
        match self.unpacker.decompress(&mut self.plain[..], packed) {
            Ok(0) | Err(_) => Err(BlockFault::Content),
            Ok(length) => Ok(&self.plain[..length]),
        }
    }
}

impl Packer {
    /// As [`Streams::pull`](crate::wire::mux::Streams::pull), from what `read` gives; that is asked until it
    /// gives 0.
    pub(super) fn pull(
        &mut self,
        buf: &mut [u8],
        press: &mut Press,
        work: &mut Duration,
        mut read: impl FnMut(&mut [u8]) -> usize,
    ) -> usize {
        if self.block.is_empty() && self.plain_left == 0 {
            self.begin(press, work, &mut read);
        }
        if self.block.is_empty() {
            let most = buf.len().min(self.plain_left);
            let read = read(&mut buf[..most]);
            self.plain_left -= read;
            return read;
        }
        let rest = &self.block[self.pulled..];
        let count = rest.len().min(buf.len());
        buf[..count].copy_from_slice(&rest[..count]);
        self.pulled += count;
        press.waiting -= count;
        if self.pulled == self.block.len() {
            self.block = Vec::new();
            self.pulled = 0;
        }
        count
    }

    /// Bytes of a block that the mux has not pulled.
    pub(super) fn waiting(&self) -> usize {
        self.block.len() - self.pulled
    }

    /// Makes a block of what is there now, if anything is.
    fn begin(&mut self, press: &mut Press, work: &mut Duration, read: &mut impl FnMut(&mut [u8]) -> usize) {
        let mut first = [0; LEAST];
        let length = fill(&mut first, read);
        let (clock, is_full) = (press.clock, press.waiting >= MOST_WAITING);
        let tools = if length < LEAST || is_full { None } else { press.tools() };
        let Some(tools) = tools else {
            if length > 0 {
                let run = if length < LEAST { SHORT_RUN } else { BLOCK };
                self.plain_left = run - length;
                self.block = [&Block::Plain(run).encode(), &first[..length]].concat();
                press.waiting += self.block.len();
            }
            return;
        };
        tools.plain[..LEAST].copy_from_slice(&first);
        let length = LEAST + fill(&mut tools.plain[LEAST..], read);
        let packed = timed(clock, work, || tools.pack(length).map(<[u8]>::len));
        let (head, body) = match packed {
            Some(packed) => {
                self.misses = 0;
                (Block::Packed(packed), &tools.packed[..packed])
            }
            None => {
                let run = self.miss(length);
                self.plain_left = run - length;
                (Block::Plain(run), &tools.plain[..length])
            }
        };
        self.block = [&head.encode(), body].concat();
        press.waiting += self.block.len();
    }

    /// How long to leave packing alone after a try with `length` bytes that did not pay.
    fn miss(&mut self, length: usize) -> usize {
        let run = (length * RUN) << self.misses;
        self.misses = (self.misses + 1).min(MOST_MISSES);
        run.min(LONGEST)
    }
}

impl Unpacker {
    /// Takes blocks off `input` as far as they are whole and `pass` gives true, which gets the flow's bytes.
    pub(super) fn unpack(
        &mut self,
        input: &mut &[u8],
        press: &mut Press,
        work: &mut Duration,
        mut pass: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), BlockFault> {
        let mut wanted = true;
        while wanted && !input.is_empty() {
            if self.plain_left > 0 {
                let (plain, rest) = input.split_at(input.len().min(self.plain_left));
                self.plain_left -= plain.len();
                *input = rest;
                wanted = pass(plain);
                continue;
            }
            match Block::decode(input)? {
                None => return Ok(()),
                Some(Block::Plain(length)) => {
                    self.plain_left = length;
                    *input = &input[HEAD..];
                }
                Some(Block::Packed(length)) => {
                    let Some((packed, rest)) = input[HEAD..].split_at_checked(length) else { return Ok(()) };
                    *input = rest;
                    let clock = press.clock;
                    let tools = press.tools().ok_or(BlockFault::Content)?;
                    let plain = timed(clock, work, || tools.unpack(packed))?;
                    wanted = pass(plain);
                }
            }
        }
        Ok(())
    }
}

/// Reads until `buf` is full or nothing more is there.
fn fill(buf: &mut [u8], read: &mut impl FnMut(&mut [u8]) -> usize) -> usize {
    let mut length = 0;
    while length < buf.len() {
        let read = read(&mut buf[length..]);
        if read == 0 {
            break;
        }
        length += read;
    }
    length
}

fn timed<T>(clock: Option<fn() -> Instant>, work: &mut Duration, job: impl FnOnce() -> T) -> T {
    let began = clock.map(|clock| clock());
    let done = job();
    if let (Some(began), Some(clock)) = (began, clock) {
        *work += clock().saturating_duration_since(began);
    }
    done
}

const LEVEL: i32 = 1;
/// A block has no more to refer to.
const WINDOW_LOG: u32 = BLOCK.ilog2();
/// Fewer bytes than this are not worth a try: keystrokes, questions, short answers.
const LEAST: usize = 512;
/// A plain block that begins with fewer, so that each of them needs no head of its own.
const SHORT_RUN: usize = 4 << 10;
/// Packing pays when it saves one byte of so many.
const LEAST_GAIN: usize = 8;
/// Bytes passed untouched for each byte packed in vain.
const RUN: usize = 16;
/// How often runs double.
const MOST_MISSES: u32 = 8;
/// While so many packed bytes wait for credit, no more are packed ahead.
const MOST_WAITING: usize = 16 << 20;
/// While so many bytes are stored, a flow that needs more is reset.
pub(super) const MOST_STORED: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// `parts` are what the source has each time it is asked, cut by pulls and pushes of any size.
        #[test]
        fn any_bytes_cut_anywhere_come_back_equal(
            parts in prop::collection::vec((0usize..90_000, 0u8..4), 0..12),
            pulls in prop::collection::vec(1usize..20_000, 1..8),
        ) {
            let mut parts: VecDeque<Vec<u8>> =
                parts.into_iter().enumerate().map(|(at, (length, kind))| bytes(at as u64, length, kind)).collect();
            let sent: Vec<u8> = parts.iter().flatten().copied().collect();
            let (mut press, mut blocks, mut got) = (Press::default(), Blocks::default(), Vec::new());
            let mut pulls = pulls.into_iter().cycle();
            while !parts.is_empty() || blocks.out.waiting() > 0 {
                let mut source = parts.pop_front().unwrap_or_default();
                while let Some(piece) = pull(&mut blocks, &mut press, &mut source, pulls.next().unwrap_or(1)) {
                    push(&mut blocks, &mut press, &piece, &mut got).unwrap();
                }
                // What is there is sent at once, to the last byte.
                prop_assert!(source.is_empty() && blocks.back.wire.is_empty());
            }
            prop_assert!(got == sent);
            prop_assert_eq!(press.waiting, 0);
        }

        #[test]
        fn garbage_never_panics_and_brings_at_most_a_block(mut wire in prop::collection::vec(any::<u8>(), 0..300)) {
            let (mut press, mut blocks, mut got) = (Press::default(), Blocks::default(), Vec::new());
            let _ = push(&mut blocks, &mut press, &wire, &mut got);
            if let Some(kind) = wire.first_mut() {
                *kind = 1;
                let _ = push(&mut Blocks::default(), &mut press, &wire, &mut got);
            }
            prop_assert!(got.len() <= 2 * BLOCK);
        }
    }

    #[test]
    fn a_bomb_is_refused() {
        for (length, fits) in [(BLOCK, true), (BLOCK + 1, false), (50 << 20, false)] {
            let mut packed = vec![0; 1 << 20];
            let count = zstd_safe::compress(&mut packed[..], &vec![0; length], 1).unwrap();
            packed.truncate(count);
            let wire = [&Block::Packed(packed.len()).encode()[..], &packed].concat();
            let mut got = Vec::new();

            let taken = push(&mut Blocks::default(), &mut Press::default(), &wire, &mut got);

            assert_eq!(taken, if fits { Ok(()) } else { Err(BlockFault::Content) }, "{length}");
            assert_eq!(got.len(), if fits { length } else { 0 });
        }
    }

    #[test]
    fn packing_is_given_up_within_64_kib_and_costs_next_to_nothing_from_then_on() {
        let (mut press, mut blocks) = (Press::default(), Blocks::default());
        let mut source = bytes(1, 64 << 20, 3);
        let (all, mut sent) = (source.len(), 0);
        let mut tries = Vec::new();
        while !source.is_empty() {
            let misses = blocks.out.misses;
            let piece = pull(&mut blocks, &mut press, &mut source, 16 << 10).expect("there is more");
            if blocks.out.misses != misses {
                tries.push(sent);
            }
            sent += piece.len();
        }
        assert!(sent - all <= HEAD * tries.len(), "{} bytes of overhead", sent - all);
        assert_eq!(tries[0], 0);
        assert!(tries[1] >= RUN * BLOCK && tries.len() <= 8, "tries at {tries:?}");
    }

    #[test]
    fn a_byte_goes_at_once_and_needs_no_context() {
        let (mut press, mut blocks) = (Press::default(), Blocks::default());
        let first = pull(&mut blocks, &mut press, &mut vec![b'x'], 1000);
        assert_eq!(first, Some([&Block::Plain(SHORT_RUN).encode()[..], b"x"].concat()));
        assert_eq!(pull(&mut blocks, &mut press, &mut vec![b'y'], 1000), Some(b"y".to_vec()));
        assert!(press.is_at_rest());
    }

    #[test]
    fn a_flow_keeps_little_and_the_contexts_are_small() {
        assert!(size_of::<Blocks>() <= 144, "{} bytes for each flow", size_of::<Blocks>());
        let (mut press, mut blocks, mut got) = (Press::default(), Blocks::default(), Vec::new());
        let mut source = bytes(1, 1 << 20, 0);
        while let Some(piece) = pull(&mut blocks, &mut press, &mut source, 5_000) {
            push(&mut blocks, &mut press, &piece, &mut got).unwrap();
        }
        let tools = press.tools.as_ref().unwrap();
        let size = tools.packer.sizeof() + tools.unpacker.sizeof() + 2 * BLOCK;
        assert!(size < 600_000, "{size} bytes for each engine");
        assert_eq!(blocks.out.block.capacity() + blocks.back.wire.capacity(), 0);
    }

    #[test]
    fn bytes_are_not_packed_ahead_of_credit_without_bound() {
        let mut press = Press { waiting: MOST_WAITING, ..Press::default() };
        let mut blocks = Blocks::default();
        let mut source = bytes(1, 100_000, 0);
        let mut got = Vec::new();
        while let Some(piece) = pull(&mut blocks, &mut press, &mut source, 5_000) {
            push(&mut blocks, &mut press, &piece, &mut got).unwrap();
        }
        assert_eq!(got, bytes(1, 100_000, 0));
        assert!(press.waiting <= MOST_WAITING + LEAST + HEAD);
    }

    /// Text, zeros, text with holes of noise, or noise.
    fn bytes(seed: u64, length: usize, kind: u8) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut noise = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..length)
            .map(|at| match kind {
                0 => b"INSERT INTO orders VALUES (0123456789);\n"[at % 40] ^ u8::from(noise() < 8),
                1 => 0,
                2 if at / 5_000 % 2 == 0 => b'a',
                _ => noise(),
            })
            .collect()
    }

    fn pull(blocks: &mut Blocks, press: &mut Press, source: &mut Vec<u8>, most: usize) -> Option<Vec<u8>> {
        let mut buf = vec![0; most];
        let mut at = 0;
        let length = blocks.pull(&mut buf, press, |buf| {
            let count = buf.len().min(source.len() - at);
            buf[..count].copy_from_slice(&source[at..at + count]);
            at += count;
            count
        });
        source.drain(..at);
        buf.truncate(length);
        (length > 0).then_some(buf)
    }

    fn push(
        blocks: &mut Blocks,
        press: &mut Press,
        piece: &[u8],
        got: &mut Vec<u8>,
    ) -> Result<(), BlockFault> {
        let mut wire = std::mem::take(&mut blocks.back.wire);
        wire.extend_from_slice(piece);
        let mut input = &wire[..];
        blocks.back.unpack(&mut input, press, &mut Duration::ZERO.clone(), |plain| {
            got.extend_from_slice(plain);
            true
        })?;
        blocks.back.wire = input.to_vec();
        Ok(())
    }
}
