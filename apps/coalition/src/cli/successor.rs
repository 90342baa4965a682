//! Arguments of `coalition successor`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

/// Making a successor, and moving to one.
#[derive(Subcommand, Debug)]
pub enum SuccessorCommand {
    /// Print a config whose services succeed those of this one
    Config(SuccessorConfigArgs),
    /// Follow the chain from this home's config to the newest one, and use that from now on
    Move(SuccessorMoveArgs),
}

/// Arguments of `coalition successor config`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Clock and market of the new config name those of the old one as their predecessors: their logs begin with the heads of those. \
Everything else is taken from --from, or stays as it is. The new members run it beside the old ones, with `[predecessor]` in \
their files; then `coalition retire` names it in the old logs. docs/ROTATION.md has the whole sequence.

Examples:
  coalition successor config --name dev-2 --roster next.toml > next.hex
  coalition successor config --from draft.toml > next.hex")]
pub struct SuccessorConfigArgs {
    /// The config that is succeeded, as hex or TOML [default: coalition.hex in --home]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// A draft of the new config, as hex or TOML [default: the config that is succeeded]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub from: Option<PathBuf>,
    /// The new coalition's name [default: that of the draft]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// The new members of clock and market, as `coalition members new` prints them [default: those of the draft]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub roster: Option<PathBuf>,
    /// Print TOML instead of hex
    #[arg(long)]
    pub toml: bool,
}

/// Arguments of `coalition successor move`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Reads the ends of the logs, verified from this home's config, and takes the new config from them: nobody else is asked. Replaces \
coalition.hex, coalition.toml and universe.toml in --home, and keeps the old ones beside them. Grants of before stay with the old \
coalition.

Examples:
  coalition successor move
  coalition successor move --dry-run")]
pub struct SuccessorMoveArgs {
    /// Say where the chain leads, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}
