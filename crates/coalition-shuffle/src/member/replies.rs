//! The replies a member holds for rotating peers.

use std::collections::{BTreeMap, BTreeSet};

use coalition::{ProviderId, RequestId, UniqueId};

use super::{GrantAuthorization, MemberLimits, Refusal};
use crate::cell::ReplyCell;
use crate::envelope::RotatingPeer;

/// Most replies handed out at once; the rest follow once these are acknowledged.
pub(crate) const MAX_FETCHED: usize = 8;

/// A mailbox is a peer and a request together, so one request's provider cannot fill another's.
type Key = (RotatingPeer, RequestId, UniqueId);

struct StoredReply {
    /// `None` once the peer has acknowledged it.
    bytes: Option<Box<[u8]>>,
    provider: ProviderId,
}

/// Held replies, with their expiry and how many each provider posted under each grant.
#[derive(Default)]
pub(super) struct ReplyStore {
    replies: BTreeMap<Key, StoredReply>,
    expiry: BTreeSet<(u64, Key)>,
    per_grant: BTreeMap<(RequestId, ProviderId), usize>,
}

/// A reply waiting for its peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingReply {
    /// Name of the reply, with which it is acknowledged.
    pub id: UniqueId,
    /// The bytes of a [`ReplyCell`].
    pub cell: Vec<u8>,
}

impl ReplyStore {
    pub(super) fn len(&self) -> usize {
        self.replies.len()
    }

    pub(super) fn next_expiry_ms(&self) -> Option<u64> {
        self.expiry.first().map(|(at, _)| *at)
    }

    /// Holds a reply. Posting the same reply again changes nothing, even after it was fetched.
    pub(super) fn post(
        &mut self,
        to: RotatingPeer,
        grant: &GrantAuthorization,
        reply: &ReplyCell,
        expires_at_ms: u64,
        limits: &MemberLimits,
    ) -> Result<UniqueId, Refusal> {
        let id = reply.id();
        let key = (to, grant.request_id, id);
        if self.replies.contains_key(&key) {
            return Ok(id);
        }
        let posted = self.per_grant.get(&(grant.request_id, grant.provider)).copied().unwrap_or(0);
        if posted >= limits.max_replies_per_grant {
            return Err(Refusal::TooManyReplies { max: limits.max_replies_per_grant });
        }
        if self.replies.len() >= limits.max_replies {
            return Err(Refusal::StoreFull { max: limits.max_replies });
        }
        *self.per_grant.entry((grant.request_id, grant.provider)).or_default() += 1;
        self.expiry.insert((expires_at_ms, key));
        let bytes = Some(reply.as_bytes().into());
        self.replies.insert(key, StoredReply { bytes, provider: grant.provider });
        Ok(id)
    }

    /// The replies waiting for this peer under this request, at most [`MAX_FETCHED`].
    pub(super) fn fetch(&self, peer: RotatingPeer, request: RequestId) -> Vec<PendingReply> {
        let (first, last) = (UniqueId::from_bytes([0; 32]), UniqueId::from_bytes([0xff; 32]));
        self.replies
            .range((peer, request, first)..=(peer, request, last))
            .filter_map(|((_, _, id), stored)| {
                stored.bytes.as_ref().map(|bytes| PendingReply { id: *id, cell: bytes.to_vec() })
            })
            .take(MAX_FETCHED)
            .collect()
    }

    /// Drops a reply's bytes; its name stays until it expires. Whether it was waiting for this peer.
    pub(super) fn acknowledge(&mut self, peer: RotatingPeer, request: RequestId, id: UniqueId) -> bool {
        self.replies.get_mut(&(peer, request, id)).is_some_and(|stored| stored.bytes.take().is_some())
    }

    pub(super) fn sweep(&mut self, now_ms: u64) {
        while let Some((_, key)) = self.expiry.first().filter(|(at, _)| *at <= now_ms).copied() {
            self.expiry.pop_first();
            if let Some(stored) = self.replies.remove(&key) {
                self.forget_one((key.1, stored.provider));
            }
        }
    }

    fn forget_one(&mut self, grant: (RequestId, ProviderId)) {
        if let Some(posted) = self.per_grant.get_mut(&grant) {
            *posted -= 1;
            if *posted == 0 {
                self.per_grant.remove(&grant);
            }
        }
    }
}
