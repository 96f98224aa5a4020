//! Pure: what became of the tunnel lately: its turns with their times, the oldest forgotten first.

use std::collections::VecDeque;
use std::time::Instant;

use crate::control::State;

/// One turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    pub at: Instant,
    /// The state from here on.
    pub state: State,
    pub what: String,
}

#[derive(Clone, Debug, Default)]
pub struct History {
    turns: VecDeque<Turn>,
}

impl History {
    pub(super) fn note(&mut self, at: Instant, state: State, what: impl Into<String>) {
        if self.turns.len() == MOST {
            self.turns.pop_front();
        }
        self.turns.push_back(Turn { at, state, what: what.into() });
    }

    /// The oldest first.
    pub fn turns(&self) -> impl Iterator<Item = &Turn> {
        self.turns.iter()
    }
}

const MOST: usize = 32;

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn only_the_latest_turns_are_kept() {
        let mut history = History::default();
        for number in 0..100 {
            history.note(Instant::now(), State::Up, number.to_string());
        }
        let kept: Vec<&str> = history.turns().map(|turn| turn.what.as_str()).collect();
        assert_eq!((kept.len(), kept[0], kept[31]), (32, "68", "99"));
    }
}
