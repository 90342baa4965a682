//! One member: authenticates the caller, looks the grant up in the certified log, lets the machine decide.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use coalition::RequestId;
use coalition_compute::MarketView;
use coalition_organism::Follower;
use coalition_shuffle::{
    Answer, Ask, CellId, GrantAuthorization, Member, MemberStats, Outcome, Refusal, member::Command,
};
use coalition_universe::{Fault, PeerId, Service};
use futures::future::BoxFuture;
use rand_core::OsRng;
use tokio::sync::{Notify, watch};

use crate::{
    ASK,
    cells::{CellFiles, CellStoreError},
};

/// How long a member waits for a grant it has not seen yet: the provider may follow the log a moment ahead of it.
const GRANT_WAIT: Duration = Duration::from_secs(3);
/// How long a member holds a requester's poll for its reply.
const REPLY_WAIT: Duration = Duration::from_secs(3);
/// How often an idle member forgets what has expired.
const SWEEP: Duration = Duration::from_secs(10);

struct Inner {
    machine: Mutex<Member>,
    market: Follower<MarketView>,
    posted: Notify,
    /// Where cells are kept; taken before the machine's lock is, never after it. `None` for a member that keeps none.
    files: Option<Arc<Mutex<CellFiles>>>,
    failure: watch::Sender<Option<Arc<CellStoreError>>>,
}

/// A running member of the unseal committee.
#[derive(Clone)]
pub struct UnsealMember {
    inner: Arc<Inner>,
}

impl UnsealMember {
    /// Starts a member that judges by the certified market it follows, and forgets its cells when it ends. Must be called
    /// inside a tokio runtime.
    #[must_use]
    pub fn start(machine: Member, market: Follower<MarketView>) -> Self {
        Self::run(machine, market, None)
    }

    /// Starts a member that keeps its cells in a directory of its own, and takes up those that are there.
    ///
    /// # Errors
    /// [`CellStoreError`] when the directory cannot be used or another process uses it.
    pub fn open(mut machine: Member, market: Follower<MarketView>, dir: &Path) -> Result<Self, CellStoreError> {
        let files = CellFiles::open(dir, &mut machine, now_ms())?;
        Ok(Self::run(machine, market, Some(Arc::new(Mutex::new(files)))))
    }

    fn run(machine: Member, market: Follower<MarketView>, files: Option<Arc<Mutex<CellFiles>>>) -> Self {
        let (failure, machine) = (watch::channel(None).0, Mutex::new(machine));
        let inner = Arc::new(Inner { machine, market, posted: Notify::new(), files, failure });
        let weak = Arc::downgrade(&inner);
        tokio::spawn(async move {
            let mut due = tokio::time::interval(SWEEP);
            loop {
                due.tick().await;
                let Some(inner) = weak.upgrade() else { return };
                let now_ms = now_ms();
                inner.machine().sweep(now_ms);
                let _ = inner.with_files(move |files| files.sweep(now_ms)).await;
            }
        });
        Self { inner }
    }

    /// What the member answers on the network.
    #[must_use]
    pub fn service(&self) -> Arc<dyn Service> {
        Arc::new(self.clone())
    }

