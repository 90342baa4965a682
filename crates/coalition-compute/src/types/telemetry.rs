//! What a provider's cloud itself counted of a machine, signed by the provider and kept by it: what the `evidence` of a usage log
//! points to when the machine was a cloud's.

use coalition::{EvidencePointer, ProviderId, RequestId, UniqueId, codec::DecodeError, hash_many};
use serde::{Deserialize, Serialize};

use super::{Invalid, UsageMetrics};
use crate::codec;
use crate::sign::{BadSignature, Signed, Statement};

/// Largest encoded snapshot, in bytes.
pub const MAX_TELEMETRY_BYTES: usize = 48 * 1024;
/// Most facts of one snapshot.
const MAX_FACTS: usize = 32;
/// Most series.
const MAX_SERIES: usize = 8;
/// Most points of one series.
const MAX_POINTS: usize = 128;
/// Longest text of any field, in bytes.
const MAX_TEXT: usize = 512;
/// Longest number, in bytes.
const MAX_NUMBER: usize = 32;
/// Times are believed up to the year 9999, Unix seconds.
const MAX_TIME_S: u64 = 253_402_300_799;

/// Something the API says that is no series.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TelemetryFact {
    /// Which call of the API, or whose word it is.
    pub call: String,
    /// The API's name of it.
    pub name: String,
    /// As the API has it.
    pub value: String,
}

/// What a series counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TelemetryCounts {
    /// Percent of all virtual CPUs, on average over each period.
    CpuPercent,
    /// Seconds of one virtual CPU, of each period.
    CpuSeconds,
    /// Bytes in or out, of each period.
    NetBytes,
}

/// One number of a series.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TelemetryPoint {
    /// Unix seconds, as the API gives them.
    pub at_s: u64,
    /// The number as decimal text.
    pub value: String,
}

/// Numbers of one metric.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TelemetrySeries {
    /// Which call of the API.
    pub call: String,
    /// The API's name of the metric.
    pub metric: String,
    /// How the API made one number of each period.
    pub statistic: String,
    /// What it counts.
    pub counts: TelemetryCounts,
    /// Seconds each point stands for.
    pub period_s: u64,
    /// Points, oldest first, no time twice.
    pub points: Vec<TelemetryPoint>,
}

/// A snapshot of one machine's telemetry. The provider vouches that this is what the API said; the API signs nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TelemetrySnapshot {
    /// The Compute organism the grant is of.
    pub market: UniqueId,
    /// The provider, whose key signs.
    pub provider: ProviderId,
    /// The grant.
    pub grant_id: RequestId,
    /// The machine's name with its provider, 32 hex digits.
    pub instance: String,
    /// The cloud's name of the machine.
    pub host: String,
    /// Which cloud.
    pub cloud: String,
    /// Which of its regions.
    pub region: String,
    /// The window asked about, Unix seconds.
    pub from_s: u64,
    /// Its end.
    pub to_s: u64,
    /// When it was asked, Unix milliseconds by the provider's clock.
    pub taken_ms: u64,
    /// What the provider metered itself and logs for this machine; absent for a try that failed.
    pub metered: Option<UsageMetrics>,
    /// What is no series.
    pub facts: Vec<TelemetryFact>,
    /// At least one series.
    pub series: Vec<TelemetrySeries>,
}

/// Why bytes are not the snapshot they are taken for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TelemetryError {
    /// Other bytes than the pointer's.
    #[error("the file's blake3 is {found}, the pointer says {expected}; it is another file, or was changed")]
    Digest {
        /// The pointer's.
        expected: UniqueId,
        /// The bytes'.
        found: UniqueId,
    },
    /// No snapshot, or not the one encoding of it.
    #[error("the bytes are no telemetry snapshot: {0}")]
    Encoding(String),
    /// A field breaks its limits.
    #[error("the snapshot breaks a limit: {0}")]
    Field(#[from] Invalid),
    /// Signed by somebody else.
    #[error("it is signed by {found}, expected is {expected}")]
    Signer {
        /// Who should have signed.
        expected: ProviderId,
        /// Who did, as the key says.
        found: ProviderId,
    },
    /// The provider it names is not the one that signed.
    #[error("it names the provider {named}, and {found} signed it")]
    Named {
        /// The field.
        named: ProviderId,
        /// The key's.
        found: ProviderId,
    },
    /// The signature is not the key's over this snapshot.
    #[error("its signature does not verify")]
    Signature,
}

