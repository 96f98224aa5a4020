//! The simulator against a small plain client: it is faithful where it must be and strict where it should.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

mod cuts;
mod refusals;
mod service;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use futures_util::{SinkExt as _, StreamExt as _};
use netstack_tests::ssm::{
    ApiFailure, Config, Count, Direction, Document, Instance, Operation, Refusal, ResumeAnswer, Simulator,
    What, dial,
};
use serde_json::{Value, json};
use ssm_proxy::ssm::api::{Api, ApiConfig};
use ssm_proxy::ssm::connect::Network;
use ssm_proxy::ssm::handshake::{AcknowledgeContent, CLIENT_VERSION, HandshakeRequest, OpenDataChannel};
use ssm_proxy::ssm::message::{Kind, Message, PayloadType, Uuid};
use ssm_proxy::ssm::proxy::ProxySettings;
use tokio_tungstenite::tungstenite::{self, WebSocket};

#[test]
fn an_echo_comes_back_whole() {
    let simulator = start(Config::fast(), echo());
    let mut client = Client::open(&simulator);
    let sent: Vec<u8> = (0..200_000u32).flat_map(u32::to_be_bytes).collect();
    for piece in sent.chunks(8192) {
        client.send(piece);
    }
    assert!(client.read(sent.len()) == sent);
    assert_eq!(simulator.active_sessions().len(), 1);
    api(&simulator, "TerminateSession", &json!({"SessionId": client.id})).unwrap();
    assert_eq!(client.until_closed(), "");
    assert!(simulator.active_sessions().is_empty());
    simulator.assert_clean();
}

#[test]
fn every_payload_size_arrives() {
    let simulator = start(Config::fast(), echo());
    let mut client = Client::open(&simulator);
    for size in (1..33_000).step_by(499) {
        let sent: Vec<u8> = (0..size).map(|at| (at * 7 + size) as u8).collect();
        client.send(&sent);
        assert!(client.read(size) == sent, "{size}");
    }
    simulator.assert_clean();
}

/// The only test of speed here: at its defaults a lane must be as slow as the real one.
#[test]
fn sessions_are_paced_as_measured_and_scale() {
    // A machine busy with other tests slows a run down, never three of them.
    let fits = |_| {
        let (one, four) = (rates(1)[0], rates(4).iter().sum::<f64>());
        println!("MB/s: one session {one:.3}, four {four:.3}");
        (0.70..=0.95).contains(&one) && (3.4..4.4).contains(&(four / one))
    };
    assert!((0..3).any(fits));
}

/// MB/s downstream of so many sessions at once.
fn rates(sessions: usize) -> Vec<f64> {
    let simulator = start(Config::default(), source());
    let mut clients: Vec<Client> = (0..sessions).map(|_| Client::open(&simulator)).collect();
    for client in &mut clients {
        client.send(b"go");
    }
    let measure = |mut client: Client| {
        client.read(100_000);
        let (began, size) = (Instant::now(), 1_600_000);
        client.read(size);
        size as f64 / began.elapsed().as_secs_f64() / 1e6
    };
    let threads: Vec<_> =
        clients.into_iter().map(|client| std::thread::spawn(move || measure(client))).collect();
    let rates = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    simulator.assert_clean();
    rates
}

#[test]
fn delays_are_what_the_knobs_say() {
    let mut config = Config::fast();
    config.knobs.hop_delay = Duration::from_millis(10);
    let simulator = start(config, echo());
    let mut client = Client::open(&simulator);
    let mut times: Vec<Duration> = (0..15)
        .map(|_| {
            let began = Instant::now();
            client.send(b"x");
            client.read(1);
            began.elapsed()
        })
        .collect();
    times.sort();
    println!("a round trip over four hops of 10 ms: {:?}", times[7]);
    assert!((38.0..80.0).contains(&(times[7].as_secs_f64() * 1000.0)), "{times:?}");
}

#[test]
fn data_before_the_handshake_is_complete_is_acknowledged_and_lost() {
    let mut config = Config::fast();
    config.knobs.agent.complete_delay = Duration::from_millis(400);
    let simulator = start(config, echo());
    let mut client = Client::open_at_once(&simulator);
    let early = client.send(b"early");
    client.until_acknowledged(early);
    client.pass_time(Duration::from_millis(500));
    client.send(b"late");
    assert_eq!(client.read(4), b"late");
    assert_eq!(simulator.count(Count::EarlyLost), 1);
    simulator.assert_clean();
}

