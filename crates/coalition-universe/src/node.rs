//! One peer on the universe: start, serve, call, stop.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::BoxFuture;
use iroh::{RelayMap, RelayMode};
use mosaik::{
    Bytes, Network, UniqueId, discovery,
    functions::{CallContext, CallError as MosaikCallError, Caller, Handler},
};
use serde::{Deserialize, Serialize};

use crate::{AddressError, NodeKey, PeerAddress, PeerId};

/// The shared universe every coalition lives on (spec chapter 55).
pub const UNIVERSE: UniqueId = mosaik::unique_id!("mosaik.universe");

/// The largest request or answer body a node accepts, in bytes. Image chunks of 1 MiB are the largest users.
pub const MAX_BODY_BYTES: usize = 4 << 20;

/// Calls a node executes at once; further ones are refused and the caller tries again.
const MAX_CONCURRENT_CALLS: usize = 1_024;

/// Requesters come and go; probing each of them again and again costs every node a connection per probe, and a caller probes
/// the peers it calls anyway.
const PROBE_INTERVAL: Duration = Duration::from_secs(3_600);

/// How long a stopping node waits for its peers to take note.
const GOODBYE: Duration = Duration::from_millis(500);

/// Identifies the remote-call function of this version; each peer serves it under an id derived from its own key.
const RPC_DOMAIN: UniqueId = mosaik::unique_id!("coalition.universe.rpc.v1");

/// How a node is set up.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Which universe; peers of another cannot connect. Normally [`UNIVERSE`], derived for a development coalition.
    pub network_id: UniqueId,
    /// Who this node is.
    pub key: NodeKey,
    /// The relay's URL. mosaik starts no node without one.
    pub relay: String,
    /// The UDP address to bind; `None` picks a free loopback port.
    pub bind: Option<SocketAddr>,
    /// Peers introduced at start.
    pub bootstrap: Vec<PeerAddress>,
    /// How long to wait for the relay before giving up.
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

/// A service's refusal: a stable code and a sentence for a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message} ({code})")]
pub struct Fault {
    /// Stable, `snake_case`.
    pub code: String,
    /// What was wrong and what to do.
    pub message: String,
}

impl Fault {
    /// Makes a refusal.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into() }
    }
}

/// What a node answers. One per node; it dispatches on the method's name.
pub trait Service: Send + Sync + 'static {
    /// Answers one call. `caller` is authenticated by the transport. The body is at most [`MAX_BODY_BYTES`] and
    /// otherwise untrusted.
    fn call(&self, caller: PeerId, method: String, body: Vec<u8>) -> BoxFuture<'static, Result<Vec<u8>, Fault>>;
}

#[derive(Serialize, Deserialize)]
struct Request {
    method: String,
    body: Vec<u8>,
}

type RpcCaller = Caller<Request, Vec<u8>, Fault>;

/// A running peer. Dropping it closes its connections.
pub struct Node {
    network: Network,
    callers: Mutex<BTreeMap<PeerId, Arc<RpcCaller>>>,
    addresses: Mutex<BTreeMap<PeerId, PeerAddress>>,
    handler: Mutex<Option<Handler<Request, Vec<u8>, Fault>>>,
}

impl Node {
    /// Starts a node and waits until its relay answers.
    ///
    /// # Errors
    /// Every variant of [`NodeError`].
    pub async fn start(config: NodeConfig) -> Result<Arc<Self>, NodeError> {
        let bad_url = || NodeError::RelayUrl(config.relay.clone());
        let url: iroh::RelayUrl = config.relay.parse().map_err(|_| bad_url())?;
        // No QUIC address discovery: a loopback relay offers none, and probing for it costs seconds at start.
        let relay = RelayMap::from(iroh::RelayConfig::new(url, None));
        let mut bootstrap = Vec::new();
        for peer in &config.bootstrap {
            bootstrap.push(peer.to_endpoint()?);
        }
        let discovery = discovery::Config::builder()
            .with_bootstrap(bootstrap)
            .no_dht_bootstrap()
            .with_rtt_probe_interval(PROBE_INTERVAL);
        let bind = config.bind.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        let building = Network::builder(config.network_id)
            .with_secret_key(config.key.to_mosaik())
            .with_relay_mode(RelayMode::Custom(relay))
            .with_addresses([bind])
            .with_discovery(discovery)
            .build();
        let network = match tokio::time::timeout(config.start_timeout, building).await {
            Ok(Ok(network)) => network,
            Ok(Err(error)) => return Err(NodeError::Substrate(error.to_string())),
            Err(_) => {
                let waited_s = config.start_timeout.as_secs();
                return Err(NodeError::RelayTimeout { relay: config.relay, waited_s });
            }
        };
        stay_private(&network);
        let addresses = config.bootstrap.into_iter().map(|address| (address.peer, address)).collect();
        Ok(Arc::new(Self {
            network,
            callers: Mutex::default(),
            addresses: Mutex::new(addresses),
            handler: Mutex::default(),
        }))
    }

    /// This node's identity.
    #[must_use]
    pub fn peer_id(&self) -> PeerId {
        PeerId::from_mosaik(&self.network.local().id())
    }

