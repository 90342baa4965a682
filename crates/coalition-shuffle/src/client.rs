//! The two ends of the shuffle: the provider that opens a cell, and the requester that waits for its receipt.

use std::fmt;

use coalition::{RequestId, UniqueId};
use rand_core::CryptoRngCore;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::cell::{CELL_BYTES, CellError, CellId, CellScope, ReplyCell, RequestCell, SealedRequest, VerifiedCell};
use crate::envelope::{Envelope, RotatingPeer, WorkloadSpec};
use crate::member::ShareRelease;
use crate::receipt::{ReceiptError, SshAccessReceipt};
use crate::seal::ReceiverKey;
use crate::tdh2::{DecryptionShare, PublicParams, Tdh2Error, VerifiedShare};

const PENDING_VERSION: u8 = 1;
/// The same for a request whose envelope names the requester's own login key.
const PENDING_OWN_KEY_VERSION: u8 = 2;
const PENDING_BYTES: usize = 1 + 4 * 32 + CELL_BYTES;

/// Why a provider's or requester's step failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ClientError {
    /// A member sent other bytes than the cell asked for.
    #[error("member {member} sent cell {found} for cell {expected}")]
    OtherCell {
        /// The culprit.
        member: u8,
        /// Cell asked for.
        expected: CellId,
        /// Cell sent.
        found: CellId,
    },
    /// The cell the market names is no valid cell of this request: its requester made it wrong.
    #[error("cell {cell} is not a valid cell of request {request}: its requester made it wrong")]
    BadCell {
        /// The cell.
        cell: CellId,
        /// The request that names it.
        request: RequestId,
        /// What is wrong.
        #[source]
        source: CellError,
    },
    /// A valid cell, but made for another request: its pointer was copied.
    #[error("cell {cell} was made for request {found}, not for {request} which names it")]
    OtherRequest {
        /// The cell.
        cell: CellId,
        /// The request that names it.
        request: RequestId,
        /// The request it was made for.
        found: RequestId,
    },
    /// A member sent a share that is malformed, forged, or another member's.
    #[error("member {member}'s decryption share was refused")]
    BadShare {
        /// The culprit.
        member: u8,
        /// What is wrong.
        #[source]
        source: Tdh2Error,
    },
    /// A member sent a share under another member's number.
    #[error("member {member} sent a decryption share as member {found}")]
    OtherMember {
        /// The culprit.
        member: u8,
        /// The number inside the share.
        found: u8,
    },
    /// Not enough shares yet.
    #[error("{have} of the {need} decryption shares needed have arrived")]
    Waiting {
        /// Shares at hand.
        have: usize,
        /// Shares needed.
        need: u8,
    },
    /// The request could not be sealed.
    #[error("the request could not be sealed")]
    Seal(#[source] CellError),
    /// A reply that is no reply cell.
    #[error("the reply is no valid cell")]
    Reply(#[source] CellError),
    /// The receipt was refused.
    #[error("the receipt was refused")]
    Receipt(#[from] ReceiptError),
    /// Saved bytes of a pending request that are damaged.
    #[error("the saved request is damaged or of another version; make a new request")]
    Saved,
}

/// How far a provider is with a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// More shares are needed.
    Waiting {
        /// Shares at hand.
        have: usize,
        /// Shares needed.
        need: u8,
    },
    /// [`ShareCollector::open`] will open the cell.
    Ready,
}

/// The provider's side: collects members' answers as they come, in any order, names culprits, opens the cell.
///
/// A refused answer changes nothing, so a lying member delays nobody who asks the others too.
#[derive(Debug)]
pub struct ShareCollector {
    params: PublicParams,
    scope: CellScope,
    request: RequestId,
    expected: CellId,
    cell: Option<VerifiedCell>,
    shares: Vec<VerifiedShare>,
}

impl ShareCollector {
    /// Collects for the cell that the grant of `request` names.
    #[must_use]
    pub const fn new(params: PublicParams, scope: CellScope, request: RequestId, cell: CellId) -> Self {
        Self { params, scope, request, expected: cell, cell: None, shares: Vec::new() }
    }

    /// Takes the answer of one member (its number from 1, as authenticated by the transport).
    ///
    /// A second good answer of the same member changes nothing.
    ///
    /// # Errors
    /// [`ClientError`]; those with a `member` name the culprit. [`ClientError::BadCell`] and
    /// [`ClientError::OtherRequest`] are final: every member holds the same bytes.
    pub fn add(&mut self, member: u8, release: &ShareRelease) -> Result<Progress, ClientError> {
        let found = CellId(UniqueId::hash(&release.cell));
        if found != self.expected {
            return Err(ClientError::OtherCell { member, expected: self.expected, found });
        }
        let cell = match self.cell.take() {
            Some(cell) => cell,
            None => self.verify_cell(&release.cell)?,
        };
        let added = self.checked_share(member, &release.share, &cell);
        self.cell = Some(cell);
        let share = added?;
        if self.shares.iter().all(|held| held.index() != member) {
            self.shares.push(share);
        }
        Ok(self.progress())
    }

    fn verify_cell(&self, bytes: &[u8]) -> Result<VerifiedCell, ClientError> {
        let (cell, request) = (self.expected, self.request);
        let verified = RequestCell::from_bytes(bytes)
            .and_then(|parsed| parsed.verify(&self.params, &self.scope))
            .map_err(|source| ClientError::BadCell { cell, request, source })?;
        match verified.request() {
            found if found != request => Err(ClientError::OtherRequest { cell, request, found }),
            _ => Ok(verified),
        }
    }

    fn checked_share(&self, member: u8, share: &[u8], cell: &VerifiedCell) -> Result<VerifiedShare, ClientError> {
        let bad = |source| ClientError::BadShare { member, source };
        let share = DecryptionShare::from_bytes(share).map_err(bad)?;
        if share.index() != member {
            return Err(ClientError::OtherMember { member, found: share.index() });
        }
        share.verify(&self.params, cell.ciphertext()).map_err(bad)
    }

    /// How far the collection is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let (have, need) = (self.shares.len(), self.params.t());
        if have >= usize::from(need) { Progress::Ready } else { Progress::Waiting { have, need } }
    }

    /// Opens the cell.
    ///
    /// # Errors
    /// [`ClientError::Waiting`] before [`Progress::Ready`]; [`ClientError::BadCell`] when the requester put nonsense
    /// inside.
    pub fn open(&self) -> Result<Envelope, ClientError> {
        let waiting = ClientError::Waiting { have: self.shares.len(), need: self.params.t() };
        let Some(cell) = self.cell.as_ref().filter(|_| self.progress() == Progress::Ready) else {
            return Err(waiting);
        };
        let (id, request) = (self.expected, self.request);
        cell.open(&self.params, &self.shares).map_err(|source| ClientError::BadCell { cell: id, request, source })
    }
}

