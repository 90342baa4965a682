//! Every id that derives from a published config, with a label each: what an operator prints and an auditor compares.

use crate::committee::CommitteeContent;
use crate::identity::UniqueId;
use crate::modules::ModuleKind;
use crate::published::{PublishedConfig, PublishedOrganism, PublishedRef};
use crate::types::MemberId;

/// One derived id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DerivedId {
    /// What it identifies, for example `module compute` or `organism oracle / content`.
    pub label: String,
    /// The id.
    pub id: UniqueId,
    /// The member id that belongs to it, where it is a member's stable id.
    pub member: Option<MemberId>,
}

/// All ids of a config: coalition, root, issuer, lattices, modules, organisms, and what derives from those.
#[must_use]
pub fn derived_ids(config: &PublishedConfig) -> Vec<DerivedId> {
    let mut ids = vec![plain("coalition".to_owned(), config.fingerprint()), plain("root".to_owned(), config.root())];
    ids.extend(config.ticket_issuer_root().map(|root| plain("tickets root".to_owned(), root)));
    for (i, lattice) in config.lattices().iter().enumerate() {
        ids.push(member(format!("lattice {i}"), *lattice));
    }
    for kind in ModuleKind::ALL {
        if let Some(reference) = config.module_ref(kind) {
            push_member(&mut ids, &format!("module {kind}"), reference, config.module(kind));
        }
    }
    for reference in config.organism_refs() {
        let published = config.by_id(reference.stable_id);
        push_member(&mut ids, &format!("organism {}", reference.role), reference, published);
    }
    ids
}

fn push_member(ids: &mut Vec<DerivedId>, label: &str, reference: &PublishedRef, published: Option<&PublishedOrganism>) {
    ids.push(member(label.to_owned(), reference.stable_id));
    let part = |name: &str, id| plain(format!("{label} / {name}"), id);
    if let Some(pin) = reference.content_hash {
        ids.push(part("content", pin));
    }
    if let Some(published) = published {
        ids.push(part("committee", published.committee_id()));
        if let Ok(content) = CommitteeContent::from_bytes(&published.content) {
            ids.push(part("roster", content.roster.fingerprint()));
        }
    }
}

const fn plain(label: String, id: UniqueId) -> DerivedId {
    DerivedId { label, id, member: None }
}

fn member(label: String, id: UniqueId) -> DerivedId {
    DerivedId { member: Some(MemberId::from_stable_id(id)), ..plain(label, id) }
}
