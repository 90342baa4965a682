//! The follower's loop: ask a member, verify, fold, keep.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use coalition_log::{
    Entry, Fold, FoldFault,
    checkpoint::SignedCheckpoint,
    entry::is_host_kind,
    follow::{FollowError, Follower as Core},
};
use coalition_universe::CallError;
use tokio::{sync::watch, time::Instant};

use super::{
    Progress, Stop,
    elsewhere::Elsewhere,
    keep::{Keep, KeepError, Kept},
    state::{self, Failure, NoState, StartFrom},
};
use crate::{
    client::Shared,
    error::describe,
    pruned::Pruned,
    wire::{self, FollowAnswer, FollowRequest, method},
};

/// How long a member may hold the poll.
const POLL: Duration = Duration::from_millis(2_500);
/// Pause after a member failed.
const RETRY: Duration = Duration::from_millis(200);
/// The fold is kept when it has advanced and this has passed since it was last.
const KEEP_EVERY: Duration = Duration::from_secs(2);

/// What a member said that another may yet prove wrong.
enum Objection {
    /// The accepted head is not in its history.
    Fork,
    /// It dropped what is needed.
    Pruned(Pruned),
    /// It keeps no state.
    NoState,
    /// It shows another certified head of the size accepted.
    Contradiction(Box<Stop>),
    /// Anything else.
    Failed,
}

pub(super) struct Driver<F> {
    shared: Arc<Shared>,
    core: Core,
    fold: Arc<RwLock<F>>,
    report: watch::Sender<Progress>,
    start_from: Option<StartFrom<F>>,
    /// Whether a state is wanted before anything else.
    wants_state: bool,
    keep: Option<Keep<F>>,
    /// When the fold was kept last, and at which size.
    kept: (Instant, u64),
    /// What the members said last, by position, since one answered well; and the epoch whose positions they are.
    objections: BTreeMap<usize, Objection>,
    epoch: u64,
    elsewhere: Elsewhere,
}

impl<F: Fold> Driver<F> {
    /// Takes up what is kept; `None` when the follower cannot start, which its progress then says.
    pub(super) fn new(
        shared: Arc<Shared>,
        fold: Arc<RwLock<F>>,
        report: watch::Sender<Progress>,
        start_from: Option<StartFrom<F>>,
        keep: Option<Keep<F>>,
    ) -> Option<Self> {
        let resumed = resume(&shared, &fold, keep.as_ref());
        match resumed {
            Ok((core, ending)) => {
                let (wants_state, kept) = (start_from.is_some() && core.next_index() == 0, core.next_index());
                report.send_modify(|progress| (progress.folded, progress.ending) = (kept, ending));
                let (epoch, kept) = (shared.epoch(), (Instant::now(), kept));
                let (objections, elsewhere) = (BTreeMap::new(), Elsewhere::default());
                Some(Self {
                    shared,
                    core,
                    fold,
                    report,
                    start_from,
                    wants_state,
                    keep,
                    kept,
                    objections,
                    epoch,
                    elsewhere,
                })
            }
            Err(reason) => {
                stop(&shared, &report, Stop::Because(reason));
                None
            }
        }
    }

    pub(super) async fn run(mut self) {
        while !self.report.borrow().ending.is_over {
            let (position, _) = self.shared.member();
            let outcome = match self.start_from.filter(|_| self.wants_state) {
                Some(start_from) => self.take_state(position, start_from).await,
                None => self.poll(position).await,
            };
            let ended = match outcome {
                Ok(()) => self.advanced().await,
                Err((objection, reason)) => self.failed(position, objection, reason).await,
            };
            if let Some(why) = ended {
                return stop(&self.shared, &self.report, why);
            }
        }
        // There is nothing more to follow; what waits learns it from the progress, which must stay open.
        self.keep_fold().await;
        std::future::pending::<()>().await;
    }

    async fn take_state(&mut self, position: usize, start_from: StartFrom<F>) -> Result<(), (Objection, String)> {
        let taken = state::take(&self.shared, position, &mut self.core, &self.fold, start_from).await;
        let ending = taken.map_err(|error| match error {
            NoState::None => (Objection::NoState, "it keeps no state".to_owned()),
            NoState::Failed(failure) => match *failure {
                Failure::Called(error) => (Objection::Failed, error.to_string()),
                Failure::Refused(error) => self.refused(&error),
                Failure::Answered(reason) => (Objection::Failed, reason),
            },
        })?;
        tracing::info!(organism = %self.shared.id, entries = self.core.next_index(), "started from a certified state");
        self.wants_state = false;
        self.report.send_modify(|progress| progress.ending = ending);
        Ok(())
    }

