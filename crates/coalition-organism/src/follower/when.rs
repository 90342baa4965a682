//! Futures that resolve from a follower's fold. Nothing is polled: the follower wakes them after every certified advance.
//! Dropping one loses nothing, and asking again sees everything folded meanwhile.

use std::sync::{Arc, PoisonError, RwLock};

use coalition_log::{Contains, Ticking};
use tokio::sync::watch;

use super::Progress;
use crate::error::ReadError;

/// What to wait for. Every future owns what it needs, so it outlives the borrow of its [`Follower`](super::Follower); when that is
/// dropped it ends in [`ReadError::Stopped`].
pub struct When<F> {
    state: Arc<RwLock<F>>,
    progress: watch::Receiver<Progress>,
}

impl<F> Clone for When<F> {
    fn clone(&self) -> Self {
        Self { state: Arc::clone(&self.state), progress: self.progress.clone() }
    }
}

impl<F> When<F> {
    pub(super) const fn new(state: Arc<RwLock<F>>, progress: watch::Receiver<Progress>) -> Self {
        Self { state, progress }
    }

    /// When `look` finds what it wants.
    ///
    /// # Errors
    /// [`ReadError::Retired`] when the log has its last entry and it is not there; [`ReadError::Forked`],
    /// [`ReadError::Contradicted`], [`ReadError::Pruned`], [`ReadError::Stopped`] when the follower stops.
    pub async fn finds<R>(mut self, mut look: impl FnMut(&F) -> Option<R>) -> Result<R, ReadError> {
        loop {
            // Taken before looking: an advance in between wakes once more than needed, never once less.
            let now = self.progress.borrow_and_update().clone();
            if let Some(found) = look(&self.state.read().unwrap_or_else(PoisonError::into_inner)) {
                return Ok(found);
            }
            if let Some(stop) = &now.stop {
                return Err(stop.error());
            }
            if let Some(retirement) = now.ending.announced.filter(|_| now.ending.is_over) {
                return Err(ReadError::Retired(Box::new(retirement)));
            }
            self.changed().await?;
        }
    }

    /// When `is_so` is true of the fold.
    ///
    /// # Errors
    /// As [`When::finds`].
    pub async fn holds(self, mut is_so: impl FnMut(&F) -> bool) -> Result<(), ReadError> {
        self.finds(|fold| is_so(fold).then_some(())).await
    }

    /// When `key` is in the fold.
    ///
    /// # Errors
    /// As [`When::finds`].
    pub async fn contains<K: ?Sized>(self, key: &K) -> Result<(), ReadError>
    where
        F: Contains<K>,
    {
        self.holds(|fold| fold.contains(key)).await
    }

    /// When the Almanac has reached a tick.
    ///
    /// # Errors
    /// As [`When::finds`].
    pub async fn tick(self, tick: u64) -> Result<(), ReadError>
    where
        F: Ticking,
    {
        self.holds(|fold| fold.has_ticked(tick)).await
    }

    /// When so many entries are folded; answers how many are.
    ///
    /// # Errors
    /// As [`When::finds`], but for a retirement: a log that ended before never gets there.
    pub async fn folded(mut self, size: u64) -> Result<u64, ReadError> {
        loop {
            let now = self.progress.borrow_and_update().clone();
            match now.stop {
                _ if now.folded >= size => return Ok(now.folded),
                Some(stop) => return Err(stop.error()),
                None => self.changed().await?,
            }
        }
    }

    async fn changed(&mut self) -> Result<(), ReadError> {
        if self.progress.changed().await.is_ok() {
            return Ok(());
        }
        let last = self.progress.borrow().last_error.clone();
        Err(ReadError::Stopped { reason: last.unwrap_or_else(|| "its task has ended".into()) })
    }
}
