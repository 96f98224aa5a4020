//! How long a running transfer over four lanes stands still after each kind of fault.

use std::time::Duration;

use anyhow::Result;
use netstack_tests::ssm::{Fault, Knobs, Rng};

use crate::Options;
use crate::engines::Way;
use crate::row::{Row, median};
use crate::transfer::Transfer;
use crate::world::World;

pub(crate) fn rows(options: &Options) -> Result<Vec<Row>> {
    let world = World::ssm(LANES, Knobs::default())?;
    let transfers = [Transfer::start(&world.vpc, Way::Down)?, Transfer::start(&world.vpc, Way::Up)?];
    let mut rng = Rng::new(1);
    let mut silences = FAULTS.map(|_| [Vec::new(), Vec::new()]);
    std::thread::sleep(Duration::from_secs(2));
    for _ in 0..options.rounds {
        for ((_, what, _), silences) in FAULTS.iter().zip(&mut silences) {
            world.await_lanes(LANES as usize)?;
            transfers.iter().for_each(Transfer::mark);
            what.happen(&world, &transfers, &mut rng)?;
            std::thread::sleep(AFTERWARDS);
            for (transfer, silences) in transfers.iter().zip(silences) {
                silences.push(transfer.silence().as_secs_f64() * 1e3);
            }
        }
    }
    let mut rows = Vec::new();
    let mut calm = None;
    for ((name, _, most), silences) in FAULTS.iter().zip(silences) {
        let silences = silences.map(median);
        let calm = *calm.get_or_insert(silences);
        for (way, direction) in ["download", "upload"].into_iter().enumerate() {
            let row = Row::new(format!("{name}, {direction} still for"), silences[way], "ms").base(calm[way]);
            rows.push(match most {
                Some(most) => row.at_most(*most),
                None => row,
            });
        }
    }
    Ok(rows)
}

#[derive(Clone, Copy)]
enum What {
    Nothing,
    Fault(Fault),
    /// Every packet between client and service is lost for a while.
    NetworkGone,
}

impl What {
    fn happen(self, world: &World, transfers: &[Transfer], rng: &mut Rng) -> Result<()> {
        match self {
            Self::Nothing => {}
            Self::Fault(fault) => _ = fault.strike(world.simulator()?, rng),
            Self::NetworkGone => {
                // The service is heard on the laptop's loopback.
                world.vpc.laptop.ip("link set lo down")?;
                std::thread::sleep(GONE);
                world.vpc.laptop.ip("link set lo up")?;
                transfers.iter().for_each(Transfer::mark);
            }
        }
        Ok(())
    }
}

/// Each with the longest it may take, in ms.
const FAULTS: [(&str, What, Option<f64>); 9] = [
    ("4 SSM lanes, no fault", What::Nothing, None),
    ("one of 4 lanes cut", What::Fault(Fault::CutClientAbruptly), ONE),
    ("one of 4 lanes recycled by the service", What::Fault(Fault::CutClient), ONE),
    ("one of 4 websockets of the SSM agent recycled", What::Fault(Fault::CutAgent), ONE),
    ("one of 4 lanes a black hole", What::Fault(Fault::BlackHoleClient), ONE),
    ("all 4 lanes cut at both ends", What::Fault(Fault::CutAll), ALL),
    ("network gone for 3 s, since it is back", What::NetworkGone, ALL),
    ("20 ms one way are 120 for 1.5 s", What::Fault(Fault::DelayJump), ONE),
    ("300 kB/s a lane for 1.5 s", What::Fault(Fault::Throttle), ONE),
];
const ONE: Option<f64> = Some(1_500.0);
const ALL: Option<f64> = Some(1_000.0);
const LANES: u32 = 4;
const GONE: Duration = Duration::from_secs(3);
/// In which the silence after a fault ends.
const AFTERWARDS: Duration = Duration::from_millis(2_000);
