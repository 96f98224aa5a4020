//! Pure: how long a lane lives before it is replaced by plan, and what is learned from sessions that AWS ended.
//!
//! AWS closes a session's websocket after about an hour, and ends the session where the account has a maximum
//! duration, which is a number of whole minutes. A lane is replaced before either. A session also ends when the agent at
//! its far end dies, so what one taught counts only once it is seen that the agent lived on.

use std::time::Duration;

#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    max_session: Option<Duration>,
    /// AWS, or the end of the agent, ended a session at this age.
    ended_at: Option<Duration>,
}

impl Life {
    pub(super) fn new(max_session: Option<Duration>) -> Self {
        Self { max_session, ended_at: None }
    }

    /// For a lane that is made now; `random` keeps those made together from being replaced together.
    pub(super) fn span(self, random: u32) -> Duration {
        let limit = self.max_session.map_or(RECYCLED, |max| RECYCLED.min(max - margin(max)));
        limit.mul_f64(1.0 - SPREAD * f64::from(random) / f64::from(u32::MAX))
    }

    /// A session that was in use was ended at this age.
    pub(super) fn note_end(&mut self, age: Duration) {
        self.ended_at = Some(age);
    }

    /// The agent lived on: AWS ended it. The maximum duration, if that tells a lower one.
    pub(super) fn confirm(&mut self) -> Option<Duration> {
        let age = self.ended_at.take()?;
        let minutes = age.as_secs() / 60;
        let beyond = age.saturating_sub(Duration::from_secs(60 * minutes));
        let learned = Duration::from_secs(60 * minutes);
        let news = minutes > 0 && beyond <= LATE && self.max_session.is_none_or(|known| learned < known);
        news.then(|| *self.max_session.insert(learned))
    }

    /// The agent was away: its end was the session's.
    pub(super) fn dismiss(&mut self) {
        self.ended_at = None;
    }
}

/// Time for the replacement to be made.
fn margin(max: Duration) -> Duration {
    (max / 5).min(Duration::from_secs(60))
}

/// Before the websocket is an hour old.
const RECYCLED: Duration = Duration::from_secs(50 * 60);
/// The part of its time that a lane may be replaced early.
const SPREAD: f64 = 0.2;
/// How late AWS may be; and our own clock began with its answer.
const LATE: Duration = Duration::from_secs(4);

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn lanes_go_before_the_hour_and_before_the_maximum_and_not_all_at_once() {
        let life = Life::new(None);
        assert_eq!(life.span(0), 50 * MINUTE);
        assert_eq!(life.span(u32::MAX), 40 * MINUTE);
        assert_eq!(Life::new(Some(30 * MINUTE)).span(0), 29 * MINUTE);
        assert_eq!(Life::new(Some(10 * SECOND)).span(0), 8 * SECOND);
        assert_eq!(Life::new(Some(8 * 60 * MINUTE)).span(0), 50 * MINUTE);
    }

    #[test]
    fn an_end_at_a_whole_minute_teaches_the_maximum() {
        let mut life = Life::new(None);
        let mut learn = |age| {
            life.note_end(age);
            life.confirm()
        };
        assert_eq!(learn(20 * SECOND), None, "somebody ended it");
        assert_eq!(learn(30 * MINUTE + 20 * SECOND), None);
        assert_eq!(learn(30 * MINUTE - SECOND), None);
        assert_eq!(learn(30 * MINUTE + 2 * SECOND), Some(30 * MINUTE));
        assert_eq!(learn(40 * MINUTE), None, "the lower one is known");
        assert_eq!(learn(15 * MINUTE), Some(15 * MINUTE));
        assert_eq!(life.span(0), 14 * MINUTE);
    }

    #[test]
    fn the_end_of_the_agent_teaches_nothing() {
        let mut life = Life::new(None);
        life.note_end(7 * MINUTE);
        life.dismiss();
        assert_eq!((life.confirm(), life.span(0)), (None, 50 * MINUTE));
    }
}
