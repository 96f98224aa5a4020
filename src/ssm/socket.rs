//! The websocket under a channel, as a lane.
//!
//! [`SsmLane::open`] starts a session and returns once the SSM agent's handshake is complete. The
//! first downstream byte is the far program's: what is sent before it may be acknowledged and
//! dropped, so the lane takes no record until it has arrived.
//!
//! A cut, silent or senseless websocket is replaced: ResumeSession, a new websocket with the new
//! token, everything unacknowledged again. No byte is lost or repeated by that. The lane fails when
//! the session is over, when it is wedged, or after 60 s without a websocket.
//!
//! Dropping a lane leaves its session to the owner, who calls [`Api::terminate`] in every case.

#![expect(clippy::disallowed_methods, reason = "a driver: it reads the clock for the channel")]

mod error;
mod payload;
mod resume;
mod status;
mod up;

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use agent::lane::LaneIo;
use bytes::{Buf as _, Bytes};
use futures_util::Sink as _;
use tokio::time::{Sleep, timeout};

pub use self::error::LaneError;
use self::payload::Payload;
use self::resume::{Resumer, open_websocket, random, random_uuid};
pub use self::status::{LaneHandle, LaneStatus, Resuming};
use self::up::{Cut, Up};
use super::api::{Api, SessionTicket};
use super::channel::{Channel, ChannelConfig, Event};
use super::upgrade::WebSocket;

/// What session a lane starts and how it drives it.
#[derive(Clone, Debug)]
pub struct LaneConfig {
    /// `i-…` or `mi-…`.
    pub target: String,
    pub document: String,
    pub parameters: Vec<(String, String)>,
    /// Shows in the account's session history.
    pub reason: Option<String>,
    pub channel: ChannelConfig,
    /// How large upstream messages may become beyond the channel's `max_payload`, once that is proven.
    pub most_payload: usize,
    /// From the websocket's opening to the end of the SSM agent's handshake.
    pub open_timeout: Duration,
    /// How long the session may be without a websocket.
    pub resume_budget: Duration,
    pub ping_every: Duration,
    /// A websocket without any frame for so long is dead.
    pub dead_after: Duration,
}

impl LaneConfig {
    /// A raw byte stream to `localhost:port` on the instance.
    pub fn port(target: &str, document: &str, port: u16) -> Self {
        Self {
            target: target.to_owned(),
            document: document.to_owned(),
            parameters: vec![("portNumber".to_owned(), port.to_string())],
            reason: Some("ssm-proxy".to_owned()),
            channel: ChannelConfig::default(),
            most_payload: 0,
            open_timeout: Duration::from_secs(30),
            resume_budget: Duration::from_secs(60),
            ping_every: Duration::from_secs(18),
            dead_after: Duration::from_secs(45),
        }
    }
}

/// A lane over one SSM session.
pub struct SsmLane {
    link: Link,
    channel: Channel,
    /// The rest of the downstream bytes read last.
    current: Bytes,
    /// The record that is sent, in one piece.
    record: Vec<u8>,
    failure: Option<LaneError>,
    /// The far program has spoken.
    greeted: bool,
    agent_version: String,
    resumer: Resumer,
    config: LaneConfig,
    timer: Pin<Box<Sleep>>,
    payload: Payload,
    /// Cuts without a sign of life between them, and since when.
    streak: Option<Streak>,
    /// Since `poll_close`: until when it may wait.
    closing: Option<Instant>,
}

enum Link {
    Up(Box<Up>),
    Resuming(Pin<Box<dyn Future<Output = Result<WebSocket, LaneError>> + Send>>),
    /// The session is over.
    Down,
}

#[derive(Clone, Copy)]
struct Streak {
    since: tokio::time::Instant,
    cuts: u32,
}

