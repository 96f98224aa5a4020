//! The real client and agent over the simulated service, with real programs on a real TUN device.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netstack_tests::patience::found;
use netstack_tests::servers::{self, noise};
use netstack_tests::ssm::{self, Count, Simulator};
use netstack_tests::vpc::{DEADLINE, INSTANCE, Process, TARGET, TARGET6, Vpc};
use netstack_tests::{netns, require_netns};
use rustix::process::Signal;
use sha2::{Digest as _, Sha256};
use socket2::SockRef;

/// A world with a session that is up over one lane.
struct Session {
    client: Process,
    simulator: Simulator,
    world: Vpc,
}

impl Session {
    fn over(config: ssm::Config) -> Result<Self> {
        let world = Vpc::new(&[])?;
        let simulator = world.simulator(config)?;
        let client = world.up(&simulator.env(), &["--instance", INSTANCE])?;
        Ok(Self { client, simulator, world })
    }

    /// Without delays and pauses: for what is not about pace.
    fn fast() -> Result<Self> {
        Self::over(ssm::Config::fast())
    }

    fn curl(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.world.laptop.command("curl");
        Ok(command.args(["-sS", "--noproxy", "*", "--max-time", "60"]).args(arguments).output()?)
    }

    /// Ends the session as Ctrl-C does and checks that the service saw nothing wrong.
    fn finish(mut self) -> Result<()> {
        let status = self.client.end(Signal::INT)?;
        ensure!(status.code() == Some(130), "it ended with {status}:\n{}", self.client.seen.join("\n"));
        self.simulator.assert_clean();
        let left = self.simulator.active_sessions();
        ensure!(left.is_empty(), "sessions were left: {left:?}");
        Ok(())
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn succeeds(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?} ended with {}: {}", output.status, text(&output));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn curl_fetches_a_page_over_ipv4_and_ipv6() -> Result<()> {
    if let Some(reason) = netns::why_not().or_else(|| netns::missing(&["curl"])) {
        netns::skipped(&reason);
        return Ok(());
    }
    let session = Session::fast()?;
    let page = |mut stream: TcpStream| {
        let mut request = [0; 1024];
        let _ = stream.read(&mut request);
        let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nhello\n");
    };
    let v4 = servers::serve(&session.world.vpc, &format!("{TARGET}:0"), page)?;
    let v6 = servers::serve(&session.world.vpc, &format!("[{TARGET6}]:0"), page)?;
    for address in [v4, v6] {
        let output = session.curl(&[&format!("http://{address}/")])?;
        assert_eq!(text(&output), "hello\n", "from {address}");
    }
    session.finish()
}

#[test]
fn refused_is_refused_and_unreachable_is_unreachable() -> Result<()> {
    if let Some(reason) = netns::why_not() {
        netns::skipped(&reason);
        return Ok(());
    }
    let session = Session::fast()?;
    let connect = |address: &str| -> std::io::Error {
        let address: SocketAddr = address.parse().unwrap();
        session.world.laptop.enter(|| TcpStream::connect_timeout(&address, DEADLINE)).unwrap_err()
    };
    for closed in [format!("{TARGET}:9"), format!("[{TARGET6}]:9")] {
        assert_eq!(connect(&closed).raw_os_error(), Some(rustix::io::Errno::CONNREFUSED.raw_os_error()));
    }
    // No route leads there from the VPC.
    for nowhere in ["10.20.200.1:80", "[fd20::99]:80"] {
        let error = connect(nowhere).raw_os_error();
        let unreachable = [rustix::io::Errno::NETUNREACH, rustix::io::Errno::HOSTUNREACH]
            .map(|errno| Some(errno.raw_os_error()));
        assert!(unreachable.contains(&error), "{nowhere}: {error:?}");
    }
    let status = session.world.status()?;
    assert_eq!(status["flows_refused"], 4, "{status}");
    session.finish()
}

#[test]
fn psql_redis_ssh_and_scp_work() -> Result<()> {
    let programs = ["psql", "redis-cli", "redis-server", "ssh", "scp", "ssh-keygen", "setpriv"];
    if let Some(reason) =
        netns::why_not().or_else(|| netns::missing(&programs)).or_else(servers::missing_postgres)
    {
        netns::skipped(&reason);
        return Ok(());
    }
    let session = Session::fast()?;
    let world = &session.world;

    let _postgres = servers::postgres(world)?;
    let sql = "create table t as select i, md5(i::text) from generate_series(1, 20000) i; select count(*), min(md5) from t";
    let mut psql = world.laptop.command("psql");
    psql.args(["-h", TARGET, "-U", "postgres", "-At", "-c", sql]).env("PGCONNECT_TIMEOUT", "30");
    assert!(succeeds(&mut psql)?.contains("20000|"), "the table has all its rows");

    let _redis = servers::redis(world)?;
    let mut redis = world.laptop.command("redis-cli");
    assert_eq!(succeeds(redis.args(["-h", TARGET, "set", "k", "v"]))?.trim(), "OK");
    let mut redis = world.laptop.command("redis-cli");
    assert_eq!(succeeds(redis.args(["-h", TARGET, "get", "k"]))?.trim(), "v");

    let ssh = servers::ssh(world)?;
    let at = format!("root@{TARGET}");
    let mut command = world.laptop.command("ssh");
    command.args(ssh.options()).args(["-p", &servers::SSH_PORT.to_string(), &at, "echo from the instance"]);
    assert_eq!(succeeds(&mut command)?, "from the instance\n");
    let (there, back) = (world.dir.path().join("there"), world.dir.path().join("back"));
    let original = world.dir.path().join("original");
    std::fs::write(&original, noise(8 << 20, 1))?;
    for (from, to) in [
        (original.display().to_string(), format!("{at}:{}", there.display())),
        (format!("{at}:{}", there.display()), back.display().to_string()),
    ] {
        let mut scp = world.laptop.command("scp");
        succeeds(scp.args(ssh.options()).args(["-q", "-P", &servers::SSH_PORT.to_string(), &from, &to]))?;
    }
    assert!(same(&original, &back)?, "scp brought back other bytes");
    session.finish()
}

fn same(a: &Path, b: &Path) -> Result<bool> {
    Ok(std::fs::read(a)? == std::fs::read(b)?)
}

#[test]
fn iperf3_runs_both_ways_at_once() -> Result<()> {
    if let Some(reason) = netns::why_not().or_else(|| netns::missing(&["iperf3"])) {
        netns::skipped(&reason);
        return Ok(());
    }
    let session = Session::fast()?;
    let _server = servers::iperf(&session.world)?;
    for extra in [&[][..], &["-R"], &["--bidir"]] {
        let run = || -> Result<serde_json::Value> {
            let mut command = session.world.laptop.command("iperf3");
            let output = command.args(["-c", TARGET, "-t", "2", "-J"]).args(extra).output()?;
            Ok(serde_json::from_slice(&output.stdout)?)
        };
        // Its server does not listen for a moment after each test.
        let again = |report: &serde_json::Value| {
            let error = report["error"].as_str().unwrap_or_default();
            error.contains("Connection refused") || error.contains("busy")
        };
        let mut report = run()?;
        for _ in 0..300 {
            if !again(&report) {
                break;
            }
            report = run()?;
        }
        assert!(report["error"].is_null(), "iperf3 {extra:?}: {}", report["error"]);
        assert!(report["end"]["sum_received"]["bytes"].as_u64() > Some(0), "iperf3 {extra:?} moved nothing");
    }
    session.finish()
}

#[test]
fn two_hundred_parallel_requests_all_succeed() -> Result<()> {
    if let Some(reason) = netns::why_not().or_else(|| netns::missing(&["curl"])) {
        netns::skipped(&reason);
        return Ok(());
    }
    let session = Session::fast()?;
    let _nginx = servers::nginx(&session.world, 100_000)?;
    let url = format!("http://{TARGET}:{}/blob?[1-200]", servers::HTTP_PORT);
    let arguments = [
        "--parallel",
        "--parallel-immediate",
        "--parallel-max",
        "200",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code} %{size_download}\n",
        &url,
    ];
    let output = session.curl(&arguments)?;
    let lines: Vec<String> = text(&output).lines().map(str::to_owned).collect();
    assert_eq!(lines.iter().filter(|line| *line == "200 100000").count(), 200, "{lines:?}");
    session.finish()
}

