//! One open blob. Reads and writes go straight to its content, in the caller's thread, and if that is a file, in the
//! system's page cache.

use std::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Release};
use std::sync::{Arc, Mutex, PoisonError};

use commonware_runtime::{Blob, BufMut as _, Error, Handle, IoBufMut, IoBufs, IoBufsMut, ReadOptions, WriteOptions};

use super::core::{Durable, Failure};
use super::disk::Disk;
use super::format::{Record, put_write};
use super::staged::Staged;
use super::storage::{Shared, last_change};

/// Largest single write: a batch's length must fit 32 bits.
const MAX_WRITE: usize = 1 << 30;

/// A blob of a [`JournaledStorage`](super::JournaledStorage).
pub(crate) struct JournaledBlob<D: Disk> {
    shared: Arc<Shared<D>>,
    id: u64,
    content: Arc<Staged<D::File>>,
    last: Arc<AtomicU64>,
    /// If syncs do not wait until the changes are durable: the batch that what was synced in this partition goes with.
    deferred: Option<Arc<AtomicU64>>,
    /// Held from a change of the content to its record, so that both come in one order.
    changing: Mutex<()>,
}

impl<D: Disk> Drop for JournaledBlob<D> {
    fn drop(&mut self) {
        self.shared.released(self.id);
    }
}

impl<D: Disk> JournaledBlob<D> {
    pub(crate) fn new(shared: Arc<Shared<D>>, id: u64, content: Arc<Staged<D::File>>, last: Arc<AtomicU64>) -> Self {
        Self { shared, id, content, last, deferred: None, changing: Mutex::new(()) }
    }

    /// The same, whose syncs are deferred if its partition's are.
    pub(crate) fn deferring(mut self, deferred: Option<Arc<AtomicU64>>) -> Self {
        self.deferred = deferred;
        self
    }

    /// Length in bytes.
    pub(crate) fn size(&self) -> Result<u64, Error> {
        self.content.size().map_err(|_| Error::ReadFailed)
    }

    /// Resolves when all changes so far are durable.
    pub(crate) async fn settled(&self) -> Result<(), Error> {
        self.durable().await.map_err(Error::Io)
    }

    fn durable(&self) -> Durable<D> {
        self.shared.journal.durable(last_change(&self.last))
    }

    /// A sync: the order of changes is the log's already, so a deferred one only notes what it promises, and looks for a failure.
    async fn synced(&self) -> Result<(), Error> {
        let Some(deferred) = &self.deferred else { return self.settled().await };
        deferred.fetch_max(last_change(&self.last), Release);
        self.shared.journal.core.failure().map_or(Ok(()), |failure| Err(Error::Io(failure)))
    }

    /// What was synced before the next change, but deferred, has to be durable by then: of two copies that are changed in turn, at
    /// most one may be other than it was synced.
    async fn before_change(&self) -> Result<(), Error> {
        let Some(deferred) = &self.deferred else { return Ok(()) };
        self.shared.journal.durable(deferred.load(Acquire)).await.map_err(Error::Io)
    }

    /// Changes the content, then notes the change. A failure in between would leave what the log does not explain.
    fn change(
        &self,
        change: impl FnOnce(&Staged<D::File>, &D) -> std::io::Result<()>,
        put: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), Failure> {
        let core = &self.shared.journal.core;
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        change(&self.content, &core.disk).map_err(|error| core.fail(error))?;
        let generation = core.changed(self.id, &self.content, put)?;
        self.last.store(generation, Release);
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let end = offset.checked_add(bytes.len() as u64).filter(|end| i64::try_from(*end).is_ok());
        if end.is_none() || bytes.len() > MAX_WRITE {
            return Err(Error::OffsetOverflow);
        }
        let put = |to: &mut Vec<u8>| {
            put_write(to, self.id, offset, bytes.len());
            to.extend_from_slice(bytes);
        };
        self.change(|content, disk| content.write_at(disk, bytes, offset), put).map_err(Error::Io)
    }

    fn read_into(&self, offset: u64, len: usize, mut bufs: IoBufsMut) -> Result<IoBufsMut, Error> {
        assert!(len <= bufs.capacity(), "{len} bytes do not fit a buffer of {}", bufs.capacity());
        if let Some(buf) = bufs.as_single_mut() {
            buf.clear();
            buf.put_bytes(0, len);
            self.content.read_at(buf.as_mut(), offset)?;
            return Ok(bufs);
        }
        let mut bytes = vec![0; len];
        self.content.read_at(&mut bytes, offset)?;
        if bufs.is_empty() {
            bufs.put_slice(&bytes);
        } else if bufs.len() == len {
            bufs.copy_from_slice(&bytes);
        } else {
            // Several buffers that are neither empty nor full cannot be cut to size from outside their crate.
            return Err(Error::ReadFailed);
        }
        Ok(bufs)
    }
}

impl<D: Disk> Blob for JournaledBlob<D> {
    async fn read_at_buf(
        &self,
        offset: u64,
        len: usize,
        bufs: impl Into<IoBufsMut> + Send,
        _options: ReadOptions,
    ) -> Result<IoBufsMut, Error> {
        self.read_into(offset, len, bufs.into())
    }

    async fn read_at(&self, offset: u64, len: usize, _options: ReadOptions) -> Result<IoBufsMut, Error> {
        // Before anything is allocated: the length may come from damaged content.
        if offset.checked_add(len as u64).is_none_or(|end| self.content.size().is_ok_and(|size| end > size)) {
            return Err(Error::BlobInsufficientLength);
        }
        let mut buf = IoBufMut::zeroed(len);
        self.content.read_at(buf.as_mut(), offset)?;
        Ok(buf.into())
    }

    async fn write_at(&self, offset: u64, bufs: impl Into<IoBufs> + Send, options: WriteOptions) -> Result<(), Error> {
        let bufs = bufs.into();
        if bufs.is_empty() {
            return Ok(());
        }
        self.before_change().await?;
        self.write(offset, bufs.coalesce().as_ref())?;
        if options.contains(WriteOptions::SYNC) {
            self.synced().await?;
        }
        Ok(())
    }

    async fn resize(&self, len: u64) -> Result<(), Error> {
        self.before_change().await?;
        let put = |to: &mut Vec<u8>| Record::Resize { id: self.id, len }.put(to);
        self.change(|content, disk| content.resize(disk, len), put).map_err(Error::Io)
    }

    async fn sync(&self) -> Result<(), Error> {
        self.synced().await
    }

    async fn start_sync(&self) -> Handle<()> {
        if self.deferred.is_some() {
            return Handle::ready(self.synced().await);
        }
        let durable = self.durable();
        durable.request();
        Handle::from_future(async move { durable.await.map_err(Error::Io) })
    }
}
