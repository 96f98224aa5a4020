//! Pure: how a stream begins: `Open` from the side that opens it, `Opened` or `Refused` as the answer.
//!
//! Both are length-prefixed, so bytes of the flow may follow at once, and a kind that this version does
//! not know can be refused without losing the place. All integers are big-endian.
//!
//! `Open`:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 2 | length of the rest, 5 to 257 |
//! | 2 | 1 | kind: 1 TCP, 2 UDP, 3 echo, 4 DNS |
//! | 3 | 1 | form of the target: 4 IPv4, 6 IPv6, 1 name |
//! | 4 | 2 | port |
//! | 6 | 4, 16 or 1 to 253 | address, or name in letters, digits, `-`, `_` and `.` |
//!
//! Answer:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 2 | length of the rest, 1 to 39 |
//! | 2 | 1 | 0 opened; 1 refused, 2 net unreachable, 3 host unreachable, 4 prohibited, 5 timed out, 6 denied, 7 exhausted, 8 unknown name, 9 unsupported |
//! | 3 | 7 or 19 | only when opened, local address: form (4 or 6), address, port |
//! | | 7 or 19 | only when opened, remote address |
//!
//! Examples: open TCP to 10.0.1.5:5432, open TCP to db:5432, opened from 10.0.0.9:40000, refused:
//!
//! ```text
//! 0008 01 04 1538 0a000105
//! 0006 01 01 1538 6462
//! 000f 00 04 0a000009 9c40 04 0a000105 1538
//! 0001 01
//! ```

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::trunk::segment::Fields;

/// What kind of flow a stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Tcp,
    Udp,
    Echo,
    Dns,
}

/// Where a flow goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    Address(IpAddr, u16),
    /// A host name, resolved by the agent.
    Name(String, u16),
}

/// The first message on a stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Open {
    pub kind: Kind,
    pub target: Target,
}

/// The answer of the side that was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Opened { local: SocketAddr, remote: SocketAddr },
    Refused(Refusal),
}

/// Why a flow was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The target answered with a reset.
    Refused,
    NetUnreachable,
    HostUnreachable,
    /// A firewall on the way, or on the agent's machine, forbids it.
    Prohibited,
    /// No answer within the dial deadline.
    TimedOut,
    /// The agent's own rules deny the target.
    Denied,
    /// The agent is out of ports, descriptors, memory or allowed flows.
    Exhausted,
    /// The name does not resolve.
    UnknownName,
    /// This agent does not serve this kind of flow.
    Unsupported,
}

/// What stands at the start of a stream is no open message, or no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenFault {
    /// A whole message of a kind from a later version; the answer is [`Refusal::Unsupported`].
    Kind(u8),
    Length(usize),
    /// Neither IPv4 nor IPv6 nor a name, or an address of the wrong length.
    Form(u8),
    /// Empty, longer than 253 bytes, or with characters no host name has.
    Name,
    /// An answer from a later version.
    Answer(u8),
}

/// The longest encoded [`Open`].
pub const MAX_OPEN: usize = PREFIX + 4 + MAX_NAME;
/// The longest encoded [`Answer`].
pub const MAX_ANSWER: usize = PREFIX + 1 + 2 * 19;