/// Sends `length` bytes, lets `disturb` act at each of `points`, and checks what came there and what came back.
fn transfer(session: &Session, length: usize, points: usize, disturb: &dyn Fn(&Simulator)) -> Result<()> {
    let address = servers::serve(&session.world.vpc, &format!("{TARGET}:0"), servers::digest_then_noise)?;
    let (progress, moved) = mpsc::channel();
    std::thread::scope(|scope| {
        let laptop = &session.world.laptop;
        let app = scope.spawn(move || laptop.enter(|| exchange(address, length, points, progress)));
        while moved.recv().is_ok() {
            disturb(&session.simulator);
        }
        app.join().expect("the application does not panic")
    })
}

/// The application: tells `progress` at equal distances of each direction, and never meets an error.
fn exchange(address: SocketAddr, length: usize, points: usize, progress: mpsc::Sender<()>) -> Result<()> {
    let sent = noise(length, 1);
    let step = (length / (points + 1)).max(1);
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(120)))?;
    stream.set_write_timeout(Some(Duration::from_secs(120)))?;
    for (number, piece) in sent.chunks(step).enumerate() {
        if (1..=points).contains(&number) {
            progress.send(())?;
        }
        stream.write_all(piece)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut digest = [0; 32];
    stream.read_exact(&mut digest)?;
    ensure!(digest == Sha256::digest(&sent)[..], "the target got other bytes");
    let mut received = Vec::with_capacity(length);
    let mut buffer = vec![0; 64 * 1024];
    let mut told = 0;
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        received.extend_from_slice(&buffer[..count]);
        if told < points && received.len() > (told + 1) * step {
            told += 1;
            progress.send(())?;
        }
    }
    ensure!(Sha256::digest(&received) == Sha256::digest(noise(length, 2)), "the application got other bytes");
    Ok(())
}

