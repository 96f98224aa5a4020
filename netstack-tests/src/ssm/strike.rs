//! What the network, the service and the SSM agent do to sessions that run.

use std::thread;
use std::time::Duration;

use super::{Direction, Knobs, Mix, Rng, Simulator, What};

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

    /// Does it. What would last is undone after [`SPELL`], for which the caller waits.
    pub fn strike(self, simulator: &Simulator, rng: &mut Rng) {
        let active = simulator.active_sessions();
        let Some(last) = active.len().checked_sub(1) else { return };
        let id = &active[rng.between(0, last as u64) as usize].id;
        match self {
            Self::CutClient => drop(simulator.cut_client(id)),
            Self::CutClientAbruptly => drop(simulator.cut_client_abruptly(id)),
            Self::CutAgent => drop(simulator.cut_agent(id)),
            Self::CutAll => simulator.cut_all(),
            Self::BlackHoleClient => drop(simulator.black_hole_client(id)),
            Self::BlackHoleAgent => drop(simulator.black_hole_agent(id)),
            Self::EndSession => drop(simulator.end_session(id, "ended by the test")),
            Self::Recycle => spell(simulator, |knobs| {
                knobs.client_recycle = Some(Duration::from_millis(700));
                knobs.agent_recycle = Some(Duration::from_millis(900));
            }),
            Self::BurstLoss => {
                for (direction, most) in [(Direction::Up, 50), (Direction::Down, 100)] {
                    simulator.drop_next(id, direction, What::Any, rng.between(1, most) as u32);
                }
            }
            Self::Throttle => spell(simulator, |knobs| knobs.bandwidth = Some(300_000)),
            Self::Duplicate => {
                let mix = Mix { duplicate: 0.3, ..Mix::default() };
                spell(simulator, |knobs| (knobs.up, knobs.down) = (mix, mix));
            }
            Self::Reorder => {
                let mix = Mix { reorder: 0.1, reorder_distance: 8, ..Mix::default() };
                spell(simulator, |knobs| (knobs.up, knobs.down) = (mix, mix));
            }
            Self::DelayJump => spell(simulator, |knobs| knobs.hop_delay = Duration::from_millis(60)),
        }
    }
}

/// Turns knobs, and turns them back after a while.
fn spell(simulator: &Simulator, turn: impl FnOnce(&mut Knobs)) {
    let mut before = None;
    simulator.knobs(|knobs| {
        before = Some(knobs.clone());
        turn(knobs);
    });
    thread::sleep(SPELL);
    simulator.knobs(|knobs| *knobs = before.unwrap_or_default());
}

/// How long a fault of the whole path lasts.
pub const SPELL: Duration = Duration::from_millis(1500);
