//! Almanac: the shared clock of a coalition.
//!
//! The committee appends one `almanac.tick` entry per cadence to its certified log. A tick carries a sequence number that
//! grows by exactly one, and for each committee member the newest wall-clock reading that member reported since the tick
//! before, or nothing when the member was silent. Ticks order facts across organisms; the per-member vector is a hint for
//! people and monitors, not a cryptographic timestamp.
//!
//! * [`config`]: the canonical parameters an Almanac's identity folds.
//! * [`types`]: commands and entry bodies.
//! * [`machine`]: the pure state machine the committee runs.
//! * [`surface`]: the typed fold readers use to ask "which tick is it", "when was tick n", "has tick n happened".
//!
//! # Cadence
//!
//! A tick is due at every multiple of the cadence since the Unix epoch, measured by committee time (the `time_ms` of a
//! batch). At most one tick is produced per batch, and cadences missed while the committee was stopped are **not**
//! back-filled: the sequence number keeps growing by one, the gap shows in the times. So `seq × cadence` is not a wall
//! clock; use [`surface::Ticks`] to convert.

pub mod config;
pub mod machine;
pub mod surface;
pub mod types;

pub use config::{AlmanacParams, ParamsError};
pub use machine::{AlmanacMachine, Observers};
pub use surface::{FoldError, TickRecord, Ticks};
pub use types::{
    AlmanacCommand, AlmanacTickBody, DecodeError, OBSERVATION_KIND, Observation, SignatureBytes, TICK_KIND,
};
