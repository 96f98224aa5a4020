//! One dialled TCP connection: its beginning, its errors as refusals, its bytes without waiting.
//!
//! The two directions end apart. A target that stops reading but has said something (an early
//! answer, then close) is read to its end before the reset is told.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::Interest;
use tokio::net::TcpStream;

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
    TcpStream::from_std(socket.into())
}

/// What became of a connection that was begun; `Ready` gives its local address.
pub(super) fn outcome(
    stream: &TcpStream,
    remote: SocketAddr,
    cx: &mut Context<'_>,
) -> Poll<Result<SocketAddr, Refusal>> {
    for _ in 0..2 {
        match stream.poll_write_ready(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(refusal(&error))),
        }
        let checked = match stream.take_error() {
            Ok(None) => stream.peer_addr().and_then(|_| stream.local_addr()),
            Ok(Some(error)) | Err(error) => Err(error),
        };
        match checked {
            // A dial to a free port of this machine can meet itself; nobody listens there.
            Ok(local) if local == remote => return Poll::Ready(Err(Refusal::Refused)),
            Ok(local) => return Poll::Ready(Ok(local)),
            // Told too early: look away and ask again, which waits.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => forget(stream, Interest::WRITABLE),
            Err(error) => return Poll::Ready(Err(refusal(&error))),
        }
    }
    Poll::Ready(Err(Refusal::HostUnreachable))
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

/// Tells tokio that the socket was found drained, which saves the call that would only say so.
fn forget(stream: &TcpStream, interest: Interest) {
    let _: io::Result<()> = stream.try_io(interest, || Err(io::ErrorKind::WouldBlock.into()));
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
    /// Bytes for the target from `sent` on; holds memory only while something waits.
    pending: Vec<u8>,
    sent: usize,
    reading: Reading,
    writing: Writing,
    /// The socket may have something to read; otherwise the waker is armed.
    readable: bool,
    /// The engine knows that there is something to read.
    told: bool,
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            pending: Vec::new(),
            sent: 0,
            reading: Reading::Open,
            writing: Writing::Open,
            readable: false,
            told: false,
        }
    }

    /// Whether the engine has to be told now that there is something to read; arms the waker otherwise.
    pub(super) fn poll_readable(&mut self, cx: &mut Context<'_>) -> bool {
        self.arm_read(cx);
        let news = self.readable && !self.told;
        self.told |= news;
        news
    }

    pub(super) fn read(&mut self, buf: &mut [u8], cx: &mut Context<'_>) -> Read {
        if buf.is_empty() {
            return Read::Nothing;
        }
        while self.readable && self.reading == Reading::Open {
            match self.stream.try_read(buf) {
                Ok(0) if self.writing == Writing::Failed => return Read::Reset,
                Ok(0) => {
                    self.reading = Reading::Finished;
                    self.readable = false;
                    return Read::Finished;
                }
                Ok(count) => {
                    if count < buf.len() {
                        forget(&self.stream, Interest::READABLE);
                        self.arm_read(cx);
                    }
                    return Read::Bytes(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.arm_read(cx),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Read::Reset,
            }
        }
        self.told = false;
        Read::Nothing
    }

    pub(super) fn write(&mut self, mut bytes: &[u8], cx: &mut Context<'_>) -> Sent {
        if self.writing != Writing::Open {
            return Sent::Fine { freed: 0 };
        }
        if self.pending.is_empty() {
            while !bytes.is_empty() {
                match self.stream.try_write(bytes) {
                    Ok(count) => bytes = &bytes[count..],
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return self.fail(&error, cx),
                }
            }
            if bytes.is_empty() {
                return Sent::Fine { freed: 0 };
            }
            self.arm_write(cx);
        } else if self.sent > self.pending.len() / 2 {
            self.pending.drain(..self.sent);
            self.sent = 0;
        }
        self.pending.extend_from_slice(bytes);
        Sent::Fine { freed: 0 }
    }

    /// Writes what waits as far as the socket takes it; arms the waker for the rest.
    pub(super) fn flush(&mut self, cx: &mut Context<'_>) -> Sent {
        let before = self.sent;
        while self.sent < self.pending.len() {
            match self.stream.try_write(&self.pending[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.arm_write(cx);
                    return Sent::Fine { freed: self.sent - before };
                }
                Err(error) => return self.fail(&error, cx),
            }
        }
        let freed = self.sent - before;
        self.pending = Vec::new();
        self.sent = 0;
        if self.writing == Writing::Finishing {
            return match SockRef::from(&self.stream).shutdown(Shutdown::Write) {
                Ok(()) => {
                    self.writing = Writing::Finished;
                    Sent::Fine { freed }
                }
                // A shutdown fails only on a socket that a reset already closed.
                Err(_) => self.fail(&Errno::PIPE.into(), cx),
            };
        }
        Sent::Fine { freed }
    }

    /// FIN to the target after what waits.
    pub(super) fn finish(&mut self, cx: &mut Context<'_>) -> Sent {
        if self.writing == Writing::Open {
            self.writing = Writing::Finishing;
            if self.pending.is_empty() {
                return self.flush(cx);
            }
        }
        Sent::Fine { freed: 0 }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.reading == Reading::Finished && self.writing == Writing::Finished
    }

    pub(super) fn pending(&self) -> usize {
        self.pending.len() - self.sent
    }

    pub(super) fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// The target takes no more. Its last words may wait in the socket, so only the read side's end
    /// tells the reset, if there is one to come.
    fn fail(&mut self, error: &io::Error, cx: &mut Context<'_>) -> Sent {
        let freed = self.pending();
        self.pending = Vec::new();
        self.sent = 0;
        let closed = matches!(Errno::from_io_error(error), Some(Errno::PIPE | Errno::CONNRESET));
        if !closed || self.reading == Reading::Finished {
            return Sent::Reset;
        }
        self.writing = Writing::Failed;
        // The socket is closed for both directions, which leaves it readable.
        cx.waker().wake_by_ref();
        Sent::Fine { freed }
    }

    fn arm_read(&mut self, cx: &mut Context<'_>) {
        if self.reading == Reading::Open {
            self.readable = self.stream.poll_read_ready(cx).is_ready();
        }
    }

    fn arm_write(&mut self, cx: &mut Context<'_>) {
        if self.stream.poll_write_ready(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }
}

/// Below the 350 s after which AWS's NAT gateways and load balancers forget a silent connection.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(120);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);
