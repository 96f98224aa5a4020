//! Pure: a trunk whose peer says anything on its lanes, and whose owner does anything.
//!
//! Rules: every byte comes in its place and none beyond the credit, records are whole frames that fit, what is sent
//! again is the same, and a faulty frame costs its lane only.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use agent::wire::Role;
use agent::wire::trunk::segment::{Frame, MAX_SEGMENT, Parser, Type};
use agent::wire::trunk::{
    GoodbyeReason, INITIAL_CREDIT, LaneFault, LaneId, LaneKind, Trunk, TrunkConfig, TrunkEvent,
};

use super::{Bytes, Sights, lane_frame, pattern, variant};

pub fn run(input: &[u8], start: Instant) -> Sights {
    let mut bytes = Bytes(input);
    let mut world = World::new(bytes.byte(), start);
    world.attach(0, LaneKind::Ssm);
    while !bytes.0.is_empty() {
        world.step(&mut bytes);
        world.check();
    }
    world.wind_up()
}

struct World {
    now: Instant,
    config: TrunkConfig,
    trunk: Trunk,
    lanes: HashMap<LaneId, Peer>,
    placed: u64,
    written: u64,
    /// The highest offsets that the peer, and that we were allowed.
    told: u64,
    credit: u64,
    /// No segment can carry other bytes than those of the pattern.
    honest: bool,
    sights: Sights,
}

/// The far end of a lane.
#[derive(Default)]
struct Peer {
    /// The end of what was said, not yet given to the trunk.
    cut: Vec<u8>,
    sequence: u32,
    /// The last segment of the trunk.
    heard: u32,
    parser: Parser,
}

impl World {
    fn new(settings: u8, now: Instant) -> Self {
        let role = if settings & 1 == 0 { Role::Client } else { Role::Agent };
        let pick = |shift: u8, of: [usize; 4]| of[usize::from(settings >> shift & 3)];
        let config = TrunkConfig {
            credit: pick(1, [300 << 10, 16 << 20, 64 << 10, 1]) as u64,
            replay: pick(3, [256 << 10, 16 << 20, 64 << 10, 2000]),
            unsent: pick(5, [512 << 10, 4096, 20_000, 1]),
            ..TrunkConfig::new(role, 0)
        };
        Self {
            now,
            trunk: Trunk::new(config.clone()),
            config,
            lanes: HashMap::new(),
            placed: 0,
            written: 0,
            told: INITIAL_CREDIT,
            credit: INITIAL_CREDIT,
            honest: true,
            sights: Sights::new(),
        }
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.byte() % 12 {
            0 => self.segment(bytes.byte(), 0, 1, usize::from(bytes.byte()) * 5 + 1, 0),
            1 => self.any_segment(bytes),
            2 => self.ack(bytes.byte(), bytes),
            3 => self.any_frame(bytes.byte(), bytes),
            4 => {
                self.honest = false;
                let (lane, length) = (bytes.byte(), usize::from(bytes.byte()));
                self.say(lane, bytes.take(length), 0);
            }
            5 => self.attach(bytes.byte(), bytes.pick(&[LaneKind::Ssm, LaneKind::Tcp])),
            6 => self.trunk.detach(name(bytes.byte()), self.now),
            7 => self.write(usize::from(bytes.short())),
            8 => self.record(bytes.byte(), bytes.pick(&[8192, 65_536, 70, 500, 0])),
            9 => self.wait(bytes),
            10 => self.events(),
            _ => self.ask(bytes),
        }
    }

    fn attach(&mut self, lane: u8, kind: LaneKind) {
        self.trunk.attach(name(lane), kind, [0; 32], self.now);
        self.lanes.insert(name(lane), Peer::default());
    }

    fn any_segment(&mut self, bytes: &mut Bytes<'_>) {
        let (lane, offset) = (bytes.byte(), bytes.near());
        let sequence = bytes.pick(&[1, 1, 1, 1, 0, 2, 0x8000_0000]);
        let length = 1 + usize::from(bytes.short()) % MAX_SEGMENT;
        self.segment(lane, offset.saturating_mul(7), sequence, length, bytes.byte());
    }

