//! Where a coalition's files and a requester's grants live, and who may use them.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use nix::fcntl::{Flock, FlockArg};

use crate::error::{CliError, Context, Kind, Result};

const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// Tells files being written by this process apart.
static PARTIAL: AtomicU64 = AtomicU64::new(0);

/// The directory below which everything lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// The directory asked for, else `~/.coalition`. Nothing is created.
    ///
    /// # Errors
    /// When none is given and `$HOME` is not set.
    pub fn locate(asked: Option<&Path>) -> Result<Self> {
        let root = match asked {
            Some(root) => root.to_path_buf(),
            None => std::env::var_os("HOME")
                .filter(|home| !home.is_empty())
                .map(|home| PathBuf::from(home).join(".coalition"))
                .ok_or_else(|| CliError::input("no_home", "$HOME is not set").hint("pass --home DIR"))?,
        };
        let root =
            std::path::absolute(&root).or_input("no_home", || format!("{} is no usable directory", root.display()))?;
        Ok(Self { root })
    }

    /// Creates it if it is not there; refuses one that others can read.
    ///
    /// # Errors
    /// When it cannot be created, is no directory, belongs to somebody else or is open to others.
    pub fn ensure(&self) -> Result<()> {
        private_dir(&self.root)?;
        let meta = fs::metadata(&self.root).or_fault("home_unusable", || self.shown())?;
        let path = self.root.display();
        if !meta.is_dir() {
            return Err(CliError::input("home_unusable", format!("{path} is not a directory")));
        }
        let me = nix::unistd::geteuid().as_raw();
        if meta.uid() != me {
            let message = format!("{path} belongs to uid {}, this process runs as uid {me}", meta.uid());
            return Err(CliError::input("home_not_yours", message).hint("pass --home DIR with a directory of your own"));
        }
        if meta.mode() & 0o077 != 0 {
            let message = format!("{path} holds keys and has mode {:03o}", meta.mode() & 0o777);
            return Err(CliError::input("home_open", message).hint(format!("run `chmod 700 {path}`")));
        }
        Ok(())
    }

    /// The directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// How clients reach the coalition.
    #[must_use]
    pub fn universe(&self) -> PathBuf {
        self.root.join("universe.toml")
    }

    /// Collateral of attesting platforms, which counts before what they bring.
    #[must_use]
    pub fn collateral(&self) -> PathBuf {
        self.root.join("collateral")
    }

    /// The published config in its hex form.
    #[must_use]
    pub fn config_hex(&self) -> PathBuf {
        self.root.join("coalition.hex")
    }

    /// The published config as TOML.
    #[must_use]
    pub fn config_toml(&self) -> PathBuf {
        self.root.join("coalition.toml")
    }

    /// What the development coalition was made from: names, rates, ports.
    #[must_use]
    pub fn devnet(&self) -> PathBuf {
        self.root.join("devnet.toml")
    }

    /// Secret keys of all roles.
    #[must_use]
    pub fn keys(&self) -> PathBuf {
        self.root.join("keys")
    }

    /// Configs of all roles.
    #[must_use]
    pub fn roles(&self) -> PathBuf {
        self.root.join("roles")
    }

    /// Data of one role.
    #[must_use]
    pub fn data(&self, role: &str) -> PathBuf {
        self.root.join("data").join(role)
    }

    /// The log file of one role.
    #[must_use]
    pub fn log(&self, role: &str) -> PathBuf {
        self.root.join("logs").join(format!("{role}.log"))
    }

    /// Grants requested from here.
    #[must_use]
    pub fn grants(&self) -> PathBuf {
        self.root.join("grants")
    }

    /// The requester's own long-lived identity; used only when it chooses to show it.
    #[must_use]
    pub fn identity(&self) -> PathBuf {
        self.root.join("identity.key")
    }

    /// Makes this process the one that runs the coalition here, until the lock is dropped.
    ///
    /// # Errors
    /// [`Kind::Conflict`] naming the process that already does.
    pub fn lock(&self) -> Result<Lock> {
        let path = self.root.join("lock");
        let opened =
            fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(FILE_MODE).open(&path);
        let file = opened.or_fault("home_unusable", || self.shown())?;
        let mut flock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(flock) => flock,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Err(self.held(&path)),
            Err((_, errno)) => {
                return Err(CliError::fault("lock", format!("cannot lock {}", path.display())).because(errno));
            }
        };
        write_pid(&mut flock).or_fault("lock", || format!("cannot write {}", path.display()))?;
        Ok(Lock { _flock: flock })
    }

    /// The process that runs the coalition here, if one does.
    #[must_use]
    pub fn running(&self) -> Option<u32> {
        let path = self.root.join("lock");
        let file = fs::File::open(&path).ok()?;
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(_) => None,
            Err(_) => read_pid(&path),
        }
    }

    fn held(&self, path: &Path) -> CliError {
        let (who, stop) = match read_pid(path) {
            Some(pid) => (format!("by process {pid}"), format!("stop it with `kill -INT {pid}`, or ")),
            None => ("by another process".into(), String::new()),
        };
        let message = format!("the coalition in {} is already running {who}", self.root.display());
        CliError::new(Kind::Conflict, "already_running", message)
            .hint(format!("{stop}start another one elsewhere with `coalition --home DIR up`"))
    }

    fn shown(&self) -> String {
        format!("cannot use {}", self.root.display())
    }
}

