//! SFTP version 3 on the files of whoever runs it, kept to some directories. The same user may run commands anyway, so this
//! guards against mistakes, not against the user.

use std::collections::HashMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use russh_sftp::protocol::{
    Attrs, Data, File as Listed, FileAttributes, Handle, Name, OpenFlags, Packet, Status, StatusCode, Version,
};
use russh_sftp::server::StatusReply;
use tokio::net::unix::pipe;

/// Open files and directories per session.
const MAX_HANDLES: usize = 256;
/// Largest answer to a read.
const MAX_READ: u32 = 256 * 1024;
/// Between the server and the pipes it serves.
const BUFFER_BYTES: usize = 256 * 1024;
const RENAME: &str = "posix-rename@openssh.com";
const FSYNC: &str = "fsync@openssh.com";

/// The directories a session may touch.
pub(crate) struct Jail {
    root: PathBuf,
    allowed: Vec<PathBuf>,
}

impl Jail {
    /// One directory, which is absolute and exists, and the temporary one.
    pub(crate) fn new(root: PathBuf) -> Self {
        let temporary = std::env::temp_dir().canonicalize().ok();
        let allowed = std::iter::once(root.clone()).chain(temporary).collect();
        Self { root, allowed }
    }

    /// Everything below `all`; names that are not absolute begin at `root`.
    pub(crate) fn within(root: PathBuf, all: PathBuf) -> Self {
        Self { root, allowed: vec![all] }
    }

    /// The real path of `path`, whose last component need not exist; an error when that is outside. The last component
    /// is not followed when it is a link and `follow` is false.
    fn resolve(&self, path: &str, follow: bool) -> Result<PathBuf, StatusReply> {
        let joined = self.root.join(if path.is_empty() { "." } else { path });
        let real = match (joined.file_name(), joined.parent()) {
            (Some(name), Some(parent)) if joined.components().next_back() == Some(Component::Normal(name)) => {
                let candidate = parent.canonicalize().map_err(|e| reply(&e))?.join(name);
                if follow && candidate.exists() { candidate.canonicalize().map_err(|e| reply(&e))? } else { candidate }
            }
            _ => joined.canonicalize().map_err(|e| reply(&e))?,
        };
        if self.allowed.iter().any(|dir| real.starts_with(dir)) {
            Ok(real)
        } else {
            let text = format!("{} is outside {}", real.display(), self.root.display());
            Err(StatusCode::PermissionDenied.with_message(text))
        }
    }
}

fn reply(e: &io::Error) -> StatusReply {
    let code = match e.kind() {
        io::ErrorKind::NotFound => StatusCode::NoSuchFile,
        io::ErrorKind::PermissionDenied => StatusCode::PermissionDenied,
        _ => StatusCode::Failure,
    };
    code.with_message(e.to_string())
}

fn ok(id: u32) -> Status {
    Status { id, status_code: StatusCode::Ok, error_message: "Ok".into(), language_tag: "en".into() }
}

enum Opened {
    File(File),
    Directory(fs::ReadDir),
}

/// One client's session.
pub(crate) struct SftpSession {
    jail: Jail,
    open: HashMap<String, Opened>,
    next: u64,
}

type Answer<T> = Result<T, StatusReply>;

impl SftpSession {
    pub(crate) fn new(jail: Jail) -> Self {
        Self { jail, open: HashMap::new(), next: 0 }
    }

    fn keep(&mut self, id: u32, opened: Opened) -> Answer<Handle> {
        if self.open.len() >= MAX_HANDLES {
            return Err(StatusCode::Failure.with_message(format!("{MAX_HANDLES} files are open")));
        }
        self.next += 1;
        let handle = self.next.to_string();
        self.open.insert(handle.clone(), opened);
        Ok(Handle { id, handle })
    }

    fn file(&self, handle: &str) -> Answer<&File> {
        match self.open.get(handle) {
            Some(Opened::File(file)) => Ok(file),
            _ => Err(StatusCode::Failure.with_message("no such open file")),
        }
    }
}

/// Serves files over this process's standard input and output until the input ends; answers an exit status. Relative
/// names begin at `home`, and everything below `all` is served.
pub(crate) fn serve_standard_streams(home: &Path, all: &Path) -> i32 {
    let served = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        runtime.block_on(async {
            let input = pipe::Receiver::from_owned_fd(io::stdin().as_fd().try_clone_to_owned()?)?;
            let output = pipe::Sender::from_owned_fd(io::stdout().as_fd().try_clone_to_owned()?)?;
            let (mut near, far) = tokio::io::duplex(BUFFER_BYTES);
            russh_sftp::server::run(far, SftpSession::new(Jail::within(home.to_owned(), all.to_owned()))).await;
            let mut streams = tokio::io::join(input, output);
            tokio::io::copy_bidirectional(&mut streams, &mut near).await.map(|_| ())
        })
    };
    let served: io::Result<()> = served();
    i32::from(served.is_err())
}

