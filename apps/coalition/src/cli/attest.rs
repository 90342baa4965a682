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
    /// Compute the registers that a guest will have from what it is started with
    Predict(AttestPredictArgs),
    /// Replay a guest's event log, and compare it with its quote
    Log(AttestLogArgs),
    /// Fetch a platform's collateral, so that quotes can be judged offline
    Fetch(AttestFetchArgs),
}

/// Arguments of `coalition attest fetch`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Four requests for public data that Intel has signed: two revocation lists, TCB info, QE identity. They say nothing about whose machine \
it is but its processor family. What comes is stored as <fmspc>-<ca>.json, whole or not at all, and never replaces something newer; \
its signatures are checked with every quote. It is good for about a month: run this from a timer.

`coalition ssh` and `coalition request` look into --home's collateral first; point a bridge's `collateral_dir` or a member's \
[admission] at --into.

Examples:
  coalition attest fetch quote.bin
  coalition attest fetch --platform 90c06f000000-platform --into /var/lib/compute-bridge/collateral
  coalition attest fetch quote.bin --pccs https://pccs.example:8081")]
pub struct AttestFetchArgs {
    /// A quote of the platform, binary or hexadecimal, or evidence
    #[arg(value_name = "QUOTE", value_hint = ValueHint::FilePath, required_unless_present = "platform")]
    pub quote: Option<PathBuf>,
    /// The platform family instead, as `attest show` prints it: <fmspc>-<ca>
    #[arg(long, value_name = "FAMILY", conflicts_with = "quote")]
    pub platform: Option<String>,
    /// The collateral service [default: Intel's]
    #[arg(long, value_name = "URL")]
    pub pccs: Option<String>,
    /// Where the root's revocation list is, for services that do not have it
    #[arg(long, value_name = "URL", requires = "pccs")]
    pub root_crl: Option<String>,
    /// The directory to store it in [default: `collateral` below --home]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub into: Option<PathBuf>,
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

/// Arguments of `coalition attest predict`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
MRTD follows from the firmware alone, but hypervisors add its pages in one of two orders; RTMR1 and RTMR2 follow from the kernel that \
QEMU is given directly, its initial file system and command line. RTMR0 depends on the machine: take it from a guest's event log \
(`coalition attest log`). Put what you trust under [registers] of a policy.

Examples:
  coalition attest predict --firmware OVMF.fd
  coalition attest predict --firmware OVMF.fd --kernel bzImage --initrd initrd.img --append 'console=hvc0' --ram-mib 4096")]
pub struct AttestPredictArgs {
    /// The firmware, in one file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub firmware: PathBuf,
    /// The kernel given to `qemu -kernel`
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "image")]
    pub kernel: Option<PathBuf>,
    /// The file given to `qemu -initrd`
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// The text given to `qemu -append`
    #[arg(long, value_name = "TEXT", requires = "kernel", default_value = "")]
    pub append: String,
    /// The guest's memory, where QEMU writes into the kernel's header what depends on it, and the firmware hashes that
    #[arg(long, value_name = "MIB", requires = "kernel", group = "image")]
    pub ram_mib: Option<u64>,
    /// The firmware hashes the kernel as the file is. Which of the two yours do: compare with a guest's event log
    #[arg(long, requires = "kernel", group = "image")]
    pub untouched: bool,
}

/// Arguments of `coalition attest log`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
A guest reads its log from /sys/firmware/acpi/tables/data/CCEL. Nobody signs it: it is worth what it explains. With --quote, \
exit status 0 only when it replays to all four run-time registers of the quote, 6 otherwise. The quote itself is judged by \
`coalition attest verify`.

Example:
  coalition attest log CCEL --quote quote.bin")]
pub struct AttestLogArgs {
    /// The event log
    #[arg(value_name = "LOG", value_hint = ValueHint::FilePath)]
    pub log: PathBuf,
    /// The quote whose registers it should explain
    #[arg(long, value_name = "QUOTE", value_hint = ValueHint::FilePath)]
    pub quote: Option<PathBuf>,
}
