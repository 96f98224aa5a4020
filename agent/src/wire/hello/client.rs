//! Pure: the client's part of the handshake.

use std::time::Duration;

use super::key::{TrunkKey, erase, expand};
use super::message::{Greeting, Hello, MAGIC, Speaker, split_proof};
use super::{
    AGENT_LABEL, CLIENT_LABEL, HelloError, Incoming, Message, Psk, PublicKey, Ticket, TrunkId, digest,
    is_prefix_of,
};
use crate::wire::VERSION;
use crate::wire::trunk::segment::{Frame, Type};
use crate::wire::trunk::{LaneId, LaneKind};

pub struct ClientParams {
    /// `Some` resumes that trunk only, `None` makes a new one.
    pub ticket: Option<Ticket>,
    pub lane: LaneId,
    pub kind: LaneKind,
    pub psk: Option<Psk>,
    pub pinned: Option<PublicKey>,
    /// Zero for none.
    pub ping_interval: Duration,
    /// [`Trunk::received`](crate::wire::trunk::Trunk::received): saves the agent from sending it again.
    pub received: u64,
    /// The other lanes of the trunk that live; the agent closes those not named.
    pub live_lanes: Vec<LaneId>,
    /// Whether TCP flows shall lie in blocks, if the agent takes that; the same for all lanes of a trunk.
    pub wants_blocks: bool,
    /// Fresh for each handshake. A create that got no answer may be tried again with the same entropy and
    /// another lane: it finds the trunk if the agent made it.
    pub entropy: [u8; 64],
    pub version: String,
}

/// The client's part: `handle_bytes` with what the lane gives, then `poll_transmit`, until welcomed.
pub struct ClientHandshake {
    params: ClientParams,
    incoming: Incoming,
    state: ClientState,
    transmit: Option<Vec<u8>>,
}

enum ClientState {
    AwaitGreeting,
    AwaitWelcome {
        greeting: Vec<u8>,
        hello: Vec<u8>,
        agent: Speaker,
        max_lanes: u16,
        in_blocks: bool,
        key: PublicKey,
        ticket: Ticket,
    },
    Ended,
}

/// The agent let the lane in.
pub struct Welcomed {
    pub ticket: Ticket,
    pub resumed: bool,
    pub agent_version: String,
    pub agent_key: PublicKey,
    /// Digest of the hello, for [`Trunk::attach`](crate::wire::trunk::Trunk::attach).
    pub hello: [u8; 32],
    pub max_lanes: u16,
    /// Whether TCP flows of the trunk lie in blocks.
    pub in_blocks: bool,
    /// Bytes behind the welcome, for the trunk.
    pub leftover: Vec<u8>,
}

impl ClientHandshake {
    pub fn new(params: ClientParams) -> Self {
        Self { params, incoming: Incoming::default(), state: ClientState::AwaitGreeting, transmit: None }
    }

