//! Linux: captured routes in a table of their own, behind two policy rules for each captured range.
//!
//! For a captured range `C` of prefix length `L` and the session's table `T`:
//!
//! | priority | rule | meaning |
//! |---|---|---|
//! | p | `to C lookup main suppress_prefixlength L` | what the main table sends elsewhere by a longer prefix stays so |
//! | p + 1 | `to C fwmark 0/MARK lookup T` | the rest goes to our device, our own marked sockets excepted |
//!
//! `p` falls as `L` grows, so a longer captured range is asked first. `T` holds `C dev TUN` for each range and
//! `throw X` for each exception: a throw sends the search on to the rules behind ours. When the process dies,
//! the device takes its routes along; the rules that stay find an empty table and change nothing.

#![expect(clippy::wildcard_enum_match_arm, reason = "netlink's enums are not ours and grow")]

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use super::{OtherRoute, Route, Rule, Via, Wanted, effective, exceptions};
use crate::os::bypass::MARK;
use crate::os::netlink::{self, Netlink};
use crate::os::undo::{Change, Journal};

/// The session's table. A device's index is never given twice while the system runs, so two sessions cannot
/// meet in one table, and a dead session's rules cannot point at a living one's.
pub(in crate::os) fn table_of(device: u32) -> u32 {
    FIRST_TABLE.saturating_add(device)
}

/// The changes in the order in which they are safe to make: nothing is captured before its exceptions stand.
pub(super) fn plan(wanted: &Wanted) -> io::Result<Vec<Change>> {
    let table = table_of(wanted.device);
    let captured = effective(wanted);
    let exceptions = exceptions(wanted, &captured);
    let route = |to: IpNet, via: Via| Change::Route(Route { to, table: Some(table), via });
    let device = Via::Device { index: wanted.device, name: wanted.device_name.clone() };

    let mut plan: Vec<Change> = exceptions.iter().map(|net| route(*net, Via::Throw)).collect();
    plan.extend(
        captured.iter().filter(|net| !exceptions.contains(net)).map(|net| route(*net, device.clone())),
    );
    for range in captured {
        let length = range.prefix_len();
        let priority = FIRST_PRIORITY + 2 * u32::from(range.max_prefix_len() - length);
        let main = u32::from(RouteHeader::RT_TABLE_MAIN);
        plan.push(Change::Rule(Rule {
            to: range,
            priority,
            table: main,
            suppress: Some(length),
            unmarked: false,
        }));
        plan.push(Change::Rule(Rule {
            to: range,
            priority: priority + 1,
            table,
            suppress: None,
            unmarked: true,
        }));
    }
    Ok(plan)
}

/// Adds what the system does not have, also what the journal has but somebody else took away.
pub(super) fn add_missing(plan: &[Change], journal: &mut Journal) -> io::Result<usize> {
    let mut netlink = Netlink::open()?;
    let present = Present::read(&mut netlink)?;
    let mut added = 0;
    for change in plan {
        let recorded = journal.changes().contains(change);
        if recorded && present.has(change) {
            continue;
        }
        if !recorded {
            journal.record(change)?;
        }
        match change {
            Change::Rule(rule) => netlink.add_rule(rule_message(rule)),
            Change::Route(route) => netlink.add_route(route_message(route)),
        }
        .map_err(|error| io::Error::new(error.kind(), format!("{change}: {error}")))?;
        added += 1;
    }
    Ok(added)
}

pub(super) fn undo(change: &Change) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    match change {
        Change::Rule(rule) if is_shared(rule, &mut netlink)? => Ok(()),
        Change::Rule(rule) => netlink.remove_rule(rule_message(rule)),
        Change::Route(route) => netlink.remove_route(route_message(route)),
    }
}

/// Whether another session needs this rule too. The first rule of a captured range is the same for all sessions
/// that capture it, and the kernel keeps one. Each takes its second rule away before, so the last one finds none.
fn is_shared(rule: &Rule, netlink: &mut Netlink) -> io::Result<bool> {
    if rule.suppress.is_none() {
        return Ok(false);
    }
    let second = [destination_of(rule), Some(RuleAttribute::Priority(rule.priority + 1))];
    let same_range = |other: &RuleMessage| {
        other.header.dst_len == rule.to.prefix_len()
            && second.iter().flatten().all(|attribute| other.attributes.contains(attribute))
    };
    Ok(netlink.rules(netlink::family(&rule.to))?.iter().any(|other| is_ours(other) && same_range(other)))
}

/// The unicast routes of the main table. Ours are in other tables.
pub(super) fn other_routes() -> io::Result<Vec<OtherRoute>> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        for route in netlink.routes(family)? {
            let unicast = route.header.kind == RouteType::Unicast;
            if unicast && table(&route) == u32::from(RouteHeader::RT_TABLE_MAIN) {
                found.extend(other_route(&route, &links));
            }
        }
    }
    Ok(found)
}

/// Whether a rule, as the kernel tells it, carries our signature.
pub(in crate::os) fn is_ours(rule: &RuleMessage) -> bool {
    rule.attributes.contains(&RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)))
}

fn other_route(route: &RouteMessage, links: &[LinkMessage]) -> Option<OtherRoute> {
    let mut gateway = None;
    let mut device = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::MultiPath(hops) => device = hops.first().map(|hop| hop.interface_index),
            _ => {}
        }
    }
    let link = links.iter().find(|link| Some(link.header.index) == device);
    let device = link.and_then(netlink::link_name).unwrap_or("?").to_owned();
    Some(OtherRoute { net: destination(route)?, device, gateway })
}

/// What of ours the kernel has now.
struct Present {
    rules: Vec<RuleMessage>,
    routes: Vec<RouteMessage>,
}

