//! Files on the machine, over SFTP: streamed, hashed on the way, put in place whole or not at all.

use std::path::Path;
use std::time::Duration;

use futures::FutureExt;
use russh_sftp::client::error::Error as SftpError;
use russh_sftp::client::{RawSftpSession, SftpSession};
use russh_sftp::extensions::HardlinkExtension;
use russh_sftp::protocol::{FileAttributes, OpenFlags, Packet, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::error::SshError;
use super::session::{OpenChannel, SshHost};

const CHUNK: usize = 256 * 1024;
/// Wait for one answer of the SFTP server.
const SFTP_ANSWER_SECS: u64 = 60;
/// A rename that replaces.
const POSIX_RENAME: &str = "posix-rename@openssh.com";

/// A file that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uploaded {
    /// blake3 of the bytes read here and sent.
    pub hash: blake3::Hash,
    /// How many.
    pub size_bytes: u64,
}

/// Reads a whole file in pieces and hashes it.
///
/// # Errors
/// The first read that fails.
pub async fn file_blake3(path: &Path) -> std::io::Result<(blake3::Hash, u64)> {
    let mut file = tokio::fs::File::open(path).await?;
    let (mut hasher, mut size, mut buffer) = (blake3::Hasher::new(), 0_u64, vec![0; CHUNK]);
    loop {
        let count = file.read(&mut buffer).await?;
        if count == 0 {
            return Ok((hasher.finalize(), size));
        }
        hasher.update(&buffer[..count]);
        size += count as u64;
    }
}

/// An SFTP session that gives its channel back: a host allows only so many on one connection, and dropping the session
/// alone leaves the channel open.
struct Files {
    session: SftpSession,
    _permit: OwnedSemaphorePermit,
}

impl std::ops::Deref for Files {
    type Target = SftpSession;

    fn deref(&self) -> &SftpSession {
        &self.session
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // It only queues the end of the stream and never waits.
        let _ = self.session.close().now_or_never();
    }
}

impl SshHost {
    async fn sftp(&self) -> Result<Files, SshError> {
        let OpenChannel { channel, permit } = self.sftp_channel().await?;
        let session = SftpSession::new(channel.into_stream()).await;
        let session = session.map_err(|error| self.file_error("opening", "(sftp)", &error))?;
        session.set_timeout(SFTP_ANSWER_SECS);
        Ok(Files { session, _permit: permit })
    }

    fn file_error(&self, what: &'static str, path: &str, error: &SftpError) -> SshError {
        if matches!(error, SftpError::Timeout) || self.sounds_lost(error) {
            return self.lost(format!("{what} {path}"));
        }
        let problem = error.to_string();
        let disk_full = GROWS.contains(&what) && is_bare_failure(error) || names_full_disk(&problem);
        SshError::File { host: self.target().label(), what, path: path.into(), problem, disk_full }
    }

    fn sounds_lost(&self, error: &SftpError) -> bool {
        match error {
            SftpError::IO(_) | SftpError::UnexpectedBehavior(_) => true,
            SftpError::Status(status) => {
                matches!(status.status_code, StatusCode::ConnectionLost | StatusCode::NoConnection)
            }
            _ => false,
        }
    }

    async fn within<T>(
        &self,
        what: &str,
        deadline: Duration,
        work: impl Future<Output = Result<T, SshError>>,
    ) -> Result<T, SshError> {
        timeout(deadline, work).await.unwrap_or_else(|_| Err(self.late(what, deadline)))
    }

    /// The login's home directory, absolute.
    ///
    /// # Errors
    /// [`SshError`].
    pub async fn home(&self, deadline: Duration) -> Result<String, SshError> {
        let ask = async {
            let sftp = self.sftp().await?;
            sftp.canonicalize(".").await.map_err(|error| self.file_error("resolving", ".", &error))
        };
        self.within("resolving the home directory", deadline, ask).await
    }

    /// Makes the directories of `path` below `base`, mode 700 each; directories that exist are left as they are.
    ///
    /// # Errors
    /// [`SshError`].
    pub async fn make_dirs(&self, base: &str, path: &str, deadline: Duration) -> Result<(), SshError> {
        let make = async {
            let sftp = self.sftp().await?;
            let mut at = base.trim_end_matches('/').to_owned();
            for part in path.split('/').filter(|part| !part.is_empty()) {
                at = format!("{at}/{part}");
                if sftp.try_exists(at.as_str()).await.map_err(|error| self.file_error("looking for", &at, &error))? {
                    continue;
                }
                let made = sftp.create_dir(at.as_str()).await;
                // Two of us at the same time: one wins, both go on.
                if let Err(error) = made
                    && !sftp.try_exists(at.as_str()).await.unwrap_or(false)
                {
                    return Err(self.file_error("making directory", &at, &error));
                }
                let _ = sftp.set_metadata(at.as_str(), mode_only(0o700)).await;
            }
            Ok(())
        };
        self.within("making directories", deadline, make).await
    }

