//! A busy engine, in the runtime of the two programs, and who else waits for the system there.

use std::cell::Cell;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio::task::LocalSet;

use crate::engine::{Config, Engine};
use crate::local_end::{EndEvent, EndId, LocalEnds};
use crate::wire::Role;
use crate::wire::open::{Open, Refusal};

#[test]
fn what_becomes_ready_does_not_wait_until_a_busy_engine_rests() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let turns = Rc::new(Cell::new(0));
    let late = LocalSet::new().block_on(&runtime, async {
        let (far, near) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let mut near = tokio::net::UnixStream::from_std(near).unwrap();
        let config = Config {
            role: Role::Client,
            ping_interval: Duration::from_secs(20),
            entropy: 0,
            on_lane: Box::new(|_| {}),
        };
        let engine = Engine::new(config, Busy { turns: turns.clone(), far });
        let (_commands, inbox) = mpsc::channel(1);
        tokio::task::spawn_local(tokio::task::unconstrained(engine.run(inbox)));
        near.read_u8().await.unwrap();
        turns.get() - SENT_AT
    });
    assert!(late <= 8, "heard {late} turns later");
}

/// Ends that never rest; in one turn a byte becomes ready for somebody else.
struct Busy {
    turns: Rc<Cell<u32>>,
    far: UnixStream,
}

const SENT_AT: u32 = 1000;

impl LocalEnds for Busy {
    fn poll_io(&mut self, _cx: &mut Context<'_>, _now: Instant) -> Poll<()> {
        self.turns.set(self.turns.get() + 1);
        if self.turns.get() == SENT_AT {
            self.far.write_all(&[7]).unwrap();
        }
        Poll::Ready(())
    }

    fn open(&mut self, _open: &Open, _now: Instant) -> Result<EndId, Refusal> {
        Err(Refusal::Unsupported)
    }

    fn read(&mut self, _end: EndId, _buf: &mut [u8], _now: Instant) -> usize {
        0
    }

    fn room(&self, _end: EndId) -> usize {
        0
    }

    fn poll_event(&mut self) -> Option<EndEvent> {
        None
    }

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    fn accept(&mut self, _end: EndId, _local: SocketAddr, _remote: SocketAddr, _now: Instant) {}
    fn refuse(&mut self, _end: EndId, _refusal: Refusal, _now: Instant) {}
    fn write(&mut self, _end: EndId, _bytes: &[u8], _now: Instant) {}
    fn finish(&mut self, _end: EndId, _now: Instant) {}
    fn reset(&mut self, _end: EndId, _now: Instant) {}
    fn handle_timeout(&mut self, _now: Instant) {}
}