/// Held while this process runs the coalition in a home; released by the kernel however the process ends.
#[derive(Debug)]
pub struct Lock {
    _flock: Flock<fs::File>,
}

fn write_pid(file: &mut fs::File) -> io::Result<()> {
    use io::{Seek, Write};
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

fn read_pid(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Creates a directory and its parents, readable by this user only.
///
/// # Errors
/// When the file system refuses.
pub fn private_dir(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(DIR_MODE)
        .create(path)
        .or_fault("disk", || format!("cannot create directory {}", path.display()))
}

/// Writes a file readable by this user only, whole or not at all, replacing what is there.
///
/// # Errors
/// When the file system refuses; a file of before is still whole then.
pub fn private_write(path: &Path, bytes: &[u8]) -> Result<()> {
    use io::Write;
    let unique = PARTIAL.fetch_add(1, Ordering::Relaxed);
    let partial = path.with_extension(format!("{}-{unique}.partial", std::process::id()));
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    let written: io::Result<()> = write();
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written.or_fault("disk", || format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn home() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::locate(Some(&dir.path().join("home"))).unwrap();
        (dir, home)
    }

    #[test]
    fn a_home_is_private() {
        let (_dir, home) = home();
        home.ensure().unwrap();
        assert_eq!(fs::metadata(home.root()).unwrap().mode() & 0o777, 0o700);
        fs::set_permissions(home.root(), fs::Permissions::from_mode(0o755)).unwrap();
        let refused = home.ensure().unwrap_err();
        assert_eq!(refused.code(), "home_open");
        assert!(refused.to_string().contains("mode 755") && refused.to_string().contains("chmod 700"));
        fs::remove_dir(home.root()).unwrap();
        fs::write(home.root(), "").unwrap();
        assert!(home.ensure().is_err());
    }

    #[test]
    fn one_process_at_a_time_and_the_second_learns_which() {
        let (_dir, home) = home();
        home.ensure().unwrap();
        assert_eq!(home.running(), None);
        let lock = home.lock().unwrap();
        assert_eq!(home.running(), Some(std::process::id()));
        let refused = home.lock().unwrap_err();
        assert_eq!((refused.kind(), refused.code()), (Kind::Conflict, "already_running"));
        assert!(refused.to_string().contains(&format!("process {}", std::process::id())), "{refused}");
        drop(lock);
        assert_eq!(home.running(), None);
        home.lock().unwrap();
    }

    #[test]
    fn files_are_private_and_whole() {
        let (_dir, home) = home();
        home.ensure().unwrap();
        let path = home.root().join("secret");
        private_write(&path, b"one").unwrap();
        private_write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(home.root()).unwrap().count(), 1);
        assert!(private_write(&home.root().join("nowhere/secret"), b"x").is_err());
    }
}
