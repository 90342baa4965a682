//! Extensions of grants, and usage reports of requesters.

use coalition_log::Refusal;

use super::admit::{Decision, live_grant, own_request, provider_grant};
use crate::entries::MarketEntry;
use crate::refusal::RefusalCode as Code;
use crate::sign::Signed;
use crate::state::{At, GrantRecord, GrantStage, MarketState};
use crate::types::{AnswerExtension, ExtendGrant, ExtensionAnswer, GrantEnd, ReportUsage};

/// Most extensions asked of one grant.
pub const MAX_EXTENSIONS_PER_GRANT: u32 = 256;
/// Most usage reports of one grant.
pub const MAX_REPORTS_PER_GRANT: u32 = 256;

pub(super) fn ask(state: &MarketState, at: At, signed: &Signed<ExtendGrant>) -> Decision {
    let ExtendGrant { grant_id, number, extra_sec, .. } = signed.statement;
    own_request(state, signed, &grant_id, Code::UnknownGrant)?;
    let record = live_grant(state, &grant_id)?;
    if record.stage != GrantStage::Serving {
        return Err(Code::NotServing
            .because(format!("grant {grant_id} is not served yet; wait until its provider says that it runs")));
    }
    check_lasting(record, at)?;
    if let Some(waiting) = &record.extras.waiting {
        return Err(Code::ExtensionWaiting
            .because(format!("extension {} of grant {grant_id} waits for its provider's answer", waiting.number)));
    }
    let next = record.extras.asked.saturating_add(1);
    if number != next {
        return Err(Code::ExtensionOutOfOrder.because(format!("extension number {number} came where {next} was due")));
    }
    if next > MAX_EXTENSIONS_PER_GRANT {
        return Err(Code::TooManyExtensions
            .because(format!("grant {grant_id} was asked for {MAX_EXTENSIONS_PER_GRANT} extensions, the limit")));
    }
    let (granted, longest) = (record.grant.duration_sec, state.params().max_duration_sec);
    if granted.checked_add(extra_sec).is_none_or(|total| total > longest) {
        return Err(Code::DurationTooLong.because(format!(
            "{granted} s granted and {extra_sec} s more are above the module's limit of {longest} s; at most {} s more",
            longest.saturating_sub(granted)
        )));
    }
    Ok(vec![MarketEntry::ExtensionAsked(Box::new(signed.clone())).to_draft(vec![record.pointer])])
}

/// Whether the grant has an end that can still be moved.
fn check_lasting(record: &GrantRecord, at: At) -> Result<(), Refusal> {
    let (id, end) = (record.grant.request_id, record.grant.valid_to_ms);
    if record.ending_ms.is_some() {
        return Err(Code::AlreadyEnding.because(format!("grant {id} is being ended; it gets no longer")));
    }
    if at.time_ms >= end {
        return Err(Code::DeadlinePassed.because(format!("grant {id} was over at {end} ms, it is {} ms", at.time_ms)));
    }
    Ok(())
}

pub(super) fn answer(state: &MarketState, at: At, signed: &Signed<AnswerExtension>) -> Decision {
    let AnswerExtension { grant_id, provider, number, answer } = signed.statement;
    let record = provider_grant(state, signed, &grant_id, provider)?;
    let Some(waiting) = record.extras.waiting.filter(|waiting| waiting.number == number) else {
        return Err(Code::ExtensionUnknown.because(format!("no extension {number} of grant {grant_id} waits")));
    };
    check_lasting(record, at)?;
    if let ExtensionAnswer::Accepted { valid_to, valid_to_ms } = answer {
        let longer = record.grant.extended(waiting.extra_sec, state.params());
        if (valid_to, valid_to_ms) != (longer.valid_to, longer.valid_to_ms) {
            return Err(Code::ExtensionMismatch.because(format!(
                "the answer moves the end to tick {valid_to}, {valid_to_ms} ms; asked for was tick {}, {} ms",
                longer.valid_to, longer.valid_to_ms
            )));
        }
    }
    let evidence = vec![record.pointer, waiting.pointer];
    Ok(vec![MarketEntry::ExtensionAnswered(Box::new(signed.clone())).to_draft(evidence)])
}

pub(super) fn report(state: &MarketState, signed: &Signed<ReportUsage>) -> Decision {
    let ReportUsage { grant_id, number, .. } = signed.statement;
    own_request(state, signed, &grant_id, Code::UnknownGrant)?;
    let Some(record) = state.grants().get(&grant_id) else {
        return Err(Code::UnknownGrant.because(format!("request {grant_id} has no grant")));
    };
    if matches!(record.stage, GrantStage::Granted | GrantStage::Ended(GrantEnd::Refused(_))) {
        return Err(Code::NotServing.because(format!("grant {grant_id} was not served; there is nothing to report")));
    }
    let next = record.extras.report.as_ref().map_or(0, |last| last.report.number).saturating_add(1);
    if number != next {
        return Err(Code::ReportOutOfOrder.because(format!("report number {number} came where {next} was due")));
    }
    if next > MAX_REPORTS_PER_GRANT {
        return Err(Code::TooManyReports
            .because(format!("grant {grant_id} has {MAX_REPORTS_PER_GRANT} usage reports, the limit")));
    }
    Ok(vec![MarketEntry::UsageReport(Box::new(signed.clone())).to_draft(vec![record.pointer])])
}
