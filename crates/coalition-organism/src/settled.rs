//! The newest head as a quorum knows it: everything that was acknowledged before it was asked for lies under it.
//!
//! A member that is asked answers once a certified head covers all that it has signed by then, and every handover in its log is
//! proven. A write is acknowledged under a head that a quorum signed. Any two quorums share a member that keeps the protocol, and
//! the answer of that one covers the write. Lies cannot make it more, as heads are verified, nor less, as the largest counts.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use coalition_log::checkpoint::CertifiedCheckpoint;
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    client::{CALL_TIMEOUT, Known, Organism, millis},
    error::ReadError,
    wire::{self, SettledRequest, method},
};

/// How long programs let a quorum take before what one member knows has to do.
pub const QUORUM_PATIENCE: Duration = Duration::from_secs(6);
/// Pause before a member that did not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// What members have answered so far. Pure.
#[derive(Debug)]
pub(crate) struct Settling {
    quorum: usize,
    heard: BTreeSet<usize>,
    newest: Option<CertifiedCheckpoint>,
}

impl Settling {
    /// Nobody has answered.
    pub(crate) const fn new(quorum: usize) -> Self {
        Self { quorum, heard: BTreeSet::new(), newest: None }
    }

    /// Takes the verified head of a member's answer; the newest of all, once a quorum has answered.
    pub(crate) fn heard(&mut self, member: usize, head: CertifiedCheckpoint) -> Option<&CertifiedCheckpoint> {
        self.heard.insert(member);
        if self.newest.as_ref().is_none_or(|newest| newest.size() < head.size()) {
            self.newest = Some(head);
        }
        self.newest.as_ref().filter(|_| self.heard.len() >= self.quorum)
    }
}

/// What there is to say where no quorum answers.
#[derive(Debug, Default)]
struct Trouble {
    answered: usize,
    needed: usize,
    last: Option<String>,
}

impl Trouble {
    fn into_words(self) -> String {
        let Self { answered, needed, last } = self;
        let last = last.map(|last| format!("; {last}")).unwrap_or_default();
        format!("{answered} of the {needed} members that have to answer did{last}")
    }
}

impl Organism {
    /// The newest certified head that a quorum of the members knows: every write that anybody had been told is committed, when
    /// this was called, is under it.
    ///
    /// # Errors
    /// [`ReadError::Deadline`] when no quorum answers in time; [`head`](Self::head) needs one member only, and promises less.
    pub async fn settled_head(&self, deadline: Duration) -> Result<CertifiedCheckpoint, ReadError> {
        let until = Instant::now() + deadline;
        let trouble = Mutex::new(Trouble::default());
        loop {
            let known = self.shared().known();
            let left = until.saturating_duration_since(Instant::now());
            match timeout(left, self.settle(&known, &trouble)).await {
                Ok(Some(head)) => return Ok(head),
                // The committee has handed over: others know what is newest.
                Ok(None) => {}
                Err(_) => {
                    let trouble = trouble.into_inner().unwrap_or_else(PoisonError::into_inner);
                    return Err(ReadError::Deadline { waited_ms: millis(deadline), last: Some(trouble.into_words()) });
                }
            }
        }
    }

    /// The newest head that a quorum knows, where one answers within `patience`; else what the first member to answer knows, with the
    /// reason why that may be behind.
    ///
    /// # Errors
    /// [`ReadError::Deadline`] when no member gives one in time.
    pub async fn settled_head_or_any(
        &self,
        patience: Duration,
        deadline: Duration,
    ) -> Result<(CertifiedCheckpoint, Option<ReadError>), ReadError> {
        match self.settled_head(patience).await {
            Ok(head) => Ok((head, None)),
            Err(unsettled) => Ok((self.head(deadline).await?, Some(unsettled))),
        }
    }

    /// Asks those in force; `None` when one of them taught this client a handover.
    async fn settle(&self, known: &Known, trouble: &Mutex<Trouble>) -> Option<CertifiedCheckpoint> {
        let epoch = known.chain.epoch();
        let needed = known.chain.verifier().quorum();
        let mut settling = Settling::new(needed);
        *lock(trouble) = Trouble { needed, ..Trouble::default() };
        let mut answers: FuturesUnordered<_> =
            (0..known.in_force).map(|member| self.settled_head_of(member, epoch, trouble)).collect();
        while let Some((member, head)) = answers.next().await {
            if self.shared().epoch() != epoch {
                return None;
            }
            lock(trouble).answered += 1;
            if let Some(newest) = settling.heard(member, head) {
                return Some(newest.clone());
            }
        }
        None
    }

    /// Asks one member until it answers truthfully.
    async fn settled_head_of(
        &self,
        member: usize,
        epoch: u64,
        trouble: &Mutex<Trouble>,
    ) -> (usize, CertifiedCheckpoint) {
        let wait_ms = u32::try_from(CALL_TIMEOUT.as_millis() / 2).unwrap_or(u32::MAX);
        let request = wire::encode(&SettledRequest { organism: self.id(), epoch, wait_ms });
        loop {
            let answer = self.shared().call(member, method::SETTLED, request.clone(), CALL_TIMEOUT).await;
            let head = answer.map_err(|error| error.to_string()).and_then(|bytes| self.certify(&bytes));
            match head {
                Ok(head) => return (member, head),
                Err(reason) => {
                    let reason = format!("member {}: {reason}", self.shared().name(member));
                    lock(trouble).last = Some(reason);
                }
            }
            sleep(ASK_AGAIN).await;
        }
    }
}

fn lock(trouble: &Mutex<Trouble>) -> MutexGuard<'_, Trouble> {
    trouble.lock().unwrap_or_else(PoisonError::into_inner)
}
