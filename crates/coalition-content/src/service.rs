//! A store as a service: who may do what, and how much at once. Source: `docs/protocol/content.md`, section 3.

use std::collections::BTreeMap;
use std::sync::Arc;

use coalition_universe::{Fault, PeerId, Service};
use futures::future::BoxFuture;
use tokio::sync::Semaphore;

use crate::store::{Missing, Pusher, Store, StoreError};
use crate::wire::{self, Ask, Listing, MAX_ENTRIES, PutAnswer, WireError};

/// Calls that work on the disk at once; further ones wait, within their callers' patience.
const MAX_WORKING: usize = 16;

/// Who may push, and how much.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Listed peers, and the bytes each may hold.
    pub pushers: BTreeMap<PeerId, u64>,
    /// Bytes any other peer may hold; 0 lets only listed ones push.
    pub anyone_bytes: u64,
    /// Bytes all others may hold together.
    pub anyone_total_bytes: u64,
}

impl Policy {
    /// What this peer may hold; `None` if it may not push.
    #[must_use]
    pub fn pusher(&self, peer: PeerId) -> Option<Pusher> {
        if let Some(quota_bytes) = self.pushers.get(&peer) {
            return Some(Pusher { peer, quota_bytes: *quota_bytes, strangers_bytes: None });
        }
        let (quota_bytes, all) = (self.anyone_bytes, self.anyone_total_bytes);
        (quota_bytes > 0).then_some(Pusher { peer, quota_bytes, strangers_bytes: Some(all) })
    }
}

/// Answers the content calls from a store.
pub struct ContentService {
    store: Arc<Store>,
    policy: Arc<Policy>,
    working: Arc<Semaphore>,
}

impl ContentService {
    /// For this store, under this policy.
    #[must_use]
    pub fn new(store: Arc<Store>, policy: Policy) -> Self {
        Self { store, policy: Arc::new(policy), working: Arc::new(Semaphore::new(MAX_WORKING)) }
    }
}

impl Service for ContentService {
    fn call(&self, caller: PeerId, method: String, body: Vec<u8>) -> BoxFuture<'static, Result<Vec<u8>, Fault>> {
        let (store, policy, working) = (Arc::clone(&self.store), Arc::clone(&self.policy), Arc::clone(&self.working));
        Box::pin(async move {
            let ask = Ask::read(&method, &body)?;
            drop(body);
            let internal = |_| Fault::new("internal", "the store could not work on it");
            let permit = working.acquire_owned().await.map_err(internal)?;
            let work = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                answer(&store, &policy, caller, ask)
            });
            work.await.map_err(|_| Fault::new("internal", "the call failed inside the store; its log says why"))?
        })
    }

    fn answers_large(&self, method: &str) -> bool {
        method == wire::SLICE
    }
}

/// Answers one call; blocks on the disk.
fn answer(store: &Store, policy: &Policy, caller: PeerId, ask: Ask) -> Result<Vec<u8>, Fault> {
    let pusher = || {
        let refused = || Fault::new("not_allowed", "this peer may not push to this store; ask its operator to list it");
        policy.pusher(caller).ok_or_else(refused)
    };
    match ask {
        Ask::Stat(hash) => Ok(wire::encode(&store.stat(hash))),
        Ask::Slice(content, range) => store.slice(content, range).map_err(|error| fault(&error)),
        Ask::Begin(content) => {
            let missing = store.begin(content, Some(&pusher()?)).map_err(|error| fault(&error))?;
            Ok(wire::encode(&match missing {
                Missing::Nothing => PutAnswer::Whole,
                Missing::Pieces(runs) => PutAnswer::Missing(runs),
            }))
        }
        Ask::Put(content, piece, slice) => {
            pusher()?;
            let whole = store.put(content, piece, &slice, Some(caller)).map_err(|error| fault(&error))?;
            Ok(wire::encode(&if whole { PutAnswer::Whole } else { PutAnswer::Missing(Vec::new()) }))
        }
        Ask::List(after) => {
            let (mut entries, used_bytes) = store.list(caller, after);
            let more = entries.len() > MAX_ENTRIES;
            entries.truncate(MAX_ENTRIES);
            let quota_bytes = policy.pusher(caller).map_or(0, |pusher| pusher.quota_bytes);
            let retain_s = store.limits().retain.as_secs();
            Ok(wire::encode(&Listing { quota_bytes, used_bytes, retain_s, entries, more }))
        }
        Ask::Remove(hash) => store.remove(caller, hash).map(|was| wire::encode(&was)).map_err(|error| fault(&error)),
    }
}

/// A refusal as it travels. What the disk said stays here.
fn fault(error: &StoreError) -> Fault {
    let code = match error {
        StoreError::Unknown { .. } => "unknown_content",
        StoreError::OtherSize { .. } => "other_size",
        StoreError::Unverified(_) => "unverified",
        StoreError::Damaged { .. } => "damaged",
        StoreError::TooLarge { .. } => "too_large",
        StoreError::Quota { .. } => "quota",
        StoreError::NoRoom { .. } => "no_room",
        StoreError::TooMany { .. } => "too_many",
        StoreError::Busy { .. } | StoreError::Disk { .. } => {
            tracing::error!(error = ?error, "the store's disk refuses");
            return Fault::new("disk", "the store's disk refuses; its operator finds why in its log");
        }
    };
    Fault::new(code, error.to_string())
}

/// Answers [`wire::SLICE`] and [`wire::STAT`] for one file, whose outline is known: a requester's node serves its image so.
pub struct FileService {
    outline: crate::tree::Outline,
    file: Arc<std::fs::File>,
}

impl FileService {
    /// For an open file; replacing it in its directory changes nothing.
    #[must_use]
    pub fn new(outline: crate::tree::Outline, file: std::fs::File) -> Self {
        Self { outline, file: Arc::new(file) }
    }

    /// What it serves.
    #[must_use]
    pub const fn content(&self) -> crate::tree::Content {
        self.outline.content()
    }

    /// The answer of a call, and which bytes of the file it is; blocks on the disk.
    ///
    /// # Errors
    /// `malformed`, `unknown_method`, `unknown_content`, `other_size`; `damaged` when the file changed or cannot be read.
    pub fn answer(&self, method: &str, body: &[u8]) -> Result<(Vec<u8>, std::ops::Range<u64>), Fault> {
        let mine = self.outline.content();
        match Ask::read(method, body)? {
            Ask::Stat(hash) => Ok((wire::encode(&(hash == mine.hash()).then_some(mine.size())), 0..0)),
            Ask::Slice(content, range) if content == mine => {
                let slice = self.outline.slice(&self.file, range.clone());
                let damaged = |error| Fault::new("damaged", format!("the file changed or cannot be read: {error}"));
                Ok((slice.map_err(damaged)?, range))
            }
            Ask::Slice(content, _) if content.hash() == mine.hash() => {
                let (hash, stored, given) = (mine.hash(), mine.size(), content.size());
                Err(fault(&StoreError::OtherSize { hash, stored, given }))
            }
            Ask::Slice(content, _) => Err(fault(&StoreError::Unknown { hash: content.hash() })),
            Ask::Begin(_) | Ask::Put(..) | Ask::List(_) | Ask::Remove(_) => Err(WireError::Method.into()),
        }
    }
}
