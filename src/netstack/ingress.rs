//! Pure: a packet's way to its flow.
//!
//! Only sources that no host may have are turned away: a machine also forwards packets of its containers and virtual
//! machines into the tunnel, whose addresses we do not know.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use agent::wire::open::Kind;

use super::counters::DropReason;
use super::event::Untold;
use super::flow_table::Tuple;
use super::fragments::Joined;
use super::meter::Meter;
use super::packet::{self, Packet, Segment, Syn};
use super::tcp::{Fate, Verdict};
use super::{Flow, PENDING_LIFE, Stack, State, icmp, reply};

impl Stack {
    /// Finds out what a packet is and hands it on.
    pub(super) fn sort(&mut self, bytes: &[u8], verify: bool, now: Instant) -> Result<(), DropReason> {
        match Packet::parse(bytes, verify) {
            Err(DropReason::Fragment) => self.handle_fragment(bytes, verify, now),
            packet => self.handle_whole(&packet?, verify, now),
        }
    }

    fn handle_fragment(&mut self, bytes: &[u8], verify: bool, now: Instant) -> Result<(), DropReason> {
        let (joined, given_up) = self.fragments.join(bytes, now);
        self.counters.drop_many(DropReason::Fragment, given_up);
        match joined {
            Joined::Waits => Ok(()),
            Joined::Useless => Err(DropReason::Fragment),
            Joined::Whole(whole) => self.handle_whole(&Packet::parse(&whole, verify)?, verify, now),
        }
    }

    fn handle_whole(&mut self, packet: &Packet<'_>, verify: bool, now: Instant) -> Result<(), DropReason> {
        match (packet.target, packet.protocol) {
            (_, packet::TCP) => self.handle_tcp(packet, verify, now),
            (_, packet::UDP) => self.handle_udp(packet, verify, now),
            (IpAddr::V4(_), packet::ICMP) | (IpAddr::V6(_), packet::ICMP6) => {
                self.handle_echo(packet, verify, now)
            }
            _ => {
                self.answer_protocol(packet, now);
                Err(DropReason::Protocol)
            }
        }
    }

    /// The agent has no way to carry it.
    fn answer_protocol(&mut self, packet: &Packet<'_>, now: Instant) {
        if let Some(error) = icmp::unknown_protocol(packet)
            && self.replies.take(now)
        {
            reply::build_error_about(packet, error, &mut self.scratch);
            self.post();
        }
    }

    fn handle_tcp(&mut self, packet: &Packet<'_>, verify: bool, now: Instant) -> Result<(), DropReason> {
        let segment = Segment::parse(packet, verify)?;
        let source = SocketAddr::new(packet.source, segment.source_port);
        let target = SocketAddr::new(packet.target, segment.target_port);
        let tuple = Tuple { kind: Kind::Tcp, source, target };
        let Some(slot) = self.table.find(&tuple) else {
            return self.handle_unknown(tuple, packet, &segment, now);
        };
        let Some(flow) = self.table.get_mut(slot) else { return self.answer_stray(packet, &segment) };
        flow.meter.heard(&segment, now);
        match &mut flow.state {
            State::Pending(syn, heard) if segment.opens() => {
                if segment.seq != syn.seq {
                    *syn = Syn::keep(packet, &segment)?;
                }
                *heard = now;
                self.counters.syns_repeated += 1;
                Ok(())
            }
            State::Pending(syn, _) if segment.has(packet::RST) => {
                if segment.seq.wrapping_sub(syn.seq) > 1 {
                    return Err(DropReason::StrayReset);
                }
                self.lose(slot);
                Ok(())
            }
            State::Open(connection) if segment.opens() && connection.is_replaced_by(segment.seq) => {
                self.end(slot);
                self.handle_unknown(tuple, packet, &segment, now)
            }
            State::Open(connection) => match connection.judge(&segment) {
                Verdict::Fits => {
                    self.handle_segment(slot, packet, &segment, now);
                    Ok(())
                }
                Verdict::AnswerOnly(reason) => {
                    self.handle_segment(slot, packet, &segment, now);
                    Err(reason)
                }
                Verdict::Challenge(reason) => {
                    let challenge = connection.challenge();
                    self.challenge(packet, &segment, challenge, now);
                    Err(reason)
                }
                Verdict::Repeats => Ok(()),
                Verdict::Old if segment.data == 0 && !self.replies.take(now) => Err(DropReason::ReplyRate),
                Verdict::Old => {
                    let answer = connection.repeat(&segment);
                    reply::build_tcp(packet, &segment, answer, self.config.emit_checksums, &mut self.scratch);
                    flow.meter.said(&self.scratch, now);
                    self.post();
                    Ok(())
                }
                Verdict::Drop(reason) => Err(reason),
            },
            State::Pending(..) | State::Datagrams(_) | State::Gone => self.answer_stray(packet, &segment),
        }
    }

