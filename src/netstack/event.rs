//! Pure: what the netstack tells its owner.

use std::net::SocketAddr;

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
    /// An application asks for a connection; answered by `accept` or `refuse`.
    Connect { flow: FlowId, source: SocketAddr, target: SocketAddr },
    /// Bytes may be read. Told again only after a read returned 0.
    Readable { flow: FlowId },
    /// `room` grew.
    Room { flow: FlowId },
    /// The application finished its direction and all its bytes have been read. Told once.
    Finished { flow: FlowId },
    /// The application reset the connection or gave up. The flow is gone.
    Reset { flow: FlowId },
    /// Both directions are finished and everything is delivered. The flow is gone.
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
        let Tuple { source, target } = tuple;
        let taken = |flag: &mut bool| std::mem::take(flag);
        if taken(&mut self.connect) {
            Some(Event::Connect { flow, source, target })
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
