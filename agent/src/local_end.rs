//! What the engine asks of the near sides of its flows.
//!
//! An end is one flow's near side: a connection of the netstack (client) or a kernel socket (agent).
//! All ends of one engine live in one collection, so no flow costs a task, a lock or a channel.

use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::wire::open::{Open, Refusal};

/// Names one end inside its collection; reused after the end is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndId(pub u32);

/// What a near side tells the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndEvent {
    /// A near side asks to be connected; answered by [`LocalEnds::accept`] or [`LocalEnds::refuse`].
    Wanted { end: EndId, source: SocketAddr, open: Open },
    /// What [`LocalEnds::open`] began has succeeded.
    Connected { end: EndId, local: SocketAddr, remote: SocketAddr },
    /// What [`LocalEnds::open`] began has failed. The end is gone.
    Refused { end: EndId, refusal: Refusal },
    /// Bytes may be read. Told again only after a read returned 0.
    Readable { end: EndId },
    /// [`LocalEnds::room`] grew.
    Room { end: EndId },
    /// The near side finished its direction and every byte of it has been read. Told once.
    Finished { end: EndId },
    /// The near side reset, failed or gave up. The end is gone.
    Reset { end: EndId },
    /// Both directions are finished and everything is delivered. The end is gone.
    Closed { end: EndId },
}

/// What was counted of one end, as far as its kind can know it: packets and repeats are those of a netstack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndFigures {
    /// Packets from the near side.
    pub packets_from: u64,
    /// Packets to the near side.
    pub packets_to: u64,
    /// Segments the near side sent again.
    pub repeats_from: u64,
    /// Segments sent to the near side again.
    pub repeats_to: u64,
    /// The smoothed round trip to the near side.
    pub rtt: Option<Duration>,
    /// The end was given up because the near side had stopped answering.
    pub silent: bool,
}

/// The near sides of one engine's flows.
///
/// Order of use: `poll_io` moves bytes of all ends as far as the system allows, then `poll_event`
/// until `None`, then the engine reads and writes, then `poll_io` again. An id is valid from its
/// first mention until an event that says the end is gone, or until `refuse` or `reset`.
pub trait LocalEnds {
    /// Begins to connect what the far side asks for; the answer is `Connected` or `Refused`.
    fn open(&mut self, open: &Open, now: Instant) -> Result<EndId, Refusal>;
    /// The far side is connected; bytes may flow.
    fn accept(&mut self, end: EndId, local: SocketAddr, remote: SocketAddr, now: Instant);
    /// The far side cannot be had; tells the near side so. The end is gone.
    fn refuse(&mut self, end: EndId, refusal: Refusal, now: Instant);
    /// Moves waiting bytes into `buf`; 0 means nothing is there now.
    fn read(&mut self, end: EndId, buf: &mut [u8], now: Instant) -> usize;
    /// Takes bytes for the near side; the engine never passes `room`.
    fn write(&mut self, end: EndId, bytes: &[u8], now: Instant);
    /// How many bytes `write` takes now.
    fn room(&self, end: EndId) -> usize;
    /// No more bytes will be written; the near side gets a FIN after those it has.
    fn finish(&mut self, end: EndId, now: Instant);
    /// Ends both directions at once with a reset. The end is gone.
    fn reset(&mut self, end: EndId, now: Instant);
    /// The next thing to tell the engine.
    fn poll_event(&mut self) -> Option<EndEvent>;
    /// Does the system calls of all ends, within a budget. `Ready` means it moved something and wants
    /// to be called again soon; `Pending` that wakers are armed and nothing is left to do.
    fn poll_io(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<()>;
    /// When `handle_timeout` wants to be called.
    fn poll_timeout(&self) -> Option<Instant>;
    /// Acts on timers that are due.
    fn handle_timeout(&mut self, now: Instant);
    /// Why no end can be served any more (the device is gone); told once.
    fn failure(&mut self) -> Option<String> {
        None
    }
    /// What was counted of one end. Also told of an end that is gone, until the next `poll_event`.
    fn figures(&self, _end: EndId) -> EndFigures {
        EndFigures::default()
    }
    /// What was counted, by name, for reports.
    fn counters(&self, _tell: &mut dyn FnMut(&'static str, u64)) {}
}
