//! A command, or the workload's output, over SSH without OpenSSH's client. The host key is pinned all the same.

use std::{sync::Arc, time::Duration};

use russh::{
    ChannelMsg, client,
    keys::{PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate, load_secret_key},
};

use coalition_host::output::{LogQuery, Record, RecordError, Records};

use crate::grants::{Access, Grant};

/// How long connecting and running may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two signs of life.
const KEEPALIVE: Duration = Duration::from_secs(15);
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
    /// It hands over no output.
    #[error("the machine hands over no output; its provider runs an older version")]
    NotOffered,
    /// What it handed over is not what a machine hands over.
    #[error("the machine handed over something else than output")]
    Records(#[from] RecordError),
    /// It ended in the middle.
    #[error("the connection ended before the output did")]
    Cut,
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

/// Hands each record of the workload's output to `take`, until that says no or the last has come. Answers the last; none when
/// `take` said no. Following takes as long as the workload does.
///
/// # Errors
/// [`SshClientError`].
pub async fn output(
    grant: &Grant,
    access: &Access,
    query: LogQuery,
    mut take: impl FnMut(&Record) -> bool,
) -> Result<Option<Record>, SshClientError> {
    let opening = async {
        let session = connect(grant, access).await?;
        let mut channel = session.channel_open_session().await?;
        channel.request_subsystem(true, query.to_string()).await?;
        loop {
            match channel.wait().await {
                Some(ChannelMsg::Success) => return Ok((session, channel)),
                Some(ChannelMsg::Failure) | None => return Err(SshClientError::NotOffered),
                Some(_) => {}
            }
        }
    };
    let opened = tokio::time::timeout(PATIENCE, opening).await;
    let (_session, mut channel) = opened.unwrap_or(Err(SshClientError::Patience))?;
    let mut records = Records::default();
    while let Some(message) = channel.wait().await {
        let ChannelMsg::Data { data } = message else { continue };
        records.push(&data);
        while let Some(record) = records.pull()? {
            if !take(&record) {
                return Ok(None);
            }
            if record.is_last() {
                return Ok(Some(record));
            }
        }
    }
    Err(SshClientError::Cut)
}

async fn connect(grant: &Grant, access: &Access) -> Result<client::Handle<Pinned>, SshClientError> {
    let key = load_secret_key(grant.key_path(), None).map_err(SshClientError::Keys)?;
    let known = std::fs::read_to_string(grant.known_hosts_path()).map_err(|_| SshClientError::NoHostKey)?;
    let pinned = known.split_whitespace().skip(1).collect::<Vec<_>>().join(" ");
    let pinned = PublicKey::from_openssh(&pinned).map_err(|_| SshClientError::NoHostKey)?;
    let config = client::Config { keepalive_interval: Some(KEEPALIVE), ..client::Config::default() };
    let address = (access.host.as_str(), access.port);
    let mut session = client::connect(Arc::new(config), address, Pinned(pinned)).await?;
    let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
    if !session.authenticate_publickey(&access.user, key).await?.success() {
        return Err(SshClientError::Refused);
    }
    Ok(session)
}

async fn execute(grant: &Grant, access: &Access, command: &str) -> Result<Ran, SshClientError> {
    let session = connect(grant, access).await?;
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
