//! UDP and ping through the real client and agent, over the simulated service and a real TUN device.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netstack_tests::bins;
use netstack_tests::netns::{self, Netns, veth};
use netstack_tests::patience::found;
use netstack_tests::servers::{self, noise};
use netstack_tests::ssm::{self, Simulator};
use netstack_tests::vpc::{DEADLINE, INSTANCE, Process, TARGET, TARGET6, Vpc};
use rustix::io::Errno;
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};
use rustix::process::Signal;

/// A world with a session that is up over one lane without delays and pauses.
struct Session {
    client: Process,
    simulator: Simulator,
    world: Vpc,
}

impl Session {
    fn new(arguments: &[&str]) -> Result<Self> {
        Self::in_world(Vpc::new(&[])?, arguments)
    }

    fn in_world(world: Vpc, arguments: &[&str]) -> Result<Self> {
        let simulator = world.simulator(ssm::Config::fast())?;
        let all = [&["--instance", INSTANCE], arguments].concat();
        let client = world.up(&simulator.env(), &all)?;
        Ok(Self { client, simulator, world })
    }

    /// A socket of an application.
    fn socket(&self, target: &str) -> Result<UdpSocket> {
        let any = if target.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
        let socket = self.world.laptop.enter(|| UdpSocket::bind(any))?;
        socket.set_read_timeout(Some(DEADLINE))?;
        Ok(socket)
    }

    fn ping(&self, arguments: &[&str]) -> Result<Output> {
        Ok(self.world.laptop.command("ping").args(arguments).output()?)
    }

    fn flows(&self) -> Result<Vec<serde_json::Value>> {
        let output = self.world.client(&[], &["flows", "--json"]).output()?;
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        Ok(answer["sessions"][0]["flows"].as_array().context("flows")?.clone())
    }

    fn finish(mut self) -> Result<()> {
        let status = self.client.end(Signal::INT)?;
        ensure!(status.code() == Some(130), "it ended with {status}:\n{}", self.client.seen.join("\n"));
        self.simulator.assert_clean();
        Ok(())
    }
}

