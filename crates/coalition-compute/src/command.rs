//! What may be written to a Compute module.

use serde::{Deserialize, Serialize};

use crate::codec::{self, DecodeError, MAX_ATTEST_COMMAND_BYTES, MAX_COMMAND_BYTES};
use crate::sign::{
    AskChallenge, Attest, Deregister, EndGrant, PostCard, RefuseGrant, ServeGrant, Signed, WithdrawRequest,
};
use crate::types::{AnswerExtension, ComputeLog, ComputeRequest, ExtendGrant, ReportUsage, StateInventory};

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
    /// Provider: ask for a challenge to put into a quote.
    AskChallenge(Signed<AskChallenge>),
    /// Provider: show the quote that answers the challenge.
    Attest(Signed<Attest>),
    /// Requester: make the grant longer.
    ExtendGrant(Signed<ExtendGrant>),
    /// Provider: whether the grant is longer now.
    AnswerExtension(Signed<AnswerExtension>),
    /// Provider: what it holds.
    StateInventory(Signed<StateInventory>),
    /// Requester: what its machine's own counters say.
    ReportUsage(Signed<ReportUsage>),
}

/// Number of [`Command::Attest`] in the encoding, behind the version byte: the one command that may be long.
const ATTEST: u8 = 10;

impl Command {
    /// The encoded command, as handed to the committee.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Parses a command of at most [`MAX_COMMAND_BYTES`], or [`MAX_ATTEST_COMMAND_BYTES`] with attestation evidence.
    ///
    /// # Errors
    /// [`DecodeError`] when too long, of another version, damaged, or not in canonical form.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let limit = if bytes.get(1) == Some(&ATTEST) { MAX_ATTEST_COMMAND_BYTES } else { MAX_COMMAND_BYTES };
        codec::decode(bytes, limit)
    }
}
