//! Flows of UDP and echo against real sockets.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    clippy::print_stderr
)]

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::task::Poll;
use std::time::{Duration, Instant};

use agent::dial::rules::Rules;
use agent::dial::{DialConfig, Dialer, Sockets};
use agent::local_end::{EndEvent, EndId, LocalEnds};
use agent::wire::datagram::{Message, Reader, Trouble};
use agent::wire::open::{Kind, Open, Refusal, Target};
use rustix::thread::{CapabilitySet, UnshareFlags, set_capabilities};

const HOSTS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

#[test]
fn one_association_reaches_several_peers_of_both_families_from_one_port_each() {
    run(async |mut ends| {
        let peers: Vec<_> = HOSTS.iter().flat_map(|host| [listen(*host), listen(*host)]).collect();
        let end = open_udp(&mut ends, peers[0].1);
        for (index, (_, peer)) in peers.iter().enumerate() {
            send(&mut ends, end, *peer, format!("to {index}").as_bytes());
        }
        let mut sources = Vec::new();
        for (index, (socket, _)) in peers.iter().enumerate() {
            let (text, from) = take(socket);
            assert_eq!(text, format!("to {index}").as_bytes());
            socket.send_to(format!("from {index}").as_bytes(), from).unwrap();
            sources.push(from);
        }
        assert!(sources[0] == sources[1] && sources[2] == sources[3], "{sources:?}");

        let mut arrived = messages(&mut ends, end, 4).await;
        arrived.sort_by_key(|(peer, _)| *peer);
        let mut expected: Vec<_> = peers
            .iter()
            .enumerate()
            .map(|(index, (_, peer))| (*peer, Said::Bytes(format!("from {index}").into_bytes())))
            .collect();
        expected.sort_by_key(|(peer, _)| *peer);
        assert_eq!(arrived, expected);

        // A stranger may answer too: the mapping does not depend on the peer.
        let (stranger, its) = listen(HOSTS[0]);
        stranger.send_to(b"", sources[0]).unwrap();
        assert_eq!(messages(&mut ends, end, 1).await, [(its, Said::Bytes(Vec::new()))]);
        assert_eq!(count(&ends, "datagrams_sent"), 4);
        assert_eq!(count(&ends, "datagrams_received"), 5);
    });
}

#[test]
fn a_port_without_listener_is_told_for_its_peer_and_disturbs_no_other() {
    for host in HOSTS {
        run(async |mut ends| {
            let (listener, open) = listen(host);
            // Nobody has a use for it.
            let closed = SocketAddr::new(host, 1);
            let end = open_udp(&mut ends, closed);
            for _ in 0..3 {
                send(&mut ends, end, closed, b"anybody?");
                send(&mut ends, end, open, b"you");
                assert_eq!(take(&listener).0, b"you");
            }
            let refused = (closed, Said::Trouble(Trouble::Refusal(Refusal::Refused)));
            assert_eq!(messages(&mut ends, end, 3).await, vec![refused; 3]);
        });
    }
}

#[test]
fn long_datagrams_pass_both_ways_and_too_long_ones_are_told() {
    for (host, longest) in [(HOSTS[0], 65_507), (HOSTS[1], 65_527)] {
        run(async |mut ends| {
            let (listener, peer) = listen(host);
            let end = open_udp(&mut ends, peer);
            for length in [60_000, longest, 0, 1] {
                let payload: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
                // In the pieces that frames bring.
                let mut wire = Vec::new();
                Message::Datagram { peer, payload: &payload }.encode(&mut wire);
                for piece in wire.chunks(16_384) {
                    assert!(ends.room(end) >= piece.len());
                    ends.write(end, piece, Instant::now());
                }
                let (arrived, from) = take(&listener);
                assert!(arrived == payload);
                listener.send_to(&payload, from).unwrap();
                assert!(messages(&mut ends, end, 1).await == [(peer, Said::Bytes(payload))]);
            }
            send(&mut ends, end, peer, &vec![0; longest + 1]);
            assert_eq!(messages(&mut ends, end, 1).await, [(peer, Said::Trouble(Trouble::TooBig(u16::MAX)))]);
        });
    }
}

