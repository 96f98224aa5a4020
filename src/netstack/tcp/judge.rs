//! Pure: what smoltcp is spared of a connection's segments, and what the sender is told instead.

use smoltcp::socket::tcp::State;

use super::super::counters::DropReason;
use super::super::packet::{self, Segment};
use super::super::reply::Header;
use super::{Connection, is_after};

/// What to do with a segment, before smoltcp sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::netstack) enum Verdict {
    Fits,
    Drop(DropReason),
    /// Dropped, but the sender is told where the connection stands.
    Challenge(DropReason),
    /// For smoltcp, which leaves its data and answers where the window is.
    AnswerOnly(DropReason),
    /// Nothing new, and better kept from smoltcp.
    Repeats,
    /// Nothing new: the sender is told so. smoltcp would not say that the bytes came twice, and a kernel that sent its
    /// last segment again to be on the safe side takes that for the cure of a loss, and slows down; a probe it would answer
    /// once a second.
    Old,
}

impl Connection {
    /// The sequence and acknowledgement numbers of a challenge.
    pub(in crate::netstack) fn challenge(&self) -> (u32, u32) {
        (self.sent_end.unwrap_or(0), self.expected())
    }

    /// What smoltcp would take too easily, or leaves out in silence.
    pub(in crate::netstack) fn judge(&self, segment: &Segment) -> Verdict {
        if segment.has(packet::RST) {
            let ahead = segment.seq.wrapping_sub(self.expected());
            return match ahead {
                0 => Verdict::Fits,
                _ if (ahead as usize) < self.socket().recv_capacity() => {
                    Verdict::Challenge(DropReason::ResetPlace)
                }
                _ => Verdict::Drop(DropReason::ResetPlace),
            };
        }
        if segment.has(packet::SYN) {
            return Verdict::Challenge(DropReason::SynInside);
        }
        // smoltcp would take data behind a FIN.
        if self.app_end.is_some_and(|end| is_after(segment.end(), end)) {
            return Verdict::Drop(DropReason::AfterFin);
        }
        // In an unfinished handshake smoltcp answers with the reset of the book.
        let open = self.state() != State::SynReceived;
        if open && self.sent_end.is_some_and(|end| is_after(segment.ack, end)) {
            return Verdict::Challenge(DropReason::AckUnsent);
        }
        // smoltcp would cut the data at the edge and take the FIN for what comes next.
        if segment.has(packet::FIN) && is_after(segment.end(), self.edge) {
            return Verdict::Challenge(DropReason::Window);
        }
        if segment.data > 0 && !is_after(self.edge, segment.seq) {
            return Verdict::AnswerOnly(DropReason::Window);
        }
        if self.repeats_before_our_fin(segment) {
            Verdict::Repeats
        } else if open && self.is_old(segment) {
            Verdict::Old
        } else {
            Verdict::Fits
        }
    }

    /// Whether these are bytes that all came before, or a probe that shows one that did.
    fn is_old(&self, segment: &Segment) -> bool {
        let probes = segment.seq.wrapping_add(1) == self.expected();
        let again = !segment.has(packet::FIN) && (segment.data > 0 || probes);
        again && !is_after(segment.end(), self.expected())
    }

    /// What the answer to an old segment says. From here on it is what we said last.
    pub(in crate::netstack) fn repeat(&mut self, segment: &Segment) -> Header {
        self.quiet = false;
        self.unanswered_since = None;
        let ack = self.expected();
        self.acked = ack;
        let room = if is_after(self.edge, ack) { self.edge.wrapping_sub(ack) } else { 0 };
        // A closed window has no place for what we sent to probe it.
        let seq = if segment.window == 0 { Some(segment.ack) } else { self.sent_end };
        Header {
            seq: seq.unwrap_or(segment.ack),
            ack,
            flags: packet::ACK,
            window: u16::try_from(room >> self.window_shift()).unwrap_or(u16::MAX),
            twice: (self.has_sack && segment.data > 0).then_some((segment.seq, segment.end())),
        }
    }

    /// Whether this is a repeated acknowledgement of all but our FIN. Three of them have smoltcp turn its retransmission
    /// timer into a fast retransmission, which has no data to send and never sends the FIN again.
    fn repeats_before_our_fin(&self, segment: &Segment) -> bool {
        let finishing = matches!(self.state(), State::FinWait1 | State::Closing | State::LastAck);
        let bare = segment.data == 0 && !segment.has(packet::FIN) && !is_after(self.expected(), segment.seq);
        finishing && bare && self.socket().send_queue() == 0 && segment.ack == self.heard_ack
    }
}
