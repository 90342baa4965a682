//! What EC2 shows of this offer: one listing for all who ask, and when an instance counts as gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coalition_aws::{Instance, InstanceState};
use coalition_compute::OfferName;

use super::{Ec2Backend, tag};
use crate::backend::{BackendError, InstanceName};

/// Looks in a row that must miss an instance which EC2 never said had ended.
const MISSED: u32 = 3;

/// When an instance counts as gone: EC2 says so, or has not listed it several looks in a row. A look that failed is none.
#[derive(Debug, Default)]
pub struct Absence(u32);

impl Absence {
    /// One successful look; answers whether the instance is gone for good.
    pub fn look(&mut self, state: Option<InstanceState>) -> bool {
        match state {
            Some(InstanceState::Terminated | InstanceState::ShuttingDown | InstanceState::Stopped) => return true,
            Some(_) => self.0 = 0,
            None => self.0 += 1,
        }
        self.0 >= MISSED
    }
}

/// Everything EC2 listed at one time.
pub(super) struct Listing {
    pub(super) at: Instant,
    pub(super) instances: Vec<(InstanceName, Instance)>,
}

impl Listing {
    /// The state of an instance; of several with its name, of the one that is most alive.
    pub(super) fn state(&self, name: &InstanceName) -> Option<InstanceState> {
        self.instances.iter().filter(|(other, _)| other == name).map(|(_, instance)| instance.state).min_by_key(rank)
    }
}

fn rank(state: &InstanceState) -> u8 {
    match state {
        InstanceState::Running => 0,
        InstanceState::Pending => 1,
        InstanceState::Stopping => 2,
        InstanceState::Stopped => 3,
        InstanceState::ShuttingDown => 4,
        InstanceState::Terminated => 5,
    }
}

impl Ec2Backend {
    /// Tags that every thing of this offer carries.
    fn own(&self) -> [(&'static str, String); 2] {
        [(tag::BRIDGE, self.setup.provider.to_string()), (tag::OFFER, self.setup.name.to_string())]
    }

    /// Everything of this offer, over or not, no older than this. Asked once for all who wait.
    pub(super) async fn listing(&self, max_age: Duration) -> Result<Arc<Listing>, BackendError> {
        let mut kept = self.listing.lock().await;
        if let Some(listing) = kept.as_ref().filter(|listing| listing.at.elapsed() < max_age) {
            return Ok(Arc::clone(listing));
        }
        let own = self.own();
        let tags: Vec<(&str, &str)> = own.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let found = self.ec2.instances(&tags).await.map_err(|error| self.failed(&error))?;
        let named = |instance: Instance| {
            let name = InstanceName::try_from(instance.tags.get(tag::INSTANCE)?.clone()).ok()?;
            Some((name, instance))
        };
        let instances = found.into_iter().filter_map(named).collect();
        let listing = Arc::new(Listing { at: Instant::now(), instances });
        *kept = Some(Arc::clone(&listing));
        Ok(listing)
    }

    /// Everything with this name, asked anew.
    pub(super) async fn named(&self, name: &InstanceName) -> Result<Vec<Instance>, BackendError> {
        let own = self.own();
        let mut tags: Vec<(&str, &str)> = own.iter().map(|(key, value)| (*key, value.as_str())).collect();
        tags.push((tag::INSTANCE, name.as_str()));
        self.ec2.instances(&tags).await.map_err(|error| self.failed(&error))
    }

    /// Disks of this offer that are attached to nothing, each with the name of its instance.
    pub(super) async fn left_disks(
        &self,
        name: Option<&InstanceName>,
    ) -> Result<Vec<(InstanceName, coalition_aws::Volume)>, BackendError> {
        let own = self.own();
        let mut tags: Vec<(&str, &str)> = own.iter().map(|(key, value)| (*key, value.as_str())).collect();
        tags.extend(name.map(|name| (tag::INSTANCE, name.as_str())));
        let found = self.ec2.detached_volumes(&tags).await.map_err(|error| self.failed(&error))?;
        let named = |volume: coalition_aws::Volume| {
            let name = InstanceName::try_from(volume.tags.get(tag::INSTANCE)?.clone()).ok()?;
            Some((name, volume))
        };
        Ok(found.into_iter().filter_map(named).collect())
    }

    /// Resolves once the instance is gone as far as EC2 tells. While EC2 cannot be asked, it is not.
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

    /// The tags of a new instance.
    pub(super) fn tags(&self, name: &InstanceName, grant: &str, until_s: u64) -> Vec<(String, String)> {
        let setup = &self.setup;
        let pairs = [
            ("Name", format!("coalition {}", setup.name)),
            (tag::BRIDGE, setup.provider.to_string()),
            (tag::COALITION, setup.coalition.to_string()),
            (tag::GRANT, grant.to_owned()),
            (tag::INSTANCE, name.to_string()),
            (tag::OFFER, setup.name.to_string()),
            (tag::UNTIL, until_s.to_string()),
        ];
        pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// Name of the offer.
    pub(super) const fn offer(&self) -> &OfferName {
        &self.setup.name
    }
}
