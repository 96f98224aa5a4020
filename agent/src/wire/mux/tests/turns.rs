//! Whose turn it is, and how frames are cut.

use super::*;

#[test]
fn a_lone_byte_passes_64_bulk_streams() {
    let (mut a, _) = pair(|config| (config.initial_window, config.max_frame) = (1 << 20, 1000));
    for _ in 0..64 {
        let flow = a.open();
        a.write(flow, 1 << 20);
    }
    let sparse = a.open();
    a.headers(300_000);

    for _ in 0..100 {
        assert!(a.headers(4096).iter().all(|header| header.id != a.id(sparse).0));
        a.write(sparse, 1);
        let first = a.headers(4096)[0];
        assert_eq!((first.id, first.length), (a.id(sparse).0, 1));
    }
}

#[test]
fn bulk_streams_share_evenly() {
    let (mut a, _) = pair(|config| (config.initial_window, config.max_frame) = (1 << 20, 1000));
    for _ in 0..8 {
        let flow = a.open();
        a.write(flow, 1 << 20);
    }
    for _ in 0..500 {
        a.send(1024);
    }

    let pulled: Vec<usize> = a.owner.flows.iter().map(|flow| flow.pulled).collect();
    let (least, most) = (pulled.iter().min(), pulled.iter().max());
    assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 2000), "{pulled:?}");
}

#[test]
fn any_buffer_longer_than_a_header_makes_progress() {
    for room in HEADER + 1..200 {
        let (mut a, mut b) = pair(|_| {});
        let flow = a.open();
        a.write(flow, 500);
        a.finish(flow);
        for _ in 0..600 {
            a.send(room);
            b.receive(&mut a, usize::MAX);
        }
        assert_eq!((b.owner.flows[0].pushed, b.owner.flows[0].finished), (500, 1), "{room} bytes");
    }
}

#[test]
fn a_frame_is_not_cut_to_crumbs() {
    let (mut a, _) = pair(|config| config.max_frame = 500);
    let flow = a.open();
    a.write(flow, 1000);

    let lengths = |headers: Vec<Header>| headers.iter().map(|header| header.length).collect::<Vec<_>>();
    assert_eq!(lengths(a.headers(HEADER + 500 + HEADER + 63)), [500]);
    assert_eq!(lengths(a.headers(HEADER + 436)), [436]);
    assert_eq!(lengths(a.headers(1000)), [64]);
}

#[test]
fn bytes_without_ready_still_go_before_fin() {
    let (mut a, mut b) = pair(|config| config.max_frame = 100);
    let flow = a.open();
    a.write(flow, 1);
    settle(&mut a, &mut b);

    a.owner.flows[flow].waiting += 300;
    a.finish(flow);
    settle(&mut a, &mut b);

    assert_eq!((b.owner.flows[0].pushed, b.owner.flows[0].finished), (301, 1));
}
