//! Who may hand in a lane: over the loopback, only processes of allowed users.
//!
//! Every local user can connect to the agent's port, but only the SSM agent's worker, which runs as
//! root, carries lanes. The kernel is asked about the peer's own socket by its exact addresses. Only
//! an established connection with an inode and an allowed owner gets in: a socket whose process has
//! closed it reads as uid 0, inode 0, which is no root.
//!
//! Pure but for [`Admission::check`]. The question (sock_diag, `inet_diag_req_v2`, and its answer
//! `inet_diag_msg`; integers in the machine's order, ports and addresses in the network's):
//!
//! | bytes | question | answer |
//! |---|---|---|
//! | 4 | length, 72 | length, at least 88 |
//! | 2 | 20 (`SOCK_DIAG_BY_FAMILY`) | 20, or 2 for an error |
//! | 2 | flags, 1 (`NLM_F_REQUEST`) | |
//! | 4 | sequence number | the same |
//! | 4 | 0 | |
//! | 1 | address family | address family (error: 4 bytes, negative errno) |
//! | 1 | 6 (TCP) | state, 1 = established |
//! | 2 | 0 | timer, retransmissions |
//! | 4 | wanted states | (the next field follows at once) |
//! | 2 + 2 | peer's port, our port | the same |
//! | 16 + 16 | peer's address, ours | the same |
//! | 4 + 8 | interface 0, cookie all ones | interface, cookie |
//! | 12 | | expiry, queues |
//! | 4 + 4 | | uid, inode |

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

#[cfg(target_os = "linux")]
#[path = "admission/linux.rs"]
mod kernel;

/// Without sock_diag nobody can be told apart.
#[cfg(not(target_os = "linux"))]
mod kernel {
    use std::io;

    pub(super) fn ask(_question: &[u8], _answer: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Which local users may hand in lanes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    Uids(Vec<u32>),
    /// Everybody on this machine.
    Any,
}

impl Default for Admission {
    /// Root, as which the SSM agent's worker runs.
    fn default() -> Self {
        Self::Uids(vec![0])
    }
}

impl Admission {
    /// Asks the kernel whose the other side of an accepted loopback connection is. Waits for nothing.
    pub fn check(&self, peer: SocketAddr, local: SocketAddr) -> Result<(), Turned> {
        let uids = match self {
            Self::Any => return Ok(()),
            Self::Uids(uids) => uids,
        };
        let pair = Pair::new(peer, local).ok_or(Turned::NotFound)?;
        let mut answer = [0; ANSWER_ROOM];
        let length =
            kernel::ask(&pair.question(), &mut answer).map_err(|error| Turned::Unknown(Unknown(error)))?;
        pair.judge(&answer[..length], uids)
    }
}

/// Why a local peer was turned away.
#[derive(Debug, PartialEq, Eq)]
pub enum Turned {
    /// The kernel cannot be asked.
    Unknown(Unknown),
    /// The peer closed before it was looked at.
    NotFound,
    NotEstablished,
    Uid(u32),
}

/// Why the kernel could not be asked.
#[derive(Debug)]
pub struct Unknown(io::Error);

impl PartialEq for Unknown {
    fn eq(&self, other: &Self) -> bool {
        self.0.kind() == other.0.kind()
    }
}

impl Eq for Unknown {}

impl fmt::Display for Turned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(Unknown(error)) => write!(
                f,
                "the kernel does not tell whose the connection is ({error}): load the modules inet_diag and tcp_diag \
                 and allow AF_NETLINK to this service, or let every local user in with --allow-uid any"
            ),
            Self::NotFound => f.write_str("it was gone before its owner could be looked at"),
            Self::NotEstablished => f.write_str("it was closing before its owner could be looked at"),
            Self::Uid(uid) => {
                write!(f, "it belongs to uid {uid}, which is not allowed (--allow-uid {uid} would allow it)")
            }
        }
    }
}

impl std::error::Error for Turned {}

/// A connection as its far socket sees it. A mapped IPv4 address counts as IPv4: so the kernel keeps it.
#[derive(Debug, PartialEq, Eq)]
struct Pair {
    family: u8,
    peer: (u16, [u8; 16]),
    local: (u16, [u8; 16]),
}

