//! Pure: what lanes have taught about the way to one agent, and the line it is remembered as.
//!
//! `max_session=1800 payload=32768 limit=32768`: the account's maximum session duration in seconds, the largest upstream
//! message that was proven to pass, and the size above which none does. Each may be missing; words that are not
//! known are passed over.

use std::fmt;
use std::time::Duration;

use crate::ssm::channel::{MAX_PAYLOAD, MIN_PAYLOAD};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lessons {
    pub max_session: Option<Duration>,
    payload: Option<usize>,
    limit: Option<usize>,
}

/// One thing learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lesson {
    MaxSession(Duration),
    /// Messages of this size pass.
    Proven(usize),
    /// None above this size does.
    Limit(usize),
}

impl Lessons {
    /// True when it was new.
    pub(super) fn take(&mut self, lesson: Lesson) -> bool {
        let before = *self;
        match lesson {
            Lesson::MaxSession(max) => self.max_session = Some(max),
            Lesson::Proven(size) => self.payload = self.payload.max(Some(size)),
            Lesson::Limit(size) => self.limit = Some(self.limit.map_or(size, |limit| limit.min(size))),
        }
        // What was proven on one lane may come later than what failed on another.
        self.payload = self.payload.map(|size| size.min(self.limit.unwrap_or(size)));
        *self != before
    }

    /// The size that a lane's messages begin with, and how large they may become.
    pub(super) fn payload(&self) -> (usize, usize) {
        let most = self.limit.unwrap_or(MAX_PAYLOAD);
        (self.payload.unwrap_or(START).min(most), most)
    }

    /// Reads the line that `Display` writes.
    pub fn parse(text: &str) -> Self {
        let mut lessons = Self::default();
        for (name, value) in text.split_whitespace().filter_map(|word| word.split_once('=')) {
            let size = || value.parse().ok().filter(|size| (MIN_PAYLOAD..=MAX_PAYLOAD).contains(size));
            match name {
                "max_session" => {
                    let seconds = value.parse().ok().filter(|seconds| *seconds >= 60);
                    lessons.max_session = seconds.map(Duration::from_secs);
                }
                "payload" => lessons.payload = size(),
                "limit" => lessons.limit = size(),
                _ => {}
            }
        }
        lessons
    }
}

impl fmt::Display for Lessons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let max = self.max_session.map(|max| format!("max_session={}", max.as_secs()));
        let payload = self.payload.map(|payload| format!("payload={payload}"));
        let limit = self.limit.map(|limit| format!("limit={limit}"));
        let words: Vec<String> = max.into_iter().chain(payload).chain(limit).collect();
        f.write_str(&words.join(" "))
    }
}

/// Accepted by every service that was seen, and fast enough.
const START: usize = 8 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_survives_and_nonsense_is_passed_over() {
        let line = "max_session=1800 payload=16384 limit=16384";
        let lessons = Lessons::parse(line);
        assert_eq!(lessons.max_session, Some(Duration::from_secs(1800)));
        assert_eq!(lessons.payload(), (16384, 16384));
        assert_eq!(lessons.to_string(), line);
        assert_eq!(Lessons::parse("max_session=-3 payload=x later=1 what"), Lessons::default());
        assert_eq!(Lessons::parse("max_session=1 payload=0 limit=99999999999"), Lessons::default());
    }

    #[test]
    fn the_largest_proven_size_counts_below_what_failed() {
        let mut lessons = Lessons::default();
        assert_eq!(lessons.payload(), (8192, 32768));
        assert!(lessons.take(Lesson::Proven(16384)));
        assert!(!lessons.take(Lesson::Proven(8192)));
        assert_eq!(lessons.payload(), (16384, 32768));
        assert!(lessons.take(Lesson::Limit(1024)));
        assert!(!lessons.take(Lesson::Limit(2048)));
        assert!(!lessons.take(Lesson::Proven(16384)), "it came before the fall");
        assert_eq!(lessons.payload(), (1024, 1024));
    }
}
