//! A live websocket: moves messages between it and the channel, and knows when it is dead.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{Sink as _, Stream as _};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error as WebSocketError, Message};

use super::LaneConfig;
use crate::ssm::channel::Channel;
use crate::ssm::upgrade::WebSocket;

/// A websocket that stands, and its timers.
pub(super) struct Up {
    pub(super) websocket: WebSocket,
    pub(super) since: Instant,
    /// A binary message came: the gateway has taken the token.
    pub(super) accepted: bool,
    pub(super) ping_due: bool,
    pub(super) ping_at: Instant,
    ping_sent: Option<Instant>,
    pub(super) gateway_rtt: Option<Duration>,
    /// Moved on by every frame.
    pub(super) dead_at: Instant,
    dead_after: Duration,
    /// Something was written and perhaps not flushed.
    pub(super) dirty: bool,
}

impl Up {
    pub(super) fn new(websocket: WebSocket, now: Instant, config: &LaneConfig) -> Self {
        Self {
            websocket,
            since: now,
            accepted: false,
            ping_due: false,
            ping_at: now + config.ping_every,
            ping_sent: None,
            gateway_rtt: None,
            dead_at: now + config.dead_after,
            dead_after: config.dead_after,
            dirty: true,
        }
    }

    /// Reads what has come, then writes what the channel has to say.
    pub(super) fn exchange(
        &mut self,
        cx: &mut Context<'_>,
        channel: &mut Channel,
        now: Instant,
    ) -> Result<(), Cut> {
        let mut left = MESSAGES_AT_ONCE;
        while channel.ready_bytes() < READ_AHEAD {
            if left == 0 {
                cx.waker().wake_by_ref();
                break;
            }
            left -= 1;
            let Poll::Ready(message) = Pin::new(&mut self.websocket).poll_next(cx) else { break };
            self.handle(message, channel, now)?;
        }
        self.write(cx, channel, now)
    }

    fn handle(
        &mut self,
        message: Option<Result<Message, WebSocketError>>,
        channel: &mut Channel,
        now: Instant,
    ) -> Result<(), Cut> {
        let message = match message {
            Some(Ok(message)) => message,
            Some(Err(error)) => return Err(Cut::Broken(error.to_string())),
            None => return Err(Cut::Ended),
        };
        self.dead_at = now + self.dead_after;
        match message {
            Message::Binary(bytes) => {
                self.accepted = true;
                channel.handle_message(&bytes, now).map_err(|_| Cut::Garbage)
            }
            Message::Ping(_) => {
                // The answer is queued and goes out with the next flush.
                self.dirty = true;
                Ok(())
            }
            Message::Pong(_) => {
                let sent = self.ping_sent.take();
                self.gateway_rtt = sent.map(|sent| now.duration_since(sent)).or(self.gateway_rtt);
                Ok(())
            }
            Message::Close(Some(frame)) if frame.code == CloseCode::Size => Err(Cut::TooBig),
            Message::Close(frame) => {
                Err(Cut::Closed(frame.map(|frame| frame.to_string()).unwrap_or_default()))
            }
            Message::Text(_) | Message::Frame(_) => Err(Cut::Garbage),
        }
    }

    fn write(&mut self, cx: &mut Context<'_>, channel: &mut Channel, now: Instant) -> Result<(), Cut> {
        let broken = |error: WebSocketError| Cut::Broken(error.to_string());
        while let Poll::Ready(ready) = Pin::new(&mut self.websocket).poll_ready(cx) {
            ready.map_err(broken)?;
            let message = if let Some(bytes) = channel.poll_transmit(now) {
                Message::Binary(bytes)
            } else if std::mem::take(&mut self.ping_due) {
                self.ping_sent = Some(now);
                Message::Ping(PING_PAYLOAD)
            } else {
                break;
            };
            self.dirty = true;
            Pin::new(&mut self.websocket).start_send(message).map_err(broken)?;
        }
        if self.dirty
            && let Poll::Ready(flushed) = Pin::new(&mut self.websocket).poll_flush(cx)
        {
            flushed.map_err(broken)?;
            self.dirty = false;
        }
        Ok(())
    }
}

/// Why a websocket is given up.
#[derive(Debug, thiserror::Error)]
pub(super) enum Cut {
    #[error("it broke: {0}")]
    Broken(String),
    #[error("it ended")]
    Ended,
    #[error("the gateway closed it {0}")]
    Closed(String),
    #[error("the gateway refused the size of a message")]
    TooBig,
    #[error("it carried what is no message of the data channel")]
    Garbage,
    #[error("it was silent")]
    Dead,
}

const PING_PAYLOAD: Bytes = Bytes::from_static(b"keepalive");
/// Downstream bytes read ahead of the owner.
const READ_AHEAD: usize = 256 << 10;
/// Read in one go before the owner's other work has its turn.
const MESSAGES_AT_ONCE: u32 = 256;