    async fn poll(&mut self, position: usize) -> Result<(), (Objection, String)> {
        let (before, asked) = (self.core.head_size(), Instant::now());
        let answer = self.ask(position).await?;
        let entries = accept(&mut self.core, &answer).map_err(|error| self.refused(&error))?;
        self.shared.learn(&answer.handovers).map_err(|reason| (Objection::Failed, reason))?;
        if let Err((index, fault)) = fold_all(&self.fold, &entries) {
            let reason = format!("certified entry {index} contradicts the rules of its service: {fault}");
            self.report.send_modify(|progress| progress.stop = Some(Stop::Because(reason)));
            return Ok(());
        }
        self.report.send_modify(|progress| progress.ending.note(&entries));
        let (have, next) = (self.core.head_size(), self.core.next_index());
        if entries.is_empty() && next < have {
            return Err((Objection::Failed, format!("it keeps back entry {next} of {have}")));
        }
        if entries.is_empty() && have == before {
            return self.wait_for_news(position, asked).await;
        }
        Ok(())
    }

    /// A member had nothing new. Another one may, and one that answers at once instead of waiting is not asked at once again.
    async fn wait_for_news(&mut self, position: usize, asked: Instant) -> Result<(), (Objection, String)> {
        let have = self.core.head_size();
        if let Some(size) = self.elsewhere.ahead(&self.shared, position, have).await {
            return Err((Objection::Failed, format!("it stays at {have} entries, {size} are certified")));
        }
        tokio::time::sleep(RETRY.saturating_sub(asked.elapsed())).await;
        Ok(())
    }

    async fn ask(&self, position: usize) -> Result<FollowAnswer, (Objection, String)> {
        let request = FollowRequest {
            organism: self.shared.id,
            head_size: self.core.head_size(),
            next: self.core.next_index(),
            epoch: self.core.chain().epoch(),
            wait_ms: u32::try_from(POLL.as_millis()).unwrap_or(u32::MAX),
        };
        let timeout = POLL + Duration::from_millis(1_500);
        match self.shared.call(position, method::FOLLOW, wire::encode(&request), timeout).await {
            Ok(bytes) => wire::decode(&bytes).map_err(|error| (Objection::Failed, error.to_string())),
            Err(error) => {
                let pruned = match &error {
                    CallError::Refused(fault) => Pruned::from_fault(fault, &self.shared.name(position)),
                    _ => None,
                };
                Err((pruned.map_or(Objection::Failed, Objection::Pruned), error.to_string()))
            }
        }
    }

    fn refused(&self, error: &FollowError) -> (Objection, String) {
        let objection = match error.clone() {
            FollowError::Fork { size, accepted, offered, proofs } => {
                Objection::Contradiction(Box::new(Stop::Contradicted { size, accepted, offered, proofs }))
            }
            FollowError::Inconsistent { .. } => Objection::Fork,
            _ => Objection::Failed,
        };
        (objection, describe(error))
    }

    /// Tells what is new, and keeps it now and then.
    async fn advanced(&mut self) -> Option<Stop> {
        if let Some(why) = self.report.borrow().stop.clone() {
            return Some(why);
        }
        self.objections.clear();
        self.epoch = self.shared.epoch();
        let folded = self.core.next_index();
        self.report.send_modify(|progress| (progress.folded, progress.last_error) = (folded, None));
        if self.kept.0.elapsed() >= KEEP_EVERY {
            self.keep_fold().await;
        }
        None
    }

    /// Notes what a member said, and asks the next one. Some things are so when enough of them say so.
    async fn failed(&mut self, position: usize, objection: Objection, reason: String) -> Option<Stop> {
        let reason = format!("member {}: {reason}", self.shared.name(position));
        tracing::debug!(organism = %self.shared.id, %reason, "follower asks the next member");
        self.report.send_modify(|progress| progress.last_error = Some(reason));
        // Not a member's word: a quorum has signed both.
        if let Objection::Contradiction(why) = objection {
            return Some(*why);
        }
        let pause = if matches!(objection, Objection::NoState) { Duration::ZERO } else { RETRY };
        // After a handover the positions are other members'.
        let epoch = self.shared.epoch();
        if std::mem::replace(&mut self.epoch, epoch) == epoch {
            self.objections.insert(position, objection);
        } else {
            self.objections.clear();
        }
        self.shared.demote(position);
        if let Some(why) = self.conclude() {
            return Some(why);
        }
        tokio::time::sleep(pause).await;
        None
    }

    fn conclude(&mut self) -> Option<Stop> {
        // With one more than may lie, one of them is correct. Who has left does not count.
        let known = self.shared.known();
        let enough = known.chain.verifier().members() - known.chain.verifier().quorum() + 1;
        let in_force = || self.objections.range(..known.in_force).map(|(_, objection)| objection);
        let forks = in_force().filter(|objection| matches!(objection, Objection::Fork)).count();
        if let Some(head) = self.core.head().filter(|_| forks >= enough) {
            return Some(Stop::Forked { size: head.size(), root: head.root(), members: forks });
        }
        let is_round = self.objections.len() == self.shared.members();
        let pruned: Vec<&Pruned> = in_force().filter_map(Objection::pruned).collect();
        if self.wants_state {
            // Nobody offers one: the log is read from where this reader stands.
            let none = in_force().filter(|objection| matches!(objection, Objection::NoState)).count();
            if none >= enough {
                self.wants_state = false;
                self.objections.clear();
            }
        } else if self.start_from.is_some() && is_round && !pruned.is_empty() {
            self.wants_state = true;
            self.objections.clear();
        } else if self.start_from.is_none() && pruned.len() >= enough && is_round {
            // The member that kept most is the one to name.
            return pruned.into_iter().min_by_key(|pruned| pruned.below).cloned().map(Stop::Pruned);
        }
        None
    }

