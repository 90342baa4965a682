//! `coalition run store`: keeps images for those who may push them, and serves them to whoever knows their hash.

use std::{path::Path, sync::Arc, time::Duration};

use coalition_content::{
    service::{ContentService, Policy},
    store::{Limits, Store, StoreError},
};
use coalition_universe::Node;
use serde_json::json;

use super::{
    Running,
    config::{StoreConfig, node_error},
};
use crate::{
    config_file::{self, relative_to},
    error::{CliError, Kind, Result},
    home::private_dir,
    session::say_goodbye,
};

const MIB: u64 = 1 << 20;
const DAY_S: u64 = 86_400;

pub(super) async fn start(path: &Path) -> Result<Running> {
    let config: StoreConfig = config_file::load(path)?;
    let mib = |mib: u64| mib.saturating_mul(MIB);
    let policy = Policy {
        pushers: config.pushers.iter().map(|(peer, quota)| (*peer, mib(*quota))).collect(),
        anyone_bytes: mib(config.anyone_mib),
        anyone_total_bytes: mib(config.anyone_total_mib),
    };
    check(path, &config)?;
    let dir = relative_to(path, &config.data_dir);
    private_dir(&dir)?;
    let retain = Duration::from_secs(u64::from(config.retain_days) * DAY_S);
    let limits = Limits { retain, ..Limits::of(mib(config.capacity_mib)) };
    let store = Store::open(&dir, limits).map_err(store_error)?;
    let node = Node::start(config.network.node(path, config.peers.values().cloned().collect())?);
    let node = node.await.map_err(node_error)?;
    let total = store.total_bytes();
    tracing::info!(total_mib = total / MIB, capacity_mib = config.capacity_mib, "the store is open");
    node.serve(Arc::new(ContentService::new(store, policy)));
    let ready = json!({ "node": node.address().to_string() });
    let gone = Arc::clone(&node);
    let failed = async move {
        gone.closed().await;
        CliError::fault("node_closed", "the node's endpoint has closed")
    };
    let stop = async move { say_goodbye(&node).await };
    Ok(Running { ready, failed: Box::pin(failed), stop: Box::pin(stop) })
}

/// What contradicts itself would only be noticed by those who are refused.
fn check(path: &Path, config: &StoreConfig) -> Result<()> {
    let shown = path.display();
    let wrong = |message: String| Err(CliError::input("config_invalid", format!("config {shown}: {message}")));
    if config.capacity_mib == 0 {
        return wrong("`capacity_mib` is 0; a store needs room".into());
    }
    if config.anyone_mib > config.anyone_total_mib {
        let (each, all) = (config.anyone_mib, config.anyone_total_mib);
        return wrong(format!("`anyone_mib` is {each}, and `anyone_total_mib`, {all}, is less; raise it"));
    }
    if config.anyone_mib == 0 && config.pushers.is_empty() {
        return wrong("nobody may push; list somebody in `pushers`, or give `anyone_mib`".into());
    }
    Ok(())
}

fn store_error(error: StoreError) -> CliError {
    match error {
        StoreError::Busy { .. } => {
            CliError::new(Kind::Conflict, "already_running", "the store cannot start").because(error)
        }
        _ => CliError::fault("disk", "the store cannot start").because(error),
    }
}
