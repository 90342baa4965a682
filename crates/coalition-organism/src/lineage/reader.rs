//! A reader that follows the chain: a fold of the organism that works, and of its successor when that one's log has ended.

use std::{sync::Arc, time::Duration};

use coalition_log::{Fold, FoldFault};
use tokio::{sync::watch, task::JoinHandle, time::Instant};

use super::{Lineage, Link, Moved};
use crate::{
    client::millis,
    error::{ReadError, describe},
    follower::{Follower, Start},
};

/// How long one look for the successor may take before the next begins.
const LOOK: Duration = Duration::from_secs(60);

/// Where the reader stands.
struct Position<F> {
    follower: Arc<Follower<F>>,
    moves: Arc<Vec<Moved>>,
    /// Why it goes no further.
    end: Option<Arc<ReadError>>,
}

impl<F> Clone for Position<F> {
    fn clone(&self) -> Self {
        Self { follower: Arc::clone(&self.follower), moves: Arc::clone(&self.moves), end: self.end.clone() }
    }
}

/// A running reader of a chain. It reads each organism's log to its last entry, then goes on with the successor's first. Dropping it
/// stops it.
pub struct LineageFollower<F> {
    position: watch::Receiver<Position<F>>,
    task: JoinHandle<()>,
}

impl Lineage {
    /// Reads the chain from where this handle has come. `start` makes the reader of each organism, with the fold of no entries: most
    /// services' begins anew with the successor's parameters ([`Link::config`]); one that goes on from the last organism's
    /// finds that one's reader as the second argument.
    ///
    /// # Errors
    /// What `start` says of the first; what it says of a later one ends the reader ([`LineageFollower::end`]).
    pub fn read<F: Fold>(
        &self,
        start: impl Fn(&Link, Option<&Follower<F>>) -> Result<Start<F>, FoldFault> + Send + Sync + 'static,
    ) -> Result<LineageFollower<F>, FoldFault> {
        let link = self.current();
        let follower = Arc::new(start(&link, None)?.spawn());
        let first = Position { follower, moves: Arc::default(), end: None };
        let (tell, position) = watch::channel(first);
        let task = tokio::spawn(run(self.clone(), link, start, tell));
        Ok(LineageFollower { position, task })
    }
}

async fn run<F: Fold>(
    lineage: Lineage,
    mut link: Link,
    start: impl Fn(&Link, Option<&Follower<F>>) -> Result<Start<F>, FoldFault> + Send + Sync,
    tell: watch::Sender<Position<F>>,
) {
    loop {
        let follower = Arc::clone(&tell.borrow().follower);
        let end = match follower.when().holds(|_| false).await {
            Ok(()) => continue,
            Err(ReadError::Retired(retirement)) => match step(&lineage, &link, *retirement).await {
                Ok(next) => match start(&next, Some(&follower)) {
                    Ok(begun) => {
                        let follower = Arc::new(begun.spawn());
                        let moved = lineage.moves().into_iter().nth(link.number());
                        tell.send_modify(|position| {
                            position.follower = follower;
                            Arc::make_mut(&mut position.moves).extend(moved);
                        });
                        link = next;
                        continue;
                    }
                    Err(fault) => {
                        ReadError::Stopped { reason: format!("the successor's reader does not start: {fault}") }
                    }
                },
                Err(error) => error,
            },
            Err(error) => error,
        };
        tracing::info!(organism = %link.organism().id(), reason = %describe(&end), "the reader of the chain ends");
        tell.send_modify(|position| position.end = Some(Arc::new(end)));
        // Who waits learns it from the position, which must stay open.
        return std::future::pending().await;
    }
}

/// The successor; asked for until the members say, because the reader knows already that the log has ended.
async fn step(
    lineage: &Lineage,
    link: &Link,
    retirement: coalition_log::retirement::Retirement,
) -> Result<Link, ReadError> {
    let mut known = Some(retirement);
    loop {
        match lineage.after(link, known.take(), LOOK).await {
            Err(ReadError::Deadline { last, .. }) => {
                tracing::warn!(organism = %link.organism().id(), reason = last.unwrap_or_default(), "still looking for the successor");
            }
            done => return done,
        }
    }
}

impl<F: Fold> LineageFollower<F> {
    /// The reader of the organism it is at, pinned: its fold, its futures, how far it is.
    #[must_use]
    pub fn current(&self) -> Arc<Follower<F>> {
        Arc::clone(&self.position.borrow().follower)
    }

    /// Looks at the fold as of now.
    pub fn look<R>(&self, look: impl FnOnce(&F) -> R) -> R {
        self.current().read(look)
    }

    /// The steps taken since it started, oldest first.
    #[must_use]
    pub fn moves(&self) -> Arc<Vec<Moved>> {
        Arc::clone(&self.position.borrow().moves)
    }

    /// Why it goes no further: the chain has ended, or a reader of it stopped. `None` while it follows.
    #[must_use]
    pub fn end(&self) -> Option<Arc<ReadError>> {
        self.position.borrow().end.clone()
    }

    /// Waits until it has taken more than `seen` steps, and answers them all.
    ///
    /// # Errors
    /// [`ReadError::Stopped`] when it goes no further.
    pub async fn moved(&self, seen: usize) -> Result<Arc<Vec<Moved>>, ReadError> {
        let mut position = self.position.clone();
        let there = position.wait_for(|now| now.moves.len() > seen || now.end.is_some()).await;
        let now = there.map_err(|_| stopped("its task has ended"))?.clone();
        if now.moves.len() > seen { Ok(now.moves) } else { Err(ended(now.end.as_deref())) }
    }

    /// Waits until `look` finds what it wants in the fold of whichever organism it is at; asked again after every certified advance
    /// and every step.
    ///
    /// # Errors
    /// [`ReadError::Deadline`]; [`ReadError::Retired`] when the chain ends without it; as [`When::finds`](crate::When::finds).
    pub async fn wait_for<R>(&self, deadline: Duration, mut look: impl FnMut(&F) -> Option<R>) -> Result<R, ReadError> {
        let (started, mut position) = (Instant::now(), self.position.clone());
        loop {
            let now = position.borrow_and_update().clone();
            let left = deadline.saturating_sub(started.elapsed());
            match now.follower.wait_for(left, &mut look).await {
                Err(ReadError::Retired(retirement)) => {
                    if now.end.is_some() {
                        return Err(ReadError::Retired(retirement));
                    }
                    let left = deadline.saturating_sub(started.elapsed());
                    let stepped = tokio::time::timeout(left, position.changed()).await;
                    let last = || Some("the successor is not known yet".to_owned());
                    let late = |_| ReadError::Deadline { waited_ms: millis(deadline), last: last() };
                    stepped.map_err(late)?.map_err(|_| stopped("its task has ended"))?;
                }
                done => return done,
            }
        }
    }
}

impl<F> Drop for LineageFollower<F> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn stopped(reason: &str) -> ReadError {
    ReadError::Stopped { reason: reason.to_owned() }
}

fn ended(end: Option<&ReadError>) -> ReadError {
    stopped(&end.map_or_else(|| "it has ended".to_owned(), |end| describe(end)))
}
