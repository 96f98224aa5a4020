//! Pure: greeting by the agent, hello by the client, welcome or denial by the agent.
//!
//! The agent speaks first, since what is sent too early through SSM vanishes. Each message is the body of
//! one frame ([`segment`](crate::wire::trunk::segment)). All integers are big-endian; a version string has at
//! most 64 bytes. The first three fields of greeting and hello keep their place in every version, so that
//! two versions can name each other.
//!
//! Greeting:
//!
//! | bytes | field |
//! |---|---|
//! | 4 | `SSMP` |
//! | 2 | protocol version |
//! | 1 + n | length and text of the agent's version |
//! | 1 | flags: 1 = a shared key is required, 2 = TCP flows may lie in blocks ([`blocks`](super::blocks)) |
//! | 2 | the most lanes a trunk may have |
//! | 32 | nonce |
//! | 32 | the agent's public key (X25519) |
//!
//! Hello:
//!
//! | bytes | field |
//! |---|---|
//! | 2 | protocol version |
//! | 1 + n | length and text of the client's version |
//! | 1 | flags: 1 = resume only, else create the trunk, or resume it when it is there already; 2 = TCP flows of this trunk lie in blocks, only where the greeting says that they may |
//! | 16 | trunk id |
//! | 8 | lane id |
//! | 1 | lane kind: 1 SSM, 2 TCP |
//! | 4 | ping interval in milliseconds, 0 for none |
//! | 8 | how many bytes of the trunk the client has received |
//! | 32 | nonce |
//! | 32 | the client's public key of this trunk (X25519); zeros when resuming |
//! | 1 + 8n | number and ids of the client's other live lanes, at most 32 |
//! | 32 | proof over greeting and hello ([`key`]) |
//!
//! Welcome: flags `u8` (1 = resumed), then the agent's proof (32) over greeting, hello and the flags.
//!
//! Examples of the bodies are in the tests of `hello/message.rs`.

mod agent;
mod client;
mod error;
pub mod key;
mod message;

use sha2::{Digest, Sha256};

pub use self::agent::{Admitted, AgentHandshake, AgentParams};
pub use self::client::{ClientHandshake, ClientParams, Welcomed};
pub use self::error::{DenyReason, HelloError};
pub use self::key::{AgentKey, Psk, PublicKey, Secret, ShortKey};
use super::trunk::segment::{Frame, HEADER, MAX_HANDSHAKE, Parser, Type};

/// Names a trunk at its agent; chosen at random by the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrunkId(pub [u8; 16]);

/// What it takes to resume a trunk.
#[derive(Clone)]
pub struct Ticket {
    pub id: TrunkId,
    secret: Secret,
}

/// The most other live lanes a hello can name; the client keeps the rest to itself.
pub const MAX_LIVE_LANES: usize = 32;
/// The longest version string, in bytes.
pub const MAX_VERSION: usize = 64;

/// What names a hello when it comes again.
pub fn digest(body: &[u8]) -> [u8; 32] {
    Sha256::digest(body).into()
}

impl Ticket {
    /// What `known` gives the next [`AgentHandshake`].
    pub fn secret(&self) -> &Secret {
        &self.secret
    }
}

/// What has come from the other side: bounded, and recognised as ours from its first byte on.
#[derive(Default)]
struct Incoming {
    parser: Parser,
    first: Vec<u8>,
}

enum Message {
    Greeting(Vec<u8>),
    Hello(Vec<u8>),
    Welcome(Vec<u8>),
    Deny(DenyReason, String),
}

impl Incoming {
    /// Looks at the first bytes only; gives them back when they cannot come from one of ours.
    fn note(&mut self, bytes: &[u8], ours: impl Fn(&[u8]) -> bool) -> Result<(), Vec<u8>> {
        let missing = FIRST - self.first.len();
        self.first.extend(bytes.iter().take(missing));
        if ours(&self.first) { Ok(()) } else { Err(self.first.clone()) }
    }

    fn next(&mut self, input: &mut &[u8]) -> Result<Option<Message>, HelloError> {
        Ok(match self.parser.next_frame(input).map_err(HelloError::Frame)? {
            None => None,
            Some(Frame::Greeting(body)) => Some(Message::Greeting(body.to_vec())),
            Some(Frame::Hello(body)) => Some(Message::Hello(body.to_vec())),
            Some(Frame::Welcome(body)) => Some(Message::Welcome(body.to_vec())),
            Some(Frame::Deny { reason, text }) => {
                let text = text.chars().filter(|char| !char.is_control()).collect();
                Some(Message::Deny(DenyReason::from_code(reason), text))
            }
            Some(
                Frame::Segment { .. }
                | Frame::Ack { .. }
                | Frame::Ping { .. }
                | Frame::Pong { .. }
                | Frame::Goodbye { .. }
                | Frame::Retire,
            ) => return Err(HelloError::Malformed("a frame of the trunk before the end of the handshake")),
        })
    }
}

