//! Single rules of the trunk's face; `cuts` has two trunks over simulated lanes.
#![allow(clippy::disallowed_methods)]

mod cuts;

use super::*;

#[test]
fn without_a_lane_there_is_no_room() {
    let now = Instant::now();
    let config = TrunkConfig { unsent: 128 << 10, ..TrunkConfig::new(Role::Client, 0) };
    let mut trunk = Trunk::new(config);
    assert_eq!((trunk.send_room(), trunk.spare().len()), (0, 0));
    assert!(!trunk.poll_record(LaneId(1), 1000, &mut Vec::new(), now));
    trunk.attach(LaneId(1), LaneKind::Tcp, [0; 32], now);
    assert_eq!(trunk.send_room(), trunk.config.unsent);
    write(&mut trunk, 100_000);
    trunk.detach(LaneId(1), now);
    assert_eq!((trunk.send_room(), trunk.stats().unacknowledged), (0, 100_000));
}

#[test]
fn room_ends_with_credit_window_and_unsent_bytes() {
    let now = Instant::now();
    let mut agent = trunk(Role::Agent, &[], now);
    agent.attach(LaneId(1), LaneKind::Ssm, [0; 32], now);
    let mut carried = 0;
    loop {
        let room = agent.send_room();
        if room == 0 {
            break;
        }
        carried += write(&mut agent, room);
        while agent.poll_record(LaneId(1), 8192, &mut Vec::new(), now) {}
    }
    let window = LaneProfile::of(LaneKind::Ssm, Role::Agent).pace.start;
    assert!(carried > window - LEAST_ROOM && carried <= window, "{carried}");

    let mut client = trunk(Role::Client, &[1], now);
    while client.send_room() > 0 {
        write(&mut client, 50_000);
        while client.poll_record(LaneId(1), 1 << 20, &mut Vec::new(), now) {}
    }
    assert!(client.stats().unacknowledged as u64 > INITIAL_CREDIT - LEAST_ROOM as u64);
    assert!(client.stats().unacknowledged as u64 <= INITIAL_CREDIT);
}

#[test]
fn records_hold_whole_frames_and_keep_to_their_room() {
    let now = Instant::now();
    let mut trunk = trunk(Role::Client, &[1], now);
    trunk.set_ping(Some(Duration::from_secs(1)));
    trunk.handle_timeout(now);
    write(&mut trunk, 30_000);
    for room in [0, 10, 27, 40, 64, 100, 277, 1024, 1500, 8192, 100_000] {
        let mut record = Vec::new();
        let filled = trunk.poll_record(LaneId(1), room, &mut record, now);
        assert_eq!(filled, !record.is_empty());
        assert!(record.len() <= room);
        let (mut parser, mut input) = (Parser::default(), record.as_slice());
        while parser.next_frame(&mut input).unwrap().is_some() {}
        assert_eq!(parser.waiting(), 0);
    }
    assert!(!trunk.wants_to_send(LaneId(1)));
}

#[test]
fn a_lost_lanes_bytes_wait_until_it_is_known_what_arrived() {
    let now = Instant::now();
    let mut agent = trunk(Role::Agent, &[1], now);
    write(&mut agent, 1000);
    let mut record = Vec::new();
    agent.poll_record(LaneId(1), 4096, &mut record, now);
    agent.detach(LaneId(1), now);

    agent.attach(LaneId(2), LaneKind::Tcp, [0; 32], now);
    record.clear();
    agent.poll_record(LaneId(2), 4096, &mut record, now);
    assert_eq!(segments(&record), []);
    agent.peer_received(LaneId(2), 400).unwrap();
    record.clear();
    agent.poll_record(LaneId(2), 4096, &mut record, now);
    assert_eq!(segments(&record), [(400, 600)]);
    assert_eq!((agent.stats().resumes, agent.stats().resent), (1, 600));
    assert!(agent.peer_received(LaneId(2), 2000).is_err());
}

#[test]
fn both_sides_ack_right_after_the_attach_and_never_an_ack() {
    let now = Instant::now();
    let (mut client, mut agent) = (trunk(Role::Client, &[1], now), trunk(Role::Agent, &[1], now));
    for _ in 0..2 {
        let (mut up, mut down) = (Vec::new(), Vec::new());
        let sent = (
            client.poll_record(LaneId(1), 4096, &mut up, now),
            agent.poll_record(LaneId(1), 4096, &mut down, now),
        );
        client.handle_bytes(LaneId(1), &down, now, &mut |_| {}).unwrap();
        agent.handle_bytes(LaneId(1), &up, now, &mut |_| {}).unwrap();
        if sent == (false, false) {
            return assert_eq!((client.poll_timeout(), agent.poll_timeout()), (None, None));
        }
    }
    panic!("acks of acks");
}

