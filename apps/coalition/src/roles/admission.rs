//! The doors of a member's organisms: what the published config demands of writers, made enforceable with what the member's file
//! brings. A rule that cannot be judged keeps the member from starting; none is skipped.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use coalition::{AclComposition, AclRule, ModuleKind, PublishedConfig, UniqueId};
use coalition_attest::{Directory, Policy};
use coalition_organism::Member;
use coalition_tickets::{Charter, Door, Or, Resources, TicketValidator, sources::Committees};
use serde::{Deserialize, Serialize};

use crate::{
    config_file::{self, relative_to},
    error::{CliError, Context, Result},
    view::ComputePart,
};

/// Longest charter file read, in bytes: hex of the largest charter, and some white space.
const MAX_CHARTER_BYTES: u64 = 4_096;

/// What the digests in the published access rules stand for, and where collateral is looked up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdmissionConfig {
    /// The charter of the coalition's ticket issuer, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub charter: Option<PathBuf>,
    /// Attestation policies that rules name by their fingerprint, as TOML. The market's own is known without it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<PathBuf>,
    /// Directory with collateral, `<fmspc>-<ca>.json`; it counts before what a bearer brings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collateral_dir: Option<PathBuf>,
    /// Alternatives that rules name by their digest: lists of rules of which one has to hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<Vec<AclRule>>,
}

/// What a member needs to make its doors.
pub(super) struct Doors<'a> {
    pub(super) published: &'a PublishedConfig,
    pub(super) compute: &'a ComputePart,
    pub(super) network: UniqueId,
    /// The member's file, and its section.
    pub(super) path: &'a Path,
    pub(super) admission: Option<&'a AdmissionConfig>,
    /// Who sits where now, for rules that admit members of committees.
    pub(super) seats: Arc<Committees>,
}

impl Doors<'_> {
    /// The door of a module; `None` where the config admits everybody.
    ///
    /// # Errors
    /// When a file is unusable, or a rule cannot be judged.
    pub(super) fn of(&self, kind: ModuleKind) -> Result<Option<Arc<Door>>> {
        let module = self.published.module(kind).filter(|module| !module.acl.is_empty());
        let Some(module) = module else { return Ok(None) };
        let validator = TicketValidator::from(AclComposition::new(&module.acl));
        let door = Door::new((self.network, module.id), &validator, self.resources()?, rand::random());
        let name = kind.str_name();
        let door = door.map_err(|error| {
            CliError::input("admission", format!("{name}: its access rules cannot be enforced here"))
                .because(error)
                .hint("the section [admission] of the member's file says what the rules' digests stand for")
        })?;
        tracing::info!(service = name, rules = module.acl.len(), acl = %door.fingerprint(), "writers are admitted by ticket");
        Ok(Some(Arc::new(door)))
    }

    fn resources(&self) -> Result<Resources> {
        let seats = Arc::clone(&self.seats);
        let mut resources = Resources::new().with_config(self.published).with_seats(seats as _);
        if let Some(rule) = &self.compute.params.attestation {
            resources = resources.with_policy(rule.policy.clone());
        }
        let Some(admission) = self.admission else { return Ok(resources) };
        for policy in &admission.policies {
            resources = resources.with_policy(config_file::load::<Policy>(&relative_to(self.path, policy))?);
        }
        if let Some(charter) = &admission.charter {
            let charter = read_charter(&relative_to(self.path, charter))?;
            resources = resources
                .with_issuer(self.published, charter)
                .or_input("admission", || "the issuer's charter does not fit the config".into())?;
        }
        if let Some(directory) = &admission.collateral_dir {
            resources = resources.with_collateral(Arc::new(Directory::new(relative_to(self.path, directory))));
        }
        let alternatives = admission.alternatives.iter().map(|rules| Or::of(rules.iter().copied()));
        Ok(alternatives.fold(resources, Resources::declare))
    }
}

/// Gives the seats of the committees a member carries to whom its logs say has them, from handover to handover. Ends with the
/// member.
pub(super) async fn follow_seats(member: Weak<Member>, seats: Arc<Committees>) {
    let Some(mut standing) = member.upgrade().map(|member| member.standing()) else { return };
    while let Some(rosters) = member.upgrade().map(|member| member.rosters()) {
        rosters.iter().for_each(|(organism, roster)| seats.seat(*organism, roster));
        if standing.changed().await.is_err() {
            return;
        }
    }
}

/// Reads a charter's file.
///
/// # Errors
/// When it cannot be read or holds none.
pub fn read_charter(path: &Path) -> Result<Charter> {
    let unreadable = || format!("cannot read charter {}", path.display());
    let length = std::fs::metadata(path).or_input("charter_unreadable", unreadable)?.len();
    if length > MAX_CHARTER_BYTES {
        let message = format!("{} has {length} bytes, a charter at most {MAX_CHARTER_BYTES}", path.display());
        return Err(CliError::input("charter_unreadable", message));
    }
    let text = std::fs::read_to_string(path).or_input("charter_unreadable", unreadable)?;
    Charter::from_hex(&text).or_input("charter_invalid", || format!("{} holds no charter", path.display()))
}

#[cfg(test)]
mod tests {
    use coalition::{CommitteeContent, ContentParams, ModuleConfig, Roster, RosterMember, UNIVERSE};
    use coalition_compute::ComputeParams;
    use coalition_tickets::{Issuer, Presentation};
    use ed25519_dalek::SigningKey;

