//! Pure: what to tell a user while nothing carries the tunnel: its loss, each new reason, its return; once each.

use std::time::{Duration, Instant};

/// The time since the tunnel lost its last way, if it has none.
#[derive(Clone, Debug, Default)]
pub(super) struct Outage {
    since: Option<Instant>,
    /// The trouble told last.
    told: Option<String>,
}

impl Outage {
    /// The last way is gone; true when that is news. `since` may lie back: a short loss is not told.
    pub(super) fn begin(&mut self, since: Instant) -> bool {
        let news = self.since.is_none();
        self.since.get_or_insert(since);
        news
    }

    /// Why there is no new way yet; true when that is to be told.
    pub(super) fn trouble(&mut self, why: &str) -> bool {
        let news = self.told.as_deref() != Some(why);
        if news {
            self.told = Some(why.to_owned());
        }
        news
    }

    /// There is a way again; for how long there was none.
    pub(super) fn end(&mut self, now: Instant) -> Option<Duration> {
        self.told = None;
        self.since.take().map(|since| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn loss_reasons_and_return_are_told_once_each() {
        let start = Instant::now();
        let mut outage = Outage::default();
        assert_eq!(outage.end(start), None, "it never began");

        assert!(outage.begin(start));
        assert!(!outage.begin(start + Duration::from_secs(1)), "the same outage");
        assert!(outage.trouble("no network"));
        assert!(!outage.trouble("no network"));
        assert!(outage.trouble("the login has expired"));
        assert_eq!(outage.end(start + Duration::from_secs(9)), Some(Duration::from_secs(9)));
        assert_eq!(outage.end(start), None, "it is over");

        assert!(outage.begin(start));
        assert!(outage.trouble("no network"), "another outage tells its reasons again");
    }
}
