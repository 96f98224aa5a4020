//! Pure: why a lane is closed, and why a trunk ends.

use std::fmt;

use super::segment::FrameFault;

/// The peer, or what lies between, broke the rules on a lane. The lane is to be closed; the trunk goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneFault {
    /// We misused it: the lane was never attached, or is detached.
    UnknownLane,
    /// We misused it: the lane had a fault or died before.
    Closed,
    Frame(FrameFault),
    /// A segment is missing on a lane that keeps order and loses nothing.
    Gap {
        expected: u32,
        got: u32,
    },
    BeyondCredit {
        end: u64,
        credit: u64,
    },
    /// Other bytes than before at the same offset.
    Contradiction {
        offset: u64,
    },
    /// More gaps than segments can be in flight.
    TooManyPieces,
    AckOfUnsent {
        cum: u64,
        sent: u64,
    },
    AckOfUnsentSegment {
        sequence: u32,
    },
    /// A second hello that is not the first one again.
    OtherHello,
    /// A frame of the handshake that this side never gets.
    Handshake,
}

/// Why a lane died without a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneReason {
    PingsMissed,
    NoAcks,
}

/// Why a trunk ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoodbyeReason {
    /// The user ended the session.
    Done,
    /// The program is stopping.
    Shutdown,
    /// Nothing was carried for too long.
    Idle,
    /// Rules of the peer's side.
    Policy,
    /// The stream of the mux broke.
    Fault,
    /// A reason from a later version.
    Other(u8),
}

impl GoodbyeReason {
    pub(super) const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Shutdown => 1,
            Self::Idle => 2,
            Self::Policy => 3,
            Self::Fault => 4,
            Self::Other(code) => code,
        }
    }

    pub(super) const fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Done,
            1 => Self::Shutdown,
            2 => Self::Idle,
            3 => Self::Policy,
            4 => Self::Fault,
            other => Self::Other(other),
        }
    }

    /// The reason in words.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Done => "the session was ended",
            Self::Shutdown => "the program is stopping",
            Self::Idle => "nothing was carried for too long",
            Self::Policy => "the rules of this side forbid it",
            Self::Fault => "the stream broke",
            Self::Other(_) => "another reason",
        }
    }
}

impl fmt::Display for LaneFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownLane => f.write_str("the lane is not attached"),
            Self::Closed => f.write_str("the lane is closed"),
            Self::Frame(fault) => fault.fmt(f),
            Self::Gap { expected, got } => {
                write!(f, "segment {got} came where {expected} was next: the lane lost bytes")
            }
            Self::BeyondCredit { end, credit } => {
                write!(f, "the peer sent up to offset {end}, its credit ends at {credit}")
            }
            Self::Contradiction { offset } => {
                write!(f, "the peer sent other bytes than before at offset {offset}")
            }
            Self::TooManyPieces => f.write_str("the peer left more gaps than it can fill"),
            Self::AckOfUnsent { cum, sent } => {
                write!(f, "the peer acknowledged {cum} bytes, {sent} were sent")
            }
            Self::AckOfUnsentSegment { sequence } => {
                write!(f, "the peer acknowledged segment {sequence}, which was not sent")
            }
            Self::OtherHello => f.write_str("the client said a second, different hello"),
            Self::Handshake => f.write_str("a message of the handshake came after its end"),
        }
    }
}

impl std::error::Error for LaneFault {}

impl fmt::Display for LaneReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PingsMissed => f.write_str("three pings in a row were not answered"),
            Self::NoAcks => f.write_str("nothing that was sent on it was acknowledged in time"),
        }
    }
}
