//! Opening: finds the log's end, brings the files up to date with it, and refuses what it cannot explain.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::disk::{Disk, DiskFile};
use super::format::{
    BLOCK, BlobFile, HEADER, Head, Record, batch_size, format_text, parse_format, parse_head, records, seal, verify,
};
use crate::error::JournalError;

/// The two log files; segments alternate between them.
pub(crate) const LOGS: [&str; 2] = ["log-a", "log-b"];
const FORMAT: &str = "format";
const FORMAT_NEW: &str = "format.new";

/// What a journal goes on from.
pub(crate) struct Recovered<F> {
    pub(crate) key: [u8; 32],
    pub(crate) logs: [F; 2],
    /// Index of the log file in use.
    pub(crate) active: usize,
    /// Where its next batch goes.
    pub(crate) end: u64,
    /// Head of its last batch; its segment is its base.
    pub(crate) last: Head,
    pub(crate) blobs: Vec<BlobFile>,
}

/// The unbroken row of batches at the start of a log file.
#[derive(Default)]
struct Run {
    /// Offset and length of the records of each.
    batches: Vec<(u64, usize)>,
    first: Option<Head>,
    last: Option<Head>,
    end: u64,
}

/// Opens what is there, or lays out an empty directory with `new_key`.
pub(crate) fn recover<D: Disk>(disk: &D, new_key: &[u8; 32]) -> Result<Recovered<D::File>, JournalError> {
    let names: BTreeSet<String> = disk.list().map_err(|e| failed(disk, "", "list", e))?.into_iter().collect();
    if !names.contains(FORMAT) {
        lay_out(disk, &names, new_key)?;
    }
    let key = read_format(disk)?;
    let open = |name: &str| disk.open(name, true).map_err(|e| failed(disk, name, "open", e));
    let logs = [open(LOGS[0])?, open(LOGS[1])?];
    let runs = [scan(disk, &logs, 0, &key)?, scan(disk, &logs, 1, &key)?];
    let (order, last) = chain(disk, &runs)?;
    check_tails(disk, &logs, &runs, &key, last.sequence)?;

    let mut replay = Replay::new(disk, &runs[order[0]], &names)?;
    for pass in [Pass::Names, Pass::Content] {
        for i in &order {
            replay.run(&logs[*i], LOGS[*i], &runs[*i], pass)?;
        }
        if pass == Pass::Names {
            replay.settle_names()?;
        }
    }
    replay.sync()?;
    let active = order[order.len() - 1];
    let last =
        Head { sequence: last.sequence + 1, base: last.segment, first_id: replay.next_id.max(last.first_id), ..last };
    let end =
        write_mark(&logs[active], &key, last, runs[active].end).map_err(|e| failed(disk, LOGS[active], "write", e))?;
    Ok(Recovered { key, logs, active, end, last, blobs: replay.live.into_values().collect() })
}

/// A batch without records, made durable. Returns where the next one goes.
fn write_mark<F: DiskFile>(log: &F, key: &[u8; 32], head: Head, offset: u64) -> io::Result<u64> {
    let mut batch = vec![0; HEADER];
    seal(&mut batch, key, head, offset);
    log.write_at(&batch, offset)?;
    log.sync()?;
    Ok(offset + batch.len() as u64)
}

/// The file that makes it a journal comes last, so a crash on the way leaves a directory that is laid out again.
fn lay_out<D: Disk>(disk: &D, names: &BTreeSet<String>, key: &[u8; 32]) -> Result<(), JournalError> {
    let ours = |name: &str| LOGS.contains(&name) || name == FORMAT_NEW;
    if let Some(name) = names.iter().find(|n| !ours(n)) {
        return Err(JournalError::Stranger(disk.path(name)));
    }
    let write = || {
        let logs = [disk.open(LOGS[0], true)?, disk.open(LOGS[1], true)?];
        let head = Head { segment: 1, sequence: 1, base: 1, first_id: 1 };
        for log in &logs {
            log.resize(0)?;
            log.sync()?;
        }
        write_mark(&logs[0], key, head, 0)?;
        let format = disk.open(FORMAT_NEW, true)?;
        format.resize(0)?;
        format.write_at(format_text(key).as_bytes(), 0)?;
        format.sync()?;
        disk.sync_names()?;
        disk.rename(FORMAT_NEW, FORMAT)?;
        disk.sync_names()
    };
    write().map_err(|e| failed(disk, "", "lay out", e))
}

fn read_format<D: Disk>(disk: &D) -> Result<[u8; 32], JournalError> {
    let read = || {
        let file = disk.open(FORMAT, false)?;
        let mut bytes = vec![0; usize::try_from(file.size()?.min(4_096)).unwrap_or(0)];
        file.read_at(&mut bytes, 0)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|e| failed(disk, FORMAT, "read", e))?;
    parse_format(&String::from_utf8_lossy(&bytes))
        .map_err(|found| JournalError::Version { path: disk.path(FORMAT), found })
}

