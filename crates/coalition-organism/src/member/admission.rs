//! The door of an organism: who may have commands ordered.
//!
//! Every member asks by itself before it orders anything, so the door is as tight as the loosest member's: what must hold whoever
//! lies is a rule of the machine. What the committee itself approved (retirements, handovers, beginnings) needs no ticket.

use std::time::{SystemTime, UNIX_EPOCH};

use coalition_universe::{Fault, PeerId};

use super::hosted::Hosted;
use crate::wire::{self, AdmitAnswer, ChallengeAnswer, NOT_ADMITTED, Payload, Write};

/// Draws a challenge for a caller.
pub(super) fn challenge(organism: &Hosted, caller: PeerId) -> Result<Vec<u8>, Fault> {
    let door = organism.door.as_ref().ok_or_else(|| open(organism))?;
    let drawn = door.challenge(*caller.as_bytes(), now_s());
    Ok(wire::encode(&ChallengeAnswer { value: drawn.value, issued_s: drawn.issued_s }))
}

/// Judges what a caller shows.
pub(super) fn admit(organism: &Hosted, caller: PeerId, presentation: &[u8]) -> Result<Vec<u8>, Fault> {
    let door = organism.door.as_ref().ok_or_else(|| open(organism))?;
    let judged = door.present(*caller.as_bytes(), presentation, now_s());
    let until_s = judged.map_err(|refused| {
        tracing::info!(organism = %organism.name, code = refused.code(), "a peer was not admitted");
        Fault::new(NOT_ADMITTED, format!("{refused} ({})", refused.code()))
    })?;
    Ok(wire::encode(&AdmitAnswer { until_s }))
}

/// Refuses commands of somebody who was not admitted, or no longer is.
pub(super) fn check_writer(organism: &Hosted, caller: PeerId, writes: &[Write]) -> Result<(), Fault> {
    let Some(door) = &organism.door else { return Ok(()) };
    let is_ours = || {
        let chain = organism.log.chain();
        chain.roster().members().iter().any(|member| member.peer_id == *caller.as_bytes())
    };
    let has_command = writes.iter().any(|write| matches!(write.payload, Payload::Command(_)));
    if !has_command || door.is_admitted(*caller.as_bytes(), now_s()) || is_ours() {
        return Ok(());
    }
    let message = format!("{} admits writers by ticket, and this peer has shown none that holds now", organism.name);
    Err(Fault::new(NOT_ADMITTED, message))
}

fn open(organism: &Hosted) -> Fault {
    Fault::new("no_door", format!("{} takes writes from everybody; there is nothing to show", organism.name))
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
