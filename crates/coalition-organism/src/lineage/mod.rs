//! Following the chain of configs: one handle on an organism and on whoever succeeds it.
//!
//! An [`Organism`] and a [`Follower`](crate::Follower) are pinned to one config: when its log has its last entry they answer
//! [`WriteError::Retired`] and [`ReadError::Retired`](crate::ReadError::Retired), with the successor's config in the error. A
//! [`Lineage`] goes on there instead. It trusts nobody for that but the quorum that certified the old log: the announcement in it
//! carries the new config whole.

mod ended;
mod reader;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use coalition::{PublishedConfig, UniqueId};
use coalition_log::{
    entry::WriteId,
    retirement::{RETIRED_CODE, Retirement},
    state::MAX_WRITES,
    successor::Successor,
};
use coalition_universe::{PeerAddress, PeerId};
use tokio::time::Instant;

pub use self::reader::LineageFollower;
use crate::{
    beginning::NOT_BEGUN_CODE,
    client::{CALL_TIMEOUT, Committed, Organism, millis},
    error::{ReadError, WriteError, describe},
    wire::{Payload, Write},
};

/// Pause before a log that should have ended is asked again.
const RETRY: Duration = Duration::from_millis(200);

/// One organism of a chain.
#[derive(Clone)]
pub struct Link {
    number: usize,
    organism: Organism,
    config: Option<Arc<PublishedConfig>>,
}

impl Link {
    /// Its place in the chain, from 0.
    #[must_use]
    pub const fn number(&self) -> usize {
        self.number
    }

    /// The organism, pinned.
    #[must_use]
    pub const fn organism(&self) -> &Organism {
        &self.organism
    }

    /// The config that its predecessor's log names; `None` for the first, whose config its user has.
    #[must_use]
    pub fn config(&self) -> Option<&PublishedConfig> {
        self.config.as_deref()
    }
}

/// A step along the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The organism whose log has ended.
    pub from: UniqueId,
    /// The one that succeeds it.
    pub to: UniqueId,
    /// The successor's published config, by the old log.
    pub config: Arc<PublishedConfig>,
}

/// A handle on an organism and on whoever succeeds it, cheap to clone; all clones move together.
#[derive(Clone)]
pub struct Lineage {
    inner: Arc<Inner>,
}

struct Inner {
    links: RwLock<Vec<Link>>,
    /// Held while the next link is looked for.
    moving: tokio::sync::Mutex<()>,
    sent: Mutex<Sent>,
}

/// Which link each write was sent to first.
#[derive(Default)]
struct Sent {
    first: BTreeMap<WriteId, usize>,
    order: VecDeque<WriteId>,
}

impl Sent {
    /// The link where the write was sent first, which is `newest` unless it was sent before.
    fn begin(&mut self, id: WriteId, newest: usize) -> usize {
        if let Some(link) = self.first.get(&id) {
            return *link;
        }
        if self.order.len() == MAX_WRITES
            && let Some(oldest) = self.order.pop_front()
        {
            self.first.remove(&oldest);
        }
        self.first.insert(id, newest);
        self.order.push_back(id);
        newest
    }
}

impl Lineage {
    /// Follows the chain that begins with `first`. Must be used inside a tokio runtime.
    #[must_use]
    pub fn follow(first: Organism) -> Self {
        let first = Link { number: 0, organism: first, config: None };
        let (links, moving, sent) = (RwLock::new(vec![first]), tokio::sync::Mutex::new(()), Mutex::default());
        Self { inner: Arc::new(Inner { links, moving, sent }) }
    }

    /// The newest organism of the chain as far as this handle has come.
    #[must_use]
    pub fn current(&self) -> Link {
        let links = self.inner.links.read().unwrap_or_else(PoisonError::into_inner);
        links.last().expect("the first link is never removed").clone()
    }

