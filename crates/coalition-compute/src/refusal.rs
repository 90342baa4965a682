//! Every refusal of a Compute module, with its stable code.

use coalition_log::Refusal;

/// Why a command was refused. `as_str` is what callers match on; it never changes meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefusalCode {
    /// The bytes are not a command.
    Malformed,
    /// A field breaks its stated limit.
    Invalid,
    /// The signature does not verify.
    BadSignature,
    /// Signed by a key that does not hold what it speaks for.
    WrongKey,
    /// A card statement's sequence did not grow.
    StaleSequence,
    /// The card's tick lies in the future.
    CardFromFuture,
    /// The card is already too old.
    CardStale,
    /// No more providers are admitted.
    TooManyProviders,
    /// The card drops an offer that live grants are on.
    OfferInUse,
    /// The provider has no card.
    UnknownProvider,
    /// The request id is not derived from key and nonce.
    RequestIdMismatch,
    /// The same request is already here.
    DuplicateRequest,
    /// The request id is already here with different content.
    RequestConflict,
    /// The deadline is not in the future.
    DeadlinePassed,
    /// The deadline is too far in the future.
    DeadlineTooFar,
    /// The duration is longer than the module grants.
    DurationTooLong,
    /// The market holds as many requests as it can.
    MarketFull,
    /// The request key has as many open requests as allowed.
    TooManyOpen,
    /// The request is not known (any more).
    UnknownRequest,
    /// The request is not open.
    RequestNotOpen,
    /// The grant is not known (any more).
    UnknownGrant,
    /// The grant has ended.
    GrantEnded,
    /// The grant is already being served.
    AlreadyServing,
    /// The grant is already being ended.
    AlreadyEnding,
    /// The log's number is not the next one.
    LogOutOfOrder,
    /// The log's window overlaps an earlier one or lies in the future.
    LogWindow,
    /// The grant has as many logs as allowed.
    TooManyLogs,
    /// The module verifies no attestation.
    AttestationNotAsked,
    /// The module asks for an attestation that the card does not name.
    AttestationMissing,
    /// The card names another attestation than the one here.
    AttestationUnknown,
    /// The attestation is too old.
    AttestationStale,
    /// The evidence is not valid under the module's policy.
    AttestationRefused,
    /// There is no challenge to answer.
    ChallengeUnknown,
    /// The provider has not said that it serves the grant.
    NotServing,
    /// Another extension of the grant waits for its answer.
    ExtensionWaiting,
    /// The extension's number is not the next one.
    ExtensionOutOfOrder,
    /// No such extension waits.
    ExtensionUnknown,
    /// The end accepted is not the one asked for.
    ExtensionMismatch,
    /// The grant has been extended as often as it takes.
    TooManyExtensions,
    /// The grant has as many usage reports as it takes.
    TooManyReports,
    /// The report's number is not the next one.
    ReportOutOfOrder,
    /// The provider's open grants changed after what it had seen.
    InventoryOvertaken,
    /// The inventory's window does not follow the last one.
    InventoryWindow,
    /// The log this member folded contradicts the rules; it must not decide anything.
    StateFault,
}

impl RefusalCode {
    /// All codes.
    pub const ALL: [Self; 44] = [
        Self::Malformed,
        Self::Invalid,
        Self::BadSignature,
        Self::WrongKey,
        Self::StaleSequence,
        Self::CardFromFuture,
        Self::CardStale,
        Self::TooManyProviders,
        Self::OfferInUse,
        Self::UnknownProvider,
        Self::RequestIdMismatch,
        Self::DuplicateRequest,
        Self::RequestConflict,
        Self::DeadlinePassed,
        Self::DeadlineTooFar,
        Self::DurationTooLong,
        Self::MarketFull,
        Self::TooManyOpen,
        Self::UnknownRequest,
        Self::RequestNotOpen,
        Self::UnknownGrant,
        Self::GrantEnded,
        Self::AlreadyServing,
        Self::AlreadyEnding,
        Self::LogOutOfOrder,
        Self::LogWindow,
        Self::TooManyLogs,
        Self::AttestationNotAsked,
        Self::AttestationMissing,
        Self::AttestationUnknown,
        Self::AttestationStale,
        Self::AttestationRefused,
        Self::ChallengeUnknown,
        Self::NotServing,
        Self::ExtensionWaiting,
        Self::ExtensionOutOfOrder,
        Self::ExtensionUnknown,
        Self::ExtensionMismatch,
        Self::TooManyExtensions,
        Self::TooManyReports,
        Self::ReportOutOfOrder,
        Self::InventoryOvertaken,
        Self::InventoryWindow,
        Self::StateFault,
    ];

    /// The stable code.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Invalid => "invalid",
            Self::BadSignature => "bad_signature",
            Self::WrongKey => "wrong_key",
            Self::StaleSequence => "stale_sequence",
            Self::CardFromFuture => "card_from_future",
            Self::CardStale => "card_stale",
            Self::TooManyProviders => "too_many_providers",
            Self::OfferInUse => "offer_in_use",
            Self::UnknownProvider => "unknown_provider",
            Self::RequestIdMismatch => "request_id_mismatch",
            Self::DuplicateRequest => "duplicate_request",
            Self::RequestConflict => "request_conflict",
            Self::DeadlinePassed => "deadline_passed",
            Self::DeadlineTooFar => "deadline_too_far",
            Self::DurationTooLong => "duration_too_long",
            Self::MarketFull => "market_full",
            Self::TooManyOpen => "too_many_open",
            Self::UnknownRequest => "unknown_request",
            Self::RequestNotOpen => "request_not_open",
            Self::UnknownGrant => "unknown_grant",
            Self::GrantEnded => "grant_ended",
            Self::AlreadyServing => "already_serving",
            Self::AlreadyEnding => "already_ending",
            Self::LogOutOfOrder => "log_out_of_order",
            Self::LogWindow => "log_window",
            Self::TooManyLogs => "too_many_logs",
            Self::AttestationNotAsked => "attestation_not_asked",
            Self::AttestationMissing => "attestation_missing",
            Self::AttestationUnknown => "attestation_unknown",
            Self::AttestationStale => "attestation_stale",
            Self::AttestationRefused => "attestation_refused",
            Self::ChallengeUnknown => "challenge_unknown",
            Self::NotServing => "not_serving",
            Self::ExtensionWaiting => "extension_waiting",
            Self::ExtensionOutOfOrder => "extension_out_of_order",
            Self::ExtensionUnknown => "extension_unknown",
            Self::ExtensionMismatch => "extension_mismatch",
            Self::TooManyExtensions => "too_many_extensions",
            Self::TooManyReports => "too_many_reports",
            Self::ReportOutOfOrder => "report_out_of_order",
            Self::InventoryOvertaken => "inventory_overtaken",
            Self::InventoryWindow => "inventory_window",
            Self::StateFault => "state_fault",
        }
    }

    /// A refusal with this code.
    #[must_use]
    pub fn because(self, message: impl Into<String>) -> Refusal {
        Refusal::new(self.as_str(), message)
    }
}
