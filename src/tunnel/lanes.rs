//! Keeps the trunk's lanes: does what the keeper decides and tells it what came of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::engine::{Command, LaneNews, Report};
use agent::wire::hello::{PublicKey, Ticket};
use agent::wire::trunk::LaneId;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tracing::{debug, info};

pub use super::dial::LaneError;
use super::dial::{Dial, Dialled, Entry, Roster};
use super::health::{Happening, HealthView, LaneFacts, Loss};
use super::hiccups::{Hiccup, Websocket, watch};
pub use super::keeper::End;
use super::keeper::{Action, Keeper, Round, Why};
use super::lessons::{Lesson, Lessons};
use super::life::Life;
use super::news::News;
use super::path::{Path, Session};
use super::restarts::Restarts;
use crate::config::{Keepalive, LanePlan};
use crate::engine;
use crate::ssm::channel::MIN_PAYLOAD;
use crate::ssm::socket::LaneError as SsmError;

/// What lanes are made with and how they are kept.
pub struct LanesConfig {
    pub path: Path,
    pub plan: LanePlan,
    pub health: HealthView,
    /// Deadline for each step of opening a lane, and again for its greeting.
    pub timeout: Duration,
    pub ping_interval: Duration,
    /// Compress TCP flows, if the agent allows it.
    pub compress: bool,
    /// The agent's key as it was seen before.
    pub pinned: Option<PublicKey>,
    /// What earlier lanes to this agent have taught.
    pub lessons: Lessons,
    /// Remembers what is learned, off this thread.
    pub remember: mpsc::Sender<Lessons>,
}

/// What the first lane told.
#[derive(Clone, Debug)]
pub struct First {
    pub agent_version: String,
    pub agent_key: PublicKey,
}

/// Makes lanes, trunk after trunk, and remembers what the trunk is known by.
pub struct Lanes {
    pub(crate) config: LanesConfig,
    /// Where the very first lane's fate goes, which decides that of the session; then gone.
    first: Option<oneshot::Sender<Result<First, LaneError>>>,
    ticket: Option<Ticket>,
    held: Vec<Held>,
    roster: Roster,
    life: Life,
    /// Nothing is dialled before there is something to carry.
    asleep: bool,
    restarts: Restarts,
    greeted: bool,
    /// How lanes went whose places are not filled yet, for those that fill them.
    vacancies: Vec<Loss>,
}

/// An attached lane.
struct Held {
    lane: LaneId,
    /// Its SSM session is ended when this goes.
    session: Option<Session>,
    watcher: Option<AbortHandle>,
    began: Instant,
    websocket: Websocket,
    /// All lanes were cut at that moment, and on this one nothing has been heard since.
    unproven: Option<Instant>,
    _entry: Entry,
}

impl Held {
    /// Its websocket has been missing for longer than anybody should wait without a word.
    fn is_missing(&self) -> bool {
        matches!(self.websocket, Websocket::Missing(_))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(watcher) = &self.watcher {
            watcher.abort();
        }
    }
}

/// Why a trunk's lanes are no longer kept.
#[derive(Debug)]
pub enum Fate {
    /// The agent restarted or let go of the trunk: a new trunk is needed.
    Forgotten,
    /// There is nothing to carry; the trunk is to be closed until there is.
    Idle,
    /// The engine is gone.
    Ended,
    /// The session's first lane failed, which has been told.
    Refused(String),
    /// No more lanes are made. The last error of one, where there is any.
    GaveUp(End, Option<Arc<LaneError>>),
}

/// What one trunk's keeping needs besides the lanes themselves.
struct Keeping<'a> {
    keeper: Keeper,
    commands: &'a mpsc::Sender<Command>,
    dials: JoinSet<(Round, Result<Dialled, LaneError>)>,
    hiccups: (mpsc::Sender<Hiccup>, mpsc::Receiver<Hiccup>),
    /// More is to be carried than one lane idles away, since then.
    loaded: Option<Instant>,
    look_at: Option<Instant>,
    /// When the latest dial began.
    dialled_at: Option<Instant>,
    /// When dials from before a change of the network are called off.
    dial_anew_at: Option<Instant>,
    last_error: Option<Arc<LaneError>>,
}

