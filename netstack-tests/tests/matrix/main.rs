//! The same programs against the same targets, over plain veth and through the tunnel: errno, bytes and the order of
//! events are equal, and they are what the table says.
//!
//! ```text
//!   plain  --veth--\
//!                   vpc (routes; has the targets and the agent) --veth-- beyond (routes that lead nowhere)
//!   laptop --up----/
//! ```
//!
//! Where the two roads differ by design, the case says so and why.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "real time, and a table of what took how long"
)]

mod ends;
mod habits;
mod steps;

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use netstack_tests::actor::{self, Actor};
use netstack_tests::netns::{Netns, veth};
use netstack_tests::require_netns;
use netstack_tests::servers::noise;
use netstack_tests::ssm::{self, Simulator};
use netstack_tests::vpc::{INSTANCE, Process, TARGET, TARGET6, Vpc};
use rustix::io::Errno;
use rustix::process::Signal;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use self::steps::{Step, play};

struct Roads {
    client: Process,
    simulator: Simulator,
    plain: Netns,
    world: Vpc,
    _beyond: Netns,
}

impl Roads {
    fn new() -> Result<Self> {
        let world = Vpc::new(&["--dial-timeout", "4s"])?;
        let plain = Netns::new("plain")?;
        let beyond = Netns::new("beyond")?;
        world.vpc.sysctl("net/ipv4/ip_forward", "1")?;
        world.vpc.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        beyond.sysctl("net/ipv4/ip_forward", "1")?;
        beyond.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        for router in [&world.vpc, &beyond] {
            router.sysctl("net/ipv4/icmp_ratelimit", "0")?;
            router.sysctl("net/ipv6/icmp/ratelimit", "0")?;
        }
        let near = (&world.vpc, "near0", &["192.168.97.2/24", "fd97::2/64"][..]);
        veth((&plain, "wire0", &["192.168.97.1/24", "fd97::1/64"]), near)?;
        let far = (&beyond, "far0", &["192.168.98.1/24", "fd98::1/64"][..]);
        veth((&world.vpc, "back0", &["192.168.98.2/24", "fd98::2/64"]), far)?;
        for (from, routes) in
            [(&plain, &PLAIN_ROUTES[..]), (&world.vpc, &VPC_ROUTES), (&beyond, &BEYOND_ROUTES)]
        {
            for route in routes {
                from.ip(route)?;
            }
        }
        let simulator = world.simulator(ssm::Config::fast())?;
        let client = world.up(&simulator.env(), &["--instance", INSTANCE])?;
        Ok(Self { client, simulator, plain, world, _beyond: beyond })
    }

