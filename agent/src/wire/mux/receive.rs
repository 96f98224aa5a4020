//! Pure: acts on frames as they arrive, cut anywhere. Payload is passed on at once, never kept.

use std::time::Instant;

use super::frame::{Flags, Header, HeaderBuffer, Kind, REASON_LEAVING, REASON_PROTOCOL, Violation};
use super::send::Control;
use super::table::Greeting;
use super::{Mux, MuxFault, Role, StreamId, Streams};

/// Where in a frame the bytes have come to.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    header: HeaderBuffer,
    body: Body,
}

#[derive(Clone, Copy, Debug, Default)]
enum Body {
    #[default]
    None,
    /// Payload of a stream, which may be reset on our side before all of it is here.
    Payload { id: u32, left: u32, fin: bool },
    /// Payload that nobody wants.
    Skipped { left: u32 },
}

impl Mux {
    /// Acts on bytes from the peer. An error is final and every later call gives it again; what
    /// [`Mux::poll_frames`] still has then is the frame that tells the peer.
    ///
    /// Nothing here is timed: windows are by [`Mux::set_room`].
    pub fn handle_bytes(
        &mut self,
        mut bytes: &[u8],
        streams: &mut impl Streams,
        _now: Instant,
    ) -> Result<(), MuxFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        while !bytes.is_empty() {
            match self.incoming.body {
                Body::None => {
                    let Some(header) = self.incoming.header.take(&mut bytes) else { break };
                    let header = Header::decode(header).map_err(MuxFault::Peer);
                    if let Err(fault) = header.and_then(|header| self.handle_header(header, streams)) {
                        self.fail(fault);
                        return Err(fault);
                    }
                }
                Body::Payload { id, left, fin } => {
                    let (chunk, left) = cut(&mut bytes, left);
                    self.incoming.body = if left == 0 { Body::None } else { Body::Payload { id, left, fin } };
                    self.handle_payload(id, chunk, fin && left == 0, streams);
                }
                Body::Skipped { left } => {
                    let (_, left) = cut(&mut bytes, left);
                    self.incoming.body = if left == 0 { Body::None } else { Body::Skipped { left } };
                }
            }
        }
        Ok(())
    }

    fn fail(&mut self, fault: MuxFault) {
        self.fault = Some(fault);
        self.control = match fault {
            MuxFault::Peer(_) | MuxFault::Flood => Control::last_word(REASON_PROTOCOL),
            MuxFault::GivenUp(_) => Control::default(),
        };
    }

    fn handle_header(&mut self, header: Header, streams: &mut impl Streams) -> Result<(), MuxFault> {
        match header.kind {
            Kind::Ping => {
                // We send no pings, so an answer to one is nothing to us.
                if header.flags.has(Flags::ACK) || !self.control.pong(header.length) {
                    self.stats.ignored += 1;
                }
                Ok(())
            }
            Kind::GoAway if header.length == REASON_LEAVING => {
                self.peer_left = true;
                Ok(())
            }
            Kind::GoAway => Err(MuxFault::GivenUp(header.length)),
            Kind::Data if header.length > 0 => {
                self.incoming.body = Body::Skipped { left: header.length };
                self.handle_stream(header, streams)
            }
            Kind::Data | Kind::WindowUpdate => self.handle_stream(header, streams),
        }
    }

    fn handle_stream(&mut self, header: Header, streams: &mut impl Streams) -> Result<(), MuxFault> {
        let Header { kind, flags, id, length } = header;
        if id == 0 {
            return Err(MuxFault::Peer(Violation::WrongId(0)));
        }
        if flags.has(Flags::RST) {
            self.handle_reset(id, streams);
            return Ok(());
        }
        if flags.has(Flags::SYN) && !self.handle_open(id, streams)? {
            return Ok(());
        }
        let Some(slot) = self.known(id) else {
            self.stats.ignored += 1;
            return Ok(());
        };
        let stream = &mut self.table[slot];
        let fin = flags.has(Flags::FIN);
        if kind == Kind::WindowUpdate {
            let Some(credit) = stream.credit.checked_add(length) else {
                self.break_off(slot, streams);
                return Ok(());
            };
            stream.credit = credit;
            self.join(slot);
        } else if length > stream.window.outstanding() || stream.fin_seen && length > 0 {
            self.break_off(slot, streams);
            return Ok(());
        } else if length > 0 {
            self.incoming.body = Body::Payload { id, left: length, fin };
            return Ok(());
        }
        if fin {
            self.handle_fin(slot, streams);
        }
        Ok(())
    }

    /// Lets the peer open a stream; false when it was reset at once.
    fn handle_open(&mut self, id: u32, streams: &mut impl Streams) -> Result<bool, MuxFault> {
        let is_clients = id % 2 == 1;
        let from_client = match self.config.role {
            Role::Client => false,
            Role::Agent => true,
        };
        if is_clients != from_client {
            return Err(MuxFault::Peer(Violation::WrongId(id)));
        }
        if self.table.find(id).is_some() {
            return Err(MuxFault::Peer(Violation::OpenedTwice(id)));
        }
        // A peer that reads has a reset on its way for at most each stream it can have open.
        if self.control.resets.len() > self.config.max_streams.saturating_mul(2).max(MIN_RESETS) {
            return Err(MuxFault::Flood);
        }
        let is_full = self.table.len() >= self.config.max_streams;
        let token = if is_full { None } else { streams.accept(StreamId(id)) };
        let Some(token) = token else {
            self.control.resets.push_back(id);
            self.stats.resets_sent += 1;
            self.stats.refused += u64::from(is_full);
            return Ok(false);
        };
        let slot = self.insert(id, token, Greeting::Ack);
        if self.config.prompt_ack {
            self.queue_update(slot);
        }
        Ok(true)
    }

    fn handle_payload(&mut self, id: u32, chunk: &[u8], fin: bool, streams: &mut impl Streams) {
        let Some(slot) = self.known(id) else { return };
        let stream = &mut self.table[slot];
        // The header was checked against the credit, so this holds for every chunk of its payload.
        if stream.window.arrived(chunk.len() as u32) {
            self.stats.granted -= chunk.len() as u64;
            streams.push(stream.token, chunk);
        }
        if fin {
            self.handle_fin(slot, streams);
        } else {
            self.offer_credit(slot);
        }
    }

    fn handle_fin(&mut self, slot: u32, streams: &mut impl Streams) {
        let stream = &mut self.table[slot];
        if std::mem::replace(&mut stream.fin_seen, true) {
            self.stats.ignored += 1;
            return;
        }
        streams.finished(stream.token);
        if stream.fin_sent {
            streams.closed(self.remove(slot));
        }
    }

    fn handle_reset(&mut self, id: u32, streams: &mut impl Streams) {
        match self.known(id) {
            Some(slot) => {
                self.stats.resets_received += 1;
                streams.reset(self.remove(slot));
            }
            None => self.stats.ignored += 1,
        }
    }

    /// Resets a stream whose rules the peer broke.
    fn break_off(&mut self, slot: u32, streams: &mut impl Streams) {
        self.stats.violations += 1;
        streams.broken_off(self.abort(slot));
    }

    /// A stream that both sides know of: the peer cannot mean one whose SYN has not been sent.
    fn known(&self, id: u32) -> Option<u32> {
        self.table.find(id).filter(|&slot| self.table[slot].greeting != Greeting::Syn)
    }
}

/// Takes at most `left` bytes from the front of `input`; those, and how many are left then.
fn cut<'a>(input: &mut &'a [u8], left: u32) -> (&'a [u8], u32) {
    let (chunk, rest) = input.split_at(input.len().min(left as usize));
    *input = rest;
    (chunk, left - chunk.len() as u32)
}

/// Resets that may wait in any case, even if few streams are allowed.
const MIN_RESETS: usize = 1024;
