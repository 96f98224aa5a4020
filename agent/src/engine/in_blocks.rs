//! Pure: flows whose bytes lie in blocks, between stream and local end.
//!
//! The mux is told room for bytes of the stream, of which it cannot know how many more they become. So room
//! is the local end's, but always enough for a block; what a block brings beyond the end's room is held, and
//! while something is held no other block is unpacked. A part of a block counts as consumed: were it to fill
//! the window, the rest could never come.

use std::time::Instant;

use super::flow::Flow;
use super::flows::{EARLY, Flows};
use super::squeeze::{Blocks, MOST_STORED, Press};
use crate::local_end::LocalEnds;
use crate::wire::blocks::{BLOCK, BlockFault};
use crate::wire::mux::Token;
use crate::wire::open::Kind;

impl Blocks {
    pub(super) fn pull(
        &mut self,
        buf: &mut [u8],
        press: &mut Press,
        read: impl FnMut(&mut [u8]) -> usize,
    ) -> usize {
        let pulled = self.out.pull(buf, press, &mut self.gain.work, read);
        self.gain.sent += pulled as u64;
        pulled
    }

    /// How many bytes of the stream are taken when the local end has this much room.
    pub(super) fn room(&self, end: usize, held: usize) -> usize {
        let unconsumed = if held == 0 { 0 } else { held + self.back.wire.len() };
        end.max(BLOCK).saturating_sub(unconsumed)
    }
}

impl Flow {
    /// Whether a finish now would cut a block.
    pub(super) fn is_cut(&self) -> bool {
        self.held.is_empty() && self.blocks.as_ref().is_some_and(|blocks| !blocks.back.wire.is_empty())
    }
}

impl<E: LocalEnds> Flows<E> {
    /// The flow is connected: from here on its bytes lie in blocks, if they do on this trunk. False when what
    /// came before is none, and the flow was reset for it.
    pub(super) fn begin_blocks(&mut self, token: Token, now: Instant) -> bool {
        if self.in_blocks != Some(true) {
            return true;
        }
        let Some(flow) = self.slot_mut(token) else { return false };
        if flow.open.as_ref().is_none_or(|open| open.kind != Kind::Tcp) {
            return true;
        }
        flow.blocks = Some(Box::default());
        let early = flow.held.take();
        let taken = early.is_empty() || self.take_blocks(token, &early, now).is_ok();
        if !taken {
            self.streams(now).broken(token);
        }
        taken
    }

    /// Unpacks what waited for room. False when the flow was reset.
    pub(super) fn go_on(&mut self, token: Token, now: Instant) -> bool {
        let taken = self.take_blocks(token, &[], now).is_ok();
        let cut = self.slot(token).is_some_and(|flow| flow.finish_due && flow.is_cut());
        if taken && !cut {
            return true;
        }
        self.streams(now).broken(token);
        false
    }

    /// Brings the bytes of blocks to the local end, as far as blocks are whole and the end has room.
    pub(super) fn take_blocks(&mut self, token: Token, bytes: &[u8], now: Instant) -> Result<(), BlockFault> {
        let Self { slots, ends, ledger, press, .. } = self;
        let Some(flow) = slots.get_mut(token.0 as usize).and_then(Option::as_mut) else { return Ok(()) };
        let (Some(end), Some(blocks)) = (flow.end, &mut flow.blocks) else { return Ok(()) };
        let (held, received) = (&mut flow.held, &mut flow.received);
        blocks.gain.received += bytes.len() as u64;
        let mut wire = std::mem::take(&mut blocks.back.wire);
        let is_direct = wire.is_empty();
        if !is_direct {
            wire.extend_from_slice(bytes);
        }
        let mut input = if is_direct { bytes } else { &wire };
        if held.is_empty() {
            blocks.back.unpack(&mut input, press, &mut blocks.gain.work, |plain| {
                *received += plain.len() as u64;
                ledger.tally.bytes_received += plain.len() as u64;
                let (taken, rest) = plain.split_at(plain.len().min(ends.room(end)));
                if !taken.is_empty() {
                    ends.write(end, taken, now);
                }
                held.extend(rest);
                rest.is_empty()
            })?;
        }
        let left = input.len();
        if is_direct {
            wire = input.to_vec();
        } else if left == 0 {
            wire = Vec::new();
        } else {
            wire.drain(..wire.len() - left);
        }
        blocks.back.wire = wire;
        let stored = held.len() + left;
        press.stored = press.stored - blocks.stored + stored;
        blocks.stored = stored;
        if press.stored > MOST_STORED && stored > EARLY { Err(BlockFault::Crowded) } else { Ok(()) }
    }
}
