//! What the cloud shows of this offer: one listing for all who ask, and when a host counts as gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coalition_cloud::{Host, HostState, Leftover, Marks};
use coalition_compute::OfferName;

use super::CloudBackend;
use crate::backend::{BackendError, InstanceName};

/// Looks in a row that must miss a host which the cloud never said had ended.
const MISSED: u32 = 3;

/// When a host counts as gone: the cloud says so, or has not listed it several looks in a row. A look that failed is none.
#[derive(Debug, Default)]
pub struct Absence(u32);

impl Absence {
    /// One successful look; answers whether the host is gone for good.
    pub fn look(&mut self, state: Option<HostState>) -> bool {
        match state {
            Some(HostState::Over | HostState::Stopped) => return true,
            Some(_) => self.0 = 0,
            None => self.0 += 1,
        }
        self.0 >= MISSED
    }
}

/// Everything the cloud listed at one time.
pub(super) struct Listing {
    pub(super) at: Instant,
    pub(super) hosts: Vec<(InstanceName, Host)>,
}

impl Listing {
    /// The state of a host; of several with its name, of the one that is most alive.
    pub(super) fn state(&self, name: &InstanceName) -> Option<HostState> {
        self.hosts.iter().filter(|(other, _)| other == name).map(|(_, host)| host.state).min()
    }
}

impl CloudBackend {
    /// Everything of this offer, over or not, no older than this. Asked once for all who wait.
    pub(super) async fn listing(&self, max_age: Duration) -> Result<Arc<Listing>, BackendError> {
        let mut kept = self.listing.lock().await;
        if let Some(listing) = kept.as_ref().filter(|listing| listing.at.elapsed() < max_age) {
            return Ok(Arc::clone(listing));
        }
        let found = self.setup.cloud.hosts(self.owner(), None).await.map_err(|error| self.failed(&error))?;
        let named = |host: Host| Some((InstanceName::try_from(host.instance.clone()).ok()?, host));
        let hosts = found.into_iter().filter_map(named).collect();
        let listing = Arc::new(Listing { at: Instant::now(), hosts });
        *kept = Some(Arc::clone(&listing));
        Ok(listing)
    }

    /// Everything with this name, asked anew.
    pub(super) async fn named(&self, name: &InstanceName) -> Result<Vec<Host>, BackendError> {
        let found = self.setup.cloud.hosts(self.owner(), Some(name.as_str())).await;
        found.map_err(|error| self.failed(&error))
    }

    /// What hosts of this offer left behind, each with the name of its instance.
    pub(super) async fn leftovers(
        &self,
        name: Option<&InstanceName>,
    ) -> Result<Vec<(InstanceName, Leftover)>, BackendError> {
        let found = self.setup.cloud.leftovers(self.owner(), name.map(InstanceName::as_str)).await;
        let found = found.map_err(|error| self.failed(&error))?;
        let named = |leftover: Leftover| Some((InstanceName::try_from(leftover.instance.clone()).ok()?, leftover));
        Ok(found.into_iter().filter_map(named).collect())
    }

    /// Resolves once the host is gone as far as the cloud tells. While the cloud cannot be asked, it is not.
    pub(super) async fn until_gone(&self, name: &InstanceName) {
        let (mut absence, mut last) = (Absence::default(), None);
        loop {
            tokio::time::sleep(self.setup.look).await;
            let Ok(listing) = self.listing(self.setup.look).await else { continue };
            if last.replace(listing.at) != Some(listing.at) && absence.look(listing.state(name)) {
                return;
            }
        }
    }

    /// The marks of a new host.
    pub(super) fn marks(&self, name: &InstanceName, grant: String, until_s: u64) -> Marks {
        Marks {
            bridge: self.provider.clone(),
            offer: self.setup.name.to_string(),
            instance: name.to_string(),
            coalition: self.setup.coalition.to_string(),
            grant,
            until_s,
        }
    }

    /// Name of the offer.
    pub(super) const fn offer(&self) -> &OfferName {
        &self.setup.name
    }
}
