//! What happened, and whether it may have.
//!
//! Every acknowledgement carries the write's place in the log, so the order that explains the history is given, and checking
//! linearizability means checking that order: each write is where it was acknowledged, once; and a write that was acknowledged
//! before another began stands before it.

use std::{
    collections::{BTreeMap, HashMap},
    time::Instant,
};

use coalition_log::Entry;

/// One write of one writer.
pub struct Write {
    pub content: Vec<u8>,
    pub began: Instant,
    pub ended: Instant,
    /// Where it was acknowledged; `None` when its writer never learned.
    pub index: Option<u64>,
    /// An answer no writer may get.
    pub complaint: Option<String>,
}

#[derive(Default)]
pub struct History {
    pub writes: Vec<Write>,
}

impl History {
    pub fn acknowledged(&self) -> usize {
        self.writes.iter().filter(|write| write.index.is_some()).count()
    }

    /// The furthest place in the log that anybody was told.
    pub fn highest(&self) -> Option<u64> {
        self.writes.iter().filter_map(|write| write.index).max()
    }

    pub fn unknown(&self) -> usize {
        self.writes.len() - self.acknowledged()
    }

    /// Every violation found against the final certified log.
    pub fn check(&self, log: &[Entry]) -> Vec<String> {
        let mut violations: Vec<String> = self.writes.iter().filter_map(|write| write.complaint.clone()).collect();
        violations.extend(positions(log));
        violations.extend(self.places(log));
        violations.extend(self.real_time());
        violations
    }

    fn places(&self, log: &[Entry]) -> Vec<String> {
        let mut violations = Vec::new();
        let mut by_content: HashMap<&[u8], Vec<u64>> = HashMap::new();
        for entry in log {
            by_content.entry(&entry.body).or_default().push(entry.index);
        }
        let mut known = 0;
        for write in &self.writes {
            let shown = String::from_utf8_lossy(write.content.trim_ascii_end());
            let found = by_content.get(write.content.as_slice()).map_or(&[][..], Vec::as_slice);
            known += found.len();
            match (write.index, found) {
                (Some(index), [place]) if index == *place => {}
                (Some(index), found) => {
                    violations.push(format!("{shown:?} was acknowledged at {index} and is at {found:?}"));
                }
                (None, [] | [_]) => {}
                (None, found) => violations.push(format!("{shown:?} is in the log at {found:?}")),
            }
        }
        if known != log.len() {
            violations.push(format!("{} entries of the log were written by nobody", log.len() - known));
        }
        violations
    }

    /// Sweeps over time: the highest place acknowledged so far is below the place of everything that begins later.
    fn real_time(&self) -> Vec<String> {
        let mut violations = Vec::new();
        let mut events: BTreeMap<(Instant, bool, usize), ()> = BTreeMap::new();
        for (position, write) in self.writes.iter().enumerate().filter(|(_, write)| write.index.is_some()) {
            // At the same instant, beginnings first: those two overlap.
            events.insert((write.began, false, position), ());
            events.insert((write.ended, true, position), ());
        }
        let mut highest: Option<u64> = None;
        let mut floor = vec![None; self.writes.len()];
        for (_, ended, position) in events.into_keys() {
            if !ended {
                floor[position] = highest;
                continue;
            }
            let index = self.writes[position].index;
            if index <= floor[position] {
                let shown = String::from_utf8_lossy(self.writes[position].content.trim_ascii_end());
                violations
                    .push(format!("{shown:?} is at {index:?}, before one acknowledged earlier: {:?}", floor[position]));
            }
            highest = highest.max(index);
        }
        violations
    }
}

fn positions(log: &[Entry]) -> Vec<String> {
    let wrong = log.windows(2).find(|pair| pair[0].index >= pair[1].index);
    let told = |pair: &[Entry]| format!("the reader was shown entry {} after {}", pair[1].index, pair[0].index);
    wrong.map(told).into_iter().collect()
}
