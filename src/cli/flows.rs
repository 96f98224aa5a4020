//! `flows`: what goes where through the sessions.

use std::thread;

use clap::Args;
use serde::Serialize;

use super::print::{self, Printer};
use super::status::EVERY;
use crate::config::SessionName;
use crate::control::client::{self, Fault};
use crate::control::{Flow, SCHEMA};
use crate::error::{Exit, UserError};

/// Show the connections that go through the sessions
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ssm-proxy flows
  ssm-proxy flows --watch
  ssm-proxy flows --json | jq '.sessions[].flows[] | select(.state == \"refused\")'")]
pub(super) struct Flows {
    /// One JSON object; with --watch, one per line
    #[arg(long)]
    json: bool,
    /// Show again every 2 s until interrupted
    #[arg(short, long)]
    watch: bool,
    /// Only this session
    #[arg(long, value_name = "NAME", env = "SSM_PROXY_SESSION_NAME", hide_env = true)]
    session_name: Option<SessionName>,
}

pub(super) fn run(args: Flows, print: &Printer) -> anyhow::Result<Exit> {
    loop {
        let (sessions, failure) = look(&args, print)?;
        if args.watch && !args.json {
            print.next_frame()?;
        }
        if args.json {
            print.json(&Document { schema: SCHEMA, sessions: &sessions })?;
        } else if !sessions.is_empty() {
            print.data(&text(&sessions))?;
        } else if args.watch {
            print.data("no session is running")?;
        }
        match failure {
            _ if args.watch => thread::sleep(EVERY),
            Some(failure) if sessions.is_empty() && args.json => return Ok(failure.exit),
            Some(failure) if sessions.is_empty() => return Err(failure.into()),
            Some(_) | None => return Ok(Exit::Ok),
        }
    }
}

#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    sessions: &'a [Session],
}

#[derive(Serialize)]
struct Session {
    name: String,
    flows: Vec<Flow>,
}

/// The flows by session, and what to say when there is none.
fn look(args: &Flows, print: &Printer) -> anyhow::Result<(Vec<Session>, Option<UserError>)> {
    let mut sessions = Vec::new();
    let mut failure = None;
    for entry in super::chosen(args.session_name.as_ref())? {
        let name = entry.name.to_string();
        match client::flows(&entry.socket) {
            Ok(flows) => sessions.push(Session { name, flows }),
            Err(fault) => {
                let gone = matches!(fault, Fault::Absent | Fault::Dead);
                if !gone && args.session_name.is_none() {
                    print.warn(&format!("session {name}: {fault}"));
                }
                let asked_for = args.session_name.is_some();
                failure = if gone && !asked_for { failure } else { Some(fault.explain(&name)) };
            }
        }
    }
    Ok((sessions, failure.or_else(|| Some(super::none_running()))))
}

fn text(sessions: &[Session]) -> String {
    let several = sessions.len() > 1;
    let mut headings = vec!["ID", "PROTO", "SOURCE", "TARGET", "STATE", "TX", "RX", "AGE", "DIAL", "ERROR"];
    if several {
        headings.insert(0, "SESSION");
    }
    let rows = sessions
        .iter()
        .flat_map(|session| session.flows.iter().map(move |flow| (session, flow)))
        .map(|(session, flow)| several.then(|| session.name.clone()).into_iter().chain(row(flow)).collect())
        .collect();
    print::table(&headings, &[], rows)
}

fn row(flow: &Flow) -> [String; 10] {
    [
        flow.id.to_string(),
        flow.protocol.clone(),
        flow.source.clone(),
        flow.target.clone(),
        flow.state.clone(),
        print::bytes(flow.bytes_tx),
        print::bytes(flow.bytes_rx),
        print::duration(flow.age_seconds as u64),
        flow.dial_ms.map_or_else(|| "-".to_owned(), |dial| format!("{dial:.1}ms")),
        flow.error.clone().unwrap_or_default(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_of_one_session_need_no_session_column() {
        let text = text(&[session("a")]);

        assert_eq!(
            text,
            "\
ID  PROTO  SOURCE              TARGET         STATE    TX     RX  AGE    DIAL   ERROR
7   tcp    169.254.77.1:50000  10.0.1.5:5432  refused  1.5kB  0B  1m 3s  2.5ms  connection refused by the target"
        );
    }

    #[test]
    fn flows_of_several_sessions_name_theirs() {
        let text = text(&[session("a"), session("b")]);

        let starts: Vec<_> = text.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
        assert_eq!(starts, ["SESSION", "a", "b"]);
    }

    fn session(name: &str) -> Session {
        let flow = Flow {
            id: 7,
            protocol: "tcp".to_owned(),
            source: "169.254.77.1:50000".to_owned(),
            target: "10.0.1.5:5432".to_owned(),
            state: "refused".to_owned(),
            bytes_tx: 1500,
            bytes_rx: 0,
            age_seconds: 63.9,
            dial_ms: Some(2.5),
            error: Some("connection refused by the target".to_owned()),
        };
        Session { name: name.to_owned(), flows: vec![flow] }
    }
}
