//! A lane over SSM against the simulator: every byte once and in order, whatever happens below, and
//! an error in the user's words when nothing can be saved.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

use std::future::poll_fn;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use agent::lane::LaneIo as _;
use aws_credential_types::Credentials;
use netstack_tests::ssm::{
    ApiFailure, Config, Count, Direction, Mix, Operation, Refusal, ResumeAnswer, Rng, Simulator, What, dial,
};
use ssm_proxy::ssm::api::{Api, ApiConfig};
use ssm_proxy::ssm::api_error::ApiError;
use ssm_proxy::ssm::channel::ChannelError;
use ssm_proxy::ssm::connect::Network;
use ssm_proxy::ssm::message::{Kind, Message, PayloadType, Uuid};
use ssm_proxy::ssm::proxy::ProxySettings;
use ssm_proxy::ssm::socket::{LaneConfig, LaneError, SsmLane};

const INSTANCE: &str = "i-0123456789abcdef0";
const BANNER: &[u8] = b"banner";

#[tokio::test]
async fn an_echo_comes_back_whole_and_the_end_leaves_no_session() {
    let world = World::start(Config::fast(), echo()).await;
    let mut lane = world.greeted_lane().await;
    assert_eq!(lane.agent_version(), "3.3.987.0");

    echo_random(&mut lane, 24 << 20).await;

    let session = lane.session_id().to_owned();
    close(&mut lane).await;
    world.api.terminate(&session).await.unwrap();
    eventually("no session is left", || world.simulator.active_sessions().is_empty()).await;
    world.simulator.assert_clean();
}

#[tokio::test]
async fn closing_alone_ends_the_session() {
    let world = World::start(Config::fast(), echo()).await;
    let mut lane = world.greeted_lane().await;
    close(&mut lane).await;
    eventually("the flag ended the session", || world.simulator.active_sessions().is_empty()).await;
    world.simulator.assert_clean();
}

#[tokio::test]
async fn every_payload_size_arrives() {
    let world = World::start(Config::fast(), echo()).await;
    let mut config = lane_config();
    config.channel.max_payload = 32 << 10;
    let mut lane = world.greeted_lane_with(config).await;
    for size in (1..=32 << 10).step_by(997).chain([1024, 8192, 32 << 10]) {
        let sent: Vec<u8> = (0..size).map(|at| (at * 7 + size) as u8).collect();
        assert!(exchange(&mut lane, &sent, size).await == sent, "{size}");
    }
    world.simulator.assert_clean();
}

#[tokio::test]
async fn no_record_is_taken_before_the_banner() {
    let world = World::start(Config::fast(), listen(|_| std::thread::sleep(Duration::from_secs(5)))).await;
    let mut lane = world.lane(lane_config()).await.unwrap();
    let ready = tokio::time::timeout(Duration::from_millis(300), poll_fn(|cx| lane.poll_ready(cx))).await;
    assert!(ready.is_err(), "the far program has not spoken");
    world.simulator.assert_clean();
}

#[tokio::test]
async fn the_default_agent_loses_nothing_that_waits_for_the_banner() {
    let world = World::start(Config::default(), echo()).await;
    let mut lane = world.greeted_lane().await;
    echo_random(&mut lane, 300_000).await;
    assert_eq!(world.simulator.count(Count::EarlyLost), 0);
    world.simulator.assert_clean();
}

#[tokio::test]
async fn reordered_repeated_and_lost_messages_change_no_byte() {
    let mix = Mix { loss: 0.01, duplicate: 0.3, reorder: 0.3, reorder_distance: 8, ..Mix::default() };
    let world = World::start(Config::fast(), echo()).await;
    let mut lane = world.greeted_lane().await;
    world.simulator.knobs(|knobs| (knobs.up, knobs.down) = (mix, Mix { loss: 0.002, ..mix }));

    echo_random(&mut lane, 2 << 20).await;

    let stats = lane.handle().status().channel;
    assert!(stats.duplicates > 0 && stats.resent_messages > 0, "{stats:?}");
    assert!(world.simulator.count(Count::Reordered) > 0);
    world.simulator.assert_clean();
}

