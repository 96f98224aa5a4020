//! How our own connections stay out of our device, and the hosts that cannot be told so by a mark.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

use ipnet::IpNet;

#[cfg(target_os = "linux")]
#[path = "bypass/linux.rs"]
mod system;
#[cfg(target_os = "macos")]
#[path = "bypass/macos.rs"]
mod system;

#[cfg(target_os = "linux")]
pub use system::MARK;

/// Keeps a socket's packets out of our device; call it before `connect`. Where the process has no right to
/// mark sockets it cannot have captured anything either, so that is no error.
///
/// Where Linux filters by the reverse path strictly (`rp_filter` 1: RHEL), answers from an address inside a
/// captured range are dropped all the same: such an address belongs into `host_bypass` of
/// [`Wanted`](super::routes::Wanted) too.
pub fn protect(socket: &socket2::Socket) -> io::Result<()> {
    system::protect(socket)
}

/// The nameservers this machine asks now, those behind a local stub resolver too.
pub fn nameservers() -> Vec<IpAddr> {
    let mut found = Vec::new();
    for path in RESOLVER_FILES {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        for server in parse_resolv_conf(&text) {
            if !found.contains(&server) {
                found.push(server);
            }
        }
    }
    found
}

/// The addresses of the HTTP proxies that the environment names. Blocks while it resolves their names.
pub fn proxies() -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = PROXY_VARIABLES
        .iter()
        .filter_map(|name| std::env::var(name).ok())
        .filter_map(|value| proxy_host(&value))
        .flat_map(|(host, port)| (host, port).to_socket_addrs().into_iter().flatten())
        .map(|address: SocketAddr| address.ip())
        .collect();
    found.sort();
    found.dedup();
    found
}

/// The nameservers and proxies that lie inside a captured range: the `host_bypass` of
/// [`Wanted`](super::routes::Wanted). Blocks like [`proxies`].
pub fn hosts_inside(captured: &[IpNet]) -> Vec<IpAddr> {
    let mut hosts = nameservers();
    hosts.extend(proxies());
    hosts.retain(|host| !host.is_loopback() && captured.iter().any(|range| range.contains(host)));
    hosts.sort();
    hosts.dedup();
    hosts
}

fn parse_resolv_conf(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let server = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
            // A link-local server may carry its interface: `fe80::1%eth0`.
            server.split('%').next()?.parse().ok()
        })
        .collect()
}

/// Host and port of a proxy as curl and the AWS SDKs read the variable: scheme and user are optional.
fn proxy_host(value: &str) -> Option<(String, u16)> {
    let (scheme, rest) = value.trim().split_once("://").unwrap_or(("http", value.trim()));
    let authority = rest.split(['/', '?', '#']).next()?;
    let host_and_port = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let default = if scheme.eq_ignore_ascii_case("https") { 443 } else { 80 };
    let (host, port) = if let Some(bracketed) = host_and_port.strip_prefix('[') {
        let (host, rest) = bracketed.split_once(']')?;
        (host, rest.strip_prefix(':'))
    } else {
        match host_and_port.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (host_and_port, None),
        }
    };
    let port = port.map_or(Some(default), |port| port.parse().ok())?;
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

/// The second is where systemd-resolved names the servers that its stub at 127.0.0.53 asks.
const RESOLVER_FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

const PROXY_VARIABLES: [&str; 6] =
    ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_nameservers_and_nothing_else() {
        let text = "# nameserver 1.1.1.1\nsearch corp\nnameserver 10.0.0.2\nnameserver\tfe80::1%eth0\nnameserver x\n";
        let expected: Vec<IpAddr> = vec!["10.0.0.2".parse().unwrap(), "fe80::1".parse().unwrap()];
        assert_eq!(parse_resolv_conf(text), expected);
    }

    #[test]
    fn reads_proxies_in_every_usual_spelling() {
        for (value, host, port) in [
            ("http://proxy.corp:3128", "proxy.corp", 3128),
            ("proxy.corp:3128", "proxy.corp", 3128),
            ("https://user:p%40ss@10.0.0.9/", "10.0.0.9", 443),
            ("http://[fd00::9]:8080/x", "fd00::9", 8080),
        ] {
            assert_eq!(proxy_host(value), Some((host.to_owned(), port)), "{value}");
        }
        for value in ["", "http://", "http://host:port", "[fd00::9"] {
            assert_eq!(proxy_host(value), None, "{value}");
        }
    }
}
