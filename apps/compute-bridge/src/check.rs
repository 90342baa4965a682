//! `compute-bridge check`: everything a start would trip over, found before it costs anything.

use std::time::Duration;

use coalition::ProviderId;
use coalition_universe::NodeKey;
use ed25519_dalek::SigningKey;

use crate::backend::Backend;
use crate::config::{BridgeConfig, Resolved};
use crate::market::Market;
use crate::wiring::{BridgeError, Committees, follow, machines, start_node};

/// Wait for the committee's log.
const PATIENCE: Duration = Duration::from_secs(15);

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// What was checked.
    pub what: String,
    /// Whether it is good.
    pub ok: bool,
    /// What was found, or what to do.
    pub detail: String,
}

impl Finding {
    fn new(what: impl Into<String>, ok: bool, detail: impl Into<String>) -> Self {
        Self { what: what.into(), ok, detail: detail.into() }
    }
}

/// Checks the boot file, what it points to, the coalition, the network, and every machine by logging in and probing it. The runner is
/// installed on machines that do not have it yet; nothing else changes.
///
/// # Errors
/// [`BridgeError`] when the file or the coalition cannot be used at all.
pub async fn check(config: BridgeConfig) -> Result<Vec<Finding>, BridgeError> {
    let resolved: Resolved = config.resolve()?;
    let mut findings = vec![Finding::new("boot file", true, "well formed; secrets are private to this user")];
    let fingerprint = resolved.coalition.fingerprint();
    let name = resolved.coalition.instance_name();
    let committees = Committees::of(&resolved.coalition)?;
    findings.push(Finding::new("coalition", true, format!("{name}, fingerprint {fingerprint}")));
    let public = SigningKey::from_bytes(resolved.key.expose()).verifying_key().to_bytes();
    let id = ProviderId::from_public_key(&public);
    findings.push(Finding::new("identity", true, format!("provider {id}")));
    findings.push(network(&resolved, &committees, id).await);
    for machine in machines(&resolved.config, id) {
        let what = format!("machine {}", machine.name());
        let offering = machine.capabilities().await;
        let sells = offering.capabilities.max_instances > 0;
        let ok = offering.reachable && sells;
        findings.push(Finding::new(what, ok, offering.detail));
        machine.disconnect().await;
    }
    Ok(findings)
}

/// Whether relay and committee answer. Asked under a throw-away identity, so that a running bridge is not disturbed.
async fn network(resolved: &Resolved, committees: &Committees, id: ProviderId) -> Finding {
    let asked = async {
        let node = start_node(resolved, NodeKey::generate(), None, false).await?;
        let market = follow(&node, committees, PATIENCE).await;
        let found = market.map(|market| market.card(id).is_some());
        node.stop().await;
        found
    };
    match asked.await {
        Ok(true) => Finding::new("network", true, "relay and committee answer; this provider's card is in the market"),
        Ok(false) => {
            Finding::new("network", true, "relay and committee answer; this provider has no card in the market yet")
        }
        Err(error) => Finding::new("network", false, crate::explain(&error)),
    }
}