    /// The steps taken so far, oldest first.
    #[must_use]
    pub fn moves(&self) -> Vec<Moved> {
        let links = self.inner.links.read().unwrap_or_else(PoisonError::into_inner);
        let steps = links.iter().zip(links.iter().skip(1));
        let step = |(from, to): (&Link, &Link)| {
            Some(Moved { from: from.organism.id(), to: to.organism.id(), config: Arc::clone(to.config.as_ref()?) })
        };
        steps.filter_map(step).collect()
    }

    /// Goes on along the chain until an organism that works, and answers it.
    ///
    /// # Errors
    /// [`ReadError::Retired`] when the last one retired without a successor whose config it names; as
    /// [`Organism::retirement`].
    pub async fn newest(&self, deadline: Duration) -> Result<Link, ReadError> {
        let started = Instant::now();
        loop {
            let link = self.current();
            let left = deadline.saturating_sub(started.elapsed());
            match link.organism.retirement(left).await? {
                None => return Ok(link),
                Some(retirement) => self.advance(&link, retirement).await?,
            };
        }
    }

    /// Writes a command and waits until its entries are certified, in the log of whichever organism of the chain works. When the
    /// log ends meanwhile, the write is sent to the successor under the same id, unless the ended log has it: so it takes effect
    /// once. An id that this handle sent before is asked for where it was sent first, answered or not; of those the last 100,000
    /// are remembered, as many as a committee does. The entries' pointers name the organism.
    ///
    /// # Errors
    /// As [`Organism::write`]; [`WriteError::Retired`] when there is no successor to go on with.
    pub async fn write(
        &self,
        write_id: WriteId,
        command: Vec<u8>,
        deadline: Duration,
    ) -> Result<Committed, WriteError> {
        let first = self.sent().begin(write_id, self.current().number);
        self.write_from(first, write_id, command, deadline).await
    }

