//! `coalition extend`: have a running grant last longer.

use std::time::Duration;

use coalition::{RequestId, ZERO_ID};
use coalition_compute::{
    Command, ComputeGrant, ExtendGrant, ExtensionAnswer, GrantRecord, GrantStage, MarketView, RequestStatus, Signed,
};
use coalition_organism::Follower;
use ed25519_dalek::SigningKey;
use serde_json::json;

use super::log;
use crate::{
    cli::ExtendArgs,
    error::{CliError, Context, Kind, Result},
    grants,
    home::Home,
    output::Output,
    request::{word, write},
    session::Session,
    values,
};

/// Asks for the extra time, and waits for the provider's answer.
///
/// # Errors
/// A grant that does not run, the market's refusals, a provider that declines or does not answer.
pub async fn run(home: &Home, args: &ExtendArgs, output: &Output) -> Result<()> {
    let mut grant = grants::find(home, args.grant.as_deref())?;
    let id = grant.file.grant;
    let extra_sec = u32::try_from(args.extra.get().as_secs()).unwrap_or(u32::MAX);
    let mut steps = output.steps();
    steps.begin("joining the coalition");
    let session = Session::open(home).await?;
    let market = session.market(output).await?;
    let (record, params) = market.read(|view| (running(view, &id), view.state().params().clone()));
    let record = record?;
    let asked = Asked::of(&record, extra_sec)?;
    let longer = record.grant.extended(extra_sec, &params);
    let price = asked.price;
    let said = format!("{} more at the grant's rate: {price} at most", values::duration(args.extra.get()));
    steps.done("priced", &said, json!({ "grant": id, "extra_sec": extra_sec, "price_micro_usd": asked.price.0 }));
    if asked.is_new {
        let statement = ExtendGrant { grant_id: id, number: asked.number, extra_sec, settlement: ZERO_ID };
        let key = SigningKey::from_bytes(grant.request_key()?.expose());
        let signed = Signed::sign(statement, &key, &session.compute.id);
        let signed = signed.or_input("extension_invalid", || "the extension is not valid".into())?;
        write(market.organism(), &Command::ExtendGrant(signed)).await?;
    }
    let number = asked.number;
    steps.done("asked", "the committee told the provider", json!({ "grant": id, "number": number }));
    steps.begin("waiting for the provider to move everything that would end the machine");
    let answer = wait(&market, &id, number, &longer, args.wait.get()).await?;
    match answer {
        Answer::Longer => {
            grant.update(|file| {
                file.duration_s = longer.duration_sec;
                if let Some(cleared) = &mut file.cleared {
                    cleared.valid_to_ms = longer.valid_to_ms;
                }
            })?;
            let until = values::utc(longer.valid_to_ms);
            let said = json!({ "grant": id, "number": number, "valid_to_ms": longer.valid_to_ms, "valid_to": longer.valid_to });
            steps.done("extended", &format!("until {until}"), said);
        }
        Answer::Declined(reason) => {
            let message = format!("the provider does not extend grant {}: {reason}", grant.short());
            return Err(CliError::new(Kind::Refused, "extension_declined", message)
                .hint("it runs until its old end; ask for another machine: `coalition request --help`"));
        }
        Answer::Over => {
            let message = format!("grant {} ended before its provider answered", grant.short());
            return Err(CliError::new(Kind::Refused, "extension_lapsed", message));
        }
    }
    drop(market);
    session.close().await;
    Ok(())
}

/// What is asked, and what it costs.
struct Asked {
    number: u32,
    price: coalition::MicroUsd,
    /// Whether it has yet to be sent: the same may wait already.
    is_new: bool,
}

impl Asked {
    fn of(record: &GrantRecord, extra_sec: u32) -> Result<Self> {
        let grant = &record.grant;
        let core_ms = u64::from(grant.cpu_millicores).saturating_mul(u64::from(extra_sec));
        let price = grant.rate.cost_of_ms(core_ms).unwrap_or(coalition::MicroUsd::MAX);
        match record.extras.waiting {
            None => Ok(Self { number: record.extras.asked.saturating_add(1), price, is_new: true }),
            Some(waiting) if waiting.extra_sec == extra_sec => {
                Ok(Self { number: waiting.number, price, is_new: false })
            }
            Some(waiting) => {
                let waits = values::duration(Duration::from_secs(u64::from(waiting.extra_sec)));
                let message = format!("an extension by {waits} already waits for the provider's answer");
                Err(CliError::new(Kind::Refused, "extension_waiting", message)
                    .hint("give the same --for to wait for that one; another can be asked for once it is answered"))
            }
        }
    }
}

/// The grant, if it runs and can last longer.
fn running(view: &MarketView, id: &RequestId) -> Result<GrantRecord> {
    let refused = |code: &str, message: String| Err(CliError::new(Kind::Refused, code, message));
    match view.request_status(id) {
        RequestStatus::Granted(record) => match &record.stage {
            GrantStage::Serving if record.ending_ms.is_none() => Ok(record.clone()),
            GrantStage::Serving => refused("already_ending", "the grant is being ended; it gets no longer".into()),
            GrantStage::Granted => refused("not_serving", "the grant is not served yet; try again when it runs".into()),
            GrantStage::Ended(end) => refused("grant_ended", format!("the grant has ended: {}", log::end_words(end))),
        },
        RequestStatus::Open(_) => refused("no_grant", "the request has no grant yet".into()),
        RequestStatus::Ended(_) => refused("no_grant", "the request ended without a grant".into()),
        RequestStatus::Unknown => refused("unknown_request", "the market does not know this request".into()),
    }
}

/// How it was answered.
enum Answer {
    Longer,
    Declined(String),
    Over,
}

async fn wait(
    market: &Follower<MarketView>,
    id: &RequestId,
    number: u32,
    longer: &ComputeGrant,
    patience: Duration,
) -> Result<Answer> {
    let answered = market.wait_for(patience, |view| answer(view.grant(id)?, number, longer)).await;
    answered.map_err(|error| {
        CliError::new(Kind::TimedOut, "no_answer", "the provider has not answered yet").because(error).hint(
            "the same command goes on waiting; unanswered, it lapses when the grant ends. `coalition log` shows it",
        )
    })
}

fn answer(record: &GrantRecord, number: u32, longer: &ComputeGrant) -> Option<Answer> {
    if record.grant.valid_to_ms >= longer.valid_to_ms {
        return Some(Answer::Longer);
    }
    if !record.is_live() {
        return Some(Answer::Over);
    }
    let answered = record.extras.answered.iter().find(|answered| answered.asked.number == number);
    match answered.map(|answered| answered.answer) {
        Some(ExtensionAnswer::Declined(reason)) => Some(Answer::Declined(word(&reason))),
        // Answered before what is kept here: not longer, so it was no yes.
        None if record.extras.asked >= number && record.extras.waiting.is_none() => {
            Some(Answer::Declined("no reason is kept here".into()))
        }
        _ => None,
    }
}
