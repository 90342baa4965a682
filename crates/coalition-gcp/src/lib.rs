//! Google Compute Engine as a [`Cloud`](coalition_cloud::Cloud).
//!
//! ```text
//! cloud ── the interface ── engine ── Google's own client (google-cloud-compute-v1): requests, answers, their types
//!   host, catalogue, listing, operations, telemetry ── what answers mean│
//!   names ── checked before they go into paths, filters, labels        ▼
//! error ── one taxonomy of failures           transport ── one attempt, limits, repetition ── token, credentials, http
//! ```
//!
//! Every call is one HTTP request. Reading calls and ends are repeated when Google is busy or cannot be reached; making a
//! host never is: the request's id, derived from instance and place, makes the repetition safe, and so does the host's name.
//! Answers are limited before they are kept. Operations are followed within a deadline, and a failed one is a failure.
//! Nothing here reads a file: whoever makes a client brings the credentials. TLS is set up for this client alone.

mod action;
mod catalogue;
mod cloud;
mod credentials;
mod engine;
mod error;
mod host;
mod http;
mod listing;
mod names;
mod operations;
mod setup;
mod telemetry;
mod token;
mod transport;

pub use action::Action;
pub use catalogue::{confidential, quota_metric};
pub use credentials::{CredentialSource, Credentials, CredentialsError, MetadataServer, ServiceAccountKey};
pub use engine::ComputeEngine;
pub use error::{GcpError, kind_of};
pub use http::HttpError;
pub use names::{NameError, mark, request_id};
pub use setup::{Setup, SetupError};

/// Reads an answer of any call this crate makes, for fuzzing: all parsers of outside bytes in one place.
#[doc(hidden)]
pub fn read_anything(bytes: &[u8]) {
    use google_cloud_compute_v1::model;
    let owner = coalition_cloud::Owner { bridge: "b", offer: "o" };
    let region = "us-east1";
    if let Ok(list) = transport::read::<model::InstanceAggregatedList>(Action::ListInstances, bytes)
        && let Ok((instances, _)) = listing::instances(region, list)
    {
        instances.iter().for_each(|one| drop(host::read(region, owner, one)));
    }
    if let Ok(one) = transport::read::<model::Instance>(Action::GetInstance, bytes) {
        let _ = host::read(region, owner, &one);
    }
    if let Ok(list) = transport::read::<model::DiskAggregatedList>(Action::ListDisks, bytes) {
        let _ = engine::read_disks(region, owner, list);
    }
    if let Ok(operation) = transport::read::<model::Operation>(Action::GetOperation, bytes) {
        let _ = operations::judge(Action::InsertInstance, "us-east1-b", &operation);
    }
    if let Ok(image) = transport::read::<model::Image>(Action::GetImage, bytes) {
        let _ = catalogue::read_image("i", &image);
    }
    if let Ok(machine) = transport::read::<model::MachineType>(Action::GetMachineType, bytes) {
        let _ = catalogue::read_size("n2d-standard-2", &machine);
    }
    if let Ok(facts) = transport::read::<model::Region>(Action::GetRegion, bytes) {
        let _ = catalogue::read_quota(&["CPUS".to_owned()], &facts);
    }
    if let Ok(list) = transport::read(Action::ListTimeSeries, bytes) {
        let _ = telemetry::read_series(&list, &telemetry::METRICS[0], 60);
    }
    if let Ok(list) = transport::read(Action::ListOperations, bytes) {
        let _ = telemetry::read_operations(&list);
    }
    let _ = transport::read::<model::SerialPortOutput>(Action::GetSerialPortOutput, bytes);
    let _ = token::read_token(bytes);
    let _ = error::read_refusal(Action::GetRegion, 400, None, bytes);
    let _ = error::read_refusal(Action::GetToken, 400, None, bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Credentials::from_key_file(text);
        let _ = names::ImageName::parse(text);
        let _ = names::described(text, owner);
    }
}
