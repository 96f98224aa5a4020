//! The agent over real sockets: handshakes, whole flows, parking, limits.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod probe;
mod rig;

use std::io::{Read, Write};
use std::net::TcpListener as StdListener;
use std::time::Duration;

use agent::admission::Admission;
use agent::engine::Outcome;
use agent::parked::Limits;
use agent::serve::{Config, Listen, Server, StartError};
use agent::wire::hello::{DenyReason, HelloError, Psk};
use agent::wire::open::Refusal;
use agent::wire::trunk::LaneId;
use probe::Probe;
use rig::{Agent, Client, config, echo_target, greet, params, run, tcp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[test]
fn it_listens_on_both_families_or_not_at_all() {
    run(async {
        let server = Server::bind(&Listen::Loopback(0), config()).await.unwrap();
        let addresses = server.local_addrs();
        assert_eq!(addresses.len(), 2);
        assert!(addresses[0].is_ipv4() && addresses[1].is_ipv6());
        assert_eq!(addresses[0].port(), addresses[1].port());

        for taken in ["127.0.0.1:0", "[::1]:0"] {
            let other = StdListener::bind(taken).unwrap().local_addr().unwrap();
            let holder = StdListener::bind(other).unwrap();
            let error = Server::bind(&Listen::Loopback(other.port()), config()).await.err().unwrap();
            assert!(matches!(error, StartError::Listen { address, .. } if address == other), "{error}");
            assert!(error.to_string().contains("another agent may be running"), "{error}");
            drop(holder);
        }
        let open = Listen::Addresses(vec!["0.0.0.0:0".parse().unwrap()]);
        assert!(matches!(Server::bind(&open, config()).await, Err(StartError::KeyNeeded { .. })));
    });
}

#[test]
fn a_flow_goes_all_the_way_over_each_family() {
    run(async {
        let agent = Agent::start(config()).await;
        for address in agent.addresses.clone() {
            let target = echo_target();
            let (stream, welcomed) = greet(address, params(1, None)).await.unwrap();
            assert!(!welcomed.resumed);
            let mut client = Client::start(Probe::wanting(tcp(target), b"hello".to_vec()));
            client.attach(LaneId(1), stream, welcomed).await;
            let probe = client.probe_when(|probe| probe.finished).await;
            assert_eq!(probe.remote, Some(target));
            assert_eq!(probe.received, b"hello");
            client.close().await;
        }
        agent.stop().await;
    });
}

#[test]
fn what_cannot_be_dialled_is_told_with_its_reason() {
    let free = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    run(async move {
        let agent = Agent::start(config()).await;
        let metadata = "169.254.169.254:80".parse().unwrap();
        for (target, expected) in [(free, Refusal::Refused), (metadata, Refusal::Denied)] {
            let (stream, welcomed) = greet(agent.addresses[0], params(1, None)).await.unwrap();
            let mut client = Client::start(Probe::wanting(tcp(target), Vec::new()));
            client.attach(LaneId(1), stream, welcomed).await;
            let probe = client.probe_when(|probe| probe.refused.is_some()).await;
            assert_eq!(probe.refused, Some(expected));
            client.close().await;
        }
        agent.stop().await;
    });
}

#[test]
fn a_flow_outlives_its_lane() {
    run(async {
        let agent = Agent::start(config()).await;
        let (target, go_on) = two_word_target();
        let (stream, welcomed) = greet(agent.addresses[0], params(1, None)).await.unwrap();
        let ticket = welcomed.ticket.clone();
        let mut client = Client::start(Probe::wanting(tcp(target), Vec::new()));
        let cut = client.attach(LaneId(1), stream, welcomed).await;
        client.probe_when(|probe| probe.received == b"one ").await;
        cut.shutdown(std::net::Shutdown::Both).unwrap();
        go_on.send(()).unwrap();

        let (stream, welcomed) = greet(agent.addresses[1], params(2, Some(ticket))).await.unwrap();
        assert!(welcomed.resumed);
        client.attach(LaneId(2), stream, welcomed).await;
        let probe = client.probe_when(|probe| probe.finished).await;
        assert_eq!(probe.received, b"one two");
        client.close().await;
        agent.stop().await;
    });
}

#[test]
fn a_parked_trunk_is_given_up_after_the_park_time_and_its_targets_are_reset() {
    run(async {
        let limits = Limits { park: Duration::from_millis(200), ..Limits::default() };
        let agent = Agent::start(Config { limits, ..config() }).await;
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let (stream, welcomed) = greet(agent.addresses[0], params(1, None)).await.unwrap();
        let ticket = welcomed.ticket.clone();
        let mut client = Client::start(Probe::holding(tcp(target)));
        let cut = client.attach(LaneId(1), stream, welcomed).await;
        client.probe_when(|probe| probe.remote.is_some()).await;
        let (mut at_target, _) = listener.accept().unwrap();
        cut.shutdown(std::net::Shutdown::Both).unwrap();
        let end = tokio::task::spawn_blocking(move || at_target.read(&mut [0; 1]).unwrap_err().kind());
        assert_eq!(end.await.unwrap(), std::io::ErrorKind::ConnectionReset);
        let denied = greet(agent.addresses[0], params(2, Some(ticket))).await.err().unwrap();
        assert!(matches!(denied, HelloError::Denied { reason: DenyReason::UnknownTrunk, .. }), "{denied}");
        agent.stop().await;
    });
}

#[test]
fn lanes_that_the_client_no_longer_names_are_closed() {
    run(async {
        let agent = Agent::start(config()).await;
        let (mut first, welcomed) = greet(agent.addresses[0], params(1, None)).await.unwrap();
        let ticket = welcomed.ticket;
        let mut second = params(2, Some(ticket.clone()));
        second.live_lanes = vec![LaneId(1)];
        let (mut second, _) = greet(agent.addresses[0], second).await.unwrap();
        let mut third = params(3, Some(ticket));
        third.live_lanes = vec![LaneId(2)];
        let (_third, _) = greet(agent.addresses[0], third).await.unwrap();
        assert_eq!(first.read_to_end(&mut Vec::new()).await.unwrap(), 0);
        let still = tokio::time::timeout(Duration::from_millis(50), second.read(&mut [0; 1])).await;
        assert!(still.is_err(), "the second lane is still wanted");
        agent.stop().await;
    });
}

#[test]
fn a_goodbye_ends_the_trunk_at_the_agent() {
    run(async {
        let agent = Agent::start(config()).await;
        let (stream, welcomed) = greet(agent.addresses[0], params(1, None)).await.unwrap();
        let ticket = welcomed.ticket.clone();
        let mut client = Client::start(Probe::default());
        client.attach(LaneId(1), stream, welcomed).await;
        assert_eq!(client.close().await, Outcome::Closed);
        let denied = loop {
            match greet(agent.addresses[0], params(2, Some(ticket.clone()))).await {
                // The agent may not have read the goodbye yet.
                Ok(_) => tokio::task::yield_now().await,
                Err(denied) => break denied,
            }
        };
        assert!(matches!(denied, HelloError::Denied { reason: DenyReason::UnknownTrunk, .. }), "{denied}");
        agent.stop().await;
    });
}

#[test]
fn the_agents_end_is_told_to_its_clients() {
    run(async {
        let agent = Agent::start(config()).await;
        let (stream, welcomed) = greet(agent.addresses[0], params(1, None)).await.unwrap();
        let mut client = Client::start(Probe::default());
        client.attach(LaneId(1), stream, welcomed).await;
        client.report().await;
        agent.stop().await;
        assert!(matches!(client.ended().await, Outcome::Goodbye { .. }));
    });
}

#[test]
fn only_those_who_know_the_shared_key_get_in() {
    let psk = |content: &[u8]| Some(Psk::from_file_content(content).unwrap());
    run(async move {
        let agent = Agent::start(Config { psk: psk(b"0123456789abcdef"), ..config() }).await;
        let with = |psk| {
            let mut params = params(1, None);
            params.psk = psk;
            params
        };
        assert!(greet(agent.addresses[0], with(psk(b"0123456789abcdef\n"))).await.is_ok());
        let wrong = greet(agent.addresses[0], with(psk(b"another key of some length"))).await.err().unwrap();
        assert!(matches!(wrong, HelloError::Denied { reason: DenyReason::Proof, .. }), "{wrong}");
        let none = greet(agent.addresses[0], with(None)).await.err().unwrap();
        assert_eq!(none, HelloError::KeyRequired);
        agent.stop().await;
    });
}

#[test]
fn a_trunk_more_than_there_may_be_is_told_so() {
    run(async {
        let limits = Limits { trunks: 1, ..Limits::default() };
        let agent = Agent::start(Config { limits, ..config() }).await;
        let (stream, welcomed) = greet(agent.addresses[0], params(1, None)).await.unwrap();
        let mut client = Client::start(Probe::wanting(tcp(echo_target()), b"x".to_vec()));
        client.attach(LaneId(1), stream, welcomed).await;
        client.probe_when(|probe| probe.finished).await;
        let denied = greet(agent.addresses[0], params(2, None)).await.err().unwrap();
        assert!(matches!(denied, HelloError::Denied { reason: DenyReason::TooManyTrunks, .. }), "{denied}");
        client.close().await;
        agent.stop().await;
    });
}

#[test]
fn a_user_who_is_not_allowed_hears_nothing() {
    run(async {
        let nobody_we_are = Admission::Uids(vec![rustix::process::geteuid().as_raw() + 1]);
        let agent = Agent::start(Config { admission: nobody_we_are, ..config() }).await;
        for address in &agent.addresses {
            let mut stream = TcpStream::connect(address).await.unwrap();
            assert!(matches!(stream.read(&mut [0; 64]).await, Ok(0) | Err(_)));
        }
        agent.stop().await;
    });
}

#[test]
fn garbage_closes_its_connection_and_nothing_else() {
    run(async {
        let agent = Agent::start(config()).await;
        let (lane, welcomed) = greet(agent.addresses[0], params(1, None)).await.unwrap();
        let mut client = Client::start(Probe::wanting(tcp(echo_target()), b"still here".to_vec()));
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 5000], &[0xff; 5000]] {
            let mut stream = TcpStream::connect(agent.addresses[0]).await.unwrap();
            stream.write_all(garbage).await.unwrap();
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all).await;
        }
        client.attach(LaneId(1), lane, welcomed).await;
        let probe = client.probe_when(|probe| probe.finished).await;
        assert_eq!(probe.received, b"still here");
        client.close().await;
        agent.stop().await;
    });
}

#[test]
fn silent_connections_beyond_the_limit_wait_and_keep_nobody_out_for_good() {
    run(async {
        let agent = Agent::start(config()).await;
        let mut silent = Vec::new();
        for _ in 0..64 {
            let mut stream = TcpStream::connect(agent.addresses[0]).await.unwrap();
            stream.read_exact(&mut [0; 8]).await.unwrap();
            silent.push(stream);
        }
        let mut late = TcpStream::connect(agent.addresses[0]).await.unwrap();
        let mut buffer = [0; 8];
        let early = tokio::time::timeout(Duration::from_millis(100), late.read(&mut buffer)).await;
        assert!(early.is_err(), "greeted beyond the limit");
        // The other family has places of its own.
        assert!(greet(agent.addresses[1], params(1, None)).await.is_ok());
        silent.pop();
        late.read_exact(&mut buffer).await.unwrap();
        agent.stop().await;
    });
}

/// Says "one ", and "two" when told to.
fn two_word_target() -> (std::net::SocketAddr, std::sync::mpsc::Sender<()>) {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (go_on, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        stream.write_all(b"one ").unwrap();
        wait.recv().unwrap();
        stream.write_all(b"two").unwrap();
    });
    (address, go_on)
}
