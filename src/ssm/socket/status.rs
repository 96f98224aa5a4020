//! What others may know of a lane and ask of it, from any thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use tokio::sync::Notify;

use super::LaneError;
use crate::ssm::channel::ChannelStats;

/// A lane's numbers at its last move.
#[derive(Clone, Debug, Default)]
pub struct LaneStatus {
    pub channel: ChannelStats,
    /// Of the last websocket ping: the way to the gateway alone.
    pub gateway_rtt: Option<Duration>,
    /// Some while there is no websocket.
    pub resuming: Option<Resuming>,
    /// How often the websocket was cut.
    pub cuts: u32,
    /// Frames that made no sense; each cost a websocket.
    pub garbage: u32,
    /// The websocket was cut within 2 s of the first message above 1 KiB: the path may not take them.
    pub suspect_payload: bool,
    /// The largest size of upstream messages that is known to pass, 0 before one is.
    pub proven_payload: usize,
    /// Why the lane is over.
    pub failure: Option<LaneError>,
}

/// A lane without a websocket.
#[derive(Clone, Debug)]
pub struct Resuming {
    pub since: Instant,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
}

/// Looks at a lane, or wakes it, from any thread. Outlives the lane harmlessly.
#[derive(Clone, Default)]
pub struct LaneHandle(Arc<Shared>);

#[derive(Default)]
struct Shared {
    status: Mutex<LaneStatus>,
    nudged: AtomicBool,
    waker: AtomicWaker,
    /// The websocket went or came back.
    turned: Notify,
}

impl LaneHandle {
    pub fn status(&self) -> LaneStatus {
        self.0.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The network changed or the machine woke: the lane asks at once whether its websocket still
    /// lives, or tries at once to get a new one.
    pub fn nudge(&self) {
        self.0.nudged.store(true, Ordering::Release);
        self.0.waker.wake();
    }

    /// Waits until the lane has a websocket, or has none. For one caller at a time.
    pub async fn until(&self, connected: bool) {
        while self.status().resuming.is_none() != connected {
            self.0.turned.notified().await;
        }
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut LaneStatus)) {
        let mut status = self.0.status.lock().unwrap_or_else(PoisonError::into_inner);
        let before = status.resuming.is_some();
        change(&mut status);
        if status.resuming.is_some() != before {
            self.0.turned.notify_one();
        }
    }

    pub(super) fn take_nudge(&self, waker: &std::task::Waker) -> bool {
        self.0.waker.register(waker);
        self.0.nudged.swap(false, Ordering::Acquire)
    }
}
