//! A client's local ends with one flow: it sends some bytes, finishes, and keeps what comes back.
#![allow(dead_code, reason = "helpers of tests, each of which uses some")]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use agent::local_end::{EndEvent, EndId, LocalEnds};
use agent::wire::open::{Open, Refusal};
use tokio::sync::Notify;

/// What the flow has come to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) remote: Option<SocketAddr>,
    pub(crate) refused: Option<Refusal>,
    pub(crate) received: Vec<u8>,
    pub(crate) finished: bool,
    pub(crate) reset: bool,
}

#[derive(Clone, Default)]
pub(crate) struct Shared(Rc<(RefCell<Seen>, Notify)>);

impl Shared {
    pub(crate) async fn when(&self, ready: impl Fn(&Seen) -> bool) -> Seen {
        loop {
            let changed = self.0.1.notified();
            let seen = self.0.0.borrow().clone();
            if ready(&seen) {
                return seen;
            }
            changed.await;
        }
    }

    fn change(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.0.0.borrow_mut());
        self.0.1.notify_one();
    }
}

#[derive(Default)]
pub(crate) struct Probe {
    events: VecDeque<EndEvent>,
    unsent: Vec<u8>,
    /// Never finishes.
    holds: bool,
    shared: Shared,
}

const END: EndId = EndId(0);
const SOURCE: &str = "192.0.2.1:1000";

impl Probe {
    pub(crate) fn wanting(open: Open, unsent: Vec<u8>) -> Self {
        let wanted = EndEvent::Wanted { end: END, source: SOURCE.parse().unwrap(), open };
        Self { events: VecDeque::from([wanted]), unsent, ..Self::default() }
    }

    pub(crate) fn holding(open: Open) -> Self {
        Self { holds: true, ..Self::wanting(open, Vec::new()) }
    }

    pub(crate) fn shared(&self) -> Shared {
        self.shared.clone()
    }
}

impl LocalEnds for Probe {
    fn open(&mut self, _open: &Open, _now: Instant) -> Result<EndId, Refusal> {
        Err(Refusal::Unsupported)
    }

    fn accept(&mut self, end: EndId, _local: SocketAddr, remote: SocketAddr, _now: Instant) {
        self.shared.change(|seen| seen.remote = Some(remote));
        if !self.unsent.is_empty() {
            self.events.push_back(EndEvent::Readable { end });
        } else if !self.holds {
            self.events.push_back(EndEvent::Finished { end });
        }
    }

    fn refuse(&mut self, _end: EndId, refusal: Refusal, _now: Instant) {
        self.shared.change(|seen| seen.refused = Some(refusal));
    }

    fn read(&mut self, end: EndId, buf: &mut [u8], _now: Instant) -> usize {
        if self.unsent.is_empty() {
            return 0;
        }
        let count = buf.len().min(self.unsent.len());
        buf[..count].copy_from_slice(&self.unsent[..count]);
        self.unsent.drain(..count);
        if self.unsent.is_empty() {
            self.events.push_back(EndEvent::Finished { end });
        }
        count
    }

    fn write(&mut self, _end: EndId, bytes: &[u8], _now: Instant) {
        self.shared.change(|seen| seen.received.extend_from_slice(bytes));
    }

    fn room(&self, _end: EndId) -> usize {
        64 * 1024
    }

    fn finish(&mut self, _end: EndId, _now: Instant) {
        self.shared.change(|seen| seen.finished = true);
    }

    fn reset(&mut self, _end: EndId, _now: Instant) {
        self.shared.change(|seen| seen.reset = true);
    }

    fn poll_event(&mut self) -> Option<EndEvent> {
        self.events.pop_front()
    }

    fn poll_io(&mut self, _cx: &mut Context<'_>, _now: Instant) -> Poll<()> {
        if self.events.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    fn handle_timeout(&mut self, _now: Instant) {}
}
