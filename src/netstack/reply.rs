//! Pure: the packets we build without smoltcp: resets, challenges, ICMP errors, datagrams and echo replies.

use std::net::{IpAddr, SocketAddr};

use super::icmp::Error;
use super::packet::{
    ACK, FIN, ICMP, ICMP6, Packet, RST, SYN, Segment, TCP, TCP_HEADER, UDP, V4_HEADER, V6_HEADER, checksum,
    fill_tcp_checksum, fill_udp_checksum, pseudo_checksum, put_u16, u16_at, v6_octets,
};
use super::peers::Quote;

/// What a TCP segment without data says.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Header {
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) flags: u8,
    pub(super) window: u16,
    /// Bytes that came twice (RFC 2883).
    pub(super) twice: Option<(u32, u32)>,
}

/// Builds the reset that answers a segment (RFC 9293, 3.10.7.1); `out` is cleared first.
///
/// `sum` is whether the TCP checksum is the whole one.
pub(super) fn build_reset(packet: &Packet<'_>, segment: &Segment, sum: bool, out: &mut Vec<u8>) {
    let header = if segment.has(ACK) {
        Header { seq: segment.ack, flags: RST, ..Header::default() }
    } else {
        let control = u32::from(segment.has(SYN)) + u32::from(segment.has(FIN));
        Header { ack: segment.end().wrapping_add(control), flags: RST | ACK, ..Header::default() }
    };
    build_tcp(packet, segment, header, sum, out);
}

/// Builds an acknowledgement that makes whoever sent a doubtful segment into a connection say whether the connection
/// still stands (RFC 5961); `out` is cleared first.
pub(super) fn build_challenge(
    packet: &Packet<'_>,
    segment: &Segment,
    (seq, ack): (u32, u32),
    sum: bool,
    out: &mut Vec<u8>,
) {
    build_tcp(packet, segment, Header { seq, ack, flags: ACK, ..Header::default() }, sum, out);
}

/// Builds an answer to `segment` without data; `out` is cleared first.
pub(super) fn build_tcp(
    packet: &Packet<'_>,
    segment: &Segment,
    header: Header,
    sum: bool,
    out: &mut Vec<u8>,
) {
    let options = if header.twice.is_some() { TWICE } else { 0 };
    let at = start_ip(out, packet.target, packet.source, TCP, TCP_HEADER + options);
    let tcp = &mut out[at..];
    put_u16(tcp, 0, segment.target_port);
    put_u16(tcp, 2, segment.source_port);
    tcp[4..8].copy_from_slice(&header.seq.to_be_bytes());
    tcp[8..12].copy_from_slice(&header.ack.to_be_bytes());
    tcp[12] = ((TCP_HEADER + options) as u8 / 4) << 4;
    tcp[13] = header.flags;
    put_u16(tcp, 14, header.window);
    if let Some((first, end)) = header.twice {
        // Two times nothing, for alignment.
        tcp[20..24].copy_from_slice(&[1, 1, 5, 10]);
        tcp[24..28].copy_from_slice(&first.to_be_bytes());
        tcp[28..32].copy_from_slice(&end.to_be_bytes());
    }
    fill_tcp_checksum(out, sum);
}

/// Builds an ICMP or ICMPv6 destination unreachable that quotes `packet`; `out` is cleared first.
///
/// It comes from the address the packet was for.
pub(super) fn build_unreachable(packet: &Packet<'_>, code: u8, out: &mut Vec<u8>) {
    let kind = if packet.target.is_ipv4() { 3 } else { 1 };
    build_error_about(packet, Error { kind, code, detail: 0 }, out);
}

/// Builds an ICMP or ICMPv6 error that quotes `packet`, as [`build_unreachable`].
pub(super) fn build_error_about(packet: &Packet<'_>, error: Error, out: &mut Vec<u8>) {
    let most = match packet.target {
        IpAddr::V4(_) => V4_ERROR - V4_HEADER - ICMP_HEADER,
        IpAddr::V6(_) => V6_ERROR - V6_HEADER - ICMP_HEADER,
    };
    let quote = &packet.bytes[..packet.bytes.len().min(most)];
    build_icmp(packet.target, packet.source, (error.kind, error.code), detail(error), quote, out);
}

/// Builds an ICMP or ICMPv6 error about a datagram of which only the beginning is left.
pub(super) fn build_error(quote: &Quote, error: Error, out: &mut Vec<u8>) {
    build_icmp(quote.target, quote.source, (error.kind, error.code), detail(error), quote.bytes(), out);
}

