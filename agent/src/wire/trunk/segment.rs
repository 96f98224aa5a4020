//! Pure: the frames on a lane.
//!
//! Every frame is self-delimiting, bounded and checksummed, and harmless when repeated: the SSM agent
//! may write a whole message, and with it whole frames, twice. All integers are big-endian.
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 1 | type |
//! | 1 | 3 | length of the body, at most 64 KiB + 64 |
//! | 4 | 4 | CRC-32 (IEEE) over type, length and body |
//! | 8 | length | body |
//!
//! | type | name | body |
//! |---|---|---|
//! | 0x01 | segment | `offset u64`, `sequence u32` (its number on this lane, from 1), 1 to 65,536 bytes of the trunk |
//! | 0x02 | ack | `cum u64` (all bytes below it have arrived), `credit u64` (highest offset taken, absolute), `sequence u32` (highest segment number that arrived on this lane, 0 for none), `arrived u32` (when it did: microseconds of the receiver's own clock, the same for all lanes, wrapping), `wanted u8` (how many lanes would be of use to what the sender of the ack has to send; 0 for no opinion) |
//! | 0x03 | ping | `id u64` |
//! | 0x04 | pong | `id u64` of the ping |
//! | 0x05 | goodbye | `reason u8`, UTF-8 text of at most 256 bytes |
//! | 0x06 | retire | nothing. Nothing new is put on this lane by either side; said back once all that the sayer put on it was acknowledged |
//! | 0xf0 | greeting | see [`hello`](crate::wire::hello) |
//! | 0xf1 | hello | see [`hello`](crate::wire::hello) |
//! | 0xf2 | welcome | see [`hello`](crate::wire::hello) |
//! | 0xf3 | deny | `reason u8`, UTF-8 text of at most 512 bytes |
//!
//! The types of the handshake are no ASCII, so the first byte tells a foreign service.
//!
//! Example: a segment with `abc` at offset 65,536, the seventh of its lane, then its ack with a credit
//! of 4 MiB beyond it, 1.5 seconds after the receiver's clock began, by a peer that could use three lanes:
//!
//! ```text
//! 01 00000f 3b70e55a 0000000000010000 00000007 616263
//! 02 000019 250a6d9a 0000000000010003 0000000000410003 00000007 0016e360 03
//! ```

use std::fmt;

/// Bytes before the body of a frame.
pub const HEADER: usize = 8;
/// The most trunk bytes in one segment.
pub const MAX_SEGMENT: usize = 64 * 1024;
/// The longest body a frame may announce.
pub const MAX_BODY: usize = MAX_SEGMENT + 64;
/// What a segment costs beyond its bytes.
pub const SEGMENT_OVERHEAD: usize = HEADER + SEGMENT_HEAD;
/// The longest text of a goodbye.
pub const MAX_GOODBYE: usize = 256;
/// The longest text of a denial.
pub const MAX_DENY: usize = 512;
/// The longest body of a greeting, hello or welcome.
pub const MAX_HANDSHAKE: usize = 640;

