//! Tickets: every way in, every way that must stay shut, the forms on the wire, and the substrate's own doors.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, unreachable_pub)]

mod attestations;
mod common;
mod composing;
mod forms;
mod issuers;
mod lookups;
mod slim;
mod substrate;
