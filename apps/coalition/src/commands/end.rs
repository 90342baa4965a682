//! `coalition end`: stop a grant.

use std::time::Duration;

use coalition::{MicroUsd, RequestId};
use coalition_compute::{
    Command, EndGrant, GrantStage, MarketView, RequestStatus, Signed, UsageMetrics, WithdrawRequest,
};
use ed25519_dalek::SigningKey;
use serde_json::{Value, json};

use super::{log, logs};
use crate::{
    cli::EndArgs,
    error::{CliError, Context, Kind, Result},
    grants::{self, Grant, Stage, WorkloadExit},
    home::Home,
    measure,
    output::Output,
    request::write,
    session::Session,
    values,
};

/// Ends a grant, or withdraws a request that has none, and waits for the final usage log.
///
/// # Errors
/// An unknown grant, an unreachable coalition, a provider that does not log in time.
pub async fn run(home: &Home, args: &EndArgs, output: &Output) -> Result<()> {
    let mut grant = grants::find(home, args.grant.as_deref())?;
    let mut steps = output.steps();
    steps.begin("joining the coalition");
    let session = Session::open(home).await?;
    let market = session.market(output).await?;
    let id = grant.file.grant;
    if !args.no_measure {
        match measure::report(&session, &market, &grant).await {
            Ok(report) => {
                let said = log::report_words(&report);
                steps.done("measured", &said, json!({ "grant": id, "report": report }));
            }
            Err(error) => output.note(format!("not measured: {error}")),
        }
    }
    // Asked while there is somebody to answer.
    let exit = logs::learn(&mut grant).await;
    match ask(&session, &market, &grant).await? {
        Asked::Withdrawn => {
            grant.update(|file| file.stage = Stage::Withdrawn)?;
            steps.done("withdrawn", "it had no grant; nothing is left to pay for", json!({ "grant": id }));
        }
        Asked::Over(how) => {
            grant.update(|file| file.stage = Stage::Ended)?;
            let bill = market.read(|view| Bill::of(view, &id));
            let text = format!("it had already ended: {how}{}{}", said(&bill), exited(exit));
            let usage = market.read(|view| log::final_usage(view, &id).map(|last| last.usage));
            steps.done("over", &text, report(&id, &how, usage, &bill, exit));
        }
        Asked::Ending => {
            grant.update(|file| file.stage = Stage::Ended)?;
            steps.done("ending", "the committee told the provider to stop it", json!({ "grant": id }));
            steps.begin("waiting for the final usage log");
            let usage =
                market.wait_for(args.wait.get(), |view| log::final_usage(view, &id)).await.map_err(|error| {
                    CliError::new(Kind::TimedOut, "no_final_log", "the provider has not logged the end yet")
                        .because(error)
                        .hint(format!("it will, or loses the grant; see `coalition log {} --wait 5m`", grant.short()))
                })?;
            let bill = market.read(|view| Bill::of(view, &id));
            let text = format!("{}{}{}; its key is dead and deleted", usage.text, said(&bill), exited(exit));
            steps.done("ended", &text, report(&id, &usage.how, Some(usage.usage), &bill, exit));
        }
    }
    drop(market);
    session.close().await;
    Ok(())
}

/// What a grant that its requester ended costs, by the time it was held; one that ended otherwise, at most.
struct Bill {
    held_ms: u64,
    cost: MicroUsd,
    full: MicroUsd,
}

impl Bill {
    fn of(view: &MarketView, id: &RequestId) -> Option<Self> {
        let record = view.grant(id)?;
        let grant = &record.grant;
        let until = record.ending_ms.unwrap_or(grant.valid_to_ms).min(grant.valid_to_ms);
        let held_ms = until.saturating_sub(record.granted_ms);
        let core_ms = u128::from(grant.cpu_millicores) * u128::from(held_ms) / 1_000;
        let cost = grant.rate.cost_of_ms(u64::try_from(core_ms).ok()?)?;
        Some(Self { held_ms, cost, full: grant.full_cost()? })
    }
}

fn said(bill: &Option<Bill>) -> String {
    bill.as_ref().map_or_else(String::new, |bill| {
        let held = values::duration(Duration::from_millis(bill.held_ms));
        format!("; {} for {held}, of {} for the whole time", bill.cost, bill.full)
    })
}

fn exited(exit: Option<WorkloadExit>) -> String {
    exit.map_or_else(String::new, |exit| format!("; the workload had ended: {}", logs::exit_words(exit.outcome)))
}

fn report(
    id: &RequestId,
    how: &str,
    usage: Option<UsageMetrics>,
    bill: &Option<Bill>,
    exit: Option<WorkloadExit>,
) -> Value {
    let usd = |pick: fn(&Bill) -> MicroUsd| bill.as_ref().map(|bill| pick(bill).to_string().replace('$', ""));
    json!({
        "grant": id, "usage": usage, "end": how, "held_ms": bill.as_ref().map(|bill| bill.held_ms),
        "cost_usd": usd(|bill| bill.cost), "full_cost_usd": usd(|bill| bill.full), "workload_exit": exit, "key": "dead",
    })
}

enum Asked {
    Withdrawn,
    Ending,
    Over(String),
}

async fn ask(session: &Session, market: &coalition_organism::Follower<MarketView>, grant: &Grant) -> Result<Asked> {
    let id = grant.file.grant;
    let over = market.read(|view| match view.request_status(&id) {
        RequestStatus::Unknown => Some(Err(CliError::new(
            Kind::Refused,
            "unknown_request",
            "the market does not know this request: it was never sent, or forgotten long after its end",
        ))),
        RequestStatus::Ended(_) => Some(Ok(Asked::Over("without a grant".into()))),
        RequestStatus::Granted(record) => match &record.stage {
            GrantStage::Ended(end) => Some(Ok(Asked::Over(log::end_words(end)))),
            _ if record.ending_ms.is_some() => Some(Ok(Asked::Ending)),
            _ => None,
        },
        RequestStatus::Open(_) => None,
    });
    if let Some(over) = over {
        return over;
    }
    let key = SigningKey::from_bytes(grant.request_key()?.expose());
    let invalid = || "the statement cannot be signed".to_owned();
    let withdraw =
        Signed::sign(WithdrawRequest { request_id: id }, &key, &session.compute.id).or_fault("internal", invalid)?;
    let end = Signed::sign(EndGrant { grant_id: id }, &key, &session.compute.id).or_fault("internal", invalid)?;
    let is_open = market.read(|view| matches!(view.request_status(&id), RequestStatus::Open(_)));
    if is_open && write(market.organism(), &Command::WithdrawRequest(withdraw)).await.is_ok() {
        return Ok(Asked::Withdrawn);
    }
    // Open a moment ago and granted now, or granted all along.
    write(market.organism(), &Command::EndGrant(end)).await.map(|_| Asked::Ending)
}
