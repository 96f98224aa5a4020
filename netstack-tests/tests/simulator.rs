//! The simulator against a small plain client: it is faithful where it must be and strict where it should.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

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

#[test]
fn a_cut_of_the_ssm_agent_can_write_a_whole_message_twice() {
    for (chance, copies) in [(1.0, 2), (0.0, 1)] {
        let mut config = Config::fast();
        config.knobs.repeat_after_agent_cut = chance;
        let (told, written) = mpsc::channel();
        let target = serve(move |mut stream| {
            let mut buffer = [0; 64 * 1024];
            while let Ok(size @ 1..) = stream.read(&mut buffer) {
                told.send(buffer[..size].to_vec()).unwrap();
            }
        });
        let simulator = start(config, target);
        let mut client = Client::open(&simulator);
        let first = client.send(b"first.");
        client.until_acknowledged(first);
        assert!(simulator.cut_agent(&client.id));
        let second = client.send(b"second.");
        client.resend_until_acknowledged(second);
        let third = client.send(b"third.");
        client.until_acknowledged(third);

        let wanted = format!("first.{}third.", "second.".repeat(copies));
        let mut all = Vec::new();
        while all.len() < wanted.len() {
            all.extend(written.recv_timeout(DEADLINE).unwrap());
        }
        assert_eq!(String::from_utf8(all).unwrap(), wanted);
        assert_eq!(simulator.count(Count::WrittenTwice), copies as u64 - 1);
        simulator.assert_clean();
    }
}

#[test]
fn a_client_that_resumes_and_resends_loses_nothing_over_cuts() {
    let simulator = start(Config::fast(), echo());
    let mut client = Client::open(&simulator);
    let sent: Vec<u8> = (0..60_000u32).flat_map(u32::to_be_bytes).collect();
    for (number, piece) in sent.chunks(4000).enumerate() {
        let sequence = client.send(piece);
        match number {
            10 => assert!(simulator.cut_client(&client.id)),
            20 => assert!(simulator.cut_client_abruptly(&client.id)),
            30 => assert!(simulator.cut_agent(&client.id)),
            _ => {}
        }
        if matches!(number, 10 | 20) {
            client.until(|seen| *seen == Seen::Gone);
            client.resume(&simulator);
        }
        client.resend_until_acknowledged(sequence);
    }
    assert!(client.read(sent.len()) == sent);
    assert_eq!(simulator.count(Count::ClientConnects), 3);
    assert_eq!(simulator.count(Count::AgentConnects), 2);
    simulator.assert_clean();
}

#[test]
fn lost_messages_come_again_ten_a_second() {
    let simulator = start(Config::fast(), source());
    let mut client = Client::open(&simulator);
    simulator.drop_next(&client.id, Direction::Down, What::Stream, 10);
    client.send(b"go");
    let began = Instant::now();
    client.read(64 * 1024);
    let took = began.elapsed();
    assert!((0.8..4.0).contains(&took.as_secs_f64()), "{took:?}");
    assert!(simulator.count(Count::DownResends) >= 10);
    simulator.assert_clean();
}

#[test]
fn a_gateway_that_doubles_and_shuffles_only_delays() {
    let mut config = Config::fast();
    config.knobs.down.duplicate = 0.2;
    config.knobs.down.reorder = 0.1;
    config.knobs.down.reorder_distance = 8;
    config.knobs.up.duplicate = 0.2;
    let simulator = start(config, echo());
    let mut client = Client::open(&simulator);
    let sent: Vec<u8> = (0..100_000u32).flat_map(u32::to_be_bytes).collect();
    for piece in sent.chunks(1000) {
        client.send(piece);
    }
    assert!(client.read(sent.len()) == sent);
    assert!(simulator.count(Count::Duplicated) > 10 && simulator.count(Count::Reordered) > 10);
    simulator.assert_clean();
}

#[test]
fn a_token_serves_once() {
    let simulator = start(Config::fast(), echo());
    let session = start_session(&simulator).unwrap();
    let _first = connect(&simulator, &session, Uuid::from_random([1; 16])).unwrap();
    let mut second = connect(&simulator, &session, Uuid::from_random([1; 16])).unwrap();
    assert_eq!(close_code(&mut second), Some(1008));
    assert!(simulator.violations()[0].contains("second time"), "{:?}", simulator.violations());
}

#[test]
fn an_expired_token_is_refused() {
    let mut config = Config::fast();
    config.knobs.token_life = Duration::ZERO;
    let simulator = start(config, echo());
    let session = start_session(&simulator).unwrap();
    let mut socket = connect(&simulator, &session, Uuid::from_random([1; 16])).unwrap();
    assert_eq!(close_code(&mut socket), Some(1008));
    simulator.assert_clean();
}

