//! Counts by name, and their comparison with the committed ones.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

/// Counts by `scenario: what`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Table(BTreeMap<String, u64>);

impl Table {
    pub(crate) fn add(&mut self, scenario: &str, counts: &[(&str, u64)]) {
        for (what, count) in counts {
            let old = self.0.insert(format!("{scenario}: {what}"), *count);
            assert_eq!(old, None, "{scenario}: {what} is counted twice");
        }
    }

    /// Fails when a count differs from the committed one by more than the tolerance, to either side.
    pub(crate) fn compare(&self) {
        if std::env::var_os("RENEW_SNAPSHOT").is_some() {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshot/counts.txt");
            std::fs::write(path, self.text()).expect("the sources can be written");
            return;
        }
        let differences = self.differences(&Self::parse(COMMITTED));
        assert!(
            differences.is_empty(),
            "\n{differences}\nMore of anything is a regression unless the change is worth it; fewer is progress that \
             must be kept.\nIf this is meant, renew the numbers and commit them with the change:\n    \
             RENEW_SNAPSHOT=1 cargo test -p netstack-tests --test snapshot\n"
        );
    }

    fn differences(&self, committed: &Self) -> String {
        let mut text = String::new();
        let names = self.0.keys().chain(committed.0.keys().filter(|name| !self.0.contains_key(*name)));
        for name in names {
            match (committed.0.get(name), self.0.get(name)) {
                (Some(old), Some(new)) if is_close(*old, *new) => {}
                (Some(old), Some(new)) => {
                    let change = (*new as f64 / (*old).max(1) as f64 - 1.0) * 100.0;
                    let _ = writeln!(text, "{name}: {old} -> {new} ({change:+.1} %)");
                }
                (Some(old), None) => drop(writeln!(text, "{name}: {old} -> no longer counted")),
                (None, new) => drop(writeln!(text, "{name}: new: {new:?}")),
            }
        }
        text
    }

    fn text(&self) -> String {
        self.0.iter().map(|(name, count)| format!("{name} = {count}\n")).collect()
    }

    fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let (name, count) = line.split_once(" = ").expect("a line is `name = count`");
            (name.to_owned(), count.parse().expect("a count is a number"))
        };
        Self(text.lines().map(line).collect())
    }
}

fn is_close(old: u64, new: u64) -> bool {
    old.abs_diff(new) * 100 <= old * TOLERANCE
}

const COMMITTED: &str = include_str!("counts.txt");
/// Percent; other versions of a dependency may cut things a little differently.
const TOLERANCE: u64 = 2;

#[test]
fn a_change_is_told_with_its_size_and_a_small_one_is_not() {
    let committed = Table::parse("a: packets = 1000\na: polls = 1000\na: timers = 0\nb: packets = 5\n");
    let mut now = Table::default();
    now.add("a", &[("packets", 1_020), ("polls", 1_021), ("timers", 1)]);
    now.add("c", &[("packets", 3)]);

    let text = now.differences(&committed);

    let expected = "a: polls: 1000 -> 1021 (+2.1 %)\na: timers: 0 -> 1 (+0.0 %)\nc: packets: new: Some(3)\n\
                    b: packets: 5 -> no longer counted\n";
    assert_eq!(text, expected);
    assert_eq!(Table::parse(&now.text()), now);
}
