//! An SSH server whose sessions are started by somebody else: keys, connections, and the plumbing between a channel
//! and a process. The grant's server and the embedded host server differ only in their [`Launcher`].

mod handler;
pub mod keys;
mod listener;
mod process;
mod pump;

pub(crate) use listener::{ServerKeys, ServerLimits, listen};
pub(crate) use process::{Control, Launcher, Process, Request, Session};

use std::sync::atomic::{AtomicU64, Ordering};

/// Payload bytes through a server, both directions, all connections.
#[derive(Debug, Default)]
pub(crate) struct Traffic(AtomicU64);

impl Traffic {
    pub(crate) fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
