//! Asks the kernel by sock_diag, which answers within the call that asks.

use std::io;

use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

/// Sends one question on a socket of its own; tells how long the answer is.
pub(super) fn ask(question: &[u8], answer: &mut [u8]) -> io::Result<usize> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(SOCK_DIAG))?;
    sendto(&socket, question, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let (length, _) = recv(&socket, answer, RecvFlags::empty())?;
    Ok(length)
}