/// The requester's side of one request: the key made for it, the cell to submit, and what the receipt is bound to.
///
/// Holds a secret: wiped when dropped, never printed.
#[derive(Clone)]
pub struct PendingRequest {
    key: ReceiverKey,
    scope: CellScope,
    request: RequestId,
    cell: RequestCell,
    /// Whether the envelope names the requester's own login key, so that the receipt brings none.
    own_key: bool,
}

impl PendingRequest {
    /// Makes a key for this request alone and seals `workload` to the committee.
    ///
    /// `peer` is the fresh network identity replies are fetched with; `request` the id under which the market will know
    /// the request.
    ///
    /// # Errors
    /// [`ClientError::Seal`] when the workload breaks a limit.
    pub fn build<R: CryptoRngCore + ?Sized>(
        workload: &WorkloadSpec,
        peer: RotatingPeer,
        params: &PublicParams,
        scope: CellScope,
        request: RequestId,
        rng: &mut R,
    ) -> Result<Self, ClientError> {
        let key = ReceiverKey::generate(rng);
        let envelope = Envelope { peer_id: peer, peer_x25519: key.public(), workload: workload.clone() };
        let sealed = SealedRequest::build(&envelope, params, &scope, request, rng).map_err(ClientError::Seal)?;
        Ok(Self { key, scope, request, cell: sealed.cell, own_key: workload.ssh_authorized_key.is_some() })
    }

