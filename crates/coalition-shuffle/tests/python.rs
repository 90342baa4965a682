//! The Python reader written from the protocol page alone opens our golden vector.
//!
//! Skipped, saying so, where Python is missing.
#![allow(clippy::print_stderr, reason = "a skipped test must say so")]

use std::process::Command;

#[test]
fn python_opens_the_threshold_vector() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/check_tdh2.py");
    let Ok(output) = Command::new("python3").arg(script).output() else {
        eprintln!("skipped: python3 is not installed");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
