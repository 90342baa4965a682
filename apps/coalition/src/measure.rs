//! What a machine's own counters say, read over the grant's SSH access, and committed as the requester's report.

use std::time::Duration;

use coalition_compute::{Command, CounterSource, GrantStage, MarketView, ReportUsage, Signed};
use coalition_host::{
    IsolationLevel,
    counters::{Counters, SCRIPT, Source},
};
use coalition_organism::Follower;
use ed25519_dalek::SigningKey;

use crate::{
    commands::ssh::access,
    error::{CliError, Context, Kind, Result},
    grants::Grant,
    request::{now_ms, write},
    session::Session,
    ssh_client,
};

/// How long reading the counters may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// Reads the counters of a running grant and commits them.
///
/// # Errors
/// A grant that cannot be entered, a machine that shows no counters of its own, the market's refusals.
pub async fn report(session: &Session, market: &Follower<MarketView>, grant: &Grant) -> Result<ReportUsage> {
    let id = grant.file.grant;
    let (served, number) = market.read(|view| {
        let record = view.grant(&id);
        let served = record.is_some_and(|record| record.stage == GrantStage::Serving);
        let last = record.and_then(|record| record.extras.report.as_ref()).map_or(0, |last| last.report.number);
        (served, last.saturating_add(1))
    });
    if !served {
        return Err(CliError::new(Kind::Refused, "not_serving", "the grant does not run; there is nothing to measure"));
    }
    let counters = read(grant).await?;
    let statement = ReportUsage {
        grant_id: id,
        number,
        measured_ms: now_ms(),
        cpu_core_ms: counters.cpu_core_ms,
        ram_mib: u32::try_from(counters.ram_mib).unwrap_or(u32::MAX),
        net_bytes: counters.net_bytes,
        source: match counters.source {
            Source::Cgroup => CounterSource::Cgroup,
            Source::Proc => CounterSource::Proc,
        },
    };
    let key = SigningKey::from_bytes(grant.request_key()?.expose());
    let signed = Signed::sign(statement.clone(), &key, &session.compute.id);
    let signed = signed.or_fault("internal", || "the report cannot be signed".into())?;
    write(market.organism(), &Command::ReportUsage(signed)).await?;
    Ok(statement)
}

async fn read(grant: &Grant) -> Result<Counters> {
    let access = access(grant)?;
    let refused = |message: String| CliError::new(Kind::Refused, "not_measurable", message);
    if access.isolation.starts_with(&IsolationLevel::ProcessLimits.to_string()) {
        return Err(refused("the machine is not isolated; the counters inside are those of its whole host".into()));
    }
    let ran = tokio::time::timeout(PATIENCE, ssh_client::run(grant, access, SCRIPT)).await;
    let unreachable = || "the machine's counters cannot be read".to_owned();
    let ran = ran.map_err(|_| refused(format!("no counters within {} s", PATIENCE.as_secs())))?;
    let ran = ran.or_input("not_measurable", unreachable)?;
    Counters::parse(&String::from_utf8_lossy(&ran.output)).or_input("not_measurable", unreachable)
}
