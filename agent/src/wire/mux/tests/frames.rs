//! What rides on which frame, and how streams begin and end.

use super::*;

/// The client opens stream 1 with three bytes, sends more, gives credit, and finishes.
fn conversation() -> Vec<u8> {
    [
        data(Flags::SYN, 1, &payload(1, 0, 3)),
        frame(Kind::Ping, Flags::SYN, 0, 77),
        data(Flags::NONE, 1, &payload(1, 3, 100)),
        frame(Kind::WindowUpdate, Flags::NONE, 1, 1000),
        data(Flags::NONE, 99, b"for nobody"),
        data(Flags::FIN, 1, &payload(1, 103, 5)),
        frame(Kind::WindowUpdate, Flags::SYN, 3, 50),
        frame(Kind::WindowUpdate, Flags::RST, 3, 0),
    ]
    .concat()
}

fn summary(side: &mut Side) -> (Vec<String>, MuxStats, Vec<Header>) {
    (side.owner.flows.iter().map(|flow| format!("{flow:?}")).collect(), side.mux.stats(), side.headers(1000))
}

#[test]
fn a_conversation_cut_anywhere_is_the_same() {
    let bytes = conversation();
    let agent = || pair(|_| {}).1;
    let mut whole = agent();
    whole.handle(&bytes).expect("valid");
    let whole = summary(&mut whole);
    assert!(whole.0[0].contains("pushed: 108") && whole.0[0].contains("finished: 1"), "{whole:?}");
    assert!(whole.0[1].contains("resets: 1"), "{whole:?}");
    assert_eq!(whole.2, [Header { kind: Kind::Ping, flags: Flags::ACK, id: 0, length: 77 }]);

    for cut in 0..bytes.len() {
        let mut side = agent();
        side.handle(&bytes[..cut]).expect("a prefix is valid");
        side.handle(&bytes[cut..]).expect("the rest is valid");
        assert_eq!(summary(&mut side), whole, "cut at {cut}");
    }
    let mut side = agent();
    for byte in bytes {
        side.handle(&[byte]).expect("valid");
    }
    assert_eq!(summary(&mut side), whole);
}

#[test]
fn open_bytes_and_fin_ride_on_one_frame() {
    let (mut a, _) = pair(|_| {});
    let flow = a.open();
    a.write(flow, 10);
    a.finish(flow);

    let flags = Flags::SYN.and(Flags::FIN);
    assert_eq!(a.headers(1000), [Header { kind: Kind::Data, flags, id: 1, length: 10 }]);
}

#[test]
fn the_acceptor_acknowledges_with_its_first_frame() {
    let (mut a, mut b) = pair(|_| {});
    let flow = a.open();
    a.write(flow, 10);
    a.send(1000);
    b.receive(&mut a, usize::MAX);
    assert!(!b.mux.wants_to_send());

    b.write(0, 1);
    assert_eq!(b.headers(1000), [Header { kind: Kind::Data, flags: Flags::ACK, id: 1, length: 1 }]);
    b.write(0, 1);
    assert_eq!(b.headers(1000), [Header { kind: Kind::Data, flags: Flags::NONE, id: 1, length: 1 }]);
}

#[test]
fn a_foreign_peer_is_acknowledged_at_once() {
    let mut agent = Side::new(MuxConfig::foreign(Role::Agent));
    agent.handle(&data(Flags::SYN, 1, b"")).expect("valid");

    assert_eq!(
        agent.headers(1000),
        [Header { kind: Kind::WindowUpdate, flags: Flags::ACK, id: 1, length: 0 }]
    );
}

#[test]
fn a_half_closed_stream_still_receives() {
    let (mut a, mut b) = pair(|_| {});
    let flow = a.open();
    a.write(flow, 10);
    a.finish(flow);
    settle(&mut a, &mut b);
    assert_eq!((b.owner.flows[0].finished, b.owner.flows[0].closed), (1, 0));

    b.write(0, 20_000);
    settle(&mut a, &mut b);
    assert_eq!(a.owner.flows[flow].pushed, 20_000);
    b.finish(0);
    settle(&mut a, &mut b);

    assert_eq!((a.owner.flows[flow].closed, b.owner.flows[0].closed), (1, 1));
    check(&a, &b);
}

#[test]
fn a_reset_after_fin_is_sent() {
    let (mut a, mut b) = pair(|_| {});
    let flow = a.open();
    a.finish(flow);
    settle(&mut a, &mut b);

    a.reset(flow);
    settle(&mut a, &mut b);

    assert_eq!((b.owner.flows[0].finished, b.owner.flows[0].resets), (1, 1));
    assert!(a.mux.is_empty() && b.mux.is_empty());
}

#[test]
fn a_stream_reset_before_its_first_frame_was_never_there() {
    let (mut a, _) = pair(|_| {});
    let flow = a.open();
    a.write(flow, 10);

    a.reset(flow);

    assert_eq!((a.send(1000), a.mux.len()), (0, 0));
}

#[test]
fn bytes_that_come_after_our_reset_are_skipped() {
    let (mut a, mut b) = pair(|_| {});
    let flow = a.open();
    a.write(flow, 1500);
    a.send(1600);
    b.receive(&mut a, 700);

    b.reset(0);
    b.receive(&mut a, usize::MAX);
    a.write(flow, 100);
    settle(&mut a, &mut b);

    assert_eq!(a.owner.flows[flow].resets, 1);
    assert!(b.mux.is_empty());
    let next = a.open();
    a.write(next, 5);
    settle(&mut a, &mut b);
    assert_eq!(b.owner.flows[1].pushed, 5);
}

#[test]
fn one_stream_too_many_is_reset_alone() {
    let (mut a, mut b) = pair(|_| {});
    b.mux.config.max_streams = 2;
    let flows = [a.open(), a.open(), a.open()];
    for flow in flows {
        a.write(flow, 100);
    }

    settle(&mut a, &mut b);
    a.write(flows[0], 5000);
    settle(&mut a, &mut b);

    assert_eq!(flows.map(|flow| a.owner.flows[flow].resets), [0, 0, 1]);
    assert_eq!(b.owner.flows[0].pushed, 5100);
    assert_eq!((b.mux.stats().refused, b.mux.len()), (1, 2));
    assert_eq!(b.mux.open(Token(7)), Err(MuxFull::Streams));
}

#[test]
fn a_stream_the_owner_does_not_want_is_reset() {
    let (mut a, mut b) = pair(|_| {});
    b.owner.refuses = true;
    let flow = a.open();
    a.write(flow, 100);

    settle(&mut a, &mut b);

    assert_eq!(a.owner.flows[flow].resets, 1);
}

#[test]
fn the_last_id_is_used_once() {
    let (mut a, _) = pair(|_| {});
    a.mux.next_id = Some(u32::MAX);

    assert_eq!(a.mux.open(Token(1)), Ok(StreamId(u32::MAX)));
    assert_eq!(a.mux.open(Token(2)), Err(MuxFull::Ids));
}
