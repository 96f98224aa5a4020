//! One running `up`: makes the stations in order, keeps them running, and takes them down in reverse.
//!
//! The order is leftovers of dead sessions, the claim on name and ranges, the control socket, AWS, the device,
//! the first lane, and only then the routes: whatever fails before those has changed nothing.

mod explain;
pub mod known;
mod lock;
mod memory;
pub mod registry;
mod routing;
mod shared_file;
mod signals;
mod status;
mod way;

use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use ipnet::IpNet;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::debug;

use crate::capture::tun::Capture;
use crate::config::Plan;
use crate::control::server::{Ask, Handle, Owner, Server};
use crate::engine::{self, Ended};
use crate::error::{Exit, UserError};
use crate::netstack::{self, Stack};
use crate::os::arena::Arena;
use crate::os::identity::{self, Caller, Process};
use crate::os::tun::{AsyncTun, Tun, TunConfig};
use crate::os::undo::Journal;
use crate::tunnel::health::{Happening, HealthView};
use crate::tunnel::lanes::{First, LanesConfig};
use crate::tunnel::lessons::Lessons;

use known::Known;
use memory::Memory;
use registry::Claim;
use routing::Routing;
use signals::{Signals, Stop};
use status::Teller;
use way::Way;

/// What a session tells whoever runs it, as it happens.
#[derive(Clone, Debug)]
pub enum Progress {
    /// Something is done, in the past tense.
    Step(String),
    /// More about the step before.
    Detail(String),
    /// Odd, but it goes on.
    Warn(String),
    /// The session carries traffic now.
    Ready(Ready),
}

/// What a user wants to know when a session is up.
#[derive(Clone, Debug)]
pub struct Ready {
    /// The instance with what is known of it, or `tcp://host:port`.
    pub via: String,
    pub device: String,
    /// Networks inside the captured ranges that stay local, and whose they are (`docker0`, `--exclude`).
    pub stays_local: Vec<(IpNet, String)>,
}

/// The TUN device as the rest of the session names it.
#[derive(Clone, Debug)]
struct Device {
    name: String,
    index: u32,
    mtu: u32,
}

/// Runs a session until it is asked to end, and undoes everything.
pub async fn run(plan: Plan, tell: &dyn Fn(Progress)) -> anyhow::Result<Exit> {
    let signals = Signals::new()?;
    let caller = Caller::detect();
    let owner = Owner { uid: caller.uid, gid: caller.gid };
    let run_dir = identity::run_dir().context("the run directory cannot be used")?;
    undo_leftovers(&run_dir, tell)?;
    let claim = registry::claim(&run_dir, &plan, owner, status::unix_seconds())?;
    let (handle, asks) = Handle::new();
    let server = Server::start(&claim.socket(), owner, handle)?;
    let (health, happenings) = HealthView::new();
    let teller = Arc::new(Teller::new(&plan, &claim.meta().local, health.clone()));
    let known = Known::at(state_file(&caller, "known-agents"));
    let memory = Memory::at(state_file(&caller, "lanes"));
    let door = Door { signals, asks, teller };
    let mut session = Session { plan, known, memory, run_dir, claim, health, happenings, door, tell };
    let outcome = session.live().await;
    // The end of its connection tells `down` that everything is undone.
    drop(session.claim);
    drop(server);
    outcome
}

/// Where the wish to end a session, and questions about it, come in.
struct Door {
    signals: Signals,
    asks: mpsc::Receiver<Ask>,
    teller: Arc<Teller>,
}

impl Door {
    /// Answers questions until somebody wants the session to end.
    async fn until_stop(&mut self) -> Stop {
        let Self { signals, asks, teller } = self;
        tokio::select! {
            stop = signals.next() => stop,
            () = answer(asks, teller) => Stop::Down,
        }
    }

    /// Answers questions until `work`, the end of the session, is done; who wants that end is too late.
    async fn attend<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                stop = self.until_stop() => debug!("the session is ending already: {stop:?}"),
            }
        }
    }

    /// What `work` gives, unless somebody wants the session to end before.
    async fn unless<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Stop> {
        tokio::select! {
            done = work => Ok(done),
            stop = self.until_stop() => Err(stop),
        }
    }
}

