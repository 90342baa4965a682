//! Filling a store from several sources. [`Plan`] decides, without any I/O; [`fetch`] does what it says.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::stream::{FuturesUnordered, StreamExt};

use crate::store::{Missing, Store, StoreError};
use crate::tree::Content;
use crate::wire::Run;

/// Slices asked for at once.
const AT_ONCE: usize = 4;
/// Wait for one slice before it is asked for again.
const SLICE_WAIT: Duration = Duration::from_secs(15);
/// Between two rounds of sources none of which answers.
const PAUSE: Duration = Duration::from_millis(200);

/// Why a source gave no slice. The words name nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceError {
    /// It may, later.
    Later(String),
    /// It does not have this content, or will not give it.
    Never(String),
    /// It says that the content has another size.
    OtherSize,
}

/// Somebody who may have content.
#[async_trait]
pub trait Source: Send + Sync {
    /// The slice of this range, not verified, within `deadline`.
    ///
    /// # Errors
    /// [`SourceError`].
    async fn slice(&self, content: Content, range: Range<u64>, deadline: Duration) -> Result<Vec<u8>, SourceError>;
}

/// Why content is not here. `reason` is the last problem; it names nobody.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It could not be fetched in time, or nobody has it.
    #[error("{got_bytes} of {size_bytes} bytes arrived ({reason})")]
    Unavailable {
        /// Bytes that are here.
        got_bytes: u64,
        /// Bytes of the content.
        size_bytes: u64,
        /// The last problem.
        reason: String,
    },
    /// Every source that had something sent bytes of another content.
    #[error("what came does not belong to the hash")]
    Wrong,
    /// Every source that had it says that it has another size.
    #[error("it does not have {size_bytes} bytes")]
    OtherSize {
        /// The size asked for.
        size_bytes: u64,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What became of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It verified and is written.
    Kept,
    /// It did not verify.
    Wrong,
    /// It did not come.
    Failed(SourceError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// May be asked.
    Good,
    /// Failed in this round.
    Resting,
    /// Not asked again: it lacks the content.
    Lacks,
    /// Not asked again: another size.
    OtherSize,
    /// Not asked again: it sent wrong bytes.
    Liar,
}

/// Which piece is asked of whom. The first source in good standing is asked; one that fails rests until all others failed as well.
#[derive(Debug)]
pub struct Plan {
    waiting: VecDeque<u32>,
    sources: Vec<Standing>,
    on_their_way: usize,
    reason: String,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Ask this source, from 0, for this piece.
    Ask(usize, u32),
    /// Wait for what is on its way.
    Wait,
    /// Every source rests: pause, then go on.
    Pause,
    /// All that was missing is here.
    Done,
    /// Nobody is left to ask.
    GiveUp,
}

impl Plan {
    /// To fetch these pieces from so many sources.
    #[must_use]
    pub fn new(missing: &[Run], sources: usize) -> Self {
        let waiting = missing.iter().flat_map(|run| run.first..run.first.saturating_add(run.count)).collect();
        Self { waiting, sources: vec![Standing::Good; sources], on_their_way: 0, reason: "nobody was asked yet".into() }
    }

    /// What to do next.
    pub fn decide(&mut self) -> Next {
        if self.on_their_way == AT_ONCE || (self.on_their_way > 0 && self.waiting.is_empty()) {
            return Next::Wait;
        }
        let Some(piece) = self.waiting.front().copied() else { return Next::Done };
        if let Some(source) = self.sources.iter().position(|standing| *standing == Standing::Good) {
            self.waiting.pop_front();
            self.on_their_way += 1;
            return Next::Ask(source, piece);
        }
        if self.on_their_way > 0 {
            return Next::Wait;
        }
        if !self.sources.contains(&Standing::Resting) {
            return Next::GiveUp;
        }
        for standing in self.sources.iter_mut().filter(|standing| **standing == Standing::Resting) {
            *standing = Standing::Good;
        }
        Next::Pause
    }

    /// What became of a piece that was asked for.
    pub fn came(&mut self, source: usize, piece: u32, outcome: Outcome) {
        self.on_their_way = self.on_their_way.saturating_sub(1);
        let standing = match outcome {
            Outcome::Kept => return,
            Outcome::Wrong => {
                self.reason = "a slice did not belong to the hash".into();
                Standing::Liar
            }
            Outcome::Failed(SourceError::OtherSize) => Standing::OtherSize,
            Outcome::Failed(SourceError::Never(reason)) => {
                self.reason = reason;
                Standing::Lacks
            }
            Outcome::Failed(SourceError::Later(reason)) => {
                self.reason = reason;
                Standing::Resting
            }
        };
        self.waiting.push_front(piece);
        // Answers to what was asked before overtake each other: the worst one stands.
        let worse = |standing| match standing {
            Standing::Good => 0,
            Standing::Resting => 1,
            Standing::Lacks => 2,
            Standing::OtherSize => 3,
            Standing::Liar => 4,
        };
        if let Some(known) = self.sources.get_mut(source).filter(|known| worse(**known) < worse(standing)) {
            *known = standing;
        }
    }

    fn error(&self, content: Content, got_bytes: u64) -> FetchError {
        if self.sources.contains(&Standing::Liar) {
            return FetchError::Wrong;
        }
        if self.sources.contains(&Standing::OtherSize) {
            return FetchError::OtherSize { size_bytes: content.size() };
        }
        self.late(content, got_bytes)
    }

    fn late(&self, content: Content, got_bytes: u64) -> FetchError {
        FetchError::Unavailable { got_bytes, size_bytes: content.size(), reason: self.reason.clone() }
    }
}

/// Has content in `store`, from the first source that gives it; what is there already is not fetched again. Each slice is verified before it
/// is written. Hold it meanwhile.
///
/// # Errors
/// [`FetchError`]. What arrived stays for the next try.
pub async fn fetch(
    store: &Arc<Store>,
    content: Content,
    sources: &[&dyn Source],
    deadline: Duration,
    mut progress: impl FnMut(u64) + Send,
) -> Result<(), FetchError> {
    let until = Instant::now() + deadline;
    loop {
        let missing = blocking({
            let store = Arc::clone(store);
            move || store.begin(content, None)
        })
        .await?;
        let Missing::Pieces(runs) = missing else { return Ok(()) };
        let mut got = content.size().saturating_sub(runs.iter().map(|run| bytes(content, *run)).sum());
        progress(got);
        let mut plan = Plan::new(&runs, sources.len());
        round(store, content, sources, until, &mut plan, &mut |more| {
            got += more;
            progress(got);
        })
        .await?;
    }
}

async fn round(
    store: &Arc<Store>,
    content: Content,
    sources: &[&dyn Source],
    until: Instant,
    plan: &mut Plan,
    arrived: &mut (dyn FnMut(u64) + Send),
) -> Result<(), FetchError> {
    let mut on_their_way = FuturesUnordered::new();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match plan.decide() {
            _ if left.is_zero() => return Err(plan.late(content, have(store, content).await)),
            Next::Ask(source, piece) => {
                on_their_way.push(one(store, content, sources[source], (source, piece), left.min(SLICE_WAIT)));
            }
            Next::Wait => {
                let Some((source, piece, outcome)) = on_their_way.next().await else { continue };
                let outcome = outcome?;
                if outcome == Outcome::Kept {
                    let range = content.piece(piece);
                    arrived(range.end - range.start);
                }
                plan.came(source, piece, outcome);
            }
            Next::Pause => tokio::time::sleep(PAUSE.min(left)).await,
            Next::Done => return Ok(()),
            Next::GiveUp => return Err(plan.error(content, have(store, content).await)),
        }
    }
}

