//! Compute: the coalition's market for machines.
//!
//! Providers post cards, requesters submit requests, the committee clears each request to the best eligible offer under a
//! published rule and commits the grant; providers commit usage logs. Everything is an entry of one certified log, and
//! everybody's view of the market, the committee's included, is the fold of that log.
//!
//! * [`types`]: cards, requests, grants, logs, clearing records.
//! * [`sign`]: statements principals sign. [`command`]: what may be written. [`entries`]: what the log holds.
//! * [`machine`]: the pure state machine the committee runs. [`refusal`]: its refusals and their stable codes.
//! * [`eligibility`] and [`clearing`]: who may win, and who wins.
//! * [`surface`]: the view readers fold. [`replay`](mod@replay): computing a log again, for auditors.
//!
//! `docs/protocol/compute.md` specifies all of it for somebody who does not read Rust.

pub mod clearing;
pub mod codec;
pub mod command;
pub mod config;
pub mod eligibility;
pub mod entries;
pub mod machine;
pub mod refusal;
pub mod replay;
pub mod sign;
pub mod state;
pub mod surface;
pub mod types;

pub use command::Command;
pub use config::{AttestationRule, ClearingRule, ComputeParams, ParamsError};
pub use entries::MarketEntry;
pub use machine::ComputeMachine;
pub use refusal::RefusalCode;
pub use replay::{Replay, ReplayFault, ReplayReport, replay};
pub use sign::{
    AskChallenge, Attest, Deregister, EndGrant, PostCard, RefuseGrant, ServeGrant, SignatureBytes, Signed, Statement,
    WithdrawRequest,
};
pub use state::{
    At, FoldError, GrantExtras, GrantRecord, GrantStage, InventoryEntry, MarketState, RequestRecord, RequestStage,
    Retention, WaitingExtension,
};
pub use surface::{CardView, FreeOffer, MarketView, RequestStatus};
pub use types::{
    AnswerExtension, BondCount, Capabilities, ClearingRecord, Compared, ComputeGrant, ComputeLog, ComputeRequest,
    CounterSource, DeclaredRates, DeclineReason, EndpointHint, Expiry, ExtendGrant, ExtensionAnswer, FilterKind,
    GrantEnd, Invalid, LogEnd, MIN_CPU_MILLICORES, MIN_RAM_MIB, Offer, OfferName, ProviderCard, RefusalReason, Region,
    RemovedBy, ReportUsage, RequestEnd, StateInventory, UsageMetrics, anonymous_requester, open_grants_digest,
    request_id,
};
pub use types::{
    Attestation, Challenge, EvidenceShape, MAX_EVIDENCE_BYTES, RootKind, expect_provider, expect_workload,
    provider_report_data, workload_report_data,
};
pub use types::{
    MAX_TELEMETRY_BYTES, TelemetryCounts, TelemetryError, TelemetryFact, TelemetryPoint, TelemetrySeries,
    TelemetrySnapshot, telemetry_pointer, telemetry_store,
};