#[test]
fn a_transfer_does_not_notice_cuts_on_either_side() -> Result<()> {
    if let Some(reason) = netns::why_not() {
        netns::skipped(&reason);
        return Ok(());
    }
    for side in ["client", "agent"] {
        let mut config = ssm::Config::fast();
        config.knobs.repeat_after_agent_cut = 1.0;
        let session = Session::over(config)?;
        transfer(&session, 64 << 20, 5, &|simulator| {
            for active in simulator.active_sessions() {
                match side {
                    "client" => simulator.cut_client(&active.id),
                    _ => simulator.cut_agent(&active.id),
                };
            }
        })
        .with_context(|| format!("cutting the {side}'s websocket"))?;
        session.finish().with_context(|| format!("cutting the {side}'s websocket"))?;
    }
    Ok(())
}

#[test]
fn a_transfer_at_the_services_real_pace_arrives_whole() -> Result<()> {
    if let Some(reason) = netns::why_not() {
        netns::skipped(&reason);
        return Ok(());
    }
    let session = Session::over(ssm::Config::default())?;
    transfer(&session, 8 << 20, 0, &|_| {})?;
    session.finish()
}

#[test]
fn open_connections_outlive_their_ssm_session() -> Result<()> {
    if let Some(reason) = netns::why_not() {
        netns::skipped(&reason);
        return Ok(());
    }
    let session = Session::fast()?;
    transfer(&session, 16 << 20, 3, &|simulator| {
        for active in simulator.active_sessions() {
            simulator.end_session(&active.id, "ended by the test");
        }
    })?;
    let status = session.world.status()?;
    assert!(status["resumes"].as_u64() >= Some(1), "{status}");
    session.finish()
}

