//! macOS: the routing socket's messages, and the difference of two clocks. Not yet run on a Mac.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::time::Duration;

use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::LinkEvent;
use crate::os::route_socket;

#[derive(Debug)]
pub(super) struct Source {
    socket: AsyncFd<Socket>,
    own_device: Option<u32>,
}

impl Source {
    pub(super) fn open(own_device: Option<u32>) -> io::Result<Self> {
        let socket = route_socket::open()?;
        socket.set_nonblocking(true)?;
        // SAFETY: the `AsyncFd` owns the socket, whose descriptor never changes while it lives.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        Ok(Self { socket: socket?, own_device })
    }

    pub(super) fn own_device(&self) -> Option<u32> {
        self.own_device
    }

    /// Routes here go with their device only; nobody flushes them behind our back.
    pub(super) fn take_touched(&mut self) -> Option<LinkEvent> {
        None
    }

    /// Waits until something other than our own device changed.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        let mut message = [0; 2048];
        loop {
            let mut read = |mut socket: &Socket| socket.read(&mut message);
            let length = self.socket.async_io(Interest::READABLE, &mut read).await?;
            let device = route_socket::device_of(&message[..length]);
            if self.own_device.is_none() || device != self.own_device {
                return Ok(());
            }
        }
    }
}

/// The default routes, and the addresses of the devices they lead through.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WayOut(BTreeSet<String>);

impl WayOut {
    pub(super) fn read(own_device: Option<u32>) -> io::Result<Self> {
        let addresses = route_socket::addresses()?;
        let mut facts = BTreeSet::new();
        for route in route_socket::routes()? {
            if route.net.prefix_len() != 0 || Some(route.device) == own_device {
                continue;
            }
            facts.insert(format!("default {:?} {}", route.gateway, route.device));
            let name = route_socket::device_name(route.device);
            let of_device = addresses.iter().filter(|(device, _)| Some(device) == name.as_ref());
            facts.extend(of_device.map(|(device, address)| format!("address {device} {address}")));
        }
        Ok(Self(facts))
    }
}

/// How long the machine has slept since it was started.
pub(super) fn asleep() -> Duration {
    // In this order the time between the two calls cannot look like sleep.
    let with_sleep = read(libc::CLOCK_MONOTONIC_RAW);
    with_sleep.saturating_sub(read(libc::CLOCK_UPTIME_RAW))
}

fn read(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for the call.
    if unsafe { libc::clock_gettime(clock, &mut time) } != 0 {
        return Duration::ZERO;
    }
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}
