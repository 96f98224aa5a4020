//! One session as the gateway sees it: its two halves, what passes between them, and its end.

#![expect(clippy::disallowed_methods, reason = "a driver: sessions live in real time")]

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ssm_proxy::ssm::message::{Kind, Message};
use tokio::sync::{Notify, watch};

use super::dial::Dial;
use super::faults::{Direction, GatewayForm, Knobs, Mangler, Rng, What};
use super::parcel::{Parcel, Tag, Transit};
use super::shared::{Shared, Tally};
use super::verify::{Accepted, Audit, Opening};
use super::{Count, SessionInfo};

pub(crate) use halves::{AgentConn, ClientConn, Mode, ToClient};
use halves::{channel_closed, publication};

mod halves;
mod relay;

pub(crate) struct Session {
    pub(crate) id: String,
    pub(crate) plan: Plan,
    pub(crate) shared: Arc<Shared>,
    pub(crate) tally: Tally,
    /// Turns true when the session has ended.
    pub(crate) over: watch::Sender<bool>,
    started: Instant,
    /// Told by a test: the target closes its end.
    pub(crate) target_ends: Notify,
    /// A timer of [`keep`](Self::keep) may have changed.
    changed: Notify,
    state: Mutex<State>,
}

/// What StartSession asked for.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) target: String,
    pub(crate) document: String,
    pub(crate) port: u16,
    pub(crate) reason: Option<String>,
    pub(crate) dial: Dial,
}

struct State {
    ended: Option<String>,
    token: Option<Token>,
    spent_tokens: VecDeque<String>,
    cell: String,
    client_id: Option<String>,
    client: Option<Arc<ClientConn>>,
    /// A client has been here before.
    client_seen: bool,
    agent: Option<Arc<AgentConn>>,
    /// Cut between the write of a message and its acknowledgement: takes one more stream message.
    cut_agent: Option<Arc<AgentConn>>,
    held_up: VecDeque<Parcel>,
    held_down: VecDeque<Parcel>,
    last_input: Instant,
    longest_up: usize,
    audit: Audit,
    up: Mangler,
    down: Mangler,
    rng: Rng,
    gateway_messages: u64,
}

struct Token {
    value: String,
    issued: Instant,
}

/// How a client's websocket goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// With the close code 1000 and `Bye`, as the service does about every hour.
    Bye,
    /// Without a close frame.
    Abrupt,
}

/// Why a websocket's first text frame is refused.
pub(crate) struct Rejection {
    pub(crate) text: String,
    /// A fault of the client, not of time.
    pub(crate) is_violation: bool,
}

impl Session {
    pub(crate) fn start(shared: Arc<Shared>, id: String, plan: Plan) -> Arc<Self> {
        let now = Instant::now();
        let mut rng = shared.fork_rng();
        let state = State {
            ended: None,
            token: None,
            spent_tokens: VecDeque::new(),
            cell: new_cell(&mut rng),
            client_id: None,
            client: None,
            client_seen: false,
            agent: None,
            cut_agent: None,
            held_up: VecDeque::new(),
            held_down: VecDeque::new(),
            last_input: now,
            longest_up: 0,
            audit: Audit::default(),
            up: Mangler::default(),
            down: Mangler::default(),
            rng,
            gateway_messages: 0,
        };
        let session = Arc::new(Self {
            id,
            plan,
            shared,
            tally: Tally::default(),
            over: watch::Sender::new(false),
            started: now,
            target_ends: Notify::new(),
            changed: Notify::new(),
            state: Mutex::new(state),
        });
        tokio::spawn(Arc::clone(&session).keep());
        tokio::spawn(super::agent_model::run(Arc::clone(&session)));
        session
    }

    /// A fresh token and the StreamUrl's path; the former token and path are worth nothing any more.
    /// None when the session has ended.
    pub(crate) fn admit(&self, resumed: bool) -> Option<(String, String)> {
        let mut state = self.state();
        if state.ended.is_some() {
            return None;
        }
        let value = state.rng.text(TOKEN_LETTERS, 320);
        if let Some(old) = state.token.replace(Token { value: value.clone(), issued: Instant::now() }) {
            state.spend(old.value);
        }
        if resumed {
            state.cell = new_cell(&mut state.rng);
            state.last_input = Instant::now();
        }
        Some((value, self.stream_path(&state.cell)))
    }

