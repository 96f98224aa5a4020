//! What the network, the service and the SSM agent do to sessions that run.

use std::thread;
use std::time::Duration;

use super::{Count, Direction, Knobs, Mix, Rng, Simulator, What};

/// One thing that happens; those of a session happen to any that is active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    CutClient,
    CutClientAbruptly,
    CutAgent,
    CutAll,
    BlackHoleClient,
    BlackHoleAgent,
    EndSession,
    Recycle,
    BurstLoss,
    Throttle,
    Duplicate,
    Reorder,
    DelayJump,
}

impl Fault {
    pub const ALL: [Self; 13] = [
        Self::CutClient,
        Self::CutClientAbruptly,
        Self::CutAgent,
        Self::CutAll,
        Self::BlackHoleClient,
        Self::BlackHoleAgent,
        Self::EndSession,
        Self::Recycle,
        Self::BurstLoss,
        Self::Throttle,
        Self::Duplicate,
        Self::Reorder,
        Self::DelayJump,
    ];

    /// Does it; false when nothing came of it. What would last is undone after [`SPELL`], for which the caller waits.
    pub fn strike(self, simulator: &Simulator, rng: &mut Rng) -> bool {
        let active = simulator.active_sessions();
        let Some(last) = active.len().checked_sub(1) else { return false };
        let id = &active[rng.between(0, last as u64) as usize].id;
        match self {
            Self::CutClient => simulator.cut_client(id),
            Self::CutClientAbruptly => simulator.cut_client_abruptly(id),
            Self::CutAgent => simulator.cut_agent(id),
            Self::CutAll => {
                simulator.cut_all();
                true
            }
            Self::BlackHoleClient => simulator.black_hole_client(id),
            Self::BlackHoleAgent => simulator.black_hole_agent(id),
            Self::EndSession => simulator.end_session(id, "ended by the test"),
            Self::Recycle => spell(simulator, Count::AgentConnects, |knobs| {
                knobs.client_recycle = Some(Duration::from_millis(700));
                knobs.agent_recycle = Some(Duration::from_millis(900));
            }),
            Self::BurstLoss => {
                for (direction, most) in [(Direction::Up, 50), (Direction::Down, 100)] {
                    simulator.drop_next(id, direction, What::Any, rng.between(1, most) as u32);
                }
                true
            }
            Self::Throttle => spell(simulator, Count::UpStream, |knobs| knobs.bandwidth = Some(300_000)),
            Self::Duplicate => {
                let mix = Mix { duplicate: 0.3, ..Mix::default() };
                spell(simulator, Count::Duplicated, |knobs| (knobs.up, knobs.down) = (mix, mix))
            }
            Self::Reorder => {
                let mix = Mix { reorder: 0.1, reorder_distance: 8, ..Mix::default() };
                spell(simulator, Count::Reordered, |knobs| (knobs.up, knobs.down) = (mix, mix))
            }
            Self::DelayJump => {
                spell(simulator, Count::UpStream, |knobs| knobs.hop_delay = Duration::from_millis(60))
            }
        }
    }
}

/// Turns knobs, and turns them back after a while; whether messages met that tells `count`.
fn spell(simulator: &Simulator, count: Count, turn: impl FnOnce(&mut Knobs)) -> bool {
    let counted = simulator.count(count);
    let mut before = None;
    simulator.knobs(|knobs| {
        before = Some(knobs.clone());
        turn(knobs);
    });
    thread::sleep(SPELL);
    simulator.knobs(|knobs| *knobs = before.unwrap_or_default());
    simulator.count(count) > counted
}

/// How long a fault of the whole path lasts.
pub const SPELL: Duration = Duration::from_millis(1500);
