//! What verification says: *valid*, *invalid* or *could not check*, under which root and policy, and how old it all is.

use std::fmt;

use coalition::UniqueId;
use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};
use thiserror::Error;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::binding::BoundPart;
use crate::collateral::Origin;
use crate::measurement::{Measurements, Register, RegisterValue};
use crate::policy::{PlatformFlag, TcbStatus};
use crate::quote::QuoteError;
use crate::root::TrustRoot;

/// Why a quote is not what the policy asks for. Asking again at this time gives the same answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Invalid {
    /// It is no quote.
    #[error(transparent)]
    Malformed(#[from] QuoteError),
    /// Another root vouches for it.
    #[error("the policy's root is {expected}, the quote ends in '{found}' ({found_label})")]
    WrongRoot {
        /// The root the policy names.
        expected: &'static str,
        /// Subject of the certificate the quote's chain ends in.
        found: String,
        /// What kind of root that is.
        found_label: &'static str,
    },
    /// The platform's certificate does not chain to the root.
    #[error("the platform certificate does not verify: {0}")]
    PlatformCertificate(String),
    /// A certificate of the chain is revoked.
    #[error("the {0} is revoked")]
    Revoked(&'static str),
    /// The platform did not sign the quoting enclave's report.
    #[error("the platform's key did not sign the quoting enclave's report")]
    EnclaveReport,
    /// The quoting enclave vouches for another attestation key.
    #[error("the quoting enclave vouches for another attestation key than the quote's")]
    AttestationKey,
    /// The quoting enclave is not the known one.
    #[error("the quoting enclave is not the one the root's identity names: {0}")]
    QuotingEnclave(String),
    /// The attestation key did not sign this quote.
    #[error("the attestation key did not sign this quote")]
    Signature,
    /// The host can read and change the guest.
    #[error("the guest runs in debug mode: its host can read and change it")]
    Debug,
    /// Other attributes that are refused.
    #[error("the guest's attributes are refused: {0}")]
    Attributes(String),
    /// The platform's TCB matches no level the root knows, or its module is unknown.
    #[error("the platform's security version is not known to the root: {0}")]
    TcbUnknown(String),
    /// Everything signed at this level is distrusted.
    #[error("the platform's security version is revoked")]
    TcbRevoked,
    /// A status the policy does not accept.
    #[error("the platform's TCB is {status} ({}), which the policy does not accept", list(.advisories))]
    Tcb {
        /// The status.
        status: TcbStatus,
        /// Advisories that apply.
        advisories: Vec<String>,
    },
    /// A platform flag the policy does not allow.
    #[error("the platform has the flag {0:?}, which the policy does not allow")]
    Flag(PlatformFlag),
    /// An advisory the policy refuses.
    #[error("advisory {0} applies to the platform, which the policy refuses")]
    Advisory(String),
    /// A register with another value.
    #[error("{register} is {found}, the policy requires {}", expected(.allowed))]
    Register {
        /// The register.
        register: Register,
        /// Value in the quote.
        found: RegisterValue,
        /// Values that would do.
        allowed: Vec<RegisterValue>,
    },
    /// The report data binds something else.
    #[error("the quote is bound to something else: {}", parts(.0))]
    ReportData(Vec<BoundPart>),
    /// The nonce is too old.
    #[error("the quote's nonce is {age_s} s old, the policy allows {max_s} s: ask for a fresh quote")]
    TooOld {
        /// Its age, seconds.
        age_s: u64,
        /// Age allowed, seconds.
        max_s: u64,
    },
    /// Refused by the verification library for a reason not told apart here.
    #[error("refused: {0}")]
    Other(String),
}

impl Invalid {
    /// Stable name of the reason.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::WrongRoot { .. } => "wrong_root",
            Self::PlatformCertificate(_) => "platform_certificate",
            Self::Revoked(_) => "revoked",
            Self::EnclaveReport => "enclave_report",
            Self::AttestationKey => "attestation_key",
            Self::QuotingEnclave(_) => "quoting_enclave",
            Self::Signature => "signature",
            Self::Debug => "debug",
            Self::Attributes(_) => "attributes",
            Self::TcbUnknown(_) => "tcb_unknown",
            Self::TcbRevoked => "tcb_revoked",
            Self::Tcb { .. } => "tcb",
            Self::Flag(_) => "platform_flag",
            Self::Advisory(_) => "advisory",
            Self::Register { .. } => "register",
            Self::ReportData(_) => "report_data",
            Self::TooOld { .. } => "too_old",
            Self::Other(_) => "other",
        }
    }
}