    /// The path and query a websocket must have now.
    pub(crate) fn current_path(&self) -> String {
        self.stream_path(&self.state().cell)
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.state().ended.is_some()
    }

    /// Takes a client's first text frame; from here on its websocket is the session's client half.
    pub(crate) fn open_client(self: &Arc<Self>, opening: &Opening) -> Result<Arc<ClientConn>, Rejection> {
        let knobs = self.shared.knobs();
        let mut state = self.state();
        state.take_token(&opening.token, &knobs)?;
        match &state.client_id {
            Some(known) if *known != opening.client_id => {
                return Err(Rejection::violation("the ClientId differs from the session's first one"));
            }
            Some(_) => state.audit.reconnected(),
            None => state.client_id = Some(opening.client_id.clone()),
        }
        let conn = Arc::new(ClientConn::new());
        if let Some(old) = state.client.replace(Arc::clone(&conn)) {
            old.kill();
        }
        state.client_seen = true;
        if state.agent.is_some() {
            state.publication(Kind::StartPublication, &self.id, &knobs);
        }
        for parcel in std::mem::take(&mut state.held_down) {
            state.audit_delivery(&parcel);
            conn.down.force(ToClient::Parcel(parcel), client_transit(&knobs, &mut state.rng));
        }
        drop(state);
        self.count(Count::ClientConnects);
        tokio::spawn(Arc::clone(self).relay_up(Arc::clone(&conn)));
        self.changed.notify_one();
        Ok(conn)
    }

    /// The client's websocket is gone.
    pub(crate) fn client_gone(&self, conn: &Arc<ClientConn>) {
        let mut state = self.state();
        if state.client.as_ref().is_some_and(|current| Arc::ptr_eq(current, conn)) {
            state.client = None;
            state.publication(Kind::PausePublication, &self.id, &self.shared.knobs());
        }
        drop(state);
        conn.kill();
    }

    /// Checks one binary message of the client and sends it on its way. The error is a violation.
    pub(crate) async fn take_from_client(
        &self,
        conn: &ClientConn,
        bytes: bytes::Bytes,
    ) -> Result<(), String> {
        let (parcel, transit) = {
            let mut state = self.state();
            if state.ended.is_some() {
                return Ok(());
            }
            let parcel = match state.audit.check(&bytes, SystemTime::now())? {
                Accepted::Stream { message, resent } => {
                    self.count(if resent { Count::UpRepeats } else { Count::UpStream });
                    let (tag, length) = (
                        Tag::Stream { sequence: message.sequence, id: Some(message.id) },
                        message.payload.len(),
                    );
                    state.longest_up = state.longest_up.max(length);
                    Parcel { tag, bytes: bytes.clone() }
                }
                Accepted::Acknowledgement => {
                    self.count(Count::UpAcks);
                    Parcel { tag: Tag::Acknowledgement, bytes: bytes.clone() }
                }
            };
            if matches!(parcel.tag, Tag::Stream { .. }) {
                state.last_input = Instant::now();
            }
            (parcel, client_transit(&self.shared.knobs(), &mut state.rng))
        };
        let size = bytes.len();
        if conn.up.send(parcel, size, transit).await.is_err() {
            self.count(Count::LostInCut);
        }
        Ok(())
    }

