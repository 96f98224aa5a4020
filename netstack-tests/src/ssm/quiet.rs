//! A stream that can keep a websocket server's pongs from being sent.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::shared::Shared;

/// Passes everything on, but drops whole pong frames while the knob says so.
pub(crate) struct Quiet<S> {
    inner: S,
    shared: Arc<Shared>,
    filter: PongFilter,
    /// Filtered bytes that the inner stream has not taken yet; at most one write's worth.
    pending: Vec<u8>,
}

/// Finds frame boundaries in what a websocket server writes (no masks).
#[derive(Default)]
struct PongFilter {
    header: Vec<u8>,
    payload_left: u64,
    is_dropping: bool,
}

impl<S> Quiet<S> {
    pub(crate) fn new(inner: S, shared: Arc<Shared>) -> Self {
        Self { inner, shared, filter: PongFilter::default(), pending: Vec::new() }
    }
}

impl<S: AsyncWrite + Unpin> Quiet<S> {
    fn poll_pending(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pending.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(context, &self.pending))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.pending.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Quiet<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Quiet<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.poll_pending(context))?;
        this.filter.pass(bytes, this.shared.knobs().suppress_pongs, &mut this.pending);
        match this.poll_pending(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(bytes.len())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pending(context))?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pending(context))?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

impl PongFilter {
    fn pass(&mut self, mut bytes: &[u8], drop_pongs: bool, out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            if self.payload_left > 0 {
                let take = bytes.len().min(usize::try_from(self.payload_left).unwrap_or(usize::MAX));
                let (payload, rest) = bytes.split_at(take);
                if !self.is_dropping {
                    out.extend_from_slice(payload);
                }
                self.payload_left -= take as u64;
                bytes = rest;
                continue;
            }
            self.header.push(bytes[0]);
            bytes = &bytes[1..];
            if let Some(length) = payload_length(&self.header) {
                self.payload_left = length;
                self.is_dropping = drop_pongs && self.header[0] & 0x0f == OPCODE_PONG;
                if !self.is_dropping {
                    out.extend_from_slice(&self.header);
                }
                self.header.clear();
            }
        }
    }
}

/// The payload's length once the header is whole.
fn payload_length(header: &[u8]) -> Option<u64> {
    match header.get(1)? & 0x7f {
        126 => Some(u64::from(u16::from_be_bytes(header.get(2..4)?.try_into().ok()?))),
        127 => Some(u64::from_be_bytes(header.get(2..10)?.try_into().ok()?)),
        short => Some(u64::from(short)),
    }
}

const OPCODE_PONG: u8 = 0x0a;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pongs_are_dropped_however_the_bytes_are_cut() {
        let mut stream = vec![0x82, 126, 1, 0];
        stream.extend([7; 256]);
        let wanted_head = stream.clone();
        stream.extend([0x8a, 3, 1, 2, 3]);
        stream.extend([0x81, 2, b'o', b'k']);
        for piece in [1, 2, 3, 7, 300] {
            let (mut filter, mut out) = (PongFilter::default(), Vec::new());
            stream.chunks(piece).for_each(|bytes| filter.pass(bytes, true, &mut out));
            assert_eq!(out, [&wanted_head[..], &[0x81, 2, b'o', b'k']].concat());
        }
        let mut out = Vec::new();
        PongFilter::default().pass(&stream, false, &mut out);
        assert_eq!(out, stream);
    }
}
