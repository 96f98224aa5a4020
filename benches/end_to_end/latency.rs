//! Round trips of one byte, idle and beside bulk, and connects per second.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netstack_tests::servers;
use netstack_tests::vpc::{self, Vpc};

use crate::Options;
use crate::load::Load;
use crate::relays::Relays;
use crate::row::{Row, median, quantile};
use crate::world::World;

pub(crate) fn rows(options: &Options) -> Result<Vec<Row>> {
    let world = World::tcp()?;
    let port = servers::serve(&world.vpc.vpc, "0.0.0.0:0", servers::echo)?.port();
    let [direct, through] = World::both_ways(port)?;
    let relays = Relays::to(&world.vpc, port)?;
    let (mut veth, mut bare, mut tunnel) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        for (target, times) in [(direct, &mut veth), (relays.address, &mut bare), (through, &mut tunnel)] {
            times.extend(round_trips(&world.vpc, target, Duration::from_secs(1), Duration::ZERO)?);
        }
    }
    let mut rows = Vec::new();
    for (name, at, bound) in [("p50", 0.5, Some(30.0)), ("p99", 0.99, Some(150.0)), ("p99.9", 0.999, None)] {
        let [through, bare, direct] = [&mut tunnel, &mut bare, &mut veth].map(|times| quantile(times, at));
        rows.push(Row::new(format!("1-byte round trip {name}"), through, "us").base(direct));
        let what = format!("1-byte round trip {name}, added, base: by two bare relays");
        let added = Row::new(what, through - direct, "us").base(bare - direct);
        rows.push(match bound {
            Some(bound) => added.at_most(bound),
            None => added,
        });
    }
    for flows in [1, 8] {
        rows.extend(under_load(&world, flows, direct, through)?);
    }
    rows.extend(connects_per_second(&world, options)?);
    Ok(rows)
}

/// Round trips while so many flows of bulk run each way on the same path.
fn under_load(world: &World, flows: usize, direct: SocketAddr, through: SocketAddr) -> Result<Vec<Row>> {
    let (mut times, mut paces) = (Vec::new(), Vec::new());
    for (host, target) in [(vpc::LINK, direct), (vpc::TARGET, through)] {
        let load = Load::start(&world.vpc, host, flows)?;
        times.push(round_trips(&world.vpc, target, Duration::from_secs(4), PAUSE)?);
        paces.push(load.pace()?);
    }
    let beside = format!("beside {flows} bulk flows each way");
    let mut rows =
        vec![Row::new(format!("bulk of {flows} flows each way"), paces[1], "Gbit/s").base(paces[0])];
    for (name, at) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
        let what = format!("1-byte round trip {name} {beside}");
        let (through, direct) = (quantile(&mut times[1], at), quantile(&mut times[0], at));
        rows.push(Row::new(what, through, "us").base(direct));
    }
    Ok(rows)
}

/// Microseconds of each exchange; with a pause, that is the least time from one to the next.
pub(crate) fn round_trips(
    world: &Vpc,
    target: SocketAddr,
    time: Duration,
    pause: Duration,
) -> Result<Vec<f64>> {
    world.laptop.enter(|| {
        let mut stream = TcpStream::connect(target)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(vpc::DEADLINE))?;
        let mut byte = [7];
        let (mut times, start) = (Vec::new(), Instant::now());
        while start.elapsed() < time || times.is_empty() {
            let began = Instant::now();
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte)?;
            times.push(began.elapsed().as_secs_f64() * 1e6);
            std::thread::sleep(pause.saturating_sub(began.elapsed()));
        }
        Ok(times)
    })
}

fn connects_per_second(world: &World, options: &Options) -> Result<Vec<Row>> {
    let [direct, through] = World::both_ways(acceptors(&world.vpc)?.port())?;
    let (mut veth, mut tunnel, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        veth.push(connects(&world.vpc, direct)?.1);
        let usage = world.usage()?;
        let (made, rate) = connects(&world.vpc, through)?;
        tunnel.push(rate);
        cpu.push(usage.spent().iter().sum::<f64>() / made * 1e6);
    }
    Ok(vec![
        Row::new("connects, 50 at a time", median(tunnel), "1/s").base(median(veth)).at_least(12_000.0),
        Row::new("CPU of client and agent for a connect", median(cpu), "us").at_most(60.0),
    ])
}

/// A listener with a long queue whose connections are taken and dropped by a few threads.
fn acceptors(world: &Vpc) -> Result<SocketAddr> {
    let listener = world.vpc.enter(|| -> Result<TcpListener> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::from(([0, 0, 0, 0], 0)).into())?;
        socket.listen(4096)?;
        Ok(socket.into())
    })?;
    let address = listener.local_addr()?;
    for _ in 0..2 {
        let listener = listener.try_clone()?;
        std::thread::spawn(move || listener.incoming().for_each(drop));
    }
    Ok(address)
}

/// Connections made and closed by 50 threads in 3 s, and how many that is per second; all must succeed.
fn connects(world: &Vpc, target: SocketAddr) -> Result<(f64, f64)> {
    let (made, failed, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let (began, laptop) = (Instant::now(), &world.laptop);
    std::thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| {
                laptop.enter(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let done = TcpStream::connect(target).and_then(|stream| {
                            // No TIME-WAIT, so that the ports do not run out.
                            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))
                        });
                        if done.is_ok() { &made } else { &failed }.fetch_add(1, Ordering::Relaxed);
                    }
                });
            });
        }
        std::thread::sleep(Duration::from_secs(3));
        stop.store(true, Ordering::Relaxed);
    });
    ensure!(failed.load(Ordering::Relaxed) == 0, "{failed:?} connects to {target} failed");
    let made = made.load(Ordering::Relaxed) as f64;
    Ok((made, made / began.elapsed().as_secs_f64()))
}

/// Beside bulk one exchange begins each so often, lest moments without bulk, in which far more fit, hide the others.
pub(crate) const PAUSE: Duration = Duration::from_millis(2);
