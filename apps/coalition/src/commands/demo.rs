//! `coalition demo`: everything once, in a throw-away home.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use coalition_compute::{Command, EndGrant, MarketView, Signed};
use coalition_organism::Follower;
use ed25519_dalek::SigningKey;
use serde_json::json;

use super::{
    log,
    request::{losses, posture_line},
    ssh,
    up::{self, Coalition},
    verify,
};
use crate::{
    cli::UpArgs,
    error::{CliError, Context, Kind, Result},
    grants::{Grant, Stage},
    home::Home,
    image,
    output::{Output, Paint, Steps},
    request::{
        self, Request,
        plan::{Ask, Until, dollars},
    },
    roles::config::read_published,
    session::{READ_WAIT, Session, unanswered},
    signals::StopSignals,
    ssh_client, values,
};

/// What runs in the workload.
const PROGRAM: &str = "uname -n; id; hello 2>/dev/null || echo hello";
/// How long the provider may take to commit the final usage log.
const FINAL_LOG_WAIT: Duration = Duration::from_secs(60);

/// Runs the demo; below a temporary directory unless `asked` names one.
///
/// # Errors
/// The first step that fails. Everything is stopped and, when temporary, removed all the same.
pub async fn run(asked: Option<&Path>, output: &Output) -> Result<()> {
    let temporary = match asked {
        Some(_) => None,
        None => Some(
            tempfile::Builder::new()
                .prefix("coalition-demo-")
                .tempdir()
                .or_fault("disk", || "no temporary directory".into())?,
        ),
    };
    let root =
        asked.map_or_else(|| temporary.as_ref().map(|dir| dir.path().join("home")), |asked| Some(asked.to_path_buf()));
    let home = Home::locate(root.as_deref())?;
    let mut steps = output.steps();
    title(output, "Bring a coalition up on this machine");
    let mut stop = StopSignals::listen()?;
    let mut coalition = up::prepare(&home, &sale()?, &mut steps)?;
    let told = tokio::select! {
        told = tell(&home, &mut coalition, &mut steps) => told,
        () = stop.received() => Err(CliError::new(Kind::Interrupted, "interrupted", "interrupted; everything was stopped")),
    };
    steps.begin("stopping every role");
    coalition.stop().await;
    let evidence = told?;
    steps.done("stopped", "no node is running any more", json!({}));
    title(output, "Verify the usage log from the hex config alone");
    prove(&home, &evidence, &mut steps)?;
    let kept = temporary.is_none();
    if let Some(dir) = temporary {
        dir.close().or_fault("disk", || "the temporary directory cannot be removed".into())?;
    }
    let text = if kept {
        format!("the files are in {}", home.root().display())
    } else {
        "nothing is left on this machine".to_owned()
    };
    steps.done("done", &format!("all of it in {}; {text}", values::duration(steps.elapsed())), json!({ "ok": true }));
    Ok(())
}

/// A fixed small price list, so that the demo shows the same everywhere.
fn sale() -> Result<UpArgs> {
    let valid = || "the demo's constants".to_owned();
    Ok(UpArgs {
        name: "demo".into(),
        rate: "0.02".parse().or_fault("internal", valid)?,
        gib_rate: "0.004".parse().or_fault("internal", valid)?,
        region: "local".parse().or_fault("internal", valid)?,
        cpu: None,
        ram: None,
        new_ports: false,
        attested: false,
    })
}

/// Everything that needs the coalition up. Answers the evidence file of the usage log.
async fn tell(home: &Home, coalition: &mut Coalition, steps: &mut Steps) -> Result<PathBuf> {
    let output = steps.output().clone();
    if coalition.wait_up(steps).await?.is_none() {
        return Err(CliError::fault("no_offer", "the bridge offers nothing").hint(format!(
            "run `coalition --home DIR demo` and look into DIR/logs/bridge.log; here: {}",
            home.log("bridge").display()
        )));
    }
    title(&output, "Ask for a machine");
    let path = home.root().join("hello.tar");
    let source = image::make_example(&path)?;
    let facts = image::read_facts(&path, u64::MAX)?;
    let text = format!("hello.tar, {} KiB, from {}", facts.size_bytes.div_ceil(1_024), source_words(&source));
    steps.done("image", &text, json!({ "image_bytes": facts.size_bytes, "blake3": facts.hash.to_string() }));
    let request = Request {
        ask: Ask {
            cpu_millicores: 500,
            ram_mib: 128,
            region: Some(coalition.devnet().manifest.sale.region.clone()),
            duration_s: 600,
            max_rate: "0.05".parse().or_fault("internal", || "a constant".into())?,
            tdx: false,
            mrtd: None,
            until: Until::After(30_000),
            anyway: false,
        },
        image: request::ImageChoice::File(path),
        stores: Vec::new(),
        detach: false,
        disk_mib: None,
        workload: Vec::new(),
        provision_wait: Duration::from_secs(180),
        shown_as: None,
    };
    let mut grant = Box::pin(request::run(home, &request, steps)).await?;
    title(&output, "Run a command inside, over SSH");
    log_in(&grant, steps).await?;
    title(&output, "End it, and see what was committed");
    Box::pin(finish(home, &mut grant, steps)).await
}

