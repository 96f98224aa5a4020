//! What all parts of a simulator share, and the listener that hands connections to them.

#![expect(clippy::disallowed_methods, reason = "a driver: it serves in real time")]

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

use super::api::{ApiFailure, Operation};
use super::config::{Config, Instance};
use super::faults::{Knobs, Rng};
use super::session::{Plan, Session};
use super::signature::Account;
use super::tls::Authority;
use super::{Count, api, gateway, session};

/// What all parts of a simulator share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(super) address: SocketAddr,
    /// Host and port as clients are told.
    pub(super) authority: String,
    pub(crate) tally: Tally,
    pub(super) knobs: Mutex<Arc<Knobs>>,
    pub(super) instances: Mutex<Vec<Instance>>,
    pub(super) accounts: Mutex<Vec<Account>>,
    pub(super) sessions: Mutex<Vec<Arc<Session>>>,
    pub(super) violations: Mutex<Vec<String>>,
    pub(super) script: Mutex<Vec<(Operation, ApiFailure)>>,
    pub(super) calls: Mutex<HashMap<Operation, u64>>,
    starts: Mutex<(Instant, u32)>,
    rng: Mutex<Rng>,
}

impl Shared {
    fn new(config: Config, address: SocketAddr) -> Self {
        let host = config.advertise.clone().unwrap_or_else(|| match address {
            SocketAddr::V4(v4) => v4.ip().to_string(),
            SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
        });
        let account = Account {
            access_key: config.access_key.clone(),
            secret_key: config.secret_key.clone(),
            session_token: config.session_token.clone(),
            expired: false,
        };
        Self {
            address,
            authority: format!("{host}:{}", address.port()),
            tally: Tally::default(),
            knobs: Mutex::new(Arc::new(config.knobs.clone())),
            instances: Mutex::new(config.instances.clone()),
            accounts: Mutex::new(vec![account]),
            sessions: Mutex::default(),
            violations: Mutex::default(),
            script: Mutex::default(),
            calls: Mutex::default(),
            starts: Mutex::new((Instant::now(), 0)),
            rng: Mutex::new(Rng::new(config.seed)),
            config,
        }
    }

    pub(crate) fn knobs(&self) -> Arc<Knobs> {
        Arc::clone(&self.lock(&self.knobs))
    }

    pub(crate) fn fork_rng(&self) -> Rng {
        Rng::new(self.lock(&self.rng).number())
    }

    pub(crate) fn accounts(&self) -> Vec<Account> {
        self.lock(&self.accounts).clone()
    }

    pub(crate) fn instances(&self) -> Vec<Instance> {
        self.lock(&self.instances).clone()
    }

    pub(crate) fn instance(&self, id: &str) -> Option<Instance> {
        self.lock(&self.instances).iter().find(|instance| instance.id == id).cloned()
    }

    pub(crate) fn session(&self, id: &str) -> Option<Arc<Session>> {
        self.lock(&self.sessions).iter().find(|session| session.id == id).cloned()
    }

    pub(crate) fn sessions(&self) -> Vec<Arc<Session>> {
        self.lock(&self.sessions).clone()
    }

    pub(crate) fn start_session(self: &Arc<Self>, plan: Plan) -> Arc<Session> {
        let id = format!("{}-{}", self.config.caller, self.fork_rng().text(session::ALPHANUMERIC, 26));
        let session = Session::start(Arc::clone(self), id, plan);
        let mut sessions = self.lock(&self.sessions);
        sessions.push(Arc::clone(&session));
        if sessions.len() > MOST_SESSIONS
            && let Some(old) = sessions.iter().position(|session| session.has_ended())
        {
            sessions.remove(old);
        }
        session
    }

    pub(crate) fn stream_url(&self, path: &str) -> String {
        let scheme = if self.config.tls { "wss" } else { "ws" };
        format!("{scheme}://{}{path}", self.authority)
    }

