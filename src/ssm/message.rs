//! Pure: the binary message of the SSM data channel, to bytes and back.
//!
//! One websocket binary message holds one of these. All integers are big-endian.
//!
//! | offset | size | field | value |
//! |---:|---:|---|---|
//! | 0 | 4 | header length `HL` | 116; the gateway's `channel_closed` has 112 and no payload type |
//! | 4 | 32 | type | ASCII, padded with spaces (written) or NUL (some gateway messages) |
//! | 36 | 4 | schema version | 1 |
//! | 40 | 8 | created | unix milliseconds |
//! | 48 | 8 | sequence number | i64, from 0 for each direction |
//! | 56 | 8 | flags | bit 0 SYN, bit 1 FIN; nobody acts on them |
//! | 64 | 16 | message id | a uuid with its halves swapped: bytes 8..16, then 0..8 |
//! | 80 | 32 | digest | SHA-256 of the payload |
//! | 112 | 4 | payload type | only when `HL` is 116 |
//! | HL | 4 | payload length | |
//! | HL+4 | n | payload | everything up to the end of the message |
//!
//! Example, 125 bytes: `input_stream_data`, created 1700000000000, sequence 7, flags 0, id
//! `00112233-4455-6677-8899-aabbccddeeff`, payload type 1, payload `hello`:
//!
//! ```text
//! 00000074 696e7075745f73747265616d5f64617461202020202020202020202020202020 00000001
//! 0000018bcfe56800 0000000000000007 0000000000000000 8899aabbccddeeff 0011223344556677
//! 2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824 00000001 00000005 68656c6c6f
//! ```

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

/// One message of the data channel, its payload borrowed from the websocket message it came in.
///
/// [`encode`](Self::encode) writes the fields as they stand, so a wrong digest can be sent on
/// purpose; [`new`](Self::new) fills in the right one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    pub kind: Kind<'a>,
    pub schema_version: u32,
    pub created_ms: u64,
    pub sequence: i64,
    pub flags: u64,
    pub id: Uuid,
    pub digest: [u8; 32],
    /// None in messages with the short header, as the gateway's `channel_closed`.
    pub payload_type: Option<PayloadType>,
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// Makes a message with the right digest, schema version 1, flags 0 and the long header.
    pub fn new(
        kind: Kind<'a>,
        sequence: i64,
        id: Uuid,
        created_ms: u64,
        payload_type: PayloadType,
        payload: &'a [u8],
    ) -> Self {
        Self {
            kind,
            schema_version: SCHEMA_VERSION,
            created_ms,
            sequence,
            flags: 0,
            id,
            digest: digest_of(payload),
            payload_type: Some(payload_type),
            payload,
        }
    }

    /// Reads one websocket binary message. The digest is not checked: see [`digest_fits`](Self::digest_fits).
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let mut rest = Fields(bytes);
        let header_length = u32::from_be_bytes(rest.take()?) as usize;
        if !(SHORT_HEADER..=LONG_HEADER).contains(&header_length) {
            return Err(ParseError::HeaderLength(header_length));
        }
        let kind = Kind::from_field(rest.take_slice(TYPE_SIZE)?);
        let schema_version = u32::from_be_bytes(rest.take()?);
        let created_ms = u64::from_be_bytes(rest.take()?);
        let sequence = i64::from_be_bytes(rest.take()?);
        let flags = u64::from_be_bytes(rest.take()?);
        let id = Uuid::from_swapped(rest.take()?);
        let digest = rest.take()?;
        let payload_type = if header_length == LONG_HEADER {
            Some(PayloadType(u32::from_be_bytes(rest.take()?)))
        } else {
            rest.take_slice(header_length - SHORT_HEADER)?;
            None
        };
        let length = u32::from_be_bytes(rest.take()?) as usize;
        let payload = rest.0;
        if payload.len() < length {
            return Err(ParseError::PayloadShort { stated: length, present: payload.len() });
        }
        Ok(Self { kind, schema_version, created_ms, sequence, flags, id, digest, payload_type, payload })
    }

    /// Appends the message's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let header_length = if self.payload_type.is_some() { LONG_HEADER } else { SHORT_HEADER };
        out.reserve(header_length + 4 + self.payload.len());
        out.extend_from_slice(&(header_length as u32).to_be_bytes());
        out.extend_from_slice(&self.kind.to_field());
        out.extend_from_slice(&self.schema_version.to_be_bytes());
        out.extend_from_slice(&self.created_ms.to_be_bytes());
        out.extend_from_slice(&self.sequence.to_be_bytes());
        out.extend_from_slice(&self.flags.to_be_bytes());
        out.extend_from_slice(&self.id.to_swapped());
        out.extend_from_slice(&self.digest);
        if let Some(PayloadType(number)) = self.payload_type {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.extend_from_slice(&(self.payload.len() as u32).to_be_bytes());
        out.extend_from_slice(self.payload);
    }

    /// The message's bytes in a vector of their own.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut out);
        out
    }

    /// Whether the digest is the payload's; an empty payload fits any digest, as for AWS's client.
    pub fn digest_fits(&self) -> bool {
        self.payload.is_empty() || self.digest == digest_of(self.payload)
    }

    /// A copy that does not borrow.
    pub fn to_buf(&self) -> MessageBuf {
        MessageBuf {
            kind: self.kind.name().to_owned(),
            schema_version: self.schema_version,
            created_ms: self.created_ms,
            sequence: self.sequence,
            flags: self.flags,
            id: self.id,
            digest: self.digest,
            payload_type: self.payload_type,
            payload: self.payload.to_vec(),
        }
    }
}