    /// A segment whose tuple leads to no flow.
    fn handle_unknown(
        &mut self,
        tuple: Tuple,
        packet: &Packet<'_>,
        segment: &Segment,
        now: Instant,
    ) -> Result<(), DropReason> {
        if !segment.opens() {
            return self.answer_stray(packet, segment);
        }
        if self.counters.flows_pending >= self.config.max_pending {
            return Err(DropReason::PendingFull);
        }
        if self.table.is_full() {
            return Err(DropReason::FlowsFull);
        }
        let state = State::Pending(Syn::keep(packet, segment)?, now);
        let untold = Untold { connect: true, ..Untold::default() };
        let mut meter = Meter::default();
        meter.heard(segment, now);
        let slot = self.table.insert(tuple, Flow { state, untold, armed: None, meter });
        self.counters.flows_opened += 1;
        self.counters.flows_pending += 1;
        self.counters.flows_now += 1;
        self.events.push(slot);
        self.arm(slot, now + PENDING_LIFE, now);
        Ok(())
    }

    fn answer_stray(&mut self, packet: &Packet<'_>, segment: &Segment) -> Result<(), DropReason> {
        if segment.has(packet::RST) {
            return Err(DropReason::StrayReset);
        }
        self.counters.stray_segments += 1;
        reply::build_reset(packet, segment, self.config.emit_checksums, &mut self.scratch);
        self.post();
        Ok(())
    }

    fn handle_segment(&mut self, slot: u32, packet: &Packet<'_>, segment: &Segment, now: Instant) {
        let Some(Flow { state: State::Open(connection), meter, .. }) = self.table.get_mut(slot) else {
            return;
        };
        connection.wake(self.memory.as_deref_mut());
        let fate = connection.receive(&mut self.io, packet, segment, now);
        if !self.io.reply.is_empty() {
            meter.said(self.io.reply.bytes(), now);
        }
        match fate {
            Fate::Open => self.dirty.push(slot),
            Fate::Over => self.table.unmap(slot),
            Fate::Reset => self.reset_by_app(slot, now),
        }
        self.post_reply();
        self.tell(slot);
        self.resting.note_use(slot, now);
    }

    /// The owner hears of the reset once it has read what came before it, as a kernel's reader would.
    fn reset_by_app(&mut self, slot: u32, now: Instant) {
        let Some(Flow { state: State::Open(connection), untold, .. }) = self.table.get_mut(slot) else {
            return;
        };
        if untold.connect || !connection.keep_last_words(now) {
            return self.lose(slot);
        }
        self.table.unmap(slot);
        self.rearm(slot, now);
    }

    /// Tells whoever sent the segment where the connection stands; a rightful sender then says it better.
    fn challenge(&mut self, packet: &Packet<'_>, segment: &Segment, numbers: (u32, u32), now: Instant) {
        if self.replies.take(now) {
            reply::build_challenge(packet, segment, numbers, self.config.emit_checksums, &mut self.scratch);
            self.post();
        }
    }

    pub(super) fn limit_reply(&mut self, now: Instant) -> Result<(), DropReason> {
        if self.replies.take(now) { Ok(()) } else { Err(DropReason::ReplyRate) }
    }

    pub(super) fn unreachable(&mut self, packet: &Packet<'_>, code: u8) {
        reply::build_unreachable(packet, code, &mut self.scratch);
        self.post();
    }

    /// The application uses the tuple for something new.
    fn end(&mut self, slot: u32) {
        let Some(connection) = self.connection(slot) else { return };
        if connection.end_now() {
            self.table.unmap(slot);
            self.tell(slot);
        } else {
            self.lose(slot);
        }
    }
}
