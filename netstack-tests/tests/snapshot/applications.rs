//! Applications on a TCP stack of their own before the netstack.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use netstack_tests::app::{App, AppSocket};
use netstack_tests::link::{Faults, Link};
use ssm_proxy::netstack::{Config, Event, FlowId, Stack};

use crate::table::Table;

pub(crate) fn count(table: &mut Table) {
    for (mtu, megabytes) in [(65_535, 8), (1_500, 1)] {
        for (way, up, down) in [("up", megabytes, 0), ("down", 0, megabytes)] {
            let mut world = World::new(mtu, STEADY);
            world.connect(up << 20, down << 20);
            world.run();
            world.record(table, &format!("{megabytes} MiB {way}, MTU {mtu}"));
        }
    }
    lossy(table);
    connects(table);
    idle(table);
}

/// A path that loses, repeats and reorders.
pub(crate) fn lossy(table: &mut Table) {
    let jitter = Duration::from_micros(500);
    let mut world = World::new(1_500, Faults { lost: 10, repeated: 10, late: 50, jitter, ..STEADY });
    world.connect(1 << 20, 1 << 20);
    world.run();
    world.record(table, "1 MiB each way, MTU 1500, 1 % lost");
}

fn connects(table: &mut Table) {
    let mut world = World::new(65_535, STEADY);
    for _ in 0..500 {
        world.connect(100, 100);
        world.run();
        // The application's machine has its own sockets to wait for, which are not what is counted.
        world.connections.drain(..).for_each(|connection| world.app.forget(connection.socket));
    }
    world.record(table, "500 short connections");
}

/// What flows cost that say nothing.
fn idle(table: &mut Table) {
    let mut world = World::new(65_535, STEADY);
    world.keep_open = true;
    (0..100).for_each(|_| world.connect(100, 100));
    world.run();
    let (steps, timers) = (world.steps, world.timers);
    world.run_for(Duration::from_secs(600));
    table.add(
        "100 idle flows for 10 minutes",
        &[
            ("wake-ups", world.steps - steps),
            ("timers", world.timers - timers),
            ("rests", world.stack.counters().rests),
        ],
    );
}

struct World {
    now: Instant,
    stack: Stack,
    app: App,
    up: Link,
    down: Link,
    connections: Vec<Connection>,
    fars: BTreeMap<FlowId, Far>,
    next_port: u16,
    keep_open: bool,
    events: u64,
    timers: u64,
    steps: u64,
}

/// The application's side; it closes when it has sent and received all.
struct Connection {
    port: u16,
    socket: AppSocket,
    send: usize,
    receive: usize,
    closed: bool,
    /// What the far side has to give.
    answer: usize,
}

/// The owner's side; it takes all, and finishes when the application has.
struct Far {
    send: usize,
    readable: bool,
    finished: bool,
}

impl World {
    fn new(mtu: usize, faults: Faults) -> Self {
        let now = Instant::now();
        Self {
            now,
            stack: Stack::new(Config { mtu, seed: 7, ..Config::default() }, now),
            app: App::new(&[SOURCE.ip()], mtu, 1 << 20, 7, now),
            up: Link::new(faults, 1),
            down: Link::new(faults, 2),
            connections: Vec::new(),
            fars: BTreeMap::new(),
            next_port: SOURCE.port(),
            keep_open: false,
            events: 0,
            timers: 0,
            steps: 0,
        }
    }

    /// The application sends `send` bytes and gets `answer`.
    fn connect(&mut self, send: usize, answer: usize) {
        let port = self.next_port;
        self.next_port += 1;
        let source = SocketAddr::new(SOURCE.ip(), port);
        let socket = self.app.connect(source, TARGET).expect("the socket is new");
        self.connections.push(Connection { port, socket, send, receive: answer, closed: false, answer });
    }

    /// Runs until every connection is over, or has all its bytes when they are kept open.
    fn run(&mut self) {
        let limit = self.now + Duration::from_secs(600);
        while !self.is_done() {
            assert!(self.now < limit, "the scenario stalls");
            self.step(limit);
        }
    }

    fn is_done(&self) -> bool {
        let moved = self.connections.iter().all(|connection| connection.send + connection.receive == 0);
        let read = self.stack.counters().flows_pending == 0 && self.fars.values().all(|far| !far.readable);
        moved && read && (self.keep_open || self.fars.is_empty())
    }

