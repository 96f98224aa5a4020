//! A simulated SSM: API, message gateway and the SSM agent's port session, on one thread of its own.
//!
//! In the order a byte of the client passes them:
//!
//! - [`api`]: StartSession and friends over HTTP.
//! - `gateway`: the client's websocket; `quiet` keeps pongs back when asked to.
//! - `verify`, `signature`: what a strict service checks; a deviation is a violation (pure).
//! - `session`: the gateway's two halves of a session; `parcel` is a hop with its delay.
//! - [`faults`]: the knobs (pure); [`strike`]: what can happen to a session that runs.
//! - `agent_model`: the SSM agent's worker. [`dial`]: how it reaches the target.
//!
//! ```no_run
//! use netstack_tests::ssm::{Config, Simulator, dial};
//! let config = Config { dial: dial::to_ports([(742, "127.0.0.1:9000".parse().unwrap())].into()), ..Config::fast() };
//! let simulator = Simulator::start(config).unwrap();
//! for (name, value) in simulator.env() {
//!     println!("{name}={value}");
//! }
//! simulator.assert_clean();
//! ```

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::oneshot;

pub use api::{ApiFailure, Operation};
pub use config::{Config, Document, Instance};
pub use faults::{AgentKnobs, Direction, GatewayForm, Knobs, Mix, Refusal, ResumeAnswer, Rng, What};
pub use strike::Fault;

use session::{Cut, Session, ToClient};
use shared::{Shared, bind};
use signature::Account;
use tls::Authority;

mod agent_model;
pub mod api;
mod config;
pub mod dial;
pub mod faults;
mod gateway;
mod parcel;
mod quiet;
mod session;
mod shared;
mod signature;
pub mod strike;
mod tls;
mod verify;

/// A session, as tests see it.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    pub id: String,
    pub target: String,
    pub document: String,
    pub port: u16,
    pub reason: Option<String>,
    /// Why it ended; None while it is active.
    pub ended: Option<String>,
    pub client_connected: bool,
    pub agent_connected: bool,
    pub age: Duration,
    /// Bytes of the client's longest stream message.
    pub longest_up: usize,
}

/// What is counted, for each session and in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Stream messages of the client, each once.
    UpStream,
    /// Stream messages the client sent again.
    UpRepeats,
    UpAcks,
    /// Acknowledgements the SSM agent had no message for.
    UpAcksUnused,
    /// Stream messages given to the client, repeats included.
    DownStream,
    DownAcks,
    /// Stream messages the SSM agent sent again.
    DownResends,
    /// Upstream stream messages the SSM agent had taken before.
    UpDuplicates,
    /// Acknowledged and lost, because the handshake was not complete.
    EarlyLost,
    /// Upstream messages written to the target a second time, after a cut of the SSM agent's websocket.
    WrittenTwice,
    /// Messages beyond the SSM agent's outgoing buffer: sent, never resent.
    NotStored,
    TargetBytesUp,
    TargetBytesDown,
    DialsFailed,
    LostByFault,
    /// Messages under way when a websocket went, or with nobody to take them.
    LostInCut,
    Duplicated,
    Reordered,
    TooBig,
    Pings,
    ClientConnects,
    AgentConnects,
}

/// A running simulator; dropping it ends everything it started.
pub struct Simulator {
    shared: Arc<Shared>,
    ca_path: Option<PathBuf>,
    runtime: tokio::runtime::Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Simulator {
    /// Listens and serves from a thread of its own; the caller needs no runtime.
    pub fn start(config: Config) -> anyhow::Result<Self> {
        let (ready, started) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("ssm-simulator".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime.context("start a runtime").and_then(|runtime| Ok((bind(config)?, runtime))) {
                Ok((server, runtime)) => {
                    let shared = Arc::clone(&server.shared);
                    let ca_path = server.authority.as_ref().map(Authority::ca_path);
                    let handle = runtime.handle().clone();
                    if ready.send(Ok((Arc::clone(&shared), ca_path, handle))).is_ok() {
                        runtime.block_on(async {
                            tokio::select! {
                                () = server.serve() => {}
                                _ = stopped => {}
                            }
                        });
                    }
                    runtime.shutdown_timeout(Duration::from_secs(1));
                    shared.lock(&shared.sessions).clear();
                }
                Err(error) => {
                    // Nobody else is there to hear it.
                    let _ = ready.send(Err(error));
                }
            }
        })?;
        let (shared, ca_path, runtime) = started.recv().context("the simulator's thread died")??;
        Ok(Self { shared, ca_path, runtime, stop: Some(stop), thread: Some(thread) })
    }

