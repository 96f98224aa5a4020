//! Waits for the agent's greeting on a fresh lane, says hello, and checks the welcome.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::task::{Context, Poll};

use agent::engine::Attach;
use agent::lane::LaneIo;
use agent::wire::hello::{ClientHandshake, ClientParams, HelloError, Welcomed};

/// Why a lane was not welcomed.
#[derive(Debug, thiserror::Error)]
pub enum GreetError {
    #[error("the lane ended before the agent's greeting was whole")]
    Ended,
    #[error("the lane failed: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Hello(#[from] HelloError),
}

/// Brings a lane to where the engine can take it. The caller sets the deadline.
pub async fn greet(mut io: Box<dyn LaneIo>, params: ClientParams) -> Result<(Attach, Welcomed), GreetError> {
    let (lane, kind) = (params.lane, params.kind);
    let mut handshake = ClientHandshake::new(params);
    let mut buffer = vec![0; 4096];
    let mut record = Vec::new();
    let mut welcomed =
        poll_fn(|cx| poll_greet(cx, io.as_mut(), &mut handshake, &mut buffer, &mut record)).await?;
    let leftover = std::mem::take(&mut welcomed.leftover);
    let Welcomed { hello, in_blocks, .. } = welcomed;
    Ok((Attach { lane, kind, hello, peer_received: None, in_blocks, io, leftover }, welcomed))
}

fn poll_greet(
    cx: &mut Context<'_>,
    io: &mut dyn LaneIo,
    handshake: &mut ClientHandshake,
    buffer: &mut [u8],
    record: &mut Vec<u8>,
) -> Poll<Result<Welcomed, GreetError>> {
    loop {
        if record.is_empty()
            && let Some(bytes) = handshake.poll_transmit()
        {
            *record = bytes;
        }
        if !record.is_empty() && io.poll_ready(cx)?.is_ready() {
            io.send(&[IoSlice::new(record)])?;
            record.clear();
        }
        // Pending here is no reason to wait: the read below arms the waker too.
        let _ = io.poll_flush(cx)?;
        match io.poll_read(cx, buffer)? {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(0) => return Poll::Ready(Err(GreetError::Ended)),
            Poll::Ready(read) => {
                if let Some(welcomed) = handshake.handle_bytes(&buffer[..read])? {
                    return Poll::Ready(Ok(welcomed));
                }
            }
        }
    }
}
