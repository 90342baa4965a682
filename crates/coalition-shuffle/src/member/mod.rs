//! One member of the unseal committee, as a pure state machine.
//!
//! The driver around it authenticates peers, reads the clock, and verifies certified grants; everything is decided here.
//! A member releases its decryption share of a cell to one party only: the provider that a certified grant names for the
//! request the cell was made for. It hands a reply to one party only: the peer it is addressed to. It holds no more than
//! its [`MemberLimits`] allow, and forgets on time. What is to survive its process, the driver keeps
//! ([`Member::held_cell`], [`Member::restore_cell`]).
//!
//! **Logging.** Nothing this module returns for a person to read (refusals, statistics, `Debug`) contains a peer
//! identity; a driver logs those and nothing else about a caller.

mod cells;
mod limits;
mod replies;
mod window;

use std::fmt;

use coalition::{ProviderId, RequestId, UniqueId};
use rand_core::CryptoRngCore;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::cell::{CELL_BYTES, CellId, CellScope, ReplyCell, RequestCell};
use crate::envelope::RotatingPeer;
use crate::keys::{KeyError, KeyShare};
use crate::tdh2::{PublicParams, SHARE_BYTES, decrypt_share};

use cells::CellStore;
pub use limits::{MemberLimits, ZeroLimit};
pub(crate) use replies::MAX_FETCHED;
pub use replies::PendingReply;
use replies::ReplyStore;
use window::Window;

#[cfg(test)]
mod tests;

/// A grant the driver has verified: certified by the Compute committee's quorum, current, and not refused or ended.
///
/// Making one without that check gives the cell away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrantAuthorization {
    /// The request, and the grant's id.
    pub request_id: RequestId,
    /// The provider that won.
    pub provider: ProviderId,
    /// The cell the request named.
    pub bearer_pointer: UniqueId,
    /// When the grant ends, Unix milliseconds.
    pub valid_to_ms: u64,
    /// Network identity of the provider's bridge, as on the card that won.
    pub provider_peer: [u8; 32],
}

/// A member could not be set up.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MemberError {
    /// The key share is not of this committee.
    #[error("the member's key share was refused")]
    Key(#[from] KeyError),
    /// A limit of 0.
    #[error("the member's limits were refused")]
    Limits(#[from] ZeroLimit),
}

/// Why a member refused. Names no peer; `code` is stable.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Refusal {
    /// Not a cell of this committee and scope.
    #[error(
        "the cell is not valid for this committee: wrong size or version, changed, or made for another coalition, market or committee"
    )]
    InvalidCell,
    /// One peer submits too often.
    #[error("too many submissions; try again in {retry_ms} ms")]
    TooManySubmissions {
        /// Milliseconds until the next window.
        retry_ms: u64,
    },
    /// Too many peers submit.
    #[error("the member is busy; try again in {retry_ms} ms")]
    Busy {
        /// Milliseconds until the next window.
        retry_ms: u64,
    },
    /// One peer has too many cells waiting.
    #[error("{max} cells of one peer are held at once; wait for one to be granted or to expire")]
    TooManyCells {
        /// The limit.
        max: usize,
    },
    /// The member holds all it can.
    #[error("the member holds {max} of these, its limit; try another member or later")]
    StoreFull {
        /// The limit.
        max: usize,
    },
    /// The member does not hold the cell.
    #[error("this member does not hold cell {cell}: it never arrived here or has expired; ask other members")]
    UnknownCell {
        /// The cell asked for.
        cell: CellId,
    },
    /// The grant names another cell, or the cell was made for another request.
    #[error("grant {grant} does not cover cell {cell}")]
    NotUnderGrant {
        /// The grant shown.
        grant: RequestId,
        /// The cell asked for.
        cell: CellId,
    },
    /// The caller is not the provider's bridge.
    #[error("the caller is not the provider that grant {grant} names")]
    NotTheProvider {
        /// The grant shown.
        grant: RequestId,
    },
    /// The grant is over.
    #[error("grant {grant} ended at {ended_at_ms} ms")]
    GrantExpired {
        /// The grant shown.
        grant: RequestId,
        /// Its end, Unix milliseconds.
        ended_at_ms: u64,
    },
    /// Too many replies under one grant.
    #[error("a provider may post {max} replies under one grant")]
    TooManyReplies {
        /// The limit.
        max: usize,
    },
    /// Not a reply cell.
    #[error("a reply is a cell of {CELL_BYTES} bytes")]
    InvalidReply,
    /// No certified grant is known for the request the caller names. For drivers; the machine itself is shown grants.
    #[error("no certified live grant is known for request {request}; if it was just made, try again")]
    NoGrant {
        /// The request named.
        request: RequestId,
    },
    /// The message was not understood. For drivers.
    #[error("the message is not one this member understands")]
    Malformed,
}

