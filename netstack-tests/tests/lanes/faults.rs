//! Lanes that end, lead nowhere, are cut or meet another network while they carry something.

use super::*;

/// A download that is disturbed when half of it is there.
fn disturbed(world: &World, length: usize, disturb: impl FnOnce(&World)) -> Download {
    let stream = world.connect(world.source(length));
    let (half, reached) = mpsc::channel();
    let reader = thread::spawn(move || download(stream, length, &half));
    reached.recv_timeout(DEADLINE).unwrap();
    disturb(world);
    reader.join().unwrap()
}

#[test]
fn a_lane_that_ends_under_a_transfer_is_replaced_and_costs_no_stall() {
    require_netns!();
    let mut world = World::new(ssm::Config::default(), &["--lanes", "4"]);
    world.await_lanes(4);
    let lost = world.sessions()[1].clone();
    let took = disturbed(&world, 10 << 20, |world| {
        world.simulator.end_session(&lost, "ended by the test");
    });
    assert!(took.pause < Duration::from_millis(1500), "it stood still for {:?}", took.pause);
    let status = world.await_lanes(4);
    assert!(!world.sessions().contains(&lost));
    let losses = status["lanes"].as_array().unwrap().iter().map(|lane| &lane["last_loss"]);
    let told: Vec<_> = losses.filter(|loss| !loss.is_null()).collect();
    assert!(told.len() == 1 && told[0]["session_id"] == lost.as_str(), "{status}");
    assert!(told[0]["reason"].as_str().unwrap().contains("ended by the test"), "{status}");
    let trunk = &status["trunk"];
    assert!(trunk["resent"].is_u64() && trunk["duplicates"].is_u64() && trunk["credit"].is_u64(), "{status}");
    let shown = world.vpc.client(&[], &["status"]).output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("is in place of one lost") && shown.contains("trunk resumed 0 times"), "{shown}");
    world.client.wait_for("replacing a lane", DEADLINE).unwrap();
    assert_eq!(status["state"], "up");
    world.finish();
}

#[test]
fn a_lane_that_leads_nowhere_is_replaced_within_seconds() {
    require_netns!();
    let world = World::new(ssm::Config::default(), &["--lanes", "4"]);
    world.await_lanes(4);
    let mute = world.sessions()[2].clone();
    let began = now();
    let took = disturbed(&world, 18 << 20, |world| {
        world.simulator.black_hole_client(&mute);
        let cut = now();
        until("a replacement", || {
            let status = world.vpc.status().unwrap();
            let lanes = status["lanes"].as_array().unwrap();
            lanes.len() == 4 && !lanes.iter().any(|lane| lane["session_id"] == mute.as_str())
        });
        eprintln!("replaced after {:?}", cut.elapsed());
        assert!(cut.elapsed() < Duration::from_secs(5), "{:?}", cut.elapsed());
        // Its replacement was there before it went.
        let status = world.vpc.status().unwrap();
        let lost = |lane: &&serde_json::Value| lane["last_loss"]["session_id"] == mute.as_str();
        assert_eq!(status["lanes"].as_array().unwrap().iter().filter(lost).count(), 1, "{status}");
    });
    eprintln!("pause {:?}, in all {:?}", took.pause, began.elapsed());
    assert!(took.pause < Duration::from_millis(1500), "it stood still for {:?}", took.pause);
    world.finish();
}

#[test]
fn lanes_that_are_all_cut_at_once_are_not_waited_for() {
    require_netns!();
    let mut config = ssm::Config::default();
    // The SSM agents are long back only after others are there.
    config.knobs.agent.reconnect = (Duration::from_secs(20), Duration::from_secs(20));
    let world = World::new(config, &["--lanes", "4"]);
    world.await_lanes(4);
    let before = world.sessions();
    let took = disturbed(&world, 10 << 20, |world| world.simulator.cut_all());
    eprintln!("it stood still for {:?}", took.pause);
    assert!(took.pause < Duration::from_secs(1), "it stood still for {:?}", took.pause);
    world.await_lanes(4);
    assert!(world.sessions().iter().filter(|id| before.contains(id)).count() < 4);
    world.finish();
}

#[test]
fn lanes_that_come_back_by_themselves_carry_on() {
    require_netns!();
    let world = World::new(ssm::Config::default(), &["--lanes", "4"]);
    world.await_lanes(4);
    let before = world.sessions();
    let mut idle = world.connect(world.serve(servers::echo));
    round_trip(&mut idle);
    for id in &before {
        assert!(world.simulator.cut_client(id));
    }
    until("all lanes resumed", || world.simulator.calls(Operation::ResumeSession) >= 4);
    round_trip(&mut idle);
    // Those that were asked for when all were cut take the place of others; nobody asks for more.
    until("a tunnel of four lanes", || {
        world.sessions().len() == 4
            && world.vpc.status().unwrap()["lanes"].as_array().is_some_and(|lanes| lanes.len() == 4)
    });
    assert!(world.simulator.calls(Operation::StartSession) <= 6);
    assert!(world.sessions().iter().filter(|id| before.contains(id)).count() >= 2);
    world.finish();
}