    /// The SSM agent's worker connects; None when the session has ended.
    pub(crate) fn agent_connects(self: &Arc<Self>) -> Option<Arc<AgentConn>> {
        let knobs = self.shared.knobs();
        let mut state = self.state();
        if state.ended.is_some() {
            return None;
        }
        let conn = Arc::new(AgentConn::new());
        if let Some(old) = state.agent.replace(Arc::clone(&conn)) {
            old.up.close(Transit::default());
            old.down.cut();
        }
        if state.client.is_some() {
            state.publication(Kind::StartPublication, &self.id, &knobs);
        } else if state.client_seen {
            state.publication(Kind::PausePublication, &self.id, &knobs);
        }
        for parcel in std::mem::take(&mut state.held_up) {
            conn.up.force(parcel, agent_transit(&knobs, &mut state.rng));
        }
        drop(state);
        self.count(Count::AgentConnects);
        tokio::spawn(Arc::clone(self).relay_down(Arc::clone(&conn)));
        self.changed.notify_one();
        Some(conn)
    }

    /// The worker has closed its websocket; what it sent before still reaches the client.
    pub(crate) fn agent_gone(&self, conn: &Arc<AgentConn>) {
        conn.up.cut();
        conn.down.close(Transit::default());
        let mut state = self.state();
        if state.agent.as_ref().is_some_and(|current| Arc::ptr_eq(current, conn)) {
            state.agent = None;
            state.publication(Kind::PausePublication, &self.id, &self.shared.knobs());
        }
    }

    pub(crate) async fn take_from_agent(&self, conn: &AgentConn, parcel: Parcel) {
        let transit = agent_transit(&self.shared.knobs(), &mut self.state().rng);
        let size = parcel.bytes.len();
        if conn.down.send(parcel, size, transit).await.is_err() {
            self.count(Count::LostInCut);
        }
    }

    /// Closes the client's websocket; false if it has none.
    pub(crate) fn cut_client(&self, cut: Cut) -> bool {
        let knobs = self.shared.knobs();
        let mut state = self.state();
        let Some(conn) = state.client.take() else { return false };
        match cut {
            Cut::Bye => conn.close_with(1000, "Bye", client_transit(&knobs, &mut state.rng)),
            Cut::Abrupt => conn.kill(),
        }
        state.publication(Kind::PausePublication, &self.id, &knobs);
        true
    }

    /// Closes the SSM agent's websocket; false if it has none.
    pub(crate) fn cut_agent(self: &Arc<Self>) -> bool {
        let knobs = self.shared.knobs();
        let mut state = self.state();
        let Some(conn) = state.agent.take() else { return false };
        conn.down.cut();
        let transit = agent_transit(&knobs, &mut state.rng);
        if state.rng.chance(knobs.repeat_after_agent_cut) {
            conn.refuses.store(true, Ordering::Relaxed);
            state.cut_agent = Some(Arc::clone(&conn));
            let session = Arc::clone(self);
            tokio::spawn(async move {
                tokio::time::sleep(CUT_GRACE).await;
                let _ = session.state().cut_agent.take();
                conn.up.close(transit);
            });
        } else {
            conn.up.close(transit);
        }
        state.publication(Kind::PausePublication, &self.id, &knobs);
        true
    }

    /// From now on nothing passes the client's websocket, and nobody is told; false if it has none.
    pub(crate) fn black_hole_client(&self) -> bool {
        let state = self.state();
        let Some(conn) = &state.client else { return false };
        conn.mode.send_modify(|mode| *mode = (*mode).max(Mode::BlackHole));
        true
    }

    /// The same on the SSM agent's side; it notices after `AgentKnobs::dead_after`.
    pub(crate) fn black_hole_agent(self: &Arc<Self>) -> bool {
        let dead_after = self.shared.knobs().agent.dead_after;
        let state = self.state();
        let Some(conn) = state.agent.clone() else { return false };
        conn.black_hole.store(true, Ordering::Relaxed);
        tokio::spawn(async move {
            tokio::time::sleep(dead_after).await;
            conn.up.close(Transit::default());
        });
        true
    }

    /// Puts something of the test's own on the client's websocket; false if it has none.
    pub(crate) fn inject(&self, item: ToClient) -> bool {
        let transit = client_transit(&self.shared.knobs(), &mut self.state().rng);
        let state = self.state();
        let Some(conn) = &state.client else { return false };
        conn.down.force(item, transit);
        true
    }