#[test]
fn data_before_the_dial_is_done_must_be_sent_again() {
    let mut config = Config::fast();
    config.knobs.agent.dial_delay = Duration::from_millis(400);
    let simulator = start(config, echo());
    let mut client = Client::open_at_once(&simulator);
    client.pass_time(Duration::from_millis(100));
    let sequence = client.send(b"patience");
    client.pass_time(Duration::from_millis(100));
    assert!(client.unacknowledged.contains_key(&sequence));
    client.resend_until_acknowledged(sequence);
    assert_eq!(client.read(8), b"patience");
    assert_eq!(simulator.count(Count::EarlyLost), 0);
    simulator.assert_clean();
}

#[test]
fn a_refused_dial_leaves_silence_or_a_reason() {
    let simulator = start(Config::fast(), refusing());
    let mut client = Client::open_at_once(&simulator);
    client.until(|seen| *seen == Seen::Paused);
    assert_eq!(client.step(Duration::from_millis(200)), Seen::Nothing);
    assert_eq!(simulator.count(Count::DialsFailed), 1);
    assert_eq!(simulator.active_sessions().len(), 1);

    let mut config = Config::fast();
    config.knobs.agent.refusal = Refusal::Explain;
    let simulator = start(config, refusing());
    let mut client = Client::open_at_once(&simulator);
    assert!(client.until_closed().contains("Unable to connect to specified port"));
}

#[test]
fn the_end_of_the_target_ends_the_session_after_its_last_byte() {
    let simulator = start(Config::fast(), serve(|mut stream| drop(stream.write_all(&[7; 5000]))));
    let mut client = Client::open(&simulator);
    assert_eq!(client.read(5000), [7; 5000]);
    assert_eq!(client.until_closed(), "");
    simulator.assert_clean();
}

fn start(mut config: Config, target: SocketAddr) -> Simulator {
    config.dial = dial::to_ports([(742, target)].into());
    Simulator::start(config).unwrap()
}

fn serve(act: impl Fn(TcpStream) + Send + Clone + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            stream.set_nodelay(true).unwrap();
            let act = act.clone();
            std::thread::spawn(move || act(stream));
        }
    });
    address
}

fn echo() -> SocketAddr {
    serve(|mut stream| {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(size @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..size]).is_err() {
                return;
            }
        }
    })
}

/// Sends zeros without end after the first byte it gets.
fn source() -> SocketAddr {
    serve(|mut stream| {
        if let Ok(1..) = stream.read(&mut [0; 16]) {
            while stream.write_all(&[0; 16 * 1024]).is_ok() {}
        }
    })
}

fn refusing() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A client of the data channel that does no more than the tests need.
struct Client {
    socket: Socket,
    session: Value,
    id: String,
    client_id: Uuid,
    next_sequence: i64,
    unacknowledged: BTreeMap<i64, Vec<u8>>,
    expected: i64,
    out_of_order: BTreeMap<i64, (PayloadType, Vec<u8>)>,
    received: VecDeque<u8>,
    is_complete: bool,
    ids: u64,
}

type Socket = WebSocket<TcpStream>;

/// What one websocket message turned out to be.
#[derive(Debug, PartialEq)]
enum Seen {
    Stream,
    Acknowledged(i64),
    Started,
    Paused,
    Closed(String),
    Pong,
    Gone,
    Nothing,
}

impl Client {
    /// Opens a session and waits until the SSM agent must be ready for data.
    fn open(simulator: &Simulator) -> Self {
        let mut client = Self::open_at_once(simulator);
        client.pass_time(Duration::from_millis(50));
        client
    }

    /// Opens a session up to HandshakeComplete.
    fn open_at_once(simulator: &Simulator) -> Self {
        let session = start_session(simulator).unwrap();
        let client_id = Uuid::from_random([9; 16]);
        let mut client = Self {
            socket: connect(simulator, &session, client_id).unwrap(),
            id: session["SessionId"].as_str().unwrap().to_owned(),
            session,
            client_id,
            next_sequence: 0,
            unacknowledged: BTreeMap::new(),
            expected: 0,
            out_of_order: BTreeMap::new(),
            received: VecDeque::new(),
            is_complete: false,
            ids: 0,
        };
        while !client.is_complete {
            assert_ne!(client.step(DEADLINE), Seen::Nothing);
        }
        client
    }

    /// Takes a new websocket and sends all that is not acknowledged again.
    fn resume(&mut self, simulator: &Simulator) {
        self.session = api(simulator, "ResumeSession", &json!({"SessionId": self.id})).unwrap();
        self.socket = connect(simulator, &self.session, self.client_id).unwrap();
        for bytes in self.unacknowledged.values() {
            self.socket.send(tungstenite::Message::binary(bytes.clone())).unwrap();
        }
    }

    fn send(&mut self, payload: &[u8]) -> i64 {
        let sequence = self.next_sequence;
        let bytes = self.message(sequence, payload);
        self.put(sequence, bytes);
        sequence
    }