impl Refusal {
    /// Stable name, in `snake_case`.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::InvalidCell => "invalid_cell",
            Self::TooManySubmissions { .. } => "too_many_submissions",
            Self::Busy { .. } => "busy",
            Self::TooManyCells { .. } => "too_many_cells",
            Self::StoreFull { .. } => "store_full",
            Self::UnknownCell { .. } => "unknown_cell",
            Self::NotUnderGrant { .. } => "not_under_grant",
            Self::NotTheProvider { .. } => "not_the_provider",
            Self::GrantExpired { .. } => "grant_expired",
            Self::TooManyReplies { .. } => "too_many_replies",
            Self::InvalidReply => "invalid_reply",
            Self::NoGrant { .. } => "no_grant",
            Self::Malformed => "malformed",
        }
    }

    /// Whether asking the same member again later can succeed.
    #[must_use]
    pub const fn is_temporary(&self) -> bool {
        matches!(
            self,
            Self::TooManySubmissions { .. }
                | Self::Busy { .. }
                | Self::StoreFull { .. }
                | Self::NoGrant { .. }
                | Self::TooManyCells { .. }
        )
    }
}

/// A cell a member holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// Its name.
    pub cell: CellId,
    /// Until when it is held, Unix milliseconds of the member's clock.
    pub expires_at_ms: u64,
    /// Whether it was held already.
    pub already_held: bool,
}

/// What the winning provider gets from one member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareRelease {
    /// The request cell's bytes.
    pub cell: Vec<u8>,
    /// The member's decryption share, [`SHARE_BYTES`] bytes.
    pub share: Vec<u8>,
}

/// How much a member holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemberStats {
    /// Request cells held.
    pub cells: usize,
    /// Replies held or remembered.
    pub replies: usize,
    /// Peers counted in the current window.
    pub window_peers: usize,
}

/// One thing asked of a member. Peers are those the transport authenticated, never what a message claims.
#[derive(Debug, Clone)]
pub enum Command {
    /// Hold a request cell.
    SubmitCell {
        /// Who submits.
        from_peer: RotatingPeer,
        /// The bytes of a [`RequestCell`].
        cell: Vec<u8>,
    },
    /// Release this member's share of a cell.
    RequestShare {
        /// Who asks.
        caller: [u8; 32],
        /// Of which cell.
        cell_id: CellId,
        /// The verified grant.
        grant: GrantAuthorization,
    },
    /// Hold a reply for a rotating peer.
    PostReply {
        /// Who posts.
        caller: [u8; 32],
        /// The verified grant.
        grant: GrantAuthorization,
        /// For whom.
        to: RotatingPeer,
        /// The bytes of a [`ReplyCell`].
        cell: Vec<u8>,
    },
    /// Hand out the replies waiting for a peer under a request.
    FetchReply {
        /// Who asks.
        peer: RotatingPeer,
        /// Under which request.
        request_id: RequestId,
    },
    /// Drop a reply that arrived.
    AckReply {
        /// Who asks.
        peer: RotatingPeer,
        /// Under which request.
        request_id: RequestId,
        /// Which reply.
        reply: UniqueId,
    },
}

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The cell is held.
    Held(Submission),
    /// The share, and the cell it opens.
    Share(ShareRelease),
    /// The reply is held under this name.
    Posted(UniqueId),
    /// The replies waiting; none is no error, and the same answer a stranger gets.
    Replies(Vec<PendingReply>),
    /// Whether that reply was waiting for this peer.
    Acknowledged(bool),
}

