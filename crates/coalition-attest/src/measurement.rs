//! The measured registers of a TDX guest, as types with a hexadecimal text form.
//!
//! All of them are SHA-384 values of 48 bytes. [`coalition::Mrtd`] is the one the rest of the system names; the others
//! live here, together with [`Register`], the name of one of them, and [`Measurements`], all of one quote.

use std::fmt;
use std::str::FromStr;

pub use coalition::Mrtd;
use coalition::{UniqueId, hash_many, hex_newtype};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Bytes of a measured register.
pub const REGISTER_BYTES: usize = 48;

const VERSION: u8 = 1;
const TAG: &[u8] = b"coalition/attest/measurements";

hex_newtype!(
    /// A run-time measurement register: extended by firmware (0), boot loader and kernel (1, 2) or the workload (3).
    Rtmr,
    REGISTER_BYTES,
    pub
);
hex_newtype!(
    /// MRCONFIGID: what the owner of a guest declared, before it started, as its non-owner-defined configuration.
    MrConfigId,
    REGISTER_BYTES,
    pub
);
hex_newtype!(
    /// MROWNER: whoever is declared the guest's owner.
    MrOwner,
    REGISTER_BYTES,
    pub
);
hex_newtype!(
    /// MROWNERCONFIG: the owner-defined configuration of the guest.
    MrOwnerConfig,
    REGISTER_BYTES,
    pub
);
hex_newtype!(
    /// A value of any register, where which one it belongs to is said beside it.
    RegisterValue,
    REGISTER_BYTES,
    pub
);

/// The initial content among published measurements, for who demands no more than that.
impl From<Measurements> for Mrtd {
    fn from(measurements: Measurements) -> Self {
        measurements.mrtd
    }
}

impl From<Mrtd> for RegisterValue {
    fn from(mrtd: Mrtd) -> Self {
        Self(mrtd.0)
    }
}

/// Names one measured register of a guest. The order is the one of canonical encodings; never renumber.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Register {
    /// Initial contents of the guest.
    Mrtd = 1,
    /// Run-time register 0: firmware and its configuration.
    Rtmr0 = 2,
    /// Run-time register 1: boot loader and kernel.
    Rtmr1 = 3,
    /// Run-time register 2: command line and initial file system.
    Rtmr2 = 4,
    /// Run-time register 3: free for the workload.
    Rtmr3 = 5,
    /// Declared configuration.
    MrConfigId = 6,
    /// Declared owner.
    MrOwner = 7,
    /// Owner-defined configuration.
    MrOwnerConfig = 8,
}

impl Register {
    /// Every register, in canonical order.
    pub const ALL: [Self; 8] = [
        Self::Mrtd,
        Self::Rtmr0,
        Self::Rtmr1,
        Self::Rtmr2,
        Self::Rtmr3,
        Self::MrConfigId,
        Self::MrOwner,
        Self::MrOwnerConfig,
    ];

    /// Its number in canonical encodings, 1 to 8.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Its name in configs and messages: `mrtd`, `rtmr0`, `mr_config_id`, …
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mrtd => "mrtd",
            Self::Rtmr0 => "rtmr0",
            Self::Rtmr1 => "rtmr1",
            Self::Rtmr2 => "rtmr2",
            Self::Rtmr3 => "rtmr3",
            Self::MrConfigId => "mr_config_id",
            Self::MrOwner => "mr_owner",
            Self::MrOwnerConfig => "mr_owner_config",
        }
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Register {
    type Err = UnknownRegister;

    fn from_str(text: &str) -> Result<Self, UnknownRegister> {
        Self::ALL.into_iter().find(|r| r.name() == text).ok_or_else(|| UnknownRegister(text.to_owned()))
    }
}

/// A text names no register.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "'{0}' is no measured register: expected mrtd, rtmr0, rtmr1, rtmr2, rtmr3, mr_config_id, mr_owner or mr_owner_config"
)]
pub struct UnknownRegister(pub String);

