//! A config whose ids are still claims, and the one place where claims are checked and missing ids computed.

use std::collections::BTreeSet;

use super::{
    MAX_ACL_RULES, MAX_CONTENT_BYTES, MAX_MEMBERS, Member, PublishedConfig, PublishedError, PublishedIssuer,
    PublishedLattice, PublishedOrganism, PublishedRef,
};
use crate::coalition::CoalitionConfig;
use crate::identity::UniqueId;
use crate::modules::{ModuleConfig, ModuleKind};
use crate::organism::{ContentParams, OrganismConfig, OrganismRef};
use crate::retirement::RetirementPolicy;
use crate::tickets::{AclComposition, AclRule};

/// Highest score there is, in parts per million.
const MAX_FLOOR_PPM: u32 = 1_000_000;

/// What a config says about a reference's content hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pin {
    /// To be computed and pinned.
    Computed,
    /// Pinned to this value.
    To(UniqueId),
    /// Not pinned.
    Unpinned,
}

impl From<Option<UniqueId>> for Pin {
    fn from(hash: Option<UniqueId>) -> Self {
        hash.map_or(Self::Unpinned, Self::To)
    }
}

/// The preimages behind a reference.
#[derive(Debug, Clone)]
pub(super) struct DraftBody {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
    pub(super) acl: Vec<AclRule>,
    pub(super) lattices: Vec<PublishedLattice>,
    pub(super) organisms: Vec<PublishedRef>,
}

/// A reference as claimed, with or without its preimages.
#[derive(Debug, Clone)]
pub(super) struct DraftMember {
    pub(super) role: String,
    pub(super) stable_id: Option<UniqueId>,
    pub(super) pin: Pin,
    pub(super) body: Option<DraftBody>,
}

/// A whole config as claimed.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    pub(super) instance_name: String,
    pub(super) lattices: Vec<UniqueId>,
    pub(super) organisms: Vec<DraftMember>,
    /// By slot. The role of a module is its kind's name.
    pub(super) modules: [Option<DraftMember>; 5],
    pub(super) ticket_issuer: Option<PublishedIssuer>,
    pub(super) retirement_policy: RetirementPolicy,
}

impl Draft {
    pub(super) fn new(instance_name: &str) -> Self {
        Self {
            instance_name: instance_name.to_owned(),
            lattices: Vec::new(),
            organisms: Vec::new(),
            modules: [const { None }; 5],
            ticket_issuer: None,
            retirement_policy: RetirementPolicy::CONSERVATIVE,
        }
    }

    /// The claims a verified config makes, every id given.
    pub(super) fn from_published(config: &PublishedConfig) -> Self {
        Self {
            instance_name: config.instance_name.clone(),
            lattices: config.lattices.clone(),
            organisms: config.organisms.iter().map(DraftMember::from_member).collect(),
            modules: config.modules.each_ref().map(|slot| slot.as_ref().map(DraftMember::from_member)),
            ticket_issuer: config.ticket_issuer.clone(),
            retirement_policy: config.retirement_policy,
        }
    }

    /// Checks every limit and every claim, and computes what was left open.
    pub(super) fn resolve(self) -> Result<PublishedConfig, PublishedError> {
        check_name("the coalition's name", &self.instance_name)?;
        check_distinct("the list of lattices", self.lattices.iter().copied())?;
        if let Some(issuer) = &self.ticket_issuer {
            check_name("the ticket issuer's name", &issuer.name)?;
            check_acl("the ticket issuer", &issuer.acl)?;
        }
        let organisms = self.organisms.into_iter().map(DraftMember::resolve_organism).collect::<Result<Vec<_>, _>>()?;
        check_distinct("the list of organisms", organisms.iter().map(|m| m.reference.stable_id))?;

        let mut config = PublishedConfig {
            instance_name: self.instance_name,
            lattices: self.lattices,
            organisms,
            modules: [const { None }; 5],
            ticket_issuer: self.ticket_issuer,
            retirement_policy: self.retirement_policy,
            root: crate::ZERO_ID,
            fingerprint: crate::ZERO_ID,
        };
        config.root = config.view().config().root();
        for (kind, slot) in ModuleKind::ALL.into_iter().zip(self.modules) {
            config.modules[kind.slot()] = match slot {
                Some(module) => Some(module.resolve_module(kind, config.root)?),
                None => None,
            };
        }
        config.fingerprint = config.view().config().stable_id();
        Ok(config)
    }

