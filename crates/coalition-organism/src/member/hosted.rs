//! One organism as a member carries it: machine, log, certificates, and who waits for what.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
};

use coalition::UniqueId;
use coalition_log::{
    Context, Entry,
    checkpoint::{CertifiedCheckpoint, SignedCheckpoint},
    entry::WriteId,
    handover::HandoverProof,
    state::StateRecord,
    store::{Checked, Reader, Store, StoreError, TILE_WIDTH},
};
use coalition_tickets::Door;
use tokio::sync::{oneshot, watch};

use crate::{
    certifier::{Certifier, Progress},
    execution::{Command, Execution, NewState, Outcome},
    member::MemberError,
};

/// Callers waiting for one write.
type Waiters = BTreeMap<WriteId, Vec<oneshot::Sender<Outcome>>>;

/// An organism carried by this member.
pub(crate) struct Hosted {
    pub(crate) id: UniqueId,
    pub(crate) name: String,
    pub(crate) execution: Mutex<Execution>,
    /// The log, for appending and signing; only the batch loop and the certification loop take it.
    store: Mutex<Option<Store>>,
    /// The log, for reading.
    pub(crate) log: Reader,
    certifier: Mutex<Certifier>,
    waiters: Mutex<Waiters>,
    certified: watch::Sender<Option<CertifiedCheckpoint>>,
    /// Handovers in the log, proven or not.
    epoch: AtomicU64,
    /// Entries under the newest head this member signed.
    signed: AtomicU64,
    faults: Complaints,
    lies: Complaints,
    /// Entries kept at least; `None` keeps all.
    retain: Option<u64>,
    /// Who may write; `None` is everybody.
    pub(crate) door: Option<Arc<Door>>,
}

/// Counts what other members do wrong. Told are the first, second, fourth, eighth…: a liar must not fill the disk with
/// complaints about it.
#[derive(Default)]
pub(crate) struct Complaints(AtomicU64);

impl Complaints {
    pub(crate) fn is_worth_telling(&self) -> bool {
        (self.0.fetch_add(1, Relaxed) + 1).is_power_of_two()
    }
}

/// What executing a batch left to do.
#[derive(Debug, Default)]
pub(crate) struct Appended {
    /// Whether the log grew.
    pub(crate) grew: bool,
    /// The state to keep, if one was certified.
    pub(crate) state: Option<NewState>,
}

impl Hosted {
    pub(crate) fn new(id: UniqueId, name: String, execution: Execution, store: Store, retain: Option<u64>) -> Self {
        let log = store.reader();
        let known = newest_certificate(&log);
        let certifier = Certifier::new(log.chain().verifier().clone(), known.clone());
        let epoch = AtomicU64::new(execution.epoch());
        let signed = AtomicU64::new(store.guarded().size);
        Self {
            id,
            name,
            execution: Mutex::new(execution),
            store: Mutex::new(Some(store)),
            log,
            certifier: Mutex::new(certifier),
            waiters: Mutex::default(),
            certified: watch::Sender::new(known),
            epoch,
            signed,
            faults: Complaints::default(),
            lies: Complaints::default(),
            retain,
            door: None,
        }
    }

    pub(crate) fn with_door(self, door: Option<Arc<Door>>) -> Self {
        Self { door, ..self }
    }

