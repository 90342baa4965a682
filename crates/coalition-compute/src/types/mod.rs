//! The market's data types, named as the specification names them.

mod attestation;
mod card;
mod clearing;
mod extension;
mod grant;
mod invalid;
mod inventory;
mod log;
mod names;
mod report;
mod request;
mod telemetry;

pub use attestation::{
    Attestation, Challenge, EvidenceShape, MAX_EVIDENCE_BYTES, RootKind, expect_provider, expect_workload,
    provider_report_data, workload_report_data,
};
pub use card::{
    BondCount, Capabilities, DeclaredRates, MAX_CARD_BYTES, MAX_MRTDS, MAX_OFFERS, MAX_RATE, MAX_REGIONS, Offer,
    ProviderCard,
};
pub use clearing::{ClearingRecord, Expiry, FilterKind, RemovedBy, RequestEnd};
pub use extension::{AnswerExtension, DeclineReason, ExtendGrant, ExtensionAnswer};
pub use grant::{ComputeGrant, EndpointHint, GrantEnd, RefusalReason};
pub use invalid::Invalid;
pub use inventory::{StateInventory, open_grants_digest};
pub use log::{ComputeLog, LogEnd, UsageMetrics};
pub use names::{MAX_NAME_BYTES, OfferName, Region};
pub use report::{Compared, CounterSource, ReportUsage, SUSPICIOUS_PERMILLE};
pub use request::{ComputeRequest, MIN_CPU_MILLICORES, MIN_RAM_MIB, anonymous_requester, request_id};
pub use telemetry::{
    MAX_TELEMETRY_BYTES, TelemetryCounts, TelemetryError, TelemetryFact, TelemetryPoint, TelemetrySeries,
    TelemetrySnapshot, telemetry_pointer, telemetry_store,
};
