//! The TUN device: opened and configured on any thread, read and written on the data thread.
//!
//! One IP packet per read and per write. The device goes away with its last descriptor, and with it every
//! route through it.

use std::io;
use std::net::IpAddr;
use std::task::{Context, Poll};

use ipnet::IpNet;

#[cfg(target_os = "linux")]
#[path = "tun/linux.rs"]
mod system;
#[cfg(target_os = "macos")]
#[path = "tun/macos.rs"]
mod system;

pub use system::default_mtu;

/// Packets the kernel holds for us before it drops; with packets of 64 KiB one flow's window is about 16.
pub const QUEUE_LENGTH: u32 = 1000;

/// What device to make.
#[derive(Clone, Debug, Default)]
pub struct TunConfig {
    /// `None`: the system picks the next free one (`ssmp0`, `ssmp1`, ... on Linux; `utunN` on macOS).
    pub name: Option<String>,
    /// Bytes; 0 means [`default_mtu`].
    pub mtu: u32,
    /// The device's own addresses. A prefix shorter than the whole address also makes a route to that
    /// network through the device.
    pub addresses: Vec<IpNet>,
}

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    #[error("this machine has no usable TUN device: {0}")]
    NoDevice(#[source] io::Error),
    #[error("making a network device needs root")]
    NotRoot(#[source] io::Error),
    #[error("the address {address} already belongs to {device}")]
    AddressInUse { address: IpAddr, device: String },
    #[error("a network device named {0} exists already")]
    Busy(String),
    #[error("{name:?} cannot name a network device: {reason}")]
    BadName { name: String, reason: &'static str },
    #[error("an MTU of {0} does not work: it must lie between 1280 and 65535")]
    BadMtu(u32),
    #[error("the device cannot have {address}: IPv6 is switched off on this machine")]
    NoIpv6 { address: IpAddr },
    #[error("{step} failed")]
    Other {
        step: &'static str,
        #[source]
        source: io::Error,
    },
}

impl TunError {
    /// What to do about it, where we know.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoDevice(_) => Some(
                "load the driver with `sudo modprobe tun`; in a container, start it with \
                 `--device /dev/net/tun --cap-add NET_ADMIN`",
            ),
            Self::NotRoot(_) => {
                Some("run the same command with sudo; in a container, start it with `--cap-add NET_ADMIN`")
            }
            Self::AddressInUse { .. } => Some("choose another address with --local-ip"),
            Self::Busy(_) => Some("another session may hold it: see `ssm-proxy status`"),
            Self::BadMtu(_) => Some("leave out --mtu, or give a number in that range"),
            Self::NoIpv6 { .. } => Some("leave out the IPv6 ranges"),
            Self::BadName { .. } | Self::Other { .. } => None,
        }
    }
}

/// An open, configured device that is up. Dropping it removes it.
#[derive(Debug)]
pub struct Tun {
    inner: system::Device,
    name: String,
    index: u32,
    mtu: u32,
}

impl Tun {
    /// Makes the device, gives it its addresses and brings it up. Blocks for some milliseconds.
    pub fn open(config: &TunConfig) -> Result<Self, TunError> {
        let mtu = if config.mtu == 0 { default_mtu() } else { config.mtu };
        if !(1280..=65535).contains(&mtu) {
            return Err(TunError::BadMtu(mtu));
        }
        let (inner, name, index) = system::open(config, mtu)?;
        Ok(Self { inner, name, index, mtu })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn index(&self) -> u32 {
        self.index
    }

    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// See [`AsyncTun::completes_checksums`].
    pub fn completes_checksums(&self) -> bool {
        self.inner.completes_checksums()
    }

    /// Registers the device with the runtime of the calling thread, which must be the one that polls it.
    pub fn into_async(self) -> io::Result<AsyncTun> {
        let inner = system::AsyncDevice::new(self.inner)?;
        Ok(AsyncTun { inner, name: self.name, index: self.index, mtu: self.mtu })
    }
}

/// A packet that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incoming {
    pub length: usize,
    /// The system made the packet or has checked it: its TCP or UDP checksum may not even be complete.
    pub vouched: bool,
}

/// The device in the data thread's runtime. Dropping it removes it.
#[derive(Debug)]
pub struct AsyncTun {
    inner: system::AsyncDevice,
    name: String,
    index: u32,
    mtu: u32,
}

impl AsyncTun {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn index(&self) -> u32 {
        self.index
    }

    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// Ready when [`try_read`](Self::try_read) is worth calling; an error means that the runtime ends.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.poll_readable(cx)
    }

    /// Ready when [`try_write`](Self::try_write) is worth calling again after `WouldBlock`.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.poll_writable(cx)
    }

    /// Whether the checksums of TCP and UDP packets to be written must cover the pseudo-header alone: the system
    /// does the rest.
    pub fn completes_checksums(&self) -> bool {
        self.inner.completes_checksums()
    }

    /// Reads one packet, or `WouldBlock`. A packet longer than `buf` is cut: give it [`mtu`](Self::mtu) bytes.
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<Incoming> {
        self.inner.try_read(buf)
    }

    /// Writes one packet whole, or `WouldBlock`. `InvalidInput` means the kernel found it malformed.
    pub fn try_write(&self, packet: &[u8]) -> io::Result<usize> {
        self.inner.try_write(packet)
    }
}