#[test]
fn an_agent_that_restarts_costs_its_connections_and_nothing_more() -> Result<()> {
    if let Some(reason) = netns::why_not() {
        netns::skipped(&reason);
        return Ok(());
    }
    let mut session = Session::fast()?;
    let address = servers::serve(&session.world.vpc, &format!("{TARGET}:0"), servers::echo)?;
    let mut open = session.world.laptop.enter(|| TcpStream::connect(address))?;
    open.set_read_timeout(Some(DEADLINE))?;
    open.write_all(b"x")?;
    open.read_exact(&mut [0])?;

    session.world.start_agent()?;

    let ended = open.read(&mut [0]);
    assert!(ended.is_err(), "the connection of the dead agent gave {ended:?}");
    let flow = found("the flow", || flow_to(&session.world, address))?;
    assert_eq!((&flow["state"], &flow["ended_by"]), (&"reset".into(), &"tunnel".into()), "{flow}");
    let mut fresh = session.world.laptop.enter(|| TcpStream::connect(address))?;
    fresh.set_read_timeout(Some(DEADLINE))?;
    fresh.write_all(b"y")?;
    let mut byte = [0];
    fresh.read_exact(&mut byte)?;
    assert_eq!(&byte, b"y");
    let status = session.world.status()?;
    assert_eq!((status["flows_total"].as_u64(), status["bytes_tx"].as_u64()), (Some(2), Some(2)), "{status}");
    session.finish()
}

#[test]
fn nothing_is_left_behind_by_any_end() -> Result<()> {
    if let Some(reason) = netns::why_not() {
        netns::skipped(&reason);
        return Ok(());
    }
    let world = Vpc::new(&[])?;
    let simulator = world.simulator(ssm::Config::fast())?;
    let untouched = world.traces()?;
    for (signal, code) in [(Signal::INT, Some(130)), (Signal::TERM, Some(0)), (Signal::HUP, Some(0))] {
        let mut client = world.up(&simulator.env(), &["--instance", INSTANCE])?;
        assert_ne!(world.traces()?, untouched, "the session changed nothing");
        let status = client.end(signal)?;
        assert_eq!(status.code(), code, "{signal:?}: {}", client.seen.join("\n"));
        assert_eq!(world.traces()?, untouched, "after {signal:?}");
        assert!(simulator.active_sessions().is_empty(), "after {signal:?}");
    }

    let mut client = world.up(&simulator.env(), &["--instance", INSTANCE])?;
    succeeds(&mut world.client(&[], &["down"]))?;
    assert_eq!(client.wait(DEADLINE)?.code(), Some(0), "{}", client.seen.join("\n"));
    assert_eq!(world.traces()?, untouched, "after down");

    let mut client = world.up(&simulator.env(), &["--instance", INSTANCE])?;
    client.end(Signal::KILL)?;
    assert_ne!(world.traces()?, untouched, "a killed session cannot clean up");
    let mut client = world.up(&simulator.env(), &["--instance", INSTANCE])?;
    assert!(client.seen.iter().any(|line| line.contains("undid")), "{}", client.seen.join("\n"));
    client.end(Signal::TERM)?;
    assert_eq!(world.traces()?, untouched, "after kill -9 and another session");
    simulator.assert_clean();
    Ok(())
}

