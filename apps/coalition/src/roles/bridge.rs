//! `coalition run bridge`: a provider, which is what the `compute-bridge` program is too.

use std::{error::Error, path::Path, sync::Arc};

use compute_bridge::{Bridge, BridgeError, config::BridgeConfig};
use futures::FutureExt;
use serde_json::json;
use tokio::sync::oneshot;

use super::{Running, config::node_error};
use crate::error::{CliError, Kind, Result};

/// What a bridge of this program logs: what the standalone one does, and this program's own lines. Whatever verbosity is
/// asked for, nothing that names the network identities of requesters.
#[must_use]
pub fn log_filter() -> String {
    format!("{},coalition_cli=info", compute_bridge::LOG_FILTER)
}

/// Why a bridge ended, for everybody who waits for it.
type Cause = Arc<dyn Error + Send + Sync>;

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
            Ok(Err(error)) => Some(Arc::new(error) as Cause),
            Err(error) => Some(Arc::new(error) as Cause),
        }
    };
    let ended = ended.boxed().shared();
    let watched = ended.clone();
    let failed = async move {
        let failed = CliError::fault("bridge_failed", "the bridge cannot go on");
        match watched.await {
            Some(error) => failed.because(error),
            None => failed.because("it ended by itself"),
        }
    };
    let stop = async move {
        let _ = stop.send(());
        if let Some(error) = ended.await {
            tracing::warn!(%error, "the bridge stopped uncleanly");
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
