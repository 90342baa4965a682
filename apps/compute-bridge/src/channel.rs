//! The way to a requester and back: opening the cell a grant names, and posting the sealed reply. Two small traits, so that
//! the provider loop does not know the unseal committee's client.

use std::time::Duration;

use async_trait::async_trait;
use coalition::RequestId;
use coalition_shuffle::{CellId, CellScope, Envelope, ReplyCell, RotatingPeer};

/// Why an envelope was not obtained. Messages name nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Too few members released their share in time; later may work.
    #[error("the unseal committee did not release the envelope: {0}")]
    Unavailable(String),
    /// The requester made the cell wrong; it will never open.
    #[error("the cell the grant names does not open: {0}")]
    Broken(String),
}

/// Opens the cell a grant to this bridge names.
#[async_trait]
pub trait RequestOpener: Send + Sync + 'static {
    /// The market the cells belong to.
    fn scope(&self) -> CellScope;

    /// The envelope inside.
    ///
    /// # Errors
    /// [`OpenError`].
    async fn open(&self, request: RequestId, cell: CellId, deadline: Duration) -> Result<Envelope, OpenError>;
}

/// Posts a sealed reply to a rotating identity.
#[async_trait]
pub trait ReplySender: Send + Sync + 'static {
    /// Leaves the reply where the peer fetches it.
    ///
    /// # Errors
    /// A sentence that names nobody; later may work.
    async fn send(
        &self,
        to: RotatingPeer,
        request: RequestId,
        reply: &ReplyCell,
        deadline: Duration,
    ) -> Result<(), String>;
}
