//! The core of every reader: it accepts heads only if certified and consistent, and releases entries only if verified.
//!
//! Nothing here trusts the member that serves, and nothing here does I/O. Memory is the frontier of the tree (64 hashes
//! at most) and the last certified head. A driver pulls a head and the proof from [`Follower::head_size`] to it, then
//! ranges of entries from [`Follower::next_index`], each with the proof from the range's end to the head.

use coalition::{Roster, UniqueId};

use crate::checkpoint::{CertifiedCheckpoint, CertifyError, NoteError, RosterError, SignedCheckpoint};
use crate::entry::{Entry, EntryError, leaf_hash};
use crate::equivocation::Equivocation;
use crate::handover::{HANDOVER_KIND, HandoverError, HandoverProof, RosterChain};
use crate::state::StateRecord;
use crate::tree::{Frontier, Hash, ProofError, verify_consistency, verify_inclusion};

/// Why a reader refuses what it was served. The reader's state is unchanged by every one of these.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FollowError {
    /// The roster cannot verify anything.
    #[error("the roster cannot verify checkpoints")]
    Roster(#[source] RosterError),
    /// The head is of another organism.
    #[error("the head is of organism {found}, this reader follows {expected}")]
    OtherOrganism {
        /// Organism in the head.
        found: UniqueId,
        /// Organism this reader follows.
        expected: UniqueId,
    },
    /// The head is not certified by the roster.
    #[error("the head is not certified")]
    NotCertified(#[source] CertifyError),
    /// Two certified heads of one size have different roots: the committee has forked. Keep and publish the proofs.
    #[error("the committee certified two histories: at size {size} root {accepted} and root {offered}")]
    Fork {
        /// Size both heads have.
        size: u64,
        /// Root this reader had accepted.
        accepted: Hash,
        /// Root now offered.
        offered: Hash,
        /// One transferable proof for each member that signed both.
        proofs: Vec<Equivocation>,
    },
    /// The proof does not connect the last accepted head with the offered one: the server's fault, or a fork.
    #[error("no proof that the head of size {offered} extends the accepted one of size {accepted}")]
    Inconsistent {
        /// Size of the accepted head.
        accepted: u64,
        /// Size of the offered head.
        offered: u64,
        /// Why the proof does not hold.
        #[source]
        source: ProofError,
    },
    /// The range does not start where this reader stands.
    #[error("entries from {from} on were served, the next one needed is {next}")]
    WrongStart {
        /// Index of the first served entry.
        from: u64,
        /// Index of the entry this reader needs next.
        next: u64,
    },
    /// The range goes beyond the certified head.
    #[error("entries up to {end} were served, only {certified} are certified")]
    BeyondHead {
        /// End of the range, exclusive.
        end: u64,
        /// Size of the certified head.
        certified: u64,
    },
    /// The entries are not those of the certified tree.
    #[error("the entries from {from} to {end} are not those certified")]
    NotTheEntries {
        /// Index of the first.
        from: u64,
        /// End of the range, exclusive.
        end: u64,
        /// Where the recomputed tree departs from the certified one.
        #[source]
        source: ProofError,
    },
    /// A certified leaf is not an entry this build can read.
    #[error("certified leaf {index} cannot be read as an entry")]
    Entry {
        /// Position in the log.
        index: u64,
        /// What is wrong with it.
        #[source]
        source: EntryError,
    },
    /// A certified entry names another position than its own.
    #[error("certified leaf {position} says it is entry {index}")]
    Misplaced {
        /// Position in the log.
        position: u64,
        /// Index inside the entry.
        index: u64,
    },
    /// A handover that was served does not hold.
    #[error("a handover of the roster does not hold")]
    Handover(#[source] HandoverError),
    /// The accepted head turned out to lie behind a handover, and its roster has not certified it yet: the server that
    /// gave it kept the handover to itself, or the committee has forked. A head that is certified settles which.
    #[error(
        "the accepted head of {size} entries is behind a handover, and not certified by the roster of epoch {epoch}"
    )]
    Unconfirmed {
        /// Size of the accepted head.
        size: u64,
        /// The epoch whose roster has to certify it.
        epoch: u64,
    },
    /// The certified log has another entry where a handover is proven, or a handover that was not proven.
    #[error("entry {index} is not the handover that was proven there")]
    NotTheHandover {
        /// Position in the log.
        index: u64,
    },
    /// What was offered as the entry that certifies a state is none.
    #[error("entry {index} was offered as one that certifies a state, and is none")]
    NotAState {
        /// Index inside the entry.
        index: u64,
    },
    /// The entry that is to certify a state is not in the certified log.
    #[error("the state of entry {index} is not certified")]
    UncertifiedState {
        /// Index inside the entry.
        index: u64,
        /// Why it does not follow.
        #[source]
        source: ProofError,
    },
    /// The tree offered with a state is not that of the certified log.
    #[error("the tree offered for {covers} entries is not the certified one")]
    NotTheTree {
        /// Entries the state covers.
        covers: u64,
        /// Why it does not follow.
        #[source]
        source: ProofError,
    },
    /// The state is behind what the reader has.
    #[error("the state covers {covers} entries, this reader has {next}")]
    StateBehind {
        /// Entries the state covers.
        covers: u64,
        /// Index of the entry this reader needs next.
        next: u64,
    },
    /// A saved state does not fit this organism and roster.
    #[error("the reader's saved state is unusable: {reason}; delete it to read the log from its start")]
    Saved {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The head in a saved state is malformed.
    #[error("the head in the reader's saved state is malformed")]
    SavedNote(#[source] NoteError),
}

/// What accepting a head changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadOutcome {
    /// The reader's head moved forward.
    Advanced {
        /// Size before.
        from: u64,
        /// Size now.
        to: u64,
    },
    /// The head is the one already accepted.
    Unchanged,
    /// The head is certified and older than the accepted one: the server lags. Nothing changed.
    Older,
}

/// What a reader keeps across restarts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The tree over all released entries.
    pub frontier: Frontier,
    /// The last accepted head as a signed note; `None` before the first.
    pub head: Option<String>,
    /// The handovers known, in order.
    pub handovers: Vec<HandoverProof>,
}

