//! Linux: tun-rs makes the device, netlink configures it, plain reads and writes move packets.

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::path::Path;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{QUEUE_LENGTH, TunConfig, TunError};
use crate::os::netlink::Netlink;

pub(super) type Device = OwnedFd;

/// The largest packet IP knows: fewest packets a byte.
pub fn default_mtu() -> u32 {
    65535
}

pub(super) fn open(config: &TunConfig, mtu: u32) -> Result<(Device, String, u32), TunError> {
    let mut netlink = Netlink::open().map_err(other("opening a netlink socket"))?;
    if let Some(name) = &config.name {
        check_name(name)?;
        if netlink.link_index(name).map_err(other("listing network devices"))?.is_some() {
            return Err(TunError::Busy(name.clone()));
        }
    }
    for network in &config.addresses {
        let address = network.addr();
        if let Some(device) = netlink.device_of(address).map_err(other("listing addresses"))? {
            return Err(TunError::AddressInUse { address, device });
        }
    }
    check_driver()?;
    let pattern = config.name.clone().unwrap_or_else(|| NAME_PATTERN.to_owned());
    let device = tun_rs::DeviceBuilder::new()
        .name(&pattern)
        .mtu(u16::try_from(mtu).unwrap_or(u16::MAX))
        .packet_information(false)
        .offload(false)
        .enable(false)
        .build_sync()
        .map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::PERM | Errno::ACCESS) => TunError::NotRoot(error),
            Some(Errno::BUSY) => TunError::Busy(pattern.clone()),
            // The node is there, but what it leads to is no such driver.
            Some(Errno::NOTTY | Errno::NODEV | Errno::NXIO) => TunError::NoDevice(error),
            _ => TunError::Other { step: "making the TUN device", source: error },
        })?;
    let name = device.name().map_err(other("asking for the device's name"))?;
    let index = device.if_index().map_err(other("asking for the device's index"))?;
    device.set_nonblocking(true).map_err(other("making the device non-blocking"))?;

    // By netlink: tun-rs's ioctl asks for rights beyond a user namespace.
    netlink.set_queue_length(index, QUEUE_LENGTH).map_err(other("configuring the device"))?;
    netlink.quieten(index).map_err(other("configuring the device"))?;
    for network in &config.addresses {
        netlink.add_address(index, *network).map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::ACCESS | Errno::OPNOTSUPP | Errno::AFNOSUPPORT) if network.addr().is_ipv6() => {
                TunError::NoIpv6 { address: network.addr() }
            }
            _ => TunError::Other { step: "giving the device its address", source: error },
        })?;
    }
    netlink.set_up(index).map_err(other("bringing the device up"))?;

    // SAFETY: `into_raw_fd` gives up ownership of an open descriptor, which nothing else holds.
    let fd = unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) };
    Ok((fd, name, index))
}

fn other(step: &'static str) -> impl Fn(io::Error) -> TunError {
    move |source| TunError::Other { step, source }
}

fn check_name(name: &str) -> Result<(), TunError> {
    let bad = |reason| Err(TunError::BadName { name: name.to_owned(), reason });
    if name.is_empty() || name.len() > 15 {
        return bad("it must have 1 to 15 characters");
    }
    if name == "."
        || name == ".."
        || name.contains(['/', ':', '%', '\0'])
        || name.contains(char::is_whitespace)
    {
        return bad("it holds a character that is not allowed there");
    }
    Ok(())
}

/// Tells a missing driver from a missing right before anything is made; tun-rs would make the node itself.
fn check_driver() -> Result<(), TunError> {
    if !Path::new(DRIVER).exists() {
        return Err(TunError::NoDevice(io::Error::new(io::ErrorKind::NotFound, "there is no /dev/net/tun")));
    }
    let root = rustix::process::geteuid().is_root();
    match File::options().read(true).write(true).open(DRIVER) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !root => {
            Err(TunError::NotRoot(error))
        }
        Err(error) => Err(TunError::NoDevice(error)),
    }
}

#[derive(Debug)]
pub(super) struct AsyncDevice(AsyncFd<OwnedFd>);

impl AsyncDevice {
    pub(super) fn new(device: Device) -> io::Result<Self> {
        // SAFETY: the descriptor is owned by the `AsyncFd` from here on, so it stays open and itself.
        let registered = unsafe { AsyncFd::register(device) };
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

    pub(super) fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.try_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut *buf)?))
    }

    /// A TUN is nearly always writable, so the readiness is only asked once a write has said otherwise.
    pub(super) fn try_write(&self, packet: &[u8]) -> io::Result<usize> {
        match rustix::io::write(self.0.get_ref(), packet) {
            Err(Errno::AGAIN) => self.0.try_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, packet)?)),
            written => Ok(written?),
        }
    }
}

const DRIVER: &str = "/dev/net/tun";

/// The kernel puts the lowest free number in.
const NAME_PATTERN: &str = "ssmp%d";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_kernel_would_misread_are_refused() {
        for name in ["", "sixteen-letters-", "a/b", "ssmp%d", "a b", ".."] {
            assert!(matches!(check_name(name), Err(TunError::BadName { .. })), "{name:?}");
        }
        assert!(check_name("ssmp0").is_ok());
    }
}