fn attributes(meta: &Metadata) -> FileAttributes {
    FileAttributes::from(meta)
}

/// Changes what the client names; owner and times-of-access are none of its business.
fn change(file: &File, attrs: &FileAttributes) -> io::Result<()> {
    if let Some(size) = attrs.size {
        file.set_len(size)?;
    }
    if let Some(mode) = attrs.permissions {
        file.set_permissions(fs::Permissions::from_mode(mode & 0o777))?;
    }
    if let Some(mtime) = attrs.mtime {
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(mtime.into()))?;
    }
    Ok(())
}

/// Two length-prefixed strings, as extended requests carry them.
fn two_strings(data: &[u8]) -> Option<(String, String)> {
    let (first, rest) = one_string(data)?;
    let (second, _) = one_string(rest)?;
    Some((first, second))
}

fn one_string(data: &[u8]) -> Option<(String, &[u8])> {
    let (length, rest) = data.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (text, rest) = rest.split_at_checked(length)?;
    Some((String::from_utf8(text.to_vec()).ok()?, rest))
}

impl russh_sftp::server::Handler for SftpSession {
    type Error = StatusReply;

    fn unimplemented(&self) -> Self::Error {
        StatusCode::OpUnsupported.into()
    }

    async fn init(&mut self, _version: u32, _extensions: HashMap<String, String>) -> Answer<Version> {
        let mut version = Version::new();
        version.extensions.insert(RENAME.into(), "1".into());
        version.extensions.insert(FSYNC.into(), "1".into());
        Ok(version)
    }

    async fn open(&mut self, id: u32, name: String, flags: OpenFlags, attrs: FileAttributes) -> Answer<Handle> {
        let path = self.jail.resolve(&name, true)?;
        let mut options = OpenOptions::from(flags);
        options.mode(attrs.permissions.unwrap_or(0o600) & 0o777);
        let file = options.open(path).map_err(|e| reply(&e))?;
        if file.metadata().map_err(|e| reply(&e))?.is_dir() {
            return Err(StatusCode::Failure.with_message("is a directory"));
        }
        self.keep(id, Opened::File(file))
    }

    async fn close(&mut self, id: u32, handle: String) -> Answer<Status> {
        self.open.remove(&handle).map(|_| ok(id)).ok_or_else(|| StatusCode::Failure.into())
    }

    async fn read(&mut self, id: u32, handle: String, offset: u64, len: u32) -> Answer<Data> {
        let wanted = usize::try_from(len.min(MAX_READ)).unwrap_or(0);
        let mut data = vec![0u8; wanted];
        let n = self.file(&handle)?.read_at(&mut data, offset).map_err(|e| reply(&e))?;
        if n == 0 && wanted > 0 {
            return Err(StatusCode::Eof.into());
        }
        data.truncate(n);
        Ok(Data { id, data })
    }

    async fn write(&mut self, id: u32, handle: String, offset: u64, data: Vec<u8>) -> Answer<Status> {
        self.file(&handle)?.write_all_at(&data, offset).map_err(|e| reply(&e))?;
        Ok(ok(id))
    }

    async fn lstat(&mut self, id: u32, path: String) -> Answer<Attrs> {
        let meta = fs::symlink_metadata(self.jail.resolve(&path, false)?).map_err(|e| reply(&e))?;
        Ok(Attrs { id, attrs: attributes(&meta) })
    }

    async fn stat(&mut self, id: u32, path: String) -> Answer<Attrs> {
        let meta = fs::metadata(self.jail.resolve(&path, true)?).map_err(|e| reply(&e))?;
        Ok(Attrs { id, attrs: attributes(&meta) })
    }

    async fn fstat(&mut self, id: u32, handle: String) -> Answer<Attrs> {
        let meta = self.file(&handle)?.metadata().map_err(|e| reply(&e))?;
        Ok(Attrs { id, attrs: attributes(&meta) })
    }

    async fn setstat(&mut self, id: u32, path: String, attrs: FileAttributes) -> Answer<Status> {
        let path = self.jail.resolve(&path, true)?;
        let file = OpenOptions::new().write(attrs.size.is_some()).read(true).open(path).map_err(|e| reply(&e))?;
        change(&file, &attrs).map_err(|e| reply(&e))?;
        Ok(ok(id))
    }

    async fn fsetstat(&mut self, id: u32, handle: String, attrs: FileAttributes) -> Answer<Status> {
        change(self.file(&handle)?, &attrs).map_err(|e| reply(&e))?;
        Ok(ok(id))
    }

