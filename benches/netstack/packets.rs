//! The cost of a packet and of a flow, beside any number of idle ones.

use std::time::Instant;

use smoltcp::wire::TcpControl;
use ssm_proxy::netstack::{Config, Event, FlowId, Stack};
use ssm_proxy::os::arena::Arena;

use crate::app::{App, IP, MOST, MTU, take_packets};
use crate::report::Report;

pub(crate) struct Bench {
    pub(crate) stack: Stack,
    idle: u16,
    app: App,
    flow: FlowId,
    buffer: Vec<u8>,
}

impl Bench {
    pub(crate) fn new(idle: u16) -> Self {
        // As `up` has it on Linux: the kernel's own packets need no check, but a sum for its firewall.
        let config = Config { mtu: MTU, seed: 7, verify_checksums: false, ..Config::default() };
        let memory = Box::new(Arena::new(config.rings()));
        let mut stack = Stack::with_memory(config, Some(memory), Instant::now());
        for port in 0..idle {
            App::open(&mut stack, FIRST_PORT + port);
        }
        let (app, flow) = App::open(&mut stack, FIRST_PORT - 1);
        Self { stack, idle, app, flow, buffer: vec![0; 1 << 20] }
    }

    pub(crate) fn one_flow(&mut self, report: &mut Report) {
        let idle = self.idle;
        for (name, size) in SIZES {
            let mut packet = self.app.data(size);
            let seconds = report.seconds_per_call(|| self.up(&mut packet, size));
            report.row(format!("up, {name}, {idle} idle"), seconds * 1e9, "ns/packet");
            if size > 1 {
                report.row(format!("up, {name}, {idle} idle"), size as f64 * 8e-9 / seconds, "Gbit/s");
            }
        }
        let mut ack = self.app.segment(TcpControl::None, &[]);
        for (name, size) in SIZES {
            let seconds = report.seconds_per_call(|| self.down(&mut ack, size));
            report.row(format!("down, {name}, {idle} idle"), seconds * 1e9, "ns/packet");
            if size > 1 {
                report.row(format!("down, {name}, {idle} idle"), size as f64 * 8e-9 / seconds, "Gbit/s");
            }
        }
    }

    /// One packet from the application, read whole, and the ACK for it.
    fn up(&mut self, packet: &mut [u8], size: usize) {
        let now = Instant::now();
        self.app.stamp(packet);
        self.stack.handle_packet(packet, now);
        while self.stack.poll_event().is_some() {}
        let mut read = 0;
        loop {
            let count = self.stack.read(self.flow, &mut self.buffer, now);
            read += count;
            if count == 0 {
                break;
            }
        }
        assert_eq!(read, size);
        self.app.sequence = self.app.sequence.wrapping_add(size as u32);
        let acknowledged = take_packets(&mut self.stack, now, |header| header.acknowledges);
        assert_eq!(acknowledged, Some(self.app.sequence));
    }

    /// One packet to the application, and its ACK.
    fn down(&mut self, ack: &mut [u8], size: usize) {
        let now = Instant::now();
        assert_eq!(self.stack.write(self.flow, &self.buffer[..size], now), size);
        let end = take_packets(&mut self.stack, now, |header| header.end);
        self.app.expected = self.app.expected.wrapping_add(size as u32);
        assert_eq!(end, Some(self.app.expected));
        self.app.stamp(ack);
        self.stack.handle_packet(ack, now);
        while self.stack.poll_event().is_some() {}
        take_packets(&mut self.stack, now, |_| ());
    }

    /// A flow that is opened, and one that is opened and reset by the application.
    pub(crate) fn set_up(&mut self, report: &mut Report) {
        let seconds = report.seconds_per_call(|| {
            let (app, flow) = App::open(&mut self.stack, CHURN_PORT);
            let reset = app.segment(TcpControl::Rst, &[]);
            self.stack.handle_packet(&reset, Instant::now());
            assert_eq!(self.stack.poll_event(), Some(Event::Reset { flow }));
        });
        report.row(format!("a flow opened and reset, {} idle", self.idle), seconds * 1e9, "ns");
    }
}

const FIRST_PORT: u16 = 2_000;
const CHURN_PORT: u16 = 1_000;
const SIZES: [(&str, usize); 3] =
    [("1-byte packets", 1), ("1500-byte packets", 1500 - IP - 20), ("64 KiB packets", MOST)];
