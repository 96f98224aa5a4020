//! Pure: one accepted TCP connection on a smoltcp socket of its own.
//!
//! States as the stack sees them: opening (SYN-ACK not yet acknowledged), open, half-closed either way, and
//! *over*: both directions are finished on the wire and no packet belongs to the connection any more, though
//! bytes may still wait to be read. TIME-WAIT counts as over: a repeated FIN then gets a reset.

mod judge;

use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, State};
use smoltcp::wire::HardwareAddress;

pub(super) use self::judge::Verdict;
use super::device::{Buffer, Device, Traits};
use super::packet::{self, Packet, Segment, Syn, Told};
use super::reply;
use super::rings::{Memory, Place, Rings};

/// What every connection needs to move packets.
pub(super) struct Io {
    pub(super) traits: Traits,
    /// What smoltcp answered to the packet handed in last.
    pub(super) reply: Buffer,
    /// Calls into smoltcp so far.
    pub(super) polls: u64,
    interface: Interface,
    epoch: Instant,
}

impl Io {
    pub(super) fn new(traits: Traits, seed: u64, now: Instant) -> Self {
        let mut reply = Buffer::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut device = Device { traits, rx: None, tx: &mut reply };
        let mut interface = Interface::new(config, &mut device, smoltcp::time::Instant::ZERO);
        interface.set_any_ip(true);
        Self { traits, reply, polls: 0, interface, epoch: now }
    }

    fn time(&self, now: Instant) -> smoltcp::time::Instant {
        let micros = now.saturating_duration_since(self.epoch).as_micros();
        smoltcp::time::Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    fn ingress(&mut self, sockets: &mut SocketSet<'static>, packet: &[u8], now: Instant) {
        self.polls += 1;
        self.reply.clear();
        let time = self.time(now);
        let mut device = Device { traits: self.traits, rx: Some(packet), tx: &mut self.reply };
        self.interface.poll_ingress_single(time, &mut device, sockets);
    }

    fn egress(&mut self, sockets: &mut SocketSet<'static>, out: &mut Buffer, now: Instant) {
        self.polls += 1;
        out.clear();
        let time = self.time(now);
        let mut device = Device { traits: self.traits, rx: None, tx: out };
        self.interface.poll_egress(time, &mut device, sockets);
    }

    fn deadline(&mut self, sockets: &SocketSet<'static>, now: Instant) -> Option<Instant> {
        self.polls += 1;
        let time = self.time(now);
        let at = self.interface.poll_at(time, sockets)?;
        let after_epoch = u64::try_from(at.total_micros()).unwrap_or(0);
        Some(self.epoch + Duration::from_micros(after_epoch))
    }
}

/// What became of the connection by a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Open,
    Over,
    /// The application reset it.
    Reset,
}

/// What the owner has not been told yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    pub(super) readable: bool,
    pub(super) room: bool,
    pub(super) finished: bool,
    pub(super) closed: bool,
}

pub(super) struct Connection {
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    over: bool,
    /// The application reset the connection; until then its last words may be read.
    reset_until: Option<Box<Instant>>,
    /// The application's FIN has arrived with all bytes before it: the sequence number behind it.
    app_end: Option<u32>,
    finish_wanted: bool,
    readable_told: bool,
    finished_told: bool,
    /// What `room` was when it was last asked for or told.
    room_told: usize,
    has_window_scale: bool,
    /// The application understands selective acknowledgements.
    has_sack: bool,
    /// The application's first sequence number.
    first: u32,
    /// The sequence number behind all we ever sent; nothing before the SYN-ACK.
    sent_end: Option<u32>,
    /// The acknowledgement number we sent last, and the end of the window we offered.
    acked: u32,
    edge: u32,
    /// The application's furthest acknowledgement that smoltcp saw.
    heard_ack: u32,
    /// Since when the application owes us an answer.
    unanswered_since: Option<Instant>,
    bytes_read: usize,
    bytes_written: usize,
    /// What was written before the application had acknowledged our SYN-ACK; smoltcp takes nothing then.
    #[expect(clippy::box_collection, reason = "it is rare, and a pointer is all that a flow has room for")]
    early: Option<Box<Vec<u8>>>,
    place: Option<Place>,
    /// The rings have given their pages back and hold nothing since.
    at_rest: bool,
    /// The highest end of a segment within the window so far.
    seen_end: u32,
    /// No segment has come since this was set.
    quiet: bool,
}

