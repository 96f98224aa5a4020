//! Dials as the agent makes them for real programs: while one hangs, when its application gives up, and very many of
//! them in a row or at once.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "real time, and figures of what took how long"
)]

use std::io::{self, Read as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use netstack_tests::netns::Netns;
use netstack_tests::require_netns;
use netstack_tests::ssm::{self, Simulator};
use netstack_tests::vpc::{DEADLINE, INSTANCE, Process, TARGET, Vpc};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, Signal};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};
use socket2::{Domain, Protocol, Socket, Type};

struct Tunnel {
    client: Process,
    simulator: Simulator,
    world: Vpc,
}

impl Tunnel {
    /// A tunnel, and [`SILENT`] in the VPC, behind a wire that leads nowhere.
    fn new(agent_arguments: &[&str]) -> Result<Self> {
        let world = Vpc::new(agent_arguments)?;
        for namespace in [&world.laptop, &world.vpc] {
            // What install.sh sets.
            namespace.sysctl("net/ipv4/tcp_tw_reuse", "1")?;
        }
        world.vpc.ip("link add void0 type veth peer name void1")?;
        world.vpc.ip("link set void1 up")?;
        world.vpc.ip("link set void0 up arp off")?;
        world.vpc.ip(&format!("route add {}/32 dev void0", SILENT.ip()))?;
        let simulator = world.simulator(ssm::Config::fast())?;
        let client = world.up(&simulator.env(), &["--instance", INSTANCE])?;
        Ok(Self { client, simulator, world })
    }

    /// A program on the laptop that connects to the silent target and waits.
    fn connect_in_vain(&self) -> Result<Socket> {
        self.world.laptop.enter(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            let begun = socket.connect(&SILENT.into()).expect_err("nobody answers");
            ensure!(Errno::from_io_error(&begun) == Some(Errno::INPROGRESS), "the connect failed: {begun}");
            Ok(socket)
        })
    }

    /// The agent's connections to the silent target.
    fn dials(&self) -> Result<Vec<Connection>> {
        connections(&self.world.vpc, SILENT)
    }

    fn finish(mut self) -> Result<()> {
        let status = self.client.end(Signal::INT)?;
        ensure!(status.code() == Some(130), "it ended with {status}:\n{}", self.client.seen.join("\n"));
        self.simulator.assert_clean();
        Ok(())
    }
}

/// A line of `/proc/net/tcp`.
#[derive(Debug, PartialEq, Eq)]
struct Connection {
    local: SocketAddrV4,
    connecting: bool,
    /// How often its kernel has repeated the SYN or what else is not acknowledged.
    repeats: u32,
}

/// The connections to `to` that a namespace's kernel knows.
fn connections(namespace: &Netns, to: SocketAddrV4) -> Result<Vec<Connection>> {
    // The thread's own: the process lives in another namespace.
    let table = namespace.enter(|| std::fs::read_to_string("/proc/thread-self/net/tcp"))?;
    let mut found = Vec::new();
    for line in table.lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, local, remote, state, _, _, repeats, ..] = words[..] else { continue };
        if address(remote)? == to {
            let repeats = u32::from_str_radix(repeats, 16)?;
            found.push(Connection { local: address(local)?, connecting: state == SYN_SENT, repeats });
        }
    }
    Ok(found)
}

/// An address as `/proc/net/tcp` shows it: `0514140A:0050`.
fn address(text: &str) -> Result<SocketAddrV4> {
    let (ip, port) = text.split_once(':').context("no port")?;
    let ip = Ipv4Addr::from(u32::from_str_radix(ip, 16)?.to_ne_bytes());
    Ok(SocketAddrV4::new(ip, u16::from_str_radix(port, 16)?))
}

/// Asks again until the answer is yes.
fn wait_until(what: &str, patience: Duration, mut is_so: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let start = Instant::now();
    while !is_so()? {
        ensure!(start.elapsed() < patience, "{what}: not within {patience:?}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(start.elapsed())
}

const SYN_SENT: &str = "02";
/// Where nothing answers and nothing is refused.
const SILENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 20, 9, 9), 80);
/// How long a dial may outlive what ended it.
const SOON: Duration = Duration::from_secs(2);

#[test]
fn a_dial_that_hangs_is_one_dial_however_often_the_application_asks() -> Result<()> {
    require_netns!(Ok);
    let tunnel = Tunnel::new(&["--dial-timeout", "30s"])?;
    let application = tunnel.connect_in_vain()?;
    wait_until("the agent dials", DEADLINE, || Ok(!tunnel.dials()?.is_empty()))?;
    let first = tunnel.dials()?;
    ensure!(first.len() == 1 && first[0].connecting, "the agent made {first:?}");
    // The kernel repeats its SYN after one second and after two more.
    wait_until("the application's kernel has sent three SYNs", DEADLINE, || {
        let dials = tunnel.dials()?;
        ensure!(dials.len() == 1 && dials[0].local == first[0].local, "first {first:?}, then {dials:?}");
        let asked = connections(&tunnel.world.laptop, SILENT)?;
        ensure!(asked.len() == 1 && asked[0].connecting, "the application's is {asked:?}");
        Ok(asked[0].repeats >= 2)
    })?;
    drop(application);
    tunnel.finish()
}