struct Session<'a> {
    plan: Plan,
    known: Known,
    memory: Memory,
    run_dir: PathBuf,
    claim: Claim,
    health: HealthView,
    happenings: mpsc::Receiver<Happening>,
    door: Door,
    tell: &'a dyn Fn(Progress),
}

impl Session<'_> {
    async fn live(&mut self) -> anyhow::Result<Exit> {
        let making = way::make(&self.plan, self.tell);
        let way = self.door.unless(making).await.map_err(stopped)??;
        self.door.teller.set_region(way.path.region());
        let local = self.claim.meta().local.clone();
        let config = TunConfig { name: None, mtu: self.plan.mtu.unwrap_or(0), addresses: local };
        let tun = Tun::open(&config).map_err(|error| explain::tun(&error))?;
        let device = Device { name: tun.name().to_owned(), index: tun.index(), mtu: tun.mtu() };
        self.claim.set_device(&device.name)?;
        let (remember, mut lessons) = mpsc::channel(8);
        let lanes = LanesConfig {
            path: way.path.clone(),
            plan: self.plan.lanes.clone(),
            health: self.health.clone(),
            timeout: self.plan.timeout,
            ping_interval: self.plan.ping_interval.unwrap_or(engine::PING_INTERVAL),
            compress: self.plan.wants_compression(),
            pinned: self
                .known
                .find(&way.place)
                .with_context(|| format!("cannot read {}", self.known.path().display()))?,
            lessons: self.memory.find(&way.place, status::unix_seconds()),
            remember,
        };
        let udp_timeout = self.plan.udp_timeout;
        let mut data = engine::spawn(move || capture(tun, udp_timeout), lanes)?;
        self.door.teller.set_data(&device, data.asks.clone());
        let outcome = self.serve(&mut data, &way, &device, &mut lessons).await;
        self.door.teller.ending();
        self.door.attend(data.stop()).await;
        outcome
    }

    /// From the first lane, unless that one may wait, to the end of the routes.
    async fn serve(
        &mut self,
        data: &mut engine::Handle,
        way: &Way,
        device: &Device,
        lessons: &mut mpsc::Receiver<Lessons>,
    ) -> anyhow::Result<Exit> {
        let mut looking = routing::look_up_hosts(&self.plan, &way.path);
        if !self.plan.lanes.lazy {
            match self.door.unless(&mut data.first).await.map_err(stopped)? {
                Ok(Ok(first)) => self.greeted(&first, way),
                Ok(Err(error)) => return Err(explain::lane(&error, &self.plan, &self.known, way).into()),
                Err(_) => {
                    let ended = (&mut data.ended).await.unwrap_or_else(|_| no_reason());
                    return Err(self.explain_end(&ended, way));
                }
            }
        }
        // Names that take longer are not waited for: our own sockets are kept out by their mark.
        let found = self.door.unless(timeout(LOOKUP_GRACE, &mut looking)).await.map_err(stopped)?;
        let mut routing = Routing::new(&self.run_dir, &self.plan, device, way)?;
        match found {
            Ok(hosts) => routing.use_hosts(hosts.unwrap_or_default()),
            Err(_) => routing.await_hosts(looking),
        }
        let outcome = match routing.begin(self.tell) {
            Ok(ready) => {
                (self.tell)(Progress::Ready(ready));
                self.carry(data, way, &mut routing, lessons).await
            }
            Err(error) => Err(error),
        };
        self.door.teller.ending();
        routing.end(self.tell);
        outcome
    }

    /// While the session carries traffic.
    async fn carry(
        &mut self,
        data: &mut engine::Handle,
        way: &Way,
        routing: &mut Routing,
        lessons: &mut mpsc::Receiver<Lessons>,
    ) -> anyhow::Result<Exit> {
        loop {
            tokio::select! {
                stop = self.door.until_stop() => return Ok(ended_by(stop)),
                ended = &mut data.ended => {
                    return Err(self.explain_end(&ended.unwrap_or_else(|_| no_reason()), way));
                }
                Some(happening) = self.happenings.recv() => {
                    if let Happening::Reached(first) = &happening {
                        self.greeted(first, way);
                    } else {
                        (self.tell)(explain::happening(&happening, &self.plan, &self.known, way));
                    }
                }
                Some(learned) = lessons.recv() => self.remember(&learned, way),
                network_changed = routing.watch(self.tell) => if network_changed {
                    self.health.nudge();
                }
            }
        }
    }

    fn explain_end(&self, ended: &Ended, way: &Way) -> anyhow::Error {
        match ended {
            Ended::Failed(reason) => anyhow!(reason.clone()),
            Ended::GaveUp(end, last) => {
                let last = last.as_deref().map(|error| explain::lane(error, &self.plan, &self.known, way));
                let lost = self.health.read().last_loss.map(|loss| loss.reason);
                explain::gave_up(*end, last, lost).into()
            }
        }
    }

    fn remember(&self, learned: &Lessons, way: &Way) {
        if let Err(error) = self.memory.remember(&way.place, learned, status::unix_seconds()) {
            // It is learned again in the next session.
            tracing::info!("what was learned of {} is not remembered: {error}", way.place);
        }
    }

    fn greeted(&self, first: &First, way: &Way) {
        let tell = self.tell;
        tell(Progress::Step(format!("reached ssm-proxy-agent {} through {}", first.agent_version, way.name)));
        match self.known.remember(&way.place, &first.agent_key) {
            Ok(true) => {
                tell(Progress::Detail(format!("its key is new here and now pinned: {}", first.agent_key)));
            }
            Ok(false) => {}
            Err(error) => tell(Progress::Warn(format!(
                "the agent's key could not be remembered in {}: {error}",
                self.known.path().display()
            ))),
        }
    }
}

