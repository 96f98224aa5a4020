//! Pure: writes the frames that are due.

use std::collections::VecDeque;

use super::frame::{Flags, HEADER, Header, Kind};
use super::table::{Greeting, Stream};
use super::{MIN_PAYLOAD, Mux, Streams, quantum};

/// Pings that are answered; of a peer that sends more without reading only the latest count.
const MAX_PONGS: usize = 8;

/// Frames that belong to no open stream.
#[derive(Debug, Default)]
pub(super) struct Control {
    pongs: VecDeque<u32>,
    pub(super) go_away: Option<u32>,
    /// Streams that are gone on our side. Bounded where the peer's streams are reset.
    pub(super) resets: VecDeque<u32>,
}

impl Control {
    /// Queues the answer to a ping; false when it takes the place of another.
    pub(super) fn pong(&mut self, value: u32) -> bool {
        let full = self.pongs.len() >= MAX_PONGS;
        if full {
            self.pongs.pop_back();
        }
        self.pongs.push_back(value);
        !full
    }

    /// All that a mux that has failed still says.
    pub(super) fn last_word(reason: u32) -> Self {
        Self { go_away: Some(reason), ..Self::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pongs.is_empty() && self.go_away.is_none() && self.resets.is_empty()
    }

    fn next(&mut self) -> Option<Header> {
        if let Some(length) = self.pongs.pop_front() {
            return Some(Header { kind: Kind::Ping, flags: Flags::ACK, id: 0, length });
        }
        if let Some(length) = self.go_away.take() {
            return Some(Header { kind: Kind::GoAway, flags: Flags::NONE, id: 0, length });
        }
        let id = self.resets.pop_front()?;
        Some(Header { kind: Kind::WindowUpdate, flags: Flags::RST, id, length: 0 })
    }
}

impl Mux {
    /// Writes whole frames into `out`, as many as fit and are due; the number of bytes written.
    ///
    /// Makes progress with any `out` longer than a header. Gives less than fits when nothing more is due,
    /// or when the rest would cut a data frame below 64 bytes of payload.
    pub fn poll_frames(&mut self, out: &mut [u8], streams: &mut impl Streams) -> usize {
        let mut len = 0;
        while out.len() - len >= HEADER
            && let Some(header) = self.next_control()
        {
            out[len..len + HEADER].copy_from_slice(&header.encode());
            len += HEADER;
        }
        if self.fault.is_some() {
            return len;
        }
        while out.len() - len >= HEADER
            && let Some(slot) = self.schedule.next(&mut self.table, quantum(&self.config))
            && let Some(written) = self.write_data(slot, &mut out[len..], len == 0, streams)
        {
            len += written;
        }
        len
    }

    fn next_control(&mut self) -> Option<Header> {
        if let Some(header) = self.control.next() {
            return Some(header);
        }
        if self.fault.is_some() {
            return None;
        }
        while let Some(slot) = self.updates.first() {
            self.updates.remove(&mut self.table, slot);
            let stream = &mut self.table[slot];
            stream.in_updates = false;
            let credit = if stream.fin_seen { 0 } else { stream.window.take_credit() };
            self.stats.granted += u64::from(credit);
            if credit > 0 || stream.greeting != Greeting::Done {
                let flags = stream.greet();
                return Some(Header { kind: Kind::WindowUpdate, flags, id: stream.id, length: credit });
            }
        }
        None
    }

    /// Writes a data frame of the stream whose turn it is; 0 when it has none, `None` when `out` is too short
    /// for a frame worth its header.
    fn write_data(
        &mut self,
        slot: u32,
        out: &mut [u8],
        is_first: bool,
        streams: &mut impl Streams,
    ) -> Option<usize> {
        let stream = &mut self.table[slot];
        if !stream.can_send() {
            self.schedule.leave(&mut self.table, slot);
            return Some(0);
        }
        let wanted = self.config.max_frame.min(stream.credit as usize);
        let least = if is_first { 1 } else { MIN_PAYLOAD };
        let (head, rest) = out.split_at_mut(HEADER);
        let room = rest.len().min(wanted);
        if room < wanted.min(least) {
            return None;
        }
        let length = fill(stream, &mut rest[..room], streams);
        let fin = stream.finishing && !stream.ready;
        if length == 0 && !fin {
            self.schedule.leave(&mut self.table, slot);
            return Some(0);
        }

        stream.credit -= length as u32;
        stream.fin_sent = fin;
        let flags = stream.greet().and(if fin { Flags::FIN } else { Flags::NONE });
        let header = Header { kind: Kind::Data, flags, id: stream.id, length: length as u32 };
        head.copy_from_slice(&header.encode());
        let (stays, gone) = (stream.can_send(), fin && stream.fin_seen);

        self.schedule.charge(&mut self.table, slot, (HEADER + length) as i32);
        if gone {
            streams.closed(self.remove(slot));
        } else if !stays {
            self.schedule.leave(&mut self.table, slot);
        }
        Some(HEADER + length)
    }
}

/// Pulls until `body` is full or the stream has nothing more, and notes which of the two.
fn fill(stream: &mut Stream, body: &mut [u8], streams: &mut impl Streams) -> usize {
    let mut len = 0;
    while len < body.len() {
        let rest = &mut body[len..];
        let most = rest.len();
        let pulled = streams.pull(stream.token, rest).min(most);
        stream.ready = pulled > 0;
        if pulled == 0 {
            break;
        }
        len += pulled;
    }
    len
}