#[test]
fn a_repeated_hello_is_dropped_and_another_closes_the_lane() {
    let now = Instant::now();
    let mut agent = Trunk::new(TrunkConfig::new(Role::Agent, 0));
    agent.attach(LaneId(1), LaneKind::Ssm, hello::digest(b"first"), now);
    let hello = |body: &[u8]| {
        let mut wire = Vec::new();
        Frame::Hello(body).encode(&mut wire);
        wire
    };
    assert_eq!(agent.handle_bytes(LaneId(1), &hello(b"first"), now, &mut |_| {}), Ok(()));
    assert_eq!(agent.handle_bytes(LaneId(1), &hello(b"other"), now, &mut |_| {}), Err(LaneFault::OtherHello));
    assert_eq!(agent.handle_bytes(LaneId(1), &[], now, &mut |_| {}), Err(LaneFault::Closed));
    assert!(!agent.poll_record(LaneId(1), 4096, &mut Vec::new(), now));
    assert_eq!(agent.stats().faults, 1);
}

#[test]
fn welcome_and_greeting_again_do_nothing_at_the_client_only() {
    let now = Instant::now();
    let mut wire = Vec::new();
    Frame::Greeting(b"again").encode(&mut wire);
    Frame::Welcome(b"again").encode(&mut wire);
    let mut client = trunk(Role::Client, &[1], now);
    assert_eq!(client.handle_bytes(LaneId(1), &wire, now, &mut |_| {}), Ok(()));
    let mut agent = trunk(Role::Agent, &[1], now);
    assert_eq!(agent.handle_bytes(LaneId(1), &wire, now, &mut |_| {}), Err(LaneFault::Handshake));
}

#[test]
fn goodbye_is_told_once_on_every_lane_and_heard_once() {
    let now = Instant::now();
    let (mut client, mut agent) = (trunk(Role::Client, &[1, 2], now), trunk(Role::Agent, &[1, 2], now));
    write(&mut client, 5000);
    client.goodbye(GoodbyeReason::Done);
    client.goodbye(GoodbyeReason::Fault);
    assert_eq!(client.send_room(), 0);
    for lane in [LaneId(1), LaneId(2)] {
        let mut record = Vec::new();
        assert!(client.wants_to_send(lane));
        assert!(client.poll_record(lane, 4096, &mut record, now));
        assert!(!client.wants_to_send(lane));
        agent.handle_bytes(lane, &record, now, &mut |_| panic!("only the farewell is sent")).unwrap();
    }
    let text = "the session was ended".to_owned();
    assert_eq!(agent.poll_event(), Some(TrunkEvent::Goodbye { reason: GoodbyeReason::Done, text }));
    assert_eq!((agent.poll_event(), agent.send_room()), (None, 0));
}

#[test]
fn a_dead_lane_is_told_once_and_forgotten_with_it() {
    let start = Instant::now();
    let mut client = trunk(Role::Client, &[1, 2], start);
    client.set_ping(Some(Duration::from_secs(1)));
    for tick in 0..9 {
        client.handle_timeout(start + tick * Duration::from_secs(1));
    }
    client.detach(LaneId(2), start);
    let dead = TrunkEvent::LaneDead { lane: LaneId(1), reason: LaneReason::PingsMissed };
    assert_eq!((client.poll_event(), client.poll_event()), (Some(dead), None));
    assert_eq!(client.poll_timeout(), None);
}

#[test]
fn pings_are_answered_and_measured() {
    let start = Instant::now();
    let (mut client, mut agent) = (trunk(Role::Client, &[1], start), trunk(Role::Agent, &[1], start));
    client.set_ping(Some(Duration::from_secs(1)));
    client.handle_timeout(start);
    let (mut up, mut down) = (Vec::new(), Vec::new());
    client.poll_record(LaneId(1), 4096, &mut up, start);
    agent.handle_bytes(LaneId(1), &up.repeat(2), start, &mut |_| {}).unwrap();
    agent.poll_record(LaneId(1), 4096, &mut down, start);
    let back = start + Duration::from_millis(30);
    client.handle_bytes(LaneId(1), &down, back, &mut |_| {}).unwrap();
    let stats = client.lane_stats().next().unwrap();
    assert_eq!((stats.rtt, stats.last_heard), (Some(Duration::from_millis(30)), back));
}

