#![no_main]
//! Telemetry snapshots, as whoever checks a log's evidence is handed them by anybody.

use coalition_compute::{Signed, TelemetrySnapshot};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(signed) = TelemetrySnapshot::read(data) {
        assert_eq!(TelemetrySnapshot::bytes(&signed), data);
    }
    // Without the signature, which no fuzzer makes: every sum of what is within limits can be made.
    if let Some(payload) = data.strip_prefix(&[0x01])
        && let Ok(one) = postcard::from_bytes::<TelemetrySnapshot>(payload)
    {
        let (_, _) = (one.cpu_core_ms(), one.net_bytes());
        let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
        let _ = Signed::sign(one, &key, &coalition::UniqueId::hash(b"market"));
    }
});
