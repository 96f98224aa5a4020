//! How often engines are woken, and turn, for bulk: counted in virtual time, so the same on every machine.
//!
//! A change that means to alter the numbers puts those of the message into the table below.

use super::*;

#[test]
fn bulk_takes_as_many_turns_as_it_did() {
    let counted = TURNS_OF_BULK.map(|(bytes, _)| (bytes, turns_of(bytes)));
    assert!(
        TURNS_OF_BULK.iter().zip(&counted).all(|(old, new)| new.1.abs_diff(old.1) * 50 <= old.1),
        "counted {counted:?}, committed {TURNS_OF_BULK:?}: more is a regression unless the change is worth it, fewer \
         is progress; if it is meant, commit the counted numbers as TURNS_OF_BULK"
    );
}

fn turns_of(bytes: [usize; 2]) -> u64 {
    let setting = Setting { flows: 0, capacity: 300_000, record: 140_000, ..Setting::default() };
    let mut world = World::new(setting);
    let plan = Plan { bytes, buffer: [1 << 20; 2], ..Plan::plain() };
    world.stage.borrow_mut().plans = vec![plan];
    world.stage.borrow_mut().logs = vec![Default::default()];
    world.sides[0].engine_mut().flows.ends.want(0);
    world.run_for(Duration::from_secs(10));
    assert_eq!(world.stage.borrow().logs[0][0].over, Some(Over::Closed));
    world.turns
}

/// Bytes of the client's and of the agent's side, and the turns of both engines together; within 2 %.
const TURNS_OF_BULK: [([usize; 2], u64); 3] =
    [([4 << 20, 0], 3_594), ([0, 4 << 20], 3_790), ([4 << 20, 4 << 20], 4_935)];
