//! The calls of the service, and who else speaks to it.

use super::*;

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
