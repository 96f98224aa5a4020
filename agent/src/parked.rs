//! Pure: the trunks of this agent, with or without lanes; how long one waits for its client.
//!
//! A trunk without a lane is parked: its flows live on at the targets until the client comes back or
//! the park time is over. When there are too many, the one that has been parked longest gives way.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::wire::hello::{Secret, Ticket, TrunkId};

/// The trunks; `T` is what speaks to a trunk's engine.
#[derive(Debug)]
pub struct Trunks<T> {
    trunks: HashMap<TrunkId, Entry<T>>,
    limits: Limits,
    serial: u64,
}

/// How many trunks there may be, and how long one waits without a lane.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub trunks: usize,
    pub park: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { trunks: 64, park: Duration::from_secs(8 * 60 * 60) }
    }
}

/// Names one trunk for its whole life, also when another one gets the same id later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    id: TrunkId,
    serial: u64,
}

impl Seat {
    pub fn id(&self) -> TrunkId {
        self.id
    }
}

struct Entry<T> {
    secret: Secret,
    serial: u64,
    engine: T,
    lanes: usize,
    /// When it lost its last lane.
    since: Instant,
    /// It has had a lane, so a client knows of it.
    known: bool,
}

impl<T> std::fmt::Debug for Entry<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("serial", &self.serial)
            .field("lanes", &self.lanes)
            .finish_non_exhaustive()
    }
}

/// Every trunk there may be has lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl<T> Trunks<T> {
    pub fn new(limits: Limits) -> Self {
        Self { trunks: HashMap::new(), limits, serial: 0 }
    }

    /// Takes a new trunk; gives back what had to go for it.
    pub fn insert(&mut self, ticket: &Ticket, engine: T, now: Instant) -> Result<(Seat, Option<T>), Full> {
        let mut gone = None;
        if self.trunks.len() >= self.limits.trunks {
            let parked = self.trunks.iter().filter(|(_, entry)| entry.lanes == 0);
            let id = *parked.min_by_key(|(_, entry)| entry.since).ok_or(Full)?.0;
            gone = self.trunks.remove(&id).map(|entry| entry.engine);
        }
        self.serial += 1;
        let seat = Seat { id: ticket.id, serial: self.serial };
        let secret = ticket.secret().clone();
        let entry = Entry { secret, serial: self.serial, engine, lanes: 0, since: now, known: false };
        let old = self.trunks.insert(ticket.id, entry).map(|entry| entry.engine);
        Ok((seat, gone.or(old)))
    }

    /// Says how many lanes the trunk has now.
    pub fn set_lanes(&mut self, seat: Seat, lanes: usize, now: Instant) {
        let Some(entry) = self.trunks.get_mut(&seat.id).filter(|entry| entry.serial == seat.serial) else {
            return;
        };
        if entry.lanes > 0 && lanes == 0 {
            entry.since = now;
        }
        entry.known |= lanes > 0;
        entry.lanes = lanes;
    }

    /// The trunk ended.
    pub fn remove(&mut self, seat: Seat) {
        if self.trunks.get(&seat.id).is_some_and(|entry| entry.serial == seat.serial) {
            self.trunks.remove(&seat.id);
        }
    }

    /// Gives up the trunks that waited too long.
    pub fn expire(&mut self, now: Instant) -> Vec<T> {
        let park = self.limits.park;
        let late = |entry: &mut Entry<T>| {
            let limit = if entry.known { park } else { park.min(NEVER_ATTACHED) };
            entry.lanes == 0 && now.saturating_duration_since(entry.since) >= limit
        };
        self.trunks.extract_if(|_, entry| late(entry)).map(|(_, entry)| entry.engine).collect()
    }

    /// Gives up all trunks.
    pub fn take_all(&mut self) -> Vec<T> {
        self.trunks.drain().map(|(_, entry)| entry.engine).collect()
    }

    /// What proves that a client owns the trunk.
    pub fn secret(&self, id: &TrunkId) -> Option<Secret> {
        self.trunks.get(id).map(|entry| entry.secret.clone())
    }

    pub fn engine(&self, id: &TrunkId) -> Option<&T> {
        self.trunks.get(id).map(|entry| &entry.engine)
    }

    pub fn len(&self) -> usize {
        self.trunks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.trunks.is_empty()
    }
}

