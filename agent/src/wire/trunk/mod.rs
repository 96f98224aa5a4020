//! Pure: one ordered byte stream each way over one or more lanes.

use std::time::{Duration, Instant};

/// Names a lane for the whole life of its trunk; chosen at random by the client for each lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(pub u64);

/// What a lane is made of; decides its pacing at both ends. Told in the hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneKind {
    Ssm,
    Tcp,
}

// Contract (signatures the engine is written against):
//
// pub struct TrunkConfig { pub role: Role (Client|Agent), pub credit: u64 (how many bytes beyond the placed ones we take), ... }
// impl Trunk {
//     pub fn new(config: TrunkConfig) -> Self;
//     pub fn attach(&mut self, lane: LaneId, kind: LaneKind, hello: [u8; 32] /* digest of the hello frame, its repeats are dropped */, now: Instant);
//     pub fn detach(&mut self, lane: LaneId, now: Instant);   // its unacknowledged segments go out again elsewhere
//     pub fn handle_bytes(&mut self, lane: LaneId, bytes: &[u8], now: Instant, place: &mut dyn FnMut(&[u8])) -> Result<(), LaneFault>;
//     pub fn poll_record(&mut self, lane: LaneId, room: usize, record: &mut Vec<u8>, now: Instant) -> bool;  // whole frames, at most `room` bytes in record
//     pub fn send_room(&self) -> usize;                       // bytes the mux may add now: credit, replay limit, lane windows; 0 without a lane
//     pub fn spare(&mut self) -> &mut [u8];                   // where the mux writes next: contiguous, at most send_room
//     pub fn commit(&mut self, written: usize);
//     pub fn poll_event(&mut self) -> Option<TrunkEvent>;     // LaneDead { lane, reason } (missed pings), Goodbye { reason }
//     pub fn goodbye(&mut self, reason);                      // the trunk ends; told on every lane
//     pub fn set_ping(&mut self, interval: Option<Duration>); // while flows are open
//     pub fn poll_timeout(&self) -> Option<Instant>;
//     pub fn handle_timeout(&mut self, now: Instant);
//     pub fn stats(&self) -> TrunkStats; pub fn lane_stats(&self) -> impl Iterator<Item = LaneStats>;
// }
#[allow(unused)]
type Unused = (Duration, Instant);