/// One frame; bodies of the handshake are read by [`hello`](crate::wire::hello).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    Segment { offset: u64, sequence: u32, bytes: &'a [u8] },
    Ack { cum: u64, credit: u64, sequence: u32, arrived: u32, wanted: u8 },
    Ping { id: u64 },
    Pong { id: u64 },
    Goodbye { reason: u8, text: &'a str },
    Retire,
    Greeting(&'a [u8]),
    Hello(&'a [u8]),
    Welcome(&'a [u8]),
    Deny { reason: u8, text: &'a str },
}

/// The first byte of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Type {
    Segment = 0x01,
    Ack = 0x02,
    Ping = 0x03,
    Pong = 0x04,
    Goodbye = 0x05,
    Retire = 0x06,
    Greeting = 0xf0,
    Hello = 0xf1,
    Welcome = 0xf2,
    Deny = 0xf3,
}

/// The peer sent what is no frame of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameFault {
    Type(u8),
    Length {
        kind: Type,
        length: usize,
    },
    /// The bytes were changed on the way, or a frame was torn.
    Checksum(Type),
    /// An offset beyond any that can be reached.
    Offset(u64),
    Text(Type),
}

/// Finds frames in bytes that are cut anywhere.
///
/// Frames that lie whole in the input are not copied; one that is cut waits here, at most one.
#[derive(Default)]
pub struct Parser {
    cut: Vec<u8>,
    taken: bool,
}

impl Parser {
    /// The next frame of `input`, which is moved behind it; `None` when the rest is only part of a frame.
    ///
    /// After a fault nothing that follows can be trusted; the lane is to be closed.
    pub fn next_frame<'s, 'i: 's>(
        &'s mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<Frame<'s>>, FrameFault> {
        if self.taken {
            self.cut.clear();
            self.taken = false;
        }
        if self.cut.is_empty()
            && let Some(length) = frame_length(input)?
            && let Some((frame, rest)) = input.split_at_checked(length)
        {
            *input = rest;
            return decode(frame).map(Some);
        }
        loop {
            let length = frame_length(&self.cut)?;
            let missing = length.unwrap_or(TYPE_AND_LENGTH) - self.cut.len();
            let (bytes, rest) = input.split_at(missing.min(input.len()));
            self.cut.reserve_exact(missing);
            self.cut.extend_from_slice(bytes);
            *input = rest;
            if bytes.len() < missing {
                return frame_length(&self.cut).map(|_| None);
            }
            if length.is_some() {
                self.taken = true;
                return decode(&self.cut).map(Some);
            }
        }
    }

    /// Bytes of a cut frame that wait for the rest.
    pub fn waiting(&self) -> usize {
        if self.taken { 0 } else { self.cut.len() }
    }
}

impl Frame<'_> {
    /// Appends the frame; texts are shortened to what the format takes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Segment { offset, sequence, bytes } => {
                encode_segment_head(out, offset, sequence, bytes);
                out.extend_from_slice(bytes);
            }
            Self::Ack { cum, credit, sequence, arrived, wanted } => put(out, Type::Ack, |out| {
                out.extend_from_slice(&cum.to_be_bytes());
                out.extend_from_slice(&credit.to_be_bytes());
                out.extend_from_slice(&sequence.to_be_bytes());
                out.extend_from_slice(&arrived.to_be_bytes());
                out.push(wanted);
            }),
            Self::Retire => put(out, Type::Retire, |_| {}),
            Self::Ping { id } => put(out, Type::Ping, |out| out.extend_from_slice(&id.to_be_bytes())),
            Self::Pong { id } => put(out, Type::Pong, |out| out.extend_from_slice(&id.to_be_bytes())),
            Self::Goodbye { reason, text } => put_text(out, Type::Goodbye, reason, text, MAX_GOODBYE),
            Self::Greeting(body) => put(out, Type::Greeting, |out| out.extend_from_slice(body)),
            Self::Hello(body) => put(out, Type::Hello, |out| out.extend_from_slice(body)),
            Self::Welcome(body) => put(out, Type::Welcome, |out| out.extend_from_slice(body)),
            Self::Deny { reason, text } => put_text(out, Type::Deny, reason, text, MAX_DENY),
        }
    }
}

/// Appends what goes before the bytes of a segment, which are 1 to [`MAX_SEGMENT`].
pub fn encode_segment_head(out: &mut Vec<u8>, offset: u64, sequence: u32, bytes: &[u8]) {
    put_before(out, Type::Segment, bytes, |out| {
        out.extend_from_slice(&offset.to_be_bytes());
        out.extend_from_slice(&sequence.to_be_bytes());
    });
}

/// How long the frame at the start of `input` is, header included; `None` when too little of it is there.
fn frame_length(input: &[u8]) -> Result<Option<usize>, FrameFault> {
    let Some(&kind) = input.first() else { return Ok(None) };
    let kind = Type::try_from(kind).map_err(FrameFault::Type)?;
    let Some(&[_, a, b, c]) = input.first_chunk::<TYPE_AND_LENGTH>() else { return Ok(None) };
    let length = u32::from_be_bytes([0, a, b, c]) as usize;
    let (least, most) = kind.bounds();
    if length < least || length > most {
        return Err(FrameFault::Length { kind, length });
    }
    Ok(Some(HEADER + length))
}

/// Reads one frame that is there as a whole.
fn decode(frame: &[u8]) -> Result<Frame<'_>, FrameFault> {
    let Some((&[kind, a, b, c, sum @ ..], body)) = frame.split_first_chunk::<HEADER>() else {
        return Err(FrameFault::Type(0));
    };
    let kind = Type::try_from(kind).map_err(FrameFault::Type)?;
    if checksum([kind as u8, a, b, c], body, &[]) != u32::from_be_bytes(sum) {
        return Err(FrameFault::Checksum(kind));
    }
    let short = FrameFault::Length { kind, length: body.len() };
    let mut fields = Fields(body);
    let frame = match kind {
        Type::Segment => {
            let offset = fields.u64().ok_or(short)?;
            let sequence = fields.u32().ok_or(short)?;
            if offset > LAST_OFFSET {
                return Err(FrameFault::Offset(offset));
            }
            Frame::Segment { offset, sequence, bytes: fields.0 }
        }
        Type::Ack => Frame::Ack {
            cum: fields.u64().ok_or(short)?,
            credit: fields.u64().ok_or(short)?,
            sequence: fields.u32().ok_or(short)?,
            arrived: fields.u32().ok_or(short)?,
            wanted: fields.u8().ok_or(short)?,
        },
        Type::Retire => Frame::Retire,
        Type::Ping => Frame::Ping { id: fields.u64().ok_or(short)? },
        Type::Pong => Frame::Pong { id: fields.u64().ok_or(short)? },
        Type::Greeting => Frame::Greeting(body),
        Type::Hello => Frame::Hello(body),
        Type::Welcome => Frame::Welcome(body),
        Type::Goodbye | Type::Deny => {
            let reason = fields.u8().ok_or(short)?;
            let text = str::from_utf8(fields.0).map_err(|_| FrameFault::Text(kind))?;
            if kind == Type::Deny { Frame::Deny { reason, text } } else { Frame::Goodbye { reason, text } }
        }
    };
    Ok(frame)
}

