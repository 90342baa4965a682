//! Making a grant longer: what its requester asks and what its provider answers.

use coalition::{AlmanacTick, ProviderId, RequestId, UniqueId};
use serde::{Deserialize, Serialize};

/// The requester wants its grant to last longer, on the same machine and at the same rate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtendGrant {
    /// The grant.
    pub grant_id: RequestId,
    /// 1 for the first extension asked of the grant, then one more each: a statement counts once.
    pub number: u32,
    /// How much longer, in seconds; at least 1.
    pub extra_sec: u32,
    /// How the extra time is paid; opaque here.
    pub settlement: UniqueId,
}

/// The provider's answer to an extension.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerExtension {
    /// The grant.
    pub grant_id: RequestId,
    /// The provider the grant names.
    pub provider: ProviderId,
    /// Number of the extension answered.
    pub number: u32,
    /// The answer.
    pub answer: ExtensionAnswer,
}

/// Yes or no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExtensionAnswer {
    /// Everything that would have ended the machine has been moved.
    Accepted {
        /// The tick expected at the new deadline.
        valid_to: AlmanacTick,
        /// The new deadline, Unix milliseconds of committee time.
        valid_to_ms: u64,
    },
    /// The grant ends when it would have.
    Declined(DeclineReason),
}

/// Why a provider does not make a grant longer. Codes only, as for refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeclineReason {
    /// What ends the machine cannot be moved while it runs.
    CannotExtend,
    /// The machine or its backend did not do what it was told in time.
    BackendFailed,
    /// The provider is shutting down.
    Draining,
    /// None of the above.
    Other,
}