#[test]
fn a_stale_cell_number_is_refused() {
    let simulator = start(Config::fast(), echo());
    let client = Client::open(&simulator);
    let mut resumed = api(&simulator, "ResumeSession", &json!({"SessionId": client.id})).unwrap();
    assert_ne!(resumed["StreamUrl"], client.session["StreamUrl"]);
    resumed["StreamUrl"] = client.session["StreamUrl"].clone();
    let error = connect(&simulator, &resumed, client.client_id).unwrap_err();
    assert!(error.contains("400"), "{error}");
    assert!(simulator.violations()[0].contains("cell-number"), "{:?}", simulator.violations());
}

#[test]
fn an_unsigned_or_wrongly_signed_upgrade_is_refused() {
    let simulator = start(Config::fast(), echo());
    let session = start_session(&simulator).unwrap();
    let url = session["StreamUrl"].as_str().unwrap();
    let error = upgrade(&simulator, url, &[]).unwrap_err();
    assert!(error.contains("403"), "{error}");
    assert!(simulator.violations()[0].contains("not signed"), "{:?}", simulator.violations());

    let headers = signed(&simulator, "GET", url, "ssm", &[], b"");
    upgrade(&simulator, url, &headers).unwrap_err();
    assert!(simulator.violations()[1].contains("credential scope"), "{:?}", simulator.violations());

    let mut headers = signed(&simulator, "GET", url, "ssmmessages", &[], b"");
    let (_, authorization) = headers.iter_mut().find(|(name, _)| name == "authorization").unwrap();
    let last = authorization.pop().unwrap();
    authorization.push(if last == '0' { '1' } else { '0' });
    upgrade(&simulator, url, &headers).unwrap_err();
    assert!(simulator.violations()[2].contains("does not fit"), "{:?}", simulator.violations());
}

#[test]
fn broken_messages_are_caught() {
    type Break = fn(&mut Client) -> Vec<u8>;
    let cases: [(&str, Break); 5] = [
        ("digest", |client| {
            let mut bytes = client.message(1, b"x");
            bytes[80] ^= 1;
            bytes
        }),
        ("where 1 was the next one", |client| client.message(2, b"x")),
        ("empty payload", |client| client.message(1, b"")),
        ("never sent", |client| client.acknowledgement(77, Uuid::from_random([3; 16]))),
        ("malformed", |_| vec![0; 50]),
    ];
    for (needle, broken) in cases {
        let simulator = start(Config::fast(), echo());
        let mut client = Client::open(&simulator);
        let bytes = broken(&mut client);
        client.socket.send(tungstenite::Message::binary(bytes)).unwrap();
        client.until(|seen| matches!(seen, Seen::Gone | Seen::Closed(_)));
        let violations = simulator.violations();
        assert!(violations.iter().any(|text| text.contains(needle)), "{needle}: {violations:?}");
        assert!(catch_unwind(AssertUnwindSafe(|| simulator.assert_clean())).is_err());
        assert!(simulator.active_sessions().is_empty());
    }
}

#[test]
fn a_message_that_is_too_big_closes_the_websocket_with_1009() {
    let mut config = Config::fast();
    config.knobs.max_message = 4096;
    let simulator = start(config, echo());
    let mut client = Client::open(&simulator);
    let sequence = client.send(&[1; 8192]);
    assert_eq!(close_code(&mut client.socket), Some(1009));
    assert_eq!(simulator.count(Count::TooBig), 1);
    client.unacknowledged.remove(&sequence);
    client.next_sequence = sequence;
    client.resume(&simulator);
    client.send(b"small");
    assert_eq!(client.read(5), b"small");
    simulator.assert_clean();
}

#[test]
fn sessions_end_by_idleness_and_by_age() {
    for by_age in [false, true] {
        let mut config = Config::fast();
        if by_age {
            config.knobs.max_duration = Some(Duration::from_millis(400));
        } else {
            config.knobs.idle_timeout = Some(Duration::from_millis(400));
        }
        let simulator = start(config, source());
        let mut client = Client::open(&simulator);
        let output = client.until_closed();
        assert!(output.contains(if by_age { "maximum duration" } else { "inactivity" }), "{output}");
        let resumed = api(&simulator, "ResumeSession", &json!({"SessionId": client.id})).unwrap();
        assert!(resumed.get("TokenValue").is_none());
        simulator.assert_clean();
    }
}

