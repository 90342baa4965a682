//! Whether a log that has ended has a write: what decides if the write belongs into the successor's.

use std::time::Duration;

use coalition_log::retirement::RETIRED_CODE;
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::time::Instant;

use super::RETRY;
use crate::{
    client::{CALL_TIMEOUT, Committed, Organism, millis},
    error::WriteError,
    receipt,
    wire::{self, Write, WriteAnswer, WriteReply, WriteRequest, method},
};

/// What one member says.
enum Said {
    /// Here is its proof.
    Written(Committed),
    /// The log has ended without it.
    Absent,
}

/// The write's proof if the ended log of `organism` has it. `None` when more members than may lie say that the log has ended without
/// it: one of them is correct, and has the whole log. One member's word is not enough, or it could have a write done twice.
///
/// # Errors
/// [`WriteError::Deadline`] when too few members answer.
pub(super) async fn find(
    organism: &Organism,
    write: &Write,
    deadline: Duration,
) -> Result<Option<Committed>, WriteError> {
    let started = Instant::now();
    let mut last;
    loop {
        let left = deadline.saturating_sub(started.elapsed());
        let known = organism.shared().known();
        let verifier = known.chain.verifier();
        let enough = verifier.members() - verifier.quorum() + 1;
        let mut asked: FuturesUnordered<_> =
            (0..known.in_force).map(|member| ask(organism, member, write, left.min(CALL_TIMEOUT))).collect();
        let (mut absent, mut failure) = (0, None);
        while let Some(said) = asked.next().await {
            match said {
                Ok(Said::Written(committed)) => return Ok(Some(committed)),
                Ok(Said::Absent) => absent += 1,
                Err(reason) => failure = Some(reason),
            }
            if absent >= enough {
                return Ok(None);
            }
        }
        last = failure;
        if deadline.saturating_sub(started.elapsed()) <= RETRY {
            return Err(WriteError::Deadline { waited_ms: millis(deadline), last });
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn ask(organism: &Organism, member: usize, write: &Write, timeout: Duration) -> Result<Said, String> {
    let shared = organism.shared();
    let wait_ms = u32::try_from(millis(timeout.mul_f32(0.8))).unwrap_or(u32::MAX);
    let writes = vec![write.clone()];
    let request = WriteRequest { organism: organism.id(), writes, epoch: shared.epoch(), wait_ms };
    let reply = shared.call(member, method::WRITE, wire::encode(&request), timeout).await;
    let said = |reason: String| format!("member {}: {reason}", shared.name(member));
    let reply = reply.map_err(|error| said(error.to_string()))?;
    let reply: WriteReply = wire::decode(&reply).map_err(|error| said(error.to_string()))?;
    shared.learn(&reply.handovers).map_err(said)?;
    match receipt::verify(&shared.known().chain, &request.writes, reply).map_err(said)?.pop() {
        Some(WriteAnswer::Committed { entries }) => Ok(Said::Written(Committed { write_id: write.write_id, entries })),
        Some(WriteAnswer::Refused(refusal)) if refusal.code == RETIRED_CODE => Ok(Said::Absent),
        Some(WriteAnswer::Refused(refusal)) => Err(said(refusal.to_string())),
        Some(WriteAnswer::Pending) | None => Err(said("it does not know yet".to_owned())),
    }
}
