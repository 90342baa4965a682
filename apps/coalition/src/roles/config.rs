//! The configs of roles that run as processes of their own. Unknown keys are refused; every path is relative to the file.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use coalition::{PublishedConfig, Roster, UniqueId};
use coalition_organism::BatchKeeping;
use coalition_universe::{NodeError, NodeKey, PeerAddress, PeerId};
use serde::{Deserialize, Serialize};

use super::admission::AdmissionConfig;
use crate::{
    config_file::{self, relative_to},
    error::{CliError, Context, Kind, Result},
};

/// Longest time a role waits for its relay, in seconds.
pub const RELAY_WAIT_S: u64 = 20;

/// `coalition run relay`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayConfig {
    /// TCP address to listen on.
    pub listen: SocketAddr,
}

/// `coalition run host`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostConfig {
    /// TCP address the SSH server listens on.
    pub listen: SocketAddr,
    /// File with the SSH host key: 64 hex digits, mode 600.
    pub host_key: PathBuf,
    /// Keys that may log in, each as in `authorized_keys`, without options.
    pub authorized_keys: Vec<String>,
    /// Directory uploads and grants live below.
    pub data_dir: PathBuf,
}

/// What every role with a node needs to be on the universe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// The published config: a hex or TOML file.
    pub coalition: PathBuf,
    /// The network to join, 64 hex digits. Peers of another one cannot connect.
    pub network_id: String,
    /// The relay's URL.
    pub relay: String,
    /// UDP address the node binds.
    pub listen: SocketAddr,
    /// File with the node's key: 64 hex digits, mode 600.
    pub node_key: PathBuf,
}

/// `coalition run member`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberConfig {
    /// This member's name in the roster.
    pub name: String,
    /// Directory of everything durable; for this member alone.
    pub data_dir: PathBuf,
    /// File with the key that votes in the ordering engine.
    pub consensus_key: PathBuf,
    /// File with the key that cosigns checkpoints.
    pub checkpoint_key: PathBuf,
    /// TCP address the ordering engine listens on.
    pub order_listen: SocketAddr,
    /// The ordering engines of the members in the published config, in roster order.
    pub order_addresses: Vec<SocketAddr>,
    /// The ordering engines of members that joined by a handover, by name; for a name of the config, instead of its address
    /// above. Read again at the beginning of every epoch.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub order_peers: BTreeMap<String, SocketAddr>,
    /// Whether this member may wait for a handover that names its keys.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub joins: bool,
    /// Longest time between batches of an idle committee, in milliseconds.
    #[serde(default = "default_heartbeat_ms")]
    pub heartbeat_ms: u64,
    /// How many of the newest entries of each log are kept at least; older ones are dropped once two certified states cover
    /// them. Without it all are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain_entries: Option<u64>,
    /// How many of the newest ordered batches are kept at least, for members that were away for a while and replay them; who was
    /// away longer reads the logs. Older ones are dropped once every log has a certified state behind them, which is every 8,192
    /// batches.
    #[serde(default = "default_retain_batches", skip_serializing_if = "is_default_retain_batches")]
    pub retain_batches: u64,
    /// Where the members' nodes can be reached, by name. Without it this member reports no clock readings, and begins no log.
    #[serde(default)]
    pub peers: BTreeMap<String, PeerAddress>,
    /// The universe.
    pub network: NetworkConfig,
    /// The coalition whose services these succeed, if the published config says so: the logs begin with the heads of those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predecessor: Option<PredecessorConfig>,
    /// What the access rules of the published config stand for, where it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admission: Option<AdmissionConfig>,
}

/// Where to read the heads that the logs begin with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PredecessorConfig {
    /// The predecessor's published config: a hex or TOML file.
    pub coalition: PathBuf,
    /// Where its members can be reached, by name.
    pub peers: BTreeMap<String, PeerAddress>,
}

pub(crate) fn default_retain_batches() -> u64 {
    BatchKeeping::default().retain
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_default_retain_batches(batches: &u64) -> bool {
    *batches == default_retain_batches()
}

impl MemberConfig {
    /// What the member keeps of ordered batches.
    pub(super) fn batches(&self) -> BatchKeeping {
        BatchKeeping { retain: self.retain_batches, ..BatchKeeping::default() }
    }
}

const fn default_heartbeat_ms() -> u64 {
    1_000
}

/// `coalition run unseal`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnsealConfig {
    /// This member's name in the unseal roster.
    pub name: String,
    /// File with this member's key share, mode 600.
    pub share: PathBuf,
    /// Directory of the cells it accepted; for this member alone. Without it they are kept in memory only, and a restart
    /// forgets them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// Where the committee that certifies grants can be reached, by member name.
    pub peers: BTreeMap<String, PeerAddress>,
    /// The universe.
    pub network: NetworkConfig,
}

/// `coalition run store`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// Directory of the content; for this store alone.
    pub data_dir: PathBuf,
    /// Most MiB on the disk.
    pub capacity_mib: u64,
    /// How long a push holds, in days. Afterwards content goes when room is needed, the least recently used first.
    #[serde(default = "default_retain_days")]
    pub retain_days: u32,
    /// MiB that any peer may hold that is not listed below; 0 lets only listed ones push.
    #[serde(default)]
    pub anyone_mib: u64,
    /// MiB that all of those may hold together.
    #[serde(default)]
    pub anyone_total_mib: u64,
    /// Who may push, by peer id, and how many MiB each may hold. `coalition image peer` prints the id of a home.
    #[serde(default)]
    pub pushers: BTreeMap<PeerId, u64>,
    /// Peers to be found by, by name; may be empty.
    #[serde(default)]
    pub peers: BTreeMap<String, PeerAddress>,
    /// The universe.
    pub network: NetworkConfig,
}

