//! Building a published config: state names and contents, get every id computed.

use super::draft::{Draft, DraftBody, DraftMember, Pin, bare, from_config};
use super::{PublishedConfig, PublishedError, PublishedIssuer, PublishedLattice, PublishedRef};
use crate::coalition::CoalitionConfig;
use crate::committee::{CommitteeContent, CommitteeError};
use crate::identity::{COALITION_ROOT_SEED, SCHEMA_VERSION_U8, UniqueId};
use crate::modules::{ModuleConfig, ModuleKind};
use crate::organism::{OrganismConfig, OrganismRef};
use crate::retirement::RetirementPolicy;
use crate::tickets::AclRule;

/// Collects what a coalition is made of; [`PublishedConfigBuilder::build`] computes the ids and checks everything.
///
/// Organisms, lattices and the issuer are part of the root under which modules derive, so the ids of modules are final
/// only when those are complete; the order of calls does not matter otherwise.
#[derive(Debug, Clone)]
pub struct PublishedConfigBuilder {
    draft: Draft,
    /// The first committee content that cannot be published, reported by `build`.
    invalid: Option<(String, CommitteeError)>,
}

impl PublishedConfigBuilder {
    pub(super) fn new(instance_name: &str) -> Self {
        Self { draft: Draft::new(instance_name), invalid: None }
    }

    /// Starts from a config known by its ids alone.
    ///
    /// # Errors
    /// [`PublishedError::SchemaVersion`] or [`PublishedError::Seed`] when it follows other identity rules.
    pub fn from_config(config: &CoalitionConfig<'_>) -> Result<Self, PublishedError> {
        check_rules(config.schema_version, config.coalition_seed)?;
        Ok(Self { draft: from_config(config), invalid: None })
    }

    /// Starts from a published config, to make the next one of it: what is published with its content gets new ids, and keeps
    /// its pins.
    #[must_use]
    pub fn from_published(config: &PublishedConfig) -> Self {
        let mut draft = Draft::from_published(config);
        for member in draft.organisms.iter_mut().chain(draft.modules.iter_mut().flatten()) {
            if member.body.is_some() {
                member.stable_id = None;
                member.pin = if member.pin == Pin::Unpinned { Pin::Unpinned } else { Pin::Computed };
            }
        }
        Self { draft, invalid: None }
    }

    /// Renames the coalition.
    #[must_use]
    pub fn instance_name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.draft.instance_name);
        self
    }

    /// Replaces the content of a module that is there with it; its name and access rules stay.
    #[must_use]
    pub fn module_content(mut self, kind: ModuleKind, committee: &CommitteeContent) -> Self {
        self.check(kind.str_name(), committee);
        let body = self.draft.modules[kind.slot()].as_mut().and_then(|module| module.body.as_mut());
        if let Some(body) = body {
            body.content = committee.to_bytes();
        }
        self
    }

    /// References a lattice.
    #[must_use]
    pub fn lattice(mut self, stable_id: UniqueId) -> Self {
        self.draft.lattices.push(stable_id);
        self
    }

    /// Composes an organism run by a committee, admission open, pinned to its content.
    #[must_use]
    pub fn organism(mut self, role: &str, name: &str, committee: &CommitteeContent) -> Self {
        self.check(role, committee);
        self.push_organism(role, body(name, committee.to_bytes(), Vec::new()))
    }

    /// Composes an organism given by its whole config, pinned to its content.
    #[must_use]
    pub fn organism_config(self, role: &str, config: &OrganismConfig<'_>) -> Self {
        let mut body = body(config.name, config.content.preimage().to_vec(), config.acl.rules().to_vec());
        body.lattices = config.lattices.iter().copied().map(PublishedLattice::from).collect();
        body.organisms = config.organisms.iter().copied().map(PublishedRef::from).collect();
        self.push_organism(role, body)
    }

    /// References an organism by id only.
    #[must_use]
    pub fn organism_ref(mut self, reference: OrganismRef<'_>) -> Self {
        self.draft.organisms.push(bare(reference));
        self
    }

    /// Ships a module run by a committee, admission open.
    #[must_use]
    pub fn module(mut self, kind: ModuleKind, name: &str, committee: &CommitteeContent) -> Self {
        self.check(kind.str_name(), committee);
        self.set_module(kind, body(name, committee.to_bytes(), Vec::new()))
    }

    /// Ships a module given by its whole config.
    #[must_use]
    pub fn module_config(self, kind: ModuleKind, config: &ModuleConfig<'_>) -> Self {
        let content = config.content.preimage().to_vec();
        self.set_module(kind, body(config.name, content, config.acl.rules().to_vec()))
    }

    /// Ships a module known by id only.
    #[must_use]
    pub fn module_ref(mut self, kind: ModuleKind, stable_id: UniqueId, content_hash: Option<UniqueId>) -> Self {
        self.draft.modules[kind.slot()] = Some(bare(OrganismRef { role: kind.str_name(), stable_id, content_hash }));
        self
    }

    /// Adds a ticket issuer.
    #[must_use]
    pub fn ticket_issuer(mut self, name: &str, acl: Vec<AclRule>) -> Self {
        self.draft.ticket_issuer = Some(PublishedIssuer { name: name.to_owned(), acl });
        self
    }

    /// States when the operator undertakes to republish.
    #[must_use]
    pub fn retirement_policy(mut self, policy: RetirementPolicy) -> Self {
        self.draft.retirement_policy = policy;
        self
    }

    /// The root as it stands, so that a module's content can name another module's id.
    ///
    /// # Errors
    /// [`PublishedError`] when what was added so far is already wrong.
    pub fn root(&self) -> Result<UniqueId, PublishedError> {
        self.report_invalid()?;
        self.draft.root()
    }

    /// Computes every id and checks every limit.
    ///
    /// # Errors
    /// [`PublishedError`] naming what is wrong.
    pub fn build(self) -> Result<PublishedConfig, PublishedError> {
        self.report_invalid()?;
        self.draft.resolve()
    }

    fn push_organism(mut self, role: &str, body: DraftBody) -> Self {
        self.draft.organisms.push(computed(role, body));
        self
    }

    fn set_module(mut self, kind: ModuleKind, body: DraftBody) -> Self {
        self.draft.modules[kind.slot()] = Some(computed(kind.str_name(), body));
        self
    }

    fn check(&mut self, role: &str, committee: &CommitteeContent) {
        if let (None, Err(error)) = (&self.invalid, committee.validate()) {
            self.invalid = Some((role.to_owned(), error));
        }
    }

    fn report_invalid(&self) -> Result<(), PublishedError> {
        match self.invalid.clone() {
            Some((role, source)) => Err(PublishedError::Committee { role, source }),
            None => Ok(()),
        }
    }
}

/// Refuses configs that follow other identity rules than this crate's.
pub(super) fn check_rules(schema_version: u8, seed: UniqueId) -> Result<(), PublishedError> {
    if schema_version != SCHEMA_VERSION_U8 {
        return Err(PublishedError::SchemaVersion(schema_version));
    }
    if seed != COALITION_ROOT_SEED {
        return Err(PublishedError::Seed { found: seed, expected: COALITION_ROOT_SEED });
    }
    Ok(())
}

fn body(name: &str, content: Vec<u8>, acl: Vec<AclRule>) -> DraftBody {
    DraftBody { name: name.to_owned(), content, acl, lattices: Vec::new(), organisms: Vec::new() }
}

fn computed(role: &str, body: DraftBody) -> DraftMember {
    DraftMember { role: role.to_owned(), stable_id: None, pin: Pin::Computed, body: Some(body) }
}
