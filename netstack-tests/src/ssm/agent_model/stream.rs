//! The worker's data channel: sequence numbers, acknowledgements, resends, both ways.

#![expect(clippy::disallowed_methods, reason = "a driver: resends go by real time")]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use ssm_proxy::ssm::handshake::AcknowledgeContent;
use ssm_proxy::ssm::message::{FLAG_SYN, FLAGS_SYN_FIN, FlagValue, Kind, Message, PayloadType, Uuid};
use tokio::io::AsyncWriteExt as _;

use super::{Note, Stored, Worker};
use crate::ssm::Count;
use crate::ssm::parcel::{Parcel, Tag};
use crate::ssm::session::now_ms;

/// Why a stream message was not taken: no acknowledgement.
struct NotTaken;

/// The websocket is down.
struct Down;

impl Worker {
    /// Numbers and sends a stream message. What comes back is to be stored a little later, by
    /// chance: an acknowledgement can be here first, and is then lost.
    pub(super) async fn send_stream(&self, payload_type: PayloadType, payload: &[u8]) -> Option<Stored> {
        let store_late = self.knobs.store_late;
        let (id, is_late) = {
            let mut rng = self.rng();
            (Uuid::from_random(rng.bytes()), rng.chance(store_late))
        };
        let sequence = {
            let mut core = self.core();
            core.next_sequence += 1;
            core.next_sequence - 1
        };
        let mut message = Message::new(Kind::OutputStreamData, sequence, id, now_ms(), payload_type, payload);
        message.flags = if sequence == 0 { FLAG_SYN } else { 0 };
        let parcel = Parcel::new(&message);
        let stored = Stored { parcel: parcel.clone(), last_sent: Instant::now() };
        let late = if is_late {
            Some(stored)
        } else {
            self.store(Some(stored));
            None
        };
        if !self.core().is_paused {
            // A failed send is stored all the same, and sent again when its turn comes.
            let _ = self.send(parcel).await;
        }
        late
    }

    pub(super) fn store(&self, stored: Option<Stored>) {
        let Some(stored) = stored else { return };
        let Tag::Stream { sequence, .. } = stored.parcel.tag else { return };
        let mut core = self.core();
        if core.outgoing.len() < self.knobs.outgoing_capacity {
            core.outgoing.insert(sequence, stored);
        } else {
            self.session.count(Count::NotStored);
        }
    }

