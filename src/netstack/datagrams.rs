//! Pure: UDP datagrams and echo requests on their way through the stack.
//!
//! They have no connection, so their flows begin with the first packet, are never answered by us, and end when
//! they have been idle for long enough or when their place is needed. A packet goes to the target whatever its
//! hop limit: the device is one link with the target behind it, and what lies between is not known here.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use agent::wire::datagram::{Message, Trouble};
use agent::wire::open::{Kind, Refusal};

use super::association::{Allowance, Association, echo_tuple};
use super::counters::DropReason;
use super::egress::{PACKETS_PER_TURN, Sent};
use super::event::Untold;
use super::flow_table::Tuple;
use super::meter::Meter;
use super::packet::{Datagram, Echo, Packet};
use super::recency::Recency;
use super::{Flow, Stack, State, icmp, reply};

/// What all associations of a stack share.
#[derive(Default)]
pub(super) struct Datagrams {
    /// Bytes that wait in all of them.
    held: usize,
    udp: Recency,
    echo: Recency,
    /// Until when the agent is not asked again for what it said it may not do: UDP and echo, IPv4 and IPv6.
    barred: [[Option<Instant>; 2]; 2],
}

impl Datagrams {
    fn recency(&mut self, kind: Kind) -> &mut Recency {
        if kind == Kind::Echo { &mut self.echo } else { &mut self.udp }
    }

    fn barred(&mut self, kind: Kind, v6: bool) -> &mut Option<Instant> {
        &mut self.barred[usize::from(kind == Kind::Echo)][usize::from(v6)]
    }

    pub(super) fn forget(&mut self, slot: u32, association: &Association) {
        self.held -= association.weighed;
        self.recency(association.kind).remove(slot);
    }
}

impl Stack {
    pub(super) fn handle_udp(
        &mut self,
        packet: &Packet<'_>,
        verify: bool,
        now: Instant,
    ) -> Result<(), DropReason> {
        let Datagram { source_port, target_port, payload } = Datagram::parse(packet, verify)?;
        let source = SocketAddr::new(packet.source, source_port);
        let target = SocketAddr::new(packet.target, target_port);
        self.take(Tuple { kind: Kind::Udp, source, target }, target, payload, packet, now)
    }

    pub(super) fn handle_echo(
        &mut self,
        packet: &Packet<'_>,
        verify: bool,
        now: Instant,
    ) -> Result<(), DropReason> {
        let Echo { identifier, sequence, payload } = Echo::parse(packet, verify)?;
        let tuple = echo_tuple(packet.source, packet.target, identifier);
        self.take(tuple, SocketAddr::new(packet.target, sequence), payload, packet, now)
    }

    fn take(
        &mut self,
        tuple: Tuple,
        peer: SocketAddr,
        payload: &[u8],
        packet: &Packet<'_>,
        now: Instant,
    ) -> Result<(), DropReason> {
        let kind = tuple.kind;
        let slot = match self.table.find(&tuple) {
            Some(slot) => slot,
            None if self.is_barred(kind, tuple.source.is_ipv6(), now) => {
                self.limit_reply(now)?;
                self.count_unreachable(kind);
                self.unreachable(packet, icmp::prohibited(packet.source.is_ipv6()));
                return Ok(());
            }
            None => self.associate(tuple, now)?,
        };
        self.datagrams.recency(kind).touch(slot);
        let Some(Flow { state: State::Datagrams(association), untold, meter, .. }) = self.table.get_mut(slot)
        else {
            return Ok(());
        };
        meter.heard_datagram();
        let left = self.config.datagram_memory.saturating_sub(self.datagrams.held);
        let allowed = Allowance { queue: self.config.datagram_queue, left };
        self.counters.datagrams_up += 1;
        self.counters.datagrams_lost_up += association.take(peer, payload, packet, allowed, now);
        if association.is_readable_anew() {
            untold.readable = true;
            self.events.push(slot);
        }
        self.weigh(slot);
        Ok(())
    }

    /// Makes a flow, if need be in the place of the one that has been idle for longest.
    fn associate(&mut self, tuple: Tuple, now: Instant) -> Result<u32, DropReason> {
        let most =
            if tuple.kind == Kind::Echo { self.config.max_echoes } else { self.config.max_associations };
        let recency = self.datagrams.recency(tuple.kind);
        if let Some(oldest) = recency.oldest().filter(|_| recency.len() >= most) {
            self.counters.associations_evicted += 1;
            self.conclude(oldest);
        }
        if self.table.is_full() || most == 0 {
            return Err(DropReason::FlowsFull);
        }
        let association = Association::new(tuple.kind, now);
        let expires = association.expires(&self.config);
        let state = State::Datagrams(Box::new(association));
        let untold = Untold { connect: true, ..Untold::default() };
        let slot = self.table.insert(tuple, Flow { state, untold, armed: None, meter: Meter::default() });
        self.counters.flows_opened += 1;
        self.counters.flows_now += 1;
        self.events.push(slot);
        self.arm(slot, expires, now);
        Ok(slot)
    }

    pub(super) fn read_messages(&mut self, slot: u32, buf: &mut [u8], now: Instant) -> usize {
        let Some(Flow { state: State::Datagrams(association), untold, .. }) = self.table.get_mut(slot) else {
            return 0;
        };
        let (count, stale) = association.read(buf, now);
        self.counters.datagrams_lost_up += stale;
        untold.readable &= count > 0;
        self.weigh(slot);
        count
    }

