//! One peer on the universe: start, serve, call, stop.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::BoxFuture;
use iroh::{
    Endpoint, EndpointAddr, RelayMap, RelayMode,
    endpoint::{PortmapperConfig, QuicTransportConfig, VarInt, presets},
};
use mosaik::UniqueId;
use tokio::task::JoinHandle;

use crate::{
    AddressError, Fault, NodeKey, PeerAddress, PeerId,
    connections::{Connections, Failure},
    presence::{self, Presence},
    server::{self, Answers},
    wire::Answer,
};

/// The shared universe every coalition lives on (spec chapter 55).
pub const UNIVERSE: UniqueId = mosaik::unique_id!("mosaik.universe");

/// The largest request or answer body a node accepts, in bytes. Slices of content, 1 MiB each, are the largest users.
pub const MAX_BODY_BYTES: usize = 4 << 20;

/// Calls one peer may have open on a connection; further ones wait.
const STREAMS_PER_CONNECTION: u32 = 128;

/// Bytes a connection may have in flight towards this node, over all its calls.
const RECEIVE_WINDOW_BYTES: u32 = 8 << 20;

/// How long a stopping node waits for its peers to take note.
const GOODBYE: Duration = Duration::from_millis(500);

/// How a node is set up.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Which universe; peers of another cannot connect. Normally [`UNIVERSE`], derived for a development coalition.
    pub network_id: UniqueId,
    /// Who this node is.
    pub key: NodeKey,
    /// The relay's URL: how a node is reached that cannot be reached directly.
    pub relay: String,
    /// The UDP address to bind; `None` picks a free loopback port.
    pub bind: Option<SocketAddr>,
    /// Peers introduced at start.
    pub bootstrap: Vec<PeerAddress>,
    /// Whether other public nodes may find this one through mosaik's discovery. Members, bridges and other services are
    /// public; a requester's node is not.
    pub public: bool,
    /// How long a public node waits for the relay before giving up. A private one starts at once.
    pub start_timeout: Duration,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The relay's URL cannot be parsed.
    #[error("relay URL {0:?} is not valid; expected something like http://127.0.0.1:3340")]
    RelayUrl(String),
    /// A bootstrap address is malformed.
    #[error("bootstrap peer")]
    Bootstrap(#[from] AddressError),
    /// The relay did not answer in time.
    #[error("relay {relay} did not answer within {waited_s} s; is the coalition up?")]
    RelayTimeout {
        /// The relay's URL.
        relay: String,
        /// Seconds waited.
        waited_s: u64,
    },
    /// The substrate refused.
    #[error("the node could not start: {0}")]
    Substrate(String),
}

/// Why a remote call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The peer ran the method and refused; its answer stands.
    #[error("{0}")]
    Refused(Fault),
    /// Nobody answered in time.
    #[error("peer {peer:?} did not answer {method} within {waited_ms} ms")]
    Timeout {
        /// The peer called.
        peer: PeerId,
        /// The method called.
        method: String,
        /// Milliseconds waited.
        waited_ms: u64,
    },
    /// The transport failed.
    #[error("call of {method} to peer {peer:?} failed: {reason}")]
    Transport {
        /// The peer called.
        peer: PeerId,
        /// The method called.
        method: String,
        /// What went wrong below.
        reason: String,
    },
    /// The request is larger than a peer accepts.
    #[error("request of {bytes} bytes exceeds the limit of {MAX_BODY_BYTES}")]
    TooLarge {
        /// Bytes of the request.
        bytes: usize,
    },
}

/// What a node answers. One per node; it dispatches on the method's name.
pub trait Service: Send + Sync + 'static {
    /// Answers one call. `caller` is authenticated by the transport. The body is at most [`MAX_BODY_BYTES`] and
    /// otherwise untrusted.
    fn call(&self, caller: PeerId, method: String, body: Vec<u8>) -> BoxFuture<'static, Result<Vec<u8>, Fault>>;

    /// Whether answers of this method are large, 64 KiB and more. Such calls share a budget until their answers are taken, so
    /// that callers cannot fill the memory by not taking them.
    fn answers_large(&self, _method: &str) -> bool {
        false
    }
}

/// A running peer. Dropping it closes its connections.
pub struct Node {
    network_id: UniqueId,
    endpoint: Endpoint,
    relay: String,
    addresses: Mutex<BTreeMap<PeerId, PeerAddress>>,
    connections: Arc<Connections>,
    answers: Arc<Answers>,
    accepting: JoinHandle<()>,
    presence: Option<Presence>,
}