impl Present {
    fn read(netlink: &mut Netlink) -> io::Result<Self> {
        let mut present = Self { rules: Vec::new(), routes: Vec::new() };
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            present.rules.extend(netlink.rules(family)?);
            present.routes.extend(netlink.routes(family)?);
        }
        Ok(present)
    }

    fn has(&self, change: &Change) -> bool {
        match change {
            Change::Rule(wanted) => self.rules.iter().any(|rule| same_rule(rule, wanted)),
            Change::Route(wanted) => self.routes.iter().any(|route| same_route(route, wanted)),
        }
    }
}

fn same_rule(rule: &RuleMessage, wanted: &Rule) -> bool {
    let ours = rule_message(wanted);
    let mentioned = |attribute: &RuleAttribute| match attribute {
        // The kernel leaves a mark of 0 out of its answer.
        RuleAttribute::FwMark(0) => true,
        other => rule.attributes.contains(other),
    };
    rule.header.family == ours.header.family
        && rule.header.dst_len == ours.header.dst_len
        && ours.attributes.iter().all(mentioned)
}

fn same_route(route: &RouteMessage, wanted: &Route) -> bool {
    let kind_matches = match &wanted.via {
        Via::Device { index, .. } => {
            route.header.kind == RouteType::Unicast && route.attributes.contains(&RouteAttribute::Oif(*index))
        }
        Via::Throw => route.header.kind == RouteType::Throw,
        Via::Gateway { .. } => false,
    };
    kind_matches && Some(table(route)) == wanted.table && destination(route) == Some(wanted.to)
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = netlink::family(&rule.to);
    message.header.dst_len = rule.to.prefix_len();
    message.header.action = RuleAction::ToTable;
    message.attributes.extend(destination_of(rule));
    message.attributes.push(RuleAttribute::Priority(rule.priority));
    message.attributes.push(RuleAttribute::Table(rule.table));
    message.attributes.push(RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
    if let Some(length) = rule.suppress {
        message.attributes.push(RuleAttribute::SuppressPrefixLen(length.into()));
    }
    if rule.unmarked {
        message.attributes.push(RuleAttribute::FwMark(0));
        message.attributes.push(RuleAttribute::FwMask(MARK));
    }
    message
}

/// None where the rule is for everything.
fn destination_of(rule: &Rule) -> Option<RuleAttribute> {
    (rule.to.prefix_len() > 0).then(|| RuleAttribute::Destination(rule.to.network()))
}

fn route_message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = netlink::family(&route.to);
    message.header.destination_prefix_length = route.to.prefix_len();
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message.attributes.push(RouteAttribute::Table(route.table.unwrap_or(RouteHeader::RT_TABLE_MAIN.into())));
    message.attributes.push(RouteAttribute::Destination(route.to.network().into()));
    match &route.via {
        Via::Device { index, .. } => {
            message.header.kind = RouteType::Unicast;
            message.header.scope = RouteScope::Link;
            message.attributes.push(RouteAttribute::Oif(*index));
        }
        Via::Throw => message.header.kind = RouteType::Throw,
        Via::Gateway { address, index } => {
            message.header.kind = RouteType::Unicast;
            message.attributes.push(RouteAttribute::Gateway((*address).into()));
            message.attributes.push(RouteAttribute::Oif(*index));
        }
    }
    message
}

fn table(route: &RouteMessage) -> u32 {
    let wide = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    wide.unwrap_or(route.header.table.into())
}

fn destination(route: &RouteMessage) -> Option<IpNet> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    });
    let any = match route.header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    IpNet::new(address.unwrap_or(any), route.header.destination_prefix_length).ok()
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// Above the tables that people number by hand.
const FIRST_TABLE: u32 = 7420;

/// Up to 5157 with an IPv6 default route. Before other VPNs, whose wide rules would hide ours (Tailscale's
/// begin at 5210), and behind the local table at 0.
const FIRST_PRIORITY: u32 = 4900;

/// What `ip rule` and `ip route` show as `proto 74`: says whose these are. Unassigned in the kernel's list.
const PROTOCOL: u8 = 74;

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_for(captured: &[&str], excluded: &[&str]) -> Vec<Change> {
        let parse = |nets: &[&str]| nets.iter().map(|net| net.parse().unwrap()).collect();
        plan(&Wanted {
            device: 5,
            device_name: "ssmp0".to_owned(),
            captured: parse(captured),
            excluded: parse(excluded),
            host_bypass: Vec::new(),
        })
        .unwrap()
    }

    #[test]
    fn exceptions_stand_before_anything_is_captured() {
        let plan = plan_for(&["10.0.0.0/8"], &["10.9.0.0/16"]);
        let shown: Vec<String> = plan.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "route throw 10.9.0.0/16 table 7425",
                "route 10.0.0.0/8 dev ssmp0 table 7425",
                "rule 4948: to 10.0.0.0/8 lookup 254 suppress_prefixlength 8",
                "rule 4949: to 10.0.0.0/8 lookup 7425 unless marked",
            ]
        );
    }

    #[test]
    fn a_longer_range_is_asked_before_a_shorter_one_and_all_stay_below_other_vpns() {
        let priorities: Vec<u32> = plan_for(&["0.0.0.0/0", "10.1.0.0/16", "::/0"], &[])
            .iter()
            .filter_map(|change| match change {
                Change::Rule(rule) => Some(rule.priority),
                Change::Route(_) => None,
            })
            .collect();
        assert_eq!(priorities, [4932, 4933, 4964, 4965, 5156, 5157]);
    }

    #[test]
    fn a_range_that_is_excluded_whole_leaves_nothing() {
        assert!(plan_for(&["10.1.0.0/16"], &["10.0.0.0/8"]).is_empty());
    }
}
