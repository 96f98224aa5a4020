//! Pure: checked views of the IP packets an application's kernel sends us.
//!
//! What [`Packet::parse`] lets through is safe to hand to smoltcp where it is TCP: lengths add up, no options, no
//! fragments, no extension headers, and both addresses are ones a host may talk to across a router.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, TcpPacket, TcpRepr};

use super::counters::DropReason;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMP: u8 = 1;
pub(super) const ICMP6: u8 = 58;

pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const ACK: u8 = 0x10;

/// One IP packet whose header is sound.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet<'a> {
    pub(super) source: IpAddr,
    pub(super) target: IpAddr,
    pub(super) protocol: u8,
    /// The packet without anything behind its own end.
    pub(super) bytes: &'a [u8],
    /// Length of the IP header.
    pub(super) header: usize,
}

impl<'a> Packet<'a> {
    pub(super) fn parse(bytes: &'a [u8], verify: bool) -> Result<Self, DropReason> {
        let packet = match bytes.first().map(|byte| byte >> 4) {
            Some(4) => Self::parse_v4(bytes, verify)?,
            Some(6) => Self::parse_v6(bytes)?,
            Some(_) => return Err(DropReason::Version),
            None => return Err(DropReason::Length),
        };
        if !may_send(packet.source) {
            return Err(DropReason::Source);
        }
        if packet.target.is_multicast() {
            return Err(DropReason::Multicast);
        }
        if !may_receive(packet.target) {
            return Err(DropReason::Target);
        }
        if packet.source == packet.target {
            return Err(DropReason::SameAddress);
        }
        packet.without_extensions()
    }

    fn parse_v4(bytes: &'a [u8], verify: bool) -> Result<Self, DropReason> {
        let fixed = bytes.get(..V4_HEADER).ok_or(DropReason::Length)?;
        let header = usize::from(fixed[0] & 0x0f) * 4;
        let total = usize::from(u16_at(fixed, 2));
        if header < V4_HEADER || total < header || total > bytes.len() {
            return Err(DropReason::Length);
        }
        if verify && checksum(&[&bytes[..header]]) != 0 {
            return Err(DropReason::Checksum);
        }
        if header > V4_HEADER {
            return Err(DropReason::Options);
        }
        if u16_at(fixed, 6) & 0x3fff != 0 {
            return Err(DropReason::Fragment);
        }
        if fixed[8] == 0 {
            return Err(DropReason::HopLimit);
        }
        let (source, target) = (v4_at(fixed, 12), v4_at(fixed, 16));
        Ok(Self { source, target, protocol: fixed[9], bytes: &bytes[..total], header })
    }

    fn parse_v6(bytes: &'a [u8]) -> Result<Self, DropReason> {
        let fixed = bytes.get(..V6_HEADER).ok_or(DropReason::Length)?;
        let total = V6_HEADER + usize::from(u16_at(fixed, 4));
        if total > bytes.len() {
            return Err(DropReason::Length);
        }
        if fixed[7] == 0 {
            return Err(DropReason::HopLimit);
        }
        let (source, target) = (v6_at(fixed, 8), v6_at(fixed, 24));
        Ok(Self { source, target, protocol: fixed[6], bytes: &bytes[..total], header: V6_HEADER })
    }

    fn without_extensions(self) -> Result<Self, DropReason> {
        match (self.target, self.protocol) {
            (IpAddr::V6(_), V6_FRAGMENT) => Err(DropReason::Fragment),
            (IpAddr::V6(_), 0 | 43 | 50 | 51 | 60 | 135 | 139 | 140) => Err(DropReason::ExtensionHeader),
            _ => Ok(self),
        }
    }

    pub(super) fn payload(&self) -> &'a [u8] {
        &self.bytes[self.header..]
    }

    /// Whether the checksum of the TCP, UDP or ICMPv6 payload holds.
    fn payload_checksum_holds(&self) -> bool {
        let payload = self.payload();
        pseudo_checksum(self.source, self.target, self.protocol, payload) == 0
    }
}

