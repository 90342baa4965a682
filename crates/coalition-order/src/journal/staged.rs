//! A blob's content: in memory at first, in a file when it has to be.
//!
//! The engine makes a blob for every view and removes it some views later. The log holds all of its content by then, so as
//! long as no checkpoint asks for a file, none is made: creating files by the thousand and removing them soon is what file
//! systems are slowest at.

use std::io;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::disk::{Disk, DiskFile};

/// Longer contents become a file at once.
pub(crate) const STAGED_BYTES: usize = 64 * 1024;

/// The content of one blob.
pub(crate) struct Staged<F> {
    name: String,
    file: OnceLock<F>,
    memory: Mutex<Memory>,
}

/// What there is as long as there is no file.
#[derive(Default)]
struct Memory {
    bytes: Vec<u8>,
    /// Its removal is durable: no file must be made any more.
    removed: bool,
}

enum Place<'a, F> {
    File(&'a F),
    Memory(MutexGuard<'a, Memory>),
}

impl<F: DiskFile> Staged<F> {
    /// Nothing yet; becomes the file `name` if it must.
    pub(crate) fn new(name: String) -> Self {
        Self { name, file: OnceLock::new(), memory: Mutex::default() }
    }

    /// The file `name`, which exists.
    pub(crate) fn opened(name: String, file: F) -> Self {
        Self { name, file: OnceLock::from(file), memory: Mutex::default() }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self) -> Place<'_, F> {
        if let Some(file) = self.file.get() {
            return Place::File(file);
        }
        let memory = self.memory();
        // Another thread may have made it just now; nobody does while this one holds the lock.
        self.file.get().map_or(Place::Memory(memory), Place::File)
    }

    /// Length in bytes.
    pub(crate) fn size(&self) -> io::Result<u64> {
        match self.place() {
            Place::File(file) => file.size(),
            Place::Memory(memory) => Ok(memory.bytes.len() as u64),
        }
    }

    /// Fills `to` from `offset`, or fails.
    pub(crate) fn read_at(&self, to: &mut [u8], offset: u64) -> io::Result<()> {
        match self.place() {
            Place::File(file) => file.read_at(to, offset),
            Place::Memory(memory) => {
                let start = length(offset);
                let found = memory.bytes.get(start..start.saturating_add(to.len()));
                to.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }

    /// Writes all of `from` at `offset`, without making it durable.
    pub(crate) fn write_at<D: Disk<File = F>>(&self, disk: &D, from: &[u8], offset: u64) -> io::Result<()> {
        let end = length(offset).saturating_add(from.len());
        self.make_room(disk, end)?;
        match self.place() {
            Place::File(file) => file.write_at(from, offset),
            Place::Memory(mut memory) => {
                let len = memory.bytes.len().max(end);
                memory.bytes.resize(len, 0);
                memory.bytes[end - from.len()..end].copy_from_slice(from);
                Ok(())
            }
        }
    }

    /// Cuts or extends with zeros, without making that durable.
    pub(crate) fn resize<D: Disk<File = F>>(&self, disk: &D, len: u64) -> io::Result<()> {
        self.make_room(disk, length(len))?;
        match self.place() {
            Place::File(file) => file.resize(len),
            Place::Memory(mut memory) => {
                memory.bytes.resize(length(len), 0);
                Ok(())
            }
        }
    }

    /// Makes a file of what would become too long for memory, unless nobody will ever need one: what is removed and
    /// still open is written to by its last owner alone, and not for long.
    fn make_room<D: Disk<File = F>>(&self, disk: &D, end: usize) -> io::Result<()> {
        if end > STAGED_BYTES && self.file.get().is_none() {
            self.make_file(disk)?;
        }
        Ok(())
    }

    /// The file, made now if there is none; `None` if there must be none.
    fn make_file<D: Disk<File = F>>(&self, disk: &D) -> io::Result<Option<&F>> {
        if let Place::Memory(mut memory) = self.place()
            && !memory.removed
        {
            let file = disk.open(&self.name, true)?;
            file.write_at(&memory.bytes, 0)?;
            memory.bytes = Vec::new();
            let _ = self.file.set(file);
        }
        Ok(self.file.get())
    }

    /// Makes the content durable in a file, unless its removal is durable.
    pub(crate) fn settle<D: Disk<File = F>>(&self, disk: &D) -> io::Result<()> {
        self.make_file(disk)?.map_or(Ok(()), DiskFile::sync)
    }

    /// Notes that its removal is durable. Answers whether there is a file to take away.
    pub(crate) fn removed(&self) -> bool {
        self.memory().removed = true;
        self.file.get().is_some()
    }
}

fn length(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