impl Lanes {
    /// `first` hears of the first lane, unless that one may wait.
    pub fn new(mut config: LanesConfig, first: oneshot::Sender<Result<First, LaneError>>) -> Self {
        config.path.heed(&config.lessons);
        let lazy = config.plan.lazy;
        let learned = config.lessons.max_session;
        let max_session = config.plan.max_session.into_iter().chain(learned).min();
        Self {
            first: Some(first).filter(|_| !lazy),
            ticket: None,
            held: Vec::new(),
            roster: Roster::default(),
            life: Life::new(max_session),
            asleep: lazy,
            restarts: Restarts::new(config.plan.reconnect_delay),
            greeted: false,
            vacancies: Vec::new(),
            config,
        }
    }

    /// The trunk has ended, and its lanes with it.
    pub fn forget_trunk(&mut self) {
        self.ticket = None;
        self.restarts.ended();
        self.held.clear();
        self.vacancies.clear();
        self.life.dismiss();
        self.config.health.update(|health| health.lanes.clear());
    }

    /// The agent ended the trunk, or no longer knew it.
    pub fn note_failure(&mut self, now: Instant) {
        self.restarts.failed(random(), now);
    }

    /// Whether a trunk that has ended is followed by another.
    pub fn may_begin_anew(&self) -> bool {
        self.config.plan.reconnect
    }

    /// Makes, replaces and closes lanes until the trunk ends.
    pub async fn keep(&mut self, commands: &mpsc::Sender<Command>, news: &mut News) -> Fate {
        let plan = LanePlan { lazy: self.asleep, ..self.config.plan.clone() };
        let mut keeping = Keeping {
            keeper: Keeper::new(plan, engine::now()),
            commands,
            dials: JoinSet::new(),
            hiccups: mpsc::channel(64),
            loaded: None,
            look_at: None,
            dialled_at: None,
            dial_anew_at: None,
            last_error: None,
        };
        if self.asleep {
            self.config.health.rest(engine::now());
        }
        if let Some(at) = self.restarts.not_before() {
            keeping.keeper.hold(at);
        }
        loop {
            while let Some(action) = keeping.keeper.poll_action(engine::now()) {
                if let Some(fate) = self.act(action, &mut keeping).await {
                    return fate;
                }
            }
            let target = keeping.keeper.target(engine::now());
            self.config.health.update(|health| health.lanes_wanted = target);
            let wake = keeping.wake();
            tokio::select! {
                item = news.next() => match item {
                    Some(item) => self.hear(item, &mut keeping),
                    None => return Fate::Ended,
                },
                Some(done) = keeping.dials.join_next() => {
                    if let Some(fate) = self.dialled(done, &mut keeping).await {
                        return fate;
                    }
                }
                Some(hiccup) = keeping.hiccups.1.recv() => self.hiccup(&hiccup, &mut keeping).await,
                () = self.config.health.nudged() => keeping.nudge(engine::now()),
                () = sleep_until(wake) => {
                    keeping.dial_anew(engine::now());
                    if keeping.look_at.is_some_and(|at| at <= engine::now()) {
                        self.look(&mut keeping).await;
                    }
                }
            }
        }
    }

    async fn act(&mut self, action: Action, keeping: &mut Keeping<'_>) -> Option<Fate> {
        match action {
            Action::Dial(round) => {
                let config = &self.config;
                let dial = Dial {
                    path: config.path.clone(),
                    timeout: config.timeout,
                    // An answer to the agent's pings is a client's word too.
                    ping_interval: match config.plan.keepalive {
                        Keepalive::Auto | Keepalive::Always => config.ping_interval,
                        Keepalive::Never => Duration::MAX,
                    },
                    compress: config.compress,
                    pinned: config.pinned,
                    ticket: self.ticket.clone(),
                    roster: self.roster.clone(),
                    commands: keeping.commands.clone(),
                };
                keeping.dials.spawn_local(async move { (round, dial.run().await) });
                keeping.dialled_at = Some(engine::now());
            }
            Action::Retire(lane) => {
                debug!("lane {:016x} is retired", lane.0);
                keeping.command(Command::Retire(lane)).await;
            }
            Action::Drop(lane, why) => {
                self.gone(lane, why.text(), keeping);
                keeping.command(Command::Drop(lane, why.text().to_owned())).await;
            }
            Action::Sleep => {
                self.asleep = true;
                self.config.health.tell(Happening::Asleep);
                return Some(Fate::Idle);
            }
            Action::GiveUp(end) => return Some(Fate::GaveUp(end, keeping.last_error.take())),
        }
        None
    }

