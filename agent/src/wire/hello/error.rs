//! Pure: why a handshake failed, in words for the user.

use std::fmt;

use super::PublicKey;
use crate::wire::VERSION;
use crate::wire::trunk::segment::FrameFault;

/// Why the agent does not let a lane in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenyReason {
    Version,
    Proof,
    /// The trunk ended, expired, or the agent was started anew: make another one.
    UnknownTrunk,
    TooManyLanes,
    TooManyTrunks,
    Policy,
    Malformed,
    /// A reason from a later version.
    Other(u8),
}

/// Why no lane came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HelloError {
    /// At the client: something else answered; its first bytes.
    NotAgent(Vec<u8>),
    /// At the agent: something else connected; its first bytes.
    NotClient(Vec<u8>),
    /// At the client.
    AgentVersion {
        protocol: u16,
        version: String,
    },
    /// At the agent, which has the version `agent`.
    ClientVersion {
        protocol: u16,
        version: String,
        agent: String,
    },
    /// At the client: the agent wants a key file.
    KeyRequired,
    /// At the client: the agent has no key file.
    KeyNotExpected,
    /// At the client: not the agent that was pinned.
    KeyChanged {
        expected: PublicKey,
        got: PublicKey,
    },
    /// At the client: the agent does not know what only it can know.
    AgentProof,
    /// At the agent: the client does not know what only it can know.
    ClientProof {
        key_required: bool,
    },
    /// At the agent: a trunk it does not have.
    UnknownTrunk,
    /// At the client: the agent's answer.
    Denied {
        reason: DenyReason,
        text: String,
    },
    Frame(FrameFault),
    /// What was wrong in a message that arrived whole.
    Malformed(&'static str),
}

impl HelloError {
    /// How the agent answers; `None` when silence is the better answer.
    pub(super) fn denial(&self) -> Option<DenyReason> {
        match self {
            Self::ClientVersion { .. } => Some(DenyReason::Version),
            Self::ClientProof { .. } => Some(DenyReason::Proof),
            Self::UnknownTrunk => Some(DenyReason::UnknownTrunk),
            Self::Malformed(_) | Self::Frame(_) => Some(DenyReason::Malformed),
            Self::NotClient(_)
            | Self::NotAgent(_)
            | Self::AgentVersion { .. }
            | Self::KeyRequired
            | Self::KeyNotExpected
            | Self::KeyChanged { .. }
            | Self::AgentProof
            | Self::Denied { .. } => None,
        }
    }

    /// What the agent tells the client about it.
    pub(super) fn told_to_client(&self) -> String {
        match self {
            Self::ClientVersion { protocol, version, agent } => mismatch(VERSION, agent, *protocol, version),
            Self::ClientProof { key_required: true } => {
                "the key file is wrong: both ends need the same --key-file content".into()
            }
            Self::ClientProof { key_required: false } => {
                "the client could not prove that this trunk is its own: start a new session".into()
            }
            Self::UnknownTrunk => {
                "the agent does not know this trunk (expired, or the agent was started anew)".into()
            }
            Self::NotClient(_)
            | Self::NotAgent(_)
            | Self::AgentVersion { .. }
            | Self::KeyRequired
            | Self::KeyNotExpected
            | Self::KeyChanged { .. }
            | Self::AgentProof
            | Self::Denied { .. }
            | Self::Frame(_)
            | Self::Malformed(_) => self.to_string(),
        }
    }
}

impl fmt::Display for HelloError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAgent(first) => write!(
                f,
                "what answered is not ssm-proxy-agent (first bytes \"{}\"): check the port and what listens on it",
                first.escape_ascii()
            ),
            Self::NotClient(first) => {
                write!(f, "what connected is not ssm-proxy (first bytes \"{}\")", first.escape_ascii())
            }
            Self::AgentVersion { protocol, version } => {
                f.write_str(&mismatch(*protocol, version, VERSION, ""))
            }
            Self::ClientVersion { protocol, version, agent } => {
                f.write_str(&mismatch(VERSION, agent, *protocol, version))
            }
            Self::KeyRequired => f.write_str(
                "the agent requires a shared key and none was given: pass --key-file with a copy of the agent's key file",
            ),
            Self::KeyNotExpected => f.write_str(
                "the agent was started without a shared key: start it with --key-file, or leave --key-file out here",
            ),
            Self::KeyChanged { expected, got } => write!(
                f,
                "the agent's key has changed (expected {expected}, got {got}): somebody else may be answering; if the agent \
                 was installed anew, forget the old key and try again"
            ),
            Self::AgentProof => f.write_str(
                "what answered could not prove that it is the agent whose key it showed: do not trust it, look at what listens on the agent's port",
            ),
            Self::ClientProof { key_required: true } => f.write_str(
                "the client could not prove itself: its key file is missing or differs from the agent's",
            ),
            Self::ClientProof { key_required: false } => {
                f.write_str("the client could not prove that the trunk is its own")
            }
            Self::UnknownTrunk => f.write_str("the client asked to resume a trunk that is not known here"),
            Self::Denied { reason, text } if text.is_empty() => {
                write!(f, "the agent refused the session: {reason}")
            }
            Self::Denied { reason: _, text } => write!(f, "the agent refused the session: {text}"),
            Self::Frame(fault) => write!(f, "the handshake was damaged on the way: {fault}"),
            Self::Malformed(what) => write!(f, "the other side broke the handshake: {what}"),
        }
    }
}

impl std::error::Error for HelloError {}

impl fmt::Display for DenyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version => f.write_str("versions that do not fit"),
            Self::Proof => f.write_str("the proof was wrong"),
            Self::UnknownTrunk => f.write_str("unknown trunk"),
            Self::TooManyLanes => f.write_str("too many lanes"),
            Self::TooManyTrunks => f.write_str("too many trunks"),
            Self::Policy => f.write_str("its rules forbid it"),
            Self::Malformed => f.write_str("the hello made no sense"),
            Self::Other(code) => write!(f, "reason {code}, which this version does not know"),
        }
    }
}

/// Names both sides and what to do; the version of this program need not be told to its own user.
fn mismatch(agent: u16, agent_version: &str, client: u16, client_version: &str) -> String {
    let client_version =
        if client_version.is_empty() { String::new() } else { format!(" (version {client_version})") };
    let next = if agent > client { "upgrade ssm-proxy on this machine" } else { "upgrade the agent" };
    format!(
        "the agent speaks protocol {agent} (version {agent_version}), this client speaks {client}{client_version}: {next}"
    )
}
