//! The storage the engine sees: blobs by partition and name, durable through the journal.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Release};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use commonware_runtime::{BlobVersion, Error, Storage};

use super::blob::JournaledBlob;
use super::core::{Generation, Journal, Removed};
use super::disk::{Directory, Disk};
use super::format::{BlobFile, Record, hex, is_partition};
use super::recovery::recover;
use super::staged::Staged;
use crate::error::JournalError;

/// The journaled storage of one directory. Clones share it.
///
/// Creating and removing do not wait for a flush of their own: all changes become durable in one order, so whatever is
/// synced later proves them durable too, and after a crash without it the state is one from before them.
pub(crate) struct JournaledStorage<D: Disk = Directory> {
    shared: Arc<Shared<D>>,
    /// How the names of partitions begin whose syncs do not wait; `None`: all wait.
    deferred: Option<Arc<str>>,
}

impl<D: Disk> Clone for JournaledStorage<D> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), deferred: self.deferred.clone() }
    }
}

/// What storage and blobs share.
pub(crate) struct Shared<D: Disk> {
    pub(crate) journal: Journal<D>,
    names: Mutex<Names<D::File>>,
}

struct Names<F> {
    /// Ids by partition and name. A partition stays, empty, when its last blob is removed by name.
    partitions: BTreeMap<String, BTreeMap<Vec<u8>, u64>>,
    /// Of the partitions whose syncs are deferred: the batch that what was synced goes with.
    deferred: HashMap<String, Arc<AtomicU64>>,
    blobs: HashMap<u64, Entry<F>>,
    next_id: u64,
}

struct Entry<F> {
    blob: BlobFile,
    open: bool,
    /// Its content, as long as it is open or not in a durable file.
    content: Weak<Staged<F>>,
    /// Batch with the blob's last change.
    last: Arc<AtomicU64>,
}

impl JournaledStorage<Directory> {
    /// Opens the journal in `path`, which is created if missing. `new_key` should be random.
    ///
    /// # Errors
    /// [`JournalError`] if the directory cannot be used, is of another layout, or is damaged.
    pub(crate) fn open_directory(path: &Path, new_key: &[u8; 32], limit: u64) -> Result<Self, JournalError> {
        let failed = |source| JournalError::Io { path: path.to_path_buf(), action: "create", source };
        Self::open_disk(Directory::open(path).map_err(failed)?, new_key, limit)
    }
}

impl<D: Disk> JournaledStorage<D> {
    /// Opens the journal on `disk`: brings its files up to date, then starts its threads. Each of the two log files is
    /// left for the other one when it has `limit` bytes.
    ///
    /// # Errors
    /// As [`Self::open_directory`].
    pub(crate) fn open_disk(disk: D, new_key: &[u8; 32], limit: u64) -> Result<Self, JournalError> {
        let recovered = recover(&disk, new_key)?;
        let next_id = recovered.last.first_id;
        let (partitions, deferred, blobs) = Default::default();
        let mut names = Names { partitions, deferred, blobs, next_id };
        for blob in &recovered.blobs {
            names.add(blob.clone(), Weak::new());
        }
        let path = disk.path("");
        let journal = Journal::start(disk, recovered, limit).map_err(|source| JournalError::Io {
            path,
            action: "start threads for",
            source,
        })?;
        Ok(Self { shared: Arc::new(Shared { journal, names: Mutex::new(names) }), deferred: None })
    }

    /// Lets the syncs of partitions whose names begin so return at once. All changes become durable in one order, so
    /// whatever is synced elsewhere later proves them durable, too. The next change in the same partition waits until they are: it
    /// may be to what is only safe to change because something else was synced.
    pub(crate) fn deferring(self, prefix: &str) -> Self {
        Self { deferred: Some(prefix.into()), ..self }
    }

    /// What was synced in the partition, if its syncs are deferred.
    fn deferred_of(&self, partition: &str) -> Option<Arc<AtomicU64>> {
        self.deferred.as_ref().filter(|deferred| partition.starts_with(&***deferred))?;
        let mut names = self.shared.names();
        Some(Arc::clone(names.deferred.entry(partition.to_owned()).or_default()))
    }

    /// What ended it for good, if something did.
    pub(crate) fn failure(&self) -> Option<Arc<std::io::Error>> {
        self.shared.journal.core.failure()
    }

    /// The names of all partitions.
    pub(crate) fn partitions(&self) -> Vec<String> {
        self.shared.names().partitions.keys().cloned().collect()
    }

    /// Ends the journal's threads. Everything that waits or comes later fails.
    pub(crate) fn close(&self) {
        self.shared.journal.close();
    }
}

impl<F> Names<F> {
    fn add(&mut self, blob: BlobFile, content: Weak<Staged<F>>) -> Arc<AtomicU64> {
        let last = Arc::new(AtomicU64::new(0));
        self.partitions.entry(blob.partition.clone()).or_default().insert(blob.name.clone(), blob.id);
        self.next_id = self.next_id.max(blob.id + 1);
        self.blobs.insert(blob.id, Entry { blob, open: false, content, last: Arc::clone(&last) });
        last
    }
}