    fn put(&mut self, sequence: i64, bytes: Vec<u8>) {
        self.next_sequence = sequence + 1;
        self.unacknowledged.insert(sequence, bytes.clone());
        // A broken socket shows when it is read.
        let _ = self.socket.send(tungstenite::Message::binary(bytes));
    }

    fn message(&mut self, sequence: i64, payload: &[u8]) -> Vec<u8> {
        let (kind, payload_type) = (Kind::InputStreamData, PayloadType::OUTPUT);
        Message::new(kind, sequence, self.new_id(), now_ms(), payload_type, payload).to_vec()
    }

    fn acknowledgement(&mut self, sequence: i64, id: Uuid) -> Vec<u8> {
        let json = AcknowledgeContent::new(Kind::OutputStreamData, id, sequence).to_json();
        let (id, none) = (self.new_id(), PayloadType::NONE);
        let mut message = Message::new(Kind::Acknowledge, 0, id, now_ms(), none, json.as_bytes());
        message.flags = 3;
        message.to_vec()
    }

    fn new_id(&mut self) -> Uuid {
        self.ids += 1;
        Uuid::from_random((u128::from(self.ids) << 64 | u128::from(self.ids)).to_be_bytes())
    }

    /// Handles one websocket message, if one comes in time.
    fn step(&mut self, patience: Duration) -> Seen {
        self.socket.get_ref().set_read_timeout(Some(patience)).unwrap();
        match self.socket.read() {
            Ok(tungstenite::Message::Binary(bytes)) => self.handle(&bytes),
            Ok(tungstenite::Message::Pong(_)) => Seen::Pong,
            Ok(tungstenite::Message::Close(_)) => Seen::Gone,
            Ok(other) => panic!("{other:?}"),
            Err(tungstenite::Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => Seen::Nothing,
            Err(_) => Seen::Gone,
        }
    }

    fn handle(&mut self, bytes: &[u8]) -> Seen {
        let message = Message::parse(bytes).unwrap();
        match message.kind {
            Kind::OutputStreamData => {
                self.take(&message);
                Seen::Stream
            }
            Kind::Acknowledge => {
                let content: AcknowledgeContent = serde_json::from_slice(message.payload).unwrap();
                let sequence = content.acknowledged_message_sequence_number;
                self.unacknowledged.remove(&sequence);
                Seen::Acknowledged(sequence)
            }
            Kind::StartPublication => Seen::Started,
            Kind::PausePublication => Seen::Paused,
            Kind::ChannelClosed => {
                let content: Value = serde_json::from_slice(message.payload).unwrap();
                Seen::Closed(content["Output"].as_str().unwrap().to_owned())
            }
            other => panic!("{other:?}"),
        }
    }

    /// Acknowledges a stream message and processes what is in order.
    fn take(&mut self, message: &Message<'_>) {
        assert!(message.digest_fits());
        let acknowledgement = self.acknowledgement(message.sequence, message.id);
        let _ = self.socket.send(tungstenite::Message::binary(acknowledgement));
        if message.sequence >= self.expected {
            let content = (message.payload_type.unwrap(), message.payload.to_vec());
            self.out_of_order.insert(message.sequence, content);
        }
        while let Some((payload_type, payload)) = self.out_of_order.remove(&self.expected) {
            self.expected += 1;
            match payload_type {
                PayloadType::HANDSHAKE_REQUEST => self.answer(&payload),
                PayloadType::HANDSHAKE_COMPLETE => self.is_complete = true,
                PayloadType::OUTPUT => self.received.extend(payload),
                other => panic!("{other:?}"),
            }
        }
    }

    fn answer(&mut self, payload: &[u8]) {
        let request: HandshakeRequest = serde_json::from_slice(payload).unwrap();
        let answer = request.answer(CLIENT_VERSION).0.to_json();
        let (kind, payload_type) = (Kind::InputStreamData, PayloadType::HANDSHAKE_RESPONSE);
        let message = Message::new(kind, 0, self.new_id(), now_ms(), payload_type, answer.as_bytes());
        self.put(0, message.to_vec());
    }

    fn until(&mut self, wanted: impl Fn(&Seen) -> bool) -> Seen {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let seen = self.step(Duration::from_millis(100));
            if wanted(&seen) {
                return seen;
            }
            assert!(Instant::now() < deadline, "waited too long, last saw {seen:?}");
        }
    }

    fn until_acknowledged(&mut self, sequence: i64) {
        self.until(|seen| *seen == Seen::Acknowledged(sequence));
    }

    fn until_closed(&mut self) -> String {
        match self.until(|seen| matches!(seen, Seen::Closed(_))) {
            Seen::Closed(output) => output,
            other => panic!("{other:?}"),
        }
    }

