//! Tests of the bridge: pure parts by property, everything else against real SSH servers and a real runner.
//!
//! One binary, because each links the whole network stack. Tests that need what a machine lacks (an OpenSSH server, a
//! static busybox) say so and pass.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod accounts;
mod attested;
mod bad_days;
mod baremetal;
mod cloud;
mod cloud_parts;
mod clouds;
mod config;
mod dashboard;
mod ec2;
mod evidence;
mod extensions;
mod fleet;
mod guest;
mod harness;
mod hosts;
mod image;
mod inventory;
mod journal;
mod login;
mod machines;
mod memory;
mod metering;
mod policy;
mod program;
mod provider;
mod sources;
mod ssh;
mod systemd;
mod thousand;
mod world;
