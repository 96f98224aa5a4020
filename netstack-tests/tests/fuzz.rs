//! The fuzz targets' functions over their committed corpora, and over cases of our own.

#![allow(clippy::disallowed_methods, clippy::print_stdout)]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use netstack_tests::fuzz::{Sights, TARGETS, Target};

#[test]
fn the_corpus_of_every_target_breaks_nothing_and_sees_much() {
    for target in TARGETS {
        let mut sights = Sights::new();
        for entry in fs::read_dir(corpus(&target)).expect("the corpus is committed") {
            let path = entry.expect("a readable directory").path();
            println!("{}", path.display());
            sights.extend((target.run)(&fs::read(path).expect("a readable file"), Instant::now()));
        }
        println!("{} sees {sights:?}", target.name);
        for sight in must_see(target.name) {
            assert!(sights.contains(*sight), "{} never comes to {sight:?}", target.name);
        }
    }
}

#[test]
fn random_cases_break_nothing() {
    let number = |name: &str, otherwise: u64| {
        std::env::var(name)
            .map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
    };
    // More, or others: FUZZ_CASES=1000000 FUZZ_SEED=7 cargo test --release --test fuzz
    let first = number("FUZZ_SEED", 1);
    let cases = first..first + number("FUZZ_CASES", 500);
    let broken = TARGETS.into_iter().filter_map(|target| {
        let breaks = |seed: &u64| {
            let case = target.random_case(*seed);
            catch_unwind(AssertUnwindSafe(|| (target.run)(&case, Instant::now()))).is_err()
        };
        cases.clone().find(breaks).map(|seed| format!("FUZZ_SEED={seed} breaks {}", target.name))
    });
    let broken: Vec<String> = broken.collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Adds to the corpus: of many random cases those that see something no case before has seen.
#[test]
#[ignore = "writes into the source tree; to be run when an input's form changes"]
fn make_the_corpus() {
    for target in TARGETS {
        let (mut sights, mut pairs) = (Sights::new(), Sights::new());
        fs::create_dir_all(corpus(&target)).expect("the corpus' directory");
        let found_bugs =
            FOUND_BUGS.into_iter().filter(|(name, _)| *name == target.name).map(|(_, seed)| seed);
        for (seed, keep) in (1..5000).map(|seed| (seed, false)).chain(found_bugs.map(|seed| (seed, true))) {
            let case = target.random_case(seed);
            let seen = (target.run)(&case, Instant::now());
            // What is seen together was reached by another way.
            let fresh: Sights = seen
                .iter()
                .flat_map(|one| seen.iter().map(move |other| format!("{one} + {other}")))
                .filter(|pair| !pairs.contains(pair))
                .collect();
            if keep || fresh.len() > 6 || !seen.is_subset(&sights) {
                sights.extend(seen);
                pairs.extend(fresh);
                fs::write(corpus(&target).join(format!("seed-{seed}")), case).expect("a writable corpus");
            }
        }
    }
}

fn corpus(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target.name)
}

/// What a corpus that is worth something comes across.
fn must_see(target: &str) -> &'static [&'static str] {
    match target {
        "handshake" => &["client is content", "client AgentProof", "agent ClientProof", "agent Malformed"],
        "messages" => &["open of 8 bytes", "answer of 16 bytes", "reader 3 messages, then None"],
        "mux" => &["closed", "broken off", "peer OpenedTwice", "GivenUp", "refused true violations true"],
        "netstack" => {
            &["closed", "finished", "readable", "reset, read true", "drop reset_place", "drop ack_unsent"]
        }
        "ssm" => &["opened", "data", "closed", "BadHandshake", "ReorderFull", "Wedged"],
        "trunk" => &["sent Segment", "sent Pong", "Gap", "BeyondCredit", "LaneDead", "Goodbye"],
        other => panic!("say what the corpus of {other} comes across"),
    }
}

/// Cases that once broke something.
const FOUND_BUGS: [(&str, u64); 1] = [("netstack", 1_023_759)];
