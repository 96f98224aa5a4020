//! Pure: packets that leave, and the timers that make them.

use std::time::{Duration, Instant};

use super::counters::DropReason;
use super::{Flow, PENDING_LIFE, Stack, State};

impl Stack {
    /// The packets to write to the device, until `emit` says that the device is full; then the packet it did
    /// not take is offered again next time, and the answer is false.
    ///
    /// One turn for each flow that has something; [`wants_poll`](Self::wants_poll) tells of more.
    pub fn poll_packet(&mut self, now: Instant, emit: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        if !self.flush(emit) {
            return false;
        }
        for _ in 0..self.dirty.len() {
            let Some(slot) = self.dirty.pop() else { break };
            let sent = self.send(slot, now, emit);
            match sent {
                Sent::All => self.rearm(slot, now),
                Sent::More => self.dirty.push(slot),
                Sent::DeviceFull => {
                    self.dirty.push(slot);
                    return false;
                }
            }
        }
        self.note_work();
        true
    }

    /// Whether `poll_packet` has something to do.
    pub fn wants_poll(&self) -> bool {
        !self.out.is_empty() || !self.outbox.is_empty() || !self.dirty.is_empty()
    }

    /// When `handle_timeout` wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.timers.next(), self.resting.next(), self.fragments.next()].into_iter().flatten().min()
    }

    /// Acts on timers that are due.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((at, slot)) = self.timers.pop(now) {
            let Some(flow) = self.table.get_mut(slot) else { continue };
            if flow.armed != Some(at) {
                continue;
            }
            flow.armed = None;
            match &mut flow.state {
                State::Pending(_, heard) if now.saturating_duration_since(*heard) < PENDING_LIFE => {
                    let at = *heard + PENDING_LIFE;
                    self.arm(slot, at, now);
                }
                State::Pending(..) => {
                    flow.meter.give_up();
                    self.lose(slot);
                }
                State::Open(connection) if connection.reset_until().is_some_and(|until| until <= now) => {
                    self.lose(slot);
                }
                State::Open(connection) if connection.is_abandoned(now) => self.abandon(slot, now),
                State::Open(_) => self.dirty.push(slot),
                State::Datagrams(association) => match association.expires(&self.config) {
                    at if at <= now => self.conclude(slot),
                    at => self.arm(slot, at, now),
                },
                State::Gone => {}
            }
        }
        self.rest_quiet_flows(now);
        let given_up = self.fragments.expire(now);
        self.counters.drop_many(DropReason::Fragment, given_up);
        self.note_work();
    }

    /// Sends at most one turn's packets of a flow.
    fn send(&mut self, slot: u32, now: Instant, emit: &mut dyn FnMut(&[u8]) -> bool) -> Sent {
        let Some(Flow { state: State::Open(connection), meter, .. }) = self.table.get_mut(slot) else {
            return self.send_datagrams(slot, emit);
        };
        for _ in 0..PACKETS_PER_TURN {
            connection.send(&mut self.io, &mut self.out, now);
            if self.out.is_empty() {
                return Sent::All;
            }
            meter.said(self.out.bytes(), now);
            if !emit(self.out.bytes()) {
                return Sent::DeviceFull;
            }
            self.counters.packets_out += 1;
            self.counters.bytes_out += self.out.bytes().len() as u64;
            self.out.clear();
        }
        Sent::More
    }

    /// Offers the packets that wait; false when the device is full.
    fn flush(&mut self, emit: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        if !self.out.is_empty() {
            if !emit(self.out.bytes()) {
                return false;
            }
            self.counters.packets_out += 1;
            self.counters.bytes_out += self.out.bytes().len() as u64;
            self.out.clear();
        }
        while let Some(packet) = self.outbox.front() {
            if !emit(packet) {
                return false;
            }
            self.counters.packets_out += 1;
            self.counters.bytes_out += packet.len() as u64;
            self.outbox.pop();
        }
        true
    }

    /// Sends what the application's window takes at once, ahead of a reset.
    pub(super) fn send_last_words(&mut self, slot: u32, now: Instant) {
        let mut packet = std::mem::take(&mut self.io.reply);
        while !self.outbox.is_half_full()
            && let Some(Flow { state: State::Open(connection), .. }) = self.table.get_mut(slot)
        {
            connection.send(&mut self.io, &mut packet, now);
            if packet.is_empty() || !self.outbox.push(packet.bytes()) {
                break;
            }
        }
        packet.clear();
        self.io.reply = packet;
    }

    /// The application's kernel answers no more.
    fn abandon(&mut self, slot: u32, now: Instant) {
        let Some(connection) = self.connection(slot) else { return };
        if connection.end_now() {
            self.table.unmap(slot);
            return self.tell(slot);
        }
        let Some(Flow { state: State::Open(connection), meter, .. }) = self.table.get_mut(slot) else {
            return;
        };
        meter.give_up();
        connection.abort(&mut self.io, now);
        self.lose(slot);
        self.post_reply();
    }

    pub(super) fn rearm(&mut self, slot: u32, now: Instant) {
        let Some(Flow { state: State::Open(connection), .. }) = self.table.get_mut(slot) else { return };
        if let Some(at) = connection.deadline(&mut self.io, now) {
            self.arm(slot, at, now);
        }
    }

    /// Wakes the flow at `at`, or earlier if it is to be woken earlier anyway.
    pub(super) fn arm(&mut self, slot: u32, at: Instant, now: Instant) {
        let Some(flow) = self.table.get_mut(slot) else { return };
        let at = at.max(now + MIN_WAIT);
        if flow.armed.is_some_and(|armed| armed <= at) {
            return;
        }
        flow.armed = Some(at);
        self.timers.push(at, slot);
        self.prune_timers();
    }

    /// Forgets outdated timers once they outnumber the flows, so that each is looked at twice at most on average.
    pub(super) fn prune_timers(&mut self) {
        if self.timers.len() > 2 * self.table.len() + TIMER_SLACK {
            let table = &self.table;
            self.timers.retain(|at, slot| table.get(slot).is_some_and(|flow| flow.armed == Some(at)));
        }
    }

    /// Sends the packet in `scratch`.
    pub(super) fn post(&mut self) {
        if !self.outbox.push(&self.scratch) {
            self.counters.drop(DropReason::ReplyFull);
        }
    }

    /// Sends what smoltcp answered at once.
    pub(super) fn post_reply(&mut self) {
        if !self.io.reply.is_empty() && !self.outbox.push(self.io.reply.bytes()) {
            self.counters.drop(DropReason::ReplyFull);
        }
        self.io.reply.clear();
    }
}

/// How far a flow got with its packets.
pub(super) enum Sent {
    All,
    More,
    DeviceFull,
}

/// Packets one flow may send before others have their turn.
pub(super) const PACKETS_PER_TURN: usize = 32;
/// smoltcp may ask to be called at once without having anything to send.
const MIN_WAIT: Duration = Duration::from_micros(500);
/// Outdated timer entries that are not worth a clean-up.
pub(super) const TIMER_SLACK: usize = 64;