#[tokio::test]
async fn bursts_of_losses_are_made_good() {
    let world = World::start(Config::fast(), echo()).await;
    let mut lane = world.greeted_lane().await;
    for lost in [1, 10, 30] {
        world.simulator.drop_next(lane.session_id(), Direction::Down, What::Stream, lost);
        world.simulator.drop_next(lane.session_id(), Direction::Up, What::Stream, lost);
        echo_random(&mut lane, 1 << 20).await;
    }
    world.simulator.assert_clean();
}

#[tokio::test]
async fn lost_acknowledgements_only_cost_resends() {
    let world = World::start(Config::fast(), echo()).await;
    let mut lane = world.greeted_lane().await;
    world.simulator.drop_next(lane.session_id(), Direction::Down, What::Acknowledgement, 50);
    world.simulator.drop_next(lane.session_id(), Direction::Up, What::Acknowledgement, 20);
    echo_random(&mut lane, 1 << 20).await;
    eventually_on(&mut lane, "all is acknowledged", |lane| {
        lane.handle().status().channel.unacked_messages == 0
    })
    .await;
    world.simulator.assert_clean();
}

#[tokio::test]
async fn cuts_of_the_clients_websocket_lose_and_repeat_nothing() {
    let world = World::start(quick_resends(), echo()).await;
    let mut lane = world.greeted_lane().await;
    for round in 0..6 {
        let session = lane.session_id().to_owned();
        let cut = async {
            under_way(&world.simulator, &session).await;
            let cut = if round % 2 == 0 { Simulator::cut_client } else { Simulator::cut_client_abruptly };
            assert!(cut(&world.simulator, &session));
        };
        tokio::join!(echo_random(&mut lane, 512 << 10), cut);
    }
    let status = lane.handle().status();
    assert_eq!(status.cuts, 6);
    assert!(status.resuming.is_none());
    world.simulator.assert_clean();
}

#[tokio::test]
async fn cuts_of_the_agents_websocket_and_of_both_lose_nothing() {
    let world = World::start(quick_resends(), echo()).await;
    let mut lane = world.greeted_lane().await;
    for both in [false, true, true] {
        let session = lane.session_id().to_owned();
        eventually("the SSM agent is back", || world.simulator.active_sessions()[0].agent_connected).await;
        let cut = async {
            under_way(&world.simulator, &session).await;
            assert!(world.simulator.cut_agent(&session));
            if both {
                world.simulator.cut_client(&session);
            }
        };
        tokio::join!(echo_random(&mut lane, 256 << 10), cut);
    }
    world.simulator.assert_clean();
}

#[tokio::test]
async fn a_recycled_websocket_every_300_ms_is_not_noticed_above() {
    let mut config = quick_resends();
    config.knobs.client_recycle = Some(Duration::from_millis(300));
    let world = World::start(config, echo()).await;
    let mut lane = world.greeted_lane().await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        echo_random(&mut lane, 64 << 10).await;
    }
    assert!(lane.handle().status().cuts >= 3);
    world.simulator.assert_clean();
}

#[tokio::test]
async fn a_cut_during_the_handshake_is_survived() {
    let mut config = Config::fast();
    config.knobs.agent.start_delay = Duration::from_millis(200);
    let world = World::start(config, echo()).await;
    let cut = async {
        let connected =
            || world.simulator.active_sessions().first().is_some_and(|session| session.client_connected);
        eventually("the client is connected", connected).await;
        assert!(world.simulator.cut_client(&world.simulator.active_sessions()[0].id));
    };
    let (lane, ()) = tokio::join!(world.greeted_lane(), cut);
    let mut lane = lane;
    echo_random(&mut lane, 100_000).await;
    world.simulator.assert_clean();
}

#[tokio::test]
async fn a_session_that_cannot_be_resumed_is_gone_at_once() {
    for answer in [ResumeAnswer::WithoutToken, ResumeAnswer::Fail(ApiFailure::DoesNotExist)] {
        let world = World::start(Config::fast(), echo()).await;
        let mut lane = world.greeted_lane().await;
        world.simulator.knobs(|knobs| knobs.resume = answer);
        world.simulator.cut_client(lane.session_id());
        let error = read_error(&mut lane).await;
        assert!(matches!(error, LaneError::Gone(ApiError::SessionGone { .. })), "{error:?}");
        assert_eq!(read_error(&mut lane).await, error, "it stays an error");
    }
}

