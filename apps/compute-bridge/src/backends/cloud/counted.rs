//! What the cloud itself counted of a host.

use coalition_cloud::{Fact, Window};

use super::CloudBackend;
use super::ledger::Size;
use crate::backend::{BackendError, InstanceName};
use crate::evidence::Taken;

/// Facts in which clouds name a host's size.
const SIZE_FACTS: [&str; 2] = ["instanceType", "vmSize"];

impl CloudBackend {
    /// What the API tells, and where it does not tell how many virtual CPUs its percent are of, what the boot file says.
    pub(super) async fn counted(&self, name: &InstanceName, window: Window) -> Result<Taken, BackendError> {
        let told = self.setup.cloud.telemetry(self.owner(), name.as_str(), window).await;
        // Not `failed`: that nothing was told of an end is no trouble with the backend.
        let mut telemetry = told.map_err(|error| self.error(error.kind.into(), crate::fleet::chain(&error)))?;
        if telemetry.facts.iter().all(|fact| fact.name != "vcpus") {
            let size = telemetry.facts.iter().find(|fact| SIZE_FACTS.contains(&fact.name.as_str()));
            let sold = size.and_then(|fact| self.setup.sizes.iter().find(|size| size.name == fact.value));
            let vcpus = sold.map(Size::vcpus).map(|vcpus| vcpus.to_string());
            telemetry.facts.extend(Fact::of("the provider's boot file", "vcpus", vcpus.as_deref()));
        }
        let cloud = &self.setup.cloud;
        Ok(Taken { cloud: cloud.name(), region: cloud.region().to_owned(), telemetry })
    }
}
