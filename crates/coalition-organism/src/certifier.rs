//! Collecting cosignatures until a quorum stands behind one head. Pure.
//!
//! Every member signs at the same batch boundaries, so cosignatures for one size meet. What is kept per member is
//! bounded: a member that signs nonsense crowds out only its own lines.

use std::collections::{BTreeMap, VecDeque};

use coalition_log::{
    checkpoint::{CertifiedCheckpoint, CertifyError, Checkpoint, RosterVerifier, SignatureLine, SignedCheckpoint},
    equivocation::Equivocation,
    tree::Hash,
};

/// Heads remembered per member while they wait for a quorum.
const WAITING_PER_MEMBER: usize = 64;

/// What a cosignature led to.
#[derive(Debug)]
pub(crate) enum Progress {
    /// Noted, or already known.
    Waiting,
    /// The head now has a quorum.
    Certified(CertifiedCheckpoint),
    /// The signer had signed another root for the same size: proof of its guilt.
    Equivocated(Vec<Equivocation>),
}

/// One organism's cosignatures.
pub(crate) struct Certifier {
    verifier: RosterVerifier,
    heads: BTreeMap<(u64, Hash), BTreeMap<usize, SignatureLine>>,
    waiting: Vec<VecDeque<(u64, Hash)>>,
    certified: Option<CertifiedCheckpoint>,
}

impl Certifier {
    /// Starts from the newest certificate known.
    pub(crate) fn new(verifier: RosterVerifier, certified: Option<CertifiedCheckpoint>) -> Self {
        let waiting = vec![VecDeque::new(); verifier.members()];
        Self { verifier, heads: BTreeMap::new(), waiting, certified }
    }

    /// The newest certificate.
    pub(crate) const fn certified(&self) -> Option<&CertifiedCheckpoint> {
        self.certified.as_ref()
    }

    /// Entries certified so far.
    pub(crate) fn certified_size(&self) -> u64 {
        self.certified.as_ref().map_or(0, CertifiedCheckpoint::size)
    }

    /// Takes one member's signed checkpoint, ours included.
    ///
    /// # Errors
    /// [`CertifyError`] when the line is not a member's valid cosignature.
    pub(crate) fn cosigned(&mut self, checkpoint: Checkpoint, line: SignatureLine) -> Result<Progress, CertifyError> {
        let member = self.verifier.verify_line(&checkpoint, &line)?;
        if !self.is_news(checkpoint.size) {
            return Ok(Progress::Waiting);
        }
        let head = (checkpoint.size, checkpoint.root);
        if let Some(proofs) = self.contradiction(member, &checkpoint, &line) {
            return Ok(Progress::Equivocated(proofs));
        }
        if self.heads.entry(head).or_default().insert(member, line).is_none() {
            self.remember(member, head);
        }
        let lines = &self.heads[&head];
        if lines.len() < self.verifier.quorum() {
            return Ok(Progress::Waiting);
        }
        let note = SignedCheckpoint { checkpoint, signatures: lines.values().cloned().collect() };
        let certified = self.verifier.certify(&note)?;
        self.accept(certified.clone());
        Ok(Progress::Certified(certified))
    }

    /// Takes a certificate another member assembled; `true` when it is news.
    ///
    /// # Errors
    /// [`CertifyError`] when it is none.
    pub(crate) fn learned(&mut self, note: &SignedCheckpoint) -> Result<Option<CertifiedCheckpoint>, CertifyError> {
        if !self.is_news(note.checkpoint.size) {
            return Ok(None);
        }
        let certified = self.verifier.certify(note)?;
        self.accept(certified.clone());
        Ok(Some(certified))
    }

    /// An empty log is certified too, so that readers can tell it from one that nobody serves.
    fn is_news(&self, size: u64) -> bool {
        self.certified.as_ref().is_none_or(|certified| size > certified.size())
    }

    fn accept(&mut self, certified: CertifiedCheckpoint) {
        let size = certified.size();
        self.heads.retain(|&(waiting, _), _| waiting > size);
        for heads in &mut self.waiting {
            heads.retain(|&(waiting, _)| waiting > size);
        }
        self.certified = Some(certified);
    }

    fn remember(&mut self, member: usize, head: (u64, Hash)) {
        self.waiting[member].push_back(head);
        if self.waiting[member].len() <= WAITING_PER_MEMBER {
            return;
        }
        let Some(oldest) = self.waiting[member].pop_front() else { return };
        if let Some(lines) = self.heads.get_mut(&oldest) {
            lines.remove(&member);
            if lines.is_empty() {
                self.heads.remove(&oldest);
            }
        }
    }

    fn contradiction(&self, member: usize, checkpoint: &Checkpoint, line: &SignatureLine) -> Option<Vec<Equivocation>> {
        let (size, root) = (checkpoint.size, checkpoint.root);
        let other = self.waiting[member].iter().find(|&&(s, r)| s == size && r != root)?;
        let earlier = self.heads.get(other)?.get(&member)?;
        let note = |root, line: &SignatureLine| SignedCheckpoint {
            checkpoint: Checkpoint { root, ..*checkpoint },
            signatures: vec![line.clone()],
        };
        Some(Equivocation::between(&self.verifier, &note(other.1, earlier), &note(root, line)))
    }
}
