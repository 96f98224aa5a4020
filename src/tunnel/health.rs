//! What the rest of the program may know of the tunnel, and what it is told as it happens.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agent::wire::trunk::LaneId;
use tokio::sync::{Notify, mpsc};
use tracing::debug;

use super::history::History;
use super::lanes::{First, LaneError};
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
    /// How many there are to be now.
    pub lanes_wanted: usize,
    /// The lane that went last other than by plan.
    pub last_loss: Option<Loss>,
    pub history: History,
    pub resumes: u64,
    /// Trunks that ended and took their flows with them.
    pub trunks_lost: u64,
    outage: Outage,
    fault_told: Option<Instant>,
}

/// A lane that went.
#[derive(Clone, Debug)]
pub struct Loss {
    pub session_id: Option<String>,
    pub reason: String,
    pub at: Instant,
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
    /// How the lane went that had its place before, or the one before that if that one went by plan.
    pub last_loss: Option<Loss>,
}

/// A turn in the tunnel's life that its user should hear of.
#[derive(Debug)]
pub enum Happening {
    /// The first lane of a session that did not wait for it.
    Reached(First),
    /// A lane failed and the others carry on.
    Fault { reason: String },
    /// Nothing was carried for so long that the tunnel was closed until the next connection.
    Asleep,
    /// Nothing carries the tunnel; a new lane is being made.
    Lost { reason: String },
    /// Why there is none yet.
    Trouble(Arc<LaneError>),
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
            lanes_wanted: 0,
            last_loss: None,
            history: History::default(),
            resumes: 0,
            trunks_lost: 0,
            outage: Outage::default(),
            fault_told: None,
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
        self.0.nudged.notify_one();
    }

    /// For one caller at a time; a nudge that nobody waits for is kept.
    pub(super) async fn nudged(&self) {
        self.0.nudged.notified().await;
    }

    /// A burst that nobody takes is only worth a line in the log.
    pub fn tell(&self, happening: Happening) {
        if let Err(error) = self.0.happenings.try_send(happening) {
            debug!("not told: {error}");
        }
    }

    /// There is nothing to carry, and no lane.
    pub(super) fn rest(&self, now: Instant) {
        let mut health = self.lock();
        health.outage = Outage::default();
        health.turn(now, State::Idle, "no connection is open, so there is no lane");
    }

    /// A connection waits for the first lane.
    pub(super) fn awaken(&self, now: Instant) {
        let mut health = self.lock();
        if health.state == State::Idle {
            health.turn(now, State::Connecting, "a connection waits for a lane");
        }
    }

    pub(super) fn lane_made(&self, facts: LaneFacts, agent_version: String) {
        let mut health = self.lock();
        health.lanes.push(facts);
        health.agent_version = Some(agent_version);
    }

    /// What is to be told of the lane's place from now on: how it went, or by plan what was told of it.
    pub(super) fn lane_gone(&self, lane: LaneId, reason: &str, by_plan: bool, now: Instant) -> Option<Loss> {
        let mut health = self.lock();
        let at = health.lanes.iter().position(|facts| facts.lane == lane)?;
        let facts = health.lanes.remove(at);
        debug!("lane {:016x} is gone: {reason}; {} are left", lane.0, health.lanes.len());
        if by_plan {
            return facts.last_loss;
        }
        let loss = Loss { session_id: facts.session_id, reason: reason.to_owned(), at: now };
        health.last_loss = Some(loss.clone());
        let state = health.state;
        health.history.note(now, state, format!("lost a lane: {reason}"));
        Some(loss)
    }

    /// The newest lane took the place that this was told of, if it was made for that.
    pub(super) fn bequeath(&self, loss: Loss, now: Instant) {
        let mut health = self.lock();
        let heir = health.lanes.last_mut().filter(|facts| now.saturating_duration_since(facts.since) < HEIR);
        if let Some(facts) = heir {
            facts.last_loss.get_or_insert(loss);
        }
    }

    /// A lane failed while others carry on; told once in a while.
    pub(super) fn tell_fault(&self, reason: &str, now: Instant) {
        let mut health = self.lock();
        let quiet = health.fault_told.is_some_and(|at| now.saturating_duration_since(at) < FAULT_PAUSE);
        if !quiet {
            health.fault_told = Some(now);
        }
        drop(health);
        if !quiet {
            self.tell(Happening::Fault { reason: reason.to_owned() });
        }
    }

    /// The last lane is gone, or without its websocket, since `since`.
    pub(super) fn begin_outage(&self, since: Instant, reason: String) {
        let mut health = self.lock();
        let news = health.outage.begin(since);
        let what = format!("connection lost: {reason}");
        health.trouble = Trouble::new(what.clone(), since);
        health.turn(since, State::Reconnecting, what);
        drop(health);
        if news {
            self.tell(Happening::Lost { reason });
        }
    }

    /// Why there is no lane yet.
    pub(super) fn trouble(&self, now: Instant, error: LaneError) -> Arc<LaneError> {
        let error = Arc::new(error);
        let why = error.to_string();
        let mut health = self.lock();
        let news = health.outage.trouble(&why);
        if news {
            let state = health.state;
            health.history.note(now, state, format!("no lane yet: {why}"));
        }
        health.trouble = Trouble::new(why, now);
        drop(health);
        if news {
            self.tell(Happening::Trouble(Arc::clone(&error)));
        }
        error
    }

    pub(super) fn end_outage(&self, now: Instant, resumed: bool) {
        let mut health = self.lock();
        if let Some(trouble) = &mut health.trouble {
            trouble.over.get_or_insert(now);
        }
        let ended = health.outage.end(now);
        let what = match ended {
            Some(_) if resumed => "connected again, open connections went on",
            Some(_) | None => "connected",
        };
        health.turn(now, State::Up, what);
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
        health.trouble = Trouble::new(reason.clone(), now);
        health.outage.begin(now);
        health.turn(now, State::Reconnecting, format!("{reason}; open connections were reset"));
        drop(health);
        self.tell(Happening::TrunkLost { reason });
    }
}

impl Health {
    /// A state that stays the same is no turn, and an end has no turns.
    fn turn(&mut self, at: Instant, state: State, what: impl Into<String>) {
        if self.state == state || self.state == State::Ending {
            return;
        }
        self.state = state;
        self.history.note(at, state, what);
    }
}

/// A lane that is older was not made for one that goes now: a retired one drains for less.
const HEIR: Duration = Duration::from_secs(15);
/// Between two faults that are told.
const FAULT_PAUSE: Duration = Duration::from_secs(10);
const MAX_HAPPENINGS: usize = 64;