    /// The root the config would have if its organisms, lattices and issuer stayed as they are.
    pub(super) fn root(&self) -> Result<UniqueId, PublishedError> {
        let without_modules = Self { modules: [const { None }; 5], ..self.clone() };
        Ok(without_modules.resolve()?.root)
    }
}

impl DraftMember {
    fn from_member(member: &Member) -> Self {
        Self {
            role: member.reference.role.clone(),
            stable_id: Some(member.reference.stable_id),
            pin: member.reference.content_hash.into(),
            body: member.published.as_ref().map(|published| DraftBody {
                name: published.name.clone(),
                content: published.content.clone(),
                acl: published.acl.clone(),
                lattices: published.lattices.clone(),
                organisms: published.organisms.clone(),
            }),
        }
    }

    fn resolve_organism(self) -> Result<Member, PublishedError> {
        let what = format!("organism '{}'", shown(&self.role));
        check_name("an organism's role", &self.role)?;
        let derived = match &self.body {
            Some(body) => Some(body.check(&what)?.organism_ids()),
            None => None,
        };
        self.settle(&what, derived)
    }

    fn resolve_module(self, kind: ModuleKind, root: UniqueId) -> Result<Member, PublishedError> {
        let what = format!("the {kind} module");
        if self.role != kind.str_name() {
            return Err(PublishedError::Name { what: format!("the role of {what}"), found: shown(&self.role) });
        }
        let derived = match &self.body {
            Some(body) => Some(body.check(&what)?.module_ids(&what, kind, root)?),
            None => None,
        };
        self.settle(&what, derived)
    }

    /// Holds the claims against the derived ids: `(stable id, content hash)`.
    fn settle(self, what: &str, derived: Option<(UniqueId, UniqueId)>) -> Result<Member, PublishedError> {
        let what = || what.to_owned();
        let stable_id = match (self.stable_id, derived) {
            (Some(published), Some((computed, _))) if published != computed => {
                return Err(PublishedError::StableId { what: what(), published, computed });
            }
            (Some(id), _) | (None, Some((id, _))) => id,
            (None, None) => return Err(PublishedError::NoStableId { what: what() }),
        };
        let content_hash = match (self.pin, derived) {
            (Pin::To(published), Some((_, computed))) if published != computed => {
                return Err(PublishedError::ContentHash { what: what(), published, computed });
            }
            (Pin::To(hash), _) | (Pin::Computed, Some((_, hash))) => Some(hash),
            (Pin::Computed, None) | (Pin::Unpinned, _) => None,
        };
        let published = self.body.zip(derived).map(|(body, (id, content_hash))| PublishedOrganism {
            id,
            content_hash,
            name: body.name,
            content: body.content,
            acl: body.acl,
            lattices: body.lattices,
            organisms: body.organisms,
        });
        let reference = PublishedRef { role: self.role, stable_id, content_hash };
        Ok(Member { reference, published })
    }
}

impl DraftBody {
    fn check(&self, what: &str) -> Result<&Self, PublishedError> {
        check_name(&format!("the name of {what}"), &self.name)?;
        check_acl(what, &self.acl)?;
        check_count(&format!("the content of {what}"), "bytes", self.content.len(), MAX_CONTENT_BYTES)?;
        check_distinct(&format!("the lattices of {what}"), self.lattices.iter().map(|l| l.stable_id))?;
        check_distinct(&format!("the organisms of {what}"), self.organisms.iter().map(|o| o.stable_id))?;
        for name in self.lattices.iter().map(|l| &l.instance_name) {
            check_name(&format!("a lattice of {what}"), name)?;
        }
        for role in self.organisms.iter().map(|o| &o.role) {
            check_name(&format!("the role of an organism of {what}"), role)?;
        }
        Ok(self)
    }