impl From<BadSignature> for TelemetryError {
    fn from(_: BadSignature) -> Self {
        Self::Signature
    }
}

impl From<DecodeError> for TelemetryError {
    fn from(error: DecodeError) -> Self {
        Self::Encoding(error.to_string())
    }
}

/// Where a provider's snapshots are: no organism, its own store. Stands where pointers name an organism.
#[must_use]
pub fn telemetry_store(provider: ProviderId) -> UniqueId {
    hash_many(&[&[0x01], b"coalition/compute/telemetry", provider.as_bytes()])
}

/// The pointer to a snapshot of these bytes: the provider's store, the length in bytes, the blake3.
#[must_use]
pub fn telemetry_pointer(provider: ProviderId, bytes: &[u8]) -> EvidencePointer {
    EvidencePointer { organism: telemetry_store(provider), index: bytes.len() as u64, digest: UniqueId::hash(bytes) }
}

fn check_text(field: &'static str, text: &str) -> Result<(), Invalid> {
    Invalid::check_range(field, text.len() as u64, 1, MAX_TEXT as u64)?;
    if text.chars().any(char::is_control) {
        return Err(Invalid::Contradiction { what: "a text of telemetry has control characters; it must be one line" });
    }
    Ok(())
}

impl TelemetrySeries {
    fn check(&self) -> Result<(), Invalid> {
        check_text("call", &self.call)?;
        check_text("metric", &self.metric)?;
        check_text("statistic", &self.statistic)?;
        Invalid::check_range("period_s", self.period_s, 1, 31_622_400)?;
        Invalid::check_range("points", self.points.len() as u64, 1, MAX_POINTS as u64)?;
        for point in &self.points {
            Invalid::check_range("at_s", point.at_s, 0, MAX_TIME_S)?;
            if millionths(&point.value).is_none() {
                let what = "a point's value is no decimal number from 0 of up to 32 characters";
                return Err(Invalid::Contradiction { what });
            }
        }
        if self.points.windows(2).any(|pair| pair[0].at_s >= pair[1].at_s) {
            return Err(Invalid::Contradiction { what: "a series' points are not in the order of their times" });
        }
        Ok(())
    }

    /// The sum of all points, in millionths; saturating, as what an API says must not stop a reader.
    fn sum(&self) -> u128 {
        self.points.iter().filter_map(|point| millionths(&point.value)).fold(0, u128::saturating_add)
    }
}

impl TelemetrySnapshot {
    /// The signed snapshot's bytes: what is kept, hashed and pointed to.
    #[must_use]
    pub fn bytes(signed: &Signed<Self>) -> Vec<u8> {
        codec::encode(signed)
    }

    /// Reads a snapshot: one encoding, within limits, signed by the provider it names, for the market it names.
    ///
    /// # Errors
    /// [`TelemetryError`].
    pub fn read(bytes: &[u8]) -> Result<Signed<Self>, TelemetryError> {
        let signed: Signed<Self> = codec::decode(bytes, MAX_TELEMETRY_BYTES)?;
        let (statement, found) = (&signed.statement, ProviderId::from_public_key(&signed.key));
        statement.check()?;
        if statement.provider != found {
            return Err(TelemetryError::Named { named: statement.provider, found });
        }
        signed.verify(&statement.market)?;
        Ok(signed)
    }

    /// Reads the snapshot of this digest, signed by this provider.
    ///
    /// # Errors
    /// [`TelemetryError`].
    pub fn verify(bytes: &[u8], digest: UniqueId, provider: ProviderId) -> Result<Signed<Self>, TelemetryError> {
        let found = UniqueId::hash(bytes);
        if found != digest {
            return Err(TelemetryError::Digest { expected: digest, found });
        }
        let signed = Self::read(bytes)?;
        let found = signed.statement.provider;
        if found != provider {
            return Err(TelemetryError::Signer { expected: provider, found });
        }
        Ok(signed)
    }

