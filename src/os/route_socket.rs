//! macOS: the routing socket and the tables that sysctl hands out. Not yet run on a Mac.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::io::{self, Write};
use std::mem::{offset_of, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use socket2::{Domain, Socket, Type};

/// A route in the kernel's table.
#[derive(Clone, Debug)]
pub(super) struct KernelRoute {
    pub(super) net: IpNet,
    pub(super) device: u32,
    pub(super) gateway: Option<IpAddr>,
}

/// Where a route should lead.
#[derive(Clone, Copy, Debug)]
pub(super) enum Hop {
    Device(u32),
    Gateway(IpAddr),
}

pub(super) fn open() -> io::Result<Socket> {
    Socket::new(Domain::from(libc::PF_ROUTE), Type::RAW, None)
}

/// Adds it; one that is there already is fine.
pub(super) fn add(net: IpNet, hop: Hop) -> io::Result<()> {
    match send(libc::RTM_ADD, net, hop) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        done => done,
    }
}

/// Removes it; one that is gone already is fine.
pub(super) fn remove(net: IpNet, hop: Hop) -> io::Result<()> {
    match send(libc::RTM_DELETE, net, hop) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENXIO)) => Ok(()),
        done => done,
    }
}

/// The unicast routes, those the kernel cloned for single neighbours left out.
pub(super) fn routes() -> io::Result<Vec<KernelRoute>> {
    let table = sysctl(&[libc::CTL_NET, libc::PF_ROUTE, 0, 0, libc::NET_RT_DUMP, 0])?;
    let mut found = Vec::new();
    let mut rest = table.as_slice();
    while let Some(length) = rest.get(..2).map(|bytes| usize::from(u16::from_ne_bytes([bytes[0], bytes[1]])))
    {
        let Some(message) = rest.get(..length).filter(|_| length >= HEADER) else { break };
        found.extend(parse(message));
        rest = &rest[length..];
    }
    Ok(found)
}

/// Each address of this machine with its device's name.
pub(super) fn addresses() -> io::Result<BTreeSet<(String, IpAddr)>> {
    let mut first = std::ptr::null_mut();
    // SAFETY: `first` is valid for the call, which allocates the list it then points at.
    if unsafe { libc::getifaddrs(&mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found = BTreeSet::new();
    let mut next: *const libc::ifaddrs = first;
    // SAFETY: the list is ours until `freeifaddrs`, and its end is a null pointer.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        if entry.ifa_addr.is_null() {
            continue;
        }
        // SAFETY: an entry's name is a string with an end; its address has as many bytes as its first one says.
        let (name, bytes) = unsafe {
            let length = usize::from((*entry.ifa_addr).sa_len);
            (CStr::from_ptr(entry.ifa_name), std::slice::from_raw_parts(entry.ifa_addr.cast::<u8>(), length))
        };
        let family = bytes.get(1).copied().unwrap_or(0);
        found.extend(address(bytes, family).map(|address| (name.to_string_lossy().into_owned(), address)));
    }
    // SAFETY: `first` came from `getifaddrs` and nothing above outlives it.
    unsafe { libc::freeifaddrs(first) };
    Ok(found)
}

