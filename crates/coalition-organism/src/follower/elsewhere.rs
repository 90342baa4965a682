//! Whether other members are ahead of the one a follower asks: one that answers, and never advances, must not hold it back.

use std::{sync::Arc, time::Duration};

use coalition_log::checkpoint::SignedCheckpoint;
use tokio::task::JoinHandle;

use crate::{
    client::Shared,
    wire::{self, HeadAnswer, HeadRequest, method},
};

/// How long another member may take to tell its head.
const TIMEOUT: Duration = Duration::from_millis(2_000);

/// One look at another member at a time, beside the polls, so that a member that is down costs the follower nothing.
#[derive(Default)]
pub(super) struct Elsewhere {
    looked: usize,
    looking: Option<JoinHandle<Option<u64>>>,
}

impl Elsewhere {
    /// The size another member's certified head had before the poll that just ended, if that is more than `have`. Looks at the
    /// next one otherwise. Called after every poll of the member at `position` that brought nothing.
    pub(super) async fn ahead(&mut self, shared: &Arc<Shared>, position: usize, have: u64) -> Option<u64> {
        if let Some(ended) = self.looking.take_if(|looking| looking.is_finished()) {
            let size = ended.await.ok().flatten();
            if size.is_some_and(|size| size > have) {
                return size;
            }
        }
        if self.looking.is_none() && shared.members() > 1 {
            // Every other member in turn.
            self.looked = (self.looked + 1) % (shared.members() - 1);
            let other = (position + 1 + self.looked) % shared.members();
            self.looking = Some(tokio::spawn(certified_size(Arc::clone(shared), other)));
        }
        None
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        if let Some(looking) = &self.looking {
            looking.abort();
        }
    }
}

/// The size of a member's head, if it is certified.
async fn certified_size(shared: Arc<Shared>, position: usize) -> Option<u64> {
    let (organism, known) = (shared.id, shared.known());
    let request = HeadRequest { organism, newer_than: None, epoch: known.chain.epoch(), wait_ms: 0 };
    let answer = shared.call(position, method::HEAD, wire::encode(&request), TIMEOUT).await.ok()?;
    let answer: HeadAnswer = wire::decode(&answer).ok()?;
    shared.learn(&answer.handovers).ok()?;
    let note = SignedCheckpoint::parse(answer.head?.as_bytes()).ok()?;
    shared.known().chain.certify(&note).ok().map(|certified| certified.size())
}
