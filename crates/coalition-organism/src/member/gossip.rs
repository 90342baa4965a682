//! The certification loop: cosignatures of the others in, missing certificates out.

use std::{sync::Arc, time::Duration};

use coalition_log::checkpoint::{CertifiedCheckpoint, Cosigner, SignedCheckpoint};
use coalition_order::{GossipInbox, OrderHandle};

use crate::{
    certifier::Stragglers,
    member::{
        MemberError,
        executor::{cosigned, sign_head},
        hosted::{Complaints, Hosted},
    },
    wire::{self, Gossip},
};

/// How often a member repeats itself while its head lacks a certificate: gossip is best effort.
const REPEAT: Duration = Duration::from_millis(500);

pub(crate) struct Gossiper {
    pub(crate) organisms: Arc<Vec<Hosted>>,
    pub(crate) cosigners: Vec<Cosigner>,
    /// The epoch whose roster this member signs for.
    pub(crate) epoch: u64,
    pub(crate) order: OrderHandle,
    pub(crate) faults: Complaints,
}

impl Gossiper {
    /// Runs until the engine closes the inbox or something fails.
    pub(crate) async fn run(self, mut inbox: GossipInbox) -> Result<(), MemberError> {
        let mut repeat = tokio::time::interval(REPEAT);
        repeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut stragglers = Stragglers::default();
        loop {
            tokio::select! {
                message = inbox.recv() => match message {
                    Some((sender, bytes)) => self.message(&mut stragglers, sender, &bytes)?,
                    None => return Ok(()),
                },
                _ = repeat.tick() => self.repeat()?,
            }
        }
    }

    fn message(&self, stragglers: &mut Stragglers, sender: usize, bytes: &[u8]) -> Result<(), MemberError> {
        let (organism, checkpoint, certificate) = match wire::decode::<Gossip>(bytes) {
            Ok(Gossip::Cosigned { organism, checkpoint }) => (organism, checkpoint, false),
            Ok(Gossip::Certified { organism, checkpoint }) => (organism, checkpoint, true),
            Err(error) => {
                if self.faults.is_worth_telling() {
                    tracing::warn!(sender, %error, "dropped a message of another member");
                }
                return Ok(());
            }
        };
        let organism = self.organisms.iter().find(|hosted| hosted.id == organism);
        let Some(organism) = organism.filter(|hosted| hosted.log.chain().epoch() == self.epoch) else { return Ok(()) };
        let note = match SignedCheckpoint::parse(checkpoint.as_bytes()) {
            Ok(note) => note,
            Err(error) => {
                if self.faults.is_worth_telling() {
                    tracing::warn!(sender, %error, "dropped a checkpoint of another member");
                }
                return Ok(());
            }
        };
        if certificate {
            if organism.certificate().is_some_and(|newest| note.checkpoint.size <= newest.size()) {
                return Ok(());
            }
            organism.learned(&note)?;
            // Its lines may contradict what their signers told this member.
            return organism.cosigned(&note);
        }
        self.help_if_behind(stragglers, organism, sender, &note);
        organism.cosigned(&note)
    }

    /// A member that still signs what is certified gets the certificate.
    fn help_if_behind(&self, stragglers: &mut Stragglers, organism: &Hosted, sender: usize, note: &SignedCheckpoint) {
        let published = organism.certified().borrow().clone();
        let size = published.as_ref().map(CertifiedCheckpoint::size);
        let missed = stragglers.missed(sender, organism.id, note.checkpoint.size, size);
        if let Some(certificate) = published.filter(|_| missed) {
            let checkpoint = certificate.note().to_string();
            self.order.send_to(sender, wire::encode(&Gossip::Certified { organism: organism.id, checkpoint }));
        }
    }

    fn repeat(&self) -> Result<(), MemberError> {
        for (organism, cosigner) in self.organisms.iter().zip(&self.cosigners) {
            organism.drop_closed_waiters();
            organism.publish_reached()?;
            organism.keep_certificate()?;
            organism.prune(now_ms())?;
            // A log that is handed over already, or ended in an earlier epoch, is signed by nobody here any more.
            if organism.log.chain().epoch() != self.epoch {
                continue;
            }
            let size = organism.log.size();
            let published = organism.certified().borrow().as_ref().map(CertifiedCheckpoint::size);
            if published.is_none_or(|published| size > published) {
                let note = sign_head(organism, cosigner, now_ms())?;
                self.order.gossip(cosigned(organism, &note));
                organism.cosigned(&note)?;
            }
        }
        Ok(())
    }
}

/// A cosignature's own timestamp is the signer's clock; only the entries carry the committee's time.
fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
