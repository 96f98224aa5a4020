//! Makes one lane: opens its carrier and shakes hands with the agent on it.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use agent::engine::{Attach, Command};
use agent::wire::hello::{ClientParams, DenyReason, HelloError, PublicKey, Ticket, Welcomed};
use agent::wire::trunk::LaneId;
use tokio::sync::{mpsc, oneshot};

use super::greet::{GreetError, greet};
use super::path::{OpenError, Path, Session};
use crate::engine;
use crate::ssm::api_error::ApiError;
use crate::ssm::socket::LaneError as SsmError;

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
    /// The answer of AWS behind it.
    fn api(&self) -> Option<&ApiError> {
        match self {
            Self::Open(
                OpenError::Api(error) | OpenError::Ssm(SsmError::Start(error) | SsmError::Gone(error)),
            ) => Some(error),
            Self::Open(_) | Self::Greet(_) | Self::NoGreeting { .. } => None,
        }
    }

    /// Somebody has to log in before it can work.
    fn wants_login(&self) -> bool {
        matches!(self.api(), Some(ApiError::Expired { .. } | ApiError::NoCredentials { .. }))
    }

    pub(super) fn is_throttled(&self) -> bool {
        matches!(self.api(), Some(ApiError::Throttled { .. }))
    }

    /// The agent is alive and no longer knows our trunk.
    pub(super) fn is_forgotten(&self) -> bool {
        matches!(
            self,
            Self::Greet(GreetError::Hello(HelloError::Denied { reason: DenyReason::UnknownTrunk, .. }))
        )
    }
}

/// The lanes that live or are about to: the agent closes those that a hello does not name.
#[derive(Clone, Default)]
pub(super) struct Roster(Rc<RefCell<Vec<LaneId>>>);

/// A lane's place in the roster, for as long as this lives.
pub(super) struct Entry {
    roster: Roster,
    lane: LaneId,
}

impl Roster {
    fn enter(&self, lane: LaneId) -> Entry {
        self.0.borrow_mut().push(lane);
        Entry { roster: self.clone(), lane }
    }

    fn others(&self, lane: LaneId) -> Vec<LaneId> {
        self.0.borrow().iter().copied().filter(|other| *other != lane).collect()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.roster.0.borrow_mut().retain(|lane| *lane != self.lane);
    }
}

/// What one lane is made with.
pub(super) struct Dial {
    pub(super) path: Path,
    pub(super) timeout: Duration,
    pub(super) ping_interval: Duration,
    pub(super) compress: bool,
    pub(super) pinned: Option<PublicKey>,
    pub(super) ticket: Option<Ticket>,
    pub(super) roster: Roster,
    pub(super) commands: mpsc::Sender<Command>,
}

/// A lane that is welcome.
pub(super) struct Dialled {
    pub(super) attach: Attach,
    pub(super) welcomed: Welcomed,
    pub(super) session: Option<Session>,
    pub(super) entry: Entry,
    /// When its session was asked for.
    pub(super) began: Instant,
}

impl Dial {
    /// Nothing is left behind when the future is dropped.
    pub(super) async fn run(self) -> Result<Dialled, LaneError> {
        let dialled = self.attempt().await;
        if let Err(error) = &dialled
            && error.wants_login()
        {
            self.path.renew_credentials().await;
        }
        dialled
    }

    async fn attempt(&self) -> Result<Dialled, LaneError> {
        let (deadline, began) = (self.timeout, engine::now());
        let lane = LaneId(engine::random_u64());
        // From the start, so that whoever says hello meanwhile names it.
        let entry = self.roster.enter(lane);
        let opened = self.path.open(deadline).await?;
        let params = ClientParams {
            ticket: self.ticket.clone(),
            lane,
            kind: self.path.kind(),
            psk: self.path.psk(),
            pinned: self.pinned,
            ping_interval: self.ping_interval,
            received: received(&self.commands).await,
            live_lanes: self.roster.others(lane),
            wants_blocks: self.compress,
            entropy: engine::random(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        match tokio::time::timeout(deadline, greet(opened.io, params)).await {
            Ok(greeted) => {
                let (attach, welcomed) = greeted?;
                Ok(Dialled { attach, welcomed, session: opened.session, entry, began })
            }
            Err(_) => Err(LaneError::NoGreeting { place: self.path.to_string(), deadline }),
        }
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
