//! What a client remembers of what it began. Nothing is lost with it: Azure is asked again.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::operation::Operation;

/// Most things remembered of one kind; the oldest are forgotten.
const MOST: usize = 1_024;

/// Addresses of a host: on the internet, inside its network.
pub(crate) type HostAddresses = (Option<IpAddr>, Option<IpAddr>);

/// By the machine's name, the oldest first.
struct Recent<T>(VecDeque<(String, T)>);

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> Recent<T> {
    fn put(&mut self, name: &str, value: T) {
        self.take(name);
        if self.0.len() >= MOST {
            self.0.pop_front();
        }
        self.0.push_back((name.to_owned(), value));
    }

    fn get(&self, name: &str) -> Option<&T> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    fn take(&mut self, name: &str) {
        self.0.retain(|(known, _)| known != name);
    }
}

#[derive(Default)]
struct Inner {
    making: Recent<Operation>,
    ending: Recent<Operation>,
    ended: Recent<()>,
    /// By the machine's own id, which no other ever has: addresses stay for its life.
    addresses: BTreeMap<String, HostAddresses>,
}

#[derive(Default)]
pub(crate) struct Memory(Mutex<Inner>);

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn making(&self, name: &str, operation: Operation) {
        let mut inner = self.lock();
        inner.ended.take(name);
        inner.making.put(name, operation);
    }

    pub(crate) fn made_by(&self, name: &str) -> Option<Operation> {
        self.lock().making.get(name).cloned()
    }

    pub(crate) fn ending(&self, name: &str, operation: Operation) {
        self.lock().ending.put(name, operation);
    }

    pub(crate) fn ended_by(&self, name: &str) -> Option<Operation> {
        self.lock().ending.get(name).cloned()
    }

    /// The ending did not come to its end, or nothing is known of it: it is asked for again.
    pub(crate) fn not_ending(&self, name: &str) {
        self.lock().ending.take(name);
    }

    /// It was seen to end, or to have ended: that there is none of this name any more is no surprise.
    pub(crate) fn ended(&self, name: &str) {
        let mut inner = self.lock();
        inner.making.take(name);
        inner.ending.take(name);
        inner.ended.put(name, ());
    }

    pub(crate) fn has_ended(&self, name: &str) -> bool {
        self.lock().ended.get(name).is_some()
    }

    pub(crate) fn addresses(&self, machine: &str) -> Option<HostAddresses> {
        self.lock().addresses.get(machine).copied()
    }

    pub(crate) fn remember_addresses(&self, machine: &str, addresses: HostAddresses) {
        let mut inner = self.lock();
        if inner.addresses.len() >= MOST {
            inner.addresses.clear();
        }
        inner.addresses.insert(machine.to_owned(), addresses);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_remembered_than_allowed() {
        let memory = Memory::default();
        for i in 0..=MOST {
            memory.ended(&format!("c-{i}"));
        }
        assert!(!memory.has_ended("c-0") && memory.has_ended("c-1") && memory.has_ended(&format!("c-{MOST}")));
        for i in 0..3 * MOST {
            memory.remember_addresses(&i.to_string(), (None, None));
        }
        assert!(memory.lock().addresses.len() <= MOST);
    }
}
