//! What a quote must satisfy: one root, registers, TCB statuses, platform flags, ages.
//!
//! A policy is a value with canonical bytes and a fingerprint, so that an organism's access rules can name it and two
//! parties can tell whether they mean the same one. It has a TOML form and a published one; see `docs/ATTESTATION.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use coalition::tickets::AclRule;
use coalition::{Mrtd, UniqueId, hash_many};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::measurement::{Register, RegisterValue};
use crate::root::{RootError, TrustRoot};

mod document;

const VERSION: u8 = 1;
const TAG: &[u8] = b"coalition/attest/policy";

/// Most values one register may be allowed to have.
pub const MAX_SET: usize = 64;

/// How current a platform is, by the platform maker's own judgement.
///
/// `Revoked` is not among them: it is refused under every policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum TcbStatus {
    /// Everything is current.
    UpToDate = 1,
    /// Current, but software must work around a known weakness.
    SWHardeningNeeded = 2,
    /// Current, but the platform's configuration may expose it.
    ConfigurationNeeded = 3,
    /// Both of the above.
    ConfigurationAndSWHardeningNeeded = 4,
    /// Security updates are missing.
    OutOfDate = 5,
    /// Security updates are missing and the configuration may expose it.
    OutOfDateConfigurationNeeded = 6,
    /// Updated since, but the guest was started before the update.
    TDRelaunchAdvised = 7,
    /// The same, and the configuration may expose it.
    TDRelaunchAdvisedConfigurationNeeded = 8,
}

impl fmt::Display for TcbStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A property of a platform that a policy must allow by name. Current TDX servers have all three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum PlatformFlag {
    /// Processor packages may be added to the platform.
    DynamicPlatform = 1,
    /// The platform's root keys are also held by the maker's registration service.
    CachedKeys = 2,
    /// Hyper-threads share cores.
    Smt = 4,
}

impl PlatformFlag {
    /// All of them: what real TDX servers need allowed.
    pub const ALL: [Self; 3] = [Self::DynamicPlatform, Self::CachedKeys, Self::Smt];
}

/// Whether a quote must be bound, by its report data, to the party that shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum BindingRule {
    /// The verifier must say what the report data has to be; without that nothing is valid.
    #[default]
    Required = 1,
    /// A bare quote may be judged. It then says that such a guest exists, not who is talking.
    Unbound = 2,
}

