//! The agent's binary from the outside: exit codes, messages, signals.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

#[test]
fn version_and_help_go_to_standard_output() {
    let version = run(&["--version"]);
    assert!(version.status.success());
    let text = String::from_utf8(version.stdout).unwrap();
    assert!(text.starts_with(&format!("ssm-proxy-agent {}", env!("CARGO_PKG_VERSION"))), "{text}");
    let help = run(&["--help"]);
    assert!(help.status.success() && help.stderr.is_empty());
    assert!(String::from_utf8(help.stdout).unwrap().contains("--key-file"));
}

#[test]
fn a_wrong_flag_is_one_line_and_code_2() {
    for arguments in [&["--nonsense"][..], &["--listen", "0.0.0.0:7420"], &["--allow", "10.0.0.1/8"]] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2));
        assert!(output.stdout.is_empty());
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(
            text.contains(arguments[0]) && text.contains("--help") && text.lines().count() == 1,
            "{text}"
        );
    }
}

#[test]
fn a_port_in_use_is_code_1_and_says_what_to_do() {
    let scratch = Scratch::new("in-use");
    let holder = TcpListener::bind("[::1]:0").unwrap();
    let port = holder.local_addr().unwrap().port().to_string();
    let output = run(&["--port", &port, "--state-dir", scratch.text()]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("[::1]") && text.contains(&port) && text.contains("ss -ltnp"), "{text}");
}

#[test]
fn a_key_file_others_can_read_is_refused() {
    let scratch = Scratch::new("key");
    let key = scratch.0.join("key");
    fs::write(&key, "0123456789abcdef").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let listen =
        ["--listen", "127.0.0.1:0", "--state-dir", scratch.text(), "--key-file", key.to_str().unwrap()];
    let output = run(&listen);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("chmod 600"), "{text}");
}

#[test]
fn without_the_right_to_low_ports_it_says_which_capability() {
    let low = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if !rustix::process::geteuid().is_root() || low.trim().parse::<u32>().unwrap() <= 741 {
        // Past the test harness's capture, for .ci/run to see.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: needs root to start it as another user, and low ports that are kept from users"
        );
        return;
    }
    let scratch = Scratch::new("low-port");
    // Where another user can run it. Copied by another process: a file that a child of a test beside this one
    // still holds open for writing cannot be run.
    let program = scratch.0.join("agent");
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_ssm-proxy-agent")).arg(&program).status();
    assert!(copied.unwrap().success());
    fs::set_permissions(&scratch.0, fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = Command::new(&program);
    let state = scratch.0.join("state");
    let output =
        command.arg("--state-dir").arg(&state).args(["--port", "741"]).uid(65_534).gid(65_534).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("CAP_NET_BIND_SERVICE"), "{text}");
}

#[test]
fn signals_end_it_cleanly_and_its_key_stays() {
    let scratch = Scratch::new("signals");
    let mut keys = Vec::new();
    for signal in [Signal::TERM, Signal::INT] {
        let (mut child, line) = start(&["--listen", "127.0.0.1:0", "--state-dir", scratch.text()]);
        let address = line.split_whitespace().find(|word| word.starts_with("127.0.0.1:")).unwrap();
        keys.push(line.split_once("key").unwrap().1.to_owned());
        // A silent connection must not hold up the end.
        let _silent = TcpStream::connect(address.trim_end_matches(';')).unwrap();
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
    assert_eq!(keys[0], keys[1]);
}

#[test]
fn agents_of_containers_that_share_a_new_state_directory_share_its_key() {
    if !rustix::process::geteuid().is_root() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: needs root to make process namespaces");
        return;
    }
    for round in 0..10 {
        let scratch = Scratch::new(&format!("containers-{round}"));
        // Each is process 1 of its namespace.
        let container = || {
            let mut command = Command::new("unshare");
            command.args(["--pid", "--fork", "--kill-child", env!("CARGO_BIN_EXE_ssm-proxy-agent")]);
            command.args(["--listen", "127.0.0.1:0", "--state-dir", scratch.text()]);
            command.stderr(Stdio::piped()).spawn().unwrap()
        };
        let agents: Vec<_> = std::iter::repeat_with(container).take(4).collect();
        let keys = agents.into_iter().map(|mut agent| {
            let lines = listening(&mut agent);
            agent.kill().unwrap();
            agent.wait().unwrap();
            lines.rsplit_once("agent key").unwrap().1.to_owned()
        });
        let keys: Vec<String> = keys.collect();
        assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    }
}

#[test]
fn beyond_the_loopback_it_says_that_nothing_is_encrypted() {
    let scratch = Scratch::new("open");
    let key = scratch.0.join("key");
    fs::write(&key, "0123456789abcdef").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let key = key.to_str().unwrap();
    let (mut child, line) =
        start(&["--listen", "0.0.0.0:0", "--state-dir", scratch.text(), "--key-file", key]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(line.contains("not encrypted"), "{line}");
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ssm-proxy-agent"));
    command.args(arguments).env_remove("STATE_DIRECTORY");
    command
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

/// Starts it; gives its first lines up to the one that says it listens.
fn start(arguments: &[&str]) -> (Child, String) {
    let mut child = command(arguments).stderr(Stdio::piped()).spawn().unwrap();
    let lines = listening(&mut child);
    (child, lines)
}

fn listening(child: &mut Child) -> String {
    let mut lines = String::new();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    while !lines.contains("listening") {
        assert!(stderr.read_line(&mut lines).unwrap() > 0, "{lines}");
    }
    // Keeps the pipe drained, so that the agent never waits for its log.
    std::thread::spawn(move || stderr.read_to_end(&mut Vec::new()));
    lines
}

/// A directory of its own, removed in the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("ssm-proxy-agent-program-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn text(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
