//! Tells when the way to the internet changed or the machine woke up, so that lanes are made anew at once
//! instead of after a timeout. Costs nothing while nothing happens: it has no timer of its own.

use std::io;
use std::time::Duration;

#[cfg(target_os = "linux")]
#[path = "link/linux.rs"]
mod system;
#[cfg(target_os = "macos")]
#[path = "link/macos.rs"]
mod system;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// A default route, or the state or the addresses of its device, is different from before.
    NetworkChanged,
    /// The machine slept; every connection is to be doubted.
    Woke,
    /// Somebody may have removed rules or routes of ours: call [`apply`](super::routes::apply) again.
    RoutesTouched,
}

/// Watches the system's network. Belongs to the runtime in which it was opened.
#[derive(Debug)]
pub struct Watch {
    source: system::Source,
    /// What the way out looked like when it was last told.
    way_out: system::WayOut,
    /// Something changed since we looked; kept here because `next` may be dropped while it waits for calm.
    unseen: bool,
    sleep: SleepClock,
}

impl Watch {
    /// `own_device` is the index of our TUN, whose changes are our own doing.
    pub fn open(own_device: Option<u32>) -> io::Result<Self> {
        // The source comes first: what changes while we look is then told.
        let source = system::Source::open(own_device)?;
        let way_out = system::WayOut::read(own_device)?;
        Ok(Self { source, way_out, unseen: false, sleep: SleepClock::new() })
    }

    /// The next event. Waits until the changes have calmed down; may be dropped and called again at any time.
    pub async fn next(&mut self) -> io::Result<LinkEvent> {
        loop {
            if let Some(event) = self.source.take_touched() {
                return Ok(event);
            }
            if !self.unseen {
                self.source.changed().await?;
                self.unseen = true;
            }
            self.calm().await?;
            if let Some(event) = self.check() {
                return Ok(event);
            }
            self.unseen = false;
            // An error here is passing (a device that goes while we list it); the next change brings another look.
            let now = match system::WayOut::read(self.source.own_device()) {
                Ok(now) => now,
                Err(error) => {
                    tracing::debug!(%error, "could not look at the network");
                    continue;
                }
            };
            if now != self.way_out {
                self.way_out = now;
                return Ok(LinkEvent::NetworkChanged);
            }
        }
    }

    /// Whether the machine slept since the last call. Cheap; for callers that wake up anyway.
    pub fn check(&mut self) -> Option<LinkEvent> {
        self.sleep.slept().then_some(LinkEvent::Woke)
    }

    async fn calm(&mut self) -> io::Result<()> {
        // A flapping device must not silence us for ever.
        let calm = async {
            while let Ok(changed) = tokio::time::timeout(CALM, self.source.changed()).await {
                changed?;
            }
            Ok(())
        };
        tokio::time::timeout(PATIENCE, calm).await.unwrap_or(Ok(()))
    }
}

/// Compares a clock that counts sleep with one that does not.
#[derive(Debug)]
struct SleepClock {
    asleep: Duration,
}

impl SleepClock {
    fn new() -> Self {
        Self { asleep: system::asleep() }
    }

    fn slept(&mut self) -> bool {
        let asleep = system::asleep();
        let slept = asleep.saturating_sub(self.asleep) >= NAP;
        self.asleep = asleep;
        slept
    }
}

/// A network that comes up sends a burst of changes; this long without one is its end.
const CALM: Duration = Duration::from_millis(250);

const PATIENCE: Duration = Duration::from_secs(2);

/// Shorter sleep than this hurts no connection.
const NAP: Duration = Duration::from_secs(2);