/// What somebody serves to a reader that wants to start from a certified state, beside a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateOffer<'a> {
    /// The encoded entry that certifies the state.
    pub entry: &'a [u8],
    /// Its inclusion path under the head.
    pub path: &'a [Hash],
    /// The tree of the entries the state covers: roots of its maximal perfect subtrees, largest first.
    pub peaks: &'a [Hash],
    /// Consistency proof from that tree to the head.
    pub proof: &'a [Hash],
}

/// A state that the committee certified, and where a reader stands that takes it. Exists only as the result of verification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateStart {
    record: StateRecord,
    frontier: Frontier,
    handovers: Vec<Hash>,
}

impl StateStart {
    /// Digest and length the state's bytes must have.
    #[must_use]
    pub const fn record(&self) -> &StateRecord {
        &self.record
    }

    /// The tree of the entries it covers.
    #[must_use]
    pub const fn frontier(&self) -> &Frontier {
        &self.frontier
    }

    /// Leaf hashes of the handovers proven among the entries it covers: those the state has to speak of.
    #[must_use]
    pub fn handovers(&self) -> &[Hash] {
        &self.handovers
    }
}

/// A reader of one organism's log.
#[derive(Clone, Debug)]
pub struct Follower {
    chain: RosterChain,
    head: Option<CertifiedCheckpoint>,
    /// The head was accepted before a handover below it was known, and shows no quorum of the roster after it.
    is_unconfirmed: bool,
    frontier: Frontier,
}

impl Follower {
    /// A reader that has seen nothing of the log of `organism`.
    ///
    /// # Errors
    /// [`FollowError::Roster`].
    pub fn new(organism: UniqueId, roster: &Roster) -> Result<Self, FollowError> {
        let chain = RosterChain::new(organism, roster).map_err(FollowError::Roster)?;
        Ok(Self { chain, head: None, is_unconfirmed: false, frontier: Frontier::new() })
    }

