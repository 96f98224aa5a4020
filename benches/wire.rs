//! Mux and trunk of both ends in memory, on one thread: what the wire costs without any system call.
//!
//!     cargo bench --bench wire -- [--json] [--check] [--rounds N] [--millis N]
//!
//! Seconds per gigabyte are of both ends together: frames made, checked, put in order, split into streams.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints its figures")]
#![allow(clippy::disallowed_methods, reason = "it measures")]

mod report;

use std::time::Instant;

use agent::wire::mux::{Mux, MuxConfig, StreamId, Streams, Token};
use agent::wire::trunk::{LaneId, LaneKind, LaneProfile, Role, Trunk, TrunkConfig};
use report::Report;
use report::clock::cpu;

fn main() {
    let mut report = Report::from_args();
    for (name, kind, record) in [("TCP", LaneKind::Tcp, TCP_RECORD), ("SSM", LaneKind::Ssm, SSM_RECORD)] {
        for streams in [1, 8, 64] {
            for (direction, side) in [("up", CLIENT), ("down", AGENT)] {
                let seconds = report.median(|| bulk(kind, record, streams, side));
                let what = format!("{direction} over one {name} lane, {streams} streams");
                report.row(what.clone(), seconds * 1e9 / BULK as f64, "s/GB");
                report.row(what, BULK as f64 * 8e-9 / seconds, "Gbit/s");
            }
        }
    }
    let mut world = World::new(LaneKind::Tcp, TCP_RECORD);
    let seconds = report.seconds_per_call(|| world.exchange());
    report.row("a stream opened, a byte each way, closed", seconds * 1e9, "ns");
    recovery(&mut report);
    report.end();
}

/// CPU seconds to carry `BULK` bytes from the end `side`, spread over so many streams.
fn bulk(kind: LaneKind, record: usize, streams: usize, side: usize) -> f64 {
    let mut world = World::new(kind, record);
    let each = BULK / streams;
    let began = cpu();
    for _ in 0..streams {
        world.open(each * usize::from(side == CLIENT), each * usize::from(side == AGENT));
    }
    while world.open_streams() > 0 {
        assert!(world.step(), "the wire stands still");
    }
    let seconds = (cpu() - began).as_secs_f64();
    assert_eq!(world.ends[1 - side].streams.received, each * streams);
    seconds
}

/// A lane dies with all that was under way on it.
fn recovery(report: &mut Report) {
    let mut first_byte = Vec::new();
    let mut lost = 0;
    let all = report.median(|| {
        let mut world = World::new(LaneKind::Tcp, TCP_RECORD);
        world.open(BULK, 0);
        world.run_until_received(16 << 20);
        // Records that nobody delivers any more.
        while world.fill(CLIENT) | world.transmit(CLIENT) {}
        lost = world.ends[CLIENT].trunk.stats().unacknowledged;
        let placed = world.ends[AGENT].streams.received;
        let began = cpu();
        world.replace_lane();
        world.run_until_received(placed + 1);
        first_byte.push((cpu() - began).as_secs_f64());
        world.run_until_received(placed + lost);
        (cpu() - began).as_secs_f64()
    });
    let size = format!("{:.1} MB under way", lost as f64 / 1e6);
    first_byte.sort_by(f64::total_cmp);
    report.row(format!("lane lost, {size}: first byte"), first_byte[first_byte.len() / 2] * 1e6, "us");
    report.row(format!("lane lost, {size}: all delivered"), all * 1e6, "us");
}

/// Both ends, client first, and one lane between them.
struct World {
    ends: [End; 2],
    kind: LaneKind,
    lane: LaneId,
    /// Longest record.
    record: usize,
    /// Records on the lane, by the end that sent them.
    pipes: [Vec<u8>; 2],
}

struct End {
    mux: Mux,
    trunk: Trunk,
    streams: Ends,
}

impl World {
    fn new(kind: LaneKind, record: usize) -> Self {
        let end = |role| End {
            mux: Mux::new(MuxConfig { max_frame: LaneProfile::of(kind, role).frame, ..MuxConfig::new(role) }),
            trunk: Trunk::new(TrunkConfig::new(role, 1)),
            streams: Ends::default(),
        };
        let ends = [end(Role::Client), end(Role::Agent)];
        let mut world = Self { ends, kind, lane: LaneId(0), record, pipes: [Vec::new(), Vec::new()] };
        world.replace_lane();
        world
    }

    /// What was on the old lane is gone.
    fn replace_lane(&mut self) {
        let now = Instant::now();
        self.pipes.iter_mut().for_each(Vec::clear);
        let old = self.lane;
        self.lane = LaneId(old.0 + 1);
        let received = self.ends.each_ref().map(|end| end.trunk.received());
        for (side, end) in self.ends.iter_mut().enumerate() {
            end.trunk.detach(old, now);
            end.trunk.attach(self.lane, self.kind, [0; 32], now);
            end.trunk.peer_received(self.lane, received[1 - side]).expect("it is what was placed");
        }
    }

    /// A stream on which the client sends and the agent answers so many bytes.
    fn open(&mut self, up: usize, down: usize) {
        let End { mux, streams, .. } = &mut self.ends[CLIENT];
        let token = streams.insert(up);
        let id = mux.open(token).expect("ids and room suffice");
        streams.name(token, id);
        self.ends[AGENT].streams.answers.push_back(down);
    }

