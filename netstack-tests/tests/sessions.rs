//! What a user and an operator meet: ends at bad moments, other users, strangers at the agent's port, company
//! networks, a network that changes, AWS that refuses.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a step that fails ends the test")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use agent::wire::trunk::segment::Frame;
use anyhow::{Context as _, Result, ensure};
use netstack_tests::patience::{now, until};
use netstack_tests::ssm::{self, ApiFailure, Count, Operation, ResumeAnswer, Simulator};
use netstack_tests::vpc::{DEADLINE, INSTANCE, LINK, Process, TARGET, TCP_LANE_PORT, UP, Vpc};
use netstack_tests::{bins, netns, require_netns, servers};
use rustix::process::Signal;

/// A session must be gone this soon after a signal.
const END: Duration = Duration::from_secs(6);
/// A user who is not root, and one to whom nothing belongs.
const DEV: u32 = 4242;
const STRANGER: u32 = 4343;

struct World {
    simulator: Simulator,
    vpc: Vpc,
    untouched: String,
}

impl World {
    fn new(config: ssm::Config) -> Self {
        Self::with_agent(config, &[])
    }

    fn with_agent(config: ssm::Config, agent_arguments: &[&str]) -> Self {
        let vpc = Vpc::new(agent_arguments).unwrap();
        let simulator = vpc.simulator(config).unwrap();
        let untouched = vpc.traces().unwrap();
        Self { simulator, vpc, untouched }
    }

    fn fast() -> Self {
        Self::new(ssm::Config::fast())
    }

    /// `up` that need not succeed, ready to be started.
    fn up(&self, arguments: &[&str]) -> Command {
        let mut command = self.vpc.client(&self.simulator.env(), &["up"]);
        command.args(["--instance", INSTANCE, "--cidr", "10.20.0.0/16"]).args(arguments);
        command
    }

    /// `up` that runs until it is up.
    fn session(&self, arguments: &[&str]) -> Process {
        running(&mut self.up(arguments))
    }

    fn client(&self, arguments: &[&str]) -> Output {
        self.vpc.client(&[], arguments).output().unwrap()
    }

    /// Nothing of any session is left, neither here nor at AWS.
    #[track_caller]
    fn assert_untouched(&self, after: &str) {
        assert_eq!(self.vpc.traces().unwrap(), self.untouched, "after {after}");
        assert_eq!(self.vpc.run_files().unwrap(), Vec::<String>::new(), "after {after}");
        let active = self.simulator.active_sessions();
        assert!(active.is_empty(), "after {after}: {active:?}");
    }

    fn echo(&self) -> SocketAddr {
        servers::serve(&self.vpc.vpc, &format!("{TARGET}:0"), servers::echo).unwrap()
    }

    fn connect(&self, address: SocketAddr) -> TcpStream {
        let stream = self.vpc.laptop.enter(|| TcpStream::connect_timeout(&address, DEADLINE)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }
}

fn running(command: &mut Command) -> Process {
    let mut client = Process::start(command).unwrap();
    client.wait_for(UP, DEADLINE).unwrap();
    client
}

fn round_trip(stream: &mut TcpStream) {
    stream.write_all(b"ping").unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"ping");
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs a command that must fail so, saying each of `words`.
#[track_caller]
fn fails(command: &mut Command, code: i32, words: &[&str]) -> String {
    let output = command.output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "no {word:?} in:\n{said}");
    }
    said
}

/// Sends signals to a client at this moment and checks that it ends in time and leaves nothing.
#[track_caller]
fn end_at(world: &World, mut client: Process, moment: &str, signals: &[Signal], code: i32) {
    let began = now();
    for signal in signals {
        client.signal(*signal).unwrap();
    }
    let status = client.wait(END).with_context(|| moment.to_owned()).unwrap();
    assert_eq!(status.code(), Some(code), "{moment}: {}", client.seen.join("\n"));
    assert!(began.elapsed() < END, "{moment}");
    until("the end of every SSM session", || world.simulator.active_sessions().is_empty());
    world.assert_untouched(moment);
}

