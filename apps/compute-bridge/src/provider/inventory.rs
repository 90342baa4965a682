//! The signed statement "inventory = open grants": made of machines and journal, compared by the committee with its log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use coalition::{AlmanacRange, RequestId};
use coalition_compute::{Command, RefusalCode, Signed, StateInventory, open_grants_digest};
use coalition_organism::random_write_id;

use super::{Context, LOOK, WRITE};
use crate::fleet::chain;
use crate::inventory::{Inventory, Standing, look, take};
use crate::journal::{GrantState, Stage};
use crate::market::MarketError;

/// Times a statement that was overtaken is made again before the next window's.
const TRIES: u32 = 5;
/// How long grants just made may take to be written into the journal.
const TAKING_UP: Duration = Duration::from_secs(5);

/// States the inventory once a window, for ever.
pub(super) async fn keep(context: Arc<Context>) {
    loop {
        tokio::time::sleep(context.parts.tuning.inventory_interval).await;
        for _ in 0..TRIES {
            match state(&context).await {
                Err(MarketError::Refused(refusal)) if refusal.code == RefusalCode::InventoryOvertaken.as_str() => {}
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "the inventory is not stated");
                    break;
                }
                Ok(()) => break,
            }
        }
    }
}

async fn state(context: &Context) -> Result<(), MarketError> {
    let parts = &context.parts;
    if parts.market.card(context.id).is_none() && parts.journal.is_empty() {
        return Ok(());
    }
    let before = open(context);
    let seen = look(parts.fleet.backends()).await;
    taken_up(context).await;
    // From here on nothing waits: what the log changes after `as_of` makes the market refuse the statement.
    let books = parts.market.books(context.id);
    let now = open(context);
    let held: Vec<RequestId> = now.iter().filter(|(id, state)| holds(context, id, state)).map(|(id, _)| *id).collect();
    // What was listed and has been closed since was no orphan.
    let explaining: BTreeMap<RequestId, GrantState> = before.into_iter().chain(now).collect();
    let expected = super::sweep::expected(context);
    let found = take(&explaining, &seen, &expected, crate::now_ms());
    let from = books.last.map_or(coalition::AlmanacTick(0), |last| last.stated.window.to);
    let to = context.tick().max(from);
    let statement = StateInventory {
        provider: context.id,
        as_of: books.as_of,
        window: AlmanacRange { from, to },
        open: count(held.len()),
        grants: open_grants_digest(held),
        owned: count(found.count(Standing::Owned) + found.count(Standing::Adopted)),
        adopted: count(found.count(Standing::Adopted)),
        orphaned: count(found.count(Standing::Orphaned)),
        blind: count(found.blind.len()),
    };
    say(&found);
    let signed = Signed::sign(statement, &parts.signer, &parts.market.organism());
    let signed = signed.map_err(|invalid| MarketError::Refused(RefusalCode::Invalid.because(invalid.to_string())))?;
    parts.market.write(random_write_id(), Command::StateInventory(signed), WRITE).await
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn open(context: &Context) -> BTreeMap<RequestId, GrantState> {
    context.parts.journal.open_grants().into_iter().collect()
}

/// Waits, not for ever, until the journal knows every live grant.
async fn taken_up(context: &Context) {
    let began = std::time::Instant::now();
    let mut seen = 0;
    while !context.unknown().is_empty() && began.elapsed() < TAKING_UP {
        seen = context.parts.market.changed(seen, LOOK.min(TAKING_UP)).await;
    }
}

/// Whether the bridge holds this grant open: as long as something of it may run, and until the log has its end.
fn holds(context: &Context, id: &RequestId, state: &GrantState) -> bool {
    match &state.stage {
        Stage::Seen | Stage::Opening | Stage::LogPending { .. } | Stage::RefusalPending(_) => {
            context.sight(id).is_some_and(|sight| sight.live)
        }
        Stage::Closed(_) => false,
        _ => true,
    }
}

fn say(found: &Inventory) {
    let orphaned = found.count(Standing::Orphaned);
    if orphaned > 0 || !found.blind.is_empty() {
        let blind: Vec<&str> = found.blind.iter().map(|blind| blind.backend.as_str()).collect();
        tracing::warn!(orphaned, ?blind, "the inventory is not clean");
    }
}
