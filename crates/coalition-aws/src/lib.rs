//! The few calls of AWS EC2 that a provider of machines needs.
//!
//! ```text
//! actions ── what can be asked, typed ── instances, volumes, catalogue, account, metrics
//!    client ── signs, sends once, limits the answer ── credentials
//!       form, xml ── the bytes
//! error ── what AWS says, sorted into the taxonomy of `coalition-cloud`
//! cloud ── all of it as one of the clouds
//! ```
//!
//! Every call is one HTTP request. Reading calls and terminations are repeated when AWS is busy or cannot be reached;
//! [`Ec2::run_instance`] never is: what to do about a machine that may or may not have been made is its caller's decision,
//! and the client token makes the repetition safe. Bodies are limited before they are kept and parsed into validated types.
//! Nothing here reads a file: whoever makes a client brings the credentials.

mod account;
mod action;
mod catalogue;
mod client;
mod cloud;
mod credentials;
mod error;
mod form;
mod ids;
mod instances;
mod metrics;
mod volumes;
pub mod xml;

pub use account::{Identity, STANDARD_VCPUS};
pub use action::{Action, Service};
pub use catalogue::{ImageInfo, TypeInfo};
pub use client::{Ec2, EndpointError, Setup};
pub use cloud::{Ec2Region, RegionSetup, tag};
pub use credentials::{CredentialSource, Credentials, CredentialsError, from_environment, from_profile};
pub use error::{AwsError, kind_of};
pub use ids::{IdError, InstanceId, VolumeId};
pub use instances::{Instance, InstanceState, NewInstance, Termination};
pub use volumes::Volume;

/// Reads an answer of any action this crate knows, for fuzzing: all parsers of outside bytes in one place.
#[doc(hidden)]
pub fn read_anything(bytes: &[u8]) {
    if let Ok(root) = xml::parse(bytes) {
        let _ = instances::read_page(&root);
        let _ = instances::read_run(&root);
        let _ = instances::read_terminations(&root);
        let _ = instances::read_console(&root);
        let _ = volumes::read_page(&root);
        let _ = catalogue::read_images(&root);
        let _ = catalogue::read_types(&root);
        let _ = account::read_identity(&root);
    }
    let _ = error::read_refusal(Action::DescribeInstances, 400, bytes);
    let _ = error::read_refusal(Action::GetServiceQuota, 400, bytes);
    let _ = error::read_refusal(Action::GetMetricData, 400, bytes);
    let _ = account::read_quota(bytes);
    let _ = metrics::read_metrics(bytes, 300);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = from_profile(text, "default");
    }
}