/// Reads and verifies the batch at `offset`. `None` if there is none after batch `after`.
fn batch_at<F: DiskFile>(
    log: &F,
    key: &[u8; 32],
    offset: u64,
    size: u64,
    after: u64,
) -> io::Result<Option<(Head, Vec<u8>)>> {
    if offset + HEADER as u64 > size {
        return Ok(None);
    }
    let mut head = [0; HEADER];
    log.read_at(&mut head, offset)?;
    let Some((parsed, len)) = parse_head(&head) else { return Ok(None) };
    if parsed.sequence <= after || len as u64 > size - offset - HEADER as u64 {
        return Ok(None);
    }
    let mut bytes = vec![0; len];
    log.read_at(&mut bytes, offset + HEADER as u64)?;
    Ok(verify(&head, key, offset, &bytes).then_some((parsed, bytes)))
}

fn scan<D: Disk>(disk: &D, logs: &[D::File; 2], i: usize, key: &[u8; 32]) -> Result<Run, JournalError> {
    let failed = |e| failed(disk, LOGS[i], "read", e);
    let size = logs[i].size().map_err(failed)?;
    let mut run = Run::default();
    while let Some((head, bytes)) = batch_at(&logs[i], key, run.end, size, 0).map_err(failed)? {
        if run.last.is_some_and(|last| last.segment != head.segment || last.sequence + 1 != head.sequence) {
            break;
        }
        run.first.get_or_insert(head);
        run.last = Some(head);
        run.batches.push((run.end, bytes.len()));
        run.end += batch_size(bytes.len());
    }
    Ok(run)
}

/// Which log files have to be replayed, in which order, and the head of the last batch.
fn chain<D: Disk>(disk: &D, runs: &[Run; 2]) -> Result<(Vec<usize>, Head), JournalError> {
    let segment = |i: usize| runs[i].last.map_or(0, |head| head.segment);
    let newest = usize::from(segment(1) > segment(0));
    let (Some(first), Some(last)) = (runs[newest].first, runs[newest].last) else {
        return Err(JournalError::NoBatch { logs: LOGS.map(|name| disk.path(name)), format: disk.path(FORMAT) });
    };
    let older = 1 - newest;
    if last.base == last.segment {
        return Ok((vec![newest], last));
    }
    let joins = runs[older].last.is_some_and(|o| o.segment + 1 == first.segment && o.sequence + 1 == first.sequence);
    if last.base + 1 == last.segment && joins {
        return Ok((vec![older, newest], last));
    }
    Err(damaged(disk, older, runs[older].end, "the batch there is not valid, but later ones are"))
}

