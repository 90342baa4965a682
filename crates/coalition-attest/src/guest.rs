//! Quotes from the hardware this process runs on, through Linux's configfs-tsm interface.
//!
//! The interface is files: a directory of one's own under the report root, 64 bytes written to `inblob`, the quote read
//! from `outblob`, and a `generation` that rises by one with every write, which is how one notices that somebody else
//! used the same directory. See the kernel's `Documentation/ABI/testing/configfs-tsm`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

use crate::quote::MAX_QUOTE_BYTES;

/// Where Linux shows the interface when configfs is mounted in its usual place.
pub const CONFIGFS_TSM: &str = "/sys/kernel/config/tsm/report";

/// The provider name of TDX guests.
const TDX_GUEST: &str = "tdx_guest";

/// Why there is no quote.
#[derive(Debug, Error)]
pub enum GuestError {
    /// The interface is not there.
    #[error(
        "no quote can be made here: {path} does not exist. This is no TDX guest, or its kernel (6.7 or later, with \
         tdx-guest loaded) does not show configfs-tsm: mount -t configfs none /sys/kernel/config"
    )]
    NoInterface {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The interface belongs to another kind of guest.
    #[error("this guest's quotes come from '{found}', only '{TDX_GUEST}' is supported")]
    Provider {
        /// Provider found.
        found: String,
    },
    /// A file operation failed.
    #[error("the quote interface failed while {doing} {path}")]
    File {
        /// What was being done.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// Somebody else used the same directory meanwhile.
    #[error("the quote interface was used by somebody else meanwhile: generation {found}, expected {expected}")]
    Contended {
        /// Generation expected.
        expected: u64,
        /// Generation found.
        found: u64,
    },
    /// The interface answered something that is no quote.
    #[error("the quote interface answered {0}")]
    Answer(String),
    /// The development guest failed.
    #[error("the development guest made no quote")]
    Development(#[source] Box<crate::dev::DevError>),
}

/// Something that can have report data quoted: hardware, or a development guest.
pub trait QuoteSource: Send + Sync {
    /// A quote over this report data. May take seconds; call it where blocking is allowed.
    ///
    /// # Errors
    /// [`GuestError`].
    fn quote(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, GuestError>;

    /// What to print beside its quotes before anybody has verified them.
    fn label(&self) -> &'static str;
}

/// How an entry comes and goes. In configfs `mkdir` makes the attributes and `rmdir` takes them away; a directory that
/// only mimics it needs help with both.
#[derive(Debug, Clone, Copy)]
pub struct EntryOps {
    /// Makes the entry.
    pub create: fn(&Path) -> io::Result<()>,
    /// Removes the entry.
    pub remove: fn(&Path) -> io::Result<()>,
}

impl EntryOps {
    /// As the kernel does it.
    pub const CONFIGFS: Self =
        Self { create: |path| std::fs::create_dir(path), remove: |path| std::fs::remove_dir(path) };
}

/// The configfs-tsm interface of a TDX guest.
#[derive(Debug, Clone)]
pub struct ConfigfsTsm {
    root: PathBuf,
    ops: EntryOps,
}

impl Default for ConfigfsTsm {
    fn default() -> Self {
        Self::at(CONFIGFS_TSM)
    }
}

impl ConfigfsTsm {
    /// The interface at a report root; [`CONFIGFS_TSM`] on a usual system.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), ops: EntryOps::CONFIGFS }
    }

    /// The same, with other entry operations: for directories that mimic configfs.
    #[must_use]
    pub const fn with_ops(mut self, ops: EntryOps) -> Self {
        self.ops = ops;
        self
    }

    /// Whether the interface is there. Says nothing about whether it works.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.root.is_dir()
    }

    fn create(&self) -> Result<Entry, GuestError> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        if !self.is_present() {
            return Err(GuestError::NoInterface { path: self.root.clone() });
        }
        let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = self.root.join(format!("coalition-{}-{unique}", std::process::id()));
        (self.ops.create)(&path).map_err(|e| failed("making", &path, e))?;
        Ok(Entry { path, remove: self.ops.remove })
    }
}

impl QuoteSource for ConfigfsTsm {
    fn quote(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, GuestError> {
        let entry = self.create()?;
        let provider = entry.text("provider")?;
        if provider != TDX_GUEST {
            return Err(GuestError::Provider { found: provider });
        }
        let before = entry.generation()?;
        entry.write("inblob", report_data)?;
        let expected = before.wrapping_add(1);
        let quote = entry.read("outblob")?;
        let found = entry.generation()?;
        if found != expected {
            return Err(GuestError::Contended { expected, found });
        }
        match quote.len() {
            0 => Err(GuestError::Answer("nothing".to_owned())),
            n if n > MAX_QUOTE_BYTES => Err(GuestError::Answer(format!("{n} bytes, more than any quote has"))),
            _ => Ok(quote),
        }
    }

    fn label(&self) -> &'static str {
        "TDX guest (configfs-tsm)"
    }
}

/// A directory of one's own in the interface; removed when dropped.
struct Entry {
    path: PathBuf,
    remove: fn(&Path) -> io::Result<()>,
}

impl Entry {
    fn read(&self, name: &str) -> Result<Vec<u8>, GuestError> {
        let path = self.path.join(name);
        std::fs::read(&path).map_err(|e| failed("reading", &path, e))
    }

    /// One write, as the kernel wants it.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), GuestError> {
        let path = self.path.join(name);
        let open = std::fs::OpenOptions::new().write(true).open(&path);
        open.and_then(|mut file| io::Write::write_all(&mut file, bytes)).map_err(|e| failed("writing", &path, e))
    }

    fn text(&self, name: &str) -> Result<String, GuestError> {
        let bytes = self.read(name)?;
        Ok(String::from_utf8_lossy(&bytes).trim().chars().take(64).collect())
    }

    fn generation(&self) -> Result<u64, GuestError> {
        let text = self.text("generation")?;
        text.parse().map_err(|_| GuestError::Answer(format!("'{text}' as its generation")))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // Nothing depends on it: a leftover entry costs a few bytes of kernel memory and its name is never used again.
        let _ = (self.remove)(&self.path);
    }
}

fn failed(doing: &'static str, path: &Path, source: io::Error) -> GuestError {
    GuestError::File { doing, path: path.to_owned(), source }
}
