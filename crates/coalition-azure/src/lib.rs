//! The few calls of Azure's Resource Manager that a provider of machines needs.
//!
//! ```text
//! cloud ── coalition_cloud::Cloud ── hosts, leftovers, catalogue, account: what is asked and what is read
//!    client ── one call, within limits, repeated where that changes nothing ── operation: long-running operations
//!       login ── azure_identity's credentials ── transport: azure_core's pipeline over the project's own TLS
//! body ── a host as the Resource Manager is asked for it        error ── one taxonomy of failures
//! ```
//!
//! A host is one PUT of a virtual machine that makes its network interface, its public address and its disk as well, all of
//! them deleted with it. Its name derives from its instance, and the PUT only ever creates (`If-None-Match: *`): asked again,
//! the host that is there is looked at and compared. Azure mostly says on the way that it has no room, so making a host looks for a while
//! whether it got some; where it did not, what there is of it is ended, and the next zone is free to be asked.
//!
//! Microsoft's crates give the pipeline and the credentials; their HTTP client is left out, as it brings a second TLS library.
//! Nothing here reads a file: whoever makes a client brings the credentials.

mod account;
mod action;
mod body;
mod catalogue;
mod client;
mod cloud;
mod credentials;
mod error;
mod hosts;
mod ids;
mod image;
mod leftovers;
mod login;
mod machine;
mod marks;
mod memory;
mod operation;
mod setup;
mod telemetry;
mod transport;

pub use action::Action;
pub use body::{NOBODYS_KEY, confidential_family};
pub use client::Azure;
pub use credentials::{CredentialSource, Credentials, CredentialsError};
pub use error::{AzureError, kind_of};
pub use setup::{Addresses, Setup, SetupError};

/// Reads an answer of any call this crate makes, for fuzzing: all parsers of outside bytes in one place.
#[doc(hidden)]
pub fn read_anything(bytes: &[u8]) {
    let _ = machine::read_machine(bytes);
    let _ = machine::read_page(bytes);
    let _ = machine::read_interface(bytes);
    let _ = machine::read_address(bytes);
    let _ = machine::read_console_place(bytes);
    let _ = leftovers::read_page(bytes);
    let _ = catalogue::read_sizes(bytes, "westeurope");
    let _ = account::read_usages(bytes);
    let _ = telemetry::read_metrics(bytes, 60);
    let _ = telemetry::read_facts(bytes);
    let _ = account::read_subscription(bytes);
    let _ = image::read_version(bytes, "westeurope");
    let _ = image::read_definition(bytes);
    let _ = image::read_marketplace(bytes);
    let _ = operation::read_status(Action::ReadOperation, bytes);
    for status in [400, 404, 409, 500] {
        let _ = error::read_refusal(Action::PutMachine, status, bytes, None);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = text.parse::<image::ImageName>();
        let _ = ids::ResourceId::parse(text);
    }
}
