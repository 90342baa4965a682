//! How an organism's log ends: approved, announced, in effect. Pure; a fold of the log like everything else.

use coalition::{EvidencePointer, RetirementInstant};
use coalition_log::{
    Context, Draft, Entry, Refusal,
    checkpoint::RosterVerifier,
    retirement::{ANNOUNCED_KIND, ApprovalError, ApprovedRetirement, RETIRED_CODE, RETIRED_KIND, Retirement},
};

use crate::error::describe;

/// Where an organism stands between its first entry and its last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ending {
    announced: Option<(Retirement, EvidencePointer)>,
    is_over: bool,
}

impl Ending {
    /// Takes one of the host's own entries.
    pub(crate) fn fold(&mut self, entry: &Entry, roster: &RosterVerifier) {
        match entry.kind.as_str() {
            ANNOUNCED_KIND => {
                let pointer = entry.pointer(roster.organism()).ok();
                self.announced = Retirement::of(entry).zip(pointer);
            }
            RETIRED_KIND => self.is_over = true,
            _ => {}
        }
    }

    /// Whether the log has its last entry.
    pub(crate) const fn is_over(&self) -> bool {
        self.is_over
    }

    /// What a command gets once the log has ended.
    pub(crate) fn refusal(&self) -> Refusal {
        let how = self.announced.as_ref().map(|(retirement, _)| retirement.to_string()).unwrap_or_default();
        Refusal::new(RETIRED_CODE, format!("this organism has retired: {how}"))
    }

    /// What the command "retire" writes.
    pub(crate) fn announce(&self, command: &[u8], roster: &RosterVerifier) -> Result<Vec<Draft>, Refusal> {
        if let Some((known, _)) = &self.announced {
            return Err(Refusal::new("already_retiring", format!("a retirement is announced already: {known}")));
        }
        let approved = ApprovedRetirement::from_bytes(command);
        let approved = approved.map_err(|error| Refusal::new("malformed", describe(&error)))?;
        approved.verify(roster).map_err(|error| {
            let code = if matches!(error, ApprovalError::NotApproved(_)) { "not_approved" } else { "bad_successor" };
            Refusal::new(code, describe(&error))
        })?;
        Ok(vec![Draft::new(ANNOUNCED_KIND, approved.to_bytes())])
    }

    /// The last entry, once it is due in a log of `size` entries.
    pub(crate) fn last_entry(&self, cx: &Context, size: u64) -> Option<Draft> {
        let (retirement, pointer) = self.announced.as_ref().filter(|_| !self.is_over)?;
        let due = retirement.is_due(cx, size);
        due.then(|| Draft::new(RETIRED_KIND, retirement.to_bytes().to_vec()).with_evidence(vec![*pointer]))
    }

    /// When a batch is needed for the retirement's sake.
    pub(crate) fn wake_at_ms(&self) -> Option<u64> {
        let (retirement, _) = self.announced.as_ref().filter(|_| !self.is_over)?;
        match retirement.marker().effective_at {
            RetirementInstant::AtTimestamp(at) => Some(at),
            RetirementInstant::AtSequence(_) | RetirementInstant::AtTick(_) => None,
        }
    }
}
