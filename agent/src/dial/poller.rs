//! How one task hears of all sockets of a trunk.
//!
//! They stand in one edge-triggered poll of our own, and only that one is registered with tokio. So a socket costs
//! nothing here but its entry in the kernel; tokio keeps some 400 bytes for each, and wakes nobody for an error queue.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::task::{Context, Poll};
use std::time::Duration;

pub(super) use mio::Interest;
use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Events, Token};
use tokio::io::unix::AsyncFd;

/// What is said of a socket. Nothing is said twice: what was heard holds until the socket says otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Heard {
    /// There is something to read, or the end.
    pub(super) readable: bool,
    /// Nothing more comes behind what can be read.
    pub(super) ended: bool,
    /// It failed, or has an entry in its error queue.
    pub(super) erring: bool,
}

/// The sockets of one trunk.
#[derive(Debug, Default)]
pub(super) struct Poller(Option<Polled>);

#[derive(Debug)]
struct Polled {
    poll: AsyncFd<mio::Poll>,
    events: Events,
}

impl Poller {
    /// Tells of the socket from now on by its slot's number, until it is closed.
    ///
    /// After the first one [`poll`](Self::poll) is to be called even if nothing woke its caller.
    pub(super) fn watch(&mut self, socket: impl AsFd, slot: u32, interest: Interest) -> io::Result<()> {
        let polled = match &mut self.0 {
            Some(polled) => polled,
            none => none.insert(Polled::new()?),
        };
        let fd = socket.as_fd().as_raw_fd();
        polled.poll.get_ref().registry().register(&mut SourceFd(&fd), Token(slot as usize), interest)
    }

    /// Tells what came for each slot, its writable sockets included. True when there may be more; else `cx` is woken.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, take: &mut dyn FnMut(u32, Heard)) -> bool {
        let Some(Polled { poll, events }) = &mut self.0 else { return false };
        for _ in 0..WAITS_A_TURN {
            let Poll::Ready(Ok(mut ready)) = poll.poll_read_ready_mut(cx) else { return false };
            let waited = ready.get_inner_mut().poll(events, Some(Duration::ZERO));
            let mut count = 0;
            for event in events.iter() {
                count += 1;
                take(u32::try_from(event.token().0).unwrap_or(u32::MAX), Heard::from(event));
            }
            if waited.is_err() || count < EVENTS_AT_ONCE {
                ready.clear_ready();
            }
        }
        true
    }
}

impl Polled {
    #[expect(
        deprecated,
        reason = "its successor is unsafe for types that change their descriptor; this one does not"
    )]
    fn new() -> io::Result<Self> {
        let poll = AsyncFd::new(mio::Poll::new()?)?;
        Ok(Self { poll, events: Events::with_capacity(EVENTS_AT_ONCE) })
    }
}

impl Heard {
    /// Adds what is said later.
    pub(super) fn add(&mut self, later: Self) {
        self.readable |= later.readable;
        self.ended |= later.ended;
        self.erring |= later.erring;
    }
}

impl From<&Event> for Heard {
    fn from(event: &Event) -> Self {
        let (erring, closed) = (event.is_error(), event.is_read_closed());
        Self { readable: event.is_readable() || closed || erring, ended: closed || erring, erring }
    }
}

const EVENTS_AT_ONCE: usize = 128;
const WAITS_A_TURN: usize = 4;
