//! `coalition run relay`: the rendezvous point.

use std::{future, path::Path};

use coalition_universe::{Relay, RelayError};
use serde_json::json;

use super::{Running, config::RelayConfig};
use crate::{
    config_file,
    error::{CliError, Kind, Result},
};

pub(super) async fn start(path: &Path) -> Result<Running> {
    let config: RelayConfig = config_file::load(path)?;
    let relay = Relay::start(config.listen).await.map_err(|error| {
        let RelayError::Listen { listen, .. } = &error;
        let hint = format!("see who has it with `ss -tlnp 'sport = :{}'`", listen.port());
        CliError::new(Kind::Conflict, "port_in_use", "the relay cannot start").because(error).hint(hint)
    })?;
    let ready = json!({ "url": relay.url() });
    Ok(Running { ready, failed: Box::pin(future::pending()), stop: Box::pin(relay.stop()) })
}
