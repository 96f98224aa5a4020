//! The only part of dialling that knows its system: sockets that tell what the network said of their datagrams.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub(super) use linux::{echo, next_report, udp};

#[cfg(not(target_os = "linux"))]
mod other;
#[cfg(not(target_os = "linux"))]
pub(super) use other::{echo, next_report, udp};

use std::net::{SocketAddr, UdpSocket};

use crate::wire::datagram::Trouble;

/// What the network said of a datagram to this peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) peer: SocketAddr,
    pub(super) trouble: Trouble,
    /// Said by the system itself, before the datagram left; names no port.
    pub(super) own: bool,
    /// How many bytes of the datagram were quoted.
    pub(super) quoted: usize,
}

/// A socket for echoes.
#[derive(Debug)]
pub(super) struct EchoSocket {
    pub(super) socket: UdpSocket,
    /// It sees what others ask and hear too, and delivers IPv4 with its header.
    pub(super) raw: bool,
}
