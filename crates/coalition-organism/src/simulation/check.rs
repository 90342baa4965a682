//! The invariants, by name, and what was done while they were checked.

use std::collections::{BTreeMap, BTreeSet};

use coalition::EvidencePointer;
use coalition_log::{entry::WriteId, tree::Hash};

/// What must always hold. Checked after every event.
pub(super) mod invariant {
    /// No two roots are certified for one size, anywhere.
    pub(in super::super) const ONE_ROOT: &str = "one-root-per-size";
    /// What anybody takes for certified was signed by a quorum, as the harness counted by itself.
    pub(in super::super) const QUORUM: &str = "certified-by-a-quorum";
    /// Every correct member's log is a prefix of the committee's.
    pub(in super::super) const ONE_HISTORY: &str = "one-history";
    /// What was durable at a correct member stays.
    pub(in super::super) const DURABLE: &str = "durable-stays";
    /// A correct member's state is the fold of its log, and equal at equal heights.
    pub(in super::super) const FOLD: &str = "state-is-the-fold";
    /// Members answer alike about the same batch.
    pub(in super::super) const OUTCOMES: &str = "outcomes-agree";
    /// A correct member never signs two roots for one size, nor a smaller size after a larger one.
    pub(in super::super) const SIGNS_ONCE: &str = "signs-once";
    /// A correct member publishes no head that its own log does not have.
    pub(in super::super) const PROVABLE: &str = "serves-what-it-can-prove";
    /// An acknowledged write is certified.
    pub(in super::super) const ACKED_CERTIFIED: &str = "acknowledged-is-certified";
    /// An acknowledged write is in the committee's log at the stated index, and durable at enough correct members.
    pub(in super::super) const ACKED: &str = "acknowledged-for-ever";
    /// The same write id gets the same answer, and writes once.
    pub(in super::super) const IDEMPOTENT: &str = "same-write-same-answer";
    /// A reader shows certified entries only, in order, each once.
    pub(in super::super) const READER: &str = "reader-shows-the-certified";
    /// Who asks a quorum for the newest head finds everything under it that had been acknowledged before.
    pub(in super::super) const FRESH: &str = "acknowledged-is-found";
    /// Nothing follows a retirement's last entry.
    pub(in super::super) const ENDED: &str = "nothing-after-the-end";
    /// A liar whose two heads met a correct member is proven guilty there.
    pub(in super::super) const NAMED: &str = "liars-are-named";
    /// Nobody else is.
    pub(in super::super) const FRAMED: &str = "nobody-else-is-named";
    /// A correct member opens its own disk, and goes on.
    pub(in super::super) const OPENS: &str = "opens-its-own-disk";
    /// When faults end, everything certifies, every write is answered and every reader catches up.
    pub(in super::super) const LIVE: &str = "liveness";
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Violation {
    pub(super) invariant: &'static str,
    pub(super) detail: String,
}

/// How often something happened.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally(BTreeMap<&'static str, u64>);

impl Tally {
    pub(super) fn count(&mut self, what: &'static str) {
        self.add(what, 1);
    }

    pub(super) fn add(&mut self, what: &'static str, times: u64) {
        *self.0.entry(what).or_default() += times;
    }

    /// All that begins so.
    pub(super) fn all(&self, prefix: &str) -> u64 {
        self.0.iter().filter(|(what, _)| what.starts_with(prefix)).map(|(_, times)| times).sum()
    }

    pub(super) fn merge(&mut self, other: &Self) {
        other.0.iter().for_each(|(what, times)| self.add(what, *times));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().map(|(what, times)| (*what, *times))
    }
}

/// What the harness knows about one correct member's signatures and durable entries, over all of its lives.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    pub(super) signed_size: u64,
    pub(super) signed: BTreeMap<u64, Hash>,
    /// Durable entries that were compared with the committee's.
    pub(super) durable: u64,
}

/// What one life of a member was told by its peers, and whom it proved guilty.
#[derive(Clone, Debug, Default)]
pub(super) struct Met {
    heads: BTreeMap<(usize, usize, u64), BTreeSet<Hash>>,
    pub(super) contradicted: BTreeSet<(usize, usize)>,
    pub(super) proven: BTreeSet<(usize, usize)>,
}

impl Met {
    /// A verified cosignature of `signer` over (`size`, `root`) of an organism's log.
    pub(super) fn line(&mut self, organism: usize, signer: usize, size: u64, root: Hash) {
        let roots = self.heads.entry((organism, signer, size)).or_default();
        roots.insert(root);
        if roots.len() > 1 {
            self.contradicted.insert((organism, signer));
        }
    }
}

/// Answers writers were given.
#[derive(Clone, Debug, Default)]
pub(super) struct Answers(BTreeMap<(usize, WriteId), Vec<EvidencePointer>>);

impl Answers {
    /// Notes an answer; `false` when it is not the one given before.
    pub(super) fn note(&mut self, organism: usize, id: WriteId, pointers: &[EvidencePointer]) -> bool {
        self.0.entry((organism, id)).or_insert_with(|| pointers.to_vec()) == pointers
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &WriteId, &Vec<EvidencePointer>)> {
        self.0.iter().map(|((organism, id), pointers)| (*organism, id, pointers))
    }
}