/// A trunk whose welcome never arrived; its client tries again soon or not at all.
const NEVER_ATTACHED: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::hello::{AgentHandshake, AgentKey, AgentParams, ClientHandshake, ClientParams};
    use crate::wire::trunk::{LaneId, LaneKind};

    const LIMITS: Limits = Limits { trunks: 2, park: Duration::from_secs(100) };

    #[test]
    fn a_trunk_is_given_up_when_it_was_without_a_lane_for_the_park_time() {
        let (mut trunks, start) = (Trunks::new(LIMITS), now());
        let ticket = ticket(1);
        let (seat, gone) = trunks.insert(&ticket, 'a', start).unwrap();
        assert_eq!(gone, None);
        trunks.set_lanes(seat, 1, start);
        assert!(trunks.expire(start + 1000 * LIMITS.park).is_empty());
        let lost = start + Duration::from_secs(7);
        trunks.set_lanes(seat, 0, lost);
        trunks.set_lanes(seat, 0, lost + Duration::from_secs(50));
        assert!(trunks.expire(lost + LIMITS.park - Duration::from_millis(1)).is_empty());
        assert!(trunks.secret(&ticket.id).is_some());
        assert_eq!(trunks.expire(lost + LIMITS.park), ['a']);
        assert!(trunks.secret(&ticket.id).is_none());
    }

    #[test]
    fn a_trunk_that_never_had_a_lane_waits_a_minute() {
        let (mut trunks, start) = (Trunks::new(LIMITS), now());
        trunks.insert(&ticket(1), 'a', start).unwrap();
        assert!(trunks.expire(start + NEVER_ATTACHED - Duration::from_millis(1)).is_empty());
        assert_eq!(trunks.expire(start + NEVER_ATTACHED), ['a']);
    }

    #[test]
    fn the_longest_parked_gives_way_and_one_with_lanes_never() {
        let (mut trunks, start) = (Trunks::new(LIMITS), now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let (a, _) = trunks.insert(&ticket(1), 'a', at(0)).unwrap();
        let (b, _) = trunks.insert(&ticket(2), 'b', at(0)).unwrap();
        trunks.set_lanes(a, 1, at(1));
        trunks.set_lanes(b, 1, at(1));
        assert_eq!(trunks.insert(&ticket(3), 'c', at(2)).unwrap_err(), Full);
        trunks.set_lanes(b, 0, at(3));
        trunks.set_lanes(a, 0, at(4));
        let (_, gone) = trunks.insert(&ticket(3), 'c', at(5)).unwrap();
        assert_eq!(gone, Some('b'));
        assert_eq!(trunks.len(), 2);
    }

    #[test]
    fn a_late_end_does_not_hit_the_next_trunk_of_the_same_id() {
        let (mut trunks, start) = (Trunks::new(LIMITS), now());
        let ticket = ticket(1);
        let (old, _) = trunks.insert(&ticket, 'a', start).unwrap();
        let (new, gone) = trunks.insert(&ticket, 'b', start).unwrap();
        assert_eq!(gone, Some('a'));
        trunks.remove(old);
        trunks.set_lanes(old, 5, start);
        assert_eq!(trunks.engine(&ticket.id), Some(&'b'));
        trunks.remove(new);
        assert!(trunks.is_empty());
    }

    /// A ticket as a handshake makes it.
    fn ticket(number: u8) -> Ticket {
        let mut client = ClientHandshake::new(ClientParams {
            ticket: None,
            lane: LaneId(1),
            kind: LaneKind::Tcp,
            psk: None,
            pinned: None,
            ping_interval: Duration::ZERO,
            received: 0,
            live_lanes: Vec::new(),
            wants_blocks: false,
            entropy: [number; 64],
            version: String::new(),
        });
        let mut agent = AgentHandshake::new(AgentParams {
            key: AgentKey::from_bytes([9; 32]),
            psk: None,
            max_lanes: 1,
            takes_blocks: false,
            version: String::new(),
            nonce: [0; 32],
        });
        client.handle_bytes(&agent.poll_transmit().unwrap()).unwrap();
        agent.handle_bytes(&client.poll_transmit().unwrap(), &|_| None).unwrap().unwrap().ticket
    }

    #[allow(clippy::disallowed_methods)]
    fn now() -> Instant {
        Instant::now()
    }
}
