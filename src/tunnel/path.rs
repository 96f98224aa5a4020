//! What lanes are made of: SSM sessions, or plain TCP connections to an agent.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent::lane::{LaneIo, TcpLane};
use agent::wire::hello::Psk;
use agent::wire::trunk::LaneKind;
use socket2::TcpKeepalive;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Notify, oneshot};
use tracing::{debug, warn};

use super::lessons::Lessons;
use crate::os::bypass;
use crate::ssm::api::{Api, SessionTicket};
use crate::ssm::api_error::ApiError;
use crate::ssm::socket::{LaneConfig, LaneError as SsmError, LaneHandle, SsmLane};

/// The way every lane of a session takes.
#[derive(Clone)]
pub enum Path {
    Tcp { address: String, psk: Option<Psk> },
    Ssm(SsmPath),
}

/// SSM sessions to one instance.
#[derive(Clone)]
pub struct SsmPath {
    pub api: SharedApi,
    /// Where API calls run, so that none is cut off when its lane is no longer wanted.
    pub runtime: tokio::runtime::Handle,
    pub instance: String,
    pub document: String,
    pub port: u16,
    /// Told to AWS as the session's reason, so that leftovers can be recognised.
    pub reason: String,
    pub sessions: Sessions,
    pub lessons: Lessons,
}

/// The calls to AWS with the credentials of now, for all who hold the path.
#[derive(Clone)]
pub struct SharedApi(Arc<Mutex<Api>>);

impl SharedApi {
    pub fn new(api: Api) -> Self {
        Self(Arc::new(Mutex::new(api)))
    }

    pub fn get(&self) -> Api {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, api: Api) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = api;
    }
}

/// A byte carrier that is open, and the SSM session behind it.
pub struct Opened {
    pub io: Box<dyn LaneIo>,
    pub session: Option<Session>,
}

/// An SSM session; it is ended when this is dropped.
pub struct Session {
    pub id: String,
    pub handle: LaneHandle,
    path: SsmPath,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.path.end_later(&self.id);
    }
}

/// Why no byte carrier could be had.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot connect to {address}")]
    Tcp { address: String, error: io::Error },
    #[error("{address} cannot be looked up")]
    TcpName { address: String, error: io::Error },
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Ssm(#[from] SsmError),
    #[error("AWS did not start a session within {} s", .deadline.as_secs())]
    SlowStart { deadline: Duration, why: Option<String> },
    #[error("no connection to {address} within {} s", .deadline.as_secs())]
    SlowTcp { address: String, deadline: Duration },
    #[error("the session is ending")]
    Ending,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { address, .. } => write!(f, "tcp://{address}"),
            Self::Ssm(path) => write!(f, "port {} of {}", path.port, path.instance),
        }
    }
}

impl Path {
    pub fn kind(&self) -> LaneKind {
        match self {
            Self::Tcp { .. } => LaneKind::Tcp,
            Self::Ssm(_) => LaneKind::Ssm,
        }
    }