const fn default_retain_days() -> u32 {
    30
}

/// How clients reach a coalition: `universe.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UniverseConfig {
    /// The published config: a hex or TOML file.
    pub coalition: PathBuf,
    /// The fingerprint it must have.
    pub fingerprint: String,
    /// The network to join, 64 hex digits.
    pub network_id: String,
    /// The relay's URL.
    pub relay: String,
    /// Where committee members can be reached, by name.
    pub peers: BTreeMap<String, PeerAddress>,
    /// Where content stores can be reached, by name. The first is where images are pushed to unless another is named.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stores: BTreeMap<String, PeerAddress>,
}

impl UniverseConfig {
    /// Reads the file and the published config it names, and compares the fingerprint.
    ///
    /// # Errors
    /// When either is missing or malformed, or the fingerprint differs.
    pub fn load(path: &Path) -> Result<(Self, PublishedConfig)> {
        let universe: Self = config_file::load(path)?;
        let config = read_published(&relative_to(path, &universe.coalition))?;
        let expected = parse_id("fingerprint", path, &universe.fingerprint)?;
        let checked = config.expect_fingerprint(expected);
        checked.or_input("wrong_fingerprint", || format!("{} names another coalition", path.display()))?;
        Ok((universe, config))
    }

    /// The network's id.
    ///
    /// # Errors
    /// When it is not 64 hex digits.
    pub fn network_id(&self, path: &Path) -> Result<UniqueId> {
        parse_id("network_id", path, &self.network_id)
    }
}

impl NetworkConfig {
    /// The published config this file names.
    ///
    /// # Errors
    /// When it is missing or malformed.
    pub fn published(&self, path: &Path) -> Result<PublishedConfig> {
        read_published(&relative_to(path, &self.coalition))
    }

    /// How to start the node.
    ///
    /// # Errors
    /// When the key file is unusable or an id malformed.
    pub fn node(&self, path: &Path, bootstrap: Vec<PeerAddress>) -> Result<coalition_universe::NodeConfig> {
        Ok(coalition_universe::NodeConfig {
            network_id: parse_id("network_id", path, &self.network_id)?,
            key: load_key(&relative_to(path, &self.node_key))?,
            relay: self.relay.clone(),
            bind: Some(self.listen),
            bootstrap,
            public: true,
            start_timeout: std::time::Duration::from_secs(RELAY_WAIT_S),
        })
    }
}

/// Reads a published config in either form, by what the text looks like.
///
/// # Errors
/// When the file cannot be read or is neither form of a valid config.
pub fn read_published(path: &Path) -> Result<PublishedConfig> {
    let shown = path.display();
    let text =
        fs::read_to_string(path).or_input("config_unreadable", || format!("cannot read coalition config {shown}"))?;
    parse_published(&text).or_input("config_invalid", || format!("{shown} is no valid coalition config"))
}

/// Parses a published config in either form.
///
/// # Errors
/// As the parser of the form it looks like.
pub fn parse_published(text: &str) -> std::result::Result<PublishedConfig, coalition::PublishedError> {
    let hex = text.trim();
    if !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        PublishedConfig::from_hex(hex)
    } else {
        PublishedConfig::from_toml(text)
    }
}

/// Reads a key file, refusing one that others can read.
///
/// # Errors
/// As [`NodeKey::load`].
pub fn load_key(path: &Path) -> Result<NodeKey> {
    NodeKey::load(path).map_err(|error| CliError::input("key_unusable", "a key file cannot be used").because(error))
}

/// Parses an id out of a config.
///
/// # Errors
/// When it is not 64 hex digits.
pub fn parse_id(key: &str, path: &Path, text: &str) -> Result<UniqueId> {
    coalition::parse_id(text).or_input("config_invalid", || format!("config {}: `{key}` is no id", path.display()))
}

/// Why a node did not start, as a person reads it.
#[must_use]
pub fn node_error(error: NodeError) -> CliError {
    match error {
        NodeError::RelayTimeout { .. } => {
            CliError::new(Kind::Unreachable, "relay_unreachable", "the relay does not answer")
                .because(error)
                .hint("is the coalition up? `coalition status` says; `coalition up` starts it")
        }
        NodeError::RelayUrl(_) | NodeError::Bootstrap(_) => {
            CliError::input("config_invalid", "the node's config is wrong").because(error)
        }
        NodeError::Substrate(_) => CliError::fault("node", "the node cannot start").because(error),
    }
}

/// Where in a roster a member stands.
///
/// # Errors
/// When the roster has no member of this name.
pub fn place_in(roster: &Roster, name: &str) -> Result<usize> {
    let names: Vec<&str> = roster.members().iter().map(|member| member.name.as_str()).collect();
    names.iter().position(|known| *known == name).ok_or_else(|| {
        let message = format!("member {name:?} is not in the roster, which has {}", names.join(", "));
        CliError::input("not_in_roster", message).hint("correct `name` in the member's config")
    })
}
