//! The demand for an attestation, in the specification's words: `Tdx::new().require_mrtd(…)`.

use std::borrow::Borrow;

use coalition::Mrtd;
use coalition::tickets::AclRule;
use coalition_attest::{Measurements, Policy, PolicyError, Register, RegisterValue, TrustRoot};

use crate::demand::{Demand, Or};

/// Demands a quote that passes full verification under a policy, bound to the peer that shows it.
///
/// It takes the place of the substrate's validator of the same name, which checks neither who signed a quote nor how current
/// its platform is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tdx {
    policy: Policy,
}

impl Tdx {
    /// Intel's root, and platforms as servers are today: current, with the flags that all of them have. Any measurement until
    /// one is required.
    #[must_use]
    pub fn new() -> Self {
        Self { policy: Policy::servers(TrustRoot::Intel) }
    }

    /// A policy of one's own, for example one that names a development root or limits the age of quotes.
    #[must_use]
    pub const fn under(policy: Policy) -> Self {
        Self { policy }
    }

    /// Requires exactly this initial content: an MRTD, or that of published measurements.
    #[must_use]
    pub fn require_mrtd(self, mrtd: impl Into<Mrtd>) -> Self {
        Self { policy: self.policy.require_mrtd(mrtd.into()) }
    }

    /// The same demands under another root, such as a development root: another demand, with another name.
    #[must_use]
    pub fn under_root(self, root: &TrustRoot) -> Self {
        Self { policy: self.policy.under_root(root.clone()) }
    }

    /// Requires exactly this value of a register.
    #[must_use]
    pub fn require(self, register: Register, value: RegisterValue) -> Self {
        Self { policy: self.policy.require(register, value) }
    }

    /// Requires one of these values of a register, as during a rotation.
    ///
    /// # Errors
    /// [`PolicyError`] when there is none or too many.
    pub fn in_set(self, register: Register, values: &[RegisterValue]) -> Result<Self, PolicyError> {
        Ok(Self { policy: self.policy.in_set(register, values)? })
    }

    /// Limits the age of quotes, in seconds: the peer has to quote a challenge of the door, and again when it is too old.
    ///
    /// # Errors
    /// [`PolicyError::ZeroAge`].
    pub fn max_age_s(self, seconds: u64) -> Result<Self, PolicyError> {
        Ok(Self { policy: self.policy.max_quote_age_s(seconds)? })
    }

    /// The policy.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The policy that the rule *TDX quote* of a config stands for.
    pub(crate) fn of_rule(root: TrustRoot, mrtd: Mrtd) -> Self {
        Self::under(Policy::servers(root)).require_mrtd(mrtd)
    }

    /// How a config names it: by root and initial content if that is all there is to it, otherwise by the policy's fingerprint.
    #[must_use]
    pub fn rule(&self) -> AclRule {
        if let Some(mrtd) = self.single_mrtd()
            && Self::of_rule(self.policy.root().clone(), mrtd) == *self
        {
            return AclRule::Tdx { root: self.policy.root().id(), mrtd };
        }
        self.policy.acl_rule()
    }

    fn single_mrtd(&self) -> Option<Mrtd> {
        let mut values = self.policy.registers().get(&Register::Mrtd)?.iter();
        let value = values.next()?;
        values.next().is_none().then_some(Mrtd(*value.as_bytes()))
    }
}

impl Default for Tdx {
    fn default() -> Self {
        Self::new()
    }
}

impl From<Tdx> for Demand {
    fn from(tdx: Tdx) -> Self {
        Self::Tdx(tdx)
    }
}

/// Demands all registers of published measurements at once.
#[derive(Debug, Clone, Copy)]
pub struct AdmitsMeasurements;

impl AdmitsMeasurements {
    /// Exactly these registers, under Intel's root.
    #[must_use]
    pub fn equal(measurements: impl Borrow<Measurements>) -> Tdx {
        Self::equal_under(Policy::servers(TrustRoot::Intel), measurements.borrow())
    }

    /// Exactly these registers, and what the policy asks besides.
    #[must_use]
    pub fn equal_under(policy: Policy, measurements: &Measurements) -> Tdx {
        let require = |tdx: Tdx, register: Register| tdx.require(register, measurements.get(register));
        Register::ALL.into_iter().fold(Tdx::under(policy), require)
    }

    /// One of these sets of registers, under Intel's root: the old and the new during a rotation. None admits nobody, and cannot
    /// be enforced.
    #[must_use]
    pub fn in_set(sets: &[Measurements]) -> Or {
        Or::of(sets.iter().map(Self::equal))
    }
}
