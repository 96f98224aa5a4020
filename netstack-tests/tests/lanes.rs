//! Several SSM sessions for one tunnel: as many as are wanted, replaced when they fail or before, none when idle.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "helpers of tests: they end the test or tell of it"
)]

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

/// A download that is disturbed when half of it is there.
fn disturbed(world: &World, length: usize, disturb: impl FnOnce(&World)) -> Download {
    let stream = world.connect(world.source(length));
    let (half, reached) = mpsc::channel();
    let reader = thread::spawn(move || download(stream, length, &half));
    reached.recv_timeout(DEADLINE).unwrap();
    disturb(world);
    reader.join().unwrap()
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
fn a_lane_that_ends_under_a_transfer_is_replaced_and_costs_no_stall() {
    require_netns!();
    let mut world = World::new(ssm::Config::default(), &["--lanes", "4"]);
    world.await_lanes(4);
    let lost = world.sessions()[1].clone();
    let took = disturbed(&world, 10 << 20, |world| {
        world.simulator.end_session(&lost, "ended by the test");
    });
    assert!(took.pause < Duration::from_millis(1500), "it stood still for {:?}", took.pause);
    let status = world.await_lanes(4);
    assert!(!world.sessions().contains(&lost));
    let losses = status["lanes"].as_array().unwrap().iter().map(|lane| &lane["last_loss"]);
    let told: Vec<_> = losses.filter(|loss| !loss.is_null()).collect();
    assert!(told.len() == 1 && told[0]["session_id"] == lost.as_str(), "{status}");
    assert!(told[0]["reason"].as_str().unwrap().contains("ended by the test"), "{status}");
    let trunk = &status["trunk"];
    assert!(trunk["resent"].is_u64() && trunk["duplicates"].is_u64() && trunk["credit"].is_u64(), "{status}");
    let shown = world.vpc.client(&[], &["status"]).output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("is in place of one lost") && shown.contains("trunk resumed 0 times"), "{shown}");
    world.client.wait_for("replacing a lane", DEADLINE).unwrap();
    assert_eq!(status["state"], "up");
    world.finish();
}

#[test]
fn a_lane_that_leads_nowhere_is_replaced_within_seconds() {
    require_netns!();
    let world = World::new(ssm::Config::default(), &["--lanes", "4"]);
    world.await_lanes(4);
    let mute = world.sessions()[2].clone();
    let began = now();
    let took = disturbed(&world, 18 << 20, |world| {
        world.simulator.black_hole_client(&mute);
        let cut = now();
        until("a replacement", || {
            let status = world.vpc.status().unwrap();
            let lanes = status["lanes"].as_array().unwrap();
            lanes.len() == 4 && !lanes.iter().any(|lane| lane["session_id"] == mute.as_str())
        });
        eprintln!("replaced after {:?}", cut.elapsed());
        assert!(cut.elapsed() < Duration::from_secs(5), "{:?}", cut.elapsed());
        // Its replacement was there before it went.
        let status = world.vpc.status().unwrap();
        let lost = |lane: &&serde_json::Value| lane["last_loss"]["session_id"] == mute.as_str();
        assert_eq!(status["lanes"].as_array().unwrap().iter().filter(lost).count(), 1, "{status}");
    });
    eprintln!("pause {:?}, in all {:?}", took.pause, began.elapsed());
    assert!(took.pause < Duration::from_millis(1500), "it stood still for {:?}", took.pause);
    world.finish();
}

#[test]
fn lanes_that_are_all_cut_at_once_are_not_waited_for() {
    require_netns!();
    let mut config = ssm::Config::default();
    // The SSM agents are long back only after others are there.
    config.knobs.agent.reconnect = (Duration::from_secs(20), Duration::from_secs(20));
    let world = World::new(config, &["--lanes", "4"]);
    world.await_lanes(4);
    let before = world.sessions();
    let took = disturbed(&world, 10 << 20, |world| world.simulator.cut_all());
    eprintln!("it stood still for {:?}", took.pause);
    assert!(took.pause < Duration::from_secs(1), "it stood still for {:?}", took.pause);
    world.await_lanes(4);
    assert!(world.sessions().iter().filter(|id| before.contains(id)).count() < 4);
    world.finish();
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

/// An upload that goes on until it is told to stop.
struct Upload {
    over: Arc<AtomicBool>,
    writer: thread::JoinHandle<(TcpStream, u64)>,
}

impl Upload {
    fn start(mut stream: TcpStream) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let writer = thread::spawn(move || {
            let (piece, mut sent) = (noise(64 << 10, 3), 0);
            while !told.load(Ordering::Relaxed) {
                stream.write_all(&piece).unwrap();
                sent += piece.len() as u64;
            }
            (stream, sent)
        });
        Self { over, writer }
    }

    /// Everything has arrived.
    fn finish(self) {
        self.over.store(true, Ordering::Relaxed);
        let (mut stream, sent) = self.writer.join().unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut arrived = [0; 8];
        stream.read_exact(&mut arrived).unwrap();
        assert_eq!(u64::from_be_bytes(arrived), sent);
    }
}

