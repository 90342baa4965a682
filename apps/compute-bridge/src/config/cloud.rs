//! What the sections of all clouds have in common.

use std::path::PathBuf;

use coalition_cloud::Confidential;
use coalition_compute::{DeclaredRates, OfferName, Region};
use coalition_host::types::IsolationLevel;
use serde::Deserialize;
use toml::Spanned;

use super::aws::AwsConfig;
use super::azure::AzureConfig;
use super::error::ConfigError;
use super::fields::{BackendRates, BridgeConfig, MAX_MACHINES};
use super::gcp::GcpConfig;
use super::secret::check_secret_file;
use super::values::Rate;

/// Sizes one section may list.
const MAX_SIZES: usize = 32;

/// Declares a section with the keys that every cloud's has, and its own.
macro_rules! cloud_section {
    ($(#[$doc:meta])* $name:ident { $($(#[$own_doc:meta])* pub $own:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$own_doc])* pub $own: $type,)*
            /// Name of its offer on the card. Keep it while grants run: hosts are found by it.
            pub name: coalition_compute::OfferName,
            /// Where it is, as the market calls it.
            pub region: coalition_compute::Region,
            /// At least one; the cheapest that a grant fits on is taken.
            pub sizes: Vec<$crate::config::CloudSize>,
            /// Hosts at once.
            pub max_instances: u32,
            /// Disk beside what image and workload need, GiB.
            #[serde(default = "crate::config::cloud::root_gib")]
            pub root_gib: u32,
            /// Hosts get no address on the internet; bridge and requesters reach them inside their network.
            #[serde(default)]
            pub private_addresses: bool,
            /// Port of the hosts' SSH servers.
            #[serde(default = "crate::config::cloud::ssh_port")]
            pub ssh_port: u16,
            /// The weakest isolation sold. Logins are root's, so nothing weaker than namespaces is needed.
            #[serde(default = "crate::config::cloud::isolation")]
            pub minimum_isolation: coalition_host::types::IsolationLevel,
            /// The program installed on hosts, when it is not this one (another architecture).
            pub runner: Option<toml::Spanned<std::path::PathBuf>>,
            /// Directory on the hosts, relative to root's home.
            pub dir: Option<String>,
            /// Seconds from asking for a host to logging in.
            #[serde(default = "crate::config::cloud::boot_timeout")]
            pub boot_timeout_sec: u64,
            /// Seconds after its grant's end at which a host switches itself off.
            #[serde(default = "crate::config::cloud::poweroff_after")]
            pub poweroff_after_sec: u64,
            /// Prices of this section, instead of those in `provider.rates`.
            pub rates: Option<$crate::config::BackendRates>,
        }

        impl $name {
            /// The part that every cloud's section has.
            #[must_use]
            pub fn offer(&self) -> $crate::config::CloudOffer<'_> {
                $crate::config::CloudOffer {
                    kind: Self::KIND,
                    name: &self.name,
                    region: &self.region,
                    sizes: &self.sizes,
                    max_instances: self.max_instances,
                    root_gib: self.root_gib,
                    private_addresses: self.private_addresses,
                    ssh_port: self.ssh_port,
                    minimum_isolation: self.minimum_isolation,
                    runner: self.runner.as_ref(),
                    dir: self.dir.as_ref(),
                    boot_timeout_sec: self.boot_timeout_sec,
                    poweroff_after_sec: self.poweroff_after_sec,
                    rates: self.rates,
                    secret: self.secret(),
                    own_problem: self.own_problem(),
                }
            }
        }
    };
}
pub(super) use cloud_section;

pub(super) const fn root_gib() -> u32 {
    10
}

pub(super) const fn ssh_port() -> u16 {
    22
}

pub(super) const fn isolation() -> IsolationLevel {
    IsolationLevel::RootNamespaces
}

pub(super) const fn boot_timeout() -> u64 {
    300
}

pub(super) const fn poweroff_after() -> u64 {
    120
}

/// One size of machines.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloudSize {
    /// The cloud's name for it.
    #[serde(alias = "instance_type", alias = "machine_type", alias = "vm_size")]
    pub size: String,
    /// CPU sold of it, thousandths of a core.
    pub cpu_millicores: u32,
    /// Memory sold of it, MiB.
    pub ram_mib: u32,
    /// What the cloud charges for it, disk and address included, USD per hour.
    pub price_hour: Rate,
    /// The confidential computing its machines are asked for with.
    pub confidential: Option<ConfidentialKind>,
}

