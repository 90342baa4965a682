//! Collecting cosignatures until a quorum stands behind one head. Pure.
//!
//! Every member signs at the same batch boundaries, so cosignatures for one size meet. What is kept per member is
//! bounded, and of the largest sizes: a member that signs nonsense crowds out only its own lines, and one that repeats
//! another's old lines nobody's. It is kept beyond the certificate, because a member that lies to some shows them
//! another head than to the rest, and either may come first.

use std::collections::{BTreeMap, VecDeque};

use coalition::UniqueId;
use coalition_log::{
    checkpoint::{CertifiedCheckpoint, CertifyError, Checkpoint, RosterVerifier, SignatureLine, SignedCheckpoint},
    equivocation::Equivocation,
};

/// Cosignatures remembered per member, certified or not: they wait for a quorum, and for a contradiction.
const REMEMBERED_PER_MEMBER: usize = 64;

/// Certificates remembered: a member whose log is some batches behind publishes the newest one that it reaches.
const REMEMBERED_CERTIFICATES: usize = 64;

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
    /// The largest heads each member signed, one for a size: the first it showed this member.
    signed: Vec<VecDeque<(Checkpoint, SignatureLine)>>,
    /// The newest certificates, by ascending size.
    certified: VecDeque<CertifiedCheckpoint>,
}

impl Certifier {
    /// Starts from the newest certificate known.
    pub(crate) fn new(verifier: RosterVerifier, certified: Option<CertifiedCheckpoint>) -> Self {
        let signed = vec![VecDeque::new(); verifier.members()];
        Self { verifier, signed, certified: certified.into_iter().collect() }
    }

    /// The newest certificate.
    pub(crate) fn certified(&self) -> Option<&CertifiedCheckpoint> {
        self.certified.back()
    }

    /// The newest certificate remembered of at most `size` entries.
    pub(crate) fn certified_within(&self, size: u64) -> Option<&CertifiedCheckpoint> {
        self.certified.iter().rev().find(|certified| certified.size() <= size)
    }

    /// Entries certified so far.
    pub(crate) fn certified_size(&self) -> u64 {
        self.certified().map_or(0, CertifiedCheckpoint::size)
    }

    /// Takes one member's signed checkpoint, ours included. One of a size that is long certified is still compared with
    /// what its signer signed before.
    ///
    /// # Errors
    /// [`CertifyError`] when the line is not a member's valid cosignature.
    pub(crate) fn cosigned(&mut self, checkpoint: Checkpoint, line: SignatureLine) -> Result<Progress, CertifyError> {
        let member = self.verifier.verify_line(&checkpoint, &line)?;
        if let Some(proofs) = self.contradiction(member, &checkpoint, &line) {
            return Ok(Progress::Equivocated(proofs));
        }
        self.remember(member, checkpoint, line);
        if !self.is_news(checkpoint.size) {
            return Ok(Progress::Waiting);
        }
        let signatures = self.lines(&checkpoint);
        if signatures.len() < self.verifier.quorum() {
            return Ok(Progress::Waiting);
        }
        let certified = self.verifier.certify(&SignedCheckpoint { checkpoint, signatures })?;
        self.note(certified.clone());
        Ok(Progress::Certified(certified))
    }

    /// Takes a certificate another member assembled, if it is news. Its lines are not compared with what their signers
    /// signed before: [`Certifier::cosigned`] does that, with each of them.
    ///
    /// # Errors
    /// [`CertifyError`] when it is none.
    pub(crate) fn learned(&mut self, note: &SignedCheckpoint) -> Result<Option<CertifiedCheckpoint>, CertifyError> {
        if !self.is_news(note.checkpoint.size) {
            return Ok(None);
        }
        let certified = self.verifier.certify(note)?;
        self.note(certified.clone());
        Ok(Some(certified))
    }

    /// An empty log is certified too, so that readers can tell it from one that nobody serves.
    fn is_news(&self, size: u64) -> bool {
        self.certified().is_none_or(|certified| size > certified.size())
    }

    fn note(&mut self, certified: CertifiedCheckpoint) {
        if self.certified.len() == REMEMBERED_CERTIFICATES {
            self.certified.pop_front();
        }
        self.certified.push_back(certified);
    }

    /// The cosignatures of one head, in the order of the roster.
    fn lines(&self, head: &Checkpoint) -> Vec<SignatureLine> {
        let line = |signed: &VecDeque<(Checkpoint, SignatureLine)>| {
            signed.iter().find(|(known, _)| known == head).map(|(_, line)| line.clone())
        };
        self.signed.iter().filter_map(line).collect()
    }

    /// A repetition keeps the first line.
    fn remember(&mut self, member: usize, checkpoint: Checkpoint, line: SignatureLine) {
        let signed = &mut self.signed[member];
        if signed.iter().any(|(known, _)| known.size == checkpoint.size) {
            return;
        }
        if signed.len() == REMEMBERED_PER_MEMBER {
            let Some(smallest) = (0..signed.len()).min_by_key(|&at| signed[at].0.size) else { return };
            if signed[smallest].0.size > checkpoint.size {
                return;
            }
            signed.remove(smallest);
        }
        signed.push_back((checkpoint, line));
    }

    fn contradiction(&self, member: usize, checkpoint: &Checkpoint, line: &SignatureLine) -> Option<Vec<Equivocation>> {
        let contradicts = |known: &Checkpoint| known.size == checkpoint.size && known.root != checkpoint.root;
        let (earlier, earlier_line) = self.signed[member].iter().find(|(known, _)| contradicts(known))?;
        let note = |checkpoint: &Checkpoint, line: &SignatureLine| SignedCheckpoint {
            checkpoint: *checkpoint,
            signatures: vec![line.clone()],
        };
        Some(Equivocation::between(&self.verifier, &note(earlier, earlier_line), &note(checkpoint, line)))
    }
}

/// Which members seem to have missed the newest certificate. Bounded by members and organisms.
#[derive(Debug, Default)]
pub(crate) struct Stragglers {
    heard: BTreeMap<(usize, UniqueId), u64>,
}

impl Stragglers {
    /// Notes that `member` sent its cosignature of `size` entries, and says whether it should get the certificate of
    /// `published` entries: because it signs less, or because it repeats itself at that size, which a member does only
    /// while it lacks the certificate. In an idle committee nothing else would ever tell it.
    pub(crate) fn missed(&mut self, member: usize, organism: UniqueId, size: u64, published: Option<u64>) -> bool {
        let again = self.heard.insert((member, organism), size) == Some(size);
        published.is_some_and(|published| published > size || (published == size && again))
    }
}