fn put(out: &mut Vec<u8>, kind: Type, body: impl FnOnce(&mut Vec<u8>)) {
    put_before(out, kind, &[], body);
}

/// Appends a frame but for the last bytes of its body, `rest`.
fn put_before(out: &mut Vec<u8>, kind: Type, rest: &[u8], body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER]);
    body(out);
    let length = (out.len() - start - HEADER + rest.len()) as u32;
    let [_, a, b, c] = length.to_be_bytes();
    let head = [kind as u8, a, b, c];
    let sum = checksum(head, &out[start + HEADER..], rest);
    out[start..start + TYPE_AND_LENGTH].copy_from_slice(&head);
    out[start + TYPE_AND_LENGTH..start + HEADER].copy_from_slice(&sum.to_be_bytes());
}

fn put_text(out: &mut Vec<u8>, kind: Type, reason: u8, text: &str, most: usize) {
    put(out, kind, |out| {
        out.push(reason);
        out.extend_from_slice(&text.as_bytes()[..text.floor_char_boundary(most)]);
    });
}

fn checksum(head: [u8; TYPE_AND_LENGTH], body: &[u8], rest: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&head);
    sum.update(body);
    sum.update(rest);
    sum.finalize()
}

/// Reads fixed fields off the front of a body.
pub(in crate::wire) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub(in crate::wire) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    pub(in crate::wire) fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (field, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(field)
    }

    pub(in crate::wire) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    pub(in crate::wire) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(in crate::wire) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(in crate::wire) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
}

impl Type {
    /// Least and most bytes of the body.
    const fn bounds(self) -> (usize, usize) {
        match self {
            Self::Segment => (SEGMENT_HEAD + 1, SEGMENT_HEAD + MAX_SEGMENT),
            Self::Ack => (25, 25),
            Self::Retire => (0, 0),
            Self::Ping | Self::Pong => (8, 8),
            Self::Goodbye => (1, 1 + MAX_GOODBYE),
            Self::Greeting | Self::Hello | Self::Welcome => (1, MAX_HANDSHAKE),
            Self::Deny => (1, 1 + MAX_DENY),
        }
    }
}

impl TryFrom<u8> for Type {
    type Error = u8;

    fn try_from(kind: u8) -> Result<Self, u8> {
        Ok(match kind {
            0x01 => Self::Segment,
            0x02 => Self::Ack,
            0x03 => Self::Ping,
            0x04 => Self::Pong,
            0x05 => Self::Goodbye,
            0x06 => Self::Retire,
            0xf0 => Self::Greeting,
            0xf1 => Self::Hello,
            0xf2 => Self::Welcome,
            0xf3 => Self::Deny,
            other => return Err(other),
        })
    }
}

impl fmt::Display for FrameFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Type(kind) => write!(f, "0x{kind:02x} begins no frame"),
            Self::Length { kind, length } => {
                write!(f, "a frame of type {kind:?} cannot have {length} bytes")
            }
            Self::Checksum(kind) => write!(f, "the checksum of a frame of type {kind:?} is wrong"),
            Self::Offset(offset) => write!(f, "a segment begins at the absurd offset {offset}"),
            Self::Text(kind) => write!(f, "the text of a frame of type {kind:?} is no UTF-8"),
        }
    }
}

impl std::error::Error for FrameFault {}

