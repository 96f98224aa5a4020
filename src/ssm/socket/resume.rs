//! A new websocket for a session that lost its own.

#![expect(clippy::disallowed_methods, reason = "a driver: it keeps to a time budget")]

use std::time::Duration;

use futures_util::SinkExt as _;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_tungstenite::tungstenite::Message;

use super::error::LaneError;
use super::status::LaneHandle;
use crate::ssm::api::{Api, OpenError, SessionTicket};
use crate::ssm::api_error::chain;
use crate::ssm::handshake::OpenDataChannel;
use crate::ssm::message::Uuid;
use crate::ssm::upgrade::{UpgradeError, WebSocket};

/// A session, as far as a new websocket needs it.
#[derive(Clone)]
pub(super) struct Resumer {
    pub(super) api: Api,
    pub(super) session_id: String,
    /// The same on every websocket of the session.
    pub(super) client_id: Uuid,
    pub(super) handle: LaneHandle,
    /// How long the session may be without a websocket.
    pub(super) budget: Duration,
}

impl Resumer {
    /// Tries until the budget that began at `since` is used up. `attempts` counts failures in a row,
    /// of earlier calls too: they lengthen the pauses.
    pub(super) async fn run(
        self,
        since: Instant,
        mut attempts: u32,
        greeted: bool,
    ) -> Result<WebSocket, LaneError> {
        let deadline = since + self.budget;
        let mut last = None;
        while Instant::now() < deadline {
            sleep(pause(attempts, random())).await;
            attempts += 1;
            let attempt = timeout_at(deadline.min(Instant::now() + ATTEMPT_TIMEOUT), self.attempt());
            let failure = match attempt.await {
                Ok(Ok(websocket)) => return Ok(websocket),
                Ok(Err(OpenError::Api(error))) if !error.is_transient() => {
                    return Err(LaneError::Gone(error));
                }
                Ok(Err(error)) => (chain(&error).join(": "), error.hint()),
                // The budget's end says less than the failure before it.
                Err(_) if last.is_some() && Instant::now() >= deadline => break,
                Err(_) => ("no answer in time".to_owned(), CHECK_NETWORK.to_owned()),
            };
            let last = &*last.insert(failure);
            tracing::debug!(session = self.session_id, error = last.0, "resume failed");
            self.handle.update(|status| {
                if let Some(resuming) = &mut status.resuming {
                    resuming.last_error = Some(last.0.clone());
                }
            });
        }
        let (last, hint) =
            last.unwrap_or_else(|| ("it was cut again and again".to_owned(), CHECK_NETWORK.to_owned()));
        Err(LaneError::Lost { after: self.budget, last, hint, greeted })
    }

    async fn attempt(&self) -> Result<WebSocket, OpenError> {
        let ticket = self.api.resume(&self.session_id).await?;
        open_websocket(&self.api, &ticket, self.client_id).await
    }
}

/// Opens a ticket's websocket and says in its first frame whose it is.
pub(super) async fn open_websocket(
    api: &Api,
    ticket: &SessionTicket,
    client_id: Uuid,
) -> Result<WebSocket, OpenError> {
    let mut websocket = api.open_websocket(&ticket.stream_url).await?;
    let frame = OpenDataChannel::client(random_uuid(), &ticket.token, client_id).to_json();
    let sent = websocket.send(Message::text(frame)).await;
    sent.map_err(|error| OpenError::Upgrade(UpgradeError::Broken(error.to_string())))?;
    Ok(websocket)
}

pub(super) fn random_uuid() -> Uuid {
    Uuid::from_random((u128::from(random()) << 64 | u128::from(random())).to_be_bytes())
}

/// Of the system; its failure would need a broken kernel, and ids need not be secret.
pub(super) fn random() -> u64 {
    getrandom::u64().unwrap_or_default()
}

/// Full jitter: anything up to a limit that doubles from 100 ms to 5 s.
fn pause(attempts: u32, random: u64) -> Duration {
    let limit = FIRST_PAUSE.saturating_mul(1 << attempts.min(10)).min(LONGEST_PAUSE);
    Duration::from_micros(random % (limit.as_micros() as u64 + 1))
}

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(20);
const CHECK_NETWORK: &str = "check the network, and whether a proxy between cuts websockets";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit() {
        assert_eq!(pause(0, 100_000), Duration::from_millis(100));
        assert_eq!(pause(3, 800_000), Duration::from_millis(800));
        for attempts in [6, 10, u32::MAX] {
            assert_eq!(pause(attempts, 5_000_000), LONGEST_PAUSE);
            assert_eq!(pause(attempts, 5_000_001), Duration::ZERO);
        }
    }
}
