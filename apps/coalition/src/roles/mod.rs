//! Roles: what runs as a process of its own, from its own config, on one machine or on many.
//!
//! Every role prints one JSON line `{"ready": …}` on stdout when it serves, logs to stderr, and stops on SIGINT or SIGTERM, or
//! when it cannot go on; one that is supervised then prints `{"failed": …}` as well, for a disk that takes no log any more. On SIGHUP it ends at once, as in a crash: a bridge leaves its grants running for its next start.
//! `coalition up` starts these same processes; when it dies, they get SIGHUP.

pub mod admission;
mod beginning;
pub mod bridge;
pub mod config;
pub mod host;
mod member;
mod relay;
mod store;
mod unseal;

use std::{path::Path, time::Duration};

use futures::future::BoxFuture;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    cli::RunCommand,
    error::{CliError, Context, Result},
};

/// How long a role may take to stop before its process ends anyway.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// The same for a bridge, which may have grants to end, log and clean away first.
const BRIDGE_STOP_DEADLINE: Duration = Duration::from_secs(60);
/// Set by `coalition up` for its children: its process id. They end when it does, however it ends.
pub const SUPERVISOR_VARIABLE: &str = "COALITION_SUPERVISOR_PID";

/// A role that serves.
pub(crate) struct Running {
    /// What the ready line says besides role and process.
    ready: Value,
    /// Resolves when the role cannot go on.
    failed: BoxFuture<'static, CliError>,
    /// Stops it cleanly.
    stop: BoxFuture<'static, ()>,
}

/// Runs one role until it is told to stop.
///
/// # Errors
/// When it cannot start or cannot go on.
pub fn run(command: &RunCommand) -> Result<()> {
    follow_supervisor()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.or_fault("runtime", || "cannot start the runtime".into())?;
    let ended = runtime.block_on(serve(command)).map_err(|error| explain_disk(error, which(command).1));
    if let Err(error) = &ended
        && std::env::var_os(SUPERVISOR_VARIABLE).is_some()
    {
        say(&json!({ "failed": error.to_string() }));
    }
    // Whatever still hangs must not keep the process: everything durable is released by now.
    runtime.shutdown_timeout(Duration::from_millis(500));
    ended
}

async fn serve(command: &RunCommand) -> Result<()> {
    let signals = || "cannot listen for signals".to_owned();
    let mut interrupt = signal(SignalKind::interrupt()).or_fault("runtime", signals)?;
    let mut terminate = signal(SignalKind::terminate()).or_fault("runtime", signals)?;
    let mut hangup = signal(SignalKind::hangup()).or_fault("runtime", signals)?;
    let stopped = async {
        tokio::select! {
            _ = interrupt.recv() => Told::Stop,
            _ = terminate.recv() => Told::Stop,
            _ = hangup.recv() => Told::EndNow,
        }
    };
    tokio::pin!(stopped);
    let (name, path) = which(command);
    let running = tokio::select! {
        started = start(command, path) => started?,
        _ = &mut stopped => return Ok(()),
    };
    announce(name, &running.ready);
    tracing::info!(role = name, "ready");
    let ended = tokio::select! {
        error = running.failed => Err(error),
        told = &mut stopped => match told {
            Told::Stop => Ok(()),
            Told::EndNow => {
                tracing::warn!(role = name, "the supervisor is gone; ending at once");
                return Ok(());
            }
        },
    };
    tracing::info!(role = name, "stopping");
    let patience = if name == "bridge" { BRIDGE_STOP_DEADLINE } else { STOP_DEADLINE };
    if tokio::time::timeout(patience, running.stop).await.is_err() {
        tracing::warn!(role = name, "did not stop within {} s; ending anyway", patience.as_secs());
    }
    ended
}

/// What a signal tells a role.
enum Told {
    /// Finish what must be finished, then end.
    Stop,
    /// End as in a crash.
    EndNow,
}

fn which(command: &RunCommand) -> (&'static str, &Path) {
    match command {
        RunCommand::Relay(args) => ("relay", &args.config),
        RunCommand::Host(args) => ("host", &args.config),
        RunCommand::Member(args) => ("member", &args.config),
        RunCommand::Unseal(args) => ("unseal", &args.config),
        RunCommand::Store(args) => ("store", &args.config),
        RunCommand::Bridge(args) => ("bridge", &args.config),
    }
}

async fn start(command: &RunCommand, path: &Path) -> Result<Running> {
    match command {
        RunCommand::Relay(_) => relay::start(path).await,
        RunCommand::Host(_) => host::start(path).await,
        RunCommand::Member(_) => Box::pin(member::start(path)).await,
        RunCommand::Unseal(_) => Box::pin(unseal::start(path)).await,
        RunCommand::Store(_) => Box::pin(store::start(path)).await,
        RunCommand::Bridge(_) => Box::pin(bridge::start(path)).await,
    }
}

/// The ready line is read by whoever started the process, before anything else on stdout.
fn announce(role: &str, details: &Value) {
    say(&json!({ "ready": { "role": role, "pid": std::process::id(), "details": details } }));
}

fn say(line: &Value) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// A full disk is the operator's to mend: which one, and what happens then.
fn explain_disk(error: CliError, config: &Path) -> CliError {
    if !error.is_disk_full() {
        return error;
    }
    let dir = config.parent().and_then(|dir| dir.canonicalize().ok()).unwrap_or_default();
    error.and_hint(&format!(
        "the disk is full: free some space on it (`df -h {}` shows it) and start this again, which `coalition up` does by \
         itself; nothing that was acknowledged is lost",
        dir.display()
    ))
}

/// Asks the kernel for SIGHUP when the supervising process ends, and checks that it has not ended already.
fn follow_supervisor() -> Result<()> {
    let Some(expected) = std::env::var(SUPERVISOR_VARIABLE).ok().and_then(|pid| pid.parse::<i32>().ok()) else {
        return Ok(());
    };
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGHUP)
        .or_fault("runtime", || "cannot follow the supervisor".into())?;
    if nix::unistd::getppid().as_raw() == expected {
        return Ok(());
    }
    Err(CliError::fault("supervisor_gone", format!("process {expected}, which started this one, is gone")))
}
