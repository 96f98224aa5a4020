//! One end in its slot: the states of its life, the attempts of its dial, and what it has to tell.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use rustix::io::Errno;

use super::datagrams::Datagrams;
use super::limits::Spent;
use super::poller::{Heard, Interest, Poller};
use super::tcp::{self, Connection};
use crate::local_end::{EndEvent, EndId};
use crate::wire::open::{Kind, Refusal};

#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) state: State,
    pub(super) news: News,
    pub(super) in_news: bool,
    /// Stands among the slots to look at.
    pub(super) heard: bool,
}

#[derive(Debug, Default)]
pub(super) enum State {
    #[default]
    Free,
    Resolving {
        serial: u64,
        kind: Kind,
        give_up: Instant,
    },
    Dialling(Box<Dial>),
    Connected(Connection),
    Datagrams(Box<Datagrams>),
    Over(Box<EndEvent>),
}

/// One attempt, and the addresses to try after it.
#[derive(Debug)]
pub(super) struct Dial {
    pub(super) stream: TcpStream,
    /// What the socket has said so far.
    pub(super) heard: Heard,
    pub(super) remote: SocketAddr,
    /// In reverse order.
    pub(super) rest: Vec<SocketAddr>,
    /// When this attempt is given up; the last one has all the time that is left.
    pub(super) deadline: Instant,
    /// When the whole dial is given up.
    pub(super) give_up: Instant,
}

/// What is to be told before the end of an end, in this order.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) connected: Option<Box<(SocketAddr, SocketAddr)>>,
    pub(super) readable: bool,
    pub(super) room: bool,
    pub(super) finished: bool,
}

impl Slot {
    /// Notes what its socket says, and stands up to be looked at.
    pub(super) fn hear(&mut self, heard: Heard, slot: u32, to_look_at: &mut VecDeque<u32>) {
        match &mut self.state {
            State::Dialling(dial) => dial.heard.add(heard),
            State::Connected(connection) => connection.hear(heard),
            State::Datagrams(flow) => flow.hear(heard),
            State::Free | State::Resolving { .. } | State::Over(_) => return,
        }
        if !std::mem::replace(&mut self.heard, true) {
            to_look_at.push_back(slot);
        }
    }
}

impl State {
    /// By when a dial has to come to something, or a silent flow is looked at.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Resolving { give_up, .. } => Some(*give_up),
            Self::Dialling(dial) => Some(dial.deadline),
            Self::Datagrams(flow) => Some(flow.expires),
            Self::Free | Self::Connected(_) | Self::Over(_) => None,
        }
    }

    pub(super) fn is_dial(&self) -> bool {
        matches!(self, Self::Resolving { .. } | Self::Dialling(_))
    }

    /// Resets the target, if there is one.
    pub(super) fn abort(self) {
        match self {
            Self::Connected(connection) => tcp::abort(connection.into_stream()),
            Self::Dialling(dial) => tcp::abort(dial.stream),
            Self::Free | Self::Resolving { .. } | Self::Datagrams(_) | Self::Over(_) => {}
        }
    }
}

impl Dial {
    /// Begins to connect to the last address that can be tried at all.
    pub(super) fn begin(
        mut rest: Vec<SocketAddr>,
        give_up: Instant,
        slot: u32,
        poller: &mut Poller,
        spent: &mut Spent,
        now: Instant,
    ) -> Result<Self, Refusal> {
        let mut failed = Refusal::HostUnreachable;
        while let Some(remote) = rest.pop() {
            if spent.holds(remote, now) {
                failed = Refusal::Exhausted;
                continue;
            }
            let both = Interest::READABLE | Interest::WRITABLE;
            let begun =
                tcp::begin(remote).and_then(|stream| poller.watch(&stream, slot, both).map(|()| stream));
            match begun {
                Ok(stream) => {
                    let shares = u32::try_from(rest.len() + 1).unwrap_or(u32::MAX);
                    let deadline = now + give_up.saturating_duration_since(now) / shares;
                    let heard = Heard::default();
                    return Ok(Self { stream, heard, remote, rest, deadline, give_up });
                }
                Err(error) => {
                    if Errno::from_io_error(&error) == Some(Errno::ADDRNOTAVAIL) {
                        spent.note(remote, now);
                    }
                    failed = tcp::refusal(&error);
                }
            }
        }
        Err(failed)
    }
}

impl News {
    pub(super) fn next(&mut self, end: EndId) -> Option<EndEvent> {
        if let Some(addresses) = self.connected.take() {
            let (local, remote) = *addresses;
            return Some(EndEvent::Connected { end, local, remote });
        }
        if std::mem::take(&mut self.readable) {
            return Some(EndEvent::Readable { end });
        }
        if std::mem::take(&mut self.room) {
            return Some(EndEvent::Room { end });
        }
        std::mem::take(&mut self.finished).then_some(EndEvent::Finished { end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slot_of_an_idle_flow_is_small() {
        assert!(size_of::<Slot>() <= 56, "{} bytes", size_of::<Slot>());
    }
}
