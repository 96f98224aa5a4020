//! Pure: the bodies of greeting, hello and welcome. Their byte tables are in [`super`].

use std::time::Duration;

use super::{DenyReason, MAX_LIVE_LANES, MAX_VERSION, PublicKey, TrunkId};
use crate::wire::trunk::segment::Fields;
use crate::wire::trunk::{LaneId, LaneKind};

/// The first bytes of a greeting's body, in every version.
pub(super) const MAGIC: [u8; 4] = *b"SSMP";
pub(super) const PROOF: usize = 32;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    pub(super) key_required: bool,
    pub(super) takes_blocks: bool,
    pub(super) max_lanes: u16,
    pub(super) nonce: [u8; 32],
    pub(super) key: PublicKey,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) resume: bool,
    pub(super) in_blocks: bool,
    pub(super) id: TrunkId,
    pub(super) lane: LaneId,
    pub(super) kind: LaneKind,
    pub(super) ping_interval: Duration,
    pub(super) received: u64,
    pub(super) nonce: [u8; 32],
    /// All zero when resuming.
    pub(super) key: PublicKey,
    pub(super) live_lanes: Vec<LaneId>,
}

/// What stands in greeting and hello at the same place in every version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Speaker {
    pub(super) protocol: u16,
    pub(super) version: String,
}

impl Speaker {
    fn encode(&self, out: &mut Vec<u8>) {
        let version = &self.version[..self.version.floor_char_boundary(MAX_VERSION)];
        out.extend_from_slice(&self.protocol.to_be_bytes());
        out.push(version.len() as u8);
        out.extend_from_slice(version.as_bytes());
    }

    fn decode(fields: &mut Fields<'_>) -> Option<Self> {
        let protocol = fields.u16()?;
        let length = usize::from(fields.u8()?);
        let version = fields.bytes(length).filter(|_| length <= MAX_VERSION)?;
        let version = str::from_utf8(version).ok()?;
        (!version.contains(char::is_control)).then(|| Self { protocol, version: version.to_owned() })
    }
}

impl Greeting {
    pub(super) fn encode(&self, speaker: &Speaker) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        speaker.encode(&mut out);
        out.push(u8::from(self.key_required) | u8::from(self.takes_blocks) << 1);
        out.extend_from_slice(&self.max_lanes.to_be_bytes());
        out.extend_from_slice(&self.nonce);
        out.extend_from_slice(&self.key.0);
        out
    }

    /// Who greets, and the rest of a greeting body once the version is known to be ours.
    pub(super) fn speaker(body: &[u8]) -> Option<(Speaker, Fields<'_>)> {
        let mut fields = Fields(body.strip_prefix(&MAGIC)?);
        Speaker::decode(&mut fields).map(|speaker| (speaker, fields))
    }

    pub(super) fn decode(mut fields: Fields<'_>) -> Option<Self> {
        let flags = fields.u8()?;
        let greeting = Self {
            key_required: flags & 1 != 0,
            takes_blocks: flags & 2 != 0,
            max_lanes: fields.u16()?,
            nonce: fields.array()?,
            key: PublicKey(fields.array()?),
        };
        (flags <= 3 && fields.0.is_empty()).then_some(greeting)
    }
}

impl Hello {
    /// The body without its proof, which is appended to it.
    pub(super) fn encode(&self, speaker: &Speaker) -> Vec<u8> {
        let mut out = Vec::new();
        speaker.encode(&mut out);
        out.push(u8::from(self.resume) | u8::from(self.in_blocks) << 1);
        out.extend_from_slice(&self.id.0);
        out.extend_from_slice(&self.lane.0.to_be_bytes());
        out.push(match self.kind {
            LaneKind::Ssm => KIND_SSM,
            LaneKind::Tcp => KIND_TCP,
        });
        let interval = u32::try_from(self.ping_interval.as_millis()).unwrap_or(u32::MAX);
        out.extend_from_slice(&interval.to_be_bytes());
        out.extend_from_slice(&self.received.to_be_bytes());
        out.extend_from_slice(&self.nonce);
        out.extend_from_slice(&self.key.0);
        let live_lanes = &self.live_lanes[..self.live_lanes.len().min(MAX_LIVE_LANES)];
        out.push(live_lanes.len() as u8);
        live_lanes.iter().for_each(|lane| out.extend_from_slice(&lane.0.to_be_bytes()));
        out
    }

    /// Who says hello, and the rest of a body without its proof.
    pub(super) fn speaker(body: &[u8]) -> Option<(Speaker, Fields<'_>)> {
        let mut fields = Fields(body);
        Speaker::decode(&mut fields).map(|speaker| (speaker, fields))
    }

