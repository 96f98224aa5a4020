//! What a strict service refuses.

use super::*;

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
