//! The log in operation: records are collected in memory, a thread of its own writes and flushes them for all who wait.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;

use super::disk::Disk;
use super::flusher::{Flusher, Job, tidy};
use super::format::{HEADER, Record};
use super::recovery::Recovered;
use super::staged::Staged;

/// Records collected without anybody waiting are written when they are this many bytes.
pub(crate) const WRITE_OUT: usize = 1024 * 1024;
/// More records than this in memory make their author wait.
const MAX_COLLECTED: usize = 64 * 1024 * 1024;

/// Counts the batches: the one collected now has the highest.
pub(crate) type Generation = u64;

/// A failure that ends the journal for good.
pub(crate) type Failure = Arc<io::Error>;

/// What threads and blobs share.
pub(crate) struct Core<D: Disk> {
    pub(crate) disk: D,
    pub(crate) state: Mutex<State<D::File>>,
    /// The flusher waits on it; whoever is stopped by [`MAX_COLLECTED`] on the other.
    pub(crate) work: Condvar,
    pub(crate) room: Condvar,
    pub(crate) durable: AtomicU64,
    /// Oldest segment whose records may not be in the files yet.
    pub(crate) base: AtomicU64,
}

/// The records on their way, and what their segment must leave behind.
pub(crate) struct State<F> {
    /// [`HEADER`] bytes of room, then records.
    pub(crate) batch: Vec<u8>,
    pub(crate) generation: Generation,
    /// Highest generation anybody waits for.
    pub(crate) wanted: Generation,
    /// Lowest id without a creation among all records so far, and among those before this batch.
    pub(crate) next_id: u64,
    pub(crate) first_id: u64,
    /// Contents changed since the last checkpoint began.
    pub(crate) dirty: HashMap<u64, Arc<Staged<F>>>,
    /// Removed by this batch.
    pub(crate) removed: Vec<Removed<F>>,
    /// Removed while open. What is still written to them goes into no log: a later one would not know the file.
    pub(crate) gone: HashSet<u64>,
    pub(crate) waiters: Vec<(Generation, Waker)>,
    pub(crate) failure: Option<Failure>,
    pub(crate) flusher_sleeps: bool,
    /// Somebody waits for room.
    pub(crate) crowded: bool,
    pub(crate) stop: bool,
}

/// A removed blob.
pub(crate) struct Removed<F> {
    pub(crate) id: u64,
    pub(crate) file_name: String,
    /// Whoever still has its content; nobody once it is a file that is closed and durable.
    pub(crate) content: Option<Arc<Staged<F>>>,
}

impl<D: Disk> Core<D> {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State<D::File>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What ended the journal for good, if something did.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.lock().failure.clone()
    }

    /// Adds a record that `put` writes and returns the batch it goes with.
    fn append(&self, put: impl FnOnce(&mut State<D::File>)) -> Result<Generation, Failure> {
        let mut state = self.lock();
        while state.batch.len() > MAX_COLLECTED && state.failure.is_none() && !state.stop {
            if state.want(Generation::MAX) {
                self.work.notify_one();
            }
            state.crowded = true;
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(failure) = &state.failure {
            return Err(Arc::clone(failure));
        }
        if state.stop {
            return Err(Arc::new(io::Error::other("the journal was closed")));
        }
        put(&mut state);
        let generation = state.generation;
        let wake = state.batch.len() > WRITE_OUT && state.want(generation);
        drop(state);
        self.wake(wake);
        Ok(generation)
    }

    /// Notes a change of `content`, which has been made already.
    pub(crate) fn changed(
        &self,
        id: u64,
        content: &Arc<Staged<D::File>>,
        put: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Generation, Failure> {
        self.append(|state| {
            if !state.gone.contains(&id) {
                put(&mut state.batch);
                state.dirty.entry(id).or_insert_with(|| Arc::clone(content));
            }
        })
    }

    /// Notes a creation. Ids must come in order.
    pub(crate) fn created(
        &self,
        content: &Arc<Staged<D::File>>,
        record: Record<'_>,
        id: u64,
    ) -> Result<Generation, Failure> {
        self.append(|state| {
            record.put(&mut state.batch);
            state.next_id = id + 1;
            state.dirty.insert(id, Arc::clone(content));
        })
    }

    /// Notes a removal, of a file that somebody still has open or not. The file itself goes when this is durable.
    pub(crate) fn removed(&self, removed: Removed<D::File>, open: bool) -> Result<(), Failure> {
        let put = |state: &mut State<D::File>| {
            Record::Remove { id: removed.id }.put(&mut state.batch);
            if open {
                state.gone.insert(removed.id);
            }
            state.removed.push(removed);
        };
        self.append(put).map(drop)
    }

    /// Nobody has the removed file open any longer.
    pub(crate) fn forget(&self, id: u64) {
        self.lock().gone.remove(&id);
    }

    /// Makes the journal fail for good. Only the first failure counts.
    pub(crate) fn fail(&self, error: io::Error) -> Failure {
        let mut state = self.lock();
        let failure = Arc::clone(state.failure.get_or_insert_with(|| Arc::new(error)));
        let waiters = std::mem::take(&mut state.waiters);
        self.work.notify_all();
        self.room.notify_all();
        drop(state);
        waiters.into_iter().for_each(|(_, waker)| waker.wake());
        failure
    }

    /// Has everything up to `generation` flushed, without waiting.
    fn request(&self, generation: Generation) {
        if self.durable.load(Acquire) < generation {
            let wake = self.lock().want(generation);
            self.wake(wake);
        }
    }

    /// Wakes the flusher; without the lock, which it takes first of all.
    fn wake(&self, wake: bool) {
        if wake {
            self.work.notify_one();
        }
    }

    fn poll_durable(&self, generation: Generation, waker: &Waker) -> Poll<Result<(), Failure>> {
        if self.durable.load(Acquire) >= generation {
            return Poll::Ready(Ok(()));
        }
        let mut state = self.lock();
        if self.durable.load(Acquire) >= generation {
            return Poll::Ready(Ok(()));
        }
        if let Some(failure) = &state.failure {
            return Poll::Ready(Err(Arc::clone(failure)));
        }
        if state.stop {
            return Poll::Ready(Err(Arc::new(io::Error::other("the journal was closed"))));
        }
        let wake = state.want(generation);
        if !state.waiters.iter().any(|(g, w)| *g <= generation && w.will_wake(waker)) {
            state.waiters.push((generation, waker.clone()));
        }
        drop(state);
        self.wake(wake);
        Poll::Pending
    }
}

/// Resolves when a batch is durable, or can no longer become so.
pub(crate) struct Durable<D: Disk> {
    core: Arc<Core<D>>,
    generation: Generation,
}

impl<D: Disk> Durable<D> {
    /// Has it flushed even if nobody polls.
    pub(crate) fn request(&self) {
        self.core.request(self.generation);
    }
}

impl<D: Disk> Future for Durable<D> {
    type Output = Result<(), Failure>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.core.poll_durable(self.generation, cx.waker())
    }
}

