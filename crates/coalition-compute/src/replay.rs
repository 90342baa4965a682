//! Auditing a Compute log: every entry is computed again from the ones before it.
//!
//! What principals wrote is admitted again (limits, signatures, sequence, ownership); what the committee wrote on its own
//! (clearings, grants, expiries) is computed again and compared byte for byte. So a committee that let the wrong offer
//! win, ended a request early, kept quiet about one that could have been cleared, or let somebody speak for somebody else
//! is found out from its own log. What cannot be seen there: commands the committee never ordered, and the order it chose.

use std::collections::VecDeque;

use coalition::UniqueId;
use coalition_log::{Context, Draft, Entry, Machine, Refusal};

use crate::codec::DecodeError;
use crate::command::Command;
use crate::config::ComputeParams;
use crate::entries::{CardRemoval, MarketEntry};
use crate::machine::ComputeMachine;
use crate::state::{FoldError, MarketState};
use crate::types::{GrantEnd, Invalid, RequestEnd};

/// What a replay went through without a fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayReport {
    /// Entries read, those of other kinds included.
    pub entries: u64,
    /// Statements of principals admitted again.
    pub statements: u64,
    /// Clearings computed again.
    pub clearings: u64,
    /// Grants and requests the committee ended, and cards it removed.
    pub endings: u64,
}

/// The first entry that does not follow from the ones before it.
#[derive(Debug, thiserror::Error)]
pub enum ReplayFault {
    /// The module's parameters are out of range.
    #[error("the module's parameters are not usable")]
    Params(#[source] Invalid),
    /// Entries must come from index 0 without a gap.
    #[error("entry {found} came where entry {expected} was due; replay the whole log")]
    Gap {
        /// Index due.
        expected: u64,
        /// Index found.
        found: u64,
    },
    /// Committee time ran backwards.
    #[error("entry {index} has time {found_ms} ms, before {last_ms} ms of the entry before it")]
    Time {
        /// Index of the entry.
        index: u64,
        /// Time of the entry before, milliseconds.
        last_ms: u64,
        /// Time found, milliseconds.
        found_ms: u64,
    },
    /// A body does not parse.
    #[error("entry {index} does not parse")]
    Body {
        /// Index of the entry.
        index: u64,
        /// What was wrong with it.
        #[source]
        source: DecodeError,
    },
    /// A principal's statement should have been refused.
    #[error("entry {index} ({kind}) should not have been admitted")]
    NotAdmissible {
        /// Index of the entry.
        index: u64,
        /// Its kind.
        kind: String,
        /// What the rules say.
        #[source]
        refusal: Refusal,
    },
    /// The entry is not the one the rules produce.
    #[error("entry {index} is a {found} that differs from the {expected} the rules produce there")]
    Differs {
        /// Index of the entry.
        index: u64,
        /// Kind due there, or "nothing".
        expected: &'static str,
        /// Kind found.
        found: String,
    },
    /// Something due was left out.
    #[error("before entry {index} the rules produce a {expected}; the committee left it out")]
    Omitted {
        /// Index of the entry found instead, or the length of the log.
        index: u64,
        /// Kind left out.
        expected: &'static str,
    },
    /// The fold refused the entry.
    #[error("entry {index} cannot be folded")]
    Fold {
        /// Index of the entry.
        index: u64,
        /// Why.
        #[source]
        source: FoldError,
    },
}

/// Replays the whole log of the Compute organism `organism` from index 0. Memory stays bounded by the module's limits.
///
/// # Errors
/// [`ReplayFault`] at the first entry that does not follow from the ones before it.
pub fn replay<'a>(
    organism: UniqueId,
    params: &ComputeParams,
    entries: impl IntoIterator<Item = &'a Entry>,
) -> Result<ReplayReport, ReplayFault> {
    let mut replay = Replay::new(organism, params)?;
    for entry in entries {
        replay.step(entry)?;
    }
    replay.finish()
}

/// A replay in progress, for logs that are read piece by piece.
#[derive(Debug)]
pub struct Replay {
    machine: ComputeMachine,
    due: VecDeque<Draft>,
    /// Context of the last entry.
    last: Option<Context>,
    report: ReplayReport,
}

impl Replay {
    /// A replay at index 0.
    ///
    /// # Errors
    /// [`ReplayFault::Params`].
    pub fn new(organism: UniqueId, params: &ComputeParams) -> Result<Self, ReplayFault> {
        let machine = ComputeMachine::new(organism, params.clone()).map_err(ReplayFault::Params)?;
        Ok(Self { machine, due: VecDeque::new(), last: None, report: ReplayReport::default() })
    }

    /// The market as far as it was replayed.
    #[must_use]
    pub const fn state(&self) -> &MarketState {
        self.machine.state()
    }