    /// Says a segment of the pattern, `offset` beyond the place of the next byte.
    fn segment(&mut self, lane: u8, offset: i64, sequence: u32, length: usize, keep: u8) {
        let Some(peer) = self.lanes.get_mut(&name(lane)) else { return };
        let sequence = peer.sequence.wrapping_add(sequence);
        peer.sequence = sequence;
        let offset = self.placed.saturating_add_signed(offset);
        let bytes: Vec<u8> = (0..length as u64).map(|at| pattern(offset.wrapping_add(at) as u32)).collect();
        let mut frame = Vec::new();
        Frame::Segment { offset, sequence, bytes: &bytes }.encode(&mut frame);
        self.say(lane, &frame, keep);
    }

    fn ack(&mut self, lane: u8, bytes: &mut Bytes<'_>) {
        let Some(peer) = self.lanes.get(&name(lane)) else { return };
        let stats = self.trunk.stats();
        let sequence = peer.heard.wrapping_add(bytes.near().min(0) as u32);
        let cum = stats.sent.saturating_add_signed(bytes.near().min(0).saturating_mul(100));
        let credit = cum.saturating_add_signed(bytes.near().saturating_mul(50_000));
        let (arrived, wanted) = (bytes.long(), bytes.byte());
        self.credit = self.credit.max(credit);
        let mut frame = Vec::new();
        Frame::Ack { cum, credit, sequence, arrived, wanted }.encode(&mut frame);
        self.say(lane, &frame, bytes.byte());
    }

    /// Any type, any body, the right checksum.
    fn any_frame(&mut self, lane: u8, bytes: &mut Bytes<'_>) {
        let kind = bytes.pick(&[3, 4, 5, 6, 0xf1, 0xf0, 0xf2, 0xf3, 1, 2, 0, 7]);
        let length = match kind {
            3 | 4 => 8,
            6 => 0,
            _ => usize::from(bytes.byte()),
        };
        let body = bytes.take(length);
        self.honest &= kind != Type::Segment as u8;
        if kind == Type::Ack as u8 {
            self.credit = u64::MAX;
        }
        self.say(lane, &lane_frame(kind, body), bytes.byte());
    }

    /// Gives the trunk what was cut off before, then this but for the last `keep` bytes.
    fn say(&mut self, lane: u8, frame: &[u8], keep: u8) {
        let lane = name(lane);
        let Some(peer) = self.lanes.get_mut(&lane) else { return };
        peer.cut.extend_from_slice(frame);
        let rest = peer.cut.split_off(peer.cut.len().saturating_sub(usize::from(keep)));
        let whole = std::mem::replace(&mut peer.cut, rest);
        let (placed, honest) = (&mut self.placed, self.honest);
        let result = self.trunk.handle_bytes(lane, &whole, self.now, &mut |bytes| {
            for byte in bytes {
                assert!(!honest || *byte == pattern(*placed as u32), "byte {placed} of the stream");
                *placed += 1;
            }
        });
        let Err(fault) = result else { return };
        self.sights.insert(variant(&fault));
        if !matches!(fault, LaneFault::UnknownLane) {
            let again = self.trunk.handle_bytes(lane, frame, self.now, &mut |_| panic!("from a closed lane"));
            assert_eq!(again, Err(LaneFault::Closed));
        }
    }

    fn write(&mut self, most: usize) {
        let room = self.trunk.send_room();
        let spare = self.trunk.spare();
        assert!(spare.len() <= room && (room == 0) == spare.is_empty());
        let length = spare.len().min(most);
        for (byte, at) in spare[..length].iter_mut().zip(self.written..) {
            *byte = pattern(at as u32);
        }
        self.trunk.commit(length);
        self.written += length as u64;
    }

