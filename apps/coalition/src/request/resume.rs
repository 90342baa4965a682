//! Waiting for the receipt of a request that another process made and did not wait for.

use std::time::Duration;

use coalition::AlmanacTick;

use super::{
    flow::{Asked, Attempt, Request},
    plan::{Ask, Checked, Until},
    wanted::{ImageChoice, Wanted},
};
use crate::{
    error::{CliError, Context, Kind, Result},
    grants::{Grant, Stage},
    home::Home,
    output::Steps,
    session::Session,
    signals::StopSignals,
};

/// Waits until one can log in, at most `patience`. The request stays as it is when that fails.
///
/// # Errors
/// [`Kind::Input`] when it is over or its keys are gone; else as for a request.
pub async fn run(home: &Home, grant: Grant, patience: Duration, steps: &mut Steps) -> Result<Grant> {
    match grant.file.stage {
        Stage::Ready => return Ok(grant),
        Stage::Requested | Stage::Granted => {}
        over @ (Stage::Withdrawn | Stage::Ended) => {
            let message = format!("request {} is {}", grant.short(), over.word());
            return Err(CliError::input("grant_ended", message).hint("`coalition grants` lists what there is"));
        }
    }
    let (pending, key) = grant.pending()?;
    let hash =
        coalition::parse_id(&grant.file.image).or_input("grant_damaged", || "the grant names no image".into())?;
    let file = grant.file.clone();
    steps.begin("joining the coalition");
    let session = Session::open_as(home, key).await?;
    let market = session.market(steps.output()).await?;
    let request = Request {
        ask: Ask {
            cpu_millicores: file.cpu_millicores,
            ram_mib: file.ram_mib,
            region: None,
            duration_s: u64::from(file.duration_s),
            max_rate: file
                .cleared
                .as_ref()
                .map_or_else(|| "0".parse(), |cleared| Ok(cleared.rate))
                .or_fault("internal", || "a constant".into())?,
            tdx: false,
            mrtd: None,
            until: Until::After(0),
            anyway: true,
        },
        image: ImageChoice::Stored(hash),
        stores: Vec::new(),
        detach: false,
        disk_mib: None,
        workload: Vec::new(),
        provision_wait: patience,
        shown_as: None,
    };
    let wait_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
    let checked =
        Checked { duration_s: file.duration_s, deadline: AlmanacTick(0), wait_ms, expected_rate: None, note: None };
    let wanted = Wanted::elsewhere(hash);
    let mut stop = StopSignals::listen()?;
    let asked = Asked { session: &session, market: &market, request: &request, wanted: &wanted, checked: &checked };
    let mut attempt = Attempt::resume(asked, (grant, pending))?;
    let outcome = tokio::select! {
        outcome = attempt.go_on(home, steps) => outcome,
        () = stop.received() => Err(CliError::new(Kind::Interrupted, "interrupted", "interrupted; the request stays as it is")),
    };
    drop(attempt);
    drop(market);
    session.close().await;
    outcome.map_err(|error| {
        error.and_hint(&format!("wait on with `coalition wait {}`", crate::grants::short(&file.grant)))
    })
}
