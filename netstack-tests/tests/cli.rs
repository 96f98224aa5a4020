//! The real binary against a scratch run directory.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::{self, JoinHandle};

use netstack_tests::{bins, netns};
use serde_json::Value;
use ssm_proxy::config::{Plan, Wishes};
use ssm_proxy::control::server::{Ask, Handle, Owner, Server};
use ssm_proxy::control::{Flow, Killed, Lane, Outcome, SCHEMA, State, Status};
use ssm_proxy::session::registry;
use tempfile::TempDir;

#[test]
fn help_and_version_go_to_stdout() {
    let place = Place::new();

    let help = place.run(&["--help"]);
    let version = place.run(&["version", "--short"]);
    let flag = place.run(&["--version"]);

    assert_eq!(code(&help), 0);
    for word in ["up", "down", "status", "flows", "Exit codes", "[alias: start]"] {
        assert!(out(&help).contains(word), "{word}");
    }
    assert_eq!(out(&version), format!("{}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(out(&flag), format!("ssm-proxy {}\n", env!("CARGO_PKG_VERSION")));
    assert!(err(&help).is_empty() && err(&version).is_empty() && err(&flag).is_empty());
}

#[test]
fn every_command_has_examples_in_its_help() {
    for command in ["up", "down", "status", "flows"] {
        let help = Place::new().run(&[command, "--help"]);

        assert_eq!(code(&help), 0);
        assert!(out(&help).contains("Examples:"), "{command}");
    }
}

#[test]
fn wrong_usage_ends_with_2_and_names_what_is_wrong() {
    let id = "i-0123456789abcdef0";
    for (args, expected) in [
        (&[][..], "Usage:"),
        (&["sideways"], "sideways"),
        (&["up", "--cidr", "10.0.0.0/8"], "--instance"),
        (&["up", "--instance", id], "--cidr"),
        (&["up", "--instance", id, "--cidr", "vpc"], "vpc is not a network"),
        (&["up", "--instance", id, "--cidr", "10.0.1.5/8"], "did you mean 10.0.0.0/8"),
        (&["up", "--instance", id, "--cidr", "127.0.0.0/8"], "loopback"),
        (&["up", "--instance", id, "--cidr", "10.0.0.0/8", "--local-ip", "10.0.0.1/30"], "overlaps"),
        (&["up", "--instance", id, "--cidr", "10.0.0.0/8", "--mtu", "100"], "--mtu"),
        (&["up", "--instance", id, "--cidr", "10.0.0.0/8", "--timeout", "soon"], "duration"),
        (&["up", "--instance", id, "--cidr", "10.0.0.0/8", "--udp-timeout", "2d"], "duration"),
        (
            &["up", "--instance", id, "--via", "tcp://127.0.0.1:1", "--cidr", "10.0.0.0/8"],
            "exclude each other",
        ),
        (&["up", "--via", "tcp://192.0.2.1:742", "--cidr", "10.0.0.0/8"], "--key-file"),
        (&["up", "--instance", "bastion", "--cidr", "10.0.0.0/8"], "--instance-tag 'Name=bastion'"),
        (&["status", "--session-name", "../../etc"], "session name"),
        (&["status", "-q", "--debug"], "--debug"),
        (&["flows", "kill"], "<ID>"),
        (&["flows", "kill", "0"], "'0'"),
        (&["flows", "kill", "7", "web"], "'web'"),
        (&["flows", "--watch", "kill", "7"], "--watch"),
        (&["flows", "--sort", "rate"], "needs --watch"),
    ] {
        let output = Place::new().run(args);

        assert_eq!(code(&output), 2, "{args:?}: {}", err(&output));
        assert!(err(&output).contains(expected), "{args:?}: {}", err(&output));
        assert!(out(&output).is_empty(), "{args:?}");
    }
}

#[test]
fn a_flag_wins_over_its_variable() {
    let place = Place::new();

    let output = place
        .command(&["up", "--via", "tcp://192.0.2.1:742"])
        .env("SSM_PROXY_INSTANCE", "i-0123456789abcdef0")
        .env("SSM_PROXY_CIDR", "10.0.0.0/8,vpc")
        .env("SSM_PROXY_LAZY", "1")
        .output()
        .unwrap();

    assert!(err(&output).contains("needs --key-file"), "{}", err(&output));
}

#[test]
fn with_no_session_commands_end_with_3() {
    let place = Place::new();

    for args in [
        &["status"][..],
        &["flows"],
        &["flows", "kill", "7"],
        &["down"],
        &["down", "--all"],
        &["status", "--session-name", "a"],
    ] {
        let output = place.run(args);
        assert_eq!(code(&output), 3, "{args:?}");
        assert!(err(&output).starts_with("error: "), "{args:?}: {}", err(&output));
        assert!(out(&output).is_empty(), "{args:?}");
    }
    let json = place.run(&["status", "--json"]);
    assert_eq!((code(&json), out(&json)), (3, "{\"schema\":1,\"sessions\":[]}\n".to_owned()));
}

#[test]
fn an_absent_run_directory_is_no_session() {
    let place = Place::new();

    let output =
        place.command(&["status"]).env("SSM_PROXY_RUN_DIR", place.dir().join("absent")).output().unwrap();

    assert_eq!(code(&output), 3, "{}", err(&output));
}

#[test]
fn without_root_up_names_the_command_to_run() {
    let Some(place) = Place::open_to_all() else {
        return netns::skipped("needs root to become another user");
    };

    let output = place
        .command(&["up", "--instance-tag", "Name=my host", "--cidr", "10.0.0.0/8"])
        .env("AWS_PROFILE", "dev")
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();

    assert_eq!(code(&output), 7, "{}", err(&output));
    let text = err(&output);
    let hint = text.lines().find_map(|line| line.strip_prefix("try: ")).unwrap();
    assert!(hint.starts_with("sudo --preserve-env=AWS_PROFILE,SSM_PROXY_RUN_DIR "), "{hint}");
    assert!(hint.ends_with("ssm-proxy up --instance-tag 'Name=my host' --cidr 10.0.0.0/8"), "{hint}");
}

#[test]
fn status_shows_a_running_session() {
    let place = Place::new();
    let session = Session::start(&place, "prod", State::Up);

    let table = place.run(&["status"]);
    let json = place.run(&["status", "--json", "--session-name", "prod"]);
    session.end();

    assert_eq!((code(&table), code(&json)), (0, 0), "{}", err(&table));
    let text = out(&table);
    let row: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..5], ["prod", "i-0123456789abcdef0", "up", "ssmp0", "10.0.0.0/8"]);
    assert!(text.contains("31.2ms") && text.contains("dev-0a1b2c"), "{text}");
    assert!(!text.contains('\u{1b}'));
    let document: Value = serde_json::from_str(&out(&json)).unwrap();
    assert_eq!(document["schema"], 1);
    assert_eq!(document["sessions"][0]["name"], "prod");
    assert_eq!(document["sessions"][0]["lanes"][0]["rtt_ms"], 31.25);
}

