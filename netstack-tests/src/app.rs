//! Pure: an application's machine: TCP connections on a smoltcp stack of their own, in virtual time.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::phy::{DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{ConnectError, Socket, SocketBuffer, State};
use smoltcp::wire::{
    HardwareAddress, IpAddress, IpCidr, IpProtocol, IpRepr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};

/// One of the application's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppSocket(SocketHandle);

pub struct App {
    interface: Interface,
    sockets: SocketSet<'static>,
    device: Queues,
    epoch: Instant,
    ring: usize,
}

impl App {
    /// `addresses` are the machine's own; `ring` is the size of each socket's buffers.
    pub fn new(addresses: &[IpAddr], mtu: usize, ring: usize, seed: u64, now: Instant) -> Self {
        let mut device = Queues { mtu, ..Queues::default() };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut device, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|own| {
            for address in addresses {
                own.push(IpCidr::new((*address).into(), 0)).expect("smoltcp has room for two addresses");
            }
        });
        Self { interface, sockets: SocketSet::new(Vec::new()), device, epoch: now, ring }
    }

    pub fn connect(&mut self, source: SocketAddr, target: SocketAddr) -> Result<AppSocket, ConnectError> {
        let buffer = || SocketBuffer::new(vec![0; self.ring]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        socket.connect(self.interface.context(), target, source)?;
        Ok(AppSocket(self.sockets.add(socket)))
    }

    /// Has the connection ask the other side for a sign of life, as a kernel does of itself when its data waits for a window:
    /// smoltcp forgets to, once data under way is lost and an older, closed window arrives behind an open one.
    pub fn keep_alive(&mut self, socket: AppSocket) {
        let every = smoltcp::time::Duration::from_secs(5);
        self.socket_mut(socket).set_keep_alive(Some(every));
    }

    /// Forgets the connection without a packet, as a machine does that lost power.
    pub fn forget(&mut self, socket: AppSocket) {
        self.sockets.remove(socket.0);
    }

    pub fn send(&mut self, socket: AppSocket, bytes: &[u8]) -> usize {
        self.socket_mut(socket).send_slice(bytes).unwrap_or(0)
    }

    pub fn receive(&mut self, socket: AppSocket, buf: &mut [u8]) -> usize {
        self.socket_mut(socket).recv_slice(buf).unwrap_or(0)
    }

    pub fn close(&mut self, socket: AppSocket) {
        self.socket_mut(socket).close();
    }

    pub fn abort(&mut self, socket: AppSocket) {
        self.socket_mut(socket).abort();
    }

    pub fn state(&self, socket: AppSocket) -> State {
        self.sockets.get::<Socket<'_>>(socket.0).state()
    }

    /// Whether the other side's FIN has arrived and all bytes before it were received.
    pub fn is_finished(&self, socket: AppSocket) -> bool {
        let socket = self.sockets.get::<Socket<'_>>(socket.0);
        let fin =
            matches!(socket.state(), State::CloseWait | State::LastAck | State::Closing | State::TimeWait);
        fin && socket.recv_queue() == 0
    }

    /// A packet arrives.
    pub fn handle_packet(&mut self, packet: Vec<u8>) {
        self.device.arrived.push_back(packet);
    }

    /// Works through what arrived; the packets to send come back.
    pub fn poll(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let time = self.time(now);
        self.interface.poll(time, &mut self.device, &mut self.sockets);
        self.device.leaving.drain(..).collect()
    }

    pub fn poll_timeout(&mut self, now: Instant) -> Option<Instant> {
        let time = self.time(now);
        let delay = self.interface.poll_delay(time, &self.sockets)?;
        Some(now + Duration::from_micros(delay.total_micros()))
    }

    fn time(&self, now: Instant) -> smoltcp::time::Instant {
        let micros = now.duration_since(self.epoch).as_micros();
        smoltcp::time::Instant::from_micros(i64::try_from(micros).expect("a run lasts less than an age"))
    }

    fn socket_mut(&mut self, socket: AppSocket) -> &mut Socket<'static> {
        self.sockets.get_mut(socket.0)
    }
}

/// A TCP segment by hand.
#[derive(Clone, Copy, Debug)]
pub struct RawSegment<'a> {
    pub source: SocketAddr,
    pub target: SocketAddr,
    pub control: TcpControl,
    pub seq: u32,
    pub ack: Option<u32>,
    pub window: u16,
    pub data: &'a [u8],
}

impl RawSegment<'_> {
    pub fn packet(&self) -> Vec<u8> {
        let opens = self.control == TcpControl::Syn;
        let repr = TcpRepr {
            src_port: self.source.port(),
            dst_port: self.target.port(),
            control: self.control,
            seq_number: TcpSeqNumber(self.seq as i32),
            ack_number: self.ack.map(|ack| TcpSeqNumber(ack as i32)),
            window_len: self.window,
            window_scale: opens.then_some(7),
            max_seg_size: opens.then_some(1460),
            sack_permitted: opens,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: self.data,
        };
        let (source, target) = (self.source.ip().into(), self.target.ip().into());
        ip_packet(source, target, IpProtocol::Tcp, repr.buffer_len(), |payload| {
            let caps = ChecksumCapabilities::default();
            repr.emit(&mut TcpPacket::new_unchecked(payload), &source, &target, &caps);
        })
    }
}

/// An IP packet whose payload `fill` writes.
pub fn ip_packet(
    source: IpAddress,
    target: IpAddress,
    protocol: IpProtocol,
    length: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let repr = IpRepr::new(source, target, protocol, length, 64);
    let mut packet = vec![0; repr.buffer_len()];
    repr.emit(&mut packet, &ChecksumCapabilities::default());
    fill(&mut packet[repr.header_len()..]);
    packet
}

#[derive(Default)]
struct Queues {
    mtu: usize,
    arrived: VecDeque<Vec<u8>>,
    leaving: VecDeque<Vec<u8>>,
}

impl smoltcp::phy::Device for Queues {
    type RxToken<'t> = Arrived;
    type TxToken<'t> = Leaving<'t>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Arrived, Leaving<'_>)> {
        let packet = self.arrived.pop_front()?;
        Some((Arrived(packet), Leaving(&mut self.leaving)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Leaving<'_>> {
        Some(Leaving(&mut self.leaving))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

struct Arrived(Vec<u8>);

impl smoltcp::phy::RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Leaving<'t>(&'t mut VecDeque<Vec<u8>>);

impl smoltcp::phy::TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}
