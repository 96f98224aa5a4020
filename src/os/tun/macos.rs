//! macOS: tun-rs makes the utun device, and strips and adds the four bytes in front of its packets. Not yet
//! run on a Mac.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tun_rs::SyncDevice;

use super::{Incoming, TunConfig, TunError};
use crate::os::route_socket;

pub(super) struct Device(SyncDevice);

impl Device {
    pub(super) fn completes_checksums(&self) -> bool {
        false
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Device").field(&self.0.as_raw_fd()).finish()
    }
}

/// To be measured on hardware.
pub fn default_mtu() -> u32 {
    16384
}

pub(super) fn open(config: &TunConfig, mtu: u32) -> Result<(Device, String, u32), TunError> {
    if let Some(name) = &config.name {
        let number = name.strip_prefix("utun").filter(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()));
        if number.is_none_or(str::is_empty) {
            return Err(TunError::BadName { name: name.clone(), reason: "here they are named utunN" });
        }
    }
    let taken = route_socket::addresses().map_err(other("listing addresses"))?;
    for network in &config.addresses {
        if let Some((device, address)) = taken.iter().find(|(_, address)| *address == network.addr()) {
            return Err(TunError::AddressInUse { address: *address, device: device.clone() });
        }
    }
    let mut builder = tun_rs::DeviceBuilder::new()
        .mtu(u16::try_from(mtu).unwrap_or(u16::MAX))
        .packet_information(false)
        .with(|options| {
            // The routes are our own business.
            options.associate_route(false);
        });
    if let Some(name) = &config.name {
        builder = builder.name(name);
    }
    let device = builder.build_sync().map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => TunError::NotRoot(error),
        Some(libc::EBUSY) => TunError::Busy(config.name.clone().unwrap_or_default()),
        _ => TunError::Other { step: "making the utun device", source: error },
    })?;
    for network in &config.addresses {
        match network.addr() {
            IpAddr::V4(address) => device.add_address_v4(address, network.prefix_len()),
            IpAddr::V6(address) => device.add_address_v6(address, network.prefix_len()),
        }
        .map_err(other("giving the device its address"))?;
    }
    device.set_nonblocking(true).map_err(other("making the device non-blocking"))?;
    widen(&device);
    let name = device.name().map_err(other("asking for the device's name"))?;
    let index = device.if_index().map_err(other("asking for the device's index"))?;
    Ok((Device(device), name, index))
}

fn other(step: &'static str) -> impl Fn(io::Error) -> TunError {
    move |source| TunError::Other { step, source }
}

/// Lets more than one packet wait in the kernel; without it each costs a round of flow control. Only slower
/// if it is refused.
fn widen(device: &SyncDevice) {
    let set = |level, option, value: libc::c_int| {
        let size = size_of_val(&value) as libc::socklen_t;
        // SAFETY: the descriptor is open, and the option's value is as long as we say.
        let done =
            unsafe { libc::setsockopt(device.as_raw_fd(), level, option, (&raw const value).cast(), size) };
        if done != 0 {
            tracing::debug!(option, error = %io::Error::last_os_error(), "a utun option was refused");
        }
    };
    set(libc::SYSPROTO_CONTROL, UTUN_OPT_MAX_PENDING_PACKETS, 64);
    set(libc::SOL_SOCKET, libc::SO_RCVBUF, 4 << 20);
}

pub(super) struct AsyncDevice(AsyncFd<SyncDevice>);

impl std::fmt::Debug for AsyncDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("AsyncDevice").field(&self.0.as_raw_fd()).finish()
    }
}

impl AsyncDevice {
    pub(super) fn completes_checksums(&self) -> bool {
        false
    }

    pub(super) fn new(device: Device) -> io::Result<Self> {
        // SAFETY: the descriptor is owned by the `AsyncFd` from here on, so it stays open and itself.
        let registered = unsafe { AsyncFd::register(device.0) };
        Ok(Self(registered?))
    }

    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.0.poll_read_ready(cx))?.retain_ready();
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.0.poll_write_ready(cx))?.retain_ready();
        Poll::Ready(Ok(()))
    }

    pub(super) fn try_read(&self, buf: &mut [u8]) -> io::Result<Incoming> {
        let length = self.0.try_io(Interest::READABLE, |device| device.recv(buf))?;
        Ok(Incoming { length, vouched: true })
    }

    pub(super) fn try_write(&self, packet: &[u8]) -> io::Result<usize> {
        let full = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::ENOBUFS));
        self.0.try_io(Interest::WRITABLE, |device| match device.send(packet) {
            Err(error) if full(&error) => Err(io::ErrorKind::WouldBlock.into()),
            sent => sent,
        })
    }
}

/// From `net/if_utun.h`.
const UTUN_OPT_MAX_PENDING_PACKETS: libc::c_int = 16;
