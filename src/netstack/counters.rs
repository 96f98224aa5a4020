//! Pure: what the netstack counts.

use agent::wire::open::Kind;

/// Why a packet went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// Shorter than its headers say.
    Length,
    /// Neither IPv4 nor IPv6.
    Version,
    Checksum,
    /// IPv4 options.
    Options,
    /// A fragment of TCP, or a datagram that could not be put together.
    Fragment,
    /// Hop limit (TTL) 0.
    HopLimit,
    /// A source no host may send from: multicast, broadcast, loopback, unspecified, IPv4-mapped.
    Source,
    /// A target that is not one host across a router.
    Target,
    /// A group as target. Kernels send such packets to every device of their own accord.
    Multicast,
    /// Source and target are the same address.
    SameAddress,
    /// An IPv6 extension header.
    ExtensionHeader,
    /// Neither TCP nor UDP nor ICMP; its sender is told, within the rate.
    Protocol,
    /// A TCP header that does not add up.
    TcpHeader,
    /// TCP flags that contradict each other.
    TcpFlags,
    /// A UDP port of 0.
    UdpPort,
    /// Data behind the application's own FIN.
    AfterFin,
    /// Data wholly beyond the window we offered.
    Window,
    /// An acknowledgement of what we never sent (RFC 5961, 5).
    AckUnsent,
    /// A reset that is not exactly at the next byte; it is challenged where it is close (RFC 5961, 3).
    ResetPlace,
    /// A SYN inside a connection; it is challenged (RFC 5961, 4).
    SynInside,
    /// A reset for no flow of ours.
    StrayReset,
    /// An ICMP message other than an echo request.
    IcmpType,
    /// A SYN beyond the bound of connections that wait for an answer.
    PendingFull,
    /// A SYN or a first datagram beyond the bound of flows.
    FlowsFull,
    /// An answer of our own beyond the rate we send them at.
    ReplyRate,
    /// An answer of our own while too many wait for the device.
    ReplyFull,
}

impl DropReason {
    pub const ALL: [Self; 26] = [
        Self::Length,
        Self::Version,
        Self::Checksum,
        Self::Options,
        Self::Fragment,
        Self::HopLimit,
        Self::Source,
        Self::Target,
        Self::Multicast,
        Self::SameAddress,
        Self::ExtensionHeader,
        Self::Protocol,
        Self::TcpHeader,
        Self::TcpFlags,
        Self::UdpPort,
        Self::AfterFin,
        Self::Window,
        Self::AckUnsent,
        Self::ResetPlace,
        Self::SynInside,
        Self::StrayReset,
        Self::IcmpType,
        Self::PendingFull,
        Self::FlowsFull,
        Self::ReplyRate,
        Self::ReplyFull,
    ];

    /// The name that metrics and logs use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Length => "length",
            Self::Version => "version",
            Self::Checksum => "checksum",
            Self::Options => "options",
            Self::Fragment => "fragment",
            Self::HopLimit => "hop_limit",
            Self::Source => "source",
            Self::Target => "target",
            Self::Multicast => "multicast",
            Self::SameAddress => "same_address",
            Self::ExtensionHeader => "extension_header",
            Self::Protocol => "protocol",
            Self::TcpHeader => "tcp_header",
            Self::TcpFlags => "tcp_flags",
            Self::UdpPort => "udp_port",
            Self::AfterFin => "after_fin",
            Self::Window => "window",
            Self::AckUnsent => "ack_unsent",
            Self::ResetPlace => "reset_place",
            Self::SynInside => "syn_inside",
            Self::StrayReset => "stray_reset",
            Self::IcmpType => "icmp_type",
            Self::PendingFull => "pending_full",
            Self::FlowsFull => "flows_full",
            Self::ReplyRate => "reply_rate",
            Self::ReplyFull => "reply_full",
        }
    }
}

/// What a [`Stack`](super::Stack) has seen and done.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Packets and bytes from the applications.
    pub packets_in: u64,
    pub bytes_in: u64,
    /// Packets and bytes the device took.
    pub packets_out: u64,
    pub bytes_out: u64,
    /// SYNs, and datagrams from new sockets, that became a flow.
    pub flows_opened: u64,
    /// Flows there are, whatever their state.
    pub flows_now: usize,
    /// Flows that wait for `accept` or `refuse`.
    pub flows_pending: usize,
    /// SYNs of a connection that was already waiting.
    pub syns_repeated: u64,
    /// Resets we sent for segments of no flow.
    pub stray_segments: u64,
    /// Errors told to applications about UDP datagrams and about echo requests.
    pub udp_unreachable: u64,
    pub echo_unreachable: u64,
    /// Whether the agent said last that it may not ping.
    pub echo_prohibited: bool,
    /// Datagrams and echo requests of applications, and those that were dropped because they waited for too long.
    pub datagrams_up: u64,
    pub datagrams_lost_up: u64,
    /// Datagrams and echo replies for applications, and those that were dropped.
    pub datagrams_down: u64,
    pub datagrams_lost_down: u64,
    /// UDP and echo flows that made room for new ones.
    pub associations_evicted: u64,
    /// Flows ended because the agent sent what is no message.
    pub messages_broken: u64,
    /// Silent flows whose rings gave their pages back.
    pub rests: u64,
    /// Calls into smoltcp; the work per packet is this over the packets.
    pub socket_polls: u64,
    drops: [u64; DropReason::ALL.len()],
}

impl Counters {
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Every reason with its count, in a fixed order.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.into_iter().zip(self.drops)
    }

    pub(super) fn count_unreachable(&mut self, kind: Kind) {
        *(if kind == Kind::Echo { &mut self.echo_unreachable } else { &mut self.udp_unreachable }) += 1;
    }

    pub(super) fn drop(&mut self, reason: DropReason) {
        self.drop_many(reason, 1);
    }

    pub(super) fn drop_many(&mut self, reason: DropReason, count: u64) {
        self.drops[reason as usize] += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_place_and_name() {
        for (place, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, place);
            assert_eq!(DropReason::ALL.into_iter().filter(|other| other.name() == reason.name()).count(), 1);
        }
    }
}
