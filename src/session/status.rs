//! What a session tells of itself on its control socket.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agent::engine::Report;
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};

use super::Device;
use crate::config::Plan;
use crate::control::{self, Flow, Killed, Lane, SCHEMA, State, Status};
use crate::engine::{self, Ask};
use crate::flows;
use crate::netstack::DropReason;
use crate::tunnel::health::{Health, HealthView, Loss};
use crate::tunnel::history::Turn;

/// Puts together what the data thread counts, what the tunnel knows, and what was asked for.
pub(super) struct Teller {
    fixed: Mutex<Status>,
    started: Instant,
    health: HealthView,
    /// Empty until there is a data thread.
    asks: OnceLock<mpsc::Sender<Ask>>,
}

impl Teller {
    pub(super) fn new(plan: &Plan, local: &[IpNet], health: HealthView) -> Self {
        let fixed = Status {
            schema: SCHEMA,
            name: plan.name.to_string(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            agent_version: None,
            state: State::Connecting,
            via: plan.via.to_string(),
            region: None,
            device: String::new(),
            local_ip: local.iter().map(ToString::to_string).collect(),
            mtu: 0,
            cidr: plan.cidrs.iter().map(ToString::to_string).collect(),
            exclude: plan.excludes.iter().map(ToString::to_string).collect(),
            started_at: unix_seconds(),
            uptime_seconds: 0,
            bytes_tx: 0,
            bytes_rx: 0,
            packets_tx: 0,
            packets_rx: 0,
            packets_dropped: Default::default(),
            flows_open: 0,
            flows_total: 0,
            flows_refused: 0,
            lanes: Vec::new(),
            lanes_wanted: 0,
            trunk: control::Trunk::default(),
            history: Vec::new(),
            resumes: 0,
            counters: BTreeMap::new(),
            last_error: None,
            last_error_at: None,
            recovered_at: None,
        };
        Self { fixed: Mutex::new(fixed), started: engine::now(), health, asks: OnceLock::new() }
    }

    pub(super) fn set_region(&self, region: Option<String>) {
        self.fixed().region = region;
    }

    pub(super) fn set_data(&self, device: &Device, asks: mpsc::Sender<Ask>) {
        let mut fixed = self.fixed();
        fixed.device.clone_from(&device.name);
        fixed.mtu = device.mtu;
        // There is one data thread in a session's life.
        let _ = self.asks.set(asks);
    }

    fn fixed(&self) -> MutexGuard<'_, Status> {
        self.fixed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn status(&self) -> Status {
        let report = self.report().await.unwrap_or_default();
        let health = self.health.read();
        let counted = report.counters.iter().map(|(name, value)| ((*name).to_owned(), *value));
        let (packets_dropped, counters): (BTreeMap<String, u64>, BTreeMap<String, u64>) =
            counted.partition(|(name, _)| DropReason::ALL.iter().any(|reason| reason.name() == name));
        let count = |name: &str| counters.get(name).copied().unwrap_or_default();
        Status {
            agent_version: health.agent_version.clone(),
            state: health.state,
            uptime_seconds: self.started.elapsed().as_secs(),
            bytes_tx: report.bytes_sent,
            bytes_rx: report.bytes_received,
            packets_tx: count("packets_in"),
            packets_rx: count("packets_out"),
            packets_dropped,
            flows_open: report.flows_open,
            flows_total: report.flows_total,
            flows_refused: report.flows_refused,
            lanes: lanes(&report, &health),
            lanes_wanted: health.lanes_wanted as u64,
            trunk: trunk(&report, &health),
            history: health.history.turns().map(turn).collect(),
            resumes: health.resumes,
            counters,
            last_error: health.trouble.as_ref().map(|trouble| trouble.what.clone()),
            last_error_at: health.trouble.as_ref().map(|trouble| unix_at(trouble.since)),
            recovered_at: health.trouble.as_ref().and_then(|trouble| trouble.over).map(unix_at),
            ..self.fixed().clone()
        }
    }

    /// From now on the session tells that it ends.
    pub(super) fn ending(&self) {
        self.health.update(|health| health.state = State::Ending);
    }

    /// All flows by their ids, in pages: between two of them packets move on.
    pub(super) async fn flows(&self) -> Option<Vec<Flow>> {
        // One that ends between two pages comes twice; the later word holds.
        let mut flows = BTreeMap::new();
        let mut from = self.asks.get().map(|_| 0);
        while let Some(place) = from {
            let page = self.ask(|reply| Ask::Flows(place, reply)).await?;
            flows.extend(page.flows.iter().map(|flow| (flow.serial, flows::row(flow))));
            from = page.next;
        }
        Some(flows.into_values().collect())
    }

    pub(super) async fn kill(&self, ids: Vec<u64>) -> Option<Vec<Killed>> {
        let asked = ids.clone();
        let outcomes = self.ask(|reply| Ask::Kill(asked, reply)).await?;
        Some(ids.into_iter().zip(&outcomes).map(|(id, outcome)| flows::killed(id, outcome)).collect())
    }

    async fn report(&self) -> Option<Report> {
        self.ask(Ask::Report).await
    }

    async fn ask<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Option<T> {
        if self.health.read().state == State::Ending {
            // The data thread no longer answers.
            return None;
        }
        let (sender, reply) = oneshot::channel();
        let asked = async {
            self.asks.get()?.send(make(sender)).await.ok()?;
            reply.await.ok()
        };
        tokio::time::timeout(PATIENCE, asked).await.ok().flatten()
    }
}

fn lanes(report: &Report, health: &Health) -> Vec<Lane> {
    report
        .lanes
        .iter()
        .map(|stats| {
            let facts = health.lanes.iter().find(|facts| facts.lane == stats.lane);
            Lane {
                id: format!("{:08x}", stats.lane.0 >> 32),
                kind: facts.map_or("", |facts| facts.kind).to_owned(),
                session_id: facts.and_then(|facts| facts.session_id.clone()),
                age_seconds: facts.map_or(0, |facts| facts.since.elapsed().as_secs()),
                rtt_ms: stats.rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
                in_flight: stats.in_flight as u64,
                window: stats.window as u64,
                rate_tx: stats.send_rate,
                rate_rx: stats.receive_rate,
                bytes_tx: stats.sent,
                bytes_rx: stats.received,
                stalled: stats.stalled,
                retiring: stats.retiring,
                last_loss: facts.and_then(|facts| facts.last_loss.as_ref()).map(loss),
            }
        })
        .collect()
}

fn trunk(report: &Report, health: &Health) -> control::Trunk {
    let trunk = &report.trunk;
    control::Trunk {
        resent: trunk.resent,
        duplicates: trunk.duplicates,
        unacknowledged: trunk.unacknowledged as u64,
        held: trunk.held as u64,
        credit: trunk.credit,
        lost: health.trunks_lost,
    }
}

fn loss(loss: &Loss) -> control::Loss {
    control::Loss { at: unix_at(loss.at), reason: loss.reason.clone(), session_id: loss.session_id.clone() }
}

fn turn(turn: &Turn) -> control::Turn {
    control::Turn { at: unix_at(turn.at), state: turn.state, what: turn.what.clone() }
}

#[expect(clippy::disallowed_methods, reason = "a driver: when the session began, for people")]
pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// When it was, by today's clock.
#[expect(clippy::disallowed_methods, reason = "a driver: moments as people and scripts name them")]
fn unix_at(moment: Instant) -> u64 {
    let then = SystemTime::now().checked_sub(engine::now().saturating_duration_since(moment));
    then.and_then(|then| then.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_secs())
}

/// A data thread that does not answer for this long is reported without its figures.
const PATIENCE: Duration = Duration::from_secs(2);