#[test]
fn a_black_hole_is_silent_and_a_new_websocket_goes_on() {
    let simulator = start(Config::fast(), echo());
    let mut client = Client::open(&simulator);
    assert!(simulator.black_hole_client(&client.id));
    let sequence = client.send(b"into the void");
    client.pass_time(Duration::from_millis(200));
    assert!(client.unacknowledged.contains_key(&sequence));
    client.resume(&simulator);
    client.resend_until_acknowledged(sequence);
    assert_eq!(client.read(13), b"into the void");
    simulator.assert_clean();
}

#[test]
fn the_ssm_agent_leaves_a_black_hole_when_it_notices() {
    let mut config = Config::fast();
    config.knobs.agent.dead_after = Duration::from_millis(300);
    let simulator = start(config, echo());
    let mut client = Client::open(&simulator);
    assert!(simulator.black_hole_agent(&client.id));
    let sequence = client.send(b"hello?");
    client.resend_until_acknowledged(sequence);
    assert_eq!(client.read(6), b"hello?");
    assert_eq!(simulator.count(Count::AgentConnects), 2);
    simulator.assert_clean();
}

#[test]
fn pings_are_answered_unless_pongs_are_suppressed() {
    let simulator = start(Config::fast(), echo());
    let mut client = Client::open(&simulator);
    client.socket.send(tungstenite::Message::Ping("keepalive".into())).unwrap();
    client.until(|seen| *seen == Seen::Pong);
    simulator.knobs(|knobs| knobs.suppress_pongs = true);
    client.socket.send(tungstenite::Message::Ping("keepalive".into())).unwrap();
    assert_eq!(client.step(Duration::from_millis(200)), Seen::Nothing);
    let sequence = client.send(b"still here");
    client.until_acknowledged(sequence);
    simulator.assert_clean();
}

#[test]
fn recycling_closes_with_bye() {
    let mut config = Config::fast();
    config.knobs.client_recycle = Some(Duration::from_millis(400));
    let simulator = start(config, echo());
    let mut client = Client::open(&simulator);
    assert_eq!(close_code(&mut client.socket), Some(1000));
    client.resume(&simulator);
    client.send(b"on");
    assert_eq!(client.read(2), b"on");
    simulator.assert_clean();
}

#[test]
fn the_api_fails_as_scripted_and_as_it_should() {
    let mut config = Config::fast();
    config.documents.push(Document::pinned("Company-Proxy", 742));
    let mut offline = Instance::named("i-0ffffffffffffffff", "offline");
    offline.online = false;
    config.instances.push(offline);
    let simulator = start(config, echo());
    let start = |body: Value| api(&simulator, "StartSession", &body);
    let target = "i-0123456789abcdef0";
    let failure = |body: Value| start(body).unwrap_err();

    assert_eq!(failure(json!({"Target": "i-0ffffffffffffffff", "DocumentName": SSH})), "TargetNotConnected");
    assert_eq!(failure(json!({"Target": "i-1", "DocumentName": SSH})), "TargetNotConnected");
    assert_eq!(failure(json!({"Target": target, "DocumentName": "Nobody"})), "InvalidDocument");
    let pinned = json!({"Target": target, "DocumentName": "Company-Proxy"});
    let mut wrong_port = pinned.clone();
    wrong_port["Parameters"] = json!({"portNumber": ["22"]});
    assert_eq!(failure(wrong_port), "InvalidParameters");
    start(pinned).unwrap();
    let unknown = api(&simulator, "ResumeSession", &json!({"SessionId": "no-1"}));
    assert_eq!(unknown.unwrap_err(), "DoesNotExistException");

    simulator.fail_next(Operation::StartSession, ApiFailure::Throttling);
    assert_eq!(start_session(&simulator).unwrap_err(), "ThrottlingException");
    let session = start_session(&simulator).unwrap();
    simulator.knobs(|knobs| knobs.resume = ResumeAnswer::Fail(ApiFailure::AccessDenied));
    let resumed = api(&simulator, "ResumeSession", &json!({"SessionId": session["SessionId"]}));
    assert_eq!(resumed.unwrap_err(), "AccessDeniedException");

    simulator.expire_credentials();
    assert_eq!(start_session(&simulator).unwrap_err(), "ExpiredTokenException");
    simulator.add_credentials("AKIANEW", "new secret", Some("session token"));
    start_session(&simulator).unwrap();
    assert_eq!(simulator.calls(Operation::StartSession), 9);
    simulator.assert_clean();

    let parameters = json!({"portNumber": "22"});
    failure(json!({"Target": target, "DocumentName": SSH, "Parameters": parameters}));
    assert!(simulator.violations()[0].contains("list of one string"), "{:?}", simulator.violations());
}

