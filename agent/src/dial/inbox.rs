//! Where lookups leave word for the one task that owns all ends, and how that task is woken.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use super::names::Answer;

/// Names that were answered since the last look: each is one of the few lookups under way.
#[derive(Debug, Default)]
pub(super) struct Inbox(Mutex<Word>);

#[derive(Debug, Default)]
struct Word {
    answers: Vec<Answer>,
    owner: Option<Waker>,
}

impl Inbox {
    /// Takes what has come, and wakes `cx` when more does.
    pub(super) fn take(&self, cx: &mut Context<'_>) -> Vec<Answer> {
        let mut word = self.lock();
        if !word.owner.as_ref().is_some_and(|owner| owner.will_wake(cx.waker())) {
            word.owner = Some(cx.waker().clone());
        }
        std::mem::take(&mut word.answers)
    }

    pub(super) fn answer(&self, answer: Answer) {
        self.lock().answers.push(answer);
        self.nudge();
    }

    /// Wakes the owner with nothing to take.
    pub(super) fn nudge(&self) {
        let owner = self.lock().owner.clone();
        if let Some(owner) = owner {
            owner.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Word> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
