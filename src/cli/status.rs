//! `status`: the sessions that run, and how they are.

use std::collections::HashMap;
use std::thread;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::print::{self, Printer};
use super::silent::Silent;
use crate::config::SessionName;
use crate::control::client::{self, Fault};
use crate::control::{self, SCHEMA, State};
use crate::error::{Exit, UserError};
use crate::flows::NO_PING;
use crate::session::registry;

/// Show the running sessions and how they are
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ssm-proxy status
  ssm-proxy status --watch
  ssm-proxy status --json | jq '.sessions[].state'

Ends with 0 when all sessions are up, 1 when one does not answer, 3 when none is running, 6 when one is not
connected.")]
pub(super) struct Status {
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

pub(super) fn run(args: Status, print: &Printer) -> anyhow::Result<Exit> {
    let mut before = Traffic::new();
    loop {
        let found = look(&args)?;
        let exit = found.exit();
        if args.watch && !args.json {
            print.next_frame()?;
        }
        show(&args, &found, &before, print)?;
        if !args.watch {
            return found.failure().map_or(
                Ok(exit),
                |failure| {
                    if args.json { Ok(exit) } else { Err(failure.into()) }
                },
            );
        }
        before = traffic(&found.sessions);
        thread::sleep(EVERY);
    }
}

/// How often `--watch` shows again.
pub(super) const EVERY: Duration = Duration::from_secs(2);

/// What the sessions said, and which of them said nothing.
struct Found {
    sessions: Vec<control::Status>,
    silent: Vec<Silent>,
    /// Set when the user asked for one session only.
    only: Option<SessionName>,
}

impl Found {
    fn exit(&self) -> Exit {
        if let Some(failure) = self.failure() {
            return failure.exit;
        }
        if self.silent.iter().any(Silent::is_at_fault) {
            return Exit::Failure;
        }
        match self.sessions.iter().all(|session| matches!(session.state, State::Up | State::Idle)) {
            true => Exit::Ok,
            false => Exit::Degraded,
        }
    }

