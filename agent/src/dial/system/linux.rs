//! Linux: error queues (IP_RECVERR) and ping sockets.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use rustix::io::Errno;
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{EchoSocket, Report};
use crate::dial::tcp;
use crate::wire::datagram::Trouble;

mod troubles;

/// A socket for datagrams to anybody, bound, so that a lack of ports shows here and not as silence later.
pub(in crate::dial) fn udp(six: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(domain(six), Type::DGRAM, Some(Protocol::UDP))?;
    if six {
        socket.set_only_v6(true)?;
    }
    prepare(&socket, six)?;
    let any = if six { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    socket.bind(&SocketAddr::new(any, 0).into())?;
    Ok(OwnedFd::from(socket).into())
}

/// A socket for echoes to one target: what any user of the right group may have, else what CAP_NET_RAW gives.
pub(in crate::dial) fn echo(target: IpAddr) -> io::Result<EchoSocket> {
    let six = target.is_ipv6();
    let protocol = Some(if six { Protocol::ICMPV6 } else { Protocol::ICMPV4 });
    let (socket, raw) = match Socket::new(domain(six), Type::DGRAM, protocol) {
        Ok(socket) => (socket, false),
        Err(error) if exhausted(&error) => return Err(error),
        Err(_not_this_group) => (Socket::new(domain(six), Type::RAW, protocol)?, true),
    };
    prepare(&socket, six)?;
    if raw {
        // Keeps out most of what is not for us. Where the system forbids the target it says so of each request too.
        match socket.connect(&SocketAddr::new(target, 0).into()) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::ACCESS) => {}
            done => done?,
        }
    }
    Ok(EchoSocket { socket: OwnedFd::from(socket).into(), raw })
}

fn exhausted(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM))
}

/// Errors come back, and path MTUs are treated as for any socket of a Linux host: a datagram that fits the
/// known path goes unfragmented, so that one too big for an unknown way is told of; a longer one is
/// cut by the system, so that 60,000 bytes arrive as they do from a program on this machine.
fn prepare(socket: &Socket, six: bool) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    // The queue of what arrives, as far as the system grants it.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    if six {
        setsockopt(socket, sockopt::Ipv6RecvErr, &true)?;
        set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::WANT)?;
    } else {
        setsockopt(socket, sockopt::Ipv4RecvErr, &true)?;
        set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::WANT)?;
    }
    Ok(())
}

fn domain(six: bool) -> Domain {
    if six { Domain::IPV6 } else { Domain::IPV4 }
}

/// Takes the next entry of the socket's error queue; the beginning of the datagram it is about goes into `quote`.
pub(in crate::dial) fn next_report(socket: &UdpSocket, quote: &mut [u8]) -> Option<Report> {
    let mut control = nix::cmsg_space!([u64; 8]);
    for _ in 0..ENTRIES_WITHOUT_MEANING {
        let mut parts = [IoSliceMut::new(quote)];
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let message =
            recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags).ok()?;
        let said = message.cmsgs().ok()?.find_map(|entry| trouble(&entry));
        let peer = message.address.as_ref().and_then(peer);
        if let (Some((trouble, own)), Some(peer)) = (said, peer) {
            return Some(Report { peer, trouble, own, quoted: message.bytes });
        }
    }
    None
}

/// The trouble, and whether the system itself says so.
fn trouble(entry: &ControlMessageOwned) -> Option<(Trouble, bool)> {
    let error = if let ControlMessageOwned::Ipv4RecvErr(error, _) = entry {
        error
    } else if let ControlMessageOwned::Ipv6RecvErr(error, _) = entry {
        error
    } else {
        return None;
    };
    let (kind, code, info) = (error.ee_type, error.ee_code, error.ee_info);
    Some(match error.ee_origin {
        ORIGIN_ICMP => (troubles::of_icmp(kind, code, info), false),
        ORIGIN_ICMP6 => (troubles::of_icmpv6(kind, code, info), false),
        _ => match Errno::from_raw_os_error(i32::try_from(error.ee_errno).ok()?) {
            Errno::MSGSIZE => (Trouble::TooBig(troubles::mtu(info)), true),
            other => (Trouble::Refusal(tcp::refusal(&other.into())), true),
        },
    })
}

fn peer(address: &SockaddrStorage) -> Option<SocketAddr> {
    let four = address.as_sockaddr_in().map(|address| std::net::SocketAddrV4::from(*address).into());
    four.or_else(|| address.as_sockaddr_in6().map(|address| SocketAddrV6::from(*address).into()))
}

const RECEIVE_BUFFER: usize = 1 << 20;
/// Each is taken from the queue, so this many pass at a time at most.
const ENTRIES_WITHOUT_MEANING: usize = 4;
const ORIGIN_ICMP: u8 = 2;
const ORIGIN_ICMP6: u8 = 3;
