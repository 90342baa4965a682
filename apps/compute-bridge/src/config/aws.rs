//! Sections `[[aws]]`: regions of AWS accounts.

use std::path::PathBuf;

use coalition_compute::{DeclaredRates, OfferName, Region};
use coalition_host::types::IsolationLevel;
use serde::Deserialize;
use toml::Spanned;

use super::error::{ConfigError, Place};
use super::fields::{BackendRates, BridgeConfig, MAX_MACHINES};
use super::secret::check_secret_file;
use super::values::Rate;

/// Sizes one section may list.
const MAX_SIZES: usize = 32;

/// One region of one account: one offer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AwsConfig {
    /// Name of its offer on the card. Keep it while grants run: instances are found by it.
    pub name: OfferName,
    /// Where it is, as the market calls it.
    pub region: Region,
    /// Where it is, as AWS calls it; `region` when absent.
    pub aws_region: Option<String>,
    /// Access keys in a file as AWS's own tools write it, mode 600; from the environment when absent.
    pub credentials_file: Option<Spanned<PathBuf>>,
    /// Section of that file.
    #[serde(default = "profile")]
    pub profile: String,
    /// Another address for the API: `https://…`, or `http://` on loopback for a test.
    pub endpoint: Option<String>,
    /// The image hosts are made of: Linux with cloud-init, systemd and OpenSSH.
    pub image: String,
    /// At least one; the next is tried when one has no room.
    pub subnets: Vec<String>,
    /// At least one.
    pub security_groups: Vec<String>,
    /// At least one; the cheapest that a grant fits on is taken.
    pub sizes: Vec<AwsSize>,
    /// Instances at once.
    pub max_instances: u32,
    /// Disk beside what image and workload need, GiB.
    #[serde(default = "root_gib")]
    pub root_gib: u32,
    /// Which of the account's quotas of EC2 counts; on-demand standard families when absent.
    #[serde(default = "quota_code")]
    pub quota_code: String,
    /// Hosts get no address on the internet; bridge and requesters reach them inside their network.
    #[serde(default)]
    pub private_addresses: bool,
    /// Port of the hosts' SSH servers.
    #[serde(default = "ssh_port")]
    pub ssh_port: u16,
    /// The weakest isolation sold. Logins are root's, so nothing weaker than namespaces is needed.
    #[serde(default = "isolation")]
    pub minimum_isolation: IsolationLevel,
    /// The program installed on hosts, when it is not this one (another architecture).
    pub runner: Option<Spanned<PathBuf>>,
    /// Directory on the hosts, relative to root's home.
    pub dir: Option<String>,
    /// Seconds from asking for a host to logging in.
    #[serde(default = "boot_timeout")]
    pub boot_timeout_sec: u64,
    /// Seconds after its grant's end at which a host switches itself off.
    #[serde(default = "poweroff_after")]
    pub poweroff_after_sec: u64,
    /// Prices of this section, instead of `provider.rates.aws`.
    pub rates: Option<BackendRates>,
}

/// One size of machines.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AwsSize {
    /// EC2's name for it.
    pub instance_type: String,
    /// CPU sold of it, thousandths of a core.
    pub cpu_millicores: u32,
    /// Memory sold of it, MiB.
    pub ram_mib: u32,
    /// What EC2 charges for it, disk and address included, USD per hour.
    pub price_hour: Rate,
    /// Asks for AMD SEV-SNP.
    #[serde(default)]
    pub sev_snp: bool,
}

fn profile() -> String {
    "default".into()
}

const fn root_gib() -> u32 {
    10
}

fn quota_code() -> String {
    coalition_aws::STANDARD_VCPUS.into()
}

const fn ssh_port() -> u16 {
    22
}

const fn isolation() -> IsolationLevel {
    IsolationLevel::RootNamespaces
}

const fn boot_timeout() -> u64 {
    300
}

const fn poweroff_after() -> u64 {
    120
}

impl AwsConfig {
    /// The region as AWS calls it.
    #[must_use]
    pub fn api_region(&self) -> &str {
        self.aws_region.as_deref().unwrap_or_else(|| self.region.as_str())
    }