    fn hear(&mut self, news: LaneNews, keeping: &mut Keeping<'_>) {
        let now = engine::now();
        match news {
            LaneNews::Attached { .. } => {}
            LaneNews::Lost { lane, reason, .. } => self.gone(lane, &reason, keeping),
            LaneNews::Stalled { lane } => {
                debug!("lane {:016x} stands still", lane.0);
                keeping.keeper.doubt(lane, true);
                keeping.look_by(now + LOOK);
            }
            LaneNews::Drained { lane } => keeping.keeper.drained(lane, now),
            LaneNews::Busy(busy) => {
                keeping.keeper.set_busy(busy, now);
                if !busy {
                    keeping.set_load(0, now);
                    // What is cut need not show anything now.
                    keeping.look_by(now);
                }
                if busy && self.held.is_empty() {
                    self.config.health.awaken(now);
                }
            }
            LaneNews::Demand(demand) => keeping.set_load(demand.lanes(), now),
        }
    }

    async fn dialled(
        &mut self,
        done: Result<(Round, Result<Dialled, LaneError>), JoinError>,
        keeping: &mut Keeping<'_>,
    ) -> Option<Fate> {
        if keeping.dials.is_empty() {
            keeping.dial_anew_at = None;
        }
        match done {
            Ok((_, Ok(dialled))) => self.attach(dialled, keeping).await,
            Ok((round, Err(error))) => return self.failed(round, error, keeping),
            Err(error) => {
                debug!("a dial failed: {error}");
                keeping.keeper.dial_failed(None, false, random(), engine::now());
            }
        }
        None
    }

    async fn attach(&mut self, dialled: Dialled, keeping: &mut Keeping<'_>) {
        let Dialled { attach, welcomed, session, entry, began } = dialled;
        let (lane, now) = (attach.lane, engine::now());
        if welcomed.resumed
            && let Some(max) = self.life.confirm()
        {
            self.take_in(Lesson::MaxSession(max));
            for other in &self.held {
                keeping.keeper.replace_before(other.lane, other.began + self.life.span(random()));
            }
        }
        let age = now.saturating_duration_since(began);
        let timed = session.is_some().then(|| self.life.span(random()).saturating_sub(age));
        keeping.keeper.dialled(lane, usize::from(welcomed.max_lanes), timed, now);
        self.restarts.attached(now);
        let facts = LaneFacts {
            lane,
            kind: self.config.path.kind_name(),
            session_id: session.as_ref().map(|session| session.id.clone()),
            handle: session.as_ref().map(|session| session.handle.clone()),
            since: now,
            last_loss: self.vacancies.pop(),
        };
        let watcher = session.as_ref().map(|session| {
            let watching = watch(lane, session.handle.clone(), keeping.hiccups.0.clone());
            tokio::task::spawn_local(watching).abort_handle()
        });
        let was_without = self.held.is_empty();
        self.held.push(Held {
            lane,
            session,
            watcher,
            began,
            websocket: Websocket::Joined,
            unproven: None,
            _entry: entry,
        });
        let first = First { agent_version: welcomed.agent_version.clone(), agent_key: welcomed.agent_key };
        self.config.pinned = Some(welcomed.agent_key);
        self.ticket = Some(welcomed.ticket);
        self.asleep = self.config.plan.lazy;
        let resumed = u64::from(was_without && welcomed.resumed);
        self.config.health.update(|health| health.resumes += resumed);
        self.config.health.lane_made(facts, welcomed.agent_version);
        self.config.health.end_outage(now, welcomed.resumed);
        if let Some(waiting) = self.first.take() {
            // Whoever started the session may have gone.
            let _ = waiting.send(Ok(first));
        } else if !self.greeted {
            self.config.health.tell(Happening::Reached(first));
        }
        self.greeted = true;
        keeping.command(Command::Attach(attach)).await;
    }

    fn failed(&mut self, round: Round, error: LaneError, keeping: &mut Keeping<'_>) -> Option<Fate> {
        debug!("no lane: {error}");
        if error.is_forgotten() {
            return Some(Fate::Forgotten);
        }
        if let Some(first) = self.first.take() {
            let reason = error.to_string();
            let _ = first.send(Err(error));
            return Some(Fate::Refused(reason));
        }
        keeping.keeper.dial_failed(Some(round), error.is_throttled(), random(), engine::now());
        if self.held.iter().any(|held| !held.is_missing()) {
            // The others carry on; nobody needs to hear of it.
            return None;
        }
        keeping.last_error = Some(self.config.health.trouble(engine::now(), error));
        None
    }

