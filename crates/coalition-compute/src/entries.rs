//! Entries of a Compute module's log: their kinds and bodies.

use coalition::{EvidencePointer, ProviderId, RequestId};
use coalition_log::{Draft, Entry};
use serde::{Deserialize, Serialize};

use crate::codec::{self, DecodeError, MAX_ATTESTATION_BODY_BYTES, MAX_BODY_BYTES};
use crate::sign::{AskChallenge, Attest, Deregister, EndGrant, PostCard, ServeGrant, Signed};
use crate::types::{
    AnswerExtension, Attestation, ClearingRecord, ComputeGrant, ComputeLog, ComputeRequest, ExtendGrant, GrantEnd,
    ReportUsage, RequestEnd, StateInventory,
};

/// Kind of a posted card.
pub const CARD_KIND: &str = "compute.card";
/// Kind of a removed card.
pub const CARD_REMOVED_KIND: &str = "compute.card_removed";
/// Kind of an admitted request.
pub const REQUEST_KIND: &str = "compute.request";
/// Kind of a request that ended without a further grant.
pub const REQUEST_ENDED_KIND: &str = "compute.request_ended";
/// Kind of a clearing record; the grant it led to is the next entry.
pub const CLEARING_KIND: &str = "compute.clearing";
/// Kind of a grant.
pub const GRANT_KIND: &str = "compute.grant";
/// Kind of a provider's statement that the workload runs.
pub const GRANT_SERVING_KIND: &str = "compute.grant_serving";
/// Kind of a requester's wish to end its grant.
pub const GRANT_ENDING_KIND: &str = "compute.grant_ending";
/// Kind of a grant that ended; its capacity is free again.
pub const GRANT_ENDED_KIND: &str = "compute.grant_ended";
/// Kind of a usage log.
pub const LOG_KIND: &str = "compute.log";
/// Kind of a challenge given to a provider; its leaf hash is the nonce.
pub const CHALLENGE_KIND: &str = "compute.challenge";
/// Kind of a provider's verified attestation.
pub const ATTESTATION_KIND: &str = "compute.attestation";
/// Kind of a requester's wish to have its grant longer.
pub const EXTENSION_ASKED_KIND: &str = "compute.extension_asked";
/// Kind of its provider's answer; an accepted extension takes effect with it.
pub const EXTENSION_ANSWERED_KIND: &str = "compute.extension_answered";
/// Kind of a provider's inventory.
pub const INVENTORY_KIND: &str = "compute.inventory";
/// Kind of a requester's report of what its machine used.
pub const USAGE_REPORT_KIND: &str = "compute.usage_report";

/// Why a card left the market.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CardRemoval {
    /// Its provider deregistered.
    Deregistered(Box<Signed<Deregister>>),
    /// It was not refreshed for eight times the age at which it stops winning.
    Stale,
}

/// Body of [`CARD_REMOVED_KIND`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardRemovedBody {
    /// Whose card.
    pub provider: ProviderId,
    /// Why.
    pub reason: CardRemoval,
}

/// Body of [`REQUEST_ENDED_KIND`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestEndedBody {
    /// The request.
    pub request_id: RequestId,
    /// How it ended.
    pub reason: RequestEnd,
}

/// Body of [`GRANT_ENDED_KIND`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantEndedBody {
    /// The grant.
    pub grant_id: RequestId,
    /// Which attempt at the request it was.
    pub attempt: u8,
    /// Its provider.
    pub provider: ProviderId,
    /// How it ended.
    pub reason: GrantEnd,
}

/// Body of [`LOG_KIND`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogBody {
    /// The provider's signed log.
    pub log: Signed<ComputeLog>,
    /// Whether it came after the grant had ended for want of it. A late log frees nothing; reputation reads it.
    pub late: bool,
}

/// Body of [`ATTESTATION_KIND`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttestationBody {
    /// What the provider showed, whole, so that anybody can verify it again.
    pub shown: Signed<Attest>,
    /// What the committee found in it.
    pub found: Attestation,
}

/// Body of [`INVENTORY_KIND`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryBody {
    /// What the provider says.
    pub stated: Signed<StateInventory>,
    /// Live grants of the provider in the log.
    pub open: u32,
    /// Whether the statement is about exactly these.
    pub agrees: bool,
}

/// One decoded entry of a Compute log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MarketEntry {
    /// A provider posted a card.
    Card(Box<Signed<PostCard>>),
    /// A card left the market.
    CardRemoved(CardRemovedBody),
    /// A request was admitted.
    Request(Box<Signed<ComputeRequest>>),
    /// A request ended without a further grant.
    RequestEnded(RequestEndedBody),
    /// A request was cleared.
    Clearing(ClearingRecord),
    /// A grant was made.
    Grant(Box<ComputeGrant>),
    /// A workload runs.
    GrantServing(Box<Signed<ServeGrant>>),
    /// A requester wants its grant stopped.
    GrantEnding(Box<Signed<EndGrant>>),
    /// A grant ended.
    GrantEnded(GrantEndedBody),
    /// A provider reported usage.
    Log(Box<LogBody>),
    /// A provider was given a challenge.
    Challenge(Box<Signed<AskChallenge>>),
    /// A provider's attestation was verified.
    Attestation(Box<AttestationBody>),
    /// A requester wants its grant longer.
    ExtensionAsked(Box<Signed<ExtendGrant>>),
    /// A provider answered that.
    ExtensionAnswered(Box<Signed<AnswerExtension>>),
    /// A provider stated its inventory.
    Inventory(Box<InventoryBody>),
    /// A requester reported usage.
    UsageReport(Box<Signed<ReportUsage>>),
}

