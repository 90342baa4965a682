//! From manifest and keys to the published config and the config of every role. Pure: the same input, the same text.

use std::{collections::BTreeMap, path::PathBuf};

use coalition::{
    AclComposition, CommitteeContent, ContentParams, ModuleKind, Mrtd, OrganismConfig, PublishedConfig, PublishedError,
    Roster, RosterMember, UNIVERSE, committee::CommitteeError,
};
use coalition_almanac::AlmanacParams;
use coalition_attest::{Policy, PolicyError, TrustRoot};
use coalition_compute::{AttestationRule, ComputeParams};
use coalition_shuffle::PublicParams;
use coalition_universe::{NodeKey, PeerAddress};

use super::{
    keys::{MemberSecrets, Secrets, key_file, share_file},
    manifest::{ALMANAC_CADENCE_MS, Manifest, STORE, loopback, member_name, unseal_name},
};
use crate::{
    names::{ALMANAC_SERVICE, BRIDGE_ROLE, COMPUTE_SERVICE, UNSEAL_ROLE, UNSEAL_SERVICE},
    roles::config::{
        HostConfig, MemberConfig, NetworkConfig, RelayConfig, StoreConfig, UniverseConfig, UnsealConfig,
        default_retain_batches,
    },
};

/// First bytes of the compute bridge's published content: a magic and the version of the layout.
const BRIDGE_CONTENT_MAGIC: &[u8; 5] = b"CBRG\x01";

