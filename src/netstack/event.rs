//! Pure: what the netstack tells its owner.

use std::net::SocketAddr;

use agent::wire::open::Kind;

use super::flow_table::Tuple;
use super::tcp::News;

/// Names a flow; used again after the flow is gone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct FlowId(pub u32);

/// What a [`Stack`](super::Stack) tells its owner.
///
/// A flow is gone after `Reset` and `Closed`, and after the owner's `refuse` and `reset`; its id then means
/// nothing until a `Connect` uses it again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// An application asks for a connection, or sent its first datagram; answered by `accept` or `refuse`.
    ///
    /// An echo's source has the identifier for a port. What UDP and echo flows read and write are messages of
    /// `agent::wire::datagram`; they may be read before the answer.
    Connect { flow: FlowId, kind: Kind, source: SocketAddr, target: SocketAddr },
    /// Bytes may be read. Told again only after a read returned 0.
    Readable { flow: FlowId },
    /// `room` grew.
    Room { flow: FlowId },
    /// The application finished its direction and all its bytes have been read. Told once.
    Finished { flow: FlowId },
    /// The application reset the connection or gave up. The flow is gone.
    Reset { flow: FlowId },
    /// Both directions are finished and everything is delivered, or datagrams had nothing to carry for long.
    /// The flow is gone.
    Closed { flow: FlowId },
}

/// Events that wait for `poll_event`; each kind at most once, told in this order.
#[derive(Clone, Copy, Default)]
pub(super) struct Untold {
    pub(super) connect: bool,
    pub(super) readable: bool,
    pub(super) room: bool,
    pub(super) finished: bool,
    pub(super) reset: bool,
    pub(super) closed: bool,
}

impl Untold {
    pub(super) fn any(&self) -> bool {
        self.connect || self.readable || self.room || self.finished || self.reset || self.closed
    }

    pub(super) fn add(&mut self, news: News) {
        self.readable |= news.readable;
        self.room |= news.room;
        self.finished |= news.finished;
        self.closed |= news.closed;
    }

    pub(super) fn take(&mut self, flow: FlowId, tuple: Tuple) -> Option<Event> {
        let Tuple { kind, source, target } = tuple;
        let taken = |flag: &mut bool| std::mem::take(flag);
        if taken(&mut self.connect) {
            Some(Event::Connect { flow, kind, source, target })
        } else if taken(&mut self.readable) {
            Some(Event::Readable { flow })
        } else if taken(&mut self.room) {
            Some(Event::Room { flow })
        } else if taken(&mut self.finished) {
            Some(Event::Finished { flow })
        } else if taken(&mut self.reset) {
            Some(Event::Reset { flow })
        } else if taken(&mut self.closed) {
            Some(Event::Closed { flow })
        } else {
            None
        }
    }
}
