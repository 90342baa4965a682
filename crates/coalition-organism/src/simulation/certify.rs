//! A member's certification, as `member::hosted` and `member::gossip` drive it around the real `Certifier`.

use std::collections::BTreeMap;

use coalition_log::{
    checkpoint::{CertifiedCheckpoint, SignatureLine, SignedCheckpoint},
    entry::WriteId,
    equivocation::Equivocation,
};

use super::{
    check::invariant,
    member::{Dead, Hosted, Process},
    plan::Mutation,
    serve::Waiting,
    world::World,
};
use crate::{certifier::Progress, execution::Outcome};

/// The seat of a cosigner whose line verified.
pub(super) fn seat(line: &SignatureLine) -> Option<usize> {
    line.name.rsplit_once("/m").and_then(|(_, seat)| seat.parse().ok())
}

impl Process {
    /// Tells the callers who wait for this write what a batch decided.
    pub(super) fn decided(&mut self, organism: usize, id: WriteId, outcome: &Outcome) {
        for call in &mut self.parked {
            if let Waiting::Write { organism: at, id: waits_for, outcome: slot } = &mut call.waiting
                && (*at, *waits_for) == (organism, id)
            {
                slot.get_or_insert_with(|| outcome.clone());
            }
        }
    }
}

impl World {
    /// As `Hosted::cosigned`.
    pub(super) fn cosigned(
        &mut self,
        member: usize,
        p: &mut Process,
        organism: usize,
        note: &SignedCheckpoint,
    ) -> Result<(), Dead> {
        for line in &note.signatures {
            let progress = p.organisms[organism].certifier.cosigned(note.checkpoint, line.clone());
            self.count_as_mutants_do(p, organism, note, line, progress.is_ok());
            match progress {
                Err(_) => {
                    self.tally.count("false cosignature dropped");
                    self.name_as_mutants_do(member, p, organism, note, line);
                    continue;
                }
                Ok(Progress::Waiting) => {}
                Ok(Progress::Certified(certificate)) => {
                    self.tally.count("certificate assembled");
                    self.saw_certificate(&format!("member {member}"), organism, &certificate);
                    self.publish(p, organism, certificate.note())?;
                }
                Ok(Progress::Equivocated(proofs)) => self.proven(member, p, organism, &proofs),
            }
            if let Some(signer) = seat(line) {
                p.met.line(organism, signer, note.checkpoint.size, note.checkpoint.root);
            }
        }
        Ok(())
    }

    /// As the certificate's part of `Gossiper::message`.
    pub(super) fn learned(
        &mut self,
        member: usize,
        p: &mut Process,
        organism: usize,
        note: &SignedCheckpoint,
    ) -> Result<(), Dead> {
        let hosted = &mut p.organisms[organism];
        if self.plan.has(Mutation::CertificateUnverified) && hosted.published() < Some(note.checkpoint.size) {
            self.publish(p, organism, note)?;
            return Ok(());
        }
        match hosted.certifier.learned(note) {
            Ok(Some(certificate)) => {
                self.tally.count("certificate learned");
                self.saw_certificate(&format!("member {member}"), organism, &certificate);
                self.publish(p, organism, certificate.note())?;
                self.cosigned(member, p, organism, certificate.note())
            }
            Ok(None) => Ok(()),
            Err(_) => {
                self.tally.count("false certificate dropped");
                Ok(())
            }
        }
    }

    fn proven(&mut self, member: usize, p: &mut Process, organism: usize, proofs: &[Equivocation]) {
        if self.plan.has(Mutation::EquivocationIgnored) {
            return;
        }
        for proof in proofs {
            let text = proof.to_string();
            let guilt = Equivocation::parse(text.as_bytes()).unwrap().verify(&self.committee.verifiers[organism]);
            match guilt {
                Ok(guilt) => self.named(member, p, organism, guilt.position),
                other => self.fail(invariant::FRAMED, format!("member {member} holds {other:?}")),
            }
        }
    }

