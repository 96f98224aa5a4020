//! `flows`: what goes where through the sessions; `flows kill`: end some of it.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::thread;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::print::{self, Printer};
use super::status::EVERY;
use crate::config::SessionName;
use crate::control::client::{self, Fault};
use crate::control::{Flow, Killed, Outcome, SCHEMA};
use crate::error::{Exit, UserError};

/// Show the connections that go through the sessions
#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
#[command(after_help = "\
TX is what the application sent, RX what it got; GAIN tells how many times fewer bytes that was in the tunnel, and
CPU the time it took to compress and restore them. Flows that ended stay for a while.

Examples:
  ssm-proxy flows
  ssm-proxy flows --watch --sort rate
  ssm-proxy flows --json | jq '.sessions[].flows[] | select(.state == \"refused\")'
  ssm-proxy flows kill 7")]
pub(super) struct Flows {
    #[command(subcommand)]
    command: Option<Command>,
    /// One JSON object; with --watch, one per line
    #[arg(long, global = true)]
    json: bool,
    /// Show again every 2 s until interrupted, with the speed of each flow
    #[arg(short, long)]
    watch: bool,
    /// All columns, as on a terminal of 160 columns or more
    #[arg(long)]
    wide: bool,
    /// What to order them by; all but `id` begin with the largest
    #[arg(long, value_name = "COLUMN", value_enum, default_value_t = Sort::Id)]
    sort: Sort,
    /// Only this session
    #[arg(long, global = true, value_name = "NAME", env = "SSM_PROXY_SESSION_NAME", hide_env = true)]
    session_name: Option<SessionName>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Reset flows, at the application and at the target
    #[command(after_help = "\
Without a name it means the session \"default\", or the only one that runs. Ends with 1 when one of them was not there
to be reset.

Examples:
  ssm-proxy flows kill 7
  ssm-proxy flows kill 7 9 --session-name prod-vpc")]
    Kill {
        /// As in the first column of `ssm-proxy flows`
        #[arg(required = true, value_name = "ID", value_parser = flow_id)]
        ids: Vec<u64>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sort {
    Id,
    Bytes,
    Age,
    /// Needs --watch
    Rate,
}

pub(super) fn run(args: Flows, print: &Printer) -> anyhow::Result<Exit> {
    args.check()?;
    if let Some(Command::Kill { ids }) = &args.command {
        return kill(&args, ids, print);
    }
    let mut before = Traffic::new();
    loop {
        let (mut sessions, failure) = look(&args, print)?;
        sessions.iter_mut().for_each(|session| session.sort(args.sort, &before));
        if args.watch && !args.json {
            print.next_frame()?;
        }
        if args.json {
            print.json(&Document { schema: SCHEMA, sessions: &sessions })?;
        } else if !sessions.is_empty() {
            let screen = Screen::of(&args, print::screen());
            print.data(&text(&sessions, &screen, args.watch.then_some(&before)))?;
        } else if args.watch {
            print.data("no session is running")?;
        }
        match failure {
            _ if args.watch => thread::sleep(EVERY),
            Some(failure) if sessions.is_empty() && args.json => return Ok(failure.exit),
            Some(failure) if sessions.is_empty() => return Err(failure.into()),
            Some(_) | None => return Ok(Exit::Ok),
        }
        before = traffic(&sessions);
    }
}

impl Flows {
    fn check(&self) -> Result<(), UserError> {
        let shows = self.watch || self.wide || self.sort != Sort::Id;
        if self.command.is_some() && shows {
            return Err(UserError::new(Exit::Usage, "--watch, --wide and --sort show flows, kill does not"));
        }
        if self.sort == Sort::Rate && !self.watch {
            return Err(UserError::new(Exit::Usage, "--sort rate needs --watch")
                .cause("a speed is known from the second look on")
                .hint("ssm-proxy flows --watch --sort rate"));
        }
        Ok(())
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

impl Session {
    fn sort(&mut self, by: Sort, before: &Traffic) {
        let name = self.name.clone();
        let speed = |flow: &Flow| rates(&name, flow, before).map_or(0, |(tx, rx)| tx + rx);
        match by {
            Sort::Id => self.flows.sort_by_key(|flow| flow.id),
            Sort::Bytes => self.flows.sort_by_key(|flow| Reverse(flow.bytes_tx + flow.bytes_rx)),
            Sort::Age => self.flows.sort_by(|a, b| b.age_seconds.total_cmp(&a.age_seconds)),
            Sort::Rate => self.flows.sort_by_cached_key(|flow| Reverse(speed(flow))),
        }
    }
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

/// Bytes each way and the age in seconds, by session and flow, at the last look.
type Traffic = HashMap<(String, u64), (u64, u64, f64)>;

fn traffic(sessions: &[Session]) -> Traffic {
    let of = |session: &Session, flow: &Flow| {
        ((session.name.clone(), flow.id), (flow.bytes_tx, flow.bytes_rx, flow.age_seconds))
    };
    sessions.iter().flat_map(|session| session.flows.iter().map(move |flow| of(session, flow))).collect()
}

/// Bytes a second each way since the last look; a flow that ended gets no older.
fn rates(session: &str, flow: &Flow, before: &Traffic) -> Option<(u64, u64)> {
    let (tx, rx, age) = before.get(&(session.to_owned(), flow.id))?;
    let over = flow.age_seconds - age;
    let rate = |now: u64, then: &u64| (now.saturating_sub(*then) as f64 / over) as u64;
    (over > 0.0).then(|| (rate(flow.bytes_tx, tx), rate(flow.bytes_rx, rx)))
}

/// What there is room for.
#[derive(Clone, Copy)]
struct Screen {
    is_wide: bool,
    /// A picture that is shown again and again must not scroll.
    rows: usize,
}

impl Screen {
    fn of(args: &Flows, terminal: Option<(usize, usize)>) -> Self {
        let is_wide = args.wide || terminal.is_some_and(|(columns, _)| columns >= WIDE);
        // The headings, the note and the line of the cursor.
        let rows =
            terminal.filter(|_| args.watch).map_or(usize::MAX, |(_, rows)| rows.saturating_sub(3).max(1));
        Self { is_wide, rows }
    }
}

const WIDE: usize = 160;

/// A table of all flows, with their speeds where `before` is given.
fn text(sessions: &[Session], screen: &Screen, before: Option<&Traffic>) -> String {
    let flows = || sessions.iter().flat_map(|session| session.flows.iter().map(move |flow| (session, flow)));
    let several = sessions.len() > 1;
    let columns: Vec<_> = COLUMNS.iter().filter(|column| column.is_shown(several, screen, before)).collect();
    let headings: Vec<_> = columns.iter().map(|column| column.heading).collect();
    let none = Traffic::new();
    let cells = |(session, flow): (&Session, &Flow)| {
        let rates = rates(&session.name, flow, before.unwrap_or(&none));
        let cell = Cell { session: &session.name, flow, rates, is_wide: screen.is_wide };
        columns.iter().map(|column| (column.text)(&cell)).collect()
    };
    let rows: Vec<_> = flows().take(screen.rows).map(cells).collect();
    let (shown, all) = (rows.len(), flows().count());
    let table = print::table(&headings, &[], rows);
    if shown < all { format!("{table}\nshowing {shown} of {all}") } else { table }
}

struct Cell<'a> {
    session: &'a str,
    flow: &'a Flow,
    rates: Option<(u64, u64)>,
    is_wide: bool,
}

struct Column {
    heading: &'static str,
    when: When,
    text: fn(&Cell<'_>) -> String,
}

#[derive(Clone, Copy)]
enum When {
    Always,
    /// Several sessions have flows.
    Several,
    /// It would make the lines too long with speeds.
    WideOrStill,
    Watching,
    Wide,
}

impl Column {
    fn is_shown(&self, several: bool, screen: &Screen, before: Option<&Traffic>) -> bool {
        match self.when {
            When::Always => true,
            When::Several => several,
            When::WideOrStill => screen.is_wide || before.is_none(),
            When::Watching => before.is_some(),
            When::Wide => screen.is_wide,
        }
    }
}

/// Those that are always there fit into 100 columns with IPv4 addresses.
const COLUMNS: &[Column] = &[
    Column { heading: "SESSION", when: When::Several, text: |cell| cell.session.to_owned() },
    Column { heading: "ID", when: When::Always, text: |cell| cell.flow.id.to_string() },
    Column { heading: "PROTO", when: When::Always, text: |cell| cell.flow.protocol.clone() },
    Column { heading: "SOURCE", when: When::WideOrStill, text: |cell| cell.flow.source.clone() },
    Column { heading: "TARGET", when: When::Always, text: |cell| cell.flow.target.clone() },
    Column { heading: "STATE", when: When::Always, text: state },
    Column { heading: "TX", when: When::Always, text: |cell| print::bytes(cell.flow.bytes_tx) },
    Column { heading: "RX", when: When::Always, text: |cell| print::bytes(cell.flow.bytes_rx) },
    Column { heading: "TX/S", when: When::Watching, text: |cell| bytes(cell.rates.map(|(tx, _)| tx)) },
    Column { heading: "RX/S", when: When::Watching, text: |cell| bytes(cell.rates.map(|(_, rx)| rx)) },
    Column { heading: "AGE", when: When::Always, text: |cell| print::duration(cell.flow.age_seconds as u64) },
    Column { heading: "DIAL", when: When::Wide, text: |cell| milliseconds(cell.flow.dial_ms) },
    Column { heading: "APP RTT", when: When::Wide, text: |cell| milliseconds(cell.flow.app_rtt_ms) },
    Column {
        heading: "PACKETS",
        when: When::Wide,
        text: |cell| format!("{} / {}", cell.flow.packets_tx, cell.flow.packets_rx),
    },
    Column {
        heading: "RETRANS",
        when: When::Wide,
        text: |cell| format!("{} / {}", cell.flow.retransmits_tx, cell.flow.retransmits_rx),
    },
    Column { heading: "GAIN", when: When::Wide, text: gain },
    Column { heading: "CPU", when: When::Wide, text: |cell| milliseconds(cell.flow.compress_ms) },
    Column { heading: "ERROR", when: When::Wide, text: |cell| cell.flow.error.clone().unwrap_or_default() },
];

/// The state, and who brought it about where no other column says it.
fn state(cell: &Cell<'_>) -> String {
    let state = &cell.flow.state;
    match cell.flow.ended_by.as_deref().filter(|_| !cell.is_wide) {
        Some("application") => format!("{state}: app"),
        Some(who) => format!("{state}: {who}"),
        None => state.clone(),
    }
}

/// How many times fewer bytes went through the tunnel, each way.
fn gain(cell: &Cell<'_>) -> String {
    let flow = cell.flow;
    if flow.compress_ms.is_none() {
        return "-".to_owned();
    }
    let ratio = |bytes: u64, wire: u64| bytes as f64 / wire.max(1) as f64;
    let one = |bytes, wire| if bytes == 0 { "-".to_owned() } else { format!("{:.1}x", ratio(bytes, wire)) };
    format!("{} / {}", one(flow.bytes_tx, flow.wire_tx), one(flow.bytes_rx, flow.wire_rx))
}

fn bytes(count: Option<u64>) -> String {
    count.map_or_else(|| "-".to_owned(), print::bytes)
}

fn milliseconds(time: Option<f64>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| format!("{time:.1}ms"))
}

#[derive(Serialize)]
struct KillDocument<'a> {
    schema: u32,
    session: &'a str,
    flows: &'a [Killed],
}

/// Reads an id of a flow.
fn flow_id(text: &str) -> Result<u64, String> {
    let id = text.parse().ok().filter(|id| *id > 0);
    id.ok_or_else(|| "an id is a number from the first column of `ssm-proxy flows`".to_owned())
}

fn kill(args: &Flows, ids: &[u64], print: &Printer) -> anyhow::Result<Exit> {
    let entry = match &args.session_name {
        Some(name) => super::named(name),
        None => {
            let hint = |name: &SessionName| format!("ssm-proxy flows kill {} --session-name {name}", ids[0]);
            super::the_one(&super::running()?, hint)?.clone()
        }
    };
    let name = entry.name.as_str();
    let flows = client::kill(&entry.socket, ids).map_err(|fault| fault.explain(name))?;
    if args.json {
        print.json(&KillDocument { schema: SCHEMA, session: name, flows: &flows })?;
    }
    let mut exit = Exit::Ok;
    for flow in &flows {
        let Some(failure) = failure(name, flow) else {
            print.step(&format!("flow {} reset{}", flow.id, between(flow)));
            continue;
        };
        exit = failure.exit;
        if !args.json {
            print.failure(&failure.into());
        }
    }
    Ok(exit)
}

fn between(flow: &Killed) -> String {
    match (&flow.source, &flow.target) {
        (Some(source), Some(target)) => format!(": {source} to {target}"),
        (Some(_), None) | (None, Some(_) | None) => String::new(),
    }
}

fn failure(session: &str, flow: &Killed) -> Option<UserError> {
    let id = flow.id;
    let what = match flow.outcome {
        Outcome::Killed => return None,
        Outcome::Ended => format!("flow {id} has ended already"),
        Outcome::Unknown => format!("session {session} has no flow {id}"),
    };
    Some(UserError::new(Exit::Failure, what).hint("ssm-proxy flows"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NARROW: Screen = Screen { is_wide: false, rows: usize::MAX };
    const WIDE: Screen = Screen { is_wide: true, rows: usize::MAX };

    #[test]
    fn flows_of_one_session_need_no_session_column() {
        let text = text(&[session("a")], &NARROW, None);

        assert_eq!(
            text,
            "\
ID  PROTO  SOURCE              TARGET         STATE            TX     RX  AGE
7   tcp    169.254.77.1:50000  10.0.1.5:5432  refused: target  1.5kB  0B  1m 3s"
        );
    }

    #[test]
    fn a_wide_screen_has_all_columns() {
        let text = text(&[session("a")], &WIDE, None);

        assert_eq!(
            text,
            "\
ID  PROTO  SOURCE              TARGET         STATE    TX     RX  AGE    DIAL   APP RTT  PACKETS  RETRANS  GAIN      CPU    ERROR
7   tcp    169.254.77.1:50000  10.0.1.5:5432  refused  1.5kB  0B  1m 3s  2.5ms  -        3 / 2    1 / 0    3.0x / -  0.2ms  connection refused by the target"
        );
    }

    #[test]
    fn lines_fit_into_a_hundred_columns() {
        let mut long = session("a");
        let flow = &mut long.flows[0];
        flow.id = 65_536;
        flow.source = "169.254.77.1:50000".to_owned();
        flow.target = "100.100.100.100:50000".to_owned();
        flow.ended_by = Some("network".to_owned());
        (flow.bytes_tx, flow.bytes_rx, flow.age_seconds) = (999_900_000, 999_900_000, 86_000.0);
        let before = Traffic::from([(("a".to_owned(), 65_536), (1, 1, 85_999.0))]);

        for text in [text(&[long], &NARROW, Some(&before)), text(&[session("a")], &NARROW, None)] {
            let longest = text.lines().map(|line| line.chars().count()).max();
            assert!(longest <= Some(100), "{longest:?}\n{text}");
        }
    }

    #[test]
    fn watching_shows_speeds_and_no_more_rows_than_there_is_room_for() {
        let mut later = session("a");
        let before = traffic(&[session("a")]);
        later.flows[0].bytes_rx += 3_000_000;
        later.flows[0].age_seconds += 2.0;
        later.flows.push(Flow { id: 8, ..flow() });

        let text = text(&[later], &Screen { rows: 1, ..NARROW }, Some(&before));

        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].contains("TX/S  RX/S"), "{text}");
        assert!(lines[1].contains("0B    1.5MB"), "{text}");
        assert_eq!(lines[2..], ["showing 1 of 2"]);
    }

    #[test]
    fn the_largest_come_first() {
        let mut session = session("a");
        let small = Flow { id: 8, bytes_rx: 1, bytes_tx: 0, age_seconds: 99.0, ..flow() };
        session.flows = vec![small, flow(), Flow { id: 6, ..flow() }];
        let ids = |session: &Session| session.flows.iter().map(|flow| flow.id).collect::<Vec<_>>();
        let before =
            Traffic::from([(("a".to_owned(), 6), (0, 0, 60.0)), (("a".to_owned(), 8), (0, 0, 60.0))]);

        for (by, expected) in
            [(Sort::Id, [6, 7, 8]), (Sort::Bytes, [6, 7, 8]), (Sort::Age, [8, 6, 7]), (Sort::Rate, [6, 8, 7])]
        {
            session.sort(by, &before);
            assert_eq!(ids(&session), expected, "{by:?}");
        }
    }

    #[test]
    fn flows_of_several_sessions_name_theirs() {
        let text = text(&[session("a"), session("b")], &NARROW, None);

        let starts: Vec<_> = text.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
        assert_eq!(starts, ["SESSION", "a", "b"]);
    }

    fn session(name: &str) -> Session {
        Session { name: name.to_owned(), flows: vec![flow()] }
    }

    fn flow() -> Flow {
        Flow {
            id: 7,
            protocol: "tcp".to_owned(),
            source: "169.254.77.1:50000".to_owned(),
            target: "10.0.1.5:5432".to_owned(),
            state: "refused".to_owned(),
            bytes_tx: 1500,
            bytes_rx: 0,
            wire_tx: 500,
            wire_rx: 0,
            compress_ms: Some(0.2),
            packets_tx: 3,
            packets_rx: 2,
            retransmits_tx: 1,
            retransmits_rx: 0,
            app_rtt_ms: None,
            age_seconds: 63.9,
            dial_ms: Some(2.5),
            verdict: "proxy".to_owned(),
            ended_by: Some("target".to_owned()),
            error: Some("connection refused by the target".to_owned()),
        }
    }
}
