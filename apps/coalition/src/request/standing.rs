//! Where a request stands, as the market has it.

use coalition::RequestId;
use coalition_compute::{ComputeGrant, GrantStage, MarketView, RequestEnd, RequestStatus};

use super::flow::word;
use crate::error::{CliError, Kind, Result};

/// A grant newer than attempt `after`, or how the request ended.
pub(super) fn look(view: &MarketView, id: RequestId, after: u8) -> Option<Result<(ComputeGrant, String)>> {
    match view.request_status(&id) {
        RequestStatus::Granted(record) if record.grant.attempt > after => {
            Some(Ok((record.grant.clone(), record.pointer.to_string())))
        }
        RequestStatus::Ended(end) => Some(Err(ended(end))),
        _ => None,
    }
}

fn ended(end: &RequestEnd) -> CliError {
    let refused = |code: &str, message: String| CliError::new(Kind::Refused, code, message);
    match end {
        RequestEnd::Expired(expiry) => {
            let filters: Vec<String> =
                expiry.removed.iter().map(|by| format!("{:?} removed {}", by.filter, by.offers)).collect();
            let why = if filters.is_empty() { String::new() } else { format!(" ({})", filters.join(", ")) };
            refused("expired", format!("the request expired: none of {} offers fitted{why}", expiry.considered))
                .hint("ask for less, pay more, or give it longer with --wait")
        }
        RequestEnd::Withdrawn(_) => refused("withdrawn", "the request was withdrawn".into()),
        RequestEnd::Exhausted { attempts } => {
            refused("exhausted", format!("{attempts} providers were tried and all gave it back"))
                .hint("see `coalition market`")
        }
    }
}

/// How an attempt of a grant is over.
pub(super) enum Over {
    /// Given back, for this reason; somebody else may get the request.
    Regranted(String),
    /// For good, in words.
    Ended(String),
}

/// Whether attempt `attempt` of a grant is over.
pub(super) fn is_over(view: &MarketView, id: RequestId, attempt: u8) -> Option<Over> {
    let reopened = || {
        let refusal = view.state().requests().get(&id).and_then(|record| record.refusals.last());
        Over::Regranted(refusal.map_or_else(|| "no reason".to_owned(), |(_, reason)| word(reason)))
    };
    match view.request_status(&id) {
        RequestStatus::Open(_) => Some(reopened()),
        RequestStatus::Granted(record) if record.grant.attempt > attempt => Some(reopened()),
        RequestStatus::Granted(record) => match &record.stage {
            GrantStage::Ended(end) => Some(Over::Ended(crate::commands::log::end_words(end))),
            _ => None,
        },
        RequestStatus::Ended(end) => Some(Over::Ended(ended(end).to_string())),
        RequestStatus::Unknown => None,
    }
}
