//! What is booked on one offer of a cloud, and what may still be. Pure.

use std::collections::BTreeMap;

use coalition::RateQ64;
use coalition_cloud::Confidential;
use coalition_compute::ComputeGrant;

use crate::backend::{FailureKind, InstanceName};

/// One size of machines that is sold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Size {
    /// The cloud's name for it, e.g. `m6a.large`.
    pub name: String,
    /// CPU sold of it, thousandths of a core.
    pub cpu_millicores: u32,
    /// Memory sold of it, MiB.
    pub ram_mib: u32,
    /// What the cloud charges, USD per hour.
    pub price_hour: RateQ64,
    /// The confidential computing its machines are asked for with.
    pub confidential: Option<Confidential>,
}

impl Size {
    /// Virtual CPUs it counts as in the account's quota.
    #[must_use]
    pub const fn vcpus(&self) -> u32 {
        self.cpu_millicores.div_ceil(1_000)
    }

    const fn fits(&self, cpu_millicores: u32, ram_mib: u32) -> bool {
        cpu_millicores <= self.cpu_millicores && ram_mib <= self.ram_mib
    }
}

/// The cheapest size a machine this large fits on; of equally cheap ones the smallest.
#[must_use]
pub fn choose(sizes: &[Size], cpu_millicores: u32, ram_mib: u32) -> Option<&Size> {
    let fitting = sizes.iter().filter(|size| size.fits(cpu_millicores, ram_mib));
    fitting.min_by_key(|size| (size.price_hour, size.cpu_millicores, size.ram_mib))
}

#[derive(Clone, Copy)]
struct Booked {
    vcpus: u32,
    /// Reserved by the market on another offer, so that the market does not know it is here.
    unknown_to_market: bool,
}

/// Instances that exist or are about to.
#[derive(Default)]
pub struct Ledger(BTreeMap<InstanceName, Booked>);

/// Why nothing more is booked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Full {
    /// What kind of limit.
    pub kind: FailureKind,
    /// Which, with the numbers.
    pub message: String,
}

/// What an offer may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Instances at once, as the operator says.
    pub max_instances: u32,
    /// Virtual CPUs at once, as the account's quota says, where that is known.
    pub quota_vcpus: Option<u32>,
}

impl Limits {
    /// Instances of the largest size that fit at once.
    #[must_use]
    pub fn instances(&self, sizes: &[Size]) -> u32 {
        let largest = sizes.iter().map(Size::vcpus).max().unwrap_or(1).max(1);
        self.quota_vcpus.map_or(self.max_instances, |quota| self.max_instances.min(quota / largest))
    }
}

impl Ledger {
    /// Books an instance of this size for a grant.
    ///
    /// # Errors
    /// [`Full`] when a limit is reached; nothing is booked then.
    pub fn book(
        &mut self,
        name: &InstanceName,
        size: &Size,
        limits: &Limits,
        unknown_to_market: bool,
    ) -> Result<(), Full> {
        let (count, vcpus) = (self.0.len(), self.vcpus());
        if count >= limits.max_instances as usize {
            let message = format!("{count} instances are up, max_instances is {}", limits.max_instances);
            return Err(Full { kind: FailureKind::Capacity, message });
        }
        if let Some(quota) = limits.quota_vcpus.filter(|quota| vcpus.saturating_add(size.vcpus()) > *quota) {
            let message = format!(
                "{count} instances hold {vcpus} of the account's {quota} vCPUs; a {} of {} does not fit (ask the cloud to raise the quota)",
                size.name,
                size.vcpus()
            );
            return Err(Full { kind: FailureKind::Quota, message });
        }
        self.0.insert(name.clone(), Booked { vcpus: size.vcpus(), unknown_to_market });
        Ok(())
    }

    /// Counts an instance that is there already, whatever the limits.
    pub fn adopt(&mut self, name: &InstanceName, size: Option<&Size>, unknown_to_market: bool) {
        let vcpus = size.map_or(1, Size::vcpus);
        self.0.insert(name.clone(), Booked { vcpus, unknown_to_market });
    }

    /// The instance is gone.
    pub fn free(&mut self, name: &InstanceName) {
        self.0.remove(name);
    }

    /// Instances booked.
    #[must_use]
    pub fn count(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }

    /// Virtual CPUs booked.
    #[must_use]
    pub fn vcpus(&self) -> u32 {
        self.0.values().fold(0, |sum, booked| sum.saturating_add(booked.vcpus))
    }

    /// Instances the market does not know are here.
    #[must_use]
    pub fn unknown_to_market(&self) -> u32 {
        u32::try_from(self.0.values().filter(|booked| booked.unknown_to_market).count()).unwrap_or(u32::MAX)
    }
}

/// Whether a grant was reserved on another offer than this one.
pub(super) fn is_foreign(grant: &ComputeGrant, offer: &coalition_compute::OfferName) -> bool {
    grant.offer != *offer
}
