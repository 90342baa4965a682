//! The journal's file.
//!
//! `"CBJ1" ‖ record*`, a record is `u32 payload length ‖ 4 bytes check of that length ‖ payload ‖ 32 bytes trailer`, integers
//! big endian. The check is the start of blake3 over the length and the record's number; the trailer is blake3 over the
//! trailer before it (zeros before the first) and the payload, so records cannot be exchanged, repeated or dropped
//! unnoticed. A record is acknowledged after `fdatasync`. Only the last record can therefore be torn: its bytes end early,
//! or its end was never written and reads as zeros. That tail is cut off at open; anything else is damage and named.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{Illegal, Record};

const MAGIC: &[u8; 4] = b"CBJ1";
const HEAD: usize = 8;
const TRAILER: usize = 32;
/// Largest payload, in bytes.
const MAX_PAYLOAD: usize = 256 * 1024;
const CHECK_DOMAIN: &str = "compute-bridge 2026 journal length check";
const TRAILER_DOMAIN: &str = "compute-bridge 2026 journal record";

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system refused.
    #[error("journal {path}: {what} failed; the bridge stops rather than go on without it")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file is damaged somewhere else than at its end.
    #[error(
        "journal {path} is damaged at byte {offset} (record {record}): {problem}. Restore it from a backup; or move it away \
         and start anew, then every instance this bridge ever made is destroyed by the first sweep"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the damaged record begins.
        offset: u64,
        /// Its number, from 0.
        record: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A record contradicts what came before.
    #[error("record {record} of the journal contradicts the ones before it")]
    Contradiction {
        /// Its number, from 0.
        record: usize,
        /// How.
        #[source]
        source: Illegal,
    },
    /// A write failed before; nothing is written any more.
    #[error("the journal stopped after a failed write; restart the bridge when the cause is gone")]
    Stopped,
}

/// The open file, positioned at its end.
#[derive(Debug)]
pub struct JournalFile {
    path: PathBuf,
    file: File,
    len: u64,
    records: usize,
    trailer: [u8; TRAILER],
    failed: bool,
    /// Simulated power loss: bytes that still reach the disk.
    lose_power_after: Option<u64>,
}

/// What reading one record found.
enum Found {
    Record(Box<Record>, usize),
    End,
    Torn,
    Damaged(&'static str),
}

impl JournalFile {
    /// Opens or makes the file (mode 600), cuts off a torn tail, and answers every record.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(path: &Path) -> Result<(Self, Vec<Record>), JournalError> {
        let io = |what| move |source| JournalError::Io { path: path.into(), what, source };
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(io("reading")(error)),
        };
        let (records, good, trailer) = parse(path, &bytes)?;
        let mut open = OpenOptions::new();
        let mut file =
            open.read(true).write(true).create(true).truncate(false).mode(0o600).open(path).map_err(io("opening"))?;
        if good < bytes.len() {
            tracing::warn!(path = %path.display(), dropped = bytes.len() - good, "cut off the journal's torn tail");
        }
        if good < MAGIC.len() {
            file.set_len(0).map_err(io("making"))?;
            file.write_all(MAGIC).map_err(io("making"))?;
        } else {
            file.set_len(good as u64).map_err(io("cutting"))?;
        }
        file.sync_all().map_err(io("syncing"))?;
        sync_parent(path).map_err(io("syncing the directory"))?;
        let len = file.seek(SeekFrom::End(0)).map_err(io("seeking"))?;
        let count = records.len();
        let this =
            Self { path: path.into(), file, len, records: count, trailer, failed: false, lose_power_after: None };
        Ok((this, records))
    }

    /// Every whole record of the file as it is now; none when there is no file. Changes nothing.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn read(path: &Path) -> Result<Vec<Record>, JournalError> {
        match fs::read(path) {
            Ok(bytes) => parse(path, &bytes).map(|(records, _, _)| records),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(JournalError::Io { path: path.into(), what: "reading", source }),
        }
    }

    /// Number of the next record.
    #[must_use]
    pub const fn next_record(&self) -> usize {
        self.records
    }

    /// Size in bytes.
    #[must_use]
    pub const fn len_bytes(&self) -> u64 {
        self.len
    }

    /// Appends a record and waits until it is on disk.
    ///
    /// # Errors
    /// [`JournalError::Io`], and from then on [`JournalError::Stopped`].
    pub fn append(&mut self, record: &Record) -> Result<(), JournalError> {
        if self.failed {
            return Err(JournalError::Stopped);
        }
        let (bytes, trailer) = frame(record, self.records, &self.trailer);
        let written = self.write(&bytes);
        if let Err(source) = written {
            self.failed = true;
            return Err(JournalError::Io { path: self.path.clone(), what: "writing", source });
        }
        self.trailer = trailer;
        self.records += 1;
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(left) = &mut self.lose_power_after {
            let reaches = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
            *left -= reaches as u64;
            if reaches < bytes.len() {
                self.file.write_all(&bytes[..reaches])?;
                return Err(io::Error::other("simulated power loss"));
            }
        }
        self.file.write_all(bytes)?;
        self.file.sync_data()
    }

    pub(super) const fn lose_power_after(&mut self, bytes: u64) {
        self.lose_power_after = Some(bytes);
    }

    /// Replaces the whole file by these records, atomically.
    ///
    /// # Errors
    /// [`JournalError::Io`]; the old file stands then, and the journal stops.
    pub fn rewrite(&mut self, records: &[Record]) -> Result<(), JournalError> {
        if self.failed {
            return Err(JournalError::Stopped);
        }
        let mut bytes = MAGIC.to_vec();
        let mut trailer = [0; TRAILER];
        for (index, record) in records.iter().enumerate() {
            let (framed, next) = frame(record, index, &trailer);
            bytes.extend(framed);
            trailer = next;
        }
        let replaced = replace(&self.path, &bytes);
        self.file = replaced.map_err(|source| {
            self.failed = true;
            JournalError::Io { path: self.path.clone(), what: "compacting", source }
        })?;
        self.len = bytes.len() as u64;
        self.records = records.len();
        self.trailer = trailer;
        Ok(())
    }
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let draft = path.with_extension("journal.new");
    let _ = fs::remove_file(&draft);
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    sync_parent(path)?;
    Ok(file)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

