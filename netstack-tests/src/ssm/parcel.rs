//! One message in transit, and the line that carries it over a hop with its delay.

#![expect(clippy::disallowed_methods, reason = "a driver: the line waits in real time")]

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ssm_proxy::ssm::message::{Kind, Message, Uuid};
use tokio::sync::Notify;

/// A binary message of the data channel and what the simulator must know of it.
#[derive(Clone, Debug)]
pub(crate) struct Parcel {
    pub(crate) bytes: Bytes,
    pub(crate) tag: Tag,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    /// Stream data of either direction.
    Stream {
        sequence: i64,
        id: Option<Uuid>,
    },
    Acknowledgement,
    /// A message of the gateway.
    Control,
}

impl Parcel {
    pub(crate) fn new(message: &Message<'_>) -> Self {
        let tag = match message.kind {
            Kind::InputStreamData | Kind::OutputStreamData => {
                Tag::Stream { sequence: message.sequence, id: Some(message.id) }
            }
            Kind::Acknowledge => Tag::Acknowledgement,
            Kind::ChannelClosed
            | Kind::StartPublication
            | Kind::PausePublication
            | Kind::AgentSessionState
            | Kind::Other(_) => Tag::Control,
        };
        Self { bytes: message.to_vec().into(), tag }
    }
}

/// One direction of one hop: in order, each item after its delay. One reader, many writers.
///
/// [`send`](Self::send) waits while [`CAPACITY`] bytes are under way: a real socket would be full too.
#[derive(Debug)]
pub(crate) struct Line<T> {
    state: Mutex<State<T>>,
    readable: Notify,
    writable: Notify,
}

/// The line was closed; what was sent is lost.
#[derive(Debug)]
pub(crate) struct Closed;

/// How long an item takes over a line.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Transit {
    pub(crate) delay: Duration,
    /// Bytes a second.
    pub(crate) bandwidth: Option<u64>,
}

#[derive(Debug)]
struct State<T> {
    queue: VecDeque<Entry<T>>,
    bytes: usize,
    /// When the last byte of the last item has left the sender.
    sent: Instant,
    last_due: Instant,
    /// No more sends; the reader hears of it at this time.
    closed: Option<Instant>,
}

#[derive(Debug)]
struct Entry<T> {
    due: Instant,
    size: usize,
    item: T,
}

impl<T> Line<T> {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        let state = State { queue: VecDeque::new(), bytes: 0, sent: now, last_due: now, closed: None };
        Self { state: Mutex::new(state), readable: Notify::new(), writable: Notify::new() }
    }

    /// Puts an item on the line, when there is room.
    pub(crate) async fn send(&self, item: T, size: usize, transit: Transit) -> Result<(), Closed> {
        loop {
            let mut room = std::pin::pin!(self.writable.notified());
            room.as_mut().enable();
            {
                let mut state = self.lock();
                if state.closed.is_some() {
                    return Err(Closed);
                }
                if state.bytes < CAPACITY {
                    state.push(item, size, transit);
                    break;
                }
            }
            room.await;
        }
        self.readable.notify_one();
        Ok(())
    }

    /// Puts an item on the line whether there is room or not: for the few messages of the gateway itself.
    pub(crate) fn force(&self, item: T, transit: Transit) {
        let mut state = self.lock();
        if state.closed.is_none() {
            state.push(item, 0, transit);
        }
        drop(state);
        self.readable.notify_one();
    }

    /// The next item when its time has come; None after the last one of a closed line.
    pub(crate) async fn recv(&self) -> Option<T> {
        loop {
            let wait = {
                let mut state = self.lock();
                let now = Instant::now() + TIMER_GRAIN;
                if let Some(entry) = state.queue.pop_front_if(|entry| entry.due <= now) {
                    state.bytes -= entry.size;
                    drop(state);
                    self.writable.notify_waiters();
                    return Some(entry.item);
                }
                match (state.queue.front(), state.closed) {
                    (Some(entry), _) => Some(entry.due),
                    (None, Some(end)) if end <= now => return None,
                    (None, end) => end,
                }
            };
            match wait {
                Some(due) => {
                    tokio::select! {
                        () = tokio::time::sleep_until((due - TIMER_GRAIN).into()) => {}
                        () = self.readable.notified() => {}
                    }
                }
                None => self.readable.notified().await,
            }
        }
    }

    /// Whether nothing is ready to be received now.
    pub(crate) fn is_quiet(&self) -> bool {
        let now = Instant::now() + TIMER_GRAIN;
        self.lock().queue.front().is_none_or(|entry| entry.due > now)
    }

    /// Ends the line behind what is on it.
    pub(crate) fn close(&self, transit: Transit) {
        let mut state = self.lock();
        let end = (Instant::now() + transit.delay).max(state.last_due);
        state.closed.get_or_insert(end);
        drop(state);
        self.wake();
    }

    /// Ends the line at once and loses what is on it.
    pub(crate) fn cut(&self) {
        let mut state = self.lock();
        state.queue.clear();
        state.bytes = 0;
        state.closed = Some(Instant::now());
        drop(state);
        self.wake();
    }

    fn wake(&self) {
        self.readable.notify_one();
        self.writable.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl<T> State<T> {
    fn push(&mut self, item: T, size: usize, transit: Transit) {
        let now = Instant::now();
        if let Some(rate) = transit.bandwidth {
            let time = Duration::from_secs_f64(size as f64 / rate.max(1) as f64);
            self.sent = self.sent.max(now) + time;
        }
        self.last_due = (self.sent.max(now) + transit.delay).max(self.last_due);
        self.bytes += size;
        self.queue.push_back(Entry { due: self.last_due, size, item });
    }
}

const CAPACITY: usize = 4 << 20;
/// Timers fire on whole milliseconds, late: asking so much early keeps the mean.
const TIMER_GRAIN: Duration = Duration::from_micros(750);

#[cfg(test)]
mod tests {
    use super::*;

    fn transit(millis: u64) -> Transit {
        Transit { delay: Duration::from_millis(millis), bandwidth: None }
    }

    #[tokio::test]
    async fn items_keep_their_order_when_the_delay_shrinks() {
        let line = Line::new();
        let started = Instant::now();
        line.send(1, 1, transit(20)).await.unwrap();
        line.send(2, 1, transit(0)).await.unwrap();
        assert_eq!((line.recv().await, line.recv().await), (Some(1), Some(2)));
        assert!(started.elapsed() >= Duration::from_millis(19));
    }

    #[tokio::test]
    async fn a_closed_line_gives_what_it_held_and_a_cut_one_nothing() {
        let line = Line::new();
        line.send(1, 1, transit(1)).await.unwrap();
        line.close(transit(0));
        assert!(line.send(2, 1, transit(0)).await.is_err());
        assert_eq!((line.recv().await, line.recv().await), (Some(1), None));

        let line = Line::new();
        line.send(1, 1, transit(0)).await.unwrap();
        line.cut();
        assert_eq!(line.recv().await, None);
    }

    #[tokio::test]
    async fn a_full_line_makes_the_sender_wait_and_a_cut_frees_it() {
        let line = Line::new();
        line.send(1, CAPACITY, transit(0)).await.unwrap();
        let (second, received) = tokio::join!(line.send(2, 1, transit(0)), line.recv());
        assert_eq!((second.is_ok(), received), (true, Some(1)));

        line.send(3, CAPACITY, transit(0)).await.unwrap();
        let (fourth, ()) = tokio::join!(line.send(4, 1, transit(0)), async { line.cut() });
        assert!(fourth.is_err());
    }
}
