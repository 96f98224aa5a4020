//! Pure: a set of offsets, kept as ranges.

use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct Ranges {
    /// Start to end; neither empty nor overlapping nor touching.
    by_start: BTreeMap<u64, u64>,
    total: u64,
}

impl Ranges {
    pub(super) fn insert(&mut self, mut start: u64, mut end: u64) {
        if start >= end {
            return;
        }
        while let Some((&before, &before_end)) = self.by_start.range(..=end).next_back()
            && before_end >= start
        {
            self.take(before);
            start = start.min(before);
            end = end.max(before_end);
        }
        self.put(start, end);
    }

    pub(super) fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        while let Some((&before, &before_end)) = self.by_start.range(..end).next_back()
            && before_end > start
        {
            self.take(before);
            self.put(before, start.min(before_end));
            self.put(end.max(before), before_end);
        }
    }

    /// The lowest range.
    pub(super) fn first(&self) -> Option<(u64, u64)> {
        self.iter().next()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.by_start.iter().map(|(start, end)| (*start, *end))
    }

    /// How many offsets are in the set.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    fn take(&mut self, start: u64) {
        if let Some(end) = self.by_start.remove(&start) {
            self.total -= end - start;
        }
    }

    fn put(&mut self, start: u64, end: u64) {
        if start < end {
            self.by_start.insert(start, end);
            self.total += end - start;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_the_set_of_its_offsets(steps in proptest::collection::vec((any::<bool>(), 0u64..60, 0u64..20), 0..40)) {
            let (mut ranges, mut model) = (Ranges::default(), BTreeSet::new());
            for (insert, start, length) in steps {
                let end = start + length;
                if insert {
                    ranges.insert(start, end);
                    model.extend(start..end);
                } else {
                    ranges.remove(start, end);
                    model.retain(|at| !(start..end).contains(at));
                }
                let all: Vec<u64> = ranges.iter().flat_map(|(start, end)| start..end).collect();
                prop_assert_eq!(&all, &model.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(ranges.total(), model.len() as u64);
                let pieces: Vec<_> = ranges.iter().collect();
                prop_assert!(pieces.windows(2).all(|pair| pair[0].1 < pair[1].0), "{pieces:?}");
            }
        }
    }
}
