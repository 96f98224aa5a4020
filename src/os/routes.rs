//! Which destinations go to our device: the whole wanted state, applied again as often as one likes.
//!
//! A captured range never takes what a more specific route already sends elsewhere: the LAN, container
//! networks and other VPNs inside `10.0.0.0/8` stay theirs, also when they appear later. Excluded ranges and
//! bypassed hosts go where they would go without us, and excluding always wins over capturing. Our own marked
//! sockets ([`super::bypass`]) are never captured, not even by `0.0.0.0/0`.
//!
//! Every change is in the journal before it is made.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::undo::{Change, Journal};

#[cfg(target_os = "linux")]
#[path = "routes/linux.rs"]
mod system;
#[cfg(target_os = "macos")]
#[path = "routes/macos.rs"]
mod system;

#[cfg(target_os = "linux")]
pub(super) use system::{is_ours, table_of};

/// Everything that should be routed, and where to.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The device's index.
    pub device: u32,
    pub device_name: String,
    pub captured: Vec<IpNet>,
    /// Parts of the captured ranges that stay as they were.
    pub excluded: Vec<IpNet>,
    /// Single hosts that must stay reachable without us: nameservers, an HTTP proxy, and the addresses of AWS
    /// that lie inside a captured range.
    pub host_bypass: Vec<IpAddr>,
}

/// What one call of [`apply`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    pub added: usize,
    pub removed: usize,
}

/// A network inside a captured range that keeps its own route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalNet {
    pub net: IpNet,
    pub device: String,
}

/// A route, not a default route, for the same or a wider range than a captured one; we take precedence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub captured: IpNet,
    pub net: IpNet,
    pub device: String,
    pub gateway: Option<IpAddr>,
}

/// A policy rule of ours (Linux).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    pub to: IpNet,
    pub priority: u32,
    pub table: u32,
    /// Take no answer of this prefix length or shorter from the table.
    pub suppress: Option<u8>,
    /// Do not match our own marked sockets.
    pub unmarked: bool,
}

/// A route of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub to: IpNet,
    /// `None` where the system has only one table.
    pub table: Option<u32>,
    pub via: Via,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// Our TUN device.
    Device { index: u32, name: String },
    /// Nowhere: the search goes on with the next rule.
    Throw,
    /// The next hop it had before us; with the device's index where the address alone is ambiguous.
    Gateway { address: IpAddr, index: u32 },
}

/// Makes the system's routing what `wanted` says: adds what is missing, takes away what an earlier call made
/// and this one no longer wants. After an error, some of it may be in place; the journal knows what.
pub fn apply(wanted: &Wanted, journal: &mut Journal) -> io::Result<Applied> {
    let plan = system::plan(wanted)?;
    let mut applied = Applied::default();
    let surplus: Vec<Change> =
        journal.changes().iter().rev().filter(|change| !plan.contains(change)).cloned().collect();
    for change in &surplus {
        undo(change)?;
        journal.forget(change)?;
        applied.removed += 1;
    }
    applied.added = system::add_missing(&plan, journal)?;
    Ok(applied)
}

/// Takes away everything [`apply`] made, and says what could not be.
pub fn remove(journal: &mut Journal) -> Vec<super::undo::Failure> {
    journal.undo_all()
}

/// Takes one change back; it is no error if it is gone already.
pub(super) fn undo(change: &Change) -> io::Result<()> {
    system::undo(change)
}

/// The networks inside the captured ranges that keep their own, more specific route.
pub fn local_networks_inside(captured: &[IpNet]) -> io::Result<Vec<LocalNet>> {
    let inside: BTreeSet<LocalNet> = system::other_routes()?
        .into_iter()
        .filter(|route| captured.iter().any(|range| range.contains(&route.net) && *range != route.net))
        .map(|route| LocalNet { net: route.net, device: route.device })
        .collect();
    Ok(inside.into_iter().collect())
}

/// The routes that a captured range overrides, default routes left out.
pub fn conflicts(captured: &[IpNet]) -> io::Result<Vec<Conflict>> {
    let routes = system::other_routes()?;
    let mut found = Vec::new();
    for range in captured {
        for route in &routes {
            if route.net.prefix_len() > 0 && route.net.contains(range) {
                found.push(Conflict {
                    captured: *range,
                    net: route.net,
                    device: route.device.clone(),
                    gateway: route.gateway,
                });
            }
        }
    }
    Ok(found)
}

/// A route somebody else made.
struct OtherRoute {
    net: IpNet,
    device: String,
    gateway: Option<IpAddr>,
}

/// The captured ranges that are left after whole exclusions, each once, host bits cleared, longest first.
fn effective(wanted: &Wanted) -> Vec<IpNet> {
    let mut ranges: Vec<IpNet> = wanted
        .captured
        .iter()
        .map(IpNet::trunc)
        .filter(|range| !wanted.excluded.iter().any(|excluded| excluded.contains(range)))
        .collect();
    ranges.sort_by_key(|range| (std::cmp::Reverse(range.prefix_len()), *range));
    ranges.dedup();
    ranges
}

/// What must not go to the device: excluded ranges and bypassed hosts, as far as a captured range holds them.
fn exceptions(wanted: &Wanted, captured: &[IpNet]) -> Vec<IpNet> {
    let hosts = wanted.host_bypass.iter().map(|host| IpNet::from(*host));
    let all: BTreeSet<IpNet> = wanted.excluded.iter().map(IpNet::trunc).chain(hosts).collect();
    all.into_iter().filter(|net| captured.iter().any(|range| range.contains(net))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(text: &[&str]) -> Vec<IpNet> {
        text.iter().map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn ranges_come_once_longest_first_and_without_what_is_excluded_whole() {
        let wanted = Wanted {
            captured: nets(&["10.1.2.3/8", "10.0.0.0/8", "10.7.0.0/16", "192.168.0.0/24", "fd00::/64"]),
            excluded: nets(&["192.168.0.0/16", "10.9.0.0/16"]),
            ..Wanted::default()
        };
        assert_eq!(effective(&wanted), nets(&["fd00::/64", "10.7.0.0/16", "10.0.0.0/8"]));
    }

    #[test]
    fn exceptions_are_only_those_inside_a_captured_range() {
        let wanted = Wanted {
            captured: nets(&["10.0.0.0/8"]),
            excluded: nets(&["10.9.0.0/16", "172.16.0.0/12"]),
            host_bypass: vec!["10.0.0.2".parse().unwrap(), "8.8.8.8".parse().unwrap()],
            ..Wanted::default()
        };
        assert_eq!(exceptions(&wanted, &effective(&wanted)), nets(&["10.0.0.2/32", "10.9.0.0/16"]));
    }
}
