//! A download or an upload that runs without a pause: how many bytes come, and how long none does.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use netstack_tests::servers;
use netstack_tests::vpc::Vpc;

use crate::engines::Way;
use crate::world::through;

/// One flow through the tunnel; it ends with this.
pub(crate) struct Transfer {
    near: TcpStream,
    arrivals: Arc<Mutex<Arrivals>>,
}

/// What has come since the mark.
struct Arrivals {
    bytes: u64,
    last: Instant,
    silence: Duration,
}

impl Transfer {
    pub(crate) fn start(world: &Vpc, way: Way) -> Result<Self> {
        let arrivals = Arc::new(Mutex::new(Arrivals::new()));
        let seen = arrivals.clone();
        let far = servers::serve(&world.vpc, "0.0.0.0:0", move |stream| match way {
            Way::Up => take(stream, &seen),
            Way::Down => give(stream),
        })?;
        let target = through(far.port())?;
        let near = world.laptop.enter(|| TcpStream::connect(target))?;
        let (stream, seen) = (near.try_clone()?, arrivals.clone());
        std::thread::spawn(move || match way {
            Way::Up => give(stream),
            Way::Down => take(stream, &seen),
        });
        Ok(Self { near, arrivals })
    }

    /// Forgets what was until now.
    pub(crate) fn mark(&self) {
        *self.arrivals() = Arrivals::new();
    }

    /// Bytes that have come since the mark.
    pub(crate) fn bytes(&self) -> u64 {
        self.arrivals().bytes
    }

    /// The longest time without a byte since the mark.
    pub(crate) fn silence(&self) -> Duration {
        let arrivals = self.arrivals();
        arrivals.silence.max(arrivals.last.elapsed())
    }

    fn arrivals(&self) -> MutexGuard<'_, Arrivals> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        // One that has broken is shut already.
        let _ = self.near.shutdown(Shutdown::Both);
    }
}

impl Arrivals {
    fn new() -> Self {
        Self { bytes: 0, last: Instant::now(), silence: Duration::ZERO }
    }
}

fn give(mut stream: TcpStream) {
    while stream.write_all(&[7; PIECE]).is_ok() {}
}

fn take(mut stream: TcpStream, seen: &Mutex<Arrivals>) {
    let mut buffer = vec![0; PIECE];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        let mut arrivals = seen.lock().unwrap_or_else(PoisonError::into_inner);
        arrivals.bytes += count as u64;
        arrivals.silence = arrivals.silence.max(arrivals.last.elapsed());
        arrivals.last = Instant::now();
    }
}

const PIECE: usize = 64 << 10;
