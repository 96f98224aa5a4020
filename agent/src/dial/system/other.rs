//! Systems no agent runs on.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::task::Context;

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

#[derive(Debug)]
pub(in crate::dial) struct Poller;

impl Poller {
    pub(in crate::dial) fn new() -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(in crate::dial) fn add(&self, _socket: &UdpSocket, _slot: u32) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(in crate::dial) fn poll(&mut self, _cx: &mut Context<'_>, _take: &mut dyn FnMut(u32, bool)) -> bool {
        false
    }
}