    pub(super) fn decode(mut fields: Fields<'_>) -> Option<Self> {
        let flags = fields.u8()?;
        let hello = Self {
            resume: flags & 1 != 0,
            in_blocks: flags & 2 != 0,
            id: TrunkId(fields.array()?),
            lane: LaneId(fields.u64()?),
            kind: match fields.u8()? {
                KIND_SSM => LaneKind::Ssm,
                KIND_TCP => LaneKind::Tcp,
                _ => return None,
            },
            ping_interval: Duration::from_millis(fields.u32()?.into()),
            received: fields.u64()?,
            nonce: fields.array()?,
            key: PublicKey(fields.array()?),
            live_lanes: live_lanes(&mut fields)?,
        };
        (flags <= 3 && fields.0.is_empty()).then_some(hello)
    }
}

fn live_lanes(fields: &mut Fields<'_>) -> Option<Vec<LaneId>> {
    let count = usize::from(fields.u8()?);
    (count <= MAX_LIVE_LANES).then_some(())?;
    (0..count).map(|_| fields.u64().map(LaneId)).collect()
}

/// Splits the proof off the end of a body.
pub(super) fn split_proof(body: &[u8]) -> Option<(&[u8], &[u8; PROOF])> {
    body.split_last_chunk()
}

impl DenyReason {
    pub(super) const fn code(self) -> u8 {
        match self {
            Self::Version => 1,
            Self::Proof => 2,
            Self::UnknownTrunk => 3,
            Self::TooManyLanes => 4,
            Self::TooManyTrunks => 5,
            Self::Policy => 6,
            Self::Malformed => 7,
            Self::Other(code) => code,
        }
    }

    pub(super) const fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Version,
            2 => Self::Proof,
            3 => Self::UnknownTrunk,
            4 => Self::TooManyLanes,
            5 => Self::TooManyTrunks,
            6 => Self::Policy,
            7 => Self::Malformed,
            other => Self::Other(other),
        }
    }
}

const KIND_SSM: u8 = 1;
const KIND_TCP: u8 = 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn greeting_of_the_doc_decodes() {
        let speaker = Speaker { protocol: 1, version: "0.1.0".into() };
        let greeting = Greeting {
            key_required: true,
            takes_blocks: true,
            max_lanes: 8,
            nonce: [0xaa; 32],
            key: PublicKey([0xbb; 32]),
        };
        let mut wire = b"SSMP\x00\x01\x050.1.0\x03\x00\x08".to_vec();
        wire.extend([0xaa; 32]);
        wire.extend([0xbb; 32]);

        assert_eq!(greeting.encode(&speaker), wire);
        let (found, fields) = Greeting::speaker(&wire).unwrap();
        assert_eq!(found, speaker);
        assert_eq!(Greeting::decode(fields), Some(greeting));
    }

    #[test]
    fn hello_of_the_doc_decodes() {
        let speaker = Speaker { protocol: 1, version: "0.1.0".into() };
        let mut wire = b"\x00\x01\x050.1.0\x02".to_vec();
        wire.extend([0x11; 16]);
        wire.extend(b"\0\0\0\0\0\0\0\x09\x01\x00\x00\x3a\x98\0\0\0\0\0\0\x01\x00");
        wire.extend([0x22; 32]);
        wire.extend([0x33; 32]);
        wire.extend(b"\x01\0\0\0\0\0\0\0\x08");

        assert_eq!(hello().encode(&speaker), wire);
        let (found, fields) = Hello::speaker(&wire).unwrap();
        assert_eq!(found, speaker);
        assert_eq!(Hello::decode(fields), Some(hello()));
        for cut in 0..wire.len() {
            let whole = Hello::speaker(&wire[..cut]).and_then(|(_, fields)| Hello::decode(fields));
            assert_eq!(whole, None, "{cut}");
        }
    }

    #[test]
    fn bounds_hold() {
        let mut long = hello();
        long.live_lanes = (0..100).map(LaneId).collect();
        let speaker = Speaker { protocol: 1, version: "v".repeat(100) };
        let wire = long.encode(&speaker);
        assert!(wire.len() + PROOF <= crate::wire::trunk::segment::MAX_HANDSHAKE);
        let (found, fields) = Hello::speaker(&wire).unwrap();
        assert_eq!(found.version.len(), MAX_VERSION);
        assert_eq!(Hello::decode(fields).unwrap().live_lanes.len(), MAX_LIVE_LANES);
    }

    #[test]
    fn every_reason_keeps_its_code() {
        for code in 0..=u8::MAX {
            assert_eq!(DenyReason::from_code(code).code(), code);
        }
    }

    proptest! {
        #[test]
        fn random_bodies_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Greeting::speaker(&bytes).map(|(_, fields)| Greeting::decode(fields));
            let _ = Hello::speaker(&bytes).map(|(_, fields)| Hello::decode(fields));
            let _ = Hello::decode(Fields(&bytes));
        }
    }

    fn hello() -> Hello {
        Hello {
            resume: false,
            in_blocks: true,
            id: TrunkId([0x11; 16]),
            lane: LaneId(9),
            kind: LaneKind::Ssm,
            ping_interval: Duration::from_secs(15),
            received: 256,
            nonce: [0x22; 32],
            key: PublicKey([0x33; 32]),
            live_lanes: vec![LaneId(8)],
        }
    }
}
