//! Pure: the ledger of live and recent flows, as `flows` shows it.

use std::time::Duration;

use agent::engine::{Culprit, FlowReport, FlowState, Gain, Kill};
use agent::wire::open::{Kind, Open, Refusal, Target};

use crate::control;

/// One flow of the engine as the control socket tells it.
pub fn row(report: &FlowReport) -> control::Flow {
    let (protocol, target) = match &report.open {
        Some(Open { kind: Kind::Echo, target: Target::Address(address, _) }) => ("icmp", address.to_string()),
        Some(open) => (protocol(open.kind), target(&open.target)),
        None => ("tcp", String::new()),
    };
    let figures = &report.figures;
    let gain =
        report.gain.unwrap_or(Gain { sent: report.sent, received: report.received, work: Duration::ZERO });
    let (ended_by, error) = end(report).map_or((None, None), |(who, how)| (Some(who), Some(how)));
    control::Flow {
        id: report.serial,
        protocol: protocol.to_owned(),
        source: source(report).unwrap_or_default(),
        target,
        state: state(report.state).to_owned(),
        bytes_tx: report.sent,
        bytes_rx: report.received,
        wire_tx: gain.sent,
        wire_rx: gain.received,
        compress_ms: report.gain.map(|gain| milliseconds(gain.work)),
        packets_tx: figures.packets_from,
        packets_rx: figures.packets_to,
        retransmits_tx: figures.repeats_from,
        retransmits_rx: figures.repeats_to,
        app_rtt_ms: figures.rtt.map(milliseconds),
        age_seconds: report.age.as_secs_f64(),
        dial_ms: report.dial.map(milliseconds),
        verdict: "proxy".to_owned(),
        ended_by: ended_by.map(str::to_owned),
        error: error.map(str::to_owned),
    }
}

/// What became of the wish to end the flow `id`.
pub fn killed(id: u64, kill: &Kill) -> control::Killed {
    let (outcome, report) = match kill {
        Kill::Done(report) => (control::Outcome::Killed, Some(report)),
        Kill::Over => (control::Outcome::Ended, None),
        Kill::Unknown => (control::Outcome::Unknown, None),
    };
    control::Killed {
        id,
        outcome,
        source: report.and_then(|report| source(report)),
        target: report.and_then(|report| Some(target(&report.open.as_ref()?.target))),
    }
}

fn source(report: &FlowReport) -> Option<String> {
    report.source.map(|source| source.to_string())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Who ended a flow and how, unless it ended in order.
fn end(report: &FlowReport) -> Option<(&'static str, &'static str)> {
    match (report.state, report.culprit) {
        (FlowState::Refused(_), Some(Culprit::Trunk)) => Some(("tunnel", "the tunnel could not take it")),
        (FlowState::Refused(Refusal::Prohibited), _) if is_echo(report) => Some(("agent", NO_PING)),
        (FlowState::Refused(refusal), _) => Some((refuser(refusal), reason(refusal))),
        (FlowState::Reset, culprit) => culprit.map(reset),
        (
            FlowState::Opening
            | FlowState::Greeting
            | FlowState::Dialling
            | FlowState::Open
            | FlowState::Closing
            | FlowState::Closed,
            _,
        ) => None,
    }
}

fn reset(culprit: Culprit) -> (&'static str, &'static str) {
    match culprit {
        Culprit::NearSide => ("application", "reset by the application"),
        Culprit::NearSilence => ("application", "the application's system stopped answering"),
        Culprit::FarSide => ("target", "reset by the target"),
        Culprit::FarEngine => ("agent", "reset by the agent"),
        Culprit::Owner => ("user", "reset by `flows kill`"),
        Culprit::Trunk => ("tunnel", "lost with the tunnel it was in"),
    }
}

fn refuser(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Refused => "target",
        Refusal::NetUnreachable | Refusal::HostUnreachable | Refusal::Prohibited | Refusal::TimedOut => {
            "network"
        }
        Refusal::Denied | Refusal::Exhausted | Refusal::UnknownName | Refusal::Unsupported => "agent",
    }
}

fn is_echo(report: &FlowReport) -> bool {
    report.open.as_ref().is_some_and(|open| open.kind == Kind::Echo)
}

/// What `flows` and `status` say when the agent may not ping.
pub(crate) const NO_PING: &str =
    "the agent may not ping: its group is not in net.ipv4.ping_group_range of the instance";

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
