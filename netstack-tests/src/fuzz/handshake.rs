//! Pure: a client and an agent that shake hands, with someone between them who changes what they say.
//!
//! Rules: an agent admits only a client with just the wishes that it has, and a client that is welcomed agrees with
//! its agent in everything.

use std::time::{Duration, Instant};

use agent::wire::hello::{
    Admitted, AgentHandshake, AgentKey, AgentParams, ClientHandshake, ClientParams, HelloError, Psk, Ticket,
    Welcomed,
};
use agent::wire::trunk::segment::HEADER;
use agent::wire::trunk::{LaneId, LaneKind};

use super::{Bytes, Sights, lane_frame, variant};

pub fn run(input: &[u8], _start: Instant) -> Sights {
    let mut bytes = Bytes(input);
    let settings = bytes.byte();
    let stored = (settings & RESUME != 0).then(|| {
        let same_key = (settings & AGENT_KEY) | ((settings & AGENT_KEY) / AGENT_KEY * CLIENT_KEY);
        let (welcomed, admitted) = meet(same_key, None, &mut Bytes(&[]));
        (welcomed.expect("nobody is between them").ticket, admitted.expect("likewise").ticket)
    });
    let (welcomed, admitted) = meet(settings, stored, &mut bytes);
    Sights::from([outcome("client", &welcomed), outcome("agent", &admitted)])
}

type Met = (Result<Welcomed, Option<HelloError>>, Result<Admitted, Option<HelloError>>);

/// One handshake; `None` for an error is a side that still waits.
fn meet(settings: u8, stored: Option<(Ticket, Ticket)>, edits: &mut Bytes<'_>) -> Met {
    let (ticket, known) = stored.unzip();
    let mut client = ClientHandshake::new(client(settings, ticket));
    let mut agent = AgentHandshake::new(agent(settings));
    let mut end = || -> Met {
        let greeting = agent.poll_transmit().expect("an agent greets");
        if let Err(error) = give(&greeting, edits, |bytes| client.handle_bytes(bytes)) {
            return (Err(Some(error)), Err(None));
        }
        let Some(hello) = client.poll_transmit() else { return (Err(None), Err(None)) };
        let secret =
            |id: &_| known.as_ref().filter(|known| known.id == *id).map(|known| known.secret().clone());
        let admitted = match give(&hello, edits, |bytes| agent.handle_bytes(bytes, &secret)) {
            Ok(None) => return (Err(None), Err(None)),
            Ok(Some(admitted)) => admitted,
            Err(error) => {
                let denial = agent.poll_transmit().unwrap_or_default();
                let client = give(&denial, edits, |bytes| client.handle_bytes(bytes));
                return (Err(client.map_or_else(Some, |_| None)), Err(Some(error)));
            }
        };
        let welcome = agent.poll_transmit().expect("who is admitted is welcomed");
        let welcomed = match give(&welcome, edits, |bytes| client.handle_bytes(bytes)) {
            Ok(welcomed) => welcomed.ok_or(None),
            Err(error) => Err(Some(error)),
        };
        (welcomed, Ok(admitted))
    };
    let met = end();
    check(settings, &met);
    met
}

fn check(settings: u8, met: &Met) {
    if let (_, Ok(admitted)) = met {
        assert_eq!((admitted.lane, admitted.kind, admitted.received), (LANE, LaneKind::Tcp, RECEIVED));
        assert_eq!((admitted.ping_interval, &admitted.live_lanes[..]), (PING, &[LaneId(3)][..]));
        assert_eq!(admitted.in_blocks, settings & WANTS_BLOCKS != 0 && settings & TAKES_BLOCKS != 0);
        assert_eq!(admitted.resumed, settings & RESUME != 0);
        assert_eq!(settings & CLIENT_KEY != 0, settings & AGENT_KEY != 0);
    }
    if let (Ok(welcomed), admitted) = met {
        let admitted = admitted.as_ref().expect("who was not admitted is not welcomed");
        assert_eq!((welcomed.ticket.id, welcomed.hello), (admitted.ticket.id, admitted.hello));
        assert_eq!((welcomed.resumed, welcomed.in_blocks), (admitted.resumed, admitted.in_blocks));
        assert_eq!(welcomed.agent_key, AgentKey::from_bytes([1; 32]).public());
        assert_eq!(welcomed.max_lanes, 8);
    }
}

