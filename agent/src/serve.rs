//! Listens, looks who comes, shakes hands, and gives each lane to its trunk's engine.
//!
//! A connection passes: admission (whose process is it) -> greeting and hello -> the trunk's engine, a
//! new one or one that may be parked. Everything runs on one thread, inside a `LocalSet`.
#![expect(clippy::disallowed_methods, reason = "the driver of listeners and park times reads the clock")]

mod error;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::admission::{Admission, Turned};
use crate::dial::{DialConfig, Dialer};
use crate::engine::{self, Attach, Command, Engine, LaneNews};
use crate::keys;
use crate::lane::TcpLane;
use crate::log;
use crate::parked::{Full, Limits, Seat, Trunks};
use crate::wire::Role;
use crate::wire::hello::{Admitted, AgentHandshake, AgentKey, AgentParams, DenyReason, Psk, TrunkId};

use self::error::NoLane;
pub use self::error::StartError;

/// Where to listen.
#[derive(Clone, Debug)]
pub enum Listen {
    /// On `127.0.0.1` and `[::1]`, both or none, since SSM's worker dials `localhost`. Port 0 takes a free one.
    Loopback(u16),
    Addresses(Vec<SocketAddr>),
}

/// What the agent serves with.
pub struct Config {
    pub key: AgentKey,
    /// Required beyond the loopback; asked of every client when there is one.
    pub psk: Option<Psk>,
    pub admission: Admission,
    pub dial: DialConfig,
    pub limits: Limits,
    /// The most lanes a trunk should have: each costs a worker of the SSM agent, about 25 MB.
    pub max_lanes: u16,
    /// Whether clients may have TCP flows compressed.
    pub compress: bool,
}

impl Config {
    pub fn new(key: AgentKey) -> Self {
        Self {
            key,
            psk: None,
            admission: Admission::default(),
            dial: DialConfig::default(),
            limits: Limits::default(),
            max_lanes: 16,
            compress: true,
        }
    }
}

/// An agent that listens.
pub struct Server {
    listeners: Vec<TcpListener>,
    shared: Rc<Shared>,
}

struct Shared {
    config: Config,
    dialer: Dialer,
    trunks: RefCell<Trunks<mpsc::Sender<Command>>>,
    /// Engines at work, those that say goodbye included.
    engines: Cell<usize>,
    engine_ended: Notify,
    turned_away: RefCell<Seldom>,
    refused: RefCell<Seldom>,
}

impl Server {
    /// Listens on all addresses or on none.
    pub async fn bind(listen: &Listen, config: Config) -> Result<Self, StartError> {
        let listeners = match listen {
            Listen::Loopback(port) => {
                let v4 = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, *port))).await?;
                let port = v4.local_addr().map_or(*port, |address| address.port());
                vec![v4, bind(SocketAddr::from((Ipv6Addr::LOCALHOST, port))).await?]
            }
            Listen::Addresses(addresses) => {
                let mut listeners = Vec::new();
                for &address in addresses {
                    if config.psk.is_none() && !address.ip().to_canonical().is_loopback() {
                        return Err(StartError::KeyNeeded { address });
                    }
                    listeners.push(bind(address).await?);
                }
                listeners
            }
        };
        let shared = Shared {
            dialer: Dialer::new(config.dial.clone()),
            trunks: RefCell::new(Trunks::new(config.limits)),
            config,
            engines: Cell::new(0),
            engine_ended: Notify::new(),
            turned_away: RefCell::default(),
            refused: RefCell::default(),
        };
        Ok(Self { listeners, shared: Rc::new(shared) })
    }

    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Serves until `stop`; then says goodbye on every trunk. To be run inside a `LocalSet`.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Self { listeners, shared } = self;
        let mut tasks = JoinSet::new();
        for listener in listeners {
            tasks.spawn_local(shared.clone().accept(listener));
        }
        tasks.spawn_local(shared.clone().expire());
        stop.await;
        // Aborts the listeners with the handshakes they hold.
        drop(tasks);
        shared.close_all().await;
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|error| StartError::Listen { address, error })
}