impl Node {
    /// Starts a node. A public one waits until its relay answers.
    ///
    /// # Errors
    /// Every variant of [`NodeError`].
    pub async fn start(config: NodeConfig) -> Result<Arc<Self>, NodeError> {
        for peer in &config.bootstrap {
            peer.to_endpoint()?;
        }
        let (relay, relay_url) = relay_mode(&config.relay)?;
        let alpn = alpn(&config.network_id);
        let endpoint = bind(&config, relay.clone(), alpn.clone()).await?;
        if config.public
            && let Err(error) = online(&endpoint, &config.relay, config.start_timeout).await
        {
            endpoint.close().await;
            return Err(error);
        }
        let answers = Arc::new(Answers::default());
        let connections = Arc::new(Connections::new(endpoint.clone(), alpn));
        let presence = config.public.then(|| {
            Presence::start(presence::Setup {
                network_id: config.network_id,
                key: config.key.clone(),
                relay,
                endpoint: endpoint.clone(),
                connections: Arc::clone(&connections),
                known: config.bootstrap.clone(),
            })
        });
        if let Some(presence) = &presence {
            answers.set_own(presence.service());
        }
        let accepting = tokio::spawn(server::accept(endpoint.clone(), Arc::clone(&answers)));
        let addresses = Mutex::new(config.bootstrap.into_iter().map(|address| (address.peer, address)).collect());
        Ok(Arc::new(Self {
            network_id: config.network_id,
            endpoint,
            relay: relay_url,
            addresses,
            connections,
            answers,
            accepting,
            presence,
        }))
    }

    /// This node's identity.
    #[must_use]
    pub fn peer_id(&self) -> PeerId {
        PeerId::from_mosaik(&self.endpoint.id())
    }

    /// The universe this node is on.
    #[must_use]
    pub const fn network_id(&self) -> UniqueId {
        self.network_id
    }

    /// Where this node can be reached: its sockets, and the relay even while it is still connecting to it.
    #[must_use]
    pub fn address(&self) -> PeerAddress {
        let mut address = PeerAddress::from_endpoint(&self.endpoint.addr());
        if address.direct.is_empty() {
            let bound = self.endpoint.bound_sockets();
            address.direct = bound.into_iter().filter(|socket| !socket.ip().is_unspecified()).collect();
        }
        PeerAddress { relay: address.relay.or_else(|| Some(self.relay.clone())), ..address }
    }

    /// Starts answering calls. A second call replaces the service.
    pub fn serve(&self, service: Arc<dyn Service>) {
        self.answers.set_service(Some(service));
    }

    /// Remembers where a peer is, for later calls.
    pub fn introduce(&self, address: PeerAddress) {
        lock(&self.addresses).insert(address.peer, address);
    }

    /// The same for an address from a source that knows less than who was asked first: counts only if no address of the peer was
    /// introduced.
    pub fn suggest(&self, address: PeerAddress) {
        lock(&self.addresses).entry(address.peer).or_insert(address);
    }

    /// The address a peer was introduced with, or that was suggested.
    #[must_use]
    pub fn introduced(&self, peer: PeerId) -> Option<PeerAddress> {
        lock(&self.addresses).get(&peer).cloned()
    }

    /// Everybody who was introduced or suggested.
    #[must_use]
    pub fn acquaintances(&self) -> Vec<PeerId> {
        lock(&self.addresses).keys().copied().collect()
    }

