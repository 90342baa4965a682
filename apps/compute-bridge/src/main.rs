//! The `compute-bridge` program: a thin shell around the library.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use coalition::ProviderId;
use compute_bridge::config::{BridgeConfig, EXAMPLE};
use compute_bridge::evidence::{self, Shown};
use compute_bridge::{BridgeError, LOG_FILTER, check, exit_code, explain};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Sell the capacity of your machines on a coalition's Compute market.
#[derive(Parser)]
#[command(name = "compute-bridge", version, arg_required_else_help = true)]
struct Cli {
    /// One JSON object per line, for logs and results.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the bridge until Ctrl-C or SIGTERM.
    Run(BootFile),
    /// Check the boot file, the coalition's config, every machine by logging in and probing it, and every cloud by asking what a grant
    /// would ask.
    Check {
        #[command(flatten)]
        file: BootFile,
        /// Also make one machine on each cloud, log in, and end it. Costs what plain `check` states.
        #[arg(long)]
        create: bool,
    },
    /// List every instance on every backend: owned, adopted or orphaned, with age and cost; and the backends that cannot be seen. The
    /// bridge may be running: its journal is only read. Exit status 5 when something is orphaned or cannot be seen.
    Inventory(BootFile),
    /// What clouds themselves counted of machines, kept and signed: what the `evidence` of final logs points to. The bridge may be
    /// running.
    #[command(subcommand)]
    Evidence(EvidenceCommand),
    /// Print a commented example of a boot file.
    ExampleConfig,
    /// What the bridge calls on its machines.
    #[command(hide = true)]
    Runner {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

#[derive(Subcommand)]
enum EvidenceCommand {
    /// List what is kept, oldest first.
    List(BootFile),
    /// Show one snapshot: everything the cloud told, and its sums beside the figures of the log, marked where they are more than
    /// 2 % apart.
    Show {
        #[command(flatten)]
        file: BootFile,
        /// Which: its digest, or a grant's id for the newest of it; 64 hex digits.
        wanted: String,
    },
    /// Check a snapshot's file, anybody's: its digest, form, and signature. Exit status 5 when it is not what it should be.
    Verify {
        /// The file.
        file: PathBuf,
        /// The digest that the log's evidence pointer ends with, 64 hex digits.
        digest: String,
        /// The provider the log is of, 64 hex digits.
        provider: String,
    },
}

#[derive(Args)]
struct BootFile {
    /// The boot file; `compute-bridge example-config` prints one to start from.
    boot_file: PathBuf,
}

fn main() -> ExitCode {
    // Before anything else: the runner is called often, by this same program, and must not pay for the rest.
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Some((first, rest)) = args.split_first()
        && first == "runner"
    {
        return coalition_host::runner_main(rest);
    }
    let cli = Cli::parse();
    logging(cli.json);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(cli.json, 1, &format!("the runtime does not start: {error}")),
    };
    match cli.command {
        Command::ExampleConfig => {
            say(EXAMPLE);
            ExitCode::SUCCESS
        }
        Command::Runner { args } => coalition_host::runner_main(&args),
        Command::Run(file) => outcome(cli.json, runtime.block_on(run(&file))),
        Command::Inventory(file) => match runtime.block_on(inventory(&file, cli.json)) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(5),
            Err(error) => outcome(cli.json, Err(error)),
        },
        Command::Evidence(what) => outcome(cli.json, evidence(what, cli.json)),
        Command::Check { file, create } => match runtime.block_on(report(&file, create, cli.json)) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(5),
            Err(error) => outcome(cli.json, Err(error)),
        },
    }
}

async fn run(file: &BootFile) -> Result<(), BridgeError> {
    let config = BridgeConfig::load(&file.boot_file)?;
    compute_bridge::run(config, stop_signal()).await
}

/// Resolves at SIGINT or SIGTERM. A signal that cannot be listened to never comes.
async fn stop_signal() {
    let wait = |kind| async move {
        match signal(kind) {
            Ok(mut stream) => {
                stream.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = wait(SignalKind::interrupt()) => {}
        () = wait(SignalKind::terminate()) => {}
    }
}

async fn report(file: &BootFile, create: bool, json: bool) -> Result<bool, BridgeError> {
    let findings = Box::pin(check::check(BridgeConfig::load(&file.boot_file)?, create)).await?;
    for finding in &findings {
        if json {
            say(&format!("{}\n", serde_json::to_string(finding).unwrap_or_default()));
        } else {
            let mark = if finding.ok { "ok  " } else { "FAIL" };
            say(&format!("{mark}  {}: {}\n", finding.what, finding.detail));
        }
    }
    Ok(findings.iter().all(|finding| finding.ok))
}

async fn inventory(file: &BootFile, json: bool) -> Result<bool, BridgeError> {
    let found = Box::pin(compute_bridge::inventory::of_boot_file(BridgeConfig::load(&file.boot_file)?)).await?;
    if json {
        say(&format!("{}\n", serde_json::to_string(&found).unwrap_or_default()));
    } else {
        say(&found.to_string());
    }
    Ok(found.is_clean())
}

fn evidence(what: EvidenceCommand, json: bool) -> Result<(), BridgeError> {
    let dir = |file: &BootFile| {
        let config = BridgeConfig::load(&file.boot_file)?;
        Ok::<_, BridgeError>(config.absolute(config.data_dir.get_ref()))
    };
    match what {
        EvidenceCommand::List(file) => evidence::list(&dir(&file)?)?.iter().for_each(|kept| say(&kept.line(json))),
        EvidenceCommand::Show { file, wanted } => {
            let (kept, signed) = evidence::find(&dir(&file)?, &wanted)?;
            say(&Shown::of(kept, signed.statement).text(json));
        }
        EvidenceCommand::Verify { file, digest, provider } => {
            let digest = evidence::parse_id("digest", &digest)?;
            let provider = ProviderId(evidence::parse_id("provider", &provider)?);
            let about = evidence::verify(&file, digest, provider)?.statement;
            say(&if json {
                format!("{}\n", serde_json::json!({ "verified": true, "provider": about.provider, "snapshot": about }))
            } else {
                format!(
                    "ok    provider {} signed this of grant {}, a machine on {}\n",
                    about.provider, about.grant_id, about.cloud
                )
            });
        }
    }
    Ok(())
}

fn outcome(json: bool, result: Result<(), BridgeError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(json, exit_code(&error), &explain(&error)),
    }
}

fn fail(json: bool, code: u8, message: &str) -> ExitCode {
    let line = if json {
        format!("{}\n", serde_json::json!({ "error": message, "exit_code": code }))
    } else {
        format!("error: {message}\n")
    };
    // Nobody is left to tell when standard error is closed.
    let _ = std::io::stderr().write_all(line.as_bytes());
    ExitCode::from(code)
}

fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn logging(json: bool) {
    let filter = EnvFilter::try_from_env("COMPUTE_BRIDGE_LOG").unwrap_or_else(|_| EnvFilter::new(LOG_FILTER));
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let base = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour).with_writer(std::io::stderr);
    // Else a line that cannot be written, for want of room on the disk say, is complained about on stderr, which panics.
    let base = base.log_internal_errors(false);
    if json { base.json().init() } else { base.with_target(false).init() }
}