#[test]
fn every_wrong_start_says_why_and_changes_nothing() -> Result<()> {
    if let Some(reason) = netns::why_not() {
        netns::skipped(&reason);
        return Ok(());
    }
    let mut world = Vpc::new(&[])?;
    let simulator = world.simulator(ssm::Config::fast())?;
    let untouched = world.traces()?;
    let environment = simulator.env();
    let without = |name: &str| -> Vec<(String, String)> {
        environment.iter().filter(|(key, _)| key != name).cloned().collect()
    };
    let up = |environment: &[(String, String)], arguments: &[&str]| -> Result<(Option<i32>, String)> {
        let output = world.client(environment, &["up", "--timeout", "5s"]).args(arguments).output()?;
        Ok((output.status.code(), text(&output)))
    };
    let instance = ["--instance", INSTANCE];
    let good = ["--cidr", "10.20.0.0/16"];

    let (code, said) = up(&environment, &[&["--instance", "i-0fffffffffffffff0"][..], &good].concat())?;
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("i-0fffffffffffffff0") && said.contains("try:"), "{said}");

    let (code, said) = up(&environment, &[&instance[..], &["--cidr", "10.20.0.0/40"]].concat())?;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("10.20.0.0/40"), "{said}");

    let (code, said) = up(&without("AWS_REGION"), &[&instance[..], &good].concat())?;
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("region") && said.contains("try:"), "{said}");

    simulator.fail_next(ssm::Operation::StartSession, ssm::ApiFailure::ExpiredToken);
    let (code, said) = up(&environment, &[&instance[..], &good].concat())?;
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("expired") && said.contains("try:"), "{said}");

    // Nothing listens where the agent should.
    world.agent = None;
    let up = |arguments: &[&str]| -> Result<(Option<i32>, String)> {
        let output = world.client(&environment, &["up", "--timeout", "5s"]).args(arguments).output()?;
        Ok((output.status.code(), text(&output)))
    };
    let (code, said) = up(&[&instance[..], &good].concat())?;
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("install.sh"), "{said}");

    // Something else listens there, and never speaks.
    let silent = servers::serve(&world.vpc, "127.0.0.1:7777", |stream| {
        let mut stream = stream;
        let _ = stream.read(&mut [0]);
    })?;
    let (code, said) = up(&[&instance[..], &good, &["--agent-port", &silent.port().to_string()]].concat())?;
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("greeting") && said.contains("install.sh"), "{said}");

    assert_eq!(world.traces()?, untouched);
    assert!(simulator.active_sessions().is_empty());
    Ok(())
}

#[test]
fn status_flows_and_down_tell_of_the_session() -> Result<()> {
    if let Some(reason) = netns::why_not() {
        netns::skipped(&reason);
        return Ok(());
    }
    let session = Session::fast()?;
    let address = servers::serve(&session.world.vpc, &format!("{TARGET}:0"), servers::echo)?;
    let mut open = session.world.laptop.enter(|| TcpStream::connect(address))?;
    open.write_all(b"12345")?;
    open.read_exact(&mut [0; 5])?;

    let status = session.world.status()?;
    assert_eq!(status["state"], "up");
    assert_eq!(status["flows_open"], 1, "{status}");
    assert_eq!(status["lanes"][0]["kind"], "ssm");
    let flows = succeeds(&mut session.world.client(&[], &["flows", "--json"]))?;
    let flows: serde_json::Value = serde_json::from_str(&flows)?;
    let flow = &flows["sessions"][0]["flows"][0];
    assert_eq!(flow["target"], address.to_string(), "{flows}");
    assert_eq!((flow["bytes_tx"].as_u64(), flow["bytes_rx"].as_u64()), (Some(5), Some(5)), "{flows}");
    assert!(succeeds(&mut session.world.client(&[], &["flows"]))?.contains(&address.to_string()));
    assert!(session.simulator.count(Count::UpStream) > 0);
    session.finish()
}