#[test]
fn each_peer_is_judged_by_the_rules() {
    run_with(DialConfig::default(), async |mut ends| {
        let end = open_udp(&mut ends, "169.254.169.254:53".parse().unwrap());
        let denied = [
            "169.254.169.254:53",
            "127.0.0.1:53",
            "[::1]:53",
            "[::ffff:127.0.0.1]:53",
            "[::ffff:169.254.169.254]:80",
            "[fe80::1]:53",
            "[64:ff9b::a9fe:a9fe]:80",
            "224.0.0.251:5353",
            "255.255.255.255:67",
            "0.0.0.0:53",
        ];
        for peer in denied {
            send(&mut ends, end, peer.parse().unwrap(), b"?");
            let told = messages(&mut ends, end, 1).await;
            assert_eq!(
                told,
                [(peer.parse().unwrap(), Said::Trouble(Trouble::Refusal(Refusal::Denied)))],
                "{peer}"
            );
        }
        assert_eq!(count(&ends, "datagrams_denied"), denied.len() as u64);
        assert_eq!(count(&ends, "datagrams_sent"), 0);
        assert_eq!(
            ends.open(&open(Kind::Echo, "169.254.169.254:0".parse().unwrap()), Instant::now()),
            Err(Refusal::Denied)
        );
    });
}

#[test]
fn troubles_that_nobody_takes_are_bounded() {
    run_with(DialConfig::default(), async |mut ends| {
        let peer = "127.0.0.1:53".parse().unwrap();
        let end = open_udp(&mut ends, peer);
        for _ in 0..1_000 {
            send(&mut ends, end, peer, b"?");
        }
        assert_eq!(count(&ends, "troubles_dropped") + count(&ends, "troubles_told"), 1_000);
        let kept = usize::try_from(count(&ends, "troubles_told")).unwrap();
        assert!(kept < 100);
        assert_eq!(messages(&mut ends, end, kept).await.len(), kept);
        assert_eq!(ends.read(end, &mut [0; 64], Instant::now()), 0);
    });
}

#[test]
fn names_are_resolved_and_told_as_the_remote_address() {
    let name = |kind| Open { kind, target: Target::Name("localhost".into(), 7) };
    run(async |mut ends| {
        let end = ends.open(&name(Kind::Udp), Instant::now()).unwrap();
        let EndEvent::Connected { end: connected, remote, .. } = next(&mut ends).await else { panic!() };
        assert_eq!(connected, end);
        assert!(remote.ip().is_loopback() && remote.port() == 7);
    });
    run_with(DialConfig::default(), async |mut ends| {
        for kind in [Kind::Udp, Kind::Echo] {
            let end = ends.open(&name(kind), Instant::now()).unwrap();
            assert_eq!(next(&mut ends).await, EndEvent::Refused { end, refusal: Refusal::Denied });
        }
        assert!(ends.is_empty());
    });
}

#[test]
fn what_is_no_message_resets_the_flow() {
    run(async |mut ends| {
        let end = open_udp(&mut ends, (HOSTS[0], 9).into());
        ends.write(end, &[77], Instant::now());
        assert_eq!(next(&mut ends).await, EndEvent::Reset { end });
        assert!(ends.is_empty());
    });
}

