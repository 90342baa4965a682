//! The ordering engine of a whole committee under a simulated clock, network and disk, from a seed. For tests.
//!
//! The engine's modules are compiled into this crate, and only here with the deterministic runtime, so that nothing of
//! them has to be public; the same code runs in a real member. Whoever simulates takes a [`Committee`], starts and crashes
//! its members, cuts and joins links, and consumes what is ordered. `tests/sim` does so with the engine alone, and
//! `coalition-organism` with everything that comes after ordering.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::float_arithmetic,
    clippy::cast_precision_loss
)]

#[path = "../../coalition-order/src/anchor.rs"]
mod anchor;
#[path = "../../coalition-order/src/application.rs"]
mod application;
#[path = "../../coalition-order/src/block.rs"]
mod block;
#[path = "../../coalition-order/src/command.rs"]
mod command;
mod committee;
#[path = "../../coalition-order/src/config.rs"]
mod config;
#[path = "../../coalition-order/src/journal/context.rs"]
mod context;
#[path = "../../coalition-order/src/delivery.rs"]
mod delivery;
mod dice;
mod disk;
#[path = "../../coalition-order/src/engine.rs"]
mod engine;
#[path = "../../coalition-order/src/error.rs"]
mod error;
#[path = "../../coalition-order/src/frames.rs"]
mod frames;
#[path = "../../coalition-order/src/gossip.rs"]
mod gossip;
#[path = "../../coalition-order/src/handle.rs"]
mod handle;
#[path = "../../coalition-order/src/inbox.rs"]
mod inbox;
#[path = "../../coalition-order/src/mempool.rs"]
mod mempool;
#[path = "../../coalition-order/src/pacing.rs"]
mod pacing;
#[path = "../../coalition-order/src/shared.rs"]
mod shared;
#[path = "../../coalition-order/src/sink.rs"]
mod sink;
mod twins;

pub use anchor::{Anchor, AnchorError};
pub use committee::{Committee, Consumer, Link, Settings, Start};
pub use commonware_runtime::deterministic::{Checkpoint, Config, Context, Runner};
pub use commonware_runtime::{Clock, Runner as Run};
pub use config::OrderConfig;
pub use delivery::{Ack, Batch, Delivery};
pub use dice::Dice;
pub use disk::Disk;
pub use error::{OrderError, SubmitError};
pub use handle::{OrderHandle, OrderStatus};
