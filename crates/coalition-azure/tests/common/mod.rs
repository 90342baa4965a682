//! A client of the double.
#![allow(dead_code, unreachable_pub)]

use std::sync::Arc;
use std::time::Duration;

use coalition_azure::*;
use coalition_azure_double::*;
use coalition_cloud::{Confidential, Marks, NewHost, Owner};

/// What an operator gives the bridge.
pub const ROLES: [&str; 3] = [
    include_str!("../../../../docs/permissions/azure-hosts.json"),
    include_str!("../../../../docs/permissions/azure-parts.json"),
    include_str!("../../../../docs/permissions/azure-region.json"),
];
pub const BRIDGE: &str = "b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0";
pub const OWNER: Owner<'static> = Owner { bridge: BRIDGE, offer: "azure-we" };
pub const USER_DATA: &[u8] = b"#cloud-config\n{\"users\":[]}\n";

pub const PUT: &str = "Microsoft.Compute/virtualMachines/write";
pub const GET: &str = "Microsoft.Compute/virtualMachines/read";
pub const DELETE: &str = "Microsoft.Compute/virtualMachines/delete";
pub const LOOK: &str = "Microsoft.Compute/locations/operations/read";

pub fn application() -> CredentialSource {
    Arc::new(|| Credentials::client_secret(TENANT, CLIENT, SECRET))
}

pub fn setup(double: &Double) -> Setup {
    Setup {
        subscription: SUBSCRIPTION.into(),
        resource_group: GROUP.into(),
        region: REGION.into(),
        places: vec!["1".into(), "2".into(), "any".into()],
        image: IMAGE.into(),
        subnet: SUBNET.into(),
        security_group: Some(SECURITY_GROUP.into()),
        private_addresses: false,
        secure_boot: true,
        confidential_disk: false,
        boot_diagnostics: true,
        quota_family: Some("standardDCEv6Family".into()),
        credentials: application(),
        addresses: Addresses {
            endpoint: Some(double.endpoint.clone()),
            authority: Some(double.endpoint.clone()),
            metadata: Some(double.endpoint.clone()),
            extra_root: Some(double.root.clone()),
        },
        timeout: Duration::from_secs(20),
        pause: Duration::from_millis(5),
        follow: Some(Duration::from_secs(10)),
        settle: Some(Duration::from_secs(5)),
    }
}

pub fn marks(instance: u8) -> Marks {
    Marks {
        bridge: BRIDGE.into(),
        offer: "azure-we".into(),
        instance: format!("{instance:032x}"),
        coalition: "c0".repeat(32),
        grant: "[a grant]".into(),
        until_s: 1_800_000_000,
    }
}

pub fn new_host(marks: &Marks) -> NewHost<'_> {
    NewHost {
        marks,
        place: "1",
        size: "Standard_DC2es_v6",
        confidential: Some(Confidential::Tdx),
        user_data: USER_DATA,
        disk_gib: 30,
        longest_s: 3_600,
    }
}

/// Awaits a condition; no test waits for a time.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let end = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < end, "{what} within 30 s");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
