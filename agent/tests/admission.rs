//! Who gets a lane over the loopback, asked of this machine's kernel. Other users need root to be played.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::print_stderr)]

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use agent::admission::{Admission, Turned};
use socket2::{Domain, Socket, Type};

const NOBODY: u32 = 65_534;

#[test]
fn our_own_connection_gets_in_by_our_uid_only() {
    let uid = rustix::process::geteuid().as_raw();
    for (host, bound) in hosts() {
        let listener = listen(bound);
        let port = listener.local_addr().unwrap().port();
        let _client = TcpStream::connect((host, port)).unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        let local = accepted.local_addr().unwrap();
        assert_eq!(Admission::Uids(vec![uid]).check(peer, local), Ok(()), "{host} on {bound}");
        assert_eq!(
            Admission::Uids(vec![uid + 1]).check(peer, local),
            Err(Turned::Uid(uid)),
            "{host} on {bound}"
        );
        assert_eq!(Admission::Any.check(peer, local), Ok(()));
    }
}

#[test]
fn our_own_connection_that_is_closed_or_closing_does_not() {
    let admission = Admission::Uids(vec![rustix::process::geteuid().as_raw(), 0]);
    for abort in [false, true] {
        let listener = listen(Ipv4Addr::LOCALHOST.into());
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        if abort {
            socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop(client);
        let turned = admission.check(peer, accepted.local_addr().unwrap()).unwrap_err();
        assert!(matches!(turned, Turned::NotFound | Turned::NotEstablished), "{turned}");
    }
    let listener = listen(Ipv4Addr::LOCALHOST.into());
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, peer) = listener.accept().unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(admission.check(peer, accepted.local_addr().unwrap()), Err(Turned::NotEstablished));
}

#[test]
fn a_listener_is_not_taken_for_the_peer() {
    // The kernel falls back to a listener when it finds no connection.
    let listener = listen(Ipv4Addr::LOCALHOST.into());
    let address = listener.local_addr().unwrap();
    let stranger = SocketAddr::from(([127, 0, 0, 1], 1));
    let admission = Admission::Uids(vec![rustix::process::geteuid().as_raw(), 0]);
    assert!(admission.check(address, stranger).is_err());
    assert!(admission.check(stranger, address).is_err());
}

#[test]
fn another_user_does_not_get_in() {
    if !can_play_others() {
        return;
    }
    for (host, bound) in hosts() {
        let listener = listen(bound);
        let mut child = nobody(&format!("{}; read -u 3", connect(host, &listener)));
        let (accepted, peer) = accept(&listener, &mut child);
        let local = accepted.local_addr().unwrap();
        assert_eq!(Admission::default().check(peer, local), Err(Turned::Uid(NOBODY)), "{host} on {bound}");
        assert_eq!(Admission::Uids(vec![0, NOBODY]).check(peer, local), Ok(()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn another_user_that_connects_sends_and_closes_does_not_get_in() {
    if !can_play_others() {
        return;
    }
    for (host, bound) in hosts() {
        let listener = listen(bound);
        // Looked at long after the process and its sockets are gone.
        let mut child = nobody(&format!("{}; printf hello >&3", connect(host, &listener)));
        assert!(child.wait().unwrap().success());
        let (accepted, peer) = listener.accept().unwrap();
        let turned = Admission::default().check(peer, accepted.local_addr().unwrap()).unwrap_err();
        assert!(matches!(turned, Turned::NotFound | Turned::NotEstablished), "{turned}");

        // Looked at while it happens.
        let mut child = nobody(&format!(
            "for i in {{1..200}}; do {}; printf hello >&3; exec 3>&-; done",
            connect(host, &listener)
        ));
        for _ in 0..200 {
            let (accepted, peer) = accept(&listener, &mut child);
            assert!(Admission::default().check(peer, accepted.local_addr().unwrap()).is_err());
        }
        assert!(child.wait().unwrap().success());
    }
}

/// The address to connect to, and the one that is listened on.
fn hosts() -> [(IpAddr, IpAddr); 3] {
    let (v4, v6) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST));
    // The last one sees its peer as ::ffff:127.0.0.1.
    [(v4, v4), (v6, v6), (v4, Ipv6Addr::UNSPECIFIED.into())]
}

fn listen(host: IpAddr) -> TcpListener {
    let socket = Socket::new(Domain::for_address(SocketAddr::new(host, 0)), Type::STREAM, None).unwrap();
    if host.is_ipv6() {
        socket.set_only_v6(!host.is_unspecified()).unwrap();
    }
    socket.bind(&SocketAddr::new(host, 0).into()).unwrap();
    socket.listen(256).unwrap();
    socket.into()
}

fn connect(host: IpAddr, listener: &TcpListener) -> String {
    format!("exec 3<>/dev/tcp/{host}/{}", listener.local_addr().unwrap().port())
}

fn nobody(script: &str) -> Child {
    let mut command = Command::new("bash");
    command.args(["-c", script]).uid(NOBODY).gid(NOBODY).current_dir("/").stdin(Stdio::null());
    command.spawn().unwrap()
}

/// Waits for a connection, or for the child to fail.
fn accept(listener: &TcpListener, child: &mut Child) -> (TcpStream, SocketAddr) {
    listener.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match listener.accept() {
            Ok(accepted) => return accepted,
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{status}");
        }
        assert!(Instant::now() < deadline);
        thread::yield_now();
    }
}

fn can_play_others() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        // Past the test harness's capture, for .ci/run to see.
        let _ = writeln!(std::io::stderr(), "SKIPPED: needs root to run processes of another user");
    }
    root
}