    fn organism_ids(&self) -> (UniqueId, UniqueId) {
        let lattices: Vec<_> = self.lattices.iter().map(PublishedLattice::as_ref).collect();
        let organisms: Vec<_> = self.organisms.iter().map(PublishedRef::as_ref).collect();
        let config = OrganismConfig {
            name: &self.name,
            lattices: &lattices,
            organisms: &organisms,
            content: ContentParams::new(&self.content),
            acl: AclComposition::new(&self.acl),
        };
        (config.organism_id(), config.content_hash())
    }

    fn module_ids(&self, what: &str, kind: ModuleKind, root: UniqueId) -> Result<(UniqueId, UniqueId), PublishedError> {
        // The type has the fields because organisms need them; a module's identity has no place for them.
        check_count(what, "lattices", self.lattices.len(), 0)?;
        check_count(what, "organisms", self.organisms.len(), 0)?;
        let content = ContentParams::new(&self.content);
        let module = ModuleConfig::new(&self.name, content, AclComposition::new(&self.acl));
        Ok((module.module_id(kind, root), module.content_hash()))
    }
}

fn check_name(what: &str, name: &str) -> Result<(), PublishedError> {
    if (1..=255).contains(&name.len()) && !name.chars().any(char::is_control) {
        return Ok(());
    }
    Err(PublishedError::Name { what: what.to_owned(), found: shown(name) })
}

fn check_acl(what: &str, acl: &[AclRule]) -> Result<(), PublishedError> {
    check_count(what, "access rules", acl.len(), MAX_ACL_RULES)?;
    for rule in acl {
        match *rule {
            AclRule::Reputation { floor_ppm: found, .. } if found > MAX_FLOOR_PPM => {
                return Err(PublishedError::Floor { what: what.to_owned(), found });
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_distinct(what: &str, ids: impl ExactSizeIterator<Item = UniqueId>) -> Result<(), PublishedError> {
    check_count(what, "entries", ids.len(), MAX_MEMBERS)?;
    let mut seen = BTreeSet::new();
    for id in ids {
        if !seen.insert(id) {
            return Err(PublishedError::Duplicate { what: what.to_owned(), id });
        }
    }
    Ok(())
}

fn check_count(what: &str, unit: &'static str, found: usize, max: usize) -> Result<(), PublishedError> {
    if found <= max {
        return Ok(());
    }
    Err(PublishedError::TooMany { what: what.to_owned(), unit, found, max })
}

/// A name as an error repeats it: cut, control characters replaced.
fn shown(name: &str) -> String {
    name.chars().take(60).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// An unpinned or pinned reference without content.
pub(super) fn bare(reference: OrganismRef<'_>) -> DraftMember {
    DraftMember {
        role: reference.role.to_owned(),
        stable_id: Some(reference.stable_id),
        pin: reference.content_hash.into(),
        body: None,
    }
}

/// The draft of a config known by its ids alone.
pub(super) fn from_config(config: &CoalitionConfig<'_>) -> Draft {
    Draft {
        instance_name: config.instance_name.to_owned(),
        lattices: config.lattices.to_vec(),
        organisms: config.organisms.iter().copied().map(bare).collect(),
        modules: ModuleKind::ALL.map(|kind| config.module(kind).copied().map(bare)),
        ticket_issuer: config
            .ticket_issuer
            .map(|issuer| PublishedIssuer { name: issuer.name.to_owned(), acl: issuer.acl.rules().to_vec() }),
        retirement_policy: config.retirement_policy,
    }
}
