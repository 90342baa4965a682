//! What a provider declares about itself.

use std::collections::BTreeSet;

use coalition::{AlmanacTick, Mrtd, ProviderId, RateQ64, UniqueId};
use serde::{Deserialize, Serialize};

use super::{Invalid, OfferName, Region};
use crate::codec;

/// Largest encoded card, in bytes.
pub const MAX_CARD_BYTES: usize = 8 * 1024;
/// Most offers on one card.
pub const MAX_OFFERS: usize = 16;
/// Most regions of one offer.
pub const MAX_REGIONS: usize = 32;
/// Most TDX measurements of one offer.
pub const MAX_MRTDS: usize = 8;
/// Largest rate a card or a request may name: one million USD per hour. Keeps every product inside 128 bits.
pub const MAX_RATE: RateQ64 = RateQ64::from_usd_per_hour(1_000_000);

/// One provider as the market sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderCard {
    /// blake3 of the Ed25519 public key that signs this provider's statements.
    pub provider_id: ProviderId,
    /// Network identity of the bridge: the only peer that may fetch the envelope of a grant to this provider.
    #[serde(with = "codec::hex_bytes")]
    pub provider_peer: [u8; 32],
    /// The shuffle channel the bridge listens on.
    pub shuffle_reply: UniqueId,
    /// What it sells, one offer per backend; 1 to [`MAX_OFFERS`], names unique.
    pub offers: Vec<Offer>,
    /// Digest of the provider's attestation quote: that of the attestation the market holds for it. Absent without one.
    pub attestation: Option<UniqueId>,
    /// The Almanac tick the provider saw when it made this card.
    pub refreshed_at: AlmanacTick,
}

/// What one backend of a provider can do, and at which rates. Capacity is reserved per offer, so a card that unites
/// several backends never promises one backend's size at another backend's price or posture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// Name, unique on the card and stable while grants on it are live.
    pub name: OfferName,
    /// What it can run.
    pub capabilities: Capabilities,
    /// What it charges.
    pub declared_rates: DeclaredRates,
}

/// What a backend can run. The `max_*` fields are totals, free capacity is what live grants leave of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capabilities {
    /// Where; 1 to [`MAX_REGIONS`], unique. A request without a region gets the first.
    pub regions: Vec<Region>,
    /// Whether workloads run inside TDX. Where the module has an attestation rule, only an attested provider may say so.
    pub tdx_capable: bool,
    /// TDX measurements workloads can be launched under; at most [`MAX_MRTDS`], unique; some with `tdx_capable`, else none.
    pub mrtds: Vec<Mrtd>,
    /// CPU for all instances together, in thousandths of a core. Zero takes the offer out of the market.
    pub max_cpu_millicores: u32,
    /// Memory for all instances together, in MiB.
    pub max_ram_mib: u32,
    /// Instances at once.
    pub max_instances: u32,
    /// CPU of the largest single instance, in thousandths of a core.
    pub instance_cpu_millicores: u32,
    /// Memory of the largest single instance, in MiB.
    pub instance_ram_mib: u32,
}

/// Posted rates of an offer, each at most [`MAX_RATE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclaredRates {
    /// USD per core and hour.
    pub core_hour: RateQ64,
    /// USD per GiB of memory and hour.
    pub gib_hour: RateQ64,
}

impl DeclaredRates {
    /// What a machine of this size costs per hour, divided by its cores: the one number offers compete on.
    ///
    /// `core_hour + ⌈gib_hour × ram_mib × 1000 / (1024 × cpu_millicores)⌉` in units of 2⁻⁶⁴ USD, rounded up so that a rate
    /// never looks lower than it is. `None` when `cpu_millicores` is zero or the result does not fit.
    #[must_use]
    pub fn effective_core_hour(&self, cpu_millicores: u32, ram_mib: u32) -> Option<RateQ64> {
        let memory = self.gib_hour.0.checked_mul(u128::from(ram_mib))?.checked_mul(1_000)?;
        let cores = u128::from(cpu_millicores).checked_mul(1_024).filter(|cores| *cores > 0)?;
        self.core_hour.checked_add(RateQ64(memory.div_ceil(cores)))
    }