    /// Where this node can be reached now.
    #[must_use]
    pub fn address(&self) -> PeerAddress {
        PeerAddress::from_endpoint(&self.network.local().addr())
    }

    /// Starts answering calls. A second call replaces the service.
    ///
    /// # Errors
    /// [`NodeError::Substrate`] when the substrate refuses the registration.
    pub fn serve(&self, service: Arc<dyn Service>) -> Result<(), NodeError> {
        let mut slot = lock(&self.handler);
        *slot = None;
        let handler = self
            .network
            .functions()
            .handler::<Request, Vec<u8>, Fault>()
            .with_function_id(function_of(self.peer_id()))
            .with_max_concurrent(MAX_CONCURRENT_CALLS)
            .serve(move |request: Request, context: CallContext| {
                answer(Arc::clone(&service), PeerId::from_mosaik(context.caller().id()), request)
            })
            .map_err(|error| NodeError::Substrate(error.to_string()))?;
        *slot = Some(handler);
        Ok(())
    }

    /// Remembers where a peer is, for later calls.
    pub fn introduce(&self, address: PeerAddress) {
        lock(&self.addresses).insert(address.peer, address);
    }

    /// Calls a method of a peer and waits for its answer, at most `timeout` in all.
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
        if body.len() > MAX_BODY_BYTES {
            return Err(CallError::TooLarge { bytes: body.len() });
        }
        let started = tokio::time::Instant::now();
        let attempt = async {
            self.learn(peer).await;
            let caller = self.caller(peer);
            let request = Request { method: method.into(), body };
            let left = timeout.saturating_sub(started.elapsed());
            caller.call_with_timeout(request, left).await
        };
        let timed_out = || CallError::Timeout {
            peer,
            method: method.into(),
            waited_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        };
        match tokio::time::timeout(timeout, attempt).await {
            Err(_) | Ok(Err(MosaikCallError::Timeout | MosaikCallError::Unavailable)) => Err(timed_out()),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(MosaikCallError::Application(fault))) => Err(CallError::Refused(fault)),
            Ok(Err(other)) => Err(CallError::Transport { peer, method: method.into(), reason: other.to_string() }),
        }
    }

    /// Resolves when the endpoint has closed by itself; the process should then exit and be restarted
    /// (a panic inside the substrate's protocol handlers closes it for good).
    pub async fn closed(&self) {
        self.network.local().endpoint().closed().await;
    }

    /// Says goodbye to peers and closes the endpoint.
    pub async fn stop(&self) {
        *lock(&self.handler) = None;
        lock(&self.callers).clear();
        // Peers that have gone already never confirm the goodbye; waiting for them would make every stop slow.
        let _ = tokio::time::timeout(GOODBYE, self.network.local().endpoint().close()).await;
    }

    /// Makes sure the peer's signed entry is in the catalog: the substrate dials only peers it knows.
    async fn learn(&self, peer: PeerId) {
        let serves = |entry: &mosaik::discovery::PeerEntry| entry.functions().contains(&function_of(peer));
        if self.network.discovery().catalog().get(&peer.to_mosaik()).is_some_and(serves) {
            return;
        }
        let known = lock(&self.addresses).get(&peer).and_then(|address| address.to_endpoint().ok());
        if let Some(address) = known
            && let Err(error) = self.network.discovery().sync_with(address).await
        {
            tracing::debug!(?peer, %error, "catalog exchange failed");
        }
    }

    fn caller(&self, peer: PeerId) -> Arc<RpcCaller> {
        let mut callers = lock(&self.callers);
        let make = || {
            let builder = self.network.functions().caller::<Request, Vec<u8>, Fault>();
            Arc::new(builder.with_function_id(function_of(peer)).build())
        };
        Arc::clone(callers.entry(peer).or_insert_with(make))
    }
}

/// Runs one call in a task of its own: a panic that reached the substrate's router would close the endpoint.
async fn answer(service: Arc<dyn Service>, caller: PeerId, request: Request) -> Result<Vec<u8>, Fault> {
    if request.body.len() > MAX_BODY_BYTES {
        let bytes = request.body.len();
        return Err(Fault::new("too_large", format!("request of {bytes} bytes exceeds {MAX_BODY_BYTES}")));
    }
    let method = request.method.clone();
    let task = tokio::spawn(async move { service.call(caller, request.method, request.body).await });
    task.await.unwrap_or_else(|error| {
        tracing::error!(%method, %error, "a service call died");
        Err(Fault::new("internal", "the call failed inside the peer; its log says why"))
    })
}

/// The substrate's preset publishes every node's key and relay to a public DNS service and asks it about peers. Nodes here
/// are reached by address, and a requester's fresh identity is nobody's business, so all lookups are switched off as soon as
/// the endpoint is in our hands. (One announcement can leave before that; docs/protocol/shuffle.md says so.)
fn stay_private(network: &Network) {
    if let Ok(lookup) = network.local().endpoint().address_lookup() {
        lookup.clear();
    }
}

fn function_of(peer: PeerId) -> UniqueId {
    RPC_DOMAIN.derive(Bytes::copy_from_slice(peer.as_bytes()))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
