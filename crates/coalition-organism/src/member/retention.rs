//! Which ordered batches a member keeps. Pure.
//!
//! Every so many batches all logs of the committee get a state in the same batch, a *common point*, and so an entry with that
//! batch's time. Once they are certified, whoever reads the logs has the effects of all batches up to the common point, and can
//! start its engine above it. Batches below are dropped, unless the member is told to keep more.

use std::collections::VecDeque;

use crate::execution::{COMMON_EVERY, is_common};

/// What a member keeps of ordered batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchKeeping {
    /// How many of the newest batches it keeps at least, for members that were away for a while: those replay them. One that was
    /// away longer reads the logs instead.
    pub retain: u64,
    /// Batches between two states in all logs: [`COMMON_EVERY`], except in tests. The same on every member: another value makes
    /// another committee.
    pub common_every: u64,
    /// Batches per file, which are dropped together: 4,096, except in tests. Fixed for the life of a data directory.
    pub per_file: u64,
}

impl Default for BatchKeeping {
    fn default() -> Self {
        Self { retain: 2 * COMMON_EVERY, common_every: COMMON_EVERY, per_file: 4_096 }
    }
}

impl BatchKeeping {
    pub(super) fn check(&self) -> Result<(), String> {
        if self.per_file == 0 {
            return Err("files of 0 batches; at least 1, normally 4096".into());
        }
        if self.common_every == 0 {
            return Err(format!("a state in all logs after every 0 batches; at least 1, normally {COMMON_EVERY}"));
        }
        Ok(())
    }
}

/// How often it is looked whether something may be dropped, in batches.
const LOOK_EVERY: u64 = 16;
/// Batches kept below a common point: the newest with a certificate of its own may be below it.
const BELOW: u64 = 256;
/// Common points remembered that are not certified yet.
const REMEMBERED: usize = 8;

/// Common points of one engine's run, and what may be dropped.
#[derive(Debug)]
pub(crate) struct Retention {
    keeping: BatchKeeping,
    /// Height and the sizes of all logs at it, or at a later one.
    points: VecDeque<(u64, Vec<u64>)>,
    has_begun: bool,
    below: u64,
}

impl Retention {
    pub(crate) fn new(keeping: BatchKeeping) -> Self {
        Self { keeping, points: VecDeque::new(), has_begun: false, below: 0 }
    }

    /// Notes the first batch of a run, before it is executed: the logs have the common points before it.
    pub(crate) fn begins_with(&mut self, height: u64, sizes: impl FnOnce() -> Vec<u64>) {
        if self.has_begun {
            return;
        }
        self.has_begun = true;
        let last = height.saturating_sub(1) / self.keeping.common_every * self.keeping.common_every;
        if last > 0 {
            self.points.push_back((last, sizes()));
        }
    }

    /// Notes that a batch was executed, and the sizes of the logs after it.
    pub(crate) fn executed(&mut self, height: u64, sizes: impl FnOnce() -> Vec<u64>) {
        if is_common(height, self.keeping.common_every) {
            if self.points.len() == REMEMBERED {
                self.points.pop_back();
            }
            self.points.push_back((height, sizes()));
        }
    }

    /// The height below which batches may be dropped, if that is news. `height` was executed last, `certified` are the sizes
    /// certified now.
    pub(crate) fn prune_below(&mut self, height: u64, certified: impl FnOnce() -> Vec<u64>) -> Option<u64> {
        if !height.is_multiple_of(LOOK_EVERY.min(self.keeping.common_every)) || self.points.is_empty() {
            return None;
        }
        let certified = certified();
        let is_certified = |sizes: &[u64]| sizes.iter().zip(&certified).all(|(size, certified)| size <= certified);
        let newest = self.points.iter().rposition(|(_, sizes)| is_certified(sizes))?;
        self.points.drain(..newest);
        let point = self.points.front().map_or(0, |(point, _)| *point);
        let margin = BELOW.min(self.keeping.per_file);
        let below = point.saturating_sub(margin).min(height.saturating_sub(self.keeping.retain));
        if below / self.keeping.per_file.max(1) <= self.below / self.keeping.per_file.max(1) {
            return None;
        }
        self.below = below;
        Some(below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEPING: BatchKeeping = BatchKeeping { retain: 40, common_every: 32, per_file: 4 };

    fn run(retention: &mut Retention, heights: std::ops::RangeInclusive<u64>, certified: u64) -> Vec<(u64, u64)> {
        let mut pruned = Vec::new();
        for height in heights {
            retention.begins_with(height, || vec![height - 1]);
            retention.executed(height, || vec![height]);
            pruned.extend(retention.prune_below(height, || vec![certified.min(height)]).map(|below| (height, below)));
        }
        pruned
    }

    #[test]
    fn batches_go_once_the_common_point_above_them_is_certified() {
        let mut retention = Retention::new(KEEPING);
        // Margin and retention are kept: 32 - 4 = 28, but at height 64 the last 40 stay.
        assert_eq!(run(&mut retention, 1..=100, 1_000), [(48, 8), (64, 24), (80, 40), (96, 56)]);
    }

    #[test]
    fn nothing_goes_while_nothing_is_certified() {
        let mut retention = Retention::new(KEEPING);
        assert_eq!(run(&mut retention, 1..=1_000, 31), []);
        assert!(retention.points.len() <= REMEMBERED);
        // The oldest points were not forgotten for the newest.
        assert_eq!(retention.prune_below(1_008, || vec![70]), Some(60));
    }

    #[test]
    fn a_restart_goes_on_with_the_points_before_it() {
        let mut retention = Retention::new(KEEPING);
        assert_eq!(run(&mut retention, 1_000..=1_008, 998), []);
        assert_eq!(retention.prune_below(1_008, || vec![999]), Some(968), "992 is a common point, and 40 batches stay");
        let mut retention = Retention::new(KEEPING);
        assert_eq!(run(&mut retention, 5..=32, 1_000), [], "no common point before");
    }
}
