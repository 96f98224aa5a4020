//! Pure: requests and answers on a session's control socket, one JSON object per line.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Version of every object here; also the `schema` of `--json` output.
pub const SCHEMA: u32 = 1;

/// What a command asks of a running session.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    Status,
    Flows,
    Down,
}

/// What it answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    Status(Box<Status>),
    Flows {
        flows: Vec<Flow>,
    },
    /// The session has begun to end; the connection closes when its clean-up is done.
    Ending,
    Error {
        message: String,
    },
}

/// How a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The first lane is being made.
    Connecting,
    Up,
    /// No lane now; flows wait and a new lane is being made.
    Reconnecting,
    Ending,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub schema: u32,
    pub name: String,
    pub pid: u32,
    pub version: String,
    pub agent_version: Option<String>,
    pub state: State,
    /// Instance id, or `tcp://host:port`.
    pub via: String,
    pub region: Option<String>,
    pub device: String,
    pub local_ip: Vec<String>,
    pub mtu: u32,
    pub cidr: Vec<String>,
    pub exclude: Vec<String>,
    /// Unix seconds.
    pub started_at: u64,
    pub uptime_seconds: u64,
    pub bytes_tx: u64,
    pub bytes_rx: u64,
    pub packets_tx: u64,
    pub packets_rx: u64,
    pub flows_open: u64,
    pub flows_total: u64,
    pub flows_refused: u64,
    pub lanes: Vec<Lane>,
    /// How often the trunk went on after it had lost its last lane.
    pub resumes: u64,
    /// Dropped packets and refused flows, by reason.
    pub counters: std::collections::BTreeMap<String, u64>,
    /// The last thing that went wrong, in one sentence.
    pub last_error: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Lane {
    pub id: String,
    /// `ssm` or `tcp`.
    pub kind: String,
    /// The SSM session, where the lane is one.
    pub session_id: Option<String>,
    pub age_seconds: u64,
    pub rtt_ms: Option<f64>,
    pub in_flight: u64,
    pub bytes_tx: u64,
    pub bytes_rx: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Flow {
    pub id: u64,
    pub protocol: String,
    pub source: SocketAddr,
    pub target: String,
    /// opening, open, closing, closed, refused, reset.
    pub state: String,
    pub bytes_tx: u64,
    pub bytes_rx: u64,
    pub age_seconds: f64,
    /// How long the agent's dial took.
    pub dial_ms: Option<f64>,
    pub error: Option<String>,
}
