//! The data thread: the shared engine with the capture as its local ends, and the tunnel's lanes.
//!
//! Everything that touches a packet runs in this one thread. The rest of the program asks it questions
//! through a small bounded channel and never holds it up.

use std::io;
use std::time::{Duration, Instant};

use agent::engine::{Command, Config, Engine, FlowPage, Kill, LaneNews, Ledger, Outcome, Remains, Report};
use agent::local_end::LocalEnds;
use agent::wire::Role;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, LocalSet};
use tracing::{debug, warn};

use crate::tunnel::health::HealthView;
use crate::tunnel::lanes::{Fate, LaneError, Lanes};

/// What the data thread is asked.
pub enum Ask {
    Report(oneshot::Sender<Report>),
    /// As [`Command::Flows`].
    Flows(u32, oneshot::Sender<FlowPage>),
    /// As [`Command::Kill`].
    Kill(Vec<u64>, oneshot::Sender<Vec<Kill>>),
    /// Says goodbye to the agent, ends the SSM sessions, and ends the thread.
    Stop,
}

/// A running data thread.
pub struct Handle {
    pub asks: mpsc::Sender<Ask>,
    /// The first lane's fate, and why the thread ended by itself, if it did.
    pub first: oneshot::Receiver<Result<First, LaneError>>,
    pub ended: oneshot::Receiver<String>,
    thread: std::thread::JoinHandle<()>,
}

/// What the first lane told.
#[derive(Clone, Debug)]
pub struct First {
    pub agent_version: String,
    pub agent_key: agent::wire::hello::PublicKey,
}

impl Handle {
    /// Asks the thread to stop and waits for it, off the caller's runtime.
    pub async fn stop(self) {
        // A closed channel means it has ended already.
        let _ = tokio::time::timeout(JOIN, self.asks.send(Ask::Stop)).await;
        let joined = tokio::task::spawn_blocking(move || self.thread.join());
        match tokio::time::timeout(JOIN, joined).await {
            Ok(Ok(Ok(()))) => {}
            Ok(_) => warn!("the data thread ended abnormally"),
            Err(_) => warn!("the data thread does not end; it is left to the end of the process"),
        }
    }
}

/// Starts the data thread. `ends` is made inside it, because its device belongs to the thread's runtime.
pub fn spawn<E, F>(ends: F, lanes: Lanes) -> io::Result<Handle>
where
    E: LocalEnds + 'static,
    F: FnOnce() -> io::Result<E> + Send + 'static,
{
    let (asks, inbox) = mpsc::channel(16);
    let (first_sender, first) = oneshot::channel();
    let (ended_sender, ended) = oneshot::channel();
    let thread = std::thread::Builder::new().name("data".to_owned()).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return tell(ended_sender, format!("no runtime for the data thread: {error}")),
        };
        LocalSet::new().block_on(&runtime, async move {
            match ends() {
                Ok(ends) => {
                    let mut session = Session { lanes, first: Some(first_sender), inbox };
                    if let Err(reason) = session.run(ends).await {
                        tell(ended_sender, reason);
                    }
                    session.lanes.path.end_all().await;
                }
                Err(error) => tell(ended_sender, format!("the TUN device cannot be used: {error}")),
            }
        });
        // A name that is still being looked up must not hold up the end.
        runtime.shutdown_background();
    })?;
    Ok(Handle { asks, first, ended, thread })
}

fn tell(ended: oneshot::Sender<String>, reason: String) {
    // Nobody listens any more when the session is ending too.
    let _ = ended.send(reason);
}

struct Session {
    lanes: Lanes,
    first: Option<oneshot::Sender<Result<First, LaneError>>>,
    inbox: mpsc::Receiver<Ask>,
}

/// How one life of a trunk ended.
enum Life<E> {
    Next(Remains<E>),
    Stopped,
    Failed(String),
}