    /// What there is to say when no session answered.
    fn failure(&self) -> Option<UserError> {
        if !self.sessions.is_empty() {
            return None;
        }
        let alive = self.silent.iter().find(|session| session.is_alive());
        Some(match (alive, &self.only) {
            (Some(session), _) => session.explain(),
            (None, Some(name)) => UserError::new(Exit::NotRunning, format!("session {name} is not running")),
            (None, None) => super::none_running(),
        })
    }
}

fn look(args: &Status) -> anyhow::Result<Found> {
    let (mut sessions, mut silent) = (Vec::new(), Vec::new());
    for entry in super::chosen(args.session_name.as_ref())? {
        match client::status(&entry.socket) {
            Ok(status) => sessions.push(status),
            // It came to its end while it was asked.
            Err(Fault::Closed) if !registry::is_listed(&entry) => {}
            Err(fault) => silent.extend(Silent::new(entry, fault)),
        }
    }
    Ok(Found { sessions, silent, only: args.session_name.clone() })
}

fn show(args: &Status, found: &Found, before: &Traffic, print: &Printer) -> anyhow::Result<()> {
    if args.json {
        let answered = found.sessions.iter().map(Listed::Answered);
        let silent = found.silent.iter().map(|session| Listed::Silent(session.json()));
        return print
            .json(&Document { schema: SCHEMA, sessions: answered.chain(silent).collect::<Vec<_>>() });
    }
    if !found.sessions.is_empty() || !found.silent.is_empty() {
        print.data(&text(found, args.watch.then_some(before)))?;
    } else if args.watch {
        print.data("no session is running")?;
    }
    Ok(())
}

#[derive(Serialize)]
struct Document<T> {
    schema: u32,
    sessions: T,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Listed<'a, T> {
    Answered(&'a control::Status),
    Silent(T),
}

/// Bytes sent and received by session, at the last look.
type Traffic = HashMap<(String, u32), (u64, u64)>;

fn traffic(sessions: &[control::Status]) -> Traffic {
    sessions.iter().map(|s| ((s.name.clone(), s.pid), (s.bytes_tx, s.bytes_rx))).collect()
}

/// Sessions, then their lanes, then what went wrong. With `before`, the speed since then.
fn text(found: &Found, before: Option<&Traffic>) -> String {
    let Found { sessions, silent, .. } = found;
    let mut headings = vec!["SESSION", "VIA", "STATE", "DEVICE", "CIDR", "UPTIME", "TX/RX", "FLOWS"];
    headings.extend(before.map(|_| "SPEED TX/RX"));
    let silent_row = |session: &Silent| {
        let mut row = session.row();
        row.resize(headings.len(), "-".to_owned());
        row
    };
    let rows =
        sessions.iter().map(|session| row(session, before)).chain(silent.iter().map(silent_row)).collect();
    let mut parts = vec![print::table(&headings, &[], rows)];
    let lanes: Vec<_> =
        sessions.iter().flat_map(|s| s.lanes.iter().map(|lane| lane_row(&s.name, lane))).collect();
    if !lanes.is_empty() {
        let headings = [
            "SESSION",
            "LANE",
            "KIND",
            "STATE",
            "RTT",
            "AGE",
            "IN FLIGHT",
            "RATE TX/RX",
            "TX/RX",
            "SSM SESSION",
        ];
        parts.push(print::table(&headings, &[], lanes));
    }
    let limits: Vec<_> = sessions
        .iter()
        .filter(|s| s.counters.get("echo_prohibited").is_some_and(|prohibited| *prohibited > 0))
        .map(|s| format!("{}: ping does not work: {NO_PING}", s.name))
        .collect();
    if !limits.is_empty() {
        parts.push(limits.join("\n"));
    }
    let losses: Vec<_> = sessions.iter().flat_map(losses).collect();
    if !losses.is_empty() {
        parts.push(losses.join("\n"));
    }
    let dropped: Vec<_> = sessions.iter().filter_map(dropped).collect();
    if !dropped.is_empty() {
        parts.push(dropped.join("\n"));
    }
    if !sessions.is_empty() {
        parts.push(sessions.iter().map(story).collect::<Vec<_>>().join("\n"));
    }
    let last_error = |session: &control::Status| Some(format!("{}: {}", session.name, last_error(session)?));
    let errors: Vec<_> =
        sessions.iter().filter_map(last_error).chain(silent.iter().map(Silent::why)).collect();
    if !errors.is_empty() {
        parts.push(errors.join("\n"));
    }
    parts.join("\n\n")
}

/// What went wrong last; not for long once that is over.
fn last_error(session: &control::Status) -> Option<String> {
    let error = print::clean(session.last_error.as_ref()?);
    let now = session.started_at + session.uptime_seconds;
    let ago = |moment: u64| now.saturating_sub(moment);
    match (session.recovered_at.map(ago), session.last_error_at.map(ago)) {
        (Some(over), _) if over > REMEMBERED => None,
        (Some(over), _) => Some(format!("recovered {} ago from: {error}", print::duration(over))),
        (None, Some(since)) => Some(format!("last error, {} ago: {error}", print::duration(since))),
        (None, None) => Some(format!("last error: {error}")),
    }
}

/// Seconds for which a trouble that is over is still told.
const REMEMBERED: u64 = 600;

/// One line on packets that went no further, if there are any but those that every kernel sends to groups.
fn dropped(session: &control::Status) -> Option<String> {
    let counts = session.packets_dropped.iter().filter(|(reason, count)| **count > 0 && *reason != GROUPS);
    let reasons: Vec<_> = counts.map(|(reason, count)| format!("{} {count}", print::clean(reason))).collect();
    (!reasons.is_empty()).then(|| format!("{}: packets dropped: {}", session.name, reasons.join(", ")))
}

const GROUPS: &str = "multicast";

fn row(session: &control::Status, before: Option<&Traffic>) -> Vec<String> {
    let mut row = vec![
        session.name.clone(),
        session.via.clone(),
        state(session.state).to_owned(),
        session.device.clone(),
        session.cidr.join(","),
        print::duration(session.uptime_seconds),
        both_ways(session.bytes_tx, session.bytes_rx),
        session.flows_open.to_string(),
    ];
    if let Some(before) = before {
        let last = before.get(&(session.name.clone(), session.pid));
        row.push(last.map_or_else(String::new, |(tx, rx)| {
            let speed = |now: u64, then: u64| print::rate(now.saturating_sub(then), EVERY);
            format!("{} / {}", speed(session.bytes_tx, *tx), speed(session.bytes_rx, *rx))
        }));
    }
    row
}

fn lane_row(session: &str, lane: &control::Lane) -> Vec<String> {
    vec![
        session.to_owned(),
        lane.id.clone(),
        lane.kind.clone(),
        lane_state(lane).to_owned(),
        lane.rtt_ms.map_or_else(|| "-".to_owned(), |rtt| format!("{rtt:.1}ms")),
        print::duration(lane.age_seconds),
        format!("{} of {}", print::bytes(lane.in_flight), print::bytes(lane.window)),
        format!("{} / {}", rate(lane.rate_tx), rate(lane.rate_rx)),
        both_ways(lane.bytes_tx, lane.bytes_rx),
        lane.session_id.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}

fn lane_state(lane: &control::Lane) -> &'static str {
    match (lane.stalled, lane.retiring) {
        (true, _) => "stalled",
        (false, true) => "retiring",
        (false, false) => "up",
    }
}

fn rate(bytes_a_second: u64) -> String {
    print::rate(bytes_a_second, Duration::from_secs(1))
}

/// One line for each lane that took the place of a lost one.
fn losses(session: &control::Status) -> Vec<String> {
    let now = session.started_at + session.uptime_seconds;
    let lost = session.lanes.iter().filter_map(|lane| Some((lane, lane.last_loss.as_ref()?)));
    let line = |(lane, loss): (&control::Lane, &control::Loss)| {
        let ago = print::duration(now.saturating_sub(loss.at));
        format!(
            "{}: lane {} is in place of one lost {ago} ago: {}",
            session.name,
            lane.id,
            print::clean(&loss.reason)
        )
    };
    lost.map(line).collect()
}

/// What the trunk over the lanes went through, and the latest turns of the session.
fn story(session: &control::Status) -> String {
    let control::Trunk { resent, duplicates, lost, credit, .. } = session.trunk;
    let mut lines = vec![format!(
        "{}: trunk resumed {} times, begun anew {lost} times, {} sent again, {} came twice, {} of credit",
        session.name,
        session.resumes,
        print::bytes(resent),
        print::bytes(duplicates),
        print::bytes(credit)
    )];
    let now = session.started_at + session.uptime_seconds;
    // The first turn is the connection itself.
    let latest = session.history.iter().skip(1).rev().take(SHOWN_TURNS).rev();
    lines.extend(latest.map(|turn| {
        let ago = print::duration(now.saturating_sub(turn.at));
        format!("{}: {ago} ago, {}: {}", session.name, state(turn.state), print::clean(&turn.what))
    }));
    lines.join("\n")
}

/// `--json` has them all.
const SHOWN_TURNS: usize = 5;

fn both_ways(tx: u64, rx: u64) -> String {
    format!("{} / {}", print::bytes(tx), print::bytes(rx))
}

fn state(state: State) -> &'static str {
    match state {
        State::Connecting => "connecting",
        State::Up => "up",
        State::Reconnecting => "reconnecting",
        State::Idle => "idle",
        State::Ending => "ending",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::tests::status;
    use crate::session::registry::Entry;

    #[test]
    fn a_session_and_its_lane_read_without_colour() {
        let text = text(&found([status("prod")]), None);

        assert_eq!(
            text,
            "\
SESSION  VIA                  STATE  DEVICE  CIDR        UPTIME  TX/RX            FLOWS
prod     i-0123456789abcdef0  up     ssmp0   10.0.0.0/8  2h 34m  1.3GB / 891.3MB  3

SESSION  LANE  KIND  STATE  RTT     AGE    IN FLIGHT         RATE TX/RX          TX/RX          SSM SESSION
prod     1     ssm   up     31.2ms  1m 0s  16.4kB of 65.5kB  500B/s / 800.0kB/s  1.0kB / 2.0kB  dev-0a1b2c

prod: trunk resumed 1 times, begun anew 0 times, 0B sent again, 0B came twice, 0B of credit"
        );
    }

    #[test]
    fn the_last_loss_of_a_lanes_place_the_trunk_and_the_latest_turns_are_told() {
        let mut session = status("prod");
        let now = session.started_at + session.uptime_seconds;
        let reason = "AWS ended the session: \u{1b}[31mtimed out".to_owned();
        session.lanes[0].last_loss = Some(control::Loss { at: now - 12, reason, session_id: None });
        session.trunk =
            control::Trunk { resent: 4096, duplicates: 7, lost: 2, credit: 1 << 20, ..session.trunk };
        let turn =
            |ago: u64, state, what: &str| control::Turn { at: now - ago, state, what: what.to_owned() };
        session.history = vec![
            turn(90, State::Up, "connected"),
            turn(20, State::Reconnecting, "connection lost"),
            turn(5, State::Up, "connected again"),
        ];

        let text = text(&found([session]), None);

        let told: Vec<&str> = text.lines().filter(|line| line.starts_with("prod: ")).collect();
        assert_eq!(
            told,
            [
                "prod: lane 1 is in place of one lost 12s ago: AWS ended the session: ?[31mtimed out",
                "prod: trunk resumed 1 times, begun anew 2 times, 4.1kB sent again, 7B came twice, 1.0MB of credit",
                "prod: 20s ago, reconnecting: connection lost",
                "prod: 5s ago, up: connected again",
            ]
        );
    }

    #[test]
    fn dropped_packets_are_one_line_by_reason() {
        let mut dropping = status("prod");
        dropping.packets_dropped.insert("multicast".to_owned(), 12);
        assert!(!text(&found([dropping.clone()]), None).contains("dropped"));

        dropping.packets_dropped.insert("checksum".to_owned(), 3);
        dropping.packets_dropped.insert("pending_full".to_owned(), 4000);

        let line = "prod: packets dropped: checksum 3, pending_full 4000";
        assert!(text(&found([dropping]), None).lines().any(|shown| shown == line));
    }

    #[test]
    fn watching_shows_the_speed_since_the_last_look() {
        let mut later = status("prod");
        let before = traffic(&[later.clone()]);
        later.bytes_rx += 3_000_000;

        assert!(text(&found([later.clone()]), Some(&before)).contains("0B/s / 1.5MB/s"));
        later.pid += 1;
        assert!(
            !text(&found([later]), Some(&before)).contains("1.5MB/s"),
            "another process counts from its own start"
        );
    }

    #[test]
    fn a_session_that_cannot_ping_says_why() {
        let mut session = status("prod");
        assert!(!text(&found([session.clone()]), None).contains("ping"));
        session.counters.insert("echo_prohibited".to_owned(), 1);
        let line = format!("prod: ping does not work: {NO_PING}");
        assert!(text(&found([session]), None).lines().any(|shown| shown == line));
    }

    #[test]
    fn a_trouble_is_told_with_its_time_and_forgotten_once_it_is_over() {
        let mut session = status("prod");
        session.last_error = Some("connection lost".to_owned());
        let now = session.started_at + session.uptime_seconds;
        let mut tell = |since: Option<u64>, over: Option<u64>| {
            session.last_error_at = since.map(|ago| now - ago);
            session.recovered_at = over.map(|ago| now - ago);
            last_error(&session)
        };

        assert_eq!(tell(Some(190), None).unwrap(), "last error, 3m 10s ago: connection lost");
        assert_eq!(tell(Some(190), Some(5)).unwrap(), "recovered 5s ago from: connection lost");
        assert_eq!(tell(Some(9000), Some(601)), None);
    }

    #[test]
    fn exit_codes_follow_the_states() {
        let exit = |states: &[State], faults: Vec<Fault>| {
            let sessions = states.iter().map(|state| control::Status { state: *state, ..status("a") });
            Found { silent: faults.into_iter().filter_map(silent).collect(), ..found(sessions) }.exit()
        };

        assert_eq!(exit(&[], vec![]), Exit::NotRunning);
        assert_eq!(exit(&[State::Up, State::Up], vec![]), Exit::Ok);
        assert_eq!(exit(&[State::Up, State::Reconnecting], vec![]), Exit::Degraded);
        assert_eq!(exit(&[State::Connecting], vec![]), Exit::Degraded);
        assert_eq!(exit(&[State::Up], vec![Fault::Absent, Fault::Dead]), Exit::Ok);
        assert_eq!(exit(&[State::Up], vec![Fault::Denied]), Exit::Ok, "another user's is not ours to judge");
        assert_eq!(exit(&[State::Reconnecting], vec![Fault::Silent]), Exit::Failure);
        assert_eq!(exit(&[], vec![Fault::Dead, Fault::Silent]), Exit::Failure);
        assert_eq!(exit(&[], vec![Fault::Denied]), Exit::Privileges);
        assert_eq!(exit(&[], vec![Fault::Dead]), Exit::NotRunning);
    }

    fn found(sessions: impl IntoIterator<Item = control::Status>) -> Found {
        Found { sessions: sessions.into_iter().collect(), silent: Vec::new(), only: None }
    }

    fn silent(fault: Fault) -> Option<Silent> {
        Silent::new(Entry { name: "b".parse().unwrap(), socket: "s".into(), meta: None }, fault)
    }
}
