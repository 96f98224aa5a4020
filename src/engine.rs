//! The data thread: the shared engine with the capture as its local ends, and the tunnel's lanes.
//!
//! Everything that touches a packet runs in this one thread. The rest of the program asks it questions
//! through a small bounded channel and never holds it up.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::engine::{Command, Config, Engine, FlowPage, Kill, Ledger, Outcome, Pinging, Remains, Report};
use agent::local_end::LocalEnds;
use agent::wire::Role;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, LocalSet};
use tracing::warn;

use crate::config::Keepalive;
use crate::tunnel::lanes::{End, Fate, First, LaneError, Lanes, LanesConfig};
use crate::tunnel::news;

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
    /// The first lane's fate, unless it may wait; and why the thread ended by itself, if it did.
    pub first: oneshot::Receiver<Result<First, LaneError>>,
    pub ended: oneshot::Receiver<Ended>,
    thread: std::thread::JoinHandle<()>,
}

/// Why the data thread ended by itself.
#[derive(Clone, Debug)]
pub enum Ended {
    Failed(String),
    /// The connection was lost for good, with the last error of a lane.
    GaveUp(End, Option<Arc<LaneError>>),
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
pub fn spawn<E, F>(ends: F, lanes: LanesConfig) -> io::Result<Handle>
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
            Err(error) => return fail(ended_sender, format!("no runtime for the data thread: {error}")),
        };
        LocalSet::new().block_on(&runtime, async move {
            match ends() {
                Ok(ends) => {
                    let mut session = Session { lanes: Lanes::new(lanes, first_sender), inbox };
                    if let Err(ended) = session.run(ends).await {
                        tell(ended_sender, ended);
                    }
                    session.lanes.config.path.end_all().await;
                }
                Err(error) => fail(ended_sender, format!("the TUN device cannot be used: {error}")),
            }
        });
        // A name that is still being looked up must not hold up the end.
        runtime.shutdown_background();
    })?;
    Ok(Handle { asks, first, ended, thread })
}

fn fail(ended: oneshot::Sender<Ended>, reason: String) {
    tell(ended, Ended::Failed(reason));
}

fn tell(told: oneshot::Sender<Ended>, ended: Ended) {
    // Nobody listens any more when the session is ending too.
    let _ = told.send(ended);
}

struct Session {
    lanes: Lanes,
    inbox: mpsc::Receiver<Ask>,
}

/// How one life of a trunk ended.
enum Life<E> {
    Next(Remains<E>),
    Stopped,
    Over(Ended),
}

impl Session {
    /// Lives through as many trunks as it takes; an error says why the session cannot go on.
    async fn run<E: LocalEnds + 'static>(&mut self, ends: E) -> Result<(), Ended> {
        let mut remains = Remains { ends, ledger: Ledger::default() };
        loop {
            match self.live(remains).await {
                Life::Next(back) => remains = back,
                Life::Stopped => return Ok(()),
                Life::Over(ended) => return Err(ended),
            }
            self.lanes.forget_trunk();
        }
    }

    async fn live<E: LocalEnds + 'static>(&mut self, remains: Remains<E>) -> Life<E> {
        let (commands, command_inbox) = mpsc::channel(16);
        let (teller, mut news) = news::channel();
        let config = Config {
            role: Role::Client,
            ping_interval: self.lanes.config.ping_interval,
            entropy: random_u64(),
            on_lane: Box::new(move |item| teller.tell(item)),
        };
        let pinging = match self.lanes.config.plan.keepalive {
            Keepalive::Auto => Pinging::WhileBusy,
            Keepalive::Always => Pinging::Always,
            Keepalive::Never => Pinging::Never,
        };
        // Its loop has budgets of its own; tokio's would make ready sockets look empty.
        let engine = Engine::new(config, remains.ends).with_ledger(remains.ledger).with_pinging(pinging);
        let running = tokio::task::unconstrained(engine.run(command_inbox));
        let mut engine = tokio::task::spawn_local(running);
        let Self { lanes, inbox } = self;
        let fate = tokio::select! {
            ended = &mut engine => return match ended {
                Ok((outcome, remains)) => after(outcome, remains, lanes),
                Err(error) => failed(format!("the engine failed: {error}")),
            },
            fate = lanes.keep(&commands, &mut news) => fate,
            () = answer(inbox, &commands) => {
                reclaim(engine, &commands).await;
                return Life::Stopped;
            }
        };
        let reclaimed = reclaim(engine, &commands).await;
        match fate {
            Fate::Forgotten => forgotten(FORGOTTEN.to_owned(), lanes).map_or(reclaimed, Life::Over),
            Fate::Idle | Fate::Ended => reclaimed,
            Fate::Refused(reason) => failed(reason),
            Fate::GaveUp(end, last) => Life::Over(Ended::GaveUp(end, last)),
        }
    }
}

fn failed<E>(reason: String) -> Life<E> {
    Life::Over(Ended::Failed(reason))
}

/// The trunk is gone with its flows; tells whether that is the end.
fn forgotten(reason: String, lanes: &mut Lanes) -> Option<Ended> {
    lanes.note_failure(now());
    lanes.config.health.lose_trunk(now(), reason);
    (!lanes.may_begin_anew()).then_some(Ended::GaveUp(End::Lost, None))
}

fn after<E>(outcome: Outcome, remains: Remains<E>, lanes: &mut Lanes) -> Life<E> {
    let reason = match outcome {
        Outcome::Closed => return Life::Stopped,
        Outcome::Ends { text } => return failed(text),
        Outcome::Goodbye { text } => format!("the agent ended the tunnel: {text}"),
        Outcome::Fault(fault) => format!("the agent broke the protocol: {fault}"),
        Outcome::Spent => {
            lanes.config.health.lose_trunk(now(), SPENT.to_owned());
            return Life::Next(remains);
        }
    };
    forgotten(reason, lanes).map_or(Life::Next(remains), Life::Over)
}

/// Ends an engine and takes its local ends back.
async fn reclaim<E>(engine: JoinHandle<(Outcome, Remains<E>)>, commands: &mpsc::Sender<Command>) -> Life<E> {
    // A closed channel: it has ended already.
    let _ = commands.send(Command::Close).await;
    match tokio::time::timeout(RECLAIM, engine).await {
        Ok(Ok((_, remains))) => Life::Next(remains),
        Ok(Err(error)) => failed(format!("the engine failed: {error}")),
        Err(_) => failed("the engine did not end in time".to_owned()),
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
const FORGOTTEN: &str = "the agent no longer knows this tunnel, it was restarted";
const SPENT: &str = "it has carried as many connections as one tunnel can";
const RECLAIM: Duration = Duration::from_secs(3);
/// Longer than everything that ends in order takes.
const JOIN: Duration = Duration::from_secs(12);

#[cfg(test)]
mod tests {
    use agent::wire::mux::MuxConfig;

    use super::*;

    #[test]
    fn a_flow_has_room_for_all_that_the_agent_may_send() {
        let window = MuxConfig::new(Role::Client).max_window as usize;
        assert!(crate::netstack::Config::default().send_ring >= window);
    }
}
