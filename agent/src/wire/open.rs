//! Pure: how a stream begins: `Open` from the side that opens it, `Opened` or `Refused` as the answer.
//!
//! (Byte tables go here.)

use std::net::{IpAddr, SocketAddr};

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
