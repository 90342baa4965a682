//! `coalition grants`: what was requested from here.

use coalition_attest::DEVELOPMENT_LABEL;
use serde_json::json;

use crate::{
    attestation::NOT_ATTESTED,
    error::Result,
    grants::{self, Grant},
    home::Home,
    output::{Output, table},
    request::plan::dollars,
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
    let value = json!({ "grants": grants.iter().map(|grant| &grant.file).collect::<Vec<_>>() });
    output.answer(&value, |_| {
        if grants.is_empty() {
            return format!("nothing was requested from {}\n", home.root().display());
        }
        let rows: Vec<_> = grants.iter().map(row).collect();
        table(&["GRANT", "STAGE", "SIZE", "PROVIDER", "RATE", "UNTIL", "REQUESTED", "VOUCHED FOR"], &rows)
    });
    Ok(())
}

fn row(grant: &Grant) -> Vec<String> {
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