/// Verified bytes that are here.
async fn have(store: &Arc<Store>, content: Content) -> u64 {
    let store = Arc::clone(store);
    let missing = blocking(move || store.begin(content, None)).await;
    match missing {
        Ok(Missing::Pieces(runs)) => content.size() - runs.iter().map(|run| bytes(content, *run)).sum::<u64>(),
        Ok(Missing::Nothing) => content.size(),
        Err(_) => 0,
    }
}

async fn one(
    store: &Arc<Store>,
    content: Content,
    source: &dyn Source,
    (number, piece): (usize, u32),
    wait: Duration,
) -> (usize, u32, Result<Outcome, StoreError>) {
    let slice = match tokio::time::timeout(wait, source.slice(content, content.piece(piece), wait)).await {
        Ok(Ok(slice)) => slice,
        Ok(Err(error)) => return (number, piece, Ok(Outcome::Failed(error))),
        Err(_) => {
            let late = SourceError::Later("a source did not answer in time".into());
            return (number, piece, Ok(Outcome::Failed(late)));
        }
    };
    let store = Arc::clone(store);
    let outcome = match blocking(move || store.put(content, piece, &slice, None)).await {
        Ok(_) => Ok(Outcome::Kept),
        Err(StoreError::Unverified(_)) => Ok(Outcome::Wrong),
        Err(error) => Err(error),
    };
    (number, piece, outcome)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let failed = |error: tokio::task::JoinError| StoreError::Disk {
        path: "the store".into(),
        source: std::io::Error::other(error),
    };
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}