impl Shared {
    async fn accept(self: Rc<Self>, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(HANDSHAKES));
        let mut handshakes = JoinSet::new();
        loop {
            // With all places taken the kernel's queue holds who comes.
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    log::warn(format_args!("cannot take a connection: {error}"));
                    tokio::time::sleep(AFTER_ACCEPT_ERROR).await;
                    continue;
                }
            };
            if let Err(reason) = self.admit(&stream, peer) {
                self.turned_away.borrow_mut().warn(format_args!("turned {peer} away: {reason}"));
                continue;
            }
            let shared = self.clone();
            handshakes.spawn_local(async move {
                match timeout(HANDSHAKE, shared.clone().shake_hands(stream)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(reason)) => shared.refuse(peer, &reason),
                    Err(_) => shared.refuse(peer, &format_args!("no hello within {HANDSHAKE:?}")),
                }
                drop(place);
            });
            while handshakes.try_join_next().is_some() {}
        }
    }

    fn refuse(&self, peer: SocketAddr, reason: &dyn fmt::Display) {
        self.refused.borrow_mut().warn(format_args!("no lane from {peer}: {reason}"));
    }

    /// Over the loopback the kernel says who it is; from elsewhere the shared key has to.
    fn admit(&self, stream: &TcpStream, peer: SocketAddr) -> Result<(), Turned> {
        if !peer.ip().to_canonical().is_loopback() {
            return Ok(());
        }
        let local = stream.local_addr().map_err(|_| Turned::NotFound)?;
        self.config.admission.check(peer, local)
    }

    async fn shake_hands(self: Rc<Self>, mut stream: TcpStream) -> Result<(), NoLane> {
        stream.set_nodelay(true)?;
        let mut handshake = AgentHandshake::new(AgentParams {
            key: self.config.key.clone(),
            psk: self.config.psk.clone(),
            max_lanes: self.config.max_lanes,
            takes_blocks: self.config.compress,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            nonce: keys::random().map_err(io::Error::other)?,
        });
        let result = self.admitted(&mut stream, &mut handshake).await;
        if let Some(record) = handshake.poll_transmit() {
            stream.write_all(&record).await?;
        }
        match result {
            Ok((admitted, engine)) => self.attach(stream, admitted, engine).await,
            Err(reason) => {
                farewell(stream).await;
                Err(reason)
            }
        }
    }

    /// Goes through the handshake up to the last message, which is left for the caller to send.
    async fn admitted(
        self: &Rc<Self>,
        stream: &mut TcpStream,
        handshake: &mut AgentHandshake,
    ) -> Result<(Admitted, mpsc::Sender<Command>), NoLane> {
        if let Some(greeting) = handshake.poll_transmit() {
            stream.write_all(&greeting).await?;
        }
        let mut buffer = [0; 2048];
        let admitted = loop {
            let length = match stream.read(&mut buffer).await? {
                0 => return Err(NoLane::Ended),
                length => length,
            };
            let known = |id: &TrunkId| self.trunks.borrow().secret(id);
            if let Some(admitted) = handshake.handle_bytes(&buffer[..length], &known)? {
                break admitted;
            }
        };
        // A lane and its replacement live side by side for a while.
        if admitted.live_lanes.len() >= 2 * usize::from(self.config.max_lanes) {
            handshake.deny(DenyReason::TooManyLanes, "this trunk has as many lanes as the agent takes");
            return Err(NoLane::TooManyLanes);
        }
        match self.engine(&admitted) {
            Ok(engine) => Ok((admitted, engine)),
            Err(Full) => {
                handshake.deny(
                    DenyReason::TooManyTrunks,
                    "the agent serves as many sessions as it takes: end one that is no longer needed",
                );
                Err(NoLane::TooManyTrunks)
            }
        }
    }

    /// The engine of the client's trunk, which is started if there is none.
    fn engine(self: &Rc<Self>, admitted: &Admitted) -> Result<mpsc::Sender<Command>, Full> {
        if let Some(engine) = self.trunks.borrow().engine(&admitted.ticket.id) {
            return Ok(engine.clone());
        }
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let (seat, gone) =
            self.trunks.borrow_mut().insert(&admitted.ticket, commands.clone(), Instant::now())?;
        if let Some(gone) = gone {
            log::warn(format_args!("gave up the trunk that was parked longest: there are too many"));
            close(&gone);
        }
        log::info(format_args!("{} began, client version {}", Name(seat.id()), admitted.client_version));
        self.clone().start(seat, admitted.ping_interval, receiver);
        Ok(commands)
    }

    fn start(self: Rc<Self>, seat: Seat, ping_interval: Duration, commands: mpsc::Receiver<Command>) {
        let shared = self.clone();
        let config = engine::Config {
            role: Role::Agent,
            ping_interval: match ping_interval {
                Duration::ZERO => PING,
                asked => asked.max(SHORTEST_PING),
            },
            // Ping ids need no secrecy, only to differ between lives.
            entropy: keys::random()
                .map_or(0, |bytes| u64::from_be_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|at| bytes[at]))),
            on_lane: Box::new(move |news| shared.lane_news(seat, news)),
        };
        let engine = Engine::new(config, self.dialer.sockets());
        self.engines.set(self.engines.get() + 1);
        tokio::task::spawn_local(async move {
            // The engine keeps its own budget; tokio's would only make sockets look idle.
            let (outcome, remains) = tokio::task::unconstrained(engine.run(commands)).await;
            drop(remains);
            self.trunks.borrow_mut().remove(seat);
            self.engines.set(self.engines.get() - 1);
            self.engine_ended.notify_one();
            log::info(format_args!("{} ended: {outcome:?}", Name(seat.id())));
        });
    }

    fn lane_news(&self, seat: Seat, news: LaneNews) {
        let name = Name(seat.id());
        let lanes = match news {
            LaneNews::Attached { lane, lanes } => {
                log::info(format_args!("{name} got lane {:016x}; lanes: {lanes}", lane.0));
                lanes
            }
            LaneNews::Lost { lane, lanes, reason } => {
                log::info(format_args!("{name} lost lane {:016x} ({reason}); lanes: {lanes}", lane.0));
                lanes
            }
            LaneNews::Stalled { lane } => {
                return log::info(format_args!("{name}: lane {:016x} stands still", lane.0));
            }
            LaneNews::Drained { .. } | LaneNews::Busy(_) | LaneNews::Demand(_) => return,
        };
        self.trunks.borrow_mut().set_lanes(seat, lanes, Instant::now());
    }

    async fn attach(
        &self,
        stream: TcpStream,
        admitted: Admitted,
        engine: mpsc::Sender<Command>,
    ) -> Result<(), NoLane> {
        let Admitted { lane, kind, received, in_blocks, mut live_lanes, hello, leftover, .. } = admitted;
        live_lanes.push(lane);
        let attach = Attach {
            lane,
            kind,
            hello,
            peer_received: Some(received),
            in_blocks,
            io: Box::new(TcpLane::new(stream, kind)?),
            leftover,
        };
        engine.send(Command::LiveLanes(live_lanes)).await.map_err(|_| NoLane::TrunkEnded)?;
        engine.send(Command::Attach(attach)).await.map_err(|_| NoLane::TrunkEnded)
    }

    /// Gives up trunks whose park time is over.
    async fn expire(self: Rc<Self>) {
        loop {
            tokio::time::sleep(self.config.limits.park.clamp(SHORTEST_SWEEP, SWEEP)).await;
            let late = self.trunks.borrow_mut().expire(Instant::now());
            for engine in late {
                log::info(format_args!("gave up a trunk whose client did not come back in time"));
                close(&engine);
            }
        }
    }

    async fn close_all(&self) {
        let engines = self.trunks.borrow_mut().take_all();
        engines.iter().for_each(close);
        drop(engines);
        let ended = async {
            while self.engines.get() > 0 {
                self.engine_ended.notified().await;
            }
        };
        if timeout(GOODBYE, ended).await.is_err() {
            log::warn(format_args!("some trunks did not end in time and are dropped"));
        }
    }
}

