//! What a verifier must know before it can judge: what the digests in a config's rules stand for, and where to look things up.

use std::collections::BTreeMap;
use std::sync::Arc;

use coalition::tickets::AclRule;
use coalition::{PublishedConfig, PublishedOrganism, UniqueId};
use coalition_attest::evidence::Nowhere;
use coalition_attest::{BindingRule, CollateralSource, Policy, TrustRoot, VerdictCache, Verifier};
use thiserror::Error;

use crate::acl::ComputeModule;
use crate::admission::Check;
use crate::challenges::Nonces;
use crate::demand::Demand;
use crate::issuer::{Charter, CharterError};
use crate::sources::{Reputation, Rosters, Seats, Settlements, published};
use crate::tdx::Tdx;

/// Verdicts on quotes a door remembers.
const VERDICTS: usize = 1_024;

/// Compositions inside compositions, at most.
const MAX_DEPTH: usize = 16;

/// A demand that this verifier cannot judge. Nothing is enforced by halves.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unresolved {
    /// A digest nobody has given the policy, charter or composition of.
    #[error("an access rule names the policy {0}, and nothing here has that digest: give its document")]
    Policy(UniqueId),
    /// A trust root whose certificate is not known.
    #[error("an access rule names the trust root {0}, which is neither Intel's nor one that was given")]
    Root(UniqueId),
    /// An issuer without a charter.
    #[error("an access rule demands tickets of issuer {0}, and its charter is not known")]
    Issuer(UniqueId),
    /// An organism whose rules are not known.
    #[error("an access rule refers to the rules of {0}, whose config is not known")]
    Organism(UniqueId),
    /// A committee that is not known.
    #[error("an access rule demands a seat in the committee of {0}, whose roster is not known")]
    Committee(UniqueId),
    /// Nothing reads reputation cards.
    #[error("an access rule demands reputation at {0}, and nothing here reads its cards")]
    Reputation(UniqueId),
    /// Nothing reads settlements.
    #[error("an access rule demands settlements at {0}, and nothing here reads them")]
    Settlement(UniqueId),
    /// A policy under which anybody could show anybody's quote.
    #[error("the attestation policy {0} does not bind quotes to their bearer, so it keeps nobody out")]
    Unbound(UniqueId),
    /// Alternatives that nothing satisfies.
    #[error("alternatives without any: nobody could come in")]
    NoAlternative,
    /// Too many compositions inside each other.
    #[error("access rules are composed over {MAX_DEPTH} deep")]
    TooDeep,
}

/// What a verifier knows.
#[derive(Clone)]
pub struct Resources {
    roots: Vec<TrustRoot>,
    declared: BTreeMap<UniqueId, Demand>,
    issuers: BTreeMap<UniqueId, Charter>,
    acls: BTreeMap<UniqueId, Vec<AclRule>>,
    rosters: Rosters,
    seats: Option<Arc<dyn Seats>>,
    reputation: Option<Arc<dyn Reputation>>,
    settlements: Option<Arc<dyn Settlements>>,
    nonces: Option<Arc<dyn Nonces>>,
    collateral: Arc<dyn CollateralSource>,
    verdicts: Arc<VerdictCache>,
}

impl Default for Resources {
    fn default() -> Self {
        Self::new()
    }
}

impl Resources {
    /// Intel's root, and nothing else.
    #[must_use]
    pub fn new() -> Self {
        Self {
            roots: vec![TrustRoot::Intel],
            declared: BTreeMap::new(),
            issuers: BTreeMap::new(),
            acls: BTreeMap::new(),
            rosters: Rosters::default(),
            seats: None,
            reputation: None,
            settlements: None,
            nonces: None,
            collateral: Arc::new(Nowhere),
            verdicts: Arc::new(VerdictCache::new(VERDICTS)),
        }
    }

    /// The rosters and access rules of everything a config publishes.
    #[must_use]
    pub fn with_config(self, config: &PublishedConfig) -> Self {
        published(config).fold(self, Self::with_organism)
    }

    fn with_organism(mut self, organism: &PublishedOrganism) -> Self {
        let id = organism.id;
        self.acls.insert(id, organism.acl.clone());
        self.rosters = self.rosters.with_organism(organism);
        self.declare(ComputeModule::pin(id)).declare(ComputeModule::requester_acl(id))
    }

    /// A coalition's issuer: opting in to its tickets takes its config and the charter that the config names.
    ///
    /// # Errors
    /// [`CharterError`] when the config names another charter, or none.
    pub fn with_issuer(mut self, config: &PublishedConfig, charter: Charter) -> Result<Self, CharterError> {
        self.issuers.insert(charter.root_in(config)?, charter);
        Ok(self)
    }

    /// An attestation policy that rules name by its fingerprint, and its root.
    #[must_use]
    pub fn with_policy(self, policy: Policy) -> Self {
        self.with_root(policy.root().clone()).declare(Tdx::under(policy))
    }

    /// A trust root that rules name by its id.
    #[must_use]
    pub fn with_root(mut self, root: TrustRoot) -> Self {
        if !self.roots.contains(&root) {
            self.roots.push(root);
        }
        self
    }

