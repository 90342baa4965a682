//! Running other people's workloads on a Linux host.
//!
//! * [`runner_main`]: the hidden subcommand `runner`, by which a provider starts, meters and ends isolated workloads on
//!   a host it reaches over SSH. What is isolated, and how strongly, is in `docs/ISOLATION.md`.
//! * [`sshd`]: an SSH and SFTP server that needs no root and no setup, so that this machine can be such a host.
//! * [`image`]: an example image, and a look at an image before it is sent anywhere.
//! * [`counters`]: what a machine's own counters say from inside.
//! * [`egress`]: where workloads may connect to.
//! * [`types`]: what provider and runner say to each other.
//! * [`keys`]: SSH keys as texts.
//! * [`cloud_config`]: keys for a system that takes them from cloud-init.
//! * [`output`]: what a workload wrote, as it is kept and handed over.
//! * [`units`]: grants as units of systemd.

mod accepting;
pub mod cloud_config;
pub mod counters;
pub mod egress;
pub mod error;
pub mod image;
mod isolate;
pub mod machine;
pub mod output;
pub mod proc;
pub mod rootfs;
mod runner;
mod sftp;
pub mod spec;
mod ssh;
pub mod sshd;
pub mod state;
pub mod types;
pub mod units;
pub mod usage;

pub use runner::runner_main;
pub use ssh::keys;
pub use types::{
    BootReport, CleanReport, Egress, EndReason, ExitOutcome, Failure, FailureReport, GuestUsage, Isolation,
    IsolationLevel, ListReport, ListedGrant, MachineProbe, MachineSpec, Mechanism, Phase, ProbeReport, ProcessRef,
    RunnerState, SecretText, ServiceManager, Supervision, TdxSpec, UsageReport, WorkloadSpec, parse_answer,
};
