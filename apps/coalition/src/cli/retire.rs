//! Arguments of `coalition retire`.

use std::path::PathBuf;

use clap::{Args, ValueHint};

use super::Approvers;
use crate::values::Effective;

/// Arguments of `coalition retire`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
A quorum of the service's members approves with their checkpoint keys. Where this home holds them, as after `coalition up`, it \
signs with them; members who run their own machines print their approvals and pass them on, all with the same --at, \
--successor, --peers and --reason. A successor made with `coalition successor config` is carried by the log whole, so that \
readers and writers can go on there. The retirement is announced at once and takes effect at --at: then the log gets its last entry, \
which names the successor, and nothing is ever written to it again. Readers and evidence go on working.

Examples:
  coalition retire compute --at 2030-01-31T12:00:00Z --successor next.hex --peers next-universe.toml
  coalition retire compute --key m1.key --approve-only > m1.approval
  coalition retire compute --approval m1.approval --approval m2.approval --approval m3.approval")]
pub struct RetireArgs {
    /// The service
    #[arg(value_enum)]
    pub service: RetireService,
    /// When it takes effect: now, a time (2030-01-31T12:00:00Z or Unix seconds), or tick:N of the Almanac
    #[arg(long, default_value = "now", value_name = "WHEN")]
    pub at: Effective,
    /// The published config of the coalition whose service takes over, as hex or TOML
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub successor: Option<PathBuf>,
    /// Where the successor's members can be reached, which the log passes on: its universe.toml
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "successor")]
    pub peers: Option<PathBuf>,
    /// Why [default: rotation with a successor, else retired]
    #[arg(long, value_enum)]
    pub reason: Option<RetireReason>,
    /// Who approves.
    #[command(flatten)]
    pub approvers: Approvers,
    /// Print the approvals of the keys at hand and commit nothing; needs no network
    #[arg(long)]
    pub approve_only: bool,
    /// With --approve-only: the roster in force after handovers, as `coalition members roster` prints it [default: that of the
    /// config]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "approve_only")]
    pub roster: Option<PathBuf>,
    /// The coalition's published config [default: coalition.hex in --home]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
}

/// A service that can be retired.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetireService {
    /// The clock
    Almanac,
    /// The market
    Compute,
}

impl std::fmt::Display for RetireService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Almanac => "almanac",
            Self::Compute => "compute",
        })
    }
}

/// Why a service retires without a planned rotation.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetireReason {
    /// The service ends
    Retired,
    /// The operator leaves
    OperatorExit,
    /// Keys or platform are compromised
    Emergency,
}

impl std::fmt::Display for RetireReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Retired => "retired",
            Self::OperatorExit => "operator-exit",
            Self::Emergency => "emergency",
        })
    }
}