fn source_words(source: &image::ExampleSource) -> String {
    match source {
        image::ExampleSource::Busybox(path) => format!("static {}", path.display()),
        image::ExampleSource::DynamicTools => "this machine's shell and tools".into(),
    }
}

/// Runs [`PROGRAM`] with OpenSSH's client, or without it where there is none.
async fn log_in(grant: &Grant, steps: &mut Steps) -> Result<()> {
    let access = ssh::access(grant)?;
    steps.begin("logging in");
    let ran = tokio::process::Command::new("ssh")
        .args(ssh::arguments(grant, access, &[], &[PROGRAM.to_owned()]))
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    let (client, status, printed) = match ran {
        Ok(ran) => ("OpenSSH's client", ran.status.code().unwrap_or(255), [ran.stdout, ran.stderr].concat()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let ran = ssh_client::run(grant, access, PROGRAM).await.or_fault("ssh", || "cannot log in".into())?;
            ("the built-in client, because this machine has no `ssh`", i32::from(ran.status), ran.output)
        }
        Err(error) => return Err(CliError::fault("ssh", "ssh cannot be started").because(error)),
    };
    let printed = String::from_utf8_lossy(&printed).trim_end().to_owned();
    if status != 0 {
        return Err(
            CliError::fault("ssh", format!("the command in the workload ended with status {status}")).because(printed)
        );
    }
    let shown: Vec<String> = printed.lines().map(|line| format!("      | {line}")).collect();
    let losses = losses(&access.isolation, "      ");
    let posture = posture_line(&access.posture, &access.isolation, steps.output());
    steps.done(
        "ssh",
        &format!("by {client}, host key pinned; {posture}"),
        json!({ "status": status, "printed": printed }),
    );
    steps.output().note(shown.join("\n"));
    if !losses.is_empty() {
        steps.output().note(format!("weaker than full isolation here:\n{}", losses.trim_end()));
    }
    Ok(())
}

/// Ends the grant, waits for its final log, keeps the proof of it.
async fn finish(home: &Home, grant: &mut Grant, steps: &mut Steps) -> Result<PathBuf> {
    let id = grant.file.grant;
    let session = Session::open(home).await?;
    let market: Follower<MarketView> = session.market(steps.output()).await?;
    let key = SigningKey::from_bytes(grant.request_key()?.expose());
    let end = Signed::sign(EndGrant { grant_id: id }, &key, &session.compute.id);
    let end = end.or_fault("internal", || "the statement cannot be signed".into())?;
    steps.begin("ending the grant");
    request::write(market.organism(), &Command::EndGrant(end)).await?;
    grant.update(|file| file.stage = Stage::Ended)?;
    steps.done("ending", "the committee told the provider to stop it", json!({ "grant": id }));
    steps.begin("waiting for the final usage log");
    let usage = market.wait_for(FINAL_LOG_WAIT, |view| log::final_usage(view, &id)).await.map_err(|error| {
        CliError::new(Kind::TimedOut, "no_final_log", "the provider has not logged the end").because(error)
    })?;
    steps.done("ended", &usage.text, json!({ "usage": usage.usage, "end": usage.how }));
    let (pointer, rate) = market
        .read(|view| {
            let record = view.grant(&id)?;
            Some((record.logs.last()?.pointer, record.grant.rate))
        })
        .ok_or_else(|| CliError::fault("no_log", "the grant has no usage log"))?;
    let evidence = market.organism().evidence(pointer.index, READ_WAIT).await;
    let evidence = evidence.map_err(|error| unanswered(error, "market"))?;
    let path = home.root().join("usage.evidence");
    std::fs::write(&path, evidence.to_string()).or_fault("disk", || format!("cannot write {}", path.display()))?;
    let text = format!(
        "usage log is entry {} at {} per core-hour; its proof is {} bytes",
        pointer.index,
        dollars(rate),
        evidence.to_string().len()
    );
    steps.done("log", &text, json!({ "pointer": pointer }));
    drop(market);
    session.close().await;
    Ok(path)
}

/// Verifies the proof with every node stopped, then shows that a changed byte is noticed.
fn prove(home: &Home, evidence: &Path, steps: &mut Steps) -> Result<()> {
    let config = read_published(&home.config_hex())?;
    let bytes = std::fs::read(evidence).or_fault("disk", || format!("cannot read {}", evidence.display()))?;
    let proven = verify::check(&bytes, &config)?;
    let text = format!(
        "proven by {} of {} members ({} needed): {}",
        proven.signers.len(),
        proven.members,
        proven.quorum,
        proven.signers.join(", ")
    );
    steps.done("verify", &text, json!({ "proven": true, "signed_by": proven.signers, "quorum": proven.quorum }));
    let mut changed = bytes;
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    match verify::check(&changed, &config) {
        Err(error) => {
            let reason = error.causes().into_iter().next().unwrap_or_else(|| error.to_string());
            steps.done(
                "tampered",
                &format!("one bit changed: rejected, {reason}"),
                json!({ "proven": false, "reason": reason }),
            );
            Ok(())
        }
        Ok(_) => Err(CliError::fault("accepted_tampered", "a changed proof was accepted; do not trust this build")),
    }
}

fn title(output: &Output, text: &str) {
    output.note(format!("\n{}", output.paint_err(Paint::Bold, text)));
}