impl SsmLane {
    /// Starts a session and opens its channel. An error, or dropping this future, ends the session.
    pub async fn open(api: &Api, config: LaneConfig) -> Result<Self, LaneError> {
        let parameters: Vec<_> =
            config.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let started =
            api.start(&config.target, &config.document, &parameters, config.reason.as_deref()).await;
        let ticket = started.map_err(LaneError::Start)?;
        let mut guard = Guard { api: api.clone(), session_id: Some(ticket.session_id.clone()) };
        let deadline = config.open_timeout;
        let opened = match timeout(deadline, Self::attach(api, ticket, config)).await {
            Ok(opened) => opened,
            Err(_) => Err(LaneError::OpenTimeout(deadline)),
        };
        let session_id = guard.session_id.take();
        if let (Err(_), Some(session_id)) = (&opened, session_id)
            && let Err(error) = api.terminate(&session_id).await
        {
            tracing::debug!(%error, "session not terminated");
        }
        opened
    }

    /// Opens the channel of a session that has been started.
    pub async fn attach(api: &Api, ticket: SessionTicket, config: LaneConfig) -> Result<Self, LaneError> {
        let client_id = random_uuid();
        let websocket = open_websocket(api, &ticket, client_id).await?;
        let handle = LaneHandle::default();
        let now = Instant::now();
        let unix_ms = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_millis() as u64);
        let mut lane = Self {
            link: Link::Up(Box::new(Up::new(websocket, now, &config))),
            channel: Channel::new(config.channel.clone(), random(), now, unix_ms),
            current: Bytes::new(),
            record: Vec::new(),
            failure: None,
            greeted: false,
            agent_version: String::new(),
            resumer: Resumer {
                api: api.clone(),
                session_id: ticket.session_id,
                client_id,
                handle,
                budget: config.resume_budget,
            },
            timer: Box::pin(tokio::time::sleep(config.ping_every)),
            payload: Payload::new(config.channel.max_payload, config.most_payload),
            config,
            streak: None,
            closing: None,
        };
        lane.agent_version = poll_fn(|cx| lane.poll_opened(cx)).await?;
        Ok(lane)
    }

    pub fn session_id(&self) -> &str {
        &self.resumer.session_id
    }

    /// The SSM agent's.
    pub fn agent_version(&self) -> &str {
        &self.agent_version
    }

    pub fn handle(&self) -> LaneHandle {
        self.resumer.handle.clone()
    }

    fn poll_opened(&mut self, cx: &mut Context<'_>) -> Poll<Result<String, LaneError>> {
        self.drive(cx);
        match self.channel.poll_event() {
            Some(Event::Opened { agent_version }) => Poll::Ready(Ok(agent_version)),
            Some(event) => {
                self.end(event);
                Poll::Ready(Err(self.failure.clone().unwrap_or(LaneError::ClosedHere)))
            }
            None => self.failure.clone().map_or(Poll::Pending, |failure| Poll::Ready(Err(failure))),
        }
    }

    /// Does all that can be done now: reads, writes, timers, resumption.
    fn drive(&mut self, cx: &mut Context<'_>) {
        if self.resumer.handle.take_nudge(cx.waker()) {
            self.handle_nudge(Instant::now());
        }
        loop {
            let now = Instant::now();
            self.poll_resumed(cx, now);
            let Link::Up(up) = &mut self.link else { break };
            let result = up.exchange(cx, &mut self.channel, now);
            match result {
                Ok(()) if self.channel.is_over() => self.link = Link::Down,
                Ok(()) => {}
                Err(cut) => self.handle_cut(cut, now),
            }
            if !matches!(self.link, Link::Resuming(_)) && !self.poll_timer(cx, now) {
                break;
            }
        }
        let (channel, rtt, proven) = (self.channel.stats(), self.gateway_rtt(), self.payload.proven());
        self.resumer.handle.update(|status| {
            status.channel = channel;
            status.proven_payload = proven;
            status.gateway_rtt = rtt.or(status.gateway_rtt);
        });
    }

    /// The first failure stays.
    fn fail(&mut self, failure: LaneError) {
        self.link = Link::Down;
        if self.failure.is_none() {
            self.resumer.handle.update(|status| status.failure = Some(failure.clone()));
            self.failure = Some(failure);
        }
    }

    fn poll_resumed(&mut self, cx: &mut Context<'_>, now: Instant) {
        let Link::Resuming(attempt) = &mut self.link else { return };
        match attempt.as_mut().poll(cx) {
            Poll::Pending => {}
            Poll::Ready(Ok(websocket)) => {
                self.link = Link::Up(Box::new(Up::new(websocket, now, &self.config)));
                self.channel.handle_reconnected(now);
                self.resumer.handle.update(|status| status.resuming = None);
            }
            Poll::Ready(Err(error)) => self.fail(error),
        }
    }

    /// Handles the timers that are due and arms the next; true when one was due.
    fn poll_timer(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let Link::Up(up) = &mut self.link else { return false };
        let channel = self.channel.poll_timeout(now);
        let closing = self.closing.filter(|deadline| *deadline > now);
        let next = channel.into_iter().chain(closing).fold(up.ping_at.min(up.dead_at), Instant::min);
        if next <= now {
            self.channel.handle_timeout(now);
            if up.dead_at <= now {
                self.handle_cut(Cut::Dead, now);
            } else if up.ping_at <= now {
                up.ping_due = true;
                up.ping_at = now + self.config.ping_every;
            }
            return true;
        }
        // A timer that is armed too early fires once and is armed anew: cheaper than moving it.
        if self.timer.is_elapsed() || self.timer.deadline().into_std() > next {
            self.timer.as_mut().reset(next.into());
        }
        self.timer.as_mut().poll(cx).is_ready()
    }

    fn handle_cut(&mut self, cut: Cut, now: Instant) {
        if self.channel.is_over() || self.closing.is_some() {
            self.link = Link::Down;
            return;
        }
        tracing::debug!(session = self.resumer.session_id, %cut, "websocket cut");
        let size = self.payload.size();
        let channel = self.channel.stats();
        let passed = (channel.unacked_messages > 0).then_some(channel.acked_messages);
        let suspect = self.payload.cut(passed, now);
        self.channel.set_max_payload(self.payload.size());
        let garbage = matches!(cut, Cut::Garbage);
        self.resumer.handle.update(|status| {
            status.cuts += 1;
            status.garbage += u32::from(garbage);
            status.suspect_payload |= suspect;
            status.resuming.get_or_insert(Resuming { since: now, last_error: None });
        });
        let refused = matches!(cut, Cut::TooBig) && self.payload.has_sent_large();
        if refused || self.payload.is_stuck() {
            return self.fail(LaneError::MessageTooBig(size));
        }
        let lived = match &self.link {
            Link::Up(up) => up.accepted || now.duration_since(up.since) > LIVED_AFTER,
            Link::Resuming(_) | Link::Down => false,
        };
        let last = self.streak.filter(|_| !lived);
        let streak =
            last.map_or(Streak { since: now.into(), cuts: 0 }, |last| Streak { cuts: last.cuts + 1, ..last });
        self.streak = Some(streak);
        self.resume(streak);
    }

    fn resume(&mut self, streak: Streak) {
        let attempts = self.resumer.clone().run(streak.since, streak.cuts, self.greeted);
        self.link = Link::Resuming(Box::pin(attempts));
    }

    fn handle_nudge(&mut self, now: Instant) {
        match (&mut self.link, self.streak) {
            (Link::Up(up), _) => {
                up.ping_due = true;
                let usual = up.gateway_rtt.or(self.channel.stats().srtt);
                let patience = usual.map_or(NUDGE_PATIENCE.1, |rtt| {
                    rtt.saturating_mul(NUDGE_ROUND_TRIPS).clamp(NUDGE_PATIENCE.0, NUDGE_PATIENCE.1)
                });
                up.dead_at = up.dead_at.min(now + patience);
            }
            (Link::Resuming(_), Some(streak)) => self.resume(Streak { cuts: 0, ..streak }),
            (Link::Resuming(_) | Link::Down, _) => {}
        }
    }

    fn end(&mut self, event: Event) {
        let failure = match event {
            Event::Closed { output } => LaneError::Closed { output, greeted: self.greeted },
            Event::Failed(error) => LaneError::Channel(error),
            Event::Opened { .. } | Event::Data(_) => return,
        };
        self.fail(failure);
    }

    fn gateway_rtt(&self) -> Option<Duration> {
        match &self.link {
            Link::Up(up) => up.gateway_rtt,
            Link::Resuming(_) | Link::Down => None,
        }
    }

    fn check(&self) -> io::Result<()> {
        self.failure.clone().map_or(Ok(()), |failure| Err(failure.into()))
    }
}