#[test]
fn instances_are_found_by_tag() {
    let mut config = Config::fast();
    config.instances.push(Instance::named("i-0aaaaaaaaaaaaaaaa", "jump"));
    let simulator = start(config, echo());
    let found = |filters: Value| {
        let answer = api(&simulator, "DescribeInstanceInformation", &json!({"Filters": filters})).unwrap();
        let list = answer["InstanceInformationList"].as_array().unwrap().clone();
        list.iter().map(|one| one["InstanceId"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(found(json!([])).len(), 2);
    assert_eq!(found(json!([{"Key": "tag:Name", "Values": ["jump"]}])), ["i-0aaaaaaaaaaaaaaaa"]);
    assert!(found(json!([{"Key": "tag:Name", "Values": ["nobody"]}])).is_empty());
}

#[test]
fn targets_are_reached_from_a_thread_and_by_unix_sockets() {
    let address = echo();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("target");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = [0; 64];
        let size = stream.read(&mut buffer).unwrap();
        stream.write_all(&buffer[..size]).unwrap();
    });
    let by_thread = dial::by_thread(move |_| TcpStream::connect(address));
    for dial in [by_thread, dial::to_unix_sockets([(742, path)].into())] {
        let simulator = Simulator::start(Config { dial, ..Config::fast() }).unwrap();
        let mut client = Client::open(&simulator);
        client.send(b"there and back");
        assert_eq!(client.read(14), b"there and back");
        simulator.assert_clean();
    }
}

/// The SDK signs as AWS's own programs do, so what it sends must pass.
#[test]
fn the_aws_sdk_is_understood_with_and_without_tls() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for tls in [false, true] {
        let mut config = Config::fast();
        config.tls = tls;
        config.session_token = Some("a session token".to_owned());
        let simulator = start(config, echo());
        runtime.block_on(async {
            let api = sdk_api(&simulator).await;
            let found = api.find_by_tag("Name", "simulated").await.unwrap();
            assert_eq!(found[0].instance_id, "i-0123456789abcdef0");
            let parameters = [("portNumber", "742")];
            let ticket = api.start("i-0123456789abcdef0", SSH, &parameters, Some("test")).await.unwrap();
            let resumed = api.resume(&ticket.session_id).await.unwrap();
            let mut websocket = api.open_websocket(&resumed.stream_url).await.unwrap();
            let id = Uuid::from_random([5; 16]);
            let text = OpenDataChannel::client(id, &resumed.token, id).to_json();
            websocket.send(tungstenite::Message::text(text)).await.unwrap();
            let first = websocket.next().await.unwrap().unwrap();
            assert!(matches!(first, tungstenite::Message::Binary(_)), "{first:?}");
            api.terminate(&ticket.session_id).await.unwrap();
        });
        assert!(simulator.active_sessions().is_empty());
        simulator.assert_clean();
    }
}

async fn sdk_api(simulator: &Simulator) -> Api {
    let env: HashMap<String, String> = simulator.env().into_iter().collect();
    let (key, secret) = (&env["AWS_ACCESS_KEY_ID"], &env["AWS_SECRET_ACCESS_KEY"]);
    let token = env.get("AWS_SESSION_TOKEN").cloned();
    let bundles = simulator.ca_pem_path().into_iter().collect();
    let network = Network::new(Arc::new(|_| Ok(())), ProxySettings::default(), bundles);
    let mut config = ApiConfig::new(network);
    config.region = env.get("AWS_REGION").cloned();
    config.endpoint_url = Some(simulator.endpoint());
    config.credentials = Some(Credentials::new(key, secret, token, None, "test"));
    Api::new(config).await.unwrap()
}

#[test]
fn a_simulator_that_is_dropped_leaves_nothing() {
    let simulator = start(Config::fast(), echo());
    let address = simulator.address();
    let mut client = Client::open(&simulator);
    simulator.shutdown();
    client.until(|seen| *seen == Seen::Gone);
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn with_tls_the_ca_is_offered() {
    let mut config = Config::fast();
    config.tls = true;
    let simulator = start(config, echo());
    let path = simulator.ca_pem_path().unwrap();
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
    let env: HashMap<String, String> = simulator.env().into_iter().collect();
    assert!(env["AWS_ENDPOINT_URL_SSM"].starts_with("https://127.0.0.1:"));
    assert_eq!(env["AWS_CA_BUNDLE"], path.display().to_string());
    simulator.shutdown();
    assert!(!path.exists());
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