/// A kernel whose program closes a connecting socket says nothing, so that nobody can know of it before the target
/// answers. Then it resets what it no longer wants.
#[test]
fn who_gave_up_on_a_dial_gets_no_connection_out_of_it() -> Result<()> {
    require_netns!(Ok);
    let tunnel = Tunnel::new(&["--dial-timeout", "30s"])?;
    let (closed, reset) = (tunnel.connect_in_vain()?, tunnel.connect_in_vain()?);
    wait_until("the agent dials", DEADLINE, || Ok(tunnel.dials()?.len() == 2))?;
    drop(closed);
    reset.set_linger(Some(Duration::ZERO))?;
    drop(reset);
    ensure!(connections(&tunnel.world.laptop, SILENT)?.is_empty(), "the application still asks");

    // Now there is an answer: the target is here.
    let vpc = &tunnel.world.vpc;
    vpc.ip(&format!("route del {}/32 dev void0", SILENT.ip()))?;
    vpc.ip(&format!("address add {}/32 dev lo", SILENT.ip()))?;
    let listener = vpc.enter(|| TcpListener::bind(SILENT))?;
    for _ in 0..2 {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let ended = stream.read(&mut [0]).map_err(|error| Errno::from_io_error(&error));
        ensure!(matches!(ended, Ok(0) | Err(Some(Errno::CONNRESET))), "the target got {ended:?}");
    }
    wait_until("the agent has closed them", SOON, || Ok(tunnel.dials()?.is_empty()))?;
    tunnel.finish()
}

/// Other systems, and middle boxes, do say that they give up.
#[test]
fn a_reset_while_a_dial_hangs_closes_the_dial() -> Result<()> {
    require_netns!(Ok);
    let tunnel = Tunnel::new(&["--dial-timeout", "30s"])?;
    let laptop = &tunnel.world.laptop;
    let socket = laptop.enter(|| -> io::Result<_> {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))?;
        socket.connect(&SILENT.into())?;
        Ok(socket)
    })?;
    let from = socket.local_addr()?.as_socket_ipv4().context("the laptop has an IPv4 address")?;
    let from = SocketAddrV4::new(*from.ip(), 45_100);
    socket.send(&segment(from, TcpControl::Syn, 1000))?;
    wait_until("the agent dials", DEADLINE, || Ok(tunnel.dials()?.len() == 1))?;
    socket.send(&segment(from, TcpControl::Rst, 1001))?;
    let took = wait_until("the dial is closed", SOON, || Ok(tunnel.dials()?.is_empty()))?;
    println!("closed after {took:?}");
    tunnel.finish()
}