    /// Resolves when the member can no longer keep what it accepts; its process must end then.
    pub async fn failed(&self) -> Arc<CellStoreError> {
        let mut failure = self.inner.failure.subscribe();
        loop {
            if let Some(error) = failure.borrow_and_update().clone() {
                return error;
            }
            if failure.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// How much it holds.
    #[must_use]
    pub fn stats(&self) -> MemberStats {
        self.inner.machine().stats()
    }

    /// Entries of the market's log it has verified.
    #[must_use]
    pub fn market_size(&self) -> u64 {
        self.inner.market.certified_size()
    }
}

impl Service for UnsealMember {
    fn call(&self, caller: PeerId, method: String, body: Vec<u8>) -> BoxFuture<'static, Result<Vec<u8>, Fault>> {
        let inner = Arc::clone(&self.inner);
        Box::pin(async move {
            if method != ASK {
                return Err(Fault::new("unknown_method", format!("an unseal member does not answer {method}")));
            }
            let answer = match Ask::decode(&body) {
                Ok(ask) => inner.answer(*caller.as_bytes(), ask).await?,
                Err(_) => Answer::Refused(Refusal::Malformed),
            };
            answer.encode().map_err(|error| Fault::new("internal", error.to_string()))
        })
    }
}

impl Inner {
    fn machine(&self) -> std::sync::MutexGuard<'_, Member> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the files, if this member has any, on a thread that may wait for the disk. The first failure is
    /// the member's end.
    async fn with_files(
        &self,
        act: impl FnOnce(&mut CellFiles) -> Result<(), CellStoreError> + Send + 'static,
    ) -> Result<(), Fault> {
        let Some(files) = self.files.clone() else { return Ok(()) };
        let run = move || act(&mut files.lock().unwrap_or_else(PoisonError::into_inner));
        match tokio::task::spawn_blocking(run).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                self.failure.send_if_modified(|known| {
                    let is_first = known.is_none();
                    known.get_or_insert_with(|| Arc::new(error));
                    is_first
                });
                Err(Fault::new("disk", "this member's disk refuses; it is stopping"))
            }
            Err(error) => Err(Fault::new("internal", error.to_string())),
        }
    }

    /// Has a cell the machine holds on disk, for as long as the machine holds it.
    async fn keep(&self, id: CellId) -> Result<(), Fault> {
        if self.files.is_none() {
            return Ok(());
        }
        let held = self.machine().held_cell(&id).map(|(expires_at_ms, bytes)| (expires_at_ms, bytes.to_vec()));
        let Some((expires_at_ms, bytes)) = held else { return Ok(()) };
        self.with_files(move |files| files.hold(id, expires_at_ms, &bytes)).await
    }

    async fn answer(&self, caller: [u8; 32], ask: Ask) -> Result<Answer, Fault> {
        let grant = match ask.grant_needed() {
            Some(request) => self.grant(request).await,
            None => None,
        };
        let fetching = matches!(ask, Ask::FetchReply { .. });
        let command = match ask.into_command(caller, grant) {
            Ok(command) => command,
            Err(refusal) => return Ok(Answer::Refused(refusal)),
        };
        let until = tokio::time::Instant::now() + REPLY_WAIT;
        loop {
            // Registered before looking, so that a reply posted in between is not missed.
            let posted = self.posted.notified();
            let outcome = self.machine().apply(now_ms(), &command, &mut OsRng);
            let empty = fetching && matches!(&outcome, Ok(Outcome::Replies(replies)) if replies.is_empty());
            // Said only once it is so, also when another submission of the same cell is just being written.
            match (&outcome, &command) {
                (Ok(Outcome::Held(submission)), _) => self.keep(submission.cell).await?,
                (Ok(Outcome::Share(_)), Command::RequestShare { cell_id, .. }) => self.keep(*cell_id).await?,
                _ => (),
            }
            if matches!(outcome, Ok(Outcome::Posted(_))) {
                self.posted.notify_waiters();
            }
            if !empty || tokio::time::timeout_at(until, posted).await.is_err() {
                return Ok(outcome.into());
            }
        }
    }

    /// The live grant of a request, as the Compute committee's quorum certified it.
    async fn grant(&self, request: RequestId) -> Option<GrantAuthorization> {
        let look = |market: &MarketView| {
            let record = market.grant(&request).filter(|record| record.is_live())?;
            Some(GrantAuthorization {
                request_id: request,
                provider: record.grant.provider,
                bearer_pointer: record.grant.bearer_pointer,
                valid_to_ms: record.grant.valid_to_ms,
                provider_peer: record.grant.endpoint_hint.provider_peer,
            })
        };
        self.market.wait_for(GRANT_WAIT, look).await.ok()
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
