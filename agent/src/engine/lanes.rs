//! The lanes of one engine: who is readable, who takes a record, who is lost.

use std::fmt;
use std::io::{self, IoSlice};
use std::task::{Context, Poll};

use crate::lane::LaneIo;
use crate::wire::trunk::{LaneFault, LaneId, Record};

/// Why a lane is given up.
#[derive(Debug)]
pub(super) enum Loss {
    Ended,
    Io(io::Error),
    Fault(LaneFault),
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended => f.write_str("the far end closed it"),
            Self::Io(error) => error.fmt(f),
            Self::Fault(fault) => write!(f, "the far end broke the protocol: {fault}"),
        }
    }
}

struct Slot {
    id: LaneId,
    io: Box<dyn LaneIo>,
    /// It failed: nothing is asked of it any more.
    lost: bool,
    /// It has been told to end: it takes no more records.
    closing: bool,
}

#[derive(Default)]
pub(super) struct Lanes {
    slots: Vec<Slot>,
    lost: Vec<(LaneId, Loss)>,
}

impl Lanes {
    pub(super) fn add(&mut self, id: LaneId, io: Box<dyn LaneIo>) {
        self.slots.push(Slot { id, io, lost: false, closing: false });
    }

    pub(super) fn remove(&mut self, id: LaneId) -> bool {
        let before = self.slots.len();
        self.slots.retain(|slot| slot.id != id);
        self.slots.len() != before
    }

    /// Reads from the lane at `index`; `None` when nothing is there.
    pub(super) fn poll_read(
        &mut self,
        index: usize,
        buffer: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Option<(LaneId, usize)> {
        let slot = self.slots.get_mut(index).filter(|slot| !slot.lost)?;
        let loss = match slot.io.poll_read(cx, buffer) {
            Poll::Pending => return None,
            Poll::Ready(Ok(0)) => Loss::Ended,
            Poll::Ready(Ok(read)) => return Some((slot.id, read)),
            Poll::Ready(Err(error)) => Loss::Io(error),
        };
        self.lose(index, loss);
        None
    }

    /// The most bytes a record may have now, when the lane at `index` takes one.
    pub(super) fn poll_ready(&mut self, index: usize, cx: &mut Context<'_>) -> Option<(LaneId, usize)> {
        let slot = self.slots.get_mut(index).filter(|slot| !slot.lost && !slot.closing)?;
        match slot.io.poll_ready(cx) {
            Poll::Ready(Ok(most)) => Some((slot.id, most)),
            Poll::Ready(Err(error)) => {
                self.lose(index, Loss::Io(error));
                None
            }
            Poll::Pending => None,
        }
    }

    /// Sends a record on the lane at `index`; false when that lost the lane.
    pub(super) fn send(&mut self, index: usize, record: &Record<'_>) -> bool {
        let parts: Vec<IoSlice<'_>> = record.parts().map(IoSlice::new).collect();
        match self.slots[index].io.send(&parts) {
            Ok(()) => true,
            Err(error) => {
                self.lose(index, Loss::Io(error));
                false
            }
        }
    }

    pub(super) fn poll_flush(&mut self, index: usize, cx: &mut Context<'_>) {
        let Some(slot) = self.slots.get_mut(index).filter(|slot| !slot.lost) else { return };
        if let Poll::Ready(Err(error)) = slot.io.poll_flush(cx) {
            self.lose(index, Loss::Io(error));
        }
    }

    /// Gives up a lane; what is lost is told by `take_lost`, so that indices hold until then.
    pub(super) fn lose(&mut self, index: usize, loss: Loss) {
        let slot = &mut self.slots[index];
        if !std::mem::replace(&mut slot.lost, true) {
            self.lost.push((slot.id, loss));
        }
    }

    pub(super) fn take_lost(&mut self) -> Vec<(LaneId, Loss)> {
        std::mem::take(&mut self.lost)
    }

    /// Flushes every lane that has nothing more to say and tells it that it ends; `Ready` when all have
    /// taken that.
    pub(super) fn poll_close(&mut self, cx: &mut Context<'_>, is_done: impl Fn(LaneId) -> bool) -> Poll<()> {
        self.slots.retain_mut(|slot| {
            if slot.lost {
                return false;
            }
            if !slot.closing {
                match slot.io.poll_flush(cx) {
                    Poll::Ready(Ok(())) => slot.closing = is_done(slot.id),
                    Poll::Ready(Err(_)) => return false,
                    Poll::Pending => {}
                }
            }
            !slot.closing || slot.io.poll_close(cx).is_pending()
        });
        if self.slots.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    }

    pub(super) fn id(&self, index: usize) -> LaneId {
        self.slots[index].id
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = LaneId> {
        self.slots.iter().map(|slot| slot.id)
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }
}
