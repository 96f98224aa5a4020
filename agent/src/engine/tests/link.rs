//! Lanes of memory in virtual time: bounded, cut anywhere, lossy only as a whole.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::Random;
use crate::lane::LaneIo;

/// What a lane is like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nature {
    pub(super) delay: Duration,
    /// Bytes a direction holds before it takes no more records.
    pub(super) capacity: usize,
    /// The largest record it may ask for.
    pub(super) record: usize,
    /// One record in so many towards the agent is written twice; 0: none.
    pub(super) repeats: u64,
}

/// One lane; side 0 is the client's.
pub(super) struct Link {
    pub(super) id: u64,
    clock: Rc<Cell<Instant>>,
    nature: Nature,
    random: Random,
    /// By the side that reads.
    pipes: [Pipe; 2],
    /// Sides that know that the link is cut.
    broken: [bool; 2],
    cut: bool,
}

#[derive(Default)]
struct Pipe {
    records: VecDeque<(Instant, Vec<u8>)>,
    /// Of the first record, read already.
    read: usize,
    bytes: usize,
    asked: usize,
    reader: Option<Waker>,
    writer: Option<Waker>,
    ended: bool,
}

impl Link {
    pub(super) fn new(id: u64, nature: Nature, clock: Rc<Cell<Instant>>, seed: u64) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            id,
            clock,
            nature,
            random: Random(seed),
            pipes: Default::default(),
            broken: [false; 2],
            cut: false,
        }))
    }

    /// When the next bytes arrive.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let waiting = self.pipes.iter().filter(|pipe| pipe.reader.is_some());
        waiting.filter_map(|pipe| pipe.records.front().map(|(at, _)| *at)).min()
    }

    pub(super) fn handle_timeout(&mut self) {
        let now = self.clock.get();
        for pipe in &mut self.pipes {
            if pipe.records.front().is_some_and(|(at, _)| *at <= now) {
                wake(&mut pipe.reader);
            }
        }
    }

    /// Cuts it: what is under way is lost, but for a first part; only `told` sides hear of it.
    pub(super) fn cut(&mut self, told: [bool; 2]) {
        self.cut = true;
        for (side, told) in told.into_iter().enumerate() {
            let keep = self.random.below(self.pipes[side].records.len() as u64 + 1) as usize;
            let pipe = &mut self.pipes[side];
            pipe.records.truncate(keep);
            if let Some((_, last)) = pipe.records.back_mut().filter(|_| keep > 1) {
                last.truncate(last.len() / 2 + 1);
            }
            pipe.ended |= told;
            self.broken[side] |= told;
        }
        self.wake();
    }

    /// Whether a side finds that it can write no more: it has read the other's end, or the link is cut.
    fn is_over(&self, side: usize) -> bool {
        self.broken[side] || self.pipes[side].ended && self.pipes[side].records.is_empty()
    }

    fn wake(&mut self) {
        for pipe in &mut self.pipes {
            wake(&mut pipe.reader);
            wake(&mut pipe.writer);
        }
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

/// One side's end of a link. Dropping it ends the link for the other side.
pub(super) struct Side(pub(super) Rc<RefCell<Link>>, pub(super) usize);

impl LaneIo for Side {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let Link { clock, random, pipes, .. } = &mut *self.0.borrow_mut();
        let pipe = &mut pipes[self.1];
        let Some((_, record)) = pipe.records.front().filter(|(at, _)| *at <= clock.get()) else {
            if pipe.ended && pipe.records.is_empty() {
                return if random.below(2) == 0 {
                    Poll::Ready(Ok(0))
                } else {
                    Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
                };
            }
            pipe.reader = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let rest = &record[pipe.read..];
        let most = if random.below(4) == 0 { 1 + random.below(40) as usize } else { rest.len() };
        let count = rest.len().min(most).min(buf.len());
        buf[..count].copy_from_slice(&rest[..count]);
        pipe.read += count;
        pipe.bytes -= count;
        if pipe.read == record.len() {
            pipe.records.pop_front();
            pipe.read = 0;
        }
        wake(&mut pipe.writer);
        Poll::Ready(Ok(count))
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut link = self.0.borrow_mut();
        if link.is_over(self.1) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let Link { nature, random, pipes, .. } = &mut *link;
        let pipe = &mut pipes[1 - self.1];
        if pipe.bytes >= nature.capacity {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        pipe.asked = if random.below(8) == 0 { 64 } else { nature.record };
        Poll::Ready(Ok(pipe.asked))
    }

    fn send(&mut self, record: &[IoSlice<'_>]) -> io::Result<()> {
        let record = record.iter().flat_map(|part| part.iter().copied()).collect::<Vec<u8>>();
        let mut link = self.0.borrow_mut();
        if link.is_over(self.1) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let Link { clock, nature, random, pipes, cut, .. } = &mut *link;
        let pipe = &mut pipes[1 - self.1];
        assert!(!record.is_empty() && record.len() <= std::mem::take(&mut pipe.asked));
        let twice = self.1 == 0 && nature.repeats > 0 && random.below(nature.repeats) == 0;
        if !*cut {
            for _ in 0..=usize::from(twice) {
                pipe.bytes += record.len();
                pipe.records.push_back((clock.get() + nature.delay, record.clone()));
            }
            if nature.delay == Duration::ZERO {
                wake(&mut pipe.reader);
            }
        }
        Ok(())
    }

    fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().pipes[1 - self.1].ended = true;
        self.0.borrow_mut().wake();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        let mut link = self.0.borrow_mut();
        let told = !link.cut;
        link.pipes[1 - self.1].ended |= told;
        link.wake();
    }
}
