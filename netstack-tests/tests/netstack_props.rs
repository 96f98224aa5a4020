//! Any packets, in any order, with any owner: the netstack does not panic, its table stays whole, and its
//! events keep their rules.

#![allow(clippy::disallowed_methods)]

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use agent::wire::open::Refusal;
use netstack_tests::app::RawSegment;
use proptest::prelude::*;
use smoltcp::wire::{TcpControl, TcpPacket};
use ssm_proxy::netstack::{Config, Event, FlowId, Stack};

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_panic_it(packets in prop::collection::vec(garbage(), 1..20), verify in any::<bool>()) {
        let now = Instant::now();
        let mut stack = Stack::new(Config { verify_checksums: verify, ..config() }, now);
        for packet in packets {
            stack.handle_packet(&packet, now);
            stack.poll_packet(now, &mut |_| true);
            stack.check_invariants();
        }
    }

    #[test]
    fn no_exchange_panics_it(steps in prop::collection::vec(step(), 1..120)) {
        let mut run = Run::new();
        for step in steps {
            run.take(step);
            run.stack.check_invariants();
        }
        run.wind_up();
    }
}

/// One thing that happens, on the machine's or the owner's side. `peer` picks a tuple, `pick` a live flow.
#[derive(Clone, Debug)]
enum Step {
    /// A whole handshake, as far as the bounds allow.
    Open {
        peer: u8,
    },
    Segment {
        peer: u8,
        control: TcpControl,
        seq: Place,
        ack: Option<Place>,
        window: u16,
        data: u16,
    },
    Edited {
        peer: u8,
        edits: Vec<(u8, u8)>,
    },
    Accept {
        pick: u8,
    },
    Refuse {
        pick: u8,
        why: Refusal,
    },
    Read {
        pick: u8,
        most: u16,
    },
    Write {
        pick: u8,
        count: u16,
    },
    Finish {
        pick: u8,
    },
    Reset {
        pick: u8,
    },
    Wait {
        millis: u32,
    },
    Flush {
        most: u8,
    },
    Events,
}

/// A sequence number: near the one that fits, or anywhere.
#[derive(Clone, Copy, Debug)]
enum Place {
    Fits,
    Near(i16),
    Window(i32),
    Any(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let control = prop_oneof![
        5 => Just(TcpControl::None),
        2 => Just(TcpControl::Psh),
        3 => Just(TcpControl::Syn),
        2 => Just(TcpControl::Fin),
        1 => Just(TcpControl::Rst),
    ];
    let ack = prop_oneof![1 => Just(None), 6 => place().prop_map(Some)];
    let data =
        prop_oneof![2 => Just(0), 2 => 0..2000u16, 1 => any::<u16>().prop_map(|data| data.min(60_000))];
    let window = prop_oneof![1 => Just(0), 3 => any::<u16>()];
    let segment = (0..6u8, control, place(), ack, window, data);
    prop_oneof![
        5 => (0..6u8).prop_map(|peer| Step::Open { peer }),
        12 => segment.prop_map(|(peer, control, seq, ack, window, data)| {
            Step::Segment { peer, control, seq, ack, window, data }
        }),
        1 => (0..6u8, prop::collection::vec((0..80u8, any::<u8>()), 1..4))
            .prop_map(|(peer, edits)| Step::Edited { peer, edits }),
        4 => any::<u8>().prop_map(|pick| Step::Accept { pick }),
        1 => (any::<u8>(), refusal()).prop_map(|(pick, why)| Step::Refuse { pick, why }),
        4 => (any::<u8>(), any::<u16>()).prop_map(|(pick, most)| Step::Read { pick, most }),
        4 => (any::<u8>(), any::<u16>()).prop_map(|(pick, count)| Step::Write { pick, count }),
        2 => any::<u8>().prop_map(|pick| Step::Finish { pick }),
        1 => any::<u8>().prop_map(|pick| Step::Reset { pick }),
        2 => prop_oneof![0..2000u32, 0..200_000u32].prop_map(|millis| Step::Wait { millis }),
        5 => prop_oneof![1 => 0..4u8, 3 => Just(255)].prop_map(|most| Step::Flush { most }),
        5 => Just(Step::Events),
    ]
}

fn place() -> impl Strategy<Value = Place> {
    prop_oneof![
        8 => Just(Place::Fits),
        2 => any::<i16>().prop_map(Place::Near),
        1 => (-70_000..1_100_000i32).prop_map(Place::Window),
        1 => any::<u32>().prop_map(Place::Any),
    ]
}

fn refusal() -> impl Strategy<Value = Refusal> {
    prop::sample::select(vec![
        Refusal::Refused,
        Refusal::NetUnreachable,
        Refusal::HostUnreachable,
        Refusal::Prohibited,
        Refusal::TimedOut,
        Refusal::Denied,
        Refusal::Exhausted,
        Refusal::UnknownName,
        Refusal::Unsupported,
    ])
}

/// Bytes that look more or less like a packet.
fn garbage() -> impl Strategy<Value = Vec<u8>> {
    let body = || prop::collection::vec(any::<u8>(), 0..120);
    prop_oneof![
        body(),
        (body(), prop::sample::select(vec![1u8, 6, 17, 2])).prop_map(|(mut bytes, protocol)| {
            let total = bytes.len() as u16;
            edit(&mut bytes, &[(0, 0x45), (2, (total >> 8) as u8), (3, total as u8), (6, 0), (7, 0)]);
            edit(&mut bytes, &[(9, protocol), (12, 10), (16, 10), (32, 0x50)]);
            bytes
        }),
        (body(), prop::sample::select(vec![0u8, 6, 17, 44, 58])).prop_map(|(mut bytes, next)| {
            let payload = bytes.len().saturating_sub(40) as u16;
            edit(&mut bytes, &[(0, 0x60), (4, (payload >> 8) as u8), (5, payload as u8), (6, next)]);
            edit(&mut bytes, &[(8, 0xfd), (24, 0xfd), (52, 0x50)]);
            bytes
        }),
    ]
}

fn edit(bytes: &mut [u8], edits: &[(u8, u8)]) {
    for (at, byte) in edits {
        if let Some(place) = bytes.get_mut(usize::from(*at)) {
            *place = *byte;
        }
    }
}

fn config() -> Config {
    Config {
        mtu: 1500,
        receive_ring: 140_000,
        send_ring: 70_000,
        max_flows: 5,
        max_pending: 3,
        seed: 7,
        verify_checksums: false,
        emit_checksums: true,
        ..Config::default()
    }
}

struct Run {
    now: Instant,
    stack: Stack,
    /// What each tuple should send next, and what it should acknowledge.
    numbers: HashMap<(SocketAddr, SocketAddr), (u32, u32)>,
    flows: Vec<(FlowId, Owned)>,
}

/// What the owner knows of a flow.
#[derive(Default)]
struct Owned {
    accepted: bool,
    readable: bool,
    finished: bool,
    finish_sent: bool,
}

impl Run {
    fn new() -> Self {
        let now = Instant::now();
        Self { now, stack: Stack::new(config(), now), numbers: HashMap::new(), flows: Vec::new() }
    }