#[test]
fn a_session_without_a_lane_is_degraded() {
    let place = Place::new();
    let session = Session::start(&place, "prod", State::Reconnecting);

    let output = place.run(&["status"]);
    session.end();

    assert_eq!(code(&output), 6);
    assert!(out(&output).contains("reconnecting"));
}

#[test]
fn flows_are_listed() {
    let place = Place::new();
    let session = Session::start(&place, "prod", State::Up);

    let table = place.run(&["flows"]);
    let json = place.run(&["flows", "--json"]);
    session.end();

    assert_eq!((code(&table), code(&json)), (0, 0), "{}", err(&table));
    assert!(out(&table).contains("169.254.77.1:50000  10.0.1.5:5432"), "{}", out(&table));
    let document: Value = serde_json::from_str(&out(&json)).unwrap();
    assert_eq!(document["sessions"][0]["flows"][0]["target"], "10.0.1.5:5432");
}

/// A session of this name has so many flows.
const CROWDED: &str = "crowded";
const CROWD: usize = 20_000;

#[test]
fn twenty_thousand_flows_are_listed() {
    let place = Place::new();
    let session = Session::start(&place, CROWDED, State::Up);

    let table = place.run(&["flows"]);
    let json = place.run(&["flows", "--json"]);
    session.end();

    assert_eq!((code(&table), code(&json)), (0, 0), "{}{}", err(&table), err(&json));
    assert_eq!(out(&table).lines().count(), 1 + CROWD);
    let document: Value = serde_json::from_str(&out(&json)).unwrap();
    assert_eq!(document["sessions"][0]["flows"].as_array().unwrap().len(), CROWD);
}