fn length_check(length: [u8; 4], index: usize) -> [u8; 4] {
    let mut hasher = blake3::Hasher::new_derive_key(CHECK_DOMAIN);
    hasher.update(&length).update(&(index as u64).to_be_bytes());
    let hash = hasher.finalize();
    let [a, b, c, d, ..] = *hash.as_bytes();
    [a, b, c, d]
}

fn chain(before: &[u8; TRAILER], payload: &[u8]) -> [u8; TRAILER] {
    *blake3::Hasher::new_derive_key(TRAILER_DOMAIN).update(before).update(payload).finalize().as_bytes()
}

/// The bytes of a record, and its trailer.
pub(super) fn frame(record: &Record, index: usize, before: &[u8; TRAILER]) -> (Vec<u8>, [u8; TRAILER]) {
    let payload = postcard::to_stdvec(record).expect("plain data with known lengths always serialises");
    let length = u32::try_from(payload.len()).expect("records are a few kilobytes").to_be_bytes();
    let trailer = chain(before, &payload);
    let mut bytes = Vec::with_capacity(HEAD + payload.len() + TRAILER);
    bytes.extend(length);
    bytes.extend(length_check(length, index));
    bytes.extend(payload);
    bytes.extend(trailer);
    (bytes, trailer)
}

/// Every record, how many bytes of the file they take, and the last trailer.
fn parse(path: &Path, bytes: &[u8]) -> Result<(Vec<Record>, usize, [u8; TRAILER]), JournalError> {
    let damaged = |offset: usize, record, problem| JournalError::Damaged {
        path: path.into(),
        offset: offset as u64,
        record,
        problem,
    };
    let start = bytes.len().min(MAGIC.len());
    if bytes[..start] != MAGIC[..start] {
        return Err(damaged(0, 0, "it does not begin as a journal of this version does"));
    }
    let (mut records, mut offset, mut trailer) = (Vec::new(), start, [0; TRAILER]);
    loop {
        match read_one(&bytes[offset..], offset, records.len(), &trailer) {
            Found::End | Found::Torn => return Ok((records, offset, trailer)),
            Found::Damaged(problem) => return Err(damaged(offset, records.len(), problem)),
            Found::Record(record, taken) => {
                trailer.copy_from_slice(&bytes[offset + taken - TRAILER..offset + taken]);
                records.push(*record);
                offset += taken;
            }
        }
    }
}

/// The unit a disk writes whole.
const SECTOR: usize = 512;

/// Whether a record that begins at byte `at` of the file is zeros from some sector on: what was never written of the last
/// one when the power went.
fn ends_unwritten(record: &[u8], at: usize) -> bool {
    let last_written = record.iter().rposition(|b| *b != 0).unwrap_or(0);
    let first_unwritten = (at + last_written + 1).next_multiple_of(SECTOR);
    first_unwritten < at + record.len()
}

fn read_one(rest: &[u8], at: usize, index: usize, before: &[u8; TRAILER]) -> Found {
    if rest.is_empty() {
        return Found::End;
    }
    let Some((head, body)) = rest.split_at_checked(HEAD) else { return Found::Torn };
    if rest.iter().all(|b| *b == 0) {
        return Found::Torn;
    }
    let length = [head[0], head[1], head[2], head[3]];
    let size = u32::from_be_bytes(length) as usize;
    if head[4..] != length_check(length, index) || size > MAX_PAYLOAD {
        let unwritten = rest[HEAD..].iter().all(|b| *b == 0);
        return if unwritten {
            Found::Torn
        } else {
            Found::Damaged("the length of the record is not what was written")
        };
    }
    let Some((payload, tail)) = body.split_at_checked(size) else { return Found::Torn };
    let Some((trailer, after)) = tail.split_at_checked(TRAILER) else { return Found::Torn };
    let right = chain(before, payload);
    if trailer != right {
        let written = trailer.iter().zip(&right).take_while(|(there, right)| there == right).count();
        let half_written = trailer[written..].iter().all(|b| *b == 0) || ends_unwritten(rest, at);
        let torn = after.is_empty() && half_written;
        return if torn { Found::Torn } else { Found::Damaged("its content is not what was written") };
    }
    match postcard::from_bytes(payload) {
        Ok(record) => Found::Record(Box::new(record), HEAD + size + TRAILER),
        Err(_) => Found::Damaged("it is whole but not readable; was it written by another version?"),
    }
}
