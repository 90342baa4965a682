//! From the boot file to the backends: one line per class.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coalition::ProviderId;
use coalition_aws::{CredentialSource, CredentialsError, Ec2Region, RegionSetup, from_environment, from_profile};
use coalition_cloud::Cloud;
use coalition_host::types::IsolationLevel;
use toml::Spanned;

use super::cloud::ledger::Size;
use super::machine_keys::MachineKeys;
use super::{BareMetalBackend, BareMetalSetup, CloudBackend, CloudSetup, HostSetup};
use crate::backend::Backend;
use crate::config::{AwsConfig, CloudOffer, CloudSize, MachineConfig, Resolved, read_secret_file};
use crate::fleet::chain;
use crate::platform::Platform;
use crate::ssh::{LoginKey, SshTarget};
use crate::wiring::BridgeError;

/// Where things are put on a machine unless its section says otherwise.
const HOST_DIR: &str = ".coalition-host";
/// Wait for one answer of a cloud's API, and the first pause before a repetition.
const API_TIMEOUT: Duration = Duration::from_secs(30);
const API_PAUSE: Duration = Duration::from_millis(500);
/// Pause between two listings of a cloud.
const LOOK: Duration = Duration::from_secs(15);

/// Every backend of the boot file, in its order: machines first, then clouds.
///
/// # Errors
/// [`BridgeError::Platform`] when a development guest cannot be made, [`BridgeError::Cloud`] when an endpoint is none.
pub(crate) fn backends(resolved: &Resolved, id: ProviderId) -> Result<Vec<Arc<dyn Backend>>, BridgeError> {
    let mut backends: Vec<Arc<dyn Backend>> = Vec::new();
    backends.extend(machines(resolved, id)?.into_iter().map(|machine| machine as Arc<dyn Backend>));
    backends.extend(clouds(resolved, id)?.into_iter().map(|region| region as Arc<dyn Backend>));
    Ok(backends)
}

/// How workloads are run on the hosts of one section.
fn host(
    resolved: &Resolved,
    id: ProviderId,
    dir: Option<&String>,
    minimum_isolation: IsolationLevel,
    runner: Option<&Spanned<PathBuf>>,
) -> HostSetup {
    let provider = &resolved.config.provider;
    let seconds = |value: u64| Duration::from_secs(value);
    HostSetup {
        dir: dir.cloned().unwrap_or_else(|| HOST_DIR.to_owned()),
        owner: hex::encode(&id.as_bytes()[..8]),
        minimum_isolation,
        pids_max: *provider.pids_max.get_ref(),
        program: runner.map(|path| resolved.config.absolute(path.get_ref())),
        image_timeout: seconds(*provider.image_timeout_sec.get_ref()),
        start_timeout: seconds(*provider.start_timeout_sec.get_ref()),
        watch_interval: seconds(*provider.watch_interval_sec.get_ref()),
    }
}

/// One backend per machine of the boot file.
fn machines(resolved: &Resolved, id: ProviderId) -> Result<Vec<Arc<BareMetalBackend>>, BridgeError> {
    let config = &resolved.config;
    let program = config.baremetal.as_ref().and_then(|section| section.get_ref().runner.as_ref());
    let guest = |machine: &MachineConfig| {
        let wanted = resolved.development_root.as_ref().zip(machine.guest_mrtd.as_ref());
        wanted.map(|(root, mrtd)| Platform::development(Arc::clone(root), *mrtd.get_ref())).transpose()
    };
    let mut setups = Vec::new();
    for machine in config.machines() {
        let Some(rates) = config.rates_of(machine) else { continue };
        setups.push(BareMetalSetup {
            guest: guest(machine)?,
            name: machine.offer_name(),
            target: SshTarget {
                host: machine.host.clone(),
                port: machine.port,
                user: machine.user.clone(),
                key: LoginKey::File(config.absolute(machine.ssh_key_path.get_ref())),
                host_key: machine.host_key.clone(),
            },
            region: machine.region.clone(),
            cpu_millicores: *machine.cpu_millicores.get_ref(),
            ram_mib: *machine.ram_mib.get_ref(),
            max_instances: machine.max_instances,
            rates,
            public_host: machine.public_host().to_owned(),
            listen: machine.listen,
            host: host(resolved, id, machine.dir.as_ref(), machine.minimum_isolation, program),
        });
    }
    Ok(setups.into_iter().map(|setup| Arc::new(BareMetalBackend::new(setup))).collect())
}

