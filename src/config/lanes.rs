//! Pure: how many lanes there are to be, how they are kept, and what happens when none is left.

use std::str::FromStr;
use std::time::Duration;

use super::{Wishes, usage};
use crate::error::UserError;

/// How many lanes carry the trunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LaneCount {
    /// As many as are of use now, up to [`MOST_AUTO`].
    #[default]
    Auto,
    Exactly(u8),
}

/// Which pings keep an idle session from idling out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keepalive {
    /// The trunk's while connections are open, the websocket's otherwise: an idle session ends as the account wants it.
    #[default]
    Auto,
    /// The trunk's at all times.
    Always,
    /// The websocket's alone.
    Never,
}

/// How lanes are made and kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LanePlan {
    pub count: LaneCount,
    pub keepalive: Keepalive,
    /// The first lane waits for the first connection.
    pub lazy: bool,
    /// Without any connection for so long the trunk is closed until the next one.
    pub idle_timeout: Option<Duration>,
    /// Whether a lost connection is made anew.
    pub reconnect: bool,
    /// The most time between two tries.
    pub reconnect_delay: Duration,
    /// How many tries may fail in a row; 0 for any number.
    pub max_retries: u32,
    /// The account's maximum session duration, where it is known.
    pub max_session: Option<Duration>,
}

pub const MOST_AUTO: usize = 8;
const MOST_LANES: u8 = 32;
const DEFAULT_RECONNECT_DELAY: Duration = Duration::from_secs(5);

impl Default for LanePlan {
    fn default() -> Self {
        Self {
            count: LaneCount::default(),
            keepalive: Keepalive::default(),
            lazy: false,
            idle_timeout: None,
            reconnect: true,
            reconnect_delay: DEFAULT_RECONNECT_DELAY,
            max_retries: 0,
            max_session: None,
        }
    }
}

impl LaneCount {
    /// The most lanes there may be.
    pub fn most(self) -> usize {
        match self {
            Self::Auto => MOST_AUTO,
            Self::Exactly(count) => usize::from(count),
        }
    }
}

impl FromStr for LaneCount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        match text.parse() {
            Ok(count) if (1..=MOST_LANES).contains(&count) => Ok(Self::Exactly(count)),
            Ok(_) | Err(_) => Err(format!("{text:?} is neither auto nor a number from 1 to {MOST_LANES}")),
        }
    }
}

impl FromStr for Keepalive {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            _ => Err(format!("{text:?} is none of auto, always and never")),
        }
    }
}

impl LanePlan {
    pub(super) fn new(wishes: &Wishes) -> Result<Self, UserError> {
        let within =
            |name: &str, value: Option<Duration>, least: Duration, most: Duration, range: &str| match value {
                Some(value) if !(least..=most).contains(&value) => {
                    Err(usage(format!("{name} is out of range")).cause(format!("it must be from {range}")))
                }
                Some(_) | None => Ok(value),
            };
        let (second, day) = (Duration::from_secs(1), Duration::from_secs(24 * 3600));
        // 0 is how people write "never".
        let idle_timeout = wishes.idle_timeout.filter(|timeout| !timeout.is_zero());
        let delay = wishes.reconnect_delay;
        Ok(Self {
            count: wishes.lanes.unwrap_or_default(),
            keepalive: wishes.keepalive.unwrap_or_default(),
            lazy: wishes.lazy,
            idle_timeout: within("--idle-timeout", idle_timeout, second, day * 30, "1s to 30 days, or 0")?,
            reconnect: wishes.auto_reconnect.unwrap_or(true),
            reconnect_delay: within("--reconnect-delay", delay, second / 10, second * 3600, "100ms to 1h")?
                .unwrap_or(DEFAULT_RECONNECT_DELAY),
            max_retries: wishes.max_retries.unwrap_or(0),
            max_session: within(
                "--max-session-duration",
                wishes.max_session_duration,
                second * 5,
                day,
                "5s to 24h",
            )?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Exit;

    #[test]
    fn counts_are_auto_or_1_to_32() {
        assert_eq!("auto".parse(), Ok(LaneCount::Auto));
        assert_eq!("1".parse(), Ok(LaneCount::Exactly(1)));
        assert_eq!("32".parse(), Ok(LaneCount::Exactly(32)));
        for bad in ["", "0", "33", "-1", "two", "256"] {
            assert!(bad.parse::<LaneCount>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn without_a_wish_the_defaults_hold_and_0_means_never_idle() {
        assert_eq!(LanePlan::new(&Wishes::default()).unwrap(), LanePlan::default());
        let never = Wishes { idle_timeout: Some(Duration::ZERO), ..Wishes::default() };
        assert_eq!(LanePlan::new(&never).unwrap().idle_timeout, None);
    }

    #[test]
    fn times_out_of_range_are_refused() {
        let day = Duration::from_secs(24 * 3600);
        for wrong in [
            Wishes { idle_timeout: Some(Duration::from_millis(10)), ..Wishes::default() },
            Wishes { reconnect_delay: Some(Duration::ZERO), ..Wishes::default() },
            Wishes { max_session_duration: Some(Duration::from_secs(1)), ..Wishes::default() },
            Wishes { max_session_duration: Some(day * 2), ..Wishes::default() },
        ] {
            assert_eq!(LanePlan::new(&wrong).unwrap_err().exit, Exit::Usage, "{wrong:?}");
        }
    }
}
