//! Why the agent does not listen, and why a connection became no lane.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use rustix::io::Errno;

use crate::wire::hello::HelloError;

/// Why the agent does not listen.
#[derive(Debug)]
pub enum StartError {
    Listen { address: SocketAddr, error: io::Error },
    KeyNeeded { address: SocketAddr },
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyNeeded { address } => {
                write!(f, "{address} is reachable from other machines and needs a key file")
            }
            Self::Listen { address, error } => {
                write!(f, "cannot listen on {address}: {error}")?;
                match Errno::from_io_error(error) {
                    Some(Errno::ADDRINUSE) => write!(
                        f,
                        "; another agent may be running ('ss -ltnp sport = :{port}' shows who has port {port})",
                        port = address.port()
                    ),
                    Some(Errno::ACCESS | Errno::PERM) => f.write_str(
                        "; ports below 1024 need root or CAP_NET_BIND_SERVICE \
                         (systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE)",
                    ),
                    Some(Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT) => {
                        f.write_str("; this machine does not have that address")?;
                        if address.ip().is_loopback() && address.is_ipv6() {
                            f.write_str(" (with IPv6 turned off, say --listen 127.0.0.1:742)")?;
                        }
                        Ok(())
                    }
                    Some(_) | None => Ok(()),
                }
            }
        }
    }
}

impl std::error::Error for StartError {}

/// Why a connection became no lane.
#[derive(Debug)]
pub(super) enum NoLane {
    Io(io::Error),
    Ended,
    Hello(HelloError),
    TooManyLanes,
    TooManyTrunks,
    TrunkEnded,
}

impl From<io::Error> for NoLane {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<HelloError> for NoLane {
    fn from(error: HelloError) -> Self {
        Self::Hello(error)
    }
}

impl fmt::Display for NoLane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Ended => f.write_str("it ended before its hello was whole"),
            Self::Hello(error) => error.fmt(f),
            Self::TooManyLanes => f.write_str("its trunk has too many lanes"),
            Self::TooManyTrunks => f.write_str("too many trunks have clients"),
            Self::TrunkEnded => f.write_str("its trunk ended in that moment"),
        }
    }
}
