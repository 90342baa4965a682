//! Tests of the Compute market against its public interface.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod attestation;
mod common;
mod extensions;
mod golden;
mod lifecycle;
mod properties;
mod refusals;
mod tampering;
mod telemetry;
