//! Pure: fills records with frames.
//!
//! The bytes of segments stay where the sender keeps them: a record knows where, and what stands before each.

use std::time::Instant;

use super::lane::Lane;
use super::receive::Receiver;
use super::segment::{self, Frame, HEADER, SEGMENT_OVERHEAD};
use super::send::Sender;
use super::{GoodbyeReason, LEAST_RECORD};

/// A record as it is made.
#[derive(Default)]
pub(super) struct Draft {
    /// Everything but the bytes of segments.
    words: Vec<u8>,
    bodies: Vec<Body>,
    length: usize,
}

/// Bytes of the stream.
struct Body {
    /// How much of the words stands before them.
    after: usize,
    offset: u64,
    length: usize,
}

/// A record that is to be sent before the trunk is used again.
pub struct Record<'t> {
    pub(super) draft: &'t Draft,
    pub(super) sender: &'t Sender,
}

impl<'t> Record<'t> {
    /// Its bytes in order, most of them where the trunk keeps them.
    pub fn parts(&self) -> impl Iterator<Item = &'t [u8]> {
        let Self { draft, sender } = *self;
        let mut said = 0;
        let segments = draft.bodies.iter().flat_map(move |body| {
            let words = &draft.words[said..body.after];
            said = body.after;
            [words, sender.kept(body.offset, body.length)]
        });
        let spoken = draft.bodies.last().map_or(0, |body| body.after);
        segments.chain([&draft.words[spoken..]]).filter(|part| !part.is_empty())
    }
}

impl Draft {
    pub(super) fn clear(&mut self) {
        self.words.clear();
        self.bodies.clear();
        self.length = 0;
    }

    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// Appends the frame if the record takes it.
    fn put(&mut self, frame: &Frame<'_>, room: usize) -> bool {
        let before = self.words.len();
        frame.encode(&mut self.words);
        let length = self.length + self.words.len() - before;
        let fits = length <= room;
        if fits {
            self.length = length;
        } else {
            self.words.truncate(before);
        }
        fits
    }

    fn put_segment(&mut self, offset: u64, sequence: u32, bytes: &[u8]) {
        segment::encode_segment_head(&mut self.words, offset, sequence, bytes);
        self.bodies.push(Body { after: self.words.len(), offset, length: bytes.len() });
        self.length += SEGMENT_OVERHEAD + bytes.len();
    }
}

pub(super) fn say_goodbye(lane: &mut Lane, reason: GoodbyeReason, room: usize, record: &mut Draft) {
    let frame = Frame::Goodbye { reason: reason.code(), text: reason.text() };
    if !lane.said_goodbye && record.put(&frame, room) {
        lane.said_goodbye = true;
    }
}

/// An ack, a word on retirement, pongs and a ping as far as they are due; an ack that is only nearly due goes along with segments.
pub(super) fn put_control(
    lane: &mut Lane,
    receiver: &mut Receiver,
    wanted: u8,
    segments: bool,
    room: usize,
    record: &mut Draft,
    now: Instant,
) {
    if room >= record.len() + LEAST_RECORD && lane.inbound.take_ack(segments, now) {
        let (cum, credit) = (receiver.placed(), receiver.tell_credit());
        let (sequence, arrived) = (lane.inbound.sequence, lane.inbound.arrived);
        record.put(&Frame::Ack { cum, credit, sequence, arrived, wanted }, room);
    }
    if lane.owes_retire() && record.put(&Frame::Retire, room) {
        lane.said_retire();
    }
    while let Some(&id) = lane.pongs.front()
        && record.put(&Frame::Pong { id }, room)
    {
        lane.pongs.pop_front();
    }
    if room >= record.len() + PING
        && let Some(id) = lane.pings.take(now)
    {
        record.put(&Frame::Ping { id }, room);
    }
}

/// As many segments as record, lane and stream allow, the lowest offset first.
pub(super) fn put_segments(
    lane: &mut Lane,
    sender: &mut Sender,
    room: usize,
    record: &mut Draft,
    now: Instant,
) {
    let mut alone = true;
    while let Some(range) = sender.next(lane.informed) {
        let wanted = range.length.min(lane.outbound.longest_segment());
        let space = room.saturating_sub(record.len() + SEGMENT_OVERHEAD);
        let window = lane.room(now);
        // A sliver costs a whole frame: it waits for room, unless there will never be more.
        let sliver =
            |room: usize, may_grow: bool| room < if may_grow { wanted.min(LEAST_SEGMENT) } else { 1 };
        if sliver(space, !alone) {
            return;
        }
        if sliver(window, !lane.outbound.is_idle()) {
            lane.outbound.note_held_back();
            return;
        }
        let length = wanted.min(space).min(window);
        let sequence = lane.send(range.offset, length, now);
        record.put_segment(range.offset, sequence, sender.take(range, length));
        alone = false;
    }
    if alone {
        lane.note_idle(now);
    }
}

/// The length of a ping.
const PING: usize = HEADER + 8;
/// Less is hardly worth the overhead of a frame.
const LEAST_SEGMENT: usize = 256;
