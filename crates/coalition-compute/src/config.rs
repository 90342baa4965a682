//! Parameters of a Compute module: the clearing rule and every limit, folded into its organism's identity.

use coalition_attest::{BindingRule, Policy, PolicyError};
use serde::{Deserialize, Serialize};

use crate::types::Invalid;

/// Version of parameters that ask for no attestation.
const VERSION: u8 = 1;
/// Version of parameters with an attestation rule behind the fixed fields.
const VERSION_ATTESTED: u8 = 2;
/// Version, clearing rule and the fixed fields.
const FIXED_BYTES: usize = 2 + 10 * 4 + 1;
/// Largest policy document taken, in bytes.
const MAX_POLICY_BYTES: usize = 32 * 1024;

/// How open requests are matched to cards. Published in the module's config; `docs/protocol/compute.md` states each rule
/// precisely enough to replay it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClearingRule {
    /// Among eligible offers the lowest effective rate wins and is paid its own rate; ties break by hash.
    LowestRate,
}

impl ClearingRule {
    const fn code(self) -> u8 {
        match self {
            Self::LowestRate => 1,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::LowestRate),
            _ => None,
        }
    }
}

/// What a module asks of its providers' platforms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttestationRule {
    /// Whether every card needs a valid attestation. If not, only offers that claim TDX do.
    pub required: bool,
    /// What a provider's quote must satisfy: one root, bound to the provider, of a limited age.
    pub policy: Policy,
}

impl AttestationRule {
    fn check(&self) -> Result<(), Invalid> {
        if self.policy.binding_rule() != BindingRule::Required || self.policy.quote_age_limit_s().is_none() {
            return Err(Invalid::Contradiction {
                what: "an attestation policy of a market needs binding = \"required\" and max_quote_age_s, or stale quotes count",
            });
        }
        Invalid::check_range("policy document size", self.policy.to_document().len() as u64, 1, MAX_POLICY_BYTES as u64)
    }
}

/// Parameters of a Compute module.
///
/// Canonical bytes: `u8 version ‖ u8 clearing_rule`, then every other field in declaration order, `u32` big endian each,
/// `max_attempts` as one byte. The version is 1 without an attestation rule; with one it is 2, and
/// `u8 required ‖ policy document` follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComputeParams {
    /// The clearing rule.
    pub clearing_rule: ClearingRule,
    /// Least time between two clearing rounds, in milliseconds; 10 to 60,000.
    pub round_ms: u32,
    /// Cadence of the coalition's Almanac, in milliseconds; 10 to 60,000. Converts durations to ticks.
    pub almanac_cadence_ms: u32,
    /// A card older than this many ticks wins nothing; 1 to 1,000,000.
    pub card_max_age_ticks: u32,
    /// Longest grant, in seconds; 1 to 31,622,400 (a leap year).
    pub max_duration_sec: u32,
    /// Furthest deadline of a request, in ticks from its admission; 1 to 10,000,000.
    pub max_deadline_ticks: u32,
    /// Ticks after a grant's end during which its final log still counts as on time; 1 to 1,000,000.
    pub grant_grace_ticks: u32,
    /// Most providers known at once; 1 to 4,096.
    pub max_providers: u32,
    /// Most requests open at once; 1 to 65,536.
    pub max_open_requests: u32,
    /// Most requests open at once under one request key; 1 to `max_open_requests`.
    pub max_open_per_requester: u32,
    /// Most live grants of one provider, whatever its card says; 1 to 65,536.
    pub max_live_per_provider: u32,
    /// How many providers may be tried for one request; 1 to 32.
    pub max_attempts: u8,
    /// What providers' platforms must prove; nothing when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attestation: Option<AttestationRule>,
}