#[test]
fn what_breaks_the_rules_on_one_lane_leaves_the_others_alone() {
    let now = Instant::now();
    let segment = |offset, sequence, bytes: &[u8]| {
        let mut wire = Vec::new();
        Frame::Segment { offset, sequence, bytes }.encode(&mut wire);
        wire
    };
    let ack = |cum, sequence| {
        let mut wire = Vec::new();
        Frame::Ack { cum, credit: u64::MAX, sequence, arrived: 7, wanted: 255 }.encode(&mut wire);
        wire
    };
    let bad: [(Vec<u8>, LaneFault); 5] = [
        (segment(5, 1, b"fgX"), LaneFault::Contradiction { offset: 7 }),
        (segment(1 << 40, 1, b"x"), LaneFault::BeyondCredit { end: (1 << 40) + 1, credit: 16 << 20 }),
        (segment(0, 9, b"x"), LaneFault::Gap { expected: 1, got: 9 }),
        (ack(0, 3), LaneFault::AckOfUnsentSegment { sequence: 3 }),
        (ack(1000, 0), LaneFault::AckOfUnsent { cum: 1000, sent: 500 }),
    ];
    for (wire, fault) in bad {
        let mut agent = trunk(Role::Agent, &[1, 2], now);
        write(&mut agent, 500);
        agent.poll_record(LaneId(1), 4096, &mut Vec::new(), now);
        agent.handle_bytes(LaneId(1), &segment(7, 1, b"hij"), now, &mut |_| panic!("beyond a gap")).unwrap();
        assert_eq!(agent.handle_bytes(LaneId(2), &wire, now, &mut |_| {}), Err(fault));
        assert_eq!(agent.stats().faults, 1);
        agent.detach(LaneId(2), now);

        let mut placed = Vec::new();
        let mut place = |bytes: &[u8]| placed.extend_from_slice(bytes);
        agent.handle_bytes(LaneId(1), &segment(0, 2, b"abcdefg"), now, &mut place).unwrap();
        agent.handle_bytes(LaneId(1), &ack(500, 1), now, &mut place).unwrap();
        assert_eq!(placed, b"abcdefghij");
        assert!(agent.is_drained());
        assert_eq!(agent.demand().peers, 32);
    }
}

#[test]
fn retiring_is_said_once_and_harmless_when_repeated() {
    let now = Instant::now();
    let (mut client, mut agent) = (trunk(Role::Client, &[1, 2], now), trunk(Role::Agent, &[1, 2], now));
    write(&mut agent, 100);
    let mut down = Vec::new();
    agent.poll_record(LaneId(1), 4096, &mut down, now);
    client.retire(LaneId(1));
    client.retire(LaneId(1));
    for _ in 0..4 {
        let mut up = Vec::new();
        client.poll_record(LaneId(1), 4096, &mut up, now);
        client.handle_bytes(LaneId(1), &down, now + Duration::from_millis(9), &mut |_| {}).unwrap();
        client.handle_timeout(now + Duration::from_millis(20));
        agent.handle_bytes(LaneId(1), &up.repeat(2), now, &mut |_| {}).unwrap();
        down.clear();
        agent.poll_record(LaneId(1), 4096, &mut down, now);
        down = down.repeat(2);
    }
    assert_eq!(client.poll_event(), Some(TrunkEvent::LaneDrained { lane: LaneId(1) }));
    assert_eq!((client.poll_event(), agent.poll_event()), (None, None));
    write(&mut agent, 100);
    let mut record = Vec::new();
    agent.poll_record(LaneId(1), 4096, &mut record, now);
    assert_eq!(segments(&record), []);
    agent.poll_record(LaneId(2), 4096, &mut record, now);
    assert_eq!(segments(&record), [(100, 100)]);
}

fn trunk(role: Role, lanes: &[u64], now: Instant) -> Trunk {
    let mut trunk = Trunk::new(TrunkConfig::new(role, 0));
    lanes.iter().for_each(|lane| trunk.attach(LaneId(*lane), LaneKind::Tcp, [0; 32], now));
    trunk
}

fn write(trunk: &mut Trunk, mut length: usize) -> usize {
    let before = length;
    while length > 0 {
        let spare = trunk.spare();
        let written = spare.len().min(length);
        if written == 0 {
            break;
        }
        trunk.commit(written);
        length -= written;
    }
    before - length
}

fn segments(record: &[u8]) -> Vec<(u64, usize)> {
    let (mut parser, mut input, mut found) = (Parser::default(), record, Vec::new());
    while let Some(frame) = parser.next_frame(&mut input).unwrap() {
        if let Frame::Segment { offset, bytes, .. } = frame {
            found.push((offset, bytes.len()));
        }
    }
    found
}