/// A TCP segment to the silent target.
fn segment(from: SocketAddrV4, control: TcpControl, seq: i32) -> Vec<u8> {
    let repr = TcpRepr {
        src_port: from.port(),
        dst_port: SILENT.port(),
        control,
        seq_number: TcpSeqNumber(seq),
        ack_number: None,
        window_len: 64_000,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let mut bytes = vec![0; repr.buffer_len()];
    let (from, to) = (IpAddress::Ipv4(*from.ip()), IpAddress::Ipv4(*SILENT.ip()));
    let mut packet = TcpPacket::new_unchecked(&mut bytes);
    repr.emit(&mut packet, &from, &to, &ChecksumCapabilities::default());
    bytes
}

/// `DIALS_IN_A_ROW=60000` for as many as there are ports; up to a minute.
#[test]
fn very_many_connections_to_one_target_in_a_row() -> Result<()> {
    require_netns!(Ok);
    let count = match std::env::var("DIALS_IN_A_ROW") {
        Ok(number) => number.parse()?,
        Err(_) => IN_A_ROW,
    };
    let tunnel = Tunnel::new(&[])?;
    let (laptop, vpc) = (&tunnel.world.laptop, &tunnel.world.vpc);
    // Its kernel keeps a closed connection for a minute, and uses none of them again that had no timestamps.
    laptop.sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
    // Fewer than the connections: the agent's ports go round.
    vpc.sysctl("net/ipv4/ip_local_port_range", "32768 40767")?;
    let listener = vpc.enter(|| TcpListener::bind((TARGET, 0)))?;
    let at = listener.local_addr()?;
    // On a thread that ends with the test's process.
    for _ in 0..THREADS {
        let listener = listener.try_clone()?;
        thread::spawn(move || listener.incoming().flatten().try_for_each(serve));
    }
    run(laptop, at, WARM_UP)?;

    let agent = tunnel.world.agent.as_ref().context("the agent runs")?.id();
    let ends = [("client", tunnel.client.id()), ("agent", agent)];
    let before = [resident(ends[0].1)?, resident(ends[1].1)?];
    let start = Instant::now();
    let sums = run(laptop, at, count)?;
    println!("{count} connections in {:.1} s: {sums:?}", start.elapsed().as_secs_f64());
    ensure!(sums.failures.is_empty(), "{sums:?}");
    ensure!(sums.slowest < SLOWEST, "{sums:?}");
    for ((name, id), before) in ends.into_iter().zip(before) {
        let mut after = 0;
        let settled = wait_until("memory", Duration::from_secs(15), || {
            after = resident(id)?;
            Ok(after <= before + GROWTH)
        });
        println!("{name}: {before} KiB before, {after} KiB after");
        settled.with_context(|| format!("the {name} grew from {before} to {after} KiB"))?;
    }
    tunnel.finish()
}

/// Holds what is reached, which is what the design wants: 1.5 and 0.5 KB.
#[test]
fn thousands_of_idle_flows_take_little_memory() -> Result<()> {
    require_netns!(Ok);
    raise_descriptors(2 * IDLE + 100)?;
    let tunnel = Tunnel::new(&[])?;
    let listener = tunnel.world.vpc.enter(|| TcpListener::bind((TARGET, 0)))?;
    let at = listener.local_addr()?;
    let agent = tunnel.world.agent.as_ref().context("the agent runs")?.id();
    let mut open = tunnel.world.laptop.enter(|| open_idle(&listener, at, WARM_UP))?;
    let before = [resident(tunnel.client.id())?, resident(agent)?];
    open.extend(tunnel.world.laptop.enter(|| open_idle(&listener, at, IDLE - WARM_UP))?);
    let after = [resident(tunnel.client.id())?, resident(agent)?];
    let each = [0, 1].map(|end| after[end].saturating_sub(before[end]) * 1024 / (IDLE - WARM_UP));
    println!("{IDLE} idle flows: {} bytes each at the client, {} at the agent", each[0], each[1]);
    ensure!(each[0] <= IDLE_AT_CLIENT && each[1] <= IDLE_AT_AGENT, "{each:?} bytes of client and agent");
    drop(open);
    tunnel.finish()
}

/// Connections that say nothing, by both of their ends.
fn open_idle(listener: &TcpListener, at: SocketAddr, count: usize) -> Result<Vec<[TcpStream; 2]>> {
    (0..count)
        .map(|_| {
            let near = TcpStream::connect_timeout(&at, SLOWEST)?;
            Ok([near, listener.accept()?.0])
        })
        .collect()
}

fn raise_descriptors(wanted: usize) -> Result<()> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(Resource::Nofile, raised)?;
    ensure!(limit.maximum.is_none_or(|most| most >= wanted as u64), "this machine allows {limit:?} files");
    Ok(())
}

/// What the connections met.
#[derive(Debug, Default)]
struct Sums {
    failures: Vec<String>,
    /// The laptop's own ports were all in use for a moment.
    no_port: usize,
    slowest: Duration,
}

/// Makes `count` connections from the laptop, one after the other on each of some threads.
fn run(laptop: &Netns, at: SocketAddr, count: usize) -> Result<Sums> {
    let left = AtomicUsize::new(count);
    let take = || left.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
    laptop.enter(|| {
        thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| one_by_one(at, take))).collect();
            let mut all = Sums::default();
            for thread in threads {
                let sums = thread.join().expect("it does not panic");
                all.failures.extend(sums.failures);
                all.no_port += sums.no_port;
                all.slowest = all.slowest.max(sums.slowest);
            }
            Ok(all)
        })
    })
}

fn one_by_one(at: SocketAddr, take: impl Fn() -> bool) -> Sums {
    let mut sums = Sums::default();
    while sums.failures.len() < 2 && take() {
        let start = Instant::now();
        let mut ended = visit(at);
        while ended.as_ref().is_err_and(|error| Errno::from_io_error(error) == Some(Errno::ADDRNOTAVAIL))
            && start.elapsed() < SLOWEST
        {
            sums.no_port += 1;
            thread::sleep(Duration::from_millis(5));
            ended = visit(at);
        }
        sums.slowest = sums.slowest.max(start.elapsed());
        if let Err(error) = ended {
            sums.failures.push(format!("{error} after {:?}", start.elapsed()));
        }
    }
    sums
}

/// One connection that its client ends first, so that both its kernel and the agent's keep it in TIME-WAIT.
fn visit(at: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&at, SLOWEST)?;
    stream.set_read_timeout(Some(SLOWEST))?;
    stream.shutdown(Shutdown::Write)?;
    let count = stream.read(&mut [0])?;
    if count == 0 { Ok(()) } else { Err(io::Error::other("bytes from nowhere")) }
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    // A client that fails is the client's to tell.
    let _ = stream.read(&mut [0]);
    Ok(())
}

/// The resident memory of a process in KiB.
fn resident(id: u32) -> Result<usize> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("no number")?.parse()?)
}

/// Five seconds of a debug build, and twenty on a busy machine.
const IN_A_ROW: usize = 20_000;
const WARM_UP: usize = 500;
const THREADS: usize = 16;
/// For one connection from its beginning to its end.
const SLOWEST: Duration = Duration::from_secs(3);
/// In KiB.
const GROWTH: usize = 8 << 10;
const IDLE: usize = 4_000;
/// In bytes; a tenth above what was measured.
const IDLE_AT_CLIENT: usize = 1_590;
const IDLE_AT_AGENT: usize = 530;