    pub(crate) fn violated(&self, text: &str) {
        tracing::error!("violation: {text}");
        let mut violations = self.lock(&self.violations);
        if violations.len() < MOST_VIOLATIONS {
            violations.push(text.to_owned());
        }
    }

    pub(crate) fn called(&self, operation: Operation) {
        *self.lock(&self.calls).entry(operation).or_default() += 1;
    }

    pub(crate) fn scripted_failure(&self, operation: Operation) -> Option<ApiFailure> {
        let mut script = self.lock(&self.script);
        let at = script.iter().position(|(scripted, _)| *scripted == operation)?;
        Some(script.remove(at).1)
    }

    /// Whether the rate of StartSession allows one more.
    pub(crate) fn may_start(&self) -> bool {
        let Some(most) = self.knobs().starts_per_second else { return true };
        let mut starts = self.lock(&self.starts);
        if starts.0.elapsed() >= Duration::from_secs(1) {
            *starts = (Instant::now(), 0);
        }
        starts.1 += 1;
        starts.1 <= most
    }

    pub(super) fn lock<'a, T>(&self, mutex: &'a Mutex<T>) -> MutexGuard<'a, T> {
        mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A bound listener and what it serves with.
pub(super) struct Server {
    pub(super) shared: Arc<Shared>,
    listener: StdTcpListener,
    pub(super) authority: Option<Authority>,
}

/// Listens where the configuration says, on the calling thread.
pub(super) fn bind(config: Config) -> anyhow::Result<Server> {
    if let Some(prepare) = &config.on_thread {
        prepare().context("prepare the simulator's thread")?;
    }
    let listener = StdTcpListener::bind(config.listen)
        .with_context(|| format!("listen on {} for the simulated SSM", config.listen))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let host = config.advertise.clone().unwrap_or_else(|| address.ip().to_string());
    let authority = if config.tls { Some(Authority::new(&host).context("make certificates")?) } else { None };
    Ok(Server { shared: Arc::new(Shared::new(config, address)), listener, authority })
}

impl Server {
    pub(super) async fn serve(self) {
        let listener = match TcpListener::from_std(self.listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "the simulator cannot listen"),
        };
        let acceptor = self.authority.as_ref().map(|authority| authority.acceptor.clone());
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // Out of descriptors: others must close first.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            tokio::spawn(accept(Arc::clone(&self.shared), acceptor.clone(), stream));
        }
    }
}

async fn accept(shared: Arc<Shared>, acceptor: Option<tokio_rustls::TlsAcceptor>, stream: TcpStream) {
    // Without it the messages of one millisecond wait for the acknowledgements of the one before.
    let _ = stream.set_nodelay(true);
    match acceptor {
        None => serve_http(shared, stream).await,
        Some(acceptor) => {
            match tokio::time::timeout(Duration::from_secs(10), acceptor.accept(stream)).await {
                Ok(Ok(stream)) => serve_http(shared, stream).await,
                Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
                Err(_) => tracing::debug!("TLS handshake timed out"),
            }
        }
    }
}

async fn serve_http(shared: Arc<Shared>, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let shared = Arc::clone(&shared);
        async move {
            let response = if request.uri().path().starts_with("/v1/data-channel/") {
                gateway::upgrade(&shared, request).await
            } else {
                api::handle(&shared, request).await
            };
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "HTTP connection ended");
    }
}

#[derive(Debug, Default)]
pub(crate) struct Tally([AtomicU64; Count::AgentConnects as usize + 1]);

impl Tally {
    pub(crate) fn add(&self, count: Count, by: u64) {
        self.0[count as usize].fetch_add(by, Ordering::Relaxed);
    }

    pub(super) fn read(&self, count: Count) -> u64 {
        self.0[count as usize].load(Ordering::Relaxed)
    }
}

const MOST_SESSIONS: usize = 4096;
const MOST_VIOLATIONS: usize = 1000;
