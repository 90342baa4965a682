//! The runner as a program of its own: what a provider pushes to a host that has nothing of ours yet.

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match args.split_first() {
        Some((first, rest)) if first == "runner" => coalition_host::runner_main(rest),
        _ => coalition_host::runner_main(&args),
    }
}