    /// Calls a method of a peer and waits for its answer, at most `timeout` in all. Dropping the future cancels the call
    /// at the peer.
    ///
    /// # Errors
    /// [`CallError`]; only [`CallError::Refused`] proves that the method ran.
    pub async fn call(
        &self,
        peer: PeerId,
        method: &str,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, CallError> {
        self.call_with(peer, || self.places(peer), method, body, timeout).await
    }

    /// As [`Node::call`], to a peer at an address that a stranger gave: nothing of it is remembered, and what this node
    /// knows of the peer by itself counts as well. Of relays only this node's own is used, whatever the address names.
    ///
    /// # Errors
    /// As [`Node::call`].
    pub async fn call_at(
        &self,
        address: &PeerAddress,
        method: &str,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, CallError> {
        let places = || {
            let own = PeerAddress { relay: Some(self.relay.clone()), ..address.clone() };
            let mut places = self.places(address.peer);
            if let Ok(given) = own.to_endpoint() {
                places.addrs.extend(given.addrs);
            }
            places
        };
        self.call_with(address.peer, places, method, body, timeout).await
    }

    async fn call_with(
        &self,
        peer: PeerId,
        places: impl FnOnce() -> EndpointAddr,
        method: &str,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, CallError> {
        if body.len() > MAX_BODY_BYTES {
            return Err(CallError::TooLarge { bytes: body.len() });
        }
        let attempt = self.connections.call(peer, places, method, &body);
        let transport = |reason| CallError::Transport { peer, method: method.into(), reason };
        match tokio::time::timeout(timeout, attempt).await {
            Err(_) => Err(CallError::Timeout {
                peer,
                method: method.into(),
                waited_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            }),
            Ok(Ok(Answer::Ok(answer))) => Ok(answer),
            Ok(Ok(Answer::Fault(fault))) => Err(CallError::Refused(fault)),
            Ok(Ok(Answer::Unavailable) | Err(Failure::Unavailable)) => {
                Err(transport("it has no room for it now".into()))
            }
            Ok(Err(Failure::Transport(reason))) => Err(transport(reason)),
        }
    }

    /// Where other public nodes say, by the peer's own signature, that it is now. `None` on a node that is not public.
    #[must_use]
    pub fn locate(&self, peer: PeerId) -> Option<PeerAddress> {
        self.presence.as_ref()?.locate(peer)
    }

    /// Resolves when the endpoint has closed by itself; the process should then exit and be restarted.
    pub async fn closed(&self) {
        self.endpoint.closed().await;
    }

    /// Says goodbye to peers and closes the endpoint.
    pub async fn stop(&self) {
        self.answers.set_service(None);
        self.connections.clear();
        let presence = async {
            if let Some(presence) = &self.presence {
                presence.stop(GOODBYE).await;
            }
        };
        // Peers that have gone already never confirm the goodbye; waiting for them would make every stop slow.
        let _ = tokio::join!(presence, tokio::time::timeout(GOODBYE, self.endpoint.close()));
    }

    /// Every place the peer may be at: what it was introduced with and what it has announced since.
    fn places(&self, peer: PeerId) -> EndpointAddr {
        let introduced = lock(&self.addresses).get(&peer).cloned();
        let mut places = EndpointAddr::new(peer.to_mosaik());
        for address in introduced.into_iter().chain(self.locate(peer)) {
            if let Ok(address) = address.to_endpoint() {
                places.addrs.extend(address.addrs);
            }
        }
        places
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn relay_mode(url: &str) -> Result<(RelayMode, String), NodeError> {
    let parsed: iroh::RelayUrl = url.parse().map_err(|_| NodeError::RelayUrl(url.into()))?;
    // No QUIC address discovery: a loopback relay offers none, and probing for it costs seconds at start.
    let shown = parsed.to_string();
    Ok((RelayMode::Custom(RelayMap::from(iroh::RelayConfig::new(parsed, None))), shown))
}

async fn online(endpoint: &Endpoint, relay: &str, timeout: Duration) -> Result<(), NodeError> {
    let late = |_| NodeError::RelayTimeout { relay: relay.to_owned(), waited_s: timeout.as_secs() };
    tokio::time::timeout(timeout, endpoint.online()).await.map_err(late)
}

/// Peers of another universe share no protocol and fail in the handshake.
fn alpn(network_id: &UniqueId) -> Vec<u8> {
    format!("coalition-rpc/1/{}", hex::encode(network_id.as_bytes())).into_bytes()
}

async fn bind(config: &NodeConfig, relay: RelayMode, alpn: Vec<u8>) -> Result<Endpoint, NodeError> {
    let substrate = |error: &dyn std::fmt::Display| NodeError::Substrate(format!("{error:#}"));
    let address = config.bind.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
    let transport = QuicTransportConfig::builder()
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_PER_CONNECTION))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES))
        .build();
    Endpoint::builder(presets::Minimal)
        .secret_key(config.key.to_mosaik())
        .alpns(vec![alpn])
        .relay_mode(relay)
        .transport_config(transport)
        .portmapper_config(PortmapperConfig::Disabled)
        .clear_ip_transports()
        .bind_addr(address)
        .map_err(|error| substrate(&error))?
        .bind()
        .await
        .map_err(|error| substrate(&error))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