#[test]
fn a_killed_download_is_reset_at_both_sides_and_told_truly() -> Result<()> {
    if let Some(reason) = netns::why_not() {
        netns::skipped(&reason);
        return Ok(());
    }
    const PART: usize = 1_000_000;
    let session = Session::fast()?;
    let world = &session.world;
    let (ended, end) = mpsc::channel();
    let each = move |mut stream: TcpStream| {
        let sent = stream.write_all(&noise(PART, 3));
        // After the request, reading ends with the connection.
        let _ = ended.send(sent.and_then(|()| std::io::copy(&mut stream, &mut std::io::sink())));
    };
    let address = servers::serve(&world.vpc, &format!("{TARGET}:0"), each)?;
    let url = format!("http://{address}/");
    let mut curl = world.laptop.command("curl");
    curl.args(["-sS", "--http0.9", "--noproxy", "*", "--max-time", "60", "-o", "/dev/null", &url]);
    let curl = curl.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let flow = found("the first part", || {
        let flow = flow_to(world, address)?;
        Ok(flow.filter(|flow| flow["bytes_rx"] == PART))
    })?;

    let id = flow["id"].to_string();
    assert_eq!((&flow["state"], &flow["verdict"]), (&"open".into(), &"proxy".into()), "{flow}");
    assert!(flow["ended_by"].is_null() && flow["error"].is_null(), "{flow}");
    // 64 KiB is the most that a packet carries.
    assert!(flow["packets_rx"].as_u64() >= Some(16) && flow["packets_tx"].as_u64() >= Some(3), "{flow}");
    assert_eq!(
        (flow["retransmits_tx"].as_u64(), flow["retransmits_rx"].as_u64()),
        (Some(0), Some(0)),
        "{flow}"
    );
    assert!(flow["app_rtt_ms"].as_f64() < Some(1000.0) && flow["app_rtt_ms"].is_number(), "{flow}");
    assert!(flow["dial_ms"].as_f64() > Some(0.0), "{flow}");

    let killed = text(&world.client(&[], &["flows", "kill", &id]).output()?);

    assert!(
        killed.contains(&format!("flow {id} reset: ")) && killed.contains(&address.to_string()),
        "{killed}"
    );
    let curl = curl.wait_with_output()?;
    // CURLE_RECV_ERROR
    assert_eq!(curl.status.code(), Some(56), "{}", text(&curl));
    assert!(text(&curl).contains("reset by peer"), "{}", text(&curl));
    let error = end.recv_timeout(DEADLINE)?.expect_err("the target's connection was reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    let flow = flow_to(world, address)?.context("an ended flow is still told of")?;
    assert_eq!((&flow["state"], &flow["ended_by"]), (&"reset".into(), &"user".into()), "{flow}");
    assert_eq!(flow["bytes_rx"], PART, "{flow}");

    let again = world.client(&[], &["flows", "kill", &id]).output()?;
    assert_eq!(again.status.code(), Some(1), "{}", text(&again));
    assert!(text(&again).contains("ended already"), "{}", text(&again));
    session.finish()
}

#[test]
fn flows_tell_who_reset_a_connection() -> Result<()> {
    if let Some(reason) = netns::why_not() {
        netns::skipped(&reason);
        return Ok(());
    }
    let session = Session::fast()?;
    let world = &session.world;
    let linger = |stream: &TcpStream| SockRef::from(stream).set_linger(Some(Duration::ZERO));
    let by_target = servers::serve(&world.vpc, &format!("{TARGET}:0"), move |mut stream| {
        let _ = stream.read(&mut [0]);
        let _ = linger(&stream);
    })?;
    let by_application = servers::serve(&world.vpc, &format!("{TARGET}:0"), servers::echo)?;
    for (address, who) in [(by_target, "target"), (by_application, "application")] {
        let mut stream = world.laptop.enter(|| TcpStream::connect(address))?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.write_all(b"x")?;
        let read = stream.read(&mut [0]);
        assert_eq!(read.is_err(), who == "target", "{read:?}");
        linger(&stream)?;
        drop(stream);

        let flow =
            found("the reset", || Ok(flow_to(world, address)?.filter(|flow| flow["state"] == "reset")))?;

        assert_eq!(flow["ended_by"], who, "{flow}");
        assert_eq!(flow["error"], format!("reset by the {who}"), "{flow}");
    }
    session.finish()
}

fn flow_to(world: &Vpc, address: SocketAddr) -> Result<Option<serde_json::Value>> {
    let told = succeeds(&mut world.client(&[], &["flows", "--json"]))?;
    let told: serde_json::Value = serde_json::from_str(&told)?;
    let flows = told["sessions"][0]["flows"].as_array().context("flows")?;
    Ok(flows.iter().find(|flow| flow["target"] == address.to_string()).cloned())
}

/// The macro is for tests without a result; this one keeps it in use here.
#[test]
fn a_second_session_on_the_same_networks_is_refused() {
    require_netns!();
    let session = Session::fast().unwrap();
    let output = session
        .world
        .client(
            &session.simulator.env(),
            &["up", "--instance", INSTANCE, "--cidr", "10.20.5.0/24", "--session-name", "two"],
        )
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(8), "{}", text(&output));
    assert!(text(&output).contains("10.20.5.0/24") && text(&output).contains("default"), "{}", text(&output));
    session.finish().unwrap();
}