    fn resend_until_acknowledged(&mut self, sequence: i64) {
        let deadline = Instant::now() + DEADLINE;
        while let Some(bytes) = self.unacknowledged.get(&sequence).cloned() {
            assert!(Instant::now() < deadline, "{sequence} is never acknowledged");
            if self.step(Duration::from_millis(150)) == Seen::Nothing {
                let _ = self.socket.send(tungstenite::Message::binary(bytes));
            }
        }
    }

    /// Handles what comes for so long.
    fn pass_time(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            self.step(left.max(Duration::from_millis(1)));
        }
    }

    fn read(&mut self, size: usize) -> Vec<u8> {
        let deadline = Instant::now() + DEADLINE;
        while self.received.len() < size {
            self.step(Duration::from_millis(100));
            assert!(Instant::now() < deadline, "{} of {size} bytes came", self.received.len());
        }
        self.received.drain(..size).collect()
    }
}

fn close_code(socket: &mut Socket) -> Option<u16> {
    socket.get_ref().set_read_timeout(Some(DEADLINE)).unwrap();
    loop {
        match socket.read() {
            Ok(tungstenite::Message::Close(frame)) => return frame.map(|frame| frame.code.into()),
            Ok(_) => {}
            Err(_) => return None,
        }
    }
}

fn start_session(simulator: &Simulator) -> Result<Value, String> {
    let body = json!({
        "Target": "i-0123456789abcdef0", "DocumentName": SSH,
        "Parameters": {"portNumber": ["742"]}, "Reason": "test",
    });
    api(simulator, "StartSession", &body)
}

/// Calls the API. The error is the `__type`.
fn api(simulator: &Simulator, operation: &str, body: &Value) -> Result<Value, String> {
    let body = body.to_string();
    let url = format!("{}/", simulator.endpoint());
    let plain = [
        ("content-type".to_owned(), "application/x-amz-json-1.1".to_owned()),
        ("x-amz-target".to_owned(), format!("AmazonSSM.{operation}")),
    ];
    let headers = signed(simulator, "POST", &url, "ssm", &plain, body.as_bytes());
    let mut request = format!("POST / HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += &format!("\r\n{body}");
    let mut stream = TcpStream::connect(simulator.address()).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let body: Value = serde_json::from_str(body).unwrap();
    if head.starts_with("HTTP/1.1 200") { Ok(body) } else { Err(body["__type"].as_str().unwrap().to_owned()) }
}

/// Opens a websocket and sends the first text frame.
fn connect(simulator: &Simulator, session: &Value, client_id: Uuid) -> Result<Socket, String> {
    let url = session["StreamUrl"].as_str().unwrap();
    let headers = signed(simulator, "GET", url, "ssmmessages", &[], b"");
    let mut socket = upgrade(simulator, url, &headers)?;
    let token = session["TokenValue"].as_str().unwrap();
    let text = OpenDataChannel::client(Uuid::from_random([5; 16]), token, client_id).to_json();
    socket.send(tungstenite::Message::text(text)).unwrap();
    Ok(socket)
}

fn upgrade(simulator: &Simulator, url: &str, headers: &[(String, String)]) -> Result<Socket, String> {
    let mut request = tungstenite::client::IntoClientRequest::into_client_request(url).unwrap();
    for (name, value) in headers.iter().filter(|(name, _)| name != "host") {
        let name: tungstenite::http::HeaderName = name.parse().unwrap();
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let stream = TcpStream::connect(simulator.address()).unwrap();
    stream.set_nodelay(true).unwrap();
    tungstenite::client(request, stream).map(|(socket, _)| socket).map_err(|error| error.to_string())
}

/// The host, these headers, and those that sign them.
fn signed(
    simulator: &Simulator,
    method: &str,
    url: &str,
    service: &str,
    headers: &[(String, String)],
    body: &[u8],
) -> Vec<(String, String)> {
    let env: HashMap<String, String> = simulator.env().into_iter().collect();
    let token = env.get("AWS_SESSION_TOKEN").cloned();
    let (key, secret) = (&env["AWS_ACCESS_KEY_ID"], &env["AWS_SECRET_ACCESS_KEY"]);
    let identity = Credentials::new(key, secret, token, None, "test").into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(&env["AWS_REGION"])
        .name(service)
        .time(SystemTime::now())
        .settings(SigningSettings::default())
        .build()
        .unwrap()
        .into();
    let mut all = vec![("host".to_owned(), simulator.address().to_string())];
    all.extend_from_slice(headers);
    let borrowed = all.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let request = SignableRequest::new(method, url, borrowed, SignableBody::Bytes(body)).unwrap();
    let (instructions, _) = sign(request, &params).unwrap().into_parts();
    let added = instructions.headers().map(|(name, value)| (name.to_owned(), value.to_owned()));
    let added: Vec<_> = added.collect();
    all.extend(added);
    all
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

const SSH: &str = "AWS-StartSSHSession";

const DEADLINE: Duration = Duration::from_secs(20);
