//! Following an organism's log: a verified, always current fold of it in this process.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use coalition_log::{
    Entry, Fold, FoldFault,
    checkpoint::SignedCheckpoint,
    follow::{FollowError, Follower as Core},
    retirement::{COMMITTEE_PREFIX, RETIRED_KIND, Retirement},
};
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    client::{Organism, Shared, call_member, millis},
    error::ReadError,
    wire::{self, FollowAnswer, FollowRequest, method},
};

/// How long a member may hold the poll.
const POLL: Duration = Duration::from_millis(2_500);
/// Pause after a member failed.
const RETRY: Duration = Duration::from_millis(200);

#[derive(Clone, Debug, Default)]
struct Progress {
    folded: u64,
    last_error: Option<String>,
    ending: Ending,
}

/// Whether and how the log ends, as far as it is folded.
#[derive(Clone, Debug, Default)]
struct Ending {
    announced: Option<Retirement>,
    is_over: bool,
}

/// A running follower. It verifies every head and every entry before folding it, asks the next member when one fails or
/// lies, and keeps no more than one range of entries in memory beside the fold. Dropping it stops it.
pub struct Follower<F> {
    state: Arc<RwLock<F>>,
    progress: watch::Receiver<Progress>,
    organism: Organism,
    task: JoinHandle<()>,
}

impl<F: Fold> Follower<F> {
    /// Starts at the log's first entry with `initial`.
    #[must_use]
    pub fn spawn(organism: Organism, initial: F) -> Self {
        let state = Arc::new(RwLock::new(initial));
        let (report, progress) = watch::channel(Progress::default());
        let task = tokio::spawn(run(Arc::clone(organism.shared()), Arc::clone(&state), report));
        Self { state, progress, organism, task }
    }

    /// Looks at the fold as of now.
    pub fn read<R>(&self, look: impl FnOnce(&F) -> R) -> R {
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until `look` finds what it wants; it is asked again after every certified advance.
    ///
    /// # Errors
    /// [`ReadError::Deadline`], [`ReadError::Retired`], [`ReadError::Stopped`].
    pub async fn wait_for<R>(&self, deadline: Duration, mut look: impl FnMut(&F) -> Option<R>) -> Result<R, ReadError> {
        let mut progress = self.progress.clone();
        let searching = async {
            loop {
                progress.borrow_and_update();
                let retired = progress.borrow().ending.clone();
                if let Some(found) = self.read(&mut look) {
                    return Ok(found);
                }
                if let Some(retirement) = retired.announced.filter(|_| retired.is_over) {
                    return Err(ReadError::Retired(Box::new(retirement)));
                }
                progress.changed().await.map_err(|_| self.stopped())?;
            }
        };
        let late = || ReadError::Deadline { waited_ms: millis(deadline), last: self.last_error() };
        tokio::time::timeout(deadline, searching).await.unwrap_or_else(|_| Err(late()))
    }

    /// Waits until everything certified at the time of the call is folded; answers how many entries that is.
    ///
    /// # Errors
    /// [`ReadError`] when no member gives a head or the entries up to it in time.
    pub async fn caught_up(&self, deadline: Duration) -> Result<u64, ReadError> {
        let size = self.organism.head(deadline).await?.size();
        let mut progress = self.progress.clone();
        let late = || ReadError::Deadline { waited_ms: millis(deadline), last: self.last_error() };
        let reached = tokio::time::timeout(deadline, progress.wait_for(|now| now.folded >= size)).await;
        match reached {
            Ok(Ok(now)) => Ok(now.folded),
            Ok(Err(_)) => Err(self.stopped()),
            Err(_) => Err(late()),
        }
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

    fn stopped(&self) -> ReadError {
        ReadError::Stopped { reason: self.last_error().unwrap_or_else(|| "its task has ended".into()) }
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

async fn run<F: Fold>(shared: Arc<Shared>, state: Arc<RwLock<F>>, report: watch::Sender<Progress>) {
    let mut core = match Core::new(shared.id, &shared.roster) {
        Ok(core) => core,
        Err(error) => {
            report.send_modify(|progress| progress.last_error = Some(error.to_string()));
            return;
        }
    };
    loop {
        let (position, polled) = poll(&shared, &core).await;
        let accepted = polled.and_then(|answer| accept(&mut core, &answer).map_err(|error| describe(&error)));
        match accepted {
            Ok(entries) => {
                if let Err((index, fault)) = fold_all(&state, &entries) {
                    let reason = format!("certified entry {index} contradicts the rules of its service: {fault}");
                    tracing::error!(organism = %shared.id, %reason, "the follower stops");
                    report.send_modify(|progress| progress.last_error = Some(reason));
                    return;
                }
                report.send_modify(|progress| {
                    note_ending(&mut progress.ending, &entries);
                    progress.folded = core.next_index();
                    progress.last_error = None;
                });
                if report.borrow().ending.is_over {
                    // There is nothing more to follow; what waits learns it from the progress, which must stay open.
                    std::future::pending::<()>().await;
                }
            }
            Err(reason) => {
                let reason = format!("member {}: {reason}", shared.name(position));
                tracing::debug!(organism = %shared.id, %reason, "follower asks the next member");
                report.send_modify(|progress| progress.last_error = Some(reason));
                shared.demote(position);
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

fn fold_all<F: Fold>(state: &RwLock<F>, entries: &[Entry]) -> Result<(), (u64, FoldFault)> {
    let mut fold = state.write().unwrap_or_else(PoisonError::into_inner);
    let mut services = entries.iter().filter(|entry| !entry.kind.starts_with(COMMITTEE_PREFIX));
    services.try_for_each(|entry| fold.fold(entry).map_err(|fault| (entry.index, fault)))
}

fn note_ending(ending: &mut Ending, entries: &[Entry]) {
    for entry in entries {
        ending.announced = Retirement::of(entry).or(ending.announced.take());
        ending.is_over |= entry.kind == RETIRED_KIND;
    }
}

async fn poll(shared: &Shared, core: &Core) -> (usize, Result<FollowAnswer, String>) {
    let request = FollowRequest {
        organism: shared.id,
        head_size: core.head_size(),
        next: core.next_index(),
        wait_ms: u32::try_from(POLL.as_millis()).unwrap_or(u32::MAX),
    };
    let timeout = POLL + Duration::from_millis(1_500);
    let (position, answer) = call_member(shared, method::FOLLOW, wire::encode(&request), timeout).await;
    let decoded = answer
        .map_err(|error| error.to_string())
        .and_then(|bytes| wire::decode::<FollowAnswer>(&bytes).map_err(|error| error.to_string()));
    (position, decoded)
}

fn accept(core: &mut Core, answer: &FollowAnswer) -> Result<Vec<Entry>, FollowError> {
    let note = SignedCheckpoint::parse(answer.head.as_bytes()).map_err(FollowError::SavedNote)?;
    core.accept_head(&note, &answer.head_proof)?;
    if answer.entries.is_empty() {
        return Ok(Vec::new());
    }
    core.accept_entries(core.next_index(), &answer.entries, &answer.range_proof)
}

fn describe(error: &FollowError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