impl Pair {
    /// `None` for addresses of two families, which no connection has.
    fn new(peer: SocketAddr, local: SocketAddr) -> Option<Self> {
        let (peer_ip, local_ip) = (peer.ip().to_canonical(), local.ip().to_canonical());
        let family = match (peer_ip, local_ip) {
            (IpAddr::V4(_), IpAddr::V4(_)) => INET,
            (IpAddr::V6(_), IpAddr::V6(_)) => INET6,
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
        };
        Some(Self { family, peer: (peer.port(), padded(peer_ip)), local: (local.port(), padded(local_ip)) })
    }

    fn question(&self) -> Vec<u8> {
        let mut question = Vec::with_capacity(QUESTION as usize);
        question.extend_from_slice(&QUESTION.to_ne_bytes());
        question.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        question.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
        question.extend_from_slice(&SEQUENCE.to_ne_bytes());
        question.extend_from_slice(&[0; 4]);
        question.extend_from_slice(&[self.family, TCP, 0, 0]);
        question.extend_from_slice(&u32::MAX.to_ne_bytes());
        question.extend_from_slice(&self.peer.0.to_be_bytes());
        question.extend_from_slice(&self.local.0.to_be_bytes());
        question.extend_from_slice(&self.peer.1);
        question.extend_from_slice(&self.local.1);
        question.extend_from_slice(&[0; 4]);
        question.extend_from_slice(&[0xff; 8]);
        question
    }

    /// The kernel falls back to a listener, a closing socket or its remains, so all is compared.
    fn judge(&self, answer: &[u8], uids: &[u32]) -> Result<(), Turned> {
        let broken = || Turned::Unknown(Unknown(io::ErrorKind::InvalidData.into()));
        let word = |at: usize| field(answer, at).map(u32::from_ne_bytes).ok_or_else(broken);
        let half = |at: usize| field(answer, at).map(u16::from_ne_bytes).ok_or_else(broken);
        if word(8)? != SEQUENCE {
            return Err(broken());
        }
        match half(4)? {
            SOCK_DIAG_BY_FAMILY if answer.len() >= ANSWER => {}
            NLMSG_ERROR => {
                let errno = word(16)?.cast_signed().wrapping_neg();
                let error = io::Error::from_raw_os_error(errno);
                let gone = error.kind() == io::ErrorKind::NotFound;
                return Err(if gone { Turned::NotFound } else { Turned::Unknown(Unknown(error)) });
            }
            _ => return Err(broken()),
        }
        let found = Self::decode(answer).ok_or_else(broken)?;
        let (uid, inode) = (word(80)?, word(84)?);
        if &found != self {
            Err(Turned::NotFound)
        } else if answer[17] != ESTABLISHED || inode == 0 {
            Err(Turned::NotEstablished)
        } else if !uids.contains(&uid) {
            Err(Turned::Uid(uid))
        } else {
            Ok(())
        }
    }

    fn decode(answer: &[u8]) -> Option<Self> {
        let address = |at: usize| -> Option<IpAddr> {
            let bytes: [u8; 16] = field(answer, at)?;
            match answer[16] {
                INET => Some(IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]))),
                INET6 => Some(IpAddr::V6(Ipv6Addr::from(bytes))),
                _ => None,
            }
        };
        let port = |at: usize| field(answer, at).map(u16::from_be_bytes);
        Self::new(SocketAddr::new(address(24)?, port(20)?), SocketAddr::new(address(40)?, port(22)?))
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn padded(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut padded = [0; 16];
            padded[..4].copy_from_slice(&address.octets());
            padded
        }
        IpAddr::V6(address) => address.octets(),
    }
}