/// A [`Message`] that owns its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageBuf {
    pub kind: String,
    pub schema_version: u32,
    pub created_ms: u64,
    pub sequence: i64,
    pub flags: u64,
    pub id: Uuid,
    pub digest: [u8; 32],
    pub payload_type: Option<PayloadType>,
    pub payload: Vec<u8>,
}

impl MessageBuf {
    pub fn as_message(&self) -> Message<'_> {
        Message {
            kind: Kind::from_name(&self.kind),
            schema_version: self.schema_version,
            created_ms: self.created_ms,
            sequence: self.sequence,
            flags: self.flags,
            id: self.id,
            digest: self.digest,
            payload_type: self.payload_type,
            payload: &self.payload,
        }
    }
}

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// The sequenced stream from client to SSM agent.
    InputStreamData,
    /// The sequenced stream from SSM agent to client.
    OutputStreamData,
    /// Confirms one sequence number; is never confirmed itself.
    Acknowledge,
    /// From the gateway: the session is over.
    ChannelClosed,
    /// From the gateway: the other half is present.
    StartPublication,
    /// From the gateway: the other half is absent.
    PausePublication,
    /// From SSM agent to gateway only.
    AgentSessionState,
    /// A type this version does not know, or one that is not ASCII (then empty).
    Other(&'a str),
}

impl<'a> Kind<'a> {
    pub fn name(&self) -> &'a str {
        match self {
            Self::InputStreamData => "input_stream_data",
            Self::OutputStreamData => "output_stream_data",
            Self::Acknowledge => "acknowledge",
            Self::ChannelClosed => "channel_closed",
            Self::StartPublication => "start_publication",
            Self::PausePublication => "pause_publication",
            Self::AgentSessionState => "agent_session_state",
            Self::Other(name) => name,
        }
    }

    pub fn from_name(name: &'a str) -> Self {
        match name {
            "input_stream_data" => Self::InputStreamData,
            "output_stream_data" => Self::OutputStreamData,
            "acknowledge" => Self::Acknowledge,
            "channel_closed" => Self::ChannelClosed,
            "start_publication" => Self::StartPublication,
            "pause_publication" => Self::PausePublication,
            "agent_session_state" => Self::AgentSessionState,
            other => Self::Other(other),
        }
    }

    fn from_field(field: &'a [u8]) -> Self {
        let name = std::str::from_utf8(field).unwrap_or_default();
        Self::from_name(name.trim_matches([' ', '\0']))
    }

    fn to_field(self) -> [u8; TYPE_SIZE] {
        let mut field = [b' '; TYPE_SIZE];
        for (to, from) in field.iter_mut().zip(self.name().bytes()) {
            *to = from;
        }
        field
    }
}

/// What the payload of a stream message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayloadType(pub u32);

impl PayloadType {
    /// Of acknowledgements.
    pub const NONE: Self = Self(0);
    /// Stream bytes, either way.
    pub const OUTPUT: Self = Self(1);
    pub const ERROR: Self = Self(2);
    pub const SIZE: Self = Self(3);
    pub const PARAMETER: Self = Self(4);
    pub const HANDSHAKE_REQUEST: Self = Self(5);
    pub const HANDSHAKE_RESPONSE: Self = Self(6);
    pub const HANDSHAKE_COMPLETE: Self = Self(7);
    pub const ENCRYPTION_CHALLENGE_REQUEST: Self = Self(8);
    pub const ENCRYPTION_CHALLENGE_RESPONSE: Self = Self(9);
    /// Four bytes: a big-endian [`FlagValue`].
    pub const FLAG: Self = Self(10);
    pub const STD_ERR: Self = Self(11);
    pub const EXIT_CODE: Self = Self(12);
}