/// Why a development coalition cannot be described.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The roster is malformed.
    #[error("the committee's roster")]
    Roster(#[from] CommitteeError),
    /// The config is malformed.
    #[error("the coalition's config")]
    Config(#[from] PublishedError),
    /// The attestation policy is none.
    #[error("the attestation policy")]
    Policy(#[from] PolicyError),
    /// The clock's parameters are out of range.
    #[error("the Almanac's parameters")]
    Almanac(#[from] coalition_almanac::ParamsError),
    /// A role's config cannot be written as TOML.
    #[error("the config of {role}")]
    Toml {
        /// The role.
        role: String,
        /// The cause.
        #[source]
        source: toml::ser::Error,
    },
}

/// The published config of a development coalition.
///
/// # Errors
/// [`PlanError`] when the manifest's name is not usable.
pub fn published(manifest: &Manifest, secrets: &Secrets, unseal: &PublicParams) -> Result<PublishedConfig, PlanError> {
    let committee = roster(&secrets.members, member_name)?;
    let content = |service: &str, roster: &Roster, params: Vec<u8>| CommitteeContent {
        service: service.to_owned(),
        roster: roster.clone(),
        params,
        predecessor: None,
    };
    let almanac = content(ALMANAC_SERVICE, &committee, AlmanacParams::new(ALMANAC_CADENCE_MS)?.to_bytes());
    let mut market = ComputeParams::standard(ALMANAC_CADENCE_MS);
    if let Some(root) = &secrets.development {
        market = market.with_attestation(development_rule(root.clone())?);
    }
    let compute = content(COMPUTE_SERVICE, &committee, market.to_bytes());
    let unseal = content(UNSEAL_SERVICE, &roster(&secrets.unseal, unseal_name)?, unseal.to_bytes().to_vec());
    let bridge = bridge_content(secrets);
    let bridge = OrganismConfig {
        name: BRIDGE_ROLE,
        lattices: &[],
        organisms: &[],
        content: ContentParams::new(&bridge),
        acl: AclComposition::OPEN,
    };
    let builder = PublishedConfig::builder(&manifest.name)
        .organism(UNSEAL_ROLE, UNSEAL_ROLE, &unseal)
        .organism_config(BRIDGE_ROLE, &bridge)
        .module(ModuleKind::Almanac, "almanac", &almanac)
        .module(ModuleKind::Compute, "compute", &compute);
    Ok(builder.build()?)
}

/// What the bridge's development guest claims as its initial content.
pub(super) const BRIDGE_MRTD: Mrtd = stated(b"DEVELOPMENT BRIDGE: NOTHING MEASURED THIS");
/// What the development guests of workloads claim as theirs.
pub(super) const WORKLOAD_MRTD: Mrtd = stated(b"DEVELOPMENT WORKLOAD: NOTHING MEASURED THIS");
/// How long an attestation counts, in seconds; the bridge renews it at half of that.
const ATTESTATION_AGE_S: u64 = 3_600;

/// What the store of a development coalition takes of the disk at most, and how long it holds, for the home it is made for.
const STORE_MIB: u64 = 20_480;
const STORE_RETAIN_DAYS: u32 = 30;

/// A measurement that says in words that it is none.
const fn stated(words: &[u8]) -> Mrtd {
    let mut bytes = [0; 48];
    bytes.split_at_mut(words.len()).0.copy_from_slice(words);
    Mrtd(bytes)
}

/// Only the development guest of this coalition's bridge may sell.
fn development_rule(root: TrustRoot) -> Result<AttestationRule, PlanError> {
    let policy = Policy::strict(root).require_mrtd(BRIDGE_MRTD).max_quote_age_s(ATTESTATION_AGE_S)?;
    Ok(AttestationRule { required: true, policy })
}

/// Every file that follows from manifest, keys and published config: paths relative to the home, with their text.
///
/// # Errors
/// [`PlanError::Toml`].
pub fn files(
    manifest: &Manifest,
    secrets: &Secrets,
    config: &PublishedConfig,
) -> Result<BTreeMap<PathBuf, String>, PlanError> {
    let plan = Plan { manifest, secrets, config };
    let mut files = BTreeMap::new();
    let mut role = |name: &str, text: String| files.insert(PathBuf::from(format!("roles/{name}.toml")), text);
    role("relay", to_toml("relay", &RelayConfig { listen: loopback(manifest.ports.relay) })?);
    role("host", to_toml("host", &plan.host())?);
    for (i, name) in (0..secrets.members.len()).map(|i| (i, member_name(i))) {
        role(&name, to_toml(&name, &plan.member(i, &name))?);
    }
    for (i, name) in (0..secrets.unseal.len()).map(|i| (i, unseal_name(i))) {
        role(&name, to_toml(&name, &plan.unseal(i, &name))?);
    }
    role(STORE, to_toml(STORE, &plan.store())?);
    role("bridge", super::bridge::boot_toml(&plan));
    files.insert("coalition.hex".into(), config.to_hex() + "\n");
    files.insert("coalition.toml".into(), config.to_toml());
    files.insert("universe.toml".into(), to_toml("universe", &plan.universe())?);
    Ok(files)
}

/// Everything the files are made from.
pub(super) struct Plan<'a> {
    pub(super) manifest: &'a Manifest,
    pub(super) secrets: &'a Secrets,
    pub(super) config: &'a PublishedConfig,
}

impl Plan<'_> {
    /// The universe every coalition lives on. A development coalition is apart by its relay and its peers' addresses.
    fn network_id() -> String {
        UNIVERSE.to_string()
    }

    pub(super) fn relay(&self) -> String {
        format!("http://{}/", loopback(self.manifest.ports.relay))
    }

    fn network(&self, name: &str, port: u16) -> NetworkConfig {
        NetworkConfig {
            coalition: "../coalition.hex".into(),
            network_id: Self::network_id(),
            relay: self.relay(),
            listen: loopback(port),
            node_key: key_path(name, "node"),
        }
    }

    fn host(&self) -> HostConfig {
        HostConfig {
            listen: loopback(self.manifest.ports.host),
            host_key: key_path("host", "ssh"),
            authorized_keys: vec![
                coalition_host::keys::from_seed(self.secrets.bridge_ssh.expose(), "bridge").public_openssh,
            ],
            data_dir: "../data/host".into(),
        }
    }

    fn member(&self, index: usize, name: &str) -> MemberConfig {
        let ports = &self.manifest.ports;
        MemberConfig {
            name: name.to_owned(),
            data_dir: format!("../data/{name}").into(),
            consensus_key: key_path(name, "consensus"),
            checkpoint_key: key_path(name, "checkpoint"),
            order_listen: loopback(ports.member_orders[index]),
            order_addresses: ports.member_orders.iter().copied().map(loopback).collect(),
            order_peers: BTreeMap::new(),
            joins: false,
            heartbeat_ms: 1_000,
            retain_entries: None,
            retain_batches: default_retain_batches(),
            peers: self.member_peers(),
            network: self.network(name, ports.member_nodes[index]),
            predecessor: None,
            admission: None,
        }
    }

    fn unseal(&self, index: usize, name: &str) -> UnsealConfig {
        UnsealConfig {
            name: name.to_owned(),
            share: PathBuf::from("../keys").join(share_file(name)),
            data_dir: Some(format!("../data/{name}").into()),
            peers: self.member_peers(),
            network: self.network(name, self.manifest.ports.unseal_nodes[index]),
        }
    }

    /// A store for this home alone.
    fn store(&self) -> StoreConfig {
        StoreConfig {
            data_dir: format!("../data/{STORE}").into(),
            capacity_mib: STORE_MIB,
            retain_days: STORE_RETAIN_DAYS,
            anyone_mib: 0,
            anyone_total_mib: 0,
            pushers: BTreeMap::from([(self.secrets.pusher_node.peer_id(), STORE_MIB)]),
            peers: self.member_peers(),
            network: self.network(STORE, self.manifest.ports.store),
        }
    }

    fn store_address(&self) -> PeerAddress {
        PeerAddress {
            peer: self.secrets.store_node.peer_id(),
            direct: vec![loopback(self.manifest.ports.store)],
            relay: Some(self.relay()),
        }
    }

    fn universe(&self) -> UniverseConfig {
        let mut peers = self.member_peers();
        peers.extend(self.unseal_peers());
        UniverseConfig {
            coalition: "coalition.hex".into(),
            fingerprint: self.config.fingerprint().to_string(),
            network_id: Self::network_id(),
            relay: self.relay(),
            peers,
            stores: BTreeMap::from([(STORE.to_owned(), self.store_address())]),
        }
    }

    pub(super) fn member_peers(&self) -> BTreeMap<String, PeerAddress> {
        self.peers(&self.secrets.members, &self.manifest.ports.member_nodes, member_name)
    }

    pub(super) fn unseal_peers(&self) -> BTreeMap<String, PeerAddress> {
        self.peers(&self.secrets.unseal, &self.manifest.ports.unseal_nodes, unseal_name)
    }

    fn peers(
        &self,
        members: &[MemberSecrets],
        ports: &[u16],
        name: fn(usize) -> String,
    ) -> BTreeMap<String, PeerAddress> {
        let address = |(member, port): (&MemberSecrets, &u16)| PeerAddress {
            peer: member.node.peer_id(),
            direct: vec![loopback(*port)],
            relay: Some(self.relay()),
        };
        members.iter().zip(ports).map(address).enumerate().map(|(i, address)| (name(i), address)).collect()
    }
}

/// Path of a key file, from a role's config.
pub(super) fn key_path(owner: &str, purpose: &str) -> PathBuf {
    PathBuf::from("../keys").join(key_file(owner, purpose))
}

fn roster(members: &[MemberSecrets], name: fn(usize) -> String) -> Result<Roster, CommitteeError> {
    let public = |key: &NodeKey| *key.peer_id().as_bytes();
    let member = |(i, secrets): (usize, &MemberSecrets)| RosterMember {
        name: name(i),
        checkpoint_key: public(&secrets.checkpoint),
        consensus_key: public(&secrets.consensus),
        peer_id: public(&secrets.node),
    };
    Roster::new(members.iter().enumerate().map(member).collect())
}

/// What the bridge publishes about itself: `CBRG`, `0x01`, and its public key, which is peer id and signing key.
fn bridge_content(secrets: &Secrets) -> Vec<u8> {
    let mut content = BRIDGE_CONTENT_MAGIC.to_vec();
    content.extend(secrets.bridge_node.peer_id().as_bytes());
    content
}

fn to_toml<T: serde::Serialize>(role: &str, config: &T) -> Result<String, PlanError> {
    let text = toml::to_string(config).map_err(|source| PlanError::Toml { role: role.to_owned(), source })?;
    Ok(format!("# Made by `coalition up`. Paths are relative to this file.\n\n{text}"))
}