impl Session {
    /// Lives through as many trunks as it takes; an error says why the session cannot go on.
    async fn run<E: LocalEnds + 'static>(&mut self, ends: E) -> Result<(), String> {
        let mut remains = Remains { ends, ledger: Ledger::default() };
        loop {
            match self.live(remains).await {
                Life::Next(back) => remains = back,
                Life::Stopped => return Ok(()),
                Life::Failed(reason) => return Err(reason),
            }
            self.lanes.ticket = None;
            self.lanes.sessions.clear();
        }
    }

    async fn live<E: LocalEnds + 'static>(&mut self, remains: Remains<E>) -> Life<E> {
        let (commands, command_inbox) = mpsc::channel(16);
        let (news_sender, mut news) = mpsc::channel(256);
        let config = Config {
            role: Role::Client,
            ping_interval: self.lanes.ping_interval,
            entropy: random_u64(),
            on_lane: Box::new(move |item: LaneNews| {
                if news_sender.try_send(item).is_err() {
                    debug!("lane news nobody waits for");
                }
            }),
        };
        // Its loop has budgets of its own; tokio's would make ready sockets look empty.
        let engine = Engine::new(config, remains.ends).with_ledger(remains.ledger);
        let running = tokio::task::unconstrained(engine.run(command_inbox));
        let mut engine = tokio::task::spawn_local(running);
        let Self { lanes, first, inbox } = self;
        let keep = async {
            if let Some(reason) = first_lane(lanes, first, &commands).await {
                return Err(reason);
            }
            Ok(lanes.keep(&commands, &mut news).await)
        };
        tokio::select! {
            ended = &mut engine => match ended {
                Ok((outcome, remains)) => after(outcome, remains, &lanes.health),
                Err(error) => Life::Failed(format!("the engine failed: {error}")),
            },
            kept = keep => match kept {
                Ok(Fate::Forgotten) => {
                    lanes.health.lose_trunk(now(), "the agent no longer knows this tunnel, it was restarted".to_owned());
                    reclaim(engine, &commands).await
                }
                Ok(Fate::Ended) => reclaim(engine, &commands).await,
                Err(reason) => {
                    reclaim(engine, &commands).await;
                    Life::Failed(reason)
                }
            },
            () = answer(inbox, &commands) => {
                reclaim(engine, &commands).await;
                Life::Stopped
            }
        }
    }
}

/// Makes the first lane of a trunk. The very first one of a session must succeed; later ones are tried
/// until they do. Returns why the session has failed.
async fn first_lane(
    lanes: &mut Lanes,
    first: &mut Option<oneshot::Sender<Result<First, LaneError>>>,
    commands: &mpsc::Sender<Command>,
) -> Option<String> {
    let Some(first) = first.take() else {
        // A lane error is told in the health; the only fate here is the engine's end.
        let _ = lanes.replace(commands).await;
        return None;
    };
    match lanes.add(commands).await {
        Ok(welcomed) => {
            let told = First { agent_version: welcomed.agent_version, agent_key: welcomed.agent_key };
            let _ = first.send(Ok(told));
            None
        }
        Err(error) => {
            let reason = error.to_string();
            let _ = first.send(Err(error));
            Some(reason)
        }
    }
}

fn after<E>(outcome: Outcome, remains: Remains<E>, health: &HealthView) -> Life<E> {
    let reason = match outcome {
        Outcome::Closed => return Life::Stopped,
        Outcome::Ends { text } => return Life::Failed(text),
        Outcome::Goodbye { text } => format!("the agent ended the tunnel: {text}"),
        Outcome::Fault(fault) => format!("the agent broke the protocol: {fault}"),
        Outcome::Spent => "it has carried as many connections as one tunnel can".to_owned(),
    };
    health.lose_trunk(now(), reason);
    Life::Next(remains)
}

/// Ends an engine and takes its local ends back.
async fn reclaim<E>(engine: JoinHandle<(Outcome, Remains<E>)>, commands: &mpsc::Sender<Command>) -> Life<E> {
    // A closed channel: it has ended already.
    let _ = commands.send(Command::Close).await;
    match tokio::time::timeout(RECLAIM, engine).await {
        Ok(Ok((_, remains))) => Life::Next(remains),
        Ok(Err(error)) => Life::Failed(format!("the engine failed: {error}")),
        Err(_) => Life::Failed("the engine did not end in time".to_owned()),
    }
}

/// Passes questions on to the engine until it is time to stop.
async fn answer(inbox: &mut mpsc::Receiver<Ask>, commands: &mpsc::Sender<Command>) {
    while let Some(ask) = inbox.recv().await {
        match ask {
            Ask::Report(reply) => {
                // Dropping the reply tells the asker that there is no engine now.
                let _ = commands.send(Command::Report(reply)).await;
            }
            Ask::Flows(from, reply) => {
                let _ = commands.send(Command::Flows(from, reply)).await;
            }
            Ask::Kill(serials, reply) => {
                let _ = commands.send(Command::Kill(serials, reply)).await;
            }
            Ask::Stop => return,
        }
    }
}

/// The time; everything pure below gets it as an argument.
#[expect(clippy::disallowed_methods, reason = "the driver of the data thread reads the clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// A number nobody can guess.
pub fn random_u64() -> u64 {
    u64::from_ne_bytes(random())
}

/// Bytes nobody can guess.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system's random source works");
    bytes
}

/// Trunk pings while flows are open, when nothing else is asked for.
pub const PING_INTERVAL: Duration = Duration::from_secs(20);
const RECLAIM: Duration = Duration::from_secs(3);
/// Longer than everything that ends in order takes.
const JOIN: Duration = Duration::from_secs(12);