    /// Takes what the lane gave; `Some` once the agent has let the lane in.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<Option<Welcomed>, HelloError> {
        let result = self.handle(bytes);
        if result.is_err() {
            self.state = ClientState::Ended;
        }
        result
    }

    /// What is to be sent now, as one record.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.transmit.take()
    }

    fn handle(&mut self, bytes: &[u8]) -> Result<Option<Welcomed>, HelloError> {
        self.incoming
            .note(bytes, |first| is_prefix_of(first, Type::Greeting, &MAGIC))
            .map_err(HelloError::NotAgent)?;
        let mut input = bytes;
        while let Some(message) = self.incoming.next(&mut input)? {
            let state = std::mem::replace(&mut self.state, ClientState::Ended);
            self.state = match (state, message) {
                (_, Message::Deny(reason, text)) => return Err(HelloError::Denied { reason, text }),
                (ClientState::AwaitGreeting, Message::Greeting(body)) => self.greeted(body)?,
                (
                    ClientState::AwaitWelcome { greeting, hello, agent, max_lanes, in_blocks, key, ticket },
                    message,
                ) => match message {
                    Message::Welcome(body) => {
                        let resumed = welcomed(&ticket, &greeting, &hello, &body)?;
                        return Ok(Some(Welcomed {
                            ticket,
                            resumed,
                            agent_version: agent.version,
                            agent_key: key,
                            hello: digest(&hello),
                            max_lanes,
                            in_blocks,
                            leftover: input.to_vec(),
                        }));
                    }
                    Message::Greeting(body) if body == greeting => ClientState::AwaitWelcome {
                        greeting,
                        hello,
                        agent,
                        max_lanes,
                        in_blocks,
                        key,
                        ticket,
                    },
                    Message::Greeting(_) | Message::Hello(_) | Message::Deny(..) => {
                        return Err(HelloError::Malformed("another greeting instead of a welcome"));
                    }
                },
                (ClientState::AwaitGreeting, Message::Hello(_) | Message::Welcome(_)) => {
                    return Err(HelloError::Malformed("no greeting at the start"));
                }
                (ClientState::Ended, Message::Greeting(_) | Message::Hello(_) | Message::Welcome(_)) => {
                    return Err(HelloError::Malformed("a message after the end of the handshake"));
                }
            };
        }
        Ok(None)
    }

    fn greeted(&mut self, greeting: Vec<u8>) -> Result<ClientState, HelloError> {
        let (agent, fields) = Greeting::speaker(&greeting).ok_or(HelloError::Malformed("the greeting"))?;
        if agent.protocol != VERSION {
            return Err(HelloError::AgentVersion { protocol: agent.protocol, version: agent.version });
        }
        let Greeting { key_required, takes_blocks, max_lanes, key, nonce: _ } =
            Greeting::decode(fields).ok_or(HelloError::Malformed("the greeting"))?;
        match (key_required, &self.params.psk) {
            (true, None) => return Err(HelloError::KeyRequired),
            (false, Some(_)) => return Err(HelloError::KeyNotExpected),
            (true, Some(_)) | (false, None) => {}
        }
        if let Some(expected) = self.params.pinned.filter(|expected| *expected != key) {
            return Err(HelloError::KeyChanged { expected, got: key });
        }
        let in_blocks = takes_blocks && self.params.wants_blocks;
        let (ticket, hello) = self.hello(&greeting, &key, in_blocks)?;
        let mut record = Vec::new();
        Frame::Hello(&hello).encode(&mut record);
        self.transmit = Some(record);
        Ok(ClientState::AwaitWelcome { greeting, hello, agent, max_lanes, in_blocks, key, ticket })
    }

    fn hello(
        &mut self,
        greeting: &[u8],
        agent: &PublicKey,
        in_blocks: bool,
    ) -> Result<(Ticket, Vec<u8>), HelloError> {
        let params = &mut self.params;
        let [mut seed, key_seed] = halves(&params.entropy);
        let mut id = [0; 16];
        id.copy_from_slice(&expand(&seed, b"trunk id")[..16]);
        let (ticket, key, resume) = match params.ticket.take() {
            Some(ticket) => (ticket, PublicKey([0; 32]), true),
            None => {
                let (id, key) = (TrunkId(id), TrunkKey::from_bytes(key_seed));
                let secret = key
                    .secret(&id, agent, params.psk.as_ref())
                    .ok_or(HelloError::Malformed("the agent's public key"))?;
                (Ticket { id, secret }, key.public(), false)
            }
        };
        let nonce = expand(&seed, b"nonce");
        erase(&mut seed);
        erase(&mut params.entropy);
        let hello = Hello {
            resume,
            in_blocks,
            id: ticket.id,
            lane: params.lane,
            kind: params.kind,
            ping_interval: params.ping_interval,
            received: params.received,
            nonce,
            key,
            live_lanes: std::mem::take(&mut params.live_lanes),
        };
        let mut body = hello.encode(&Speaker { protocol: VERSION, version: params.version.clone() });
        let proof = ticket.secret.prove(CLIENT_LABEL, &[greeting, &body]);
        body.extend_from_slice(&proof);
        Ok((ticket, body))
    }
}

/// Checks the agent's proof; tells whether the trunk was resumed.
fn welcomed(ticket: &Ticket, greeting: &[u8], hello: &[u8], body: &[u8]) -> Result<bool, HelloError> {
    let Some((flags @ [resumed @ 0..=1], proof)) = split_proof(body) else {
        return Err(HelloError::Malformed("the welcome"));
    };
    if !ticket.secret.proves(AGENT_LABEL, &[greeting, hello, flags], proof) {
        return Err(HelloError::AgentProof);
    }
    Ok(*resumed == 1)
}

fn halves(entropy: &[u8; 64]) -> [[u8; 32]; 2] {
    let mut halves = [[0; 32]; 2];
    halves[0].copy_from_slice(&entropy[..32]);
    halves[1].copy_from_slice(&entropy[32..]);
    halves
}

impl Drop for ClientParams {
    fn drop(&mut self) {
        erase(&mut self.entropy);
    }
}