/// One member: its key share, the cells and replies it holds. See the [module](self).
pub struct Member {
    params: PublicParams,
    key: KeyShare,
    scope: CellScope,
    limits: MemberLimits,
    clock_ms: u64,
    cells: CellStore,
    replies: ReplyStore,
    window: Window,
}

impl Member {
    /// A member that holds nothing yet.
    ///
    /// # Errors
    /// [`MemberError`] when the key share is not of these parameters or a limit is 0.
    pub fn new(
        params: PublicParams,
        key: KeyShare,
        scope: CellScope,
        limits: MemberLimits,
    ) -> Result<Self, MemberError> {
        key.check(&params)?;
        limits.check()?;
        let (cells, replies, window) = (CellStore::default(), ReplyStore::default(), Window::default());
        Ok(Self { params, key, scope, limits, clock_ms: 0, cells, replies, window })
    }

    /// The parameters of the committee.
    #[must_use]
    pub const fn params(&self) -> &PublicParams {
        &self.params
    }

    /// The member's number, from 1.
    #[must_use]
    pub const fn index(&self) -> u8 {
        self.key.index()
    }

    /// How much it holds.
    #[must_use]
    pub fn stats(&self) -> MemberStats {
        MemberStats { cells: self.cells.len(), replies: self.replies.len(), window_peers: self.window.peers() }
    }

    /// When the next thing it holds expires, Unix milliseconds.
    #[must_use]
    pub fn next_expiry_ms(&self) -> Option<u64> {
        [self.cells.next_expiry_ms(), self.replies.next_expiry_ms()].into_iter().flatten().min()
    }

    /// Forgets what has expired. Every command does this first; a driver calls it at [`Member::next_expiry_ms`] so that
    /// an idle member forgets too. A clock that runs backwards stands still.
    pub fn sweep(&mut self, now_ms: u64) {
        self.clock_ms = self.clock_ms.max(now_ms);
        self.cells.sweep(self.clock_ms);
        self.replies.sweep(self.clock_ms);
    }