    /// A reader that goes on where a former one [`Follower::save`]d.
    ///
    /// # Errors
    /// When the saved state is not of this organism and roster, or contradicts itself.
    pub fn resume(organism: UniqueId, roster: &Roster, saved: Saved) -> Result<Self, FollowError> {
        let mut follower = Self::new(organism, roster)?;
        let wrong = |reason| FollowError::Saved { reason };
        follower.chain.extend_all(&saved.handovers).map_err(FollowError::Handover)?;
        if let Some(text) = &saved.head {
            let note = SignedCheckpoint::parse(text.as_bytes()).map_err(FollowError::SavedNote)?;
            // What was saved before the handover below it was confirmed is not confirmed by a restart.
            let formerly = follower.chain.certify_formerly(&note);
            (follower.head, follower.is_unconfirmed) = match follower.certify(&note) {
                Ok(head) => (Some(head), false),
                Err(FollowError::NotCertified(_)) if formerly.is_some() => (formerly, true),
                Err(error) => return Err(error),
            };
        }
        if saved.frontier.peaks().len() != saved.frontier.size().count_ones() as usize {
            return Err(wrong("its tree has not one peak for each set bit of its size"));
        }
        let (size, root) = follower.head_state();
        if saved.frontier.size() > size {
            return Err(wrong("its entries go beyond its head"));
        }
        if saved.frontier.size() == size && saved.frontier.root() != root {
            return Err(wrong("its entries are not those of its head"));
        }
        follower.frontier = saved.frontier;
        Ok(follower)
    }

    /// What to keep across a restart.
    pub fn save(&self) -> Saved {
        let head = self.head.as_ref().map(|head| head.note().to_string());
        Saved { frontier: self.frontier.clone(), head, handovers: self.chain.proofs(0, u64::MAX) }
    }

    /// Who certifies, as far as this reader knows.
    pub fn chain(&self) -> &RosterChain {
        &self.chain
    }

    /// Takes the proofs of handovers that somebody served, in order; known ones are skipped. They come before the heads
    /// that the new roster certified.
    ///
    /// # Errors
    /// When one does not hold, or proves a fork. Nothing changes then.
    pub fn accept_handovers(&mut self, proofs: &[HandoverProof]) -> Result<(), FollowError> {
        let known = self.chain.epoch();
        let (size, root) = self.head_state();
        let mut chain = self.chain.clone();
        for proof in proofs {
            chain.extend(proof).map_err(FollowError::Handover)?;
            if let Some(ended) = chain.last_handover().filter(|ended| ended.size() == size && ended.root() != root) {
                return Err(self.fork(ended));
            }
        }
        if chain.epoch() > known {
            self.chain = chain;
            // The members of two rosters that overlap can be a quorum of both: only then does the head stand.
            self.is_unconfirmed = self.head.as_ref().is_some_and(|head| self.chain.certify(head.note()).is_err());
        }
        Ok(())
    }

    /// The last accepted head.
    pub fn head(&self) -> Option<&CertifiedCheckpoint> {
        self.head.as_ref()
    }

    /// Size of the last accepted head, 0 before the first: where the proof for the next head must start.
    pub fn head_size(&self) -> u64 {
        self.head_state().0
    }

    /// Index of the next entry to release; everything below it has been released.
    pub fn next_index(&self) -> u64 {
        self.frontier.size()
    }

    /// Takes a head that somebody served. `proof` is the consistency proof between [`Follower::head_size`] and the
    /// offered size; it is not looked at unless the offered head is larger.
    ///
    /// # Errors
    /// When the head is not certified, does not extend the accepted one, or proves a fork.
    pub fn accept_head(&mut self, note: &SignedCheckpoint, proof: &[Hash]) -> Result<HeadOutcome, FollowError> {
        let offered = self.certify(note)?;
        let (size, root) = self.head_state();
        if offered.size() < size {
            return Ok(HeadOutcome::Older);
        }
        if offered.size() == size {
            if offered.root() != root {
                return Err(self.fork(&offered));
            }
            if self.head.is_none() || self.is_unconfirmed {
                self.head = Some(offered);
                self.is_unconfirmed = false;
            }
            return Ok(HeadOutcome::Unchanged);
        }
        verify_consistency(size, &root, offered.size(), &offered.root(), proof)
            .map_err(|source| FollowError::Inconsistent { accepted: size, offered: offered.size(), source })?;
        let to = offered.size();
        self.head = Some(offered);
        self.is_unconfirmed = false;
        Ok(HeadOutcome::Advanced { from: size, to })
    }

