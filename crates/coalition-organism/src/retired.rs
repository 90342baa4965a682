//! How a log ended and which one begins: what clients read of it, and what the successor's operators write.

use std::time::Duration;

use coalition::PublishedConfig;
use coalition_log::{
    entry::WriteId,
    predecessor::{Predecessor, PredecessorError},
    retirement::{RETIRED_KIND, Retirement},
};
use tokio::time::Instant;

use crate::{
    client::{Committed, Organism},
    error::{ReadError, WriteError, describe},
    wire::Payload,
};

impl Organism {
    /// The retirement in effect, by the log's certified last entry, with the successor's config if the announcement brought one;
    /// `None` while the organism works.
    ///
    /// # Errors
    /// [`ReadError`] when no member gives a head, its last entry and the announcement in time.
    pub async fn retirement(&self, deadline: Duration) -> Result<Option<Retirement>, ReadError> {
        let started = Instant::now();
        let left = || deadline.saturating_sub(started.elapsed());
        let Some(last) = self.head(deadline).await?.size().checked_sub(1) else { return Ok(None) };
        let evidence = self.evidence(last, left()).await?;
        let entry = evidence.claimed_entry();
        let Some(retirement) = Retirement::of(entry).filter(|_| entry.kind == RETIRED_KIND) else { return Ok(None) };
        let Some(pointer) = entry.evidence.first().filter(|_| retirement.successor().is_some()) else {
            return Ok(Some(retirement));
        };
        let announced = self.evidence(pointer.index, left()).await?;
        let stated = Retirement::of(announced.claimed_entry()).filter(|_| announced.claimed_pointer() == *pointer);
        Ok(Some(stated.unwrap_or(retirement)))
    }

    /// Begins this organism's log, whose config names `old` as its predecessor, with the newest head of that one's. The head of
    /// the log as it is when it still works, or as it ended: both are right, and another member may have been faster.
    ///
    /// # Errors
    /// As [`write`](Self::write); refusals `already_begun`, `no_predecessor`, `other_predecessor`, `not_certified`,
    /// `bad_predecessor`, `malformed`. [`WriteError::Predecessor`] when no head of the old log comes in time, or it does not fit.
    pub async fn succeed(
        &self,
        write_id: WriteId,
        (old, config): (&Self, &PublishedConfig),
        deadline: Duration,
    ) -> Result<Committed, WriteError> {
        let started = Instant::now();
        let unknown = |reason: String| WriteError::Predecessor { reason };
        let head = old.head(deadline).await.map_err(|error| unknown(describe(&error)))?;
        let handovers = old.committee().proofs(0, head.size());
        let predecessor = Predecessor::new(config.clone(), handovers, &head);
        let predecessor = predecessor.map_err(|error: PredecessorError| unknown(describe(&error)))?;
        let left = deadline.saturating_sub(started.elapsed());
        self.write_payload(write_id, Payload::Succeed(predecessor.to_bytes()), left).await
    }
}
