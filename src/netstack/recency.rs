//! Pure: slots in the order they were last used; each step costs the same whatever their number.

/// A doubly linked list through the slots.
pub(super) struct Recency {
    links: Vec<Link>,
    oldest: u32,
    newest: u32,
    len: usize,
}

#[derive(Clone, Copy)]
struct Link {
    older: u32,
    newer: u32,
    listed: bool,
}

impl Default for Recency {
    fn default() -> Self {
        Self { links: Vec::new(), oldest: NONE, newest: NONE, len: 0 }
    }
}

impl Recency {
    /// Makes the slot the one used last.
    pub(super) fn touch(&mut self, slot: u32) {
        if self.newest == slot {
            return;
        }
        self.remove(slot);
        let at = slot as usize;
        if at >= self.links.len() {
            self.links.resize(at + 1, Link { older: NONE, newer: NONE, listed: false });
        }
        self.links[at] = Link { older: self.newest, newer: NONE, listed: true };
        match self.links.get_mut(self.newest as usize) {
            Some(link) => link.newer = slot,
            None => self.oldest = slot,
        }
        self.newest = slot;
        self.len += 1;
    }

    pub(super) fn remove(&mut self, slot: u32) {
        let Some(&Link { older, newer, listed: true }) = self.links.get(slot as usize) else { return };
        self.links[slot as usize].listed = false;
        match self.links.get_mut(older as usize) {
            Some(link) => link.newer = newer,
            None => self.oldest = newer,
        }
        match self.links.get_mut(newer as usize) {
            Some(link) => link.older = older,
            None => self.newest = older,
        }
        self.len -= 1;
    }

    /// The slot that has not been used for longest.
    pub(super) fn oldest(&self) -> Option<u32> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}

/// No slot: the table never grows so long.
const NONE: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_list_by_last_use(steps in prop::collection::vec((0..12u32, any::<bool>()), 0..200)) {
            let mut recency = Recency::default();
            let mut model: Vec<u32> = Vec::new();
            for (slot, touch) in steps {
                model.retain(|other| *other != slot);
                if touch {
                    recency.touch(slot);
                    model.push(slot);
                } else {
                    recency.remove(slot);
                }
                prop_assert_eq!(recency.oldest(), model.first().copied());
                prop_assert_eq!(recency.len(), model.len());
            }
            for slot in model {
                prop_assert_eq!(recency.oldest(), Some(slot));
                recency.remove(slot);
            }
            prop_assert_eq!(recency.oldest(), None);
        }
    }
}