    fn take(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::Open { peer } => self.open(peer),
            Step::Segment { peer, control, seq, ack, window, data } => {
                self.segment(peer, control, (seq, ack), window, data);
            }
            Step::Edited { peer, edits } => {
                let (source, target) = addresses(peer);
                let segment = RawSegment {
                    source,
                    target,
                    control: TcpControl::Syn,
                    seq: 1000,
                    ack: None,
                    window: 1000,
                    data: b"",
                };
                let mut packet = segment.packet();
                edit(&mut packet, &edits);
                self.stack.handle_packet(&packet, now);
            }
            Step::Accept { pick } => {
                if let Some((flow, owned)) = self.pick(pick) {
                    owned.accepted = true;
                    let flow = *flow;
                    self.stack.accept(flow, now);
                }
            }
            Step::Refuse { pick, why } => {
                if let Some(at) = self.index(pick) {
                    let (flow, _) = self.flows.swap_remove(at);
                    self.stack.refuse(flow, why, now);
                }
            }
            Step::Read { pick, most } => self.read(pick, most),
            Step::Write { pick, count } => {
                if let Some((flow, _)) = self.pick(pick) {
                    let flow = *flow;
                    let room = self.stack.room(flow);
                    let taken = self.stack.write(flow, &vec![1; usize::from(count)], now);
                    assert_eq!(taken, room.min(usize::from(count)));
                }
            }
            Step::Finish { pick } => {
                if let Some((flow, owned)) = self.pick(pick)
                    && owned.accepted
                {
                    owned.finish_sent = true;
                    let flow = *flow;
                    self.stack.finish(flow, now);
                }
            }
            Step::Reset { pick } => {
                if let Some(at) = self.index(pick) {
                    let (flow, _) = self.flows.swap_remove(at);
                    self.stack.reset(flow, now);
                }
            }
            Step::Wait { millis } => {
                self.now += Duration::from_millis(millis.into());
                if self.stack.poll_timeout().is_some_and(|at| at <= self.now) {
                    self.stack.handle_timeout(self.now);
                    assert!(self.stack.poll_timeout().is_none_or(|at| at > self.now));
                }
            }
            Step::Flush { most } => self.flush(most.into()),
            Step::Events => self.events(),
        }
    }

    fn open(&mut self, peer: u8) {
        let place = (Place::Any(1000), None);
        self.segment(peer, TcpControl::Syn, place, 60_000, 0);
        self.events();
        for (flow, owned) in &mut self.flows {
            owned.accepted = true;
            self.stack.accept(*flow, self.now);
        }
        self.flush(usize::MAX);
        self.segment(peer, TcpControl::None, (Place::Fits, Some(Place::Fits)), 60_000, 100);
        self.events();
    }