#[test]
fn a_silent_flow_ends_by_itself_and_a_busy_one_does_not() {
    run(async |mut ends| {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let (listener, peer) = listen(HOSTS[0]);
        let mut flows = Vec::new();
        for _ in 0..3 {
            flows.push(ends.open(&open(Kind::Udp, peer), start).unwrap());
        }
        while ends.poll_event().is_some() {}
        let [silent, sends, hears] = flows[..] else { panic!() };
        write(&mut ends, hears, peer, b"call me", start);
        let (_, from) = take(&listener);
        write(&mut ends, sends, peer, b"still here", after(500));
        assert_eq!(ends.poll_timeout(), Some(after(600)));

        listener.send_to(b"called", from).unwrap();
        assert_eq!(next(&mut ends).await, EndEvent::Readable { end: hears });
        let mut buf = [0; 64];
        assert!(ends.read(hears, &mut buf, after(550)) > 0);
        assert_eq!(ends.read(hears, &mut buf, after(550)), 0);

        ends.handle_timeout(after(600));
        assert_eq!(ends.poll_event(), Some(EndEvent::Closed { end: silent }));
        assert_eq!(ends.poll_timeout(), Some(after(1100)));
        ends.handle_timeout(after(1100));
        assert_eq!(ends.poll_event(), Some(EndEvent::Closed { end: sends }));
        ends.handle_timeout(after(1150));
        assert_eq!(ends.poll_event(), Some(EndEvent::Closed { end: hears }));
        assert_eq!((ends.poll_event(), ends.poll_timeout(), ends.len()), (None, None, 0));
    });
}

#[test]
fn flows_of_every_kind_count_against_the_limits() {
    let limited = DialConfig { max_flows: 2, ..config() };
    run_with(limited, async |mut ends| {
        let udp = open(Kind::Udp, (HOSTS[0], 9).into());
        let first = ends.open(&udp, Instant::now()).unwrap();
        ends.open(&udp, Instant::now()).unwrap();
        assert_eq!(ends.open(&udp, Instant::now()), Err(Refusal::Exhausted));
        ends.reset(first, Instant::now());
        ends.open(&udp, Instant::now()).unwrap();
    });
    let paced = DialConfig { dials_per_second: 10, ..config() };
    run_with(paced, async |mut ends| {
        let udp = open(Kind::Udp, (HOSTS[0], 9).into());
        let now = Instant::now();
        for _ in 0..10 {
            ends.open(&udp, now).unwrap();
        }
        assert_eq!(ends.open(&udp, now), Err(Refusal::Exhausted));
        assert!(ends.open(&udp, now + Duration::from_millis(100)).is_ok());
    });
}

#[test]
fn a_flood_is_read_a_buffer_at_a_time_and_the_rest_waits_in_the_kernel() {
    run(async |mut ends| {
        let (listener, peer) = listen(HOSTS[0]);
        let end = open_udp(&mut ends, peer);
        send(&mut ends, end, peer, b"begin");
        let (_, from) = take(&listener);
        for number in 0..100u32 {
            listener.send_to(&number.to_be_bytes(), from).unwrap();
        }
        assert_eq!(next(&mut ends).await, EndEvent::Readable { end });
        let mut reader = Reader::default();
        let mut numbers = Vec::new();
        let mut buf = [0; 33];
        let mut reads = 0;
        loop {
            let count = ends.read(end, &mut buf, Instant::now());
            if count == 0 {
                break;
            }
            reads += 1;
            let mut take = |message: Message<'_>| match message {
                Message::Datagram { payload, .. } => {
                    numbers.push(u32::from_be_bytes(payload.try_into().unwrap()));
                }
                other => panic!("{other:?}"),
            };
            reader.push(&buf[..count], &mut take).unwrap();
        }
        assert_eq!(numbers, (0..100).collect::<Vec<_>>());
        assert_eq!(reads, (100 * 14_usize).div_ceil(buf.len()));
        listener.send_to(b"again", from).unwrap();
        assert_eq!(messages(&mut ends, end, 1).await.len(), 1);
    });
}