    /// Virtual CPUs of the machine, where a fact tells.
    fn vcpus(&self) -> Option<u128> {
        let fact = self.facts.iter().find(|fact| fact.name == "vcpus")?;
        fact.value.parse::<u32>().ok().filter(|vcpus| *vcpus > 0).map(u128::from)
    }

    /// CPU time of the whole machine, its system included, milliseconds of one core; nothing where it was not counted, or
    /// the size is unknown that its percent are of.
    #[must_use]
    pub fn cpu_core_ms(&self) -> Option<u64> {
        let millis = |series: &TelemetrySeries| match series.counts {
            TelemetryCounts::CpuSeconds => Some(series.sum() / 1_000),
            TelemetryCounts::CpuPercent => {
                let percent_seconds = series.sum().saturating_mul(u128::from(series.period_s));
                Some(percent_seconds.saturating_mul(self.vcpus()?) / 100_000)
            }
            TelemetryCounts::NetBytes => None,
        };
        total(self.series.iter().filter_map(millis))
    }

    /// Bytes in and out of the whole machine; nothing where they were not counted.
    #[must_use]
    pub fn net_bytes(&self) -> Option<u64> {
        let counted = self.series.iter().filter(|series| series.counts == TelemetryCounts::NetBytes);
        total(counted.map(|series| series.sum() / 1_000_000))
    }
}

/// The sum; nothing of nothing.
fn total(numbers: impl Iterator<Item = u128>) -> Option<u64> {
    let sum = numbers.fold(None, |sum: Option<u128>, one| Some(sum.unwrap_or_default().saturating_add(one)))?;
    Some(u64::try_from(sum).unwrap_or(u64::MAX))
}

/// A decimal number from 0 (`12`, `0.5`, `1.5e-7`, `1e21`) in millionths, rounded down; nothing for any other text, or one beyond
/// 10^32. Floating point would tell different readers different sums.
fn millionths(text: &str) -> Option<u128> {
    if text.len() > MAX_NUMBER {
        return None;
    }
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let are_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || mantissa.ends_with('.') || !are_digits(whole) || !are_digits(fraction) {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    if digits == 0 {
        return Some(0);
    }
    let shift = exponent.checked_add(6)?.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let power = 10_u128.checked_pow(shift.unsigned_abs());
    if shift >= 0 { digits.checked_mul(power?) } else { Some(power.map_or(0, |power| digits / power)) }
}

impl Statement for TelemetrySnapshot {
    const LABEL: &'static str = "telemetry";

    fn check(&self) -> Result<(), Invalid> {
        for (field, text) in
            [("instance", &self.instance), ("host", &self.host), ("cloud", &self.cloud), ("region", &self.region)]
        {
            check_text(field, text)?;
        }
        Invalid::check_range("to_s", self.to_s, self.from_s, MAX_TIME_S)?;
        Invalid::check_range("facts", self.facts.len() as u64, 0, MAX_FACTS as u64)?;
        Invalid::check_range("series", self.series.len() as u64, 1, MAX_SERIES as u64)?;
        for fact in &self.facts {
            check_text("call", &fact.call)?;
            check_text("name", &fact.name)?;
            check_text("value", &fact.value)?;
        }
        self.series.iter().try_for_each(TelemetrySeries::check)?;
        let size = codec::encode(self).len() + 96;
        Invalid::check_range("size", size as u64, 1, MAX_TELEMETRY_BYTES as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_read_exactly() {
        for (text, expected) in [
            ("0", 0),
            ("12", 12_000_000),
            ("0.5", 500_000),
            ("3.0", 3_000_000),
            ("0.0000019", 1),
            ("1.5e-6", 1),
            ("1e-40", 0),
            ("2.5e3", 2_500_000_000),
            ("1e21", 10_u128.pow(27)),
            ("0e99", 0),
        ] {
            assert_eq!(millionths(text), Some(expected), "{text}");
        }
        for wrong in ["", "-1", "+1", ".5", "1.", "1e", "1e99", "NaN", "inf", "0x1", "1 ", "1.2.3", &"1".repeat(33)] {
            assert_eq!(millionths(wrong), None, "{wrong}");
        }
    }
}