impl LaneIo for SsmLane {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut filled = self.fill(buf);
        if filled < buf.len() {
            self.drive(cx);
            filled += self.fill(&mut buf[filled..]);
        }
        if filled > 0 || buf.is_empty() {
            return Poll::Ready(Ok(filled));
        }
        self.check()?;
        Poll::Pending
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.drive(cx);
        self.check()?;
        match (&self.link, self.channel.can_send()) {
            (Link::Up(_), Some(most)) if self.greeted => Poll::Ready(Ok(most)),
            (Link::Up(_) | Link::Resuming(_) | Link::Down, _) => Poll::Pending,
        }
    }

    fn send(&mut self, record: &[IoSlice<'_>]) -> io::Result<()> {
        self.check()?;
        let now = Instant::now();
        self.record.clear();
        record.iter().for_each(|part| self.record.extend_from_slice(part));
        if !self.channel.send(&self.record, now) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a record was sent that poll_ready did not allow",
            ));
        }
        let unacked = self.channel.stats().unacked_messages;
        if self.payload.sent(self.record.len(), unacked, now) {
            self.channel.set_max_payload(self.payload.size());
        }
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.drive(cx);
        self.check()?;
        match &self.link {
            Link::Up(up) if !up.dirty && !self.channel.has_unsent() => Poll::Ready(Ok(())),
            Link::Up(_) | Link::Resuming(_) | Link::Down => Poll::Pending,
        }
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closing.is_none() {
            let now = Instant::now();
            self.closing = Some(now + CLOSE_TIMEOUT);
            self.channel.terminate(now);
        }
        self.drive(cx);
        if self.poll_close_link(cx).is_pending() {
            return Poll::Pending;
        }
        self.fail(LaneError::ClosedHere);
        Poll::Ready(Ok(()))
    }
}

