//! Programs that write down what they meet: the two ends of one connection, step by step, for comparing roads.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use socket2::{Domain, SockRef, Socket, Type};

/// One end's program: what it did and met, and where it waits for the other.
pub struct Actor {
    pub lines: Vec<String>,
    there: Sender<()>,
    here: Receiver<()>,
}

/// A client and a target that can wait for each other.
pub fn pair() -> (Actor, Actor) {
    let (to_target, from_client) = channel();
    let (to_client, from_target) = channel();
    let client = Actor { lines: Vec::new(), there: to_target, here: from_target };
    (client, Actor { lines: Vec::new(), there: to_client, here: from_client })
}

impl Actor {
    pub fn note(&mut self, line: impl Into<String>) {
        self.lines.push(line.into());
    }

    /// Waits until the other end is here too.
    pub fn meet(&self) -> Result<()> {
        // A send fails when the other end is gone, which the wait says better.
        let _ = self.there.send(());
        self.here.recv_timeout(PATIENCE).context("the other end did not come")
    }

    pub fn connect(&mut self, to: SocketAddr) -> Result<TcpStream> {
        self.connected(connect(to, None))
    }

    /// Connects from a port whose last connection was closed a moment ago. The machine knows that one until its last
    /// FIN is acknowledged, one round trip later.
    pub fn connect_again(&mut self, to: SocketAddr, port: u16) -> Result<TcpStream> {
        let mut connected = connect(to, Some(port));
        for _ in 0..100 {
            if !connected
                .as_ref()
                .is_err_and(|error| Errno::from_io_error(error) == Some(Errno::ADDRNOTAVAIL))
            {
                break;
            }
            thread::sleep(Duration::from_millis(5));
            connected = connect(to, Some(port));
        }
        self.connected(connected)
    }

    fn connected(&mut self, connected: io::Result<TcpStream>) -> Result<TcpStream> {
        match &connected {
            Ok(_) => self.note("connected"),
            Err(error) => self.note(name(error)),
        }
        Ok(connected?)
    }

    pub fn accept(&mut self, listener: &TcpListener) -> Result<TcpStream> {
        let (stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        self.note("accepted");
        Ok(stream)
    }

    pub fn send(&mut self, mut stream: &TcpStream, bytes: &[u8]) {
        let sent = stream.write_all(bytes);
        self.note(sent.map_or_else(|error| name(&error), |()| format!("sent {}", shown(bytes))));
    }

    pub fn send_urgent(&mut self, stream: &TcpStream, byte: u8) {
        let sent = SockRef::from(stream).send_out_of_band(&[byte]);
        self.note(sent.map_or_else(|error| name(&error), |_| "sent urgently".to_owned()));
    }

    /// Receives exactly so many bytes, or says what came in their place.
    pub fn receive(&mut self, stream: &TcpStream, length: usize) {
        self.take(stream, length);
    }

    /// Receives up to the end, whatever kind of end it is.
    pub fn receive_all(&mut self, stream: &TcpStream) {
        self.take(stream, usize::MAX);
    }

    /// Waits until something has arrived, and leaves it unread.
    pub fn await_bytes(&mut self, stream: &TcpStream) {
        let waited = stream.peek(&mut [0]);
        self.note(waited.map_or_else(|error| name(&error), |_| "bytes wait".to_owned()));
    }

    pub fn finish(&mut self, stream: &TcpStream) {
        let done = stream.shutdown(Shutdown::Write);
        self.note(done.map_or_else(|error| name(&error), |()| "finished".to_owned()));
    }

    /// Closes in a way that sends a reset.
    pub fn reset(&mut self, stream: TcpStream) -> Result<()> {
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        drop(stream);
        self.note("reset it");
        Ok(())
    }

    fn take(&mut self, mut stream: &TcpStream, most: usize) {
        let mut received = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        let ending = loop {
            let want = buffer.len().min(most - received.len());
            if want == 0 {
                break None;
            }
            match stream.read(&mut buffer[..want]) {
                Ok(0) => break Some("end".to_owned()),
                Ok(count) => received.extend_from_slice(&buffer[..count]),
                // A read with a timeout is interrupted when the whole machine pauses.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Some(name(&error)),
            }
        };
        if !received.is_empty() {
            self.note(format!("got {}", shown(&received)));
        }
        self.lines.extend(ending);
    }
}

/// A connection, from a port of its own or from this one.
pub fn connect(to: SocketAddr, port: Option<u16>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if let Some(port) = port {
        socket.set_reuse_address(true)?;
        let any: SocketAddr =
            if to.is_ipv4() { ([0, 0, 0, 0], port).into() } else { ([0u16; 8], port).into() };
        socket.bind(&any.into())?;
    }
    socket.connect(&to.into())?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Short texts as they are, the rest by length and digest.
fn shown(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if bytes.len() < 40 => text.to_owned(),
        Ok(_) | Err(_) => {
            let digest = Sha256::digest(bytes);
            format!(
                "{} bytes {:02x}{:02x}{:02x}{:02x}",
                bytes.len(),
                digest[0],
                digest[1],
                digest[2],
                digest[3]
            )
        }
    }
}

/// What C programs call the error.
pub fn name(error: &io::Error) -> String {
    let known = [
        (Errno::CONNREFUSED, "ECONNREFUSED"),
        (Errno::CONNRESET, "ECONNRESET"),
        (Errno::PIPE, "EPIPE"),
        (Errno::HOSTUNREACH, "EHOSTUNREACH"),
        (Errno::NETUNREACH, "ENETUNREACH"),
        (Errno::ACCESS, "EACCES"),
        (Errno::TIMEDOUT, "ETIMEDOUT"),
        (Errno::ADDRNOTAVAIL, "EADDRNOTAVAIL"),
        (Errno::ADDRINUSE, "EADDRINUSE"),
        (Errno::AGAIN, "silence"),
    ];
    let errno = Errno::from_io_error(error);
    let found = known.into_iter().find(|(known, _)| Some(*known) == errno);
    found.map_or_else(|| error.to_string(), |(_, name)| name.to_owned())
}

/// Longer than anything a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(20);