impl<D: Disk> Shared<D> {
    fn names(&self) -> MutexGuard<'_, Names<D::File>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allows the blob to be opened again.
    pub(crate) fn released(&self, id: u64) {
        match self.names().blobs.get_mut(&id) {
            Some(entry) => entry.open = false,
            None => self.journal.core.forget(id),
        }
    }

    /// Opens or creates; the last of the results says which.
    fn open(
        self: &Arc<Self>,
        partition: &str,
        name: &[u8],
        versions: RangeInclusive<BlobVersion>,
    ) -> Result<(JournaledBlob<D>, BlobVersion, bool), Error> {
        let mut names = self.names();
        let known = names.partitions.get(partition).and_then(|p| p.get(name)).copied();
        let Some(entry) = known.and_then(|id| names.blobs.get_mut(&id)) else {
            return self.create(&mut names, partition, name, *versions.end());
        };
        let found = BlobVersion::new(entry.blob.version);
        if !versions.contains(&found) {
            return Err(Error::BlobVersionMismatch { expected: versions, found });
        }
        if entry.open {
            return Err(Error::BlobAlreadyOpen(partition.into(), hex(name)));
        }
        let content = match entry.content.upgrade() {
            Some(content) => content,
            None => {
                let path = entry.blob.file_name().unwrap_or_default();
                let file = self.journal.core.disk.open(&path, false).map_err(|e| open_failed(partition, name, e))?;
                Arc::new(Staged::opened(path, file))
            }
        };
        entry.content = Arc::downgrade(&content);
        entry.open = true;
        let last = Arc::clone(&entry.last);
        Ok((JournaledBlob::new(Arc::clone(self), entry.blob.id, content, last), found, false))
    }

    fn create(
        self: &Arc<Self>,
        names: &mut Names<D::File>,
        partition: &str,
        name: &[u8],
        version: BlobVersion,
    ) -> Result<(JournaledBlob<D>, BlobVersion, bool), Error> {
        let id = names.next_id;
        let blob = BlobFile { id, partition: partition.into(), name: name.into(), version: version.get() };
        let too_long = || open_failed(partition, name, std::io::ErrorKind::InvalidFilename.into());
        let path = blob.file_name().ok_or_else(too_long)?;
        let content = Arc::new(Staged::new(path));
        let record = Record::Create { id, version: version.get(), partition, name };
        let generation = self.journal.core.created(&content, record, id).map_err(Error::Io)?;
        let last = names.add(blob, Arc::downgrade(&content));
        last.store(generation, Release);
        if let Some(entry) = names.blobs.get_mut(&id) {
            entry.open = true;
        }
        Ok((JournaledBlob::new(Arc::clone(self), id, content, last), version, true))
    }

    fn remove(&self, partition: &str, name: Option<&[u8]>) -> Result<(), Error> {
        let mut names = self.names();
        let Names { partitions, blobs, .. } = &mut *names;
        let ids = match name {
            Some(name) => partitions.get_mut(partition).and_then(|p| p.remove(name)).map(|id| vec![id]),
            None => partitions.remove(partition).map(|p| p.into_values().collect()),
        };
        let ids = ids.ok_or_else(|| match name {
            Some(name) => Error::BlobMissing(partition.into(), hex(name)),
            None => Error::PartitionMissing(partition.into()),
        })?;
        for entry in ids.into_iter().filter_map(|id| blobs.remove(&id)) {
            let file_name = entry.blob.file_name().unwrap_or_default();
            let removed = Removed { id: entry.blob.id, file_name, content: entry.content.upgrade() };
            self.journal.core.removed(removed, entry.open).map_err(Error::Io)?;
        }
        Ok(())
    }
}

fn open_failed(partition: &str, name: &[u8], error: std::io::Error) -> Error {
    Error::BlobOpenFailed(partition.into(), hex(name), error.into())
}

fn valid(partition: &str) -> Result<(), Error> {
    if is_partition(partition) { Ok(()) } else { Err(Error::PartitionNameInvalid(partition.into())) }
}

impl<D: Disk> Storage for JournaledStorage<D> {
    type Blob = JournaledBlob<D>;

    async fn open_versioned(
        &self,
        partition: &str,
        name: &[u8],
        versions: RangeInclusive<BlobVersion>,
    ) -> Result<(Self::Blob, u64, BlobVersion), Error> {
        valid(partition)?;
        let (blob, version, new) = self.shared.open(partition, name, versions)?;
        let blob = blob.deferring(self.deferred_of(partition));
        if new {
            return Ok((blob, 0, version));
        }
        // What an earlier handle left undurable must not be taken for durable.
        blob.settled().await?;
        let size = blob.size()?;
        Ok((blob, size, version))
    }

    async fn remove(&self, partition: &str, name: Option<&[u8]>) -> Result<(), Error> {
        valid(partition)?;
        self.shared.remove(partition, name)
    }

    fn scan(&self, partition: &str) -> impl Future<Output = Result<Vec<Vec<u8>>, Error>> + Send {
        let scanned = valid(partition).and_then(|()| {
            let names = self.shared.names();
            let found = names.partitions.get(partition).map(|blobs| blobs.keys().cloned().collect());
            found.ok_or_else(|| Error::PartitionMissing(partition.into()))
        });
        std::future::ready(scanned)
    }
}

/// The batch a blob's last change goes with.
pub(crate) fn last_change(last: &AtomicU64) -> Generation {
    last.load(Acquire)
}
