//! `coalition run bridge`: a provider, which is what the `compute-bridge` program is too.

use std::path::Path;

use compute_bridge::{Bridge, BridgeError, config::BridgeConfig};
use futures::FutureExt;
use serde_json::json;
use tokio::sync::oneshot;

use super::{Running, config::node_error};
use crate::error::{CliError, Kind, Result};

pub(super) async fn start(path: &Path) -> Result<Running> {
    let config = BridgeConfig::load(path).map_err(|error| refused(BridgeError::Config(error)))?;
    let bridge = Box::pin(Bridge::start(config)).await.map_err(refused)?;
    let ready = json!({
        "provider": bridge.provider_id(),
        "dashboard": bridge.dashboard_address().map(|address| format!("http://{address}/")),
    });
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(bridge.serve(async move {
        // The other end is dropped only when this process ends anyway.
        let _ = stopped.await;
    }));
    let ended = async move {
        match serving.await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(compute_bridge::explain(&error)),
            Err(error) => Some(error.to_string()),
        }
    };
    let ended = ended.boxed().shared();
    let watched = ended.clone();
    let failed = async move {
        let how = watched.await.unwrap_or_else(|| "it ended by itself".into());
        CliError::fault("bridge_failed", "the bridge cannot go on").because(how)
    };
    let stop = async move {
        let _ = stop.send(());
        if let Some(how) = ended.await {
            tracing::warn!(%how, "the bridge stopped uncleanly");
        }
    };
    Ok(Running { ready, failed: Box::pin(failed), stop: Box::pin(stop) })
}

fn refused(error: BridgeError) -> CliError {
    let message = "the bridge cannot start";
    match error {
        BridgeError::Node(error) => node_error(error),
        BridgeError::Busy { .. } => CliError::new(Kind::Conflict, "already_running", message).because(error),
        BridgeError::Market(_) => CliError::new(Kind::Unreachable, "no_answer", message).because(error),
        BridgeError::Config(_) | BridgeError::Coalition { .. } => {
            CliError::input("config_invalid", message).because(error)
        }
        _ => CliError::fault("bridge", message).because(error),
    }
}
