//! Sections `[[azure]]`: regions of Azure subscriptions.

use std::path::PathBuf;

use toml::Spanned;

use super::cloud::{CloudKind, cloud_section};

cloud_section! {
    /// One region of one subscription: one offer.
    AzureConfig {
        /// The subscription, a GUID.
        pub subscription: String,
        /// The resource group hosts are made in. Best one for this bridge alone.
        pub resource_group: String,
        /// Where it is, as Azure calls it; `region` when absent.
        pub azure_region: Option<String>,
        /// Zones; the next is tried when one has no room. `any` leaves the choice to Azure.
        #[serde(default = "zones")]
        pub zones: Vec<String>,
        /// The directory, a GUID; with `client` and `client_secret_file`.
        pub tenant: Option<String>,
        /// The application, a GUID; alone the client id of a user-assigned identity of the machine this runs on.
        pub client: Option<String>,
        /// The application's secret, mode 600; the identity of the machine this runs on when absent.
        pub client_secret_file: Option<Spanned<PathBuf>>,
        /// Another address of the Resource Manager, `https://…`.
        pub endpoint: Option<String>,
        /// Another address of who gives out tokens, `https://…`.
        pub authority: Option<String>,
        /// A certificate authority trusted beside the system's, PEM; for addresses on loopback only.
        pub extra_root_file: Option<PathBuf>,
        /// A generalised image: `/subscriptions/…/versions/…`, or `publisher:offer:sku:version` of the marketplace.
        pub image: String,
        /// The hosts' subnet, `/subscriptions/…/subnets/…`.
        pub subnet: String,
        /// Their network security group; the subnet's alone counts when absent.
        pub security_group: Option<String>,
        /// Whether confidential hosts boot signed kernels only.
        #[serde(default)]
        pub secure_boot: bool,
        /// Whether confidential hosts' disks are bound to the host, too.
        #[serde(default)]
        pub confidential_disk: bool,
        /// The family of sizes whose quota counts beside the region's, e.g. `standardDCASv5Family`.
        pub quota_family: Option<String>,
    }
}

fn zones() -> Vec<String> {
    vec!["any".into()]
}

impl AzureConfig {
    pub(super) const KIND: CloudKind = CloudKind::Azure;

    /// The region as Azure calls it.
    #[must_use]
    pub fn api_region(&self) -> &str {
        self.azure_region.as_deref().unwrap_or_else(|| self.region.as_str())
    }

    pub(super) const fn secret(&self) -> Option<&Spanned<PathBuf>> {
        self.client_secret_file.as_ref()
    }

    /// What is wrong with the keys that only this cloud has; its client names the rest before anything is contacted.
    pub(super) fn own_problem(&self) -> Option<String> {
        match (&self.tenant, &self.client, &self.client_secret_file) {
            (Some(_), Some(_), Some(_)) | (None, _, None) => {}
            _ => {
                let problem = "tenant and client_secret_file belong together, with client; leave both out for the identity of \
                               the machine this runs on";
                return Some(problem.to_owned());
            }
        }
        let known = |size: &str| coalition_azure::confidential_family(size).into_iter().collect::<Vec<_>>();
        self.sizes.iter().find_map(|size| size.unlike(&known(&size.size)))
    }
}
