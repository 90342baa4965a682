//! For tests: an Azure that can be asked without an account, and that fails as Azure does.
//!
//! ```text
//! client ──TLS──▶ server ── token, permission, api-version, faults ──▶ world: machines, interfaces, addresses, disks, operations
//!                   │ login, metadata: tokens with an end                 rules: what a request for a machine must be
//!                   └──▶ coalition-cloud-double: an SSH server on the machine's address, with the host key and login of its user data
//! ```
//!
//! What it proves and what only a real account can is in `README.md` beside this file's crate.

mod answer;
mod catalogue;
mod console;
mod login;
mod machines;
mod rules;
mod server;
mod telemetry;
mod things;
mod tls;
mod world;

pub use coalition_cloud_double::{Boot, Phase, Sshd, Watcher};
pub use server::{Call, Double, Fault};

/// The subscription.
pub const SUBSCRIPTION: &str = "0b1f6471-1bf0-4dda-aec3-cb9272f09590";
/// The resource group hosts are made in.
pub const GROUP: &str = "bridge-hosts";
/// The region everything is in.
pub const REGION: &str = "westeurope";
/// The directory.
pub const TENANT: &str = "72f988bf-86f1-41af-91ab-2d7cd011db47";
/// The application, which is the user-assigned identity as well.
pub const CLIENT: &str = "5f2a6dc1-4f1e-4ffb-9a4c-0f6a1bd4a8a1";
/// Its secret.
pub const SECRET: &str = "s3cr~et.value_of-the-application";
/// A version in a gallery.
pub const IMAGE: &str = "/subscriptions/0b1f6471-1bf0-4dda-aec3-cb9272f09590/resourceGroups/images/providers/Microsoft.Compute/galleries/bridge/images/host/versions/1.0.3";
/// An image of the marketplace.
pub const URN: &str = "Debian:debian-12:12-gen2:0.20251006.2257";
/// Where hosts stand.
pub const SUBNET: &str = "/subscriptions/0b1f6471-1bf0-4dda-aec3-cb9272f09590/resourceGroups/network/providers/Microsoft.Network/virtualNetworks/hosts/subnets/default";
/// Who may reach them.
pub const SECURITY_GROUP: &str = "/subscriptions/0b1f6471-1bf0-4dda-aec3-cb9272f09590/resourceGroups/network/providers/Microsoft.Network/networkSecurityGroups/hosts";

/// A size of the region.
pub struct Size {
    /// Azure's name.
    pub name: &'static str,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory, GiB as Azure writes it.
    pub memory: &'static str,
    /// What `ConfidentialComputingType` says.
    pub confidential: Option<&'static str>,
    /// Whose quota it counts against.
    pub family: &'static str,
    /// Zones it is offered in.
    pub zones: &'static [&'static str],
    /// Whether this subscription may use it.
    pub allowed: bool,
}

/// All sizes of the region.
pub const SIZES: [Size; 5] = [
    Size {
        name: "Standard_D2s_v5",
        vcpus: 2,
        memory: "8",
        confidential: None,
        family: "standardDSv5Family",
        zones: &["1", "2", "3"],
        allowed: true,
    },
    Size {
        name: "Standard_DC2as_v5",
        vcpus: 2,
        memory: "8",
        confidential: Some("SNP"),
        family: "standardDCASv5Family",
        zones: &["1", "2", "3"],
        allowed: true,
    },
    Size {
        name: "Standard_DC2es_v6",
        vcpus: 2,
        memory: "8",
        confidential: Some("TDX"),
        family: "standardDCEv6Family",
        zones: &["1", "2"],
        allowed: true,
    },
    Size {
        name: "Standard_A1_v2",
        vcpus: 1,
        memory: "3.5",
        confidential: None,
        family: "standardAv2Family",
        zones: &[],
        allowed: true,
    },
    Size {
        name: "Standard_M8ms",
        vcpus: 8,
        memory: "218.75",
        confidential: None,
        family: "standardMSFamily",
        zones: &["1"],
        allowed: false,
    },
];