    pub fn kind_name(&self) -> &'static str {
        match self {
            Self::Tcp { .. } => "tcp",
            Self::Ssm(_) => "ssm",
        }
    }

    /// The AWS region, where there is one.
    pub fn region(&self) -> Option<String> {
        match self {
            Self::Tcp { .. } => None,
            Self::Ssm(path) => Some(path.api.get().region().to_owned()),
        }
    }

    pub fn psk(&self) -> Option<Psk> {
        match self {
            Self::Tcp { psk, .. } => psk.clone(),
            Self::Ssm(_) => None,
        }
    }

    /// Opens one carrier, each step of it within `deadline`; nothing is left behind when the future is dropped.
    pub async fn open(&self, deadline: Duration) -> Result<Opened, OpenError> {
        match self {
            Self::Tcp { address, .. } => {
                let connected = tokio::time::timeout(deadline, connect(address)).await;
                let io =
                    connected.map_err(|_| OpenError::SlowTcp { address: address.clone(), deadline })??;
                Ok(Opened { io: Box::new(io), session: None })
            }
            Self::Ssm(path) => path.open(deadline).await,
        }
    }

    /// From now on lanes are made as these have taught.
    pub(super) fn heed(&mut self, lessons: &Lessons) {
        match self {
            Self::Tcp { .. } => {}
            Self::Ssm(path) => path.lessons = *lessons,
        }
    }

    /// Reads the AWS files and the environment again: somebody may have logged in anew.
    pub async fn renew_credentials(&self) {
        match self {
            Self::Tcp { .. } => {}
            Self::Ssm(path) => path.renew_credentials().await,
        }
    }

    /// The addresses now of the hosts that this path needs. A name that does not resolve in time has none.
    pub async fn addresses(&self) -> Vec<IpAddr> {
        let hosts = match self {
            Self::Tcp { address, .. } => vec![address.clone()],
            Self::Ssm(path) => path.api.get().hosts().iter().map(|host| format!("{host}:443")).collect(),
        };
        let lookups = hosts.into_iter().map(|host| async move {
            let found = tokio::time::timeout(LOOKUP, tokio::net::lookup_host(host)).await;
            found.into_iter().flatten().flatten().map(|address| address.ip()).collect::<Vec<_>>()
        });
        let mut found = futures_util::future::join_all(lookups).await.concat();
        found.sort();
        found.dedup();
        found
    }

    /// Ends every SSM session of this path, those being started included.
    pub async fn end_all(&self) {
        match self {
            Self::Tcp { .. } => {}
            Self::Ssm(path) => path.end_all().await,
        }
    }
}

async fn connect(address: &str) -> Result<TcpLane, OpenError> {
    let failed = |error| OpenError::Tcp { address: address.to_owned(), error };
    let found = tokio::net::lookup_host(address).await;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for candidate in found.map_err(|error| OpenError::TcpName { address: address.to_owned(), error })? {
        match connect_address(candidate).await {
            Ok(stream) => return TcpLane::new(stream, LaneKind::Tcp).map_err(failed),
            Err(error) => last = error,
        }
    }
    Err(failed(last))
}

async fn connect_address(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    let options = socket2::SockRef::from(&socket);
    bypass::protect(&options)?;
    // The trunk's pings come only while flows are open: the kernel finds out that an idle peer is gone.
    options.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_AGAIN))?;
    socket.connect(address).await
}

impl SsmPath {
    async fn open(&self, deadline: Duration) -> Result<Opened, OpenError> {
        let started = tokio::time::timeout(deadline, self.start()).await;
        let Started { ticket, mut guard } = started
            .unwrap_or_else(|_| Err(OpenError::SlowStart { deadline, why: self.api.get().delay() }))?;
        let mut config = LaneConfig::port(&self.instance, &self.document, self.port);
        (config.channel.max_payload, config.most_payload) = self.lessons.payload();
        let attached = tokio::time::timeout(deadline, SsmLane::attach(&self.api.get(), ticket, config)).await;
        let lane = attached.unwrap_or(Err(SsmError::OpenTimeout(deadline)))?;
        guard.handle = lane.handle();
        Ok(Opened { io: Box::new(lane), session: Some(guard) })
    }

    /// Starts a session in a task of its own: AWS may have made it although nobody waits any more, and
    /// then it must still be ended.
    async fn start(&self) -> Result<Started, OpenError> {
        let call = self.sessions.begin().ok_or(OpenError::Ending)?;
        let path = self.clone();
        let (sender, started) = oneshot::channel();
        self.runtime.spawn(async move {
            let port = path.port.to_string();
            let parameters = [("portNumber", port.as_str())];
            let api = path.api.get();
            let started = api.start(&path.instance, &path.document, &parameters, Some(&path.reason));
            let started = started.await.map(|ticket| {
                call.succeeded(&ticket.session_id);
                let id = ticket.session_id.clone();
                Started { ticket, guard: Session { id, handle: LaneHandle::default(), path: path.clone() } }
            });
            // Where nobody waits any more, the guard in it ends the session.
            drop(sender.send(started));
            drop(call);
        });
        Ok(started.await.map_err(|_| OpenError::Ending)??)
    }

