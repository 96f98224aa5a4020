//! The two websockets of a session as the gateway holds them, and the gateway's own messages.

#![expect(clippy::disallowed_methods, reason = "a driver: websockets live in real time")]

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde_json::json;
use ssm_proxy::ssm::handshake::ChannelClosed;
use ssm_proxy::ssm::message::{Kind, Message, PayloadType, Uuid};
use tokio::sync::watch;

use super::now_ms;
use crate::ssm::faults::Rng;
use crate::ssm::parcel::{Line, Parcel, Tag, Transit};

/// The client's websocket: the hop between it and the gateway.
pub(crate) struct ClientConn {
    pub(crate) up: Line<Parcel>,
    pub(crate) down: Line<ToClient>,
    pub(crate) mode: watch::Sender<Mode>,
    pub(super) opened: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    Open,
    /// Nothing is read or written any more, the TCP connection stays.
    BlackHole,
    /// The TCP connection is dropped.
    Killed,
}

/// What goes to the client over its websocket.
#[derive(Debug)]
pub(crate) enum ToClient {
    Parcel(Parcel),
    Text(String),
    Close { code: u16, reason: String },
}

/// The SSM agent's websocket: the hop between gateway and SSM agent.
pub(crate) struct AgentConn {
    pub(crate) up: Line<Parcel>,
    pub(crate) down: Line<Parcel>,
    /// Sends fail at once instead of being lost.
    pub(crate) refuses: AtomicBool,
    pub(super) black_hole: AtomicBool,
    pub(super) opened: Instant,
}

impl ClientConn {
    pub(super) fn new() -> Self {
        let mode = watch::Sender::new(Mode::Open);
        Self { up: Line::new(), down: Line::new(), mode, opened: Instant::now() }
    }

    /// Loses what is under way and drops the TCP connection.
    pub(crate) fn kill(&self) {
        self.up.cut();
        self.down.cut();
        self.mode.send_replace(Mode::Killed);
    }

    /// Ends the websocket behind what is on its way to the client.
    pub(crate) fn close_with(&self, code: u16, reason: &str, transit: Transit) {
        self.up.cut();
        self.down.force(ToClient::Close { code, reason: reason.to_owned() }, transit);
        self.down.close(transit);
    }
}

impl AgentConn {
    pub(super) fn new() -> Self {
        Self {
            up: Line::new(),
            down: Line::new(),
            refuses: AtomicBool::new(false),
            black_hole: AtomicBool::new(false),
            opened: Instant::now(),
        }
    }
}

pub(super) fn publication(kind: Kind<'_>, session: &str, is_short: bool, rng: &mut Rng) -> Parcel {
    let payload =
        if is_short { String::new() } else { json!({"SchemaVersion": 1, "SessionId": session}).to_string() };
    let message = Message {
        kind,
        schema_version: 1,
        created_ms: now_ms(),
        sequence: 0,
        flags: 3,
        id: Uuid::from_random(rng.bytes()),
        digest: [0; 32],
        payload_type: (!is_short).then_some(PayloadType::NONE),
        payload: payload.as_bytes(),
    };
    let bytes = if is_short { nul_padded(&message) } else { message.to_vec() };
    Parcel { bytes: bytes.into(), tag: Tag::Control }
}

pub(super) fn channel_closed(session: &str, client_id: String, output: &str, rng: &mut Rng) -> Parcel {
    let id = Uuid::from_random(rng.bytes());
    let content = ChannelClosed {
        message_id: id.to_string(),
        created_date: "2021-10-01T09:24:34.917Z".to_owned(),
        destination_id: client_id,
        session_id: session.to_owned(),
        message_type: "channel_closed".to_owned(),
        schema_version: 1,
        output: output.to_owned(),
    };
    let payload = content.to_json();
    let mut message =
        Message::new(Kind::ChannelClosed, 0, id, now_ms(), PayloadType::NONE, payload.as_bytes());
    message.payload_type = None;
    Parcel { bytes: nul_padded(&message).into(), tag: Tag::Control }
}

fn nul_padded(message: &Message<'_>) -> Vec<u8> {
    let mut bytes = message.to_vec();
    let name = message.kind.name().len();
    bytes[4 + name..36].fill(0);
    bytes
}
