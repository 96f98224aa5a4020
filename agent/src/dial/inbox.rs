//! Where wakers and lookups leave word for the one task that owns all ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};

use super::names::Answer;

/// Ends that woke and names that were answered since the last look. Each end stands in it once at
/// most, each answer is one of the few lookups under way.
#[derive(Debug, Default)]
pub(super) struct Inbox(Mutex<Word>);

#[derive(Debug, Default)]
struct Word {
    woken: Vec<u32>,
    answers: Vec<Answer>,
    owner: Option<Waker>,
}

impl Inbox {
    /// Takes what has come, and wakes `cx` when more does.
    pub(super) fn take(&self, woken: &mut impl Extend<u32>, cx: &mut Context<'_>) -> Vec<Answer> {
        let mut word = self.lock();
        if !word.owner.as_ref().is_some_and(|owner| owner.will_wake(cx.waker())) {
            word.owner = Some(cx.waker().clone());
        }
        woken.extend(word.woken.drain(..));
        std::mem::take(&mut word.answers)
    }

    pub(super) fn answer(&self, answer: Answer) {
        self.tell(|word| word.answers.push(answer));
    }

    /// Wakes the owner with nothing to take.
    pub(super) fn nudge(&self) {
        let owner = self.lock().owner.clone();
        if let Some(owner) = owner {
            owner.wake();
        }
    }

    fn tell(&self, leave: impl FnOnce(&mut Word)) {
        let owner = {
            let mut word = self.lock();
            let first = word.woken.is_empty() && word.answers.is_empty();
            leave(&mut word);
            if first { word.owner.clone() } else { None }
        };
        if let Some(owner) = owner {
            owner.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Word> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The waker of one slot, used again by each end that lives in it.
#[derive(Debug)]
pub(super) struct SlotWaker {
    slot: u32,
    queued: AtomicBool,
    inbox: Arc<Inbox>,
}

impl SlotWaker {
    pub(super) fn new(slot: u32, inbox: Arc<Inbox>) -> Arc<Self> {
        Arc::new(Self { slot, queued: AtomicBool::new(false), inbox })
    }

    /// To be called right before the slot is looked at: later wakes count again.
    pub(super) fn heard(&self) {
        self.queued.store(false, Ordering::Release);
    }
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.inbox.tell(|word| word.woken.push(self.slot));
        }
    }
}
