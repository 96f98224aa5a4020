//! Pure: which HTTP proxy the environment names for a host, and the CONNECT exchange with it.
//!
//! `HTTPS_PROXY`, else `ALL_PROXY` (either case, lower case first) is used for everything with TLS
//! and for nothing without: plain text goes to simulators and to the instance metadata only. Hosts in
//! `NO_PROXY` and loopback are reached directly. `NO_PROXY` lists, separated by commas, `*`, names
//! (with all names below them), addresses and CIDR ranges, each with an optional `:port`.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

/// What the environment says of proxies.
#[derive(Clone, Debug, Default)]
pub struct ProxySettings {
    proxy: Option<Proxy>,
    bypass: Vec<Bypass>,
}

impl ProxySettings {
    /// Reads the variables through `variable`.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ProxyError> {
        let read = |name: &str| {
            let value = variable(&name.to_lowercase()).or_else(|| variable(name))?;
            Some(value.trim().to_owned()).filter(|value| !value.is_empty())
        };
        let proxy = ["HTTPS_PROXY", "ALL_PROXY"].into_iter().find_map(|name| Some((name, read(name)?)));
        let proxy = proxy.map(|(name, value)| Proxy::parse(name, &value)).transpose()?;
        let bypass = read("NO_PROXY").unwrap_or_default();
        Ok(Self { proxy, bypass: bypass.split(',').filter_map(Bypass::parse).collect() })
    }

    /// The proxy for a host that is reached with TLS.
    pub fn proxy_for(&self, host: &str, port: u16) -> Option<&Proxy> {
        let host = host.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
        let address = host.parse::<IpAddr>().ok();
        let local = host == "localhost" || address.is_some_and(|address| address.is_loopback());
        let direct = local || self.bypass.iter().any(|bypass| bypass.matches(&host, address, port));
        self.proxy.as_ref().filter(|_| !direct)
    }
}

/// An HTTP proxy. Its password is in no `Debug` or `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    pub host: String,
    pub port: u16,
    /// `user:password`, decoded.
    userinfo: Option<String>,
}

impl Proxy {
    fn parse(variable: &'static str, value: &str) -> Result<Self, ProxyError> {
        let (scheme, rest) = value.split_once("://").unwrap_or(("http", value));
        if !scheme.eq_ignore_ascii_case("http") {
            return Err(ProxyError::Scheme { variable, scheme: scheme.to_owned() });
        }
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (userinfo, host_port) = match authority.rsplit_once('@') {
            Some((userinfo, host_port)) => (Some(percent_decode(userinfo)), host_port),
            None => (None, authority),
        };
        let (host, port) = split_port(host_port);
        let port = port.map_or(Some(80), |port| port.parse().ok());
        let port = port.filter(|_| !host.is_empty()).ok_or(ProxyError::NotAnAddress { variable })?;
        Ok(Self { host: host.to_owned(), port, userinfo })
    }

