//! Hostile and broken clients: what they do is closed and counted, and nobody else is touched.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod probe;
mod rig;

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use agent::wire::hello::{ClientHandshake, DenyReason, HelloError, Ticket};
use agent::wire::trunk::LaneId;
use agent::wire::trunk::segment::{Frame, MAX_BODY, Type};
use probe::Probe;
use rig::{Agent, Client, config, echo_target, greet, params, run, tcp};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Somebody else's trunk, whose flow is yet to be.
struct Neighbour {
    client: Client,
}

impl Neighbour {
    async fn attach(agent: &Agent) -> Self {
        let (lane, welcomed) = greet(agent.addresses[0], params(1, None)).await.unwrap();
        let mut client = Client::start(Probe::wanting(tcp(echo_target()), b"still here".to_vec()));
        client.attach(LaneId(1), lane, welcomed).await;
        Self { client }
    }

    /// It works as if nothing had been.
    async fn goes_on_untouched(mut self) {
        let probe = self.client.probe_when(|probe| probe.finished).await;
        assert_eq!(probe.received, b"still here");
        self.client.close().await;
    }
}

/// Waits until the agent has closed the connection, whatever it said before.
async fn closed(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while matches!(stream.read(&mut buffer).await, Ok(1..)) {}
}

fn wire(frames: &[Frame<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    frames.iter().for_each(|frame| frame.encode(&mut out));
    out
}

#[test]
fn what_breaks_the_rules_of_a_lane_closes_it_and_the_trunk_takes_another() {
    let segment = |offset, sequence, bytes| Frame::Segment { offset, sequence, bytes };
    let ack = |cum, sequence| Frame::Ack { cum, credit: u64::MAX, sequence, arrived: 0, wanted: 1 };
    // Beyond a gap, so that nothing of it is taken for the mux's.
    let held = segment(9, 1, b"held");
    let absurd = (MAX_BODY as u32 + 1).to_be_bytes();
    let bad = [
        [vec![Type::Segment as u8], absurd[1..].to_vec(), vec![0; 64]].concat(),
        [vec![Type::Segment as u8], vec![0xff; 64]].concat(),
        vec![0x77; 64],
        wire(&[segment(1 << 40, 1, b"out of the window")]),
        wire(&[segment(u64::MAX - 3, 1, b"beyond all")]),
        wire(&[segment(9, 7, b"where one is missing")]),
        wire(&[held, segment(10, 2, b"other bytes")]),
        wire(&[held, segment(8, 2, b"of more than was held")]),
        wire(&[ack(1 << 30, 0)]),
        wire(&[ack(0, 99)]),
        wire(&[Frame::Hello(b"another one")]),
        wire(&[Frame::Greeting(b"from the wrong side")]),
    ];
    run(async move {
        let agent = Agent::start(config()).await;
        let neighbour = Neighbour::attach(&agent).await;
        let (mut lane, welcomed) = greet(agent.addresses[0], params(100, None)).await.unwrap();
        for (number, bytes) in bad.into_iter().enumerate() {
            lane.write_all(&bytes).await.unwrap();
            closed(lane).await;
            let next = params(101 + number as u64, Some(welcomed.ticket.clone()));
            let again = greet(agent.addresses[0], next).await.unwrap();
            assert!(again.1.resumed, "after bad bytes {number}");
            lane = again.0;
        }
        neighbour.goes_on_untouched().await;
        agent.stop().await;
    });
}

#[test]
fn a_hello_heard_elsewhere_and_a_wrong_secret_are_worth_nothing() {
    run(async {
        let agent = Agent::start(config()).await;
        let neighbour = Neighbour::attach(&agent).await;
        let address = agent.addresses[0];
        let (mut first, hello, ticket) = greet_and_listen(address).await;

        let mut replayed = TcpStream::connect(address).await.unwrap();
        replayed.write_all(&hello).await.unwrap();
        closed(replayed).await;

        let (_other, welcomed) = greet(address, params(3, None)).await.unwrap();
        let mut stolen = welcomed.ticket.clone();
        stolen.id = ticket.id;
        let denied = greet(address, params(4, Some(stolen))).await.err().unwrap();
        assert!(matches!(denied, HelloError::Denied { reason: DenyReason::Proof, .. }), "{denied}");

        // On its own lane a hello may come again; the real owner's word still holds.
        first.write_all(&hello).await.unwrap();
        let mut mine = params(5, Some(ticket));
        mine.live_lanes = vec![LaneId(2)];
        assert!(greet(address, mine).await.unwrap().1.resumed);
        let still = tokio::time::timeout(Duration::from_millis(50), async {
            while first.read(&mut [0; 64]).await.unwrap() > 0 {}
        });
        assert!(still.await.is_err(), "the first lane was closed");
        neighbour.goes_on_untouched().await;
        agent.stop().await;
    });
}

/// A lane, the very bytes of its hello, and its trunk's ticket.
async fn greet_and_listen(address: SocketAddr) -> (TcpStream, Vec<u8>, Ticket) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut handshake = ClientHandshake::new(params(2, None));
    let (mut buffer, mut hello) = ([0; 4096], Vec::new());
    loop {
        let length = stream.read(&mut buffer).await.unwrap();
        if let Some(welcomed) = handshake.handle_bytes(&buffer[..length]).unwrap() {
            return (stream, hello, welcomed.ticket);
        }
        if let Some(record) = handshake.poll_transmit() {
            stream.write_all(&record).await.unwrap();
            hello = record;
        }
    }
}

#[test]
fn ten_thousand_half_open_lanes_cost_little_and_keep_nobody_from_his_trunk() {
    let limit = getrlimit(Resource::Nofile);
    let enough = limit.maximum.map_or(COUNT as u64 * 2, |most| most.min(COUNT as u64 * 2));
    setrlimit(Resource::Nofile, Rlimit { current: Some(enough), ..limit }).unwrap();
    run(async {
        let agent = Agent::start(config()).await;
        let neighbour = Neighbour::attach(&agent).await;
        let before = anonymous();
        let address = agent.addresses[0];
        let (began, mut half_open) = (Instant::now(), Vec::new());
        for _ in 0..COUNT {
            let socket = Socket::new(Domain::for_address(address), socket2::Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            // Under way is as far as most of them get.
            let _ = socket.connect(&address.into());
            half_open.push(socket);
            if half_open.len().is_multiple_of(100) {
                tokio::task::yield_now().await;
            }
        }
        let greeted =
            half_open.iter().filter(|socket| socket.peek(&mut [std::mem::MaybeUninit::uninit(); 1]).is_ok());
        let greeted = greeted.count();
        let grown = anonymous().saturating_sub(before);
        eprintln!("{COUNT} in {:?}: {greeted} greeted, {grown} bytes more", began.elapsed());
        assert!(greeted <= 64, "{greeted} were greeted");
        assert!(grown < 8 << 20, "{grown} bytes");
        neighbour.goes_on_untouched().await;
        // Those who stay silent lose their places; those who go make room at once.
        drop(half_open);
        assert!(greet(address, params(2, None)).await.is_ok());
        agent.stop().await;
    });
}

const COUNT: usize = 10_000;

/// What this process holds that is no file's.
fn anonymous() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
