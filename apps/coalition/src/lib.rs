//! The `coalition` command: a development coalition, the requester's and the auditor's side, and every role as a process.
//!
//! * [`cli`]: what can be typed. [`commands`]: one file for each command. [`values`]: cores, sizes, durations.
//! * [`output`], [`error`]: what is printed, and how it ends.
//! * [`home`], [`grants`], [`config_file`]: what is on disk.
//! * [`devnet`]: making a development coalition. [`roles`]: its processes. [`supervise`]: keeping them running.
//! * [`signals`]: what ends a command early, cleanly.
//! * [`stores`]: content stores, as this home's pusher or as nobody in particular.
//! * [`attestation`]: quotes of workloads, judged and shown. [`tickets`]: what a client shows where it is asked for tickets.
//! * [`session`], [`view`]: a client's verified look at a running coalition. [`request`], [`image`]: asking for a machine.
//!
//! A new command is a variant of [`cli::Command`] and a file below `commands`.

#![allow(rustdoc::invalid_html_tags, reason = "clap prints these comments as help")]

pub mod attestation;
pub mod cli;
pub mod commands;
pub mod config_file;
pub mod devnet;
pub mod error;
pub mod grants;
pub mod home;
pub mod image;
pub mod names;
pub mod output;
pub mod request;
pub mod roles;
pub mod session;
pub mod signals;
pub mod ssh_client;
pub mod stores;
pub mod supervise;
pub mod tickets;
pub mod values;
pub mod view;

use std::{ffi::OsString, process::ExitCode};

use clap::Parser;
use tracing_subscriber::{EnvFilter, fmt};

use crate::{cli::Cli, error::CliError, output::Output};

/// The whole program. Answers the process's exit code.
#[must_use]
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // The workload runner has a command line, an output and exit codes of its own; nothing here may come between.
    if arguments.get(1).is_some_and(|word| word == "runner") {
        return coalition_host::runner_main(&arguments[2..]);
    }
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return explain(&error, &arguments),
    };
    start_logging(&cli);
    let output = Output::process(cli.global.json);
    match commands::dispatch(&cli, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output.error(&error);
            error.exit_code()
        }
    }
}

/// Help and version go to stdout with status 0; a wrong command line to stderr with status 2, or as JSON when asked for.
fn explain(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    let wants_json = arguments.iter().take_while(|word| *word != "--").any(|word| word == "--json");
    if error.use_stderr() && wants_json {
        let text = error.render().to_string();
        let message = text.trim().strip_prefix("error: ").unwrap_or(text.trim()).to_owned();
        let error = CliError::new(error::Kind::Usage, "usage", message);
        Output::process(true).error(&error);
        return error.exit_code();
    }
    // Nobody left to tell when this fails.
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Logs go to stderr: for roles always, for commands only when asked for. `COALITION_LOG` overrides both.
fn start_logging(cli: &Cli) {
    let is_role = matches!(cli.command, cli::Command::Run(_));
    let is_bridge = matches!(cli.command, cli::Command::Run(cli::RunCommand::Bridge(_)));
    let bridge_filter = roles::bridge::log_filter();
    let default = match (is_role, cli.global.verbose) {
        // Whatever is asked for, no library that names requesters' network identities.
        _ if is_bridge => &bridge_filter,
        (false, 0) => "off",
        (true, 0) => {
            "warn,iroh=off,iroh_gossip=off,coalition_cli=info,coalition_content=info,compute_bridge=info,coalition_organism=info,coalition_unseal=info"
        }
        (_, 1) => {
            "warn,iroh=off,iroh_gossip=off,coalition_cli=debug,coalition_content=debug,compute_bridge=debug,coalition_organism=debug,coalition_unseal=debug,coalition_universe=debug"
        }
        _ => "debug",
    };
    let filter = std::env::var("COALITION_LOG").unwrap_or_else(|_| default.to_owned());
    let Ok(filter) = EnvFilter::try_new(&filter) else { return };
    let logs = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).with_target(true);
    // Else a line that cannot be written, for want of room on the disk say, is complained about on stderr, which panics.
    let logs = logs.log_internal_errors(false);
    // Already set only in tests that call this twice.
    let _ = if is_role { logs.try_init() } else { logs.without_time().try_init() };
}
