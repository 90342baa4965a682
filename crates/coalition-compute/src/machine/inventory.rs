//! What providers say they hold, compared with what the log has open.

use coalition_log::Refusal;

use super::admit::{Decision, check_provider, check_tick};
use crate::entries::{InventoryBody, MarketEntry};
use crate::refusal::RefusalCode as Code;
use crate::sign::Signed;
use crate::state::{At, MarketState};
use crate::types::{StateInventory, open_grants_digest};

pub(super) fn state(state: &MarketState, at: At, signed: &Signed<StateInventory>) -> Decision {
    let stated = &signed.statement;
    let provider = stated.provider;
    check_provider(state, signed, provider)?;
    if !state.providers().contains_key(&provider) {
        return Err(Code::UnknownProvider.because(format!("provider {provider} has neither card nor grants here")));
    }
    check_tick(state, at, "the window's end", stated.window.to.0)?;
    check_place(state, stated)?;
    let open: Vec<_> = state.live_grants_of(provider).map(|record| record.grant.request_id).collect();
    let body = InventoryBody {
        stated: signed.clone(),
        open: u32::try_from(open.len()).unwrap_or(u32::MAX),
        agrees: open_grants_digest(open) == stated.grants,
    };
    Ok(vec![MarketEntry::Inventory(Box::new(body)).to_draft(Vec::new())])
}

/// Whether the statement follows the last one, and was made of everything that has changed.
fn check_place(state: &MarketState, stated: &StateInventory) -> Result<(), Refusal> {
    let newest = state.inventory_changed_at(&stated.provider);
    if stated.as_of < newest {
        return Err(Code::InventoryOvertaken.because(format!(
            "the statement is as of entry {}; entry {newest} changed what it is about; look again",
            stated.as_of
        )));
    }
    let last = state.inventory(&stated.provider).map_or(0, |last| last.stated.window.to.0);
    let (from, to) = (stated.window.from.0, stated.window.to.0);
    if from < last || to < from {
        return Err(Code::InventoryWindow
            .because(format!("window {from}..{to} must begin at {last} or later, and not end before it begins")));
    }
    Ok(())
}
