//! Pure: the networks of a plan: what is captured, what is left out, what the device itself has.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::usage;
use crate::error::UserError;

/// Checks the `--cidr` values and drops those inside another one.
pub(super) fn captured(texts: &[String], notes: &mut Vec<String>) -> Result<Vec<IpNet>, UserError> {
    let mut nets = Vec::new();
    for text in texts {
        let net = network("--cidr", text)?;
        if let Some((special, what)) = specials().into_iter().find(|(special, _)| overlap(special, &net)) {
            return Err(usage(format!("--cidr {net} cannot be captured"))
                .cause(format!("it includes {special}, {what}"))
                .hint("name the ranges of the VPC: --cidr 10.0.0.0/8 --cidr 172.16.0.0/12"));
        }
        nets.push(net);
    }
    if nets.is_empty() {
        return Err(usage("no --cidr is given").hint("name the range to reach: --cidr 10.0.0.0/8"));
    }
    Ok(without_inner(&nets, notes))
}

/// Checks the `--exclude` values; each must leave something of `cidrs`.
pub(super) fn excluded(
    texts: &[String],
    cidrs: &[IpNet],
    notes: &mut Vec<String>,
) -> Result<Vec<IpNet>, UserError> {
    let mut nets = Vec::new();
    for text in texts {
        let net = network("--exclude", text)?;
        if let Some(cidr) = cidrs.iter().find(|cidr| net.contains(*cidr)) {
            return Err(usage(format!("--exclude {net} leaves nothing of --cidr {cidr}")));
        }
        if cidrs.iter().any(|cidr| cidr.contains(&net)) {
            nets.push(net);
        } else {
            notes.push(format!("--exclude {net} changes nothing: no --cidr includes it"));
        }
    }
    Ok(without_inner(&nets, &mut Vec::new()))
}

/// Checks the `--local-ip` values: at most one of each family.
pub(super) fn local(texts: &[String], cidrs: &[IpNet]) -> Result<Option<Vec<IpNet>>, UserError> {
    let mut nets: Vec<IpNet> = Vec::new();
    for text in texts {
        let net = device_address(text)?;
        if let Some(cidr) = cidrs.iter().find(|cidr| overlap(cidr, &net)) {
            return Err(usage(format!("--local-ip {net} overlaps --cidr {cidr}"))
                .cause("the device's own address must lie outside what it captures")
                .hint("leave --local-ip away to get 169.254.77.1/30"));
        }
        if nets.iter().any(|other| other.addr().is_ipv4() == net.addr().is_ipv4()) {
            return Err(usage("--local-ip is given twice for the same address family"));
        }
        nets.push(net);
    }
    let missing = |v4: bool| {
        !nets.is_empty()
            && cidrs.iter().any(|cidr| cidr.addr().is_ipv4() == v4)
            && !nets.iter().any(|net| net.addr().is_ipv4() == v4)
    };
    if missing(true) {
        return Err(usage("--local-ip names no IPv4 address, but a --cidr is IPv4"));
    }
    if missing(false) {
        return Err(usage("--local-ip names no IPv6 address, but a --cidr is IPv6"));
    }
    Ok((!nets.is_empty()).then_some(nets))
}

/// Whether the two share an address.
pub(crate) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

fn network(flag: &str, text: &str) -> Result<IpNet, UserError> {
    let wrong = || usage(format!("{flag} {text} is not a network"));
    if let Ok(address) = text.parse::<IpAddr>() {
        return Err(wrong()
            .cause("the prefix length is missing")
            .hint(format!("{flag} {}", IpNet::from(address))));
    }
    let Ok(net) = text.parse::<IpNet>() else {
        return Err(wrong()
            .cause("a network is an address, a slash and the number of fixed bits")
            .hint(format!("{flag} 10.0.0.0/8")));
    };
    if net.addr() != net.network() {
        return Err(wrong()
            .cause(format!("{} has bits set beyond the first {}", net.addr(), net.prefix_len()))
            .hint(format!(
                "did you mean {} (the network) or {} (that one address)?",
                net.trunc(),
                IpNet::from(net.addr())
            )));
    }
    Ok(net)
}

fn device_address(text: &str) -> Result<IpNet, UserError> {
    let wrong = |why: &str| {
        usage(format!("--local-ip {text} is not an address for the device"))
            .cause(why)
            .hint("--local-ip 169.254.77.1/30")
    };
    let net = text
        .parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| wrong("it must be an address with its prefix length"))?;
    let address = net.addr();
    if address.is_loopback() || address.is_multicast() || address.is_unspecified() {
        return Err(wrong("it must be an ordinary unicast address"));
    }
    let single = net.prefix_len() + 1 >= net.max_prefix_len();
    if address.is_ipv4() && !single && (address == net.network() || address == net.broadcast()) {
        return Err(wrong("it is the network's own or its broadcast address"));
    }
    if METADATA.iter().any(|metadata| net.contains(&IpAddr::V4(*metadata))) {
        return Err(wrong("its network includes an address of AWS metadata"));
    }
    Ok(net)
}

/// Instance metadata, its time and DNS service, container credentials.
const METADATA: [std::net::Ipv4Addr; 4] = [
    std::net::Ipv4Addr::new(169, 254, 169, 254),
    std::net::Ipv4Addr::new(169, 254, 169, 123),
    std::net::Ipv4Addr::new(169, 254, 169, 253),
    std::net::Ipv4Addr::new(169, 254, 170, 2),
];

