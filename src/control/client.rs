//! Driver: the commands' end of the control socket.
//!
//! Blocking, one connection per request: `status`, `flows` and `down` do nothing else meanwhile.

use std::fmt;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use super::{Answer, Flow, Killed, Request, Status};
use crate::error::{Exit, UserError};

/// Why a session could not be asked.
#[derive(Debug)]
pub enum Fault {
    /// There is no such socket.
    Absent,
    /// Nobody listens at the socket: the session died and left it.
    Dead,
    /// The session is another user's.
    Denied,
    /// It listens but does not answer in time.
    Silent,
    /// It closed the connection where an answer was due.
    Closed,
    /// It answered something else, or in another version.
    Garbled(String),
    /// It said no.
    Refused(String),
    Failed(io::Error),
}

impl Fault {
    /// As the user is told about the session `name`.
    pub fn explain(&self, name: &str) -> UserError {
        let dead = "the next `sudo ssm-proxy up` undoes whatever it left behind";
        match self {
            Self::Absent => UserError::new(Exit::NotRunning, format!("session {name} is not running"))
                .hint("ssm-proxy status"),
            Self::Dead => UserError::new(Exit::NotRunning, format!("session {name} is not running"))
                .cause("its process died without cleaning up")
                .hint(dead),
            Self::Denied => {
                UserError::new(Exit::Privileges, format!("session {name} belongs to another user"))
                    .hint("the same command with sudo")
            }
            Self::Silent => UserError::new(Exit::Failure, format!("session {name} does not answer"))
                .cause(format!("no answer within {} s", DEADLINE.as_secs()))
                .hint("if it stays so, end its process; then `sudo ssm-proxy up` undoes what it left"),
            Self::Closed => UserError::new(Exit::Failure, format!("session {name} ended before it answered"))
                .hint("ssm-proxy status"),
            Self::Garbled(how) => {
                UserError::new(Exit::Failure, format!("session {name} answers in words unknown here"))
                    .cause(how)
                    .hint("run the same version as the session: `ssm-proxy version`")
            }
            Self::Refused(message) => {
                UserError::new(Exit::Failure, format!("session {name} refused the request")).cause(message)
            }
            Self::Failed(error) => {
                UserError::new(Exit::Failure, format!("cannot talk to session {name}")).cause(error)
            }
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("not running"),
            Self::Dead => f.write_str("died without cleaning up"),
            Self::Denied => f.write_str("belongs to another user"),
            Self::Silent => write!(f, "no answer within {} s", DEADLINE.as_secs()),
            Self::Closed => f.write_str("ended before it answered"),
            Self::Garbled(how) => write!(f, "unknown answer: {how}"),
            Self::Refused(message) => write!(f, "refused: {message}"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

pub fn status(socket: &Path) -> Result<Status, Fault> {
    match ask(socket, &Request::Status)?.1 {
        Answer::Status(status) => Ok(*status),
        other @ (Answer::Flows { .. } | Answer::Killed { .. } | Answer::Ending | Answer::Error { .. }) => {
            Err(unexpected(other))
        }
    }
}

pub fn flows(socket: &Path) -> Result<Vec<Flow>, Fault> {
    match ask(socket, &Request::Flows)?.1 {
        Answer::Flows { flows } => Ok(flows),
        other @ (Answer::Status(_) | Answer::Killed { .. } | Answer::Ending | Answer::Error { .. }) => {
            Err(unexpected(other))
        }
    }
}

/// Resets flows; tells of each in this order.
pub fn kill(socket: &Path, flows: &[u64]) -> Result<Vec<Killed>, Fault> {
    match ask(socket, &Request::Kill { flows: flows.to_vec() })?.1 {
        Answer::Killed { flows } => Ok(flows),
        other @ (Answer::Status(_) | Answer::Flows { .. } | Answer::Ending | Answer::Error { .. }) => {
            Err(unexpected(other))
        }
    }
}

/// Asks the session to end and waits until its clean-up is done, at most `deadline`.
pub fn down(socket: &Path, deadline: Duration) -> Result<(), Fault> {
    let (mut stream, answer) = ask(socket, &Request::Down)?;
    match answer {
        Answer::Ending => {}
        other @ (Answer::Status(_) | Answer::Flows { .. } | Answer::Killed { .. } | Answer::Error { .. }) => {
            return Err(unexpected(other));
        }
    }
    stream.get_ref().set_read_timeout(Some(deadline)).map_err(Fault::Failed)?;
    match stream.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(Fault::Garbled("bytes after its last answer".to_owned())),
        // A reset is as good an end as any: the process is gone.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(fault(error)),
    }
}

const DEADLINE: Duration = Duration::from_secs(10);
/// Ten thousand flows take about 4 MB.
const MAX_ANSWER: u64 = 64 * 1024 * 1024;

fn ask(socket: &Path, request: &Request) -> Result<(BufReader<UnixStream>, Answer), Fault> {
    let mut stream = BufReader::new(connect(socket).map_err(fault)?);
    let mut line = serde_json::to_vec(request).map_err(|error| Fault::Garbled(error.to_string()))?;
    line.push(b'\n');
    // Who is refused for who they are may find the connection closed while writing; the answer tells why.
    let written = stream.get_mut().write_all(&line);
    line.clear();
    let read = (&mut stream).take(MAX_ANSWER).read_until(b'\n', &mut line);
    if line.is_empty() {
        written.and(read).map_err(fault)?;
        return Err(Fault::Closed);
    }
    let answer = serde_json::from_slice(&line).map_err(|error| Fault::Garbled(error.to_string()))?;
    Ok((stream, answer))
}

fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.connect_timeout(&SockAddr::unix(path)?, DEADLINE)?;
    let stream = UnixStream::from(OwnedFd::from(socket));
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    Ok(stream)
}

fn fault(error: io::Error) -> Fault {
    use io::ErrorKind as E;
    #[expect(clippy::wildcard_enum_match_arm, reason = "not our enum, and it grows")]
    match error.kind() {
        E::NotFound => Fault::Absent,
        E::ConnectionRefused => Fault::Dead,
        E::PermissionDenied => Fault::Denied,
        E::WouldBlock | E::TimedOut => Fault::Silent,
        E::ConnectionReset | E::BrokenPipe => Fault::Closed,
        _ => Fault::Failed(error),
    }
}

fn unexpected(answer: Answer) -> Fault {
    match answer {
        Answer::Error { message } => Fault::Refused(message),
        Answer::Status(_) | Answer::Flows { .. } | Answer::Killed { .. } | Answer::Ending => {
            Fault::Garbled("the answer to another question".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;
    use crate::control::server::tests::tempdir;

    #[test]
    fn tells_a_missing_session_from_a_dead_one() {
        let dir = tempdir();
        let path = dir.path().join("a.sock");

        let missing = status(&path).unwrap_err();
        drop(UnixListener::bind(&path).unwrap());
        let dead = status(&path).unwrap_err();

        assert!(matches!(missing, Fault::Absent), "{missing:?}");
        assert!(matches!(dead, Fault::Dead), "{dead:?}");
        assert_eq!(dead.explain("a").exit, Exit::NotRunning);
    }

    #[test]
    fn names_what_is_wrong_with_an_answer() {
        for (answer, expected) in [
            ("", "ended before it answered"),
            ("hello\n", "unknown answer"),
            ("{\"answer\":\"ending\"}\n", "another question"),
            ("{\"answer\":\"error\",\"message\":\"no\"}\n", "refused: no"),
        ] {
            let dir = tempdir();
            let path = dir.path().join("a.sock");
            let listener = UnixListener::bind(&path).unwrap();
            let peer = thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = String::new();
                BufReader::new(stream.try_clone().unwrap()).read_line(&mut request).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
                request
            });

            let fault = status(&path).unwrap_err().to_string();

            assert!(fault.contains(expected), "{fault}");
            assert_eq!(peer.join().unwrap(), "{\"op\":\"status\"}\n");
        }
    }

    #[test]
    fn down_returns_when_the_connection_ends() {
        let dir = tempdir();
        let path = dir.path().join("a.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let peer = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            BufReader::new(stream.try_clone().unwrap()).read_line(&mut String::new()).unwrap();
            stream.write_all(b"{\"answer\":\"ending\"}\n").unwrap();
        });

        down(&path, Duration::from_secs(5)).unwrap();

        peer.join().unwrap();
    }
}