    fn check(&self) -> Result<(), Invalid> {
        for (field, rate) in [("core_hour", self.core_hour), ("gib_hour", self.gib_hour)] {
            check_rate(field, rate)?;
        }
        Ok(())
    }
}

pub(super) fn check_rate(field: &'static str, rate: RateQ64) -> Result<(), Invalid> {
    if rate > MAX_RATE {
        return Err(Invalid::Rate { field, given: rate.to_string(), limit: MAX_RATE.to_string() });
    }
    Ok(())
}

fn check_unique<T: Ord + std::fmt::Display>(field: &'static str, items: &[T]) -> Result<(), Invalid> {
    let mut seen = BTreeSet::new();
    match items.iter().find(|item| !seen.insert(*item)) {
        Some(item) => Err(Invalid::Duplicate { field, item: item.to_string() }),
        None => Ok(()),
    }
}

impl Capabilities {
    /// Checks every limit stated on the fields.
    ///
    /// # Errors
    /// [`Invalid`] naming the first field that breaks one.
    pub fn check(&self) -> Result<(), Invalid> {
        Invalid::check_range("number of regions", self.regions.len() as u64, 1, MAX_REGIONS as u64)?;
        Invalid::check_range("number of mrtds", self.mrtds.len() as u64, 0, MAX_MRTDS as u64)?;
        check_unique("regions", &self.regions)?;
        check_unique("mrtds", &self.mrtds)?;
        if !self.mrtds.is_empty() && !self.tdx_capable {
            return Err(Invalid::Contradiction {
                what: "an offer lists TDX measurements but is not tdx_capable; set tdx_capable or leave mrtds empty",
            });
        }
        if self.mrtds.is_empty() && self.tdx_capable {
            return Err(Invalid::Contradiction {
                what: "an offer is tdx_capable but lists no TDX measurement, so nothing would say what runs; list mrtds",
            });
        }
        Ok(())
    }
}

impl ProviderCard {
    /// Checks every limit stated on the fields, and the encoded size.
    ///
    /// # Errors
    /// [`Invalid`] naming the first field that breaks one.
    pub fn check(&self) -> Result<(), Invalid> {
        Invalid::check_range("number of offers", self.offers.len() as u64, 1, MAX_OFFERS as u64)?;
        let names: Vec<_> = self.offers.iter().map(|offer| offer.name.clone()).collect();
        check_unique("offers", &names)?;
        for offer in &self.offers {
            offer.capabilities.check()?;
            offer.declared_rates.check()?;
        }
        let bytes = codec::append(Vec::new(), self).len();
        Invalid::check_range("encoded card size", bytes as u64, 1, MAX_CARD_BYTES as u64)
    }

    /// The offer of this name.
    #[must_use]
    pub fn offer(&self, name: &OfferName) -> Option<&Offer> {
        self.offers.iter().find(|offer| offer.name == *name)
    }

    /// The union of all offers, for display: regions and measurements united, totals added up, the largest instance.
    /// Clearing never uses it.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        let all = || self.offers.iter().map(|offer| &offer.capabilities);
        let total = |field: fn(&Capabilities) -> u32| all().map(field).fold(0, u32::saturating_add);
        let largest = |field: fn(&Capabilities) -> u32| all().map(field).max().unwrap_or(0);
        let regions: BTreeSet<_> = all().flat_map(|c| c.regions.iter().cloned()).collect();
        let mrtds: BTreeSet<_> = all().flat_map(|c| c.mrtds.iter().copied()).collect();
        Capabilities {
            regions: regions.into_iter().collect(),
            tdx_capable: all().any(|c| c.tdx_capable),
            mrtds: mrtds.into_iter().collect(),
            max_cpu_millicores: total(|c| c.max_cpu_millicores),
            max_ram_mib: total(|c| c.max_ram_mib),
            max_instances: total(|c| c.max_instances),
            instance_cpu_millicores: largest(|c| c.instance_cpu_millicores),
            instance_ram_mib: largest(|c| c.instance_ram_mib),
        }
    }
}

/// How many live grants are bound to a provider's card. One number, no identities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BondCount {
    /// The provider.
    pub provider: ProviderId,
    /// Live grants.
    pub count: u32,
}