/// Memory encryption and attestation of a machine by its processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConfidentialKind {
    /// Intel TDX.
    Tdx,
    /// AMD SEV-SNP.
    SevSnp,
}

impl From<ConfidentialKind> for Confidential {
    fn from(kind: ConfidentialKind) -> Self {
        match kind {
            ConfidentialKind::Tdx => Self::Tdx,
            ConfidentialKind::SevSnp => Self::SevSnp,
        }
    }
}

impl CloudSize {
    /// What is wrong when its cloud runs machines of this size under these kinds of confidential computing only.
    pub(super) fn unlike(&self, known: &[Confidential]) -> Option<String> {
        let asked = Confidential::from(self.confidential?);
        (!known.contains(&asked)).then(|| {
            let word = |kind: &Confidential| match kind {
                Confidential::Tdx => "tdx",
                Confidential::SevSnp => "sev_snp",
            };
            let has = known.iter().map(word).next().unwrap_or("none");
            format!("{} with confidential = {:?}; this size has {has}", self.size, word(&asked))
        })
    }

    fn problem(&self) -> Option<String> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        let name = &self.size;
        if name.is_empty() || name.len() > 64 || !name.bytes().all(fits) {
            return Some(format!("size = {name:?}; expected the cloud's name of a size, like \"m6a.large\""));
        }
        let ranges = (10..=1_024_000, 8..=16 << 20);
        (!ranges.0.contains(&self.cpu_millicores) || !ranges.1.contains(&self.ram_mib)).then(|| {
            let (cpu, ram) = (self.cpu_millicores, self.ram_mib);
            format!("{name} sells {cpu} mCPU and {ram} MiB; allowed are 10 to 1024000 and 8 to {}", 16 << 20)
        })
    }
}

/// Which cloud a section is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloudKind {
    /// `[[aws]]`.
    Aws,
    /// `[[gcp]]`.
    Gcp,
    /// `[[azure]]`.
    Azure,
}

impl CloudKind {
    /// The section's name.
    #[must_use]
    pub const fn section(self) -> &'static str {
        match self {
            Self::Aws => "aws",
            Self::Gcp => "gcp",
            Self::Azure => "azure",
        }
    }
}

/// The part that every cloud's section has.
#[derive(Clone, Debug)]
pub struct CloudOffer<'a> {
    /// Which cloud.
    pub kind: CloudKind,
    /// Name of its offer.
    pub name: &'a OfferName,
    /// Where it is, as the market calls it.
    pub region: &'a Region,
    /// What is sold.
    pub sizes: &'a [CloudSize],
    /// Hosts at once.
    pub max_instances: u32,
    /// Disk beside what image and workload need, GiB.
    pub root_gib: u32,
    /// Hosts get no address on the internet.
    pub private_addresses: bool,
    /// Port of the hosts' SSH servers.
    pub ssh_port: u16,
    /// The weakest isolation sold.
    pub minimum_isolation: IsolationLevel,
    /// The program installed on hosts.
    pub runner: Option<&'a Spanned<PathBuf>>,
    /// Directory on the hosts.
    pub dir: Option<&'a String>,
    /// Seconds from asking for a host to logging in.
    pub boot_timeout_sec: u64,
    /// Seconds after its grant's end at which a host switches itself off.
    pub poweroff_after_sec: u64,
    /// Prices of this section.
    pub rates: Option<BackendRates>,
    /// The file with its credentials.
    pub secret: Option<&'a Spanned<PathBuf>>,
    /// What is wrong with the keys that only this cloud has.
    pub(super) own_problem: Option<String>,
}

/// Answers what is wrong when a number is not within its limits.
pub(super) fn ranged(key: &str, value: u64, min: u64, max: u64) -> Option<String> {
    (!(min..=max).contains(&value)).then(|| format!("{key} = {value} is out of range; allowed are {min} to {max}"))
}