    fn open_streams(&self) -> usize {
        self.ends.iter().map(|end| end.mux.len()).sum()
    }

    /// A whole short conversation.
    fn exchange(&mut self) {
        self.open(1, 1);
        while self.open_streams() > 0 {
            assert!(self.step(), "the wire stands still");
        }
    }

    fn run_until_received(&mut self, bytes: usize) {
        while self.ends[AGENT].streams.received < bytes {
            assert!(self.step(), "the wire stands still");
        }
    }

    /// One turn of each end; false when nothing moved.
    fn step(&mut self) -> bool {
        let mut moved = false;
        for side in [CLIENT, AGENT] {
            moved |= self.deliver(side);
            moved |= self.fill(side);
            moved |= self.transmit(side);
        }
        let now = Instant::now();
        for end in &mut self.ends {
            end.trunk.handle_timeout(now);
        }
        moved || self.ends.iter().any(|end| end.trunk.poll_timeout().is_some())
    }

    /// Gives the end what has arrived.
    fn deliver(&mut self, side: usize) -> bool {
        let now = Instant::now();
        let bytes = std::mem::take(&mut self.pipes[1 - side]);
        let End { mux, trunk, streams } = &mut self.ends[side];
        let mut place =
            |bytes: &[u8]| mux.handle_bytes(bytes, streams, now).expect("the peer keeps the rules");
        trunk.handle_bytes(self.lane, &bytes, now, &mut place).expect("the peer keeps the rules");
        streams.settle(mux, now);
        let moved = !bytes.is_empty();
        self.pipes[1 - side] = bytes;
        self.pipes[1 - side].clear();
        moved
    }

    /// Lets the mux write as far as the trunk takes it.
    fn fill(&mut self, side: usize) -> bool {
        let now = Instant::now();
        let End { mux, trunk, streams } = &mut self.ends[side];
        streams.settle(mux, now);
        let mut moved = false;
        while mux.wants_to_send() {
            let written = mux.poll_frames(trunk.spare(), streams);
            if written == 0 {
                break;
            }
            trunk.commit(written);
            moved = true;
        }
        moved
    }

    fn transmit(&mut self, side: usize) -> bool {
        let now = Instant::now();
        let (trunk, pipe) = (&mut self.ends[side].trunk, &mut self.pipes[side]);
        let mut moved = false;
        while pipe.len() < PIPE && trunk.poll_record(self.lane, self.record, pipe, now) {
            moved = true;
        }
        moved
    }
}

/// The local ends of one side: each sends its bytes, finishes, and drops what arrives at once.
#[derive(Default)]
struct Ends {
    slots: Vec<Option<Local>>,
    free: Vec<u32>,
    /// Streams to tell the mux of.
    touched: Vec<u32>,
    /// What the next accepted streams send.
    answers: std::collections::VecDeque<usize>,
    received: usize,
}

struct Local {
    id: Option<StreamId>,
    left: usize,
    begun: bool,
}

impl Ends {
    fn insert(&mut self, left: usize) -> Token {
        let slot = self.free.pop().unwrap_or(self.slots.len() as u32);
        if slot as usize == self.slots.len() {
            self.slots.push(None);
        }
        self.slots[slot as usize] = Some(Local { id: None, left, begun: false });
        Token(slot)
    }

    fn name(&mut self, token: Token, id: StreamId) {
        if let Some(Some(local)) = self.slots.get_mut(token.0 as usize) {
            local.id = Some(id);
            self.touched.push(token.0);
        }
    }

    fn settle(&mut self, mux: &mut Mux, now: Instant) {
        for slot in self.touched.drain(..) {
            let Some(Some(local)) = self.slots.get_mut(slot as usize) else { continue };
            let Some(id) = local.id else { continue };
            mux.set_room(id, ROOM, now);
            if !std::mem::replace(&mut local.begun, true) {
                mux.ready(id);
                mux.finish(id);
            }
        }
    }

    fn forget(&mut self, token: Token) {
        self.slots[token.0 as usize] = None;
        self.free.push(token.0);
    }
}

impl Streams for Ends {
    fn accept(&mut self, id: StreamId) -> Option<Token> {
        let answer = self.answers.pop_front()?;
        let token = self.insert(answer);
        self.name(token, id);
        Some(token)
    }

    fn pull(&mut self, token: Token, buf: &mut [u8]) -> usize {
        let Some(Some(local)) = self.slots.get_mut(token.0 as usize) else { return 0 };
        let count = local.left.min(buf.len());
        local.left -= count;
        // What a local end costs at least: one copy.
        buf[..count].fill(0x5a);
        count
    }

    fn push(&mut self, token: Token, bytes: &[u8]) {
        self.received += bytes.len();
        self.touched.push(token.0);
    }

    fn finished(&mut self, _: Token) {}

    fn reset(&mut self, token: Token) {
        panic!("stream {token:?} was reset");
    }

    fn closed(&mut self, token: Token) {
        self.forget(token);
    }
}

const CLIENT: usize = 0;
const AGENT: usize = 1;
/// Bytes of one bulk run.
const BULK: usize = 256 << 20;
/// Room of a local end, as the netstack's rings have.
const ROOM: usize = 1 << 20;
/// What a lane over TCP takes at once, and one over SSM.
const TCP_RECORD: usize = 128 << 10;
const SSM_RECORD: usize = 4 << 10;
/// Bytes on the lane each way.
const PIPE: usize = 1 << 20;
