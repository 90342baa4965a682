//! `coalition grants`: what was requested from here.

use coalition_attest::DEVELOPMENT_LABEL;
use coalition_host::ExitOutcome;
use serde_json::json;

use super::logs::exit_words;
use crate::{
    attestation::NOT_ATTESTED,
    error::Result,
    grants::{self, Grant, KeyState},
    home::Home,
    output::{Output, table},
    request::{now_ms, plan::dollars},
    values,
};

/// Lists the grants, newest first.
///
/// # Errors
/// When the directory cannot be read.
pub fn run(home: &Home, output: &Output) -> Result<()> {
    let (grants, damaged) = grants::list(home)?;
    for error in damaged {
        output.warn(error.to_string());
    }
    let now = now_ms();
    let shown = grants.iter().map(|grant| {
        let mut value = json!(grant.file);
        value["key"] = json!(grant.file.key(now));
        value
    });
    let value = json!({ "grants": shown.collect::<Vec<_>>() });
    output.answer(&value, |_| {
        if grants.is_empty() {
            return format!("nothing was requested from {}\n", home.root().display());
        }
        let rows: Vec<_> = grants.iter().map(|grant| row(grant, now)).collect();
        let headings =
            ["GRANT", "STAGE", "SIZE", "PROVIDER", "RATE", "UNTIL", "REQUESTED", "VOUCHED FOR", "EXIT", "KEY"];
        table(&headings, &rows)
    });
    Ok(())
}

fn row(grant: &Grant, now: u64) -> Vec<String> {
    let file = &grant.file;
    let size =
        format!("{} cpu, {}", values::cores(u64::from(file.cpu_millicores)), values::mib(u64::from(file.ram_mib)));
    let cleared = file.cleared.as_ref();
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    vec![
        grant.short(),
        file.stage.word().into(),
        size,
        or_dash(cleared.map(|cleared| cleared.provider[..8.min(cleared.provider.len())].to_owned())),
        or_dash(cleared.map(|cleared| dollars(cleared.rate))),
        or_dash(cleared.map(|cleared| values::utc(cleared.valid_to_ms))),
        values::utc(file.requested_ms),
        or_dash(file.access.as_ref().map(|access| vouched(&access.posture).to_owned())),
        or_dash(file.workload_exit.map(|exit| match exit.outcome {
            ExitOutcome::Code(code) => code.to_string(),
            ExitOutcome::Signal(_) => exit_words(exit.outcome),
        })),
        match file.key(now) {
            KeyState::None => "-".into(),
            KeyState::Live => "live".into(),
            KeyState::Dead => "dead".into(),
        },
    ]
}

/// What vouched for a machine when its receipt came, in a word; whose root it was is never left out.
fn vouched(posture: &str) -> &str {
    match posture {
        said if said.contains(DEVELOPMENT_LABEL) => DEVELOPMENT_LABEL,
        said if said.starts_with("valid") => "Intel",
        said if said.starts_with(NOT_ATTESTED) => NOT_ATTESTED,
        _ => "not valid",
    }
}