pub(super) fn device_name(index: u32) -> Option<String> {
    let mut name = [0u8; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the length that the call asks for, and the call ends the name.
    if unsafe { libc::if_indextoname(index, name.as_mut_ptr().cast()) }.is_null() {
        return None;
    }
    Some(CStr::from_bytes_until_nul(&name).ok()?.to_string_lossy().into_owned())
}

/// What the kernel tells under this name.
pub(super) fn sysctl(name: &[libc::c_int]) -> io::Result<Vec<u8>> {
    let mut name = name.to_vec();
    let count = name.len() as libc::c_uint;
    for _ in 0..ATTEMPTS {
        let mut length = 0;
        let nothing = std::ptr::null_mut();
        // SAFETY: with a null buffer the call only writes the length.
        if unsafe { libc::sysctl(name.as_mut_ptr(), count, nothing, &mut length, nothing, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // It may grow between the two calls.
        let mut bytes = vec![0u8; length + length / 4 + 1024];
        length = bytes.len();
        let buffer = bytes.as_mut_ptr().cast();
        // SAFETY: `length` is the size of `buffer`, and the call writes no more than that.
        if unsafe { libc::sysctl(name.as_mut_ptr(), count, buffer, &mut length, nothing, 0) } == 0 {
            bytes.truncate(length);
            return Ok(bytes);
        }
        if io::Error::last_os_error().raw_os_error() != Some(libc::ENOMEM) {
            return Err(io::Error::last_os_error());
        }
    }
    Err(io::Error::other("the system's table grows faster than it can be read"))
}

/// The index of the device that a message of the routing socket is about.
pub(super) fn device_of(message: &[u8]) -> Option<u32> {
    let at = offset_of!(libc::rt_msghdr, rtm_index);
    Some(u16::from_ne_bytes(message.get(at..at + 2)?.try_into().ok()?).into())
}

fn send(kind: libc::c_int, net: IpNet, hop: Hop) -> io::Result<()> {
    let host = net.prefix_len() == net.max_prefix_len();
    let mut addresses = vec![sockaddr(net.network())];
    let mut flags = libc::RTF_UP | libc::RTF_STATIC;
    let mut present = 1 << libc::RTAX_DST | 1 << libc::RTAX_GATEWAY;
    addresses.push(match hop {
        Hop::Device(index) => link_sockaddr(index),
        Hop::Gateway(address) => {
            flags |= libc::RTF_GATEWAY;
            sockaddr(address)
        }
    });
    if host {
        flags |= libc::RTF_HOST;
    } else {
        present |= 1 << libc::RTAX_NETMASK;
        addresses.push(sockaddr(net.netmask()));
    }
    let addresses = addresses.concat();

    // SAFETY: an all-zero header is a valid value of that plain C struct.
    let mut header: libc::rt_msghdr = unsafe { std::mem::zeroed() };
    header.rtm_msglen = (HEADER + addresses.len()) as libc::c_ushort;
    header.rtm_version = libc::RTM_VERSION as libc::c_uchar;
    header.rtm_type = kind as libc::c_uchar;
    header.rtm_flags = flags;
    header.rtm_addrs = present;
    header.rtm_seq = 1;
    // SAFETY: the header is a plain C struct without padding that could be uninitialised: it began as zeros.
    let header = unsafe { std::slice::from_raw_parts((&raw const header).cast::<u8>(), HEADER) };
    // The kernel answers a request with the result of the write.
    let mut socket = open()?;
    socket.shutdown(std::net::Shutdown::Read)?;
    socket.write_all(&[header, &addresses].concat())
}

fn parse(message: &[u8]) -> Option<KernelRoute> {
    let number = |at: usize| Some(i32::from_ne_bytes(message.get(at..at + 4)?.try_into().ok()?));
    let flags = number(offset_of!(libc::rt_msghdr, rtm_flags))?;
    let present = number(offset_of!(libc::rt_msghdr, rtm_addrs))?;
    if flags & libc::RTF_UP == 0 || flags & NOT_NETWORKS != 0 {
        return None;
    }
    let mut sockaddrs: [&[u8]; 3] = [&[]; 3];
    let mut rest = message.get(HEADER..)?;
    for (slot, bytes) in sockaddrs.iter_mut().enumerate() {
        if present & (1 << slot) == 0 {
            continue;
        }
        let length = usize::from(*rest.first()?);
        *bytes = rest.get(..length)?;
        rest = rest.get(length.next_multiple_of(4).max(4)..).unwrap_or(&[]);
    }
    let [destination, gateway, mask] = sockaddrs;
    let family = *destination.get(1)?;
    let network = address(destination, family)?;
    let host = flags & libc::RTF_HOST != 0;
    let all = if network.is_ipv4() { 32 } else { 128 };
    // A mask leaves out its zero bytes at the end, and its family.
    let length = if host { all } else { mask_length(mask, family).min(all) };
    Some(KernelRoute {
        net: IpNet::new(network, length).ok()?,
        device: device_of(message)?,
        gateway: if flags & libc::RTF_GATEWAY == 0 { None } else { address(gateway, family) },
    })
}

fn mask_length(mask: &[u8], family: u8) -> u8 {
    let from = if i32::from(family) == libc::AF_INET { 4 } else { 8 };
    mask.get(from..).unwrap_or(&[]).iter().map(|byte| byte.leading_ones() as u8).sum()
}

/// The address in a sockaddr, whose end may be cut where it is zero.
fn address(sockaddr: &[u8], family: u8) -> Option<IpAddr> {
    let filled = |from: usize, into: &mut [u8]| {
        let given = sockaddr.get(from..).unwrap_or(&[]);
        let length = given.len().min(into.len());
        into[..length].copy_from_slice(&given[..length]);
    };
    match i32::from(family) {
        libc::AF_INET => {
            let mut bytes = [0; 4];
            filled(4, &mut bytes);
            Some(Ipv4Addr::from(bytes).into())
        }
        libc::AF_INET6 => {
            let mut bytes = [0; 16];
            filled(8, &mut bytes);
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

fn sockaddr(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => {
            let mut bytes = vec![0; size_of::<libc::sockaddr_in>()];
            bytes[0] = bytes.len() as u8;
            bytes[1] = libc::AF_INET as u8;
            bytes[4..8].copy_from_slice(&address.octets());
            bytes
        }
        IpAddr::V6(address) => {
            let mut bytes = vec![0; size_of::<libc::sockaddr_in6>()];
            bytes[0] = bytes.len() as u8;
            bytes[1] = libc::AF_INET6 as u8;
            bytes[8..24].copy_from_slice(&address.octets());
            bytes
        }
    }
}

fn link_sockaddr(index: u32) -> Vec<u8> {
    let mut bytes = vec![0; size_of::<libc::sockaddr_dl>()];
    bytes[0] = bytes.len() as u8;
    bytes[1] = libc::AF_LINK as u8;
    bytes[2..4].copy_from_slice(&(index as u16).to_ne_bytes());
    bytes
}

const HEADER: usize = size_of::<libc::rt_msghdr>();

const NOT_NETWORKS: libc::c_int = libc::RTF_LLINFO
    | libc::RTF_WASCLONED
    | libc::RTF_LOCAL
    | libc::RTF_BROADCAST
    | libc::RTF_MULTICAST
    | libc::RTF_IFSCOPE;

const ATTEMPTS: usize = 5;
