//! What lanes teach about the way to the agent, and what keeps an idle one alive.

use super::*;

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
