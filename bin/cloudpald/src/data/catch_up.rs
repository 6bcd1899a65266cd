//! What a cloud that was restored from an old backup had written since, taken over from its peers.
//!
//! Invariant: of a drive, neither the names nor the contents are written before both are as long as any peer that is
//! connected has them: a key that signs a second history is of no use any more.

use super::{TenantData, feeds::Tracked, item::Item};
use cloudpal_data::{DataError, core::Frozen};
use cloudpal_model::{Kind, Problem};
use std::{
    thread,
    time::{Duration, Instant},
};

/// For what is on its way from a peer.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

impl TenantData {
    /// Waits for the peers.
    pub fn catch_up(&self, item: &Item) -> Result<(), Problem> {
        let frozen = |core: &Tracked| core.core.frozen();
        let of_all = item.cores().iter().map(frozen).collect::<Result<Vec<_>, DataError>>()?;
        let Some(why) = of_all.into_iter().flatten().next() else { return Ok(()) };
        if let Frozen::Conflict { .. } = why {
            return Err(why.refusal().into());
        }
        let started = Instant::now();
        loop {
            let cores = item.cores();
            let mut known = true;
            for core in &cores {
                known &= self.nobody_has_more(core)?;
            }
            if known
                && cores.iter().try_fold(true, |all, core| Ok::<_, DataError>(all & core.core.catch_up()?))?
            {
                break;
            }
            if started.elapsed() > PATIENCE {
                return Err(waits(why, known));
            }
            thread::sleep(PAUSE);
        }
        for core in item.cores() {
            // What the backup did not have is not here yet.
            let length = core.core.info()?.length;
            self.hub.with(|replication, _| replication.download(core.number, 0, Some(length)));
        }
        Ok(())
    }

    /// Whether a peer has told how much it has, and none has more than there is here.
    fn nobody_has_more(&self, core: &Tracked) -> Result<bool, DataError> {
        let length = core.core.info()?.length;
        let proved = match core.core.frozen()? {
            Some(Frozen::Behind { length: proved, .. }) => length.max(proved),
            _ => length,
        };
        let peers = self.hub.with(|replication, _| replication.peers(core.number));
        Ok(!peers.is_empty() && peers.iter().all(|peer| peer.length <= proved))
    }
}

fn waits(why: Frozen, known: bool) -> Problem {
    if known {
        return why.refusal().into();
    }
    Problem::new(
        Kind::Unavailable,
        "no peer that has all of it is connected, so how much was written elsewhere is not known",
        "connect a device that has it, and keep it connected; then try again",
    )
}