    pub(crate) fn drop_next(&self, direction: Direction, what: What, count: u32) {
        let mut state = self.state();
        match direction {
            Direction::Up => state.up.drop_next(what, count),
            Direction::Down => state.down.drop_next(what, count),
        }
    }

    /// Ends the session: the client hears `channel_closed`, the worker goes. Only the first end counts.
    pub(crate) fn end(&self, why: &str, output: &str) {
        let knobs = self.shared.knobs();
        let mut state = self.state();
        if state.ended.is_some() {
            return;
        }
        tracing::debug!(session = self.id, why, "session ends");
        state.ended = Some(why.to_owned());
        if let Some(conn) = state.client.take() {
            let transit = client_transit(&knobs, &mut state.rng);
            let client_id = state.client_id.clone().unwrap_or_default();
            let parcel = channel_closed(&self.id, client_id, output, &mut state.rng);
            conn.down.force(ToClient::Parcel(parcel), transit);
            conn.up.cut();
            tokio::spawn(async move {
                tokio::time::sleep(CLOSED_LINGER).await;
                conn.close_with(1000, "", Transit::default());
            });
        }
        if let Some(conn) = state.agent.take() {
            conn.up.close(agent_transit(&knobs, &mut state.rng));
            conn.down.cut();
        }
        drop(state);
        self.over.send_replace(true);
    }

    pub(crate) fn info(&self) -> SessionInfo {
        let state = self.state();
        SessionInfo {
            id: self.id.clone(),
            target: self.plan.target.clone(),
            document: self.plan.document.clone(),
            port: self.plan.port,
            reason: self.plan.reason.clone(),
            ended: state.ended.clone(),
            client_connected: state.client.is_some(),
            agent_connected: state.agent.is_some(),
            age: self.started.elapsed(),
            longest_up: state.longest_up,
        }
    }

    /// The knobs have changed: timers are to be looked at again.
    pub(crate) fn wake(&self) {
        self.changed.notify_one();
    }

    pub(crate) fn count(&self, count: Count) {
        self.count_by(count, 1);
    }

    pub(crate) fn count_by(&self, count: Count, by: u64) {
        self.tally.add(count, by);
        self.shared.tally.add(count, by);
    }

    /// Records a violation and ends the session: a strict service would not go on.
    pub(crate) fn violated(&self, text: &str) {
        self.shared.violated(&format!("session {}: {text}", self.id));
        if !self.shared.config.lenient {
            self.end(
                "the client broke the protocol",
                &format!("{ERROR_HEAD}The client broke the protocol: {text}"),
            );
        }
    }

