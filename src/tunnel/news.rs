//! What the engine tells of the lanes, until who keeps them hears it.
//!
//! The engine waits for nobody, and a lane that is lost is told of once. So nothing is turned away here: what is told
//! again takes the place of what waits. There are never more than a few items for each lane, and two for the trunk.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::mem::discriminant;
use std::rc::Rc;

use agent::engine::LaneNews;
use tokio::sync::Notify;

/// Where the engine tells; the news end when it is dropped.
pub struct Teller(Rc<Shared>);

/// What was told and not yet heard.
pub struct News(Rc<Shared>);

#[derive(Default)]
struct Shared {
    waiting: RefCell<VecDeque<LaneNews>>,
    told: Notify,
    over: Cell<bool>,
}

/// For an engine and a keeper on one thread.
pub fn channel() -> (Teller, News) {
    let shared = Rc::new(Shared::default());
    (Teller(shared.clone()), News(shared))
}

impl Teller {
    pub fn tell(&self, item: LaneNews) {
        let mut waiting = self.0.waiting.borrow_mut();
        if let Some(at) = waiting.iter().position(|earlier| replaces(&item, earlier)) {
            waiting.remove(at);
        }
        waiting.push_back(item);
        self.0.told.notify_one();
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.0.over.set(true);
        self.0.told.notify_one();
    }
}

impl News {
    /// The next item in the order of their telling; `None` once all are heard and none can follow. May be cancelled.
    pub async fn next(&mut self) -> Option<LaneNews> {
        loop {
            if let Some(item) = self.0.waiting.borrow_mut().pop_front() {
                return Some(item);
            }
            if self.0.over.get() {
                return None;
            }
            self.0.told.notified().await;
        }
    }
}

/// Whether who hears `item` need not have heard `earlier`: they are of one kind, and of one lane where it is about one.
fn replaces(item: &LaneNews, earlier: &LaneNews) -> bool {
    discriminant(item) == discriminant(earlier) && item.lane() == earlier.lane()
}

#[cfg(test)]
mod tests {
    use agent::wire::trunk::{Demand, LaneId};

    use super::*;

    #[tokio::test]
    async fn no_loss_is_forgotten_while_nobody_hears_of_progress() {
        let (teller, mut news) = channel();
        for turn in 0..1000 {
            teller.tell(LaneNews::Busy(turn % 2 == 0));
            teller.tell(LaneNews::Demand(Demand { ours: (turn % 8) as u8, peers: 0 }));
            teller.tell(LaneNews::Stalled { lane: LaneId(7) });
        }
        teller.tell(lost(7));
        teller.tell(lost(8));
        drop(teller);

        let mut heard = Vec::new();
        while let Some(item) = news.next().await {
            heard.push(format!("{item:?}"));
        }
        let told = [
            LaneNews::Busy(false),
            LaneNews::Demand(Demand { ours: 7, peers: 0 }),
            LaneNews::Stalled { lane: LaneId(7) },
            lost(7),
            lost(8),
        ];
        assert_eq!(heard, told.map(|item| format!("{item:?}")));
    }

    #[tokio::test]
    async fn who_waits_is_woken_by_news_and_by_their_end() {
        let (teller, mut news) = channel();
        let (heard, ()) = tokio::join!(news.next(), async { teller.tell(lost(1)) });
        assert!(matches!(heard, Some(LaneNews::Lost { lane: LaneId(1), .. })));
        let (heard, ()) = tokio::join!(news.next(), async { drop(teller) });
        assert!(heard.is_none());
    }

    fn lost(lane: u64) -> LaneNews {
        LaneNews::Lost { lane: LaneId(lane), lanes: 0, reason: "cut".to_owned() }
    }
}