/// The number in a payload of type [`PayloadType::FLAG`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlagValue(pub u32);

impl FlagValue {
    pub const DISCONNECT_TO_PORT: Self = Self(1);
    pub const TERMINATE_SESSION: Self = Self(2);
    /// From the SSM agent, in multiplexed sessions only.
    pub const CONNECT_TO_PORT_ERROR: Self = Self(3);
}

/// A uuid, as message id, client id or request id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// A version 4 uuid from 16 random bytes.
    pub fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(bytes)
    }

    fn from_swapped(mut bytes: [u8; 16]) -> Self {
        bytes.rotate_left(8);
        Self(bytes)
    }

    fn to_swapped(self) -> [u8; 16] {
        let mut bytes = self.0;
        bytes.rotate_left(8);
        bytes
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for Uuid {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut bytes = [0; 16];
        let mut digits = text.bytes().filter(|digit| *digit != b'-');
        for byte in &mut bytes {
            let (high, low) = (hex_digit(digits.next())?, hex_digit(digits.next())?);
            *byte = high << 4 | low;
        }
        if digits.next().is_some() { Err(ParseError::Uuid) } else { Ok(Self(bytes)) }
    }
}

fn hex_digit(digit: Option<u8>) -> Result<u8, ParseError> {
    digit.and_then(|digit| char::from(digit).to_digit(16)).map(|value| value as u8).ok_or(ParseError::Uuid)
}

/// Why bytes are not a message: always the sender's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("the message ends inside its header")]
    HeaderShort,
    #[error("a header length of {0} bytes is outside 112..=116")]
    HeaderLength(usize),
    #[error("the payload has {present} bytes, its header says {stated}")]
    PayloadShort { stated: usize, present: usize },
    #[error("not a uuid")]
    Uuid,
}

pub fn digest_of(payload: &[u8]) -> [u8; 32] {
    Sha256::digest(payload).into()
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], ParseError> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(ParseError::HeaderShort)?;
        self.0 = rest;
        Ok(*field)
    }

    fn take_slice(&mut self, size: usize) -> Result<&'a [u8], ParseError> {
        let (field, rest) = self.0.split_at_checked(size).ok_or(ParseError::HeaderShort)?;
        self.0 = rest;
        Ok(field)
    }
}

/// Header and payload length of a message with a payload type: what a payload costs on top of itself.
pub const OVERHEAD: usize = LONG_HEADER + 4;
/// Flags of acknowledgements and state messages.
pub const FLAGS_SYN_FIN: u64 = 3;
pub const FLAG_SYN: u64 = 1;
pub const SCHEMA_VERSION: u32 = 1;

