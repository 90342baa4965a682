//! The unit tests of the engine's modules. A test build of the library would generate the engine's code again; nothing here
//! starts one.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

#[path = "../src/anchor.rs"]
mod anchor;
#[path = "../src/application.rs"]
mod application;
#[path = "../src/block.rs"]
mod block;
#[path = "../src/command.rs"]
mod command;
#[path = "../src/config.rs"]
mod config;
#[path = "../src/delivery.rs"]
mod delivery;
#[path = "../src/error.rs"]
mod error;
#[path = "../src/frames.rs"]
mod frames;
#[path = "../src/inbox.rs"]
mod inbox;
#[path = "../src/mempool.rs"]
mod mempool;
#[path = "../src/pacing.rs"]
mod pacing;
#[path = "../src/shared.rs"]
mod shared;

pub use error::OrderError;