/// The parts of a TCP header that the table decides by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) source_port: u16,
    pub(super) target_port: u16,
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) flags: u8,
    /// As it stands there, not scaled.
    pub(super) window: u16,
    /// Length of the TCP header with its options.
    pub(super) header: usize,
    pub(super) data: usize,
}

impl Segment {
    pub(super) fn parse(packet: &Packet<'_>, verify: bool) -> Result<Self, DropReason> {
        let bytes = packet.payload();
        let fixed = bytes.get(..TCP_HEADER).ok_or(DropReason::TcpHeader)?;
        let header = usize::from(fixed[12] >> 4) * 4;
        let (source_port, target_port) = (u16_at(fixed, 0), u16_at(fixed, 2));
        if header < TCP_HEADER || header > bytes.len() || source_port == 0 || target_port == 0 {
            return Err(DropReason::TcpHeader);
        }
        if verify && !packet.payload_checksum_holds() {
            return Err(DropReason::Checksum);
        }
        let flags = fixed[13];
        let single = [SYN, FIN, RST].iter().filter(|flag| flags & **flag != 0).count();
        if single > 1 || flags & (SYN | RST | ACK) == 0 {
            return Err(DropReason::TcpFlags);
        }
        let (seq, ack, window) = (u32_at(fixed, 4), u32_at(fixed, 8), u16_at(fixed, 14));
        Ok(Self { source_port, target_port, seq, ack, flags, window, header, data: bytes.len() - header })
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// A SYN that asks for a new connection.
    pub(super) fn opens(&self) -> bool {
        self.has(SYN) && !self.has(ACK)
    }

    /// The sequence number behind the segment's last byte of data.
    pub(super) fn end(&self) -> u32 {
        self.seq.wrapping_add(self.data as u32)
    }
}

/// The headers of a SYN, kept until the far side has answered.
#[derive(Clone, Copy)]
pub(super) struct Syn {
    bytes: [u8; Self::MAX],
    len: u8,
    pub(super) seq: u32,
    pub(super) has_window_scale: bool,
    pub(super) has_sack: bool,
}

impl Syn {
    /// The longest IP header we take and the longest TCP header there is.
    const MAX: usize = V6_HEADER + 60;

