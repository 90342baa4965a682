//! What the journal promises the engine, without its threads: all changes become durable in one order, and syncs of some
//! partitions do not wait for that, but the next change there does. A member that dies or loses power comes back with what was
//! durable, and of each blob's later changes none, all or some, over which the last durable ones were repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard};

use commonware_runtime::{
    Blob, BlobVersion, BufMut as _, Error, Handle, IoBufMut, IoBufs, IoBufsMut, ReadOptions, Storage, WriteOptions,
};

type Id = u64;

/// Most durable changes that a restart may repeat: what the log holds of what is in the files already.
const REPEATED: usize = 64;

#[derive(Clone, Default)]
struct Contents {
    names: BTreeMap<String, BTreeMap<Vec<u8>, Id>>,
    blobs: BTreeMap<Id, (BlobVersion, Vec<u8>)>,
}

#[derive(Clone)]
enum Change {
    Create(Id, String, Vec<u8>, BlobVersion),
    Remove(String, Option<Vec<u8>>),
    Write(Id, usize, Vec<u8>),
    Resize(Id, usize),
}

impl Contents {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Create(id, partition, name, version) => {
                self.names.entry(partition).or_default().insert(name, id);
                self.blobs.insert(id, (version, Vec::new()));
            }
            Change::Remove(partition, None) => drop(self.names.remove(&partition)),
            Change::Remove(partition, Some(name)) => {
                self.names.get_mut(&partition).map(|names| names.remove(&name));
            }
            Change::Write(id, offset, bytes) => {
                let Some((_, to)) = self.blobs.get_mut(&id) else { return };
                to.resize(to.len().max(offset + bytes.len()), 0);
                to[offset..offset + bytes.len()].copy_from_slice(&bytes);
            }
            Change::Resize(id, len) => {
                if let Some((_, to)) = self.blobs.get_mut(&id) {
                    to.resize(len, 0);
                }
            }
        }
    }
}

#[derive(Default)]
struct State {
    durable: Contents,
    now: Contents,
    pending: Vec<Change>,
    /// The last that became durable.
    recent: Vec<Change>,
    /// Partitions of which something was synced that is not durable.
    promised: BTreeSet<String>,
    next: Id,
}

impl State {
    fn change(&mut self, change: Change) {
        self.now.apply(change.clone());
        self.pending.push(change);
    }

    fn flush(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            self.durable.apply(change.clone());
            self.recent.push(change);
        }
        self.recent.drain(..self.recent.len().saturating_sub(REPEATED));
        self.promised.clear();
    }
}

/// The disk of one member. Clones are the same disk.
#[derive(Clone)]
pub struct Disk {
    state: Arc<Mutex<State>>,
    deferred: Arc<str>,
}