/// Why a policy is none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PolicyError {
    /// A register with no value that would do.
    #[error("policy: {0} is required to be in an empty set, which nothing satisfies: leave {0} out or give values")]
    EmptySet(Register),
    /// More values than [`MAX_SET`].
    #[error("policy: {register} has {found} values, at most {MAX_SET} are allowed")]
    LargeSet {
        /// The register.
        register: Register,
        /// Values found.
        found: usize,
    },
    /// No status would do.
    #[error("policy: no TCB status is accepted, so nothing could ever be valid: name at least UpToDate")]
    NoStatus,
    /// An age of zero.
    #[error("policy: {0} is zero, which nothing satisfies: leave it out or give seconds")]
    ZeroAge(&'static str),
    /// A binding that is not asked for cannot have an age.
    #[error("policy: max_quote_age_s needs binding = \"required\": a quote's age is that of the nonce bound in it")]
    AgeUnbound,
    /// An advisory without a name, or with a very long one.
    #[error("policy: '{0}' is no advisory name")]
    Advisory(String),
    /// Bytes that are no policy document, or not the one of their policy.
    #[error("policy: the published document is malformed at its {0}")]
    Document(&'static str),
    /// The root of a published document.
    #[error("policy: the published document's root")]
    Root(#[from] RootError),
}

/// What a quote must satisfy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Form", into = "Form")]
pub struct Policy {
    root: TrustRoot,
    registers: BTreeMap<Register, BTreeSet<RegisterValue>>,
    tcb: BTreeSet<TcbStatus>,
    allow: BTreeSet<PlatformFlag>,
    reject_advisories: BTreeSet<String>,
    binding: BindingRule,
    max_quote_age_s: Option<u64>,
    max_collateral_age_s: Option<u64>,
    min_tcb_evaluation: Option<u32>,
}

impl Policy {
    /// The strictest policy under a root: only up-to-date platforms without any flag, the quote bound, any measurement.
    #[must_use]
    pub fn strict(root: TrustRoot) -> Self {
        Self {
            root,
            registers: BTreeMap::new(),
            tcb: BTreeSet::from([TcbStatus::UpToDate]),
            allow: BTreeSet::new(),
            reject_advisories: BTreeSet::new(),
            binding: BindingRule::Required,
            max_quote_age_s: None,
            max_collateral_age_s: None,
            min_tcb_evaluation: None,
        }
    }

    /// [`Policy::strict`], with the platform flags every current TDX server has.
    #[must_use]
    pub fn servers(root: TrustRoot) -> Self {
        PlatformFlag::ALL.into_iter().fold(Self::strict(root), Self::allow)
    }

    /// Requires exactly this initial content; replaces an earlier requirement.
    #[must_use]
    pub fn require_mrtd(self, mrtd: Mrtd) -> Self {
        self.require(Register::Mrtd, mrtd.into())
    }

    /// Requires exactly this value of a register; replaces an earlier requirement.
    #[must_use]
    pub fn require(mut self, register: Register, value: RegisterValue) -> Self {
        self.registers.insert(register, BTreeSet::from([value]));
        self
    }

    /// Requires one of these values, as during a rotation; replaces an earlier requirement.
    ///
    /// # Errors
    /// [`PolicyError`] when there is no value or more than [`MAX_SET`].
    pub fn in_set(mut self, register: Register, values: &[RegisterValue]) -> Result<Self, PolicyError> {
        self.registers.insert(register, values.iter().copied().collect());
        self.validated()
    }

    /// Accepts a further TCB status.
    #[must_use]
    pub fn accept(mut self, status: TcbStatus) -> Self {
        self.tcb.insert(status);
        self
    }

    /// Allows a platform flag.
    #[must_use]
    pub fn allow(mut self, flag: PlatformFlag) -> Self {
        self.allow.insert(flag);
        self
    }

    /// Refuses platforms with an advisory, whatever their status.
    ///
    /// # Errors
    /// [`PolicyError::Advisory`] when the name is empty or over 64 bytes.
    pub fn reject_advisory(mut self, name: &str) -> Result<Self, PolicyError> {
        self.reject_advisories.insert(name.to_ascii_uppercase());
        self.validated()
    }

    /// Says whether the quote must be bound to its bearer.
    ///
    /// # Errors
    /// [`PolicyError::AgeUnbound`] when there is an age limit already.
    pub fn binding(mut self, rule: BindingRule) -> Result<Self, PolicyError> {
        self.binding = rule;
        self.validated()
    }

    /// Limits the age of the nonce in the quote, in seconds: no quote is older than the nonce it contains.
    ///
    /// # Errors
    /// [`PolicyError`] when zero, or when the quote need not be bound.
    pub fn max_quote_age_s(mut self, seconds: u64) -> Result<Self, PolicyError> {
        self.max_quote_age_s = Some(seconds);
        self.validated()
    }

    /// Limits the age of the collateral's TCB info, in seconds. Without it, unexpired collateral will do.
    ///
    /// # Errors
    /// [`PolicyError::ZeroAge`].
    pub fn max_collateral_age_s(mut self, seconds: u64) -> Result<Self, PolicyError> {
        self.max_collateral_age_s = Some(seconds);
        self.validated()
    }

    /// Requires collateral of at least this TCB evaluation: refuses older, still unexpired, judgements.
    #[must_use]
    pub const fn min_tcb_evaluation(mut self, number: u32) -> Self {
        self.min_tcb_evaluation = Some(number);
        self
    }

    /// The same demands under another root: another policy, with another fingerprint.
    #[must_use]
    pub fn under_root(self, root: TrustRoot) -> Self {
        Self { root, ..self }
    }

    /// The one root that may vouch.
    #[must_use]
    pub const fn root(&self) -> &TrustRoot {
        &self.root
    }

    /// The values each pinned register may have.
    #[must_use]
    pub const fn registers(&self) -> &BTreeMap<Register, BTreeSet<RegisterValue>> {
        &self.registers
    }

    /// Whether a TCB status is accepted.
    #[must_use]
    pub fn accepts(&self, status: TcbStatus) -> bool {
        self.tcb.contains(&status)
    }

    /// Whether a platform flag is allowed.
    #[must_use]
    pub fn allows(&self, flag: PlatformFlag) -> bool {
        self.allow.contains(&flag)
    }

    /// Whether an advisory is refused; case does not matter.
    #[must_use]
    pub fn rejects_advisory(&self, name: &str) -> bool {
        self.reject_advisories.contains(&name.to_ascii_uppercase())
    }

    /// Whether the quote must be bound.
    #[must_use]
    pub const fn binding_rule(&self) -> BindingRule {
        self.binding
    }

    /// Age limit of the nonce, seconds.
    #[must_use]
    pub const fn quote_age_limit_s(&self) -> Option<u64> {
        self.max_quote_age_s
    }

    /// Age limit of the collateral, seconds.
    #[must_use]
    pub const fn collateral_age_limit_s(&self) -> Option<u64> {
        self.max_collateral_age_s
    }

    /// Lowest TCB evaluation accepted.
    #[must_use]
    pub const fn tcb_evaluation_floor(&self) -> Option<u32> {
        self.min_tcb_evaluation
    }

    /// The canonical bytes, specified in `docs/ATTESTATION.md`; integers are big-endian.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![VERSION, self.root.kind()];
        out.extend(self.root.id().as_bytes());
        out.push(count(self.registers.len()));
        for (register, values) in &self.registers {
            out.extend([register.number(), count(values.len())]);
            values.iter().for_each(|value| out.extend(value.as_bytes()));
        }
        out.push(count(self.tcb.len()));
        out.extend(self.tcb.iter().map(|status| *status as u8));
        out.push(self.allow.iter().fold(0, |bits, flag| bits | *flag as u8));
        out.push(count(self.reject_advisories.len()));
        for name in &self.reject_advisories {
            out.push(count(name.len()));
            out.extend(name.as_bytes());
        }
        out.push(self.binding as u8);
        push_optional(&mut out, self.max_quote_age_s);
        push_optional(&mut out, self.max_collateral_age_s);
        push_optional(&mut out, self.min_tcb_evaluation.map(u64::from));
        out
    }

    /// The policy as a config publishes it: the canonical bytes, then the certificate of a development root, DER.
    #[must_use]
    pub fn to_document(&self) -> Vec<u8> {
        let mut out = self.to_bytes();
        if !self.root.is_intel() {
            out.extend(self.root.certificate());
        }
        out
    }

    /// Reads what a config publishes.
    ///
    /// # Errors
    /// [`PolicyError`] when it is not the one document of a policy that something could satisfy.
    pub fn from_document(bytes: &[u8]) -> Result<Self, PolicyError> {
        document::parse(bytes)
    }

    /// What a workload's guest must satisfy where its provider must satisfy this: the same root, platform and collateral,
    /// this initial content or any, and no age, because the nonce in its quote is the request it runs for.
    #[must_use]
    pub fn of_workload(&self, mrtd: Option<Mrtd>) -> Self {
        let registers = mrtd.map(|mrtd| (Register::Mrtd, BTreeSet::from([mrtd.into()]))).into_iter().collect();
        Self { registers, binding: BindingRule::Required, max_quote_age_s: None, ..self.clone() }
    }

    /// The policy's name: folds its canonical bytes.
    #[must_use]
    pub fn fingerprint(&self) -> UniqueId {
        hash_many(&[&[VERSION], TAG, &self.to_bytes()])
    }

    /// The access rule that demands this policy, for an organism's ACL.
    #[must_use]
    pub fn acl_rule(&self) -> AclRule {
        AclRule::Policy(self.fingerprint())
    }

    fn validated(self) -> Result<Self, PolicyError> {
        for (register, values) in &self.registers {
            match values.len() {
                0 => return Err(PolicyError::EmptySet(*register)),
                found if found > MAX_SET => return Err(PolicyError::LargeSet { register: *register, found }),
                _ => {}
            }
        }
        if self.tcb.is_empty() {
            return Err(PolicyError::NoStatus);
        }
        for (name, age) in
            [("max_quote_age_s", self.max_quote_age_s), ("max_collateral_age_s", self.max_collateral_age_s)]
        {
            if age == Some(0) {
                return Err(PolicyError::ZeroAge(name));
            }
        }
        if self.max_quote_age_s.is_some() && self.binding == BindingRule::Unbound {
            return Err(PolicyError::AgeUnbound);
        }
        if let Some(name) = self.reject_advisories.iter().find(|n| n.is_empty() || n.len() > 64) {
            return Err(PolicyError::Advisory(name.clone()));
        }
        if self.reject_advisories.len() > MAX_SET {
            return Err(PolicyError::Advisory(format!("more than {MAX_SET} advisories")));
        }
        Ok(self)
    }
}

/// Every list is validated to at most [`MAX_SET`] elements.
fn count(len: usize) -> u8 {
    u8::try_from(len).unwrap_or(u8::MAX)
}

fn push_optional(out: &mut Vec<u8>, value: Option<u64>) {
    out.push(u8::from(value.is_some()));
    out.extend(value.unwrap_or(0).to_be_bytes());
}

/// The text form: what a TOML section holds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_quote_age_s: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_collateral_age_s: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    min_tcb_evaluation: Option<u32>,
    #[serde(default)]
    binding: BindingRule,
    tcb: BTreeSet<TcbStatus>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    allow: BTreeSet<PlatformFlag>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    reject_advisories: BTreeSet<String>,
    root: TrustRoot,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    registers: BTreeMap<Register, BTreeSet<RegisterValue>>,
}

impl TryFrom<Form> for Policy {
    type Error = PolicyError;

    fn try_from(form: Form) -> Result<Self, PolicyError> {
        Self {
            root: form.root,
            registers: form.registers,
            tcb: form.tcb,
            allow: form.allow,
            reject_advisories: form.reject_advisories.iter().map(|name| name.to_ascii_uppercase()).collect(),
            binding: form.binding,
            max_quote_age_s: form.max_quote_age_s,
            max_collateral_age_s: form.max_collateral_age_s,
            min_tcb_evaluation: form.min_tcb_evaluation,
        }
        .validated()
    }
}

impl From<Policy> for Form {
    fn from(policy: Policy) -> Self {
        Self {
            max_quote_age_s: policy.max_quote_age_s,
            max_collateral_age_s: policy.max_collateral_age_s,
            min_tcb_evaluation: policy.min_tcb_evaluation,
            binding: policy.binding,
            tcb: policy.tcb,
            allow: policy.allow,
            reject_advisories: policy.reject_advisories,
            root: policy.root,
            registers: policy.registers,
        }
    }
}
