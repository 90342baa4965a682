//! What the market remembers of extensions, usage reports and inventories. In a state's bytes it follows the rest, and only where there is
//! something of it, so that a market which has seen none has the bytes it always had.

use coalition::{EvidencePointer, ProviderId};
use serde::{Deserialize, Serialize};

use super::MarketState;
use super::apply::{Folded, Place};
use crate::entries::InventoryBody;
use crate::types::{AnswerExtension, ExtendGrant, ExtensionAnswer, ReportUsage, StateInventory};

/// Extensions and usage reports of one grant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantExtras {
    /// Extensions asked for so far.
    pub asked: u32,
    /// The one that waits for its answer. It has lapsed when the grant's `valid_to_ms` is reached.
    pub waiting: Option<WaitingExtension>,
    /// By how much the grant has been extended, in seconds; its `duration_sec` includes it.
    pub extended_sec: u32,
    /// The requester's last usage report.
    pub report: Option<ReportRecord>,
    /// Answered extensions, oldest first, as many as the fold keeps.
    pub answered: Vec<AnsweredExtension>,
}

/// An extension asked for and not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingExtension {
    /// Its number.
    pub number: u32,
    /// How much longer, in seconds.
    pub extra_sec: u32,
    /// Committee time it was asked, Unix milliseconds.
    pub asked_ms: u64,
    /// Its entry.
    pub pointer: EvidencePointer,
}

/// An extension and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnsweredExtension {
    /// What was asked.
    pub asked: WaitingExtension,
    /// What was answered.
    pub answer: ExtensionAnswer,
    /// Committee time of the answer, Unix milliseconds.
    pub answered_ms: u64,
    /// The answer's entry.
    pub pointer: EvidencePointer,
}

/// A usage report with its entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportRecord {
    /// The report.
    pub report: ReportUsage,
    /// Committee time it was committed, Unix milliseconds.
    pub time_ms: u64,
    /// Its entry.
    pub pointer: EvidencePointer,
}

/// What is remembered of a provider's inventories.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryRecord {
    /// Index of the newest entry that ended a live grant of the provider, since its first statement; 0 before.
    pub last_ending: u64,
    /// The last statement.
    pub last: Option<InventoryEntry>,
}

/// A provider's statement with what the committee found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryEntry {
    /// What it said.
    pub stated: StateInventory,
    /// Live grants it had in the log.
    pub open: u32,
    /// Whether the statement was about exactly these.
    pub agrees: bool,
    /// Committee time, Unix milliseconds.
    pub time_ms: u64,
    /// The entry.
    pub pointer: EvidencePointer,
}

impl MarketState {
    pub(super) fn fold_extension_asked(&mut self, asked: &ExtendGrant, place: Place) -> Folded {
        let extras = &mut self.live_grant_mut(&asked.grant_id)?.extras;
        if extras.waiting.is_some() {
            return Err("another extension waits");
        }
        extras.asked = asked.number;
        extras.waiting = Some(WaitingExtension {
            number: asked.number,
            extra_sec: asked.extra_sec,
            asked_ms: place.at.time_ms,
            pointer: place.pointer,
        });
        Ok(())
    }

    pub(super) fn fold_extension_answered(&mut self, given: &AnswerExtension, place: Place) -> Folded {
        let (keep, params) = (self.retention.logs_per_grant, self.params.clone());
        let record = self.live_grant_mut(&given.grant_id)?;
        let waiting = record.extras.waiting.filter(|waiting| waiting.number == given.number);
        let asked = waiting.ok_or("no such extension waits")?;
        if let ExtensionAnswer::Accepted { valid_to, valid_to_ms } = given.answer {
            let longer = record.grant.extended(asked.extra_sec, &params);
            if (valid_to, valid_to_ms) != (longer.valid_to, longer.valid_to_ms) {
                return Err("another end is accepted than was asked for");
            }
            record.grant = longer;
            record.extras.extended_sec = record.extras.extended_sec.saturating_add(asked.extra_sec);
        }
        record.extras.waiting = None;
        if keep > 0 {
            let (answer, answered_ms, pointer) = (given.answer, place.at.time_ms, place.pointer);
            record.extras.answered.push(AnsweredExtension { asked, answer, answered_ms, pointer });
        }
        Ok(())
    }

    pub(super) fn fold_report(&mut self, report: &ReportUsage, place: Place) -> Folded {
        let record = self.grants.get_mut(&report.grant_id).ok_or("the grant is not known")?;
        let (report, time_ms, pointer) = (report.clone(), place.at.time_ms, place.pointer);
        record.extras.report = Some(ReportRecord { report, time_ms, pointer });
        Ok(())
    }

    pub(super) fn fold_inventory(&mut self, body: &InventoryBody, place: Place) -> Folded {
        let stated = body.stated.statement.clone();
        let provider = self.providers.get_mut(&stated.provider).ok_or("the provider is not known")?;
        let (time_ms, pointer) = (place.at.time_ms, place.pointer);
        provider.inventory.last =
            Some(InventoryEntry { stated, open: body.open, agrees: body.agrees, time_ms, pointer });
        Ok(())
    }

    /// Notes when the open grants of a provider that states inventories became fewer.
    pub(super) fn note_ending(&mut self, provider: &ProviderId, place: Place) {
        let known = self.providers.get_mut(provider).map(|record| &mut record.inventory);
        if let Some(known) = known.filter(|known| known.last.is_some()) {
            known.last_ending = place.pointer.index;
        }
    }
}