/// Takes all there is and tells how much it was.
fn sink(mut stream: TcpStream) {
    let (mut buffer, mut taken) = (vec![0; 64 << 10], 0u64);
    while let Ok(read) = stream.read(&mut buffer)
        && read > 0
    {
        taken += read as u64;
    }
    let _ = stream.write_all(&taken.to_be_bytes());
}

#[test]
fn messages_to_the_instance_grow_fall_where_they_do_not_pass_and_both_is_remembered() {
    require_netns!();
    let mut config = ssm::Config::fast();
    config.knobs.bandwidth = Some(4_000_000);
    let arguments = ["--lanes", "1", "--compress", "off"];
    let mut world = World::new(config, &arguments);
    let memory = world.vpc.dir.path().join(".local/state/ssm-proxy/lanes");
    let remembers = |what: &str| fs::read_to_string(&memory).is_ok_and(|text| text.contains(what));
    let longest = |world: &World| world.simulator.active_sessions()[0].longest_up;
    let target = world.serve(sink);
    let anew = |world: &mut World| {
        world.client.end(Signal::INT).unwrap();
        let arguments = [&["--instance", INSTANCE][..], &arguments].concat();
        world.client = world.vpc.up(&world.simulator.env(), &arguments).unwrap();
    };
    let upload = Upload::start(world.connect(target));
    until("larger messages", || longest(&world) > 24 << 10 && remembers("payload=32768"));
    upload.finish();

    anew(&mut world);
    let upload = Upload::start(world.connect(target));
    until("an upload", || longest(&world) > 7 << 10);
    upload.finish();
    assert!(longest(&world) > 24 << 10, "it began with {}", longest(&world));

    // As in another network: whatever is longer costs the connection, without a word.
    world.simulator.knobs(|knobs| (knobs.max_message, knobs.max_message_silent) = (2048, true));
    let resumed = world.simulator.calls(Operation::ResumeSession);
    let upload = Upload::start(world.connect(target));
    world.client.wait_for("no messages above 1 KiB", DEADLINE).unwrap();
    upload.finish();
    until("the lesson", || remembers("limit=1024"));
    let resumed = world.simulator.calls(Operation::ResumeSession) - resumed;
    assert!(resumed <= 8, "it asked for {resumed} websockets");

    anew(&mut world);
    let refused = world.simulator.count(Count::TooBig);
    let upload = Upload::start(world.connect(target));
    until("an upload", || world.simulator.session_count(&world.sessions()[0], Count::UpStream) > 200);
    upload.finish();
    assert_eq!((world.simulator.count(Count::TooBig), longest(&world)), (refused, 1024));
    world.finish();
}

#[test]
fn the_accounts_maximum_duration_is_learned_for_all_lanes() {
    require_netns!();
    let mut config = ssm::Config::fast();
    config.knobs.max_duration = Some(Duration::from_secs(60));
    let world = World::new(config, &["--lanes", "2"]);
    let mut open = world.connect(world.serve(servers::echo));
    round_trip(&mut open);
    world.await_lanes(2);
    let ended = |at: usize| world.simulator.sessions().get(at).and_then(|session| session.ended.clone());
    // One lane begins later than the other.
    until("some age", || world.simulator.sessions()[0].age > Duration::from_secs(20));
    world.simulator.end_session(&world.sessions()[1], "ended by the test");
    until("a third session", || world.simulator.sessions().len() == 3);
    until("its end by age", || ended(0).is_some());
    assert_eq!(ended(0).unwrap(), "maximum duration");
    until("the end of the third by plan", || ended(2).is_some());
    assert_eq!(ended(2).unwrap(), "TerminateSession");
    round_trip(&mut open);
    let remembered = fs::read_to_string(world.vpc.dir.path().join(".local/state/ssm-proxy/lanes")).unwrap();
    assert!(remembered.contains("max_session=60"), "{remembered}");
    world.finish();
}

/// Client messages on a session of which nobody makes use, up to the first ping of its websocket.
fn idle_messages(keepalive: &str, with_connection: bool) -> u64 {
    let arguments = ["--keepalive", keepalive, "--ping-interval", "1s", "--lanes", "1"];
    let world = World::new(ssm::Config::fast(), &arguments);
    let mut open = with_connection.then(|| world.connect(world.serve(servers::echo)));
    open.iter_mut().for_each(round_trip);
    let session = world.sessions().remove(0);
    let messages = || world.simulator.session_count(&session, Count::UpStream);
    let before = messages();
    until("a ping of the websocket", || world.simulator.count(Count::Pings) > 0);
    let sent = messages() - before;
    eprintln!("--keepalive {keepalive}, a connection is open: {with_connection}: {sent} messages");
    open.iter_mut().for_each(round_trip);
    assert_eq!(world.sessions(), [session], "the same session");
    world.finish();
    sent
}

