//! The agent's local ends against real sockets on the loopback.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use agent::dial::rules::Rules;
use agent::dial::{DialConfig, Dialer, Sockets};
use agent::local_end::{EndEvent, EndId, LocalEnds};
use agent::wire::open::{Kind, Open, Refusal, Target};
use socket2::{Domain, SockRef, Socket, Type};

const WINDOW: usize = 64 * 1024;

#[test]
fn a_connected_target_tells_its_addresses_and_carries_bytes_both_ways() {
    for host in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let (target, server) = serve(host, |mut stream| {
            let mut request = [0; 4];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(&request).unwrap();
            let peer = stream.peer_addr().unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
            peer
        });
        run(async |mut ends| {
            let end = ends.open(&tcp(target), Instant::now()).unwrap();
            let EndEvent::Connected { end: connected, local, remote } = next(&mut ends).await else {
                panic!()
            };
            assert_eq!((connected, remote), (end, target));
            assert_eq!(ends.room(end), WINDOW);

            ends.write(end, b"ping", Instant::now());
            assert_eq!(next(&mut ends).await, EndEvent::Readable { end });
            let mut buf = [0; 16];
            assert_eq!(ends.read(end, &mut buf, Instant::now()), 4);
            assert_eq!(&buf[..4], b"ping");
            assert_eq!(read_to_end(&mut ends, end).await, b"");
            ends.finish(end, Instant::now());
            assert_eq!(next(&mut ends).await, EndEvent::Closed { end });
            assert!(ends.is_empty());
            assert_eq!(server.join().unwrap(), local);
        });
    }
}

#[test]
fn each_direction_ends_on_its_own() {
    let (target, server) = serve(Ipv4Addr::LOCALHOST.into(), |mut stream| {
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        rest
    });
    run(async |mut ends| {
        let end = connect(&mut ends, target).await;
        assert_eq!(read_to_end(&mut ends, end).await, b"");
        ends.write(end, b"after the target's end", Instant::now());
        ends.finish(end, Instant::now());
        assert_eq!(next(&mut ends).await, EndEvent::Closed { end });
    });
    assert_eq!(server.join().unwrap(), b"after the target's end");

    let (target, server) = serve(Ipv4Addr::LOCALHOST.into(), |mut stream| {
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
        stream.write_all(b"after our end").unwrap();
    });
    run(async |mut ends| {
        let end = connect(&mut ends, target).await;
        ends.finish(end, Instant::now());
        assert_eq!(read_to_end(&mut ends, end).await, b"after our end");
        assert_eq!(next(&mut ends).await, EndEvent::Closed { end });
        assert_eq!(ends.poll_event(), None);
    });
    server.join().unwrap();
}

#[test]
fn a_reset_by_the_target_is_told_as_one() {
    let (target, server) = serve(Ipv4Addr::LOCALHOST.into(), |mut stream| {
        stream.read_exact(&mut [0; 1]).unwrap();
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    });
    run(async |mut ends| {
        let end = connect(&mut ends, target).await;
        ends.write(end, b"!", Instant::now());
        assert_eq!(next(&mut ends).await, EndEvent::Readable { end });
        assert_eq!(ends.read(end, &mut [0; 8], Instant::now()), 0);
        assert_eq!(next(&mut ends).await, EndEvent::Reset { end });
        assert!(ends.is_empty());
    });
    server.join().unwrap();
}

#[test]
fn a_reset_by_us_and_a_dropped_collection_reset_the_target() {
    for by_drop in [false, true] {
        let (target, server) =
            serve(Ipv4Addr::LOCALHOST.into(), |mut stream| stream.read(&mut [0; 1]).unwrap_err().kind());
        run(async |mut ends| {
            let end = connect(&mut ends, target).await;
            if by_drop {
                drop(ends);
            } else {
                ends.reset(end, Instant::now());
                assert!(ends.is_empty());
                assert_eq!(ends.poll_event(), None);
            }
        });
        assert_eq!(server.join().unwrap(), std::io::ErrorKind::ConnectionReset);
    }
}

