//! macOS: one table, in which the longest prefix wins. Not yet run on a Mac.
//!
//! A captured range is a route through our device; where the same range has a route already, its two halves
//! are. An exception is a route to the next hop that it had without us.

use std::io;

use ipnet::IpNet;

use super::{OtherRoute, Route, Via, Wanted, effective, exceptions};
use crate::os::route_socket::{self, Hop, KernelRoute};
use crate::os::undo::{Change, Journal};

pub(super) fn plan(wanted: &Wanted) -> io::Result<Vec<Change>> {
    let captured = effective(wanted);
    if captured.iter().any(|range| range.prefix_len() == 0) {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "capturing everything would also capture our own way to AWS; name narrower ranges",
        ));
    }
    let exceptions = exceptions(wanted, &captured);
    let theirs: Vec<KernelRoute> = route_socket::routes()?
        .into_iter()
        .filter(|route| route.device != wanted.device && !exceptions.contains(&route.net))
        .collect();

    let mut plan = Vec::new();
    for exception in exceptions {
        // A route that is longer than ours already leads past us.
        let Some(hop) = next_hop(&theirs, &exception) else { continue };
        let via = match hop.gateway {
            Some(address) => Via::Gateway { address, index: hop.device },
            None => Via::Device { index: hop.device, name: name_of(hop.device) },
        };
        plan.push(Change::Route(Route { to: exception, table: None, via }));
    }
    let device = Via::Device { index: wanted.device, name: wanted.device_name.clone() };
    for range in captured {
        for to in free_of(&theirs, range)? {
            plan.push(Change::Route(Route { to, table: None, via: device.clone() }));
        }
    }
    Ok(plan)
}

pub(super) fn add_missing(plan: &[Change], journal: &mut Journal) -> io::Result<usize> {
    let present = route_socket::routes()?;
    let mut added = 0;
    for change in plan {
        let Change::Route(route) = change else { continue };
        let recorded = journal.changes().contains(change);
        if recorded && present.iter().any(|known| known.net == route.to && leads(known, &route.via)) {
            continue;
        }
        if !recorded {
            journal.record(change)?;
        }
        if let Some(hop) = hop(&route.via) {
            route_socket::add(route.to, hop)
                .map_err(|error| io::Error::new(error.kind(), format!("{change}: {error}")))?;
            added += 1;
        }
    }
    Ok(added)
}

pub(super) fn undo(change: &Change) -> io::Result<()> {
    match change {
        Change::Rule(_) => Ok(()),
        Change::Route(route) => match hop(&route.via) {
            Some(hop) => route_socket::remove(route.to, hop),
            None => Ok(()),
        },
    }
}

/// All routes; ours too while a session runs.
pub(super) fn other_routes() -> io::Result<Vec<OtherRoute>> {
    let routes = route_socket::routes()?;
    Ok(routes
        .into_iter()
        .map(|route| OtherRoute { net: route.net, device: name_of(route.device), gateway: route.gateway })
        .collect())
}

fn next_hop<'a>(routes: &'a [KernelRoute], net: &IpNet) -> Option<&'a KernelRoute> {
    routes.iter().filter(|route| route.net.contains(net)).max_by_key(|route| route.net.prefix_len())
}

/// The range, or its halves where somebody has a route for the range itself.
fn free_of(theirs: &[KernelRoute], range: IpNet) -> io::Result<Vec<IpNet>> {
    if !theirs.iter().any(|route| route.net == range) {
        return Ok(vec![range]);
    }
    let halves = range.subnets(range.prefix_len() + 1).map_err(|_| {
        let reason = format!("{range} is a single host that already has a route of its own");
        io::Error::new(io::ErrorKind::AlreadyExists, reason)
    })?;
    Ok(halves.collect())
}

fn leads(known: &KernelRoute, via: &Via) -> bool {
    match via {
        Via::Device { index, .. } => known.device == *index,
        Via::Gateway { address, .. } => known.gateway == Some(*address),
        Via::Throw => false,
    }
}

fn hop(via: &Via) -> Option<Hop> {
    match via {
        Via::Device { index, .. } => Some(Hop::Device(*index)),
        Via::Gateway { address, .. } => Some(Hop::Gateway(*address)),
        Via::Throw => None,
    }
}

fn name_of(device: u32) -> String {
    route_socket::device_name(device).unwrap_or_else(|| "?".to_owned())
}
