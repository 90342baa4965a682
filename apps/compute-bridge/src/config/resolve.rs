//! Checks across values, and everything the file points to, read once at start.

use std::sync::Arc;

use coalition::{PublishedConfig, UniqueId};
use coalition_attest::DevelopmentRoot;
use coalition_compute::{DeclaredRates, OfferName};
use coalition_universe::{NodeKey, PeerAddress};
use rand::Rng;
use toml::Spanned;
use zeroize::Zeroizing;

use super::error::{ConfigError, Place};
use super::fields::{AttestationSource, BareMetalConfig, BridgeConfig, MAX_MACHINES, MachineConfig, WorkloadIsolation};
use super::secret::{check_secret_file, read_secret_file};
use crate::platform::{Platform, PlatformError};
use crate::provider::Attestor;

/// A boot file with everything it points to. Holds secrets; they are wiped when it is dropped.
pub struct Resolved {
    /// The file.
    pub config: BridgeConfig,
    /// The coalition, verified and with the expected fingerprint.
    pub coalition: PublishedConfig,
    /// The bridge's key.
    pub key: NodeKey,
    /// Peers to start from.
    pub bootstrap: Vec<PeerAddress>,
    /// The dashboard's bearer token, when there is a dashboard.
    pub dashboard_token: Option<Zeroizing<String>>,
    /// The development root of guests that prove nothing, where there is one.
    pub development_root: Option<Arc<DevelopmentRoot>>,
    /// Attests the bridge itself, when it is configured to.
    pub attestor: Option<Attestor>,
}

const MIB_LIMIT: u64 = 64 << 10;

