//! The shape of the boot file.

use std::path::{Path, PathBuf};

use coalition::{Mrtd, PublishedConfig, UniqueId};
use coalition_compute::{OfferName, Region};
use coalition_host::types::{Egress, IsolationLevel, MachineSpec};
use coalition_universe::PeerAddress;
use serde::Deserialize;
use toml::Spanned;

use super::aws::AwsConfig;
use super::azure::AzureConfig;
use super::error::{ConfigError, Place, from_toml, key_path};
use super::gcp::GcpConfig;
use super::values::{PinnedHostKey, Rate};
use crate::fleet::policy::OrderPolicy;

/// Most machines one bridge sells: a card has at most 16 offers and each machine is one.
pub(super) const MAX_MACHINES: usize = coalition_compute::types::MAX_OFFERS;

/// The whole boot file. Every duration and size says its unit in its name.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BridgeConfig {
    /// The coalition's published config: a file (hex or TOML form), or the hex itself.
    pub coalition: Spanned<String>,
    /// The fingerprint the operator expects that config to have, 64 hex digits.
    pub fingerprint: Spanned<String>,
    /// The network to join, 64 hex digits: the shared universe unless the coalition runs on one of its own.
    pub network_id: Option<Spanned<String>>,
    /// UDP address the node binds; a free loopback port when absent, and then everything goes through the relay.
    pub listen: Option<std::net::SocketAddr>,
    /// URL of the relay the node keeps a connection to.
    pub relay: Spanned<String>,
    /// Addresses of peers to start from: the members of the committees.
    #[serde(default)]
    pub bootstrap: Vec<Spanned<String>>,
    /// The bridge's key: its network identity and the key it signs with. Made on first start when absent.
    pub key_file: Spanned<PathBuf>,
    /// Where the journal, the image cache and the lock live.
    pub data_dir: Spanned<PathBuf>,
    /// Behaviour and prices.
    #[serde(default)]
    pub provider: ProviderConfig,
    /// Machines of the operator's own.
    pub baremetal: Option<Spanned<BareMetalConfig>>,
    /// Files with tickets issued to this bridge, for markets that admit writers by ticket; read again whenever they are shown.
    #[serde(default)]
    pub tickets: Vec<Spanned<PathBuf>>,
    /// How the bridge attests itself; it does not when absent.
    pub attestation: Option<Spanned<AttestationConfig>>,
    /// Regions of AWS.
    #[serde(default)]
    pub aws: Vec<Spanned<AwsConfig>>,
    /// Regions of Google Cloud.
    #[serde(default)]
    pub gcp: Vec<Spanned<GcpConfig>>,
    /// Regions of Azure.
    #[serde(default)]
    pub azure: Vec<Spanned<AzureConfig>>,
    /// The operator's page, on loopback.
    pub dashboard: Option<DashboardConfig>,
    #[serde(skip)]
    pub(super) file: PathBuf,
    #[serde(skip)]
    pub(super) text: String,
}

/// Where quotes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttestationSource {
    /// The TDX guest the bridge runs in.
    Tdx,
    /// Software under a development root: proves nothing about hardware, and is labelled everywhere.
    Development,
}

/// How the bridge attests itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttestationConfig {
    /// Where quotes come from.
    pub source: AttestationSource,
    /// Directory with the platform's collateral, `<fmspc>-<ca>.json`; with `tdx` only.
    pub collateral_dir: Option<Spanned<PathBuf>>,
    /// The stored development root, mode 600; with `development` only.
    pub development_root: Option<Spanned<PathBuf>>,
    /// The initial content the development guest claims; with `development` only.
    pub development_mrtd: Option<Mrtd>,
}

/// Where the published config comes from.
#[derive(Clone, Debug)]
pub enum CoalitionSource {
    /// A file, in hex or TOML form.
    File(PathBuf),
    /// The hex form itself.
    Inline(String),
}

/// What becomes of running grants when the bridge stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnShutdown {
    /// They run on; the next start takes them up again. For upgrades and crashes.
    #[default]
    Keep,
    /// They are stopped, logged and cleaned away before the bridge ends. For taking it out of service.
    Drain,
}

/// Behaviour and prices.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProviderConfig {
    /// Seconds between two refreshes of the card, 5 to 60.
    pub capacity_refresh_sec: Spanned<u64>,
    /// Grants worked on at once, 1 to 1,024; further ones wait.
    pub max_concurrent_grants: Spanned<u32>,
    /// Largest image accepted, in MiB.
    pub max_image_mib: Spanned<u64>,
    /// Room for images in the bridge's own cache, in MiB.
    pub image_cache_mib: Spanned<u64>,
    /// Disk of a workload that asks for none, in MiB.
    pub default_disk_mib: Spanned<u32>,
    /// Most disk of one workload, in MiB.
    pub max_disk_mib: Spanned<u32>,
    /// Processes and threads of one workload.
    pub pids_max: Spanned<u32>,
    /// Seconds the unseal committee has to release an envelope.
    pub open_timeout_sec: Spanned<u64>,
    /// Seconds one transfer of an image may take, from the requester and to the host each.
    pub image_timeout_sec: Spanned<u64>,
    /// Seconds from the start of a workload to its SSH server answering.
    pub start_timeout_sec: Spanned<u64>,
    /// Seconds between two looks at a running workload, 1 to 60.
    pub watch_interval_sec: Spanned<u64>,
    /// Seconds an instance that no live grant explains is left alone before it is destroyed.
    pub orphan_grace_sec: Spanned<u64>,
    /// Seconds between two signed statements of the inventory, 10 to 86,400.
    pub inventory_interval_sec: Spanned<u64>,
    /// What becomes of running grants when the bridge stops.
    pub on_shutdown: OnShutdown,
    /// In which order backends are tried after the one the market reserved.
    pub order: OrderPolicy,
    /// Prices per backend.
    pub rates: RatesConfig,
}