/// Why nothing can be said about a quote. With other collateral, another time or more knowledge it may be valid.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unchecked {
    /// There is no collateral, or it cannot be read.
    #[error("no usable collateral: {0}")]
    CollateralMissing(String),
    /// It is malformed.
    #[error("the collateral is malformed: {0}")]
    CollateralMalformed(String),
    /// It ended before the time asked about.
    #[error("the collateral's {0} has expired: fetch fresh collateral")]
    CollateralExpired(&'static str),
    /// It starts after the time asked about.
    #[error("the collateral's {0} is not valid yet: check the clock")]
    CollateralNotYetValid(&'static str),
    /// The root did not sign it.
    #[error("the collateral is not signed by the policy's root: {0}")]
    CollateralForged(String),
    /// It is about another platform.
    #[error("the collateral is about another platform: {0}")]
    CollateralOfAnother(String),
    /// It is older than the policy allows.
    #[error("the collateral is {age_s} s old, the policy allows {max_s} s: fetch fresh collateral")]
    CollateralOld {
        /// Its age, seconds.
        age_s: u64,
        /// Age allowed, seconds.
        max_s: u64,
    },
    /// It carries an older TCB evaluation than the policy asks for.
    #[error("the collateral is of TCB evaluation {found}, the policy asks for {min}: fetch fresh collateral")]
    CollateralEvaluation {
        /// Evaluation found.
        found: u32,
        /// Evaluation asked for.
        min: u32,
    },
    /// The policy wants the quote bound, and the caller did not say to what.
    #[error("the policy requires the quote to be bound, and what to is not known")]
    BindingUnknown,
    /// The policy limits the age, and nobody knows when the nonce was made.
    #[error("the policy limits the quote's age, and the time of its nonce is not known")]
    AgeUnknown,
    /// The nonce is from after the time asked about.
    #[error("the nonce was issued at {issued_s}, which is after {now_s}: check the clock")]
    NonceInFuture {
        /// When it was issued, Unix seconds.
        issued_s: u64,
        /// The time asked about, Unix seconds.
        now_s: u64,
    },
}

impl Unchecked {
    /// Stable name of the reason.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::CollateralMissing(_) => "collateral_missing",
            Self::CollateralMalformed(_) => "collateral_malformed",
            Self::CollateralExpired(_) => "collateral_expired",
            Self::CollateralNotYetValid(_) => "collateral_not_yet_valid",
            Self::CollateralForged(_) => "collateral_forged",
            Self::CollateralOfAnother(_) => "collateral_of_another",
            Self::CollateralOld { .. } => "collateral_old",
            Self::CollateralEvaluation { .. } => "collateral_evaluation",
            Self::BindingUnknown => "binding_unknown",
            Self::AgeUnknown => "age_unknown",
            Self::NonceInFuture { .. } => "nonce_in_future",
        }
    }
}

/// The answer itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Everything the policy asks for holds.
    Valid,
    /// Something does not hold.
    Invalid(Invalid),
    /// Nothing can be said.
    CouldNotCheck(Unchecked),
}

impl Outcome {
    /// `valid`, `invalid` or `could_not_check`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Invalid(_) => "invalid",
            Self::CouldNotCheck(_) => "could_not_check",
        }
    }

    /// Stable name of the reason; none when valid.
    #[must_use]
    pub const fn code(&self) -> Option<&'static str> {
        match self {
            Self::Valid => None,
            Self::Invalid(reason) => Some(reason.code()),
            Self::CouldNotCheck(reason) => Some(reason.code()),
        }
    }

    /// The reason in words; none when valid.
    #[must_use]
    pub fn message(&self) -> Option<String> {
        match self {
            Self::Valid => None,
            Self::Invalid(reason) => Some(reason.to_string()),
            Self::CouldNotCheck(reason) => Some(reason.to_string()),
        }
    }
}

/// The collateral a verdict rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CollateralUsed {
    /// Names its bytes.
    pub digest: UniqueId,
    /// Where it came from.
    pub origin: Origin,
    /// No network was asked: a newer revocation list may exist.
    pub offline: bool,
    /// Date of its TCB info, Unix seconds; known once it verified.
    pub issued_s: Option<u64>,
    /// When its first part expires, Unix seconds; known once it verified.
    pub expires_s: Option<u64>,
    /// The TCB evaluation it carries; known once it verified.
    pub tcb_evaluation: Option<u32>,
}

/// What the verified quote states. Present only when root, chain and signatures hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Guest {
    /// Its registers.
    pub measurements: Measurements,
    /// Its report data.
    #[serde(serialize_with = "hex_text")]
    pub report_data: [u8; 64],
    /// The platform family it runs on.
    #[serde(serialize_with = "hex_text")]
    pub fmspc: [u8; 6],
    /// How current the platform is.
    pub tcb: TcbStatus,
    /// Advisories that apply to the platform.
    pub advisories: Vec<String>,
}

