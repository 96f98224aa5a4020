//! Keeps the trunk alive: makes its first lane, and a new one whenever the last is lost.

use std::time::Duration;

use agent::engine::{Attach, Command, LaneNews};
use agent::wire::hello::{ClientParams, DenyReason, HelloError, PublicKey, Ticket, Welcomed};
use agent::wire::trunk::LaneId;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tracing::debug;

use super::backoff::Backoff;
use super::greet::{GreetError, greet};
use super::health::{Happening, HealthView, LaneFacts};
use super::path::{OpenError, Path, Session};
use crate::control::State;
use crate::engine;
use crate::ssm::api_error::ApiError;
use crate::ssm::socket::{LaneError as SsmError, LaneHandle};

/// Why no lane could be made.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Greet(#[from] GreetError),
    #[error("no greeting came from {place} within {} s", .deadline.as_secs())]
    NoGreeting { place: String, deadline: Duration },
}

impl LaneError {
    /// Somebody has to log in before it can work.
    fn wants_login(&self) -> bool {
        matches!(self, Self::Open(OpenError::Api(ApiError::Expired { .. } | ApiError::NoCredentials { .. })))
    }

    /// The agent is alive and no longer knows our trunk.
    fn is_forgotten(&self) -> bool {
        matches!(
            self,
            Self::Greet(GreetError::Hello(HelloError::Denied { reason: DenyReason::UnknownTrunk, .. }))
        )
    }
}

/// Makes lanes and remembers what the trunk is known by.
pub struct Lanes {
    pub path: Path,
    pub health: HealthView,
    /// Deadline for each step of opening a lane, and again for its greeting.
    pub timeout: Duration,
    pub ping_interval: Duration,
    /// Compress TCP flows, if the agent allows it.
    pub compress: bool,
    /// The agent's key as it was seen before.
    pub pinned: Option<PublicKey>,
    pub ticket: Option<Ticket>,
    pub sessions: Vec<Held>,
}

/// The SSM session of an attached lane, and what watches its websocket.
pub struct Held {
    lane: LaneId,
    session: Session,
    watcher: AbortHandle,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

/// Why a trunk's lanes are no longer kept.
#[derive(Debug, PartialEq, Eq)]
pub enum Fate {
    /// The agent restarted or let go of the trunk: a new trunk is needed.
    Forgotten,
    /// The engine is gone.
    Ended,
}

impl Lanes {
    /// Makes one lane and attaches it.
    pub async fn add(&mut self, commands: &mpsc::Sender<Command>) -> Result<Welcomed, LaneError> {
        let received = received(commands).await;
        // Once the lane is made, nothing below waits: a dropped future must not leave half of it.
        let room = commands.reserve().await.ok();
        let (attach, welcomed, session) = self.open(received).await?;
        let lane = attach.lane;
        let facts = LaneFacts {
            lane,
            kind: self.path.kind_name(),
            session_id: session.as_ref().map(|session| session.id.clone()),
            handle: session.as_ref().map(|session| session.handle.clone()),
            since: engine::now(),
        };
        self.pinned = Some(welcomed.agent_key);
        self.ticket = Some(welcomed.ticket.clone());
        if let Some(session) = session {
            let watching = watch(session.handle.clone(), self.health.clone());
            let watcher = tokio::task::spawn_local(watching).abort_handle();
            self.sessions.push(Held { lane, session, watcher });
        }
        self.health.update(|health| {
            health.lanes.push(facts);
            health.agent_version = Some(welcomed.agent_version.clone());
        });
        // A closed channel shows at once as the engine's end.
        if let Some(room) = room {
            room.send(Command::Attach(attach));
        }
        Ok(welcomed)
    }

