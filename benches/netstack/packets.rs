//! The cost of a packet and of a flow, beside busy and idle ones.

use std::time::Instant;

use smoltcp::wire::TcpControl;
use ssm_proxy::netstack::{Config, Event, FlowId, Stack};
use ssm_proxy::os::arena::Arena;

use crate::app::{App, IP, MOST, MTU, take_packets};
use crate::report::Report;
use crate::report::row::Row;

pub(crate) fn rows(report: &mut Report) {
    let mut bench = Bench::new(1, 0);
    bench.set_up(report, 0);
    for idle in [1_000, 10_000] {
        let mut beside = Bench::new(1, idle);
        let [alone, paces] = paces_of_both(report, &mut bench, &mut beside);
        tell(report, &format!("1 flow beside {idle} idle"), &paces, Some(&alone));
        beside.set_up(report, idle);
    }
    for busy in [1, 8, 64] {
        let paces = Bench::new(busy, 0).paces(report);
        tell(report, &format!("{busy} flow{}", if busy == 1 { "" } else { "s" }), &paces, None);
    }
}

fn paces_of_both(report: &Report, one: &mut Bench, other: &mut Bench) -> [Paces; 2] {
    let mut paces = [Paces::default(); 2];
    for (at, (_, size)) in SIZES.into_iter().enumerate() {
        for (way, turn) in [Bench::up, Bench::down].into_iter().enumerate() {
            let works = [&mut *one, &mut *other].map(|bench| {
                bench.prepare(size);
                move || turn(bench, size)
            });
            let seconds = report.seconds_per_call_of_both(works);
            paces.iter_mut().zip(seconds).for_each(|(paces, seconds)| paces[way][at] = seconds);
        }
    }
    paces
}

/// Beside what it is alone, if anything is beside it.
fn tell(report: &mut Report, flows: &str, paces: &Paces, alone: Option<&Paces>) {
    for (way, name) in ["up", "down"].into_iter().enumerate() {
        for (at, (size, bytes)) in SIZES.into_iter().enumerate() {
            let what = format!("{flows} {name}, {size}");
            let (seconds, alone) = (paces[way][at], alone.map(|alone| alone[way][at]));
            let nanos = Row::new(&what, seconds * 1e9, "ns/packet");
            report.add(match alone {
                Some(alone) => nanos.base(alone * 1e9).at_most(alone * 1e9 * 1.1),
                None => nanos,
            });
            if bytes > 1 {
                let gbit = |seconds: f64| bytes as f64 * 8e-9 / seconds;
                let pace = Row::new(&what, gbit(seconds), "Gbit/s");
                report.add(match alone {
                    Some(alone) => pace.base(gbit(alone)).share(0.95),
                    None => pace,
                });
            }
        }
    }
}

/// Seconds for a packet: up, then down, by size.
type Paces = [[f64; SIZES.len()]; 2];

pub(crate) struct Bench {
    pub(crate) stack: Stack,
    busy: Vec<Busy>,
    /// Which flow is used next.
    turn: usize,
    buffer: Vec<u8>,
}

struct Busy {
    app: App,
    flow: FlowId,
    /// Packets made once: of data, and a bare acknowledgement.
    data: Vec<u8>,
    ack: Vec<u8>,
}

impl Bench {
    pub(crate) fn new(busy: u16, idle: u16) -> Self {
        // As `up` has it on Linux: the kernel's own packets need no check, but a sum for its firewall.
        let config = Config { mtu: MTU, seed: 7, verify_checksums: false, ..Config::default() };
        let memory = Box::new(Arena::new(config.rings()));
        let mut stack = Stack::with_memory(config, Some(memory), Instant::now());
        for port in 0..idle {
            App::open(&mut stack, FIRST_PORT + port);
        }
        let mut open = |port| {
            let (app, flow) = App::open(&mut stack, port);
            let ack = app.segment(TcpControl::None, &[]);
            Busy { app, flow, data: Vec::new(), ack }
        };
        let busy = (1..=busy).map(|port| open(FIRST_PORT - port)).collect();
        Self { stack, busy, turn: 0, buffer: vec![0; 1 << 20] }
    }

    fn paces(&mut self, report: &Report) -> Paces {
        let up = SIZES.map(|(_, size)| {
            self.prepare(size);
            report.seconds_per_call(|| self.up(size))
        });
        [up, SIZES.map(|(_, size)| report.seconds_per_call(|| self.down(size)))]
    }

    /// Makes the packets for [`up`](Self::up).
    fn prepare(&mut self, size: usize) {
        self.busy.iter_mut().for_each(|busy| busy.data = busy.app.data(size));
    }

    /// One packet from an application, read whole, and the ACK for it.
    fn up(&mut self, size: usize) {
        let now = Instant::now();
        let Self { stack, busy, turn, buffer } = self;
        *turn = (*turn + 1) % busy.len();
        let Busy { app, flow, data, .. } = &mut busy[*turn];
        app.stamp(data);
        stack.handle_packet(data, now);
        while stack.poll_event().is_some() {}
        let mut read = 0;
        loop {
            let count = stack.read(*flow, buffer, now);
            read += count;
            if count == 0 {
                break;
            }
        }
        assert_eq!(read, size);
        app.sequence = app.sequence.wrapping_add(size as u32);
        let acknowledged = take_packets(stack, now, |header| header.acknowledges);
        assert_eq!(acknowledged, Some(app.sequence));
    }

    /// One packet to an application, and its ACK.
    fn down(&mut self, size: usize) {
        let now = Instant::now();
        let Self { stack, busy, turn, buffer } = self;
        *turn = (*turn + 1) % busy.len();
        let Busy { app, flow, ack, .. } = &mut busy[*turn];
        assert_eq!(stack.write(*flow, &buffer[..size], now), size);
        let end = take_packets(stack, now, |header| header.end);
        app.expected = app.expected.wrapping_add(size as u32);
        assert_eq!(end, Some(app.expected));
        app.stamp(ack);
        stack.handle_packet(ack, now);
        while stack.poll_event().is_some() {}
        take_packets(stack, now, |_| ());
    }

    /// A flow that is opened, and one that is opened and reset by the application.
    fn set_up(&mut self, report: &mut Report, idle: u16) {
        let seconds = report.seconds_per_call(|| {
            let (app, flow) = App::open(&mut self.stack, CHURN_PORT);
            let reset = app.segment(TcpControl::Rst, &[]);
            self.stack.handle_packet(&reset, Instant::now());
            assert_eq!(self.stack.poll_event(), Some(Event::Reset { flow }));
        });
        report.row(format!("a flow opened and reset, {idle} idle"), seconds * 1e9, "ns");
    }
}

const FIRST_PORT: u16 = 2_000;
const CHURN_PORT: u16 = 1_000;
const SIZES: [(&str, usize); 3] =
    [("1-byte packets", 1), ("1500-byte packets", 1500 - IP - 20), ("64 KiB packets", MOST)];