/// Every measured register of one guest, as its quote states them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurements {
    /// Initial contents.
    pub mrtd: Mrtd,
    /// Run-time registers 0 to 3.
    pub rtmr: [Rtmr; 4],
    /// Declared configuration.
    pub mr_config_id: MrConfigId,
    /// Declared owner.
    pub mr_owner: MrOwner,
    /// Owner-defined configuration.
    pub mr_owner_config: MrOwnerConfig,
}

impl Measurements {
    /// All registers zero but the MRTD: a guest that declares and extends nothing.
    #[must_use]
    pub const fn of_mrtd(mrtd: Mrtd) -> Self {
        Self {
            mrtd,
            rtmr: [Rtmr([0; REGISTER_BYTES]); 4],
            mr_config_id: MrConfigId([0; REGISTER_BYTES]),
            mr_owner: MrOwner([0; REGISTER_BYTES]),
            mr_owner_config: MrOwnerConfig([0; REGISTER_BYTES]),
        }
    }

    /// The value of one register.
    #[must_use]
    pub const fn get(&self, register: Register) -> RegisterValue {
        RegisterValue(match register {
            Register::Mrtd => self.mrtd.0,
            Register::Rtmr0 => self.rtmr[0].0,
            Register::Rtmr1 => self.rtmr[1].0,
            Register::Rtmr2 => self.rtmr[2].0,
            Register::Rtmr3 => self.rtmr[3].0,
            Register::MrConfigId => self.mr_config_id.0,
            Register::MrOwner => self.mr_owner.0,
            Register::MrOwnerConfig => self.mr_owner_config.0,
        })
    }

    /// Sets one register, as a development guest does before it quotes.
    pub const fn set(&mut self, register: Register, value: RegisterValue) {
        match register {
            Register::Mrtd => self.mrtd = Mrtd(value.0),
            Register::Rtmr0 => self.rtmr[0] = Rtmr(value.0),
            Register::Rtmr1 => self.rtmr[1] = Rtmr(value.0),
            Register::Rtmr2 => self.rtmr[2] = Rtmr(value.0),
            Register::Rtmr3 => self.rtmr[3] = Rtmr(value.0),
            Register::MrConfigId => self.mr_config_id = MrConfigId(value.0),
            Register::MrOwner => self.mr_owner = MrOwner(value.0),
            Register::MrOwnerConfig => self.mr_owner_config = MrOwnerConfig(value.0),
        }
    }

    /// Digest of all registers in canonical order.
    #[must_use]
    pub fn fingerprint(&self) -> UniqueId {
        let values = Register::ALL.map(|register| self.get(register));
        let mut parts: Vec<&[u8]> = vec![&[VERSION], TAG];
        parts.extend(values.iter().map(|value| value.as_bytes().as_slice()));
        hash_many(&parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_have_names_and_places_of_their_own() {
        let mut all = Measurements::of_mrtd(Mrtd([0; 48]));
        for register in Register::ALL {
            assert_eq!(register.name().parse::<Register>().unwrap(), register);
            let value = RegisterValue([register.number(); 48]);
            all.set(register, value);
            assert_eq!(all.get(register), value);
        }
        for register in Register::ALL {
            assert_eq!(all.get(register).0[47], register.number(), "{register} was overwritten by another");
        }
        assert!("MRTD".parse::<Register>().is_err());
    }

    #[test]
    fn hex_forms_are_strict() {
        let text = "0A".repeat(48);
        assert_eq!(text.parse::<Rtmr>().unwrap().to_string(), text.to_lowercase());
        assert!("0a".repeat(47).parse::<MrOwner>().is_err());
        assert!(format!("0x{}", "0a".repeat(47)).parse::<MrConfigId>().is_err());
        let json = serde_json::to_string(&MrOwnerConfig([7; 48])).unwrap();
        assert_eq!(serde_json::from_str::<MrOwnerConfig>(&json).unwrap(), MrOwnerConfig([7; 48]));
    }

    #[test]
    fn the_fingerprint_covers_every_register() {
        let zero = Measurements::of_mrtd(Mrtd([0; 48]));
        let mut seen = std::collections::BTreeSet::from([zero.fingerprint()]);
        for register in Register::ALL {
            let mut one = zero;
            one.set(register, RegisterValue([1; 48]));
            assert!(seen.insert(one.fingerprint()), "{register} does not count");
        }
    }
}