    /// Keeps the headers, if smoltcp will take their options.
    pub(super) fn keep(packet: &Packet<'_>, segment: &Segment) -> Result<Self, DropReason> {
        let tcp = TcpPacket::new_checked(packet.payload()).map_err(|_| DropReason::TcpHeader)?;
        let (source, target) = (IpAddress::from(packet.source), IpAddress::from(packet.target));
        let repr = TcpRepr::parse(&tcp, &source, &target, &ChecksumCapabilities::ignored())
            .map_err(|_| DropReason::TcpHeader)?;
        let len = packet.header + segment.header;
        let mut bytes = [0; Self::MAX];
        bytes[..len].copy_from_slice(&packet.bytes[..len]);
        // Data on the SYN is not kept: the application sends it again once it is connected.
        match packet.source {
            IpAddr::V4(_) => {
                put_u16(&mut bytes, 2, len as u16);
                put_u16(&mut bytes, 10, 0);
                let sum = checksum(&[&bytes[..V4_HEADER]]);
                put_u16(&mut bytes, 10, sum);
            }
            IpAddr::V6(_) => put_u16(&mut bytes, 4, segment.header as u16),
        }
        Ok(Self {
            bytes,
            len: len as u8,
            seq: segment.seq,
            has_window_scale: repr.window_scale.is_some(),
            has_sack: repr.sack_permitted,
        })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// A UDP datagram.
pub(super) struct Datagram<'a> {
    pub(super) source_port: u16,
    pub(super) target_port: u16,
    pub(super) payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    pub(super) fn parse(packet: &Packet<'a>, verify: bool) -> Result<Self, DropReason> {
        let bytes = packet.payload();
        let fixed = bytes.get(..8).ok_or(DropReason::Length)?;
        let (source_port, target_port) = (u16_at(fixed, 0), u16_at(fixed, 2));
        let datagram = bytes.get(..usize::from(u16_at(fixed, 4))).ok_or(DropReason::Length)?;
        let payload = datagram.get(8..).ok_or(DropReason::Length)?;
        let unsummed = u16_at(fixed, 6) == 0 && packet.source.is_ipv4();
        if verify && !unsummed && pseudo_checksum(packet.source, packet.target, UDP, datagram) != 0 {
            return Err(DropReason::Checksum);
        }
        if source_port == 0 || target_port == 0 {
            return Err(DropReason::UdpPort);
        }
        Ok(Self { source_port, target_port, payload })
    }
}

/// An echo request.
pub(super) struct Echo<'a> {
    pub(super) identifier: u16,
    pub(super) sequence: u16,
    pub(super) payload: &'a [u8],
}

impl<'a> Echo<'a> {
    pub(super) fn parse(packet: &Packet<'a>, verify: bool) -> Result<Self, DropReason> {
        let bytes = packet.payload();
        let (fixed, payload) = bytes.split_at_checked(8).ok_or(DropReason::Length)?;
        let (request, holds) = match packet.source {
            IpAddr::V4(_) => (8, !verify || checksum(&[bytes]) == 0),
            IpAddr::V6(_) => (128, !verify || packet.payload_checksum_holds()),
        };
        if !holds {
            return Err(DropReason::Checksum);
        }
        if fixed[0] != request || fixed[1] != 0 {
            return Err(DropReason::IcmpType);
        }
        Ok(Self { identifier: u16_at(fixed, 4), sequence: u16_at(fixed, 6), payload })
    }
}

/// The length of the IP header we send to and take from this address.
pub(super) fn header_of(address: IpAddr) -> usize {
    if address.is_ipv4() { V4_HEADER } else { V6_HEADER }
}

/// What a TCP packet that smoltcp built told the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) seq: u32,
    /// The sequence number behind everything in the packet.
    pub(super) end: u32,
    pub(super) ack: u32,
    pub(super) window: u16,
    pub(super) flags: u8,
}

impl Told {
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let header = if bytes.first()? >> 4 == 4 { V4_HEADER } else { V6_HEADER };
        let tcp = bytes.get(header..header + TCP_HEADER)?;
        let (seq, flags) = (u32_at(tcp, 4), tcp[13]);
        let data = bytes.len().saturating_sub(header + usize::from(tcp[12] >> 4) * 4);
        let control = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        let end = seq.wrapping_add(data as u32).wrapping_add(control);
        Some(Self { seq, end, ack: u32_at(tcp, 8), window: u16_at(tcp, 14), flags })
    }
}

/// The sequence number of a TCP packet that smoltcp built, and that behind all it takes up.
#[inline]
pub(super) fn sequence(bytes: &[u8]) -> Option<(u32, u32)> {
    let header = if bytes.first()? >> 4 == 4 { V4_HEADER } else { V6_HEADER };
    let tcp = bytes.get(header..header + TCP_HEADER)?;
    let data = (bytes.len() - header).saturating_sub(usize::from(tcp[12] >> 4) * 4) as u32;
    let control = u32::from(tcp[13] & SYN != 0) + u32::from(tcp[13] & FIN != 0);
    let seq = u32_at(tcp, 4);
    Some((seq, seq.wrapping_add(data).wrapping_add(control)))
}

/// Whether a host that an application runs on may send from this address.
pub(super) fn may_send(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => unicast_v4(address),
        IpAddr::V6(address) => unicast_v6(address),
    }
}

/// Whether a packet across a router may go to this address.
fn may_receive(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => unicast_v4(address),
        IpAddr::V6(address) => unicast_v6(address) && !address.is_unicast_link_local(),
    }
}