    fn segment(
        &mut self,
        peer: u8,
        control: TcpControl,
        (seq, ack): (Place, Option<Place>),
        window: u16,
        data: u16,
    ) {
        let (source, target) = addresses(peer);
        let (fits_seq, fits_ack) = self.numbers.get(&(source, target)).copied().unwrap_or((1000, 0));
        let data = vec![peer; usize::from(data)];
        let seq = seq.resolve(fits_seq);
        let ack = ack.map(|ack| ack.resolve(fits_ack));
        let segment = RawSegment { source, target, control, seq, ack, window, data: &data };
        self.stack.handle_packet(&segment.packet(), self.now);
    }

    fn read(&mut self, pick: u8, most: u16) {
        let Some(at) = self.index(pick) else { return };
        let (flow, owned) = &mut self.flows[at];
        let mut buf = vec![0; usize::from(most) + 1];
        let count = self.stack.read(*flow, &mut buf, self.now);
        assert!(count == 0 || !owned.finished, "bytes after the finish");
        if count == 0 {
            owned.readable = false;
        }
    }

    fn flush(&mut self, most: usize) {
        let mut left = most;
        let numbers = &mut self.numbers;
        self.stack.poll_packet(self.now, &mut |packet| {
            if left == 0 {
                return false;
            }
            left -= 1;
            note(numbers, packet);
            true
        });
    }

    fn events(&mut self) {
        while let Some(event) = self.stack.poll_event() {
            let (Event::Connect { flow, .. }
            | Event::Readable { flow }
            | Event::Room { flow }
            | Event::Finished { flow }
            | Event::Reset { flow }
            | Event::Closed { flow }) = event;
            let at = self.flows.iter().position(|(known, _)| *known == flow);
            if matches!(event, Event::Connect { .. }) {
                assert!(at.is_none(), "{flow:?} is used twice");
                self.flows.push((flow, Owned::default()));
                continue;
            }
            let at = at.unwrap_or_else(|| panic!("{event:?} of a flow that is gone"));
            let owned = &mut self.flows[at].1;
            match event {
                Event::Connect { .. } => {}
                Event::Readable { .. } => {
                    assert!(!std::mem::replace(&mut owned.readable, true), "readable twice");
                    assert!(!owned.finished);
                }
                Event::Room { .. } => assert!(owned.accepted),
                Event::Finished { .. } => {
                    assert!(!std::mem::replace(&mut owned.finished, true), "finished twice");
                }
                Event::Reset { .. } => {
                    self.flows.swap_remove(at);
                }
                Event::Closed { .. } => {
                    assert!(owned.finished && owned.finish_sent);
                    self.flows.swap_remove(at);
                }
            }
        }
    }

    /// The machine falls silent and the owner ends what it has: nothing may be left.
    fn wind_up(mut self) {
        self.events();
        for (flow, _) in std::mem::take(&mut self.flows) {
            self.stack.reset(flow, self.now);
        }
        self.flush(usize::MAX);
        self.events();
        self.stack.check_invariants();
        assert_eq!(self.stack.counters().flows_now, 0);
        while let Some(at) = self.stack.poll_timeout() {
            self.now = at;
            self.stack.handle_timeout(at);
        }
        while self.stack.wants_poll() {
            self.flush(usize::MAX);
        }
    }

    fn index(&self, pick: u8) -> Option<usize> {
        (!self.flows.is_empty()).then(|| usize::from(pick) % self.flows.len())
    }

    fn pick(&mut self, pick: u8) -> Option<&mut (FlowId, Owned)> {
        let at = self.index(pick)?;
        self.flows.get_mut(at)
    }
}

impl Place {
    fn resolve(self, fits: u32) -> u32 {
        match self {
            Self::Fits => fits,
            Self::Near(by) => fits.wrapping_add_signed(by.into()),
            Self::Window(by) => fits.wrapping_add_signed(by),
            Self::Any(number) => number,
        }
    }
}

fn addresses(peer: u8) -> (SocketAddr, SocketAddr) {
    let (source, target): (IpAddr, IpAddr) = if peer < 3 {
        ([10, 99, 0, 1].into(), [10, 0, 1, 5].into())
    } else {
        ([0xfd00, 0, 0, 0, 0, 0, 0, 1].into(), [0xfd00, 1, 0, 0, 0, 0, 0, 5].into())
    };
    (SocketAddr::new(source, 40_000 + u16::from(peer)), SocketAddr::new(target, 443))
}

/// Reads from a packet to the machine what would fit as an answer.
fn note(numbers: &mut HashMap<(SocketAddr, SocketAddr), (u32, u32)>, packet: &[u8]) {
    let (header, protocol) = if packet[0] >> 4 == 4 { (20, packet[9]) } else { (40, packet[6]) };
    if protocol != 6 {
        return;
    }
    let tcp = TcpPacket::new_checked(&packet[header..]).expect("the stack sends sound packets");
    if tcp.ack() && !tcp.rst() {
        let peer = tcp.dst_port().wrapping_sub(40_000) as u8;
        let length = tcp.segment_len() as u32;
        let next = (tcp.seq_number().0 as u32).wrapping_add(length);
        numbers.insert(addresses(peer), (tcp.ack_number().0 as u32, next));
    }
}
