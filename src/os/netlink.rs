//! Linux: blocking rtnetlink requests, one at a time, so that clean-up needs no runtime.

#![expect(clippy::wildcard_enum_match_arm, reason = "netlink's enums are not ours and grow")]

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::rule::RuleMessage;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};
use rustix::io::Errno;

/// The answer's inner value if it is the expected variant.
macro_rules! variant {
    ($answer:expr, $variant:ident) => {
        match $answer {
            RouteNetlinkMessage::$variant(message) => Some(message),
            _ => None,
        }
    };
}
/// A netlink socket in the network namespace of the thread that opened it.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket2::SockRef::from(&socket).set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket, sequence: 0 })
    }

    pub(super) fn links(&mut self) -> io::Result<Vec<LinkMessage>> {
        let answers = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        Ok(answers.into_iter().filter_map(|answer| variant!(answer, NewLink)).collect())
    }

    pub(super) fn addresses(&mut self) -> io::Result<Vec<AddressMessage>> {
        let answers = self.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        Ok(answers.into_iter().filter_map(|answer| variant!(answer, NewAddress)).collect())
    }

    /// The routes of every table.
    pub(super) fn routes(&mut self, family: AddressFamily) -> io::Result<Vec<RouteMessage>> {
        let mut wanted = RouteMessage::default();
        wanted.header.address_family = family;
        let answers = self.dump(RouteNetlinkMessage::GetRoute(wanted))?;
        Ok(answers.into_iter().filter_map(|answer| variant!(answer, NewRoute)).collect())
    }

    pub(super) fn rules(&mut self, family: AddressFamily) -> io::Result<Vec<RuleMessage>> {
        let mut wanted = RuleMessage::default();
        wanted.header.family = family;
        let answers = self.dump(RouteNetlinkMessage::GetRule(wanted))?;
        Ok(answers.into_iter().filter_map(|answer| variant!(answer, NewRule)).collect())
    }

    pub(super) fn link_index(&mut self, name: &str) -> io::Result<Option<u32>> {
        let links = self.links()?;
        Ok(links.iter().find(|link| link_name(link) == Some(name)).map(|link| link.header.index))
    }

    /// The name of the device that has this address.
    pub(super) fn device_of(&mut self, address: IpAddr) -> io::Result<Option<String>> {
        let Some(index) = self
            .addresses()?
            .iter()
            .find(|message| address_of(message) == Some(address))
            .map(|message| message.header.index)
        else {
            return Ok(None);
        };
        let links = self.links()?;
        let name = links.iter().find(|link| link.header.index == index).and_then(link_name);
        Ok(Some(name.unwrap_or("another device").to_owned()))
    }

    /// Keeps the system from sending packets of its own to the device: no link-local address, no router
    /// solicitations, no multicast.
    pub(super) fn quieten(&mut self, index: u32) -> io::Result<()> {
        let mut multicast_off = LinkMessage::default();
        multicast_off.header.index = index;
        multicast_off.header.change_mask = LinkFlags::Multicast;
        self.change(RouteNetlinkMessage::SetLink(multicast_off), 0)?;

        let mut no_link_local = LinkMessage::default();
        no_link_local.header.index = index;
        no_link_local.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![
            AfSpecInet6::AddrGenMode(In6AddrGenMode::None),
        ])]));
        match self.change(RouteNetlinkMessage::SetLink(no_link_local), 0) {
            // A kernel without IPv6 makes no link-local address either.
            Err(error) if is(&error, &[Errno::AFNOSUPPORT, Errno::OPNOTSUPP, Errno::INVAL]) => Ok(()),
            done => done,
        }
    }

    pub(super) fn set_queue_length(&mut self, index: u32, packets: u32) -> io::Result<()> {
        let mut queue = LinkMessage::default();
        queue.header.index = index;
        queue.attributes.push(LinkAttribute::TxQueueLen(packets));
        self.change(RouteNetlinkMessage::SetLink(queue), 0)
    }

    pub(super) fn set_up(&mut self, index: u32) -> io::Result<()> {
        let mut up = LinkMessage::default();
        up.header.index = index;
        up.header.flags = LinkFlags::Up;
        up.header.change_mask = LinkFlags::Up;
        self.change(RouteNetlinkMessage::SetLink(up), 0)
    }

    pub(super) fn add_address(&mut self, index: u32, network: IpNet) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(&network);
        message.header.prefix_len = network.prefix_len();
        message.header.scope = AddressScope::Universe;
        message.header.index = index;
        message.attributes.push(AddressAttribute::Local(network.addr()));
        message.attributes.push(AddressAttribute::Address(network.addr()));
        // Nobody else is on the device, so there is no duplicate to wait for.
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        self.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Adds it; one that is there already is fine.
    pub(super) fn add_rule(&mut self, rule: RuleMessage) -> io::Result<()> {
        present(self.change(RouteNetlinkMessage::NewRule(rule), NLM_F_CREATE | NLM_F_EXCL))
    }

    /// Removes it; one that is gone already is fine.
    pub(super) fn remove_rule(&mut self, rule: RuleMessage) -> io::Result<()> {
        absent(self.change(RouteNetlinkMessage::DelRule(rule), 0))
    }

    /// Adds it; one that is there already is fine.
    pub(super) fn add_route(&mut self, route: RouteMessage) -> io::Result<()> {
        present(self.change(RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_EXCL))
    }

    /// Removes it; one that is gone already is fine.
    pub(super) fn remove_route(&mut self, route: RouteMessage) -> io::Result<()> {
        absent(self.change(RouteNetlinkMessage::DelRoute(route), 0))
    }

    fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.exchange(message, NLM_F_ACK | flags).map(|_| ())
    }

    fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        match self.exchange(message, NLM_F_DUMP) {
            // A kernel without IPv6 has nothing of that family to tell.
            Err(error) if is(&error, &[Errno::AFNOSUPPORT, Errno::OPNOTSUPP]) => Ok(Vec::new()),
            done => done,
        }
    }

    fn exchange(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for message in messages(&datagram) {
                // A dump may hold an attribute that this crate cannot read yet; the rest of it is still good.
                let message = match message {
                    Ok(message) => message,
                    Err(error) => {
                        tracing::debug!(%error, "skipped a netlink message");
                        continue;
                    }
                };
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::Overrun(_) => return Err(io::Error::other("netlink lost messages")),
                    _ => {}
                }
            }
        }
    }
}

