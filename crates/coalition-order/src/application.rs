//! What consensus asks of the committee: build the next batch, judge another's.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use commonware_consensus::marshal::ancestry::Ancestry;
use commonware_consensus::simplex::scheme::ed25519::Scheme;
use commonware_consensus::simplex::types::Context;
use commonware_consensus::{Application, Viewable as _};
use commonware_cryptography::ed25519::PublicKey;
use commonware_cryptography::sha256::Digest;
use commonware_cryptography::{Digested, Digestible as _};
use commonware_runtime::{Clock, Metrics, Spawner};
use futures::StreamExt as _;

use crate::block::{BatchBlock, BlockLimits};
use crate::command::CommandId;
use crate::frames::framed_len;
use crate::pacing::{Pace, Turn, batch_time, pace};
use crate::shared::{Shared, millis};

/// How many ordered batches this member's consumer may be behind before it passes its turns as a proposer.
/// Above it, walking back over them for every proposal would cost more than a skipped turn.
const MAX_LAG: u64 = 512;

/// Paces of a committee.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tempo {
    pub(crate) heartbeat_ms: u64,
    pub(crate) max_clock_drift_ms: u64,
}

/// Proposer and verifier of one member.
#[derive(Clone)]
pub(crate) struct Batcher {
    shared: Arc<Shared>,
    limits: BlockLimits,
    tempo: Tempo,
}

/// Ordered or proposed batches between this member's last delivery and the batch to build on.
#[derive(Debug, Default)]
struct Ahead {
    ids: HashSet<CommandId>,
    /// Bytes of all their commands, framing included.
    bytes: usize,
    /// Highest of them that carries commands.
    last_with_commands: u64,
}

/// What a verifier does with a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accept,
    Reject(&'static str),
    /// Ahead of this member's clock: judge again after so many milliseconds. Never a reason to reject,
    /// because clocks catch up; consensus gives up on the view if it takes too long.
    Wait(u64),
}

/// Judges `block` on `parent`. Linkage and heights are checked by the caller of the application.
pub(crate) fn judge(block: &BatchBlock, parent: &BatchBlock, view: u64, now_ms: u64, max_drift_ms: u64) -> Verdict {
    if block.view != view {
        return Verdict::Reject("it was made for another view");
    }
    if block.time_ms <= parent.time_ms {
        return Verdict::Reject("its time is not after its parent's");
    }
    let mut seen = HashSet::with_capacity(block.commands.len());
    if !block.commands.iter().all(|c| seen.insert(c)) {
        return Verdict::Reject("it carries a command twice");
    }
    match block.time_ms.saturating_sub(now_ms.saturating_add(max_drift_ms)) {
        0 => Verdict::Accept,
        early => Verdict::Wait(early),
    }
}

impl Batcher {
    pub(crate) fn new(shared: Arc<Shared>, limits: BlockLimits, tempo: Tempo) -> Self {
        Self { shared, limits, tempo }
    }

    /// Walks from `parent` back to the last batch this member delivered.
    async fn ahead(&self, parent: u64, mut ancestry: impl Ancestry<BatchBlock>) -> Option<Ahead> {
        let tip = self.shared.pool().tip();
        if parent.saturating_sub(tip) > MAX_LAG {
            tracing::debug!(parent, delivered = tip, "passing the turn: delivery lags too far behind");
            return None;
        }
        let mut ahead = Ahead::default();
        let mut height = parent;
        while height > tip {
            let block = ancestry.next().await?;
            height = block.inner().height;
            if height <= tip {
                break;
            }
            let ids = block.inner().ids();
            if !ids.is_empty() {
                ahead.last_with_commands = ahead.last_with_commands.max(height);
            }
            ahead.bytes += block.inner().commands.iter().map(|c| framed_len(c.len())).sum::<usize>();
            ahead.ids.extend(ids);
            height -= 1;
        }
        Some(ahead)
    }