#[test]
fn an_idle_session_is_kept_by_the_pings_that_were_asked_for() {
    require_netns!();
    let cases =
        [("auto", false, false), ("auto", true, true), ("always", false, true), ("never", true, false)];
    let idle = cases.map(|(keepalive, with, pings)| {
        (keepalive, pings, thread::spawn(move || idle_messages(keepalive, with)))
    });
    for (keepalive, pings, sent) in idle {
        let sent = sent.join().unwrap();
        // Bytes that came at the start are acknowledged all the same.
        assert!(if pings { sent >= 8 } else { sent <= 3 }, "{keepalive}: {sent} messages");
    }
}

#[test]
fn a_changed_network_moves_all_lanes_at_once() {
    require_netns!();
    let world = World::new(ssm::Config::fast(), &["--lanes", "4"]);
    let mut open = world.connect(world.serve(servers::echo));
    round_trip(&mut open);
    world.await_lanes(4);
    let sessions = world.sessions();
    let count = || {
        let calls = |operation| world.simulator.calls(operation);
        (calls(Operation::StartSession), calls(Operation::ResumeSession))
    };
    let (started, resumed) = count();
    // Their TCP connections stay, but lead nowhere.
    sessions.iter().for_each(|id| assert!(world.simulator.black_hole_client(id)));
    let began = now();
    world.vpc.laptop.ip(&format!("route add default via {LINK}")).unwrap();
    round_trip(&mut open);
    let took = began.elapsed();
    until("all four", || world.simulator.count(Count::ClientConnects) >= 8);
    eprintln!("an answer after {took:?}, all lanes after {:?}", began.elapsed());
    // A websocket that nobody asks is silent for 45 s before it is given up.
    assert!(took < Duration::from_secs(3) && began.elapsed() < Duration::from_secs(4), "{took:?}");
    let status = world.await_lanes(4);
    assert_eq!(status["state"], "up");
    let now = count();
    // A lane that looked lost for a moment may have been replaced as well.
    assert!(now.0 - started <= 4 && now.1 - resumed <= 8, "{now:?} after {started} and {resumed}");
    world.finish();
}

#[test]
fn a_transfer_both_ways_is_whole_over_lanes_that_are_cut_every_two_seconds() {
    require_netns!();
    let megabytes: u64 = std::env::var("MEGABYTES").map_or(100, |text| text.parse().expect("MEGABYTES"));
    let mut config = ssm::Config::fast();
    config.knobs.repeat_after_agent_cut = 1.0;
    let world = World::new(config, &["--lanes", "4", "--compress", "off"]);
    world.await_lanes(4);
    let stream = world.connect(world.serve(servers::echo));
    let (mut writer, mut reader) = (stream.try_clone().unwrap(), stream);
    let (began, mut cuts) = (now(), 0u32);
    let sent = thread::spawn(move || {
        let mut hash = Sha256::new();
        for seed in 0..megabytes {
            let piece = noise(1_000_000, seed);
            hash.update(&piece);
            writer.write_all(&piece).unwrap();
        }
        writer.shutdown(Shutdown::Write).unwrap();
        hash.finalize()
    });
    let received = thread::spawn(move || {
        let (mut hash, mut buffer, mut count) = (Sha256::new(), vec![0; 256 << 10], 0);
        loop {
            match reader.read(&mut buffer).unwrap() {
                0 => return (hash.finalize(), count),
                read => {
                    hash.update(&buffer[..read]);
                    count += read as u64;
                }
            }
        }
    });
    let ways = [Simulator::cut_client_abruptly, Simulator::cut_agent, Simulator::cut_client];
    while !received.is_finished() {
        thread::sleep(Duration::from_millis(100));
        let sessions = world.sessions();
        if began.elapsed() >= (cuts + 1) * Duration::from_secs(2) && !sessions.is_empty() {
            let one = &sessions[cuts as usize % sessions.len()];
            ways[cuts as usize % ways.len()](&world.simulator, one);
            cuts += 1;
        }
    }
    let (sent, (received, count)) = (sent.join().unwrap(), received.join().unwrap());
    eprintln!("{} MB each way in {:?} with {cuts} cuts", count / 1_000_000, began.elapsed());
    assert_eq!((count, cuts > 0), (megabytes * 1_000_000, true));
    assert_eq!(sent, received);
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
fn a_forgotten_trunk_of_several_lanes_is_begun_anew_once() {
    require_netns!();
    let mut world = World::new(ssm::Config::fast(), &["--lanes", "3"]);
    world.await_lanes(3);
    let mut open = world.connect(world.serve(servers::echo));
    round_trip(&mut open);
    world.vpc.start_agent().unwrap();
    assert!(open.read(&mut [0]).is_err(), "its connection is reset");
    world.echoes();
    world.await_lanes(3);
    world.client.wait_for("reconnected after", DEADLINE).unwrap();
    let told = world.client.seen.iter().filter(|line| line.contains("were reset")).count();
    assert_eq!(told, 1, "{}", world.client.seen.join("\n"));
    assert_eq!(world.vpc.status().unwrap()["trunk"]["lost"], 1);
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
