//! Windows, room and credit.

use super::*;

#[test]
fn windows_grow_with_use_and_the_budget_is_given_back() {
    let (mut a, mut b) = pair(|config| config.budget = 40_000);
    let flows: Vec<usize> = (0..3).map(|_| a.open()).collect();
    for &flow in &flows {
        a.write(flow, 300_000);
    }
    settle(&mut a, &mut b);

    let stats = b.mux.stats();
    assert_eq!(stats.grown, 40_000);
    assert!(b.mux.table.find(1).is_some_and(|slot| b.mux.table[slot].window.size() > 2000));
    assert!(stats.granted <= 3 * 2000 + 40_000);
    for flow in flows {
        a.reset(flow);
    }
    settle(&mut a, &mut b);
    assert_eq!((b.mux.stats().grown, b.mux.stats().granted), (0, 0));
}

#[test]
fn a_stalled_reader_holds_no_more_than_its_window() {
    let (mut a, mut b) = pair(|_| {});
    let flow = a.open();
    a.write(flow, 1);
    settle(&mut a, &mut b);
    a.write(flow, 300_000);
    for _ in 0..100 {
        a.send(5000);
        b.receive(&mut a, usize::MAX);
        b.read(0, 0);
        b.send(5000);
        a.receive(&mut b, usize::MAX);
    }

    assert_eq!(b.owner.flows[0].unread, 2000);
}

#[test]
fn a_slow_reader_does_not_make_its_window_grow() {
    let (mut a, mut b) = pair(|_| {});
    let flow = a.open();
    a.write(flow, 300_000);
    for _ in 0..200 {
        a.send(5000);
        b.receive(&mut a, usize::MAX);
        b.now += Duration::from_millis(50);
        b.read(0, 300);
        b.send(5000);
        a.receive(&mut b, usize::MAX);
    }

    assert_eq!(b.mux.stats().grown, 0);
    assert!(b.owner.flows[0].pushed > 50_000);
}

#[test]
fn credit_is_never_more_than_room() {
    let (mut a, mut b) = pair(|_| {});
    let flow = a.open();
    a.write(flow, 2000);
    a.send(5000);
    b.receive(&mut a, usize::MAX);
    let id = b.id(0);

    for room in [0, 1, 700] {
        b.mux.set_room(id, room, b.now);
        let granted: u32 = b.headers(1000).iter().map(|update| update.length).sum();
        assert_eq!(b.mux.stats().granted, room as u64, "{granted} more at {room}");
        let Some(slot) = b.mux.table.find(1) else { panic!("open") };
        assert!(b.mux.table[slot].window.arrived(room as u32));
        b.mux.stats.granted -= room as u64;
    }
}

#[test]
fn one_update_announces_all_credit() {
    let (mut a, mut b) = pair(|_| {});
    let flow = a.open();
    a.write(flow, 2000);
    a.send(5000);
    b.receive(&mut a, usize::MAX);

    for _ in 0..20 {
        b.read(0, 100);
    }

    assert_eq!(
        b.headers(1000),
        [Header { kind: Kind::WindowUpdate, flags: Flags::ACK, id: 1, length: 2000 }]
    );
}
