//! The options of `coalition attest`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

use crate::values::Instant;

/// Commands about TDX quotes.
#[derive(Subcommand, Debug, Clone)]
pub enum AttestCommand {
    /// Judge a quote under a policy, offline
    Verify(AttestVerifyArgs),
    /// Print what a quote claims, without judging it
    Show(AttestShowArgs),
    /// Have the TDX guest this runs in quoted
    Quote(AttestQuoteArgs),
}

/// Arguments of `coalition attest verify`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
The verdict is `valid`, `invalid` or `could not check`, each with root, policy, age and collateral. Exit status 0 only when \
it is valid, 6 otherwise. Nothing is fetched: collateral comes from --collateral, or is in the file beside the quote.

The policy is TOML, described in docs/ATTESTATION.md; it names its root. Under a development root nothing is proven about \
hardware, and the verdict says so.

A quote says what its bearer had quoted in 64 bytes of report data. Give them whole with --report-data, or give the parts they \
are made of; with neither, only a policy with binding = \"unbound\" accepts the quote.

Examples:
  coalition attest verify quote.bin --policy policy.toml --collateral ./collateral --report-data 00ff…
  coalition attest verify ~/.coalition/grants/3f9c…/evidence.bin --policy policy.toml --at 2030-01-31T12:00:00Z --json")]
pub struct AttestVerifyArgs {
    /// The quote, binary or hexadecimal; or evidence: a quote with its collateral
    #[arg(value_name = "QUOTE", value_hint = ValueHint::FilePath)]
    pub quote: PathBuf,
    /// What it must satisfy
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub policy: PathBuf,
    /// A collateral file, or a directory with one <fmspc>-<ca>.json for each platform
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub collateral: Option<PathBuf>,
    /// The time to judge at [default: now]
    #[arg(long, value_name = "TIME")]
    pub at: Option<Instant>,
    /// The report data the quote must have, 128 hex digits
    #[arg(long, value_name = "HEX", conflicts_with = "nonce")]
    pub report_data: Option<String>,
    /// The nonce bound in it, 64 hex digits; needs the four options below
    #[arg(long, value_name = "ID", requires_all = ["purpose", "network", "key", "bound_config"])]
    pub nonce: Option<String>,
    /// What the quote is bound for
    #[arg(long, value_name = "TEXT", requires = "nonce")]
    pub purpose: Option<String>,
    /// The network bound in it, 64 hex digits
    #[arg(long, value_name = "ID", requires = "nonce")]
    pub network: Option<String>,
    /// The public key bound in it, in hex
    #[arg(long, value_name = "HEX", requires = "nonce")]
    pub key: Option<String>,
    /// The config hash bound in it, 64 hex digits
    #[arg(long = "bound-config", value_name = "ID", requires = "nonce")]
    pub bound_config: Option<String>,
    /// When the nonce came into being: no quote that contains it is older
    #[arg(long, value_name = "TIME")]
    pub issued: Option<Instant>,
}

/// Arguments of `coalition attest show`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
What a quote claims is worth nothing until it is verified.

Example:
  coalition attest show quote.bin")]
pub struct AttestShowArgs {
    /// The quote, binary or hexadecimal; or evidence: a quote with its collateral
    #[arg(value_name = "QUOTE", value_hint = ValueHint::FilePath)]
    pub quote: PathBuf,
}

/// Arguments of `coalition attest quote`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Works inside a TDX guest with Linux 6.7 or later, through configfs-tsm; anywhere else it says why not.

Example:
  coalition attest quote --report-data 00ff… --out quote.bin")]
pub struct AttestQuoteArgs {
    /// The report data to have quoted, 128 hex digits
    #[arg(long, value_name = "HEX")]
    pub report_data: String,
    /// Where to write the quote [default: hexadecimal on stdout]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub out: Option<PathBuf>,
}
