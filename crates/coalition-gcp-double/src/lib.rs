//! For tests: a Compute Engine that can be asked without an account, and that fails as Google does.
//!
//! ```text
//! client ──▶ double: signed requests for tokens, tokens, permissions of a role ── auth
//!              │     faults, lost and late answers, outages ── double
//!              │     paths, filters, pages ── api;  shapes and values of what is asked ── schema, insert
//!              │     machines, disks, operations, quotas, time ── world
//!              └──▶ coalition-cloud-double: an SSH server on the machine's address, with the host key and login of its user data
//! ```
//!
//! What it proves and what only a real account can is in `README.md` beside this file's crate.

mod answer;
mod api;
mod auth;
mod double;
mod insert;
mod schema;
mod telemetry;
mod world;

pub use coalition_cloud_double::{Boot, Phase, Sshd, Watcher};
pub use double::{Call, Double, Fault};

/// The project everything is in.
pub const PROJECT: &str = "double-project";
/// The region that has a subnetwork.
pub const REGION: &str = "europe-west4";
/// The image that fits all sizes but those for ARM, and all confidential computing.
pub const IMAGE: &str = "projects/double-images/global/images/host-v1";
/// The only subnetwork.
pub const SUBNETWORK: &str = "projects/double-project/regions/europe-west4/subnetworks/hosts";
/// The service account.
pub const EMAIL: &str = "bridge@double-project.iam.gserviceaccount.com";
/// Id of its key.
const KEY_ID: &str = "0123456789abcdef0123456789abcdef01234567";