    async fn open(&self, received: u64) -> Result<(Attach, Welcomed, Option<Session>), LaneError> {
        let deadline = self.timeout;
        let opened = self.path.open(deadline).await?;
        let params = ClientParams {
            ticket: self.ticket.clone(),
            lane: LaneId(engine::random_u64()),
            kind: self.path.kind(),
            psk: self.path.psk(),
            pinned: self.pinned,
            ping_interval: self.ping_interval,
            received,
            live_lanes: self.health.read().lanes.iter().map(|facts| facts.lane).collect(),
            wants_blocks: self.compress,
            entropy: engine::random(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        match tokio::time::timeout(deadline, greet(opened.io, params)).await {
            Ok(greeted) => {
                greeted.map(|(attach, welcomed)| (attach, welcomed, opened.session)).map_err(LaneError::Greet)
            }
            Err(_) => Err(LaneError::NoGreeting { place: self.path.to_string(), deadline }),
        }
    }

    /// Replaces lanes until the trunk ends.
    pub async fn keep(
        &mut self,
        commands: &mpsc::Sender<Command>,
        news: &mut mpsc::Receiver<LaneNews>,
    ) -> Fate {
        while let Some(item) = news.recv().await {
            match item {
                LaneNews::Attached { .. } => self.health.update(|health| health.state = State::Up),
                LaneNews::Lost { lane, lanes, reason } => {
                    self.lost(lane, reason, lanes == 0);
                    if lanes == 0
                        && let Err(fate) = self.replace(commands).await
                    {
                        return fate;
                    }
                }
                // A lane that recovers is kept; one that does not is lost soon.
                LaneNews::Stalled { lane } => debug!("lane {:016x} stands still", lane.0),
                LaneNews::Drained { .. } => {}
            }
        }
        Fate::Ended
    }

    fn lost(&mut self, lane: LaneId, reason: String, was_last: bool) {
        debug!("lane lost: {reason}");
        self.health.update(|health| health.lanes.retain(|facts| facts.lane != lane));
        let held = self.sessions.iter().position(|held| held.lane == lane);
        if let Some(at) = held {
            let status = self.sessions.swap_remove(at).session.handle.status();
            let too_big = matches!(status.failure, Some(SsmError::MessageTooBig(_)));
            if (too_big || status.suspect_payload && status.cuts > 2) && self.path.use_small_messages() {
                self.health.tell(Happening::SmallMessages);
            }
        }
        if was_last {
            self.health.begin_outage(engine::now(), reason);
        }
    }

    /// Makes a lane where none is left, however often that takes.
    pub async fn replace(&mut self, commands: &mpsc::Sender<Command>) -> Result<(), Fate> {
        let health = self.health.clone();
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            let attempt = tokio::select! {
                attempt = self.add(commands) => attempt,
                // What is under way may wait for an answer that went to where this machine was before.
                () = health.nudged() => {
                    backoff.reset();
                    continue;
                }
            };
            match attempt {
                Ok(welcomed) => {
                    self.health.update(|health| health.resumes += u64::from(welcomed.resumed));
                    self.health.end_outage(engine::now(), welcomed.resumed);
                    return Ok(());
                }
                Err(error) if error.is_forgotten() => return Err(Fate::Forgotten),
                Err(error) => {
                    if error.wants_login() {
                        self.path.renew_credentials().await;
                    }
                    self.health.trouble(engine::now(), error);
                }
            }
            if commands.is_closed() {
                return Err(Fate::Ended);
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next_delay(engine::random_u64() as u32)) => {}
                () = health.nudged() => backoff.reset(),
            }
        }
    }
}

/// Tells when a lane is without its websocket for longer than anybody should wait without a word.
async fn watch(handle: LaneHandle, health: HealthView) {
    loop {
        handle.until(false).await;
        let since = engine::now();
        if tokio::time::timeout(HICCUP, handle.until(true)).await.is_err() {
            let status = handle.status();
            let last = status.resuming.and_then(|resuming| resuming.last_error);
            let why = last.map_or_else(String::new, |last| format!(": {last}"));
            health.begin_outage(since, format!("the SSM session's websocket was cut{why}"));
            handle.until(true).await;
        }
        health.end_outage(engine::now(), true);
    }
}

/// How much of the trunk's stream has arrived.
async fn received(commands: &mpsc::Sender<Command>) -> u64 {
    let (sender, reply) = oneshot::channel();
    if commands.send(Command::Report(sender)).await.is_err() {
        return 0;
    }
    reply.await.map_or(0, |report| report.trunk.received)
}

/// SSM websockets are recycled now and then, which takes less.
const HICCUP: Duration = Duration::from_secs(1);
