//! `coalition logs`: what the workload wrote, read from its machine, and how it ended.

use std::{
    io::{self, Write},
    time::Duration,
};

use coalition_host::{
    ExitOutcome,
    output::{LogQuery, Record, Stream},
};
use serde_json::{Value, json};

use super::ssh;
use crate::{
    cli::LogsArgs,
    error::{CliError, Kind, Result},
    grants::{self, Grant, WorkloadExit},
    home::Home,
    output::Output,
    request::now_ms,
    ssh_client::{self, SshClientError},
    values,
};

/// How long a machine may take to say how its workload is, where that is not the question.
const ASIDE: Duration = Duration::from_secs(5);

/// Prints the workload's output and how it ended.
///
/// # Errors
/// An unknown or ended grant, a machine that cannot be reached or hands over none.
pub async fn run(home: &Home, args: &LogsArgs, output: &Output) -> Result<()> {
    let found = grants::find(home, args.grant.as_deref())?;
    if let Err(error) = ssh::access(&found) {
        return Err(gone(&found, error));
    }
    let (mut grant, access) = ssh::enter(home, args.grant.as_deref(), output)?;
    let since_unix_ms = args.since.map_or(0, |since| since.at_ms(now_ms()));
    let query = LogQuery { follow: args.follow, since_unix_ms };
    let mut printed = Ok(());
    let told = ssh_client::output(&grant, &access, query, |record| {
        printed = show(record, output);
        printed.is_ok()
    });
    let last = told.await.map_err(|error| unread(&grant, error))?;
    // Whoever reads our output has read enough.
    if printed.is_err() {
        return Ok(());
    }
    if let Some(Record::Exited { at_unix_ms, outcome }) = last {
        keep(&mut grant, at_unix_ms, outcome)?;
    }
    Ok(())
}

/// The grant is over: what is known of its workload is what was asked in time.
fn gone(grant: &Grant, error: CliError) -> CliError {
    if grant.file.access.is_none() {
        return error;
    }
    let known = match &grant.file.workload_exit {
        Some(exit) => format!("its command had ended: {}", exit_words(exit.outcome)),
        None => "nobody here asked in time how its command ended".to_owned(),
    };
    let message = format!("{error}; its machine is gone, and what the workload wrote with it; {known}");
    CliError::new(Kind::Refused, "grant_over", message).hint(format!("`coalition log {}` has its usage", grant.short()))
}

fn unread(grant: &Grant, error: SshClientError) -> CliError {
    let short = grant.short();
    let (kind, code) = match &error {
        SshClientError::Refused => (Kind::Refused, "grant_over"),
        SshClientError::NotOffered => (Kind::Refused, "no_output"),
        _ => (Kind::Unreachable, "machine_unreachable"),
    };
    CliError::new(kind, code, format!("the output of grant {short} cannot be read to its end"))
        .because(error)
        .hint(format!("`coalition log {short}` says whether the grant goes on"))
}

fn show(record: &Record, output: &Output) -> io::Result<()> {
    if output.is_json() {
        output.line_json(&record_json(record));
        return Ok(());
    }
    match record {
        Record::Output { stream: Stream::Stdout, bytes, .. } => {
            let mut out = io::stdout().lock();
            out.write_all(bytes)?;
            out.flush()
        }
        Record::Output { stream: Stream::Stderr, bytes, .. } => io::stderr().lock().write_all(bytes),
        Record::Gone { bytes } => {
            output.note(format!("[{bytes} bytes that were written here are not kept any more]"));
            Ok(())
        }
        Record::Exited { at_unix_ms, outcome } => {
            output.note(format!("the workload ended at {}: {}", values::utc(*at_unix_ms), exit_words(*outcome)));
            Ok(())
        }
        Record::Running => {
            output.note("the workload runs");
            Ok(())
        }
        Record::NoCommand => {
            output.note("this grant has no command, so nothing writes here; it is a machine to log in to");
            Ok(())
        }
    }
}

fn record_json(record: &Record) -> Value {
    match record {
        Record::Output { stream, at_unix_ms, bytes } => {
            let stream = if *stream == Stream::Stdout { "stdout" } else { "stderr" };
            json!({ "at_ms": at_unix_ms, "stream": stream, "text": String::from_utf8_lossy(bytes) })
        }
        Record::Gone { bytes } => json!({ "gone_bytes": bytes }),
        Record::Exited { at_unix_ms, outcome } => {
            json!({ "workload": "exited", "at_ms": at_unix_ms, "outcome": outcome })
        }
        Record::Running => json!({ "workload": "running" }),
        Record::NoCommand => json!({ "workload": "no_command" }),
    }
}

/// How a command ended, in words.
#[must_use]
pub fn exit_words(outcome: ExitOutcome) -> String {
    match outcome {
        ExitOutcome::Code(code) => format!("exit status {code}"),
        ExitOutcome::Signal(number) => match nix::sys::signal::Signal::try_from(number) {
            Ok(signal) => format!("killed by {signal}"),
            Err(_) => format!("killed by signal {number}"),
        },
    }
}

fn keep(grant: &mut Grant, at_ms: u64, outcome: ExitOutcome) -> Result<()> {
    grant.update(|file| file.workload_exit = Some(WorkloadExit { at_ms, outcome }))
}

/// How the command of a grant ended, asked of its machine if that is there and quick; what was learnt before otherwise.
pub(crate) async fn learn(grant: &mut Grant) -> Option<WorkloadExit> {
    let access = ssh::access(grant).ok().cloned().filter(|_| grant.file.workload_exit.is_none());
    if let Some(access) = access {
        let query = LogQuery { follow: false, since_unix_ms: u64::MAX };
        let told = tokio::time::timeout(ASIDE, ssh_client::output(grant, &access, query, |_| true)).await;
        if let Ok(Ok(Some(Record::Exited { at_unix_ms, outcome }))) = told {
            // Known now, also if it cannot be written down for later.
            let _ = keep(grant, at_unix_ms, outcome);
        }
    }
    grant.file.workload_exit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_said_in_words_and_numbers() {
        assert_eq!(exit_words(ExitOutcome::Code(3)), "exit status 3");
        assert_eq!(exit_words(ExitOutcome::Signal(9)), "killed by SIGKILL");
        assert_eq!(exit_words(ExitOutcome::Signal(99)), "killed by signal 99");
        let said = record_json(&Record::Exited { at_unix_ms: 7, outcome: ExitOutcome::Signal(9) });
        assert_eq!(said, json!({ "workload": "exited", "at_ms": 7, "outcome": { "signal": 9 } }));
        let said = record_json(&Record::Output { stream: Stream::Stderr, at_unix_ms: 1, bytes: b"a\xff".to_vec() });
        assert_eq!(said, json!({ "at_ms": 1, "stream": "stderr", "text": "a\u{fffd}" }));
    }
}
