//! Pure: requests and answers on a session's control socket, one JSON object per line.
//!
//! [`server`] is the session's end, [`client`] that of `status`, `flows` and `down`.

pub mod client;
pub mod server;

use serde::{Deserialize, Serialize};

/// Version of every object here; also the `schema` of `--json` output.
pub const SCHEMA: u32 = 1;

/// What a command asks of a running session.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    Status,
    Flows,
    /// Reset these flows.
    Kill {
        flows: Vec<u64>,
    },
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
    Killed {
        flows: Vec<Killed>,
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
    /// Nothing is to be carried, so there is no lane; the next connection makes one.
    Idle,
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
    /// Packets that went no further, by reason; reasons without any are left out.
    #[serde(default)]
    pub packets_dropped: std::collections::BTreeMap<String, u64>,
    pub flows_open: u64,
    pub flows_total: u64,
    pub flows_refused: u64,
    pub lanes: Vec<Lane>,
    /// How many there are to be now.
    pub lanes_wanted: u64,
    pub trunk: Trunk,
    /// What became of the session lately, the oldest first.
    pub history: Vec<Turn>,
    /// How often the trunk went on after it had lost its last lane.
    pub resumes: u64,
    /// What else the device's side counted, by name.
    pub counters: std::collections::BTreeMap<String, u64>,
    /// The last thing that went wrong, in one sentence.
    pub last_error: Option<String>,
    /// When it did, in Unix seconds.
    pub last_error_at: Option<u64>,
    /// Since when the session is up again.
    pub recovered_at: Option<u64>,
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
    /// How much may be in flight.
    pub window: u64,
    /// Bytes a second now.
    pub rate_tx: u64,
    pub rate_rx: u64,
    pub bytes_tx: u64,
    pub bytes_rx: u64,
    /// Nothing comes back on it for a while.
    pub stalled: bool,
    /// It makes room for another.
    pub retiring: bool,
    /// How the lane went that had its place before, unless all did by plan.
    pub last_loss: Option<Loss>,
}

/// How a lane went other than by plan.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Loss {
    /// Unix seconds.
    pub at: u64,
    pub reason: String,
    /// The SSM session that was lost.
    pub session_id: Option<String>,
}

/// The lasting connection that the lanes carry.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Trunk {
    /// Bytes sent again on another lane.
    pub resent: u64,
    /// Bytes that came twice.
    pub duplicates: u64,
    /// Bytes that wait for the agent's acknowledgement.
    pub unacknowledged: u64,
    /// Bytes that wait for earlier ones.
    pub held: u64,
    /// Bytes that the agent takes beyond those.
    pub credit: u64,
    /// Trunks that ended and took their connections with them.
    pub lost: u64,
}

/// A turn in a session's life.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Turn {
    /// Unix seconds.
    pub at: u64,
    /// From there on.
    pub state: State,
    pub what: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Flow {
    pub id: u64,
    pub protocol: String,
    pub source: String,
    pub target: String,
    /// opening, open, closing, closed, refused, reset.
    pub state: String,
    pub bytes_tx: u64,
    pub bytes_rx: u64,
    /// What became of these bytes in the tunnel: fewer where they are compressed.
    pub wire_tx: u64,
    pub wire_rx: u64,
    /// Processor time this end spent to compress and restore them; absent where compression is off.
    pub compress_ms: Option<f64>,
    /// Packets between the application and us.
    pub packets_tx: u64,
    pub packets_rx: u64,
    /// Segments sent again, of the packets above.
    pub retransmits_tx: u64,
    pub retransmits_rx: u64,
    /// Smoothed, between us and the application.
    pub app_rtt_ms: Option<f64>,
    pub age_seconds: f64,
    /// From the application's first packet to the agent's answer about the target.
    pub dial_ms: Option<f64>,
    /// What was decided about it: `proxy`.
    pub verdict: String,
    /// Who ended it, unless it ended in order: application, target, network, agent, tunnel, user.
    pub ended_by: Option<String>,
    /// How, in one sentence.
    pub error: Option<String>,
}

/// What became of a flow that was to be reset.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Killed {
    pub id: u64,
    pub outcome: Outcome,
    /// The flow, if it was killed.
    pub source: Option<String>,
    pub target: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Killed,
    /// It had ended before.
    Ended,
    /// There never was one.
    Unknown,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn requests_look_as_documented() {
        for (request, text) in [
            (Request::Status, r#"{"op":"status"}"#),
            (Request::Flows, r#"{"op":"flows"}"#),
            (Request::Kill { flows: vec![7, 9] }, r#"{"op":"kill","flows":[7,9]}"#),
            (Request::Down, r#"{"op":"down"}"#),
        ] {
            assert_eq!(serde_json::to_string(&request).unwrap(), text);
        }
    }

    #[test]
    fn a_status_survives_the_socket() {
        let text = serde_json::to_string(&Answer::Status(Box::new(status("prod")))).unwrap();

        let Answer::Status(back) = serde_json::from_str(&text).unwrap() else { panic!("{text}") };

        assert!(text.starts_with(r#"{"answer":"status","schema":1,"name":"prod""#), "{text}");
        assert_eq!(serde_json::to_value(back).unwrap(), serde_json::to_value(status("prod")).unwrap());
    }

    pub(crate) fn status(name: &str) -> Status {
        Status {
            schema: SCHEMA,
            name: name.to_owned(),
            pid: 4242,
            version: "0.1.0".to_owned(),
            agent_version: Some("0.1.0".to_owned()),
            state: State::Up,
            via: "i-0123456789abcdef0".to_owned(),
            region: Some("eu-west-1".to_owned()),
            device: "ssmp0".to_owned(),
            local_ip: vec!["169.254.77.1/30".to_owned()],
            mtu: 65535,
            cidr: vec!["10.0.0.0/8".to_owned()],
            exclude: Vec::new(),
            started_at: 1_700_000_000,
            uptime_seconds: 9240,
            bytes_tx: 1_288_490_188,
            bytes_rx: 891_289_600,
            packets_tx: 1,
            packets_rx: 2,
            packets_dropped: std::collections::BTreeMap::new(),
            flows_open: 3,
            flows_total: 40,
            flows_refused: 5,
            lanes: vec![Lane {
                id: "1".to_owned(),
                kind: "ssm".to_owned(),
                session_id: Some("dev-0a1b2c".to_owned()),
                age_seconds: 60,
                rtt_ms: Some(31.25),
                in_flight: 16384,
                window: 65536,
                rate_tx: 500,
                rate_rx: 800_000,
                bytes_tx: 1000,
                bytes_rx: 2000,
                stalled: false,
                retiring: false,
                last_loss: None,
            }],
            lanes_wanted: 1,
            trunk: Trunk::default(),
            history: Vec::new(),
            resumes: 1,
            counters: std::collections::BTreeMap::new(),
            last_error: None,
            last_error_at: None,
            recovered_at: None,
        }
    }
}
