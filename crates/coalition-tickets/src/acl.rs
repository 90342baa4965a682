//! Single demands besides attestation: a seat, a module's own rules, reputation, settlement.

use coalition::UniqueId;
use coalition::tickets::AclRule;

use crate::demand::Demand;

/// Demands that name a Compute module, or any organism with a committee.
#[derive(Debug, Clone, Copy)]
pub struct ComputeModule;

impl ComputeModule {
    /// The peer sits in the committee of exactly this module. A module that is rotated has another id, so following it takes a
    /// new pin.
    #[must_use]
    pub const fn pin(module: UniqueId) -> Demand {
        Demand::Seat(module)
    }

    /// Whatever this module's own access rules demand of those who write to it.
    #[must_use]
    pub const fn requester_acl(module: UniqueId) -> Demand {
        Demand::AclOf(module)
    }
}

/// Demands a current reputation card with at least this score. Who has no card is refused, whatever the floor.
#[derive(Debug, Clone, Copy)]
pub struct ReputationFloor;

const PPM: u32 = 1_000_000;

impl ReputationFloor {
    /// A floor as a share of one, rounded to parts per million. Under zero is zero; over one, or no number, is one.
    #[must_use]
    #[expect(
        clippy::float_arithmetic,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "bounded before"
    )]
    pub fn from(organism: UniqueId, floor: impl Into<f64>) -> Demand {
        let floor = floor.into();
        let share = if floor.is_nan() { 1.0 } else { floor.clamp(0.0, 1.0) };
        Self::ppm(organism, (share * f64::from(PPM)).round() as u32)
    }

    /// A floor in parts per million; over a million is a million.
    #[must_use]
    pub fn ppm(organism: UniqueId, floor_ppm: u32) -> Demand {
        Demand::Rule(AclRule::Reputation { organism, floor_ppm: floor_ppm.min(PPM) })
    }
}

/// Demands a pointer to a current settlement of the peer, committed by a market organism.
#[derive(Debug, Clone, Copy)]
pub struct MarketSettlement;

impl MarketSettlement {
    /// Settlements of this organism.
    #[must_use]
    pub const fn from(organism: UniqueId) -> Demand {
        Demand::Rule(AclRule::Settlement { organism })
    }
}
