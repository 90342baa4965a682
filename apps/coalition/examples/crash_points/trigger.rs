//! Where the bridge is killed: at the n-th time something certain happens.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// One crash point: the `nth` time (from 1) that something of this label happens in a life.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    pub label: String,
    pub nth: usize,
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} #{}", self.label, self.nth)
    }
}

#[derive(Default)]
struct Inner {
    seen: Vec<Point>,
    counts: BTreeMap<String, usize>,
    target: Option<Point>,
    victim: Option<i32>,
    fired: usize,
}

/// Counts what happens, and kills the bridge at the point it is aimed at.
#[derive(Default)]
pub struct Trigger(Mutex<Inner>);

impl Trigger {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process to kill.
    pub fn aim_at(&self, pid: i32) {
        self.inner().victim = Some(pid);
    }

    /// Forgets what was seen and waits for this point, or for none.
    pub fn arm(&self, target: Option<Point>) {
        let mut inner = self.inner();
        (inner.target, inner.fired) = (target, 0);
        inner.seen.clear();
        inner.counts.clear();
    }

    /// Waits for the n-th thing of any kind from now on: a second crash, while the first is being recovered from.
    pub fn arm_again(&self, in_steps: usize) {
        let mut inner = self.inner();
        let at = inner.seen.len() + in_steps;
        inner.target = Some(Point { label: String::new(), nth: at });
    }

    /// How often it has struck since it was armed.
    pub fn fired(&self) -> usize {
        self.inner().fired
    }

    /// Everything that happened since it was armed, in order.
    pub fn seen(&self) -> Vec<Point> {
        self.inner().seen.clone()
    }

    /// Something happened.
    pub fn reach(&self, label: &str) {
        let mut inner = self.inner();
        let count = inner.counts.entry(label.to_owned()).or_default();
        *count += 1;
        let point = Point { label: label.to_owned(), nth: *count };
        inner.seen.push(point.clone());
        let is_any =
            inner.target.as_ref().is_some_and(|target| target.label.is_empty() && target.nth <= inner.seen.len());
        if is_any || inner.target.as_ref() == Some(&point) {
            inner.target = None;
            inner.strike();
        }
    }

    /// Kills now, wherever the bridge is.
    pub fn strike(&self) {
        self.inner().strike();
    }
}

impl Inner {
    fn strike(&mut self) {
        if let Some(pid) = self.victim.take() {
            self.fired += 1;
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}