#[test]
fn flows_are_killed_by_their_ids() {
    let place = Place::new();
    let session = Session::start(&place, "prod", State::Up);

    let one = place.run(&["flows", "kill", "7"]);
    let several = place.run(&["flows", "kill", "6", "7", "9", "--session-name", "prod"]);
    let json = place.run(&["flows", "kill", "7", "9", "--json"]);
    let named =
        place.command(&["flows", "kill", "7"]).env("SSM_PROXY_SESSION_NAME", "prod").output().unwrap();
    let other = place.run(&["flows", "--session-name", "dev", "kill", "7"]);
    session.end();

    assert_eq!((code(&one), out(&one)), (0, String::new()), "{}", err(&one));
    assert_eq!(err(&one), "ok flow 7 reset: 169.254.77.1:50000 to 10.0.1.5:5432\n");
    assert_eq!(code(&several), 1);
    for said in ["error: flow 6 has ended already", "ok flow 7 reset", "error: session prod has no flow 9"] {
        assert!(err(&several).contains(said), "{said}: {}", err(&several));
    }
    assert_eq!(code(&json), 1);
    let document: Value = serde_json::from_str(&out(&json)).unwrap();
    assert_eq!((&document["schema"], &document["session"]), (&Value::from(1), &Value::from("prod")));
    let outcomes = [0, 1].map(|at| document["flows"][at]["outcome"].as_str().unwrap());
    assert_eq!(outcomes, ["killed", "unknown"]);
    assert_eq!(document["flows"][0]["target"], "10.0.1.5:5432");
    assert_eq!(code(&named), 0, "{}", err(&named));
    assert_eq!(code(&other), 3, "{}", err(&other));
}

#[test]
fn kill_wants_to_know_which_session_when_several_run() {
    let place = Place::new();
    let sessions = [("dev", "10.0.0.0/8"), ("prod", "172.16.0.0/12")]
        .map(|(name, cidr)| Session::start_with(&place, name, cidr, State::Up));

    let output = place.run(&["flows", "kill", "7"]);
    sessions.into_iter().for_each(Session::end);

    assert_eq!(code(&output), 2);
    assert!(err(&output).contains("ssm-proxy flows kill 7 --session-name "), "{}", err(&output));
}