/// ICMPv6 has 32 bits for it, of which these are the lower ones, as ICMP has.
fn detail(error: Error) -> [u8; 4] {
    u32::from(error.detail).to_be_bytes()
}

/// Builds what a target answers to the echo request of this identifier and sequence number.
pub(super) fn build_echo_reply(
    source: IpAddr,
    target: IpAddr,
    (identifier, sequence): (u16, u16),
    payload: &[u8],
    out: &mut Vec<u8>,
) {
    let kind = if source.is_ipv4() { 0 } else { 129 };
    let ([a, b], [c, d]) = (identifier.to_be_bytes(), sequence.to_be_bytes());
    build_icmp(source, target, (kind, 0), [a, b, c, d], payload, out);
}

fn build_icmp(
    source: IpAddr,
    target: IpAddr,
    (kind, code): (u8, u8),
    rest: [u8; 4],
    payload: &[u8],
    out: &mut Vec<u8>,
) {
    let protocol = if source.is_ipv4() { ICMP } else { ICMP6 };
    let header = start_ip(out, source, target, protocol, ICMP_HEADER + payload.len());
    let icmp = &mut out[header..];
    icmp[0] = kind;
    icmp[1] = code;
    icmp[4..ICMP_HEADER].copy_from_slice(&rest);
    icmp[ICMP_HEADER..].copy_from_slice(payload);
    let sum = match source {
        IpAddr::V4(_) => checksum(&[icmp]),
        IpAddr::V6(_) => pseudo_checksum(source, target, protocol, icmp),
    };
    put_u16(icmp, 2, sum);
}

/// Builds a UDP datagram; `sum` is whether its checksum is the whole one.
pub(super) fn build_udp(
    source: SocketAddr,
    target: SocketAddr,
    payload: &[u8],
    sum: bool,
    out: &mut Vec<u8>,
) {
    let length = DATAGRAM_HEADER + payload.len();
    let header = start_ip(out, source.ip(), target.ip(), UDP, length);
    let udp = &mut out[header..];
    put_u16(udp, 0, source.port());
    put_u16(udp, 2, target.port());
    put_u16(udp, 4, length as u16);
    udp[DATAGRAM_HEADER..].copy_from_slice(payload);
    fill_udp_checksum(out, sum);
}

/// Changes the window of a TCP packet without options in its IP header.
pub(super) fn set_window(bytes: &mut [u8], window: u16, summed: bool) {
    let header = if bytes[0] >> 4 == 4 { V4_HEADER } else { V6_HEADER };
    let tcp = &mut bytes[header..];
    if summed {
        // RFC 1624, equation 3.
        let parts = [!u16_at(tcp, 16), !u16_at(tcp, 14), window];
        let sum: u32 = parts.into_iter().map(u32::from).sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        put_u16(tcp, 16, !((folded & 0xffff) + (folded >> 16)) as u16);
    }
    put_u16(tcp, 14, window);
}

/// Makes `out` an IP header and `length` zero bytes; answers where those begin.
fn start_ip(out: &mut Vec<u8>, source: IpAddr, target: IpAddr, protocol: u8, length: usize) -> usize {
    out.clear();
    match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            out.resize(V4_HEADER + length, 0);
            out[0] = 0x45;
            put_u16(out, 2, (V4_HEADER + length) as u16);
            put_u16(out, 6, 0x4000);
            out[8] = HOP_LIMIT;
            out[9] = protocol;
            out[12..16].copy_from_slice(&source.octets());
            out[16..20].copy_from_slice(&target.octets());
            let sum = checksum(&[&out[..V4_HEADER]]);
            put_u16(out, 10, sum);
            V4_HEADER
        }
        (source, target) => {
            out.resize(V6_HEADER + length, 0);
            out[0] = 0x60;
            put_u16(out, 4, length as u16);
            out[6] = protocol;
            out[7] = HOP_LIMIT;
            out[8..24].copy_from_slice(&v6_octets(source));
            out[24..40].copy_from_slice(&v6_octets(target));
            V6_HEADER
        }
    }
}

/// Of UDP and of an echo.
pub(super) const DATAGRAM_HEADER: usize = 8;
const ICMP_HEADER: usize = 8;
/// The option for bytes that came twice.
const TWICE: usize = 12;
const HOP_LIMIT: u8 = 64;
/// The longest ICMP error (RFC 1812, 4.3.2.3).
const V4_ERROR: usize = 576;
/// The longest ICMPv6 error (RFC 4443, 2.4).
const V6_ERROR: usize = 1280;