    /// A member holds another for a liar.
    fn named(&mut self, member: usize, p: &mut Process, organism: usize, liar: usize) {
        if !self.plan.liars.contains(&liar) {
            return self.fail(invariant::FRAMED, format!("member {member} names {liar}"));
        }
        self.tally.count("equivocation proven");
        p.met.proven.insert((organism, liar));
    }

    /// A planted bug: whose name stands on another head than one's own is a liar, whoever wrote it there.
    fn name_as_mutants_do(
        &mut self,
        member: usize,
        p: &mut Process,
        organism: usize,
        note: &SignedCheckpoint,
        line: &SignatureLine,
    ) {
        let own = p.organisms[organism].log.root_at(note.checkpoint.size);
        let differs = own.is_some_and(|own| own != note.checkpoint.root);
        if let Some(signer) = seat(line).filter(|_| differs && self.plan.has(Mutation::GuiltUnverified)) {
            self.named(member, p, organism, signer);
        }
    }

    /// As `Hosted::publish`.
    fn publish(&mut self, p: &mut Process, organism: usize, note: &SignedCheckpoint) -> Result<(), Dead> {
        let hosted = &mut p.organisms[organism];
        let size = note.checkpoint.size;
        if hosted.published().is_some_and(|published| size <= published) {
            return Ok(());
        }
        if !self.plan.has(Mutation::PublishBeyondLog) {
            match hosted.log.root_at(size) {
                None => return Ok(()),
                Some(own) if own != note.checkpoint.root => {
                    return Err(Dead::Failed(format!("a quorum certified another history at {size}")));
                }
                Some(_) => {}
            }
        }
        hosted.head = Some(note.clone());
        Ok(())
    }

    /// As `Hosted::publish_reached`.
    pub(super) fn publish_reached(&mut self, p: &mut Process, organism: usize) -> Result<(), Dead> {
        let hosted = &p.organisms[organism];
        let reached =
            hosted.certifier.certified_within(hosted.log.size()).map(|certificate| certificate.note().clone());
        reached.map_or(Ok(()), |note| self.publish(p, organism, &note))
    }

    /// Somebody correct holds this certificate: it must be the committee's, and its signers must have signed it.
    pub(super) fn saw_certificate(&mut self, who: &str, organism: usize, certificate: &CertifiedCheckpoint) {
        let truth = &self.oracle.truths[organism];
        let (size, root) = (certificate.size(), certificate.root());
        if truth.log.root_at(size) != Some(root) {
            self.fail(invariant::ONE_ROOT, format!("{who} holds a certificate of {root} at {size}"));
            return;
        }
        let signers = truth.signed.get(&(size, root));
        let is_signed = |signer: &usize| signers.is_some_and(|signers| signers.contains(signer));
        if certificate.members().len() < self.plan.quorum() || !certificate.members().iter().all(is_signed) {
            let detail = format!("{who}: certificate of {size} by {:?}, signed by {signers:?}", certificate.members());
            self.fail(invariant::QUORUM, detail);
        }
    }

    /// Two planted bugs: a quorum that is one too small, and lines that are counted without being verified.
    fn count_as_mutants_do(
        &self,
        p: &mut Process,
        organism: usize,
        note: &SignedCheckpoint,
        line: &SignatureLine,
        is_valid: bool,
    ) {
        let (needed, counts) = match self.plan.mutation {
            Some(Mutation::QuorumOffByOne) => (self.plan.quorum() - 1, is_valid),
            Some(Mutation::LineUnverified) => (self.plan.quorum(), true),
            _ => return,
        };
        let hosted: &mut Hosted = &mut p.organisms[organism];
        let head = (note.checkpoint.size, note.checkpoint.root);
        let lines: &mut BTreeMap<_, _> = hosted.counted.entry(head).or_default();
        if counts {
            lines.insert(line.name.clone(), line.clone());
        }
        let is_news = hosted.head.as_ref().is_none_or(|published| published.checkpoint.size < head.0);
        if lines.len() >= needed && is_news && hosted.log.root_at(head.0).is_some() {
            let signatures = lines.values().cloned().collect();
            hosted.head = Some(SignedCheckpoint { checkpoint: note.checkpoint, signatures });
        }
    }
}
