//! The universe seam: the only crate that touches mosaik's and iroh's networking APIs.
//!
//! A [`Node`] is one authenticated peer on the shared universe. It serves byte-level methods ([`Service`]) and calls the
//! methods of other peers by identity, over one persistent QUIC connection a peer. A public node is also listed in mosaik's
//! discovery, where other public nodes find it again after it has moved; a requester's node is listed nowhere. A [`Relay`]
//! is the rendezvous point every node keeps a connection to; a development universe embeds its own.
//!
//! # What may be relied on
//!
//! * A caller's [`PeerId`] is authenticated by the transport (QUIC with raw public keys), within one network id.
//! * A panic in a service fails that one call and nothing else; a caller that goes away ends its call.
//! * Sizes are checked before memory is spent, and connections, calls and large bodies are counted and bounded.
//! * Every wait has a deadline, start-up included.
//!
//! # What must not
//!
//! * Discovery is best effort. Peers that matter are given by address ([`PeerAddress`]) and introduced explicitly.
//! * [`CallError::Timeout`] and [`CallError::Transport`] say nothing about whether the method ran.

mod address;
mod connections;
mod key;
mod node;
mod presence;
mod relay;
mod server;
mod wire;

pub use address::{AddressError, PeerAddress, PeerId};
pub use key::{KeyError, NodeKey};
pub use node::{CallError, MAX_BODY_BYTES, Node, NodeConfig, NodeError, Service, UNIVERSE};
pub use relay::{Relay, RelayError};
pub use wire::Fault;
