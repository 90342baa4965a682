//! Commands that wait to be ordered, and the memory of those that recently were. Pure: no clock, no I/O.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use bytes::Bytes;

use crate::block::BlockLimits;
use crate::command::{CommandId, command_id};
use crate::frames::framed_len;
use crate::pacing::Waiting;

/// Heights whose command ids are remembered.
pub(crate) const RECENT_HEIGHTS: usize = 1_024;
/// Command ids remembered at most.
const RECENT_IDS: usize = 65_536;
/// First wait before a command is gossiped again; doubles up to [`MAX_REGOSSIP_MS`].
const REGOSSIP_MS: u64 = 1_000;
const MAX_REGOSSIP_MS: u64 = 8_000;

/// Who a waiting command came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This process: kept and gossiped until ordered.
    Local,
    /// The member with this roster index.
    Member(usize),
}

/// What became of a command offered to the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Added {
    /// It is new and waits now.
    New,
    /// It waits already.
    Pending,
    /// It was ordered recently.
    Ordered,
    /// Its origin has used up its share.
    Full,
}

#[derive(Debug)]
struct Entry {
    id: CommandId,
    command: Bytes,
    origin: Origin,
    gossiped: u32,
    due_ms: u64,
}

/// See the module text. Sequence numbers keep arrival order.
#[derive(Debug)]
pub(crate) struct Mempool {
    max_local: usize,
    max_per_member: usize,
    entries: BTreeMap<u64, Entry>,
    by_id: HashMap<CommandId, u64>,
    /// Local entries by when they are to be gossiped next.
    gossip: BTreeSet<(u64, u64)>,
    next: u64,
    local_bytes: usize,
    member_bytes: Vec<usize>,
    recent: Recent,
}

/// Ids of the commands of the last ordered heights, contiguous up to the tip.
#[derive(Debug, Default)]
struct Recent {
    heights: VecDeque<(u64, Vec<CommandId>)>,
    ids: HashMap<CommandId, u32>,
    count: usize,
}

impl Mempool {
    /// `max_bytes` for local commands, and as much for those of all `members` together.
    pub(crate) fn new(members: usize, max_bytes: usize) -> Self {
        Self {
            max_local: max_bytes,
            max_per_member: max_bytes / members.max(1),
            entries: BTreeMap::new(),
            by_id: HashMap::new(),
            gossip: BTreeSet::new(),
            next: 0,
            local_bytes: 0,
            member_bytes: vec![0; members],
            recent: Recent::default(),
        }
    }

    /// Offers a command. A local offer of a command known from a member makes it local.
    pub(crate) fn add(&mut self, command: Bytes, origin: Origin) -> (CommandId, Added) {
        let id = command_id(&command);
        if self.recent.ids.contains_key(&id) {
            return (id, Added::Ordered);
        }
        if let Some(seq) = self.by_id.get(&id).copied() {
            if origin == Origin::Local {
                self.adopt(seq);
            }
            return (id, Added::Pending);
        }
        let (used, max) = match origin {
            Origin::Local => (self.local_bytes, self.max_local),
            Origin::Member(i) => (self.member_bytes.get(i).copied().unwrap_or(usize::MAX), self.max_per_member),
        };
        if used.saturating_add(framed_len(command.len())) > max {
            return (id, Added::Full);
        }
        let seq = self.next;
        self.next += 1;
        *self.bytes_of(origin) += framed_len(command.len());
        if origin == Origin::Local {
            self.gossip.insert((0, seq));
        }
        self.by_id.insert(id, seq);
        self.entries.insert(seq, Entry { id, command, origin, gossiped: 0, due_ms: 0 });
        (id, Added::New)
    }

    fn bytes_of(&mut self, origin: Origin) -> &mut usize {
        match origin {
            Origin::Local => &mut self.local_bytes,
            Origin::Member(i) => &mut self.member_bytes[i],
        }
    }

    fn adopt(&mut self, seq: u64) {
        let Some(entry) = self.entries.get_mut(&seq) else { return };
        let (origin, len) = (entry.origin, framed_len(entry.command.len()));
        if origin == Origin::Local {
            return;
        }
        entry.origin = Origin::Local;
        entry.due_ms = 0;
        *self.bytes_of(origin) -= len;
        self.local_bytes += len;
        self.gossip.insert((0, seq));
    }