/// A running journal: its core and its threads. Ends with the last reference or with [`Self::close`].
pub(crate) struct Journal<D: Disk> {
    pub(crate) core: Arc<Core<D>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl<D: Disk> Journal<D> {
    /// Starts the threads. A log file is left for the other one when it has `limit` bytes.
    pub(crate) fn start(disk: D, recovered: Recovered<D::File>, limit: u64) -> io::Result<Self> {
        let next_id = recovered.last.first_id;
        let state = State {
            batch: vec![0; HEADER],
            generation: 1,
            wanted: 0,
            next_id,
            first_id: next_id,
            dirty: HashMap::new(),
            removed: Vec::new(),
            gone: HashSet::new(),
            waiters: Vec::new(),
            failure: None,
            flusher_sleeps: false,
            crowded: false,
            stop: false,
        };
        let core = Arc::new(Core {
            disk,
            state: Mutex::new(state),
            work: Condvar::new(),
            room: Condvar::new(),
            durable: AtomicU64::new(0),
            base: AtomicU64::new(recovered.last.base),
        });
        let (jobs, queue) = mpsc::channel::<Job<D::File>>();
        let flusher = Flusher::new(Arc::clone(&core), recovered, limit, jobs)?;
        let tidier = Arc::clone(&core);
        let threads = vec![
            std::thread::Builder::new().name("order-flush".into()).spawn(move || flusher.run())?,
            std::thread::Builder::new().name("order-tidy".into()).spawn(move || tidy(&tidier, &queue))?,
        ];
        Ok(Self { core, threads: Mutex::new(threads) })
    }

    /// Waits until the batch is durable.
    pub(crate) fn durable(&self, generation: Generation) -> Durable<D> {
        Durable { core: Arc::clone(&self.core), generation }
    }

    /// Flushes everything, ends the threads and waits for their end.
    pub(crate) fn close(&self) {
        let mut state = self.core.lock();
        if state.batch.len() > HEADER {
            state.want(Generation::MAX);
        }
        state.stop = true;
        self.core.work.notify_all();
        self.core.room.notify_all();
        drop(state);
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        // The last reference may be dropped by a waker, on a thread of the journal itself.
        if threads.iter().any(|thread| thread.thread().id() == std::thread::current().id()) {
            return;
        }
        for thread in threads {
            let _ = thread.join();
        }
    }
}

impl<D: Disk> Drop for Journal<D> {
    fn drop(&mut self) {
        self.close();
    }
}

impl<F> State<F> {
    /// Asks for a flush up to `generation`; says whether the flusher has to be woken for it.
    fn want(&mut self, generation: Generation) -> bool {
        self.wanted = self.wanted.max(generation.min(self.generation));
        std::mem::take(&mut self.flusher_sleeps)
    }

    /// Hands over the batch and begins the next. The room of `spare` is used again.
    pub(crate) fn take_batch(&mut self, mut spare: Vec<u8>) -> Vec<u8> {
        spare.clear();
        spare.resize(HEADER, 0);
        self.generation += 1;
        self.first_id = self.next_id;
        std::mem::replace(&mut self.batch, spare)
    }
}

impl<D: Disk> Core<D> {
    /// Says that everything up to `generation` is durable; returns whom to wake.
    pub(crate) fn settle(&self, state: &mut State<D::File>, generation: Generation) -> Vec<Waker> {
        self.durable.store(generation, Release);
        if std::mem::take(&mut state.crowded) {
            self.room.notify_all();
        }
        let mut due = Vec::new();
        let mut i = 0;
        while i < state.waiters.len() {
            if state.waiters[i].0 <= generation {
                due.push(state.waiters.swap_remove(i).1);
            } else {
                i += 1;
            }
        }
        due
    }

    /// The oldest segment still needed.
    pub(crate) fn needed(&self) -> u64 {
        self.base.load(Relaxed)
    }
}
