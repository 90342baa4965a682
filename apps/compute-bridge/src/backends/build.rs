//! From the boot file to the backends: one line per class; clouds are in `build_clouds.rs`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coalition::ProviderId;
use coalition_host::types::{Egress, IsolationLevel, MachineSpec};
use toml::Spanned;

use super::{BareMetalBackend, BareMetalSetup, HostSetup};
use crate::backend::Backend;
use crate::config::{MachineConfig, Resolved};
use crate::platform::Platform;
use crate::ssh::{LoginKey, SshTarget};
use crate::wiring::BridgeError;

/// Where things are put on a machine unless its section says otherwise.
const HOST_DIR: &str = ".coalition-host";

/// Every backend of the boot file, in its order: machines first, then clouds.
///
/// # Errors
/// [`BridgeError::Platform`] when a development guest cannot be made, [`BridgeError::Cloud`] when a cloud's client cannot be made of its section.
pub(crate) fn backends(resolved: &Resolved, id: ProviderId) -> Result<Vec<Arc<dyn Backend>>, BridgeError> {
    let mut backends: Vec<Arc<dyn Backend>> = Vec::new();
    backends.extend(machines(resolved, id)?.into_iter().map(|machine| machine as Arc<dyn Backend>));
    backends.extend(super::build_clouds::clouds(resolved, id)?.into_iter().map(|region| region as Arc<dyn Backend>));
    Ok(backends)
}

/// How workloads are run on the hosts of one section.
pub(super) fn host(
    resolved: &Resolved,
    id: ProviderId,
    dir: Option<&String>,
    (minimum_isolation, egress, network_mbit): (IsolationLevel, Egress, Option<u32>),
    runner: Option<&Spanned<PathBuf>>,
    machine: Option<MachineSpec>,
) -> HostSetup {
    let provider = &resolved.config.provider;
    let seconds = |value: u64| Duration::from_secs(value);
    HostSetup {
        dir: dir.cloned().unwrap_or_else(|| HOST_DIR.to_owned()),
        owner: hex::encode(&id.as_bytes()[..8]),
        minimum_isolation,
        egress,
        network_mbit,
        pids_max: *provider.pids_max.get_ref(),
        program: runner.map(|path| resolved.config.absolute(path.get_ref())),
        image_timeout: seconds(*provider.image_timeout_sec.get_ref()),
        start_timeout: seconds(*provider.start_timeout_sec.get_ref()),
        watch_interval: seconds(*provider.watch_interval_sec.get_ref()),
        machine,
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
            host: host(
                resolved,
                id,
                machine.dir.as_ref(),
                (machine.minimum_isolation, machine.egress.clone(), machine.network_mbit),
                program,
                machine.machine.as_ref().map(|spec| spec.get_ref().clone()),
            ),
        });
    }
    Ok(setups.into_iter().map(|setup| Arc::new(BareMetalBackend::new(setup))).collect())
}