#[tokio::test]
async fn expired_credentials_at_resume_are_told_with_the_login_command() {
    let world = World::start(Config::fast(), echo()).await;
    let config = LaneConfig { resume_budget: Duration::from_millis(1500), ..lane_config() };
    let mut lane = world.greeted_lane_with(config).await;
    world.simulator.expire_credentials();
    world.simulator.cut_client(lane.session_id());
    let error = read_error(&mut lane).await;
    assert!(matches!(error, LaneError::Lost { .. }), "{error:?}");
    assert!(error.hint().contains("aws sso login"), "{}", error.hint());
    assert!(error.to_string().contains("expired"), "{error}");
}

#[tokio::test]
async fn a_resume_that_fails_for_a_while_succeeds_in_the_end() {
    let world = World::start(Config::fast(), echo()).await;
    let mut lane = world.greeted_lane().await;
    for failure in [ApiFailure::Throttling, ApiFailure::InternalServerError, ApiFailure::ServiceUnavailable] {
        world.simulator.fail_next(Operation::ResumeSession, failure);
    }
    world.simulator.cut_client_abruptly(lane.session_id());
    echo_random(&mut lane, 200_000).await;
    assert!(world.simulator.calls(Operation::ResumeSession) >= 4);
    world.simulator.assert_clean();
}

#[tokio::test]
async fn a_refused_dial_is_explained_when_the_gateway_explains_it() {
    let mut config = Config::fast();
    config.knobs.agent.refusal = Refusal::Explain;
    config.dial = dial::to_ports([].into());
    let world = World::start_with_dial(config).await;
    let mut lane = world.lane(lane_config()).await.unwrap();
    let error = read_error(&mut lane).await;
    let LaneError::Closed { output, greeted: false } = &error else { panic!("{error:?}") };
    assert!(output.contains("Unable to connect to specified port"), "{output}");
    assert!(error.hint().contains("ssm-proxy-agent"), "{}", error.hint());
}

#[tokio::test]
async fn the_targets_end_comes_after_its_last_byte() {
    let server = listen(|mut tcp| {
        tcp.write_all(BANNER).unwrap();
        let _ = tcp.read(&mut [0; 64]);
        tcp.write_all(&[7; 100_000]).unwrap();
    });
    let world = World::start(Config::fast(), server).await;
    let mut lane = world.greeted_lane().await;
    assert_eq!(exchange(&mut lane, b"go", 100_000).await, [7; 100_000]);
    let error = read_error(&mut lane).await;
    assert_eq!(error, LaneError::Closed { output: String::new(), greeted: true });
}

#[tokio::test]
async fn the_gateways_last_words_are_passed_on_verbatim() {
    let world = World::start(Config::fast(), echo()).await;
    let mut lane = world.greeted_lane().await;
    let output = "\n----------ERROR-------\nSession idle for too long";
    world.simulator.end_session(lane.session_id(), output);
    assert_eq!(read_error(&mut lane).await, LaneError::Closed { output: output.into(), greeted: true });
}

#[tokio::test]
async fn maximum_duration_and_idleness_end_the_lane_with_their_words() {
    let mut config = Config::fast();
    config.knobs.max_duration = Some(Duration::from_millis(800));
    let world = World::start(config, echo()).await;
    let mut lane = world.greeted_lane().await;
    assert!(matches!(read_error(&mut lane).await, LaneError::Closed { greeted: true, .. }));
    world.simulator.assert_clean();
}

#[tokio::test]
async fn garbage_costs_a_websocket_and_no_byte() {
    let world = World::start(Config::fast(), echo()).await;
    let mut lane = world.greeted_lane().await;
    let mut valid = stray_message();
    valid[3] = 0;
    let mut huge = stray_message();
    huge[..4].copy_from_slice(&u32::MAX.to_be_bytes());
    let mut lying = stray_message();
    lying[116..120].copy_from_slice(&9999_u32.to_be_bytes());
    for garbage in [b"short".to_vec(), valid, huge, lying] {
        world.simulator.inject_binary(lane.session_id(), garbage);
        echo_random(&mut lane, 100_000).await;
    }
    world.simulator.inject_text(lane.session_id(), "text");
    echo_random(&mut lane, 100_000).await;
    eventually_on(&mut lane, "every one was seen", |lane| lane.handle().status().garbage == 5).await;
    assert_eq!(lane.handle().status().cuts, 5);
}