    /// Takes a record, and looks at it as a peer would.
    fn record(&mut self, lane: u8, room: usize) {
        let lane = name(lane);
        let mut record = Vec::new();
        let some = self.trunk.poll_record(lane, room, &mut record, self.now);
        assert!(some != record.is_empty() && record.len() <= room);
        if !some {
            return;
        }
        let peer = self.lanes.get_mut(&lane).expect("only of lanes that were attached");
        let mut input = &record[..];
        while let Some(frame) = peer.parser.next_frame(&mut input).expect("frames as they should be") {
            self.sights.insert(format!("sent {}", variant(&frame)));
            match frame {
                Frame::Segment { offset, sequence, bytes } => {
                    peer.heard = peer.heard.wrapping_add(1);
                    assert_eq!(sequence, peer.heard);
                    let end = offset + bytes.len() as u64;
                    assert!(end <= self.written.min(self.credit), "{end} beyond the credit");
                    for (byte, at) in bytes.iter().zip(offset..) {
                        assert_eq!(*byte, pattern(at as u32), "byte {at} to the peer");
                    }
                }
                Frame::Ack { cum, credit, .. } => {
                    assert!(cum == self.placed && credit >= self.told);
                    self.told = credit;
                }
                Frame::Ping { .. } | Frame::Pong { .. } | Frame::Goodbye { .. } | Frame::Retire => {}
                Frame::Greeting(_) | Frame::Hello(_) | Frame::Welcome(_) | Frame::Deny { .. } => {
                    panic!("a trunk does not shake hands")
                }
            }
        }
        assert_eq!(peer.parser.waiting(), 0, "whole frames only");
    }

    fn wait(&mut self, bytes: &mut Bytes<'_>) {
        let millis =
            if bytes.byte() & 1 == 0 { u64::from(bytes.byte()) } else { u64::from(bytes.short()) * 4 };
        self.now += Duration::from_millis(millis);
        if self.trunk.poll_timeout().is_some_and(|at| at <= self.now) {
            self.trunk.handle_timeout(self.now);
        }
    }

    fn events(&mut self) {
        while let Some(event) = self.trunk.poll_event() {
            self.sights.insert(variant(&event));
            match event {
                TrunkEvent::LaneDead { lane, .. } | TrunkEvent::LaneDrained { lane } => {
                    self.trunk.detach(lane, self.now);
                }
                TrunkEvent::LaneStalled { .. } | TrunkEvent::Goodbye { .. } => {}
            }
        }
    }

    fn ask(&mut self, bytes: &mut Bytes<'_>) {
        let lane = name(bytes.byte());
        match bytes.byte() % 6 {
            0 => self.trunk.retire(lane),
            1 => self.trunk.set_ready(lane, bytes.byte() & 1 == 0),
            2 => self.trunk.set_ping(Some(Duration::from_millis(100 + u64::from(bytes.short())))),
            3 => self.trunk.set_ping(None),
            4 => {
                let cum = self.trunk.stats().sent.saturating_add_signed(bytes.near().saturating_mul(100));
                _ = self.trunk.peer_received(lane, cum);
            }
            _ if bytes.byte() == 0xff => self.trunk.goodbye(GoodbyeReason::Done),
            _ => {}
        }
    }

    fn check(&self) {
        let stats = self.trunk.stats();
        assert_eq!(stats.received, self.placed);
        assert!(stats.held as u64 <= self.told - self.placed, "{} held", stats.held);
        assert!(stats.unacknowledged <= self.config.replay, "{} kept", stats.unacknowledged);
        assert!(stats.sent <= self.written);
        for lane in self.trunk.lane_stats() {
            assert!(lane.in_flight as u64 <= self.written);
        }
        _ = (self.trunk.poll_timeout(), self.trunk.longest_frame(), self.trunk.usual_rtt());
    }

    /// A new lane with a peer that behaves carries what has its place.
    fn wind_up(mut self) -> Sights {
        self.events();
        self.attach(0, LaneKind::Tcp);
        self.record(0, 8192);
        let (before, length) = (self.placed, (self.told - self.placed).min(5000));
        if self.honest && length > 0 {
            self.segment(0, 0, 1, length as usize, 0);
            assert!(self.placed >= before + length, "{} of {length} bytes", self.placed - before);
        }
        self.check();
        self.sights
    }
}

/// One of a few lanes.
fn name(lane: u8) -> LaneId {
    LaneId(u64::from(lane % 4))
}

pub(super) const STEPS: &[u8] = &[0, 0, 0, 1, 1, 2, 2, 2, 3, 4, 5, 6, 7, 7, 7, 8, 8, 8, 8, 9, 9, 9, 10, 11];