    /// Keeps the fold if it has advanced. A disk that fails costs the next start some time, and this one nothing.
    async fn keep_fold(&mut self) {
        let Some(keep) = self.keep.clone().filter(|_| self.kept.1 != self.core.next_index()) else { return };
        let kept =
            Kept { organism: self.shared.id, saved: self.core.save(), ending: self.report.borrow().ending.clone() };
        let (fold, path) = (Arc::clone(&self.fold), keep.path().to_owned());
        let writing = move || keep.write(&kept, &fold.read().unwrap_or_else(PoisonError::into_inner));
        match tokio::task::spawn_blocking(writing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn_of(&path, &describe(&error)),
            Err(error) => warn_of(&path, &error.to_string()),
        }
        self.kept = (Instant::now(), self.core.next_index());
    }
}

impl Objection {
    const fn pruned(&self) -> Option<&Pruned> {
        match self {
            Self::Pruned(pruned) => Some(pruned),
            _ => None,
        }
    }
}

fn warn_of(path: &Path, reason: &str) {
    tracing::warn!(file = %path.display(), %reason, "the fold could not be kept; it goes on in memory");
}

fn stop(shared: &Shared, report: &watch::Sender<Progress>, why: Stop) {
    let reason = describe(&why.error());
    tracing::error!(organism = %shared.id, %reason, "the follower stops");
    if let Stop::Contradicted { proofs, .. } = &why {
        for proof in proofs {
            tracing::error!(organism = %shared.id, %proof, "a member signed two histories; keep this proof");
        }
    }
    report.send_modify(|progress| (progress.last_error, progress.stop) = (Some(reason), Some(why)));
}

/// The reader's core and the log's ending as they were kept, or as of an empty log. The fold is touched last: what does not fit is
/// not shown.
fn resume<F>(shared: &Shared, fold: &RwLock<F>, keep: Option<&Keep<F>>) -> Result<(Core, super::Ending), String> {
    let fresh = || Core::new(shared.id, &shared.genesis).map_err(|error| describe(&error));
    let Some(keep) = keep else { return Ok((fresh()?, super::Ending::default())) };
    let no_use = |error: &KeepError| {
        let aside = keep.set_aside().map_err(|error| describe(&error))?;
        let (reason, file) = (describe(error), aside.display());
        tracing::error!(organism = %shared.id, %reason, %file, "the kept fold is no use; it was set aside");
        Ok((fresh()?, super::Ending::default()))
    };
    let (kept, bytes) = match keep.read() {
        Ok(Some(kept)) => kept,
        Ok(None) => return Ok((fresh()?, super::Ending::default())),
        Err(error @ KeepError::Damaged { .. }) => return no_use(&error),
        Err(error) => return Err(describe(&error)),
    };
    let file = keep.path().display();
    if kept.organism != shared.id {
        let (found, expected) = (kept.organism, shared.id);
        return Err(format!("{file} is of organism {found}, not {expected}; give each reader a file of its own"));
    }
    let core = Core::resume(shared.id, &shared.genesis, kept.saved);
    let core = core.map_err(|error| format!("{file}: {}", describe(&error)))?;
    shared.learn(&core.chain().proofs(0, u64::MAX))?;
    let loaded = keep.load(&mut fold.write().unwrap_or_else(PoisonError::into_inner), &bytes);
    loaded.map_or_else(|error| no_use(&error), |()| Ok((core, kept.ending)))
}

fn fold_all<F: Fold>(state: &RwLock<F>, entries: &[Entry]) -> Result<(), (u64, FoldFault)> {
    let mut fold = state.write().unwrap_or_else(PoisonError::into_inner);
    let mut services = entries.iter().filter(|entry| !is_host_kind(&entry.kind));
    services.try_for_each(|entry| fold.fold(entry).map_err(|fault| (entry.index, fault)))
}

fn accept(core: &mut Core, answer: &FollowAnswer) -> Result<Vec<Entry>, FollowError> {
    let note = SignedCheckpoint::parse(answer.head.as_bytes()).map_err(FollowError::SavedNote)?;
    core.accept_handovers(&answer.handovers)?;
    core.accept_head(&note, &answer.head_proof)?;
    if answer.entries.is_empty() {
        return Ok(Vec::new());
    }
    core.accept_entries(core.next_index(), &answer.entries, &answer.range_proof)
}
