//! Both engines without a process around them, for the benchmarks that have no agent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use agent::engine::{Attach, Command, Config, Engine};
use agent::lane::LaneIo;
use agent::local_end::LocalEnds;
use agent::wire::Role;
use agent::wire::trunk::{LaneId, LaneKind};
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};

use crate::clock::cpu;
use far::Far;
use memory_lane::MemoryLane;

pub(crate) mod far;
mod memory_lane;

/// Where the bytes go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Up,
    Down,
}

/// Seconds for a gigabyte.
pub(crate) struct Spent {
    pub(crate) cpu: f64,
    pub(crate) wall: f64,
}

impl Spent {
    /// What the calling thread spends while it sleeps for `round`, for what arrives meanwhile.
    pub(crate) async fn meanwhile(arrived: &AtomicU64, round: Duration) -> Self {
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

/// The client's ends and those of [`Far`], joined by a lane of memory: all on this thread.
pub(crate) fn in_memory<E: LocalEnds + 'static>(
    client: impl FnOnce() -> E,
    way: Way,
    arrived: &Arc<AtomicU64>,
    round: Duration,
) -> Spent {
    here(async {
        let [near, far] = MemoryLane::pair();
        let client = start(Role::Client, client(), Box::new(near));
        let agent = start(Role::Agent, Far::new(way, arrived.clone()), Box::new(far));
        let spent = Spent::meanwhile(arrived, round).await;
        drop((client, agent));
        spent
    })
}

/// Runs an engine with one lane until the sender is dropped.
pub(crate) fn start<E: LocalEnds + 'static>(
    role: Role,
    ends: E,
    io: Box<dyn LaneIo>,
) -> mpsc::Sender<Command> {
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
pub(crate) fn here<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, work)
}

pub(crate) const WARM_UP: Duration = Duration::from_millis(200);