#[test]
fn a_signal_at_any_moment_leaves_nothing_behind() {
    require_netns!();
    let mut world = World::fast();
    let calls = |world: &World| world.simulator.calls(Operation::StartSession);

    for signals in [&[Signal::INT][..], &[Signal::INT, Signal::INT], &[Signal::TERM], &[Signal::HUP]] {
        world.simulator.knobs(|knobs| knobs.api_delay = Duration::from_millis(700));
        let before = calls(&world);
        let client = Process::start(&mut world.up(&[])).unwrap();
        until("a call of StartSession", || calls(&world) > before);
        end_at(&world, client, "a signal during StartSession", signals, 130);
        world.simulator.knobs(|knobs| knobs.api_delay = Duration::ZERO);
    }

    world.simulator.knobs(|knobs| knobs.agent.start_delay = Duration::from_secs(30));
    let client = Process::start(&mut world.up(&[])).unwrap();
    until("a websocket", || world.simulator.active_sessions().iter().any(|session| session.client_connected));
    end_at(&world, client, "Ctrl-C during the SSM handshake", &[Signal::INT, Signal::INT], 130);
    world.simulator.knobs(|knobs| knobs.agent.start_delay = Duration::ZERO);

    let (accepted, connected) = mpsc::channel();
    let silent = servers::serve(&world.vpc.vpc, "127.0.0.1:0", move |mut stream| {
        let _ = accepted.send(());
        let _ = stream.read(&mut [0]);
    });
    let port = silent.unwrap().port().to_string();
    let client = Process::start(&mut world.up(&["--agent-port", &port])).unwrap();
    connected.recv_timeout(DEADLINE).unwrap();
    end_at(&world, client, "Ctrl-C before the greeting", &[Signal::INT], 130);

    let mut client = Process::start(&mut world.up(&[])).unwrap();
    client.wait_for("reached", DEADLINE).unwrap();
    // It may have come up in the meantime, then it ends as a session that was up.
    client.signal(Signal::TERM).unwrap();
    let code = client.wait(END).unwrap().code();
    assert!(matches!(code, Some(0 | 130)), "{code:?}: {}", client.seen.join("\n"));
    world.assert_untouched("a signal while the routes are made");

    let mut client = world.session(&[]);
    world.vpc.agent = None;
    client.wait_for("not reconnected yet", DEADLINE).unwrap();
    end_at(&world, client, "Ctrl-C during a reconnect", &[Signal::INT, Signal::INT], 130);

    world.simulator.assert_clean();
}

#[test]
fn a_lookup_that_never_ends_does_not_hold_up_ctrl_c() {
    require_netns!();
    let world = World::fast();
    // Nobody is there, and nobody says so: the neighbour is known but deaf.
    world.vpc.laptop.ip("neigh add 192.168.99.66 lladdr 02:00:00:00:00:66 dev wire0").unwrap();
    world.vpc.etc("resolv.conf", "nameserver 192.168.99.66\noptions timeout:30 attempts:5\n").unwrap();
    let key = world.vpc.key_file().display().to_string();
    for arguments in
        [&["--instance", INSTANCE][..], &["--via", "tcp://agent.example:742", "--key-file", &key]]
    {
        let mut command = world.vpc.client(&world.simulator.env(), &["up", "--cidr", "10.20.0.0/16"]);
        command.args(arguments).env_remove("AWS_ENDPOINT_URL").env_remove("AWS_ENDPOINT_URL_SSM");
        let client = Process::start(&mut command).unwrap();
        until("a session that connects", || {
            world
                .vpc
                .status()
                .is_ok_and(|status| status["device"].as_str().is_some_and(|device| !device.is_empty()))
        });
        end_at(&world, client, "Ctrl-C while a name is looked up", &[Signal::INT], 130);
    }

    let mut command = world.vpc.client(&world.simulator.env(), &["up", "--timeout", "1s"]);
    command.args(["--instance", INSTANCE, "--cidr", "10.20.0.0/16"]);
    command.env_remove("AWS_ENDPOINT_URL").env_remove("AWS_ENDPOINT_URL_SSM");
    fails(&mut command, 5, &["within 1 s", "the DNS answer for ssm.eu-central-1.amazonaws.com", "try: "]);
}

#[test]
fn a_session_that_connects_is_shown_and_can_be_ended() {
    require_netns!();
    let world = World::fast();
    world.simulator.knobs(|knobs| knobs.agent.start_delay = Duration::from_secs(30));
    let mut client = Process::start(&mut world.up(&[])).unwrap();
    until("a websocket", || world.simulator.active_sessions().iter().any(|session| session.client_connected));

    let status = world.client(&["status"]);
    assert_eq!(status.status.code(), Some(6), "{}", text(&status));
    assert!(text(&status).contains("connecting"), "{}", text(&status));
    fails(&mut world.up(&[]), 8, &["session default is already running", "try: ssm-proxy down"]);
    let down = world.client(&["down"]);
    assert_eq!(down.status.code(), Some(0), "{}", text(&down));
    assert_eq!(client.wait(END).unwrap().code(), Some(130), "{}", client.seen.join("\n"));
    assert!(client.seen.iter().any(|line| line.contains("`down`")), "{}", client.seen.join("\n"));
    world.assert_untouched("down while it connects");
}

#[test]
fn two_sessions_carry_traffic_and_end_together() {
    require_netns!();
    let world = World::fast();
    world.vpc.vpc.ip("address add 10.30.1.5/32 dev lo").unwrap();
    let mut one = world.session(&[]);
    let mut command = world.vpc.client(&world.simulator.env(), &["up", "--instance", INSTANCE]);
    command.args(["--cidr", "10.30.0.0/16", "--session-name", "two"]);
    let mut two = running(&mut command);

    let there = servers::serve(&world.vpc.vpc, "10.30.1.5:0", servers::echo).unwrap();
    for address in [world.echo(), there] {
        round_trip(&mut world.connect(address));
    }
    let status = text(&world.client(&["status"]));
    assert!(status.contains("10.20.0.0/16") && status.contains("10.30.0.0/16"), "{status}");
    fails(&mut world.vpc.client(&[], &["down", "--session-name", "three"]), 3, &["three is not running"]);

    let down = world.client(&["down", "--all"]);
    assert_eq!(down.status.code(), Some(0), "{}", text(&down));
    for client in [&mut one, &mut two] {
        assert_eq!(client.wait(END).unwrap().code(), Some(0), "{}", client.seen.join("\n"));
    }
    world.assert_untouched("down --all");
}

