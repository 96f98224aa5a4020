//! One dialled TCP connection: its beginning, its errors as refusals, its bytes without waiting.
//!
//! The two directions end apart. A target that stops reading but has said something (an early
//! answer, then close) is read to its end before the reset is told.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::task::Poll;
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::poller::Heard;
use crate::wire::open::Refusal;

/// Begins to connect; [`outcome`] tells how it went once the socket is writable.
pub(super) fn begin(remote: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(remote), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    // An urgent byte keeps its place in the stream (RFC 6093); otherwise it would be missing.
    socket.set_out_of_band_inline(true)?;
    // The application's own probes end at the laptop, so the agent keeps the way to the target open.
    socket
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_EVERY))?;
    match socket.connect(&remote.into()) {
        Ok(()) => {}
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INPROGRESS) => {}
        Err(error) => return Err(error),
    }
    Ok(socket.into())
}

/// What became of a connection that was begun; `Ready` gives its local address.
pub(super) fn outcome(stream: &TcpStream, remote: SocketAddr) -> Poll<Result<SocketAddr, Refusal>> {
    let checked = match stream.take_error() {
        Ok(None) => stream.peer_addr().and_then(|_| stream.local_addr()),
        Ok(Some(error)) | Err(error) => Err(error),
    };
    match checked {
        // A dial to a free port of this machine can meet itself; nobody listens there.
        Ok(local) if local == remote => Poll::Ready(Err(Refusal::Refused)),
        Ok(local) => Poll::Ready(Ok(local)),
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Pending,
        Err(error) => Poll::Ready(Err(refusal(&error))),
    }
}

/// What a failed dial means to the one who asked.
pub(super) fn refusal(error: &io::Error) -> Refusal {
    match Errno::from_io_error(error) {
        Some(Errno::CONNREFUSED | Errno::CONNRESET) => Refusal::Refused,
        Some(Errno::NETUNREACH | Errno::NETDOWN | Errno::AFNOSUPPORT | Errno::INVAL) => {
            Refusal::NetUnreachable
        }
        Some(Errno::TIMEDOUT) => Refusal::TimedOut,
        Some(Errno::ACCESS | Errno::PERM) => Refusal::Prohibited,
        Some(
            Errno::ADDRNOTAVAIL
            | Errno::ADDRINUSE
            | Errno::AGAIN
            | Errno::MFILE
            | Errno::NFILE
            | Errno::NOBUFS
            | Errno::NOMEM
            | Errno::NOSPC,
        ) => Refusal::Exhausted,
        // EHOSTUNREACH, and whatever else the network makes up.
        Some(_) | None => Refusal::HostUnreachable,
    }
}

/// Ends the connection with a reset.
pub(super) fn abort(stream: TcpStream) {
    // Cannot fail on an open socket; if it did, the target would see an end instead of a reset.
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}

/// What a read came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    Bytes(usize),
    Nothing,
    Finished,
    Reset,
}

/// What a write or a flush came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// All is with the system, or waits for it. Carries how much room there is again.
    Fine {
        freed: usize,
    },
    Reset,
}

#[derive(Debug, PartialEq, Eq)]
enum Reading {
    Open,
    Finished,
}

#[derive(Debug, PartialEq, Eq)]
enum Writing {
    Open,
    /// FIN follows what is pending.
    Finishing,
    Finished,
    /// The target takes no more; what it said before is still to be read.
    Failed,
}

/// A connected socket and the bytes it has not taken yet.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    /// Few connections have any.
    backlog: Option<Box<Backlog>>,
    reading: Reading,
    writing: Writing,
    /// The socket may have something to read; otherwise it will say so.
    readable: bool,
    /// The socket has said that nothing more comes, and says it no second time.
    ended: bool,
    /// The engine knows that there is something to read.
    told: bool,
}

/// Bytes for the target from `sent` on.
#[derive(Debug)]
struct Backlog {
    bytes: Vec<u8>,
    sent: usize,
}