    /// What is wrong with it by itself.
    fn problem(&self) -> Option<String> {
        let id = |prefix: &str, text: &str| {
            let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            text.strip_prefix(prefix).is_some_and(|rest| (8..=17).contains(&rest.len()) && rest.bytes().all(hex))
        };
        let listed =
            |key: &str, prefix: &str, ids: &[String], most: usize| match ids.iter().find(|one| !id(prefix, one)) {
                Some(wrong) => Some(format!("{key} has {wrong:?}; expected {prefix} and 8 to 17 hex digits")),
                None if ids.is_empty() || ids.len() > most => {
                    Some(format!("{key} has {} entries; expected 1 to {most}", ids.len()))
                }
                None => None,
            };
        let ranged = |key: &str, value: u64, min: u64, max: u64| {
            (!(min..=max).contains(&value))
                .then(|| format!("{key} = {value} is out of range; allowed are {min} to {max}"))
        };
        (!id("ami-", &self.image))
            .then(|| format!("image = {:?}; expected ami- and 8 to 17 hex digits", self.image))
            .or_else(|| listed("subnets", "subnet-", &self.subnets, 16))
            .or_else(|| listed("security_groups", "sg-", &self.security_groups, 16))
            .or_else(|| ranged("max_instances", self.max_instances.into(), 1, 10_000))
            .or_else(|| ranged("root_gib", self.root_gib.into(), 1, 16_000))
            .or_else(|| ranged("ssh_port", self.ssh_port.into(), 1, 65_535))
            .or_else(|| ranged("boot_timeout_sec", self.boot_timeout_sec, 10, 1_800))
            .or_else(|| ranged("poweroff_after_sec", self.poweroff_after_sec, 30, 3_600))
            .or_else(|| ranged("number of sizes", self.sizes.len() as u64, 1, MAX_SIZES as u64))
            .or_else(|| self.sizes.iter().find_map(AwsSize::problem))
    }
}

impl AwsSize {
    fn problem(&self) -> Option<String> {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-');
        let name = &self.instance_type;
        if name.is_empty() || name.len() > 40 || !name.bytes().all(fits) {
            return Some(format!("instance_type = {name:?}; expected a name like \"m6a.large\""));
        }
        if !(10..=1_024_000).contains(&self.cpu_millicores) || !(8..=16 << 20).contains(&self.ram_mib) {
            return Some(format!(
                "{name} sells {} mCPU and {} MiB; allowed are 10 to 1024000 and 8 to {}",
                self.cpu_millicores,
                self.ram_mib,
                16 << 20
            ));
        }
        let families = ["m6a.", "c6a.", "r6a."];
        (self.sev_snp && !families.iter().any(|family| name.starts_with(family)))
            .then(|| format!("sev_snp with {name}; EC2 has AMD SEV-SNP on m6a, c6a and r6a only"))
    }
}

impl BridgeConfig {
    /// The sections `[[aws]]`.
    pub fn clouds(&self) -> impl Iterator<Item = &AwsConfig> {
        self.aws.iter().map(Spanned::get_ref)
    }

    pub(super) fn check_clouds(&self) -> Result<(), ConfigError> {
        let machines: Vec<OfferName> = self.machines().map(super::MachineConfig::offer_name).collect();
        for (i, spanned) in self.aws.iter().enumerate() {
            let section = spanned.get_ref();
            if machines.len() + i >= MAX_MACHINES {
                let problem = format!("this is offer {}; a card has room for {MAX_MACHINES}", machines.len() + i + 1);
                return Err(self.refuse(spanned, problem));
            }
            if let Some(problem) = section.problem() {
                return Err(self.refuse(spanned, problem));
            }
            let twin = self.aws[..i].iter().any(|other| other.get_ref().name == section.name);
            if twin || machines.contains(&section.name) {
                return Err(self
                    .refuse(spanned, format!("two offers are called {}; give this one another `name`", section.name)));
            }
            if section.rates.or(self.provider.rates.aws).is_none() {
                let problem =
                    "it has no price: set [provider.rates.aws] core_hour and gib_hour, or rates in the section";
                return Err(self.refuse(spanned, problem));
            }
        }
        Ok(())
    }

    /// Credentials files are there, and private.
    pub(super) fn check_credentials(&self) -> Result<(), ConfigError> {
        for path in self.clouds().filter_map(|section| section.credentials_file.as_ref()) {
            let place: Place = self.place(path);
            check_secret_file(&self.absolute(path.get_ref()))
                .map_err(|source| ConfigError::Secret { place, source })?;
        }
        Ok(())
    }

    /// The rates a section is sold at; nothing when the file has none, which is refused when it is read.
    #[must_use]
    pub fn rates_of_cloud(&self, section: &AwsConfig) -> DeclaredRates {
        let rates = section.rates.or(self.provider.rates.aws);
        let zero = DeclaredRates { core_hour: coalition::RateQ64::ZERO, gib_hour: coalition::RateQ64::ZERO };
        rates.map_or(zero, |rates| DeclaredRates { core_hour: rates.core_hour.0, gib_hour: rates.gib_hour.0 })
    }
}