    /// What waits that is not in `exclude`, whose commands have `excluded_bytes` together.
    pub(crate) fn waiting(&self, exclude: &HashSet<CommandId>, excluded_bytes: usize, limits: &BlockLimits) -> Waiting {
        let commands = self.by_id.len().saturating_sub(exclude.len());
        let bytes = self.member_bytes.iter().sum::<usize>() + self.local_bytes;
        if commands >= limits.max_commands || bytes.saturating_sub(excluded_bytes) >= limits.max_bytes {
            return Waiting::FullBatch;
        }
        let some = commands > 0 || self.entries.values().any(|e| !exclude.contains(&e.id));
        if some { Waiting::Commands } else { Waiting::Nothing }
    }

    /// The oldest waiting commands that are not in `exclude` and fit one batch.
    pub(crate) fn select(&self, exclude: &HashSet<CommandId>, limits: &BlockLimits) -> Vec<Bytes> {
        let mut bytes = 0;
        self.entries
            .values()
            .filter(|e| !exclude.contains(&e.id))
            .take(limits.max_commands)
            .take_while(|e| {
                bytes += framed_len(e.command.len());
                bytes <= limits.max_bytes
            })
            .map(|e| e.command.clone())
            .collect()
    }

    /// Notes that the batch of `height`, which must follow the last one noted, ordered `ids`.
    pub(crate) fn ordered(&mut self, height: u64, ids: Vec<CommandId>) {
        for id in &ids {
            self.remove(id);
        }
        self.recent.push(height, ids);
    }

    /// Notes an older batch: on a restart the newest heights are read back, newest first.
    pub(crate) fn seed_older(&mut self, height: u64, ids: Vec<CommandId>) {
        for id in &ids {
            self.remove(id);
        }
        self.recent.seed(height, ids);
    }

    fn remove(&mut self, id: &CommandId) {
        let Some(seq) = self.by_id.remove(id) else { return };
        if let Some(entry) = self.entries.remove(&seq) {
            *self.bytes_of(entry.origin) -= framed_len(entry.command.len());
            self.gossip.remove(&(entry.due_ms, seq));
        }
    }

    /// Height up to which [`Self::ordered`] was called; 0 before the first.
    pub(crate) fn tip(&self) -> u64 {
        self.recent.heights.back().map_or(0, |(h, _)| *h)
    }

    /// When the next local command is to be gossiped.
    pub(crate) fn gossip_due_ms(&self) -> Option<u64> {
        self.gossip.first().map(|(due, _)| *due)
    }

    /// Takes the local commands due by `now_ms`, at most `max_bytes` of them (but at least one), and schedules
    /// their repetition.
    pub(crate) fn take_gossip(&mut self, now_ms: u64, max_bytes: usize) -> Vec<Bytes> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some((due, seq)) = self.gossip.first().copied().filter(|(due, _)| *due <= now_ms) {
            let Some(entry) = self.entries.get_mut(&seq) else {
                self.gossip.remove(&(due, seq));
                continue;
            };
            bytes += framed_len(entry.command.len());
            if bytes > max_bytes && !taken.is_empty() {
                break;
            }
            taken.push(entry.command.clone());
            self.gossip.remove(&(due, seq));
            let wait = (REGOSSIP_MS << entry.gossiped.min(3)).min(MAX_REGOSSIP_MS);
            entry.gossiped += 1;
            entry.due_ms = now_ms.saturating_add(wait);
            self.gossip.insert((entry.due_ms, seq));
        }
        taken
    }

    /// Number of waiting commands, of all origins.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of waiting commands of this process.
    pub(crate) fn local_bytes(&self) -> usize {
        self.local_bytes
    }
}

