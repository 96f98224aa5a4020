//! Pure: the agent's part of the handshake.

use std::time::Duration;

use super::message::{Greeting, Hello, Speaker, split_proof};
use super::{
    AGENT_LABEL, AgentKey, CLIENT_LABEL, DenyReason, HelloError, Incoming, Message, Psk, Secret, Ticket,
    TrunkId, digest, is_prefix_of,
};
use crate::wire::VERSION;
use crate::wire::trunk::segment::{Frame, Type};
use crate::wire::trunk::{LaneId, LaneKind};

pub struct AgentParams {
    pub key: AgentKey,
    pub psk: Option<Psk>,
    pub max_lanes: u16,
    /// Whether the client may have TCP flows in blocks.
    pub takes_blocks: bool,
    pub version: String,
    /// Fresh for each lane.
    pub nonce: [u8; 32],
}

/// The agent's part: `poll_transmit` for the greeting, then `handle_bytes` and `poll_transmit` until admitted.
///
/// After an error `poll_transmit` gives the denial, if the client is worth one; then the lane is closed.
pub struct AgentHandshake {
    params: AgentParams,
    incoming: Incoming,
    greeting: Vec<u8>,
    ended: bool,
    transmit: Option<Vec<u8>>,
}

/// The client proved itself. The welcome waits in `poll_transmit`; [`AgentHandshake::deny`] replaces it.
pub struct Admitted {
    pub ticket: Ticket,
    pub resumed: bool,
    pub lane: LaneId,
    pub kind: LaneKind,
    /// Zero for none.
    pub ping_interval: Duration,
    /// For [`Trunk::peer_received`](crate::wire::trunk::Trunk::peer_received).
    pub received: u64,
    /// Whether TCP flows of the trunk lie in blocks.
    pub in_blocks: bool,
    pub live_lanes: Vec<LaneId>,
    /// Digest of the hello, for [`Trunk::attach`](crate::wire::trunk::Trunk::attach).
    pub hello: [u8; 32],
    pub client_version: String,
    /// Bytes behind the hello, for the trunk.
    pub leftover: Vec<u8>,
}

impl AgentHandshake {
    pub fn new(params: AgentParams) -> Self {
        let greeting = Greeting {
            key_required: params.psk.is_some(),
            takes_blocks: params.takes_blocks,
            max_lanes: params.max_lanes,
            nonce: params.nonce,
            key: params.key.public(),
        }
        .encode(&Speaker { protocol: VERSION, version: params.version.clone() });
        let mut record = Vec::new();
        Frame::Greeting(&greeting).encode(&mut record);
        Self { params, incoming: Incoming::default(), greeting, ended: false, transmit: Some(record) }
    }

    /// Takes what the lane gave; `Some` once the client has proved itself. `known` gives the secret of a trunk
    /// that this agent has.
    pub fn handle_bytes(
        &mut self,
        bytes: &[u8],
        known: &dyn Fn(&TrunkId) -> Option<Secret>,
    ) -> Result<Option<Admitted>, HelloError> {
        let result = self.handle(bytes, known);
        if let Err(error) = &result {
            self.ended = true;
            if let Some(reason) = error.denial() {
                self.deny(reason, &error.told_to_client());
            }
        }
        result
    }

    /// What is to be sent now, as one record.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.transmit.take()
    }

    /// Tells the client why it is not let in, instead of a greeting or welcome that still waits.
    pub fn deny(&mut self, reason: DenyReason, text: &str) {
        let mut record = Vec::new();
        Frame::Deny { reason: reason.code(), text }.encode(&mut record);
        self.transmit = Some(record);
        self.ended = true;
    }

    fn handle(
        &mut self,
        bytes: &[u8],
        known: &dyn Fn(&TrunkId) -> Option<Secret>,
    ) -> Result<Option<Admitted>, HelloError> {
        self.incoming
            .note(bytes, |first| is_prefix_of(first, Type::Hello, &[]))
            .map_err(HelloError::NotClient)?;
        let mut input = bytes;
        let body = match self.incoming.next(&mut input)? {
            None => return Ok(None),
            Some(_) if self.ended => {
                return Err(HelloError::Malformed("a message after the end of the handshake"));
            }
            Some(Message::Hello(body)) => body,
            Some(Message::Greeting(_) | Message::Welcome(_) | Message::Deny(..)) => {
                return Err(HelloError::Malformed("no hello at the start"));
            }
        };
        self.ended = true;
        let mut admitted = self.admit(&body, known)?;
        admitted.leftover = input.to_vec();
        Ok(Some(admitted))
    }

    fn admit(
        &mut self,
        body: &[u8],
        known: &dyn Fn(&TrunkId) -> Option<Secret>,
    ) -> Result<Admitted, HelloError> {
        let malformed = || HelloError::Malformed("the hello");
        let (unproved, proof) = split_proof(body).ok_or_else(malformed)?;
        let (client, fields) = Hello::speaker(unproved).ok_or_else(malformed)?;
        if client.protocol != VERSION {
            let agent = self.params.version.clone();
            return Err(HelloError::ClientVersion {
                protocol: client.protocol,
                version: client.version,
                agent,
            });
        }
        let hello = Hello::decode(fields).ok_or_else(malformed)?;
        if hello.in_blocks && !self.params.takes_blocks {
            return Err(HelloError::Malformed("the hello, which wants blocks though they were not offered"));
        }
        let stored = known(&hello.id);
        let (secret, resumed) = if hello.resume {
            (stored.ok_or(HelloError::UnknownTrunk)?, true)
        } else {
            let psk = self.params.psk.as_ref();
            let secret = self.params.key.secret(&hello.id, &hello.key, psk).ok_or_else(malformed)?;
            let resumed = stored.is_some();
            if stored.is_some_and(|stored| !stored.same(&secret)) {
                return Err(self.bad_proof());
            }
            (secret, resumed)
        };
        if !secret.proves(CLIENT_LABEL, &[&self.greeting, unproved], proof) {
            return Err(self.bad_proof());
        }
        let mut welcome = vec![u8::from(resumed)];
        let proof = secret.prove(AGENT_LABEL, &[&self.greeting, body, &welcome]);
        welcome.extend_from_slice(&proof);
        let mut record = self.transmit.take().unwrap_or_default();
        Frame::Welcome(&welcome).encode(&mut record);
        self.transmit = Some(record);
        Ok(Admitted {
            ticket: Ticket { id: hello.id, secret },
            resumed,
            lane: hello.lane,
            kind: hello.kind,
            ping_interval: hello.ping_interval,
            received: hello.received,
            in_blocks: hello.in_blocks,
            live_lanes: hello.live_lanes,
            hello: digest(body),
            client_version: client.version,
            leftover: Vec::new(),
        })
    }

    fn bad_proof(&self) -> HelloError {
        HelloError::ClientProof { key_required: self.params.psk.is_some() }
    }
}
