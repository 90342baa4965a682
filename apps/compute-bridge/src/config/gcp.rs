//! Sections `[[gcp]]`: regions of Google Cloud projects.

use std::path::PathBuf;

use toml::Spanned;

use super::cloud::{CloudKind, cloud_section};

cloud_section! {
    /// One region of one project: one offer.
    GcpConfig {
        /// The project that pays.
        pub project: String,
        /// Where it is, as Google calls it; `region` when absent.
        pub gcp_region: Option<String>,
        /// Zones of the region; the next is tried when one has no room.
        pub zones: Vec<String>,
        /// A service account's key file, mode 600; the service account of the machine this runs on when absent.
        pub credentials_file: Option<Spanned<PathBuf>>,
        /// Another address for the API: `https://…`, or `http://` on loopback for a test.
        pub endpoint: Option<String>,
        /// `projects/P/global/images/NAME` or `…/images/family/FAMILY`: Linux with cloud-init, systemd and OpenSSH.
        pub image: String,
        /// The subnetwork: its name, or `projects/P/regions/R/subnetworks/NAME`.
        pub subnetwork: String,
        /// Network tags of hosts, by which firewall rules find them.
        #[serde(default)]
        pub network_tags: Vec<String>,
        /// Type of the hosts' disk.
        #[serde(default = "disk_type")]
        pub disk_type: String,
        /// Boots signed kernels only.
        #[serde(default)]
        pub secure_boot: bool,
    }
}

fn disk_type() -> String {
    "pd-balanced".into()
}

impl GcpConfig {
    pub(super) const KIND: CloudKind = CloudKind::Gcp;

    /// The region as Google calls it.
    #[must_use]
    pub fn api_region(&self) -> &str {
        self.gcp_region.as_deref().unwrap_or_else(|| self.region.as_str())
    }

    pub(super) const fn secret(&self) -> Option<&Spanned<PathBuf>> {
        self.credentials_file.as_ref()
    }

    /// What is wrong with the keys that only this cloud has; its client names the rest before anything is contacted.
    pub(super) fn own_problem(&self) -> Option<String> {
        self.sizes.iter().find_map(|size| size.unlike(&coalition_gcp::confidential(&size.size)))
    }
}
