//! Content by blake3: slices that are verified as they arrive, a store on disk, its protocol, and fetching from several sources.
//!
//! Formats and methods are in `docs/protocol/content.md`. [`tree`] makes and checks slices; [`wire`] and [`mod@pointer`] are what travels;
//! [`store`] keeps content, verified before it is written and again before it leaves; [`service`] answers for a store, [`client`]
//! asks one, and [`fetch`] fills a store from whoever has the content. Nothing here knows of images, grants or markets.

pub mod client;
pub mod fetch;
pub mod pointer;
pub mod service;
pub mod store;
pub mod tree;
pub mod wire;

pub use tree::{Content, MAX_CONTENT_BYTES, MAX_SLICE_BYTES, PIECE_BYTES};
