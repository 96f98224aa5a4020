//! The gateway's relays: what passes between the two halves of a session, faults included.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::halves::{AgentConn, ClientConn, ToClient};
use super::{Session, agent_transit, client_transit};
use crate::ssm::Count;
use crate::ssm::faults::{Direction, Fate};
use crate::ssm::parcel::{Line, Parcel, Tag};

impl Session {
    /// Carries the client's messages on to the SSM agent, with the gateway's faults.
    pub(super) async fn relay_up(self: Arc<Self>, conn: Arc<ClientConn>) {
        let mut out = Vec::new();
        loop {
            let holding = self.state().up.is_holding();
            let Some(next) = recv_or_flush(&conn.up, holding).await else { return };
            self.mangle(Direction::Up, next, &mut out);
            for parcel in out.drain(..) {
                self.to_agent(parcel).await;
            }
        }
    }

    pub(super) async fn relay_down(self: Arc<Self>, conn: Arc<AgentConn>) {
        let mut out = Vec::new();
        loop {
            let holding = self.state().down.is_holding();
            let Some(next) = recv_or_flush(&conn.down, holding).await else { return };
            if conn.black_hole.load(Ordering::Relaxed) {
                self.count(Count::LostInCut);
                continue;
            }
            self.mangle(Direction::Down, next, &mut out);
            for parcel in out.drain(..) {
                self.to_client(parcel).await;
            }
        }
    }

    fn mangle(&self, direction: Direction, next: Option<Parcel>, out: &mut Vec<Parcel>) {
        let knobs = self.shared.knobs();
        let state = &mut *self.state();
        let (mangler, mix) = match direction {
            Direction::Up => (&mut state.up, &knobs.up),
            Direction::Down => (&mut state.down, &knobs.down),
        };
        let Some(parcel) = next else { return mangler.flush(out) };
        match mangler.pass(parcel, mix, &mut state.rng, out) {
            Fate::Passed => {}
            Fate::Duplicated => self.count(Count::Duplicated),
            Fate::Held => self.count(Count::Reordered),
            Fate::Lost => self.count(Count::LostByFault),
        }
    }

    async fn to_agent(&self, parcel: Parcel) {
        let knobs = self.shared.knobs();
        let (conn, transit) = {
            let state = &mut *self.state();
            let transit = agent_transit(&knobs, &mut state.rng);
            match &state.agent {
                Some(conn) if conn.black_hole.load(Ordering::Relaxed) => return self.count(Count::LostInCut),
                Some(conn) => (Arc::clone(conn), transit),
                None => {
                    let is_stream = matches!(parcel.tag, Tag::Stream { .. });
                    if let Some(conn) = state.cut_agent.take_if(|_| is_stream) {
                        conn.up.force(parcel, transit);
                        conn.up.close(transit);
                    } else if state.held_up.len() < knobs.absent_peer_buffer {
                        state.held_up.push_back(parcel);
                    } else {
                        self.count(Count::LostInCut);
                    }
                    return;
                }
            }
        };
        let size = parcel.bytes.len();
        if conn.up.send(parcel, size, transit).await.is_err() {
            self.count(Count::LostInCut);
        }
    }

    async fn to_client(&self, parcel: Parcel) {
        let knobs = self.shared.knobs();
        let (conn, transit) = {
            let state = &mut *self.state();
            let Some(conn) = state.client.clone() else {
                let room = if state.client_seen { knobs.absent_peer_buffer } else { HELD_FOR_FIRST_CLIENT };
                if state.held_down.len() < room {
                    state.held_down.push_back(parcel);
                } else {
                    self.count(Count::LostInCut);
                }
                return;
            };
            state.audit_delivery(&parcel);
            (conn, client_transit(&knobs, &mut state.rng))
        };
        self.count(match parcel.tag {
            Tag::Stream { .. } => Count::DownStream,
            Tag::Acknowledgement | Tag::Control => Count::DownAcks,
        });
        let size = parcel.bytes.len();
        if conn.down.send(ToClient::Parcel(parcel), size, transit).await.is_err() {
            self.count(Count::LostInCut);
        }
    }
}

/// The next parcel, or the inner None when held ones should go; the outer None at the line's end.
async fn recv_or_flush(line: &Line<Parcel>, holding: bool) -> Option<Option<Parcel>> {
    if !holding {
        return line.recv().await.map(Some);
    }
    match tokio::time::timeout(REORDER_PATIENCE, line.recv()).await {
        Ok(parcel) => parcel.map(Some),
        Err(_) => Some(None),
    }
}

/// The worker is often there before its client.
const HELD_FOR_FIRST_CLIENT: usize = 64;
const REORDER_PATIENCE: Duration = Duration::from_millis(20);
