//! Systems no agent runs on.

use std::io;
use std::net::{IpAddr, UdpSocket};

use super::{EchoSocket, Report};

pub(in crate::dial) fn udp(_six: bool) -> io::Result<UdpSocket> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(in crate::dial) fn echo(_target: IpAddr) -> io::Result<EchoSocket> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(in crate::dial) fn next_report(_socket: &UdpSocket, _quote: &mut [u8]) -> Option<Report> {
    None
}