impl Disk {
    /// An empty disk, on which the syncs of partitions whose names begin with `deferred` do not wait.
    pub fn new(deferred: &str) -> Self {
        Self { state: Arc::default(), deferred: deferred.into() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// What is there after a crash. `dice` gives a number below its argument.
    pub fn crash(&self, mut dice: impl FnMut(u64) -> u64) {
        let mut state = self.state();
        let mut left = state.durable.clone();
        let fates: BTreeMap<Id, u64> = left.blobs.keys().map(|id| (*id, dice(3))).collect();
        for change in std::mem::take(&mut state.pending) {
            let (Change::Write(id, ..) | Change::Resize(id, _)) = &change else { continue };
            let survives = match fates.get(id) {
                None | Some(0) => false,
                Some(1) => true,
                Some(_) => dice(2) == 0,
            };
            if survives {
                left.apply(change);
            }
        }
        let recent = std::mem::take(&mut state.recent);
        let repeated = recent.len() - usize::try_from(dice(recent.len() as u64 + 1)).unwrap();
        for change in recent.into_iter().skip(repeated) {
            if matches!(change, Change::Write(..) | Change::Resize(..)) {
                left.apply(change);
            }
        }
        state.promised.clear();
        let named: Vec<Id> = left.names.values().flat_map(BTreeMap::values).copied().collect();
        left.blobs.retain(|id, _| named.contains(id));
        state.durable = left.clone();
        state.now = left;
    }

    /// How many blobs a partition has.
    pub fn count(&self, partition: &str) -> usize {
        self.state().now.names.get(partition).map_or(0, BTreeMap::len)
    }
}

impl Storage for Disk {
    type Blob = DiskBlob;

    async fn open_versioned(
        &self,
        partition: &str,
        name: &[u8],
        versions: RangeInclusive<BlobVersion>,
    ) -> Result<(DiskBlob, u64, BlobVersion), Error> {
        let mut state = self.state();
        let known = state.now.names.get(partition).and_then(|names| names.get(name)).copied();
        let id = known.unwrap_or_else(|| {
            state.next += 1;
            let id = state.next;
            state.change(Change::Create(id, partition.into(), name.into(), *versions.end()));
            id
        });
        let (version, content) = &state.now.blobs[&id];
        let (version, size) = (*version, content.len() as u64);
        let deferred = partition.starts_with(&*self.deferred).then(|| partition.to_owned());
        Ok((DiskBlob { disk: self.clone(), id, deferred }, size, version))
    }

    async fn remove(&self, partition: &str, name: Option<&[u8]>) -> Result<(), Error> {
        let mut state = self.state();
        let names = state.now.names.get(partition).ok_or_else(|| Error::PartitionMissing(partition.into()))?;
        if name.is_some_and(|name| !names.contains_key(name)) {
            return Err(Error::BlobMissing(partition.into(), String::new()));
        }
        state.change(Change::Remove(partition.into(), name.map(Into::into)));
        Ok(())
    }

    async fn scan(&self, partition: &str) -> Result<Vec<Vec<u8>>, Error> {
        let state = self.state();
        let names = state.now.names.get(partition).ok_or_else(|| Error::PartitionMissing(partition.into()))?;
        Ok(names.keys().cloned().collect())
    }
}

/// A blob of it.
pub struct DiskBlob {
    disk: Disk,
    id: Id,
    /// Its partition, if syncs of that are deferred.
    deferred: Option<String>,
}

impl DiskBlob {
    fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        let state = self.disk.state();
        let content = state.now.blobs.get(&self.id).map_or(&[][..], |(_, content)| content);
        let from = usize::try_from(offset).unwrap();
        content.get(from..from + len).map(<[u8]>::to_vec).ok_or(Error::BlobInsufficientLength)
    }

    fn synced(&self) {
        let mut state = self.disk.state();
        match &self.deferred {
            Some(partition) => drop(state.promised.insert(partition.clone())),
            None => state.flush(),
        }
    }

    fn change(&self, change: Change) {
        let mut state = self.disk.state();
        if self.deferred.as_ref().is_some_and(|partition| state.promised.contains(partition)) {
            state.flush();
        }
        state.change(change);
    }
}

impl Blob for DiskBlob {
    async fn read_at_buf(
        &self,
        offset: u64,
        len: usize,
        bufs: impl Into<IoBufsMut> + Send,
        _options: ReadOptions,
    ) -> Result<IoBufsMut, Error> {
        let (bytes, mut bufs) = (self.read(offset, len)?, bufs.into());
        if let Some(buf) = bufs.as_single_mut() {
            buf.clear();
            buf.put_slice(&bytes);
        } else if bufs.is_empty() {
            bufs.put_slice(&bytes);
        } else {
            bufs.copy_from_slice(&bytes);
        }
        Ok(bufs)
    }

    async fn read_at(&self, offset: u64, len: usize, _options: ReadOptions) -> Result<IoBufsMut, Error> {
        let mut buf = IoBufMut::zeroed(len);
        buf.as_mut().copy_from_slice(&self.read(offset, len)?);
        Ok(buf.into())
    }

    async fn write_at(&self, offset: u64, bufs: impl Into<IoBufs> + Send, options: WriteOptions) -> Result<(), Error> {
        let bytes = bufs.into().coalesce().as_ref().to_vec();
        self.change(Change::Write(self.id, usize::try_from(offset).unwrap(), bytes));
        if options.contains(WriteOptions::SYNC) {
            self.synced();
        }
        Ok(())
    }

    async fn resize(&self, len: u64) -> Result<(), Error> {
        self.change(Change::Resize(self.id, usize::try_from(len).unwrap()));
        Ok(())
    }

    async fn sync(&self) -> Result<(), Error> {
        self.synced();
        Ok(())
    }

    async fn start_sync(&self) -> Handle<()> {
        self.synced();
        Handle::ready(Ok(()))
    }
}