#[test]
fn echoes_come_back_with_sequence_and_payload_through_ping_and_raw_sockets() {
    if !is_root() {
        return;
    }
    for range in ["0 0", "1 0"] {
        in_a_namespace(|| {
            std::fs::write("/proc/sys/net/ipv4/ping_group_range", range).unwrap();
            for host in HOSTS {
                block_on(async {
                    let dialer = Dialer::new(config());
                    let (mut ends, mut others) = (dialer.sockets(), dialer.sockets());
                    let end = open_flow(&mut ends, Kind::Echo, (host, 0).into());
                    let other = open_flow(&mut others, Kind::Echo, (host, 0).into());
                    let payloads = [b"".to_vec(), b"x".to_vec(), vec![7; 1_400], vec![8; 20_000]];
                    for (sequence, payload) in (7u16..).zip(&payloads) {
                        let peer = (host, sequence).into();
                        send(&mut ends, end, peer, payload);
                        send(&mut others, other, peer, b"not mine");
                        assert!(
                            messages(&mut ends, end, 1).await == [(peer, Said::Bytes(payload.clone()))],
                            "{range}: {peer}"
                        );
                    }
                    send(&mut ends, end, SocketAddr::new(HOSTS[usize::from(host == HOSTS[0])], 1), b"");
                    send(&mut ends, end, "127.0.0.9:1".parse().unwrap(), b"");
                    assert_eq!(count(&ends, "echoes_stray"), 2);
                    assert_eq!(messages(&mut others, other, 4).await.len(), 4);
                    assert_eq!(ends.read(end, &mut [0; 64], Instant::now()), 0);
                });
            }
        });
    }
}

#[test]
fn what_the_network_says_of_echoes_and_datagrams_is_told() {
    if !is_root() {
        return;
    }
    for range in ["0 0", "1 0"] {
        in_a_namespace(|| {
            std::fs::write("/proc/sys/net/ipv4/ping_group_range", range).unwrap();
            ip("route add unreachable 192.0.2.1/32");
            ip("route add prohibit 192.0.2.2/32");
            ip("-6 route add unreachable 2001:db8::1/128");
            ip("-6 route add prohibit 2001:db8::2/128");
            let unreachable = Refusal::HostUnreachable;
            for (host, refusal) in [
                ("192.0.2.1", unreachable),
                ("192.0.2.2", Refusal::Prohibited),
                ("192.0.2.3", Refusal::NetUnreachable),
                ("2001:db8::1", unreachable),
                ("2001:db8::2", Refusal::Prohibited),
                ("2001:db8::3", Refusal::NetUnreachable),
            ] {
                run(async |mut ends| {
                    let peer: SocketAddr = SocketAddr::new(host.parse().unwrap(), 5);
                    let end = open_udp(&mut ends, peer);
                    send(&mut ends, end, peer, b"?");
                    let told = [(peer, Said::Trouble(Trouble::Refusal(refusal)))];
                    assert_eq!(messages(&mut ends, end, 1).await, told, "udp");
                    match ends.open(&open(Kind::Echo, peer), Instant::now()) {
                        Err(at_once) => assert_eq!(at_once, refusal, "{range}: {host}"),
                        Ok(end) => {
                            let EndEvent::Connected { .. } = next(&mut ends).await else { panic!() };
                            send(&mut ends, end, peer, b"?");
                            assert_eq!(messages(&mut ends, end, 1).await, told, "echo");
                        }
                    }
                });
            }
        });
    }
}

#[test]
fn a_router_in_the_way_is_heard() {
    if !is_root() {
        return;
    }
    // Anew for each, since a router tells one source only so many errors a second.
    for range in ["0 0", "1 0"] {
        in_a_namespace(|| a_router_is_heard(range));
    }
}

