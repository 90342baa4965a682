//! A published config, looked at the way this software uses it: who runs what, with which parameters.

use coalition::{CommitteeContent, ModuleKind, PublishedConfig, Roster, UniqueId};
use coalition_almanac::AlmanacParams;
use coalition_compute::ComputeParams;
use coalition_shuffle::{CellScope, PublicParams};

use crate::{
    error::{CliError, Context, Result},
    names::{ALMANAC_SERVICE, COMPUTE_SERVICE, UNSEAL_ROLE, UNSEAL_SERVICE},
};

/// The clock of a coalition.
#[derive(Debug, Clone)]
pub struct AlmanacPart {
    /// Its organism.
    pub id: UniqueId,
    /// Who certifies it.
    pub roster: Roster,
    /// Its parameters.
    pub params: AlmanacParams,
    /// The organism it succeeds.
    pub predecessor: Option<UniqueId>,
}

/// The market of a coalition.
#[derive(Debug, Clone)]
pub struct ComputePart {
    /// Its organism.
    pub id: UniqueId,
    /// Who certifies it.
    pub roster: Roster,
    /// Its parameters.
    pub params: ComputeParams,
    /// The organism it succeeds.
    pub predecessor: Option<UniqueId>,
}

/// The unseal committee of a coalition.
#[derive(Debug, Clone)]
pub struct UnsealPart {
    /// Who holds the key shares, in their order.
    pub roster: Roster,
    /// The committee's public parameters.
    pub params: PublicParams,
    /// What its cells are bound to.
    pub scope: CellScope,
}

/// The Almanac of a config.
///
/// # Errors
/// When the coalition ships none this software can run.
pub fn almanac(config: &PublishedConfig) -> Result<AlmanacPart> {
    let (id, content) = module(config, ModuleKind::Almanac, ALMANAC_SERVICE)?;
    let params = AlmanacParams::from_bytes(&content.params).or_input("config_invalid", unusable)?;
    Ok(AlmanacPart { id, roster: content.roster, params, predecessor: content.predecessor })
}

/// The Compute market of a config.
///
/// # Errors
/// When the coalition ships none this software can run.
pub fn compute(config: &PublishedConfig) -> Result<ComputePart> {
    let (id, content) = module(config, ModuleKind::Compute, COMPUTE_SERVICE)?;
    let params = ComputeParams::from_bytes(&content.params).or_input("config_invalid", unusable)?;
    Ok(ComputePart { id, roster: content.roster, params, predecessor: content.predecessor })
}

/// The unseal committee of a config.
///
/// # Errors
/// When the coalition references none this software can run.
pub fn unseal(config: &PublishedConfig) -> Result<UnsealPart> {
    let content = config.organism_committee(UNSEAL_ROLE).or_input("config_invalid", unusable)?;
    check_service(UNSEAL_ROLE, &content, UNSEAL_SERVICE)?;
    let params = PublicParams::from_bytes(&content.params).or_input("config_invalid", unusable)?;
    let scope = CellScope { coalition: config.fingerprint(), compute: compute(config)?.id };
    Ok(UnsealPart { roster: content.roster, params, scope })
}

fn module(config: &PublishedConfig, kind: ModuleKind, service: &str) -> Result<(UniqueId, CommitteeContent)> {
    let content = config.committee(kind).or_input("config_invalid", unusable)?;
    check_service(kind.str_name(), &content, service)?;
    let module = config.module(kind).ok_or_else(|| CliError::input("config_invalid", unusable()))?;
    Ok((module.id, content))
}

fn check_service(part: &str, content: &CommitteeContent, service: &str) -> Result<()> {
    if content.service == service {
        return Ok(());
    }
    let message = format!("{part} is service {:?}, this software knows {service:?}", content.service);
    Err(CliError::input("config_invalid", message))
}

fn unusable() -> String {
    "the coalition's config cannot be used by this software".into()
}