    /// Watches the session's timers until its end: recycling, idle time, duration.
    async fn keep(self: Arc<Self>) {
        let mut over = self.over.subscribe();
        loop {
            let next = self.run_timers();
            if *over.borrow_and_update() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => {}
                () = self.changed.notified() => {}
                _ = over.changed() => return,
            }
        }
    }

    /// Does what is due and says when to look again.
    fn run_timers(self: &Arc<Self>) -> Instant {
        let knobs = self.shared.knobs();
        let now = Instant::now();
        let mut next = now + Duration::from_secs(60);
        let mut is_due = |since: Option<Instant>, after: Option<Duration>| {
            let Some(deadline) = since.zip(after).and_then(|(since, after)| since.checked_add(after)) else {
                return false;
            };
            next = if deadline > now { next.min(deadline) } else { next };
            deadline <= now
        };
        let (client, agent, last_input) = {
            let state = self.state();
            let opened = state.client.as_ref().map(|conn| conn.opened);
            (opened, state.agent.as_ref().map(|conn| conn.opened), state.last_input)
        };
        let recycle_client = is_due(client, knobs.client_recycle);
        let recycle_agent = is_due(agent, knobs.agent_recycle);
        let is_idle = is_due(Some(last_input), knobs.idle_timeout);
        let is_old = is_due(Some(self.started), knobs.max_duration);
        if recycle_client {
            self.cut_client(Cut::Bye);
        }
        if recycle_agent {
            self.cut_agent();
        }
        if is_idle {
            self.end("idle", &format!("Session {} timed out due to inactivity.", self.id));
        }
        if is_old {
            self.end("maximum duration", &format!("Session {} reached its maximum duration.", self.id));
        }
        next
    }

    fn stream_path(&self, cell: &str) -> String {
        format!("/v1/data-channel/{}?role=publish_subscribe&cell-number={cell}", self.id)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    fn take_token(&mut self, value: &str, knobs: &Knobs) -> Result<(), Rejection> {
        if self.ended.is_some() {
            return Err(Rejection { text: "Session is already terminated".to_owned(), is_violation: false });
        }
        if self.spent_tokens.iter().any(|spent| spent == value) {
            return Err(Rejection::violation("a token was used a second time or after a newer one"));
        }
        let Some(token) = self.token.take_if(|token| token.value == value) else {
            return Err(Rejection::violation("the token is not one of this session"));
        };
        let is_late = token.issued.elapsed() > knobs.token_life;
        self.spend(token.value);
        if is_late {
            return Err(Rejection { text: "Token is expired".to_owned(), is_violation: false });
        }
        Ok(())
    }

    fn spend(&mut self, token: String) {
        self.spent_tokens.push_back(token);
        if self.spent_tokens.len() > 64 {
            self.spent_tokens.pop_front();
        }
    }

    fn audit_delivery(&mut self, parcel: &Parcel) {
        let Tag::Stream { sequence, id: Some(id) } = parcel.tag else { return };
        self.audit.delivered(sequence, id);
        if sequence == 0
            && let Ok(message) = Message::parse(&parcel.bytes)
            && let Ok(request) = serde_json::from_slice::<serde_json::Value>(message.payload)
        {
            self.audit.requested(request["RequestedClientActions"].as_array().map_or(0, Vec::len));
        }
    }

    /// Tells whichever halves are here that the other one came or went.
    fn publication(&mut self, kind: Kind<'_>, session: &str, knobs: &Knobs) {
        self.gateway_messages += 1;
        let is_short = match knobs.gateway_form {
            GatewayForm::Short => true,
            GatewayForm::Long => false,
            GatewayForm::Both => self.gateway_messages.is_multiple_of(2),
        };
        let parcel = publication(kind, session, is_short, &mut self.rng);
        if let Some(conn) = &self.client {
            conn.down.force(ToClient::Parcel(parcel.clone()), client_transit(knobs, &mut self.rng));
        }
        if let Some(conn) = &self.agent {
            conn.up.force(parcel, agent_transit(knobs, &mut self.rng));
        }
    }
}

impl Rejection {
    fn violation(text: &str) -> Self {
        Self { text: text.to_owned(), is_violation: true }
    }
}

fn client_transit(knobs: &Knobs, rng: &mut Rng) -> Transit {
    Transit { delay: delay(knobs, rng), bandwidth: knobs.bandwidth }
}

fn agent_transit(knobs: &Knobs, rng: &mut Rng) -> Transit {
    Transit { delay: delay(knobs, rng), bandwidth: None }
}

fn delay(knobs: &Knobs, rng: &mut Rng) -> Duration {
    if knobs.jitter.is_zero() {
        knobs.hop_delay
    } else {
        knobs.hop_delay + rng.duration(Duration::ZERO, knobs.jitter)
    }
}

pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Opaque and percent-encoded, so that a URL built anew or encoded twice does not fit.
fn new_cell(rng: &mut Rng) -> String {
    format!("AAEAA{}%2F{}%3D", rng.text(ALPHANUMERIC, 20), rng.text(ALPHANUMERIC, 12))
}

pub(crate) const ALPHANUMERIC: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
/// What the service puts before the text of a failure.
pub(crate) const ERROR_HEAD: &str = "\n----------ERROR-------\n";
const TOKEN_LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// How long a cut waits for the message that is to be written twice.
const CUT_GRACE: Duration = Duration::from_millis(100);
/// From `channel_closed` to the close frame.
const CLOSED_LINGER: Duration = Duration::from_secs(5);
