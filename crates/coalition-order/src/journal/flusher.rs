//! The two threads of a journal: one writes and flushes batches, one keeps the files so that the log can be reused.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, PoisonError, mpsc};

use super::core::{Core, Removed, WRITE_OUT};
use super::disk::{Disk, DiskFile as _, DiskLog as _};
use super::format::{Head, seal};
use super::recovery::{LOGS, Recovered};
use super::staged::Staged;

/// Zeros written ahead of the end of a log file that grows, so that flushing batches there changes no metadata.
const AHEAD: usize = 256 * 1024;
/// Removed files are unlinked so many at a time.
const UNLINK: usize = 64;

/// Work for the second thread, done in order.
pub(crate) enum Job<F> {
    /// Files whose removal is durable.
    Unlink(Vec<String>),
    /// What must be in durable files before `base` becomes the oldest segment needed.
    Checkpoint { contents: HashMap<u64, Arc<Staged<F>>>, base: u64 },
}

/// Owner of the log files.
pub(crate) struct Flusher<D: Disk> {
    core: Arc<Core<D>>,
    key: [u8; 32],
    logs: [D::Log; 2],
    sizes: [u64; 2],
    active: usize,
    end: u64,
    last: Head,
    limit: u64,
    unlink: Vec<String>,
    jobs: mpsc::Sender<Job<D::File>>,
    zeros: Vec<u8>,
}

impl<D: Disk> Flusher<D> {
    pub(crate) fn new(
        core: Arc<Core<D>>,
        recovered: Recovered<D::File>,
        limit: u64,
        jobs: mpsc::Sender<Job<D::File>>,
    ) -> io::Result<Self> {
        let Recovered { key, logs, active, end, last, .. } = recovered;
        let sizes = [logs[0].size()?, logs[1].size()?];
        let logs = [core.disk.open_log(LOGS[0])?, core.disk.open_log(LOGS[1])?];
        let (unlink, zeros) = (Vec::new(), vec![0; AHEAD]);
        Ok(Self { core, key, logs, sizes, active, end, last, limit, unlink, jobs, zeros })
    }

    /// Until the journal stops or fails.
    pub(crate) fn run(mut self) {
        let mut spare = Vec::new();
        loop {
            let core = Arc::clone(&self.core);
            let mut state = core.lock();
            while state.failure.is_none()
                && !state.stop
                && state.wanted <= core.durable.load(Acquire)
                && state.batch.len() <= WRITE_OUT
            {
                state.flusher_sleeps = true;
                state = core.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.flusher_sleeps = false;
            }
            if state.failure.is_some() || (state.stop && state.wanted <= core.durable.load(Acquire)) {
                let waiters = std::mem::take(&mut state.waiters);
                drop(state);
                waiters.into_iter().for_each(|(_, waker)| waker.wake());
                return;
            }
            let (generation, first_id) = (state.generation, state.first_id);
            let batch = state.take_batch(spare);
            let removed = std::mem::take(&mut state.removed);
            drop(state);

            spare = match self.write(batch, first_id) {
                Ok(batch) => batch,
                Err(error) => {
                    core.fail(error);
                    return;
                }
            };

            let mut state = core.lock();
            let due = core.settle(&mut state, generation);
            for removed in &removed {
                state.dirty.remove(&removed.id);
            }
            drop(state);
            let is_file = |removed: &Removed<D::File>| removed.content.as_ref().is_none_or(|content| content.removed());
            self.unlink.extend(removed.into_iter().filter(is_file).map(|removed| removed.file_name));
            due.into_iter().for_each(|waker| waker.wake());
            if spare.capacity() > 4 * WRITE_OUT {
                spare = Vec::new();
            }
            self.tidy_up();
        }
    }

    /// Makes one batch durable.
    fn write(&mut self, mut batch: Vec<u8>, first_id: u64) -> io::Result<Vec<u8>> {
        let base = self.core.needed();
        let segment = self.last.segment;
        let head = Head { segment, sequence: self.last.sequence + 1, base, first_id };
        seal(&mut batch, &self.key, head, self.end);
        let end = self.end + batch.len() as u64;
        let (log, size) = (&mut self.logs[self.active], &mut self.sizes[self.active]);
        while *size < end {
            log.write_durably(&self.zeros, *size)?;
            *size += AHEAD as u64;
        }
        log.write_durably(&batch, self.end)?;
        self.end = end;
        self.last = head;
        Ok(batch)
    }

    /// Hands work over, and goes on in the other log file when this one is full and that one is free.
    fn tidy_up(&mut self) {
        let full = self.end >= self.limit && self.last.base == self.last.segment;
        if full || self.unlink.len() >= UNLINK {
            // The receiver is gone only after a failure, which the next round sees.
            let _ = self.jobs.send(Job::Unlink(std::mem::take(&mut self.unlink)));
        }
        if full {
            let contents = std::mem::take(&mut self.core.lock().dirty);
            self.active = 1 - self.active;
            self.end = 0;
            self.last.segment += 1;
            let _ = self.jobs.send(Job::Checkpoint { contents, base: self.last.segment });
        }
    }
}

/// The second thread: what it does takes long and nobody waits for it.
pub(crate) fn tidy<D: Disk>(core: &Core<D>, jobs: &mpsc::Receiver<Job<D::File>>) {
    while let Ok(job) = jobs.recv() {
        let done = match job {
            Job::Unlink(names) => names.iter().try_for_each(|name| core.disk.remove(name)),
            Job::Checkpoint { contents, base } => checkpoint(core, &contents, base),
        };
        if let Err(error) = done {
            core.fail(error);
            return;
        }
    }
}

fn checkpoint<D: Disk>(core: &Core<D>, contents: &HashMap<u64, Arc<Staged<D::File>>>, base: u64) -> io::Result<()> {
    contents.values().try_for_each(|content| content.settle(&core.disk))?;
    core.disk.sync_names()?;
    core.base.store(base, Release);
    Ok(())
}
