//! Pure: what both ends speak, in the order a lane sees it.
//!
//! A lane carries frames ([`trunk::segment`]): first the greeting and the hello ([`hello`]), then the
//! frames of the trunk ([`trunk`]). The trunk's byte stream carries yamux frames ([`mux`]); each stream
//! begins with an open message and its answer ([`open`]); then come the bytes of a TCP connection, as they
//! are or in blocks ([`blocks`]), or messages ([`datagram`]).

pub mod blocks;
pub mod datagram;
pub mod hello;
pub mod mux;
pub mod open;
pub mod trunk;

/// Which end of a trunk this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Client,
    Agent,
}

impl Role {
    pub const fn other(self) -> Self {
        match self {
            Self::Client => Self::Agent,
            Self::Agent => Self::Client,
        }
    }
}

/// Version of everything in this module; both ends must agree on it.
pub const VERSION: u16 = 1;
