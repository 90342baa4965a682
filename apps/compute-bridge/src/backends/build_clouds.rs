//! From the boot file to the backends on clouds.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coalition::ProviderId;
use coalition_aws::{CredentialSource, CredentialsError, Ec2Region, RegionSetup, from_environment, from_profile};
use coalition_azure::Azure;
use coalition_cloud::Cloud;
use coalition_gcp::ComputeEngine;

use super::build::host;
use super::cloud::ledger::Size;
use super::machine_keys::MachineKeys;
use super::{CloudBackend, CloudSetup};
use coalition_host::types::Egress;

use crate::config::{AwsConfig, AzureConfig, CloudOffer, CloudSize, GcpConfig, Resolved, read_secret_file};
use crate::fleet::chain;
use crate::wiring::BridgeError;

/// Wait for one answer of a cloud's API, and the first pause before a repetition.
const API_TIMEOUT: Duration = Duration::from_secs(30);
const API_PAUSE: Duration = Duration::from_millis(500);
/// Pause between two listings of a cloud.
const LOOK: Duration = Duration::from_secs(15);
/// Pause between two looks at an operation.
const POLL: Duration = Duration::from_secs(2);
/// How long the operation that makes a host is followed.
const CREATE: Duration = Duration::from_secs(60);
/// How long a cloud may not show what it has just made.
const SETTLE: Duration = Duration::from_secs(15);

/// One backend per section of a cloud.
pub(super) fn clouds(resolved: &Resolved, id: ProviderId) -> Result<Vec<Arc<CloudBackend>>, BridgeError> {
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
    for gcp in resolved.config.gcp() {
        let wrong = |source| BridgeError::Cloud { name: gcp.name.clone(), source: Box::new(source) };
        let engine = ComputeEngine::new(compute_engine(resolved, gcp)).map_err(wrong)?;
        backends.push(backend(&gcp.offer(), Arc::new(engine)));
    }
    for azure in resolved.config.azure() {
        let wrong =
            |source: Box<dyn std::error::Error + Send + Sync>| BridgeError::Cloud { name: azure.name.clone(), source };
        let setup = azure_setup(resolved, azure).map_err(|error| wrong(Box::new(error)))?;
        let client = Azure::new(setup).map_err(|error| wrong(Box::new(error)))?;
        backends.push(backend(&azure.offer(), Arc::new(client)));
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
        host: host(resolved, id, offer.dir, (offer.minimum_isolation, Egress::None, None), offer.runner, None),
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

fn compute_engine(resolved: &Resolved, gcp: &GcpConfig) -> coalition_gcp::Setup {
    let mut quota_metrics: Vec<String> = gcp.sizes.iter().map(|size| coalition_gcp::quota_metric(&size.size)).collect();
    quota_metrics.sort();
    quota_metrics.dedup();
    let file = gcp.credentials_file.as_ref().map(|path| resolved.config.absolute(path.get_ref()));
    coalition_gcp::Setup {
        project: gcp.project.clone(),
        region: gcp.api_region().to_owned(),
        zones: gcp.zones.clone(),
        endpoint: gcp.endpoint.clone(),
        credentials: google_credentials(file),
        image: gcp.image.clone(),
        subnetwork: gcp.subnetwork.clone(),
        network_tags: gcp.network_tags.clone(),
        public_address: !gcp.private_addresses,
        disk_type: gcp.disk_type.clone(),
        secure_boot: gcp.secure_boot,
        quota_metrics,
        timeout: API_TIMEOUT,
        pause: API_PAUSE,
        poll: POLL,
        create_patience: CREATE,
        settle: SETTLE,
    }
}

fn azure_setup(resolved: &Resolved, azure: &AzureConfig) -> std::io::Result<coalition_azure::Setup> {
    let absolute = |path: &Path| resolved.config.absolute(path);
    let extra_root =
        azure.extra_root_file.as_deref().map(|path| std::fs::read_to_string(absolute(path))).transpose()?;
    let secret = azure.client_secret_file.as_ref().map(|path| absolute(path.get_ref()));
    Ok(coalition_azure::Setup {
        subscription: azure.subscription.clone(),
        resource_group: azure.resource_group.clone(),
        region: azure.api_region().to_owned(),
        places: azure.zones.clone(),
        image: azure.image.clone(),
        subnet: azure.subnet.clone(),
        security_group: azure.security_group.clone(),
        private_addresses: azure.private_addresses,
        secure_boot: azure.secure_boot,
        confidential_disk: azure.confidential_disk,
        boot_diagnostics: true,
        quota_family: azure.quota_family.clone(),
        credentials: azure_credentials(azure, secret),
        addresses: coalition_azure::Addresses {
            endpoint: azure.endpoint.clone(),
            authority: azure.authority.clone(),
            metadata: None,
            extra_root,
        },
        timeout: API_TIMEOUT,
        pause: API_PAUSE,
        follow: None,
        settle: None,
    })
}

/// Read anew whenever a token is needed, as with AWS.
fn google_credentials(file: Option<PathBuf>) -> coalition_gcp::CredentialSource {
    use coalition_gcp::{Credentials, CredentialsError};
    Arc::new(move || {
        let Some(file) = &file else { return Credentials::from_metadata_server(None) };
        let text = read_secret_file(file).map_err(|error| CredentialsError::Unavailable(chain(&error)))?;
        Credentials::from_key_file(&text)
    })
}

fn azure_credentials(azure: &AzureConfig, secret: Option<PathBuf>) -> coalition_azure::CredentialSource {
    use coalition_azure::{Credentials, CredentialsError};
    let (tenant, client) = (azure.tenant.clone(), azure.client.clone());
    Arc::new(move || match (&secret, &tenant, &client) {
        (Some(file), Some(tenant), Some(client)) => {
            let text = read_secret_file(file).map_err(|error| CredentialsError::Unavailable(chain(&error)))?;
            Credentials::client_secret(tenant, client, text.trim())
        }
        (_, _, client) => Credentials::managed_identity(client.as_deref()),
    })
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
