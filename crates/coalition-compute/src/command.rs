//! What may be written to a Compute module.

use serde::{Deserialize, Serialize};

use crate::codec::{self, DecodeError, MAX_COMMAND_BYTES};
use crate::sign::{Deregister, EndGrant, PostCard, RefuseGrant, ServeGrant, Signed, WithdrawRequest};
use crate::types::{ComputeLog, ComputeRequest};

/// A command, signed by the principal it speaks for. Encoded as `0x01` and postcard; the order of variants is the wire
/// format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Provider: publish a card, replacing the one before if there is one.
    RegisterCard(Signed<PostCard>),
    /// Provider: replace the card; refused when there is none.
    RefreshCard(Signed<PostCard>),
    /// Provider: take the card away.
    DeregisterCard(Signed<Deregister>),
    /// Requester: ask for a machine.
    SubmitRequest(Signed<ComputeRequest>),
    /// Requester: take back a request without a grant.
    WithdrawRequest(Signed<WithdrawRequest>),
    /// Provider: give back a grant before serving it.
    RefuseGrant(Signed<RefuseGrant>),
    /// Provider: the workload runs.
    ServeGrant(Signed<ServeGrant>),
    /// Requester: stop the grant.
    EndGrant(Signed<EndGrant>),
    /// Provider: report usage; the final log frees the capacity.
    AppendLog(Signed<ComputeLog>),
}

impl Command {
    /// The encoded command, as handed to the committee.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Parses a command of at most [`MAX_COMMAND_BYTES`].
    ///
    /// # Errors
    /// [`DecodeError`] when too long, of another version, damaged, or not in canonical form.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        codec::decode(bytes, MAX_COMMAND_BYTES)
    }
}