    /// The lane carries nothing any more.
    fn gone(&mut self, lane: LaneId, reason: &str, keeping: &mut Keeping<'_>) {
        let Some(at) = self.held.iter().position(|held| held.lane == lane) else { return };
        let held = self.held.swap_remove(at);
        let by_plan = reason == Why::Retired.text();
        let now = engine::now();
        keeping.keeper.lost(lane, random(), now);
        if let Some(loss) = self.config.health.lane_gone(lane, reason, by_plan, now) {
            self.leave(loss, keeping.keeper.target(now), now);
        }
        if !by_plan {
            self.learn(&held, keeping.keeper.is_busy());
        }
        if self.held.iter().all(Held::is_missing) {
            if keeping.keeper.is_needed() {
                self.config.health.begin_outage(now, reason.to_owned());
            } else {
                self.config.health.rest(now);
            }
        } else if !by_plan {
            self.config.health.tell_fault(reason, now);
        }
    }

    /// A place is told of by the lane that takes it, which is there already where one was made before the other went.
    fn leave(&mut self, loss: Loss, target: usize, now: Instant) {
        if self.held.len() < target {
            self.vacancies.push(loss);
        } else {
            self.config.health.bequeath(loss, now);
            self.vacancies.clear();
        }
    }

    /// What the end of a lane says about those that follow.
    fn learn(&mut self, held: &Held, busy: bool) {
        let Some(session) = &held.session else { return };
        let status = session.handle.status();
        let ended_by_aws = matches!(status.failure, Some(SsmError::Closed { greeted: true, .. }));
        if ended_by_aws && busy {
            self.life.note_end(engine::now().saturating_duration_since(held.began));
        }
        let too_big = matches!(status.failure, Some(SsmError::MessageTooBig(_)));
        let limit = Lesson::Limit(status.proven_payload.max(MIN_PAYLOAD));
        let limit = (too_big || status.suspect_payload && status.cuts > 2).then_some(limit);
        if let Some(limit) = limit {
            self.take_in(limit);
        }
    }

    fn take_in(&mut self, lesson: Lesson) {
        let config = &mut self.config;
        if !config.lessons.take(lesson) {
            return;
        }
        info!("learned of the way to the agent: {lesson:?}");
        config.path.heed(&config.lessons);
        if lesson == Lesson::Limit(MIN_PAYLOAD) {
            config.health.tell(Happening::SmallMessages);
        }
        // At the end of the session nobody remembers any more; a burst is told by the next one.
        let _ = config.remember.try_send(config.lessons);
    }

    async fn hiccup(&mut self, hiccup: &Hiccup, keeping: &mut Keeping<'_>) {
        let Some(held) = self.held.iter_mut().find(|held| held.lane == hiccup.lane) else { return };
        let before = std::mem::replace(&mut held.websocket, hiccup.websocket);
        let status = held.session.as_ref().map(|session| session.handle.status()).unwrap_or_default();
        match hiccup.websocket {
            Websocket::Cut => self.doubt_all_that_are_cut(keeping),
            Websocket::Missing(since) => {
                // While nothing is to be carried its own recovery does.
                keeping.keeper.doubt(hiccup.lane, keeping.keeper.is_busy());
                if self.held.iter().all(Held::is_missing) {
                    let last = status.resuming.and_then(|resuming| resuming.last_error);
                    let why = last.map_or_else(String::new, |last| format!(": {last}"));
                    let what = format!("the SSM session's websocket was cut{why}");
                    self.config.health.begin_outage(since, what);
                }
            }
            Websocket::Joined => {
                keeping.command(Command::Ping(hiccup.lane)).await;
                keeping.look_by(engine::now() + ANSWER);
                if matches!(before, Websocket::Missing(_)) {
                    self.config.health.end_outage(engine::now(), true);
                }
            }
        }
    }

