//! The `coalition` command; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    coalition_cli::main()
}