/// Gives a record, changed as the input says, in pieces as the input says.
fn give<T>(
    record: &[u8],
    edits: &mut Bytes<'_>,
    mut take: impl FnMut(&[u8]) -> Result<Option<T>, HelloError>,
) -> Result<Option<T>, HelloError> {
    let mut wire = record.to_vec();
    for _ in 0..edits.byte() % 4 {
        edit(&mut wire, edits);
    }
    let piece = match edits.byte() {
        0 => wire.len().max(1),
        piece => usize::from(piece),
    };
    for piece in wire.chunks(piece) {
        if let Some(done) = take(piece)? {
            return Ok(Some(done));
        }
    }
    Ok(None)
}

fn edit(wire: &mut Vec<u8>, edits: &mut Bytes<'_>) {
    let kind = wire.first().copied().unwrap_or_default();
    let body = wire.get(HEADER..).unwrap_or_default().to_vec();
    match edits.byte() % 7 {
        0 => {
            let mut body = body;
            flip(&mut body, edits);
            *wire = lane_frame(kind, &body);
        }
        1 => *wire = lane_frame(kind, &body[..usize::from(edits.byte()).min(body.len())]),
        2 => {
            let more = usize::from(edits.byte());
            *wire = lane_frame(kind, &[&body, edits.take(more)].concat());
        }
        3 => {
            let (kind, length) = (edits.pick(&[0xf0, 0xf1, 0xf2, 0xf3, 1, 2, 5]), usize::from(edits.short()));
            let frame = lane_frame(kind, edits.take(length));
            *wire = if edits.byte() & 1 == 0 { frame } else { [frame, wire.clone()].concat() };
        }
        4 => {
            let length = usize::from(edits.byte());
            *wire = [edits.take(length), wire].concat();
        }
        5 => *wire = wire.repeat(2),
        _ => flip(wire, edits),
    }
}

/// Changes a byte somewhere.
fn flip(bytes: &mut [u8], edits: &mut Bytes<'_>) {
    // Reversed, small numbers fall all over.
    let at = usize::from(edits.byte().reverse_bits()) * bytes.len() / 256;
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= edits.byte();
    }
}

fn client(settings: u8, ticket: Option<Ticket>) -> ClientParams {
    ClientParams {
        ticket,
        lane: LANE,
        kind: LaneKind::Tcp,
        psk: key(settings & CLIENT_KEY != 0),
        pinned: (settings & PINNED != 0).then(|| AgentKey::from_bytes([1; 32]).public()),
        ping_interval: PING,
        received: RECEIVED,
        live_lanes: vec![LaneId(3)],
        wants_blocks: settings & WANTS_BLOCKS != 0,
        entropy: [7; 64],
        version: "0.3.0".to_owned(),
    }
}

fn agent(settings: u8) -> AgentParams {
    AgentParams {
        key: AgentKey::from_bytes([1; 32]),
        psk: key(settings & AGENT_KEY != 0),
        max_lanes: 8,
        takes_blocks: settings & TAKES_BLOCKS != 0,
        version: "0.4.0".to_owned(),
        nonce: [2; 32],
    }
}

fn key(has_one: bool) -> Option<Psk> {
    has_one.then(|| Psk::from_file_content(b"0123456789abcdef").expect("long enough"))
}

fn outcome<T>(side: &str, result: &Result<T, Option<HelloError>>) -> String {
    match result {
        Ok(_) => format!("{side} is content"),
        Err(None) => format!("{side} waits"),
        Err(Some(error)) => format!("{side} {}", variant(error)),
    }
}

const LANE: LaneId = LaneId(5);
const PING: Duration = Duration::from_secs(15);
const RECEIVED: u64 = 77;

const RESUME: u8 = 1;
const WANTS_BLOCKS: u8 = 2;
const TAKES_BLOCKS: u8 = 4;
const PINNED: u8 = 8;
const CLIENT_KEY: u8 = 16;
const AGENT_KEY: u8 = 32;

/// Not steps, but how many edits, and which.
pub(super) const STEPS: &[u8] = &[0, 0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6];