#[tokio::test]
async fn bad_digests_and_unknown_types_are_counted_and_cost_nothing() {
    let world = World::start(Config::fast(), echo()).await;
    let mut lane = world.greeted_lane().await;
    let bad_digest =
        Message::new(Kind::OutputStreamData, 3, Uuid([3; 16]), 0, PayloadType::OUTPUT, b"forged");
    let bad_digest = Message { digest: [7; 32], ..bad_digest }.to_vec();
    world.simulator.inject_binary(lane.session_id(), bad_digest);
    world.simulator.inject_binary(lane.session_id(), stray_message());
    echo_random(&mut lane, 100_000).await;
    let status = lane.handle().status();
    assert_eq!((status.channel.bad_digests, status.channel.ignored, status.cuts), (1, 1, 0));
}

#[tokio::test]
async fn a_black_hole_is_noticed_by_silence() {
    let world = World::start(Config::fast(), echo()).await;
    let config = LaneConfig {
        ping_every: Duration::from_millis(200),
        dead_after: Duration::from_millis(500),
        ..lane_config()
    };
    let mut lane = world.greeted_lane_with(config).await;
    world.simulator.black_hole_client(lane.session_id());
    echo_random(&mut lane, 200_000).await;
    assert_eq!(lane.handle().status().cuts, 1);
    world.simulator.assert_clean();
}

