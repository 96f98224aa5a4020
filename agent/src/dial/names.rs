//! Names to addresses by the system's resolver, a few at a time on threads of their own.
//!
//! A lookup cannot be called off, so it holds its place until the resolver comes back; the one who
//! asked stops waiting at the dial deadline.

use std::collections::VecDeque;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use super::inbox::Inbox;

/// A name to look up for one dial.
#[derive(Debug)]
pub(super) struct Question {
    /// Tells this dial from all others, since ids of ends are used again.
    pub(super) serial: u64,
    pub(super) slot: u32,
    pub(super) name: String,
    pub(super) port: u16,
}

/// What the resolver knows; empty when it knows nothing.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) serial: u64,
    pub(super) slot: u32,
    pub(super) addresses: Vec<SocketAddr>,
}

/// Lookups under way and those that wait for their turn.
#[derive(Debug)]
pub(super) struct Names {
    inbox: Arc<Inbox>,
    running: usize,
    waiting: VecDeque<Question>,
}

impl Names {
    pub(super) fn new(inbox: Arc<Inbox>) -> Self {
        Self { inbox, running: 0, waiting: VecDeque::new() }
    }

    /// The answer comes through the inbox. Bounded by the dials in progress.
    pub(super) fn ask(&mut self, question: Question) {
        self.waiting.push_back(question);
        self.start();
    }

    /// Forgets a question whose dial is over.
    pub(super) fn forget(&mut self, serial: u64) {
        self.waiting.retain(|question| question.serial != serial);
    }

    /// To be called for each answer taken from the inbox.
    pub(super) fn answered(&mut self) {
        self.running = self.running.saturating_sub(1);
        self.start();
    }

    fn start(&mut self) {
        while self.running < LOOKUPS_AT_ONCE {
            let Some(question) = self.waiting.pop_front() else { return };
            self.running += 1;
            let inbox = self.inbox.clone();
            tokio::task::spawn_blocking(move || inbox.answer(look_up(&question)));
        }
    }
}

fn look_up(question: &Question) -> Answer {
    let addresses = (question.name.as_str(), question.port)
        .to_socket_addrs()
        .map(|found| found.take(ADDRESSES_OF_A_NAME).collect())
        .unwrap_or_default();
    Answer { serial: question.serial, slot: question.slot, addresses }
}

const LOOKUPS_AT_ONCE: usize = 16;
/// As many as are tried in turn.
const ADDRESSES_OF_A_NAME: usize = 8;
