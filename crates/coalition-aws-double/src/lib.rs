//! For tests: an EC2 that can be asked without an account, and that fails as AWS does.
//!
//! ```text
//! client ──▶ proxy ──▶ moto (a Python package): signatures, permissions, parameters, tags, life of an instance
//!              │ faults, remembered client tokens, what moto has not: quotas, addresses on loopback
//!              └──▶ coalition-cloud-double: an SSH server on the instance's address, with the host key and login of its user data
//! ```
//!
//! What it proves and what only a real account can is in `README.md` beside this file's crate.

mod http;
mod moto;
mod proxy;

pub use coalition_cloud_double::{Boot, Phase, Sshd, Watcher};
pub use moto::{Keys, Moto, REGION};
pub use proxy::{Call, Fault, Proxy};

use std::sync::Arc;

/// Moto behind the proxy.
pub struct Double {
    /// In front.
    pub proxy: Proxy,
    /// Behind.
    pub moto: Moto,
}

impl Double {
    /// Starts both; `None`, with a word, where moto is not installed. `policy` is what the made user may do; `boot` is told
    /// of every machine that is made and ended.
    pub async fn start(policy: &str, boot: Option<Arc<dyn Boot>>) -> Option<Self> {
        let moto = Moto::start(policy).await?;
        let proxy = Proxy::start(&moto.endpoint, boot).await;
        Some(Self { proxy, moto })
    }
}