/// Answers the control socket until somebody asks the session to end.
async fn answer(asks: &mut mpsc::Receiver<Ask>, teller: &Arc<Teller>) {
    while let Some(ask) = asks.recv().await {
        let teller = Arc::clone(teller);
        // In tasks of their own: whoever waits for this may be called off in the middle of an answer. That a
        // reply finds nobody is no matter, who asked has gone.
        match ask {
            Ask::Status(reply) => {
                tokio::spawn(async move { drop(reply.send(teller.status().await)) });
            }
            Ask::Flows(reply) => {
                // No answer, dropped, says that the data thread gives none.
                tokio::spawn(async move { teller.flows().await.map(|flows| reply.send(flows)) });
            }
            Ask::Kill(flows, reply) => {
                tokio::spawn(async move { teller.kill(flows).await.map(|killed| reply.send(killed)) });
            }
            Ask::Down => return,
        }
    }
}

fn no_reason() -> Ended {
    Ended::Failed("the data thread ended without a reason".to_owned())
}

const LOOKUP_GRACE: Duration = Duration::from_millis(250);

fn undo_leftovers(run_dir: &Path, tell: &dyn Fn(Progress)) -> anyhow::Result<()> {
    for leftover in Journal::leftovers(run_dir, &Process::is_alive)? {
        for failure in &leftover.failures {
            let what = &failure.change;
            tell(Progress::Warn(format!(
                "could not undo a dead session's change ({what}): {}",
                failure.error
            )));
        }
        let session = leftover.path.file_stem().unwrap_or_default().to_string_lossy();
        tell(Progress::Step(format!(
            "undid {} changes that session {session} had left when it died",
            leftover.undone
        )));
    }
    Ok(())
}

fn capture(tun: Tun, udp_timeout: Duration) -> io::Result<Capture<AsyncTun>> {
    let mtu = tun.mtu() as usize;
    let config = netstack::Config {
        mtu,
        seed: engine::random_u64(),
        emit_checksums: !tun.completes_checksums(),
        udp_timeout,
        ..Default::default()
    };
    let memory = Box::new(Arena::new(config.rings()));
    Ok(Capture::new(tun.into_async()?, Stack::with_memory(config, Some(memory), engine::now()), mtu))
}

fn state_file(caller: &Caller, name: &str) -> PathBuf {
    caller.home.join(".local/state/ssm-proxy").join(name)
}

/// The end of a session that was not up yet.
fn stopped(stop: Stop) -> anyhow::Error {
    let what = match stop {
        Stop::Interrupt | Stop::Terminate => "interrupted before the session was up; nothing was changed",
        Stop::Down => "ended by `down` before the session was up; nothing was changed",
    };
    UserError::new(Exit::Interrupted, what).into()
}

/// Ctrl-C is how a session in the foreground ends; scripts see it by the exit code all the same.
fn ended_by(stop: Stop) -> Exit {
    match stop {
        Stop::Interrupt => Exit::Interrupted,
        Stop::Terminate | Stop::Down => Exit::Ok,
    }
}