impl Open {
    /// Appends the message; fails only for a name that is none.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), OpenFault> {
        let (form, port, address): (u8, u16, &[u8]) = match &self.target {
            Target::Address(IpAddr::V4(address), port) => (FORM_V4, *port, &address.octets()),
            Target::Address(IpAddr::V6(address), port) => (FORM_V6, *port, &address.octets()),
            Target::Name(name, port) if is_name(name.as_bytes()) => (FORM_NAME, *port, name.as_bytes()),
            Target::Name(..) => return Err(OpenFault::Name),
        };
        out.extend_from_slice(&(4 + address.len() as u16).to_be_bytes());
        out.extend_from_slice(&[self.kind.code(), form]);
        out.extend_from_slice(&port.to_be_bytes());
        out.extend_from_slice(address);
        Ok(())
    }

    /// Reads the message at the start of `input` and tells its length; `None` when part of it is missing.
    pub fn decode(input: &[u8]) -> Result<Option<(Self, usize)>, OpenFault> {
        let Some(body) = body(input, 4 + 1, MAX_OPEN - PREFIX)? else { return Ok(None) };
        let mut fields = Fields(body);
        let short = OpenFault::Length(body.len());
        let kind = fields.u8().ok_or(short)?;
        let kind = Kind::from_code(kind).ok_or(OpenFault::Kind(kind))?;
        let form = fields.u8().ok_or(short)?;
        let port = fields.u16().ok_or(short)?;
        let target = if form == FORM_NAME {
            let name = Some(fields.0).filter(|name| is_name(name)).ok_or(OpenFault::Name)?;
            Target::Name(String::from_utf8_lossy(name).into_owned(), port)
        } else {
            let address = address(form, &mut fields).ok_or(OpenFault::Form(form))?;
            end(&fields, body)?;
            Target::Address(address, port)
        };
        Ok(Some((Self { kind, target }, PREFIX + body.len())))
    }
}

impl Answer {
    /// Appends the message.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; PREFIX]);
        match self {
            Self::Opened { local, remote } => {
                out.push(OPENED);
                put_socket(out, local);
                put_socket(out, remote);
            }
            Self::Refused(refusal) => out.push(refusal.code()),
        }
        let length = (out.len() - start - PREFIX) as u16;
        out[start..start + PREFIX].copy_from_slice(&length.to_be_bytes());
    }

    /// Reads the message at the start of `input` and tells its length; `None` when part of it is missing.
    pub fn decode(input: &[u8]) -> Result<Option<(Self, usize)>, OpenFault> {
        let Some(body) = body(input, 1, MAX_ANSWER - PREFIX)? else { return Ok(None) };
        let mut fields = Fields(body);
        let code = fields.u8().ok_or(OpenFault::Length(body.len()))?;
        let answer = if code == OPENED {
            Self::Opened { local: socket(&mut fields)?, remote: socket(&mut fields)? }
        } else {
            Self::Refused(Refusal::from_code(code).ok_or(OpenFault::Answer(code))?)
        };
        end(&fields, body)?;
        Ok(Some((answer, PREFIX + body.len())))
    }
}

/// What stands behind the length, once all of it is there.
fn body(input: &[u8], least: usize, most: usize) -> Result<Option<&[u8]>, OpenFault> {
    let Some((prefix, rest)) = input.split_first_chunk::<PREFIX>() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes(*prefix));
    if length < least || length > most {
        return Err(OpenFault::Length(length));
    }
    Ok(rest.get(..length))
}

fn end(fields: &Fields<'_>, body: &[u8]) -> Result<(), OpenFault> {
    if fields.0.is_empty() { Ok(()) } else { Err(OpenFault::Length(body.len())) }
}

/// Whether an address is written in this form.
pub(super) fn is_form(form: u8) -> bool {
    matches!(form, FORM_V4 | FORM_V6)
}

pub(super) fn form(address: IpAddr) -> u8 {
    if address.is_ipv4() { FORM_V4 } else { FORM_V6 }
}

pub(super) fn put_address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => out.extend_from_slice(&address.octets()),
        IpAddr::V6(address) => out.extend_from_slice(&address.octets()),
    }
}

/// Reads an address of this form.
pub(super) fn address(form: u8, fields: &mut Fields<'_>) -> Option<IpAddr> {
    match form {
        FORM_V4 => fields.array::<4>().map(|octets| Ipv4Addr::from(octets).into()),
        FORM_V6 => fields.array::<16>().map(|octets| Ipv6Addr::from(octets).into()),
        _ => None,
    }
}

