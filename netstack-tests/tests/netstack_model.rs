//! The netstack against a model: a second TCP stack as the application's machine, on links that lose, repeat and delay, in
//! virtual time. Whatever the network does, each byte arrives once, in order, both ways, and each end is told of.

#![allow(clippy::disallowed_methods)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use netstack_tests::app::{App, AppSocket};
use netstack_tests::link::{Faults, Link, Random};
use smoltcp::socket::tcp::State;
use ssm_proxy::netstack::{Config, Event, FlowId, Stack};

#[test]
fn bytes_and_ends_arrive_whatever_the_network_does() {
    let number = |name: &str, otherwise: u64| {
        std::env::var(name)
            .map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
    };
    let first = number("MODEL_SEED", 1);
    for seed in first..first + number("MODEL_CASES", 150) {
        if catch_unwind(AssertUnwindSafe(|| World::new(seed).play())).is_err() {
            panic!("MODEL_SEED={seed} breaks it");
        }
    }
}

struct World {
    seed: u64,
    now: Instant,
    random: Random,
    app: App,
    up: Link,
    down: Link,
    stack: Stack,
    conversations: Vec<Conversation>,
    by_flow: HashMap<FlowId, usize>,
}

/// One connection: what each side says, how far it is, and who says goodbye when.
struct Conversation {
    socket: AppSocket,
    source: SocketAddr,
    up: Vec<u8>,
    down: Vec<u8>,
    app_sent: usize,
    app_got: Vec<u8>,
    app_closed: bool,
    /// The application's side says no more only after it has heard the other's end, and the reverse.
    app_waits: bool,
    far_waits: bool,
    far: Far,
}

