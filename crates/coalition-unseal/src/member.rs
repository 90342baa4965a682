//! One member: authenticates the caller, looks the grant up in the certified log, lets the machine decide.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use coalition::RequestId;
use coalition_compute::MarketView;
use coalition_organism::Follower;
use coalition_shuffle::{Answer, Ask, GrantAuthorization, Member, MemberStats, Outcome, Refusal};
use coalition_universe::{Fault, PeerId, Service};
use futures::future::BoxFuture;
use rand_core::OsRng;
use tokio::sync::Notify;

use crate::ASK;

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
}

/// A running member of the unseal committee.
#[derive(Clone)]
pub struct UnsealMember {
    inner: Arc<Inner>,
}

impl UnsealMember {
    /// Starts a member that judges by the certified market it follows. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(machine: Member, market: Follower<MarketView>) -> Self {
        let inner = Arc::new(Inner { machine: Mutex::new(machine), market, posted: Notify::new() });
        let weak = Arc::downgrade(&inner);
        tokio::spawn(async move {
            let mut due = tokio::time::interval(SWEEP);
            loop {
                due.tick().await;
                let Some(inner) = weak.upgrade() else { return };
                inner.machine().sweep(now_ms());
            }
        });
        Self { inner }
    }

    /// What the member answers on the network.
    #[must_use]
    pub fn service(&self) -> Arc<dyn Service> {
        Arc::new(self.clone())
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
                Ok(ask) => inner.answer(*caller.as_bytes(), ask).await,
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

    async fn answer(&self, caller: [u8; 32], ask: Ask) -> Answer {
        let grant = match ask.grant_needed() {
            Some(request) => self.grant(request).await,
            None => None,
        };
        let fetching = matches!(ask, Ask::FetchReply { .. });
        let command = match ask.into_command(caller, grant) {
            Ok(command) => command,
            Err(refusal) => return Answer::Refused(refusal),
        };
        let until = tokio::time::Instant::now() + REPLY_WAIT;
        loop {
            // Registered before looking, so that a reply posted in between is not missed.
            let posted = self.posted.notified();
            let outcome = self.machine().apply(now_ms(), &command, &mut OsRng);
            let empty = fetching && matches!(&outcome, Ok(Outcome::Replies(replies)) if replies.is_empty());
            if matches!(outcome, Ok(Outcome::Posted(_))) {
                self.posted.notify_waiters();
            }
            if !empty || tokio::time::timeout_at(until, posted).await.is_err() {
                return outcome.into();
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
