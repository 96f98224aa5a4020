//! Both engines, from the client's device to the agent's ends, over a lane of memory or of TCP.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use agent::lane::{LaneIo, TcpLane};
use agent::wire::Role;
use agent::wire::trunk::LaneKind;
use ssm_proxy::capture::tun::Capture;
use ssm_proxy::netstack::{self, Stack};
use ssm_proxy::os::arena::Arena;

use crate::app::MTU;
use crate::device::AppDevice;
use crate::engines::far::Far;
use crate::engines::{Spent, WARM_UP, Way, here, in_memory, start};
use crate::report::Report;
use crate::report::row::median;

pub(crate) fn rows(report: &mut Report) {
    for flows in [1, 8, 64] {
        for (name, way) in [("up", Way::Up), ("down", Way::Down)] {
            let name = format!("{flows} flow{} {name}", if flows == 1 { "" } else { "s" });
            let cpu = report.median(|| {
                let arrived = Arc::<AtomicU64>::default();
                in_memory(|| client_ends(flows, way, arrived.clone()), way, &arrived, report.round()).cpu
            });
            report.row(format!("{name}, both engines, lane of memory, one thread"), cpu, "s/GB");
            report.row(format!("{name}, both engines, lane of memory, one thread"), 8.0 / cpu, "Gbit/s CPU");
            let runs: Vec<[Spent; 2]> =
                (0..report.rounds()).map(|_| over_loopback(flows, way, report.round())).collect();
            let of = |figure: fn(&[Spent; 2]) -> f64| median(runs.iter().map(figure).collect());
            report.row(format!("{name}, client's engine, lane of TCP"), of(|[client, _]| client.cpu), "s/GB");
            report.row(format!("{name}, agent's engine, lane of TCP"), of(|[_, agent]| agent.cpu), "s/GB");
            let busier = of(|[client, agent]| client.cpu.max(agent.cpu));
            report.row(format!("{name}, two threads, lane of TCP"), 8.0 / busier, "Gbit/s CPU");
            let wall = of(|[client, _]| client.wall);
            report.row(format!("{name}, two threads, lane of TCP"), 8.0 / wall, "Gbit/s wall");
        }
    }
}

fn over_loopback(flows: u16, way: Way, round: Duration) -> [Spent; 2] {
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
            let client = start(Role::Client, client_ends(flows, way, arrived.clone()), lane(near));
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
fn client_ends(flows: u16, way: Way, arrived: Arc<AtomicU64>) -> Capture<AppDevice> {
    let config = netstack::Config { mtu: MTU, seed: 7, emit_checksums: false, ..netstack::Config::default() };
    let memory = Box::new(Arena::new(config.rings()));
    let stack = Stack::with_memory(config, Some(memory), Instant::now());
    Capture::new(AppDevice::new(flows, way, arrived), stack, MTU)
}
