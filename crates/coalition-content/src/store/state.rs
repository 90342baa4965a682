//! What a store knows of its files, and who may have how much. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use coalition::UniqueId;
use coalition_universe::PeerId;

use super::files::{Owner, Owners};
use super::room::{Item, Rank};
use super::upload::Upload;
use super::{Limits, Pusher, StoreError};
use crate::tree::{Content, GROUP_BYTES};
use crate::wire::Entry;

/// Unfinished uploads of all unlisted pushers together.
const MAX_STRANGER_UPLOADS: usize = 64;

/// Content that is here whole.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) content: Content,
    pub(super) owners: Owners,
    pub(super) used_ms: u64,
}

/// An upload that is not finished.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) upload: Arc<Upload>,
    pub(super) owners: Owners,
    pub(super) used_ms: u64,
}

/// A copy that was set aside.
#[derive(Debug)]
pub(super) struct Aside {
    pub(super) bytes: u64,
    pub(super) since_ms: u64,
}

/// Names something that can be removed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Object(UniqueId),
    Upload(Content),
    Damaged(String),
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) objects: BTreeMap<UniqueId, Object>,
    pub(super) uploads: BTreeMap<Content, Begun>,
    pub(super) damaged: BTreeMap<String, Aside>,
    /// Held by this process, whatever becomes of it.
    pub(super) held: BTreeMap<UniqueId, usize>,
    /// Removed by their owners while this process held them.
    pub(super) doomed: BTreeSet<UniqueId>,
}

/// Bytes on the disk, with the tree.
pub(super) fn cost(content: Content) -> u64 {
    content.size().saturating_add(content.tree_bytes())
}

/// What counts against a quota: small things cost files, too.
fn charge(content: Content) -> u64 {
    content.size().max(GROUP_BYTES)
}

impl State {
    /// Bytes on the disk, unfinished uploads in full.
    pub(super) fn total(&self) -> u64 {
        let objects = self.objects.values().map(|object| cost(object.content));
        let uploads = self.uploads.keys().map(|content| cost(*content));
        objects.chain(uploads).chain(self.damaged.values().map(|aside| aside.bytes)).sum()
    }

    /// What may go. An object is held by this process, or by an owner until `retain` after the push.
    pub(super) fn removable(&self, limits: &Limits, now_ms: u64) -> Vec<Item<Key>> {
        let free = |hash: &UniqueId| !self.held.contains_key(hash);
        let unheld = self.objects.iter().filter(|(hash, object)| {
            free(hash) && object.owners.values().all(|owner| expires(owner, limits) <= now_ms)
        });
        let unheld = unheld.map(|(hash, object)| Item {
            key: Key::Object(*hash),
            rank: Rank::Unheld,
            used_ms: object.used_ms,
            bytes: cost(object.content),
        });
        let abandoned = self.uploads.iter().filter(|(content, begun)| {
            free(&content.hash()) && begun.used_ms.saturating_add(limits.idle_ms()) <= now_ms
        });
        let abandoned = abandoned.map(|(content, begun)| Item {
            key: Key::Upload(*content),
            rank: Rank::Abandoned,
            used_ms: begun.used_ms,
            bytes: cost(*content),
        });
        let damaged = self.damaged.iter().map(|(name, aside)| Item {
            key: Key::Damaged(name.clone()),
            rank: Rank::Damaged,
            used_ms: aside.since_ms,
            bytes: aside.bytes,
        });
        unheld.chain(abandoned).chain(damaged).collect()
    }

    /// Whether this pusher may hold this content, too.
    pub(super) fn admit(
        &self,
        content: Content,
        pusher: &Pusher,
        limits: &Limits,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let asked = charge(content);
        if asked > pusher.quota_bytes {
            return Err(StoreError::TooLarge { size: content.size(), quota: pusher.quota_bytes });
        }
        let others = |held: Content| held != content;
        let used = self.used_by(|peer, _| *peer == pusher.peer, others, limits, now_ms);
        if used.saturating_add(asked) > pusher.quota_bytes {
            return Err(StoreError::Quota { used, asked, quota: pusher.quota_bytes });
        }
        let mine = |begun: &&Begun| begun.owners.contains_key(&pusher.peer);
        let is_new = !self.uploads.get(&content).is_some_and(|begun| mine(&begun));
        if is_new && self.uploads.values().filter(mine).count() >= limits.uploads_each {
            return Err(StoreError::TooMany { limit: limits.uploads_each });
        }
        let Some(all) = pusher.strangers_bytes else { return Ok(()) };
        let used = self.used_by(|_, owner| owner.stranger, others, limits, now_ms);
        if used.saturating_add(asked) > all {
            return Err(StoreError::Quota { used, asked, quota: all });
        }
        let strange = self.uploads.values().filter(|begun| begun.owners.values().any(|owner| owner.stranger));
        if is_new && strange.count() >= MAX_STRANGER_UPLOADS {
            return Err(StoreError::TooMany { limit: MAX_STRANGER_UPLOADS });
        }
        Ok(())
    }

    fn used_by(
        &self,
        who: impl Fn(&PeerId, &Owner) -> bool,
        what: impl Fn(Content) -> bool,
        limits: &Limits,
        now_ms: u64,
    ) -> u64 {
        let objects = self.objects.values().filter(|object| {
            what(object.content)
                && object.owners.iter().any(|(peer, owner)| who(peer, owner) && expires(owner, limits) > now_ms)
        });
        let uploads = self
            .uploads
            .iter()
            .filter(|(content, begun)| what(**content) && begun.owners.iter().any(|(peer, owner)| who(peer, owner)));
        let objects = objects.map(|object| charge(object.content));
        objects.chain(uploads.map(|(content, _)| charge(*content))).sum()
    }

    /// Bytes this peer holds.
    pub(super) fn used(&self, peer: PeerId, limits: &Limits, now_ms: u64) -> u64 {
        self.used_by(|other, _| *other == peer, |_| true, limits, now_ms)
    }

    /// What this peer holds behind `after`, ascending.
    pub(super) fn entries(&self, peer: PeerId, after: Option<UniqueId>, limits: &Limits) -> Vec<Entry> {
        let behind = |hash: UniqueId| after.is_none_or(|after| hash > after);
        let objects = self.objects.values().filter_map(|object| {
            let owner = object.owners.get(&peer)?;
            let (hash, size) = (object.content.hash(), object.content.size());
            let (pushed_ms, expires_ms) = (owner.pushed_ms, expires(owner, limits));
            behind(hash).then_some(Entry { hash, size, have: size, pushed_ms, used_ms: object.used_ms, expires_ms })
        });
        let uploads = self.uploads.iter().filter_map(|(content, begun)| {
            let pushed_ms = begun.owners.get(&peer)?.pushed_ms;
            let (hash, size, have) = (content.hash(), content.size(), begun.upload.have_bytes());
            behind(hash).then_some(Entry { hash, size, have, pushed_ms, used_ms: begun.used_ms, expires_ms: 0 })
        });
        let mut entries: Vec<Entry> = objects.chain(uploads).collect();
        entries.sort_by_key(|entry| (entry.hash, entry.size));
        entries
    }
}

/// When a hold ends, Unix milliseconds.
fn expires(owner: &Owner, limits: &Limits) -> u64 {
    owner.pushed_ms.saturating_add(limits.retain_ms())
}
