//! The SSM agent's worker of one port session: handshake, dial, pump, acknowledgement, resend.
//!
//! It behaves as the stock SSM agent was read and measured to, faults included: it acknowledges and
//! loses data that comes before the handshake is complete, resends only its oldest message, keeps
//! reading the target while its websocket is down, and takes a message again whose acknowledgement
//! it could not send.

#![expect(clippy::disallowed_methods, reason = "a driver: the worker paces in real time")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::json;
use ssm_proxy::ssm::handshake::{ActionStatus, HandshakeComplete, HandshakeRequest, HandshakeResponse};
use ssm_proxy::ssm::message::PayloadType;
use tokio::io::{AsyncReadExt as _, ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use super::Count;
use super::dial::Target;
use super::faults::{AgentKnobs, Refusal, Rng};
use super::parcel::Parcel;
use super::session::{AgentConn, ERROR_HEAD, Session};

mod stream;

/// Runs a session's worker from its start to its death.
pub(crate) async fn run(session: Arc<Session>) {
    let knobs = session.shared.knobs().agent.clone();
    let mut over = session.over.subscribe();
    tokio::time::sleep(knobs.start_delay).await;
    let (notes, noted) = mpsc::channel(8);
    let worker = Arc::new(Worker {
        rng: Mutex::new(session.shared.fork_rng()),
        core: Mutex::new(Core::new()),
        conn: Mutex::new(None),
        target: tokio::sync::Mutex::new(None),
        resumed: Notify::new(),
        notes,
        knobs,
        session,
    });
    let mut tasks = JoinSet::new();
    tasks.spawn(Arc::clone(&worker).stay_connected());
    tasks.spawn(Arc::clone(&worker).resend());
    let end = tokio::select! {
        end = Arc::clone(&worker).serve(noted) => end,
        () = async { over.wait_for(|over| *over).await.map_or((), drop) } => End::Terminated,
    };
    if matches!(end, End::Terminated) {
        // The target's connection lives as long as the worker.
        tokio::time::sleep(worker.knobs.terminate_linger).await;
    }
    tasks.shutdown().await;
    let conn = worker.conn().take();
    if let Some(conn) = conn {
        worker.session.agent_gone(&conn);
    }
    worker.report(end).await;
}

struct Worker {
    session: Arc<Session>,
    knobs: AgentKnobs,
    core: Mutex<Core>,
    /// None while the websocket is down and that has been noticed.
    conn: Mutex<Option<Arc<AgentConn>>>,
    target: tokio::sync::Mutex<Option<WriteHalf<Box<dyn Target>>>>,
    /// The pause flag was cleared.
    resumed: Notify,
    notes: mpsc::Sender<Note>,
    rng: Mutex<Rng>,
}

struct Core {
    is_paused: bool,
    /// HandshakeComplete has been sent.
    is_complete: bool,
    /// The target has been dialled.
    is_ready: bool,
    expected: i64,
    next_sequence: i64,
    outgoing: BTreeMap<i64, Stored>,
    incoming: BTreeMap<i64, Parcel>,
    round_trip: f64,
    variation: f64,
    resend_after: Duration,
    /// The stream message whose acknowledgement could not be sent after it was written to the target.
    unacknowledged: Option<i64>,
}

struct Stored {
    parcel: Parcel,
    last_sent: Instant,
}

/// What the receiving side tells the serving side.
enum Note {
    Response(HandshakeResponse),
    /// A flag of the client asks to end.
    Terminate,
    Disconnect,
}

/// How a worker ends.
enum End {
    /// The target closed, or the client asked to end.
    Success,
    Failed(String),
    /// The worker crashed on a refused dial.
    Crashed(String),
    /// The service ended the session.
    Terminated,
}

impl Worker {
    async fn serve(self: Arc<Self>, mut notes: mpsc::Receiver<Note>) -> End {
        if let Err(end) = self.handshake(&mut notes).await {
            return end;
        }
        tokio::time::sleep(self.knobs.dial_delay).await;
        let target = match (self.session.plan.dial)(self.session.plan.port).await {
            Ok(target) => target,
            Err(error) => return End::Crashed(format!("Unable to connect to specified port: {error}")),
        };
        let (reader, writer) = tokio::io::split(target);
        *self.target.lock().await = Some(writer);
        self.core().is_ready = true;
        tokio::select! {
            end = self.pump(reader) => end,
            end = first_wish(&mut notes) => end,
        }
    }

    async fn handshake(&self, notes: &mut mpsc::Receiver<Note>) -> Result<(), End> {
        let started = Instant::now();
        let properties = json!({ "portNumber": self.session.plan.port.to_string() });
        let request = HandshakeRequest::port_session(&self.knobs.version, properties).to_json();
        self.send_stream(PayloadType::HANDSHAKE_REQUEST, request.as_bytes()).await;
        let answer = tokio::time::timeout(self.knobs.handshake_timeout, async {
            loop {
                match notes.recv().await {
                    Some(Note::Response(response)) => break response,
                    Some(Note::Terminate | Note::Disconnect) | None => {}
                }
            }
        });
        let Ok(response) = answer.await else { return Err(End::Failed(HANDSHAKE_TIMEOUT.to_owned())) };
        let failed = response
            .processed_client_actions
            .iter()
            .find(|action| action.action_status != ActionStatus::SUCCESS);
        if let Some(action) = failed {
            let text =
                format!("{} failed on client with status {}", action.action_type, action.action_status.0);
            return Err(End::Failed(text));
        }
        let took = i64::try_from(started.elapsed().as_nanos()).unwrap_or(i64::MAX);
        let complete =
            HandshakeComplete { handshake_time_to_complete: took, customer_message: String::new() };
        self.send_stream(PayloadType::HANDSHAKE_COMPLETE, complete.to_json().as_bytes()).await;
        let delay = self.rng().duration(self.knobs.complete_delay / 2, self.knobs.complete_delay);
        tokio::time::sleep(delay).await;
        self.core().is_complete = true;
        Ok(())
    }

    /// Reads the target and sends, one message and one pause at a time, until the target ends.
    async fn pump(&self, mut reader: ReadHalf<Box<dyn Target>>) -> End {
        let mut buffer = vec![0; self.knobs.read_size];
        let mut pace = Pace::new(self.knobs.pause);
        loop {
            self.until_active().await;
            let began = Instant::now();
            let read = tokio::select! {
                read = reader.read(&mut buffer) => read,
                () = self.session.target_ends.notified() => Ok(0),
            };
            pace.waited_since(began);
            match read {
                Ok(0) => {
                    self.drain().await;
                    return End::Success;
                }
                Ok(size) => {
                    self.session.count_by(Count::TargetBytesDown, size as u64);
                    let began = Instant::now();
                    let late = self.send_stream(PayloadType::OUTPUT, &buffer[..size]).await;
                    pace.waited_since(began);
                    pace.pause().await;
                    self.store(late);
                }
                Err(error) => return End::Failed(format!("Failed to read from port: {error}")),
            }
        }
    }

    /// Waits for the acknowledgements of everything sent, but not for long.
    async fn drain(&self) {
        let deadline = Instant::now() + self.knobs.eof_drain;
        while !self.core().outgoing.is_empty() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn until_active(&self) {
        loop {
            let resumed = self.resumed.notified();
            if !self.core().is_paused {
                return;
            }
            resumed.await;
        }
    }

    /// Tells the service how the worker ended, as the control channel would.
    async fn report(&self, end: End) {
        let session = &self.session;
        match end {
            End::Terminated => {}
            End::Success => {
                tokio::time::sleep(self.knobs.close_delay).await;
                session.end("the target closed or the client ended it", "");
            }
            End::Failed(text) => {
                tokio::time::sleep(self.knobs.close_delay).await;
                session.end(&text, &format!("{ERROR_HEAD}{text}"));
            }
            End::Crashed(text) => {
                session.count(Count::DialsFailed);
                match self.knobs.refusal {
                    Refusal::Vanish => {}
                    Refusal::Explain => {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        session.end(&text, &format!("{ERROR_HEAD}{text}"));
                    }
                }
            }
        }
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn conn(&self) -> MutexGuard<'_, Option<Arc<AgentConn>>> {
        self.conn.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn rng(&self) -> MutexGuard<'_, Rng> {
        self.rng.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Core {
    fn new() -> Self {
        Self {
            is_paused: false,
            is_complete: false,
            is_ready: false,
            expected: 0,
            next_sequence: 0,
            outgoing: BTreeMap::new(),
            incoming: BTreeMap::new(),
            round_trip: 0.1,
            variation: 0.0,
            resend_after: Duration::from_millis(200),
            unacknowledged: None,
        }
    }

    /// One round trip was measured: from the last sending to the acknowledgement.
    fn sample(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        self.variation = 0.75 * self.variation + 0.25 * (self.round_trip - took).abs();
        self.round_trip = 0.875 * self.round_trip + 0.125 * took;
        let timeout = self.round_trip + (4.0 * self.variation).max(0.01);
        self.resend_after = Duration::from_secs_f64(timeout.min(1.0));
    }
}

/// Waits for the client's wish to end.
async fn first_wish(notes: &mut mpsc::Receiver<Note>) -> End {
    loop {
        match notes.recv().await {
            Some(Note::Terminate) => return End::Success,
            Some(Note::Disconnect) => return End::Failed("use of closed network connection".to_owned()),
            Some(Note::Response(_)) => {}
            None => return std::future::pending().await,
        }
    }
}

/// Pauses by deadlines that add up: timers fire up to a millisecond late, and without that the rate
/// would be half of what the pause says.
struct Pace {
    pause: Duration,
    deadline: Instant,
}

impl Pace {
    fn new(pause: Duration) -> Self {
        Self { pause, deadline: Instant::now() }
    }

    /// Time spent waiting for others is not made up for.
    fn waited_since(&mut self, began: Instant) {
        let now = Instant::now();
        if now - began > LONG_WAIT {
            self.deadline = self.deadline.max(now);
        }
    }

    async fn pause(&mut self) {
        if self.pause.is_zero() {
            return tokio::task::yield_now().await;
        }
        let least = Instant::now().checked_sub(MOST_DEBT).unwrap_or(self.deadline);
        self.deadline = self.deadline.max(least) + self.pause;
        tokio::time::sleep_until(self.deadline.into()).await;
    }
}

const HANDSHAKE_TIMEOUT: &str = "Encountered error while initiating handshake. Handshake timed out. \
     Please ensure that you have the latest version of the session manager plugin.";
/// A read or a send that takes longer did not go through at once.
const LONG_WAIT: Duration = Duration::from_micros(300);
/// How far the pace may be behind and still catch up.
const MOST_DEBT: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resend_time_follows_the_round_trip_and_is_capped() {
        let mut core = Core::new();
        for _ in 0..200 {
            core.sample(Duration::from_millis(40));
        }
        assert!((49..52).contains(&core.resend_after.as_millis()), "{:?}", core.resend_after);
        for _ in 0..50 {
            core.sample(Duration::from_secs(8));
        }
        assert_eq!(core.resend_after, Duration::from_secs(1));
    }

    #[tokio::test]
    async fn pauses_add_up_to_their_sum() {
        let mut pace = Pace::new(Duration::from_micros(1100));
        let began = Instant::now();
        for _ in 0..200 {
            pace.pause().await;
        }
        let took = began.elapsed();
        assert!((Duration::from_millis(215)..Duration::from_millis(400)).contains(&took), "{took:?}");
    }
}