#[test]
fn a_changed_network_moves_all_lanes_at_once() {
    require_netns!();
    let world = World::new(ssm::Config::fast(), &["--lanes", "4"]);
    let mut open = world.connect(world.serve(servers::echo));
    round_trip(&mut open);
    world.await_lanes(4);
    let sessions = world.sessions();
    let count = || {
        let calls = |operation| world.simulator.calls(operation);
        (calls(Operation::StartSession), calls(Operation::ResumeSession))
    };
    let (started, resumed) = count();
    // Their TCP connections stay, but lead nowhere.
    sessions.iter().for_each(|id| assert!(world.simulator.black_hole_client(id)));
    let began = now();
    world.vpc.laptop.ip(&format!("route add default via {LINK}")).unwrap();
    round_trip(&mut open);
    let took = began.elapsed();
    until("all four", || world.simulator.count(Count::ClientConnects) >= 8);
    eprintln!("an answer after {took:?}, all lanes after {:?}", began.elapsed());
    // A websocket that nobody asks is silent for 45 s before it is given up.
    assert!(took < Duration::from_secs(3) && began.elapsed() < Duration::from_secs(4), "{took:?}");
    let status = world.await_lanes(4);
    assert_eq!(status["state"], "up");
    let now = count();
    // A lane that looked lost for a moment may have been replaced as well.
    assert!(now.0 - started <= 4 && now.1 - resumed <= 8, "{now:?} after {started} and {resumed}");
    world.finish();
}

#[test]
fn a_transfer_both_ways_is_whole_over_lanes_that_are_cut_every_two_seconds() {
    require_netns!();
    let megabytes: u64 = std::env::var("MEGABYTES").map_or(100, |text| text.parse().expect("MEGABYTES"));
    let mut config = ssm::Config::fast();
    config.knobs.repeat_after_agent_cut = 1.0;
    let world = World::new(config, &["--lanes", "4", "--compress", "off"]);
    world.await_lanes(4);
    let stream = world.connect(world.serve(servers::echo));
    let (mut writer, mut reader) = (stream.try_clone().unwrap(), stream);
    let (began, mut cuts) = (now(), 0u32);
    let sent = thread::spawn(move || {
        let mut hash = Sha256::new();
        for seed in 0..megabytes {
            let piece = noise(1_000_000, seed);
            hash.update(&piece);
            writer.write_all(&piece).unwrap();
        }
        writer.shutdown(Shutdown::Write).unwrap();
        hash.finalize()
    });
    let received = thread::spawn(move || {
        let (mut hash, mut buffer, mut count) = (Sha256::new(), vec![0; 256 << 10], 0);
        loop {
            match reader.read(&mut buffer).unwrap() {
                0 => return (hash.finalize(), count),
                read => {
                    hash.update(&buffer[..read]);
                    count += read as u64;
                }
            }
        }
    });
    let ways = [Simulator::cut_client_abruptly, Simulator::cut_agent, Simulator::cut_client];
    while !received.is_finished() {
        thread::sleep(Duration::from_millis(100));
        let sessions = world.sessions();
        if began.elapsed() >= (cuts + 1) * Duration::from_secs(2) && !sessions.is_empty() {
            let one = &sessions[cuts as usize % sessions.len()];
            ways[cuts as usize % ways.len()](&world.simulator, one);
            cuts += 1;
        }
    }
    let (sent, (received, count)) = (sent.join().unwrap(), received.join().unwrap());
    eprintln!("{} MB each way in {:?} with {cuts} cuts", count / 1_000_000, began.elapsed());
    assert_eq!((count, cuts > 0), (megabytes * 1_000_000, true));
    assert_eq!(sent, received);
    world.finish();
}

#[test]
fn a_forgotten_trunk_of_several_lanes_is_begun_anew_once() {
    require_netns!();
    let mut world = World::new(ssm::Config::fast(), &["--lanes", "3"]);
    world.await_lanes(3);
    let mut open = world.connect(world.serve(servers::echo));
    round_trip(&mut open);
    world.vpc.start_agent().unwrap();
    assert!(open.read(&mut [0]).is_err(), "its connection is reset");
    world.echoes();
    world.await_lanes(3);
    world.client.wait_for("reconnected after", DEADLINE).unwrap();
    let told = world.client.seen.iter().filter(|line| line.contains("were reset")).count();
    assert_eq!(told, 1, "{}", world.client.seen.join("\n"));
    assert_eq!(world.vpc.status().unwrap()["trunk"]["lost"], 1);
    world.finish();
}