/// Ranges that mean this machine or this link on every machine.
fn specials() -> [(IpNet, &'static str); 9] {
    let v4 = |a: u8, b: u8, prefix| IpNet::V4(Ipv4Net::new_assert([a, b, 0, 0].into(), prefix));
    let v6 = |address: [u16; 8], prefix| IpNet::V6(Ipv6Net::new_assert(address.into(), prefix));
    [
        (v4(127, 0, 8), "the loopback of this machine"),
        (v4(169, 254, 16), "link-local addresses"),
        (v4(224, 0, 4), "multicast"),
        (v4(240, 0, 4), "reserved and broadcast addresses"),
        (v4(0, 0, 8), "\"this network\""),
        (v6([0; 8], 127), "the loopback of this machine"),
        (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), "link-local addresses"),
        (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), "multicast"),
        (v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96), "IPv4 addresses in IPv6 form"),
    ]
}

/// Two networks overlap only when one lies inside the other; the outer one stays, in the order given.
fn without_inner(nets: &[IpNet], notes: &mut Vec<String>) -> Vec<IpNet> {
    let mut kept: Vec<IpNet> = Vec::new();
    for (i, net) in nets.iter().enumerate() {
        let outer =
            nets.iter().enumerate().find(|(j, other)| other.contains(net) && (*other != net || *j < i));
        match outer {
            Some((_, outer)) if outer != net => notes.push(format!("{net} lies inside {outer}")),
            Some(_) => {}
            None => kept.push(*net),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn overlapping_ranges_become_the_outer_one() {
        let mut notes = Vec::new();

        let nets = captured(
            &texts(&["10.1.0.0/16", "10.0.0.0/8", "172.16.0.0/12", "10.0.0.0/8", "fd00::/8"]),
            &mut notes,
        );

        assert_eq!(shown(&nets.unwrap()), ["10.0.0.0/8", "172.16.0.0/12", "fd00::/8"]);
        assert_eq!(notes, ["10.1.0.0/16 lies inside 10.0.0.0/8"]);
    }

    #[test]
    fn host_bits_are_refused_with_what_was_meant() {
        let error = captured(&texts(&["10.0.1.5/8"]), &mut Vec::new()).unwrap_err();

        assert_eq!(
            error.hint.unwrap(),
            "did you mean 10.0.0.0/8 (the network) or 10.0.1.5/32 (that one address)?"
        );
    }

    #[test]
    fn a_bare_address_is_refused_with_its_network() {
        let error = captured(&texts(&["10.0.1.5"]), &mut Vec::new()).unwrap_err();

        assert_eq!(error.hint.unwrap(), "--cidr 10.0.1.5/32");
    }

    #[test]
    fn what_is_no_network_or_is_special_is_refused() {
        for bad in [
            "",
            "vpc",
            "10.0.0.0/33",
            "10.0.0/8",
            "10.0.0.0/",
            "127.0.0.0/8",
            "127.1.0.0/16",
            "169.254.0.0/16",
            "224.0.0.0/4",
            "255.255.255.255/32",
            "0.0.0.0/0",
            "128.0.0.0/1",
            "::/0",
            "::1/128",
            "fe80::/64",
            "ff02::/16",
            "::ffff:10.0.0.0/104",
        ] {
            assert!(captured(&texts(&[bad]), &mut Vec::new()).is_err(), "{bad:?}");
        }
        assert!(captured(&[], &mut Vec::new()).is_err());
    }

    #[test]
    fn excludes_must_be_a_part_of_what_is_captured() {
        let cidrs = captured(&texts(&["10.0.0.0/8"]), &mut Vec::new()).unwrap();
        let mut notes = Vec::new();

        let nets = excluded(&texts(&["10.1.0.0/16", "192.168.0.0/16"]), &cidrs, &mut notes).unwrap();

        assert_eq!(shown(&nets), ["10.1.0.0/16"]);
        assert_eq!(notes.len(), 1);
        for all in ["10.0.0.0/8", "0.0.0.0/0"] {
            assert!(
                excluded(&texts(&[all]), &cidrs, &mut notes).unwrap_err().what.contains("leaves nothing")
            );
        }
    }

    #[test]
    fn local_addresses() {
        let cidrs = captured(&texts(&["10.0.0.0/8"]), &mut Vec::new()).unwrap();

        assert_eq!(local(&[], &cidrs).unwrap(), None);
        for good in ["169.254.169.1/30", "192.0.2.1", "192.0.2.0/31"] {
            assert!(local(&texts(&[good]), &cidrs).is_ok(), "{good}");
        }
        for bad in [
            "10.9.9.9/30",
            "127.0.0.1/8",
            "0.0.0.0",
            "224.0.0.1/32",
            "192.0.2.0/30",
            "192.0.2.3/30",
            "169.254.169.253/30",
            "fd00::1/64",
            "x",
        ] {
            assert!(local(&texts(&[bad]), &cidrs).is_err(), "{bad}");
        }
        assert!(local(&texts(&["192.0.2.1/30", "192.0.2.5/30"]), &cidrs).is_err());
    }

    proptest! {
        #[test]
        fn captures_exactly_the_union(nets in proptest::collection::vec((any::<u16>(), 8u8..=24), 1..8)) {
            let nets: Vec<IpNet> = nets
                .into_iter()
                .map(|(bits, prefix)| Ipv4Net::new([10, (bits >> 8) as u8, bits as u8, 0].into(), prefix).unwrap())
                .map(|net| IpNet::V4(net.trunc()))
                .collect();

            let kept = without_inner(&nets, &mut Vec::new());

            prop_assert!(nets.iter().all(|net| kept.iter().any(|outer| outer.contains(net))));
            prop_assert!(kept.iter().all(|net| nets.contains(net)));
            for (i, a) in kept.iter().enumerate() {
                prop_assert!(kept[i + 1..].iter().all(|b| !overlap(a, b)));
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = network("--cidr", &text);
            let _ = device_address(&text);
        }
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    fn shown(nets: &[IpNet]) -> Vec<String> {
        nets.iter().map(ToString::to_string).collect()
    }
}
