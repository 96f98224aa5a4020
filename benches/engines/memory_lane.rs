//! A lane of memory between two engines of one thread.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use agent::lane::LaneIo;

/// One end of a lane.
pub(crate) struct MemoryLane {
    to_us: Rc<RefCell<Pipe>>,
    to_peer: Rc<RefCell<Pipe>>,
}

#[derive(Default)]
struct Pipe {
    records: VecDeque<Vec<u8>>,
    /// Of the first record, read already.
    read: usize,
    bytes: usize,
    /// Emptied records, to be filled again.
    spare: Vec<Vec<u8>>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl MemoryLane {
    pub(crate) fn pair() -> [Self; 2] {
        let (up, down) = (Rc::<RefCell<Pipe>>::default(), Rc::<RefCell<Pipe>>::default());
        [Self { to_us: down.clone(), to_peer: up.clone() }, Self { to_us: up, to_peer: down }]
    }
}

impl LaneIo for MemoryLane {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let pipe = &mut *self.to_us.borrow_mut();
        let mut filled = 0;
        while let Some(record) = pipe.records.front().filter(|_| filled < buf.len()) {
            let rest = &record[pipe.read..];
            let count = rest.len().min(buf.len() - filled);
            buf[filled..filled + count].copy_from_slice(&rest[..count]);
            filled += count;
            pipe.read += count;
            if pipe.read == record.len() {
                pipe.spare.extend(pipe.records.pop_front());
                pipe.read = 0;
            }
        }
        if filled == 0 {
            pipe.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        pipe.bytes -= filled;
        wake(&mut pipe.writer);
        Poll::Ready(Ok(filled))
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let pipe = &mut *self.to_peer.borrow_mut();
        if pipe.bytes >= CAPACITY {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(RECORD))
    }

    fn send(&mut self, record: &[IoSlice<'_>]) -> io::Result<()> {
        let pipe = &mut *self.to_peer.borrow_mut();
        let mut next = pipe.spare.pop().unwrap_or_default();
        next.clear();
        record.iter().for_each(|part| next.extend_from_slice(part));
        pipe.bytes += next.len();
        pipe.records.push_back(next);
        wake(&mut pipe.reader);
        Ok(())
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

/// Bytes a direction holds, as a socket's buffers do.
const CAPACITY: usize = 1 << 20;
/// As a lane over TCP takes at most.
const RECORD: usize = 128 << 10;
