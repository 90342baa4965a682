#![no_main]
//! Everything an Almanac reads: commands, ticks, observations, parameters. One encoding each.

use coalition_almanac::{AlmanacCommand, AlmanacParams, AlmanacTickBody, Observation};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(command) = AlmanacCommand::from_bytes(data) {
        assert_eq!(command.to_bytes(), data);
    }
    if let Ok(tick) = AlmanacTickBody::from_bytes(data) {
        assert_eq!(tick.to_bytes(), data);
    }
    if let Ok(observation) = Observation::from_bytes(data) {
        assert_eq!(observation.to_bytes(), data);
    }
    if let Ok(params) = AlmanacParams::from_bytes(data) {
        assert_eq!(params.to_bytes(), data);
    }
});