fn bytes(content: Content, run: Run) -> u64 {
    let last = run.first.saturating_add(run.count).saturating_sub(1);
    content.piece(last).end - content.piece(run.first).start
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: [Run; 1] = [Run { first: 0, count: 2 }];

    fn later() -> Outcome {
        Outcome::Failed(SourceError::Later("later".into()))
    }

    #[test]
    fn the_first_source_is_asked_until_it_fails() {
        let mut plan = Plan::new(&[Run { first: 3, count: 6 }], 2);
        let asked: Vec<Next> = (0..5).map(|_| plan.decide()).collect();
        let ask = |piece| Next::Ask(0, piece);
        assert_eq!(asked, [ask(3), ask(4), ask(5), ask(6), Next::Wait]);
        plan.came(0, 3, Outcome::Kept);
        assert_eq!(plan.decide(), ask(7));
        plan.came(0, 4, later());
        assert_eq!(plan.decide(), Next::Ask(1, 4), "what failed is asked of the next first");
        for piece in [5, 6, 7] {
            plan.came(0, piece, Outcome::Kept);
        }
        plan.came(1, 4, Outcome::Kept);
        assert_eq!(plan.decide(), Next::Ask(1, 8));
        plan.came(1, 8, Outcome::Kept);
        assert_eq!(plan.decide(), Next::Done);
    }

    #[test]
    fn who_fails_is_asked_again_and_who_lies_never() {
        let mut plan = Plan::new(&[Run { first: 0, count: 1 }], 2);
        assert_eq!(plan.decide(), Next::Ask(0, 0));
        plan.came(0, 0, Outcome::Wrong);
        assert_eq!(plan.decide(), Next::Ask(1, 0));
        plan.came(1, 0, later());
        assert_eq!(plan.decide(), Next::Pause);
        assert_eq!(plan.decide(), Next::Ask(1, 0), "the liar is not asked");
        plan.came(1, 0, Outcome::Failed(SourceError::Never("gone".into())));
        assert_eq!(plan.decide(), Next::GiveUp);
        let content = Content::new(coalition::UniqueId::from_bytes([1; 32]), 9).unwrap();
        assert!(matches!(plan.error(content, 0), FetchError::Wrong));
    }

    #[test]
    fn late_answers_do_not_rehabilitate() {
        let mut plan = Plan::new(&TWO, 1);
        assert_eq!((plan.decide(), plan.decide()), (Next::Ask(0, 0), Next::Ask(0, 1)));
        plan.came(0, 0, Outcome::Wrong);
        assert_eq!(plan.decide(), Next::Wait);
        plan.came(0, 1, later());
        assert_eq!(plan.decide(), Next::GiveUp);
        assert_eq!(Plan::new(&TWO, 0).decide(), Next::GiveUp);
        assert_eq!(Plan::new(&[], 1).decide(), Next::Done);
        let content = Content::new(coalition::UniqueId::from_bytes([1; 32]), 9).unwrap();
        let mut sized = Plan::new(&TWO, 1);
        sized.decide();
        sized.came(0, 0, Outcome::Failed(SourceError::OtherSize));
        assert!(matches!(sized.error(content, 0), FetchError::OtherSize { size_bytes: 9 }));
    }
}
