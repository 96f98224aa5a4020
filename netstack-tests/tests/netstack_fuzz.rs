//! The fuzz target's function over its committed corpus, and over cases of our own.

#![allow(clippy::disallowed_methods, clippy::print_stdout)]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use netstack_tests::fuzz::{self, Sights};

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/netstack")
}

#[test]
fn the_corpus_of_the_fuzz_target_breaks_nothing_and_sees_much() {
    let mut sights = Sights::new();
    let entries = fs::read_dir(corpus()).expect("the corpus is committed");
    for entry in entries {
        let path = entry.expect("a readable directory").path();
        println!("{}", path.display());
        sights.extend(fuzz::run(&fs::read(path).expect("a readable file"), Instant::now()));
    }
    for sight in ["closed", "finished", "readable", "reset, read true", "drop reset_place", "drop ack_unsent"]
    {
        assert!(sights.contains(sight), "the corpus never comes to {sight:?}: {sights:?}");
    }
}

#[test]
fn random_cases_break_nothing() {
    let number = |name: &str, otherwise: u64| {
        std::env::var(name)
            .map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
    };
    // More, or others: FUZZ_CASES=1000000 FUZZ_SEED=7 cargo test --release --test netstack_fuzz
    let first = number("FUZZ_SEED", 1);
    for seed in first..first + number("FUZZ_CASES", 1_000) {
        let case = fuzz::random_case(seed);
        if catch_unwind(AssertUnwindSafe(|| fuzz::run(&case, Instant::now()))).is_err() {
            panic!("FUZZ_SEED={seed} breaks it: {case:?}");
        }
    }
}

/// Writes a new corpus: of many random cases those that see something no case before has seen.
#[test]
#[ignore = "writes into the source tree; to be run when the input's form changes"]
fn make_the_corpus() {
    let mut sights = Sights::new();
    fs::create_dir_all(corpus()).expect("the corpus' directory");
    for seed in (1..20_000).chain(FOUND_BUGS) {
        let case = fuzz::random_case(seed);
        let seen = fuzz::run(&case, Instant::now());
        // Pairs of sights: what is seen together was reached by another way.
        let pairs = seen.iter().flat_map(|one| seen.iter().map(move |other| format!("{one} + {other}")));
        let fresh = pairs.filter(|pair| !sights.contains(pair)).collect::<Vec<_>>();
        if fresh.len() > 6 || FOUND_BUGS.contains(&seed) {
            sights.extend(fresh);
            fs::write(corpus().join(format!("seed-{seed}")), case).expect("a writable corpus");
        }
    }
}

/// Cases that once broke something.
const FOUND_BUGS: [u64; 1] = [1_023_759];
