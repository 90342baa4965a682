//! What the host folds beside the machine: the writes it remembers, and the Almanac's ticks. Pure.

use std::collections::{BTreeMap, VecDeque};

use coalition_log::{
    Entry,
    entry::WriteId,
    state::{KnownWrite, MAX_TICKS, MAX_WRITES},
};

/// Reads the Almanac tick out of an entry of the organism that is the coalition's clock.
pub type TickOf = fn(&Entry) -> Option<u64>;

/// Which entries each write made, so that a retried one is answered and not executed. About 10 MB when full.
#[derive(Debug, Default)]
pub(crate) struct WriteTable {
    writes: BTreeMap<WriteId, (u64, u64)>,
    order: VecDeque<WriteId>,
}

impl WriteTable {
    /// The first entry of a write, and how many it made.
    pub(crate) fn get(&self, id: WriteId) -> Option<(u64, u64)> {
        self.writes.get(&id).copied()
    }

    /// Takes one entry.
    pub(crate) fn fold(&mut self, entry: &Entry) {
        if entry.write_id == WriteId::NONE {
            return;
        }
        if let Some((_, count)) = self.writes.get_mut(&entry.write_id) {
            *count += 1;
            return;
        }
        if self.order.len() == MAX_WRITES
            && let Some(oldest) = self.order.pop_front()
        {
            self.writes.remove(&oldest);
        }
        self.writes.insert(entry.write_id, (entry.index, 1));
        self.order.push_back(entry.write_id);
    }

    /// Everything remembered, oldest first.
    pub(crate) fn to_list(&self) -> Vec<KnownWrite> {
        let known = |id: &WriteId| self.get(*id).map(|(first, count)| KnownWrite { id: *id, first, count });
        self.order.iter().filter_map(known).collect()
    }

    /// The table that made this list.
    pub(crate) fn from_list(list: &[KnownWrite]) -> Self {
        let writes = list.iter().map(|write| (write.id, (write.first, write.count))).collect();
        Self { writes, order: list.iter().map(|write| write.id).collect() }
    }
}

/// The Almanac's history as far as a member needs it to re-execute batches: which tick was current at a batch's time.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    history: VecDeque<(u64, u64)>,
}

impl Clock {
    /// Notes that tick `seq` was committed at committee time `time_ms`.
    pub(crate) fn note(&mut self, time_ms: u64, seq: u64) {
        if self.history.len() == MAX_TICKS {
            self.history.pop_front();
        }
        self.history.push_back((time_ms, seq));
    }

    /// The tick in force for a batch of time `time_ms`, its own tick included.
    pub(crate) fn at(&self, time_ms: u64) -> Option<u64> {
        let after = self.history.partition_point(|&(noted, _)| noted <= time_ms);
        after.checked_sub(1).map(|last| self.history[last].1)
    }

    /// The ticks remembered, oldest first.
    pub(crate) fn to_list(&self) -> Vec<(u64, u64)> {
        self.history.iter().copied().collect()
    }

    /// The history that made this list.
    pub(crate) fn from_list(list: Vec<(u64, u64)>) -> Self {
        Self { history: list.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_answers_for_past_batches() {
        let mut clock = Clock::default();
        assert_eq!(clock.at(5), None);
        clock.note(10, 1);
        clock.note(20, 2);
        assert_eq!(
            (clock.at(9), clock.at(10), clock.at(19), clock.at(20), clock.at(99)),
            (None, Some(1), Some(1), Some(2), Some(2))
        );
        let again = Clock::from_list(clock.to_list());
        assert_eq!((again.at(9), again.at(19)), (None, Some(1)));
    }

    #[test]
    fn the_oldest_writes_are_forgotten_first() {
        let id = |index: u64| WriteId((u128::from(index) + 1).to_be_bytes());
        let entry =
            |index| Entry { write_id: id(index), ..coalition_log::Draft::new("n", vec![]).into_entry(index, None, 1) };
        let mut table = WriteTable::default();
        (0..MAX_WRITES as u64 + 2).for_each(|index| table.fold(&entry(index)));
        let mut again = WriteTable::from_list(&table.to_list());
        for table in [&mut table, &mut again] {
            assert_eq!((table.get(id(1)), table.get(id(2))), (None, Some((2, 1))));
            table.fold(&entry(200_000));
            assert_eq!(table.get(id(2)), None);
        }
    }
}