fn a_router_is_heard(range: &str) {
    // This thread's namespace - veth - a router, whose ways onward are too narrow, forbidden or none.
    let router = Namespace::new();
    ip(&format!("link add way type veth peer name back netns {}", router.0));
    for command in ["addr add 10.7.0.1/24 dev way", "-6 addr add fd07::1/64 dev way nodad", "link set way up"]
    {
        ip(command);
    }
    ip("route add default via 10.7.0.2");
    ip("-6 route add default via fd07::2");
    router.ip("addr add 10.7.0.2/24 dev back");
    router.ip("-6 addr add fd07::2/64 dev back nodad");
    router.ip("link set back up");
    router.ip("link add far type veth peer name farther");
    router.ip("link set farther up");
    router.ip("link set far up mtu 1400");
    router.ip("addr add 10.8.0.1/24 dev far");
    router.ip("-6 addr add fd08::1/64 dev far nodad");
    router.ip("route add prohibit 10.9.0.0/24");
    router.ip("-6 route add prohibit fd09::/64");
    router.write("/proc/sys/net/ipv4/icmp_ratelimit", "0");
    router.write("/proc/sys/net/ipv6/icmp/ratelimit", "0");
    router.write("/proc/sys/net/ipv4/ip_forward", "1");
    router.write("/proc/sys/net/ipv6/conf/all/forwarding", "1");
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", range).unwrap();
    for (host, length, trouble) in [
        ("10.8.0.9", 1_440, Trouble::TooBig(1_400)),
        ("10.9.0.9", 10, Trouble::Refusal(Refusal::Prohibited)),
        ("10.10.0.9", 10, Trouble::Refusal(Refusal::NetUnreachable)),
        ("fd08::9", 1_440, Trouble::TooBig(1_400)),
        ("fd09::9", 10, Trouble::Refusal(Refusal::Prohibited)),
        ("fd10::9", 10, Trouble::Refusal(Refusal::NetUnreachable)),
    ] {
        for kind in [Kind::Udp, Kind::Echo] {
            // The kernel remembers what it heard of a path.
            ip("route flush cache");
            ip("-6 route flush cache");
            run(async |mut ends| {
                let peer = SocketAddr::new(host.parse().unwrap(), 5);
                let end = open_flow(&mut ends, kind, peer);
                send(&mut ends, end, peer, &vec![0; length]);
                let told = messages(&mut ends, end, 1).await;
                assert_eq!(told, [(peer, Said::Trouble(trouble))], "{range}: {kind} {host}");
            });
        }
    }
}

#[test]
fn without_the_right_to_ping_the_refusal_says_so() {
    if !is_root() {
        return;
    }
    in_a_namespace(|| {
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "1 0").unwrap();
        let mut sets = rustix::thread::capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::NET_RAW);
        set_capabilities(None, sets).unwrap();
        run(async |mut ends| {
            for host in HOSTS {
                let refused = ends.open(&open(Kind::Echo, (host, 0).into()), Instant::now());
                assert_eq!(refused, Err(Refusal::Prohibited));
            }
            assert!(ends.is_empty());
        });
    });
}

/// What holds for one target says nothing of the right to ping, for which the client would ask no more for a while.
#[test]
fn a_target_that_the_system_forbids_is_told_of_alone() {
    if !is_root() {
        return;
    }
    for range in ["0 0", "1 0"] {
        in_a_namespace(|| {
            std::fs::write("/proc/sys/net/ipv4/ping_group_range", range).unwrap();
            ip("route add prohibit 192.0.2.1");
            run(async |mut ends| {
                let peer = "192.0.2.1:3".parse().unwrap();
                let end = open_flow(&mut ends, Kind::Echo, peer);
                send(&mut ends, end, peer, b"x");
                let forbidden = Said::Trouble(Trouble::Refusal(Refusal::Prohibited));
                assert_eq!(messages(&mut ends, end, 1).await, [(peer, forbidden)], "{range}");
            });
        });
    }
}

/// What a message says, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Bytes(Vec<u8>),
    Trouble(Trouble),
}

fn config() -> DialConfig {
    let loopback = ["127.0.0.0/8", "::1"].iter().map(|text| text.parse().unwrap()).collect();
    DialConfig { rules: Rules::new(loopback, Vec::new()), ..DialConfig::default() }
}

fn open(kind: Kind, target: SocketAddr) -> Open {
    Open { kind, target: Target::Address(target.ip(), target.port()) }
}