#[test]
fn watching_with_json_is_one_object_per_line() {
    let place = Place::new();
    let session = Session::start(&place, "prod", State::Up);

    for command in ["status", "flows"] {
        let child = place.command(&[command, "--watch", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut child = KillOnDrop(child);
        let mut line = String::new();
        BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        drop(child);

        assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["schema"], 1, "{command}");
    }
    session.end();
}

#[test]
fn down_waits_for_the_clean_up_and_leaves_nothing() {
    let place = Place::new();
    let session = Session::start(&place, "default", State::Up);

    let output = place.run(&["down"]);

    assert_eq!(code(&output), 0, "{}", err(&output));
    assert!(err(&output).contains("session default ended"), "{}", err(&output));
    assert!(session.was_told_to_end());
    assert_eq!(place.files(), [".lock"]);
    assert_eq!(code(&place.run(&["down"])), 3);
}

#[test]
fn down_takes_the_only_session_but_does_not_guess_between_two() {
    let place = Place::new();
    let first = Session::start(&place, "a", State::Up);
    let second = Session::start_with(&place, "b", "172.16.0.0/12", State::Up);

    let guess = place.run(&["down"]);
    let named = place.run(&["down", "--session-name", "b"]);
    let only = place.run(&["down"]);

    assert_eq!((code(&guess), code(&named), code(&only)), (2, 0, 0), "{}", err(&only));
    assert!(err(&guess).contains("a, b"));
    assert!(first.was_told_to_end() && second.was_told_to_end());
}

#[test]
fn down_all_ends_every_session() {
    let place = Place::new();
    let first = Session::start(&place, "a", State::Up);
    let second = Session::start_with(&place, "b", "172.16.0.0/12", State::Up);

    let named = place.run(&["stop", "--all", "--session-name", "a"]);
    let output = place.command(&["stop", "--all"]).env("SSM_PROXY_SESSION_NAME", "a").output().unwrap();

    assert_eq!(code(&named), 2, "{}", err(&named));
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert!(first.was_told_to_end() && second.was_told_to_end());
}

#[test]
fn a_dead_session_is_told_from_a_running_one() {
    let place = Place::new();
    drop(UnixListener::bind(place.dir().join("default.sock")).unwrap());

    let status = place.run(&["status"]);
    let down = place.run(&["down", "--session-name", "default"]);

    assert_eq!((code(&status), code(&down)), (3, 3));
    assert!(out(&status).contains("default: died without cleaning up"), "{}", out(&status));
    assert!(err(&down).contains("died without cleaning up"), "{}", err(&down));
    assert!(err(&down).contains("try: "), "{}", err(&down));
}

#[test]
fn a_session_that_gives_no_answer_is_listed_with_the_reason() {
    let place = Place::new();
    let well = Session::start_with(&place, "well", "172.16.0.0/12", State::Up);
    let owner = Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
    let mut ill = registry::claim(place.dir(), &plan("ill", "10.0.0.0/8"), owner, 7).unwrap();
    ill.set_device("ssmp9").unwrap();
    // It hangs up on everybody.
    let listener = UnixListener::bind(ill.socket()).unwrap();
    thread::spawn(move || listener.incoming().for_each(drop));
    drop(UnixListener::bind(place.dir().join("dead.sock")).unwrap());

    let shown = place.run(&["status"]);
    let json = place.run(&["status", "--json"]);
    let alone = place.run(&["status", "--session-name", "ill"]);

    assert_eq!((code(&shown), code(&json), code(&alone)), (1, 1, 1));
    let shown = out(&shown);
    let row = |name: &str| {
        let line = shown.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
        line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect::<Vec<_>>()
    };
    assert_eq!(row("well")[2], "up");
    assert_eq!(row("ill")[1..5], ["i-0123456789abcdef0", "not answering", "ssmp9", "10.0.0.0/8"], "{shown}");
    assert_eq!(row("dead")[1..5], ["-", "dead", "-", "-"], "{shown}");
    assert!(shown.contains("ill: ended before it answered\n"), "{shown}");
    let alone = (out(&alone), err(&alone));
    assert!(
        alone.0.contains("not answering") && alone.1.starts_with("error: session ill ended"),
        "{alone:?}"
    );

    let json: Value = serde_json::from_str(&out(&json)).unwrap();
    let listed: Vec<_> =
        json["sessions"].as_array().unwrap().iter().map(|s| (&s["name"], &s["state"])).collect();
    let expected = [("well", "up"), ("dead", "dead"), ("ill", "not_answering")];
    assert_eq!(listed.len(), 3, "{json}");
    assert!(
        listed.iter().zip(expected).all(|(found, wanted)| *found.0 == wanted.0 && *found.1 == wanted.1),
        "{json}"
    );
    let ill_json = &json["sessions"][2];
    assert_eq!(ill_json["last_error"], "ended before it answered");
    assert_eq!((&ill_json["pid"], &ill_json["started_at"]), (&std::process::id().into(), &7.into()));
    assert_eq!(ill_json["cidr"], serde_json::json!(["10.0.0.0/8"]));
    well.end();
    drop(ill);
}

#[test]
fn garbage_from_a_socket_is_an_error_and_no_panic() {
    let place = Place::new();
    let listener = UnixListener::bind(place.dir().join("default.sock")).unwrap();
    let peer = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::Write::write_all(&mut stream, b"\x00\xff\x1b[2J\n").unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });

    let output = place.run(&["status"]);
    peer.join().unwrap();

    assert_ne!(code(&output), 0);
    assert!(!err(&output).contains("panicked") && !err(&output).contains('\u{1b}'), "{}", err(&output));
}

#[test]
fn the_user_who_started_a_session_may_ask_and_end_it() {
    let Some(place) = Place::open_to_all() else {
        return netns::skipped("needs root to become another user");
    };
    let session =
        Session::start_for(&place, "default", "10.0.0.0/8", State::Up, Owner { uid: 65534, gid: 65534 });

    let as_user = |args: &[&str], uid| place.command(args).uid(uid).gid(uid).output().unwrap();
    let stranger = as_user(&["status"], 65533);
    let stranger_down = as_user(&["down"], 65533);
    let owner = as_user(&["status"], 65534);
    let down = as_user(&["down"], 65534);

    assert_eq!((code(&stranger), code(&stranger_down)), (7, 7), "{}", err(&stranger));
    assert!(err(&stranger).contains("belongs to another user"), "{}", err(&stranger));
    assert_eq!((code(&owner), code(&down)), (0, 0), "{}", err(&down));
    assert!(session.was_told_to_end());
}

