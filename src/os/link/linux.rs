//! Linux: rtnetlink's multicast groups, and the difference of two clocks.

#![expect(clippy::wildcard_enum_match_arm, reason = "netlink's enums are not ours and grow")]

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};
use rustix::io::Errno;
use rustix::time::ClockId;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::LinkEvent;
use crate::os::netlink::{self, Netlink};
use crate::os::routes;

pub(super) struct Source {
    socket: AsyncFd<Socket>,
    own_device: Option<u32>,
    /// A rule or route of ours went away.
    touched: bool,
}

impl Source {
    pub(super) fn open(own_device: Option<u32>) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            socket.add_membership(group as u32)?;
        }
        socket.set_non_blocking(true)?;
        // SAFETY: the `AsyncFd` owns the socket, whose descriptor never changes while it lives.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        Ok(Self { socket: socket?, own_device, touched: false })
    }

    pub(super) fn own_device(&self) -> Option<u32> {
        self.own_device
    }

    pub(super) fn take_touched(&mut self) -> Option<LinkEvent> {
        std::mem::take(&mut self.touched).then_some(LinkEvent::RoutesTouched)
    }

    /// Waits until something other than our own device changed.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        loop {
            let received = self.socket.async_io(Interest::READABLE, |socket| socket.recv_from_full()).await;
            let datagram = match received {
                Ok((datagram, _)) => datagram,
                // More changed than the kernel could hold for us: look at everything.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::NOBUFS) => {
                    self.touched = true;
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            let mut changed = false;
            for message in netlink::messages(&datagram) {
                let Ok(message) = message else { continue };
                if let NetlinkPayload::InnerMessage(message) = message.payload {
                    changed |= self.matters(&message);
                }
            }
            if changed {
                return Ok(());
            }
        }
    }

    fn matters(&mut self, message: &RouteNetlinkMessage) -> bool {
        match message {
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
                Some(link.header.index) != self.own_device
            }
            RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
                Some(address.header.index) != self.own_device
            }
            RouteNetlinkMessage::NewRoute(route) => !self.is_ours(route),
            RouteNetlinkMessage::DelRoute(route) => {
                self.touched |= self.is_ours(route);
                true
            }
            RouteNetlinkMessage::DelRule(rule) => {
                self.touched |= routes::is_ours(rule);
                routes::is_ours(rule)
            }
            _ => false,
        }
    }

    fn is_ours(&self, route: &RouteMessage) -> bool {
        self.own_device
            .is_some_and(|device| route.attributes.contains(&RouteAttribute::Table(routes::table_of(device))))
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("own_device", &self.own_device).finish_non_exhaustive()
    }
}

/// The default routes, and the devices they lead through.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WayOut(BTreeSet<String>);

impl WayOut {
    pub(super) fn read(own_device: Option<u32>) -> io::Result<Self> {
        let mut netlink = Netlink::open()?;
        let mut facts = BTreeSet::new();
        let mut devices = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for route in netlink.routes(family)? {
                let device = device_of(&route);
                if is_default(&route) && device != own_device {
                    devices.extend(device);
                    facts.insert(described(&route));
                }
            }
        }
        for link in netlink.links()? {
            if devices.contains(&link.header.index) {
                facts.insert(format!("device {} {:?}", link.header.index, state(&link)));
            }
        }
        for address in netlink.addresses()? {
            if devices.contains(&address.header.index) {
                facts.insert(format!("address {} {:?}", address.header.index, netlink::address_of(&address)));
            }
        }
        Ok(Self(facts))
    }
}

fn is_default(route: &RouteMessage) -> bool {
    let main = route.attributes.contains(&RouteAttribute::Table(RouteHeader::RT_TABLE_MAIN.into()));
    main && route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast
}

fn device_of(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        RouteAttribute::MultiPath(hops) => hops.first().map(|hop| hop.interface_index),
        _ => None,
    })
}

/// Without what changes by itself, such as the lifetime of an advertised route.
fn described(route: &RouteMessage) -> String {
    let lasting = |attribute: &&RouteAttribute| {
        matches!(
            attribute,
            RouteAttribute::Oif(_)
                | RouteAttribute::Gateway(_)
                | RouteAttribute::Via(_)
                | RouteAttribute::Priority(_)
                | RouteAttribute::PrefSource(_)
                | RouteAttribute::MultiPath(_)
        )
    };
    format!("{:?}", route.attributes.iter().filter(lasting).collect::<Vec<_>>())
}

fn state(link: &LinkMessage) -> Option<&LinkAttribute> {
    link.attributes.iter().find(|attribute| matches!(attribute, LinkAttribute::OperState(_)))
}

/// How long the machine has slept since it was started.
pub(super) fn asleep() -> Duration {
    let read = |clock| {
        let time = rustix::time::clock_gettime(clock);
        Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
    };
    // In this order the time between the two calls cannot look like sleep.
    let with_sleep = read(ClockId::Boottime);
    with_sleep.saturating_sub(read(ClockId::Monotonic))
}

const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];