const TYPE_AND_LENGTH: usize = 4;
const SEGMENT_HEAD: usize = 12;
/// No trunk carries an exabyte; keeps sums of offsets and lengths far from overflow.
const LAST_OFFSET: u64 = 1 << 60;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: &str = "01 00000f 3b70e55a 0000000000010000 00000007 616263
        02 000019 250a6d9a 0000000000010003 0000000000410003 00000007 0016e360 03";

    #[test]
    fn example_of_the_doc_decodes_and_encodes() {
        let wire = hex(EXAMPLE);
        let segment = Frame::Segment { offset: 65_536, sequence: 7, bytes: b"abc" };
        let ack = Frame::Ack {
            cum: 65_539,
            credit: 65_539 + (4 << 20),
            sequence: 7,
            arrived: 1_500_000,
            wanted: 3,
        };

        let mut out = Vec::new();
        segment.encode(&mut out);
        ack.encode(&mut out);
        assert_eq!(out, wire);

        let mut input = wire.as_slice();
        let mut parser = Parser::default();
        assert_eq!(parser.next_frame(&mut input), Ok(Some(segment)));
        assert_eq!(parser.next_frame(&mut input), Ok(Some(ack)));
        assert_eq!(parser.next_frame(&mut input), Ok(None));
    }

    #[test]
    fn every_type_has_its_fixture() {
        let fixtures: [(Frame<'_>, &str); 8] = [
            (Frame::Ping { id: 1 }, "03000008 c0948611 0000000000000001"),
            (Frame::Pong { id: 1 }, "04000008 b40c6f9e 0000000000000001"),
            (Frame::Goodbye { reason: 2, text: "bye" }, "05000004 fa3df760 02 627965"),
            (Frame::Retire, "06000000 042f80c0"),
            (Frame::Greeting(b"G"), "f0000001 7fb54232 47"),
            (Frame::Hello(b"H"), "f1000001 d26a7613 48"),
            (Frame::Welcome(b"W"), "f2000001 18c20136 57"),
            (Frame::Deny { reason: 3, text: "no" }, "f3000003 fe7ad46d 03 6e6f"),
        ];
        for (frame, wire) in fixtures {
            let mut out = Vec::new();
            frame.encode(&mut out);
            assert_eq!(hex(wire), out, "{frame:?}");
            assert_eq!(Parser::default().next_frame(&mut out.as_slice()), Ok(Some(frame)));
        }
    }

    #[test]
    fn every_prefix_needs_more() {
        let wire = hex(EXAMPLE);
        for cut in 0..23 {
            let mut parser = Parser::default();
            assert_eq!(parser.next_frame(&mut &wire[..cut]), Ok(None), "{cut}");
            assert!(matches!(parser.next_frame(&mut &wire[cut..23]), Ok(Some(Frame::Segment { .. }))));
        }
    }

    #[test]
    fn one_changed_bit_is_a_fault() {
        let wire = &hex(EXAMPLE)[..23];
        for bit in 0..wire.len() * 8 {
            let mut changed = wire.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            let found = Parser::default().next_frame(&mut changed.as_slice()).map(|frame| frame.is_some());
            assert_ne!(found, Ok(true), "bit {bit}");
        }
    }

    #[test]
    fn bad_first_bytes_are_noticed_at_once() {
        assert_eq!(Parser::default().next_frame(&mut b"S".as_slice()), Err(FrameFault::Type(b'S')));
        let announced = [1, 0xff, 0xff, 0xff];
        assert!(matches!(
            Parser::default().next_frame(&mut announced.as_slice()),
            Err(FrameFault::Length { .. })
        ));
        assert!(matches!(
            Parser::default().next_frame(&mut [2, 0, 0, 26].as_slice()),
            Err(FrameFault::Length { .. })
        ));
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let mut out = Vec::new();
        Frame::Goodbye { reason: 0, text: &"\u{20ac}".repeat(200) }.encode(&mut out);
        let mut parser = Parser::default();
        let Ok(Some(Frame::Goodbye { text, .. })) = parser.next_frame(&mut out.as_slice()) else { panic!() };
        assert_eq!(text.len(), 255);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0usize..300) {
            let mut parser = Parser::default();
            let (a, b) = bytes.split_at(cut.min(bytes.len()));
            for mut input in [a, b] {
                while let Ok(Some(_)) = parser.next_frame(&mut input) {}
            }
        }

        #[test]
        fn frames_come_whole_out_of_any_cuts(
            sizes in proptest::collection::vec(1usize..3000, 1..12),
            cuts in proptest::collection::vec(1usize..2000, 1..12),
        ) {
            let mut wire = Vec::new();
            for (index, size) in sizes.iter().enumerate() {
                let bytes = vec![index as u8; *size];
                Frame::Segment { offset: index as u64, sequence: index as u32, bytes: &bytes }.encode(&mut wire);
                Frame::Ping { id: index as u64 }.encode(&mut wire);
            }
            let (mut parser, mut found, mut cuts) = (Parser::default(), Vec::new(), cuts.iter().cycle());
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                let (mut input, after) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                rest = after;
                while let Some(frame) = parser.next_frame(&mut input).unwrap() {
                    if let Frame::Segment { bytes, .. } = frame {
                        found.push(bytes.len());
                    }
                }
                prop_assert!(parser.waiting() <= HEADER + MAX_BODY);
            }
            prop_assert_eq!(found, sizes);
        }
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }
}
