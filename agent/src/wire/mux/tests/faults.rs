//! Peers that break the rules, leave, give up or flood.

use super::*;

#[test]
fn bytes_beyond_the_window_reset_that_stream_only() {
    let (_, mut b) = pair(|_| {});
    b.handle(&data(Flags::SYN, 1, &payload(1, 0, 2000))).expect("valid");
    b.handle(&data(Flags::SYN, 3, &payload(3, 0, 10))).expect("valid");

    b.handle(&data(Flags::NONE, 1, &payload(1, 2000, 1))).expect("concerns one stream");
    b.handle(&data(Flags::NONE, 3, &payload(3, 10, 10))).expect("valid");

    assert_eq!((b.owner.flows[0].pushed, b.owner.flows[0].resets), (2000, 1));
    assert_eq!((b.owner.flows[1].pushed, b.mux.stats().violations), (20, 1));
    assert_eq!(b.headers(100), [Header { kind: Kind::WindowUpdate, flags: Flags::RST, id: 1, length: 0 }]);
}

#[test]
fn bytes_after_fin_and_credit_beyond_counting_reset_the_stream() {
    let (_, mut b) = pair(|_| {});
    b.handle(&data(Flags::SYN.and(Flags::FIN), 1, b"")).expect("valid");
    b.handle(&data(Flags::SYN, 3, b"")).expect("valid");

    b.handle(&data(Flags::NONE, 1, b"x")).expect("concerns one stream");
    b.handle(&frame(Kind::WindowUpdate, Flags::NONE, 3, u32::MAX)).expect("concerns one stream");

    assert_eq!((b.owner.flows[0].resets, b.owner.flows[1].resets), (1, 1));
}

#[test]
fn a_broken_protocol_is_final_and_the_peer_is_told() {
    let cases = [
        (frame(Kind::Data, Flags::SYN, 0, 0), Violation::WrongId(0)),
        (frame(Kind::Data, Flags::SYN, 2, 0), Violation::WrongId(2)),
        ([data(Flags::SYN, 1, b""), data(Flags::SYN, 1, b"")].concat(), Violation::OpenedTwice(1)),
        (vec![1; 12], Violation::Version(1)),
    ];
    for (bytes, violation) in cases {
        let (_, mut b) = pair(|_| {});
        let fault = Err(MuxFault::Peer(violation));

        assert_eq!(b.handle(&bytes), fault);
        assert_eq!(b.handle(&data(Flags::SYN, 5, b"")), fault);
        assert_eq!(b.headers(1000), [Header { kind: Kind::GoAway, flags: Flags::NONE, id: 0, length: 1 }]);
        assert!(!b.mux.wants_to_send());
        assert_eq!(b.mux.open(Token(1)), Err(MuxFull::Left));
    }
}

#[test]
fn a_frame_for_a_stream_not_yet_announced_is_ignored() {
    let (mut a, _) = pair(|_| {});
    let flow = a.open();

    a.handle(&data(Flags::NONE, 1, b"guess")).expect("ignored");
    a.handle(&frame(Kind::WindowUpdate, Flags::RST, 1, 0)).expect("ignored");

    assert_eq!((a.owner.flows[flow].pushed, a.mux.len(), a.mux.stats().ignored), (0, 1, 2));
}

#[test]
fn a_peer_that_leaves_keeps_its_streams() {
    let (mut a, mut b) = pair(|_| {});
    let flow = a.open();
    a.write(flow, 10);
    settle(&mut a, &mut b);

    b.mux.leave();
    settle(&mut a, &mut b);
    b.write(0, 500);
    settle(&mut a, &mut b);

    assert!(a.mux.peer_left());
    assert_eq!(a.mux.open(Token(5)), Err(MuxFull::Left));
    assert_eq!(a.owner.flows[flow].pushed, 500);
}

#[test]
fn a_peer_that_gives_up_ends_the_mux() {
    let (mut a, _) = pair(|_| {});
    let flow = a.open();
    a.write(flow, 10);

    assert_eq!(a.handle(&frame(Kind::GoAway, Flags::NONE, 0, 2)), Err(MuxFault::GivenUp(2)));
    assert!(!a.mux.wants_to_send());
    assert_eq!(a.send(1000), 0);
}

#[test]
fn a_flood_of_pings_is_answered_by_few_pongs() {
    let (mut a, _) = pair(|_| {});
    for value in 0..1000 {
        a.handle(&frame(Kind::Ping, Flags::SYN, 0, value)).expect("valid");
    }

    let answers: Vec<u32> = a.headers(100_000).iter().map(|pong| pong.length).collect();

    assert_eq!(answers, [0, 1, 2, 3, 4, 5, 6, 999]);
}

#[test]
fn a_flood_of_opens_beyond_the_limit_is_bounded() {
    let (_, mut b) = pair(|config| config.max_streams = 1);
    let flood: Vec<u8> = (0..2000).flat_map(|n| data(Flags::SYN, 2 * n + 1, b"")).collect();

    assert_eq!(b.handle(&flood), Err(MuxFault::Flood));
}