/// Prices per backend.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RatesConfig {
    /// Prices of the operator's own machines, unless a machine names its own.
    pub baremetal: Option<BackendRates>,
    /// Prices on AWS, unless a section names its own.
    pub aws: Option<BackendRates>,
    /// Prices on Google Cloud, unless a section names its own.
    pub gcp: Option<BackendRates>,
    /// Prices on Azure, unless a section names its own.
    pub azure: Option<BackendRates>,
}

/// The two posted rates of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendRates {
    /// USD per core and hour.
    pub core_hour: Rate,
    /// USD per GiB of memory and hour.
    pub gib_hour: Rate,
}

/// The operator's own machines.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BareMetalConfig {
    /// At least one, at most 16.
    pub machines: Vec<Spanned<MachineConfig>>,
    /// The program installed on the hosts, when it is not this one (hosts of another architecture).
    pub runner: Option<Spanned<PathBuf>>,
}

/// One machine, reached over SSH.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Name of its offer on the card; made from host and port when absent. Keep it while grants run.
    pub name: Option<OfferName>,
    /// DNS name or address of its SSH server.
    pub host: String,
    /// Port of its SSH server.
    #[serde(default = "ssh_port")]
    pub port: u16,
    /// Who to log in as. Root gives the strongest isolation.
    pub user: String,
    /// Private key to log in with; mode 600.
    pub ssh_key_path: Spanned<PathBuf>,
    /// The one host key it may show: `ssh-ed25519 AAAA…`.
    pub host_key: PinnedHostKey,
    /// Where it stands, as the market calls it.
    pub region: Region,
    /// CPU sold, in thousandths of a core.
    pub cpu_millicores: Spanned<u32>,
    /// Memory sold, in MiB.
    pub ram_mib: Spanned<u32>,
    /// True only with `guest_mrtd`: this version starts no real TDX guests, but counts workloads as running in a
    /// development guest where it is told to.
    #[serde(default)]
    pub tdx_capable: Option<Spanned<bool>>,
    /// The initial content of the development guest its workloads count as running in; needs `[attestation]` with
    /// `source = "development"`.
    pub guest_mrtd: Option<Spanned<Mrtd>>,
    /// Workloads at once.
    #[serde(default = "instances")]
    pub max_instances: u32,
    /// Address requesters reach workloads at; `host` when absent.
    pub public_host: Option<String>,
    /// Address workloads' SSH servers listen on; `0.0.0.0` when absent.
    pub listen: Option<std::net::IpAddr>,
    /// Directory on the machine, relative to the login's home.
    pub dir: Option<String>,
    /// The weakest isolation the operator sells.
    #[serde(default)]
    pub minimum_isolation: IsolationLevel,
    /// Where workloads may connect to: `"none"`, `"host"`, or a list of rules.
    #[serde(default, deserialize_with = "super::values::egress")]
    pub egress: Egress,
    /// Most that one workload sends and receives, millions of bits a second.
    #[serde(default, deserialize_with = "super::values::network_mbit")]
    pub network_mbit: Option<u32>,
    /// What every workload runs in.
    #[serde(default)]
    pub isolation: WorkloadIsolation,
    /// How virtual machines are made; with `isolation = "machine"` only.
    pub machine: Option<Spanned<MachineSpec>>,
    /// Prices of this machine, instead of `provider.rates.baremetal`.
    pub rates: Option<BackendRates>,
}

/// What every workload of a machine runs in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkloadIsolation {
    /// The strongest that the kernel offers: namespaces, or less.
    #[default]
    Namespaces,
    /// A virtual machine of its own, inside these.
    Machine,
}

/// The operator's page.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DashboardConfig {
    /// Port on 127.0.0.1; 0 takes a free one.
    pub port: u16,
    /// File with the bearer token, mode 600; made on first start when absent.
    pub token_file: Spanned<PathBuf>,
}

const fn ssh_port() -> u16 {
    22
}

const fn instances() -> u32 {
    64
}

/// A default value that stands nowhere in the file.
fn at_nowhere<T>(value: T) -> Spanned<T> {
    Spanned::new(0..0, value)
}

