//! A TUN device of memory with applications behind it, each of which sends or takes all it can over one flow.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use smoltcp::wire::TcpControl;
use ssm_proxy::capture::tun::Device;
use ssm_proxy::os::tun::Incoming;

use crate::app::{App, IP, MOST, SYN};
use crate::engines::Way;

pub(crate) struct AppDevice(RefCell<State>);

struct State {
    /// By port, from [`FIRST_PORT`] on.
    applications: Vec<Application>,
    /// Which one sends next, if it has something to.
    turn: usize,
    reader: Option<Waker>,
    arrived: Arc<AtomicU64>,
}

struct Application {
    way: Way,
    app: App,
    /// Packets of the application, made once: the first, each of its data, each bare acknowledgement.
    syn: Option<Vec<u8>>,
    /// Fits into the window of the stack's SYN, which cannot be scaled.
    first: Option<Vec<u8>>,
    data: Vec<u8>,
    ack: Vec<u8>,
    /// The stack's SYN has come.
    open: bool,
    /// The stack waits for an acknowledgement.
    owes_ack: bool,
    acknowledged: u32,
    window: u32,
    window_scale: u8,
}

impl AppDevice {
    /// Adds what the applications get to `arrived`.
    pub(crate) fn new(flows: u16, way: Way, arrived: Arc<AtomicU64>) -> Self {
        let applications = (0..flows).map(|flow| Application::new(FIRST_PORT + flow, way)).collect();
        Self(RefCell::new(State { applications, turn: 0, reader: None, arrived }))
    }
}

impl State {
    fn has_packet(&self) -> bool {
        self.applications.iter().any(Application::has_packet)
    }

    /// Puts the next packet of any application into `buf`, each in its turn; 0 when none has one.
    fn next(&mut self, buf: &mut [u8]) -> usize {
        let count = self.applications.len();
        for _ in 0..count {
            self.turn = (self.turn + 1) % count;
            let length = self.applications[self.turn].next(buf);
            if length > 0 {
                return length;
            }
        }
        0
    }

    fn take(&mut self, packet: &[u8]) {
        let port = u16::from_be_bytes([packet[IP + 2], packet[IP + 3]]);
        let taken = self.applications[usize::from(port - FIRST_PORT)].take(&packet[IP..]);
        self.arrived.fetch_add(taken, Ordering::Relaxed);
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }
}

impl Application {
    fn new(port: u16, way: Way) -> Self {
        let mut app = App::new(port);
        let syn = Some(app.segment(TcpControl::Syn, &[]));
        app.sequence += 1;
        let first = (way == Way::Up).then(|| app.data(FIRST));
        let (data, ack) = (app.data(MOST), app.segment(TcpControl::None, &[]));
        let acknowledged = app.sequence;
        Self {
            way,
            app,
            syn,
            first,
            data,
            ack,
            open: false,
            owes_ack: false,
            acknowledged,
            window: 0,
            window_scale: 0,
        }
    }

    fn may_send(&self) -> bool {
        let in_flight = self.app.sequence.wrapping_sub(self.acknowledged);
        let length = if self.first.is_some() { FIRST } else { MOST };
        self.open && self.way == Way::Up && in_flight + length as u32 <= self.window
    }

    fn has_packet(&self) -> bool {
        self.syn.is_some() || self.owes_ack || self.may_send()
    }

    /// Puts the application's next packet into `buf`; 0 when it has none.
    fn next(&mut self, buf: &mut [u8]) -> usize {
        let may_send = self.may_send();
        if let Some(syn) = self.syn.take() {
            return put(&syn, buf);
        }
        if may_send && let Some(mut first) = self.first.take() {
            self.app.stamp(&mut first);
            self.app.sequence = self.app.sequence.wrapping_add(FIRST as u32);
            return put(&first, buf);
        }
        if may_send {
            self.app.stamp(&mut self.data);
            self.app.sequence = self.app.sequence.wrapping_add(MOST as u32);
            self.owes_ack = false;
            return put(&self.data, buf);
        }
        if std::mem::take(&mut self.owes_ack) {
            self.app.stamp(&mut self.ack);
            return put(&self.ack, buf);
        }
        0
    }

    /// Takes a segment; how many bytes of a download were in it.
    fn take(&mut self, tcp: &[u8]) -> u64 {
        let number = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
        let header = usize::from(tcp[12] >> 4) * 4;
        let mut length = (tcp.len() - header) as u32;
        let taken = if self.way == Way::Down { length.into() } else { 0 };
        if tcp[13] & SYN != 0 {
            self.open = true;
            self.app.expected = number(4);
            self.window_scale = scale(&tcp[20..header]);
            length += 1;
        }
        assert_eq!(number(4), self.app.expected, "the stack sends in order");
        self.app.expected = self.app.expected.wrapping_add(length);
        self.owes_ack |= length > 0;
        self.acknowledged = number(8);
        let shift = if tcp[13] & SYN == 0 { self.window_scale } else { 0 };
        self.window = u32::from(u16::from_be_bytes([tcp[14], tcp[15]])) << shift;
        taken
    }
}

/// Copies, as the kernel does.
fn put(packet: &[u8], buf: &mut [u8]) -> usize {
    buf[..packet.len()].copy_from_slice(packet);
    packet.len()
}

/// The window scale among TCP options; 0 without one.
fn scale(mut options: &[u8]) -> u8 {
    while let [kind, rest @ ..] = options {
        options = match (kind, rest) {
            (0, _) => break,
            (1, _) => rest,
            (3, [3, shift, ..]) => return *shift,
            (_, [length, ..]) => options.get(usize::from(*length).max(2)..).unwrap_or(&[]),
            (_, []) => break,
        };
    }
    0
}

impl Device for AppDevice {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.borrow_mut();
        if state.has_packet() {
            return Poll::Ready(Ok(()));
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    fn poll_writable(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn try_read(&self, buf: &mut [u8]) -> io::Result<Incoming> {
        match self.0.borrow_mut().next(buf) {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            length => Ok(Incoming { length, vouched: true }),
        }
    }

    fn try_write(&self, packet: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().take(packet);
        Ok(packet.len())
    }
}

const FIRST_PORT: u16 = 2_000;
/// Bytes of the first segment of data.
const FIRST: usize = 1_000;