    /// Waits until the pace says so.
    async fn hold<E: Clock>(&self, context: &E, parent: &BatchBlock, ahead: &Ahead) {
        let began_ms = millis(context.current());
        loop {
            let change = self.shared.change();
            let turn = Turn {
                now_ms: millis(context.current()),
                began_ms,
                parent_ms: parent.time_ms,
                heartbeat_ms: self.tempo.heartbeat_ms,
                waiting: self.shared.pool().waiting(&ahead.ids, ahead.bytes, &self.limits),
                unsettled: ahead.last_with_commands > self.shared.finalized.load(Relaxed),
                wake_at_ms: self.shared.wake_at(),
            };
            let Pace::WaitUntil(until) = pace(&turn) else { return };
            let sleep = context.sleep(Duration::from_millis(until.saturating_sub(turn.now_ms)));
            tokio::select! {
                biased;
                () = change => {}
                () = sleep => {}
            }
        }
    }
}

impl<E: Clock + Spawner + Metrics> Application<E> for Batcher {
    type SigningScheme = Scheme;
    type Context = Context<Digest, PublicKey>;
    type Block = BatchBlock;
    type Input = ();

    async fn propose(
        &mut self,
        (runtime, context): (E, Self::Context),
        ancestry: impl Ancestry<BatchBlock>,
        (): (),
    ) -> Option<Digested<BatchBlock>> {
        let parent = ancestry.peek()?.clone();
        let ahead = self.ahead(parent.inner().height, ancestry).await?;
        self.hold(&runtime, parent.inner(), &ahead).await;
        let commands = self.shared.pool().select(&ahead.ids, &self.limits);
        let block = BatchBlock {
            view: context.view().get(),
            parent: parent.digest(),
            height: parent.inner().height + 1,
            time_ms: batch_time(millis(runtime.current()), parent.inner().time_ms),
            commands,
        };
        tracing::trace!(height = block.height, commands = block.commands.len(), "proposing");
        let digest = block.digest();
        Some(Digested::precomputed(block, digest))
    }

    async fn verify(
        &mut self,
        (runtime, context): (E, Self::Context),
        mut ancestry: impl Ancestry<BatchBlock>,
    ) -> bool {
        let (Some(block), Some(parent)) = (ancestry.next().await, ancestry.next().await) else {
            // Its parent is no longer to be had, so no verdict is possible: keep the question open.
            return std::future::pending().await;
        };
        loop {
            let now_ms = millis(runtime.current());
            let view = context.view().get();
            match judge(block.inner(), parent.inner(), view, now_ms, self.tempo.max_clock_drift_ms) {
                Verdict::Accept => return true,
                Verdict::Reject(why) => {
                    tracing::warn!(leader = %context.leader, height = block.inner().height, why, "rejecting a batch");
                    return false;
                }
                Verdict::Wait(ms) => {
                    tracing::debug!(leader = %context.leader, ms, "batch is ahead of this clock, waiting");
                    runtime.sleep(Duration::from_millis(ms)).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn block(view: u64, time_ms: u64, commands: &[&'static [u8]]) -> BatchBlock {
        let commands = commands.iter().map(|c| Bytes::from_static(c)).collect();
        BatchBlock { view, time_ms, commands, height: 1, ..BatchBlock::genesis([0; 32], 0) }
    }

    #[test]
    fn verdicts() {
        let parent = block(3, 1_000, &[]);
        let judge = |b: &BatchBlock, now| judge(b, &parent, 4, now, 500);
        assert_eq!(judge(&block(4, 1_001, &[b"a", b"b"]), 1_001), Verdict::Accept);
        assert_eq!(judge(&block(4, 1_001, &[]), 900_000), Verdict::Accept, "an old batch is no fault");
        assert!(matches!(judge(&block(5, 1_001, &[]), 1_001), Verdict::Reject(_)), "view");
        assert!(matches!(judge(&block(4, 1_000, &[]), 1_001), Verdict::Reject(_)), "time");
        assert!(matches!(judge(&block(4, 1_001, &[b"a", b"a"]), 1_001), Verdict::Reject(_)), "twice");
        assert_eq!(judge(&block(4, 2_500, &[]), 2_000), Verdict::Accept, "within drift");
        assert_eq!(judge(&block(4, 2_501, &[]), 2_000), Verdict::Wait(1));
        assert_eq!(judge(&block(4, 60_000, &[]), 2_000), Verdict::Wait(57_500));
    }
}