    fn both(&self) -> [(&'static str, &Netns); 2] {
        [("plain", &self.plain), ("tunnel", &self.world.laptop)]
    }

    /// Plays a case on both roads over both families at once; the text lists what differs from the table.
    fn play(&self, case: &Case) -> Result<String> {
        let ways = [TARGET, TARGET6].into_iter().flat_map(|address| self.both().map(|road| (address, road)));
        let vpc = &self.world.vpc;
        let seen: Vec<_> = thread::scope(|scope| {
            let begun: Vec<_> = ways
                .map(|(address, (road, from))| {
                    (address, road, scope.spawn(move || run(case, address, vpc, from)))
                })
                .collect();
            let ended = begun.into_iter();
            ended.map(|(address, road, run)| (address, road, run.join().expect("no actor panics"))).collect()
        });
        let mut faults = String::new();
        for (address, road, seen) in seen {
            let expected =
                case.differs.as_ref().filter(|_| road == "tunnel").map_or(case.sees, |(_, sees)| *sees);
            match seen {
                Ok((client, target)) if client == expected.0 && target == expected.1 => {}
                Ok((client, target)) => {
                    let _ = writeln!(
                        faults,
                        "{} to {address}, {road}:\n  client {client:?}\n    want {:?}\n  target {target:?}\n    want {:?}",
                        case.name, expected.0, expected.1
                    );
                }
                Err(error) => {
                    let _ = writeln!(faults, "{} to {address}, {road}: {error:#}", case.name);
                }
            }
        }
        Ok(faults)
    }

    fn play_all(self, cases: &[Case]) -> Result<()> {
        let mut faults = String::new();
        // For one case alone: part of its name.
        let only = std::env::var("MATRIX_CASE").unwrap_or_default();
        for case in cases.iter().filter(|case| case.name.contains(&only)) {
            let start = Instant::now();
            faults += &self.play(case)?;
            println!("{:50} {:>6.2} s", case.name, start.elapsed().as_secs_f64());
        }
        ensure!(faults.is_empty(), "\n{faults}");
        self.finish()
    }

    fn finish(mut self) -> Result<()> {
        let status = self.client.end(Signal::INT)?;
        ensure!(status.code() == Some(130), "it ended with {status}:\n{}", self.client.seen.join("\n"));
        self.simulator.assert_clean();
        Ok(())
    }
}

fn run(case: &Case, address: &str, vpc: &Netns, from: &Netns) -> Result<(Vec<String>, Vec<String>)> {
    let at = SocketAddr::new(address.parse()?, 0);
    let listener = vpc.enter(|| listen(at, case.backlog))?;
    let at = listener.local_addr()?;
    let (mut client, mut target) = actor::pair();
    let ended = thread::scope(|scope| {
        let far = scope.spawn(|| match case.target {
            Part::Steps(steps) => {
                target.accept(&listener).and_then(|stream| play(&mut target, stream, steps))
            }
            Part::Own(all) => all(&mut target, &listener),
        });
        let near = from.enter(|| match case.client {
            Part::Steps(steps) => client.connect(at).and_then(|stream| play(&mut client, stream, steps)),
            Part::Own(all) => all(&mut client, at),
        });
        (near, far.join().expect("the target does not panic"))
    });
    let seen = || format!("client {:?}, target {:?}", client.lines, target.lines);
    ended.0.with_context(seen)?;
    ended.1.with_context(seen)?;
    Ok((client.lines, target.lines))
}

const PLAIN_ROUTES: [&str; 2] = ["route add default via 192.168.97.2", "-6 route add default via fd97::2"];

const VPC_ROUTES: [&str; 9] = [
    "route add 10.20.2.0/24 via 192.168.98.1",
    "-6 route add fd20::2:0/112 via fd98::1",
    "route add unreachable 10.20.4.10/32",
    "route add prohibit 10.20.4.11/32",
    "route add blackhole 10.20.4.12/32",
    "-6 route add unreachable fd20::4:10/128",
    "-6 route add prohibit fd20::4:11/128",
    "-6 route add blackhole fd20::4:12/128",
    "link set lo up",
];

const BEYOND_ROUTES: [&str; 14] = [
    "route add 192.168.97.0/24 via 192.168.98.2",
    "-6 route add fd97::/64 via fd98::2",
    "route add unreachable 10.20.2.10/32",
    "route add prohibit 10.20.2.11/32",
    "route add blackhole 10.20.2.12/32",
    "-6 route add unreachable fd20::2:10/128",
    "-6 route add prohibit fd20::2:11/128",
    "-6 route add blackhole fd20::2:12/128",
    // A wire at whose other end nobody has an address: neighbours are asked for in vain.
    "link add void0 type veth peer name void1",
    "link set void1 up",
    "link set void0 up",
    "route add 10.20.2.14/32 dev void0",
    "-6 route add fd20::2:14/128 dev void0",
    "-6 address add fd55::1/64 dev void0 nodad",
];

/// What client and target write down.
type Sees = (&'static [&'static str], &'static [&'static str]);

