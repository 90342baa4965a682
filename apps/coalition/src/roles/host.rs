//! `coalition run host`: an SSH server without root or setup, so that this machine can be a bare-metal host.

use std::{future, path::Path};

use coalition_host::{
    keys,
    sshd::{self, HostSshdConfig, SshdError},
};
use serde_json::json;

use super::{Running, config};
use crate::{
    config_file::{self, relative_to},
    error::{CliError, Kind, Result},
    home::private_dir,
};

/// The user a bridge logs in as. The server accepts any and runs everything as its own user.
pub const LOGIN: &str = "bridge";

pub(super) async fn start(path: &Path) -> Result<Running> {
    let config: config::HostConfig = config_file::load(path)?;
    let key = config::load_key(&relative_to(path, &config.host_key))?;
    let root_dir = relative_to(path, &config.data_dir);
    private_dir(&root_dir)?;
    let setup = HostSshdConfig {
        listen: config.listen,
        host_key: keys::from_seed(key.expose(), "host").private_openssh,
        authorized_keys: config.authorized_keys,
        root_dir,
        env: Vec::new(),
    };
    let server = sshd::serve(setup).await.map_err(|error| match &error {
        SshdError::Listen { address, .. } => {
            let hint = format!("see who has it with `ss -tlnp 'sport = :{}'`", address.port());
            CliError::new(Kind::Conflict, "port_in_use", "the host's SSH server cannot start").because(error).hint(hint)
        }
        _ => CliError::input("host", "the host's SSH server cannot start").because(error),
    })?;
    let ready = json!({ "listen": server.local_addr.to_string(), "host_key": server.host_public_key });
    Ok(Running { ready, failed: Box::pin(future::pending()), stop: Box::pin(server.shutdown()) })
}
