//! Several SSM sessions for one tunnel: as many as are wanted, replaced when they fail or before, none when idle.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "helpers of tests: they end the test or tell of it"
)]

mod faults;
mod lessons;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use netstack_tests::patience::{now, until};
use netstack_tests::require_netns;
use netstack_tests::servers::{self, noise};
use netstack_tests::ssm::{self, ApiFailure, Count, Operation, Simulator};
use netstack_tests::vpc::{DEADLINE, INSTANCE, LINK, Process, TARGET, UP, Vpc};
use rustix::process::Signal;
use sha2::{Digest as _, Sha256};

struct World {
    client: Process,
    simulator: Simulator,
    vpc: Vpc,
}

impl World {
    fn new(config: ssm::Config, arguments: &[&str]) -> Self {
        let vpc = Vpc::new(&[]).unwrap();
        let simulator = vpc.simulator(config).unwrap();
        let client = vpc.up(&simulator.env(), &[&["--instance", INSTANCE], arguments].concat()).unwrap();
        Self { client, simulator, vpc }
    }

    fn sessions(&self) -> Vec<String> {
        self.simulator.active_sessions().into_iter().map(|session| session.id).collect()
    }

    /// Waits until the tunnel has so many lanes.
    #[track_caller]
    fn await_lanes(&self, count: usize) -> serde_json::Value {
        let mut status = serde_json::Value::Null;
        until(&format!("a tunnel of {count} lanes"), || {
            status = self.vpc.status().unwrap();
            status["lanes"].as_array().is_some_and(|lanes| lanes.len() == count)
        });
        status
    }

