//! What a client is made of, and what keeps it from being made.

use std::time::Duration;

use crate::credentials::CredentialSource;
use crate::http::HttpError;
use crate::names::{
    ImageName, NameError, check_metric, check_project, check_region, check_resource, check_zone, subnetwork,
};

/// What a client is made of.
#[derive(Clone)]
pub struct Setup {
    /// The project that pays.
    pub project: String,
    /// The region, e.g. `europe-west4`.
    pub region: String,
    /// Zones of the region, tried in this order when there is no room.
    pub zones: Vec<String>,
    /// Another address than Google's own: `https://…`, or `http://` on loopback.
    pub endpoint: Option<String>,
    /// Asked before every call.
    pub credentials: CredentialSource,
    /// `projects/P/global/images/NAME`, or `…/images/family/FAMILY` for the newest of a family. It must have cloud-init.
    pub image: String,
    /// The subnetwork hosts are in: its name, or `projects/P/regions/R/subnetworks/NAME` for a shared one.
    pub subnetwork: String,
    /// Network tags of every host, by which firewall rules find it; may be none.
    pub network_tags: Vec<String>,
    /// Whether hosts get an address on the internet.
    pub public_address: bool,
    /// Type of the hosts' disk, e.g. `pd-balanced`; some families take `hyperdisk-balanced` only.
    pub disk_type: String,
    /// Boots signed kernels only.
    pub secure_boot: bool,
    /// Quotas of the region that count, e.g. of [`quota_metric`](crate::quota_metric) for each size that is sold.
    pub quota_metrics: Vec<String>,
    /// Wait for one answer.
    pub timeout: Duration,
    /// Pause before a repetition; doubled each time.
    pub pause: Duration,
    /// Pause between two looks at an operation.
    pub poll: Duration,
    /// How long the operation that makes a host is followed: the lack of machines shows there, mostly within 20 s.
    pub create_patience: Duration,
    /// How long something just made may not be listed.
    pub settle: Duration,
}

impl std::fmt::Debug for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Setup({} in {}, rest left out)", self.project, self.region)
    }
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A name that is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// No zones.
    #[error("no zone of {region} is given; expected at least one, like \"{region}-a\"")]
    NoZone {
        /// The region.
        region: String,
    },
    /// A zone twice.
    #[error("the zone {zone} is given twice; each is tried once")]
    ZoneTwice {
        /// Which.
        zone: String,
    },
    /// No HTTP client.
    #[error(transparent)]
    Http(#[from] HttpError),
}

/// The setup's names, checked, in the forms that requests need.
#[derive(Clone, Debug)]
pub(crate) struct Checked {
    pub(crate) image: ImageName,
    pub(crate) subnetwork: String,
}

impl Setup {
    pub(crate) fn check(&self) -> Result<Checked, SetupError> {
        check_project(&self.project)?;
        check_region(&self.region)?;
        if self.zones.is_empty() {
            return Err(SetupError::NoZone { region: self.region.clone() });
        }
        for (n, zone) in self.zones.iter().enumerate() {
            check_zone(&self.region, zone)?;
            if self.zones[..n].contains(zone) {
                return Err(SetupError::ZoneTwice { zone: zone.clone() });
            }
        }
        self.network_tags.iter().try_for_each(|tag| check_resource("network tag", tag))?;
        check_resource("disk type", &self.disk_type)?;
        self.quota_metrics.iter().try_for_each(|metric| check_metric(metric))?;
        let subnetwork = subnetwork(&self.project, &self.region, &self.subnetwork)?;
        Ok(Checked { image: ImageName::parse(&self.image)?, subnetwork })
    }
}