/// One backend per section of a cloud.
fn clouds(resolved: &Resolved, id: ProviderId) -> Result<Vec<Arc<CloudBackend>>, BridgeError> {
    let keys = MachineKeys::new(resolved.key.expose());
    let backend = |offer: &CloudOffer<'_>, cloud: Arc<dyn Cloud>| {
        Arc::new(CloudBackend::new(cloud_setup(resolved, offer, id, keys.clone(), cloud)))
    };
    let mut backends = Vec::new();
    for aws in resolved.config.aws() {
        let wrong = |source| BridgeError::Cloud { name: aws.name.clone(), source: Box::new(source) };
        let region = Ec2Region::new(ec2_region(resolved, aws)).map_err(wrong)?;
        backends.push(backend(&aws.offer(), Arc::new(region)));
    }
    Ok(backends)
}

fn cloud_setup(
    resolved: &Resolved,
    offer: &CloudOffer<'_>,
    id: ProviderId,
    keys: MachineKeys,
    cloud: Arc<dyn Cloud>,
) -> CloudSetup {
    let seconds = |value: u64| Duration::from_secs(value);
    let size = |size: &CloudSize| Size {
        name: size.size.clone(),
        cpu_millicores: size.cpu_millicores,
        ram_mib: size.ram_mib,
        price_hour: size.price_hour.0,
        confidential: size.confidential.map(Into::into),
    };
    CloudSetup {
        name: offer.name.clone(),
        cloud,
        region: offer.region.clone(),
        sizes: offer.sizes.iter().map(size).collect(),
        max_instances: offer.max_instances,
        root_gib: offer.root_gib,
        rates: resolved.config.rates_of_cloud(offer),
        private_addresses: offer.private_addresses,
        ssh_port: offer.ssh_port,
        keys,
        provider: id,
        coalition: resolved.coalition.fingerprint(),
        host: host(resolved, id, offer.dir, offer.minimum_isolation, offer.runner),
        boot_timeout: seconds(offer.boot_timeout_sec),
        poweroff_after: seconds(offer.poweroff_after_sec),
        look: LOOK,
        pause: API_PAUSE,
    }
}

fn ec2_region(resolved: &Resolved, aws: &AwsConfig) -> RegionSetup {
    let file = aws.credentials_file.as_ref().map(|path| resolved.config.absolute(path.get_ref()));
    RegionSetup {
        api: coalition_aws::Setup {
            region: aws.api_region().to_owned(),
            endpoint: aws.endpoint.clone(),
            credentials: credentials(aws, file),
            timeout: API_TIMEOUT,
            pause: API_PAUSE,
        },
        image: aws.image.clone(),
        subnets: aws.subnets.clone(),
        security_groups: aws.security_groups.clone(),
        private_addresses: aws.private_addresses,
        quota_code: aws.quota_code.clone(),
        settle: None,
    }
}

/// Read anew for every call, so that exchanged keys count at once; refused when others may read the file.
fn credentials(aws: &AwsConfig, file: Option<PathBuf>) -> CredentialSource {
    let Some(file) = file else { return Arc::new(from_environment) };
    let profile = aws.profile.clone();
    Arc::new(move || {
        let text = read_secret_file(&file).map_err(|error| CredentialsError::Unavailable(chain(&error)))?;
        from_profile(&text, &profile)
    })
}