fn socket(fields: &mut Fields<'_>) -> Result<SocketAddr, OpenFault> {
    let form = fields.u8().ok_or(OpenFault::Form(0))?;
    let address = address(form, fields).ok_or(OpenFault::Form(form))?;
    let port = fields.u16().ok_or(OpenFault::Form(form))?;
    Ok(SocketAddr::new(address, port))
}

fn put_socket(out: &mut Vec<u8>, socket: &SocketAddr) {
    out.push(form(socket.ip()));
    put_address(out, socket.ip());
    out.extend_from_slice(&socket.port().to_be_bytes());
}

fn is_name(name: &[u8]) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

impl Kind {
    const ALL: [Self; 4] = [Self::Tcp, Self::Udp, Self::Echo, Self::Dns];

    const fn code(self) -> u8 {
        match self {
            Self::Tcp => 1,
            Self::Udp => 2,
            Self::Echo => 3,
            Self::Dns => 4,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }
}

impl Refusal {
    const ALL: [Self; 9] = [
        Self::Refused,
        Self::NetUnreachable,
        Self::HostUnreachable,
        Self::Prohibited,
        Self::TimedOut,
        Self::Denied,
        Self::Exhausted,
        Self::UnknownName,
        Self::Unsupported,
    ];

    pub(super) const fn code(self) -> u8 {
        match self {
            Self::Refused => 1,
            Self::NetUnreachable => 2,
            Self::HostUnreachable => 3,
            Self::Prohibited => 4,
            Self::TimedOut => 5,
            Self::Denied => 6,
            Self::Exhausted => 7,
            Self::UnknownName => 8,
            Self::Unsupported => 9,
        }
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| refusal.code() == code)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Echo => "echo",
            Self::Dns => "dns",
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address, port) => SocketAddr::new(*address, *port).fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "connection refused by the target",
            Self::NetUnreachable => "no route from the agent to the network",
            Self::HostUnreachable => "host unreachable from the agent",
            Self::Prohibited => "forbidden by a firewall on the way",
            Self::TimedOut => "no answer from the target in time",
            Self::Denied => "denied by the agent's rules",
            Self::Exhausted => "the agent is at a limit",
            Self::UnknownName => "the name does not resolve at the agent",
            Self::Unsupported => "the agent does not serve this kind of flow",
        })
    }
}

impl fmt::Display for OpenFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(kind) => write!(f, "flows of kind {kind} are not known to this version"),
            Self::Length(length) => write!(f, "no opening message has {length} bytes"),
            Self::Form(form) => write!(f, "an address of form {form} is none"),
            Self::Name => f.write_str("the host name is empty, too long or has characters no host name has"),
            Self::Answer(code) => write!(f, "the answer {code} is not known to this version"),
        }
    }
}

impl std::error::Error for OpenFault {}