fn listen(host: IpAddr) -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind((host, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

fn take(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buf = vec![0; 65_536];
    let (length, from) = socket.recv_from(&mut buf).unwrap();
    buf.truncate(length);
    (buf, from)
}

fn count(ends: &Sockets, name: &str) -> u64 {
    let mut found = None;
    ends.counters(&mut |told, value| {
        if told == name {
            found = Some(value);
        }
    });
    found.unwrap()
}

fn write(ends: &mut Sockets, end: EndId, peer: SocketAddr, payload: &[u8], now: Instant) {
    let mut wire = Vec::new();
    Message::Datagram { peer, payload }.encode(&mut wire);
    ends.write(end, &wire, now);
}

fn send(ends: &mut Sockets, end: EndId, peer: SocketAddr, payload: &[u8]) {
    write(ends, end, peer, payload, Instant::now());
}

fn open_flow(ends: &mut Sockets, kind: Kind, target: SocketAddr) -> EndId {
    let end = ends.open(&open(kind, target), Instant::now()).unwrap();
    // At once: no turn of the loop is needed.
    let event = ends.poll_event();
    let Some(EndEvent::Connected { end: connected, local, remote }) = event else { panic!("{event:?}") };
    assert_eq!((connected, remote, local.is_ipv4()), (end, target, target.is_ipv4()));
    end
}

fn open_udp(ends: &mut Sockets, target: SocketAddr) -> EndId {
    open_flow(ends, Kind::Udp, target)
}

/// The next messages of a flow, which are this many and no more.
async fn messages(ends: &mut Sockets, end: EndId, wanted: usize) -> Vec<(SocketAddr, Said)> {
    let mut reader = Reader::default();
    let mut said = Vec::new();
    let mut buf = [0; 10_000];
    while said.len() < wanted {
        let event = next(ends).await;
        assert_eq!(event, EndEvent::Readable { end });
        loop {
            let count = ends.read(end, &mut buf, Instant::now());
            if count == 0 {
                break;
            }
            let mut take = |message: Message<'_>| match message {
                Message::Datagram { peer, payload } => said.push((peer, Said::Bytes(payload.to_vec()))),
                Message::Trouble { peer, trouble } => said.push((peer, Said::Trouble(trouble))),
            };
            reader.push(&buf[..count], &mut take).unwrap();
        }
    }
    assert_eq!((reader.waiting(), said.len()), (0, wanted), "{said:?}");
    said
}

async fn next(ends: &mut Sockets) -> EndEvent {
    loop {
        if let Some(event) = ends.poll_event() {
            return event;
        }
        std::future::poll_fn(|cx| match ends.poll_io(cx, Instant::now()) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
        })
        .await;
    }
}

fn block_on(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), future).await.expect("in time") });
}

fn run_with(config: DialConfig, test: impl AsyncFnOnce(Sockets)) {
    block_on(async { test(Dialer::new(config).sockets()).await });
}

fn run(test: impl AsyncFnOnce(Sockets)) {
    run_with(config(), test);
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        // Past the test harness's capture, for .ci/run to see.
        let _ = writeln!(std::io::stderr(), "SKIPPED: needs root to make network namespaces");
    }
    root
}

/// Runs a test in a thread with a network namespace of its own, loopback up.
fn in_a_namespace(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            #[expect(
                deprecated,
                reason = "its successor is unsafe only for shared descriptors, which stay shared"
            )]
            rustix::thread::unshare(UnshareFlags::NEWNET).unwrap();
            ip("link set lo up");
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A second namespace, held by a process that sleeps in it.
struct Namespace(u32, std::process::Child);

impl Namespace {
    fn new() -> Self {
        let mut holder = Command::new("unshare");
        let mut child = holder
            .args(["--net", "sh", "-c", "echo ready; exec sleep 60"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0; 6];
        std::io::Read::read_exact(&mut child.stdout.take().unwrap(), &mut line).unwrap();
        Self(child.id(), child)
    }

    fn ip(&self, arguments: &str) {
        self.command(&["ip"], arguments);
    }

    fn write(&self, path: &str, value: &str) {
        self.command(&["sh", "-c", &format!("echo {value} > {path}")], "");
    }

    fn command(&self, words: &[&str], arguments: &str) {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.0)).args(words);
        let output = command.args(arguments.split_whitespace()).output().unwrap();
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.1.kill();
        let _ = self.1.wait();
    }
}