/// A batch is written only after the one before is durable: a valid one behind an invalid one proves damage.
fn check_tails<D: Disk>(
    disk: &D,
    logs: &[D::File; 2],
    runs: &[Run; 2],
    key: &[u8; 32],
    newest: u64,
) -> Result<(), JournalError> {
    for (i, log) in logs.iter().enumerate() {
        let failed = |e| failed(disk, LOGS[i], "read", e);
        let size = log.size().map_err(failed)?;
        let mut offset = runs[i].end + BLOCK;
        while offset < size {
            if batch_at(log, key, offset, size, newest).map_err(failed)?.is_some() {
                return Err(damaged(disk, i, runs[i].end, "the batch there is not valid, but later ones are"));
            }
            offset += BLOCK;
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum Pass {
    /// Learns what was created and removed.
    Names,
    /// Repeats writes and resizes.
    Content,
}

struct Replay<'a, D: Disk> {
    disk: &'a D,
    /// Lowest id that has its creation in the log.
    first_id: u64,
    found: BTreeMap<u64, BlobFile>,
    created: BTreeMap<u64, BlobFile>,
    removed: BTreeSet<u64>,
    live: BTreeMap<u64, BlobFile>,
    touched: BTreeMap<u64, D::File>,
    next_id: u64,
}

impl<'a, D: Disk> Replay<'a, D> {
    fn new(disk: &'a D, oldest: &Run, names: &BTreeSet<String>) -> Result<Self, JournalError> {
        let first_id = oldest.first.map_or(1, |head| head.first_id);
        let mut found = BTreeMap::new();
        for name in names.iter().filter(|n| !LOGS.contains(&n.as_str()) && *n != FORMAT && *n != FORMAT_NEW) {
            let blob = BlobFile::parse(name).ok_or_else(|| JournalError::Stranger(disk.path(name)))?;
            if found.insert(blob.id, blob).is_some() {
                return Err(JournalError::Stranger(disk.path(name)));
            }
        }
        let next_id = found.keys().next_back().map_or(first_id, |id| first_id.max(id + 1));
        let (created, removed, live) = Default::default();
        Ok(Self { disk, first_id, found, created, removed, live, touched: BTreeMap::new(), next_id })
    }

    fn run(&mut self, log: &D::File, name: &str, run: &Run, pass: Pass) -> Result<(), JournalError> {
        for (offset, len) in &run.batches {
            let mut bytes = vec![0; *len];
            let read = log.read_at(&mut bytes, offset + HEADER as u64);
            read.map_err(|e| failed(self.disk, name, "read", e))?;
            for record in records(&bytes) {
                let wrong = |why| JournalError::Damaged { path: self.disk.path(name), offset: *offset, why };
                let record = record.ok_or_else(|| wrong("a record there makes no sense"))?;
                match pass {
                    Pass::Names => self.learn(record).ok_or_else(|| wrong("a record there makes no sense"))?,
                    Pass::Content => self.repeat(record).map_err(|e| match e {
                        Some(e) => e,
                        None => wrong("a record there is for a file that does not exist"),
                    })?,
                }
            }
        }
        Ok(())
    }

    /// `None` if there cannot be such a blob.
    fn learn(&mut self, record: Record<'_>) -> Option<()> {
        match record {
            Record::Create { id, version, partition, name } => {
                let blob = BlobFile { id, partition: partition.into(), name: name.into(), version };
                let blob = BlobFile::parse(&blob.file_name()?)?;
                self.next_id = self.next_id.max(id + 1);
                self.created.insert(id, blob);
            }
            Record::Remove { id } => {
                self.removed.insert(id);
            }
            Record::Write { .. } | Record::Resize { .. } => {}
        }
        Some(())
    }

    /// Removes files that are no longer or never were, and creates those whose names got lost.
    fn settle_names(&mut self) -> Result<(), JournalError> {
        let disk = self.disk;
        for (id, blob) in &self.found {
            let orphan = *id >= self.first_id && !self.created.contains_key(id);
            if orphan || self.removed.contains(id) {
                let name = blob.file_name().unwrap_or_default();
                disk.remove(&name).map_err(|e| failed(disk, &name, "remove", e))?;
            } else {
                self.live.insert(*id, blob.clone());
            }
        }
        for (id, blob) in self.created.iter().filter(|(id, _)| !self.removed.contains(id)) {
            let name = blob.file_name().unwrap_or_default();
            let file = disk.open(&name, true).map_err(|e| failed(disk, &name, "create", e))?;
            self.touched.insert(*id, file);
            self.live.insert(*id, blob.clone());
        }
        let mut taken = BTreeSet::new();
        match self.live.values().find(|blob| !taken.insert((&blob.partition, &blob.name))) {
            Some(twice) => Err(JournalError::Stranger(disk.path(&twice.file_name().unwrap_or_default()))),
            None => Ok(()),
        }
    }

    /// `Err(None)` if the file does not exist.
    fn repeat(&mut self, record: Record<'_>) -> Result<(), Option<JournalError>> {
        let (Record::Write { id, .. } | Record::Resize { id, .. }) = record else { return Ok(()) };
        if self.removed.contains(&id) {
            return Ok(());
        }
        let disk = self.disk;
        let name = self.live.get(&id).and_then(BlobFile::file_name).ok_or(None)?;
        let failed = |e| Some(failed(disk, &name, "replay", e));
        let file = match self.touched.entry(id) {
            std::collections::btree_map::Entry::Occupied(file) => file.into_mut(),
            std::collections::btree_map::Entry::Vacant(free) => free.insert(disk.open(&name, false).map_err(failed)?),
        };
        match record {
            Record::Write { offset, bytes, .. } => file.write_at(bytes, offset),
            Record::Resize { len, .. } => file.resize(len),
            Record::Create { .. } | Record::Remove { .. } => Ok(()),
        }
        .map_err(failed)
    }

    fn sync(&self) -> Result<(), JournalError> {
        for (id, file) in &self.touched {
            let name = || self.live.get(id).and_then(BlobFile::file_name).unwrap_or_default();
            file.sync().map_err(|e| failed(self.disk, &name(), "sync", e))?;
        }
        self.disk.sync_names().map_err(|e| failed(self.disk, "", "sync", e))
    }
}

fn failed<D: Disk>(disk: &D, name: &str, action: &'static str, source: io::Error) -> JournalError {
    JournalError::Io { path: disk.path(name), action, source }
}

fn damaged<D: Disk>(disk: &D, log: usize, offset: u64, why: &'static str) -> JournalError {
    JournalError::Damaged { path: disk.path(LOGS[log]), offset, why }
}