#[derive(Default)]
struct Far {
    flow: Option<FlowId>,
    sent: usize,
    got: Vec<u8>,
    readable: bool,
    finished: bool,
    finish_sent: bool,
    closed: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let now = Instant::now();
        let mut random = Random::new(seed);
        let bad = |random: &mut Random, most| if random.odds(300) { 0 } else { random.below(most) as u32 };
        let faults = Faults {
            delay: Duration::from_micros(random.below(20_000)),
            lost: bad(&mut random, 80),
            repeated: bad(&mut random, 100),
            late: bad(&mut random, 300),
            jitter: Duration::from_micros(random.below(30_000)),
        };
        let one = |random: &mut Random, of: &[usize]| of[random.below(of.len() as u64) as usize];
        let mtu = one(&mut random, &[1280, 1500, 9000, 65_535]);
        let ring = one(&mut random, &[4096, 20_000, 65_535, 262_140]);
        let config = Config {
            mtu,
            receive_ring: one(&mut random, &[4096, 65_535, 100_000, 524_288]),
            send_ring: one(&mut random, &[4096, 70_000, 1 << 20]),
            seed,
            ..Config::default()
        };
        let addresses = ["10.99.0.1", "fd00:99::1"].map(|address| address.parse().expect("an address"));
        Self {
            seed,
            now,
            app: App::new(&addresses, mtu, ring, seed + 100, now),
            up: Link::new(faults, seed + 1),
            down: Link::new(faults, seed + 2),
            stack: Stack::new(config, now),
            random,
            conversations: Vec::new(),
            by_flow: HashMap::new(),
        }
    }

    fn play(mut self) {
        for number in 0..1 + self.random.below(4) {
            self.begin(number as u16);
        }
        let limit = self.now + Duration::from_secs(900);
        while !self.conversations.iter().all(|conversation| conversation.is_done(&self.app)) {
            self.settle();
            self.now = self.next();
            assert!(self.now < limit, "seed {}: {}", self.seed, self.standing());
        }
        for Conversation { up, down, app_got, far, .. } in &self.conversations {
            assert!(far.got == *up, "seed {}: other bytes came up", self.seed);
            assert!(app_got == down, "seed {}: other bytes came down", self.seed);
        }
        assert_eq!(self.stack.counters().flows_now, 0, "seed {}", self.seed);
        self.stack.check_invariants();
    }

    fn begin(&mut self, number: u16) {
        let (source, target) = if self.random.odds(500) {
            ("10.99.0.1:0", "10.0.1.5:443")
        } else {
            ("[fd00:99::1]:0", "[fd00:1::5]:443")
        };
        let mut source: SocketAddr = source.parse().expect("an address");
        source.set_port(40_000 + number);
        let socket =
            self.app.connect(source, target.parse().expect("an address")).expect("the socket is new");
        self.app.keep_alive(socket);
        let length = |random: &mut Random| if random.odds(200) { 0 } else { random.below(400_000) as usize };
        let (up, down) = (length(&mut self.random), length(&mut self.random));
        // If both waited for the other's end there would be none.
        let (app_waits, far_waits) =
            [(false, false), (true, false), (false, true)][self.random.below(3) as usize];
        self.conversations.push(Conversation {
            socket,
            source,
            up: self.random.bytes(up),
            down: self.random.bytes(down),
            app_sent: 0,
            app_got: Vec::new(),
            app_closed: false,
            app_waits,
            far_waits,
            far: Far::default(),
        });
    }

    fn settle(&mut self) {
        for _ in 0..4 {
            while let Some(packet) = self.up.receive(self.now) {
                self.stack.handle_packet(&packet, self.now);
            }
            if self.stack.poll_timeout().is_some_and(|at| at <= self.now) {
                self.stack.handle_timeout(self.now);
            }
            while let Some(event) = self.stack.poll_event() {
                self.hear(event);
            }
            self.move_far();
            let (down, now) = (&mut self.down, self.now);
            self.stack.poll_packet(now, &mut |packet| {
                down.send(packet, now);
                true
            });
            while let Some(packet) = self.down.receive(self.now) {
                self.app.handle_packet(packet);
            }
            self.move_app();
            for packet in self.app.poll(self.now) {
                self.up.send(&packet, self.now);
            }
        }
        self.stack.check_invariants();
    }

    fn hear(&mut self, event: Event) {
        if let Event::Connect { flow, source, .. } = event {
            let at = self.conversations.iter().position(|conversation| conversation.source == source);
            let at = at.expect("only these sources connect");
            let far = &mut self.conversations[at].far;
            assert!(far.flow.is_none(), "seed {}: one connection was asked for twice", self.seed);
            far.flow = Some(flow);
            self.by_flow.insert(flow, at);
            return self.stack.accept(flow, self.now);
        }
        let (Event::Connect { flow, .. }
        | Event::Readable { flow }
        | Event::Room { flow }
        | Event::Finished { flow }
        | Event::Reset { flow }
        | Event::Closed { flow }) = event;
        let far = &mut self.conversations[self.by_flow[&flow]].far;
        match event {
            Event::Readable { .. } => far.readable = true,
            Event::Connect { .. } | Event::Room { .. } => {}
            Event::Finished { .. } => far.finished = true,
            Event::Reset { .. } => panic!("seed {}: nobody reset it: {}", self.seed, self.standing()),
            Event::Closed { .. } => {
                assert!(far.finished && far.finish_sent, "seed {}: closed too early", self.seed);
                far.closed = true;
                self.by_flow.remove(&flow);
            }
        }
    }

    fn move_far(&mut self) {
        let now = self.now;
        for Conversation { down, far, far_waits, .. } in &mut self.conversations {
            let Some(flow) = far.flow.filter(|_| !far.closed) else { continue };
            // At times a reader is slow.
            if far.readable && !self.random.odds(400) {
                let mut buf = vec![0; 1 + self.random.below(100_000) as usize];
                let count = self.stack.read(flow, &mut buf, now);
                assert!(count == 0 || !far.finished, "bytes after the end");
                far.got.extend_from_slice(&buf[..count]);
                far.readable = count > 0;
            }
            let most = down.len().min(far.sent + 1 + self.random.below(100_000) as usize);
            far.sent += self.stack.write(flow, &down[far.sent..most], now);
            if far.sent == down.len()
                && !far.finish_sent
                && (far.finished || !*far_waits)
                && self.stack.room(flow) > 0
            {
                far.finish_sent = true;
                self.stack.finish(flow, now);
            }
        }
    }

    fn move_app(&mut self) {
        for conversation in &mut self.conversations {
            let socket = conversation.socket;
            let most = conversation.up.len();
            conversation.app_sent += self.app.send(socket, &conversation.up[conversation.app_sent..most]);
            if !self.random.odds(400) {
                let mut buf = vec![0; 1 + self.random.below(100_000) as usize];
                let count = self.app.receive(socket, &mut buf);
                conversation.app_got.extend_from_slice(&buf[..count]);
            }
            let open = matches!(self.app.state(socket), State::Established | State::CloseWait);
            let heard = self.app.is_finished(socket) || !conversation.app_waits;
            if open && !conversation.app_closed && conversation.app_sent == most && heard {
                conversation.app_closed = true;
                self.app.close(socket);
            }
        }
    }

    fn next(&mut self) -> Instant {
        let soonest = self.now + Duration::from_micros(500);
        let times =
            [self.up.next(), self.down.next(), self.stack.poll_timeout(), self.app.poll_timeout(self.now)];
        // A slow reader looks again after a while.
        let next =
            times.into_iter().flatten().min().unwrap_or(soonest).min(self.now + Duration::from_millis(50));
        next.max(soonest)
    }

    fn standing(&self) -> String {
        let each = self.conversations.iter().map(|conversation| {
            let Conversation { up, down, app_sent, app_got, far, .. } = conversation;
            let state = self.app.state(conversation.socket);
            format!(
                "{state:?}: up {}/{app_sent}/{}, down {}/{}/{}, far finished {} finish sent {} closed {}",
                far.got.len(),
                up.len(),
                app_got.len(),
                far.sent,
                down.len(),
                far.finished,
                far.finish_sent,
                far.closed
            )
        });
        each.collect::<Vec<_>>().join("; ")
    }
}

impl Conversation {
    fn is_done(&self, app: &App) -> bool {
        let read = self.app_got.len() >= self.down.len();
        read && self.far.closed && matches!(app.state(self.socket), State::Closed | State::TimeWait)
    }
}
