//! Both engines, from the client's device to the agent's ends, over a lane of memory or of TCP.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use agent::engine::{Attach, Command, Config, Engine};
use agent::lane::{LaneIo, TcpLane};
use agent::local_end::LocalEnds;
use agent::wire::Role;
use agent::wire::trunk::{LaneId, LaneKind};
use ssm_proxy::capture::tun::Capture;
use ssm_proxy::netstack::{self, Stack};
use ssm_proxy::os::arena::Arena;
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};

use crate::app::MTU;
use crate::device::AppDevice;
use crate::far::Far;
use crate::memory_lane::MemoryLane;
use crate::report::{Report, cpu};

/// Where the bytes go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Up,
    Down,
}

pub(crate) fn rows(report: &mut Report) {
    for (name, way) in [("up", Way::Up), ("down", Way::Down)] {
        let mut runs: Vec<Spent> = (0..report.rounds()).map(|_| in_memory(way, report.round())).collect();
        runs.sort_by(|a, b| a.cpu.total_cmp(&b.cpu));
        let Spent { cpu, .. } = runs[runs.len() / 2];
        report.row(format!("{name}, both engines, lane of memory, one thread"), cpu, "s/GB");
        report.row(format!("{name}, both engines, lane of memory, one thread"), 8.0 / cpu, "Gbit/s CPU");
        let mut runs: Vec<[Spent; 2]> =
            (0..report.rounds()).map(|_| over_loopback(way, report.round())).collect();
        runs.sort_by(|a, b| a[0].cpu.total_cmp(&b[0].cpu));
        let [client, agent] = &runs[runs.len() / 2];
        report.row(format!("{name}, client's engine, lane of TCP"), client.cpu, "s/GB");
        report.row(format!("{name}, agent's engine, lane of TCP"), agent.cpu, "s/GB");
        report.row(
            format!("{name}, two threads, lane of TCP"),
            8.0 / client.cpu.max(agent.cpu),
            "Gbit/s CPU",
        );
        report.row(format!("{name}, two threads, lane of TCP"), 8.0 / client.wall, "Gbit/s wall");
    }
}

/// Seconds for a gigabyte.
struct Spent {
    cpu: f64,
    wall: f64,
}

impl Spent {
    /// What the calling thread spends while it sleeps for `round`, for what arrives meanwhile.
    async fn meanwhile(arrived: &AtomicU64, round: Duration) -> Self {
        tokio::time::sleep(WARM_UP).await;
        let bytes = || arrived.load(Ordering::Relaxed);
        let (began, spent, before) = (Instant::now(), cpu(), bytes());
        tokio::time::sleep(round).await;
        let gigabytes = (bytes() - before) as f64 / 1e9;
        assert!(gigabytes > 0.0, "nothing moves");
        let cpu = (cpu() - spent).as_secs_f64() / gigabytes;
        Self { cpu, wall: began.elapsed().as_secs_f64() / gigabytes }
    }
}

fn in_memory(way: Way, round: Duration) -> Spent {
    let arrived = Arc::<AtomicU64>::default();
    here(async {
        let [near, far] = MemoryLane::pair();
        let client = start(Role::Client, client_ends(way, arrived.clone()), Box::new(near));
        let agent = start(Role::Agent, Far::new(way, arrived.clone()), Box::new(far));
        let spent = Spent::meanwhile(&arrived, round).await;
        drop((client, agent));
        spent
    })
}

fn over_loopback(way: Way, round: Duration) -> [Spent; 2] {
    let arrived = Arc::<AtomicU64>::default();
    let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has free ports");
    let near = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("somebody listens");
    let (far, _) = listener.accept().expect("somebody has connected");
    std::thread::scope(|scope| {
        let agent = scope.spawn(|| {
            here(async {
                let agent = start(Role::Agent, Far::new(way, arrived.clone()), lane(far));
                let spent = Spent::meanwhile(&arrived, round).await;
                // The client's engine is still measured.
                tokio::time::sleep(WARM_UP).await;
                drop(agent);
                spent
            })
        });
        let client = here(async {
            let client = start(Role::Client, client_ends(way, arrived.clone()), lane(near));
            let spent = Spent::meanwhile(&arrived, round).await;
            tokio::time::sleep(WARM_UP).await;
            drop(client);
            spent
        });
        [client, agent.join().expect("the agent's thread does not panic")]
    })
}

fn lane(stream: TcpStream) -> Box<dyn LaneIo> {
    stream.set_nonblocking(true).expect("a socket may be so");
    let stream = tokio::net::TcpStream::from_std(stream).expect("this is inside a runtime");
    Box::new(TcpLane::new(stream, LaneKind::Tcp).expect("a socket takes its options"))
}

/// As `up` makes them on Linux.
fn client_ends(way: Way, arrived: Arc<AtomicU64>) -> Capture<AppDevice> {
    let config = netstack::Config { mtu: MTU, seed: 7, emit_checksums: false, ..netstack::Config::default() };
    let memory = Box::new(Arena::new(config.rings()));
    let stack = Stack::with_memory(config, Some(memory), Instant::now());
    Capture::new(AppDevice::new(way, arrived), stack, MTU)
}

/// Runs an engine with one lane until the sender is dropped.
fn start<E: LocalEnds + 'static>(role: Role, ends: E, io: Box<dyn LaneIo>) -> mpsc::Sender<Command> {
    let (commands, inbox) = mpsc::channel(4);
    let on_lane = Box::new(|_| {});
    let config = Config { role, ping_interval: Duration::from_secs(20), entropy: 7, on_lane };
    let attach = Attach {
        in_blocks: false,
        lane: LaneId(1),
        kind: LaneKind::Tcp,
        hello: [0; 32],
        peer_received: Some(0),
        io,
        leftover: Vec::new(),
    };
    assert!(commands.try_send(Command::Attach(attach)).is_ok(), "the channel is new");
    // As in the product: the loop has budgets of its own.
    spawn_local(tokio::task::unconstrained(async move {
        Engine::new(config, ends).run(inbox).await;
    }));
    commands
}

/// Runs on this thread, with tasks of its own.
fn here<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, work)
}

const WARM_UP: Duration = Duration::from_millis(200);