    /// Where the API is.
    pub fn endpoint(&self) -> String {
        let scheme = if self.shared.config.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.shared.authority)
    }

    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// The environment a client needs.
    pub fn env(&self) -> Vec<(String, String)> {
        let account = self.shared.accounts().pop();
        let config = &self.shared.config;
        let mut pairs = vec![
            ("AWS_ENDPOINT_URL", self.endpoint()),
            ("AWS_ENDPOINT_URL_SSM", self.endpoint()),
            ("AWS_REGION", config.region.clone()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        ];
        if let Some(account) = account {
            pairs.push(("AWS_ACCESS_KEY_ID", account.access_key));
            pairs.push(("AWS_SECRET_ACCESS_KEY", account.secret_key));
            pairs.extend(account.session_token.map(|token| ("AWS_SESSION_TOKEN", token)));
        }
        if let Some(path) = &self.ca_path {
            pairs.push(("AWS_CA_BUNDLE", path.display().to_string()));
        }
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// The CA's certificate when TLS is on; the file goes with the simulator.
    pub fn ca_pem_path(&self) -> Option<PathBuf> {
        self.ca_path.clone()
    }

    /// Changes knobs while sessions run.
    pub fn knobs(&self, change: impl FnOnce(&mut Knobs)) {
        let mut knobs = self.shared.lock(&self.shared.knobs);
        change(Arc::make_mut(&mut knobs));
        drop(knobs);
        self.shared.sessions().iter().for_each(|session| session.wake());
    }

    /// Changes the instances, to take one offline for example.
    pub fn instances(&self, change: impl FnOnce(&mut Vec<Instance>)) {
        change(&mut self.shared.lock(&self.shared.instances));
    }

    /// The next call of this operation fails so; may be called several times.
    pub fn fail_next(&self, operation: Operation, failure: ApiFailure) {
        self.shared.lock(&self.shared.script).push((operation, failure));
    }

    /// The credentials valid until now get ExpiredTokenException from here on.
    pub fn expire_credentials(&self) {
        self.shared.lock(&self.shared.accounts).iter_mut().for_each(|account| account.expired = true);
    }

    /// Adds valid credentials; [`env`](Self::env) gives them from now on.
    pub fn add_credentials(&self, access_key: &str, secret_key: &str, session_token: Option<&str>) {
        self.shared.lock(&self.shared.accounts).push(Account {
            access_key: access_key.to_owned(),
            secret_key: secret_key.to_owned(),
            session_token: session_token.map(str::to_owned),
            expired: false,
        });
    }

    /// Sessions that have not ended, oldest first.
    pub fn active_sessions(&self) -> Vec<SessionInfo> {
        self.sessions().into_iter().filter(|info| info.ended.is_none()).collect()
    }

    /// All sessions, oldest first.
    pub fn sessions(&self) -> Vec<SessionInfo> {
        self.shared.sessions().iter().map(|session| session.info()).collect()
    }

    /// How often an operation was called, failures included.
    pub fn calls(&self, operation: Operation) -> u64 {
        self.shared.lock(&self.shared.calls).get(&operation).copied().unwrap_or(0)
    }

    /// What was counted over all sessions.
    pub fn count(&self, count: Count) -> u64 {
        self.shared.tally.read(count)
    }

    /// What was counted for one session.
    pub fn session_count(&self, session: &str, count: Count) -> u64 {
        self.shared.session(session).map_or(0, |session| session.tally.read(count))
    }

    /// Closes the client's websocket with 1000 `Bye`. False if there is no such session or websocket,
    /// as for all that follow.
    pub fn cut_client(&self, session: &str) -> bool {
        self.on(session, |session| session.cut_client(Cut::Bye))
    }

    /// Drops the client's TCP connection.
    pub fn cut_client_abruptly(&self, session: &str) -> bool {
        self.on(session, |session| session.cut_client(Cut::Abrupt))
    }

    /// Closes the SSM agent's websocket.
    pub fn cut_agent(&self, session: &str) -> bool {
        self.on(session, Session::cut_agent)
    }

    /// Closes both websockets of every active session.
    pub fn cut_all(&self) {
        for info in self.active_sessions() {
            self.cut_client(&info.id);
            self.cut_agent(&info.id);
        }
    }

    /// Nothing passes the client's websocket any more; its TCP connection stays open.
    pub fn black_hole_client(&self, session: &str) -> bool {
        self.on(session, |session| session.black_hole_client())
    }

    /// Nothing passes the SSM agent's websocket any more, until it notices.
    pub fn black_hole_agent(&self, session: &str) -> bool {
        self.on(session, Session::black_hole_agent)
    }

    /// Whatever the SSM agent dialled closes its end, as a target does that ends.
    pub fn end_target(&self, session: &str) -> bool {
        self.on(session, |session| {
            session.target_ends.notify_one();
            true
        })
    }

    /// The gateway loses the next `count` messages of this sort.
    pub fn drop_next(&self, session: &str, direction: Direction, what: What, count: u32) -> bool {
        self.on(session, |session| {
            session.drop_next(direction, what, count);
            true
        })
    }

    /// Sends a binary message of the test's own to the client.
    pub fn inject_binary(&self, session: &str, bytes: Vec<u8>) -> bool {
        let parcel = parcel::Parcel { bytes: bytes.into(), tag: parcel::Tag::Control };
        self.on(session, |session| session.inject(ToClient::Parcel(parcel)))
    }

    /// Sends a text message to the client.
    pub fn inject_text(&self, session: &str, text: &str) -> bool {
        self.on(session, |session| session.inject(ToClient::Text(text.to_owned())))
    }

    /// Ends a session from the service's side: `channel_closed` with this output.
    pub fn end_session(&self, session: &str, output: &str) -> bool {
        self.on(session, |session| {
            session.end("ended by the test", output);
            true
        })
    }

    /// What clients did that a strict service would not take.
    pub fn violations(&self) -> Vec<String> {
        self.shared.lock(&self.shared.violations).clone()
    }

    /// Panics with the violations, if there are any.
    #[track_caller]
    pub fn assert_clean(&self) {
        let violations = self.violations();
        assert!(violations.is_empty(), "the simulator saw violations:\n  {}", violations.join("\n  "));
    }

    /// Ends the simulator and waits for its thread.
    pub fn shutdown(self) {
        drop(self);
    }

    fn on(&self, session: &str, act: impl FnOnce(&Arc<Session>) -> bool) -> bool {
        let _entered = self.runtime.enter();
        self.shared.session(session).is_some_and(|session| act(&session))
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // An error means that the thread has ended already.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
