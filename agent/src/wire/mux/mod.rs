//! Pure: streams over one ordered byte stream, in yamux's wire format.

use std::time::Instant;

/// Names a stream on the wire: odd from the client, even from the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u32);

/// The owner's own name for a stream, given at `open` or `accept`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u32);

/// Where the mux gets the bytes of its streams, and where it puts them.
pub trait Streams {
    /// The far side opened a stream; `None` resets it.
    fn accept(&mut self, id: StreamId) -> Option<Token>;
    /// Moves waiting bytes of the stream into `buf`; 0 means nothing now (call [`Mux::ready`] when there is).
    fn pull(&mut self, token: Token, buf: &mut [u8]) -> usize;
    /// Takes bytes that arrived; never more than was granted.
    fn push(&mut self, token: Token, bytes: &[u8]);
    /// The far side finished its direction.
    fn finished(&mut self, token: Token);
    /// The far side reset the stream, or broke its rules: the stream is gone from the mux.
    fn reset(&mut self, token: Token);
    /// Both directions are finished: the stream is gone from the mux.
    fn closed(&mut self, token: Token);
}

// Contract (signatures the engine is written against):
//
// impl Mux {
//     pub fn new(config: MuxConfig) -> Self;         // role, initial window, largest window, max streams, frame size...
//     pub fn open(&mut self, token: Token) -> Result<StreamId, MuxFull>;
//     pub fn ready(&mut self, id: StreamId);                  // `pull` would give bytes
//     pub fn finish(&mut self, id: StreamId);                 // FIN once `pull` has given 0
//     pub fn reset(&mut self, id: StreamId);                  // gone at once on our side
//     pub fn set_room(&mut self, id: StreamId, room: usize, now: Instant); // how many bytes `push` takes from now on
//     pub fn handle_bytes(&mut self, bytes: &[u8], streams: &mut impl Streams, now: Instant) -> Result<(), MuxFault>;
//     pub fn poll_frames(&mut self, out: &mut [u8], streams: &mut impl Streams) -> usize; // whole frames, as many as fit
//     pub fn wants_to_send(&self) -> bool;
//     pub fn len(&self) -> usize;
// }
#[allow(unused)]
type Unused = Instant;