    /// Size of a file on the machine; `None` when there is none.
    ///
    /// # Errors
    /// [`SshError`].
    pub async fn size_of(&self, path: &str, deadline: Duration) -> Result<Option<u64>, SshError> {
        let look = async {
            let sftp = self.sftp().await?;
            match sftp.metadata(path).await {
                Ok(meta) => Ok(Some(meta.size.unwrap_or(0))),
                Err(SftpError::Status(status)) if status.status_code == StatusCode::NoSuchFile => Ok(None),
                Err(error) => Err(self.file_error("looking at", path, &error)),
            }
        };
        self.within("looking at a file", deadline, look).await
    }

    /// Streams a file there under a temporary name, hashing what is sent, and renames it into place.
    ///
    /// # Errors
    /// [`SshError`]; the temporary file is removed when the machine can still be reached.
    pub async fn upload(
        &self,
        local: &Path,
        remote: &str,
        mode: u32,
        deadline: Duration,
    ) -> Result<Uploaded, SshError> {
        let send = async {
            let unreadable = |source| SshError::Local { path: local.into(), source };
            let mut file = tokio::fs::File::open(local).await.map_err(unreadable)?;
            let sftp = self.sftp().await?;
            let draft = format!("{remote}.part-{:016x}", rand::random::<u64>());
            match self.stream(&sftp, &mut file, local, &draft, mode).await {
                Ok(uploaded) => self.place(sftp, &draft, remote).await.map(|()| uploaded),
                Err(error) => {
                    let _ = sftp.remove_file(draft.as_str()).await;
                    Err(error)
                }
            }
        };
        self.within(&format!("uploading {remote}"), deadline, send).await
    }

    async fn stream(
        &self,
        sftp: &SftpSession,
        file: &mut (impl tokio::io::AsyncRead + Unpin),
        local: &Path,
        draft: &str,
        mode: u32,
    ) -> Result<Uploaded, SshError> {
        let flags = OpenFlags::CREATE | OpenFlags::EXCLUDE | OpenFlags::WRITE;
        let opened = sftp.open_with_flags_and_attributes(draft, flags, mode_only(mode)).await;
        let mut there = opened.map_err(|error| self.file_error("making", draft, &error))?;
        let (mut hasher, mut size_bytes, mut buffer) = (blake3::Hasher::new(), 0_u64, vec![0; CHUNK]);
        loop {
            let count =
                file.read(&mut buffer).await.map_err(|source| SshError::Local { path: local.into(), source })?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            size_bytes += count as u64;
            there.write_all(&buffer[..count]).await.map_err(|error| self.write_error(draft, &error))?;
        }
        there.flush().await.map_err(|error| self.write_error(draft, &error))?;
        there.close().await.map_err(|error| self.write_error(draft, &error))?;
        let set = sftp.set_metadata(draft, mode_only(mode)).await;
        set.map_err(|error| self.file_error("setting the mode of", draft, &error))?;
        Ok(Uploaded { hash: hasher.finalize(), size_bytes })
    }

    fn read_error(&self, path: &str, error: &std::io::Error) -> SshError {
        match self.write_error(path, error) {
            SshError::File { host, path, problem, .. } => {
                SshError::File { host, what: "reading", path, problem, disk_full: false }
            }
            lost => lost,
        }
    }

    fn write_error(&self, path: &str, error: &std::io::Error) -> SshError {
        let problem = error.to_string();
        let status = error.get_ref().and_then(|inner| inner.downcast_ref::<SftpError>());
        // Of an answer to a write only the text comes through.
        let refused = status.map_or(problem == BARE_FAILURE, is_bare_failure);
        let disk_full = refused || error.kind() == std::io::ErrorKind::StorageFull || names_full_disk(&problem);
        if matches!(
            error.kind(),
            std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset
        ) {
            return self.lost(format!("writing {path}"));
        }
        SshError::File { host: self.target().label(), what: "writing", path: path.into(), problem, disk_full }
    }

    /// Puts a file that has arrived where it belongs. SFTP's own rename refuses to replace.
    async fn place(&self, sftp: Files, draft: &str, remote: &str) -> Result<(), SshError> {
        if sftp.rename(draft, remote).await.is_ok() {
            return Ok(());
        }
        // The channel is given back before another one is asked for: there may be no more than one.
        drop(sftp);
        self.replace(draft, remote).await
    }