    /// Replays the next entry.
    ///
    /// # Errors
    /// [`ReplayFault`] when it does not follow from the ones before it. The replay must not be continued then.
    pub fn step(&mut self, entry: &Entry) -> Result<(), ReplayFault> {
        let index = entry.index;
        if index != self.report.entries {
            return Err(ReplayFault::Gap { expected: self.report.entries, found: index });
        }
        let cx = Context { height: 0, time_ms: entry.time_ms, tick: entry.tick.unwrap_or(0) };
        self.check_time(index, &cx)?;
        self.report.entries = self.report.entries.saturating_add(1);
        self.last = Some(cx);
        let decoded = MarketEntry::decode(entry).map_err(|source| ReplayFault::Body { index, source })?;
        if let Some(decoded) = decoded {
            self.check(entry, &decoded, &cx)?;
        }
        self.machine.evolve(entry);
        match self.machine.take_fault() {
            Some(source) => Err(ReplayFault::Fold { index, source }),
            None => Ok(()),
        }
    }

    /// Ends the replay at the end of the log.
    ///
    /// # Errors
    /// [`ReplayFault::Omitted`] when the last command's entries are incomplete. What was still due in the last batch is
    /// not a fault: the log may have been read before that batch was certified.
    pub fn finish(self) -> Result<ReplayReport, ReplayFault> {
        match self.due.front() {
            Some(draft) => Err(ReplayFault::Omitted { index: self.report.entries, expected: draft.kind }),
            None => Ok(self.report),
        }
    }

    /// When time moves on, the batch before is over, and nothing may have been left due in it.
    fn check_time(&self, index: u64, cx: &Context) -> Result<(), ReplayFault> {
        let Some(last) = &self.last else { return Ok(()) };
        if cx.time_ms < last.time_ms {
            return Err(ReplayFault::Time { index, last_ms: last.time_ms, found_ms: cx.time_ms });
        }
        if cx.time_ms == last.time_ms {
            return Ok(());
        }
        let unfinished = self.due.front().map(|draft| draft.kind);
        let left_out = || self.machine.round(last).and_then(|drafts| drafts.first().map(|draft| draft.kind));
        match unfinished.or_else(left_out) {
            Some(expected) => Err(ReplayFault::Omitted { index, expected }),
            None => Ok(()),
        }
    }

    fn check(&mut self, entry: &Entry, decoded: &MarketEntry, cx: &Context) -> Result<(), ReplayFault> {
        let index = entry.index;
        if self.due.is_empty() {
            self.due = match command_of(decoded) {
                Some(command) => {
                    self.report.statements = self.report.statements.saturating_add(1);
                    let decided = self.machine.decide(cx, &command.to_bytes());
                    decided.map_err(|refusal| ReplayFault::NotAdmissible {
                        index,
                        kind: entry.kind.clone(),
                        refusal,
                    })?
                }
                None => self.machine.round(cx).unwrap_or_default(),
            }
            .into();
        }
        let differs = |expected| ReplayFault::Differs { index, expected, found: entry.kind.clone() };
        let draft = self.due.pop_front().ok_or_else(|| differs("nothing"))?;
        if draft.kind != entry.kind || draft.body != entry.body || draft.evidence != entry.evidence {
            return Err(differs(draft.kind));
        }
        match decoded {
            MarketEntry::Clearing(_) => self.report.clearings = self.report.clearings.saturating_add(1),
            _ if command_of(decoded).is_none() && !matches!(decoded, MarketEntry::Grant(_)) => {
                self.report.endings = self.report.endings.saturating_add(1);
            }
            _ => {}
        }
        Ok(())
    }
}

/// The command that led to an entry, when a principal's command did.
fn command_of(entry: &MarketEntry) -> Option<Command> {
    Some(match entry {
        MarketEntry::Card(signed) => Command::RegisterCard((**signed).clone()),
        MarketEntry::CardRemoved(body) => match &body.reason {
            CardRemoval::Deregistered(signed) => Command::DeregisterCard((**signed).clone()),
            CardRemoval::Stale => return None,
        },
        MarketEntry::Request(signed) => Command::SubmitRequest((**signed).clone()),
        MarketEntry::RequestEnded(body) => match &body.reason {
            RequestEnd::Withdrawn(signed) => Command::WithdrawRequest((**signed).clone()),
            RequestEnd::Expired(_) | RequestEnd::Exhausted { .. } => return None,
        },
        MarketEntry::GrantServing(signed) => Command::ServeGrant((**signed).clone()),
        MarketEntry::GrantEnding(signed) => Command::EndGrant((**signed).clone()),
        MarketEntry::GrantEnded(body) => match &body.reason {
            GrantEnd::Refused(signed) => Command::RefuseGrant((**signed).clone()),
            GrantEnd::Logged(_) | GrantEnd::NoLog | GrantEnd::NoFinalLog => return None,
        },
        MarketEntry::Log(body) => Command::AppendLog(body.log.clone()),
        MarketEntry::Challenge(signed) => Command::AskChallenge((**signed).clone()),
        MarketEntry::Attestation(body) => Command::Attest(body.shown.clone()),
        MarketEntry::ExtensionAsked(signed) => Command::ExtendGrant((**signed).clone()),
        MarketEntry::ExtensionAnswered(signed) => Command::AnswerExtension((**signed).clone()),
        MarketEntry::Inventory(body) => Command::StateInventory(body.stated.clone()),
        MarketEntry::UsageReport(signed) => Command::ReportUsage((**signed).clone()),
        MarketEntry::Clearing(_) | MarketEntry::Grant(_) => return None,
    })
}
