//! Connecting, logging in, and running commands.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coalition_host::types::SecretText;
use russh::ChannelMsg;
use russh::client::{self, Handle, Msg};
use russh::keys::{HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::error::SshError;
use crate::config::{PinnedHostKey, read_secret_file};

/// Longest wait for a connection with login.
const CONNECT: Duration = Duration::from_secs(15);
/// Silence after which the other side is asked whether it is still there; three unanswered questions end the connection.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Channels open at once on one connection. OpenSSH allows ten of its own accord, and takes a moment to count one that was
/// closed as gone.
const CHANNELS: usize = 8;
/// Longest wait for a server that has no channel free, and the pause between two tries.
const NO_CHANNEL: Duration = Duration::from_secs(5);
const NO_CHANNEL_PAUSE: Duration = Duration::from_millis(100);
/// Most output of one command, each stream.
const MAX_OUTPUT: usize = 4 << 20;

/// The private key to log in with.
#[derive(Clone, Debug)]
pub enum LoginKey {
    /// In a file; mode 600.
    File(PathBuf),
    /// In memory; made by the bridge for one machine.
    Held(SecretText),
}

impl LoginKey {
    /// Where it is, for messages.
    #[must_use]
    pub fn label(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Held(_) => "made for this machine".to_owned(),
        }
    }
}

/// Where a machine is and how to prove both sides.
#[derive(Clone, Debug)]
pub struct SshTarget {
    /// DNS name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// User.
    pub user: String,
    /// What to log in with.
    pub key: LoginKey,
    /// The one host key accepted.
    pub host_key: PinnedHostKey,
}

impl SshTarget {
    /// `host:port`, for messages.
    #[must_use]
    pub fn label(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// Exit status; `None` when a signal ended it or the server did not say.
    pub status: Option<u32>,
    /// The signal that ended it, if one did.
    pub signal: Option<String>,
}

impl ExecOutput {
    /// The last lines of standard error, for messages.
    #[must_use]
    pub fn stderr_tail(&self) -> String {
        let text = String::from_utf8_lossy(&self.stderr);
        let tail: Vec<&str> = text.trim_end().lines().rev().take(5).collect();
        tail.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }
}

/// A machine reached over one connection, reconnected as needed. Cheap to share behind an [`Arc`].
pub struct SshHost {
    target: SshTarget,
    connection: Mutex<Option<Arc<Handle<Pinned>>>>,
    channels: Arc<Semaphore>,
}

/// One channel of the connection, and the right to have it open.
pub(super) struct OpenChannel {
    pub(super) channel: russh::Channel<Msg>,
    pub(super) permit: OwnedSemaphorePermit,
}

/// Accepts exactly the pinned key.
pub(super) struct Pinned {
    label: String,
    pinned: PinnedHostKey,
}

impl client::Handler for Pinned {
    type Error = SshError;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, SshError> {
        let presented = match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } if self.pinned.matches(key) => return Ok(true),
            PublicKeyOrCertificate::PublicKey { key, .. } => {
                format!("{} {}", key.algorithm(), key.fingerprint(HashAlg::Sha256))
            }
            PublicKeyOrCertificate::Certificate(_) => "a certificate instead of a key".to_owned(),
        };
        let pinned = format!("ssh-ed25519 {}", self.pinned.fingerprint());
        Err(SshError::HostKey { host: self.label.clone(), pinned, presented })
    }
}

/// Quotes one word for a POSIX shell.
#[must_use]
pub fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

impl SshHost {
    /// A machine; nothing is contacted yet.
    #[must_use]
    pub fn new(target: SshTarget) -> Self {
        Self { target, connection: Mutex::new(None), channels: Arc::new(Semaphore::new(CHANNELS)) }
    }

    /// Where it is.
    #[must_use]
    pub const fn target(&self) -> &SshTarget {
        &self.target
    }

    /// Connects if there is no live connection.
    ///
    /// # Errors
    /// [`SshError`].
    pub async fn connect(&self) -> Result<(), SshError> {
        self.handle().await.map(|_| ())
    }

    /// Ends the connection, if any.
    pub async fn disconnect(&self) {
        let taken = self.connection.lock().await.take();
        if let Some(handle) = taken {
            let _ = handle.disconnect(russh::Disconnect::ByApplication, "", "en").await;
        }
    }

    pub(super) async fn handle(&self) -> Result<Arc<Handle<Pinned>>, SshError> {
        let mut slot = self.connection.lock().await;
        if let Some(handle) = slot.as_ref().filter(|handle| !handle.is_closed()) {
            return Ok(Arc::clone(handle));
        }
        *slot = None;
        let label = self.target.label();
        let handle = match timeout(CONNECT, self.open()).await {
            Ok(Ok(handle)) => Arc::new(handle),
            Ok(Err(error @ (SshError::HostKey { .. } | SshError::Refused { .. } | SshError::KeyFile { .. }))) => {
                return Err(error);
            }
            Ok(Err(error)) => return Err(SshError::Connect { host: label, source: Box::new(error) }),
            Err(_) => return Err(self.late("connecting", CONNECT)),
        };
        *slot = Some(Arc::clone(&handle));
        Ok(handle)
    }

    async fn open(&self) -> Result<Handle<Pinned>, SshError> {
        let target = &self.target;
        let key = load_key(&target.key)?;
        let config = client::Config {
            keepalive_interval: Some(KEEPALIVE),
            keepalive_max: 3,
            nodelay: true,
            ..client::Config::default()
        };
        let handler = Pinned { label: target.label(), pinned: target.host_key.clone() };
        let mut handle = client::connect(Arc::new(config), (target.host.as_str(), target.port), handler).await?;
        let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
        let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
        let login = handle.authenticate_publickey(target.user.clone(), key).await?;
        if login.success() {
            return Ok(handle);
        }
        Err(SshError::Refused {
            host: target.label(),
            user: target.user.clone(),
            key_fingerprint: fingerprint,
            key_from: target.key.label(),
        })
    }

