//! `coalition attest fetch`: collateral from a service into a directory.

use coalition_attest::{
    CollateralKey, Directory, Quote,
    pccs::{PccsError, Service, Stored, fetch_into},
};
use serde_json::json;

use super::read;
use crate::{
    cli::AttestFetchArgs,
    error::{CliError, Context, Kind, Result},
    home::Home,
    output::{Output, Paint},
    values,
};

/// Fetches and stores.
///
/// # Errors
/// [`Kind::Unreachable`] when the service does not answer, [`Kind::Input`] when it is none or the quote names no platform.
pub(super) async fn fetch(home: &Home, args: &AttestFetchArgs, output: &Output) -> Result<()> {
    let (service, key) = (service(args)?, platform(args)?);
    let into = args.into.clone().unwrap_or_else(|| home.collateral());
    std::fs::create_dir_all(&into).or_input("unwritable", || format!("cannot make {}", into.display()))?;
    let mut steps = output.steps();
    steps.begin(&format!("asking {} about {key}", service.url()));
    let stored = fetch_into(&service, key, &Directory::new(into)).await;
    steps.pause();
    let stored = stored.map_err(|error| refused(&service, error))?;
    let claimed = &stored.claimed;
    let value = json!({
        "platform": key.to_string(), "file": stored.path, "changed": stored.changed, "tcb_evaluation": claimed.tcb_evaluation,
        "issued_s": claimed.issued_s, "next_update_s": claimed.next_update_s, "service": service.url(),
    });
    output.answer(&value, |output| shown(&stored, output));
    Ok(())
}

fn shown(stored: &Stored, output: &Output) -> String {
    let claimed = &stored.claimed;
    let state = if stored.changed { "stored" } else { "as before" };
    let date = |seconds: u64| values::utc(seconds.saturating_mul(1_000));
    format!(
        "{}  {}\n  TCB evaluation {}, of {}, next due {}\n  {}",
        output.paint(Paint::Good, state),
        stored.path.display(),
        claimed.tcb_evaluation,
        date(claimed.issued_s),
        date(claimed.next_update_s),
        output.paint(Paint::Warn, "its signatures are checked when a quote is judged"),
    )
}

fn service(args: &AttestFetchArgs) -> Result<Service> {
    let Some(url) = &args.pccs else { return Ok(Service::intel()) };
    let wrong = |error| CliError::input("bad_value", "the service cannot be asked").because(error);
    let service = Service::at(url).map_err(wrong)?;
    match &args.root_crl {
        Some(url) => service.with_root_crl(url).map_err(wrong),
        None => Ok(service),
    }
}

fn platform(args: &AttestFetchArgs) -> Result<CollateralKey> {
    if let Some(family) = &args.platform {
        return family.parse().or_input("bad_value", || format!("--platform {family:?} is no platform family"));
    }
    let Some(path) = &args.quote else {
        return Err(CliError::input("bad_value", "give a quote or --platform"));
    };
    let unnamed = || format!("{} names no platform", path.display());
    let evidence = read(path)?;
    let quote = Quote::parse(&evidence.quote).or_input("malformed", unnamed)?;
    quote.collateral_key().or_input("malformed", unnamed)
}

fn refused(service: &Service, error: PccsError) -> CliError {
    let message = format!("no collateral came from {}", service.url());
    match error {
        PccsError::Fetch { .. } | PccsError::Status { .. } => {
            CliError::new(Kind::Unreachable, "service_unreachable", message).because(error)
        }
        PccsError::Store(_) => CliError::fault("disk", message).because(error),
        PccsError::Older { .. } => CliError::new(Kind::Refused, "older", message).because(error),
        _ => CliError::new(Kind::Refused, "unusable_answer", message).because(error),
    }
}