    /// Replaces a file at once where the server can, as OpenSSH's and ours: of several that put the same file there at one time,
    /// none ever takes another's away. Elsewhere the old one is removed first.
    async fn replace(&self, draft: &str, remote: &str) -> Result<(), SshError> {
        let OpenChannel { channel, permit: _permit } = self.sftp_channel().await?;
        let sftp = RawSftpSession::new(channel.into_stream());
        sftp.set_timeout(SFTP_ANSWER_SECS);
        let replaced = async {
            if !sftp.init().await?.extensions.contains_key(POSIX_RENAME) {
                let _ = sftp.remove(remote).await;
                return sftp.rename(draft, remote).await.map(drop);
            }
            // The same two strings as a hard link's.
            let names = HardlinkExtension { oldpath: draft.into(), newpath: remote.into() };
            match sftp.extended(POSIX_RENAME, names.try_into()?).await? {
                Packet::Status(status) if status.status_code == StatusCode::Ok => Ok(()),
                Packet::Status(status) => Err(SftpError::Status(status)),
                _ => Err(SftpError::UnexpectedBehavior("another answer than a status".into())),
            }
        };
        let replaced = replaced.await.map_err(|error: SftpError| self.file_error("renaming to", remote, &error));
        if replaced.is_err() {
            let _ = sftp.remove(draft).await;
        }
        replaced
    }

    /// Writes a small file in one go, mode 600, whole or not at all.
    ///
    /// # Errors
    /// [`SshError`].
    pub async fn write_file(&self, remote: &str, bytes: &[u8], deadline: Duration) -> Result<(), SshError> {
        let send = async {
            let sftp = self.sftp().await?;
            let draft = format!("{remote}.part-{:016x}", rand::random::<u64>());
            let mut from = bytes;
            self.stream(&sftp, &mut from, Path::new("(memory)"), &draft, 0o600).await?;
            self.place(sftp, &draft, remote).await
        };
        self.within(&format!("writing {remote}"), deadline, send).await
    }

    /// Reads a file on the machine back and hashes it; nothing is kept.
    ///
    /// # Errors
    /// [`SshError`].
    pub async fn remote_blake3(&self, remote: &str, deadline: Duration) -> Result<(blake3::Hash, u64), SshError> {
        let read = async {
            let sftp = self.sftp().await?;
            let mut file = sftp.open(remote).await.map_err(|error| self.file_error("opening", remote, &error))?;
            let (mut hasher, mut size, mut buffer) = (blake3::Hasher::new(), 0_u64, vec![0; CHUNK]);
            loop {
                let count = file.read(&mut buffer).await.map_err(|error| self.read_error(remote, &error))?;
                if count == 0 {
                    return Ok((hasher.finalize(), size));
                }
                hasher.update(&buffer[..count]);
                size += count as u64;
            }
        };
        self.within(&format!("reading back {remote}"), deadline, read).await
    }

    /// Files of a directory with size and time of last change (Unix seconds); empty when there is no such directory.
    ///
    /// # Errors
    /// [`SshError`].
    pub async fn list_files(&self, dir: &str, deadline: Duration) -> Result<Vec<(String, u64, u32)>, SshError> {
        let list = async {
            let sftp = self.sftp().await?;
            let entries = match sftp.read_dir(dir).await {
                Ok(entries) => entries,
                Err(SftpError::Status(status)) if status.status_code == StatusCode::NoSuchFile => return Ok(Vec::new()),
                Err(error) => return Err(self.file_error("listing", dir, &error)),
            };
            let files = entries.filter(|entry| entry.file_type().is_file());
            Ok(files
                .map(|entry| {
                    let meta = entry.metadata();
                    (entry.file_name(), meta.size.unwrap_or(0), meta.mtime.unwrap_or(0))
                })
                .collect())
        };
        self.within(&format!("listing {dir}"), deadline, list).await
    }

    /// Removes a file; one that is not there is fine.
    ///
    /// # Errors
    /// [`SshError`].
    pub async fn remove_file(&self, path: &str, deadline: Duration) -> Result<(), SshError> {
        let remove = async {
            let sftp = self.sftp().await?;
            match sftp.remove_file(path).await {
                Ok(()) => Ok(()),
                Err(SftpError::Status(status)) if status.status_code == StatusCode::NoSuchFile => Ok(()),
                Err(error) => Err(self.file_error("removing", path, &error)),
            }
        };
        self.within(&format!("removing {path}"), deadline, remove).await
    }
}

/// OpenSSH's text for a failure without a code of its own.
const BARE_FAILURE: &str = "Failure";
/// What takes room on the machine's disk.
const GROWS: [&str; 2] = ["making", "making directory"];

fn names_full_disk(problem: &str) -> bool {
    ["space", "quota", "ENOSPC"].iter().any(|word| problem.contains(word))
}

/// OpenSSH answers so, without a reason, for every error that the protocol has no code for. Missing permissions and files
/// have codes; what is left for a file that is made or grows is a full disk, or one that fails.
fn is_bare_failure(error: &SftpError) -> bool {
    matches!(error, SftpError::Status(status) if status.status_code == StatusCode::Failure)
}

fn mode_only(mode: u32) -> FileAttributes {
    FileAttributes { permissions: Some(mode), ..FileAttributes::empty() }
}
