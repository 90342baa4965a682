//! The provider daemon: sells the capacity of an operator's machines on one coalition's Compute market.
//!
//! ```text
//! wiring ── node, follower, unseal committee ──┐
//! provider ── card, grants, sweep ─────────────┤── market, channel (traits)
//!   journal   what must not be forgotten       │
//!   fleet ── backend (trait) ── backends ── ssh
//!   image     the requester's image, verified
//!   evidence  what clouds counted of machines, signed and kept
//!   platform  quotes of the guest this runs in, or of a development guest
//! dashboard ── status (no requester identity)
//! ```
//!
//! [`run`] is the whole daemon; `main.rs` and `coalition run bridge` only call it. `docs/OPERATORS.md` is for the person
//! who runs it.

pub mod backend;
pub mod backends;
pub mod channel;
pub mod check;
pub mod config;
pub mod dashboard;
pub mod evidence;
pub mod fleet;
pub mod image;
pub mod inventory;
pub mod journal;
pub mod market;
pub mod platform;
pub mod provider;
pub mod ssh;
pub mod status;
pub mod wallet;
mod wiring;

pub use wiring::{Bridge, BridgeError, run};

/// The log filter a bridge runs with. Libraries below are silent on purpose: their lines name network peers, and one of
/// those is the rotating identity of each requester.
pub const LOG_FILTER: &str = "off,compute_bridge=info,coalition_host=info,coalition_organism=info";

/// Wall clock, Unix milliseconds; 0 before 1970.
#[must_use]
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// An error with all its causes, on one line.
#[must_use]
pub fn explain(error: &BridgeError) -> String {
    fleet::chain(error)
}

/// Exit status of the program for an error; stable.
#[must_use]
pub const fn exit_code(error: &BridgeError) -> u8 {
    match error {
        BridgeError::Config(_) | BridgeError::Platform(_) => 2,
        BridgeError::Coalition { .. } => 3,
        BridgeError::DataDir { .. } | BridgeError::Busy { .. } | BridgeError::Images(_) => 4,
        BridgeError::Evidence(error) => match error {
            evidence::EvidenceError::Name { .. } => 2,
            evidence::EvidenceError::Bad { .. } => 5,
            _ => 4,
        },
        BridgeError::Journal(_) => 6,
        BridgeError::Node(_) | BridgeError::NodeClosed | BridgeError::Market(_) => 7,
        BridgeError::Fleet(_) | BridgeError::Cloud { .. } | BridgeError::Dashboard(_) => 8,
    }
}