/// Why parameters were refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParamsError {
    /// A field is out of range.
    #[error("compute parameters are not usable")]
    Field(#[from] Invalid),
    /// The byte form has the wrong length.
    #[error("compute parameters are {given} bytes; version 1 has exactly {FIXED_BYTES}, version 2 more")]
    Length {
        /// Length found, in bytes.
        given: usize,
    },
    /// The byte form has a version this build does not know.
    #[error("compute parameters have version {given}; this build knows 1 and 2")]
    Version {
        /// Version found.
        given: u8,
    },
    /// The byte that says whether every card needs attestation is neither 0 nor 1.
    #[error("compute parameters: attestation is required or not (1 or 0), not {given}")]
    Required {
        /// Byte found.
        given: u8,
    },
    /// The attestation policy is none.
    #[error("compute parameters: the attestation policy is not usable")]
    Policy(#[from] PolicyError),
    /// The clearing rule is not one this build knows.
    #[error("clearing rule {given} is unknown to this build; it knows 1 (lowest_rate)")]
    Rule {
        /// Code found.
        given: u8,
    },
}

impl ComputeParams {
    /// Usual parameters on an Almanac of `almanac_cadence_ms`: 100 ms rounds, cards good for two minutes, grants up to a
    /// week with a minute's grace, deadlines up to a day. Check with [`ComputeParams::check`] after changing fields.
    #[must_use]
    pub fn standard(almanac_cadence_ms: u32) -> Self {
        let ticks = |ms: u32| ms.div_ceil(almanac_cadence_ms.max(1)).max(1);
        Self {
            clearing_rule: ClearingRule::LowestRate,
            round_ms: 100,
            almanac_cadence_ms,
            card_max_age_ticks: ticks(120_000),
            max_duration_sec: 7 * 86_400,
            max_deadline_ticks: ticks(86_400_000),
            grant_grace_ticks: ticks(60_000),
            max_providers: 256,
            max_open_requests: 4_096,
            max_open_per_requester: 64,
            max_live_per_provider: 4_096,
            max_attempts: 8,
            attestation: None,
        }
    }

    /// The same, asking providers for attestation.
    #[must_use]
    pub fn with_attestation(self, rule: AttestationRule) -> Self {
        Self { attestation: Some(rule), ..self }
    }

    /// Checks every field against its stated range.
    ///
    /// # Errors
    /// [`Invalid::Range`] naming the first field outside.
    pub fn check(&self) -> Result<(), Invalid> {
        let fields: [(&'static str, u32, u32, u32); 11] = [
            ("round_ms", self.round_ms, 10, 60_000),
            ("almanac_cadence_ms", self.almanac_cadence_ms, 10, 60_000),
            ("card_max_age_ticks", self.card_max_age_ticks, 1, 1_000_000),
            ("max_duration_sec", self.max_duration_sec, 1, 31_622_400),
            ("max_deadline_ticks", self.max_deadline_ticks, 1, 10_000_000),
            ("grant_grace_ticks", self.grant_grace_ticks, 1, 1_000_000),
            ("max_providers", self.max_providers, 1, 4_096),
            ("max_open_requests", self.max_open_requests, 1, 65_536),
            ("max_open_per_requester", self.max_open_per_requester, 1, self.max_open_requests),
            ("max_live_per_provider", self.max_live_per_provider, 1, 65_536),
            ("max_attempts", u32::from(self.max_attempts), 1, 32),
        ];
        for (field, given, min, max) in fields {
            Invalid::check_range(field, u64::from(given), u64::from(min), u64::from(max))?;
        }
        self.attestation.as_ref().map_or(Ok(()), AttestationRule::check)
    }

    /// Canonical bytes, folded into the organism's identity.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FIXED_BYTES);
        let version = if self.attestation.is_some() { VERSION_ATTESTED } else { VERSION };
        out.extend([version, self.clearing_rule.code()]);
        for field in [
            self.round_ms,
            self.almanac_cadence_ms,
            self.card_max_age_ticks,
            self.max_duration_sec,
            self.max_deadline_ticks,
            self.grant_grace_ticks,
            self.max_providers,
            self.max_open_requests,
            self.max_open_per_requester,
            self.max_live_per_provider,
        ] {
            out.extend(field.to_be_bytes());
        }
        out.push(self.max_attempts);
        if let Some(rule) = &self.attestation {
            out.push(u8::from(rule.required));
            out.extend(rule.policy.to_document());
        }
        out
    }

    /// Parses the canonical bytes.
    ///
    /// # Errors
    /// [`ParamsError`] for a wrong length, an unknown version or rule, a bad policy, or a field out of range.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ParamsError> {
        let given = bytes.len();
        let Some((bytes, rest)) = bytes.split_first_chunk::<FIXED_BYTES>() else {
            return Err(ParamsError::Length { given });
        };
        let attestation = match (bytes[0], rest) {
            (VERSION, []) => None,
            (VERSION, _) | (VERSION_ATTESTED, []) => return Err(ParamsError::Length { given }),
            (VERSION_ATTESTED, _) if given > FIXED_BYTES + 1 + MAX_POLICY_BYTES => {
                return Err(ParamsError::Length { given });
            }
            (VERSION_ATTESTED, [required @ (0 | 1), document @ ..]) => {
                Some(AttestationRule { required: *required == 1, policy: Policy::from_document(document)? })
            }
            (VERSION_ATTESTED, [given, ..]) => return Err(ParamsError::Required { given: *given }),
            (given, _) => return Err(ParamsError::Version { given }),
        };
        let clearing_rule = ClearingRule::from_code(bytes[1]).ok_or(ParamsError::Rule { given: bytes[1] })?;
        let mut fields = bytes[2..].chunks_exact(4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
        let mut next = || fields.next().expect("ten fields of four bytes fit the length checked above");
        let params = Self {
            clearing_rule,
            round_ms: next(),
            almanac_cadence_ms: next(),
            card_max_age_ticks: next(),
            max_duration_sec: next(),
            max_deadline_ticks: next(),
            grant_grace_ticks: next(),
            max_providers: next(),
            max_open_requests: next(),
            max_open_per_requester: next(),
            max_live_per_provider: next(),
            max_attempts: bytes[FIXED_BYTES - 1],
            attestation,
        };
        params.check()?;
        Ok(params)
    }

    /// How many ticks `duration_ms` spans at the Almanac's cadence, rounded up.
    #[must_use]
    pub fn ticks_for_ms(&self, duration_ms: u64) -> u64 {
        duration_ms.div_ceil(u64::from(self.almanac_cadence_ms).max(1))
    }

    /// How long `ticks` ticks last at the Almanac's cadence, in milliseconds.
    #[must_use]
    pub fn ms_for_ticks(&self, ticks: u64) -> u64 {
        ticks.saturating_mul(u64::from(self.almanac_cadence_ms))
    }

    /// Most requests remembered at once: open, granted, and ended ones whose deadline has not passed.
    #[must_use]
    pub const fn max_tracked_requests(&self) -> usize {
        self.max_open_requests as usize * 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_bytes_round_trip() {
        let params = ComputeParams::standard(1_000);
        assert_eq!(params.check(), Ok(()));
        assert_eq!(
            hex::encode(params.to_bytes()),
            "010100000064000003e80000007800093a80000151800000003c00000100000010000000004000001000".to_owned() + "08"
        );
        assert_eq!(ComputeParams::from_bytes(&params.to_bytes()), Ok(params));
    }

    #[test]
    fn each_fault_is_named() {
        let good = ComputeParams::standard(1_000).to_bytes();
        assert_eq!(ComputeParams::from_bytes(&good[1..]), Err(ParamsError::Length { given: good.len() - 1 }));
        let mut bad = good.clone();
        bad[0] = 9;
        assert_eq!(ComputeParams::from_bytes(&bad), Err(ParamsError::Version { given: 9 }));
        let mut bad = good;
        bad[1] = 7;
        assert_eq!(ComputeParams::from_bytes(&bad), Err(ParamsError::Rule { given: 7 }));
        let mut params = ComputeParams::standard(1_000);
        params.round_ms = 9;
        let fault = Invalid::Range { field: "round_ms", given: 9, min: 10, max: 60_000 };
        assert_eq!(ComputeParams::from_bytes(&params.to_bytes()), Err(ParamsError::Field(fault)));
    }

    #[test]
    fn every_cadence_gives_usable_standard_parameters() {
        for cadence in [10, 100, 1_000, 60_000] {
            assert_eq!(ComputeParams::standard(cadence).check(), Ok(()), "cadence {cadence}");
        }
    }
}
