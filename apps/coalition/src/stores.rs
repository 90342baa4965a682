//! Content stores, asked as this home's pusher or as nobody in particular.

use std::{sync::Arc, time::Duration};

use coalition::UniqueId;
use coalition_content::client::{ClientError, StoreClient};
use coalition_universe::{Node, NodeConfig, NodeKey, PeerAddress};

use crate::{
    devnet::keys::{PUSHER, key_file},
    error::{CliError, Kind, Result},
    home::{Home, private_dir},
    roles::config::{UniverseConfig, node_error},
    session::say_goodbye,
};

/// How long a store may take to say whether it has something.
const STAT_WAIT: Duration = Duration::from_secs(5);
const NODE_START: Duration = Duration::from_secs(20);

/// Stores, and a node to ask them from.
pub struct Stores {
    node: Arc<Node>,
    addresses: Vec<PeerAddress>,
}

/// The key a home pushes images with, made when there is none: stores know a pusher by it.
///
/// # Errors
/// When the file is unusable.
pub fn pusher_key(home: &Home) -> Result<NodeKey> {
    home.ensure()?;
    private_dir(&home.keys())?;
    NodeKey::load_or_create(&home.keys().join(key_file(PUSHER, "node")))
        .map_err(|error| CliError::input("key_unusable", "a key file cannot be used").because(error))
}

impl Stores {
    /// The stores asked for, else those of the coalition, with the home's own pusher's key.
    ///
    /// # Errors
    /// [`Kind::Unreachable`] when there is no coalition here, [`Kind::Input`] when it names no store.
    pub async fn as_pusher(home: &Home, asked: &[PeerAddress]) -> Result<Self> {
        Self::open(home, asked, pusher_key(home)?).await
    }

    /// The same under an identity made for this.
    ///
    /// # Errors
    /// As [`Stores::as_pusher`].
    pub async fn as_nobody(home: &Home, asked: &[PeerAddress]) -> Result<Self> {
        Self::open(home, asked, NodeKey::generate()).await
    }

    async fn open(home: &Home, asked: &[PeerAddress], key: NodeKey) -> Result<Self> {
        let path = home.universe();
        if !path.exists() {
            let message = format!("there is no coalition in {}", home.root().display());
            return Err(CliError::new(Kind::Unreachable, "no_coalition", message)
                .hint("start one with `coalition up`, or pass --home DIR"));
        }
        let (universe, _) = UniverseConfig::load(&path)?;
        let addresses: Vec<PeerAddress> =
            if asked.is_empty() { universe.stores.values().cloned().collect() } else { asked.to_vec() };
        if addresses.is_empty() {
            return Err(CliError::input("no_store", format!("{} names no store", path.display()))
                .hint("pass --store ADDRESS; a store prints its address when it is ready"));
        }
        let node = Node::start(NodeConfig {
            network_id: universe.network_id(&path)?,
            key,
            relay: universe.relay,
            bind: None,
            bootstrap: Vec::new(),
            public: false,
            start_timeout: NODE_START,
        });
        Ok(Self { node: node.await.map_err(node_error)?, addresses })
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = StoreClient> + '_ {
        self.addresses.iter().map(|address| StoreClient::new(Arc::clone(&self.node), address.clone()))
    }

    /// Those that say they have this, with the size they say it has; silent ones are left out.
    pub async fn having(&self, hash: UniqueId) -> Vec<(PeerAddress, u64)> {
        let asked = self.all().map(|store| async move {
            let size = tokio::time::timeout(STAT_WAIT, store.stat(hash)).await.ok()?.ok()??;
            Some((store.address().clone(), size))
        });
        futures::future::join_all(asked).await.into_iter().flatten().collect()
    }

    /// Says goodbye.
    pub async fn close(self) {
        say_goodbye(&self.node).await;
    }
}

/// A store's refusal or silence, as a person reads it.
#[must_use]
pub fn store_error(error: ClientError, store: &PeerAddress) -> CliError {
    let who = &store.peer.to_string()[..8];
    match error {
        ClientError::Refused(fault) => {
            let hint = match fault.code.as_str() {
                "quota" | "too_many" => {
                    Some("`coalition image ls` shows what you hold there, `coalition image gc` and `rm` remove it")
                }
                "not_allowed" => Some("give its operator the id that `coalition image peer` prints"),
                "no_room" => Some("try later, or another store: --store ADDRESS"),
                _ => None,
            };
            let refused = CliError::new(Kind::Refused, fault.code, format!("store {who}: {}", fault.message));
            match hint {
                Some(hint) => refused.hint(hint),
                None => refused,
            }
        }
        error @ ClientError::Unreachable(_) => {
            CliError::new(Kind::Unreachable, "store_unreachable", format!("store {who} does not answer"))
                .because(error)
                .hint("`coalition status` says whether it is up; what arrived there stays, push again to go on")
        }
        error @ ClientError::File(_) => CliError::input("image_changed", "the image changed meanwhile").because(error),
        error => CliError::fault("store", format!("store {who} does not keep to the protocol")).because(error),
    }
}
