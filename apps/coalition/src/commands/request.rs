//! `coalition request`: ask for a machine.

use crate::{
    attestation::{NOT_ATTESTED, labelled},
    cli::{RequestArgs, WaitArgs},
    error::{CliError, Result},
    grants::{self, Grant},
    home::Home,
    output::{Output, Paint},
    request::{
        self, Request,
        plan::{Ask, Until},
    },
    values,
};

/// Requests a machine and says how to get in.
///
/// # Errors
/// As [`request::run`].
pub async fn run(home: &Home, args: &RequestArgs, output: &Output) -> Result<()> {
    let shown_as = if args.as_member {
        home.ensure()?;
        Some(grants::own_identity(home)?)
    } else {
        None
    };
    let request = Request {
        ask: Ask {
            cpu_millicores: args.cpu.0,
            ram_mib: args.ram.0,
            region: args.region.clone(),
            duration_s: args.duration.0,
            max_rate: args.max_rate,
            tdx: args.tdx || args.mrtd.is_some(),
            mrtd: args.mrtd,
            until: args.deadline.map_or(Until::After(args.wait.as_ms()), |moment| Until::At(moment.0)),
            anyway: args.anyway,
        },
        image: args.image.clone(),
        stores: args.store.clone(),
        detach: args.detach,
        disk_mib: args.disk.map(|disk| disk.0),
        workload: args.workload.clone(),
        provision_wait: args.provision_wait.get(),
        shown_as,
    };
    let mut steps = output.steps();
    let grant = Box::pin(request::run(home, &request, &mut steps)).await?;
    if args.detach {
        let flag = home_flag(home);
        let short = grant.short();
        output.line(format!(
            "\n{}  granted; get in with\n  coalition{flag} wait {short} && coalition{flag} ssh {short}",
            output.paint(Paint::Bold, &short)
        ));
        return Ok(());
    }
    say(home, &grant, output)
}

/// Waits for the receipt of an earlier request and says how to get in.
///
/// # Errors
/// As [`request::resume::run`].
pub async fn wait(home: &Home, args: &WaitArgs, output: &Output) -> Result<()> {
    let grant = grants::find(home, args.grant.as_deref())?;
    let mut steps = output.steps();
    let grant = Box::pin(request::resume::run(home, grant, args.patience.get(), &mut steps)).await?;
    if output.is_json() {
        output.answer(&serde_json::json!({ "ready": true, "grant": grant.file.grant }), |_| String::new());
    }
    say(home, &grant, output)
}

fn say(home: &Home, grant: &Grant, output: &Output) -> Result<()> {
    if output.is_json() {
        // The receipt step has said everything.
        return Ok(());
    }
    let text = how_to_get_in(home, grant, output)?;
    output.line(text);
    Ok(())
}

fn how_to_get_in(home: &Home, grant: &Grant, output: &Output) -> Result<String> {
    let missing = || CliError::fault("internal", "the receipt was not kept");
    let access = grant.file.access.as_ref().ok_or_else(missing)?;
    let cleared = grant.file.cleared.as_ref().ok_or_else(missing)?;
    let short = grant.short();
    let flag = home_flag(home);
    Ok(format!(
        "\n{}  {}@{} port {}, until {}\n{}; {}\n{}\n  coalition{flag} ssh {short}\n  coalition{flag} end {short}",
        output.paint(Paint::Bold, &short),
        access.user,
        access.host,
        access.port,
        values::utc(cleared.valid_to_ms),
        posture_words(&access.posture, |paint, text| output.paint(paint, text)),
        split_isolation(&access.isolation).0,
        losses(&access.isolation, "  "),
    ))
}

/// What vouches for the machine and how strongly the workload is isolated, on one line.
#[must_use]
pub fn posture_line(posture: &str, isolation: &str, output: &Output) -> String {
    let vouched = posture_words(posture, |paint, text| output.paint_err(paint, text));
    format!("{vouched}; {}", split_isolation(isolation).0)
}

/// What vouches for the machine: in red when nothing does, or a development root.
fn posture_words(posture: &str, paint: impl Fn(Paint, &str) -> String) -> String {
    if posture.starts_with(NOT_ATTESTED) {
        return paint(Paint::Bad, &format!("plain host: {posture}"));
    }
    match posture.strip_prefix("valid") {
        Some(rest) => format!("guest quote: {}{}", paint(Paint::Good, "valid"), labelled(rest, paint)),
        None => format!("guest quote: {}", paint(Paint::Bad, posture)),
    }
}

/// A provider's statement of isolation: its name, and each thing that is weaker than full isolation.
#[must_use]
pub fn split_isolation(isolation: &str) -> (&str, Vec<&str>) {
    let mut parts = isolation.split("; ");
    (parts.next().unwrap_or_default(), parts.collect())
}

/// The losses of a statement of isolation as indented lines; nothing when there are none.
#[must_use]
pub fn losses(isolation: &str, indent: &str) -> String {
    split_isolation(isolation).1.iter().map(|loss| format!("{indent}- {loss}\n")).collect()
}

/// ` --home DIR` for commands shown to a person, where it is needed.
#[must_use]
pub fn home_flag(home: &Home) -> String {
    match Home::locate(None) {
        Ok(default) if default == *home => String::new(),
        _ => match std::env::var_os("COALITION_HOME") {
            Some(set) if Home::locate(Some(set.as_ref())).is_ok_and(|set| set == *home) => String::new(),
            _ => format!(" --home {}", home.root().display()),
        },
    }
}