    fn run_for(&mut self, time: Duration) {
        let limit = self.now + time;
        while self.now < limit {
            self.step(limit);
        }
    }

    /// Does what there is to do now, then goes on to when there is more.
    fn step(&mut self, limit: Instant) {
        self.steps += 1;
        let mut quiet = 0;
        while quiet < 2 {
            quiet = if self.turn() { 0 } else { quiet + 1 };
        }
        let soonest = self.now + Duration::from_micros(10);
        let times =
            [self.up.next(), self.down.next(), self.stack.poll_timeout(), self.app.poll_timeout(self.now)];
        let next = times.into_iter().flatten().min();
        self.now = next.unwrap_or(limit).max(soonest).min(limit.max(soonest));
    }

    /// As the engine does it.
    fn turn(&mut self) -> bool {
        let mut moved = false;
        while let Some(packet) = self.up.receive(self.now) {
            self.stack.handle_packet(&packet, self.now);
            moved = true;
        }
        if self.stack.poll_timeout().is_some_and(|at| at <= self.now) {
            self.stack.handle_timeout(self.now);
            self.timers += 1;
        }
        while let Some(event) = self.stack.poll_event() {
            self.handle_event(event);
            self.events += 1;
            moved = true;
        }
        moved |= self.serve_fars();
        let (down, now) = (&mut self.down, self.now);
        self.stack.poll_packet(now, &mut |packet| {
            down.send(packet, now);
            moved = true;
            true
        });
        moved | self.run_applications()
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Connect { flow, source, .. } => {
                let connection = self.connections.iter().find(|connection| connection.port == source.port());
                let send = connection.expect("nobody else connects").answer;
                self.fars.insert(flow, Far { send, readable: false, finished: false });
                self.stack.accept(flow, self.now);
            }
            Event::Readable { flow } => self.far(flow).readable = true,
            Event::Room { .. } => {}
            Event::Finished { flow } => self.far(flow).finished = true,
            Event::Reset { flow } => panic!("{flow:?} was reset"),
            Event::Closed { flow } => drop(self.fars.remove(&flow)),
        }
    }

    fn far(&mut self, flow: FlowId) -> &mut Far {
        self.fars.get_mut(&flow).expect("its connect was told")
    }

    fn serve_fars(&mut self) -> bool {
        let mut moved = false;
        let mut bytes = vec![7; 1 << 16];
        for (flow, far) in &mut self.fars {
            if far.readable {
                far.readable = self.stack.read(*flow, &mut bytes, self.now) > 0;
                moved = true;
            }
            let written = self.stack.write(*flow, &bytes[..far.send.min(bytes.len())], self.now);
            far.send -= written;
            moved |= written > 0;
            if far.send == 0 && std::mem::take(&mut far.finished) {
                self.stack.finish(*flow, self.now);
                moved = true;
            }
        }
        moved
    }

    fn run_applications(&mut self) -> bool {
        let mut moved = false;
        while let Some(packet) = self.down.receive(self.now) {
            self.app.handle_packet(packet);
            moved = true;
        }
        let mut bytes = vec![7; 1 << 16];
        for connection in self.connections.iter_mut().filter(|connection| !connection.closed) {
            let sent = self.app.send(connection.socket, &bytes[..connection.send.min(1 << 16)]);
            connection.send -= sent;
            let received = self.app.receive(connection.socket, &mut bytes);
            connection.receive -= received;
            moved |= sent + received > 0;
            if connection.send + connection.receive == 0 && !self.keep_open {
                self.app.close(connection.socket);
                connection.closed = true;
            }
        }
        for packet in self.app.poll(self.now) {
            self.up.send(&packet, self.now);
            moved = true;
        }
        moved
    }

    fn record(&self, table: &mut Table, scenario: &str) {
        self.stack.check_invariants();
        let counters = self.stack.counters();
        table.add(
            scenario,
            &[
                ("packets in", counters.packets_in),
                ("packets out", counters.packets_out),
                ("bytes out", counters.bytes_out),
                ("polls", counters.socket_polls),
                ("events", self.events),
                ("timers", self.timers),
                ("wake-ups", self.steps),
            ],
        );
    }
}

/// A path without faults; the delay makes batches, as a busy machine does.
const STEADY: Faults =
    Faults { delay: Duration::from_micros(50), lost: 0, repeated: 0, late: 0, jitter: Duration::ZERO };
const SOURCE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 99, 0, 1)), 20_000);
const TARGET: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 1, 5)), 5432);