    /// Does one command at `now_ms`, Unix milliseconds.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn apply<R: CryptoRngCore + ?Sized>(
        &mut self,
        now_ms: u64,
        command: &Command,
        rng: &mut R,
    ) -> Result<Outcome, Refusal> {
        self.sweep(now_ms);
        match command {
            Command::SubmitCell { from_peer, cell } => self.submit(*from_peer, cell).map(Outcome::Held),
            Command::RequestShare { caller, cell_id, grant } => {
                self.release(caller, *cell_id, grant, rng).map(Outcome::Share)
            }
            Command::PostReply { caller, grant, to, cell } => self.post(caller, grant, *to, cell).map(Outcome::Posted),
            Command::FetchReply { peer, request_id } => Ok(Outcome::Replies(self.replies.fetch(*peer, *request_id))),
            Command::AckReply { peer, request_id, reply } => {
                Ok(Outcome::Acknowledged(self.replies.acknowledge(*peer, *request_id, *reply)))
            }
        }
    }

    /// The cheap checks come before the proof, which costs a tenth of a millisecond.
    fn submit(&mut self, from: RotatingPeer, bytes: &[u8]) -> Result<Submission, Refusal> {
        self.window.admit(self.clock_ms, from, &self.limits)?;
        let cell = RequestCell::from_bytes(bytes).map_err(|_| Refusal::InvalidCell)?;
        if let Some(held) = self.cells.get(&cell.id()) {
            return Ok(Submission { cell: cell.id(), expires_at_ms: held.expires_at_ms, already_held: true });
        }
        self.cells.room(Some(from), &self.limits)?;
        let verified = cell.verify(&self.params, &self.scope).map_err(|_| Refusal::InvalidCell)?;
        let expires_at_ms = self.clock_ms.saturating_add(self.limits.cell_ttl_ms);
        self.cells.insert(bytes, verified, Some(from), expires_at_ms);
        Ok(Submission { cell: cell.id(), expires_at_ms, already_held: false })
    }

    fn check_grant(&self, caller: &[u8; 32], grant: &GrantAuthorization) -> Result<(), Refusal> {
        if *caller != grant.provider_peer {
            return Err(Refusal::NotTheProvider { grant: grant.request_id });
        }
        if grant.valid_to_ms <= self.clock_ms {
            return Err(Refusal::GrantExpired { grant: grant.request_id, ended_at_ms: grant.valid_to_ms });
        }
        Ok(())
    }

    fn release<R: CryptoRngCore + ?Sized>(
        &mut self,
        caller: &[u8; 32],
        id: CellId,
        grant: &GrantAuthorization,
        rng: &mut R,
    ) -> Result<ShareRelease, Refusal> {
        self.check_grant(caller, grant)?;
        if grant.bearer_pointer != id.0 {
            return Err(Refusal::NotUnderGrant { grant: grant.request_id, cell: id });
        }
        // The provider may come back for it while the grant lives, for instance after a restart.
        let hold = grant.valid_to_ms.min(self.clock_ms.saturating_add(self.limits.max_hold_ms));
        let stored = self.cells.get_mut(&id).ok_or(Refusal::UnknownCell { cell: id })?;
        // Whoever copies a bearer pointer into a request of its own fails here: the cell names the request it is for.
        if stored.cell.request() != grant.request_id {
            return Err(Refusal::NotUnderGrant { grant: grant.request_id, cell: id });
        }
        let share = match stored.share {
            Some(share) => share,
            None => {
                let made = decrypt_share(&self.params, &self.key, stored.cell.ciphertext(), rng);
                made.map_err(|_| Refusal::InvalidCell)?.to_bytes()
            }
        };
        stored.share = Some(share);
        let release = ShareRelease { cell: stored.bytes.to_vec(), share: share.to_vec() };
        debug_assert_eq!(release.share.len(), SHARE_BYTES);
        self.cells.extend(&id, hold);
        Ok(release)
    }

    fn post(
        &mut self,
        caller: &[u8; 32],
        grant: &GrantAuthorization,
        to: RotatingPeer,
        bytes: &[u8],
    ) -> Result<UniqueId, Refusal> {
        self.check_grant(caller, grant)?;
        let reply = ReplyCell::from_bytes(bytes).map_err(|_| Refusal::InvalidReply)?;
        let hold = self.limits.reply_ttl_ms.min(self.limits.max_hold_ms);
        let expires_at_ms = grant.valid_to_ms.min(self.clock_ms.saturating_add(hold));
        self.replies.post(to, grant, &reply, expires_at_ms, &self.limits)
    }

    /// Until when a cell is held, and its bytes; `None` when it is not.
    #[must_use]
    pub fn held_cell(&self, id: &CellId) -> Option<(u64, &[u8])> {
        self.cells.get(id).map(|stored| (stored.expires_at_ms, &*stored.bytes))
    }

    /// The cells held, with their expiry, for a successor process on the same host ([`Member::restore_cell`]). Nothing
    /// tells who submitted them.
    pub fn export_cells(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.cells.iter().map(|(_, stored)| (stored.expires_at_ms, &*stored.bytes))
    }

    /// Takes over a cell from [`Member::export_cells`]; expired ones are ignored.
    ///
    /// # Errors
    /// [`Refusal`] when the bytes are no cell of this committee or there is no room.
    pub fn restore_cell(&mut self, now_ms: u64, expires_at_ms: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.sweep(now_ms);
        let longest = self.clock_ms.saturating_add(self.limits.max_hold_ms);
        let cell = RequestCell::from_bytes(bytes).map_err(|_| Refusal::InvalidCell)?;
        if expires_at_ms <= self.clock_ms || self.cells.get(&cell.id()).is_some() {
            return Ok(());
        }
        self.cells.room(None, &self.limits)?;
        let verified = cell.verify(&self.params, &self.scope).map_err(|_| Refusal::InvalidCell)?;
        self.cells.insert(bytes, verified, None, expires_at_ms.min(longest));
        Ok(())
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Member({}, {:?}, {:?})", self.key.index(), self.params, self.stats())
    }
}
