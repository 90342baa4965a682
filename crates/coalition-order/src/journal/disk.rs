//! The few file operations the journal is made of, so that tests can lose power between any two of them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// One flat directory of files.
pub(crate) trait Disk: Send + Sync + 'static {
    /// A file of it; stays usable after its name is gone.
    type File: DiskFile;
    /// A file of it as a log.
    type Log: DiskLog;
    /// The names in the directory.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Opens for reading and writing; with `create`, creates what is missing.
    fn open(&self, name: &str, create: bool) -> io::Result<Self::File>;
    /// Opens an existing file as a log.
    fn open_log(&self, name: &str) -> io::Result<Self::Log>;
    /// Takes the name away.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Renames, replacing `to`.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes created, removed and renamed names durable.
    fn sync_names(&self) -> io::Result<()>;
    /// Where `name` is, for messages.
    fn path(&self, name: &str) -> PathBuf;
}

/// One file.
pub(crate) trait DiskFile: Send + Sync + 'static {
    /// Its length in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Fills `bytes` from `offset`, or fails.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`, without making them durable.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Cuts or extends with zeros, without making that durable.
    fn resize(&self, len: u64) -> io::Result<()>;
    /// Makes content and length durable.
    fn sync(&self) -> io::Result<()>;
}

/// A file whose writes are durable when they return.
pub(crate) trait DiskLog: Send + 'static {
    /// Writes all of `bytes` at `offset`, both multiples of 512 bytes, and makes them durable.
    fn write_durably(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;
}

/// A directory of the file system.
#[derive(Debug)]
pub(crate) struct Directory(PathBuf);

impl Directory {
    /// Opens `path`, which is created, durably, if missing.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        if let Some(parent) = path.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(Self(path.to_path_buf()))
    }
}

impl Disk for Directory {
    type File = File;
    type Log = LogFile;

    fn list(&self) -> io::Result<Vec<String>> {
        let name = |entry: io::Result<std::fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
        std::fs::read_dir(&self.0)?.map(name).collect()
    }

    fn open(&self, name: &str, create: bool) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create(create).truncate(false).open(self.0.join(name))
    }

    fn open_log(&self, name: &str) -> io::Result<LogFile> {
        let path = self.0.join(name);
        let open = |flags| OpenOptions::new().write(true).custom_flags(flags).open(&path);
        let direct = open(libc::O_DIRECT | libc::O_DSYNC).ok();
        Ok(LogFile { direct, cached: open(libc::O_DSYNC)?, aligned: Vec::new() })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.0.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.0.join(from), self.0.join(to))
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

/// Writes past the page cache where the file system can: one durable write then is one request to the device and one
/// sleep, and about half the processor time.
pub(crate) struct LogFile {
    direct: Option<File>,
    cached: File,
    aligned: Vec<u8>,
}

/// Alignment in memory that every device accepts.
const ALIGNMENT: usize = 4_096;

impl DiskLog for LogFile {
    fn write_durably(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if let Some(direct) = &self.direct {
            if self.aligned.len() < bytes.len() + ALIGNMENT {
                self.aligned.resize(bytes.len() + ALIGNMENT, 0);
            }
            let start = self.aligned.as_ptr().align_offset(ALIGNMENT);
            let aligned = &mut self.aligned[start..start + bytes.len()];
            aligned.copy_from_slice(bytes);
            match direct.write_all_at(aligned, offset) {
                // The file system or its block size do not allow it; nothing was written.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.direct = None,
                done => return done,
            }
        }
        self.cached.write_all_at(bytes, offset)
    }
}

impl DiskFile for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(bytes, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn resize(&self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