impl Default for ProviderConfig {
    fn default() -> Self {
        Self {
            capacity_refresh_sec: at_nowhere(30),
            max_concurrent_grants: at_nowhere(64),
            max_image_mib: at_nowhere(4_096),
            image_cache_mib: at_nowhere(16_384),
            default_disk_mib: at_nowhere(1_024),
            max_disk_mib: at_nowhere(16_384),
            pids_max: at_nowhere(1_024),
            open_timeout_sec: at_nowhere(30),
            image_timeout_sec: at_nowhere(600),
            start_timeout_sec: at_nowhere(60),
            watch_interval_sec: at_nowhere(2),
            orphan_grace_sec: at_nowhere(30),
            inventory_interval_sec: at_nowhere(600),
            on_shutdown: OnShutdown::Keep,
            order: OrderPolicy::Declared,
            rates: RatesConfig::default(),
        }
    }
}

impl BridgeConfig {
    /// Reads and checks a boot file's form and values. Relative paths in it are relative to the file.
    ///
    /// # Errors
    /// [`ConfigError`] naming file, line and key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
        Self::parse(path, &text)
    }

    /// As [`BridgeConfig::load`], from text; `file` is what errors name and what relative paths start from.
    ///
    /// # Errors
    /// [`ConfigError`] naming file, line and key.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut config: Self = toml::from_str(text).map_err(|error| from_toml(file, text, &error))?;
        file.clone_into(&mut config.file);
        text.clone_into(&mut config.text);
        config.check()?;
        Ok(config)
    }

    /// Where a value stands in the file.
    pub(super) fn place<T>(&self, value: &Spanned<T>) -> Place {
        let start = value.span().start.min(self.text.len());
        let line = self.text.get(..start).map_or(1, |before| before.matches('\n').count() + 1);
        Place { file: self.file.clone(), key: key_path(&self.text, line, None), line }
    }

    pub(super) fn refuse<T>(&self, value: &Spanned<T>, problem: impl Into<String>) -> ConfigError {
        ConfigError::Value { place: self.place(value), problem: problem.into() }
    }

    /// A path of the file, made absolute against the file's directory.
    #[must_use]
    pub fn absolute(&self, path: &Path) -> PathBuf {
        self.file.parent().map_or_else(|| path.to_owned(), |dir| dir.join(path))
    }

    /// Where the published config comes from.
    #[must_use]
    pub fn coalition_source(&self) -> CoalitionSource {
        let text = self.coalition.get_ref().trim();
        if text.len() >= 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            CoalitionSource::Inline(text.to_owned())
        } else {
            CoalitionSource::File(self.absolute(Path::new(text)))
        }
    }

    /// The bootstrap peers.
    ///
    /// # Errors
    /// [`ConfigError::Value`] naming the first malformed one.
    pub fn bootstrap_peers(&self) -> Result<Vec<PeerAddress>, ConfigError> {
        let parse =
            |text: &Spanned<String>| text.get_ref().parse().map_err(|error| self.refuse(text, format!("{error}")));
        self.bootstrap.iter().map(parse).collect()
    }

    /// The expected fingerprint.
    ///
    /// # Errors
    /// [`ConfigError::Value`] when it is not 64 hex digits.
    pub fn expected_fingerprint(&self) -> Result<UniqueId, ConfigError> {
        coalition::parse_id(self.fingerprint.get_ref())
            .map_err(|error| self.refuse(&self.fingerprint, error.to_string()))
    }

    /// The network to join.
    ///
    /// # Errors
    /// [`ConfigError::Value`] when it is not 64 hex digits.
    pub fn network(&self) -> Result<UniqueId, ConfigError> {
        let Some(text) = &self.network_id else { return Ok(coalition_universe::UNIVERSE) };
        coalition::parse_id(text.get_ref()).map_err(|error| self.refuse(text, error.to_string()))
    }

    /// Reads the published config and compares its fingerprint.
    ///
    /// # Errors
    /// [`ConfigError`] when it cannot be read, does not verify, or has another fingerprint.
    pub fn published(&self) -> Result<PublishedConfig, ConfigError> {
        let wrong = |source| ConfigError::Coalition { place: self.place(&self.coalition), source: Box::new(source) };
        let config = match self.coalition_source() {
            CoalitionSource::Inline(hex) => PublishedConfig::from_hex(&hex).map_err(wrong)?,
            CoalitionSource::File(path) => {
                let unreadable = |error: std::io::Error| {
                    self.refuse(
                        &self.coalition,
                        format!("{} cannot be read: {error}; give a file or the hex itself", path.display()),
                    )
                };
                let text = std::fs::read_to_string(&path).map_err(unreadable)?;
                let hex = text.trim().bytes().all(|b| b.is_ascii_hexdigit());
                let read = if hex { PublishedConfig::from_hex(&text) } else { PublishedConfig::from_toml(&text) };
                read.map_err(wrong)?
            }
        };
        let expected = self.expected_fingerprint()?;
        let mismatch =
            |source| ConfigError::Coalition { place: self.place(&self.fingerprint), source: Box::new(source) };
        config.expect_fingerprint(expected).map_err(mismatch)?;
        Ok(config)
    }
}
