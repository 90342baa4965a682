//! Which roster is in force, and how the next one is decided. Pure; a fold of the log like everything else.
//!
//! A committee that carries several organisms hands all of them over in one batch. Whether it does may depend only on what
//! all their logs share: the command itself, the organisms carried, and the rosters so far.

use std::sync::Arc;

use coalition::{Roster, UniqueId};
use coalition_log::{
    Draft, Entry, Refusal,
    checkpoint::{RosterError, RosterVerifier},
    entry::WriteId,
    handover::{ApprovedHandover, HANDOVER_KIND, HandoverError, Succession},
};

use crate::{
    error::describe,
    wire::{self, Handovers},
};

/// Where an organism stands in the succession of its rosters.
#[derive(Clone, Debug)]
pub(crate) struct Epochs {
    organism: UniqueId,
    committee: Arc<[UniqueId]>,
    succession: Succession,
    decided: Option<(WriteId, ApprovedHandover)>,
}

impl Epochs {
    /// Epoch 0 of an organism, one of those its committee carries.
    pub(crate) fn new(organism: UniqueId, genesis: &Roster, committee: Arc<[UniqueId]>) -> Result<Self, RosterError> {
        Ok(Self { organism, committee, succession: Succession::new(organism, genesis)?, decided: None })
    }

    /// The epoch after the entries folded so far.
    pub(crate) fn epoch(&self) -> u64 {
        self.succession.epoch()
    }

    /// The organism.
    pub(crate) const fn organism(&self) -> UniqueId {
        self.organism
    }

    /// Whether a handover was decided in the batch that is being executed.
    pub(crate) const fn is_handing_over(&self) -> bool {
        self.decided.is_some()
    }

    /// The verifier of the roster in force.
    pub(crate) fn verifier(&self) -> &RosterVerifier {
        self.succession.verifier()
    }

    /// Takes one of the host's own entries.
    pub(crate) fn fold(&mut self, entry: &Entry) {
        if entry.kind != HANDOVER_KIND {
            return;
        }
        let taken = ApprovedHandover::from_bytes(&entry.body).and_then(|approved| self.succession.hand_over(&approved));
        if let Err(error) = taken {
            // The committee checked it before it wrote it; whoever verifies the log refuses it, too.
            tracing::error!(organism = %self.organism, index = entry.index, %error, "a handover does not hold");
        }
    }

    /// Decides on the command "hand over"; it takes effect at the end of the batch.
    pub(crate) fn decide(&mut self, write_id: WriteId, command: &[u8]) -> Result<(), Refusal> {
        if self.decided.as_ref().is_some_and(|(decided, _)| *decided == write_id) {
            // The same write, submitted twice: it is answered once.
            return Ok(());
        }
        if self.decided.is_some() {
            return Err(Refusal::new("already_handing_over", "another handover was decided in the same batch"));
        }
        let malformed = |error: &dyn std::error::Error| Refusal::new("malformed", describe(error));
        let Handovers(all) = wire::decode(command).map_err(|error| malformed(&error))?;
        let mut own = None;
        for organism in self.committee.iter() {
            let mut named = all.iter().filter(|(named, _)| named == organism);
            let (Some((_, bytes)), None) = (named.next(), named.next()) else {
                let message = format!("the handover names organism {organism} not once; it has to name all");
                return Err(Refusal::new("not_all_organisms", message));
            };
            let approved = ApprovedHandover::from_bytes(bytes).map_err(|error| malformed(&error))?;
            self.succession.check_for(*organism, &approved).map_err(|error| refusal(&error))?;
            if own.as_ref().is_some_and(|own: &ApprovedHandover| own.handover() != approved.handover()) {
                return Err(Refusal::new("different_rosters", "the organisms of a committee have one roster"));
            }
            if own.is_none() || *organism == self.organism {
                own = Some(approved);
            }
        }
        self.decided = own.map(|approved| (write_id, approved));
        Ok(())
    }

    /// The handover decided in this batch, for its end.
    pub(crate) fn take(&mut self) -> Option<(WriteId, Draft)> {
        let (write_id, approved) = self.decided.take()?;
        Some((write_id, Draft::new(HANDOVER_KIND, approved.to_bytes())))
    }
}

fn refusal(error: &HandoverError) -> Refusal {
    let code = match error {
        HandoverError::Epoch { .. } => "wrong_epoch",
        HandoverError::NotApproved(_) => "not_approved",
        _ => "not_allowed",
    };
    Refusal::new(code, describe(error))
}
