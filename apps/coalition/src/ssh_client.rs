//! One command over SSH without OpenSSH's client, for machines that have none. The host key is pinned all the same.

use std::{sync::Arc, time::Duration};

use russh::{
    ChannelMsg, client,
    keys::{PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate, load_secret_key},
};

use crate::grants::{Access, Grant};

/// How long connecting and running may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Output kept, in bytes.
const MAX_OUTPUT_BYTES: usize = 1 << 20;

/// Why the command did not run.
#[derive(Debug, thiserror::Error)]
pub enum SshClientError {
    /// A key of the grant cannot be read.
    #[error("the grant's keys cannot be read")]
    Keys(#[source] russh::keys::Error),
    /// The pinned host key is missing.
    #[error("the grant's known_hosts has no key")]
    NoHostKey,
    /// The connection failed; a wrong host key shows here too.
    #[error("the connection failed")]
    Connection(#[from] russh::Error),
    /// The machine did not let us in.
    #[error("the machine refused the grant's key")]
    Refused,
    /// It took too long.
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Patience,
}

/// What the command printed, and its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// stdout and stderr as they came.
    pub output: Vec<u8>,
    /// Exit status; 255 when it ended without one.
    pub status: u8,
}

struct Pinned(PublicKey);

impl client::Handler for Pinned {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(matches!(shown, PublicKeyOrCertificate::PublicKey { key, .. } if key.key_data() == self.0.key_data()))
    }
}

/// Runs one command in the workload.
///
/// # Errors
/// [`SshClientError`].
pub async fn run(grant: &Grant, access: &Access, command: &str) -> Result<Ran, SshClientError> {
    tokio::time::timeout(PATIENCE, execute(grant, access, command)).await.unwrap_or(Err(SshClientError::Patience))
}

async fn execute(grant: &Grant, access: &Access, command: &str) -> Result<Ran, SshClientError> {
    let key = load_secret_key(grant.key_path(), None).map_err(SshClientError::Keys)?;
    let known = std::fs::read_to_string(grant.known_hosts_path()).map_err(|_| SshClientError::NoHostKey)?;
    let pinned = known.split_whitespace().skip(1).collect::<Vec<_>>().join(" ");
    let pinned = PublicKey::from_openssh(&pinned).map_err(|_| SshClientError::NoHostKey)?;
    let config = Arc::new(client::Config::default());
    let mut session = client::connect(config, (access.host.as_str(), access.port), Pinned(pinned)).await?;
    let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
    if !session.authenticate_publickey(&access.user, key).await?.success() {
        return Err(SshClientError::Refused);
    }
    let mut channel = session.channel_open_session().await?;
    channel.exec(true, command).await?;
    let mut ran = Ran { output: Vec::new(), status: 255 };
    while let Some(message) = channel.wait().await {
        match message {
            ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. } => {
                let room = MAX_OUTPUT_BYTES.saturating_sub(ran.output.len());
                ran.output.extend_from_slice(&data[..data.len().min(room)]);
            }
            ChannelMsg::ExitStatus { exit_status } => ran.status = u8::try_from(exit_status).unwrap_or(255),
            _ => (),
        }
    }
    Ok(ran)
}
