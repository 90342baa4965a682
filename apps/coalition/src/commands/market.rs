//! `coalition market`: who sells what, from the verified log.

use coalition_compute::{At, CardView, FreeOffer, InventoryEntry};
use serde_json::{Value, json};

use crate::{
    attestation::{NOT_ATTESTED, labelled},
    cli::MarketArgs,
    error::Result,
    home::Home,
    output::{Output, Paint, table},
    request::plan::dollars,
    session::Session,
    values,
};

/// Prints the market.
///
/// # Errors
/// When the coalition cannot be reached.
pub async fn run(home: &Home, args: &MarketArgs, output: &Output) -> Result<()> {
    let session = Session::open(home).await?;
    let market = session.market(output).await?;
    let now = session.now().await?;
    let cards: Vec<CardView> = market.read(|view| view.cards(now).collect());
    let open = market.read(|view| view.state().open_count());
    let stated: Vec<Option<InventoryEntry>> =
        market.read(|view| cards.iter().map(|card| view.inventory(&card.card.provider_id).cloned()).collect());
    if let Some((retirement, in_effect)) = market.retirement() {
        let state = if in_effect { "has retired" } else { "is about to retire" };
        output.warn(format!("this market {state}: {retirement}"));
    }
    drop(market);
    session.close().await;
    let offers = select(&cards, &stated, args);
    let value = answer(&offers, now, open);
    output.answer(&value, |output| shown(&offers, now, open, output));
    Ok(())
}

/// One line of the market.
struct Row<'a> {
    card: &'a CardView,
    free: &'a FreeOffer,
    rate: Option<coalition::RateQ64>,
    inventory: Option<&'a InventoryEntry>,
}

fn select<'a>(cards: &'a [CardView], stated: &'a [Option<InventoryEntry>], args: &MarketArgs) -> Vec<Row<'a>> {
    let known = cards.iter().zip(stated);
    let all = known.flat_map(|(card, last)| card.free.iter().map(move |free| (card, free, last.as_ref())));
    let wanted = all.filter(|(_, free, _)| {
        args.region.as_ref().is_none_or(|region| free.offer.capabilities.regions.contains(region))
    });
    let mut rows: Vec<Row<'a>> = wanted
        .map(|(card, free, inventory)| {
            let rate = free.offer.declared_rates.effective_core_hour(args.cpu.0, args.ram.0);
            Row { card, free, rate, inventory }
        })
        .collect();
    rows.sort_by_key(|row| (row.card.stale, row.rate, row.card.card.provider_id));
    rows
}

fn answer(rows: &[Row<'_>], now: At, open: usize) -> Value {
    let offers: Vec<Value> = rows
        .iter()
        .map(|row| {
            let capabilities = &row.free.offer.capabilities;
            json!({
                "provider": row.card.card.provider_id,
                "offer": row.free.offer.name,
                "regions": capabilities.regions,
                "posture": posture(row),
                "attestation": row.card.attestation,
                "tdx_capable": capabilities.tdx_capable,
                "mrtds": capabilities.mrtds,
                "rate": row.rate.map(|rate| dollars(rate).trim_start_matches('$').to_owned()),
                "core_hour": row.free.offer.declared_rates.core_hour,
                "gib_hour": row.free.offer.declared_rates.gib_hour,
                "free": { "cpu_millicores": row.free.cpu_millicores, "ram_mib": row.free.ram_mib, "instances": row.free.instances },
                "total": { "cpu_millicores": capabilities.max_cpu_millicores, "ram_mib": capabilities.max_ram_mib, "instances": capabilities.max_instances },
                "age_ms": row.card.age_ms,
                "stale": row.card.stale,
                "live_grants": row.card.bonds.count,
                "inventory": row.inventory,
            })
        })
        .collect();
    json!({ "offers": offers, "open_requests": open, "tick": now.tick, "time_ms": now.time_ms })
}

fn shown(rows: &[Row<'_>], now: At, open: usize, output: &Output) -> String {
    if rows.is_empty() {
        return "no provider sells anything here\n".into();
    }
    let cells: Vec<Vec<String>> = rows.iter().map(|row| cells(row, now)).collect();
    let headings = ["PROVIDER", "OFFER", "REGIONS", "SIZE", "FREE", "RATE", "POSTURE", "AGE", "INVENTORY"];
    let text = table(&headings, &cells);
    let mut lines = text.lines();
    let heading = output.paint(Paint::Bold, lines.next().unwrap_or_default());
    // Painted once the columns stand.
    let body: Vec<String> = lines.map(|line| labelled(line, |paint, text| output.paint(paint, text))).collect();
    let waiting = if open > 0 { format!("\n{open} requests are waiting\n") } else { String::new() };
    format!("{heading}\n{}\n{waiting}", body.join("\n"))
}

fn cells(row: &Row<'_>, now: At) -> Vec<String> {
    let capabilities = &row.free.offer.capabilities;
    let regions: Vec<&str> = capabilities.regions.iter().map(coalition_compute::Region::as_str).collect();
    let size = |cpu: u64, ram: u64| format!("{} cpu, {}", values::cores(cpu), values::mib(ram));
    let age = values::duration(std::time::Duration::from_millis(row.card.age_ms));
    vec![
        row.card.card.provider_id.to_string()[..8].to_owned(),
        row.free.offer.name.to_string(),
        regions.join(","),
        size(u64::from(capabilities.max_cpu_millicores), u64::from(capabilities.max_ram_mib)),
        size(row.free.cpu_millicores, row.free.ram_mib),
        row.rate.map_or_else(|| "-".into(), dollars),
        posture(row),
        if row.card.stale { format!("{age} (stale)") } else { age },
        row.inventory.map_or_else(|| "-".into(), |last| inventory(last, now)),
    ]
}

/// The last statement in a few words; what is not clean is said.
fn inventory(last: &InventoryEntry, now: At) -> String {
    let age = values::duration(std::time::Duration::from_millis(now.time_ms.saturating_sub(last.time_ms)));
    let mut said = format!("{} {age} ago", if last.agrees { "agrees" } else { "DIFFERS" });
    for (count, what) in [(last.stated.orphaned, "orphaned"), (last.stated.blind, "blind")] {
        if count > 0 {
            said += &format!(", {count} {what}");
        }
    }
    said
}

/// What vouches for the machines of an offer: what the committee verified of its provider, where it sells machines inside TDX.
fn posture(row: &Row<'_>) -> String {
    match &row.card.attestation {
        Some(found) if row.free.offer.capabilities.tdx_capable => found.root.label().to_owned(),
        Some(found) => format!("{NOT_ATTESTED} (its bridge: {})", found.root.label()),
        None => NOT_ATTESTED.to_owned(),
    }
}