/// The result of looking at one quote at one time under one policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The answer.
    pub outcome: Outcome,
    /// The one root the policy names.
    pub root: TrustRoot,
    /// Fingerprint of the policy.
    pub policy: UniqueId,
    /// The registers the policy pins; when empty, any guest of the root would do.
    pub pinned: Vec<Register>,
    /// Digest of the quote; none when it is none.
    pub quote: Option<UniqueId>,
    /// The time asked about, Unix seconds.
    pub checked_at_s: u64,
    /// Age of the quote's nonce, seconds: the quote is not older. None when unknown.
    pub quote_age_s: Option<u64>,
    /// Whether the caller said what the report data must be. If not, any bearer could show this quote.
    pub bound: bool,
    /// The collateral; none when there was none.
    pub collateral: Option<CollateralUsed>,
    /// What the quote states.
    pub guest: Option<Guest>,
}

impl Verdict {
    /// Whether everything the policy asks for holds.
    #[must_use]
    pub const fn is_valid(&self) -> bool {
        matches!(self.outcome, Outcome::Valid)
    }

    /// The verdict as one JSON object.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a verdict holds nothing JSON cannot")
    }

    /// The guest, if the verdict is valid.
    ///
    /// # Errors
    /// The verdict itself, as an error that says why.
    pub fn into_valid(self) -> Result<Guest, NotValid> {
        match (&self.outcome, &self.guest) {
            (Outcome::Valid, Some(guest)) => Ok(guest.clone()),
            _ => Err(NotValid(Box::new(self))),
        }
    }
}

/// A verdict that is not *valid*, as an error.
#[derive(Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct NotValid(pub Box<Verdict>);

/// One line: TLS libraries print the causes of their errors in this form.
impl fmt::Debug for NotValid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NotValid({self})")
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::Valid => f.write_str("valid")?,
            Outcome::Invalid(reason) => write!(f, "invalid: {reason}")?,
            Outcome::CouldNotCheck(reason) => write!(f, "could not check: {reason}")?,
        }
        write!(f, " [root: {}; policy {}", self.root.label(), short(&self.policy))?;
        if self.pinned.is_empty() {
            f.write_str("; pins nothing")?;
        } else {
            let names: Vec<_> = self.pinned.iter().map(ToString::to_string).collect();
            write!(f, "; pins: {}", names.join(", "))?;
        }
        match self.quote_age_s {
            Some(age) => write!(f, "; quote at most {age} s old")?,
            None => f.write_str("; quote of unknown age")?,
        }
        if !self.bound {
            f.write_str("; not bound to its bearer")?;
        }
        match &self.collateral {
            Some(used) => {
                write!(f, "; collateral {}", if used.offline { "offline" } else { "fetched" })?;
                if let (Some(issued), Some(expires)) = (used.issued_s, used.expires_s) {
                    write!(f, ", {} to {}", date(issued), date(expires))?;
                }
            }
            None => f.write_str("; no collateral")?,
        }
        f.write_str("]")
    }
}

impl Serialize for Verdict {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Root {
            kind: &'static str,
            id: UniqueId,
            label: &'static str,
        }
        let kind = if self.root.is_intel() { "intel" } else { "development" };
        let mut out = serializer.serialize_struct("Verdict", 12)?;
        out.serialize_field("outcome", self.outcome.name())?;
        out.serialize_field("reason", &self.outcome.code())?;
        out.serialize_field("message", &self.outcome.message())?;
        out.serialize_field("root", &Root { kind, id: self.root.id(), label: self.root.label() })?;
        out.serialize_field("policy", &self.policy)?;
        out.serialize_field("pinned", &self.pinned)?;
        out.serialize_field("quote", &self.quote)?;
        out.serialize_field("checked_at_s", &self.checked_at_s)?;
        out.serialize_field("quote_age_s", &self.quote_age_s)?;
        out.serialize_field("bound", &self.bound)?;
        out.serialize_field("collateral", &self.collateral)?;
        out.serialize_field("guest", &self.guest)?;
        out.end()
    }
}

fn hex_text<S: Serializer, T: AsRef<[u8]>>(bytes: T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(bytes))
}

fn short(id: &UniqueId) -> String {
    hex::encode(&id.as_bytes()[..8])
}

/// A Unix time as a date, or the bare number when it is none.
pub(crate) fn date(seconds: u64) -> String {
    let formatted = i64::try_from(seconds)
        .ok()
        .and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok())
        .and_then(|at| at.format(&Rfc3339).ok());
    formatted.unwrap_or_else(|| seconds.to_string())
}

fn list(advisories: &[String]) -> String {
    if advisories.is_empty() { "no advisory".to_owned() } else { advisories.join(", ") }
}

fn expected(allowed: &[RegisterValue]) -> String {
    match allowed {
        [one] => one.to_string(),
        more => format!("one of {} values", more.len()),
    }
}

fn parts(parts: &[BoundPart]) -> String {
    if parts.is_empty() {
        return "its report data is another".to_owned();
    }
    let names: Vec<_> = parts.iter().map(|part| part.name()).collect();
    format!("another {}", names.join(", another "))
}
