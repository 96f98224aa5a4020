//! Running out of local ports. One test alone, since a port is only free once no process that another test is about
//! to start has a copy of its socket.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::print_stderr)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use agent::dial::{DialConfig, Dialer, Sockets};
use agent::local_end::{EndEvent, LocalEnds};
use agent::wire::open::{Kind, Open, Refusal, Target};
use rustix::thread::UnshareFlags;

#[test]
fn without_ports_flows_are_refused_at_once_and_what_ends_gives_its_port_back() {
    if !rustix::process::geteuid().is_root() {
        // Past the test harness's capture, for .ci/run to see.
        let _ = writeln!(std::io::stderr(), "SKIPPED: needs root to make network namespaces");
        return;
    }
    let thread = std::thread::spawn(|| {
        #[expect(
            deprecated,
            reason = "its successor is unsafe only for shared descriptors, which stay shared"
        )]
        rustix::thread::unshare(UnshareFlags::NEWNET).unwrap();
        for arguments in ["link set lo up", "addr add 10.99.0.1/32 dev lo", "-6 addr add fd99::1/128 dev lo"]
        {
            assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success());
        }
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40049").unwrap();
        std::fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "0").unwrap();
        // On a busy machine the far side sends its FIN twice and answers the second acknowledgement with a reset, which
        // would free the port.
        std::fs::write("/proc/sys/net/ipv4/tcp_rfc1337", "1").unwrap();
        for host in ["10.99.0.1", "fd99::1"] {
            let (target, other) = (serve(host, 7_001), serve(host, 7_002));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let work = exhaust(Dialer::new(DialConfig::default()).sockets(), target, other);
                tokio::time::timeout(Duration::from_secs(20), work).await.expect("in time");
            });
        }
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "41000 41019").unwrap();
        for host in ["10.99.0.1", "fd99::1"] {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { exhaust_udp(&mut Dialer::new(DialConfig::default()).sockets(), host) });
        }
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

async fn exhaust(mut ends: Sockets, target: SocketAddr, other: SocketAddr) {
    let mut connections = 0;
    let refusal = loop {
        match connect_and_close(&mut ends, target).await {
            Ok(()) => connections += 1,
            Err(refusal) => break refusal,
        }
        assert!(connections <= 50, "more connections than ports");
    };
    assert_eq!((connections, refusal), (50, Refusal::Exhausted));
    let start = Instant::now();
    for _ in 0..10_000 {
        assert_eq!(ends.open(&tcp(target), start), Err(Refusal::Exhausted));
    }
    assert_eq!((ends.len(), ends.poll_timeout()), (0, None));
    assert_eq!(connect_and_close(&mut ends, other).await, Ok(()));
}

fn exhaust_udp(ends: &mut Sockets, host: &str) {
    let target = Target::Address(host.parse().unwrap(), 9);
    let udp = Open { kind: Kind::Udp, target };
    let mut flows = Vec::new();
    let refusal = loop {
        match ends.open(&udp, Instant::now()) {
            Ok(end) => flows.push(end),
            Err(refusal) => break refusal,
        }
    };
    assert_eq!((refusal, flows.len(), ends.len()), (Refusal::Exhausted, 20, 20));
    while ends.poll_event().is_some() {}
    ends.reset(flows[7], Instant::now());
    ends.finish(flows[8], Instant::now());
    assert_eq!(ends.poll_event(), Some(EndEvent::Closed { end: flows[8] }));
    assert_eq!(ends.len(), 18);
    assert!(ends.open(&udp, Instant::now()).is_ok() && ends.open(&udp, Instant::now()).is_ok());
    assert_eq!(ends.open(&udp, Instant::now()), Err(Refusal::Exhausted));
}

/// As an application does that is done first: its FIN is the first, so the agent's port waits.
async fn connect_and_close(ends: &mut Sockets, target: SocketAddr) -> Result<(), Refusal> {
    let end = ends.open(&tcp(target), Instant::now())?;
    loop {
        while let Some(event) = ends.poll_event() {
            match event {
                EndEvent::Connected { .. } => ends.finish(end, Instant::now()),
                EndEvent::Readable { .. } => {
                    assert_eq!(ends.read(end, &mut [0; 8], Instant::now()), 0);
                }
                EndEvent::Closed { .. } => return Ok(()),
                EndEvent::Finished { .. } | EndEvent::Room { .. } => {}
                EndEvent::Wanted { .. } | EndEvent::Refused { .. } | EndEvent::Reset { .. } => {
                    panic!("{event:?}")
                }
            }
        }
        std::future::poll_fn(|cx| ends.poll_io(cx, Instant::now())).await;
    }
}

fn tcp(target: SocketAddr) -> Open {
    Open { kind: Kind::Tcp, target: Target::Address(target.ip(), target.port()) }
}

/// Reads each connection to its end, then closes it. Lives as long as the process.
fn serve(host: &str, port: u16) -> SocketAddr {
    let listener = TcpListener::bind(SocketAddr::new(host.parse().unwrap(), port)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let _ = connection.unwrap().read(&mut [0; 8]);
        }
    });
    address
}
