//! Collecting cosignatures until a quorum stands behind one head. Pure.
//!
//! Every member signs at the same batch boundaries, so cosignatures for one size meet. What is kept per member is
//! bounded, and of the largest sizes: a member that signs nonsense crowds out only its own lines, and one that repeats
//! another's old lines nobody's. It is kept beyond the certificate, because a member that lies to some shows them
//! another head than to the rest, and either may come first.

use std::collections::{BTreeMap, VecDeque};

use coalition::UniqueId;
use coalition_log::{
    checkpoint::{
        CertifiedCheckpoint, CertifyError, Checkpoint, Cosignature, RosterVerifier, SignatureLine, SignedCheckpoint,
    },
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
    signed: Vec<VecDeque<Cosignature>>,
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
        let cosignature = self.verifier.cosignature(checkpoint, line)?;
        if let Some(proofs) = self.contradiction(&cosignature) {
            return Ok(Progress::Equivocated(proofs));
        }
        self.remember(cosignature);
        if !self.is_news(checkpoint.size) {
            return Ok(Progress::Waiting);
        }
        match self.verifier.join(&checkpoint, self.signed.iter().flatten()) {
            Ok(certified) => {
                self.note(certified.clone());
                Ok(Progress::Certified(certified))
            }
            Err(CertifyError::NoQuorum { .. }) => Ok(Progress::Waiting),
            Err(error) => Err(error),
        }
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

    /// A repetition keeps the first line.
    fn remember(&mut self, cosignature: Cosignature) {
        let signed = &mut self.signed[cosignature.member()];
        let size = cosignature.checkpoint().size;
        if signed.iter().any(|known| known.checkpoint().size == size) {
            return;
        }
        if signed.len() == REMEMBERED_PER_MEMBER {
            let Some(smallest) = (0..signed.len()).min_by_key(|&at| signed[at].checkpoint().size) else { return };
            if signed[smallest].checkpoint().size > size {
                return;
            }
            signed.remove(smallest);
        }
        signed.push_back(cosignature);
    }

    fn contradiction(&self, news: &Cosignature) -> Option<Vec<Equivocation>> {
        let checkpoint = news.checkpoint();
        let contradicts = |known: &Checkpoint| known.size == checkpoint.size && known.root != checkpoint.root;
        let earlier = self.signed[news.member()].iter().find(|known| contradicts(known.checkpoint()))?;
        let note = |signed: &Cosignature| SignedCheckpoint {
            checkpoint: *signed.checkpoint(),
            signatures: vec![signed.line().clone()],
        };
        Some(Equivocation::between(&self.verifier, &note(earlier), &note(news)))
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