impl CloudOffer<'_> {
    /// What is wrong with it by itself.
    fn problem(&self) -> Option<String> {
        ranged("max_instances", self.max_instances.into(), 1, 10_000)
            .or_else(|| ranged("root_gib", self.root_gib.into(), 1, 16_000))
            .or_else(|| ranged("ssh_port", self.ssh_port.into(), 1, 65_535))
            .or_else(|| ranged("boot_timeout_sec", self.boot_timeout_sec, 10, 1_800))
            .or_else(|| ranged("poweroff_after_sec", self.poweroff_after_sec, 30, 3_600))
            .or_else(|| ranged("number of sizes", self.sizes.len() as u64, 1, MAX_SIZES as u64))
            .or_else(|| self.sizes.iter().find_map(CloudSize::problem))
            .or_else(|| self.own_problem.clone())
    }
}

impl BridgeConfig {
    /// The sections of all clouds, in the order in which their offers come, each with the place it has in the file.
    pub(super) fn cloud_offers(&self) -> impl Iterator<Item = (std::ops::Range<usize>, CloudOffer<'_>)> {
        let aws = self.aws.iter().map(|section| (section.span(), section.get_ref().offer()));
        let gcp = self.gcp.iter().map(|section| (section.span(), section.get_ref().offer()));
        let azure = self.azure.iter().map(|section| (section.span(), section.get_ref().offer()));
        aws.chain(gcp).chain(azure)
    }

    /// The sections `[[aws]]`.
    pub fn aws(&self) -> impl Iterator<Item = &AwsConfig> {
        self.aws.iter().map(Spanned::get_ref)
    }

    /// The sections `[[gcp]]`.
    pub fn gcp(&self) -> impl Iterator<Item = &GcpConfig> {
        self.gcp.iter().map(Spanned::get_ref)
    }

    /// The sections `[[azure]]`.
    pub fn azure(&self) -> impl Iterator<Item = &AzureConfig> {
        self.azure.iter().map(Spanned::get_ref)
    }

    pub(super) fn check_clouds(&self) -> Result<(), ConfigError> {
        let mut names: Vec<OfferName> = self.machines().map(super::MachineConfig::offer_name).collect();
        for (span, offer) in self.cloud_offers() {
            let place = Spanned::new(span, ());
            if names.len() >= MAX_MACHINES {
                let problem = format!("this is offer {}; a card has room for {MAX_MACHINES}", names.len() + 1);
                return Err(self.refuse(&place, problem));
            }
            if let Some(problem) = offer.problem() {
                return Err(self.refuse(&place, problem));
            }
            if names.contains(offer.name) {
                let problem = format!("two offers are called {}; give this one another `name`", offer.name);
                return Err(self.refuse(&place, problem));
            }
            if self.cloud_rates(&offer).is_none() {
                let section = offer.kind.section();
                let problem = format!(
                    "it has no price: set [provider.rates.{section}] core_hour and gib_hour, or rates in the section"
                );
                return Err(self.refuse(&place, problem));
            }
            names.push(offer.name.clone());
        }
        Ok(())
    }

    /// Credentials files are there, and private.
    pub(super) fn check_credentials(&self) -> Result<(), ConfigError> {
        for path in self.cloud_offers().filter_map(|(_, offer)| offer.secret) {
            let place = self.place(path);
            check_secret_file(&self.absolute(path.get_ref()))
                .map_err(|source| ConfigError::Secret { place, source })?;
        }
        Ok(())
    }

    fn cloud_rates(&self, offer: &CloudOffer<'_>) -> Option<BackendRates> {
        let general = match offer.kind {
            CloudKind::Aws => self.provider.rates.aws,
            CloudKind::Gcp => self.provider.rates.gcp,
            CloudKind::Azure => self.provider.rates.azure,
        };
        offer.rates.or(general)
    }

    /// The rates a section is sold at; nothing when the file has none, which is refused when it is read.
    #[must_use]
    pub fn rates_of_cloud(&self, offer: &CloudOffer<'_>) -> DeclaredRates {
        let zero = DeclaredRates { core_hour: coalition::RateQ64::ZERO, gib_hour: coalition::RateQ64::ZERO };
        let declared = |rates: BackendRates| DeclaredRates { core_hour: rates.core_hour.0, gib_hour: rates.gib_hour.0 };
        self.cloud_rates(offer).map_or(zero, declared)
    }
}