impl SsmLane {
    fn poll_close_link(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let late = self.closing.is_some_and(|deadline| deadline <= Instant::now());
        match &mut self.link {
            Link::Up(up) if !late => {
                // A close right behind the flag may overtake it at the gateway.
                if up.dirty || !self.channel.is_terminated() {
                    return Poll::Pending;
                }
                // Queues the close frame once; nobody waits for the gateway's answer to it.
                let _ = Pin::new(&mut up.websocket).poll_close(cx);
                Pin::new(&mut up.websocket).poll_flush(cx).map(|_| ())
            }
            Link::Up(_) | Link::Resuming(_) | Link::Down => Poll::Ready(()),
        }
    }
}

impl SsmLane {
    /// Copies downstream bytes that have arrived; notes the end that follows them.
    fn fill(&mut self, buf: &mut [u8]) -> usize {
        let mut filled = 0;
        while filled < buf.len() {
            if self.current.is_empty() {
                match self.channel.poll_event() {
                    Some(Event::Data(bytes)) => self.current = bytes,
                    Some(event) => self.end(event),
                    None => break,
                }
                continue;
            }
            self.greeted = true;
            let size = self.current.len().min(buf.len() - filled);
            buf[filled..filled + size].copy_from_slice(&self.current[..size]);
            self.current.advance(size);
            filled += size;
        }
        filled
    }
}

/// Ends a session whose opening was given up.
struct Guard {
    api: Api,
    session_id: Option<String>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let (Some(session_id), Ok(runtime)) = (self.session_id.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let api = self.api.clone();
        runtime.spawn(async move {
            if let Err(error) = api.terminate(&session_id).await {
                tracing::debug!(%error, "session not terminated");
            }
        });
    }
}

/// A websocket that lived so long was a good one, even if nothing came.
const LIVED_AFTER: Duration = Duration::from_secs(10);
/// For the first frame after a nudge: so many round trips, at least and at most so long. A websocket that is given up too
/// soon costs one resumption.
const NUDGE_ROUND_TRIPS: u32 = 4;
const NUDGE_PATIENCE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(3));
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