fn unicast_v4(address: Ipv4Addr) -> bool {
    !matches!(address.octets()[0], 0 | 127 | 224..)
}

/// Neither multicast nor in ::/96 (unspecified, loopback, old IPv4-compatible) nor IPv4-mapped.
fn unicast_v6(address: Ipv6Addr) -> bool {
    let high = u128::from(address) >> 32;
    !address.is_multicast() && high != 0 && high != 0xffff
}

/// The one's complement sum of the parts, complemented: 0 over data that holds a right checksum.
///
/// Every part but the last has an even length.
pub(super) fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum: u64 = parts.iter().map(|part| sum_of(part)).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // Such a sum is the same in either byte order, but for the order of its own bytes.
    !u16::from_be(sum as u16)
}

/// In the machine's byte order, which the compiler turns into few wide instructions.
fn sum_of(bytes: &[u8]) -> u64 {
    let word = |at: &[u8]| at.first_chunk().map_or(0, |word| u64::from(u32::from_ne_bytes(*word)));
    let mut blocks = bytes.chunks_exact(32);
    let mut sums = [0; 8];
    for block in &mut blocks {
        for (sum, at) in sums.iter_mut().zip(block.chunks_exact(4)) {
            *sum += word(at);
        }
    }
    let mut last = [0; 32];
    let rest = blocks.remainder();
    last[..rest.len()].copy_from_slice(rest);
    sums.into_iter().sum::<u64>() + last.chunks_exact(4).map(word).sum::<u64>()
}

pub(super) fn pseudo_checksum(source: IpAddr, target: IpAddr, protocol: u8, payload: &[u8]) -> u16 {
    let length = (payload.len() as u32).to_be_bytes();
    let tail = [0, 0, 0, protocol];
    match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            checksum(&[&source.octets(), &target.octets(), &length, &tail, payload])
        }
        (source, target) => checksum(&[&v6_octets(source), &v6_octets(target), &length, &tail, payload]),
    }
}

/// Fills in the checksum of a TCP packet without IP options: the whole, or that of the pseudo-header alone for
/// a device that does the rest.
pub(super) fn fill_tcp_checksum(bytes: &mut [u8], whole: bool) {
    fill_checksum(bytes, TCP, 16, whole);
}

/// The same for a UDP packet, where a checksum of 0 says that there is none.
pub(super) fn fill_udp_checksum(bytes: &mut [u8], whole: bool) {
    fill_checksum(bytes, UDP, 6, whole);
}

fn fill_checksum(bytes: &mut [u8], protocol: u8, at: usize, whole: bool) {
    let (addresses, header) = match bytes.first() {
        Some(first) if first >> 4 == 4 => (12..V4_HEADER, V4_HEADER),
        Some(_) | None => (8..V6_HEADER, V6_HEADER),
    };
    let Some((ip, payload)) =
        bytes.split_at_mut_checked(header).filter(|(_, payload)| payload.len() >= at + 2)
    else {
        return;
    };
    put_u16(payload, at, 0);
    let length = (payload.len() as u32).to_be_bytes();
    let pseudo = [&ip[addresses], &length, &[0, 0, 0, protocol]];
    let sum = if whole {
        match checksum(&[pseudo[0], pseudo[1], pseudo[2], payload]) {
            0 if protocol == UDP => u16::MAX,
            sum => sum,
        }
    } else {
        // What is still to be added goes on top, so this part is not complemented yet.
        !checksum(&pseudo)
    };
    put_u16(payload, at, sum);
}

pub(super) fn v6_octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(super) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

pub(super) fn v4_at(bytes: &[u8], at: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(u32_at(bytes, at)))
}

pub(super) fn v6_at(bytes: &[u8], at: usize) -> IpAddr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&bytes[at..at + 16]);
    IpAddr::V6(Ipv6Addr::from(octets))
}