    pub(super) fn late(&self, what: impl Into<String>, waited: Duration) -> SshError {
        let waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
        SshError::Deadline { host: self.target.label(), what: what.into(), waited_ms }
    }

    pub(super) fn lost(&self, what: impl Into<String>) -> SshError {
        SshError::Lost { host: self.target.label(), what: what.into() }
    }

    /// Runs a command line in the login's shell and waits for its end.
    ///
    /// `what` names it in errors. A command that was started may have run even when this fails.
    ///
    /// # Errors
    /// [`SshError`]; a non-zero exit status is not one.
    pub async fn exec(&self, what: &str, command: &str, deadline: Duration) -> Result<ExecOutput, SshError> {
        match timeout(deadline, self.exec_now(what, command)).await {
            Ok(done) => done,
            Err(_) => Err(self.late(what, deadline)),
        }
    }

    /// As [`SshHost::exec`], for commands that may safely run twice: tried again once when the connection had died.
    ///
    /// # Errors
    /// [`SshError`].
    pub async fn exec_again(&self, what: &str, command: &str, deadline: Duration) -> Result<ExecOutput, SshError> {
        match self.exec(what, command, deadline).await {
            Err(error) if error.is_lost_connection() => self.exec(what, command, deadline).await,
            done => done,
        }
    }

    async fn exec_now(&self, what: &str, command: &str) -> Result<ExecOutput, SshError> {
        let handle = self.handle().await?;
        let OpenChannel { mut channel, permit: _permit } = self.open_channel(&handle, what).await?;
        channel.exec(true, command).await.map_err(|error| self.dropped(what, error))?;
        let mut output = ExecOutput { stdout: Vec::new(), stderr: Vec::new(), status: None, signal: None };
        let mut closed = false;
        while let Some(message) = channel.wait().await {
            match message {
                ChannelMsg::Data { data } => self.take(&mut output.stdout, &data)?,
                ChannelMsg::ExtendedData { data, .. } => self.take(&mut output.stderr, &data)?,
                ChannelMsg::ExitStatus { exit_status } => output.status = Some(exit_status),
                ChannelMsg::ExitSignal { signal_name, .. } => output.signal = Some(format!("{signal_name:?}")),
                ChannelMsg::Failure => {
                    return Err(SshError::Denied { host: self.target.label(), what: what.to_owned() });
                }
                ChannelMsg::Close => {
                    closed = true;
                    break;
                }
                _ => {}
            }
        }
        // Without an exit status the end of the channel is the end of the connection, not of the command.
        if output.status.is_none() && output.signal.is_none() && (!closed || handle.is_closed()) {
            return Err(self.lost(what));
        }
        Ok(output)
    }

    fn take(&self, into: &mut Vec<u8>, data: &[u8]) -> Result<(), SshError> {
        if into.len() + data.len() > MAX_OUTPUT {
            return Err(SshError::TooMuchOutput { host: self.target.label(), limit: MAX_OUTPUT });
        }
        into.extend_from_slice(data);
        Ok(())
    }

    /// A failure of the transport under `what`.
    pub(super) fn dropped(&self, what: &str, error: russh::Error) -> SshError {
        match error {
            russh::Error::SendError | russh::Error::Disconnect | russh::Error::HUP | russh::Error::KeepaliveTimeout => {
                self.lost(what)
            }
            other => SshError::Protocol(other),
        }
    }

    /// Opens a channel once there are few enough, and waits a little for a server that allows fewer.
    async fn open_channel(&self, handle: &Handle<Pinned>, what: &str) -> Result<OpenChannel, SshError> {
        let permit = Arc::clone(&self.channels).acquire_owned().await.map_err(|_| self.lost(what))?;
        let until = Instant::now() + NO_CHANNEL;
        loop {
            match handle.channel_open_session().await {
                Ok(channel) => return Ok(OpenChannel { channel, permit }),
                Err(russh::Error::ChannelOpenFailure(_)) if Instant::now() < until => {
                    tokio::time::sleep(NO_CHANNEL_PAUSE).await;
                }
                Err(russh::Error::ChannelOpenFailure(reason)) => {
                    let (host, what) = (self.target.label(), what.to_owned());
                    return Err(SshError::NoChannel { host, what, reason: format!("{reason:?}") });
                }
                Err(error) => return Err(self.dropped(what, error)),
            }
        }
    }

    pub(super) async fn sftp_channel(&self) -> Result<OpenChannel, SshError> {
        let handle = self.handle().await?;
        let what = "file transfer (the sftp subsystem)";
        let open = self.open_channel(&handle, what).await?;
        open.channel.request_subsystem(true, "sftp").await.map_err(|error| self.dropped(what, error))?;
        Ok(open)
    }
}

fn load_key(key: &LoginKey) -> Result<PrivateKey, SshError> {
    let unusable = |problem: String| SshError::KeyFile { key_from: key.label(), problem };
    let parse = |text: &str| {
        let none = "it is no private key in OpenSSH format (ssh-keygen -t ed25519 makes one)";
        PrivateKey::from_openssh(text).map_err(|_| unusable(none.into()))
    };
    let key = match key {
        LoginKey::File(path) => parse(&read_secret_file(path).map_err(|error| unusable(crate::fleet::chain(&error)))?)?,
        LoginKey::Held(text) => parse(text.expose())?,
    };
    if key.is_encrypted() {
        return Err(unusable("it is encrypted; the bridge runs unattended and needs one without a passphrase".into()));
    }
    Ok(key)
}
