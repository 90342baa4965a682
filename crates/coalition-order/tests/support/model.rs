//! What a journaled storage may look like after a crash: all changes up to some point not before the last one proved
//! durable, and of later writes any part.

use std::collections::BTreeMap;

pub type Name = (String, Vec<u8>);

/// A change, in the order it was made. Every created blob has its own number.
#[derive(Clone, Debug)]
pub enum Change {
    Create(Name, usize),
    Write(usize, usize, Vec<u8>),
    Resize(usize, usize),
    Remove(Name),
}

/// Blobs by name.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub names: BTreeMap<Name, usize>,
    pub contents: BTreeMap<usize, Vec<u8>>,
}

impl State {
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Create(name, blob) => {
                self.names.insert(name.clone(), *blob);
                self.contents.insert(*blob, Vec::new());
            }
            Change::Write(blob, offset, bytes) => {
                let content = self.contents.get_mut(blob).unwrap();
                content.resize(content.len().max(offset + bytes.len()), 0);
                content[*offset..offset + bytes.len()].copy_from_slice(bytes);
            }
            Change::Resize(blob, len) => self.contents.get_mut(blob).unwrap().resize(*len, 0),
            Change::Remove(name) => drop(self.names.remove(name)),
        }
    }
}

/// What happened in one life of a storage.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub base: State,
    pub changes: Vec<Change>,
    /// So many of them are durable.
    pub durable: usize,
}

impl History {
    pub fn now(&self) -> State {
        let mut state = self.base.clone();
        self.changes.iter().for_each(|c| state.apply(c));
        state
    }

    /// Notes that all changes of `blob`, and so all before the last of them, are durable.
    pub fn synced(&mut self, blob: usize) {
        self.durable = self.durable.max(self.of(blob));
    }

    /// How many changes there are up to the last of `blob`.
    pub fn of(&self, blob: usize) -> usize {
        let of_blob = |c: &Change| match c {
            Change::Create(_, b) | Change::Write(b, ..) | Change::Resize(b, _) => *b == blob,
            Change::Remove(_) => false,
        };
        self.changes.iter().rposition(of_blob).map_or(0, |last| last + 1)
    }

    /// Whether `found` may be what is left of it.
    pub fn allows(&self, found: &BTreeMap<Name, Vec<u8>>) -> bool {
        let mut state = self.base.clone();
        (0..=self.changes.len()).any(|k| {
            if let Some(last) = k.checked_sub(1) {
                state.apply(&self.changes[last]);
            }
            k >= self.durable && self.allows_prefix(&state, &self.changes[k..], found)
        })
    }

    fn allows_prefix(&self, state: &State, later: &[Change], found: &BTreeMap<Name, Vec<u8>>) -> bool {
        state.names.keys().eq(found.keys())
            && state.names.iter().all(|(name, blob)| allows_content(*blob, &state.contents[blob], later, &found[name]))
    }
}

fn allows_content(blob: usize, content: &[u8], later: &[Change], found: &[u8]) -> bool {
    let mut lengths = vec![content.len()];
    let mut writes = Vec::new();
    for change in later {
        match change {
            Change::Write(b, offset, bytes) if *b == blob => {
                lengths.push(offset + bytes.len());
                writes.push((*offset, bytes));
            }
            Change::Resize(b, len) if *b == blob => lengths.push(*len),
            _ => {}
        }
    }
    let resized = later.iter().any(|c| matches!(c, Change::Resize(b, _) if *b == blob));
    let shortest = lengths.iter().copied().filter(|_| resized).min().unwrap_or(content.len());
    let longest = lengths.iter().copied().max().unwrap_or(0);
    (shortest..=longest).contains(&found.len())
        && found.iter().enumerate().all(|(i, byte)| {
            content.get(i) == Some(byte)
                || (*byte == 0 && (resized || i >= content.len()))
                || writes
                    .iter()
                    .any(|(offset, bytes)| i.checked_sub(*offset).is_some_and(|at| bytes.get(at) == Some(byte)))
        })
}
