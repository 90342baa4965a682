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
use std::time::Duration;

use crate::egress::bucket::Throttle;

/// What passes a grant's walls, both directions: payload of its SSH server, and of its egress where it has one.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    bytes: AtomicU64,
    refused: AtomicU64,
    throttle: Option<Throttle>,
}

impl Traffic {
    /// Limited to so many millions of bits a second, if at all.
    pub(crate) fn limited(mbit: Option<u32>) -> Self {
        Self { throttle: mbit.map(Throttle::new), ..Self::default() }
    }

    /// Counts bytes that have passed; answers how long whoever moved them is to rest.
    pub(crate) fn pay(&self, bytes: usize) -> Duration {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.throttle.as_ref().map_or(Duration::ZERO, |throttle| throttle.take(bytes))
    }

    /// Counts bytes that have passed, and rests.
    pub(crate) async fn pass(&self, bytes: usize) {
        let rest = self.pay(bytes);
        if !rest.is_zero() {
            tokio::time::sleep(rest).await;
        }
    }

    /// Counts something that was not let out.
    pub(crate) fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn total(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Connections, flows and questions that were not let out.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}
