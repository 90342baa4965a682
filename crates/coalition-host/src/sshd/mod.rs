//! An SSH server that makes this machine a host for a provider's bare-metal backend: commands run as the current user,
//! files go to one directory, no root, no configuration files, nothing left behind.

mod exec;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::TcpListener;

use crate::accepting::Listening;
use crate::keys::{self, KeyError};
use crate::ssh::{ServerKeys, ServerLimits, Traffic, listen};
use crate::types::SecretText;

/// How to serve.
#[derive(Clone, Debug)]
pub struct HostSshdConfig {
    /// Where to listen; port 0 takes any free port.
    pub listen: SocketAddr,
    /// The host key, OpenSSH format; see [`crate::keys::from_seed`] for one that survives restarts.
    pub host_key: SecretText,
    /// Who may log in: `authorized_keys` lines without options. Any user name is accepted and means the current user.
    pub authorized_keys: Vec<String>,
    /// Where commands start and the directory SFTP is confined to (the system's temporary directory is allowed too).
    /// Must exist.
    pub root_dir: PathBuf,
    /// Variables for every command, on top of ours.
    pub env: Vec<(String, String)>,
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum SshdError {
    /// The host key is not one.
    #[error("the host key is unusable")]
    HostKey(#[source] KeyError),
    /// An authorized key is not one.
    #[error("an authorized key is unusable")]
    AuthorizedKey(#[source] KeyError),
    /// Nobody could log in.
    #[error("no authorized key was given, so nobody could log in")]
    NoAuthorizedKey,
    /// The root directory cannot be used.
    #[error("cannot use directory {path}")]
    RootDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A server that is up. Dropping it stops accepting; [`HostSshd::shutdown`] also waits for connections to close.
pub struct HostSshd {
    /// Where it listens.
    pub local_addr: SocketAddr,
    /// Its public host key, `ssh-ed25519 AAAA…`: what clients pin.
    pub host_public_key: String,
    listening: Listening,
}

impl HostSshd {
    /// Closes every connection, ends the commands they run in the foreground, and returns when all are gone.
    pub async fn shutdown(self) {
        self.listening.shutdown().await;
    }
}

/// Serves until shut down. Needs a tokio runtime with I/O and time.
pub async fn serve(config: HostSshdConfig) -> Result<HostSshd, SshdError> {
    let host = keys::private(&config.host_key).map_err(SshdError::HostKey)?;
    let host_public_key = keys::public_of(&config.host_key).map_err(SshdError::HostKey)?;
    let authorized: Vec<_> = config
        .authorized_keys
        .iter()
        .map(|k| keys::public(k))
        .collect::<Result<_, _>>()
        .map_err(SshdError::AuthorizedKey)?;
    if authorized.is_empty() {
        return Err(SshdError::NoAuthorizedKey);
    }
    let root_dir = config
        .root_dir
        .canonicalize()
        .map_err(|source| SshdError::RootDir { path: config.root_dir.clone(), source })?;
    let failed = |source| SshdError::Listen { address: config.listen, source };
    let socket = TcpListener::bind(config.listen).await.map_err(failed)?;
    let launcher = Arc::new(exec::HostLauncher { root_dir, env: config.env.clone() });
    let keys = ServerKeys { host, authorized };
    let listening = listen(socket, keys, launcher, Arc::new(Traffic::default()), ServerLimits::HOST).map_err(failed)?;
    Ok(HostSshd { local_addr: listening.address, host_public_key, listening })
}