/// A home that belongs to [`DEV`], who is in the laptop's user database, and a program they can start.
fn home_of_dev(world: &World) -> (PathBuf, PathBuf) {
    let (home, program) = (world.vpc.dir.path().join("dev"), world.vpc.dir.path().join("ssm-proxy"));
    let users = fs::read_to_string("/etc/passwd").unwrap();
    world.vpc.etc("passwd", &format!("{users}dev:x:{DEV}:{DEV}::{}:/bin/sh\n", home.display())).unwrap();
    fs::create_dir_all(home.join(".aws")).unwrap();
    fs::copy(bins::ssm_proxy(), &program).unwrap();
    for open in [world.vpc.dir.path(), &program] {
        fs::set_permissions(open, fs::Permissions::from_mode(0o755)).unwrap();
    }
    give_to_dev(&home);
    give_to_dev(&home.join(".aws"));
    (home, program)
}

fn give_to_dev(path: &Path) {
    std::os::unix::fs::chown(path, Some(DEV), Some(DEV)).unwrap();
}

/// Writes the simulator's keys into a profile, as a login does.
fn log_in(world: &World, home: &Path, profile: &str) {
    let environment = world.simulator.env();
    let value = |name: &str| {
        let found = environment.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str()).unwrap_or_default()
    };
    let credentials = format!(
        "[{profile}]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        value("AWS_ACCESS_KEY_ID"),
        value("AWS_SECRET_ACCESS_KEY")
    );
    fs::write(home.join(".aws/credentials"), credentials).unwrap();
}

/// The simulator's variables without region and keys.
fn without_keys(world: &World) -> Vec<(String, String)> {
    let keys = ["AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
    world.simulator.env().into_iter().filter(|(name, _)| !keys.contains(&name.as_str())).collect()
}

#[test]
fn a_session_under_sudo_belongs_to_who_typed_it() {
    require_netns!();
    let world = World::fast();
    let (home, program) = home_of_dev(&world);
    log_in(&world, &home, "sim");
    let mut command = world.vpc.client(&without_keys(&world), &["up", "--profile", "sim"]);
    command.args(["--region", "eu-central-1", "--instance", INSTANCE, "--cidr", "10.20.0.0/16"]);
    command.arg("--log-file").arg(home.join("log"));
    command.envs([("SUDO_UID", DEV.to_string()), ("SUDO_GID", DEV.to_string())]).env("HOME", "/nonexistent");
    let mut client = running(&mut command);

    let mut pending = vec![home.clone()];
    while let Some(path) = pending.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        // What was put there for the test may be root's.
        assert!(metadata.uid() == DEV || path.ends_with("credentials"), "{} is root's", path.display());
        if metadata.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    assert!(home.join(".local/state/ssm-proxy/known-agents").exists());
    let log = fs::read_to_string(home.join("log")).unwrap();
    assert!(log.contains("reached ssm-proxy-agent"), "{log}");

    let as_user = |uid: u32, arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.args(arguments).env("SSM_PROXY_RUN_DIR", world.vpc.run_dir()).uid(uid).gid(uid);
        command
    };
    for arguments in [&["status"][..], &["flows"], &["down"], &["down", "--all"]] {
        fails(&mut as_user(STRANGER, arguments), 7, &["another user", "sudo"]);
    }
    for arguments in [&["status"][..], &["flows"], &["down"]] {
        let output = as_user(DEV, arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output));
    }
    assert_eq!(client.wait(END).unwrap().code(), Some(0));
    world.assert_untouched("down by the user");
}