/// The messages in one datagram; one that does not parse is an error and ends the datagram.
pub(super) fn messages(
    datagram: &[u8],
) -> impl Iterator<Item = io::Result<NetlinkMessage<RouteNetlinkMessage>>> + '_ {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let Some(bytes) = rest.get(..length).filter(|_| length >= HEADER_LENGTH) else {
            rest = &[];
            return Some(Err(io::Error::new(io::ErrorKind::InvalidData, "a netlink message was cut short")));
        };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(NetlinkMessage::deserialize(bytes).map_err(io::Error::other))
    })
}

pub(super) fn family(network: &IpNet) -> AddressFamily {
    match network {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    }
}

pub(super) fn link_name(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

/// The device's own address: `Local` where there is a peer, `Address` for IPv6.
pub(super) fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

fn present(outcome: io::Result<()>) -> io::Result<()> {
    outcome.or_else(|error| if is(&error, &[Errno::EXIST]) { Ok(()) } else { Err(error) })
}

fn absent(outcome: io::Result<()>) -> io::Result<()> {
    let gone = [Errno::NOENT, Errno::SRCH, Errno::NODEV, Errno::AFNOSUPPORT];
    outcome.or_else(|error| if is(&error, &gone) { Ok(()) } else { Err(error) })
}

fn is(error: &io::Error, errnos: &[Errno]) -> bool {
    Errno::from_io_error(error).is_some_and(|errno| errnos.contains(&errno))
}

/// The kernel answers at once; this only keeps a wedged one from hanging us.
const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of a netlink message's header.
const HEADER_LENGTH: usize = 16;