impl Connection {
    /// The receive ring has a size that [`receive_capacity`] gave.
    pub(super) fn new(rings: Rings) -> Self {
        let mut socket = Socket::new(rings.receive, rings.send);
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self::with(sockets, handle, rings.place)
    }

    /// Makes the connection new again, with the same rings.
    pub(super) fn recycle(mut self) -> Self {
        // The next `listen` wants a closed socket; whatever this one still had to say is said.
        self.socket_mut().abort();
        let at_rest = self.at_rest;
        Self { at_rest, ..Self::with(self.sockets, self.handle, self.place) }
    }

    fn with(sockets: SocketSet<'static>, handle: SocketHandle, place: Option<Place>) -> Self {
        Self {
            sockets,
            handle,
            over: false,
            reset_until: None,
            app_end: None,
            finish_wanted: false,
            readable_told: false,
            finished_told: false,
            room_told: 0,
            has_window_scale: false,
            has_sack: false,
            first: 0,
            sent_end: None,
            acked: 0,
            edge: 0,
            heard_ack: 0,
            unanswered_since: None,
            bytes_read: 0,
            bytes_written: 0,
            early: None,
            place,
            at_rest: false,
            seen_end: 0,
            quiet: false,
        }
    }

    /// Answers a SYN; false if smoltcp does not want it.
    pub(super) fn open(&mut self, io: &mut Io, syn: &Syn, port: u16, now: Instant) -> bool {
        self.has_window_scale = syn.has_window_scale;
        self.has_sack = syn.has_sack;
        self.first = syn.seq;
        self.acked = syn.seq.wrapping_add(1);
        self.seen_end = self.acked;
        self.edge = self.acked;
        if self.socket_mut().listen(port).is_err() {
            return false;
        }
        io.ingress(&mut self.sockets, syn.bytes(), now);
        self.state() == State::SynReceived
    }

    /// Hands in a packet of this connection; smoltcp's answer, if any, is then in `io.reply`.
    pub(super) fn receive(
        &mut self,
        io: &mut Io,
        packet: &Packet<'_>,
        segment: &Segment,
        now: Instant,
    ) -> Fate {
        self.quiet = false;
        let ahead = segment.end().wrapping_sub(self.seen_end) as i32;
        if ahead > 0 && ahead as usize <= self.socket().recv_capacity() {
            self.seen_end = segment.end();
        }
        let before = self.state();
        if before == State::SynReceived || is_after(segment.ack, self.heard_ack) {
            self.heard_ack = segment.ack;
        }
        io.ingress(&mut self.sockets, packet.bytes, now);
        self.unanswered_since = None;
        let summed = io.traits.emit_checksums;
        self.amend(&mut io.reply, summed);
        if self.app_end.is_none() && has_app_finished(self.state()) {
            self.app_end = Some(segment.end().wrapping_add(1));
        }
        match self.state() {
            State::Closed if before == State::LastAck && !segment.has(packet::RST) => self.end(),
            // smoltcp listens again after a reset of a connection it was opening.
            State::Closed | State::Listen => Fate::Reset,
            State::TimeWait => {
                if io.reply.is_empty() {
                    let mut reply = std::mem::take(&mut io.reply);
                    io.egress(&mut self.sockets, &mut reply, now);
                    io.reply = reply;
                }
                self.end()
            }
            State::SynSent
            | State::SynReceived
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck => Fate::Open,
        }
    }