    /// The request that asks for a tunnel to `host`.
    pub fn connect_request(&self, host: &str, port: u16) -> String {
        let authority =
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let mut request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n");
        if let Some(userinfo) = &self.userinfo {
            let token = aws_smithy_types::base64::encode(userinfo);
            request.push_str(&format!("Proxy-Authorization: Basic {token}\r\n"));
        }
        request.push_str("\r\n");
        request
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// The proxy's answer up to its empty line: its status, or what is wrong with it.
pub fn connect_status(head: &[u8]) -> Result<u16, ProxyError> {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split(' ');
    let http = words.next().is_some_and(|version| version.starts_with("HTTP/1."));
    let status = words.next().and_then(|status| status.parse().ok());
    status.filter(|_| http).ok_or(ProxyError::NotHttp)
}

/// Why a proxy cannot be used: the environment's or the proxy's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    #[error("{variable} names a proxy of scheme {scheme}; only http:// proxies are supported")]
    Scheme { variable: &'static str, scheme: String },
    #[error("{variable} is not of the form http://[user:password@]host:port")]
    NotAnAddress { variable: &'static str },
    #[error("the proxy's answer is not HTTP")]
    NotHttp,
    #[error("the proxy closed the connection before it answered")]
    Closed,
    #[error("the proxy wants a user name and password")]
    Credentials,
    #[error("the proxy refused the connection with status {0}")]
    Refused(u16),
}

#[derive(Clone, Debug)]
struct Bypass {
    hosts: BypassHosts,
    port: Option<u16>,
}

#[derive(Clone, Debug)]
enum BypassHosts {
    All,
    Range(IpNet),
    Domain(String),
}

impl Bypass {
    fn parse(entry: &str) -> Option<Self> {
        let entry = entry.trim().to_ascii_lowercase();
        let range = |text: &str| text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        if let Some(range) = range(&entry) {
            return Some(Self { hosts: BypassHosts::Range(range), port: None });
        }
        let (host, port) = split_port(&entry);
        let port = match port {
            Some(port) => Some(port.parse().ok()?),
            None => None,
        };
        let hosts = match host.trim_start_matches("*.").trim_matches('.') {
            "" => return None,
            "*" => BypassHosts::All,
            host => range(host).map_or_else(|| BypassHosts::Domain(host.to_owned()), BypassHosts::Range),
        };
        Some(Self { hosts, port })
    }

    fn matches(&self, host: &str, address: Option<IpAddr>, port: u16) -> bool {
        let host = match &self.hosts {
            BypassHosts::All => true,
            BypassHosts::Range(range) => address.is_some_and(|address| range.contains(&address)),
            BypassHosts::Domain(domain) => {
                host.strip_suffix(domain.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
        };
        host && self.port.is_none_or(|only| only == port)
    }
}

fn split_port(text: &str) -> (&str, Option<&str>) {
    if let Some((host, rest)) = text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        return (host, rest.strip_prefix(':'));
    }
    text.rsplit_once(':').map_or((text, None), |(host, port)| (host, Some(port)))
}

fn percent_decode(text: &str) -> String {
    let mut rest = text.as_bytes();
    let mut decoded = Vec::new();
    while let [byte, after @ ..] = rest {
        let digits =
            after.get(..2).filter(|_| *byte == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        let value = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        decoded.push(value.unwrap_or(*byte));
        rest = if value.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_https_proxy_is_taken_and_the_lower_case_name_wins() {
        let settings = settings(&[("HTTPS_PROXY", "http://b:1"), ("https_proxy", "http://a:3128/")]);
        assert_eq!(
            settings.unwrap().proxy_for("ssm.eu-west-1.amazonaws.com", 443).unwrap().to_string(),
            "a:3128"
        );
    }

    #[test]
    fn the_general_proxy_stands_in_and_the_scheme_may_be_missing() {
        let settings = settings(&[("ALL_PROXY", "proxy.corp"), ("HTTPS_PROXY", "")]).unwrap();
        assert_eq!(settings.proxy_for("x", 443).unwrap().to_string(), "proxy.corp:80");
    }

    #[test]
    fn userinfo_is_decoded_for_the_request_and_never_shown() {
        let settings = settings(&[("HTTPS_PROXY", "http://me:p%40ss%zz@[fd00::1]:8080")]).unwrap();
        let proxy = settings.proxy_for("x", 443).unwrap();
        assert_eq!((proxy.host.as_str(), proxy.port), ("fd00::1", 8080));
        assert!(!format!("{proxy} {proxy:?} {settings:?}").contains("p@ss"));
        let wanted =
            "CONNECT gw:443 HTTP/1.1\r\nHost: gw:443\r\nProxy-Authorization: Basic bWU6cEBzcyV6eg==\r\n\r\n";
        assert_eq!(proxy.connect_request("gw", 443), wanted);
    }

    #[test]
    fn no_proxy_names_hosts_suffixes_ranges_and_ports() {
        let list = "corp.example, .inner , 10.0.0.0/8,[fd00::1]:443,10.1.2.3,*.star, ,only:8443";
        let settings = settings(&[("HTTPS_PROXY", "p:1"), ("NO_PROXY", list)]).unwrap();
        let direct = |host, port| settings.proxy_for(host, port).is_none();
        for (host, port) in [
            ("corp.example", 443),
            ("a.corp.example", 443),
            ("A.CORP.EXAMPLE.", 443),
            ("x.inner", 1),
            ("inner", 1),
            ("10.200.0.1", 1),
            ("[fd00::1]", 443),
            ("b.star", 1),
            ("only", 8443),
            ("localhost", 1),
            ("127.0.0.9", 1),
            ("::1", 1),
        ] {
            assert!(direct(host, port), "{host}:{port} goes direct");
        }
        for (host, port) in [("notcorp.example", 443), ("11.0.0.1", 1), ("fd00::1", 80), ("only", 443)] {
            assert!(!direct(host, port), "{host}:{port} goes through the proxy");
        }
    }

    #[test]
    fn a_star_bypasses_everything() {
        let settings = settings(&[("HTTPS_PROXY", "p:1"), ("no_proxy", "*")]).unwrap();
        assert!(settings.proxy_for("anything", 443).is_none());
    }

    #[test]
    fn bad_proxies_are_named_by_their_variable() {
        for (value, wanted) in [
            ("socks5://p:1", ProxyError::Scheme { variable: "HTTPS_PROXY", scheme: "socks5".into() }),
            ("http://p:port", ProxyError::NotAnAddress { variable: "HTTPS_PROXY" }),
            ("http://", ProxyError::NotAnAddress { variable: "HTTPS_PROXY" }),
        ] {
            assert_eq!(settings(&[("HTTPS_PROXY", value)]).unwrap_err(), wanted);
        }
    }

    #[test]
    fn the_answer_is_a_status_or_not_http() {
        assert_eq!(connect_status(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n"), Ok(200));
        assert_eq!(connect_status(b"HTTP/1.0 407 Authentication Required\r\n\r\n"), Ok(407));
        for bad in [&b""[..], b"SSH-2.0-x\r\n", b"HTTP/1.1 \r\n", b"\xff\xfe\r\n"] {
            assert_eq!(connect_status(bad), Err(ProxyError::NotHttp));
        }
    }

    fn settings(variables: &[(&str, &str)]) -> Result<ProxySettings, ProxyError> {
        let find = |name: &str| variables.iter().find(|(variable, _)| *variable == name);
        ProxySettings::from_variables(|name| find(name).map(|(_, value)| (*value).to_owned()))
    }
}