struct Case {
    name: &'static str,
    backlog: i32,
    client: Part<OwnClient>,
    target: Part<OwnTarget>,
    sees: Sees,
    /// Why the tunnel differs by design, and what is seen then.
    differs: Option<(&'static str, Sees)>,
}

/// What an end does.
enum Part<F> {
    /// On the one connection.
    Steps(&'static [Step]),
    Own(F),
}

type OwnClient = fn(&mut Actor, SocketAddr) -> Result<()>;
type OwnTarget = fn(&mut Actor, &TcpListener) -> Result<()>;
/// What an end does and writes down.
type Script = (&'static [Step], &'static [&'static str]);

impl Case {
    const fn steps(name: &'static str, client: Script, target: Script) -> Self {
        let ((client, client_sees), (target, target_sees)) = (client, target);
        let sees = (client_sees, target_sees);
        let (client, target) = (Part::Steps(client), Part::Steps(target));
        Self { name, backlog: 128, client, target, sees, differs: None }
    }

    /// With more than one connection.
    const fn own(name: &'static str, client: OwnClient, target: OwnTarget, sees: Sees) -> Self {
        let (client, target) = (Part::Own(client), Part::Own(target));
        Self { name, backlog: 128, client, target, sees, differs: None }
    }
}

fn listen(at: SocketAddr, backlog: i32) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
    socket.bind(&at.into())?;
    socket.listen(backlog)?;
    // For `accept`, whose client may have failed.
    socket.set_read_timeout(Some(actor::PATIENCE))?;
    Ok(socket.into())
}

#[test]
fn a_connection_that_cannot_be_had_fails_with_the_errno_of_the_plain_network() -> Result<()> {
    require_netns!(Ok);
    let roads = Roads::new()?;
    // For each target: what a program sees on both roads, or on the plain one and then through the tunnel.
    let cases: [(&str, &str, &[&str]); 21] = [
        ("refused", "10.20.1.5:9", &["ECONNREFUSED"]),
        ("refused", "[fd20::5]:9", &["ECONNREFUSED"]),
        ("a router: unreachable", "10.20.2.10:80", &["EHOSTUNREACH"]),
        // Linux answers for such a route of IPv6 that it has none.
        ("a router: unreachable", "[fd20::2:10]:80", &["ENETUNREACH"]),
        ("a router: prohibited", "10.20.2.11:80", &["EHOSTUNREACH"]),
        ("a router: prohibited", "[fd20::2:11]:80", &["EACCES"]),
        ("a router: no route", "10.20.2.13:80", &["ENETUNREACH"]),
        ("a router: no route", "[fd20::2:13]:80", &["ENETUNREACH"]),
        ("a router: no neighbour", "10.20.2.14:80", &["EHOSTUNREACH"]),
        ("a router: no neighbour", "[fd20::2:14]:80", &["EHOSTUNREACH"]),
        ("the VPC: unreachable", "10.20.4.10:80", &["EHOSTUNREACH"]),
        // The agent is told of its own machine's route that there is no host; a router says that it has no route.
        ("the VPC: unreachable", "[fd20::4:10]:80", &["ENETUNREACH", "EHOSTUNREACH"]),
        ("the VPC: prohibited", "10.20.4.11:80", &["EHOSTUNREACH"]),
        ("the VPC: prohibited", "[fd20::4:11]:80", &["EACCES"]),
        ("the VPC: no route", "10.20.4.13:80", &["ENETUNREACH"]),
        ("the VPC: no route", "[fd20::4:13]:80", &["ENETUNREACH"]),
        // Nobody answers. The application is told so once the agent's dial has timed out; alone it would wait on.
        ("a router: silence", "10.20.2.12:80", &["silence", "EHOSTUNREACH"]),
        ("a router: silence", "[fd20::2:12]:80", &["silence", "EHOSTUNREACH"]),
        // A black hole in the agent's own machine is no silence for the agent: its connect fails at once.
        ("the VPC: black hole", "10.20.4.12:80", &["silence", "ENETUNREACH"]),
        ("the VPC: black hole", "[fd20::4:12]:80", &["silence", "ENETUNREACH"]),
        // Instance metadata is never dialled, even where a capture covers it; a plain network has no route there.
        ("no route of the client", "192.0.2.1:80", &["ENETUNREACH"]),
    ];
    let mut faults = String::new();
    let outcomes: Vec<_> = thread::scope(|scope| {
        let started: Vec<_> = cases
            .iter()
            .flat_map(|case| roads.both().map(|road| (case, road)))
            .map(|(case, (road, namespace))| {
                let at: SocketAddr = case.1.parse().expect("an address");
                (case, road, scope.spawn(move || namespace.enter(|| attempt(at))))
            })
            .collect();
        let ended = started.into_iter();
        ended.map(|(case, road, thread)| (case, road, thread.join().expect("no attempt panics"))).collect()
    });
    for ((name, address, expected), road, (seen, took)) in outcomes {
        let expected = if road == "plain" { expected[0] } else { expected[expected.len() - 1] };
        println!("{name:24} {address:18} {road:6} {seen} after {:.2} s", took.as_secs_f64());
        if seen != expected {
            let _ = writeln!(faults, "{name}, {address}, {road}: {seen}, not {expected}");
        }
        if name == &"a router: silence" && road == "tunnel" && took < Duration::from_secs(4) {
            let _ = writeln!(faults, "{address}: an answer {took:?} before the dial timed out");
        }
    }
    ensure!(faults.is_empty(), "\n{faults}");
    roads.finish()
}

/// As of SCTP where no module of it is loaded.
#[test]
fn a_protocol_that_nobody_has_fails_with_the_errno_of_the_plain_network() -> Result<()> {
    require_netns!(Ok);
    let roads = Roads::new()?;
    for (address, errno) in [(TARGET, Errno::NOPROTOOPT), (TARGET6, Errno::PROTO)] {
        let at = SocketAddr::new(address.parse()?, 0);
        for (road, namespace) in roads.both() {
            let answer = namespace.enter(|| send_raw(at)).expect_err("an answer");
            assert_eq!(Errno::from_io_error(&answer), Some(errno), "{address}, {road}: {answer}");
        }
    }
    roads.finish()
}

/// Sends a packet of a protocol kept for experiments (RFC 3692).
fn send_raw(at: SocketAddr) -> std::io::Result<usize> {
    let socket = Socket::new(Domain::for_address(at), Type::RAW, Some(Protocol::from(253)))?;
    socket.set_read_timeout(Some(actor::PATIENCE))?;
    socket.connect(&at.into())?;
    socket.send(b"anybody?")?;
    (&socket).read(&mut [0; 99])
}

/// What a connect comes to within a time that is longer than the agent's dial.
fn attempt(at: SocketAddr) -> (String, Duration) {
    let start = Instant::now();
    let outcome = match TcpStream::connect_timeout(&at, Duration::from_secs(9)) {
        Ok(_) => "connected".to_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::TimedOut && error.raw_os_error().is_none() => {
            "silence".to_owned()
        }
        Err(error) => actor::name(&error),
    };
    (outcome, start.elapsed())
}