const PREFIX: usize = 2;
const MAX_NAME: usize = 253;
const FORM_NAME: u8 = 1;
const FORM_V4: u8 = 4;
const FORM_V6: u8 = 6;
const OPENED: u8 = 0;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn examples_of_the_doc_decode_and_encode() {
        let opens = [
            (open(Target::Address([10, 0, 1, 5].into(), 5432)), "00080104 1538 0a000105"),
            (open(Target::Name("db".into(), 5432)), "00060101 1538 6462"),
        ];
        for (open, wire) in opens {
            let mut out = Vec::new();
            open.encode(&mut out).unwrap();
            assert_eq!(out, hex(wire));
            assert_eq!(Open::decode(&out), Ok(Some((open, out.len()))));
        }
        let answers = [
            (
                Answer::Opened {
                    local: ([10, 0, 0, 9], 40_000).into(),
                    remote: ([10, 0, 1, 5], 5432).into(),
                },
                "000f00 04 0a000009 9c40 04 0a000105 1538",
            ),
            (Answer::Refused(Refusal::Refused), "000101"),
        ];
        for (answer, wire) in answers {
            let mut out = Vec::new();
            answer.encode(&mut out);
            assert_eq!(out, hex(wire));
            assert_eq!(Answer::decode(&out), Ok(Some((answer, out.len()))));
        }
    }

    #[test]
    fn every_kind_and_refusal_has_a_code_of_its_own() {
        assert!(Kind::ALL.into_iter().all(|kind| Kind::from_code(kind.code()) == Some(kind)));
        assert!(Refusal::ALL.into_iter().all(|refusal| Refusal::from_code(refusal.code()) == Some(refusal)));
    }

    #[test]
    fn a_later_kind_is_told_from_garbage() {
        assert_eq!(Open::decode(&hex("00080504 1538 0a000105")), Err(OpenFault::Kind(5)));
        assert_eq!(Open::decode(&hex("ffff0104 1538 0a000105")), Err(OpenFault::Length(0xffff)));
        assert_eq!(Open::decode(&hex("00080105 1538 0a000105")), Err(OpenFault::Form(5)));
        assert_eq!(Open::decode(&hex("00090104 1538 0a00010500")), Err(OpenFault::Length(9)));
        assert_eq!(Answer::decode(&hex("00010a")), Err(OpenFault::Answer(10)));
        assert_eq!(Answer::decode(&hex("00020100")), Err(OpenFault::Length(2)));
    }

    #[test]
    fn names_that_are_none_are_refused_both_ways() {
        for name in ["", "a b", "a\0", "\u{e9}", &"a".repeat(254)] {
            assert_eq!(open(Target::Name(name.into(), 1)).encode(&mut Vec::new()), Err(OpenFault::Name));
        }
        assert_eq!(Open::decode(&hex("00060101 0001 6120")), Err(OpenFault::Name));
        let mut longest = Vec::new();
        open(Target::Name("a".repeat(253), 1)).encode(&mut longest).unwrap();
        assert_eq!(longest.len(), MAX_OPEN);
    }

    proptest! {
        #[test]
        fn every_prefix_needs_more_and_what_follows_is_left(open in any_open(), follows in any::<Vec<u8>>()) {
            let mut wire = Vec::new();
            open.encode(&mut wire).unwrap();
            let length = wire.len();
            for cut in 0..length {
                prop_assert_eq!(Open::decode(&wire[..cut]), Ok(None));
            }
            wire.extend(follows);
            prop_assert_eq!(Open::decode(&wire), Ok(Some((open, length))));
        }

        #[test]
        fn answers_survive_the_way(local in any::<SocketAddr>(), remote in any::<SocketAddr>()) {
            let plain = |socket: SocketAddr| SocketAddr::new(socket.ip(), socket.port());
            let answer = Answer::Opened { local: plain(local), remote: plain(remote) };
            let mut wire = Vec::new();
            answer.encode(&mut wire);
            prop_assert!(wire.len() <= MAX_ANSWER);
            for cut in 0..wire.len() {
                prop_assert_eq!(Answer::decode(&wire[..cut]), Ok(None));
            }
            prop_assert_eq!(Answer::decode(&wire), Ok(Some((answer, wire.len()))));
        }

        #[test]
        fn random_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..60), short in any::<bool>()) {
            if short && let Some(first) = bytes.first_mut() {
                *first = 0;
            }
            let _ = Open::decode(&bytes);
            let _ = Answer::decode(&bytes);
        }
    }

    fn any_open() -> impl Strategy<Value = Open> {
        let target = prop_oneof![
            (any::<IpAddr>(), any::<u16>()).prop_map(|(address, port)| Target::Address(address, port)),
            ("[a-zA-Z0-9_.-]{1,253}", any::<u16>()).prop_map(|(name, port)| Target::Name(name, port)),
        ];
        (prop::sample::select(&Kind::ALL[..]), target).prop_map(|(kind, target)| Open { kind, target })
    }

    fn open(target: Target) -> Open {
        Open { kind: Kind::Tcp, target }
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }
}
