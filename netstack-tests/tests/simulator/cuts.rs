//! Websockets that are cut, silent or recycled, and messages that come late or twice.

use super::*;

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
