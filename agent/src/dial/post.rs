//! The flows of datagrams among all ends of a trunk, and what they share.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Instant;

use super::datagrams::Datagrams;
use super::poller::{Interest, Poller};
use super::slot::State;
use super::{DialConfig, Sockets};
use crate::local_end::{EndEvent, EndId};
use crate::wire::open::{Kind, Refusal};

/// What all flows of datagrams of one trunk share.
#[derive(Debug, Default)]
pub(super) struct Post {
    /// Those of TCP share it too.
    pub(super) poller: Poller,
    /// What a datagram is received into, since the first such flow.
    pub(super) arrived: Vec<u8>,
    /// The message or the packet that is being made.
    pub(super) out: Vec<u8>,
    pub(super) counts: Counts,
}

/// What became of datagrams.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) sent: u64,
    pub(super) received: u64,
    /// The system had no room to send them.
    pub(super) dropped: u64,
    /// To or from peers that the rules deny.
    pub(super) denied: u64,
    /// Echoes to another target than the flow's.
    pub(super) stray: u64,
    pub(super) troubles: u64,
    /// Troubles that were not told since older ones waited.
    pub(super) untold: u64,
}

impl Post {
    pub(super) fn watch(&mut self, socket: &UdpSocket, slot: u32) -> io::Result<()> {
        self.arrived.resize(LARGEST_PACKET, 0);
        self.poller.watch(socket, slot, Interest::READABLE)
    }
}

impl Counts {
    pub(super) fn tell(&self, tell: &mut dyn FnMut(&'static str, u64)) {
        tell("datagrams_sent", self.sent);
        tell("datagrams_received", self.received);
        tell("datagrams_dropped", self.dropped);
        tell("datagrams_denied", self.denied);
        tell("echoes_stray", self.stray);
        tell("troubles_told", self.troubles - self.untold);
        tell("troubles_dropped", self.untold);
    }
}

impl Sockets {
    pub(super) fn datagrams(&mut self, end: EndId) -> Option<(&mut Datagrams, &mut Post, &DialConfig)> {
        match &mut self.slots.get_mut(end.0 as usize)?.state {
            State::Datagrams(flow) => Some((flow, &mut self.post, &self.config)),
            State::Free
            | State::Resolving { .. }
            | State::Dialling(_)
            | State::Connected(_)
            | State::Over(_) => None,
        }
    }

    /// Begins a flow of datagrams in a free slot.
    pub(super) fn associate(
        &mut self,
        slot: u32,
        kind: Kind,
        target: SocketAddr,
        now: Instant,
    ) -> Result<(), Refusal> {
        let mut flow = match kind {
            // Each datagram is judged by its own peer.
            Kind::Udp => Datagrams::udp(target, slot, &mut self.post, now)?,
            Kind::Echo if !self.config.rules.permits(target.ip()) => return Err(Refusal::Denied),
            Kind::Echo => Datagrams::echo(target.ip(), slot, &mut self.post, now)?,
            Kind::Tcp | Kind::Dns => return Err(Refusal::Unsupported),
        };
        flow.expires = now + self.config.idle;
        self.slots[slot as usize].news.connected = Some(Box::new((flow.local(target), target)));
        self.replace(slot, State::Datagrams(Box::new(flow)));
        self.tell(slot);
        Ok(())
    }

    /// Tells the engine what a flow of datagrams has to say, if it does not know.
    pub(super) fn tell_datagrams(&mut self, slot: u32) {
        let entry = &mut self.slots[slot as usize];
        if let State::Datagrams(flow) = &mut entry.state
            && flow.is_news()
        {
            entry.news.readable = true;
            self.tell(slot);
        }
    }

    /// Ends a flow of datagrams that was silent for long, or looks again when it may be.
    pub(super) fn expire(&mut self, slot: u32, now: Instant) {
        let idle = self.config.idle;
        let State::Datagrams(mut flow) = self.replace(slot, State::Free) else { return };
        flow.expires = flow.used + idle;
        if flow.expires > now {
            self.replace(slot, State::Datagrams(flow));
        } else {
            self.end(slot, EndEvent::Closed { end: EndId(slot) });
        }
    }
}

/// No packet of IPv4 or IPv6 is longer.
const LARGEST_PACKET: usize = 65_535;
