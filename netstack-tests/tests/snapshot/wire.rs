//! Mux and trunk of both ends, and one lane without delay between them.

use std::time::{Duration, Instant};

use agent::wire::Role;
use agent::wire::mux::{Mux, MuxConfig, StreamId, Streams, Token};
use agent::wire::trunk::{LaneId, LaneKind, LaneProfile, Trunk, TrunkConfig};

use crate::table::Table;

pub(crate) fn count(table: &mut Table) {
    for (name, kind, record) in [("TCP", LaneKind::Tcp, 128 << 10), ("SSM", LaneKind::Ssm, 4 << 10)] {
        for streams in [1, 16] {
            for (way, side) in [("up", CLIENT), ("down", AGENT)] {
                let mut world = World::new(kind, record);
                for _ in 0..streams {
                    let each = (8 << 20) / streams;
                    world.open(if side == CLIENT { [each, 0] } else { [0, each] });
                }
                world.run();
                world.record(table, &format!("8 MiB {way} over {name}, {streams} streams"));
            }
        }
    }
    short(table);
}

/// Conversations of a byte each way.
pub(crate) fn short(table: &mut Table) {
    let mut world = World::new(LaneKind::Tcp, 128 << 10);
    for _ in 0..1_000 {
        world.open([1, 1]);
        world.run();
    }
    world.record(table, "1,000 short streams over TCP");
}

struct World {
    now: Instant,
    ends: [End; 2],
    /// Longest record.
    most: usize,
    /// Bytes on the lane, by the end that sent them.
    pipes: [Vec<u8>; 2],
}

struct End {
    mux: Mux,
    trunk: Trunk,
    streams: Ends,
    records: u64,
    bytes: u64,
}

/// The local ends of one side: each sends so many bytes, finishes, and takes what arrives at once.
#[derive(Default)]
struct Ends {
    /// By token: the stream, bytes to send.
    streams: Vec<(Option<StreamId>, usize)>,
    touched: Vec<Token>,
    /// What the next stream of the peer is answered.
    answers: Vec<usize>,
    pulls: u64,
    /// Pieces in which bytes arrived.
    pieces: u64,
}

impl World {
    fn new(kind: LaneKind, most: usize) -> Self {
        let now = Instant::now();
        let end = |role| {
            let profile = LaneProfile::of(kind, role);
            let mut trunk = Trunk::new(TrunkConfig::new(role, 1));
            trunk.attach(LANE, kind, [0; 32], now);
            trunk.peer_received(LANE, 0).expect("nothing was sent");
            let mux = Mux::new(MuxConfig { max_frame: profile.frame, ..MuxConfig::new(role) });
            End { mux, trunk, streams: Ends::default(), records: 0, bytes: 0 }
        };
        Self { now, ends: [end(Role::Client), end(Role::Agent)], most, pipes: [Vec::new(), Vec::new()] }
    }

    /// A stream on which client and agent send so many bytes.
    fn open(&mut self, [up, down]: [usize; 2]) {
        let End { mux, streams, .. } = &mut self.ends[CLIENT];
        let token = streams.add(up);
        let id = mux.open(token).expect("ids and room suffice");
        streams.streams[token.0 as usize].0 = Some(id);
        streams.begin(mux, token, self.now);
        self.ends[AGENT].streams.answers.insert(0, down);
    }

    fn run(&mut self) {
        let limit = self.now + Duration::from_secs(60);
        while self.ends.iter().any(|end| !end.mux.is_empty()) {
            assert!(self.now < limit, "the wire stands still");
            while [CLIENT, AGENT].map(|side| self.turn(side)).contains(&true) {}
            self.now += Duration::from_millis(1);
            for end in &mut self.ends {
                end.trunk.handle_timeout(self.now);
            }
        }
    }

    /// One turn of one end, in the engine's order; false when nothing moved.
    fn turn(&mut self, side: usize) -> bool {
        let now = self.now;
        let arrived = std::mem::take(&mut self.pipes[1 - side]);
        let End { mux, trunk, streams, records, bytes } = &mut self.ends[side];
        let mut place =
            |bytes: &[u8]| mux.handle_bytes(bytes, streams, now).expect("the peer keeps the rules");
        trunk.handle_bytes(LANE, &arrived, now, &mut place).expect("the peer keeps the rules");
        streams.settle(mux, now);
        let mut moved = !arrived.is_empty();
        while self.pipes[side].len() < PIPE {
            while trunk.unsent() < self.most && mux.wants_to_send() {
                let written = mux.poll_frames(trunk.spare(), streams);
                trunk.commit(written);
                if written == 0 {
                    break;
                }
            }
            let mut record = Vec::new();
            if !trunk.poll_record(LANE, self.most, &mut record, now) {
                break;
            }
            *records += 1;
            *bytes += record.len() as u64;
            self.pipes[side].extend_from_slice(&record);
            moved = true;
        }
        moved
    }

    fn record(&self, table: &mut Table, scenario: &str) {
        for (name, end) in ["client", "agent"].into_iter().zip(&self.ends) {
            table.add(
                &format!("{scenario}, {name}"),
                &[
                    ("records", end.records),
                    ("bytes on the lane", end.bytes),
                    ("pulls", end.streams.pulls),
                    ("pieces", end.streams.pieces),
                ],
            );
        }
    }
}

impl Ends {
    fn add(&mut self, send: usize) -> Token {
        self.streams.push((None, send));
        Token(self.streams.len() as u32 - 1)
    }

    fn begin(&self, mux: &mut Mux, token: Token, now: Instant) {
        let Some(id) = self.streams[token.0 as usize].0 else { return };
        mux.set_room(id, ROOM, now);
        mux.ready(id);
        mux.finish(id);
    }

    fn settle(&mut self, mux: &mut Mux, now: Instant) {
        for token in std::mem::take(&mut self.touched) {
            self.begin(mux, token, now);
        }
    }
}

impl Streams for Ends {
    fn accept(&mut self, id: StreamId) -> Option<Token> {
        let send = self.answers.pop()?;
        let token = self.add(send);
        self.streams[token.0 as usize].0 = Some(id);
        self.touched.push(token);
        Some(token)
    }

    fn pull(&mut self, token: Token, buf: &mut [u8]) -> usize {
        let left = &mut self.streams[token.0 as usize].1;
        let count = buf.len().min(*left);
        *left -= count;
        self.pulls += 1;
        count
    }

    fn push(&mut self, token: Token, _: &[u8]) {
        self.pieces += 1;
        self.touched.push(token);
    }

    fn finished(&mut self, _: Token) {}

    fn reset(&mut self, token: Token) {
        panic!("{token:?} was reset");
    }

    fn closed(&mut self, token: Token) {
        self.streams[token.0 as usize].0 = None;
    }
}

const CLIENT: usize = 0;
const AGENT: usize = 1;
const LANE: LaneId = LaneId(1);
/// As the netstack's rings have.
const ROOM: usize = 1 << 20;
/// Bytes on the lane each way.
const PIPE: usize = 1 << 20;
