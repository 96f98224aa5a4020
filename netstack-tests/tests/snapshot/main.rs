//! What fixed scenarios cost, counted in virtual time and compared with committed numbers.
//!
//! Counts do not depend on the machine, so they find what a benchmark on a busy one cannot: a packet, a poll, a timer
//! or a frame more than before. A change that means to alter them renews `counts.txt` in its own commit:
//!
//!     RENEW_SNAPSHOT=1 cargo test -p netstack-tests --test snapshot

#![allow(clippy::disallowed_methods)]

mod applications;
mod table;
mod wire;

use table::Table;

#[test]
fn nothing_costs_more_than_it_did() {
    let mut table = Table::default();
    applications::count(&mut table);
    wire::count(&mut table);
    table.compare();
}

#[test]
fn the_same_scenario_gives_the_same_counts() {
    let count = || {
        let mut table = Table::default();
        applications::lossy(&mut table);
        wire::short(&mut table);
        table
    };
    assert_eq!(count(), count());
}