    /// Handovers in the log: the epoch of the entry that comes next.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Relaxed)
    }

    /// Whether the log has its last entry.
    pub(crate) fn is_over(&self) -> bool {
        lock(&self.execution).is_over()
    }

    /// Whether the log waits for its predecessor's head.
    pub(crate) fn awaits_predecessor(&self) -> bool {
        lock(&self.execution).awaits_predecessor()
    }

    /// Entries under the newest head this member signed, in this life or before.
    pub(crate) fn signed_size(&self) -> u64 {
        self.signed.load(SeqCst)
    }

    /// Notes what is about to be signed, before anybody can have the signature.
    pub(crate) fn note_signed(&self, size: u64) {
        self.signed.fetch_max(size, SeqCst);
    }

    /// Whether every handover in the log is proven, and so known to whoever asks.
    pub(crate) fn is_epoch_proven(&self) -> bool {
        self.log.chain().epoch() >= self.epoch()
    }

    /// Watches the newest certificate.
    pub(crate) fn certified(&self) -> watch::Receiver<Option<CertifiedCheckpoint>> {
        self.certified.subscribe()
    }

    /// Entries certified so far.
    pub(crate) fn certified_size(&self) -> u64 {
        lock(&self.certifier).certified_size()
    }

    /// The newest certificate.
    pub(crate) fn certificate(&self) -> Option<CertifiedCheckpoint> {
        lock(&self.certifier).certified().cloned()
    }

    /// Executes a batch's commands for this organism and makes the entries durable.
    pub(crate) fn execute(
        &self,
        cx: &Context,
        tick: Option<u64>,
        commands: Vec<Command<'_>>,
    ) -> Result<Appended, MemberError> {
        let mut execution = lock(&self.execution);
        let done = execution
            .execute(cx, tick, commands.into_iter())
            .map_err(|source| MemberError::Machine { organism: self.name.clone(), source })?;
        let epoch = execution.epoch();
        drop(execution);
        if !done.entries.is_empty() {
            self.with_store(|store| store.append(cx.height, &done.entries))?;
        }
        // Told only now: whoever sees it finds the handover in the log.
        self.epoch.store(epoch, Relaxed);
        let mut waiters = lock(&self.waiters);
        for (id, outcome) in done.outcomes {
            for waiter in waiters.remove(&id).unwrap_or_default() {
                let _ = waiter.send(outcome.clone());
            }
        }
        Ok(Appended { grew: !done.entries.is_empty(), state: done.state })
    }

    /// Keeps a state that the log now certifies.
    pub(crate) fn keep_state(&self, state: &NewState) -> Result<(), MemberError> {
        self.with_store(|store| store.put_state(state.covers, &state.bytes))
    }

    /// Drops entries beyond the retention, if one is set: only what lies before the older of two kept states, both of them
    /// certified as far as this member's disk knows, so that a restart finds a state and all entries after it.
    pub(crate) fn prune(&self, now_ms: u64) -> Result<(), MemberError> {
        let Some(retain) = self.retain else { return Ok(()) };
        let beyond = self.log.size().saturating_sub(retain) / TILE_WIDTH * TILE_WIDTH;
        if beyond <= self.log.pruned().map_or(0, |pruned| pruned.below) {
            return Ok(());
        }
        let certified = self.log.certified().as_ref().map_or(0, CertifiedCheckpoint::size);
        let states = self.log.states().list().map_err(|source| self.store_failed(source))?;
        let [newest, older, ..] = states[..] else { return Ok(()) };
        if newest >= certified {
            return Ok(());
        }
        self.with_store(|store| store.prune(beyond.min(older), now_ms)).map(|_| ())
    }

    /// What became of a write if some batch already carried it; otherwise the answer comes when one does.
    pub(crate) fn outcome_of(&self, id: WriteId) -> Result<Outcome, oneshot::Receiver<Outcome>> {
        let (tell, told) = oneshot::channel();
        {
            let mut waiters = lock(&self.waiters);
            let waiting = waiters.entry(id).or_default();
            waiting.retain(|waiter| !waiter.is_closed());
            waiting.push(tell);
        }
        // Asked after registering: a batch executed in between has answered one way or the other.
        lock(&self.execution).settled(id).ok_or(told)
    }

    /// An entry's bytes. Those of the committee's own outlive pruning: who is away must still learn how the log ended.
    pub(crate) fn entry_bytes(&self, index: u64) -> Result<Vec<u8>, StoreError> {
        match self.log.entry_bytes(index) {
            Ok(bytes) => Ok(bytes.to_vec()),
            Err(pruned @ StoreError::Pruned { .. }) => {
                let kept = lock(&self.execution).host_entry(index).and_then(|entry| entry.encode().ok());
                kept.ok_or(pruned)
            }
            Err(error) => Err(error),
        }
    }

    /// Forgets callers that gave up.
    pub(crate) fn drop_closed_waiters(&self) {
        lock(&self.waiters).retain(|_, waiting| {
            waiting.retain(|waiter| !waiter.is_closed());
            !waiting.is_empty()
        });
    }

    /// Takes a cosignature, ours or another member's.
    pub(crate) fn cosigned(&self, note: &SignedCheckpoint) -> Result<(), MemberError> {
        for line in &note.signatures {
            let progress = lock(&self.certifier).cosigned(note.checkpoint, line.clone());
            match progress {
                Ok(Progress::Waiting) => {}
                Ok(Progress::Certified(certificate)) => self.publish(&certificate)?,
                Ok(Progress::Equivocated(proofs)) => {
                    for proof in proofs.iter().filter(|_| self.lies.is_worth_telling()) {
                        tracing::error!(organism = %self.name, %proof, "a member signed two histories; keep this proof");
                    }
                }
                Err(error) if self.faults.is_worth_telling() => {
                    tracing::warn!(organism = %self.name, %error, "dropped a cosignature that does not verify");
                }
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Takes a certificate another member sent.
    pub(crate) fn learned(&self, note: &SignedCheckpoint) -> Result<(), MemberError> {
        let news = lock(&self.certifier).learned(note);
        match news {
            Ok(Some(certificate)) => self.publish(&certificate),
            Ok(None) => Ok(()),
            Err(error) => {
                if self.faults.is_worth_telling() {
                    tracing::warn!(organism = %self.name, %error, "dropped a certificate that does not verify");
                }
                Ok(())
            }
        }
    }

    /// Publishes the newest certificate as far as this member's own log reaches it.
    pub(crate) fn publish_reached(&self) -> Result<(), MemberError> {
        let reached = lock(&self.certifier).certified_within(self.log.size()).cloned();
        reached.map_or(Ok(()), |certificate| self.publish(&certificate))
    }

    /// A certificate is published only once this member holds the entries under it, so what it serves it can prove.
    fn publish(&self, certificate: &CertifiedCheckpoint) -> Result<(), MemberError> {
        let published = self.certified.borrow().as_ref().map(CertifiedCheckpoint::size);
        if published.is_some_and(|size| certificate.size() <= size) || certificate.size() > self.log.size() {
            return Ok(());
        }
        let own = self.log.root_at(certificate.size()).map_err(|source| self.store_failed(source))?;
        if own != certificate.root() {
            return Err(MemberError::Diverged {
                organism: self.name.clone(),
                size: certificate.size(),
                own: own.to_string(),
                certified: certificate.root().to_string(),
            });
        }
        self.certified.send_if_modified(|newest| {
            let newer = newest.as_ref().is_none_or(|newest| newest.size() < certificate.size());
            if newer {
                *newest = Some(certificate.clone());
            }
            newer
        });
        Ok(())
    }

    /// Whether the whole log is certified.
    pub(crate) fn is_certified(&self) -> bool {
        self.certified.borrow().as_ref().is_some_and(|head| head.size() == self.log.size())
    }

    /// Proves the handover this log ends with, once the roster that hands over has certified it. Answers whether every
    /// handover in the log is proven.
    pub(crate) fn prove_handover(&self) -> Result<bool, MemberError> {
        let chain = self.log.chain();
        if chain.epoch() >= self.epoch() {
            return Ok(true);
        }
        let size = self.log.size();
        let Some(head) = self.certified.borrow().clone().filter(|head| head.size() == size) else { return Ok(false) };
        let failed = |source| self.store_failed(source);
        let Some(index) = size.checked_sub(1) else { return Ok(false) };
        let entry = self.log.entry_bytes(index).map_err(failed)?.to_vec();
        let path = self.log.inclusion_proof(index, size).map_err(failed)?;
        self.keep_handovers(&[HandoverProof { entry, path, checkpoint: head.note().to_string() }])?;
        Ok(self.log.chain().epoch() >= self.epoch())
    }

    /// Keeps proofs of handovers that this log has reached, and goes on with the roster they lead to.
    pub(crate) fn keep_handovers(&self, proofs: &[HandoverProof]) -> Result<(), MemberError> {
        for proof in proofs {
            self.with_store(|store| store.put_handover(proof))?;
        }
        let known = newest_certificate(&self.log).into_iter().chain(self.certified.borrow().clone());
        let known = known.max_by_key(CertifiedCheckpoint::size);
        *lock(&self.certifier) = Certifier::new(self.log.chain().verifier().clone(), known.clone());
        known.map_or(Ok(()), |known| self.publish(&known))
    }

    /// Whether the log ends where a batch does: an engine may execute what comes next. Entries fetched from others end so where a
    /// certified head does, because that is where members sign.
    pub(crate) fn ends_with_a_batch(&self) -> bool {
        let (size, chain) = (self.log.size(), self.log.chain());
        let certified = self.log.certified().is_some_and(|head| head.size() == size);
        !self.log.is_fetched() || certified || chain.last_handover().is_some_and(|head| head.size() == size)
    }

    /// How many of the newest entries are kept at least, if not all.
    pub(crate) const fn retain(&self) -> Option<u64> {
        self.retain
    }

    /// Puts a state in the place of everything folded so far, and makes the log begin with it.
    pub(crate) fn take_state(
        &self,
        checked: Checked,
        certifies: &Entry,
        state: &[u8],
        now_ms: u64,
    ) -> Result<(), MemberError> {
        let mut execution = lock(&self.execution);
        execution.resume(certifies, state).map_err(|source| MemberError::UnusableState {
            organism: self.name.clone(),
            covers: certifies.index,
            source: Box::new(source),
        })?;
        self.with_store(|store| store.finish_takeover(checked, state, now_ms))?;
        execution.restore(certifies);
        self.epoch.store(execution.epoch(), Relaxed);
        Ok(())
    }

    /// Keeps those of the proofs whose handovers this log has reached.
    pub(crate) fn keep_handovers_reached(&self, proofs: &[HandoverProof]) -> Result<(), MemberError> {
        let size = self.log.size();
        let is_reached = |proof: &&HandoverProof| Entry::decode(&proof.entry).is_ok_and(|entry| entry.index < size);
        let reached: Vec<HandoverProof> = proofs.iter().filter(is_reached).cloned().collect();
        if reached.is_empty() { Ok(()) } else { self.keep_handovers(&reached) }
    }

    /// Takes entries of the certified log that other members served and that were verified: durable first, then folded. The
    /// states certified among them are kept.
    pub(crate) fn take_entries(&self, entries: &[Entry]) -> Result<(), MemberError> {
        self.with_store(|store| store.append_fetched(entries))?;
        for entry in entries {
            let state = self.state_of(entry)?;
            let mut execution = lock(&self.execution);
            execution.restore(entry);
            self.epoch.store(execution.epoch(), Relaxed);
            drop(execution);
            state.map_or(Ok(()), |state| self.keep_state(&state))?;
        }
        Ok(())
    }

    /// The state that `entry` certifies, if it is next and certifies one.
    fn state_of(&self, entry: &Entry) -> Result<Option<NewState>, MemberError> {
        let Some(record) = StateRecord::of(entry) else { return Ok(None) };
        let covers = record.covers;
        let bytes = lock(&self.execution).state().filter(|bytes| record.check(bytes).is_ok());
        let bytes = bytes.ok_or_else(|| MemberError::OtherState { organism: self.name.clone(), covers })?;
        Ok(Some(NewState { covers, bytes }))
    }

    /// Publishes a head of the certified log that other members served and that was verified.
    pub(crate) fn take_head(&self, head: &CertifiedCheckpoint) -> Result<(), MemberError> {
        self.publish(head)?;
        self.keep_certificate()
    }

    /// Keeps the newest certificate on disk. Not on the way of every batch: one that is lost in a crash is made again.
    pub(crate) fn keep_certificate(&self) -> Result<(), MemberError> {
        let newest = self.certified.borrow().clone();
        let Some(newest) = newest else { return Ok(()) };
        self.with_store(|store| store.put_certified(&newest)).map(|_| ())
    }

    /// Appends to or signs the log.
    ///
    /// # Errors
    /// What the store says, or that the member has been stopped.
    pub(crate) fn with_store<R>(
        &self,
        act: impl FnOnce(&mut Store) -> Result<R, StoreError>,
    ) -> Result<R, MemberError> {
        let mut store = lock(&self.store);
        let store = store.as_mut().ok_or(MemberError::Ended("log"))?;
        act(store).map_err(|source| self.store_failed(source))
    }

    /// As [`Hosted::with_store`], for what others served: that the store refuses it is no failure of this member.
    pub(crate) fn with_store_unless_refused<R>(
        &self,
        act: impl FnOnce(&mut Store) -> Result<R, StoreError>,
    ) -> Result<Result<R, StoreError>, MemberError> {
        let mut refused = None;
        let done = self.with_store(|store| match act(store) {
            Err(error) if !error.is_fatal() => {
                refused = Some(error);
                Ok(None)
            }
            done => done.map(Some),
        })?;
        Ok(done.ok_or_else(|| refused.expect("it was refused if it was not done")))
    }

    /// Releases the log's directory. Readers that still hold a handle keep what they have.
    pub(crate) fn close(&self) {
        lock(&self.store).take();
    }

    pub(crate) fn store_failed(&self, source: StoreError) -> MemberError {
        MemberError::Store { organism: self.name.clone(), source: Box::new(source) }
    }
}

/// The newest certificate on disk: that of the last head kept, or of the last handover.
fn newest_certificate(log: &Reader) -> Option<CertifiedCheckpoint> {
    let handover = log.chain().last_handover().cloned();
    log.certified().into_iter().chain(handover).max_by_key(CertifiedCheckpoint::size)
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