    async fn opendir(&mut self, id: u32, path: String) -> Answer<Handle> {
        let listing = fs::read_dir(self.jail.resolve(&path, true)?).map_err(|e| reply(&e))?;
        self.keep(id, Opened::Directory(listing))
    }

    async fn readdir(&mut self, id: u32, handle: String) -> Answer<Name> {
        let Some(Opened::Directory(listing)) = self.open.get_mut(&handle) else {
            return Err(StatusCode::Failure.with_message("no such open directory"));
        };
        let files: Vec<Listed> = listing
            .by_ref()
            .take(100)
            .flatten()
            .filter_map(|e| {
                let attrs = attributes(&e.metadata().ok()?);
                Some(Listed::new(e.file_name().to_string_lossy().into_owned(), attrs))
            })
            .collect();
        if files.is_empty() { Err(StatusCode::Eof.into()) } else { Ok(Name { id, files }) }
    }

    async fn remove(&mut self, id: u32, path: String) -> Answer<Status> {
        fs::remove_file(self.jail.resolve(&path, false)?).map_err(|e| reply(&e))?;
        Ok(ok(id))
    }

    async fn mkdir(&mut self, id: u32, path: String, attrs: FileAttributes) -> Answer<Status> {
        use std::os::unix::fs::DirBuilderExt;
        let mode = attrs.permissions.unwrap_or(0o755) & 0o777;
        fs::DirBuilder::new().mode(mode).create(self.jail.resolve(&path, false)?).map_err(|e| reply(&e))?;
        Ok(ok(id))
    }

    async fn rmdir(&mut self, id: u32, path: String) -> Answer<Status> {
        fs::remove_dir(self.jail.resolve(&path, false)?).map_err(|e| reply(&e))?;
        Ok(ok(id))
    }

    async fn realpath(&mut self, id: u32, path: String) -> Answer<Name> {
        let real = self.jail.resolve(&path, true)?;
        Ok(Name { id, files: vec![Listed::dummy(real.to_string_lossy().into_owned())] })
    }

    async fn rename(&mut self, id: u32, from: String, to: String) -> Answer<Status> {
        let (from, to) = (self.jail.resolve(&from, false)?, self.jail.resolve(&to, false)?);
        if fs::symlink_metadata(&to).is_ok() {
            return Err(StatusCode::Failure.with_message(format!("{} exists", to.display())));
        }
        fs::rename(from, to).map_err(|e| reply(&e))?;
        Ok(ok(id))
    }

    async fn readlink(&mut self, id: u32, path: String) -> Answer<Name> {
        let target = fs::read_link(self.jail.resolve(&path, false)?).map_err(|e| reply(&e))?;
        Ok(Name { id, files: vec![Listed::dummy(target.to_string_lossy().into_owned())] })
    }

    async fn extended(&mut self, id: u32, request: String, data: Vec<u8>) -> Answer<Packet> {
        let malformed = || StatusReply::from(StatusCode::BadMessage);
        match request.as_str() {
            RENAME => {
                let (from, to) = two_strings(&data).ok_or_else(malformed)?;
                fs::rename(self.jail.resolve(&from, false)?, self.jail.resolve(&to, false)?).map_err(|e| reply(&e))?;
            }
            FSYNC => {
                let (handle, _) = one_string(&data).ok_or_else(malformed)?;
                self.file(&handle)?.sync_all().map_err(|e| reply(&e))?;
            }
            _ => return Err(StatusCode::OpUnsupported.into()),
        }
        Ok(Packet::Status(ok(id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_in_the_jail() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        fs::create_dir(root.join("in")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("out")).unwrap();
        let jail = Jail { root: root.clone(), allowed: vec![root.clone()] };
        assert_eq!(jail.resolve(".", true).unwrap(), root);
        assert_eq!(jail.resolve("", true).unwrap(), root);
        assert_eq!(jail.resolve("in/new", true).unwrap(), root.join("in/new"));
        assert_eq!(jail.resolve("out", false).unwrap(), root.join("out"));
        for path in ["/etc/passwd", "..", "../x", "in/../../x", "out", "out/passwd"] {
            assert_eq!(jail.resolve(path, true).unwrap_err().status_code, StatusCode::PermissionDenied, "{path}");
        }
        assert_eq!(jail.resolve("missing/x", true).unwrap_err().status_code, StatusCode::NoSuchFile);
    }

    #[test]
    fn extended_strings_never_panic() {
        assert_eq!(two_strings(&[0, 0, 0, 1, b'a', 0, 0, 0, 1, b'b']), Some(("a".into(), "b".into())));
        assert_eq!(two_strings(&[255, 255, 255, 255, 1]), None);
        assert_eq!(one_string(&[0, 0]), None);
    }
}