    fn serve(&self, each: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> SocketAddr {
        servers::serve(&self.vpc.vpc, &format!("{TARGET}:0"), each).unwrap()
    }

    /// A target that sends so much of [`noise`].
    fn source(&self, length: usize) -> SocketAddr {
        self.serve(move |mut stream| drop(stream.write_all(&noise(length, 7))))
    }

    fn connect(&self, address: SocketAddr) -> TcpStream {
        let stream = self.vpc.laptop.enter(|| TcpStream::connect_timeout(&address, DEADLINE)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    fn echoes(&self) {
        let mut stream = self.connect(self.serve(servers::echo));
        round_trip(&mut stream);
    }

    fn finish(mut self) {
        let status = self.client.end(Signal::INT).unwrap();
        assert_eq!(status.code(), Some(130), "{}", self.client.seen.join("\n"));
        self.simulator.assert_clean();
        assert_eq!(self.sessions(), Vec::<String>::new());
    }
}

fn round_trip(stream: &mut TcpStream) {
    stream.write_all(b"ping").unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"ping");
}

/// What came, how long it took, and the longest time without a byte.
struct Download {
    time: Duration,
    pause: Duration,
}

/// Reads all of [`World::source`]; `half` is told when the half of it is there.
fn download(mut stream: TcpStream, length: usize, half: &mpsc::Sender<()>) -> Download {
    let expected = noise(length, 7);
    let (began, mut last, mut pause) = (now(), now(), Duration::ZERO);
    let (mut read, mut buffer) = (0, vec![0; 64 << 10]);
    loop {
        let count = stream.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        pause = pause.max(last.elapsed());
        last = now();
        assert!(expected[read..].starts_with(&buffer[..count]), "other bytes at {read}");
        if read < length / 2 && read + count >= length / 2 {
            let _ = half.send(());
        }
        read += count;
    }
    assert_eq!(read, length);
    Download { time: began.elapsed(), pause }
}

/// The process id of the client itself.
fn laptop_client(world: &World) -> u64 {
    world.vpc.status().unwrap()["pid"].as_u64().unwrap()
}

#[test]
fn four_lanes_carry_one_download_nearly_four_times_as_fast_and_auto_finds_them() {
    require_netns!();
    let pace = |lanes: &str, length: usize| {
        let world = World::new(ssm::Config::default(), &["--lanes", lanes, "--compress", "off"]);
        if let Ok(count) = lanes.parse() {
            world.await_lanes(count);
        }
        let told = mpsc::channel().0;
        let stream = world.connect(world.source(length));
        let took = download(stream, length, &told).time;
        let sessions = world.sessions().len();
        world.finish();
        (length as f64 / took.as_secs_f64(), sessions)
    };
    let (one, _) = pace("1", 3 << 20);
    // Other tests share the processors, so the better of a few counts.
    let four = (0..3).map(|_| pace("4", 10 << 20).0).find(|four| *four >= 3.5 * one).unwrap_or_default();
    let (auto, sessions) = pace("auto", 16 << 20);
    eprintln!("MB/s: one {:.2}, four {:.2}, auto {:.2} over {sessions}", one / 1e6, four / 1e6, auto / 1e6);
    assert!(four >= 3.5 * one, "{four} is not 3.5 times {one}");
    assert!(sessions > 2 && auto > 1.5 * one, "{auto} over {sessions} lanes, one has {one}");
}

#[test]
fn planned_replacement_is_not_felt() {
    require_netns!();
    let mut config = ssm::Config::fast();
    config.knobs.max_duration = Some(Duration::from_secs(5));
    let world = World::new(config, &["--lanes", "2", "--max-session-duration", "5s"]);
    let mut open = world.connect(world.serve(servers::echo));
    let (began, mut slowest) = (now(), Duration::ZERO);
    while began.elapsed() < Duration::from_secs(9) {
        let asked = now();
        round_trip(&mut open);
        slowest = slowest.max(asked.elapsed());
        thread::sleep(Duration::from_millis(10));
    }
    let all = world.simulator.sessions();
    eprintln!("{} sessions, slowest round trip {slowest:?}", all.len());
    assert!(all.len() >= 4, "{all:?}");
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
    let ended: Vec<_> = all.iter().filter_map(|session| session.ended.clone()).collect();
    assert!(ended.iter().all(|why| why == "TerminateSession"), "AWS was quicker: {ended:?}");
    world.finish();
}

#[test]
fn a_lazy_session_starts_with_its_first_connection() {
    require_netns!();
    let mut world = World::new(ssm::Config::fast(), &["--lazy"]);
    assert_eq!(world.simulator.calls(Operation::StartSession), 0);
    assert_eq!(world.vpc.status().unwrap()["state"], "idle");
    world.echoes();
    world.client.wait_for("reached ssm-proxy-agent", DEADLINE).unwrap();
    assert_eq!(world.simulator.calls(Operation::StartSession), 1);
    assert_eq!(world.vpc.status().unwrap()["state"], "up");
    world.finish();
}

#[test]
fn an_idle_tunnel_closes_and_the_next_connection_opens_it() {
    require_netns!();
    let mut world = World::new(ssm::Config::fast(), &["--idle-timeout", "1s"]);
    for _ in 0..2 {
        world.echoes();
        world.client.wait_for("closed the tunnel", DEADLINE).unwrap();
        until("the end of its session", || world.sessions().is_empty());
        assert_eq!(world.vpc.status().unwrap()["state"], "idle");
    }
    let status = world.vpc.client(&[], &["status"]).output().unwrap();
    assert_eq!(status.status.code(), Some(0), "idle is in order");
    world.echoes();
    world.finish();
}

#[test]
fn so_many_tries_and_no_more_or_none_at_all() {
    require_netns!();
    for (arguments, words) in [
        (&["--max-retries", "2", "--reconnect-delay", "200ms"][..], "2 tries to make it anew have failed"),
        (&["--auto-reconnect=false"], "--auto-reconnect=false says not to"),
    ] {
        let mut world = World::new(ssm::Config::fast(), arguments);
        let mut open = world.connect(world.serve(servers::echo));
        round_trip(&mut open);
        let calls = world.simulator.calls(Operation::StartSession);
        world.simulator.instances(|instances| instances[0].online = false);
        let session = world.sessions().remove(0);
        world.simulator.end_session(&session, "ended by the test");
        let status = world.client.wait(DEADLINE).unwrap();
        let said = world.client.seen.join("\n");
        assert_eq!(status.code(), Some(5), "{said}");
        assert!(
            said.contains(words) && said.contains("ended by the test") && said.contains("try: "),
            "{said}"
        );
        let tried = world.simulator.calls(Operation::StartSession) - calls;
        assert_eq!(tried, if words.starts_with('2') { 2 } else { 0 }, "{said}");
        assert!(open.read(&mut [0]).map_or(true, |read| read == 0), "its connections are gone");
    }
}

#[test]
fn throttled_calls_come_slower_and_all_lanes_come_in_the_end() {
    require_netns!();
    let mut config = ssm::Config::fast();
    config.knobs.starts_per_second = Some(1);
    let world = World::new(config, &["--lanes", "4"]);
    let mut open = world.connect(world.serve(servers::echo));
    let mut calls = 0;
    for round in ["for 4 lanes", "after all were lost"] {
        round_trip(&mut open);
        until("four sessions", || world.sessions().len() == 4);
        world.await_lanes(4);
        let all = world.simulator.calls(Operation::StartSession);
        eprintln!("{} calls at one a second {round}", all - calls);
        assert!(all - calls <= 24, "{} calls {round}", all - calls);
        calls = all;
        if round == "for 4 lanes" {
            world.sessions().iter().for_each(|id| _ = world.simulator.end_session(id, "ended by the test"));
        }
    }
    world.finish();
}

#[test]
fn a_credential_process_is_asked_again_when_its_keys_have_expired() {
    require_netns!();
    let vpc = Vpc::new(&[]).unwrap();
    let simulator = vpc.simulator(ssm::Config::fast()).unwrap();
    let home = vpc.dir.path();
    let keys = |key: &str, secret: &str| {
        let expiry = "2099-01-01T00:00:00Z";
        let json = format!(
            r#"{{"Version":1,"AccessKeyId":"{key}","SecretAccessKey":"{secret}","Expiration":"{expiry}"}}"#
        );
        fs::write(home.join("keys.json"), json).unwrap();
    };
    let program = home.join("credentials");
    fs::write(&program, format!("#!/bin/sh\ncat {}/keys.json\n", home.display())).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(home.join(".aws")).unwrap();
    let profile =
        format!("[profile sim]\nregion = eu-central-1\ncredential_process = {}\n", program.display());
    fs::write(home.join(".aws/config"), profile).unwrap();
    let environment = simulator.env();
    let value = |name: &str| environment.iter().find(|(key, _)| key == name).unwrap().1.clone();
    keys(&value("AWS_ACCESS_KEY_ID"), &value("AWS_SECRET_ACCESS_KEY"));
    let hidden = ["AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
    let visible: Vec<_> =
        environment.iter().filter(|(name, _)| !hidden.contains(&name.as_str())).cloned().collect();
    let mut command = vpc.client(&visible, &["up", "--profile", "sim", "--instance", INSTANCE]);
    let log = home.join("log");
    command.args(["--cidr", "10.20.0.0/16", "--debug", "--log-file"]).arg(&log);
    let mut client = Process::start(&mut command).unwrap();
    client.wait_for(UP, DEADLINE).unwrap();
    let world = World { client, simulator, vpc };
    let mut open = world.connect(world.serve(servers::echo));
    round_trip(&mut open);

    world.simulator.expire_credentials();
    let (key, secret) = ("AKIASIMULATED0000002", "another/secret+key");
    world.simulator.add_credentials(key, secret, None);
    let home = world.vpc.dir.path().to_owned();
    let json = format!(r#"{{"Version":1,"AccessKeyId":"{key}","SecretAccessKey":"{secret}"}}"#);
    fs::write(home.join("keys.json"), json).unwrap();
    let session = world.sessions().remove(0);
    world.simulator.end_session(&session, "ended by the test");
    round_trip(&mut open);

    let logged = fs::read_to_string(log).unwrap();
    assert!(logged.contains("ended by the test"), "nothing is logged: {logged}");
    let first = value("AWS_SECRET_ACCESS_KEY");
    assert!(!logged.contains(secret) && !logged.contains(&first), "a secret is logged");
    let limits = fs::read_to_string(format!("/proc/{}/limits", laptop_client(&world))).unwrap();
    let limit = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(limit.split_whitespace().nth(4), Some("0"), "{limit}");
    world.finish();
}

#[test]
fn a_failure_to_start_is_told_while_a_lazy_session_waits() {
    require_netns!();
    let mut world = World::new(ssm::Config::fast(), &["--lazy", "--reconnect-delay", "300ms"]);
    world.simulator.fail_next(Operation::StartSession, ApiFailure::AccessDenied);
    world.echoes();
    world.client.wait_for("AWS does not allow ssm:StartSession", DEADLINE).unwrap();
    world.finish();
}