    /// One lane that is cut is back sooner than another can be made. When all are at the same moment, something happened
    /// that they may not survive even if they come back: they must show that they still lead to the agent.
    fn doubt_all_that_are_cut(&mut self, keeping: &mut Keeping<'_>) {
        let all_cut = self.held.iter().all(|held| held.websocket != Websocket::Joined);
        if self.held.len() > 1 && all_cut && keeping.keeper.is_busy() {
            let now = engine::now();
            for held in &mut self.held {
                held.unproven.get_or_insert(now);
                keeping.keeper.doubt(held.lane, true);
            }
            keeping.look_by(now + LOOK);
        }
    }

    /// Asks the engine how the lanes fare.
    async fn look(&mut self, keeping: &mut Keeping<'_>) {
        keeping.look_at = None;
        let Some(report) = keeping.report().await else { return };
        let (now, busy) = (engine::now(), keeping.keeper.is_busy());
        let loaded = keeping.loaded.is_some_and(|since| now.saturating_duration_since(since) > SILENCE);
        for stats in &report.lanes {
            // Under load it is asked each second whether it lives.
            let silent = loaded
                && now.saturating_duration_since(stats.last_heard) > SILENCE
                && now.saturating_duration_since(stats.attached) > SILENCE;
            let held = self.held.iter_mut().find(|held| held.lane == stats.lane);
            let cut = held.is_some_and(|held| {
                held.unproven =
                    held.unproven.filter(|since| busy && stats.last_heard <= *since + STILL_ARRIVING);
                busy && held.is_missing() || held.unproven.is_some()
            });
            keeping.keeper.doubt(stats.lane, stats.stalled || silent || cut);
        }
        self.grow_messages();
        let answers = |held: &Held| held.unproven.is_some_and(|since| now < since + SILENCE);
        if self.held.iter().any(answers) {
            keeping.look_by(now + ANSWER);
        } else if keeping.loaded.is_some() || keeping.keeper.has_doubts() {
            keeping.look_by(now + LOOK);
        }
    }

    /// What live lanes have shown about the size of messages.
    fn grow_messages(&mut self) {
        let handles = self.held.iter().filter_map(|held| Some(&held.session.as_ref()?.handle));
        let proven = handles.map(|handle| handle.status().proven_payload).max().unwrap_or_default();
        if proven > 0 {
            self.take_in(Lesson::Proven(proven));
        }
    }
}

impl Keeping<'_> {
    /// A closed channel shows at once as the engine's end.
    async fn command(&self, command: Command) {
        let _ = self.commands.send(command).await;
    }

    async fn report(&self) -> Option<Report> {
        let (sender, reply) = oneshot::channel();
        self.command(Command::Report(sender)).await;
        reply.await.ok()
    }

    /// What is under way may wait for an answer that went to where this machine was before; but what has only just
    /// begun may well come from here.
    fn nudge(&mut self, now: Instant) {
        self.keeper.nudge();
        if !self.dials.is_empty() {
            self.dial_anew_at = self.dialled_at.map(|at| now.max(at + YOUNG));
            self.dial_anew(now);
        }
    }

    fn dial_anew(&mut self, now: Instant) {
        if self.dial_anew_at.is_some_and(|at| at <= now) {
            self.dial_anew_at = None;
            self.dials = JoinSet::new();
            self.keeper.dials_dropped();
        }
    }

    fn look_by(&mut self, at: Instant) {
        self.look_at = Some(self.look_at.map_or(at, |before| before.min(at)));
    }

    fn set_load(&mut self, need: usize, now: Instant) {
        self.keeper.set_need(need, now);
        if need == 0 {
            self.loaded = None;
        } else {
            self.loaded.get_or_insert(now);
            self.look_by(now + LOOK);
        }
    }

    fn wake(&mut self) -> Option<Instant> {
        self.keeper.poll_timeout(engine::now()).into_iter().chain(self.look_at).chain(self.dial_anew_at).min()
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

fn random() -> u32 {
    engine::random_u64() as u32
}

/// How often lanes are looked at while there is much to carry, or one of them stands still.
const LOOK: Duration = Duration::from_millis(500);
/// A lane that is asked whether it leads to the agent has mostly answered by then.
const ANSWER: Duration = Duration::from_millis(100);
/// A lane that is asked each second and says nothing for so long stands still.
const SILENCE: Duration = Duration::from_secs(2);
/// What had come before a lane was cut may be read a bit later.
const STILL_ARRIVING: Duration = Duration::from_millis(50);
/// A dial that is younger may succeed in spite of a change of the network.
const YOUNG: Duration = Duration::from_secs(1);