    /// As [`write`](Self::write), for an id that another process may have sent: every organism of the chain is asked, from the
    /// first.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn write_again(
        &self,
        write_id: WriteId,
        command: Vec<u8>,
        deadline: Duration,
    ) -> Result<Committed, WriteError> {
        self.sent().begin(write_id, 0);
        self.write_from(0, write_id, command, deadline).await
    }

    async fn write_from(
        &self,
        first: usize,
        write_id: WriteId,
        command: Vec<u8>,
        deadline: Duration,
    ) -> Result<Committed, WriteError> {
        let started = Instant::now();
        let left = || deadline.saturating_sub(started.elapsed());
        let mut link = self.link(first);
        loop {
            let retirement = match link.organism.write(write_id, command.clone(), left()).await {
                Err(WriteError::Retired(retirement)) => Some(*retirement),
                // A member's word; the log will say so, too.
                Err(WriteError::Refused(refusal)) if refusal.code == RETIRED_CODE => None,
                // The successor's committee is up, and its log has yet to begin.
                Err(WriteError::Refused(refusal)) if refusal.code == NOT_BEGUN_CODE && !left().is_zero() => {
                    tokio::time::sleep(RETRY.min(left())).await;
                    continue;
                }
                other => return other,
            };
            let write = Write { write_id, payload: Payload::Command(command.clone()) };
            if let Some(committed) = ended::find(&link.organism, &write, left()).await? {
                return Ok(committed);
            }
            link = self.after(&link, retirement, left()).await.map_err(|error| match error {
                ReadError::Retired(retirement) => WriteError::Retired(retirement),
                other => WriteError::Deadline { waited_ms: millis(deadline), last: Some(describe(&other)) },
            })?;
        }
    }

    /// The link after one whose log has ended.
    async fn after(&self, link: &Link, known: Option<Retirement>, deadline: Duration) -> Result<Link, ReadError> {
        if let Some(next) = self.known_after(link) {
            return Ok(next);
        }
        let retirement = match known.filter(|retirement| retirement.config().is_some()) {
            Some(retirement) => retirement,
            None => self.ended(link, deadline).await?,
        };
        self.advance(link, retirement).await
    }

    /// How the log of a link ended. One member that lags behind does not know yet: others are asked.
    async fn ended(&self, link: &Link, deadline: Duration) -> Result<Retirement, ReadError> {
        let started = Instant::now();
        loop {
            let left = deadline.saturating_sub(started.elapsed());
            let last = match link.organism.retirement(left.min(CALL_TIMEOUT * 2)).await {
                Ok(Some(retirement)) => return Ok(retirement),
                Ok(None) => Some("no member shows the log's last entry".to_owned()),
                Err(ReadError::Deadline { last, .. }) => last,
                Err(error) => return Err(error),
            };
            let left = deadline.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Err(ReadError::Deadline { waited_ms: millis(deadline), last });
            }
            let shared = link.organism.shared();
            shared.demote(shared.member().0);
            tokio::time::sleep(RETRY.min(left)).await;
        }
    }

    /// Takes the step that a retirement in effect names, unless somebody has.
    async fn advance(&self, link: &Link, retirement: Retirement) -> Result<Link, ReadError> {
        let _turn = self.inner.moving.lock().await;
        if let Some(next) = self.known_after(link) {
            return Ok(next);
        }
        let from = link.organism.id();
        let retired = |retirement| ReadError::Retired(Box::new(retirement));
        let unusable = |error: &dyn std::error::Error| ReadError::Stopped {
            reason: format!("the successor of {from} cannot be used: {}", describe(error)),
        };
        let next = retirement.next_organism(from).map_err(|error| unusable(&error))?;
        let (Some(next), Some(successor)) = (next, retirement.config().cloned()) else {
            return Err(retired(retirement));
        };
        let node = Arc::clone(&link.organism.shared().node);
        for address in addresses(&successor, next.roster()) {
            node.suggest(address);
        }
        let organism = Organism::connect(node, next.id, next.content.roster).map_err(|error| unusable(&error))?;
        let organism = match link.organism.shared().admissions.source() {
            Some(tickets) => organism.showing(tickets),
            None => organism,
        };
        let to = organism.id();
        tracing::info!(%from, %to, coalition = successor.config().instance_name(), "the organism has moved to its successor");
        let next = Link { number: link.number + 1, organism, config: Some(Arc::new(successor.config().clone())) };
        self.inner.links.write().unwrap_or_else(PoisonError::into_inner).push(next.clone());
        Ok(next)
    }

    fn link(&self, number: usize) -> Link {
        let links = self.inner.links.read().unwrap_or_else(PoisonError::into_inner);
        links.get(number).cloned().unwrap_or_else(|| links[0].clone())
    }

    fn known_after(&self, link: &Link) -> Option<Link> {
        self.inner.links.read().unwrap_or_else(PoisonError::into_inner).get(link.number + 1).cloned()
    }

    fn sent(&self) -> MutexGuard<'_, Sent> {
        self.inner.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The places that an announcement gives for members of the successor. What cannot be read is left out: it helps nobody, and who
/// a member is follows from the roster.
fn addresses(successor: &Successor, roster: &coalition::Roster) -> Vec<PeerAddress> {
    let address = |place: &coalition_log::successor::Place| {
        let member = roster.members().get(usize::from(place.member))?;
        let peer = PeerId::from_bytes(member.peer_id).ok()?;
        format!("{peer}@{}", place.at).parse().ok()
    };
    successor.places().iter().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_keeps_its_first_link() {
        let mut sent = Sent::default();
        let id = |n: u64| WriteId((u128::from(n) + 1).to_be_bytes());
        assert_eq!((sent.begin(id(0), 0), sent.begin(id(0), 2)), (0, 0));
        for n in 1..=MAX_WRITES as u64 {
            sent.begin(id(n), 1);
        }
        assert_eq!((sent.first.len(), sent.order.len()), (MAX_WRITES, MAX_WRITES));
        assert_eq!((sent.begin(id(5), 3), sent.begin(id(0), 3)), (1, 3), "the oldest is forgotten first");
    }
}