impl BridgeConfig {
    /// Checks what a single value's type cannot: ranges, sections that exclude or need each other, names used twice.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.check_backends()?;
        self.check_attestation()?;
        self.check_ranges()?;
        self.expected_fingerprint()?;
        self.bootstrap_peers()?;
        self.network()?;
        let relay = self.relay.get_ref();
        if !relay.starts_with("http://") && !relay.starts_with("https://") {
            return Err(self.refuse(&self.relay, format!("{relay:?} is no relay URL; expected http://… or https://…")));
        }
        self.baremetal.as_ref().map_or(Ok(()), |section| self.check_machines(section.get_ref()))?;
        self.check_clouds()
    }

    fn check_backends(&self) -> Result<(), ConfigError> {
        let machines = self.baremetal.as_ref().map_or(0, |section| section.get_ref().machines.len());
        if machines + self.cloud_offers().count() == 0 {
            let place = Place { file: self.file.clone(), key: "baremetal.machines".into(), line: 0 };
            let problem = "no backend is enabled, so there is nothing to sell; add at least one [[baremetal.machines]], [[aws]], [[gcp]] or [[azure]]";
            return Err(ConfigError::Value { place, problem: problem.into() });
        }
        Ok(())
    }

    fn check_ranges(&self) -> Result<(), ConfigError> {
        let p = &self.provider;
        // Two missed posts must not make the card stale.
        self.range(&p.capacity_refresh_sec, 5, 60)?;
        self.range(&p.open_timeout_sec, 1, 600)?;
        self.range(&p.image_timeout_sec, 1, 86_400)?;
        self.range(&p.start_timeout_sec, 1, 3_600)?;
        self.range(&p.watch_interval_sec, 1, 60)?;
        self.range(&p.orphan_grace_sec, 0, 86_400)?;
        self.range(&p.inventory_interval_sec, 10, 86_400)?;
        self.range(&p.max_image_mib, 1, MIB_LIMIT)?;
        self.range(&p.image_cache_mib, 1, 16 << 20)?;
        self.range(&p.max_concurrent_grants, 1, 1_024)?;
        self.range(&p.default_disk_mib, 1, 64 << 20)?;
        self.range(&p.max_disk_mib, 1, 64 << 20)?;
        self.range(&p.pids_max, 4, 1_000_000)?;
        if p.image_cache_mib.get_ref() < p.max_image_mib.get_ref() {
            let (cache, image) = (p.image_cache_mib.get_ref(), p.max_image_mib.get_ref());
            let problem =
                format!("the cache of {cache} MiB does not hold one image of max_image_mib = {image} MiB; raise it");
            return Err(self.refuse(&p.image_cache_mib, problem));
        }
        if p.default_disk_mib.get_ref() > p.max_disk_mib.get_ref() {
            let (given, most) = (p.default_disk_mib.get_ref(), p.max_disk_mib.get_ref());
            return Err(self.refuse(&p.default_disk_mib, format!("{given} MiB is above max_disk_mib = {most} MiB")));
        }
        Ok(())
    }

    pub(super) fn range<T: Copy + Into<u64>>(&self, value: &Spanned<T>, min: u64, max: u64) -> Result<(), ConfigError> {
        let given: u64 = (*value.get_ref()).into();
        if (min..=max).contains(&given) {
            return Ok(());
        }
        Err(self.refuse(value, format!("{given} is out of range; allowed are {min} to {max}")))
    }

    fn check_machines(&self, section: &BareMetalConfig) -> Result<(), ConfigError> {
        let mut names = std::collections::BTreeSet::new();
        for (i, spanned) in section.machines.iter().enumerate() {
            let machine = spanned.get_ref();
            if i >= MAX_MACHINES {
                let problem = format!(
                    "this is machine {}; a card has room for {MAX_MACHINES} offers, so run a second bridge",
                    i + 1
                );
                return Err(self.refuse(spanned, problem));
            }
            self.check_machine(spanned)?;
            let name = machine.offer_name();
            if !names.insert(name.clone()) {
                let problem =
                    format!("two machines are called {name}; give this one another `name`, or another host and port");
                return Err(self.refuse(spanned, problem));
            }
            if self.rates_of(machine).is_none() {
                let problem =
                    "it has no price: set [provider.rates.baremetal] core_hour and gib_hour, or rates on the machine";
                return Err(self.refuse(spanned, problem));
            }
        }
        Ok(())
    }

    /// A machine claims TDX exactly when its workloads count as running in a development guest.
    fn check_guest(&self, machine: &MachineConfig) -> Result<(), ConfigError> {
        if let Some(guest) = machine.guest_mrtd.as_ref().filter(|_| !self.is_development()) {
            let problem = "a development guest needs [attestation] with source = \"development\"";
            return Err(self.refuse(guest, problem));
        }
        match &machine.tdx_capable {
            Some(tdx) if *tdx.get_ref() && machine.guest_mrtd.is_none() => {
                let problem = "this version cannot start workloads inside TDX, so a card that says it can would be untrue; set it to false (or, for development, give guest_mrtd)";
                Err(self.refuse(tdx, problem))
            }
            Some(tdx) if !*tdx.get_ref() && machine.guest_mrtd.is_some() => {
                Err(self.refuse(tdx, "tdx_capable is false, but guest_mrtd says that its workloads run in a guest"))
            }
            _ => Ok(()),
        }
    }

    fn check_virtual(&self, spanned: &Spanned<MachineConfig>) -> Result<(), ConfigError> {
        let config = spanned.get_ref();
        let machine = match (config.isolation, &config.machine) {
            (WorkloadIsolation::Namespaces, None) => return Ok(()),
            (WorkloadIsolation::Namespaces, Some(machine)) => {
                return Err(self.refuse(machine, "goes with isolation = \"machine\""));
            }
            (WorkloadIsolation::Machine, None) => {
                let problem = "isolation = \"machine\" needs machine = { kernel = \"/boot/vmlinuz-…\", modules = \"/lib/modules/…\" }";
                return Err(self.refuse(spanned, problem));
            }
            (WorkloadIsolation::Machine, Some(machine)) => machine,
        };
        coalition_host::spec::check_machine(machine.get_ref()).map_err(|error| self.refuse(machine, error.to_string()))
    }

    fn is_development(&self) -> bool {
        let source = self.attestation.as_ref().map(|section| section.get_ref().source);
        source == Some(AttestationSource::Development)
    }

    fn check_attestation(&self) -> Result<(), ConfigError> {
        let Some(section) = &self.attestation else { return Ok(()) };
        let given = section.get_ref();
        let problem = match given.source {
            AttestationSource::Tdx if given.collateral_dir.is_none() => "source = \"tdx\" needs collateral_dir",
            AttestationSource::Tdx if given.development_root.is_some() || given.development_mrtd.is_some() => {
                "development_root and development_mrtd go with source = \"development\""
            }
            AttestationSource::Development if given.development_root.is_none() || given.development_mrtd.is_none() => {
                "source = \"development\" needs development_root and development_mrtd"
            }
            AttestationSource::Development if given.collateral_dir.is_some() => {
                "a development root makes its own collateral; leave collateral_dir out"
            }
            _ => return Ok(()),
        };
        Err(self.refuse(section, problem))
    }

    /// The development root, and the platform the bridge itself is attested by.
    fn platform(&self) -> Result<(Option<Arc<DevelopmentRoot>>, Option<Attestor>), ConfigError> {
        let Some(section) = &self.attestation else { return Ok((None, None)) };
        let given = section.get_ref();
        let config = UniqueId::hash(self.text.as_bytes());
        if let Some(directory) = &given.collateral_dir {
            let platform = Platform::tdx(self.absolute(directory.get_ref()));
            return Ok((None, Some(Attestor { platform, config })));
        }
        let (Some(root), Some(mrtd)) = (&given.development_root, given.development_mrtd) else {
            return Ok((None, None));
        };
        let path = self.absolute(root.get_ref());
        check_secret_file(&path).map_err(|source| ConfigError::Secret { place: self.place(root), source })?;
        let wrong = |error: PlatformError| self.refuse(root, crate::fleet::chain(&error));
        let root = Platform::load_root(&path).map_err(wrong)?;
        let platform = Platform::development(Arc::clone(&root), mrtd).map_err(wrong)?;
        Ok((Some(root), Some(Attestor { platform, config })))
    }

    fn check_machine(&self, spanned: &Spanned<MachineConfig>) -> Result<(), ConfigError> {
        let machine = spanned.get_ref();
        let texts = [
            ("host", Some(&machine.host)),
            ("public_host", machine.public_host.as_ref()),
            ("user", Some(&machine.user)),
        ];
        for (key, text) in texts.into_iter().filter_map(|(key, text)| Some((key, text?))) {
            let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b':' | b'-' | b'_');
            if text.is_empty() || text.len() > 253 || text.starts_with('-') || !text.bytes().all(fits) {
                return Err(self.refuse(spanned, format!("{key} = {text:?} is neither a name nor an address")));
            }
        }
        if machine.port == 0 {
            return Err(self.refuse(spanned, "port = 0; expected 1 to 65535"));
        }
        if machine.max_instances == 0 {
            return Err(self.refuse(spanned, "max_instances = 0; expected at least 1"));
        }
        if let Some(dir) = &machine.dir {
            let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'-' | b'_');
            if dir.is_empty() || dir.len() > 200 || !dir.bytes().all(fits) || dir.split('/').any(|part| part == "..") {
                let problem =
                    format!("dir = {dir:?}; expected a path of letters, digits, '.', '-', '_' and '/', without '..'");
                return Err(self.refuse(spanned, problem));
            }
        }
        self.check_guest(machine)?;
        self.check_virtual(spanned)?;
        self.range(&machine.cpu_millicores, 10, 1_024_000)?;
        self.range(&machine.ram_mib, 8, 16 << 20)
    }

    /// The rates a machine is sold at.
    #[must_use]
    pub fn rates_of(&self, machine: &MachineConfig) -> Option<DeclaredRates> {
        let rates = machine.rates.or(self.provider.rates.baremetal)?;
        Some(DeclaredRates { core_hour: rates.core_hour.0, gib_hour: rates.gib_hour.0 })
    }

    /// The machines.
    pub fn machines(&self) -> impl Iterator<Item = &MachineConfig> {
        self.baremetal.iter().flat_map(|section| &section.get_ref().machines).map(Spanned::get_ref)
    }

    /// Reads what the file points to. Makes the key and the dashboard's token when they do not exist yet.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key whose file cannot be used, or the fingerprint that differs.
    pub fn resolve(self) -> Result<Resolved, ConfigError> {
        let coalition = self.published()?;
        let bootstrap = self.bootstrap_peers()?;
        for spanned in self.baremetal.iter().flat_map(|section| &section.get_ref().machines) {
            let path = &spanned.get_ref().ssh_key_path;
            let wrong = |source| ConfigError::Secret { place: self.place(path), source };
            check_secret_file(&self.absolute(path.get_ref())).map_err(wrong)?;
        }
        self.check_credentials()?;
        let key_path = self.absolute(self.key_file.get_ref());
        let wrong = |source| ConfigError::NodeKey { place: self.place(&self.key_file), source };
        let key = NodeKey::load_or_create(&key_path).map_err(wrong)?;
        let dashboard_token = self.dashboard_token()?;
        let (development_root, attestor) = self.platform()?;
        Ok(Resolved { coalition, key, bootstrap, dashboard_token, development_root, attestor, config: self })
    }

    fn dashboard_token(&self) -> Result<Option<Zeroizing<String>>, ConfigError> {
        let Some(dashboard) = &self.dashboard else { return Ok(None) };
        let path = self.absolute(dashboard.token_file.get_ref());
        let wrong = |source| ConfigError::Secret { place: self.place(&dashboard.token_file), source };
        if !path.exists() {
            let made = make_token(&path);
            made.map_err(|source| wrong(super::SecretFileError::Io { path: path.clone(), source }))?;
        }
        let token = read_secret_file(&path).map_err(wrong)?;
        let token = Zeroizing::new(token.trim().to_owned());
        if token.len() < 32 {
            let problem = format!(
                "{} holds a token of {} characters; at least 32 are needed (delete the file to get a new one)",
                path.display(),
                token.len()
            );
            return Err(self.refuse(&dashboard.token_file, problem));
        }
        Ok(Some(token))
    }
}

fn make_token(path: &std::path::Path) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    let mut bytes = Zeroizing::new([0_u8; 32]);
    rand::rng().fill(bytes.as_mut_slice());
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "{}", hex::encode(bytes.as_slice()))?;
    file.sync_all()
}

impl MachineConfig {
    /// Name of the machine's offer: as configured, or made from host and port so that it stays the same.
    #[must_use]
    pub fn offer_name(&self) -> OfferName {
        let derived = || {
            let hash = blake3::hash(format!("{}:{}", self.host, self.port).as_bytes()).to_hex();
            format!("bm-{}", &hash.as_str()[..12]).parse().expect("hex digits make a name")
        };
        self.name.clone().unwrap_or_else(derived)
    }

    /// The address requesters reach workloads at.
    #[must_use]
    pub fn public_host(&self) -> &str {
        self.public_host.as_deref().unwrap_or(&self.host)
    }
}

impl std::fmt::Debug for Resolved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Resolved({:?}, key and token redacted)", self.config)
    }
}
