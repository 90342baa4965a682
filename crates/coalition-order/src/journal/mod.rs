//! Group-committed storage for the engine.
//!
//! The engine's own storage flushes every file, directory and removal on its own: some twenty flushes a batch. Here every
//! blob is in memory, or an ordinary file that is written at once but never flushed for the engine's sake, and every change
//! is also a record in one write-ahead log. What must be durable waits for the log: all who wait at one time share one flush of a
//! file whose blocks are all there already.
//!
//! - [`format`]: batches of records, file names.
//! - [`core`]: collecting, waiting, failing. [`flusher`]: the thread that flushes the log, and the one that keeps the files.
//! - [`recovery`]: from log and files back to a state.
//! - [`staged`]: content that becomes a file only when a checkpoint finds it alive, or when it grows.
//! - [`storage`], [`blob`]: the engine's interface. [`context`]: puts it into the engine's context.
//!
//! **What holds.** A change is durable once its batch is; a batch is durable whole or not at all, and only after all
//! before it. After a crash every blob holds at least all durable changes, and of the others any part, as with any file
//! system. A created or removed name is there or gone exactly as the log says: files have ids that are never used twice, so
//! a name can be created again at once and old handles keep reading the removed file.
//!
//! **Two log files** take turns. When one is full, the next batch goes to the other, while a second thread makes
//! files of what is in memory, makes them durable and unlinks what was removed; only then the full one is free again.
//!
//! **Failure.** The first failed write or flush ends the journal for good: nothing is tried again, since the system may
//! have dropped what it failed to write.

mod blob;
mod context;
mod core;
pub(crate) mod disk;
mod flusher;
pub(crate) mod format;
pub(crate) mod recovery;
mod staged;
mod storage;

pub(crate) use context::WithStorage;
pub(crate) use storage::JournaledStorage;
