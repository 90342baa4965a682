//! Following an organism's log: a verified, always current fold of it in this process.

mod driver;
mod elsewhere;
mod keep;
pub(crate) mod state;
mod when;

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use coalition_log::{
    Entry, Fold, FromState, Persist,
    equivocation::Equivocation,
    retirement::{RETIRED_KIND, Retirement},
    tree::Hash,
};
use tokio::{sync::watch, task::JoinHandle};

pub use self::when::When;
use self::{
    driver::Driver,
    keep::Keep,
    state::{StartFrom, start_from},
};
use crate::{
    client::{Organism, millis},
    error::ReadError,
    pruned::Pruned,
};

/// How far a follower is.
#[derive(Clone, Debug, Default)]
struct Progress {
    folded: u64,
    last_error: Option<String>,
    stop: Option<Stop>,
    ending: Ending,
}

/// Why a follower stopped for good.
#[derive(Clone, Debug)]
enum Stop {
    /// The head it accepted is not in the history any more.
    Forked { size: u64, root: Hash, members: usize },
    /// Another head of the same size is certified too.
    Contradicted { size: u64, accepted: Hash, offered: Hash, proofs: Vec<Equivocation> },
    /// What it needs next is kept by nobody.
    Pruned(Pruned),
    /// Something else.
    Because(String),
}

impl Stop {
    fn error(&self) -> ReadError {
        match self.clone() {
            Self::Forked { size, root, members } => ReadError::Forked { size, root, members },
            Self::Contradicted { size, accepted, offered, proofs } => {
                ReadError::Contradicted { size, accepted, offered, proofs }
            }
            Self::Pruned(pruned) => ReadError::Pruned(pruned),
            Self::Because(reason) => ReadError::Stopped { reason },
        }
    }
}

/// Whether and how the log ends, as far as it is folded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) announced: Option<Retirement>,
    pub(crate) is_over: bool,
}

impl Ending {
    pub(crate) fn note<'a>(&mut self, entries: impl IntoIterator<Item = &'a Entry>) {
        for entry in entries {
            let stated = Retirement::of(entry);
            // The last entry states the marker alone; the announcement before it may have brought the successor's config.
            let is_same = |known: &Retirement| stated.as_ref().is_some_and(|now| now.to_bytes() == known.to_bytes());
            if !(entry.kind == RETIRED_KIND && self.announced.as_ref().is_some_and(is_same)) {
                self.announced = stated.or(self.announced.take());
            }
            self.is_over |= entry.kind == RETIRED_KIND;
        }
    }
}

/// A running follower. It verifies every head and every entry before folding it, asks the next member when one fails or
/// lies, and keeps no more than one range of entries in memory beside the fold: the next is asked for when the last is folded.
/// Dropping it stops it.
pub struct Follower<F> {
    state: Arc<RwLock<F>>,
    progress: watch::Receiver<Progress>,
    organism: Organism,
    task: JoinHandle<()>,
}

/// A follower about to start: from the log's first entry, unless told otherwise.
pub struct Start<F> {
    organism: Organism,
    initial: F,
    start_from: Option<StartFrom<F>>,
    keep: Option<Keep<F>>,
}

impl<F: Fold> Start<F> {
    /// Starts from the newest state the committee has certified, if there is one, and takes one again should the entries
    /// needed next be pruned. History before it is not in the fold then.
    #[must_use]
    pub fn from_state(mut self) -> Self
    where
        F: FromState,
    {
        self.start_from = Some(start_from::<F>);
        self
    }

    /// Keeps the fold in this file, written whole or not at all every few seconds, and goes on from it if it is there. A damaged
    /// file is named in the log and set aside. A file of another organism, or whose head is no longer in the log's history, stops
    /// the follower: nothing starts over silently.
    #[must_use]
    pub fn kept_in(mut self, file: impl Into<PathBuf>) -> Self
    where
        F: Persist,
    {
        self.keep = Some(Keep::new(file.into(), F::save, F::load));
        self
    }

