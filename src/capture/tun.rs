//! Packets in batches between the device and the netstack: the local ends of the client's engine.

use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::Instant;

use agent::local_end::{EndEvent, EndFigures, EndId, LocalEnds};
use agent::wire::open::{Open, Refusal, Target};

use crate::netstack::{Event, FlowId, Stack};
use crate::os::tun::{AsyncTun, Incoming};

/// What the capture asks of a TUN device; tests put memory in its place.
pub trait Device {
    /// Arms the waker for the next packet; `Ready` when one may be there.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Arms the waker for room; `Ready` when a packet may be taken.
    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn try_read(&self, buf: &mut [u8]) -> io::Result<Incoming>;
    fn try_write(&self, packet: &[u8]) -> io::Result<usize>;
}

impl Device for AsyncTun {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_readable(self, cx)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_writable(self, cx)
    }

    fn try_read(&self, buf: &mut [u8]) -> io::Result<Incoming> {
        Self::try_read(self, buf)
    }

    fn try_write(&self, packet: &[u8]) -> io::Result<usize> {
        Self::try_write(self, packet)
    }
}

/// A device and the netstack behind it.
pub struct Capture<D> {
    device: D,
    stack: Stack,
    packet: Box<[u8]>,
    /// The device failed for good; told once.
    failure: Option<io::Error>,
}

impl<D: Device> Capture<D> {
    pub fn new(device: D, stack: Stack, mtu: usize) -> Self {
        Self { device, stack, packet: vec![0; mtu.max(MIN_BUFFER)].into_boxed_slice(), failure: None }
    }

    fn read_packets(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        for read in 0..BATCH {
            match self.device.try_read(&mut self.packet) {
                Ok(Incoming { length, vouched: true }) => {
                    self.stack.handle_vouched_packet(&self.packet[..length], now);
                }
                Ok(Incoming { length, vouched: false }) => {
                    self.stack.handle_packet(&self.packet[..length], now);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match self.device.poll_readable(cx) {
                        Poll::Pending => return read > 0,
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(error)) => {
                            self.failure = Some(error);
                            return read > 0;
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.failure = Some(error);
                    return read > 0;
                }
            }
        }
        true
    }

    fn write_packets(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let Self { device, stack, .. } = self;
        let mut full = false;
        let mut moved = false;
        stack.poll_packet(now, &mut |packet| match device.try_write(packet) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                full = true;
                false
            }
            // A packet the device refuses is lost as on any network; TCP sends it again.
            Ok(_) | Err(_) => {
                moved = true;
                true
            }
        });
        if full {
            moved |= device.poll_writable(cx).is_ready();
        }
        moved
    }
}

impl<D: Device> LocalEnds for Capture<D> {
    fn open(&mut self, _open: &Open, _now: Instant) -> Result<EndId, Refusal> {
        Err(Refusal::Unsupported)
    }

    fn accept(&mut self, end: EndId, _local: SocketAddr, _remote: SocketAddr, now: Instant) {
        self.stack.accept(FlowId(end.0), now);
    }

    fn refuse(&mut self, end: EndId, refusal: Refusal, now: Instant) {
        self.stack.refuse(FlowId(end.0), refusal, now);
    }

    fn read(&mut self, end: EndId, buf: &mut [u8], now: Instant) -> usize {
        self.stack.read(FlowId(end.0), buf, now)
    }

    fn write(&mut self, end: EndId, bytes: &[u8], now: Instant) {
        let taken = self.stack.write(FlowId(end.0), bytes, now);
        debug_assert_eq!(taken, bytes.len(), "the engine never passes the room of an end");
    }

    fn room(&self, end: EndId) -> usize {
        self.stack.room(FlowId(end.0))
    }

    fn finish(&mut self, end: EndId, now: Instant) {
        self.stack.finish(FlowId(end.0), now);
    }

    fn reset(&mut self, end: EndId, now: Instant) {
        self.stack.reset(FlowId(end.0), now);
    }

    fn poll_event(&mut self) -> Option<EndEvent> {
        Some(match self.stack.poll_event()? {
            Event::Connect { flow, kind, source, target } => EndEvent::Wanted {
                end: EndId(flow.0),
                source,
                open: Open { kind, target: Target::Address(target.ip(), target.port()) },
            },
            Event::Readable { flow } => EndEvent::Readable { end: EndId(flow.0) },
            Event::Room { flow } => EndEvent::Room { end: EndId(flow.0) },
            Event::Finished { flow } => EndEvent::Finished { end: EndId(flow.0) },
            Event::Reset { flow } => EndEvent::Reset { end: EndId(flow.0) },
            Event::Closed { flow } => EndEvent::Closed { end: EndId(flow.0) },
        })
    }

    fn poll_io(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<()> {
        let written = self.write_packets(cx, now);
        let read = self.read_packets(cx, now);
        if written | read { Poll::Ready(()) } else { Poll::Pending }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.stack.poll_timeout()
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.stack.handle_timeout(now);
    }

    fn failure(&mut self) -> Option<String> {
        self.failure.take().map(|error| format!("the TUN device failed: {error}"))
    }

    fn figures(&self, end: EndId) -> EndFigures {
        self.stack.figures(FlowId(end.0))
    }

    fn counters(&self, tell: &mut dyn FnMut(&'static str, u64)) {
        let counters = self.stack.counters();
        tell("packets_in", counters.packets_in);
        tell("packets_out", counters.packets_out);
        tell("datagrams_up", counters.datagrams_up);
        tell("datagrams_lost_up", counters.datagrams_lost_up);
        tell("datagrams_down", counters.datagrams_down);
        tell("datagrams_lost_down", counters.datagrams_lost_down);
        tell("associations_evicted", counters.associations_evicted);
        tell("messages_broken", counters.messages_broken);
        tell("udp_unreachable", counters.udp_unreachable);
        tell("echo_unreachable", counters.echo_unreachable);
        tell("echo_prohibited", counters.echo_prohibited.into());
        tell("stray_segments", counters.stray_segments);
        for (reason, count) in counters.drops().filter(|(_, count)| *count > 0) {
            tell(reason.name(), count);
        }
    }
}

/// Packets read in a row before anything else of the loop runs.
const BATCH: usize = 32;
/// A device may hand over more than its MTU when somebody raises it from outside.
const MIN_BUFFER: usize = 65_536;
