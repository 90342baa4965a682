//! Counting submissions per peer in fixed windows of time.

use std::collections::BTreeMap;

use super::{MemberLimits, Refusal};
use crate::envelope::RotatingPeer;

/// Submissions counted since the window opened; forgotten when the next one opens.
#[derive(Default)]
pub(super) struct Window {
    number: u64,
    counts: BTreeMap<RotatingPeer, u32>,
}

impl Window {
    /// Counts one submission.
    pub(super) fn admit(&mut self, now_ms: u64, peer: RotatingPeer, limits: &MemberLimits) -> Result<(), Refusal> {
        let number = now_ms / limits.window_ms;
        if number != self.number {
            *self = Self { number, counts: BTreeMap::new() };
        }
        let retry_ms = limits.window_ms - now_ms % limits.window_ms;
        let full = self.counts.len() >= limits.max_peers_per_window;
        match self.counts.get_mut(&peer) {
            Some(count) if *count >= limits.max_submissions_per_window => Err(Refusal::TooManySubmissions { retry_ms }),
            Some(count) => {
                *count += 1;
                Ok(())
            }
            None if full => Err(Refusal::Busy { retry_ms }),
            None => {
                self.counts.insert(peer, 1);
                Ok(())
            }
        }
    }

    pub(super) fn peers(&self) -> usize {
        self.counts.len()
    }
}