#[test]
fn a_closed_pipe_is_no_error() {
    let place = Place::new();
    let session = Session::start(&place, "prod", State::Up);

    for args in [&["version"][..], &["status"], &["status", "--json"], &["flows", "--watch"], &["--help"]] {
        let (reader, writer) = UnixStream::pair().unwrap();
        reader.shutdown(Shutdown::Both).unwrap();
        drop(reader);
        let output = place.command(args).stdout(OwnedFd::from(writer)).output().unwrap();

        assert_eq!(code(&output), 0, "{args:?}: {}", err(&output));
        assert!(err(&output).is_empty(), "{args:?}: {}", err(&output));
    }
    session.end();
}

#[test]
fn colour_follows_the_flag() {
    let place = Place::new();

    let always = place.run(&["status", "--color", "always"]);
    let never = place.run(&["status", "--color", "never"]);
    let no_color =
        place.command(&["status"]).env("NO_COLOR", "1").env("CLICOLOR_FORCE", "1").output().unwrap();

    assert!(err(&always).contains('\u{1b}'));
    assert!(!err(&never).contains('\u{1b}'));
    assert!(!err(&no_color).contains('\u{1b}'), "{}", err(&no_color));
}

#[test]
fn what_is_said_can_be_set_by_variables_and_a_flag_wins() {
    let place = Place::new();
    let run = |args: &[&str], variable: (&str, &str)| {
        let [name, value] = [variable.0, variable.1];
        place.command(args).env(name, value).env("NO_COLOR", "1").output().unwrap()
    };
    let coloured = |args: &[&str], value: &str| {
        let output = run(args, ("SSM_PROXY_COLOR", value));
        assert_eq!(code(&output), 3, "{}", err(&output));
        err(&output).contains('\u{1b}')
    };
    assert!(coloured(&["status"], "always"));
    assert!(!coloured(&["status", "--color", "never"], "always"));
    assert!(coloured(&["--color", "always", "status"], "never"));

    // `down` says what it did, and more of it with `--verbose`.
    let said = |args: &[&str], variable: (&str, &str)| {
        let session = Session::start(&place, "default", State::Up);
        let output = run(args, variable);
        assert_eq!(code(&output), 0, "{}", err(&output));
        assert!(session.was_told_to_end());
        err(&output).lines().count()
    };
    let (some, more) =
        (said(&["down"], ("SSM_PROXY_QUIET", "0")), said(&["down", "-v"], ("SSM_PROXY_QUIET", "0")));
    assert!(0 < some && some < more, "{some} and {more} lines");
    assert_eq!(said(&["down"], ("SSM_PROXY_QUIET", "1")), 0);
    assert_eq!(said(&["down", "-v"], ("SSM_PROXY_QUIET", "1")), more);
    assert_eq!(said(&["down"], ("SSM_PROXY_VERBOSE", "true")), more);
    assert_eq!(said(&["down"], ("SSM_PROXY_DEBUG", "yes")), more);
    assert_eq!(said(&["-q", "down"], ("SSM_PROXY_DEBUG", "1")), 0);
    assert!(
        said(&["down"], ("SSM_PROXY_QUIET", "")) == some && said(&["down"], ("SSM_PROXY_COLOR", "")) == some
    );
    let unclear = run(&["down"], ("SSM_PROXY_QUIET", "perhaps"));
    assert_eq!(code(&unclear), 2, "{}", err(&unclear));
}

