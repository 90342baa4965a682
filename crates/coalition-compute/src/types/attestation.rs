//! What a provider's platform proved, as the committee found it.

use coalition::{Mrtd, ProviderId, UniqueId};
use coalition_attest::{Binding, DEVELOPMENT_LABEL, Expect, Nonce};
use serde::{Deserialize, Serialize};

/// Largest evidence (quote and collateral) of one attestation, in bytes. Intel's take about 24 KiB.
pub const MAX_EVIDENCE_BYTES: usize = 44 * 1024;

/// What a provider's quote is bound for.
const PROVIDER_PURPOSE: &str = "compute/provider";
/// What the quote of a workload's guest is bound for.
const WORKLOAD_PURPOSE: &str = "compute/workload";

/// The form of the evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvidenceShape {
    /// A TDX quote of version 4 with its collateral.
    TdxQuoteV4,
    /// A TDX quote of version 5 with its collateral.
    TdxQuoteV5,
}

/// Who vouches in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RootKind {
    /// Intel: there is a processor behind it.
    Intel,
    /// Software keys: proves nothing about hardware.
    Development,
}

impl RootKind {
    /// What to print beside everything this root vouches for.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Intel => "attested by Intel",
            Self::Development => DEVELOPMENT_LABEL,
        }
    }
}

/// A verified attestation. Computed by the committee from the provider's evidence, in the same entry; a card names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attestation {
    /// Whose.
    pub provider: ProviderId,
    /// Digest of the quote: what the provider's card names.
    pub digest: UniqueId,
    /// Form of the evidence.
    pub shape: EvidenceShape,
    /// Kind of the root that vouches.
    pub root: RootKind,
    /// Id of that root.
    pub root_id: UniqueId,
    /// Fingerprint of the policy it satisfied.
    pub policy: UniqueId,
    /// Initial contents of the provider's guest.
    pub mrtd: Mrtd,
    /// Digest of all its registers.
    pub measurements: UniqueId,
    /// Hash of its configuration.
    pub config: UniqueId,
    /// Committee time of the challenge in it, Unix milliseconds: the quote is not older.
    pub challenged_ms: u64,
    /// Committee time of verification, Unix milliseconds.
    pub verified_ms: u64,
    /// Committee time from which it counts no more, Unix milliseconds.
    pub expires_ms: u64,
}

/// A challenge given to a provider: the leaf hash of its entry, and when that was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// What the quote must contain.
    pub nonce: UniqueId,
    /// Committee time, Unix milliseconds.
    pub time_ms: u64,
}

impl Challenge {
    fn nonce(self) -> Nonce {
        Nonce { value: self.nonce, issued_s: self.time_ms / 1_000 }
    }
}

/// The report data of a provider's quote at the Compute organism `organism`: its key, its configuration, its challenge.
#[must_use]
pub fn provider_report_data(organism: UniqueId, key: &[u8; 32], config: UniqueId, challenge: Challenge) -> [u8; 64] {
    Binding { purpose: PROVIDER_PURPOSE, network: organism, key, config, nonce: challenge.nonce }.report_data()
}

/// What a verifier of a provider's quote expects.
#[must_use]
pub fn expect_provider(organism: UniqueId, key: &[u8; 32], config: UniqueId, challenge: Challenge) -> Expect {
    Expect::bound(PROVIDER_PURPOSE, organism, key, config, challenge.nonce())
}

/// The report data of the quote of a workload's guest: its SSH host key, its image, and the request it runs for, which is
/// fresh because the requester made it with random bytes.
#[must_use]
pub fn workload_report_data(organism: UniqueId, host_key: &[u8; 32], image: UniqueId, request: UniqueId) -> [u8; 64] {
    Binding { purpose: WORKLOAD_PURPOSE, network: organism, key: host_key, config: image, nonce: request }.report_data()
}

/// What a requester that made its request at `requested_s`, Unix seconds, expects of its workload's guest.
#[must_use]
pub fn expect_workload(
    organism: UniqueId,
    host_key: &[u8; 32],
    image: UniqueId,
    request: UniqueId,
    requested_s: u64,
) -> Expect {
    let nonce = Nonce { value: request, issued_s: requested_s };
    Expect::bound(WORKLOAD_PURPOSE, organism, host_key, image, nonce)
}