    /// The cell, to be submitted to every member; submitting it again is harmless.
    #[must_use]
    pub const fn cell(&self) -> &RequestCell {
        &self.cell
    }

    /// The cell's name: the request's `bearer_pointer`.
    #[must_use]
    pub fn cell_id(&self) -> CellId {
        self.cell.id()
    }

    /// The request.
    #[must_use]
    pub const fn request(&self) -> RequestId {
        self.request
    }

    /// Opens a reply.
    ///
    /// # Errors
    /// [`ClientError::Reply`] or [`ClientError::Receipt`]; a bad reply does not exclude a good one.
    pub fn open_reply(&self, reply: &[u8]) -> Result<SshAccessReceipt, ClientError> {
        let reply = ReplyCell::from_bytes(reply).map_err(ClientError::Reply)?;
        let receipt = SshAccessReceipt::unseal_with(&reply, &self.key, &self.scope.seal_context(self.request))?;
        if receipt.ssh_key_private.is_empty() && !self.own_key {
            let rule = "a private key, since the request named no key of its own";
            return Err(ReceiptError::Field { field: "ssh_key_private", rule }.into());
        }
        Ok(receipt)
    }

    /// Bytes with which another process of the requester can go on: secret, to be kept like a private key.
    /// `0x01 ‖ secret key (32) ‖ coalition (32) ‖ compute organism (32) ‖ request (32) ‖ cell (4,096)`; `0x02` first when the
    /// envelope names the requester's own login key.
    #[must_use]
    pub fn to_secret_bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut out = Zeroizing::new(Vec::with_capacity(PENDING_BYTES));
        out.push(if self.own_key { PENDING_OWN_KEY_VERSION } else { PENDING_VERSION });
        out.extend_from_slice(self.key.expose().as_ref());
        for id in [self.scope.coalition.as_bytes(), self.scope.compute.as_bytes(), self.request.as_bytes()] {
            out.extend_from_slice(id);
        }
        out.extend_from_slice(self.cell.as_bytes());
        out
    }

    /// Reads [`PendingRequest::to_secret_bytes`].
    ///
    /// # Errors
    /// [`ClientError::Saved`] when they are damaged.
    pub fn from_secret_bytes(bytes: &[u8]) -> Result<Self, ClientError> {
        let (&version, rest) = bytes.split_first().ok_or(ClientError::Saved)?;
        let (fields, cell) = rest.split_at_checked(4 * 32).ok_or(ClientError::Saved)?;
        let cell = RequestCell::from_bytes(cell).map_err(|_| ClientError::Saved)?;
        let field = |i: usize| {
            let mut out = Zeroizing::new([0; 32]);
            out.copy_from_slice(&fields[32 * i..32 * (i + 1)]);
            out
        };
        let scope = CellScope { coalition: UniqueId::from_bytes(*field(1)), compute: UniqueId::from_bytes(*field(2)) };
        let request = RequestId::from_bytes(*field(3));
        if !matches!(version, PENDING_VERSION | PENDING_OWN_KEY_VERSION) || cell.request() != request {
            return Err(ClientError::Saved);
        }
        let own_key = version == PENDING_OWN_KEY_VERSION;
        Ok(Self { key: ReceiverKey::from_bytes(&field(0)), scope, request, cell, own_key })
    }
}

impl fmt::Debug for PendingRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PendingRequest(request {}, cell {}, key redacted)", self.request, self.cell.id())
    }
}
