//! For tests: what the doubles of all clouds share.

mod boot;
mod form;
mod served;

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub use boot::{Boot, Sshd};
pub use form::form;
pub use served::{Counter, Served};

/// Where a call to a double stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// It has arrived, and nothing was done yet.
    Before,
    /// It was done, and nothing was answered yet.
    During,
    /// It was answered.
    After,
}

type Watch = dyn Fn(&str, Phase) + Send + Sync;

/// Is told of every call to a double, by the name of what was called; for tests that strike at a certain one.
#[derive(Clone, Default)]
pub struct Watcher(Arc<Mutex<Option<Arc<Watch>>>>);

impl Watcher {
    /// From now on this is told.
    pub fn set(&self, watch: impl Fn(&str, Phase) + Send + Sync + 'static) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(watch));
    }

    /// Tells.
    pub fn tell(&self, call: &str, phase: Phase) {
        let watch = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(watch) = watch {
            watch(call, phase);
        }
    }
}

/// The next address of a machine: 127.77.x.y, where nothing else listens, by the process's number and its count of machines.
#[must_use]
pub fn next_address() -> Ipv4Addr {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let n = MADE.fetch_add(1, Ordering::Relaxed) % 254 + 1;
    let [_, _, _, own] = std::process::id().to_be_bytes();
    Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 77, own, 0)) + n)
}
