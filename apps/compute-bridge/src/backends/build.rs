//! From the boot file to the backends: one line per class.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coalition::ProviderId;
use coalition_aws::{CredentialSource, CredentialsError, from_environment, from_profile};

use super::ec2::ledger::Size;
use super::machine_keys::MachineKeys;
use super::{BareMetalBackend, BareMetalSetup, Ec2Backend, Ec2Setup};
use crate::backend::Backend;
use crate::config::{AwsConfig, MachineConfig, Resolved, read_secret_file};
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
/// How long a cloud may not show what it has just made.
const SETTLE: Duration = Duration::from_secs(30);

/// Every backend of the boot file, in its order: machines first, then clouds.
///
/// # Errors
/// [`BridgeError::Platform`] when a development guest cannot be made, [`BridgeError::Cloud`] when an endpoint is none.
pub(crate) fn backends(resolved: &Resolved, id: ProviderId) -> Result<Vec<Arc<dyn Backend>>, BridgeError> {
    let mut backends: Vec<Arc<dyn Backend>> = Vec::new();
    backends.extend(machines(resolved, id)?.into_iter().map(|machine| machine as Arc<dyn Backend>));
    backends.extend(ec2(resolved, id)?.into_iter().map(|region| region as Arc<dyn Backend>));
    Ok(backends)
}

/// Name of this bridge's directory on hosts.
fn owner(id: ProviderId) -> String {
    hex::encode(&id.as_bytes()[..8])
}

/// One backend per machine of the boot file.
fn machines(resolved: &Resolved, id: ProviderId) -> Result<Vec<Arc<BareMetalBackend>>, BridgeError> {
    let config = &resolved.config;
    let provider = &config.provider;
    let seconds = |value: u64| Duration::from_secs(value);
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
            dir: machine.dir.clone().unwrap_or_else(|| HOST_DIR.to_owned()),
            owner: owner(id),
            minimum_isolation: machine.minimum_isolation,
            pids_max: *provider.pids_max.get_ref(),
            program: program.map(|path| config.absolute(path.get_ref())),
            image_timeout: seconds(*provider.image_timeout_sec.get_ref()),
            start_timeout: seconds(*provider.start_timeout_sec.get_ref()),
            watch_interval: seconds(*provider.watch_interval_sec.get_ref()),
        });
    }
    Ok(setups.into_iter().map(|setup| Arc::new(BareMetalBackend::new(setup))).collect())
}

/// One backend per `[[aws]]` section.
fn ec2(resolved: &Resolved, id: ProviderId) -> Result<Vec<Arc<Ec2Backend>>, BridgeError> {
    let keys = MachineKeys::new(resolved.key.expose());
    let make = |aws: &AwsConfig| {
        let name = aws.name.clone();
        let made = Ec2Backend::new(ec2_setup(resolved, aws, id, keys.clone()));
        made.map(Arc::new).map_err(|source| BridgeError::Cloud { name, source })
    };
    resolved.config.clouds().map(make).collect()
}

fn ec2_setup(resolved: &Resolved, aws: &AwsConfig, id: ProviderId, keys: MachineKeys) -> Ec2Setup {
    let config = &resolved.config;
    let provider = &config.provider;
    let seconds = |value: u64| Duration::from_secs(value);
    let size = |size: &crate::config::AwsSize| Size {
        instance_type: size.instance_type.clone(),
        cpu_millicores: size.cpu_millicores,
        ram_mib: size.ram_mib,
        price_hour: size.price_hour.0,
        sev_snp: size.sev_snp,
    };
    Ec2Setup {
        name: aws.name.clone(),
        aws: coalition_aws::Setup {
            region: aws.api_region().to_owned(),
            endpoint: aws.endpoint.clone(),
            credentials: credentials(aws, aws.credentials_file.as_ref().map(|path| config.absolute(path.get_ref()))),
            timeout: API_TIMEOUT,
            pause: API_PAUSE,
        },
        region: aws.region.clone(),
        image: aws.image.clone(),
        subnets: aws.subnets.clone(),
        security_groups: aws.security_groups.clone(),
        sizes: aws.sizes.iter().map(size).collect(),
        max_instances: aws.max_instances,
        root_gib: aws.root_gib,
        quota_code: aws.quota_code.clone(),
        rates: config.rates_of_cloud(aws),
        private_addresses: aws.private_addresses,
        ssh_port: aws.ssh_port,
        keys,
        provider: id,
        coalition: resolved.coalition.fingerprint(),
        dir: aws.dir.clone().unwrap_or_else(|| HOST_DIR.to_owned()),
        owner: owner(id),
        minimum_isolation: aws.minimum_isolation,
        pids_max: *provider.pids_max.get_ref(),
        program: aws.runner.as_ref().map(|path| config.absolute(path.get_ref())),
        image_timeout: seconds(*provider.image_timeout_sec.get_ref()),
        start_timeout: seconds(*provider.start_timeout_sec.get_ref()),
        watch_interval: seconds(*provider.watch_interval_sec.get_ref()),
        boot_timeout: seconds(aws.boot_timeout_sec),
        poweroff_after: seconds(aws.poweroff_after_sec),
        look: LOOK,
        settle: SETTLE,
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
