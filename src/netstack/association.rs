//! Pure: a UDP association (a source socket and its peers), or the echo requests of one identifier to one target.
//!
//! Toward the agent wait messages, toward the application packets; both are bounded, and the oldest go first.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use agent::wire::datagram::{Message, Reader};
use agent::wire::open::Kind;

use super::Config;
use super::flow_table::Tuple;
use super::mailbox::Mailbox;
use super::packet::{self, Packet};
use super::peers::{Peers, Quote};
use super::reply;

pub(super) struct Association {
    pub(super) kind: Kind,
    pub(super) reader: Reader,
    pub(super) peers: Peers,
    /// What `held` was when it was last added to the stack's sum.
    pub(super) weighed: usize,
    up: Mailbox,
    down: Mailbox,
    readable_told: bool,
    sent: u32,
    received: u32,
    used: Instant,
}

/// What the stack allows an association.
#[derive(Clone, Copy)]
pub(super) struct Allowance {
    /// Bytes one of its queues may hold.
    pub(super) queue: usize,
    /// Bytes that are left for all associations.
    pub(super) left: usize,
}

impl Association {
    pub(super) fn new(kind: Kind, now: Instant) -> Self {
        Self {
            kind,
            reader: Reader::default(),
            peers: Peers::default(),
            weighed: 0,
            up: Mailbox::default(),
            down: Mailbox::default(),
            readable_told: false,
            sent: 0,
            received: 0,
            used: now,
        }
    }

    /// Takes a datagram of the application; tells how many were dropped for it.
    pub(super) fn take(
        &mut self,
        peer: SocketAddr,
        payload: &[u8],
        packet: &Packet<'_>,
        allowed: Allowance,
        now: Instant,
    ) -> u64 {
        self.used = now;
        self.sent = self.sent.saturating_add(1);
        self.peers.note(self.kept_as(peer), packet, now);
        let mut message = Vec::with_capacity(MESSAGE_HEAD + payload.len());
        Message::Datagram { peer, payload }.encode(&mut message);
        let most = allowed.most(&self.up);
        self.up.push(message, most, now)
    }

    /// Makes a packet for the application of what came from a peer; tells how many were dropped for it.
    ///
    /// A datagram that no network could have brought counts as dropped itself.
    pub(super) fn deliver(
        &mut self,
        tuple: &Tuple,
        peer: SocketAddr,
        payload: &[u8],
        sum: bool,
        allowed: Allowance,
        now: Instant,
    ) -> u64 {
        let Tuple { source, target, .. } = *tuple;
        let header = packet::header_of(source.ip());
        let most_payload =
            usize::from(u16::MAX) - if source.is_ipv4() { header } else { 0 } - reply::DATAGRAM_HEADER;
        let fits = peer.is_ipv4() == source.is_ipv4() && payload.len() <= most_payload;
        if !fits || !packet::may_send(peer.ip()) || peer.ip() == source.ip() {
            return 1;
        }
        let mut bytes = Vec::with_capacity(header + reply::DATAGRAM_HEADER + payload.len());
        match self.kind {
            Kind::Echo if peer.ip() == target.ip() => {
                let echo = (source.port(), peer.port());
                reply::build_echo_reply(peer.ip(), source.ip(), echo, payload, &mut bytes);
            }
            Kind::Udp if peer.port() != 0 => reply::build_udp(peer, source, payload, sum, &mut bytes),
            Kind::Echo | Kind::Udp | Kind::Tcp | Kind::Dns => return 1,
        }
        self.used = now;
        self.received = self.received.saturating_add(1);
        let most = allowed.most(&self.down);
        self.down.push(bytes, most, now)
    }

    /// The datagram that trouble with this peer is about, if there was one lately.
    pub(super) fn quote(&self, peer: SocketAddr, now: Instant) -> Option<Quote> {
        let quote = self.peers.quote(self.kept_as(peer), now)?;
        Some(if self.kind == Kind::Echo { quote.with_sequence(peer.port()) } else { quote })
    }

    /// Whether there is something to read that the owner does not know of.
    pub(super) fn is_readable_anew(&mut self) -> bool {
        let anew = !self.up.is_empty() && !self.readable_told;
        self.readable_told |= anew;
        anew
    }

    /// Moves messages into `buf`; tells how many bytes, and how many messages had become stale.
    pub(super) fn read(&mut self, buf: &mut [u8], now: Instant) -> (usize, u64) {
        let stale = now.checked_sub(FRESH).map_or(0, |time| self.up.drop_older(time));
        let count = self.up.read(buf);
        if count == 0 {
            self.readable_told = false;
        }
        (count, stale)
    }

    /// The next packet for the application.
    pub(super) fn packet(&self) -> Option<&[u8]> {
        self.down.front()
    }

    pub(super) fn packet_sent(&mut self) {
        self.down.pop();
    }

    /// Datagrams toward the agent and toward the application.
    pub(super) fn waiting(&self) -> (usize, usize) {
        (self.up.len(), self.down.len())
    }

    pub(super) fn held(&self) -> usize {
        self.up.held() + self.down.held() + self.reader.waiting()
    }

    /// When it has been idle for long enough to be given up.
    pub(super) fn expires(&self, config: &Config) -> Instant {
        let life = match self.kind {
            Kind::Echo => config.echo_timeout,
            // A question and its answer, as names are looked up.
            Kind::Udp | Kind::Tcp | Kind::Dns if self.sent == 1 && self.received > 0 => {
                config.udp_pair_timeout.min(config.udp_timeout)
            }
            Kind::Udp | Kind::Tcp | Kind::Dns => config.udp_timeout,
        };
        self.used + life
    }

    /// An echo's sequence number is no part of whom it went to.
    fn kept_as(&self, peer: SocketAddr) -> SocketAddr {
        if self.kind == Kind::Echo { SocketAddr::new(peer.ip(), 0) } else { peer }
    }
}

impl Allowance {
    fn most(self, mailbox: &Mailbox) -> usize {
        self.queue.min(mailbox.held() + self.left)
    }
}

/// Whose packets an association is found by: for an echo, the identifier stands where UDP has its port.
pub(super) fn echo_tuple(source: IpAddr, target: IpAddr, identifier: u16) -> Tuple {
    Tuple {
        kind: Kind::Echo,
        source: SocketAddr::new(source, identifier),
        target: SocketAddr::new(target, 0),
    }
}

/// How long a datagram may wait for the tunnel; later its sender has sent another or given up.
const FRESH: Duration = Duration::from_secs(10);
/// The most that stands before a message's payload.
const MESSAGE_HEAD: usize = 22;
