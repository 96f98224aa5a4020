//! A lane: one SSM session or TCP connection that carries a part of the trunk.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::wire::trunk::LaneKind;
use crate::wire::trunk::segment::{MAX_SEGMENT, SEGMENT_OVERHEAD};

/// A byte carrier that keeps records whole on the way out and may cut bytes anywhere on the way in.
///
/// A lane that returned an error or the end is dropped by the engine and never used again.
pub trait LaneIo {
    /// Reads what has arrived. `Ok(0)` is the end of the lane.
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>>;
    /// Whether a record is taken now, and the most bytes it may have.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>>;
    /// Takes one record, in parts, after `poll_ready` said so.
    fn send(&mut self, record: &[IoSlice<'_>]) -> io::Result<()>;
    /// Pushes taken records to the system; `Ready` when none is left.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Ends the lane in an orderly way as far as that needs waiting for nothing (SSM: terminate flag).
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

/// A TCP connection as a lane: to the SSM agent's worker, or to the client itself.
///
/// Takes one record at a time and no more before the system has all of it, so what waits here is never more
/// than one record. Only what the system does not take at once is copied.
#[derive(Debug)]
pub struct TcpLane {
    stream: TcpStream,
    /// The most bytes a record may have.
    most: usize,
    /// What is left of the record under way; the system has the first `written` bytes of it.
    rest: Vec<u8>,
    written: usize,
}

impl TcpLane {
    /// Takes a connected stream; what is behind it decides how much the system may hold back for it.
    pub fn new(stream: TcpStream, kind: LaneKind) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let most = match kind {
            // The worker on the other end takes 1 KiB a millisecond: what waits before it only adds delay.
            LaneKind::Ssm => {
                SockRef::from(&stream).set_send_buffer_size(SSM_SEND_BUFFER)?;
                SSM_RECORD
            }
            LaneKind::Tcp => LARGEST_RECORD,
        };
        Ok(Self { stream, most, rest: Vec::new(), written: 0 })
    }
}

impl LaneIo for TcpLane {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(buf);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf))?;
        Poll::Ready(Ok(buf.filled().len()))
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        ready!(self.poll_flush(cx))?;
        Poll::Ready(Ok(self.most))
    }

    fn send(&mut self, record: &[IoSlice<'_>]) -> io::Result<()> {
        let mut taken = if self.rest.is_empty() { self.try_write(record)? } else { 0 };
        for part in record {
            let known = taken.min(part.len());
            self.rest.extend_from_slice(&part[known..]);
            taken -= known;
        }
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.rest.len() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.rest[self.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        self.rest.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl TcpLane {
    /// How many of the first bytes the system has taken.
    fn try_write(&self, record: &[IoSlice<'_>]) -> io::Result<usize> {
        loop {
            match self.stream.try_write_vectored(&record[..record.len().min(MOST_PARTS)]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                taken => return taken,
            }
        }
    }
}

/// Room for an ack and eight segments of the largest size: each call of the system, and what it wakes, costs as much as
/// copying many of them.
const LARGEST_RECORD: usize = 64 + 8 * (MAX_SEGMENT + SEGMENT_OVERHEAD);
/// The system takes 1,024 at a time; a record of long segments has few.
const MOST_PARTS: usize = 64;
/// Four messages of the SSM agent.
const SSM_RECORD: usize = 4096;
/// The kernel doubles it. What waits there goes before a keystroke, and the worker never runs dry.
const SSM_SEND_BUFFER: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Read;
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn records_arrive_whole_and_one_at_most_waits() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut lane = TcpLane::new(TcpStream::connect(address).await.unwrap(), LaneKind::Tcp).unwrap();
            let (mut peer, _) = listener.accept().unwrap();
            let mut sent = Vec::new();
            for number in 0u8.. {
                let ready = poll_fn(|cx| Poll::Ready(lane.poll_ready(cx))).await;
                let Poll::Ready(most) = ready else { break };
                assert!(most.unwrap() >= 65_536 + 64);
                let parts: Vec<Vec<u8>> = (0..100).map(|part| vec![number ^ part; 600]).collect();
                let record: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
                lane.send(&record).unwrap();
                sent.extend(parts.concat());
                assert!(number < 200, "the peer reads nothing, so the lane must fill");
            }
            assert!((1..=LARGEST_RECORD).contains(&lane.rest.len()));
            let reader = thread::spawn(move || {
                let mut all = Vec::new();
                peer.read_to_end(&mut all).unwrap();
                all
            });
            poll_fn(|cx| lane.poll_flush(cx)).await.unwrap();
            assert!(poll_fn(|cx| lane.poll_ready(cx)).await.is_ok());
            poll_fn(|cx| lane.poll_close(cx)).await.unwrap();
            assert!(reader.join().unwrap() == sent);
            assert_eq!(poll_fn(|cx| lane.poll_read(cx, &mut [0; 8])).await.unwrap(), 0);
        });
    }
}
