//! What the rest of the program may know of the tunnel, and what it is told as it happens.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agent::wire::trunk::LaneId;
use tokio::sync::{Notify, mpsc};
use tracing::debug;

use super::lanes::LaneError;
use super::outage::Outage;
use crate::control::State;
use crate::ssm::socket::LaneHandle;

/// How the tunnel is; read by `status`.
#[derive(Clone)]
pub struct Health {
    pub state: State,
    pub agent_version: Option<String>,
    /// The last thing that went wrong.
    pub trouble: Option<Trouble>,
    pub lanes: Vec<LaneFacts>,
    pub resumes: u64,
    /// Trunks that ended and took their flows with them.
    pub trunks_lost: u64,
    outage: Outage,
}

/// Something that went wrong with the tunnel.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// In one sentence.
    pub what: String,
    pub since: Instant,
    /// When the tunnel was up again.
    pub over: Option<Instant>,
}

impl Trouble {
    fn new(what: String, since: Instant) -> Option<Self> {
        Some(Self { what, since, over: None })
    }
}

/// What is known of a lane beyond what the trunk counts.
#[derive(Clone)]
pub struct LaneFacts {
    pub lane: LaneId,
    pub kind: &'static str,
    pub session_id: Option<String>,
    pub handle: Option<LaneHandle>,
    pub since: Instant,
}

/// A turn in the tunnel's life that its user should hear of.
#[derive(Debug)]
pub enum Happening {
    /// Nothing carries the tunnel; a new lane is being made.
    Lost { reason: String },
    /// Why there is none yet.
    Trouble(LaneError),
    /// Open connections went on, or `resumed` is false and they were reset.
    Back { after: Duration, resumed: bool },
    /// The agent let go of the trunk.
    TrunkLost { reason: String },
    /// Something on the way takes no large messages.
    SmallMessages,
}

/// The shared view of [`Health`].
#[derive(Clone)]
pub struct HealthView(Arc<Inner>);

struct Inner {
    health: Mutex<Health>,
    happenings: mpsc::Sender<Happening>,
    nudged: Notify,
}

impl HealthView {
    /// The view, and where its happenings come out.
    pub fn new() -> (Self, mpsc::Receiver<Happening>) {
        let (happenings, receiver) = mpsc::channel(MAX_HAPPENINGS);
        let health = Health {
            state: State::Connecting,
            agent_version: None,
            trouble: None,
            lanes: Vec::new(),
            resumes: 0,
            trunks_lost: 0,
            outage: Outage::default(),
        };
        (Self(Arc::new(Inner { health: Mutex::new(health), happenings, nudged: Notify::new() })), receiver)
    }

    fn lock(&self) -> MutexGuard<'_, Health> {
        self.0.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn read(&self) -> Health {
        self.lock().clone()
    }

    pub fn update(&self, change: impl FnOnce(&mut Health)) {
        change(&mut self.lock());
    }

    /// The network is another one, or the machine slept: every lane is asked whether it lives, and whoever
    /// waits before another try goes on at once.
    pub fn nudge(&self) {
        self.lock().lanes.iter().filter_map(|facts| facts.handle.as_ref()).for_each(LaneHandle::nudge);
        self.0.nudged.notify_waiters();
    }

    pub(super) async fn nudged(&self) {
        self.0.nudged.notified().await;
    }

    /// A burst that nobody takes is only worth a line in the log.
    pub fn tell(&self, happening: Happening) {
        if let Err(error) = self.0.happenings.try_send(happening) {
            debug!("not told: {error}");
        }
    }

    /// The last lane is gone, or without its websocket, since `since`.
    pub(super) fn begin_outage(&self, since: Instant, reason: String) {
        let mut health = self.lock();
        health.state = State::Reconnecting;
        health.trouble = Trouble::new(format!("connection lost: {reason}"), since);
        let news = health.outage.begin(since);
        drop(health);
        if news {
            self.tell(Happening::Lost { reason });
        }
    }

    pub(super) fn trouble(&self, now: Instant, error: LaneError) {
        let why = error.to_string();
        debug!("no lane yet: {why}");
        let mut health = self.lock();
        let news = health.outage.trouble(&why);
        health.trouble = Trouble::new(why, now);
        drop(health);
        if news {
            self.tell(Happening::Trouble(error));
        }
    }

    pub(super) fn end_outage(&self, now: Instant, resumed: bool) {
        let mut health = self.lock();
        health.state = State::Up;
        if let Some(trouble) = &mut health.trouble {
            trouble.over.get_or_insert(now);
        }
        let ended = health.outage.end(now);
        drop(health);
        if let Some(after) = ended {
            self.tell(Happening::Back { after, resumed });
        }
    }

    /// The agent no longer has the trunk: its flows were reset, and a new one begins.
    pub fn lose_trunk(&self, now: Instant, reason: String) {
        let mut health = self.lock();
        health.lanes.clear();
        health.trunks_lost += 1;
        health.state = State::Reconnecting;
        health.trouble = Trouble::new(reason.clone(), now);
        health.outage.begin(now);
        drop(health);
        self.tell(Happening::TrunkLost { reason });
    }
}

const MAX_HAPPENINGS: usize = 64;