const QUESTION: u32 = 72;
const ANSWER: usize = 88;
/// The attributes behind the answer are of no use, but have to fit.
const ANSWER_ROOM: usize = 1024;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
/// Each question has a socket of its own.
const SEQUENCE: u32 = 1;
const INET: u8 = 2;
const INET6: u8 = 10;
const TCP: u8 = 6;
const ESTABLISHED: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> Pair {
        Pair::new("127.0.0.1:40000".parse().unwrap(), "127.0.0.1:742".parse().unwrap()).unwrap()
    }

    /// The answer to `pair`, established, as the kernel wrote it.
    fn answer(family: u8, state: u8, addresses: &[u8; 32], uid: u32, inode: u32) -> Vec<u8> {
        let mut answer = Vec::new();
        answer.extend_from_slice(&88u32.to_ne_bytes());
        answer.extend_from_slice(&[20u16.to_ne_bytes(), [0, 0]].concat());
        answer.extend_from_slice(&1u32.to_ne_bytes());
        answer.extend_from_slice(&[0; 4]);
        answer.extend_from_slice(&[family, state, 0, 0]);
        answer.extend_from_slice(&[0x9c, 0x40, 0x02, 0xe6]);
        answer.extend_from_slice(addresses);
        answer.extend_from_slice(&[0, 0, 0, 0, 7, 7, 7, 7, 0, 0, 0, 0]);
        answer.extend_from_slice(&[0; 12]);
        answer.extend_from_slice(&uid.to_ne_bytes());
        answer.extend_from_slice(&inode.to_ne_bytes());
        answer
    }

    const V4: [u8; 32] = {
        let mut bytes = [0; 32];
        bytes[0] = 127;
        bytes[3] = 1;
        bytes[16] = 127;
        bytes[19] = 1;
        bytes
    };

    #[test]
    fn the_question_has_the_kernels_layout() {
        let question = pair().question();
        assert_eq!(question.len(), 72);
        assert_eq!(question[16..20], [2, 6, 0, 0]);
        assert_eq!(question[24..28], [0x9c, 0x40, 0x02, 0xe6]);
        assert_eq!(question[28..32], [127, 0, 0, 1]);
        assert_eq!(question[44..48], [127, 0, 0, 1]);
        assert_eq!(question[64..72], [0xff; 8]);
    }

    #[test]
    fn only_an_established_socket_of_an_allowed_user_gets_in() {
        let judge = |state, uid, inode| pair().judge(&answer(2, state, &V4, uid, inode), &[0, 1000]);
        assert_eq!(judge(1, 0, 4711), Ok(()));
        assert_eq!(judge(1, 1000, 4711), Ok(()));
        assert_eq!(judge(1, 65534, 4711), Err(Turned::Uid(65534)));
        // Closed by its process: nobody's, not root's.
        assert_eq!(judge(1, 0, 0), Err(Turned::NotEstablished));
        for state in (0..=12).filter(|&state| state != 1) {
            assert_eq!(judge(state, 0, 4711), Err(Turned::NotEstablished), "{state}");
        }
    }

    #[test]
    fn the_answer_must_be_about_the_same_connection() {
        let listener = answer(2, 1, &[0; 32], 0, 4711);
        assert_eq!(pair().judge(&listener, &[0]), Err(Turned::NotFound));
        let mut other_port = answer(2, 1, &V4, 0, 4711);
        other_port[21] ^= 1;
        assert_eq!(pair().judge(&other_port, &[0]), Err(Turned::NotFound));
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_one() {
        let mapped =
            Pair::new("[::ffff:127.0.0.1]:40000".parse().unwrap(), "[::ffff:127.0.0.1]:742".parse().unwrap());
        assert_eq!(mapped.unwrap(), pair());
        let mut addresses = [0; 32];
        for at in [0, 16] {
            addresses[at + 10..at + 16].copy_from_slice(&[0xff, 0xff, 127, 0, 0, 1]);
        }
        assert_eq!(pair().judge(&answer(10, 1, &addresses, 0, 4711), &[0]), Ok(()));
        assert_eq!(Pair::new("[::1]:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()), None);
    }

    #[test]
    fn errors_and_broken_answers_let_nobody_in() {
        let mut error = answer(2, 1, &V4, 0, 4711)[..36].to_vec();
        error[4..6].copy_from_slice(&2u16.to_ne_bytes());
        error[16..20].copy_from_slice(&(-2i32).to_ne_bytes());
        assert_eq!(pair().judge(&error, &[0]), Err(Turned::NotFound));
        error[16..20].copy_from_slice(&(-1i32).to_ne_bytes());
        assert!(matches!(pair().judge(&error, &[0]), Err(Turned::Unknown(_))));
        error[16..20].copy_from_slice(&i32::MIN.to_ne_bytes());
        assert!(matches!(pair().judge(&error, &[0]), Err(Turned::Unknown(_))));
        let whole = answer(2, 1, &V4, 0, 4711);
        for length in 0..whole.len() {
            assert!(matches!(pair().judge(&whole[..length], &[0]), Err(Turned::Unknown(_))), "{length}");
        }
    }
}