    /// Takes bytes of the agent; what is no message ends the flow.
    pub(super) fn write_messages(&mut self, slot: u32, bytes: &[u8], now: Instant) -> usize {
        let Some(tuple) = self.table.tuple(slot) else { return 0 };
        let Self { config, table, outbox, scratch, replies, counters, datagrams, .. } = self;
        let Some(Flow { state: State::Datagrams(association), .. }) = table.get_mut(slot) else { return 0 };
        let others = datagrams.held - association.weighed;
        let mut reader = std::mem::take(&mut association.reader);
        let read = reader.push(bytes, &mut |message| match message {
            Message::Datagram { peer, payload } => {
                let left = config.datagram_memory.saturating_sub(others + association.held());
                let allowed = Allowance { queue: config.datagram_queue, left };
                let sum = config.emit_checksums;
                counters.datagrams_down += 1;
                counters.datagrams_lost_down += association.deliver(&tuple, peer, payload, sum, allowed, now);
            }
            Message::Trouble { peer, trouble } => {
                let Some(quote) = association.quote(peer, now) else { return };
                let Some(error) = icmp::error(trouble, quote.bytes()) else { return };
                if !replies.take(now) {
                    return counters.drop(DropReason::ReplyRate);
                }
                counters.count_unreachable(tuple.kind);
                reply::build_error(&quote, error, scratch);
                if !outbox.push(scratch) {
                    counters.drop(DropReason::ReplyFull);
                }
            }
        });
        association.reader = reader;
        let expires = association.expires(config);
        datagrams.recency(tuple.kind).touch(slot);
        if read.is_err() {
            counters.messages_broken += 1;
            self.lose(slot);
            return bytes.len();
        }
        self.dirty.push(slot);
        self.weigh(slot);
        self.arm(slot, expires, now);
        bytes.len()
    }

    /// Sends at most one turn's packets of an association.
    pub(super) fn send_datagrams(&mut self, slot: u32, emit: &mut dyn FnMut(&[u8]) -> bool) -> Sent {
        let Some(Flow { state: State::Datagrams(association), meter, .. }) = self.table.get_mut(slot) else {
            return Sent::All;
        };
        let mut sent = Sent::More;
        for _ in 0..PACKETS_PER_TURN {
            let Some(packet) = association.packet() else {
                sent = Sent::All;
                break;
            };
            if !emit(packet) {
                sent = Sent::DeviceFull;
                break;
            }
            self.counters.packets_out += 1;
            self.counters.bytes_out += packet.len() as u64;
            meter.said_datagram();
            association.packet_sent();
        }
        self.weigh(slot);
        sent
    }

    /// The agent turned the association away: what was sent gets the error, and a reason that holds for all of
    /// the kind holds for a while.
    pub(super) fn refuse_datagrams(&mut self, slot: u32, why: Refusal, now: Instant) {
        let Some(Tuple { kind, source, .. }) = self.table.tuple(slot) else { return };
        if matches!(why, Refusal::Prohibited | Refusal::Unsupported) {
            *self.datagrams.barred(kind, source.is_ipv6()) = Some(now + BARRED);
            self.counters.echo_prohibited |= kind == Kind::Echo;
        }
        let Some(Flow { state: State::Datagrams(association), .. }) = self.table.get_mut(slot) else {
            return;
        };
        let peers = std::mem::take(&mut association.peers);
        self.remove(slot);
        for quote in peers.quotes() {
            let Some(error) = icmp::error(Trouble::Refusal(why), quote.bytes()) else { continue };
            if self.replies.take(now) {
                self.count_unreachable(kind);
                reply::build_error(&quote, error, &mut self.scratch);
                self.post();
            } else {
                self.counters.drop(DropReason::ReplyRate);
            }
        }
    }

    /// Brings the sum of what waits up to date.
    pub(super) fn weigh(&mut self, slot: u32) {
        let Some(Flow { state: State::Datagrams(association), .. }) = self.table.get_mut(slot) else {
            return;
        };
        let held = association.held();
        self.datagrams.held = self.datagrams.held - association.weighed + held;
        association.weighed = held;
    }

    /// The flow has come to its end in good order.
    pub(super) fn conclude(&mut self, slot: u32) {
        if let Some(Flow { state: State::Datagrams(association), .. }) = self.table.get(slot) {
            let (up, down) = association.waiting();
            self.counters.datagrams_lost_up += up as u64;
            self.counters.datagrams_lost_down += down as u64;
        }
        self.leave(slot, Untold { closed: true, ..Untold::default() });
    }

    fn is_barred(&mut self, kind: Kind, v6: bool, now: Instant) -> bool {
        let until = self.datagrams.barred(kind, v6);
        until.take_if(|until| *until <= now);
        until.is_some()
    }

    fn count_unreachable(&mut self, kind: Kind) {
        self.counters.count_unreachable(kind);
    }

    /// Panics unless the associations, their sum and their order agree.
    pub(super) fn check_datagrams(&self) {
        let all = self.table.iter().filter_map(|(slot, flow)| match &flow.state {
            State::Datagrams(association) => Some((slot, association)),
            State::Pending(..) | State::Open(_) | State::Gone => None,
        });
        let (mut held, mut udp, mut echo) = (0, 0, 0);
        for (slot, association) in all {
            assert_eq!(association.held(), association.weighed, "slot {slot} was not weighed");
            held += association.held();
            *(if association.kind == Kind::Echo { &mut echo } else { &mut udp }) += 1;
        }
        assert_eq!(held, self.datagrams.held);
        assert_eq!((udp, echo), (self.datagrams.udp.len(), self.datagrams.echo.len()));
        assert!(udp <= self.config.max_associations && echo <= self.config.max_echoes);
        let cut = (udp + echo) * agent::wire::datagram::MAX_MESSAGE;
        assert!(held <= self.config.datagram_memory + cut, "{held} bytes wait");
    }
}

/// How many bytes of messages the owner may bring at once: they wait as packets, and the oldest make room.
pub(super) const ROOM: usize = 1 << 20;
const BARRED: Duration = Duration::from_secs(30);
