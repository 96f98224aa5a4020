//! Datagrams each way, as many as can be sent and then half of those that arrived, and round trips.

use std::io;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use netstack_tests::vpc::{self, Vpc};

use crate::Options;
use crate::row::{Row, median, quantile};
use crate::world::World;

pub(crate) fn rows(options: &Options) -> Result<Vec<Row>> {
    let world = World::tcp()?;
    let mut rows = Vec::new();
    for size in [64, 1400] {
        for way in [Way::Up, Way::Down] {
            rows.extend(one_way(&world.vpc, way, size, options)?);
        }
    }
    let (mut veth, mut tunnel) = (round_trips(&world.vpc, vpc::LINK)?, round_trips(&world.vpc, vpc::TARGET)?);
    for (name, at) in [("p50", 0.5), ("p99", 0.99)] {
        let (through, direct) = (quantile(&mut tunnel, at), quantile(&mut veth, at));
        rows.push(Row::new(format!("datagram there and back, {name}"), through, "us").base(direct));
    }
    Ok(rows)
}

fn one_way(world: &Vpc, way: Way, size: usize, options: &Options) -> Result<Vec<Row>> {
    let mut floods = [Vec::new(), Vec::new()];
    for _ in 0..options.rounds {
        for (host, floods) in [vpc::LINK, vpc::TARGET].into_iter().zip(&mut floods) {
            floods.push(pump(world, host, way, size, None)?);
        }
    }
    let of =
        |figure: fn(&Pumped) -> f64| floods.each_ref().map(|runs| median(runs.iter().map(figure).collect()));
    let ([veth, tunnel], [veth_lost, tunnel_lost]) = (of(Pumped::rate), of(Pumped::lost));
    let calm = pump(world, vpc::TARGET, way, size, Some(tunnel / 2.0))?;
    let named = |what: &str| format!("{size}-byte datagrams {}, {what}", ["up", "down"][way as usize]);
    let megabits = |rate: f64| rate * size as f64 * 8e-6;
    Ok(vec![
        Row::new(named("a flood arrives"), tunnel, "1/s").base(veth),
        Row::new(named("a flood arrives"), megabits(tunnel), "Mbit/s").base(megabits(veth)),
        Row::new(named("lost of a flood"), tunnel_lost, "%").base(veth_lost),
        Row::new(named("lost at half that pace"), calm.lost(), "%").at_most(1.0),
    ])
}

#[derive(Clone, Copy)]
enum Way {
    Up,
    Down,
}

/// What became of the datagrams of one run.
struct Pumped {
    sent: u32,
    arrived: u32,
    time: Duration,
}

impl Pumped {
    /// That arrived, a second.
    fn rate(&self) -> f64 {
        f64::from(self.arrived) / self.time.as_secs_f64()
    }

    /// Percent.
    fn lost(&self) -> f64 {
        100.0 - f64::from(self.arrived) / f64::from(self.sent) * 100.0
    }
}

/// Sends for a while, at this pace or as fast as it goes.
fn pump(world: &Vpc, host: &str, way: Way, size: usize, pace: Option<f64>) -> Result<Pumped> {
    let [near, far] = pair(world, host)?;
    let (from, to) = match way {
        Way::Up => (near, far),
        Way::Down => (far, near),
    };
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| count(&to));
        let began = Instant::now();
        let mut sent = 0;
        while began.elapsed() < TIME {
            let due = pace.map_or(f64::INFINITY, |pace| pace * began.elapsed().as_secs_f64());
            if f64::from(sent) < due {
                from.send(&PAYLOAD[..size])?;
                sent += 1;
            } else {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        let time = began.elapsed();
        let arrived = receiver.join().ok().context("the receiver failed")??;
        ensure!(arrived > 0, "no datagram arrived at {host}");
        Ok(Pumped { sent, arrived, time })
    })
}

/// Datagrams up to a silence.
fn count(socket: &UdpSocket) -> io::Result<u32> {
    socket.set_read_timeout(Some(SILENCE))?;
    let (mut arrived, mut buffer) = (0, [0; PAYLOAD.len()]);
    loop {
        match socket.recv(&mut buffer) {
            Ok(_) => arrived += 1,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(arrived),
            Err(error) => return Err(error),
        }
    }
}

/// Microseconds of each exchange of one datagram.
fn round_trips(world: &Vpc, host: &str) -> Result<Vec<f64>> {
    let [near, far] = pair(world, host)?;
    std::thread::scope(|scope| {
        scope.spawn(|| -> io::Result<()> {
            far.set_read_timeout(Some(SILENCE))?;
            let mut byte = [0];
            loop {
                far.recv(&mut byte)?;
                far.send(&byte)?;
            }
        });
        let (mut times, start) = (Vec::new(), Instant::now());
        while start.elapsed() < TIME {
            let began = Instant::now();
            near.send(&[7])?;
            near.recv(&mut [0]).context("a datagram did not come back")?;
            times.push(began.elapsed().as_secs_f64() * 1e6);
        }
        Ok(times)
    })
}

/// Two sockets that know each other: on the laptop, and at this address of the VPC.
fn pair(world: &Vpc, host: &str) -> Result<[UdpSocket; 2]> {
    let far = world.vpc.enter(|| UdpSocket::bind((host, 0)))?;
    let near = world.laptop.enter(|| UdpSocket::bind("0.0.0.0:0"))?;
    for socket in [&near, &far] {
        socket.set_read_timeout(Some(vpc::DEADLINE))?;
    }
    near.connect(far.local_addr()?)?;
    near.send(&[7])?;
    let (_, source) = far.recv_from(&mut [0]).context("the first datagram")?;
    far.connect(source)?;
    far.send(&[7])?;
    near.recv(&mut [0]).context("the first answer")?;
    Ok([near, far])
}

const PAYLOAD: [u8; 1400] = [7; 1400];
const TIME: Duration = Duration::from_secs(1);
/// After which nothing more comes.
const SILENCE: Duration = Duration::from_millis(300);