#[test]
fn a_credential_process_under_sudo_has_the_rights_of_who_typed_it() {
    require_netns!();
    let world = World::fast();
    let (home, _) = home_of_dev(&world);
    let environment = world.simulator.env();
    let value = |name: &str| &environment.iter().find(|(key, _)| key == name).unwrap().1;
    let program = world.vpc.dir.path().join("keys");
    let json = format!(
        r#"{{"Version":1,"AccessKeyId":"{}","SecretAccessKey":"{}"}}"#,
        value("AWS_ACCESS_KEY_ID"),
        value("AWS_SECRET_ACCESS_KEY")
    );
    let rights = "grep -E '^(Uid|Gid|Groups|CapEff)' /proc/self/status > $HOME/rights";
    fs::write(&program, format!("#!/bin/sh\n{rights}\necho '{json}'\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let profile = format!("[profile sim]\ncredential_process = {}\n", program.display());
    fs::write(home.join(".aws/config"), profile).unwrap();
    world.vpc.etc("group", &format!("dev:x:{DEV}:\nkeyring:x:4999:dev\n")).unwrap();
    let mut command = world.vpc.client(&without_keys(&world), &["up", "--profile", "sim"]);
    command.args(["--region", "eu-central-1", "--instance", INSTANCE, "--cidr", "10.20.0.0/16"]);
    command.envs([("SUDO_UID", DEV.to_string()), ("SUDO_GID", DEV.to_string())]).env("HOME", "/nonexistent");
    let mut client = running(&mut command);

    round_trip(&mut world.connect(world.echo()));
    let path = home.join("rights");
    assert_eq!(fs::metadata(&path).unwrap().uid(), DEV);
    let rights = fs::read_to_string(path).unwrap();
    let words: Vec<&str> = rights.split_whitespace().collect();
    let (user, none) = ("4242", "0000000000000000");
    let uids = ["Uid:", user, user, user, user, "Gid:", user, user, user, user];
    assert_eq!(words, [&uids[..], &["Groups:", user, "4999", "CapEff:", none]].concat(), "{rights}");
    assert_eq!(client.end(Signal::INT).unwrap().code(), Some(130));
    world.assert_untouched("a credential process");
}

#[test]
fn a_session_that_ends_says_so_and_takes_a_second_down() {
    require_netns!();
    let world = World::fast();
    let mut client = world.session(&[]);
    world.simulator.knobs(|knobs| knobs.api_delay = Duration::from_secs(2));

    let mut first = Process::start(&mut world.vpc.client(&[], &["down"])).unwrap();
    until("the end of the session", || {
        text(&world.client(&["status", "--json"])).contains(r#""state":"ending""#)
    });
    let second = world.client(&["down"]);

    // It may have ended meanwhile.
    assert!(matches!(second.status.code(), Some(0 | 3)), "{}", text(&second));
    assert_eq!(first.wait(END).unwrap().code(), Some(0), "{}", first.seen.join("\n"));
    assert_eq!(client.wait(END).unwrap().code(), Some(0));
    world.assert_untouched("two times down");
}

#[test]
fn what_sudo_dropped_is_named_with_the_command_that_keeps_it() {
    require_netns!();
    let world = World::fast();
    let (home, _) = home_of_dev(&world);
    // This shell stands for sudo: it has the caller's settings and starts us without them.
    let sudo = |home: &Path, arguments: &[&str]| {
        let mut command = world.vpc.laptop.command("sh");
        command.args(["-c", "env -u AWS_PROFILE -u AWS_REGION \"$@\"; exit $?", "sh"]);
        command.arg(bins::ssm_proxy()).args(["up", "--instance", INSTANCE, "--cidr", "10.20.0.0/16"]);
        command.args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(without_keys(&world)).env("SSM_PROXY_RUN_DIR", world.vpc.run_dir());
        command.envs([("SUDO_UID", DEV.to_string()), ("SUDO_GID", DEV.to_string())]).env("HOME", home);
        command.envs([("AWS_PROFILE", "prod"), ("AWS_REGION", "eu-central-1")]);
        command
    };
    let keeping = "sudo --preserve-env=AWS_PROFILE,AWS_REGION ";
    fails(&mut sudo(&home, &[]), 4, &["no AWS region is set", "cause: sudo dropped", "try: ", keeping]);
    let region = ["--region", "eu-central-1"];
    fails(&mut sudo(&home, &region), 4, &["no usable AWS credentials", "cause: sudo dropped", keeping]);

    // The default profile works, but it may be another account than the caller means.
    log_in(&world, &home, "default");
    let mut client = running(&mut sudo(&home, &region));
    assert!(client.seen.join("\n").contains(keeping), "{}", client.seen.join("\n"));
    assert_eq!(world.client(&["down"]).status.code(), Some(0));
    client.wait(END).unwrap();

    fails(
        world.up(&["--profile", "nope"]).env("HOME", &home).env_remove("AWS_ACCESS_KEY_ID"),
        4,
        &[
            "no usable AWS credentials for profile nope",
            "the AWS files have no profile nope; they have default",
        ],
    );
}

#[test]
fn whoever_else_answers_at_the_agents_port_is_named() {
    require_netns!();
    let world = World::fast();
    let says = |greeting: Vec<u8>| {
        let each = move |mut stream: TcpStream| {
            let _ = stream.write_all(&greeting);
            let _ = stream.read(&mut [0]);
        };
        servers::serve(&world.vpc.vpc, "127.0.0.1:0", each).unwrap().port().to_string()
    };
    let up = |port: &str| world.up(&["--timeout", "2s", "--agent-port", port]);

    let ssh = says(b"SSH-2.0-OpenSSH_9.9\r\n".to_vec());
    fails(&mut up(&ssh), 5, &["an SSH server answers there", "SSH-2.0-OpenSSH_9.9", "try: ", "--agent-port"]);
    let silent = says(Vec::new());
    fails(&mut up(&silent), 5, &["no greeting", "web server", "try: ", "install.sh"]);

    // The greeting of a later version, as far as versions agree on it.
    let mut greeting = Vec::new();
    Frame::Greeting(b"SSMP\x00\x09\x059.9.9\x00").encode(&mut greeting);
    let later = says(greeting);
    fails(&mut up(&later), 5, &["9.9.9", "upgrade ssm-proxy", "try: "]);

    let known = world.vpc.dir.path().join(".local/state/ssm-proxy/known-agents");
    fs::create_dir_all(known.parent().unwrap()).unwrap();
    fs::write(&known, format!("{INSTANCE}:742 {}\n", "00".repeat(32))).unwrap();
    let said = fails(&mut world.up(&[]), 8, &["another key than before", "poses as it", "try: "]);
    let forget = said.split_once("forget its old key: ").unwrap().1.lines().next().unwrap();
    assert!(Command::new("sh").args(["-c", forget]).status().unwrap().success(), "{forget}");
    world.session(&[]).end(Signal::INT).unwrap();
    world.assert_untouched("every stranger");
}

#[test]
fn keys_of_a_tcp_lane_that_do_not_fit_are_told_apart() {
    require_netns!();
    let address = format!("{LINK}:{TCP_LANE_PORT}");
    let world = World::with_agent(ssm::Config::fast(), &["--listen", &address, "--key-file", "@key"]);
    let via = format!("tcp://{address}");
    let file = |name: &str, content: &str| {
        let path = world.vpc.dir.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path.display().to_string()
    };
    let up = |key: Option<&str>| {
        let mut command = world.vpc.client(&[], &["up", "--via", &via, "--cidr", "10.20.0.0/16"]);
        command.args(key.map(|key| ["--key-file", key]).iter().flatten());
        command
    };
    fails(&mut up(None), 2, &["needs --key-file", "try: "]);
    fails(&mut up(Some("/nonexistent")), 2, &["/nonexistent cannot be read", "No such file"]);
    fails(&mut up(Some(&file("short", "short"))), 2, &["cannot be used", "at least 16", "try: "]);
    fails(&mut up(Some("/dev/zero")), 2, &["cannot be used", "not a regular file"]);
    let open = file("open", "a key that everybody may read\n");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    fails(&mut up(Some(&open)), 2, &["cannot be used", "mode 0644", "try: chmod 600"]);
    let wrong = file("wrong", "quite another key of more than sixteen bytes\n");
    fails(&mut up(Some(&wrong)), 5, &["key file is wrong", "try: "]);

    let key = world.vpc.key_file().display().to_string();
    let closed = format!("tcp://{LINK}:9");
    let mut command = world.vpc.client(&[], &["up", "--via", &closed, "--key-file", &key]);
    fails(command.args(["--cidr", "10.20.0.0/16"]), 5, &["cannot connect to", "Connection refused", "try: "]);

    let mut client = running(&mut up(Some(&key)));
    round_trip(&mut world.connect(world.echo()));
    client.end(Signal::INT).unwrap();

    // An agent that wants a key cannot be reached through SSM, which carries none.
    let port = "7421";
    let mut agent = world.vpc.vpc.command(bins::agent());
    agent.args(["--listen", &format!("127.0.0.1:{port}"), "--key-file", &key, "--state-dir"]);
    let mut agent = Process::start(agent.arg(world.vpc.dir.path().join("other"))).unwrap();
    agent.wait_for("listening", DEADLINE).unwrap();
    let mut command = world.up(&["--agent-port", port]);
    let said =
        fails(&mut command, 5, &["wants a shared key", "try: start the agent on the instance without"]);
    assert!(!said.contains("name the key both ends share"), "{said}");
    world.assert_untouched("every key");
}

/// An HTTP proxy in the VPC's namespace that tells whom it was asked for.
fn proxy(world: &World) -> (String, mpsc::Receiver<String>) {
    let listener = world.vpc.laptop.enter(|| TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, told) = mpsc::channel();
    let laptop = world.vpc.laptop.name().to_owned();
    thread::spawn(move || {
        netns::enter_here(&laptop).unwrap();
        for client in listener.incoming().flatten() {
            let asked = asked.clone();
            thread::spawn(move || tunnel(client, &asked));
        }
    });
    (format!("http://{address}"), told)
}

fn tunnel(mut client: TcpStream, asked: &mpsc::Sender<String>) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if client.read_exact(&mut byte).is_err() {
            return;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let target = head.split_whitespace().nth(1).unwrap_or_default().to_owned();
    let _ = asked.send(target.clone());
    let Ok(mut server) = TcpStream::connect(target) else { return };
    let _ = client.write_all(b"HTTP/1.1 200 ok\r\n\r\n");
    let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    thread::spawn(move || std::io::copy(&mut from, &mut to));
    let _ = std::io::copy(&mut server, &mut client);
    let _ = client.shutdown(std::net::Shutdown::Both);
}

#[test]
fn a_company_network_with_its_own_ca_and_proxy_works() {
    require_netns!();
    // Loopback is never asked of a proxy.
    let listen = SocketAddr::from(([192, 168, 99, 1], 0));
    let world = World::new(ssm::Config { tls: true, listen, ..ssm::Config::fast() });
    fails(world.up(&[]).env_remove("AWS_CA_BUNDLE"), 5, &["UnknownIssuer", "try: ", "AWS_CA_BUNDLE"]);
    fails(world.up(&[]).env("AWS_CA_BUNDLE", "/nonexistent"), 5, &["/nonexistent", "No such file"]);

    fs::create_dir_all(world.vpc.dir.path().join(".aws")).unwrap();
    let bundle = world.simulator.ca_pem_path().unwrap();
    let profile = format!("[profile corp]\nregion = eu-central-1\nca_bundle = {}\n", bundle.display());
    fs::write(world.vpc.dir.path().join(".aws/config"), profile).unwrap();
    let mut client = running(world.up(&["--profile", "corp"]).env_remove("AWS_CA_BUNDLE"));
    client.end(Signal::INT).unwrap();

    let (proxy, asked) = proxy(&world);
    let mut client = running(world.up(&[]).env("HTTPS_PROXY", &proxy));
    round_trip(&mut world.connect(world.echo()));
    client.end(Signal::INT).unwrap();
    let target = world.simulator.address().to_string();
    let through: Vec<String> = asked.try_iter().collect();
    // StartSession, the websocket, TerminateSession.
    assert!(through.len() >= 3 && through.iter().all(|host| *host == target), "{through:?}");

    let mut client = running(world.up(&[]).env("HTTPS_PROXY", &proxy).env("NO_PROXY", "192.168.99.0/24"));
    client.end(Signal::INT).unwrap();
    assert_eq!(asked.try_iter().count(), 0, "NO_PROXY holds");

    fails(
        world.up(&[]).env("HTTPS_PROXY", "http://127.0.0.1:9"),
        5,
        &["the proxy 127.0.0.1:9", "HTTPS_PROXY"],
    );
    fails(world.up(&[]).env("HTTPS_PROXY", "ftp://x"), 2, &["scheme ftp", "try: "]);
    world.assert_untouched("every proxy");
}

#[test]
fn refusals_of_aws_are_told_in_the_users_words() {
    require_netns!();
    let world = World::fast();
    let start = |failure| world.simulator.fail_next(Operation::StartSession, failure);
    start(ApiFailure::AccessDenied);
    fails(&mut world.up(&[]), 4, &["AWS does not allow ssm:StartSession", "try: "]);
    start(ApiFailure::UnrecognizedClient);
    fails(&mut world.up(&[]), 4, &["no usable AWS credentials", "try: "]);
    start(ApiFailure::TargetNotConnected);
    fails(&mut world.up(&[]), 5, &["not connected to Session Manager", "stopped", "try: "]);
    fails(&mut world.up(&["--document", "Nope-Doc"]), 1, &["Nope-Doc cannot be used", "try: "]);
    // Once is overcome by trying again, many times is told.
    start(ApiFailure::Throttling);
    world.session(&[]).end(Signal::INT).unwrap();
    (0..8).for_each(|_| start(ApiFailure::Throttling));
    fails(&mut world.up(&[]), 1, &["AWS is throttling ssm:StartSession", "try: wait"]);
    world.simulator.expire_credentials();
    let told = fails(&mut world.up(&[]), 4, &["keys in the environment have expired", "try: set fresh"]);
    assert!(!told.contains("sso"), "{told}");
    world.assert_untouched("every refusal");
}

#[test]
fn what_the_machine_lacks_is_told_and_nothing_is_changed() {
    require_netns!("unshare", "mount");
    let world = World::fast();
    let hidden = |hide: &str| {
        let up = world.up(&[]);
        let mut command = world.vpc.laptop.command("unshare");
        command.args(["-m", "sh", "-c", &format!("{hide} && exec \"$@\""), "sh"]);
        // Behind `ip netns exec NAME`.
        command.args(up.get_args().skip(3));
        up.get_envs().for_each(|(name, value)| match value {
            Some(value) => drop(command.env(name, value)),
            None => drop(command.env_remove(name)),
        });
        command
    };
    let words = ["no usable TUN device", "try: ", "modprobe tun"];
    fails(&mut hidden("mount -t tmpfs none /dev/net"), 1, &words);
    fails(&mut hidden("mount --bind /dev/null /dev/net/tun"), 1, &words);
    fails(&mut world.up(&["--local-ip", "192.168.99.1/30"]), 8, &["192.168.99.1", "wire0", "try: "]);
    world.assert_untouched("every lack");
}

#[test]
fn networks_inside_a_captured_range_stay_theirs() {
    require_netns!();
    let world = World::fast();
    let laptop = &world.vpc.laptop;
    // A wire both of whose ends are here does for a LAN and a bridge, which not every test kernel has.
    for (device, address) in [("lan0", "10.1.0.7/16"), ("docker0", "10.2.0.1/16")] {
        laptop.ip(&format!("link add {device} type veth peer name {device}-p")).unwrap();
        laptop.ip(&format!("address add {address} dev {device}")).unwrap();
        laptop.ip(&format!("link set {device} up")).unwrap();
        laptop.ip(&format!("link set {device}-p up")).unwrap();
    }
    laptop.ip(&format!("route add default via {LINK}")).unwrap();
    world.vpc.etc("resolv.conf", "nameserver 10.3.3.3\noptions timeout:1 attempts:1\n").unwrap();
    let untouched = world.vpc.traces().unwrap();
    let way = |target: &str| {
        let found = laptop.ip(&format!("route get {target}")).unwrap();
        let mut words = found.split_whitespace().skip_while(|word| *word != "dev");
        words.nth(1).unwrap_or_default().to_owned()
    };

    let mut command = world.vpc.client(&world.simulator.env(), &["up", "--instance", INSTANCE]);
    command.args(["--cidr", "10.0.0.0/8", "--exclude", "10.30.0.0/16"]);
    let mut client = Process::start(&mut command).unwrap();
    let local = client.wait_for("Stays local", DEADLINE).unwrap();
    for part in [
        "10.1.0.0/16 (lan0)",
        "10.2.0.0/16 (docker0)",
        "10.30.0.0/16 (--exclude)",
        "10.3.3.3/32 (nameserver)",
    ] {
        assert!(local.contains(part), "no {part:?} in {local}");
    }
    for (target, device) in [
        ("10.1.0.9", "lan0"),
        ("10.2.0.9", "docker0"),
        ("10.30.1.5", "wire0"),
        ("10.3.3.3", "wire0"),
        (TARGET, "ssmp0"),
    ] {
        assert_eq!(way(target), device, "to {target}");
    }
    // A network that comes later keeps its own too.
    laptop.ip("link add late0 type veth peer name late0-p").unwrap();
    laptop.ip("address add 10.4.0.1/16 dev late0").unwrap();
    laptop.ip("link set late0 up").unwrap();
    assert_eq!(way("10.4.0.9"), "late0");
    laptop.ip("link del late0").unwrap();
    round_trip(&mut world.connect(world.echo()));
    client.end(Signal::INT).unwrap();
    assert_eq!(world.vpc.traces().unwrap(), untouched);

    // Whoever captures just the LAN means it, and is told.
    let mut command = world.vpc.client(&world.simulator.env(), &["up", "--instance", INSTANCE]);
    let mut client = running(command.args(["--cidr", "10.1.0.0/16"]));
    let said = client.seen.join("\n");
    assert!(said.contains("10.1.0.0/16 was reached through lan0"), "{said}");
    client.end(Signal::INT).unwrap();
    assert_eq!(world.vpc.traces().unwrap(), untouched);
}

#[test]
fn addresses_of_aws_inside_a_captured_range_are_left_out() {
    require_netns!();
    let world = World::fast();
    let laptop = &world.vpc.laptop;
    laptop.ip(&format!("route add default via {LINK}")).unwrap();
    let hosts = "127.0.0.1 localhost\n10.20.7.7 ssmmessages.eu-central-1.amazonaws.com\n";
    world.vpc.etc("hosts", hosts).unwrap();
    // Where nobody listens: every other name fails at once.
    world.vpc.etc("resolv.conf", "nameserver 127.0.0.1\n").unwrap();
    let mut client = Process::start(&mut world.up(&[])).unwrap();
    let local = client.wait_for("Stays local", DEADLINE).unwrap();
    assert!(local.contains("10.20.7.7/32 (AWS)"), "{local}");
    let found = laptop.ip("route get 10.20.7.7").unwrap();
    assert!(found.contains("dev wire0"), "{found}");
    client.end(Signal::INT).unwrap();
}

#[test]
fn a_lost_connection_and_its_return_are_told_once() {
    require_netns!();
    let world = World::fast();
    let mut client = world.session(&[]);
    let mut open = world.connect(world.echo());
    round_trip(&mut open);

    // A short cut is nobody's business.
    let session = world.simulator.active_sessions().remove(0).id;
    world.simulator.cut_client(&session);
    round_trip(&mut open);

    world.simulator.knobs(|knobs| knobs.resume = ResumeAnswer::Fail(ApiFailure::ServiceUnavailable));
    // Nor is there another session.
    world.simulator.instances(|instances| instances[0].online = false);
    world.simulator.cut_client(&session);
    let lost = client.wait_for("connection lost", DEADLINE).unwrap();
    assert!(lost.contains("websocket was cut"), "{lost}");
    let status = world.vpc.status().unwrap();
    assert_eq!(status["state"], "reconnecting", "{status}");
    assert!(status["history"].to_string().contains("websocket was cut"), "{status}");
    assert!(status["last_error_at"].is_u64() && status["recovered_at"].is_null(), "{status}");
    assert_eq!(world.client(&["status"]).status.code(), Some(6));
    world.simulator.knobs(|knobs| knobs.resume = ResumeAnswer::Token);
    world.simulator.instances(|instances| instances[0].online = true);
    let back = client.wait_for("reconnected after", DEADLINE).unwrap();
    assert!(back.contains("open connections went on"), "{back}");
    round_trip(&mut open);
    let status = world.vpc.status().unwrap();
    assert_eq!(status["state"], "up");
    assert!(status["recovered_at"].as_u64() >= status["last_error_at"].as_u64(), "{status}");
    let shown = world.client(&["status"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("recovered "), "{shown:?}");
    client.end(Signal::INT).unwrap();
    let told = client.seen.iter().filter(|line| line.contains("lost") || line.contains("reconnected after"));
    assert_eq!(told.count(), 2, "{}", client.seen.join("\n"));
    world.assert_untouched("a lost connection");
}

#[test]
fn keys_that_have_expired_are_told_and_new_ones_are_used() {
    require_netns!();
    let world = World::fast();
    let home = world.vpc.dir.path().to_owned();
    fs::create_dir_all(home.join(".aws")).unwrap();
    log_in(&world, &home, "sim");
    let mut command = world.vpc.client(&without_keys(&world), &["up", "--profile", "sim"]);
    command.args(["--region", "eu-central-1", "--instance", INSTANCE, "--cidr", "10.20.0.0/16"]);
    let mut client = running(&mut command);
    let mut open = world.connect(world.echo());
    round_trip(&mut open);

    world.simulator.expire_credentials();
    let session = world.simulator.active_sessions().remove(0).id;
    world.simulator.end_session(&session, "the maximum duration is over");
    let told = client.wait_for("not reconnected yet", DEADLINE).unwrap();
    assert!(told.contains("the AWS keys of profile sim have expired"), "{told}");
    assert!(told.contains("; try: put fresh keys") && told.contains("[sim] in ~/.aws/credentials"), "{told}");
    let status = world.vpc.status().unwrap();
    assert!(status["last_error"].as_str().unwrap().contains("expired"), "{status}");

    world.simulator.add_credentials("AKIASIMULATED0000002", "another/secret+key", None);
    log_in(&world, &home, "sim");
    client.wait_for("reconnected after", DEADLINE).unwrap();
    round_trip(&mut open);
    client.end(Signal::INT).unwrap();
    assert_eq!(client.seen.iter().filter(|line| line.contains("not reconnected yet")).count(), 1);
    world.assert_untouched("a new login");
}

#[test]
fn a_changed_network_is_noticed_at_once() {
    require_netns!();
    let world = World::fast();
    let mut client = world.session(&[]);
    let mut open = world.connect(world.echo());
    round_trip(&mut open);

    // The TCP connection stays, but leads nowhere, as after a change from one network to another.
    let session = world.simulator.active_sessions().remove(0).id;
    world.simulator.black_hole_client(&session);
    let began = now();
    world.vpc.laptop.ip(&format!("route add default via {LINK}")).unwrap();
    round_trip(&mut open);
    // Without the hint it takes the websocket 45 s to be found dead.
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());

    // Somebody flushes all rules; ours come back.
    let before = world.vpc.laptop.ip("rule show").unwrap();
    let ours = before.lines().filter(|line| line.contains("10.20.0.0/16"));
    for rule in ours {
        let priority = rule.split_once(':').unwrap().0;
        world.vpc.laptop.ip(&format!("rule del priority {priority}")).unwrap();
    }
    until("the return of the rules", || world.vpc.laptop.ip("rule show").unwrap() == before);
    round_trip(&mut world.connect(world.echo()));
    client.end(Signal::INT).unwrap();
}

#[test]
fn a_path_that_takes_only_small_messages_is_used_with_small_ones() {
    require_netns!();
    let world = World::fast();
    world.simulator.knobs(|knobs| knobs.max_message = 2048);
    let mut client = world.session(&[]);
    let mut open = world.connect(world.echo());
    let sent = servers::noise(200_000, 7);
    let reader = open.try_clone().unwrap();
    let received = thread::spawn(move || {
        let mut received = vec![0; 200_000];
        { reader }.read_exact(&mut received).map(|()| received)
    });
    open.write_all(&sent).unwrap();
    assert!(received.join().unwrap().unwrap() == sent, "the echo is the same");
    assert!(world.simulator.count(Count::TooBig) >= 1);
    let said = client.wait_for("no messages above 1 KiB", DEADLINE).unwrap();
    assert!(said.contains("uploads are slower"), "{said}");
    client.end(Signal::INT).unwrap();
}

#[test]
fn output_goes_where_it_should_and_is_as_loud_as_asked() -> Result<()> {
    if let Some(reason) = netns::why_not() {
        netns::skipped(&reason);
        return Ok(());
    }
    let world = World::fast();
    let log = world.vpc.dir.path().join("log");
    let mut client = Process::start(world.up(&["--quiet", "--log-file"]).arg(&log))?;
    until("a session", || world.vpc.status().is_ok_and(|status| status["state"] == "up"));
    round_trip(&mut world.connect(world.echo()));
    until("routes", || fs::read_to_string(&log).is_ok_and(|text| text.contains("captured")));
    client.end(Signal::INT)?;
    ensure!(client.seen.is_empty(), "--quiet printed {:?}", client.seen);
    let logged = fs::read_to_string(&log)?;
    ensure!(logged.contains("reached ssm-proxy-agent") && logged.contains("removed the routes"), "{logged}");

    let mut client = world.session(&[]);
    for _ in 0..20 {
        round_trip(&mut world.connect(world.echo()));
    }
    let lines = client.seen.len();
    client.end(Signal::TERM)?;
    ensure!(client.seen.len() <= lines + 3, "flows are told of: {}", client.seen.join("\n"));
    ensure!(client.seen.iter().all(|line| !line.contains('\u{1b}') && !line.contains("interrupted")));

    let mut client = world.session(&["--color", "always"]);
    client.end(Signal::INT)?;
    ensure!(client.seen.iter().any(|line| line.contains('\u{1b}')), "no colour: {}", client.seen.join("\n"));
    ensure!(!client.seen.iter().any(|line| line.contains("error")), "{}", client.seen.join("\n"));
    world.assert_untouched("every output");
    Ok(())
}