    use super::*;
    use crate::view;

    const NOW: u64 = 1_800_000_000;

    fn key(n: u8) -> SigningKey {
        SigningKey::from_bytes(&[n; 32])
    }

    /// Why, from the nearest cause to the deepest.
    fn said(error: &CliError) -> String {
        error.causes().join(": ")
    }

    /// A coalition whose market demands these rules, which may name its own issuer's root.
    fn published(charter: &Charter, rules: impl Fn(UniqueId) -> Vec<AclRule>) -> PublishedConfig {
        let public = |n| key(n).verifying_key().to_bytes();
        let member =
            RosterMember { name: "a".into(), checkpoint_key: public(1), consensus_key: public(2), peer_id: public(3) };
        let committee = CommitteeContent {
            service: crate::names::COMPUTE_SERVICE.into(),
            roster: Roster::new(vec![member]).unwrap(),
            params: ComputeParams::standard(1_000).to_bytes(),
            predecessor: None,
        };
        let builder = PublishedConfig::builder("dev").ticket_issuer("issuer", vec![charter.rule()]);
        let root = coalition::coalition_ticket_issuer_root(builder.root().unwrap());
        let (content, rules) = (committee.to_bytes(), rules(root));
        let market = ModuleConfig::new("compute", ContentParams::new(&content), AclComposition::new(&rules));
        builder.module_config(ModuleKind::Compute, &market).build().unwrap()
    }

    fn door(
        published: &PublishedConfig,
        path: &Path,
        admission: Option<&AdmissionConfig>,
    ) -> Result<Option<Arc<Door>>> {
        let compute = view::compute(published).unwrap();
        let seats = Arc::new(Committees::of_config(published));
        Doors { published, compute: &compute, network: UNIVERSE, path, admission, seats }.of(ModuleKind::Compute)
    }

    #[test]
    fn a_market_that_admits_everybody_has_no_door() {
        let charter = Charter::new(600, vec![key(9).verifying_key().to_bytes()]).unwrap();
        let config = published(&charter, |_| vec![]);
        assert!(door(&config, Path::new("member.toml"), None).unwrap().is_none());
    }

    #[test]
    fn the_door_enforces_what_the_config_publishes_or_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("member.toml");
        let charter = Charter::new(600, vec![key(9).verifying_key().to_bytes()]).unwrap();
        std::fs::write(dir.path().join("issuer.charter"), charter.to_hex() + "\n").unwrap();
        let either = |root| vec![AclRule::Issuer(root), AclRule::Issuer(UniqueId::from_bytes([8; 32]))];
        let config =
            published(&charter, |root| TicketValidator::new().require_ticket(AclRule::Issuer(root)).acl_rules());
        let unknown = door(&config, &path, None).unwrap_err();
        assert!(said(&unknown).contains("charter is not known"), "{unknown:?}");

        let text = "charter = \"issuer.charter\"";
        let admission: AdmissionConfig = toml::from_str(text).unwrap();
        let opened = door(&config, &path, Some(&admission)).unwrap().unwrap();
        assert_eq!(
            opened.fingerprint(),
            AclComposition::new(&config.module(ModuleKind::Compute).unwrap().acl).fingerprint()
        );
        let issuer = Issuer::of(&config, &charter, key(9)).unwrap();
        let bearer = opened.bearer([3; 32]);
        let shown = Presentation::empty().with_issued(issuer.issue(&bearer, NOW, 60).unwrap()).to_bytes().unwrap();
        assert!(!opened.is_admitted([3; 32], NOW));
        assert_eq!(opened.present([3; 32], &shown, NOW), Ok(NOW + 60));
        assert!(opened.is_admitted([3; 32], NOW) && !opened.is_admitted([4; 32], NOW));

        // Alternatives are published as a digest; a file that declares others does not fit.
        let config =
            published(&charter, |root| TicketValidator::new().require_ticket(Or::of(either(root))).acl_rules());
        let root = config.ticket_issuer_root().unwrap();
        let refused = door(&config, &path, Some(&admission)).unwrap_err();
        assert!(said(&refused).contains("nothing here has that digest"), "{refused:?}");
        let declared = AdmissionConfig { alternatives: vec![either(root)], ..admission };
        let refused = door(&config, &path, Some(&declared)).unwrap_err();
        assert!(said(&refused).contains("charter is not known"), "the other issuer is nobody's: {refused:?}");
        let written = toml::to_string(&declared).unwrap();
        assert_eq!(toml::from_str::<AdmissionConfig>(&written).unwrap(), declared);
    }

    #[test]
    fn a_charter_of_another_coalition_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let charter = |n| Charter::new(600, vec![key(n).verifying_key().to_bytes()]).unwrap();
        std::fs::write(dir.path().join("other"), charter(7).to_hex()).unwrap();
        let config = published(&charter(9), |root| vec![AclRule::Issuer(root)]);
        let admission = AdmissionConfig { charter: Some("other".into()), ..AdmissionConfig::default() };
        let refused = door(&config, &dir.path().join("member.toml"), Some(&admission)).unwrap_err();
        assert!(said(&refused).contains("get the charter of this config"), "{refused:?}");
    }
}