impl MarketEntry {
    /// Decodes an entry's body by its kind; `None` for kinds that are not this module's (the host's own entries).
    ///
    /// # Errors
    /// [`DecodeError`] when the kind is known and the body is not what this version writes.
    pub fn decode(entry: &Entry) -> Result<Option<Self>, DecodeError> {
        let body = entry.body.as_slice();
        Ok(Some(match entry.kind.as_str() {
            CARD_KIND => Self::Card(codec::decode(body, MAX_BODY_BYTES)?),
            CARD_REMOVED_KIND => Self::CardRemoved(codec::decode(body, MAX_BODY_BYTES)?),
            REQUEST_KIND => Self::Request(codec::decode(body, MAX_BODY_BYTES)?),
            REQUEST_ENDED_KIND => Self::RequestEnded(codec::decode(body, MAX_BODY_BYTES)?),
            CLEARING_KIND => Self::Clearing(codec::decode(body, MAX_BODY_BYTES)?),
            GRANT_KIND => Self::Grant(codec::decode(body, MAX_BODY_BYTES)?),
            GRANT_SERVING_KIND => Self::GrantServing(codec::decode(body, MAX_BODY_BYTES)?),
            GRANT_ENDING_KIND => Self::GrantEnding(codec::decode(body, MAX_BODY_BYTES)?),
            GRANT_ENDED_KIND => Self::GrantEnded(codec::decode(body, MAX_BODY_BYTES)?),
            LOG_KIND => Self::Log(codec::decode(body, MAX_BODY_BYTES)?),
            CHALLENGE_KIND => Self::Challenge(codec::decode(body, MAX_BODY_BYTES)?),
            ATTESTATION_KIND => Self::Attestation(codec::decode(body, MAX_ATTESTATION_BODY_BYTES)?),
            EXTENSION_ASKED_KIND => Self::ExtensionAsked(codec::decode(body, MAX_BODY_BYTES)?),
            EXTENSION_ANSWERED_KIND => Self::ExtensionAnswered(codec::decode(body, MAX_BODY_BYTES)?),
            INVENTORY_KIND => Self::Inventory(codec::decode(body, MAX_BODY_BYTES)?),
            USAGE_REPORT_KIND => Self::UsageReport(codec::decode(body, MAX_BODY_BYTES)?),
            _ => return Ok(None),
        }))
    }

    /// The entry kind.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Card(_) => CARD_KIND,
            Self::CardRemoved(_) => CARD_REMOVED_KIND,
            Self::Request(_) => REQUEST_KIND,
            Self::RequestEnded(_) => REQUEST_ENDED_KIND,
            Self::Clearing(_) => CLEARING_KIND,
            Self::Grant(_) => GRANT_KIND,
            Self::GrantServing(_) => GRANT_SERVING_KIND,
            Self::GrantEnding(_) => GRANT_ENDING_KIND,
            Self::GrantEnded(_) => GRANT_ENDED_KIND,
            Self::Log(_) => LOG_KIND,
            Self::Challenge(_) => CHALLENGE_KIND,
            Self::Attestation(_) => ATTESTATION_KIND,
            Self::ExtensionAsked(_) => EXTENSION_ASKED_KIND,
            Self::ExtensionAnswered(_) => EXTENSION_ANSWERED_KIND,
            Self::Inventory(_) => INVENTORY_KIND,
            Self::UsageReport(_) => USAGE_REPORT_KIND,
        }
    }

    /// The encoded body.
    #[must_use]
    pub fn to_body(&self) -> Vec<u8> {
        match self {
            Self::Card(body) => codec::encode(body),
            Self::CardRemoved(body) => codec::encode(body),
            Self::Request(body) => codec::encode(body),
            Self::RequestEnded(body) => codec::encode(body),
            Self::Clearing(body) => codec::encode(body),
            Self::Grant(body) => codec::encode(body),
            Self::GrantServing(body) => codec::encode(body),
            Self::GrantEnding(body) => codec::encode(body),
            Self::GrantEnded(body) => codec::encode(body),
            Self::Log(body) => codec::encode(body),
            Self::Challenge(body) => codec::encode(body),
            Self::Attestation(body) => codec::encode(body),
            Self::ExtensionAsked(body) => codec::encode(body),
            Self::ExtensionAnswered(body) => codec::encode(body),
            Self::Inventory(body) => codec::encode(body),
            Self::UsageReport(body) => codec::encode(body),
        }
    }

    /// The draft the host turns into an entry.
    #[must_use]
    pub fn to_draft(&self, evidence: Vec<EvidencePointer>) -> Draft {
        Draft { kind: self.kind(), body: self.to_body(), evidence }
    }
}
