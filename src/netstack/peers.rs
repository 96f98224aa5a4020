//! Pure: whom an association has sent to lately, and the beginning of what it sent.
//!
//! An error is for whoever sent the datagram it quotes: a kernel finds the socket by the quoted addresses and ports.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::packet::{Packet, V6_HEADER};

/// The peers of one association; of many, the ones sent to last.
#[derive(Default)]
pub(super) struct Peers(Vec<Peer>);

struct Peer {
    address: SocketAddr,
    sent: Instant,
    quote: Quote,
}

/// The IP header of a datagram and the 8 bytes behind it.
#[derive(Clone, Copy)]
pub(super) struct Quote {
    bytes: [u8; V6_HEADER + TRANSPORT],
    len: u8,
    pub(super) source: IpAddr,
    pub(super) target: IpAddr,
}

impl Quote {
    fn of(packet: &Packet<'_>) -> Self {
        let mut bytes = [0; V6_HEADER + TRANSPORT];
        let len = packet.bytes.len().min(packet.header + TRANSPORT).min(bytes.len());
        bytes[..len].copy_from_slice(&packet.bytes[..len]);
        Self { bytes, len: len as u8, source: packet.source, target: packet.target }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// The same echo request with another sequence number.
    pub(super) fn with_sequence(mut self, sequence: u16) -> Self {
        let at = usize::from(self.len) - 2;
        self.bytes[at..at + 2].copy_from_slice(&sequence.to_be_bytes());
        self
    }
}

impl Peers {
    pub(super) fn note(&mut self, address: SocketAddr, packet: &Packet<'_>, now: Instant) {
        let peer = Peer { address, sent: now, quote: Quote::of(packet) };
        if let Some(known) = self.0.iter_mut().find(|known| known.address == address) {
            *known = peer;
        } else if self.0.len() < MAX_PEERS {
            // Most sockets have one peer.
            self.0.reserve_exact(1);
            self.0.push(peer);
        } else if let Some(oldest) = self.0.iter_mut().min_by_key(|known| known.sent) {
            *oldest = peer;
        }
    }

    /// What was sent to this peer last, if that is not long ago.
    pub(super) fn quote(&self, address: SocketAddr, now: Instant) -> Option<Quote> {
        let known = self.0.iter().find(|known| known.address == address)?;
        (now.saturating_duration_since(known.sent) <= LATELY).then_some(known.quote)
    }

    pub(super) fn quotes(&self) -> impl Iterator<Item = Quote> + '_ {
        self.0.iter().map(|peer| peer.quote)
    }
}

const TRANSPORT: usize = 8;
const MAX_PEERS: usize = 32;
/// Longer than any network takes to say what became of a datagram.
const LATELY: Duration = Duration::from_secs(30);

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn many_peers_are_bounded_and_the_latest_are_known() {
        let start = Instant::now();
        let mut peers = Peers::default();
        let bytes = [7; 40];
        let packet = Packet {
            source: [10, 99, 0, 1].into(),
            target: [10, 0, 1, 5].into(),
            protocol: 17,
            bytes: &bytes,
            header: 20,
        };
        let peer = |port| SocketAddr::from(([10, 0, 1, 5], port));
        for port in 1..=40 {
            peers.note(peer(port), &packet, start + Duration::from_millis(u64::from(port)));
        }
        let now = start + Duration::from_secs(1);
        assert_eq!(peers.0.len(), MAX_PEERS);
        assert!(peers.quote(peer(8), now).is_none());
        assert_eq!(peers.quote(peer(9), now).map(|quote| quote.bytes().len()), Some(28));
        assert!(peers.quote(peer(40), now).is_some());
        assert!(peers.quote(peer(40), now + LATELY).is_none());
    }
}