/// A run directory of its own, and the binary that is shown nothing else.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// One that other users may look into; `None` when we are not root and cannot become them.
    fn open_to_all() -> Option<Self> {
        let place = Self::new();
        fs::set_permissions(place.dir(), fs::Permissions::from_mode(0o755)).unwrap();
        rustix::process::geteuid().is_root().then_some(place)
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(bins::ssm_proxy());
        command.args(args).env_clear().env("SSM_PROXY_RUN_DIR", self.dir()).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn files(&self) -> Vec<String> {
        fs::read_dir(self.dir())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

/// A session of which only the registry entry and the control socket are real.
struct Session {
    ended: JoinHandle<bool>,
    stop: tokio::sync::oneshot::Sender<()>,
}

impl Session {
    fn start(place: &Place, name: &str, state: State) -> Self {
        Self::start_with(place, name, "10.0.0.0/8", state)
    }

    fn start_with(place: &Place, name: &str, cidr: &str, state: State) -> Self {
        let owner =
            Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
        Self::start_for(place, name, cidr, state, owner)
    }

    fn start_for(place: &Place, name: &str, cidr: &str, state: State, owner: Owner) -> Self {
        let plan = plan(name, cidr);
        let status = status(&plan, state);
        let flows = if name == CROWDED { CROWD } else { 1 };
        let mut claim = registry::claim(place.dir(), &plan, owner, 1).unwrap();
        claim.set_device("ssmp0").unwrap();
        let (ready, started) = std::sync::mpsc::channel();
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let ended = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (handle, mut asks) = Handle::new();
                let server = Server::start(&claim.socket(), owner, handle).unwrap();
                ready.send(()).unwrap();
                let told = loop {
                    tokio::select! {
                        _ = &mut stopped => break false,
                        ask = asks.recv() => match ask.unwrap() {
                            Ask::Status(reply) => drop(reply.send(status.clone())),
                            Ask::Flows(reply) => drop(reply.send(vec![flow(); flows])),
                            Ask::Kill(ids, reply) => drop(reply.send(ids.into_iter().map(killed).collect())),
                            Ask::Down => break true,
                        }
                    }
                };
                drop(claim);
                drop(server);
                told
            })
        });
        started.recv().unwrap();
        Self { ended, stop }
    }

    fn end(self) {
        let _ = self.stop.send(());
        self.ended.join().unwrap();
    }

    fn was_told_to_end(self) -> bool {
        let Self { ended, stop } = self;
        let told = ended.join().unwrap();
        drop(stop);
        told
    }
}

struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn plan(name: &str, cidr: &str) -> Plan {
    Plan::new(Wishes {
        name: Some(name.parse().unwrap()),
        instance: Some("i-0123456789abcdef0".to_owned()),
        cidrs: vec![cidr.to_owned()],
        ..Wishes::default()
    })
    .unwrap()
}

fn status(plan: &Plan, state: State) -> Status {
    Status {
        packets_dropped: Default::default(),
        schema: SCHEMA,
        name: plan.name.to_string(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        agent_version: None,
        state,
        via: plan.via.to_string(),
        region: None,
        device: "ssmp0".to_owned(),
        local_ip: vec!["169.254.77.1/30".to_owned()],
        mtu: 65535,
        cidr: plan.cidrs.iter().map(ToString::to_string).collect(),
        exclude: Vec::new(),
        started_at: 1,
        uptime_seconds: 61,
        bytes_tx: 1000,
        bytes_rx: 2000,
        packets_tx: 1,
        packets_rx: 2,
        flows_open: 1,
        flows_total: 1,
        flows_refused: 0,
        lanes: vec![Lane {
            id: "1".to_owned(),
            kind: "ssm".to_owned(),
            session_id: Some("dev-0a1b2c".to_owned()),
            age_seconds: 60,
            rtt_ms: Some(31.25),
            in_flight: 0,
            bytes_tx: 1000,
            bytes_rx: 2000,
            window: 0,
            rate_tx: 0,
            rate_rx: 0,
            stalled: false,
            retiring: false,
            last_loss: None,
        }],
        lanes_wanted: 1,
        trunk: ssm_proxy::control::Trunk::default(),
        history: Vec::new(),
        resumes: 0,
        counters: Default::default(),
        last_error: None,
        last_error_at: None,
        recovered_at: None,
    }
}

fn flow() -> Flow {
    Flow {
        id: 7,
        protocol: "tcp".to_owned(),
        source: "169.254.77.1:50000".to_owned(),
        target: "10.0.1.5:5432".to_owned(),
        state: "open".to_owned(),
        bytes_tx: 10,
        bytes_rx: 20,
        wire_tx: 10,
        wire_rx: 20,
        compress_ms: None,
        packets_tx: 4,
        packets_rx: 3,
        retransmits_tx: 0,
        retransmits_rx: 1,
        app_rtt_ms: Some(0.5),
        age_seconds: 1.5,
        dial_ms: Some(2.5),
        verdict: "proxy".to_owned(),
        ended_by: None,
        error: None,
    }
}

/// Flow 7 can be killed, 6 has ended, and there never was another.
fn killed(id: u64) -> Killed {
    let outcome = match id {
        7 => Outcome::Killed,
        6 => Outcome::Ended,
        _ => Outcome::Unknown,
    };
    let known = |text: &str| (id == 7).then(|| text.to_owned());
    Killed { id, outcome, source: known("169.254.77.1:50000"), target: known("10.0.1.5:5432") }
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("ended by itself")
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}