pub(super) const V4_HEADER: usize = 20;
pub(super) const V6_HEADER: usize = 40;
pub(super) const TCP_HEADER: usize = 20;
const V6_FRAGMENT: u8 = 44;

#[cfg(test)]
mod tests {
    use super::*;

    /// A SYN of 10.99.0.1:40000 to 10.0.1.5:5432, sequence number 1000, MSS 1460, window scale 7, and three
    /// bytes of data.
    const SYN_V4: [u8; 51] = [
        0x45, 0x00, 0x00, 0x33, 0x12, 0x34, 0x40, 0x00, 0x40, 0x06, 0x13, 0x29, 0x0a, 0x63, 0x00, 0x01, 0x0a,
        0x00, 0x01, 0x05, 0x9c, 0x40, 0x15, 0x38, 0x00, 0x00, 0x03, 0xe8, 0x00, 0x00, 0x00, 0x00, 0x70, 0x02,
        0xfa, 0xf0, 0xf3, 0xff, 0x00, 0x00, 0x02, 0x04, 0x05, 0xb4, 0x03, 0x03, 0x07, 0x00, 0x61, 0x62, 0x63,
    ];

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 40];
        bytes[0] = 0x60;
        put_u16(&mut bytes, 4, payload.len() as u16);
        bytes[6] = next;
        bytes[7] = 64;
        bytes[8] = 0xfd;
        bytes[24] = 0xfd;
        bytes[39] = 1;
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn a_syn_is_read_field_by_field() {
        let packet = Packet::parse(&SYN_V4, true).unwrap();
        assert_eq!(packet.source, IpAddr::from([10, 99, 0, 1]));
        assert_eq!(packet.target, IpAddr::from([10, 0, 1, 5]));
        let segment = Segment::parse(&packet, true).unwrap();
        let expected = Segment {
            source_port: 40_000,
            target_port: 5432,
            seq: 1000,
            ack: 0,
            flags: SYN,
            window: u16_at(&SYN_V4, V4_HEADER + 14),
            header: 28,
            data: 3,
        };
        assert_eq!(segment, expected);
        assert!(segment.opens());
        assert_eq!(segment.end(), 1003);
    }

    #[test]
    fn every_prefix_of_a_packet_is_an_error() {
        for length in 0..SYN_V4.len() {
            assert_eq!(Packet::parse(&SYN_V4[..length], true).unwrap_err(), DropReason::Length, "{length}");
        }
        let udp = v6(UDP, &[0, 1, 0, 2, 0, 8, 0, 0]);
        for length in 0..udp.len() {
            assert_eq!(Packet::parse(&udp[..length], true).unwrap_err(), DropReason::Length, "{length}");
        }
    }

    #[test]
    fn bytes_behind_the_packet_do_not_count() {
        let longer = [&SYN_V4[..], &[0xff; 9]].concat();
        let packet = Packet::parse(&longer, true).unwrap();
        assert_eq!(packet.bytes, SYN_V4);
        assert!(Segment::parse(&packet, true).is_ok());
    }

    #[test]
    fn every_damaged_byte_is_noticed() {
        for at in 0..SYN_V4.len() {
            let mut bytes = SYN_V4;
            bytes[at] ^= 0x01;
            let parsed = Packet::parse(&bytes, true).and_then(|packet| Segment::parse(&packet, true));
            assert!(parsed.is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_kept_syn_has_the_options_but_not_the_data() {
        let packet = Packet::parse(&SYN_V4, true).unwrap();
        let segment = Segment::parse(&packet, true).unwrap();
        let syn = Syn::keep(&packet, &segment).unwrap();
        assert_eq!((syn.seq, syn.has_window_scale), (1000, true));
        let kept = Packet::parse(syn.bytes(), true).unwrap();
        assert_eq!(kept.bytes.len(), 48);
        assert_eq!(kept.payload(), &SYN_V4[20..48]);
    }

    #[test]
    fn options_smoltcp_would_refuse_are_refused_at_once() {
        let mut bytes = SYN_V4;
        bytes[41] = 0;
        let packet = Packet::parse(&bytes, false).unwrap();
        let segment = Segment::parse(&packet, false).unwrap();
        assert_eq!(Syn::keep(&packet, &segment).err(), Some(DropReason::TcpHeader));
    }

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        for flags in [0, FIN, SYN | FIN, SYN | RST, FIN | RST | ACK, 0x08, 0x29] {
            let mut bytes = SYN_V4;
            bytes[33] = flags;
            let packet = Packet::parse(&bytes, false).unwrap();
            assert_eq!(Segment::parse(&packet, false), Err(DropReason::TcpFlags), "{flags:#x}");
        }
    }

    #[test]
    fn addresses_no_router_carries_are_refused() {
        for address in ["::1", "::", "::10.0.0.1", "::ffff:10.0.0.1", "ff02::1"] {
            let address: Ipv6Addr = address.parse().unwrap();
            let mut bytes = v6(UDP, &[0; 8]);
            bytes[8..24].copy_from_slice(&address.octets());
            assert_eq!(Packet::parse(&bytes, true).unwrap_err(), DropReason::Source, "{address}");
            let mut bytes = v6(UDP, &[0; 8]);
            bytes[24..40].copy_from_slice(&address.octets());
            let reason = if address.is_multicast() { DropReason::Multicast } else { DropReason::Target };
            assert_eq!(Packet::parse(&bytes, true).unwrap_err(), reason, "{address}");
        }
    }

    #[test]
    fn a_datagram_without_checksum_is_sound_in_ipv4_only() {
        let unsummed = [0, 53, 0, 53, 0, 8, 0, 0];
        let packet = v6(UDP, &unsummed);
        let packet = Packet::parse(&packet, true).unwrap();
        assert_eq!(Datagram::parse(&packet, true).err(), Some(DropReason::Checksum));
        let mut bytes = SYN_V4[..20].to_vec();
        bytes.extend_from_slice(&unsummed);
        bytes[3] = 28;
        bytes[9] = UDP;
        let packet = Packet::parse(&bytes, false).unwrap();
        assert!(Datagram::parse(&packet, true).is_ok());
    }

    #[test]
    fn what_a_device_adds_to_a_partial_checksum_makes_it_whole() {
        let mut tcp = [0; TCP_HEADER + 3];
        (tcp[1], tcp[3], tcp[12], tcp[13]) = (7, 9, 5 << 4, ACK);
        tcp[TCP_HEADER..].copy_from_slice(b"odd");
        let mut v4 = [&SYN_V4[..V4_HEADER], &tcp].concat();
        put_u16(&mut v4, 2, (V4_HEADER + tcp.len()) as u16);
        for packet in [v4, v6(TCP, &tcp)] {
            let header = packet.len() - tcp.len();
            let mut whole = packet.clone();
            fill_tcp_checksum(&mut whole, true);
            let mut partial = packet;
            fill_tcp_checksum(&mut partial, false);
            assert_ne!(partial, whole);
            let rest = checksum(&[&partial[header..]]);
            put_u16(&mut partial[header..], 16, rest);
            assert_eq!(partial, whole);
            assert!(Segment::parse(&Packet::parse(&whole, false).unwrap(), true).is_ok());
        }
    }

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        assert_eq!(checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
        assert_eq!(checksum(&[&[0x00, 0x01], &[0xf2, 0x03, 0xf4]]), !0xe605);
        assert_eq!(checksum(&[]), 0xffff);
        let long: Vec<u8> = (0..1001u32).map(|at| (at * 7) as u8).collect();
        for length in 0..long.len() {
            let words = long[..length].chunks(2);
            let sum: u32 =
                words.map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0))).sum();
            let folded = (sum & 0xffff) + (sum >> 16);
            let folded = (folded & 0xffff) + (folded >> 16);
            assert_eq!(checksum(&[&long[..length]]), !(folded as u16), "{length} bytes");
        }
    }
}