#[tokio::test]
async fn a_nudge_finds_a_black_hole_within_seconds() {
    let world = World::start(Config::fast(), echo()).await;
    let mut lane = world.greeted_lane().await;
    world.simulator.black_hole_client(lane.session_id());
    lane.handle().nudge();
    let began = Instant::now();
    echo_random(&mut lane, 10_000).await;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_nudge_on_a_good_websocket_costs_nothing() {
    let world = World::start(Config::fast(), echo()).await;
    let mut lane = world.greeted_lane().await;
    lane.handle().nudge();
    eventually_on(&mut lane, "the ping is answered", |lane| lane.handle().status().gateway_rtt.is_some())
        .await;
    assert_eq!(lane.handle().status().cuts, 0);
}

#[tokio::test]
async fn an_idle_lane_pings() {
    let world = World::start(Config::fast(), echo()).await;
    let config = LaneConfig { ping_every: Duration::from_millis(100), ..lane_config() };
    let mut lane = world.greeted_lane_with(config).await;
    eventually_on(&mut lane, "five pings", |_| world.simulator.count(Count::Pings) >= 5).await;
    world.simulator.assert_clean();
}

#[tokio::test]
async fn an_agent_that_vanishes_wedges_the_lane() {
    let world = World::start(Config::fast(), echo()).await;
    let mut config = lane_config();
    config.channel.send.wedged_after = Duration::from_secs(1);
    let mut lane = world.greeted_lane_with(config).await;
    world.simulator.black_hole_agent(lane.session_id());
    write(&mut lane, b"anybody there?").await;
    let error = read_error(&mut lane).await;
    assert_eq!(error, LaneError::Channel(ChannelError::Wedged(Duration::from_secs(1))));
}

#[tokio::test]
async fn a_refused_message_size_fails_the_lane_and_smaller_ones_pass() {
    let mut config = Config::fast();
    config.knobs.max_message = 4096;
    let world = World::start(config, echo()).await;
    let mut lane = world.greeted_lane().await;
    write(&mut lane, &[1; 8000]).await;
    assert_eq!(read_error(&mut lane).await, LaneError::MessageTooBig(8 << 10));

    let mut config = lane_config();
    config.channel.max_payload = 1024;
    let mut lane = world.greeted_lane_with(config).await;
    echo_random(&mut lane, 200_000).await;
}

#[tokio::test]
async fn a_throttled_start_is_retried_and_a_refused_one_is_told() {
    let world = World::start(Config::fast(), echo()).await;
    world.simulator.fail_next(Operation::StartSession, ApiFailure::Throttling);
    world.simulator.fail_next(Operation::StartSession, ApiFailure::Throttling);
    let mut lane = world.greeted_lane().await;
    echo_random(&mut lane, 1000).await;

    for (failure, exit) in [
        (ApiFailure::TargetNotConnected, 5),
        (ApiFailure::InvalidDocument, 1),
        (ApiFailure::AccessDenied, 4),
        (ApiFailure::ExpiredToken, 4),
        (ApiFailure::UnrecognizedClient, 4),
    ] {
        world.simulator.fail_next(Operation::StartSession, failure);
        let error = world.lane(lane_config()).await.err().unwrap();
        assert_eq!(error.exit_code(), exit, "{failure:?}: {error:?}");
        assert!(!error.hint().is_empty() && !error.causes().is_empty(), "{failure:?}");
    }
}

#[tokio::test]
async fn an_open_that_fails_or_is_dropped_leaves_no_session() {
    let mut config = Config::fast();
    config.knobs.agent.start_delay = Duration::from_secs(30);
    let world = World::start(config, echo()).await;

    let lane = LaneConfig { open_timeout: Duration::from_millis(300), ..lane_config() };
    let error = world.lane(lane).await.err().unwrap();
    assert_eq!(error, LaneError::OpenTimeout(Duration::from_millis(300)));
    eventually("the failed one is gone", || world.simulator.active_sessions().is_empty()).await;

    let dropped = tokio::time::timeout(Duration::from_millis(300), world.lane(lane_config())).await;
    assert!(dropped.is_err());
    eventually("the dropped one is gone", || world.simulator.active_sessions().is_empty()).await;
    assert_eq!(world.simulator.sessions().len(), 2);
}

#[tokio::test]
async fn instances_are_found_by_tag_and_by_id() {
    let world = World::start(Config::fast(), echo()).await;
    let found = world.api.find_by_tag("Name", "simulated").await.unwrap();
    assert_eq!((found.len(), found[0].instance_id.as_str(), found[0].online), (1, INSTANCE, true));
    assert!(world.api.find_by_tag("Name", "other").await.unwrap().is_empty());
    assert!(world.api.find_by_id(INSTANCE).await.unwrap().is_some());
}

#[tokio::test]
async fn preflight_tells_the_region() {
    let world = World::start(Config::fast(), echo()).await;
    let preflight = world.api.preflight().await.unwrap();
    assert_eq!((preflight.region.as_str(), preflight.credentials_expire), ("eu-central-1", None));
}

#[tokio::test]
async fn an_unreachable_endpoint_is_told_as_that() {
    let mut config = ApiConfig::new(Network::direct());
    config.endpoint_url = Some("http://127.0.0.1:9".into());
    config.region = Some("eu-west-1".into());
    config.credentials = Some(Credentials::for_tests());
    let api = Api::new(config).await.unwrap();
    let error = api.terminate("s").await.unwrap_err();
    assert!(
        matches!(error, ApiError::Unreachable { .. } | ApiError::Timeout { .. }),
        "{error:?}: {:?}",
        error.causes()
    );
}

#[tokio::test]
async fn tls_and_a_proxy_carry_api_and_websocket() {
    // An address of the documentation range: only the proxy knows the way to it.
    let host = "192.0.2.10";
    let config = Config { tls: true, advertise: Some(host.to_owned()), ..Config::fast() };
    let target = echo();
    let config = Config { dial: dial::to_ports([(742, target)].into()), ..config };
    let simulator = Simulator::start(config).unwrap();
    let tunnels = Arc::new(AtomicUsize::new(0));
    let proxy = proxy(host, simulator.address(), Arc::clone(&tunnels));
    let settings = |userinfo: &str| {
        let url = format!("http://{userinfo}{proxy}");
        ProxySettings::from_variables(|name| (name == "https_proxy").then(|| url.clone())).unwrap()
    };
    let bundle = simulator.ca_pem_path().unwrap();
    let network = |settings, bundles| Network::new(Arc::new(|_: &socket2::Socket| Ok(())), settings, bundles);

    let api = api(&simulator, network(settings("me:secret@"), vec![bundle.clone()])).await;
    let mut lane = SsmLane::open(&api, lane_config()).await.unwrap();
    assert_eq!(exchange(&mut lane, b"", BANNER.len()).await, BANNER);
    echo_random(&mut lane, 1 << 20).await;
    assert!(tunnels.load(Ordering::Relaxed) >= 2, "API and websocket went through the proxy");
    simulator.assert_clean();

    let api_without_password = self::api(&simulator, network(settings(""), vec![bundle])).await;
    let error = api_without_password.terminate("s").await.unwrap_err();
    assert!(error.hint().contains("user:password@"), "{error:?}");

    let api_without_ca = self::api(&simulator, network(settings("me:secret@"), Vec::new())).await;
    let error = api_without_ca.terminate("s").await.unwrap_err();
    assert!(error.hint().contains("AWS_CA_BUNDLE"), "{error:?}");
}

/// Bytes a second are not asserted here (benches/ does), only that nothing is absurdly slow.
#[tokio::test]
async fn an_unpaced_upload_is_fast_enough() {
    let server = listen(|mut tcp| {
        tcp.write_all(BANNER).unwrap();
        let mut buffer = vec![0; 1 << 16];
        let mut left = 32 << 20;
        while left > 0 {
            left -= tcp.read(&mut buffer).unwrap();
        }
        tcp.write_all(b"done").unwrap();
        let _ = tcp.read(&mut buffer);
    });
    let world = World::start(Config::fast(), server).await;
    let mut lane = world.greeted_lane().await;
    let bytes = vec![5; 32 << 20];
    let began = Instant::now();
    assert_eq!(exchange(&mut lane, &bytes, 4).await, b"done");
    let rate = bytes.len() as f64 / began.elapsed().as_secs_f64() / 1e6;
    println!("upload {rate:.1} MB/s");
    assert!(rate > 2.0, "{rate} MB/s");
}

/// A simulator, a target behind it, and the API of a client.
struct World {
    simulator: Simulator,
    api: Api,
}

impl World {
    async fn start(config: Config, target: SocketAddr) -> Self {
        Self::start_with_dial(Config { dial: dial::to_ports([(742, target)].into()), ..config }).await
    }

    async fn start_with_dial(config: Config) -> Self {
        let simulator = Simulator::start(config).unwrap();
        let api = api(&simulator, Network::direct()).await;
        Self { simulator, api }
    }

    async fn lane(&self, config: LaneConfig) -> Result<SsmLane, LaneError> {
        SsmLane::open(&self.api, config).await
    }

    /// A lane whose banner has been read.
    async fn greeted_lane(&self) -> SsmLane {
        self.greeted_lane_with(lane_config()).await
    }

    async fn greeted_lane_with(&self, config: LaneConfig) -> SsmLane {
        let mut lane = self.lane(config).await.unwrap();
        assert_eq!(exchange(&mut lane, b"", BANNER.len()).await, BANNER);
        lane
    }
}

async fn api(simulator: &Simulator, network: Network) -> Api {
    let variables = simulator.env();
    let variable = |name: &str| {
        let found = variables.iter().find(|(variable, _)| variable == name);
        found.map(|(_, value)| value.clone())
    };
    let key = |name: &str| variable(name).unwrap();
    let mut config = ApiConfig::new(network);
    config.region = variable("AWS_REGION");
    config.endpoint_url = variable("AWS_ENDPOINT_URL");
    config.credentials =
        Some(Credentials::new(key("AWS_ACCESS_KEY_ID"), key("AWS_SECRET_ACCESS_KEY"), None, None, "test"));
    Api::new(config).await.unwrap()
}

/// The SSM agent resends ten messages a second; a hundred make the same test shorter.
fn quick_resends() -> Config {
    let mut config = Config::fast();
    config.knobs.agent.resend_tick = Duration::from_millis(10);
    config
}

fn lane_config() -> LaneConfig {
    LaneConfig::port(INSTANCE, "AWS-StartSSHSession", 742)
}

/// Sends all of `bytes` and reads `want` bytes meanwhile.
async fn exchange(lane: &mut SsmLane, bytes: &[u8], want: usize) -> Vec<u8> {
    let (mut rest, mut got) = (bytes, Vec::new());
    let mut buffer = vec![0; 64 << 10];
    let all = poll_fn(|cx| {
        while !rest.is_empty()
            && let Poll::Ready(ready) = lane.poll_ready(cx)
        {
            let (head, tail) = rest.split_at(rest.len().min(ready?));
            lane.send(&[IoSlice::new(head)])?;
            rest = tail;
        }
        let flushed = lane.poll_flush(cx)?.is_ready();
        while got.len() < want {
            let most = buffer.len().min(want - got.len());
            let Poll::Ready(read) = lane.poll_read(cx, &mut buffer[..most]) else { return Poll::Pending };
            got.extend_from_slice(&buffer[..read?]);
        }
        if rest.is_empty() && flushed { Poll::Ready(io::Result::Ok(())) } else { Poll::Pending }
    });
    tokio::time::timeout(Duration::from_secs(120), all).await.expect("the exchange takes too long").unwrap();
    got
}

async fn echo_random(lane: &mut SsmLane, size: usize) {
    let mut random = Rng::new(size as u64);
    let sent: Vec<u8> = std::iter::repeat_with(|| random.bytes::<64>()).flatten().take(size).collect();
    let got = exchange(lane, &sent, size).await;
    assert!(got == sent, "{size} bytes came back changed");
}

async fn write(lane: &mut SsmLane, bytes: &[u8]) {
    exchange(lane, bytes, 0).await;
}

async fn read_error(lane: &mut SsmLane) -> LaneError {
    let mut buffer = [0; 1024];
    let reading = poll_fn(|cx| lane.poll_read(cx, &mut buffer));
    let error =
        tokio::time::timeout(Duration::from_secs(60), reading).await.expect("no error came").unwrap_err();
    LaneError::of(&error).unwrap_or_else(|| panic!("{error}")).clone()
}

async fn close(lane: &mut SsmLane) {
    tokio::time::timeout(Duration::from_secs(2), poll_fn(|cx| lane.poll_close(cx))).await.unwrap().unwrap();
}

/// Waits until messages of an exchange have gone both ways.
async fn under_way(simulator: &Simulator, session: &str) {
    let counts = || [Count::UpStream, Count::DownStream].map(|count| simulator.session_count(session, count));
    let before = counts();
    eventually("an exchange is under way", || counts().iter().zip(before).all(|(now, before)| *now > before))
        .await;
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(20), "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Drives the lane until something holds.
async fn eventually_on(lane: &mut SsmLane, what: &str, mut holds: impl FnMut(&SsmLane) -> bool) {
    let began = Instant::now();
    while !holds(lane) {
        assert!(began.elapsed() < Duration::from_secs(20), "never: {what}");
        let reading = poll_fn(|cx| lane.poll_read(cx, &mut [0; 64]));
        let read = tokio::time::timeout(Duration::from_millis(10), reading).await;
        assert!(read.is_err(), "nothing is to be read: {read:?}");
    }
}

fn stray_message() -> Vec<u8> {
    Message::new(Kind::Other("weather_report"), 0, Uuid([3; 16]), 0, PayloadType::OUTPUT, b"sunny").to_vec()
}

fn echo() -> SocketAddr {
    listen(|mut tcp| {
        let _ = tcp.write_all(BANNER);
        let (Ok(mut from), mut buffer) = (tcp.try_clone(), vec![0; 64 << 10]) else { return };
        // The writer must not hold up the reader: both directions are full at times.
        let (queue, pieces) = std::sync::mpsc::channel::<Vec<u8>>();
        let writer = std::thread::spawn(move || {
            for piece in pieces {
                if tcp.write_all(&piece).is_err() {
                    return;
                }
            }
        });
        while let Ok(size @ 1..) = from.read(&mut buffer) {
            if queue.send(buffer[..size].to_vec()).is_err() {
                break;
            }
        }
        drop(queue);
        let _ = writer.join();
    })
}

fn listen(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for tcp in listener.incoming().map_while(Result::ok) {
            let serve = Arc::clone(&serve);
            std::thread::spawn(move || serve(tcp));
        }
    });
    address
}

/// An HTTP proxy that knows `host` and asks for `me:secret`.
fn proxy(host: &'static str, to: SocketAddr, tunnels: Arc<AtomicUsize>) -> SocketAddr {
    listen(move |mut tcp| {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && tcp.read_exact(&mut byte).is_ok() {
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        if !head.starts_with(&format!("CONNECT {host}:{} ", to.port())) {
            let _ = tcp.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n");
        } else if !head.contains("Proxy-Authorization: Basic bWU6c2VjcmV0\r\n") {
            let _ = tcp.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n");
        } else {
            tunnels.fetch_add(1, Ordering::Relaxed);
            let far = TcpStream::connect(to).unwrap();
            tcp.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").unwrap();
            let (mut near_read, mut far_write) = (tcp.try_clone().unwrap(), far.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = io::copy(&mut near_read, &mut far_write);
                let _ = far_write.shutdown(std::net::Shutdown::Write);
            });
            let _ = io::copy(&mut { far }, &mut tcp);
            let _ = tcp.shutdown(std::net::Shutdown::Both);
        }
    })
}
