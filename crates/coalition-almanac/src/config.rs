//! Parameters of an Almanac: what its organism's identity folds besides roster and access control.

/// Smallest cadence accepted, in milliseconds.
pub const MIN_CADENCE_MS: u32 = 10;
/// Largest cadence accepted, in milliseconds.
pub const MAX_CADENCE_MS: u32 = 60_000;

const VERSION: u8 = 1;
const ENCODED_BYTES: usize = 5;

/// Validated parameters of an Almanac.
///
/// Canonical bytes: `0x01 ‖ u32 big endian cadence_ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlmanacParams {
    cadence_ms: u32,
}

/// Why parameters were refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParamsError {
    /// The cadence lies outside the accepted range.
    #[error("cadence_ms is {given}; choose a value from {MIN_CADENCE_MS} to {MAX_CADENCE_MS}")]
    Cadence {
        /// The value given, in milliseconds.
        given: u32,
    },
    /// The byte form has the wrong length.
    #[error("almanac parameters are {given} bytes; version {VERSION} has exactly {ENCODED_BYTES}")]
    Length {
        /// Length found, in bytes.
        given: usize,
    },
    /// The byte form has a version this build does not know.
    #[error("almanac parameters have version {given}; this build knows version {VERSION}")]
    Version {
        /// Version found.
        given: u8,
    },
}

impl AlmanacParams {
    /// Parameters with one tick every `cadence_ms` milliseconds.
    ///
    /// # Errors
    /// [`ParamsError::Cadence`] outside `10..=60_000`.
    pub const fn new(cadence_ms: u32) -> Result<Self, ParamsError> {
        if cadence_ms < MIN_CADENCE_MS || cadence_ms > MAX_CADENCE_MS {
            return Err(ParamsError::Cadence { given: cadence_ms });
        }
        Ok(Self { cadence_ms })
    }

    /// Milliseconds between two ticks.
    #[must_use]
    pub const fn cadence_ms(&self) -> u32 {
        self.cadence_ms
    }

    /// Canonical bytes, folded into the organism's identity.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(ENCODED_BYTES);
        out.push(VERSION);
        out.extend_from_slice(&self.cadence_ms.to_be_bytes());
        out
    }

    /// Parses the canonical bytes.
    ///
    /// # Errors
    /// [`ParamsError`] for a wrong length, an unknown version or a cadence out of range.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ParamsError> {
        match *bytes {
            [VERSION, a, b, c, d] => Self::new(u32::from_be_bytes([a, b, c, d])),
            [version, _, _, _, _] => Err(ParamsError::Version { given: version }),
            _ => Err(ParamsError::Length { given: bytes.len() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_bytes_round_trip() {
        let params = AlmanacParams::new(1_000).unwrap();
        assert_eq!(params.to_bytes(), [1, 0, 0, 3, 232]);
        assert_eq!(AlmanacParams::from_bytes(&params.to_bytes()), Ok(params));
    }

    #[test]
    fn each_fault_is_named() {
        assert_eq!(AlmanacParams::new(9), Err(ParamsError::Cadence { given: 9 }));
        assert_eq!(AlmanacParams::new(60_001), Err(ParamsError::Cadence { given: 60_001 }));
        assert_eq!(AlmanacParams::from_bytes(&[2, 0, 0, 3, 232]), Err(ParamsError::Version { given: 2 }));
        assert_eq!(AlmanacParams::from_bytes(&[1, 0, 0, 3]), Err(ParamsError::Length { given: 4 }));
        assert_eq!(AlmanacParams::from_bytes(&[]), Err(ParamsError::Length { given: 0 }));
        assert_eq!(AlmanacParams::from_bytes(&[1, 0, 0, 0, 0]), Err(ParamsError::Cadence { given: 0 }));
    }
}
