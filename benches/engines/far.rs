//! The agent's ends without any target: each gives what is asked for, or takes all.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use agent::local_end::{EndEvent, EndId, LocalEnds};
use agent::wire::open::{Open, Refusal};

use super::Way;

pub(crate) struct Far {
    way: Way,
    events: VecDeque<EndEvent>,
    opened: u32,
    bytes: Box<[u8]>,
    arrived: Arc<AtomicU64>,
}

impl Far {
    /// Adds what it takes to `arrived`.
    pub(crate) fn new(way: Way, arrived: Arc<AtomicU64>) -> Self {
        let bytes = vec![0x5a; ROOM].into_boxed_slice();
        Self { way, events: VecDeque::new(), opened: 0, bytes, arrived }
    }
}

impl LocalEnds for Far {
    fn open(&mut self, _: &Open, _: Instant) -> Result<EndId, Refusal> {
        let end = EndId(self.opened);
        self.opened += 1;
        let address = SocketAddr::from(([10, 0, 1, 5], 5432));
        self.events.push_back(EndEvent::Connected { end, local: address, remote: address });
        if self.way == Way::Down {
            self.events.push_back(EndEvent::Readable { end });
        }
        Ok(end)
    }

    fn accept(&mut self, _: EndId, _: SocketAddr, _: SocketAddr, _: Instant) {}

    fn refuse(&mut self, _: EndId, _: Refusal, _: Instant) {}

    // As a kernel socket would: a copy each way.
    fn read(&mut self, _: EndId, buf: &mut [u8], _: Instant) -> usize {
        let count = if self.way == Way::Down { buf.len().min(ROOM) } else { 0 };
        buf[..count].copy_from_slice(&self.bytes[..count]);
        count
    }

    fn write(&mut self, _: EndId, bytes: &[u8], _: Instant) {
        self.bytes[..bytes.len()].copy_from_slice(bytes);
        self.arrived.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }

    fn room(&self, _: EndId) -> usize {
        ROOM
    }

    fn finish(&mut self, _: EndId, _: Instant) {}

    fn reset(&mut self, _: EndId, _: Instant) {}

    fn poll_event(&mut self) -> Option<EndEvent> {
        self.events.pop_front()
    }

    fn poll_io(&mut self, _: &mut Context<'_>, _: Instant) -> Poll<()> {
        Poll::Pending
    }

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    fn handle_timeout(&mut self, _: Instant) {}
}

const ROOM: usize = 1 << 20;
