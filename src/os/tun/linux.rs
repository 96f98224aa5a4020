//! Linux: tun-rs makes the device, netlink configures it, plain reads and writes move packets.
//!
//! Each packet has a virtio header of 10 bytes in front (`struct virtio_net_hdr`, the machine's byte order): flags (1: the TCP or UDP checksum
//! covers only the addresses so far; 2: it was checked), segmentation, and where to sum from and where to put
//! the sum. With it neither we nor the kernel sum 64 KiB for each packet. Segmentation stays off.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::path::Path;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::ioctl;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{Incoming, QUEUE_LENGTH, TunConfig, TunError};
use crate::os::netlink::Netlink;

#[derive(Debug)]
pub(super) struct Device {
    fd: OwnedFd,
    /// Packets have a virtio header in front.
    headed: bool,
}

impl Device {
    pub(super) fn completes_checksums(&self) -> bool {
        self.headed
    }
}

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
    let (device, headed) = make(&pattern, mtu).map_err(|error| match Errno::from_io_error(&error) {
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
    Ok((Device { fd, headed }, name, index))
}

/// Makes the device, with checksum offload where the kernel has it.
fn make(pattern: &str, mtu: u32) -> io::Result<(tun_rs::SyncDevice, bool)> {
    let build = |headed: bool| {
        tun_rs::DeviceBuilder::new()
            .name(pattern)
            .mtu(u16::try_from(mtu).unwrap_or(u16::MAX))
            .packet_information(false)
            .offload(headed)
            .enable(false)
            .build_sync()
    };
    match build(true) {
        Ok(device) => {
            // tun-rs asks for segmentation too.
            // SAFETY: TUNSETOFFLOAD takes its flags by value and touches no memory of ours.
            unsafe { ioctl::ioctl(&device, SetOffload::new_usize(CHECKSUMS)) }?;
            Ok((device, true))
        }
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => Ok((build(false)?, false)),
        Err(error) => Err(error),
    }
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
pub(super) struct AsyncDevice {
    fd: AsyncFd<OwnedFd>,
    headed: bool,
}

impl AsyncDevice {
    pub(super) fn new(device: Device) -> io::Result<Self> {
        // SAFETY: the descriptor is owned by the `AsyncFd` from here on, so it stays open and itself.
        let registered = unsafe { AsyncFd::register(device.fd) };
        Ok(Self { fd: registered?, headed: device.headed })
    }

    pub(super) fn completes_checksums(&self) -> bool {
        self.headed
    }

    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.fd.poll_read_ready(cx))?.retain_ready();
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.fd.poll_write_ready(cx))?.retain_ready();
        Poll::Ready(Ok(()))
    }

    pub(super) fn try_read(&self, buf: &mut [u8]) -> io::Result<Incoming> {
        if !self.headed {
            let length = self.fd.try_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut *buf)?))?;
            return Ok(Incoming { length, vouched: false });
        }
        let mut header = [0; HEADER];
        let read = self.fd.try_io(Interest::READABLE, |fd| {
            let mut parts = [IoSliceMut::new(&mut header), IoSliceMut::new(&mut *buf)];
            Ok(rustix::io::readv(fd, &mut parts)?)
        })?;
        let vouched = header[0] & (NEEDS_CHECKSUM | CHECKED) != 0;
        Ok(Incoming { length: read.saturating_sub(HEADER), vouched })
    }

    /// A TUN is nearly always writable, so the readiness is only asked once a write has said otherwise.
    pub(super) fn try_write(&self, packet: &[u8]) -> io::Result<usize> {
        let header = header_for(packet);
        let parts = [IoSlice::new(&header), IoSlice::new(packet)];
        let parts = if self.headed { &parts[..] } else { &parts[1..] };
        let written = match rustix::io::writev(self.fd.get_ref(), parts) {
            Err(Errno::AGAIN) => {
                self.fd.try_io(Interest::WRITABLE, |fd| Ok(rustix::io::writev(fd, parts)?))?
            }
            written => written?,
        };
        Ok(if self.headed { written.saturating_sub(HEADER) } else { written })
    }
}

/// Asks for the rest of the checksum of a TCP or UDP packet. We write no IP options and no extension headers.
fn header_for(packet: &[u8]) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let (start, protocol) = match packet {
        [first, ..] if first >> 4 == 4 => (20u16, packet.get(9)),
        _ => (40, packet.get(6)),
    };
    let offset: u16 = match protocol {
        Some(6) => 16,
        Some(17) => 6,
        Some(_) | None => return header,
    };
    header[0] = NEEDS_CHECKSUM;
    header[6..8].copy_from_slice(&start.to_ne_bytes());
    header[8..10].copy_from_slice(&offset.to_ne_bytes());
    header
}

type SetOffload = ioctl::IntegerSetter<{ ioctl::opcode::write::<u32>(b'T', 208) }>;

/// `TUN_F_CSUM`
const CHECKSUMS: usize = 1;
const HEADER: usize = 10;
/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`
const NEEDS_CHECKSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`
const CHECKED: u8 = 2;

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

    #[test]
    fn tcp_and_udp_packets_ask_for_their_checksum() {
        let asked = |packet: &[u8]| {
            let header = header_for(packet);
            let at = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
            (header[0], at(6), at(8))
        };
        let packet = |version: u8, at: usize, protocol| {
            let mut packet = [0; 60];
            (packet[0], packet[at]) = (version << 4 | 5, protocol);
            packet
        };
        assert_eq!(asked(&packet(4, 9, 6)), (NEEDS_CHECKSUM, 20, 16));
        assert_eq!(asked(&packet(6, 6, 17)), (NEEDS_CHECKSUM, 40, 6));
        assert_eq!(asked(&packet(4, 9, 1)), (0, 0, 0));
        assert_eq!(asked(&packet(6, 6, 58)), (0, 0, 0));
        assert_eq!(asked(&[0x45]), (0, 0, 0));
    }
}
