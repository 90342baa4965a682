//! The boot file: one TOML, everything an operator decides, checked before anything runs.
//!
//! [`BridgeConfig::load`] reads and checks the file's form; [`BridgeConfig::resolve`] also reads what it points to (the
//! published config, keys, token) and refuses secrets that others may read. Nothing is contacted by either.

mod aws;
mod azure;
mod cloud;
mod error;
mod example;
mod fields;
mod gcp;
mod resolve;
mod secret;
mod values;

pub use aws::AwsConfig;
pub use azure::AzureConfig;
pub use cloud::{CloudKind, CloudOffer, CloudSize, ConfidentialKind};
pub use error::{ConfigError, Place};
pub use example::EXAMPLE;
pub use fields::{
    AttestationConfig, AttestationSource, BackendRates, BareMetalConfig, BridgeConfig, CoalitionSource,
    DashboardConfig, MachineConfig, OnShutdown, ProviderConfig, RatesConfig, WorkloadIsolation,
};
pub use gcp::GcpConfig;
pub use resolve::Resolved;
pub use secret::{SecretFileError, check_secret_file, read_secret_file};
pub use values::{PinnedHostKey, Rate};
