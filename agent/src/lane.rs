//! A lane: one SSM session or TCP connection that carries a part of the trunk.

use std::io;
use std::task::{Context, Poll};

/// A byte carrier that keeps records whole on the way out and may cut bytes anywhere on the way in.
///
/// A lane that returned an error or the end is dropped by the engine and never used again.
pub trait LaneIo {
    /// Reads what has arrived. `Ok(0)` is the end of the lane.
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>>;
    /// Whether a record is taken now, and the most bytes it may have.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>>;
    /// Takes one record after `poll_ready` said so; leaves `record` empty, to be filled again.
    fn send(&mut self, record: &mut Vec<u8>) -> io::Result<()>;
    /// Pushes taken records to the system; `Ready` when none is left.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Ends the lane in an orderly way as far as that needs waiting for nothing (SSM: terminate flag).
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}
