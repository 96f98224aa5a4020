//! Pure: the ledger of live and recent flows, as `flows` shows it.

use agent::engine::{FlowReport, FlowState};
use agent::wire::open::{Kind, Refusal, Target};

use crate::control;

/// One flow of the engine as the control socket tells it.
pub fn row(report: &FlowReport) -> control::Flow {
    let (protocol, target) = match &report.open {
        Some(open) => (protocol(open.kind), target(&open.target)),
        None => ("tcp", String::new()),
    };
    control::Flow {
        id: report.serial,
        protocol: protocol.to_owned(),
        source: report.source.map(|source| source.to_string()).unwrap_or_default(),
        target,
        state: state(report.state).to_owned(),
        bytes_tx: report.sent,
        bytes_rx: report.received,
        age_seconds: report.age.as_secs_f64(),
        dial_ms: report.dial.map(|dial| dial.as_secs_f64() * 1e3),
        error: match report.state {
            FlowState::Refused(refusal) => Some(reason(refusal).to_owned()),
            FlowState::Reset => Some("reset".to_owned()),
            FlowState::Opening
            | FlowState::Greeting
            | FlowState::Dialling
            | FlowState::Open
            | FlowState::Closing
            | FlowState::Closed => None,
        },
    }
}

fn protocol(kind: Kind) -> &'static str {
    match kind {
        Kind::Tcp => "tcp",
        Kind::Udp => "udp",
        Kind::Echo => "icmp",
        Kind::Dns => "dns",
    }
}

fn target(target: &Target) -> String {
    match target {
        Target::Address(address, port) => std::net::SocketAddr::new(*address, *port).to_string(),
        Target::Name(name, port) => format!("{name}:{port}"),
    }
}

fn state(state: FlowState) -> &'static str {
    match state {
        FlowState::Opening | FlowState::Greeting | FlowState::Dialling => "opening",
        FlowState::Open => "open",
        FlowState::Closing => "closing",
        FlowState::Closed => "closed",
        FlowState::Refused(_) => "refused",
        FlowState::Reset => "reset",
    }
}

fn reason(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Refused => "connection refused by the target",
        Refusal::NetUnreachable => "the agent has no route to the target's network",
        Refusal::HostUnreachable => "the target's host is unreachable from the agent",
        Refusal::Prohibited => "a firewall forbids it",
        Refusal::TimedOut => "no answer from the target",
        Refusal::Denied => "the agent's rules deny this target",
        Refusal::Exhausted => "the agent is out of ports, descriptors or flows",
        Refusal::UnknownName => "the name does not resolve at the agent",
        Refusal::Unsupported => "the agent does not serve this kind of flow",
    }
}