    /// Writes the next packet to `out`, or leaves it empty.
    pub(super) fn send(&mut self, io: &mut Io, out: &mut Buffer, now: Instant) {
        out.clear();
        if self.over {
            return;
        }
        io.egress(&mut self.sockets, out, now);
        self.amend(out, io.traits.emit_checksums);
        debug_assert!(out.is_empty() || self.acked == self.expected(), "we lost count of the stream");
        if self.awaits_answer() {
            self.unanswered_since.get_or_insert(now);
        }
    }

    /// When the connection wants to act again by itself.
    pub(super) fn deadline(&mut self, io: &mut Io, now: Instant) -> Option<Instant> {
        if self.over {
            return self.reset_until();
        }
        // smoltcp forgets its timers when data under way is lost and the window is found closed. If the update that opens
        // it is lost too, nobody would ever speak again.
        let waits = self.socket().send_queue() > 0;
        let deadline = io.deadline(&self.sockets, now);
        let probing = self.socket().keep_alive().is_some();
        if probing == waits || (deadline.is_some() && !probing) {
            return deadline;
        }
        self.socket_mut().set_keep_alive(waits.then_some(PROBE));
        io.deadline(&self.sockets, now)
    }

    /// Ends the connection at once; the reset is then in `io.reply`.
    pub(super) fn abort(&mut self, io: &mut Io, now: Instant) {
        let mut reply = std::mem::take(&mut io.reply);
        reply.clear();
        if !self.over {
            self.socket_mut().abort();
            io.egress(&mut self.sockets, &mut reply, now);
        }
        io.reply = reply;
        self.over = true;
    }

    /// What there is to tell since the last call.
    pub(super) fn news(&mut self) -> News {
        let state = self.state();
        if self.reset_until.is_some() {
            let readable = self.socket().recv_queue() > 0 && !self.readable_told;
            self.readable_told |= readable;
            return News { readable, ..News::default() };
        }
        self.send_early();
        // smoltcp overlooks window updates once both sides have finished.
        let drained = self.socket().send_queue() == 0 && self.early.is_none();
        if self.finish_wanted && drained && matches!(state, State::CloseWait | State::Established) {
            self.socket_mut().close();
        }
        let waiting = self.socket().recv_queue() > 0;
        let readable = waiting && !self.readable_told;
        self.readable_told |= readable;
        let finished = self.app_end.is_some() && !waiting && !self.finished_told;
        self.finished_told |= finished;
        let room = self.room();
        let grown = room > self.room_told;
        self.room_told = room;
        News { readable, room: grown, finished, closed: self.over && self.finished_told }
    }