#[test]
fn the_last_words_of_a_target_come_before_its_reset() {
    let (ready, wait) = mpsc::channel::<()>();
    let (target, server) = serve(Ipv4Addr::LOCALHOST.into(), move |mut stream| {
        stream.read_exact(&mut [0; 1]).unwrap();
        stream.write_all(b"413 too large").unwrap();
        // Closing with bytes unread resets the connection.
        wait.recv().unwrap();
    });
    run(async |mut ends| {
        let end = connect(&mut ends, target).await;
        ends.write(end, &[0; 4096], Instant::now());
        assert_eq!(next(&mut ends).await, EndEvent::Readable { end });
        ready.send(()).unwrap();
        server.join().unwrap();
        // The second write meets the closed socket.
        for _ in 0..2 {
            ends.write(end, &[0; 4096], Instant::now());
        }
        let mut buf = [0; 64];
        let count = ends.read(end, &mut buf, Instant::now());
        assert_eq!(&buf[..count], b"413 too large");
        assert_eq!(ends.read(end, &mut buf, Instant::now()), 0);
        loop {
            match next(&mut ends).await {
                EndEvent::Reset { .. } => break,
                EndEvent::Readable { .. } | EndEvent::Room { .. } => {
                    assert_eq!(ends.read(end, &mut buf, Instant::now()), 0);
                }
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn bytes_wait_no_more_than_the_window_and_arrive_in_order() {
    let (start, wait) = mpsc::channel::<()>();
    let (target, server) = serve(Ipv4Addr::LOCALHOST.into(), move |mut stream| {
        wait.recv().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all
    });
    run(async |mut ends| {
        let end = connect(&mut ends, target).await;
        let mut written = 0usize;
        let mut put = |ends: &mut Sockets, most: usize| {
            let count = ends.room(end).min(most);
            let bytes: Vec<u8> = (written..written + count).map(|at| (at % 251) as u8).collect();
            ends.write(end, &bytes, Instant::now());
            written += count;
            count
        };
        while put(&mut ends, 48 * 1024) > 0 {}
        assert_eq!(ends.room(end), 0);
        assert_eq!(ends.poll_event(), None);

        start.send(()).unwrap();
        assert_eq!(next(&mut ends).await, EndEvent::Room { end });
        for _ in 0..200 {
            while put(&mut ends, 20_000) == 0 {
                assert_eq!(next(&mut ends).await, EndEvent::Room { end });
                assert!(ends.room(end) > 0);
            }
        }
        ends.finish(end, Instant::now());
        assert_eq!(read_to_end(&mut ends, end).await, b"");
        loop {
            match next(&mut ends).await {
                EndEvent::Closed { .. } => break,
                EndEvent::Room { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        let all = server.join().unwrap();
        assert_eq!(all.len(), written);
        assert!(all.iter().enumerate().all(|(at, &byte)| byte == (at % 251) as u8));
    });
}

#[test]
fn many_targets_carry_bulk_both_ways_at_once() {
    const EACH: usize = 2 << 20;
    const FLOWS: usize = 8;
    let echoes: Vec<_> = (0..FLOWS)
        .map(|_| {
            serve(Ipv4Addr::LOCALHOST.into(), |stream| {
                let mut from = stream.try_clone().unwrap();
                let mut to = stream;
                assert_eq!(std::io::copy(&mut from, &mut to).unwrap(), EACH as u64);
                to.shutdown(Shutdown::Write).unwrap();
            })
        })
        .collect();
    run(async |mut ends| {
        let byte = |flow: usize, at: usize| (flow * 31 + at % 251) as u8;
        let mut flows = Vec::new();
        for (target, _) in &echoes {
            flows.push((connect(&mut ends, *target).await, 0, 0));
        }
        let mut closed = 0;
        let mut buf = vec![0; 20_011];
        let put = |ends: &mut Sockets, flow: usize, end: EndId, sent: &mut usize| {
            while *sent < EACH && ends.room(end) > 0 {
                let count = ends.room(end).min(EACH - *sent).min(16_000);
                let bytes: Vec<u8> = (*sent..*sent + count).map(|at| byte(flow, at)).collect();
                ends.write(end, &bytes, Instant::now());
                *sent += count;
                if *sent == EACH {
                    ends.finish(end, Instant::now());
                }
            }
        };
        for (flow, (end, sent, _)) in flows.iter_mut().enumerate() {
            put(&mut ends, flow, *end, sent);
        }
        while closed < FLOWS {
            let event = next(&mut ends).await;
            match event {
                EndEvent::Readable { end } => {
                    let flow = flows.iter().position(|flow| flow.0 == end).unwrap();
                    let received = &mut flows[flow].2;
                    loop {
                        let count = ends.read(end, &mut buf, Instant::now());
                        if count == 0 {
                            break;
                        }
                        assert!(
                            buf[..count]
                                .iter()
                                .enumerate()
                                .all(|(at, &got)| got == byte(flow, *received + at))
                        );
                        *received += count;
                    }
                }
                EndEvent::Room { end } => {
                    let flow = flows.iter().position(|flow| flow.0 == end).unwrap();
                    put(&mut ends, flow, end, &mut flows[flow].1);
                }
                EndEvent::Finished { .. } => {}
                EndEvent::Closed { end } => {
                    let flow = flows.iter().position(|flow| flow.0 == end).unwrap();
                    assert_eq!((flows[flow].1, flows[flow].2), (EACH, EACH));
                    closed += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(ends.is_empty());
    });
    echoes.into_iter().for_each(|(_, server)| server.join().unwrap());
}

#[test]
fn readable_is_told_again_only_after_a_read_gave_nothing() {
    let (go_on, wait) = mpsc::channel::<()>();
    let (target, server) = serve(Ipv4Addr::LOCALHOST.into(), move |mut stream| {
        stream.write_all(b"one").unwrap();
        wait.recv().unwrap();
        stream.write_all(b"two").unwrap();
        wait.recv().unwrap();
    });
    run(async |mut ends| {
        let end = connect(&mut ends, target).await;
        assert_eq!(next(&mut ends).await, EndEvent::Readable { end });
        let mut buf = [0; 8];
        assert_eq!(ends.read(end, &mut buf, Instant::now()), 3);
        assert_eq!(ends.read(end, &mut buf, Instant::now()), 0);
        go_on.send(()).unwrap();
        assert_eq!(next(&mut ends).await, EndEvent::Readable { end });
        assert_eq!(ends.read(end, &mut buf, Instant::now()), 3);
        assert_eq!(&buf[..3], b"two");
        ends.reset(end, Instant::now());
        go_on.send(()).unwrap();
    });
    server.join().unwrap();
}

#[test]
fn news_that_come_up_in_a_read_wake_the_owner() {
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let (target, server) =
        serve(Ipv4Addr::LOCALHOST.into(), |stream| stream.shutdown(Shutdown::Write).unwrap());
    run(async |mut ends| {
        let end = connect(&mut ends, target).await;
        assert_eq!(next(&mut ends).await, EndEvent::Readable { end });
        let wakes = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(wakes.clone());
        while ends.poll_io(&mut Context::from_waker(&waker), Instant::now()).is_ready() {
            assert_eq!(ends.poll_event(), None);
        }
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
        assert_eq!(ends.read(end, &mut [0; 8], Instant::now()), 0);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert_eq!(ends.poll_event(), Some(EndEvent::Finished { end }));
    });
    server.join().unwrap();
}

#[test]
fn a_port_without_listener_is_refused() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    run(async |mut ends| assert_eq!(refused(&mut ends, tcp(free)).await, Refusal::Refused));
}

#[test]
fn silence_is_a_timeout_and_dials_are_limited() {
    let (target, _silent) = silent_target();
    let config = DialConfig { timeout: Duration::from_millis(300), max_dials: 2, ..config() };
    run_with(config, async |mut ends| {
        let ids: Vec<_> = (0..2).map(|_| ends.open(&tcp(target), Instant::now()).unwrap()).collect();
        assert_eq!(ends.open(&tcp(target), Instant::now()), Err(Refusal::Exhausted));
        for _ in &ids {
            let EndEvent::Refused { end, refusal } = next(&mut ends).await else { panic!() };
            assert!(ids.contains(&end));
            assert_eq!(refusal, Refusal::TimedOut);
        }
        assert_eq!(ends.poll_timeout(), None);
        assert!(ends.open(&tcp(target), Instant::now()).is_ok());
    });
}

#[test]
fn flows_of_all_collections_count_against_one_limit() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    let dialer = Dialer::new(DialConfig { max_flows: 2, ..config() });
    block_on(async {
        let (mut one, mut other) = (dialer.sockets(), dialer.sockets());
        let end = connect(&mut one, target).await;
        connect(&mut other, target).await;
        assert_eq!(one.open(&tcp(target), Instant::now()), Err(Refusal::Exhausted));
        assert_eq!(dialer.flows(), 2);
        one.reset(end, Instant::now());
        drop(other);
        assert_eq!(dialer.flows(), 0);
        connect(&mut one, target).await;
    });
}

#[test]
fn names_are_resolved_and_judged_by_their_addresses() {
    let (target, server) = serve(Ipv4Addr::LOCALHOST.into(), |_| {});
    let name = |name: &str| Open { kind: Kind::Tcp, target: Target::Name(name.to_owned(), target.port()) };
    run_with(DialConfig { rules: Rules::default(), ..config() }, async |mut ends| {
        assert_eq!(refused(&mut ends, name("localhost")).await, Refusal::Denied);
        assert_eq!(refused(&mut ends, name("127.1")).await, Refusal::Denied);
        assert_eq!(refused(&mut ends, name("0x7f000001")).await, Refusal::Denied);
    });
    run(async |mut ends| {
        // Longer than a label may be, so that no server is asked.
        assert_eq!(refused(&mut ends, name(&"x".repeat(64))).await, Refusal::UnknownName);
        assert_eq!(refused(&mut ends, name("")).await, Refusal::UnknownName);
        assert_eq!(refused(&mut ends, name("nul\0inside")).await, Refusal::UnknownName);
        // May stand for ::1 as well, where nobody listens.
        let end = ends.open(&name("localhost"), Instant::now()).unwrap();
        let EndEvent::Connected { end: connected, remote, .. } = next(&mut ends).await else { panic!() };
        assert_eq!((connected, remote), (end, target));
    });
    server.join().unwrap();
}

#[test]
fn more_names_than_are_looked_up_at_once_are_all_answered() {
    run(async |mut ends| {
        let open = Open { kind: Kind::Tcp, target: Target::Name("x".repeat(64), 1) };
        for _ in 0..100 {
            ends.open(&open, Instant::now()).unwrap();
        }
        for _ in 0..100 {
            let EndEvent::Refused { refusal, .. } = next(&mut ends).await else { panic!() };
            assert_eq!(refusal, Refusal::UnknownName);
        }
        assert!(ends.is_empty());
    });
}

#[test]
fn denied_and_unknown_kinds_are_refused_at_once() {
    let address = |text: &str| tcp(SocketAddr::new(text.parse().unwrap(), 80));
    run_with(DialConfig { rules: Rules::default(), ..config() }, async |mut ends| {
        for text in ["127.0.0.1", "::1", "169.254.169.254", "::ffff:127.0.0.1", "0.0.0.0", "::"] {
            assert_eq!(ends.open(&address(text), Instant::now()), Err(Refusal::Denied), "{text}");
        }
        let dns = Open { kind: Kind::Dns, ..address("10.0.0.1") };
        assert_eq!(ends.open(&dns, Instant::now()), Err(Refusal::Unsupported));
        assert!(ends.is_empty());
    });
}

fn config() -> DialConfig {
    let loopback = ["127.0.0.0/8", "::1"].iter().map(|text| text.parse().unwrap()).collect();
    DialConfig { rules: Rules::new(loopback, Vec::new()), window: WINDOW, ..DialConfig::default() }
}

fn tcp(target: SocketAddr) -> Open {
    Open { kind: Kind::Tcp, target: Target::Address(target.ip(), target.port()) }
}

fn serve<T: Send + 'static>(
    host: IpAddr,
    answer: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (SocketAddr, JoinHandle<T>) {
    let listener = TcpListener::bind((host, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (address, thread::spawn(move || answer(listener.accept().unwrap().0)))
}

/// A listener whose queue is full, so that the kernel leaves further connections without an answer.
fn silent_target() -> (SocketAddr, Vec<Socket>) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut sockets = vec![listener];
    for _ in 0..4 {
        let filler = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        filler.set_nonblocking(true).unwrap();
        let _ = filler.connect(&address);
        sockets.push(filler);
    }
    (address.as_socket().unwrap(), sockets)
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

async fn next(ends: &mut Sockets) -> EndEvent {
    loop {
        if let Some(event) = ends.poll_event() {
            return event;
        }
        let deadline = ends.poll_timeout().unwrap_or_else(|| Instant::now() + Duration::from_secs(60));
        let io = std::future::poll_fn(|cx| match ends.poll_io(cx, Instant::now()) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
        });
        if tokio::time::timeout_at(deadline.into(), io).await.is_err() {
            ends.handle_timeout(Instant::now());
        }
    }
}

async fn connect(ends: &mut Sockets, target: SocketAddr) -> EndId {
    let end = ends.open(&tcp(target), Instant::now()).unwrap();
    let event = next(ends).await;
    assert!(matches!(event, EndEvent::Connected { end: connected, .. } if connected == end), "{event:?}");
    end
}

async fn refused(ends: &mut Sockets, open: Open) -> Refusal {
    let end = match ends.open(&open, Instant::now()) {
        Ok(end) => end,
        Err(refusal) => return refusal,
    };
    match next(ends).await {
        EndEvent::Refused { end: refused, refusal } if refused == end => refusal,
        other => panic!("{other:?}"),
    }
}

/// Reads until the target's end; passes over `Room`.
async fn read_to_end(ends: &mut Sockets, end: EndId) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buf = [0; 4096];
    loop {
        loop {
            match ends.read(end, &mut buf, Instant::now()) {
                0 => break,
                count => all.extend_from_slice(&buf[..count]),
            }
        }
        match next(ends).await {
            EndEvent::Finished { end: finished } if finished == end => return all,
            EndEvent::Readable { .. } | EndEvent::Room { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}
