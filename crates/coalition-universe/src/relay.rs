//! The embedded relay: where nodes meet before they know a direct path.

use std::net::SocketAddr;

use iroh_relay::server::{RelayConfig, Server, ServerConfig};

/// Why the relay did not start or stop.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The address is taken or not ours.
    #[error("the relay cannot listen on {listen}: {reason}")]
    Listen {
        /// The address asked for.
        listen: SocketAddr,
        /// What the server said.
        reason: String,
    },
}

/// An `iroh-relay` server over plain HTTP. It forwards encrypted packets between nodes and can read none of them;
/// it does see which keys talk to which, and when.
pub struct Relay {
    server: Server,
    address: SocketAddr,
}

impl Relay {
    /// Starts listening; port 0 picks a free one.
    ///
    /// # Errors
    /// [`RelayError::Listen`].
    pub async fn start(listen: SocketAddr) -> Result<Self, RelayError> {
        let failed = |reason: String| RelayError::Listen { listen, reason };
        // Bound first, because the server's own error hides the system's reason.
        std::net::TcpListener::bind(listen).map_err(|e| failed(e.to_string()))?;
        let mut config = ServerConfig::default();
        config.relay = Some(RelayConfig::new(listen));
        let server = Server::spawn(config).await.map_err(|e| failed(format!("{e:#}")))?;
        let address = server.http_addr().ok_or_else(|| failed("no address was bound".into()))?;
        Ok(Self { server, address })
    }

    /// The address it listens on.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL nodes are configured with.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Stops serving.
    pub async fn stop(self) {
        if let Err(error) = self.server.shutdown().await {
            tracing::debug!(%error, "relay stopped uncleanly");
        }
    }
}