/// Whether `first` can be the start of such a frame, or of a denial, whose body begins with `start`.
fn is_prefix_of(first: &[u8], kind: Type, start: &[u8]) -> bool {
    let Some(&byte) = first.first() else { return true };
    if byte != kind as u8 {
        return byte == Type::Deny as u8;
    }
    let length =
        first.get(1..4).map_or(0, |length| length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)));
    let body = first.get(HEADER..).unwrap_or_default();
    length <= MAX_HANDSHAKE && body.iter().zip(start).all(|(a, b)| a == b)
}

/// How many of the first bytes are kept for the error that shows them.
const FIRST: usize = 24;
const CLIENT_LABEL: &[u8] = b"ssm-proxy hello, client";
const AGENT_LABEL: &[u8] = b"ssm-proxy hello, agent";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::key::TrunkKey;
    use super::message::{Greeting, Speaker};
    use crate::wire::trunk::{LaneId, LaneKind};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn create_then_resume() {
        let (welcomed, admitted) = meet(client(None), agent(), None).unwrap();
        assert!(!welcomed.resumed && !admitted.resumed);
        assert_eq!(welcomed.ticket.id, admitted.ticket.id);
        assert_eq!(welcomed.hello, admitted.hello);
        assert_eq!((welcomed.agent_version.as_str(), welcomed.max_lanes), ("0.4.0", 8));
        assert_eq!(welcomed.agent_key, AgentKey::from_bytes([1; 32]).public());
        assert_eq!(admitted.client_version, "0.3.0");
        assert_eq!((admitted.lane, admitted.kind, admitted.received), (LaneId(5), LaneKind::Ssm, 77));
        assert_eq!(admitted.ping_interval, Duration::from_secs(15));
        assert_eq!(admitted.live_lanes, [LaneId(3), LaneId(4)]);

        let stored = admitted.ticket;
        let (welcomed, admitted) = meet(client(Some(welcomed.ticket)), agent(), Some(&stored)).unwrap();
        assert!(welcomed.resumed && admitted.resumed);
        assert_eq!(admitted.ticket.id, stored.id);
    }

    #[test]
    fn a_create_that_got_no_answer_finds_its_trunk() {
        let (_, first) = meet(client(None), agent(), None).unwrap();
        let mut again = client(None);
        again.lane = LaneId(6);
        let (welcomed, admitted) = meet(again, agent(), Some(&first.ticket)).unwrap();
        assert!(welcomed.resumed && admitted.resumed);
    }

    #[test]
    fn a_create_with_the_id_of_anothers_trunk_is_denied() {
        let (_, mut first) = meet(client(None), agent(), None).unwrap();
        first.ticket.secret = TrunkKey::from_bytes([8; 32])
            .secret(&first.ticket.id, &AgentKey::from_bytes([1; 32]).public(), None)
            .unwrap();
        let error = meet(client(None), agent(), Some(&first.ticket)).err().unwrap();
        assert!(matches!(error, HelloError::Denied { reason: DenyReason::Proof, .. }), "{error}");
    }

    #[test]
    fn keys_must_be_the_same_at_both_ends() {
        let key = |text: &[u8]| Some(Psk::from_file_content(text).unwrap());
        let with = |client_key, agent_key| {
            let (mut client, mut agent) = (client(None), agent());
            client.psk = client_key;
            agent.psk = agent_key;
            meet(client, agent, None).err()
        };
        assert!(with(key(b"0123456789abcdef"), key(b"0123456789abcdef\n")).is_none());
        assert_eq!(with(None, key(b"0123456789abcdef")), Some(HelloError::KeyRequired));
        assert_eq!(with(key(b"0123456789abcdef"), None), Some(HelloError::KeyNotExpected));
        let error = with(key(b"0123456789abcdeX"), key(b"0123456789abcdef")).unwrap();
        assert!(matches!(error, HelloError::Denied { reason: DenyReason::Proof, .. }));
        assert!(error.to_string().contains("--key-file"), "{error}");
    }

    #[test]
    fn another_key_than_the_pinned_one_is_told() {
        let mut params = client(None);
        params.pinned = Some(PublicKey([9; 32]));
        let error = meet(params, agent(), None).err().unwrap();
        let got = AgentKey::from_bytes([1; 32]).public();
        assert_eq!(error, HelloError::KeyChanged { expected: PublicKey([9; 32]), got });

        let mut params = client(None);
        params.pinned = Some(got);
        assert!(meet(params, agent(), None).is_ok());
    }

    #[test]
    fn who_shows_the_agents_key_without_having_it_is_found_out() {
        let mut fake = AgentHandshake::new(agent());
        let mut client = ClientHandshake::new(client(None));
        client.handle_bytes(&fake.poll_transmit().unwrap()).unwrap();
        let mut welcome = Vec::new();
        Frame::Welcome(&[0; 33]).encode(&mut welcome);
        assert_eq!(client.handle_bytes(&welcome).err(), Some(HelloError::AgentProof));
    }

    #[test]
    fn resuming_an_unknown_trunk_or_without_its_secret_is_denied() {
        let (welcomed, mut admitted) = meet(client(None), agent(), None).unwrap();
        let error = meet(client(Some(welcomed.ticket.clone())), agent(), None).err().unwrap();
        assert!(matches!(error, HelloError::Denied { reason: DenyReason::UnknownTrunk, .. }));

        admitted.ticket.secret = TrunkKey::from_bytes([8; 32])
            .secret(&TrunkId([0; 16]), &AgentKey::from_bytes([1; 32]).public(), None)
            .unwrap();
        let error = meet(client(Some(welcomed.ticket)), agent(), Some(&admitted.ticket)).err().unwrap();
        assert!(matches!(error, HelloError::Denied { reason: DenyReason::Proof, .. }));
    }

    #[test]
    fn a_hello_replayed_to_another_lane_is_denied() {
        let mut first = AgentHandshake::new(agent());
        let mut client = ClientHandshake::new(client(None));
        client.handle_bytes(&first.poll_transmit().unwrap()).unwrap();
        let hello = client.poll_transmit().unwrap();
        let ticket = first.handle_bytes(&hello, &|_| None).unwrap().unwrap().ticket;

        let mut params = agent();
        params.nonce = [3; 32];
        let mut second = AgentHandshake::new(params);
        let result = second.handle_bytes(&hello, &|_| Some(ticket.secret().clone()));
        assert_eq!(result.err(), Some(HelloError::ClientProof { key_required: false }));
    }

    #[test]
    fn a_hello_written_twice_is_left_for_the_trunk_to_drop() {
        let mut agent = AgentHandshake::new(agent());
        let mut client = ClientHandshake::new(client(None));
        client.handle_bytes(&agent.poll_transmit().unwrap()).unwrap();
        let hello = client.poll_transmit().unwrap();
        let admitted = agent.handle_bytes(&hello.repeat(2), &|_| None).unwrap().unwrap();
        assert_eq!(admitted.leftover, hello);
    }

    #[test]
    fn greetings_and_welcomes_may_repeat_and_come_in_single_bytes() {
        let mut agent = AgentHandshake::new(agent());
        let mut client = ClientHandshake::new(client(None));
        let greeting = agent.poll_transmit().unwrap();
        for byte in greeting.repeat(2) {
            assert!(client.handle_bytes(&[byte]).unwrap().is_none());
        }
        let mut admitted = None;
        for byte in client.poll_transmit().unwrap() {
            admitted = agent.handle_bytes(&[byte], &|_| None).unwrap();
        }
        assert!(admitted.is_some());
        let mut welcome = agent.poll_transmit().unwrap();
        welcome.extend(b"rest");
        assert_eq!(client.handle_bytes(&welcome).unwrap().unwrap().leftover, b"rest");
    }

    #[test]
    fn versions_that_differ_are_named() {
        let greeting = Greeting {
            key_required: false,
            takes_blocks: false,
            max_lanes: 1,
            nonce: [0; 32],
            key: PublicKey([1; 32]),
        };
        let mut body = greeting.encode(&Speaker { protocol: 2, version: "0.9.0".into() });
        body.truncate(20);
        let mut record = Vec::new();
        Frame::Greeting(&body).encode(&mut record);
        let error = ClientHandshake::new(client(None)).handle_bytes(&record).err().unwrap();
        assert_eq!(
            error.to_string(),
            "the agent speaks protocol 2 (version 0.9.0), this client speaks 1: upgrade ssm-proxy on this machine"
        );

        let mut body = b"\x00\x00\x050.0.9".to_vec();
        body.extend([0; 40]);
        let mut record = Vec::new();
        Frame::Hello(&body).encode(&mut record);
        let mut agent = AgentHandshake::new(agent());
        agent.poll_transmit();
        assert!(agent.handle_bytes(&record, &|_| None).is_err());
        let denial = agent.poll_transmit().unwrap();
        let error = ClientHandshake::new(client(None)).handle_bytes(&denial).err().unwrap();
        assert_eq!(
            error.to_string(),
            "the agent refused the session: the agent speaks protocol 1 (version 0.4.0), this client speaks 0 \
             (version 0.0.9): upgrade ssm-proxy on this machine"
        );
    }

    #[test]
    fn a_foreign_service_is_noticed_at_once() {
        for foreign in ["SSH-2.0-OpenSSH_9.6", "H", "\x15\x03\x03", "220 smtp"] {
            let error = ClientHandshake::new(client(None)).handle_bytes(foreign.as_bytes()).err().unwrap();
            assert!(matches!(&error, HelloError::NotAgent(first) if first == foreign.as_bytes()));
        }
        let ssh = ClientHandshake::new(client(None)).handle_bytes(b"SSH-2.0-x\r\n").err().unwrap();
        assert!(
            ssh.to_string()
                .starts_with(r#"what answered is not ssm-proxy-agent (first bytes "SSH-2.0-x\r\n")"#)
        );
        let mut nearly = vec![0xf0, 0, 0, 100, 1, 2, 3, 4];
        nearly.extend(b"SSMQ");
        assert!(matches!(
            ClientHandshake::new(client(None)).handle_bytes(&nearly),
            Err(HelloError::NotAgent(_))
        ));
        let mut agent = AgentHandshake::new(agent());
        agent.poll_transmit();
        assert!(matches!(agent.handle_bytes(b"GET /", &|_| None), Err(HelloError::NotClient(_))));
        assert!(agent.poll_transmit().is_none());
    }

    #[test]
    fn the_agent_may_deny_whom_it_admitted() {
        let mut agent = AgentHandshake::new(agent());
        let mut client = ClientHandshake::new(client(None));
        client.handle_bytes(&agent.poll_transmit().unwrap()).unwrap();
        agent.handle_bytes(&client.poll_transmit().unwrap(), &|_| None).unwrap().unwrap();
        agent.deny(DenyReason::TooManyTrunks, "64 trunks already");
        let error = client.handle_bytes(&agent.poll_transmit().unwrap()).err().unwrap();
        assert_eq!(
            error,
            HelloError::Denied { reason: DenyReason::TooManyTrunks, text: "64 trunks already".into() }
        );
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            kind in 0usize..4,
            framed in any::<bool>(),
        ) {
            let mut wire = Vec::new();
            if framed {
                let frames = [Frame::Greeting(&bytes), Frame::Hello(&bytes), Frame::Welcome(&bytes), Frame::Ping { id: 0 }];
                frames[kind].encode(&mut wire);
            } else {
                wire.push(0xf0 + kind as u8);
                wire.extend(&bytes);
            }
            let _ = ClientHandshake::new(client(None)).handle_bytes(&wire);
            let _ = AgentHandshake::new(agent()).handle_bytes(&wire, &|_| None);
        }

        #[test]
        fn one_changed_bit_admits_nobody(bit in 0usize..2000) {
            let mut agent = AgentHandshake::new(agent());
            let mut client = ClientHandshake::new(client(None));
            client.handle_bytes(&agent.poll_transmit().unwrap()).unwrap();
            let mut hello = client.poll_transmit().unwrap();
            let mut body = hello.split_off(HEADER);
            let bit = bit % (body.len() * 8);
            body[bit / 8] ^= 1 << (bit % 8);
            let mut record = Vec::new();
            Frame::Hello(&body).encode(&mut record);
            prop_assert!(agent.handle_bytes(&record, &|_| None).is_err());
        }
    }

    /// Runs both ends against each other; the client's error when it has one.
    fn meet(
        client: ClientParams,
        agent: AgentParams,
        known: Option<&Ticket>,
    ) -> Result<(Welcomed, Admitted), HelloError> {
        let mut client = ClientHandshake::new(client);
        let mut agent = AgentHandshake::new(agent);
        client.handle_bytes(&agent.poll_transmit().unwrap())?;
        let hello = client.poll_transmit().unwrap();
        let known = |id: &TrunkId| known.filter(|known| known.id == *id).map(|known| known.secret().clone());
        let admitted = agent.handle_bytes(&hello, &known);
        let welcomed = client.handle_bytes(&agent.poll_transmit().unwrap())?.unwrap();
        Ok((welcomed, admitted?.unwrap()))
    }

    fn client(ticket: Option<Ticket>) -> ClientParams {
        ClientParams {
            ticket,
            lane: LaneId(5),
            kind: LaneKind::Ssm,
            psk: None,
            pinned: None,
            ping_interval: Duration::from_secs(15),
            received: 77,
            live_lanes: vec![LaneId(3), LaneId(4)],
            entropy: [7; 64],
            wants_blocks: true,
            version: "0.3.0".into(),
        }
    }

    fn agent() -> AgentParams {
        AgentParams {
            key: AgentKey::from_bytes([1; 32]),
            psk: None,
            max_lanes: 8,
            takes_blocks: true,
            version: "0.4.0".into(),
            nonce: [2; 32],
        }
    }
}