    /// Starts. Reads the kept file, so that what it holds can be read at once. Must be called inside a tokio runtime.
    #[must_use]
    pub fn spawn(self) -> Follower<F> {
        let Self { organism, initial, start_from, keep } = self;
        let state = Arc::new(RwLock::new(initial));
        let (report, progress) = watch::channel(Progress::default());
        let shared = Arc::clone(organism.shared());
        let task = match Driver::new(shared, Arc::clone(&state), report, start_from, keep) {
            Some(driver) => tokio::spawn(driver.run()),
            None => tokio::spawn(std::future::ready(())),
        };
        Follower { state, progress, organism, task }
    }
}

impl<F: Fold> Follower<F> {
    /// Starts at the log's first entry with `initial`, and keeps nothing.
    #[must_use]
    pub fn spawn(organism: Organism, initial: F) -> Self {
        Self::start(organism, initial).spawn()
    }

    /// A follower about to start, with `initial` the fold of no entries.
    #[must_use]
    pub const fn start(organism: Organism, initial: F) -> Start<F> {
        Start { organism, initial, start_from: None, keep: None }
    }

    /// Looks at the fold as of now.
    pub fn read<R>(&self, look: impl FnOnce(&F) -> R) -> R {
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Futures that resolve from the fold.
    #[must_use]
    pub fn when(&self) -> When<F> {
        When::new(Arc::clone(&self.state), self.progress.clone())
    }

    /// Waits until `look` finds what it wants; it is asked again after every certified advance.
    ///
    /// # Errors
    /// [`ReadError::Deadline`], and as [`When::finds`].
    pub async fn wait_for<R>(&self, deadline: Duration, look: impl FnMut(&F) -> Option<R>) -> Result<R, ReadError> {
        let found = tokio::time::timeout(deadline, self.when().finds(look)).await;
        found.unwrap_or_else(|_| Err(self.late(deadline)))
    }

    /// Waits until everything is folded that anybody had been told is committed when this was called; answers how many entries that
    /// is. A quorum of the members is asked.
    ///
    /// # Errors
    /// [`ReadError`] when no quorum answers or the entries do not come in time.
    pub async fn caught_up(&self, deadline: Duration) -> Result<u64, ReadError> {
        let size = self.organism.settled_head(deadline).await?.size();
        self.folded(size, deadline).await
    }

    /// As [`caught_up`](Self::caught_up) where a quorum answers within `patience`; else up to what the first member to answer knows
    /// to be certified, with the reason why that may be behind.
    ///
    /// # Errors
    /// [`ReadError`] when no member gives a head or the entries up to it in time.
    pub async fn caught_up_as_can_be(
        &self,
        patience: Duration,
        deadline: Duration,
    ) -> Result<(u64, Option<ReadError>), ReadError> {
        let (head, unsettled) = self.organism.settled_head_or_any(patience, deadline).await?;
        Ok((self.folded(head.size(), deadline).await?, unsettled))
    }

    async fn folded(&self, size: u64, deadline: Duration) -> Result<u64, ReadError> {
        let reached = tokio::time::timeout(deadline, self.when().folded(size)).await;
        reached.unwrap_or_else(|_| Err(self.late(deadline)))
    }

    /// Entries folded so far.
    #[must_use]
    pub fn certified_size(&self) -> u64 {
        self.progress.borrow().folded
    }

    /// Why the last poll failed; `None` after a success.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        self.progress.borrow().last_error.clone()
    }

    /// The retirement the log announces, and whether it is in effect. Everything before it stays readable.
    #[must_use]
    pub fn retirement(&self) -> Option<(Retirement, bool)> {
        let ending = self.progress.borrow().ending.clone();
        ending.announced.map(|retirement| (retirement, ending.is_over))
    }

    fn late(&self, deadline: Duration) -> ReadError {
        ReadError::Deadline { waited_ms: millis(deadline), last: self.last_error() }
    }

    /// The organism followed.
    #[must_use]
    pub fn organism(&self) -> &Organism {
        &self.organism
    }
}

impl<F> Drop for Follower<F> {
    fn drop(&mut self) {
        self.task.abort();
    }
}
