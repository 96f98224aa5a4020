//! Pure: fills records with frames.

use std::time::Instant;

use super::lane::Lane;
use super::receive::Receiver;
use super::segment::{self, Frame, HEADER, SEGMENT_OVERHEAD};
use super::send::Sender;
use super::{GoodbyeReason, LEAST_RECORD};

pub(super) fn say_goodbye(lane: &mut Lane, reason: GoodbyeReason, room: usize, record: &mut Vec<u8>) {
    if !lane.said_goodbye && put(&Frame::Goodbye { reason: reason.code(), text: reason.text() }, room, record)
    {
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
    record: &mut Vec<u8>,
    now: Instant,
) {
    if room >= record.len() + LEAST_RECORD && lane.inbound.take_ack(segments, now) {
        let (cum, credit) = (receiver.placed(), receiver.tell_credit());
        let (sequence, arrived) = (lane.inbound.sequence, lane.inbound.arrived);
        put(&Frame::Ack { cum, credit, sequence, arrived, wanted }, room, record);
    }
    if lane.owes_retire() && put(&Frame::Retire, room, record) {
        lane.said_retire();
    }
    while let Some(&id) = lane.pongs.front()
        && put(&Frame::Pong { id }, room, record)
    {
        lane.pongs.pop_front();
    }
    if room >= record.len() + PING
        && let Some(id) = lane.pings.take(now)
    {
        put(&Frame::Ping { id }, room, record);
    }
}

/// As many segments as record, lane and stream allow, the lowest offset first.
pub(super) fn put_segments(
    lane: &mut Lane,
    sender: &mut Sender,
    room: usize,
    record: &mut Vec<u8>,
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
        segment::encode_segment(record, range.offset, sequence, |out| sender.take(range, length, out));
        alone = false;
    }
    if alone {
        lane.note_idle(now);
    }
}

/// Appends the frame if the record takes it.
fn put(frame: &Frame<'_>, room: usize, record: &mut Vec<u8>) -> bool {
    let before = record.len();
    frame.encode(record);
    let fits = record.len() <= room;
    if !fits {
        record.truncate(before);
    }
    fits
}

/// The length of a ping.
const PING: usize = HEADER + 8;
/// Less is hardly worth the overhead of a frame.
const LEAST_SEGMENT: usize = 256;
