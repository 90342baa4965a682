//! `compute-bridge check`: what a start needs from others, found before it costs anything. The data directory, the journal and
//! the dashboard's port are left alone: a running bridge holds them.

use std::time::Duration;

use coalition::ProviderId;
use coalition_compute::AttestationRule;
use coalition_universe::NodeKey;
use ed25519_dalek::SigningKey;

use crate::backends::build::backends;
use crate::config::{BridgeConfig, Resolved};
use crate::fleet::chain;
use crate::market::{LiveMarket, Market};
use crate::provider::{Attestor, clock};
use crate::wallet::Wallet;
use crate::wiring::{BridgeError, Committees, follow, start_node};

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
    pub(crate) fn new(what: impl Into<String>, ok: bool, detail: impl Into<String>) -> Self {
        Self { what: what.into(), ok, detail: detail.into() }
    }
}

/// Checks the boot file, what it points to, the coalition, the network, and every machine by logging in and probing it; clouds by asking
/// what a grant would ask, without making anything unless `create`, which makes one machine on each and ends it. The runner is
/// installed on machines that do not have it yet, and a key or dashboard token that is missing is made; nothing else changes.
///
/// # Errors
/// [`BridgeError`] when the file or the coalition cannot be used at all.
pub async fn check(config: BridgeConfig, create: bool) -> Result<Vec<Finding>, BridgeError> {
    let resolved: Resolved = config.resolve()?;
    let mut findings = vec![Finding::new("boot file", true, "well formed; secrets are private to this user")];
    let fingerprint = resolved.coalition.fingerprint();
    let name = resolved.coalition.instance_name();
    let committees = Committees::of(&resolved.coalition)?;
    findings.push(Finding::new("coalition", true, format!("{name}, fingerprint {fingerprint}")));
    let public = SigningKey::from_bytes(resolved.key.expose()).verifying_key().to_bytes();
    let id = ProviderId::from_public_key(&public);
    findings.push(Finding::new("identity", true, format!("provider {id}")));
    findings.extend(network(&resolved, &committees, id).await);
    for backend in backends(&resolved, id)? {
        findings.extend(backend.check(create).await);
        backend.close().await;
    }
    Ok(findings)
}

/// Whether relay and committee answer. Asked under a throw-away identity, so that a running bridge is not disturbed.
async fn network(resolved: &Resolved, committees: &Committees, id: ProviderId) -> Vec<Finding> {
    let asked = async {
        let node = start_node(resolved, NodeKey::generate(), None, false).await?;
        let market = follow(&node, committees, Wallet::default(), PATIENCE).await;
        let found = market.map(|market| (market.card(id).is_some(), clock(&market), market.attestation_rule()));
        node.stop().await;
        found
    };
    match asked.await {
        Ok((is_known, clock, rule)) => {
            let card = if is_known {
                "this provider's card is in the market"
            } else {
                "this provider has no card in the market yet"
            };
            let mut findings =
                vec![Finding::new("network", true, format!("relay and committee answer; {card}")), clock];
            findings.extend(attestation(rule.as_ref(), resolved.attestor.as_ref()).await);
            findings
        }
        Err(error) => vec![Finding::new("network", false, crate::explain(&error))],
    }
}

/// This machine's clock against the committee's. Ticks come all the time; without any, the last entry may be old, and only
/// one from the future says something.
fn clock(market: &LiveMarket) -> Finding {
    let now_ms = crate::now_ms();
    let (from_ms, committee_ms) = match market.last_tick_ms() {
        Some(tick_ms) => (now_ms, tick_ms),
        None => (0, market.at().time_ms),
    };
    match clock::problem(from_ms, now_ms, committee_ms) {
        Some(problem) => Finding::new("clock", false, problem),
        None => Finding::new("clock", true, "agrees with the committee's, as far as its log tells"),
    }
}

/// Whether the bridge can show what the market asks for. Nothing when neither says anything of attestation.
pub async fn attestation(rule: Option<&AttestationRule>, attestor: Option<&Attestor>) -> Option<Finding> {
    let found = |ok, detail: String| Some(Finding::new("attestation", ok, detail));
    let (rule, attestor) = match (rule, attestor) {
        (None, None) => return None,
        (None, Some(_)) => return found(true, "this market verifies none; the bridge counts as a plain host".into()),
        (Some(rule), None) => {
            let asked = rule.policy.root().label();
            let who =
                if rule.required { "admits only attested providers" } else { "lets only attested providers sell TDX" };
            return found(
                !rule.required,
                format!("this market {who} (root: {asked}); the boot file has no [attestation]"),
            );
        }
        (Some(rule), Some(attestor)) => (rule, attestor),
    };
    let own = match attestor.platform.root() {
        Ok(own) => own,
        Err(error) => return found(false, chain(&error)),
    };
    if own.id() != rule.policy.root().id() {
        let (asked, own) = (rule.policy.root(), own);
        return found(false, format!("the market's policy names the root {asked}, this bridge quotes under {own}"));
    }
    match attestor.platform.show_aside([0; 64]).await {
        Ok(_) => found(true, format!("quotes can be made, root: {}; the committee judges them", own.label())),
        Err(error) => found(false, chain(&error)),
    }
}