    async fn renew_credentials(&self) {
        let api = self.api.get();
        // Without success the old ones are as good as any.
        if let Ok(Ok(renewed)) = self.runtime.spawn(async move { api.renewed().await }).await {
            self.api.set(renewed);
        }
    }

    /// Ends a session for good without keeping anybody waiting.
    fn end_later(&self, session: &str) {
        let Some(call) = self.sessions.take(session) else { return };
        let (path, session) = (self.clone(), session.to_owned());
        self.runtime.spawn(async move {
            match path.api.get().terminate(&session).await {
                Ok(()) => debug!("ended SSM session {session}"),
                Err(error) => warn!("could not end SSM session {session}: {error}; its idle timeout will"),
            }
            drop(call);
        });
    }

    async fn end_all(&self) {
        self.sessions.ledger().closed = true;
        if !self.sessions.within(START_GRACE, |ledger| ledger.starts == 0).await {
            warn!("an SSM session that is just being started may stay until its idle timeout");
        }
        for session in self.sessions.list() {
            self.end_later(&session);
        }
        // Each call has a deadline of its own and tells its own failure.
        self.sessions.within(END_GRACE, |ledger| ledger.ends == 0).await;
    }
}

/// What AWS answered to a start.
struct Started {
    ticket: SessionTicket,
    guard: Session,
}

/// The SSM sessions that are open, being started or being ended.
#[derive(Clone, Default)]
pub struct Sessions(Arc<SessionsInner>);

#[derive(Default)]
struct SessionsInner {
    ledger: Mutex<Ledger>,
    changed: Notify,
}

#[derive(Default)]
struct Ledger {
    open: BTreeSet<String>,
    /// Calls under way.
    starts: usize,
    ends: usize,
    closed: bool,
}

/// A call that starts a session.
struct Start(Sessions);

/// A call that ends a session.
struct End(Sessions);

impl Sessions {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.0.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` once no more sessions may start.
    fn begin(&self) -> Option<Start> {
        let mut ledger = self.ledger();
        if ledger.closed {
            return None;
        }
        ledger.starts += 1;
        drop(ledger);
        Some(Start(self.clone()))
    }

    /// Takes an open session to end it; `None` when somebody else did.
    fn take(&self, session: &str) -> Option<End> {
        let mut ledger = self.ledger();
        if !ledger.open.remove(session) {
            return None;
        }
        ledger.ends += 1;
        drop(ledger);
        Some(End(self.clone()))
    }

    fn list(&self) -> Vec<String> {
        self.ledger().open.iter().cloned().collect()
    }

    /// Waits until the ledger is so; false when that takes too long.
    async fn within(&self, patience: Duration, so: impl Fn(&Ledger) -> bool) -> bool {
        let becoming = async {
            loop {
                let changed = self.0.changed.notified();
                if so(&self.ledger()) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(patience, becoming).await.is_ok()
    }
}

impl Start {
    fn succeeded(&self, session: &str) {
        self.0.ledger().open.insert(session.to_owned());
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        self.0.ledger().starts -= 1;
        self.0.0.changed.notify_waiters();
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.0.ledger().ends -= 1;
        self.0.0.changed.notify_waiters();
    }
}

/// How long an API call under way may keep the end of a session waiting.
const START_GRACE: Duration = Duration::from_secs(3);
/// A call that ends a session takes less.
const END_GRACE: Duration = Duration::from_secs(4);
const KEEPALIVE: Duration = Duration::from_secs(60);
const KEEPALIVE_AGAIN: Duration = Duration::from_secs(10);
/// For one name.
const LOOKUP: Duration = Duration::from_secs(2);