const LONG_HEADER: usize = 116;
const SHORT_HEADER: usize = 112;
const TYPE_SIZE: usize = 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ssm::handshake::AcknowledgeContent;

    const ID: Uuid = Uuid([
        0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff,
    ]);
    const CREATED: u64 = 1_700_000_000_000;

    #[test]
    fn input_stream_data_is_the_example() {
        let message = Message::new(Kind::InputStreamData, 7, ID, CREATED, PayloadType::OUTPUT, b"hello");

        let bytes = message.to_vec();

        assert_eq!(hex(&bytes), EXAMPLE);
        assert_eq!(
            hex(&digest_of(&bytes)),
            "ca654664edb3cec876813f934b1e1e3dcf9497aecc7ad3773c12cb30d98e7fa0"
        );
    }

    #[test]
    fn the_example_decodes() {
        let bytes = unhex(EXAMPLE);

        let message = Message::parse(&bytes).unwrap();

        let wanted = Message::new(Kind::InputStreamData, 7, ID, CREATED, PayloadType::OUTPUT, b"hello");
        assert_eq!(message, wanted);
        assert!(message.digest_fits());
        assert_eq!(message.id.to_string(), "00112233-4455-6677-8899-aabbccddeeff");
    }

    #[test]
    fn acknowledge_is_the_second_vector() {
        let payload = AcknowledgeContent::new(Kind::OutputStreamData, ID, 42).to_json();
        let id = "ffeeddcc-bbaa-9988-7766-554433221100".parse().unwrap();
        let mut message =
            Message::new(Kind::Acknowledge, 0, id, CREATED + 1, PayloadType::NONE, payload.as_bytes());
        message.flags = FLAGS_SYN_FIN;

        let bytes = message.to_vec();

        assert_eq!((payload.len(), bytes.len()), (177, 297));
        assert_eq!(
            hex(&digest_of(&bytes)),
            "f0d50055f433c23a473393cc5257d453f9f7f44d12540debc0e130d4682fe5fd"
        );
    }

    #[test]
    fn terminate_flag_is_the_third_vector() {
        let payload = FlagValue::TERMINATE_SESSION.0.to_be_bytes();
        let message = Message::new(Kind::InputStreamData, 9, ID, CREATED, PayloadType::FLAG, &payload);

        let bytes = message.to_vec();

        assert_eq!(bytes.len(), 124);
        assert_eq!(
            hex(&digest_of(&bytes)),
            "768eb7dcdaf54287be4cb83d4c1a1f1d3d9beb410d8422bf5e69fcd573df023a"
        );
    }

    #[test]
    fn a_short_header_with_nul_padding_is_read() {
        let mut bytes = Message { payload_type: None, ..closed() }.to_vec();
        bytes[4..36].iter_mut().filter(|byte| **byte == b' ').for_each(|byte| *byte = 0);

        let message = Message::parse(&bytes).unwrap();

        assert_eq!((message.kind, message.payload_type), (Kind::ChannelClosed, None));
        assert_eq!(message.payload, b"{}");
    }

    #[test]
    fn header_lengths_between_the_two_have_no_payload_type() {
        let mut bytes = Message { payload_type: None, ..closed() }.to_vec();
        bytes[3] = 114;
        bytes.splice(112..112, [9, 9]);

        let message = Message::parse(&bytes).unwrap();

        assert_eq!((message.payload_type, message.payload), (None, &b"{}"[..]));
    }

    #[test]
    fn header_lengths_outside_the_range_are_refused() {
        for length in [0_u32, 111, 117, u32::MAX] {
            let mut bytes = closed().to_vec();
            bytes[..4].copy_from_slice(&length.to_be_bytes());
            assert_eq!(Message::parse(&bytes), Err(ParseError::HeaderLength(length as usize)));
        }
    }

    #[test]
    fn every_prefix_is_an_error() {
        let bytes = unhex(EXAMPLE);
        for end in 0..bytes.len() {
            assert!(Message::parse(&bytes[..end]).is_err(), "a prefix of {end} bytes was taken");
        }
    }

    #[test]
    fn a_changed_payload_does_not_fit_its_digest() {
        let mut bytes = unhex(EXAMPLE);
        bytes[120] ^= 1;
        assert!(!Message::parse(&bytes).unwrap().digest_fits());
    }

    #[test]
    fn uuids_are_read_and_refused() {
        let text = "00112233-4455-6677-8899-aabbccddeeff";
        assert_eq!(text.parse(), Ok(ID));
        for bad in
            ["", "0011", "00112233-4455-6677-8899-aabbccddeeff0", "g0112233-4455-6677-8899-aabbccddeeff"]
        {
            assert_eq!(bad.parse::<Uuid>(), Err(ParseError::Uuid), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn messages_survive_the_round_trip(
            kind in "[a-z_]{1,32}",
            sequence: i64, flags: u64, created_ms: u64, id: [u8; 16], digest: [u8; 32],
            payload_type in prop::option::of(any::<u32>().prop_map(PayloadType)),
            payload: Vec<u8>,
        ) {
            let buf = MessageBuf {
                kind, schema_version: 1, created_ms, sequence, flags, id: Uuid(id), digest, payload_type, payload,
            };
            let bytes = buf.as_message().to_vec();
            prop_assert_eq!(Message::parse(&bytes).unwrap().to_buf(), buf);
        }

        #[test]
        fn random_bytes_do_not_panic(bytes: Vec<u8>, header_length in 110_u32..120) {
            let _ = Message::parse(&bytes);
            let with_header = [&header_length.to_be_bytes()[..], &bytes, &[0; 120]].concat();
            let _ = Message::parse(&with_header);
        }
    }

    const EXAMPLE: &str = "00000074\
        696e7075745f73747265616d5f64617461202020202020202020202020202020\
        000000010000018bcfe5680000000000000000070000000000000000\
        8899aabbccddeeff0011223344556677\
        2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824\
        000000010000000568656c6c6f";

    fn closed() -> Message<'static> {
        Message::new(Kind::ChannelClosed, 0, ID, CREATED, PayloadType::NONE, b"{}")
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }
}
