//! Lanes that lose the websocket of their SSM session, and get it back.

use std::time::{Duration, Instant};

use agent::wire::trunk::LaneId;
use tokio::sync::mpsc;

use crate::engine;
use crate::ssm::socket::LaneHandle;

/// What a lane has of its SSM session; a TCP lane is always joined.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Websocket {
    Joined,
    /// For less than a moment.
    Cut,
    /// For longer, since then.
    Missing(Instant),
}

/// A lane lost its websocket, or has one again.
pub(super) struct Hiccup {
    pub(super) lane: LaneId,
    pub(super) websocket: Websocket,
}

/// Tells when a lane loses its websocket, and when it is without for longer than a moment.
pub(super) async fn watch(lane: LaneId, handle: LaneHandle, hiccups: mpsc::Sender<Hiccup>) {
    loop {
        handle.until(false).await;
        let since = engine::now();
        // Nobody listens any more when the trunk has ended, and then this ends too.
        let tell = async |websocket| _ = hiccups.send(Hiccup { lane, websocket }).await;
        tell(Websocket::Cut).await;
        if tokio::time::timeout(MOMENT, handle.until(true)).await.is_err() {
            tell(Websocket::Missing(since)).await;
            handle.until(true).await;
        }
        tell(Websocket::Joined).await;
    }
}

/// SSM websockets are recycled now and then, which takes less.
const MOMENT: Duration = Duration::from_secs(1);
