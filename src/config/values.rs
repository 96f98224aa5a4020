//! Pure: single values of the command line: session names, durations, instances, tags, addresses.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::{Via, usage};
use crate::error::UserError;

/// The name of a session: 1 to 32 ASCII letters, digits, `.`, `_` and `-`, the first a letter or digit.
///
/// Safe as a part of a file name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionName(String);

impl SessionName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for SessionName {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

impl fmt::Display for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SessionName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if text.len() > 32 {
            Err("a session name has at most 32 characters".to_owned())
        } else if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) || !text.chars().all(allowed) {
            Err("a session name has letters, digits and . _ - and begins with a letter or digit".to_owned())
        } else {
            Ok(Self(text.to_owned()))
        }
    }
}

/// Reads `30s`, `500ms`, `1m30s`, `2h`; a bare number means seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration; write 30s, 500ms, 1m30s or 2h");
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?);
        let (unit, after) = after.split_at(after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len()));
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(wrong()),
        };
        let part =
            number.parse::<u64>().ok().and_then(|number| number.checked_mul(millis)).ok_or_else(wrong)?;
        total = total.checked_add(Duration::from_millis(part)).ok_or_else(wrong)?;
        rest = after;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

/// EC2 (`i-`) and hybrid (`mi-`) instance ids.
pub(super) fn instance(id: &str) -> Result<String, UserError> {
    let hex = |digits: &str| digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let ec2 = id.strip_prefix("i-").is_some_and(|digits| matches!(digits.len(), 8 | 17) && hex(digits));
    let hybrid = id.strip_prefix("mi-").is_some_and(|digits| digits.len() == 17 && hex(digits));
    if ec2 || hybrid {
        return Ok(id.to_owned());
    }
    let error = usage(format!("{id:?} is not an instance id"))
        .cause("ids look like i-0123456789abcdef0 or mi-0123456789abcdef0");
    let looks_like_a_name = !id.is_empty() && !id.starts_with("i-") && !id.starts_with("mi-");
    Err(if looks_like_a_name { error.hint(format!("--instance-tag 'Name={id}'")) } else { error })
}

pub(super) fn tag(text: &str) -> Result<Via, UserError> {
    match text.split_once('=') {
        Some((key, value))
            if !key.is_empty() && !value.is_empty() && key.len() <= 128 && value.len() <= 256 =>
        {
            Ok(Via::Tag { key: key.to_owned(), value: value.to_owned() })
        }
        Some(_) | None => Err(usage(format!("{text:?} is not a tag"))
            .cause("a tag is written Key=Value")
            .hint("--instance-tag Name=bastion")),
    }
}

/// `tcp://HOST:PORT`; beyond loopback only with a key.
pub(super) fn tcp(url: &str, key_file: Option<PathBuf>) -> Result<Via, UserError> {
    let wrong = |why: &str| {
        usage(format!("--via {url} is not an address of an agent"))
            .cause(why)
            .hint("--via tcp://127.0.0.1:742")
    };
    let addr = url.strip_prefix("tcp://").ok_or_else(|| wrong("it must begin with tcp://"))?;
    let addr = addr.strip_suffix('/').unwrap_or(addr);
    let (host, port) = addr.rsplit_once(':').ok_or_else(|| wrong("the port is missing"))?;
    if port.parse::<u16>().ok().is_none_or(|port| port == 0) {
        return Err(wrong("the port must be a number from 1 to 65535"));
    }
    let loopback =
        host_is_loopback(host).ok_or_else(|| wrong("the host is neither an address nor a name"))?;
    if key_file.is_none() && !loopback {
        return Err(usage(format!("--via {url} needs --key-file"))
            .cause("a plain TCP lane beyond loopback is open to anyone who reaches the port")
            .hint("give both ends the same key: --key-file FILE here and at the agent"));
    }
    Ok(Via::Tcp { addr: addr.to_owned(), key_file })
}

/// `None` for something that cannot be a host.
fn host_is_loopback(host: &str) -> Option<bool> {
    if let Some(bracketed) = host.strip_prefix('[') {
        return Some(bracketed.strip_suffix(']')?.parse::<std::net::Ipv6Addr>().ok()?.is_loopback());
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        // An IPv6 address without brackets cannot be told from its port.
        return address.is_ipv4().then(|| address.is_loopback());
    }
    let name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    (!host.is_empty() && host.len() <= 253 && host.chars().all(name)).then(|| host == "localhost")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Exit;

    #[test]
    fn session_names_are_safe_file_names() {
        for good in ["default", "prod-vpc", "A.b_c-9", &"x".repeat(32)] {
            assert_eq!(good.parse::<SessionName>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "-x", "a/b", "a b", "ä", "a\n", &"x".repeat(33)] {
            assert!(bad.parse::<SessionName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn durations_as_people_write_them() {
        for (text, millis) in [
            ("30s", 30_000),
            ("45", 45_000),
            ("500ms", 500),
            ("1m30s", 90_000),
            ("2h", 7_200_000),
            ("0s", 0),
            ("1h1m1s1ms", 3_661_001),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in
            ["", "s", "30x", "-1s", "1.5s", "30s5", "99999999999999999999s", "18446744073709551615h", "3 s"]
        {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn instance_ids() {
        for good in ["i-0123456789abcdef0", "i-01234567", "mi-0123456789abcdef0"] {
            assert_eq!(instance(good).unwrap(), good);
        }
        for bad in ["", "i-", "i-0123", "i-0123456789ABCDEF0", "i-0123456789abcdefg", "mi-01234567"] {
            assert!(instance(bad).is_err(), "{bad:?}");
        }
        assert_eq!(instance("bastion").unwrap_err().hint.unwrap(), "--instance-tag 'Name=bastion'");
    }

    #[test]
    fn tags() {
        assert_eq!(tag("Name=a=b").unwrap(), Via::Tag { key: "Name".into(), value: "a=b".into() });
        for bad in ["Name", "=x", "Name=", ""] {
            assert_eq!(tag(bad).unwrap_err().exit, Exit::Usage, "{bad:?}");
        }
    }

    #[test]
    fn tcp_lanes() {
        for good in ["tcp://127.0.0.1:742", "tcp://[::1]:742", "tcp://localhost:1"] {
            assert_eq!(tcp(good, None).unwrap(), Via::Tcp { addr: good[6..].into(), key_file: None });
        }
        for bad in [
            "127.0.0.1:742",
            "udp://127.0.0.1:1",
            "tcp://127.0.0.1",
            "tcp://127.0.0.1:0",
            "tcp://127.0.0.1:65536",
            "tcp://:742",
            "tcp://::1:742",
            "tcp://[::1:742",
            "tcp://a b:1",
        ] {
            assert!(tcp(bad, Some("k".into())).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_tcp_lane_beyond_loopback_needs_a_key() {
        for far in ["tcp://192.0.2.1:742", "tcp://[2001:db8::1]:742", "tcp://agent.example:742"] {
            assert!(tcp(far, None).unwrap_err().what.contains("--key-file"), "{far}");
            assert!(tcp(far, Some("k".into())).is_ok(), "{far}");
        }
    }
}