/// Asks an engine to end. One whose channel is full notices that the channel is gone.
fn close(engine: &mpsc::Sender<Command>) {
    let _ = engine.try_send(Command::Close);
}

/// Lets the other side read the denial: closing at once with its bytes unread would reset the connection.
async fn farewell(mut stream: TcpStream) {
    let ending = async {
        stream.shutdown().await?;
        let mut buffer = [0; 2048];
        for _ in 0..FAREWELL_READS {
            if stream.read(&mut buffer).await? == 0 {
                break;
            }
        }
        Ok::<(), io::Error>(())
    };
    // Whatever goes wrong, the connection is over.
    let _ = timeout(FAREWELL, ending).await;
}

/// A trunk in the log: enough of its id to tell it from others.
struct Name(TrunkId);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0.0;
        write!(f, "trunk {a:02x}{b:02x}{c:02x}{d:02x}")
    }
}

/// Keeps one who knocks all the time from filling the log.
#[derive(Debug, Default)]
struct Seldom {
    last: Option<Instant>,
    silent: u64,
}

impl Seldom {
    /// Says it, or counts it for the next line.
    fn warn(&mut self, what: fmt::Arguments<'_>) {
        if let Some(others) = self.turn(Instant::now()) {
            log::warn(format_args!("{what} ({others} more since the last such line)"));
        }
    }

    /// Counts one; `Some` when it may be told, with the number of those that were not.
    fn turn(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < SELDOM) {
            self.silent += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.silent))
    }
}

/// Connections of one listener that have not proved themselves yet.
const HANDSHAKES: usize = 64;
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Out of descriptors, mostly: waiting is all that helps.
const AFTER_ACCEPT_ERROR: Duration = Duration::from_millis(100);
const FAREWELL: Duration = Duration::from_secs(1);
const FAREWELL_READS: usize = 16;
/// More than an engine gets between two turns.
const COMMANDS: usize = 64;
const PING: Duration = Duration::from_secs(10);
/// A client that wants more would only keep the agent busy.
const SHORTEST_PING: Duration = Duration::from_millis(50);
const SWEEP: Duration = Duration::from_secs(30);
const SHORTEST_SWEEP: Duration = Duration::from_millis(10);
/// Longer than an engine takes for its own goodbye.
const GOODBYE: Duration = Duration::from_secs(2);
const SELDOM: Duration = Duration::from_secs(10);
