//! A TUN device and the kernel's own applications, without any process of ours: the netstack alone behind it, and the
//! whole path over a lane of memory, on one thread.

use std::future::poll_fn;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use agent::local_end::{EndEvent, LocalEnds as _};
use anyhow::Result;
use netstack_tests::netns::Netns;
use netstack_tests::vpc;
use ssm_proxy::capture::tun::Capture;
use ssm_proxy::netstack::{self, Stack};
use ssm_proxy::os::arena::Arena;
use ssm_proxy::os::tun::{AsyncTun, Tun, TunConfig};
use tokio::task::spawn_local;

use crate::Options;
use crate::engines::{Spent, Way, here, in_memory};
use crate::load::iperf;
use crate::row::{Row, median};
use crate::world::World;

pub(crate) fn rows(options: &Options) -> Result<Vec<Row>> {
    let world = World::tcp()?;
    let mut rows = Vec::new();
    for (name, way, flag, alone, pipe) in
        [("up", Way::Up, None, (12.0, 0.25), 8.0), ("down", Way::Down, Some("-R"), (20.0, 0.18), 9.0)]
    {
        for flows in [1, 8, 64] {
            let number = flows.to_string();
            let arguments: Vec<&str> = ["-P", &number].into_iter().chain(flag).collect();
            let (mut veth, mut stack, mut path) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..options.rounds {
                veth.push(iperf(&world.vpc, vpc::LINK, 1, &arguments)?);
                stack.push(behind_tun(&world.vpc.laptop, flows, way, netstack_alone)?);
                path.push(behind_tun(&world.vpc.laptop, flows, way, whole_path)?);
            }
            let veth = median(veth);
            let named = |what: &str| {
                format!("{flows} flow{} {name}, TUN and {what}", if flows == 1 { "" } else { "s" })
            };
            let [gbit, cpu] = figures(&named("netstack alone"), &stack, veth);
            let [whole_gbit, whole_cpu] = figures(&named("both engines, lane of memory"), &path, veth);
            // What dataplane.md wants is for one flow.
            rows.extend(if flows == 1 {
                [gbit.at_least(alone.0), cpu.at_most(alone.1), whole_gbit.at_least(pipe), whole_cpu]
            } else {
                [gbit, cpu, whole_gbit, whole_cpu]
            });
        }
    }
    Ok(rows)
}

fn figures(what: &str, runs: &[Spent], veth: f64) -> [Row; 2] {
    let of = |figure: fn(&Spent) -> f64| median(runs.iter().map(figure).collect());
    [
        Row::new(what, 8.0 / of(|run| run.wall), "Gbit/s").base(veth),
        Row::new(format!("{what}, CPU"), of(|run| run.cpu), "s/GB"),
    ]
}

/// Applications of the laptop use so many flows while `serve` runs behind a TUN device of theirs, to which the bytes
/// that arrived are told.
fn behind_tun(
    laptop: &Netns,
    flows: usize,
    way: Way,
    serve: fn(Tun, Way, Arc<AtomicU64>) -> Spent,
) -> Result<Spent> {
    let config = TunConfig { addresses: vec![NETWORK.parse()?], ..TunConfig::default() };
    let tun = laptop.enter(|| Tun::open(&config))?;
    let arrived = Arc::<AtomicU64>::default();
    let open = Mutex::new(Vec::new());
    Ok(std::thread::scope(|scope| {
        let application = || -> std::io::Result<()> {
            let stream = TcpStream::connect_timeout(&TARGET, Duration::from_secs(5))?;
            open.lock().unwrap_or_else(PoisonError::into_inner).push(stream.try_clone()?);
            exchange(stream, way, &arrived)
        };
        let applications = move || {
            std::thread::scope(|scope| (0..flows).for_each(|_| drop(scope.spawn(application))));
        };
        scope.spawn(move || laptop.enter(applications));
        let spent = serve(tun, way, arrived.clone());
        for stream in open.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            // One that the end of the device has broken needs none.
            let _ = stream.shutdown(Shutdown::Both);
        }
        spent
    }))
}

/// Sends or takes until the stream is shut.
fn exchange(mut stream: TcpStream, way: Way, arrived: &AtomicU64) -> std::io::Result<()> {
    let mut buffer = vec![7; PIECE];
    loop {
        match way {
            Way::Up => stream.write_all(&buffer)?,
            Way::Down => match stream.read(&mut buffer)? {
                0 => return Ok(()),
                count => drop(arrived.fetch_add(count as u64, Ordering::Relaxed)),
            },
        }
    }
}

fn whole_path(tun: Tun, way: Way, arrived: Arc<AtomicU64>) -> Spent {
    in_memory(|| capture(tun), way, &arrived, ROUND)
}

fn netstack_alone(tun: Tun, way: Way, arrived: Arc<AtomicU64>) -> Spent {
    here(async {
        spawn_local(take_or_give(capture(tun), way, arrived.clone()));
        Spent::meanwhile(&arrived, ROUND).await
    })
}

/// As `up` makes it.
fn capture(tun: Tun) -> Capture<AsyncTun> {
    let mtu = tun.mtu() as usize;
    let emit_checksums = !tun.completes_checksums();
    let config = netstack::Config { mtu, seed: 7, emit_checksums, ..netstack::Config::default() };
    let stack =
        Stack::with_memory(config.clone(), Some(Box::new(Arena::new(config.rings()))), Instant::now());
    Capture::new(tun.into_async().expect("this is inside a runtime"), stack, mtu)
}

/// In the engine's place: every flow is welcome, and takes or gives what it can.
async fn take_or_give(mut capture: Capture<AsyncTun>, way: Way, arrived: Arc<AtomicU64>) {
    let (mut ends, mut buffer) = (Vec::new(), vec![7; 1 << 20]);
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    poll_fn::<(), _>(|cx| {
        let now = Instant::now();
        while tick.poll_tick(cx).is_ready() {
            capture.handle_timeout(now);
        }
        let mut moved = capture.poll_io(cx, now).is_ready();
        while let Some(event) = capture.poll_event() {
            match event {
                EndEvent::Wanted { end, .. } => {
                    capture.accept(end, TARGET, TARGET, now);
                    ends.push(end);
                }
                EndEvent::Readable { end } => loop {
                    let count = capture.read(end, &mut buffer, now);
                    if count == 0 {
                        break;
                    }
                    arrived.fetch_add(count as u64, Ordering::Relaxed);
                    moved = true;
                },
                EndEvent::Finished { end } | EndEvent::Reset { end } | EndEvent::Closed { end } => {
                    ends.retain(|other| *other != end);
                }
                EndEvent::Room { .. } | EndEvent::Connected { .. } | EndEvent::Refused { .. } => {}
            }
        }
        for end in ends.iter().filter(|_| way == Way::Down) {
            let room = capture.room(*end).min(buffer.len());
            capture.write(*end, &buffer[..room], now);
            moved |= room > 0;
        }
        if moved {
            // Again, but only after the measuring task.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await;
}

/// The device's address, and a target behind it.
const NETWORK: &str = "10.30.0.1/24";
const TARGET: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 30, 0, 9)), 80);
const ROUND: Duration = Duration::from_secs(1);
const PIECE: usize = 128 << 10;