    /// Sends again, at every tick, the oldest message without an acknowledgement.
    pub(super) async fn resend(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.knobs.resend_tick).await;
            let parcel = {
                let mut core = self.core();
                let (is_paused, after) = (core.is_paused, core.resend_after);
                match core.outgoing.first_entry() {
                    Some(mut oldest) if !is_paused && oldest.get().last_sent.elapsed() > after => {
                        oldest.get_mut().last_sent = Instant::now();
                        oldest.get().parcel.clone()
                    }
                    Some(_) | None => continue,
                }
            };
            self.session.count(Count::DownResends);
            let _ = self.send(parcel).await;
        }
    }

    /// Sends over the websocket. What a dying websocket swallows counts as sent.
    async fn send(&self, parcel: Parcel) -> Result<(), Down> {
        let conn = self.conn().clone().ok_or(Down)?;
        if conn.refuses.load(Ordering::Relaxed) {
            return Err(Down);
        }
        self.session.take_from_agent(&conn, parcel).await;
        Ok(())
    }

    pub(super) async fn stay_connected(self: Arc<Self>) {
        while let Some(conn) = self.session.agent_connects() {
            *self.conn() = Some(Arc::clone(&conn));
            self.set_paused(false);
            while let Some(parcel) = conn.up.recv().await {
                self.receive(parcel).await;
            }
            self.conn().take();
            let (least, most) = self.knobs.reconnect;
            let delay = self.rng().duration(least, most);
            tokio::time::sleep(delay).await;
        }
    }

    async fn receive(&self, parcel: Parcel) {
        let bytes = parcel.bytes.clone();
        let Ok(message) = Message::parse(&bytes) else { return };
        match message.kind {
            Kind::InputStreamData => {
                self.set_paused(false);
                // Without an acknowledgement the client sends it again.
                let _ = self.take_stream(parcel, &message).await;
            }
            Kind::Acknowledge => {
                self.set_paused(false);
                self.acknowledged(message.payload);
            }
            Kind::PausePublication => self.set_paused(true),
            Kind::StartPublication => self.set_paused(false),
            Kind::OutputStreamData | Kind::ChannelClosed | Kind::AgentSessionState | Kind::Other(_) => {}
        }
    }

    async fn take_stream(&self, parcel: Parcel, message: &Message<'_>) -> Result<(), NotTaken> {
        let expected = self.core().expected;
        if message.sequence < expected {
            self.session.count(Count::UpDuplicates);
            return self.acknowledge(message).await;
        }
        if message.sequence > expected {
            if self.core().incoming.len() < self.knobs.incoming_capacity {
                self.acknowledge(message).await?;
                self.core().incoming.insert(message.sequence, parcel);
            }
            return Ok(());
        }
        self.process(message).await?;
        self.core().unacknowledged = Some(message.sequence);
        self.acknowledge(message).await?;
        {
            let mut core = self.core();
            core.unacknowledged = None;
            core.expected += 1;
        }
        self.take_stored().await
    }

    /// Processes stored messages that have become the next ones.
    async fn take_stored(&self) -> Result<(), NotTaken> {
        loop {
            let expected = self.core().expected;
            let Some(parcel) = self.core().incoming.get(&expected).cloned() else { return Ok(()) };
            let message = Message::parse(&parcel.bytes).map_err(|_| NotTaken)?;
            self.process(&message).await?;
            let mut core = self.core();
            core.incoming.remove(&expected);
            core.expected += 1;
        }
    }

    async fn process(&self, message: &Message<'_>) -> Result<(), NotTaken> {
        let (is_complete, is_ready) = {
            let core = self.core();
            (core.is_complete, core.is_ready)
        };
        if message.payload_type == Some(PayloadType::HANDSHAKE_RESPONSE) {
            let response = serde_json::from_slice(message.payload).map_err(|_| NotTaken)?;
            return self.notes.try_send(Note::Response(response)).map_err(|_| NotTaken);
        }
        if !is_complete {
            self.session.count(Count::EarlyLost);
            return Ok(());
        }
        if !is_ready {
            return Err(NotTaken);
        }
        match message.payload_type {
            Some(PayloadType::OUTPUT) => self.write(message).await,
            Some(PayloadType::FLAG) => {
                let flag = <[u8; 4]>::try_from(message.payload).map(u32::from_be_bytes).map(FlagValue);
                let note = match flag {
                    Ok(FlagValue::TERMINATE_SESSION) => Note::Terminate,
                    Ok(FlagValue::DISCONNECT_TO_PORT) => Note::Disconnect,
                    Ok(_) | Err(_) => return Ok(()),
                };
                // A full queue already holds an end.
                let _ = self.notes.try_send(note);
                Ok(())
            }
            Some(_) | None => Ok(()),
        }
    }

    async fn write(&self, message: &Message<'_>) -> Result<(), NotTaken> {
        if self.core().unacknowledged == Some(message.sequence) {
            self.session.count(Count::WrittenTwice);
        }
        let mut target = self.target.lock().await;
        let target = target.as_mut().ok_or(NotTaken)?;
        target.write_all(message.payload).await.map_err(|_| NotTaken)?;
        target.flush().await.map_err(|_| NotTaken)?;
        self.session.count_by(Count::TargetBytesUp, message.payload.len() as u64);
        Ok(())
    }

    async fn acknowledge(&self, message: &Message<'_>) -> Result<(), NotTaken> {
        let content = AcknowledgeContent::new(message.kind, message.id, message.sequence).to_json();
        let id = Uuid::from_random(self.rng().bytes());
        let mut acknowledgement =
            Message::new(Kind::Acknowledge, 0, id, now_ms(), PayloadType::NONE, content.as_bytes());
        acknowledgement.flags = FLAGS_SYN_FIN;
        self.send(Parcel::new(&acknowledgement)).await.map_err(|Down| NotTaken)
    }

    fn acknowledged(&self, payload: &[u8]) {
        let Ok(content) = serde_json::from_slice::<AcknowledgeContent>(payload) else { return };
        let mut core = self.core();
        match core.outgoing.remove(&content.acknowledged_message_sequence_number) {
            Some(stored) => core.sample(stored.last_sent.elapsed()),
            None => self.session.count(Count::UpAcksUnused),
        }
    }

    fn set_paused(&self, is_paused: bool) {
        self.core().is_paused = is_paused;
        if !is_paused {
            self.resumed.notify_waiters();
        }
    }
}