    /// Takes encoded entries that somebody served, from index `from` on, and releases them if they are those of the
    /// certified log. `proof` is the consistency proof between the range's end and [`Follower::head_size`]; it is empty
    /// when the range ends at the head.
    ///
    /// # Errors
    /// When the range does not fit, or is not the certified one. Nothing is released then.
    pub fn accept_entries<B: AsRef<[u8]>>(
        &mut self,
        from: u64,
        entries: &[B],
        proof: &[Hash],
    ) -> Result<Vec<Entry>, FollowError> {
        let next = self.frontier.size();
        if from != next {
            return Err(FollowError::WrongStart { from, next });
        }
        let (certified, root) = self.confirmed_state()?;
        let end = next.saturating_add(entries.len() as u64);
        if end > certified {
            return Err(FollowError::BeyondHead { end, certified });
        }
        let mut frontier = self.frontier.clone();
        entries.iter().for_each(|entry| frontier.push(leaf_hash(entry.as_ref())));
        verify_consistency(end, &frontier.root(), certified, &root, proof)
            .map_err(|source| FollowError::NotTheEntries { from, end, source })?;
        let released = entries
            .iter()
            .zip(next..)
            .map(|(bytes, position)| self.read_entry(bytes.as_ref(), position))
            .collect::<Result<_, _>>()?;
        self.frontier = frontier;
        Ok(released)
    }

    /// Checks what is offered as a certified state against the accepted head. The reader stays where it is until it has the
    /// state's bytes, and then takes [`Follower::start_from`].
    ///
    /// # Errors
    /// When the state is not certified by the accepted head, or is behind this reader.
    pub fn accept_state(&self, offer: &StateOffer<'_>) -> Result<StateStart, FollowError> {
        let (certified, root) = self.confirmed_state()?;
        let entry = Entry::decode(offer.entry).map_err(|source| FollowError::Entry { index: certified, source })?;
        let index = entry.index;
        let record = StateRecord::of(&entry).ok_or(FollowError::NotAState { index })?;
        verify_inclusion(&leaf_hash(offer.entry), index, certified, offer.path, &root)
            .map_err(|source| FollowError::UncertifiedState { index, source })?;
        let (covers, next) = (record.covers, self.frontier.size());
        if covers < next {
            return Err(FollowError::StateBehind { covers, next });
        }
        let wrong = |source| FollowError::NotTheTree { covers, source };
        let peaks = ProofError::WrongLength { hashes: offer.peaks.len() };
        let frontier = Frontier::from_peaks(covers, offer.peaks.to_vec()).ok_or_else(|| wrong(peaks))?;
        verify_consistency(covers, &frontier.root(), certified, &root, offer.proof).map_err(wrong)?;
        Ok(StateStart { record, frontier, handovers: self.chain.leaves_below(covers) })
    }

    /// Goes on behind a certified state, whose bytes the caller has checked and taken over.
    pub fn start_from(&mut self, start: StateStart) {
        self.frontier = start.frontier;
    }

    fn head_state(&self) -> (u64, Hash) {
        self.head.as_ref().map_or((0, Hash::empty_root()), |head| (head.size(), head.root()))
    }

    /// The accepted head, if something may follow from it.
    fn confirmed_state(&self) -> Result<(u64, Hash), FollowError> {
        let (size, root) = self.head_state();
        if self.is_unconfirmed {
            return Err(FollowError::Unconfirmed { size, epoch: self.chain.epoch_at(size) });
        }
        Ok((size, root))
    }

    fn certify(&self, note: &SignedCheckpoint) -> Result<CertifiedCheckpoint, FollowError> {
        let expected = self.chain.organism();
        if note.checkpoint.organism != expected {
            return Err(FollowError::OtherOrganism { found: note.checkpoint.organism, expected });
        }
        self.chain.certify(note).map_err(FollowError::NotCertified)
    }

    fn fork(&self, offered: &CertifiedCheckpoint) -> FollowError {
        let (size, accepted) = self.head_state();
        let verifier = self.chain.verifier_at(size);
        let ours = self.head.as_ref().map(CertifiedCheckpoint::note);
        let proofs = ours.map(|ours| Equivocation::between(verifier, ours, offered.note())).unwrap_or_default();
        FollowError::Fork { size, accepted, offered: offered.root(), proofs }
    }

    fn read_entry(&self, bytes: &[u8], position: u64) -> Result<Entry, FollowError> {
        let entry = Entry::decode(bytes).map_err(|source| FollowError::Entry { index: position, source })?;
        if entry.index != position {
            return Err(FollowError::Misplaced { position, index: entry.index });
        }
        // Its own proof may still come, if nothing behind it is certified yet.
        let is_handover = entry.kind == HANDOVER_KIND;
        let proven = self.chain.leaf_at(position);
        let is_open = is_handover && proven.is_none() && self.head_size() == position + 1;
        if proven != is_handover.then(|| leaf_hash(bytes)) && !is_open {
            return Err(FollowError::NotTheHandover { index: position });
        }
        Ok(entry)
    }
}
