#![no_main]
//! What a host answers a provider, over SSH: a host may say anything. The first byte says which answer is expected.

use coalition_host::{CleanReport, ListReport, ProbeReport, RunnerState, UsageReport, parse_answer};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};

fn round_trip<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(line: &str) {
    if let Ok(answer) = parse_answer::<T>(line) {
        let written = serde_json::to_string(&answer).expect("what was read can be written");
        assert_eq!(parse_answer::<T>(&written).expect("what is written is read"), answer);
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&which, line)) = data.split_first() else { return };
    let Ok(line) = std::str::from_utf8(line) else { return };
    match which % 5 {
        0 => round_trip::<UsageReport>(line),
        1 => round_trip::<RunnerState>(line),
        2 => round_trip::<ListReport>(line),
        3 => round_trip::<CleanReport>(line),
        _ => round_trip::<ProbeReport>(line),
    }
});