    /// A demand that rules name by digest, such as alternatives.
    #[must_use]
    pub fn declare(mut self, demand: impl Into<Demand>) -> Self {
        let demand = demand.into();
        if let AclRule::Policy(digest) = demand.rule() {
            self.declared.insert(digest, demand);
        }
        self
    }

    /// Who sits where, instead of what the configs' rosters say, for committees that hand over:
    /// [`Committees`](crate::sources::Committees).
    #[must_use]
    pub fn with_seats(self, seats: Arc<dyn Seats>) -> Self {
        Self { seats: Some(seats), ..self }
    }

    /// Where reputation cards are read.
    #[must_use]
    pub fn with_reputation(self, reputation: Arc<dyn Reputation>) -> Self {
        Self { reputation: Some(reputation), ..self }
    }

    /// Where settlements are read.
    #[must_use]
    pub fn with_settlements(self, settlements: Arc<dyn Settlements>) -> Self {
        Self { settlements: Some(settlements), ..self }
    }

    /// Who knows how old nonces are. Without it, policies that limit the age of quotes admit nobody.
    #[must_use]
    pub fn with_nonces(self, nonces: Arc<dyn Nonces>) -> Self {
        Self { nonces: Some(nonces), ..self }
    }

    /// Where collateral is looked up before what a bearer brings counts.
    #[must_use]
    pub fn with_collateral(self, collateral: Arc<dyn CollateralSource>) -> Self {
        Self { collateral, ..self }
    }

    /// The edition of the seats that change hands, if there are any.
    pub(crate) fn seats_edition(&self) -> u64 {
        self.seats.as_ref().map_or(0, |seats| seats.edition())
    }

    pub(crate) fn nonces(&self) -> Option<&Arc<dyn Nonces>> {
        self.nonces.as_ref()
    }

    pub(crate) fn collateral(&self) -> &dyn CollateralSource {
        &*self.collateral
    }

    pub(crate) fn verdicts(&self) -> &VerdictCache {
        &self.verdicts
    }

    pub(crate) fn resolve_all(&self, demands: &[Demand], depth: usize) -> Result<Vec<Check>, Unresolved> {
        demands.iter().map(|demand| self.resolve(demand, depth)).collect()
    }

    fn resolve(&self, demand: &Demand, depth: usize) -> Result<Check, Unresolved> {
        if depth >= MAX_DEPTH {
            return Err(Unresolved::TooDeep);
        }
        match demand {
            Demand::Rule(rule) => self.resolve_rule(rule, depth),
            Demand::Tdx(tdx) => resolve_tdx(tdx),
            Demand::Seat(organism) => self.resolve_seat(*organism),
            Demand::AclOf(organism) => {
                let rules = self.acls.get(organism).ok_or(Unresolved::Organism(*organism))?;
                let demands: Vec<Demand> = rules.iter().copied().map(Demand::Rule).collect();
                self.resolve_all(&demands, depth + 1).map(Check::All)
            }
            Demand::All(demands) => self.resolve_all(demands, depth + 1).map(Check::All),
            Demand::Any(demands) if demands.is_empty() => Err(Unresolved::NoAlternative),
            Demand::Any(demands) => self.resolve_all(demands, depth + 1).map(Check::Any),
        }
    }

    fn resolve_rule(&self, rule: &AclRule, depth: usize) -> Result<Check, Unresolved> {
        match *rule {
            AclRule::Issuer(root) => {
                let charter = self.issuers.get(&root).cloned().ok_or(Unresolved::Issuer(root))?;
                Ok(Check::Issued { root, charter })
            }
            AclRule::Tdx { root: id, mrtd } => {
                let root = self.roots.iter().find(|root| root.id() == id).ok_or(Unresolved::Root(id))?;
                resolve_tdx(&Tdx::of_rule(root.clone(), mrtd))
            }
            AclRule::Reputation { organism, floor_ppm } => {
                let source = self.reputation.clone().ok_or(Unresolved::Reputation(organism))?;
                Ok(Check::Reputation { organism, floor_ppm, source })
            }
            AclRule::Settlement { organism } => {
                let source = self.settlements.clone().ok_or(Unresolved::Settlement(organism))?;
                Ok(Check::Settlement { organism, source })
            }
            AclRule::Policy(digest) => {
                self.resolve(self.declared.get(&digest).ok_or(Unresolved::Policy(digest))?, depth + 1)
            }
            // The kinds of rules may grow; one that this build does not know keeps everybody out rather than nobody.
            _ => Err(Unresolved::Policy(UniqueId::hash(&rule.to_bytes()))),
        }
    }

    fn resolve_seat(&self, organism: UniqueId) -> Result<Check, Unresolved> {
        let source: Arc<dyn Seats> = match &self.seats {
            Some(seats) => Arc::clone(seats),
            None => Arc::new(self.rosters.clone()),
        };
        if source.knows(organism) { Ok(Check::Seat { organism, source }) } else { Err(Unresolved::Committee(organism)) }
    }
}

fn resolve_tdx(tdx: &Tdx) -> Result<Check, Unresolved> {
    let policy = tdx.policy();
    if policy.binding_rule() != BindingRule::Required {
        return Err(Unresolved::Unbound(policy.fingerprint()));
    }
    Ok(Check::Tdx(Arc::new(Verifier::new(policy.clone()))))
}