impl Recent {
    fn push(&mut self, height: u64, ids: Vec<CommandId>) {
        if self.heights.back().is_some_and(|(last, _)| last + 1 != height) {
            *self = Self::default();
        }
        self.note(&ids);
        self.heights.push_back((height, ids));
        while self.heights.len() > 1 && (self.heights.len() > RECENT_HEIGHTS || self.count > RECENT_IDS) {
            let Some((_, old)) = self.heights.pop_front() else { return };
            self.count -= old.len();
            for id in old {
                if let Some(n) = self.ids.get_mut(&id) {
                    *n -= 1;
                    if *n == 0 {
                        self.ids.remove(&id);
                    }
                }
            }
        }
    }

    fn seed(&mut self, height: u64, ids: Vec<CommandId>) {
        let fits = self.heights.len() < RECENT_HEIGHTS && self.count + ids.len() <= RECENT_IDS;
        let adjacent = self.heights.front().is_none_or(|(first, _)| height + 1 == *first);
        if fits && adjacent {
            self.note(&ids);
            self.heights.push_front((height, ids));
        }
    }

    fn note(&mut self, ids: &[CommandId]) {
        self.count += ids.len();
        for id in ids {
            *self.ids.entry(*id).or_insert(0) += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: BlockLimits = BlockLimits { max_bytes: 100, max_commands: 4, max_command_bytes: 50 };

    fn pool() -> Mempool {
        Mempool::new(4, 400)
    }

    fn command(n: u8) -> Bytes {
        Bytes::from(vec![n; 10])
    }

    fn none() -> HashSet<CommandId> {
        HashSet::new()
    }

    #[test]
    fn arrival_order_and_limits() {
        let mut p = pool();
        for n in 0..6 {
            assert_eq!(p.add(command(n), Origin::Member(usize::from(n % 4))).1, Added::New);
        }
        assert_eq!(p.select(&none(), &LIMITS), (0..4).map(command).collect::<Vec<_>>());
        let exclude = HashSet::from([command_id(&command(0)), command_id(&command(2))]);
        assert_eq!(p.select(&exclude, &LIMITS), [1, 3, 4, 5].map(command).to_vec());
        let narrow = BlockLimits { max_bytes: 30, ..LIMITS };
        assert_eq!(p.select(&none(), &narrow), [0, 1].map(command).to_vec());
    }

    #[test]
    fn shares_are_kept_apart() {
        let mut p = pool();
        let full = |p: &mut Mempool, origin, from: u8| {
            (from..).take_while(|n| p.add(command(*n), origin).1 == Added::New).count()
        };
        // 14 bytes each: 400 for this process, 100 for each member.
        assert_eq!(full(&mut p, Origin::Member(1), 0), 7);
        assert_eq!(full(&mut p, Origin::Member(2), 50), 7);
        assert_eq!(full(&mut p, Origin::Local, 100), 28);
        assert_eq!(p.local_bytes(), 28 * 14);
        assert_eq!(p.add(command(250), Origin::Member(9)).1, Added::Full, "no such member");
    }

    #[test]
    fn ordered_commands_leave_and_are_remembered() {
        let mut p = pool();
        p.add(command(1), Origin::Local);
        p.add(command(2), Origin::Member(0));
        p.ordered(1, vec![command_id(&command(1)), command_id(&command(9))]);
        assert_eq!((p.len(), p.tip(), p.local_bytes()), (1, 1, 0));
        assert_eq!(p.add(command(1), Origin::Local).1, Added::Ordered);
        assert_eq!(p.add(command(9), Origin::Member(3)).1, Added::Ordered);
        assert_eq!(p.gossip_due_ms(), None);
        assert_eq!(p.waiting(&none(), 0, &LIMITS), Waiting::Commands);
        assert_eq!(p.waiting(&HashSet::from([command_id(&command(2))]), 0, &LIMITS), Waiting::Nothing);
    }

    #[test]
    fn a_full_batch_is_told_from_a_few_commands() {
        let mut p = pool();
        assert_eq!(p.waiting(&none(), 0, &LIMITS), Waiting::Nothing);
        (0..3).for_each(|n| assert_eq!(p.add(command(n), Origin::Local).1, Added::New));
        assert_eq!(p.waiting(&none(), 0, &LIMITS), Waiting::Commands);
        let small = BlockLimits { max_bytes: 30, ..LIMITS };
        assert_eq!(p.waiting(&none(), 0, &small), Waiting::FullBatch, "by bytes");
        let first = HashSet::from([command_id(&command(0))]);
        assert_eq!(p.waiting(&first, 14, &small), Waiting::Commands, "less those on their way");
        p.add(command(3), Origin::Member(1));
        assert_eq!(p.waiting(&none(), 0, &LIMITS), Waiting::FullBatch, "by number");
    }

    #[test]
    fn memory_of_ordered_commands_is_bounded() {
        let mut p = pool();
        for height in 1..=(RECENT_HEIGHTS as u64 + 5) {
            p.ordered(height, vec![command_id(&height.to_be_bytes())]);
        }
        let offer =
            |p: &mut Mempool, height: u64| p.add(Bytes::copy_from_slice(&height.to_be_bytes()), Origin::Local).1;
        assert_eq!(offer(&mut p, 5), Added::New, "forgotten");
        assert_eq!(offer(&mut p, 6), Added::Ordered);
    }

    #[test]
    fn seeding_goes_backwards_and_cleans_up() {
        let mut p = pool();
        p.add(command(7), Origin::Local);
        p.seed_older(20, vec![command_id(&command(7))]);
        assert_eq!((p.tip(), p.len()), (20, 0));
        p.ordered(21, vec![]);
        p.seed_older(19, vec![command_id(&command(6))]);
        p.seed_older(17, vec![command_id(&command(4))]);
        assert_eq!(p.add(command(6), Origin::Local).1, Added::Ordered);
        assert_eq!(p.add(command(4), Origin::Local).1, Added::New, "not adjacent, so not taken");
    }

    #[test]
    fn gossip_repeats_with_growing_pauses() {
        let mut p = pool();
        p.add(command(1), Origin::Local);
        p.add(command(2), Origin::Member(2));
        assert_eq!(p.gossip_due_ms(), Some(0));
        assert_eq!(p.take_gossip(5_000, 1_000), vec![command(1)], "only this process's own");
        assert!(p.take_gossip(5_000, 1_000).is_empty());
        let mut waits = Vec::new();
        let mut now = 5_000;
        for _ in 0..5 {
            let due = p.gossip_due_ms().unwrap();
            waits.push(due - now);
            now = due;
            assert_eq!(p.take_gossip(now, 1_000).len(), 1);
        }
        assert_eq!(waits, [1_000, 2_000, 4_000, 8_000, 8_000]);
        // A local submission of a command known from a member makes it this process's own.
        assert_eq!(p.add(command(2), Origin::Local).1, Added::Pending);
        assert_eq!(p.take_gossip(now, 1_000), vec![command(2)]);
    }

    #[test]
    fn gossip_fits_frames() {
        let mut p = pool();
        for n in 0..5 {
            p.add(command(n), Origin::Local);
        }
        assert_eq!(p.take_gossip(1, 28).len(), 2);
        assert_eq!(p.take_gossip(1, 1).len(), 1, "one always goes");
        assert_eq!(p.take_gossip(1, 1_000).len(), 2);
    }

    proptest! {
        /// Whatever happens, the accounts match the content.
        #[test]
        fn accounts_match(steps in proptest::collection::vec((0u8..4, 0u8..30, 0usize..5), 0..200)) {
            let mut p = pool();
            let mut height = 0;
            for (what, n, who) in steps {
                match what {
                    0 => _ = p.add(command(n), Origin::Local),
                    1 => _ = p.add(command(n), Origin::Member(who)),
                    2 => { height += 1; p.ordered(height, vec![command_id(&command(n))]); }
                    _ => drop(p.take_gossip(u64::from(n) * 100, 30)),
                }
                let local = p.entries.values().filter(|e| e.origin == Origin::Local).count();
                prop_assert_eq!(p.local_bytes, local * 14);
                prop_assert_eq!(p.gossip.len(), local);
                prop_assert_eq!(p.by_id.len(), p.entries.len());
                for (i, bytes) in p.member_bytes.iter().enumerate() {
                    let count = p.entries.values().filter(|e| e.origin == Origin::Member(i)).count();
                    prop_assert_eq!(*bytes, count * 14);
                }
            }
        }
    }
}