    pub(super) fn read(&mut self, buf: &mut [u8]) -> usize {
        let count = self.socket_mut().recv_slice(buf).unwrap_or(0);
        self.bytes_read = self.bytes_read.saturating_add(count);
        if count == 0 {
            self.readable_told = false;
        }
        count
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> usize {
        if self.finish_wanted {
            return 0;
        }
        let count = if self.reset_until.is_some() {
            // The application is gone, and with it all that is for it.
            bytes.len().min(self.room())
        } else if self.state() == State::SynReceived {
            let count = bytes.len().min(self.room());
            self.early.get_or_insert_default().extend_from_slice(&bytes[..count]);
            count
        } else {
            self.socket_mut().send_slice(bytes).unwrap_or(0)
        };
        self.bytes_written = self.bytes_written.saturating_add(count);
        self.room_told = self.room();
        count
    }

    fn send_early(&mut self) {
        if !self.socket().may_send() {
            return;
        }
        let Some(early) = self.early.take() else { return };
        let sent = self.socket_mut().send_slice(&early);
        debug_assert_eq!(sent, Ok(early.len()), "an empty ring takes what `room` allowed");
    }

    pub(super) fn room(&self) -> usize {
        let socket = self.socket();
        if self.reset_until.is_some() && !self.finish_wanted {
            return socket.send_capacity();
        }
        if self.finish_wanted || !(socket.may_send() || socket.state() == State::SynReceived) {
            return 0;
        }
        let early = self.early.as_ref().map_or(0, |early| early.len());
        socket.send_capacity() - socket.send_queue() - early
    }

    /// A FIN follows the bytes written so far.
    pub(super) fn finish(&mut self) {
        self.finish_wanted = true;
    }

    /// Whether a SYN of this sequence number shows that the application has long forgotten the connection:
    /// both sides have finished, and the number is one that cannot belong to it.
    pub(super) fn is_replaced_by(&self, seq: u32) -> bool {
        let closing = matches!(self.state(), State::LastAck | State::Closing);
        closing && is_after(seq, self.acked)
    }

    /// The application's next sequence number.
    fn expected(&self) -> u32 {
        let bytes = self.bytes_read.wrapping_add(self.socket().recv_queue());
        let control = 1 + u32::from(self.app_end.is_some());
        self.first.wrapping_add(bytes as u32).wrapping_add(control)
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// The application reset the connection, but what it said before may still be read for a while. False if all has
    /// been read.
    pub(super) fn keep_last_words(&mut self, now: Instant) -> bool {
        self.over = true;
        self.early = None;
        self.reset_until = Some(Box::new(now + LAST_WORDS));
        self.has_last_words()
    }

    pub(super) fn has_last_words(&self) -> bool {
        self.socket().recv_queue() > 0
    }

    /// Until when last words may be read, for a connection that the application reset.
    pub(super) fn reset_until(&self) -> Option<Instant> {
        self.reset_until.as_deref().copied()
    }

    /// Calls the wire finished; false if bytes for the application are lost by that.
    pub(super) fn end_now(&mut self) -> bool {
        self.over = true;
        self.app_end.is_some() && self.socket().send_queue() == 0 && self.early.is_none()
    }

    /// Whether the application's kernel has been silent for so long that it must be gone.
    pub(super) fn is_abandoned(&self, now: Instant) -> bool {
        let handshake = matches!(self.state(), State::SynReceived | State::Closing | State::LastAck);
        let limit = if handshake && self.socket().send_queue() == 0 { SILENT_HANDSHAKE } else { SILENT_DATA };
        let silent = |since: Instant| now.saturating_duration_since(since) >= limit;
        self.awaits_answer() && self.unanswered_since.is_some_and(silent)
    }

    /// Whether its rings have so few touched pages that keeping them for another flow is cheap.
    pub(super) fn is_cheap_to_keep(&self) -> bool {
        self.bytes_read <= CHEAP && self.bytes_written <= CHEAP
    }

    /// Nothing in the rings is needed any more, until the next `wake`.
    pub(super) fn rest(&mut self, memory: Option<&mut (dyn Memory + 'static)>) {
        if let (Some(memory), Some(place)) = (memory, self.place) {
            memory.rest(place);
            self.at_rest = true;
        }
    }

    /// The rings are written to before anything is put to rest the next time.
    pub(super) fn wake(&mut self, memory: Option<&mut (dyn Memory + 'static)>) {
        if std::mem::take(&mut self.at_rest)
            && let (Some(memory), Some(place)) = (memory, self.place)
        {
            memory.wake(place);
        }
    }

    /// Whether its rings last as long as the memory they lie in.
    pub(super) fn is_leased(&self) -> bool {
        self.place.is_some()
    }

    /// Whether nothing has come since the last call.
    pub(super) fn was_quiet(&mut self) -> bool {
        std::mem::replace(&mut self.quiet, true)
    }

    /// Whether no byte in its rings is needed any more: nothing waits either way, and nothing is parked beyond a gap.
    pub(super) fn is_empty(&self) -> bool {
        let has_gap = self.seen_end.wrapping_sub(self.acked) as i32 > 0;
        let socket = self.socket();
        !has_gap && socket.recv_queue() == 0 && socket.send_queue() == 0 && self.early.is_none()
    }

    fn end(&mut self) -> Fate {
        self.over = true;
        Fate::Over
    }

    fn awaits_answer(&self) -> bool {
        let control =
            matches!(self.state(), State::SynReceived | State::FinWait1 | State::Closing | State::LastAck);
        !self.over && (control || self.socket().send_queue() > 0)
    }

    /// Remembers what a packet of smoltcp tells, and offers one unit of the window less.
    ///
    /// smoltcp rounds its window down to the unit, so that the window's end moves back by up to a unit when
    /// data of an odd length arrives. It then ignores what an honest kernel has sent up to the former end:
    /// it cuts the data but takes a FIN behind it, and drops acknowledgements from beyond. One unit less
    /// than smoltcp accepts is never taken back from what smoltcp accepts.
    fn amend(&mut self, packet: &mut Buffer, summed: bool) {
        let Some(told) = Told::read(packet.bytes()) else {
            return;
        };
        if told.flags & (packet::ACK | packet::RST) != packet::ACK {
            return;
        }
        if self.sent_end.is_none_or(|end| is_after(told.end, end)) {
            self.sent_end = Some(told.end);
        }
        self.acked = told.ack;
        let shift = self.window_shift();
        let scaled = shift > 0 && told.flags & packet::SYN == 0;
        let mut window = u32::from(told.window);
        if scaled && window > 0 {
            window -= 1;
            reply::set_window(packet.bytes_mut(), window as u16, summed);
        }
        let edge = told.ack.wrapping_add(if scaled { window << shift } else { window });
        if is_after(edge, self.edge) {
            self.edge = edge;
        }
    }

    /// Of the windows we tell, but for that of the SYN-ACK.
    fn window_shift(&self) -> u32 {
        if self.has_window_scale { window_shift(self.socket().recv_capacity()) } else { 0 }
    }

    fn state(&self) -> State {
        self.socket().state()
    }

    fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }
}

/// Whether a sequence number lies behind another one.
fn is_after(seq: u32, other: u32) -> bool {
    seq.wrapping_sub(other) as i32 > 0
}

fn has_app_finished(state: State) -> bool {
    matches!(state, State::CloseWait | State::Closing | State::LastAck | State::TimeWait)
}

/// The window scale smoltcp derives from a ring: the bits beyond 16.
fn window_shift(capacity: usize) -> u32 {
    (usize::BITS - capacity.leading_zeros()).saturating_sub(16)
}

/// The largest ring within `wanted` that a full scaled window does not exceed.
///
/// smoltcp takes the unscaled window of its SYN-ACK for a scaled one. With any other size it would then
/// accept more data than the ring holds, and panic.
pub(super) fn receive_capacity(wanted: usize) -> usize {
    let most = usize::from(u16::MAX);
    if wanted <= most {
        return wanted.max(MIN_RING);
    }
    most << (wanted / most).ilog2().min(14)
}

const MIN_RING: usize = 4096;
/// How long a kernel may take to answer a SYN-ACK or the last FIN.
const SILENT_HANDSHAKE: Duration = Duration::from_secs(60);
/// How long a kernel may leave data or a window probe unanswered.
const SILENT_DATA: Duration = Duration::from_secs(600);
/// Between two questions for a window that should have opened.
const PROBE: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(2);
/// How long a far side may take to read what the application said before its reset. A far side that does not read at
/// all is told of the reset only then.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Bytes each way.
const CHEAP: usize = 32 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_scaled_window_is_exactly_the_ring() {
        for wanted in [4096, 65_535, 65_536, 100_000, 131_070, 262_144, 524_288, 1 << 20, 3 << 20, 1 << 30] {
            let capacity = receive_capacity(wanted);
            assert!(capacity <= wanted);
            assert!(capacity * 2 > wanted || wanted <= 65_536, "{wanted} shrank to {capacity}");
            assert!(65_535 << window_shift(capacity) == capacity || capacity <= 65_535);
        }
    }
}