impl Connection {
    /// A connection of which this much was heard by now.
    pub(super) fn new(stream: TcpStream, heard: Heard) -> Self {
        let mut connection = Self {
            stream,
            backlog: None,
            reading: Reading::Open,
            writing: Writing::Open,
            readable: false,
            ended: false,
            told: false,
        };
        connection.hear(heard);
        connection
    }

    /// Notes what the socket says; [`flush`](Self::flush) acts on room it may have.
    pub(super) fn hear(&mut self, heard: Heard) {
        self.readable |= heard.readable && self.reading == Reading::Open;
        self.ended |= heard.ended;
    }

    /// Whether the engine has to be told now that there is something to read.
    pub(super) fn is_news(&mut self) -> bool {
        let news = self.readable && !self.told;
        self.told |= news;
        news
    }

    pub(super) fn read(&mut self, buf: &mut [u8]) -> Read {
        if buf.is_empty() {
            return Read::Nothing;
        }
        while self.readable {
            match self.stream.read(buf) {
                Ok(0) if self.writing == Writing::Failed => return Read::Reset,
                Ok(0) => {
                    self.reading = Reading::Finished;
                    self.readable = false;
                    return Read::Finished;
                }
                Ok(count) => {
                    // With less than it could give there is nothing left, but perhaps the end.
                    self.readable = count == buf.len() || self.ended;
                    return Read::Bytes(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    self.ended = false;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Read::Reset,
            }
        }
        self.told = false;
        Read::Nothing
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Sent {
        if self.writing != Writing::Open {
            return Sent::Fine { freed: 0 };
        }
        if let Some(backlog) = &mut self.backlog {
            backlog.push(bytes);
            return Sent::Fine { freed: 0 };
        }
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.backlog = Some(Box::new(Backlog { bytes: bytes.to_vec(), sent: 0 }));
                    break;
                }
                Err(error) => return self.fail(&error),
            }
        }
        Sent::Fine { freed: 0 }
    }

    /// Writes what waits as far as the socket takes it; it will say when it takes the rest.
    pub(super) fn flush(&mut self) -> Sent {
        let mut freed = 0;
        while let Some(rest) =
            self.backlog.as_ref().map(|backlog| backlog.rest()).filter(|rest| !rest.is_empty())
        {
            match (&self.stream).write(rest) {
                Ok(count) => {
                    freed += count;
                    self.backlog.iter_mut().for_each(|backlog| backlog.sent += count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Sent::Fine { freed },
                Err(error) => return self.fail(&error),
            }
        }
        self.backlog = None;
        if self.writing == Writing::Finishing {
            // A shutdown fails only on a socket that a reset already closed.
            if self.stream.shutdown(Shutdown::Write).is_err() {
                return self.fail(&Errno::PIPE.into());
            }
            self.writing = Writing::Finished;
        }
        Sent::Fine { freed }
    }

    /// FIN to the target after what waits.
    pub(super) fn finish(&mut self) -> Sent {
        if self.writing == Writing::Open {
            self.writing = Writing::Finishing;
            if self.backlog.is_none() {
                return self.flush();
            }
        }
        Sent::Fine { freed: 0 }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.reading == Reading::Finished && self.writing == Writing::Finished
    }

    /// How many bytes wait for the target.
    pub(super) fn pending(&self) -> usize {
        self.backlog.as_ref().map_or(0, |backlog| backlog.rest().len())
    }

    pub(super) fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// The target takes no more. Its last words may wait in the socket, so only the read side's end
    /// tells the reset, if there is one to come.
    fn fail(&mut self, error: &io::Error) -> Sent {
        let freed = self.pending();
        self.backlog = None;
        let closed = matches!(Errno::from_io_error(error), Some(Errno::PIPE | Errno::CONNRESET));
        if !closed || self.reading == Reading::Finished {
            return Sent::Reset;
        }
        self.writing = Writing::Failed;
        // The socket is closed for both directions, which leaves it readable.
        self.hear(Heard { readable: true, ended: true, erring: true });
        Sent::Fine { freed }
    }
}

impl Backlog {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    fn push(&mut self, bytes: &[u8]) {
        if self.sent > self.bytes.len() / 2 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }
}

/// Below the 350 s after which AWS's NAT gateways and load balancers forget a silent connection.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(120);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);
