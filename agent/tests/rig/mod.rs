//! An agent in this process, clients of it, and the way to a lane.
#![allow(clippy::unwrap_used, dead_code, reason = "helpers of tests, each of which uses some")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::thread;
use std::time::Duration;

use agent::admission::Admission;
use agent::dial::DialConfig;
use agent::dial::rules::Rules;
use agent::engine::{self, Attach, Command, Engine, Outcome};
use agent::keys;
use agent::lane::TcpLane;
use agent::serve::{Config, Listen, Server};
use agent::wire::hello::{ClientHandshake, ClientParams, HelloError, Ticket, Welcomed};
use agent::wire::open::{Kind, Open, Target};
use agent::wire::trunk::{LaneId, LaneKind, Role};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, LocalSet};

use crate::probe::{self, Probe};

pub(crate) struct Agent {
    pub(crate) addresses: Vec<SocketAddr>,
    stop: oneshot::Sender<()>,
    running: JoinHandle<()>,
}

impl Agent {
    pub(crate) async fn start(config: Config) -> Self {
        let server = Server::bind(&Listen::Loopback(0), config).await.unwrap();
        let addresses = server.local_addrs();
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::task::spawn_local(server.run(async {
            let _ = stopped.await;
        }));
        Self { addresses, stop, running }
    }

    pub(crate) async fn stop(self) {
        self.stop.send(()).unwrap();
        self.running.await.unwrap();
    }
}

pub(crate) struct Client {
    commands: mpsc::Sender<Command>,
    running: JoinHandle<Outcome>,
    probe: probe::Shared,
}

impl Client {
    pub(crate) fn start(probe: Probe) -> Self {
        let (commands, receiver) = mpsc::channel(8);
        let shared = probe.shared();
        let config = engine::Config {
            role: Role::Client,
            ping_interval: Duration::from_secs(1),
            entropy: 7,
            on_lane: Box::new(|_| {}),
        };
        let engine = Engine::new(config, probe);
        let running = tokio::task::spawn_local(async move { engine.run(receiver).await.0 });
        Self { commands, running, probe: shared }
    }

    /// Gives the lane to the engine; the copy that comes back can cut it.
    pub(crate) async fn attach(
        &mut self,
        lane: LaneId,
        stream: TcpStream,
        welcomed: Welcomed,
    ) -> std::net::TcpStream {
        let stream = stream.into_std().unwrap();
        let copy = stream.try_clone().unwrap();
        let stream = TcpStream::from_std(stream).unwrap();
        let attach = Attach {
            lane,
            kind: LaneKind::Tcp,
            hello: welcomed.hello,
            in_blocks: false,
            peer_received: None,
            io: Box::new(TcpLane::new(stream, LaneKind::Tcp).unwrap()),
            leftover: welcomed.leftover,
        };
        assert!(self.commands.send(Command::Attach(attach)).await.is_ok());
        copy
    }

    pub(crate) async fn probe_when(&mut self, ready: impl Fn(&probe::Seen) -> bool) -> probe::Seen {
        self.probe.when(ready).await
    }

    pub(crate) async fn report(&self) {
        let (reply, answer) = oneshot::channel();
        assert!(self.commands.send(Command::Report(reply)).await.is_ok());
        answer.await.unwrap();
    }

    pub(crate) async fn close(self) -> Outcome {
        assert!(self.commands.send(Command::Close).await.is_ok());
        self.running.await.unwrap()
    }

    pub(crate) async fn ended(self) -> Outcome {
        self.running.await.unwrap()
    }
}

pub(crate) fn config() -> Config {
    let loopback = ["127.0.0.0/8", "::1"].iter().map(|range| range.parse().unwrap()).collect();
    let mut config = Config::new(keys::passing_agent_key().unwrap());
    config.dial = DialConfig { rules: Rules::new(loopback, Vec::new()), ..DialConfig::default() };
    config.admission = Admission::Uids(vec![rustix::process::geteuid().as_raw()]);
    config
}

pub(crate) fn params(lane: u64, ticket: Option<Ticket>) -> ClientParams {
    let mut entropy = [0; 64];
    entropy[..32].copy_from_slice(&keys::random().unwrap());
    entropy[32..].copy_from_slice(&keys::random().unwrap());
    ClientParams {
        ticket,
        lane: LaneId(lane),
        kind: LaneKind::Tcp,
        psk: None,
        pinned: None,
        ping_interval: Duration::from_secs(1),
        received: 0,
        live_lanes: Vec::new(),
        wants_blocks: false,
        entropy,
        version: "test".to_owned(),
    }
}

pub(crate) async fn greet(
    address: SocketAddr,
    params: ClientParams,
) -> Result<(TcpStream, Welcomed), HelloError> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut handshake = ClientHandshake::new(params);
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer).await.unwrap();
        assert!(length > 0, "the agent closed the connection");
        let welcomed = handshake.handle_bytes(&buffer[..length])?;
        if let Some(record) = handshake.poll_transmit() {
            stream.write_all(&record).await.unwrap();
        }
        if let Some(welcomed) = welcomed {
            return Ok((stream, welcomed));
        }
    }
}

pub(crate) fn tcp(target: SocketAddr) -> Open {
    Open { kind: Kind::Tcp, target: Target::Address(target.ip(), target.port()) }
}

/// Gives back what one connection sends, until its end.
pub(crate) fn echo_target() -> SocketAddr {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&all).unwrap();
    });
    address
}

pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = LocalSet::new();
    let test = async { tokio::time::timeout(Duration::from_secs(20), test).await.expect("in time") };
    local.block_on(&runtime, test);
}
