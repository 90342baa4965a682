//! The universe seam: the only crate that touches mosaik's networking API.
//!
//! A [`Node`] is one authenticated peer on the shared universe. It serves byte-level methods ([`Service`]) and calls
//! the methods of other peers by identity. A [`Relay`] is the rendezvous point every node keeps a connection to;
//! mosaik waits for one before it starts, so a development universe embeds its own.
//!
//! # What may be relied on
//!
//! * A caller's [`PeerId`] is authenticated by the transport (QUIC with raw public keys).
//! * A panic in a service fails that one call and nothing else.
//! * Every wait has a deadline, start-up included.
//!
//! # What must not
//!
//! * Discovery is best effort. Peers that matter are given by address ([`PeerAddress`]) and introduced explicitly.
//! * Frame sizes are not limited before authentication by the substrate; bodies are limited here, after it.

mod address;
mod key;
mod node;
mod relay;

pub use address::{AddressError, PeerAddress, PeerId};
pub use key::{KeyError, NodeKey};
pub use node::{CallError, Fault, MAX_BODY_BYTES, Node, NodeConfig, NodeError, Service, UNIVERSE};
pub use relay::{Relay, RelayError};