/// Answers each datagram with what `answer` makes of it, until it is dropped.
struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn new(
        place: &Netns,
        address: &str,
        answer: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static,
    ) -> Result<Self> {
        let socket = place.enter(|| UdpSocket::bind(address))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let address = socket.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                for datagram in answer(&buffer[..length]) {
                    // A lost answer shows in the test that waits for it.
                    let _ = socket.send_to(&datagram, from);
                }
            }
        });
        Ok(Self { address, stop, thread: Some(thread) })
    }

    fn echo(place: &Netns, address: &str) -> Result<Self> {
        Self::new(place, address, |datagram| vec![datagram.to_vec()])
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn receive(socket: &UdpSocket) -> io::Result<(Vec<u8>, SocketAddr)> {
    let mut buffer = vec![0; 65_536];
    let (length, from) = socket.recv_from(&mut buffer)?;
    buffer.truncate(length);
    Ok((buffer, from))
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn datagrams_of_every_size_come_back_from_where_they_went() -> Result<()> {
    if let Some(reason) = netns::why_not() {
        netns::skipped(&reason);
        return Ok(());
    }
    let session = Session::new(&[])?;
    for (target, bind, largest) in
        [(TARGET, format!("{TARGET}:0"), 65_507), (TARGET6, format!("[{TARGET6}]:0"), 65_487)]
    {
        let server = Server::echo(&session.world.vpc, &bind)?;
        let socket = session.socket(target)?;
        for length in [0, 1, 512, 1472, 9000, 60_000, largest] {
            let sent = noise(length, length as u64);
            socket.send_to(&sent, server.address)?;
            let (received, from) = receive(&socket).with_context(|| format!("{length} bytes of {target}"))?;
            assert!(received == sent, "{length} bytes to {target}, {} back", received.len());
            assert_eq!(from, server.address);
        }
    }
    let status = session.world.status()?;
    assert_eq!(status["counters"]["datagrams_lost_up"], 0, "{status}");
    assert_eq!(status["counters"]["datagrams_lost_down"], 0, "{status}");
    session.finish()
}

/// The application's kernel cuts what is longer than the device's MTU, and takes answers that are.
#[test]
fn a_small_mtu_does_not_bound_datagrams() -> Result<()> {
    if let Some(reason) = netns::why_not().or_else(|| netns::missing(&["ping"])) {
        netns::skipped(&reason);
        return Ok(());
    }
    let session = Session::new(&["--mtu", "1400"])?;
    for (target, bind, largest) in
        [(TARGET, format!("{TARGET}:0"), 65_507), (TARGET6, format!("[{TARGET6}]:0"), 65_487)]
    {
        let server = Server::echo(&session.world.vpc, &bind)?;
        let socket = session.socket(target)?;
        for length in [1300, 1400, 5000, largest] {
            let sent = noise(length, length as u64);
            socket.send_to(&sent, server.address)?;
            let (received, from) = receive(&socket).with_context(|| format!("{length} bytes of {target}"))?;
            assert!(received == sent && from == server.address, "{length} bytes to {target}");
        }
        let output = session.ping(&["-n", "-c", "2", "-i", "0.1", "-W", "20", "-s", "9000", target])?;
        assert!(output.status.success(), "{}", text(&output));
    }
    assert_eq!(session.world.status()?["counters"]["fragment"], serde_json::Value::Null);
    session.finish()
}

/// A target behind a way whose MTU is smaller than that of the agent's own link.
#[test]
fn the_mtu_of_the_way_is_told_and_kept() -> Result<()> {
    if let Some(reason) = netns::why_not() {
        netns::skipped(&reason);
        return Ok(());
    }
    let session = Session::new(&[])?;
    let vpc = &session.world.vpc;
    let (router, far) = (Netns::new("router")?, Netns::new("far")?);
    veth(
        (vpc, "wide0", &["10.20.8.1/24", "fd20::8:1/112"]),
        (&router, "wide0", &["10.20.8.2/24", "fd20::8:2/112"]),
    )?;
    veth(
        (&router, "narrow0", &["10.20.9.1/24", "fd20::9:1/112"]),
        (&far, "narrow0", &["10.20.9.2/24", "fd20::9:2/112"]),
    )?;
    for (place, device) in [(&router, "narrow0"), (&far, "narrow0")] {
        place.ip(&format!("link set {device} mtu 1400"))?;
    }
    router.sysctl("net/ipv4/ip_forward", "1")?;
    router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    for route in ["route add 10.20.9.0/24 via 10.20.8.2", "-6 route add fd20::9:0/112 via fd20::8:2"] {
        vpc.ip(route)?;
    }
    for route in ["route add default via 10.20.9.1", "-6 route add default via fd20::9:1"] {
        far.ip(route)?;
    }
    for (target, bind, fits) in
        [("10.20.9.2", "10.20.9.2:0", 1400 - 28), ("fd20::9:2", "[fd20::9:2]:0", 1400 - 48)]
    {
        let server = Server::echo(&far, bind)?;
        let too_long = |result: io::Result<usize>| {
            let error = result.expect_err("it is too long");
            assert_eq!(error.raw_os_error(), Some(Errno::MSGSIZE.raw_os_error()), "{target}: {error}");
        };
        let echoed = |socket: &UdpSocket, length: usize| -> Result<()> {
            let sent = noise(length, length as u64);
            socket.send(&sent)?;
            let received = receive(socket).with_context(|| format!("{length} bytes of {target}"))?.0;
            ensure!(received == sent, "{length} bytes of {target} came back as {}", received.len());
            Ok(())
        };
        let strict = session.socket(target)?;
        strict.connect(server.address)?;
        if target.contains(':') {
            set_ipv6_mtu_discover(&strict, Ipv6PathMtuDiscovery::DO)?;
        } else {
            set_ip_mtu_discover(&strict, Ipv4PathMtuDiscovery::DO)?;
        }
        echoed(&strict, fits)?;
        strict.send(&noise(1450, 1))?;
        too_long(strict.recv(&mut [0; 10]));
        too_long(strict.send(&noise(fits + 1, 1)));
        echoed(&strict, fits)?;
        // Others need not know: their kernel cuts.
        let usual = session.socket(target)?;
        usual.connect(server.address)?;
        for length in [fits, fits + 1, 1450, 20_000] {
            echoed(&usual, length)?;
        }
    }
    session.finish()
}

#[test]
fn one_socket_talks_to_many_peers_through_one_flow() -> Result<()> {
    if let Some(reason) = netns::why_not() {
        netns::skipped(&reason);
        return Ok(());
    }
    let session = Session::new(&[])?;
    for (target, bind) in [(TARGET, format!("{TARGET}:0")), (TARGET6, format!("[{TARGET6}]:0"))] {
        let servers: Vec<Server> =
            (0..5).map(|_| Server::echo(&session.world.vpc, &bind)).collect::<Result<_>>()?;
        let socket = session.socket(target)?;
        for round in 0..20u8 {
            let mut waiting: Vec<SocketAddr> = servers.iter().map(|server| server.address).collect();
            for peer in &waiting {
                socket.send_to(&[round, peer.port() as u8], peer)?;
            }
            while !waiting.is_empty() {
                let (received, from) = receive(&socket)?;
                assert_eq!(received, [round, from.port() as u8]);
                waiting.retain(|peer| *peer != from);
            }
        }
        // Each side sees one socket.
        let flows = session.flows()?;
        let rows: Vec<_> = flows.iter().filter(|flow| flow["protocol"] == "udp").collect();
        let first = servers[0].address.to_string();
        assert_eq!(rows.iter().filter(|flow| flow["target"] == first.as_str()).count(), 1, "{flows:?}");
        assert!(rows.len() <= 2, "{flows:?}");
    }
    session.finish()
}

#[test]
fn a_closed_port_is_refused_and_the_socket_goes_on() -> Result<()> {
    if let Some(reason) = netns::why_not() {
        netns::skipped(&reason);
        return Ok(());
    }
    let session = Session::new(&[])?;
    for (target, closed, bind) in [
        (TARGET, format!("{TARGET}:9"), format!("{TARGET}:0")),
        (TARGET6, format!("[{TARGET6}]:9"), format!("[{TARGET6}]:0")),
    ] {
        let socket = session.socket(target)?;
        socket.connect(&closed)?;
        for _ in 0..2 {
            socket.send(b"is anybody there?")?;
            let error = receive(&socket).expect_err("nobody listens");
            assert_eq!(error.raw_os_error(), Some(Errno::CONNREFUSED.raw_os_error()), "{closed}: {error}");
        }
        let server = Server::echo(&session.world.vpc, &bind)?;
        socket.connect(server.address)?;
        socket.send(b"and there?")?;
        assert_eq!(receive(&socket)?.0, b"and there?");
    }
    session.finish()
}

/// With IP_RECVERR a socket hears of what passes, too.
const UNREACHABLE: &str = "
import socket, sys
six = ':' in sys.argv[1]
s = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP, 25 if six else 11, 1)
s.settimeout(20)
s.connect((sys.argv[1], 53))
s.send(b'?')
try:
    s.recv(100)
    print('an answer')
except OSError as error:
    print(error.errno)
data, control, flags, peer = s.recvmsg(1000, 1000, socket.MSG_ERRQUEUE)
print(peer[0], peer[1])
";

#[test]
fn an_unreachable_network_is_told_to_who_asks() -> Result<()> {
    if let Some(reason) = netns::why_not().or_else(|| netns::missing(&["python3"])) {
        netns::skipped(&reason);
        return Ok(());
    }
    let session = Session::new(&[])?;
    // No route leads there from the VPC.
    for nowhere in ["10.20.200.1", "fd20::99"] {
        let output = session.world.laptop.command("python3").args(["-c", UNREACHABLE, nowhere]).output()?;
        let unreachable =
            [Errno::NETUNREACH, Errno::HOSTUNREACH].map(|errno| errno.raw_os_error().to_string());
        let printed = text(&output);
        let mut lines = printed.lines();
        assert!(lines.next().is_some_and(|line| unreachable.iter().any(|errno| errno == line)), "{printed}");
        assert_eq!(lines.next(), Some(format!("{nowhere} 53").as_str()), "{printed}");
    }
    session.finish()
}

#[test]
fn a_question_and_its_answer_are_one_flow_that_is_soon_forgotten() -> Result<()> {
    if let Some(reason) = netns::why_not() {
        netns::skipped(&reason);
        return Ok(());
    }
    let session = Session::new(&["--udp-timeout", "1s"])?;
    let answers = |question: &[u8]| vec![[question, b" 10.20.1.5"].concat(), b"and more".to_vec()];
    let server = Server::new(&session.world.vpc, &format!("{TARGET}:0"), answers)?;
    let socket = session.socket(TARGET)?;
    socket.send_to(b"db.internal", server.address)?;
    assert_eq!(receive(&socket)?.0, b"db.internal 10.20.1.5");
    assert_eq!(receive(&socket)?.0, b"and more");
    let find = || -> Result<serde_json::Value> {
        let flows = session.flows()?;
        flows.into_iter().find(|flow| flow["protocol"] == "udp").context("no UDP flow")
    };
    let flow = find()?;
    assert_eq!(flow["target"], server.address.to_string(), "{flow}");
    assert!(flow["bytes_tx"].as_u64() > Some(11) && flow["bytes_rx"].as_u64() > Some(20), "{flow}");
    found("its end", || Ok((find()?["state"] == "closed").then_some(())))?;
    assert_eq!(find()?["error"], serde_json::Value::Null);
    assert_eq!(session.world.status()?["flows_open"], 0);
    socket.send_to(b"again", server.address)?;
    assert_eq!(receive(&socket)?.0, b"again 10.20.1.5");
    session.finish()
}

#[test]
fn ping_reaches_targets_and_no_others() -> Result<()> {
    if let Some(reason) = netns::why_not().or_else(|| netns::missing(&["ping"])) {
        netns::skipped(&reason);
        return Ok(());
    }
    let session = Session::new(&[])?;
    for target in [TARGET, TARGET6] {
        // ping compares sequence numbers and every byte of the payload.
        for size in ["0", "56", "1400", "60000"] {
            let output = session
                .ping(&["-n", "-i", "0.05", "-c", "5", "-W", "20", "-s", size, "-p", "a55a01", target])?;
            let printed = text(&output);
            assert!(output.status.success() && printed.contains(" 0% packet loss"), "{printed}");
            assert!(!printed.contains("wrong data") && !printed.contains("DUP"), "{printed}");
            for sequence in 1..=5 {
                assert!(printed.contains(&format!("icmp_seq={sequence} ")), "{printed}");
            }
        }
        // As traceroute does it: no hop is made up.
        let output = session.ping(&["-n", "-c", "1", "-W", "20", "-t", "1", target])?;
        assert!(output.status.success(), "{}", text(&output));
    }
    let flows = session.flows()?;
    assert!(flows.iter().any(|flow| flow["protocol"] == "icmp" && flow["target"] == TARGET), "{flows:?}");
    // No route leads there from the VPC.
    for nowhere in ["10.20.200.1", "fd20::99"] {
        let output = session.ping(&["-n", "-c", "2", "-i", "0.2", "-W", "5", nowhere])?;
        let printed = text(&output);
        assert!(!output.status.success() && printed.contains("nreachable"), "{printed}");
        assert!(!printed.contains("bytes from"), "{printed}");
    }
    session.finish()
}

/// Root without CAP_NET_RAW, in a namespace whose ping_group_range holds nobody.
#[test]
fn an_agent_that_may_not_ping_says_so() -> Result<()> {
    if let Some(reason) = netns::why_not().or_else(|| netns::missing(&["ping", "setpriv"])) {
        netns::skipped(&reason);
        return Ok(());
    }
    let mut world = Vpc::new(&[])?;
    world.agent = None;
    world.vpc.sysctl("net/ipv4/ping_group_range", "1 0")?;
    let mut command = world.vpc.command("setpriv");
    command.args(["--bounding-set=-net_raw", "--inh-caps=-net_raw"]).arg(bins::agent());
    let mut agent = Process::start(command.arg("--state-dir").arg(world.dir.path().join("agent")))?;
    agent.wait_for("listening", DEADLINE)?;
    world.agent = Some(agent);
    let session = Session::in_world(world, &[])?;
    for target in [TARGET, TARGET6] {
        let output = session.ping(&["-n", "-c", "3", "-i", "0.2", "-W", "5", target])?;
        let printed = text(&output);
        assert!(!output.status.success() && !printed.contains("bytes from"), "{printed}");
        assert!(printed.contains("Packet filtered") || printed.contains("prohibited"), "{printed}");
    }
    let flows = session.flows()?;
    let reasons: Vec<_> = flows.iter().filter(|flow| flow["protocol"] == "icmp").collect();
    assert_eq!(reasons.len(), 2, "the agent was asked once for each family: {flows:?}");
    for flow in reasons {
        assert_eq!(flow["state"], "refused");
        assert!(flow["error"].as_str().is_some_and(|error| error.contains("ping_group_range")), "{flow}");
    }
    let status = text(&session.world.client(&[], &["status"]).output()?);
    assert!(status.contains("ping does not work: the agent may not ping"), "{status}");
    session.finish()
}

#[test]
fn a_stream_of_datagrams_passes_in_order_and_whole() -> Result<()> {
    if let Some(reason) = netns::why_not().or_else(|| netns::missing(&["iperf3"])) {
        netns::skipped(&reason);
        return Ok(());
    }
    let session = Session::new(&[])?;
    let _server = servers::iperf(&session.world)?;
    for direction in [&[][..], &["-R"]] {
        let mut command = session.world.laptop.command("iperf3");
        command.args(["-c", TARGET, "-u", "-b", "10M", "-l", "1200", "-t", "2", "--json"]).args(direction);
        let output = command.output()?;
        let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let sum = &report["end"]["sum"];
        let lost = sum["lost_percent"].as_f64().with_context(|| text(&output))?;
        assert!(lost < 1.0 && sum["packets"].as_u64() > Some(1500), "{sum}");
    }
    session.finish()
}
