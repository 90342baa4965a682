//! Being found: a public node's presence in mosaik's discovery.
//!
//! mosaik's catalog lists peers by their mosaik key. A public node takes part under a key derived from its own, and puts a
//! ticket on its entry that binds the two: its address for remote calls, signed by the key the address belongs to. Other
//! public nodes find it again after it has moved. A requester's node takes no part, so a rotating identity is in no catalog.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{StreamExt, future::BoxFuture};
use iroh::{EndpointAddr, RelayMode, SecretKey, Signature, Watcher};
use mosaik::{Bytes, Network, UniqueId, discovery, tickets::Ticket};
use tokio::task::JoinSet;

use crate::{
    NodeKey, PeerAddress, PeerId,
    connections::Connections,
    node::Service,
    wire::{Answer, Fault},
};

/// The ticket class of signed addresses.
const ADDRESS: UniqueId = mosaik::unique_id!("coalition.universe.address.v1");

/// Separates the key a node uses on mosaik from its own.
const MOSAIK_KEY: &str = "coalition.universe.v1 mosaik key";

/// The method that names a node's mosaik address.
pub(crate) const METHOD: &str = "universe.presence";

/// A ticket's address may not be longer: an entry over 4,096 bytes makes its owner invisible.
const MAX_ADDRESS_BYTES: usize = 1_024;

/// Peers are probed seldom: calls probe those that matter.
const PROBE_INTERVAL: Duration = Duration::from_secs(3_600);

/// How long a known peer may take to say where its presence is, and the longest pause between asking again.
const ASK: Duration = Duration::from_secs(2);
const SLOWEST: Duration = Duration::from_secs(60);

const SIGNATURE_BYTES: usize = 64;
const FIXED_BYTES: usize = SIGNATURE_BYTES + 8;

/// An address as its owner signed it: `signature(64) ‖ u64 issued, ms since 1970, big endian ‖ address text`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SignedAddress {
    issued_ms: u64,
    address: PeerAddress,
}

impl SignedAddress {
    fn statement(network: &UniqueId, mosaik_key: &[u8; 32], rest: &[u8]) -> Vec<u8> {
        [ADDRESS.as_bytes(), network.as_bytes(), mosaik_key, rest].concat()
    }

    fn sign(&self, key: &SecretKey, network: &UniqueId, mosaik_key: &[u8; 32]) -> Bytes {
        let mut rest = self.issued_ms.to_be_bytes().to_vec();
        rest.extend_from_slice(self.address.to_string().as_bytes());
        let signature = key.sign(&Self::statement(network, mosaik_key, &rest));
        Bytes::from([signature.to_bytes().as_slice(), &rest].concat())
    }

    /// The address of a ticket, when its owner signed it for this network and this mosaik peer.
    fn verify(ticket: &[u8], network: &UniqueId, mosaik_key: &[u8; 32]) -> Option<Self> {
        if !(FIXED_BYTES..=FIXED_BYTES + MAX_ADDRESS_BYTES).contains(&ticket.len()) {
            return None;
        }
        let (signature, rest) = ticket.split_first_chunk::<SIGNATURE_BYTES>()?;
        let (issued, text) = rest.split_first_chunk::<8>()?;
        let address: PeerAddress = std::str::from_utf8(text).ok()?.parse().ok()?;
        let statement = Self::statement(network, mosaik_key, rest);
        address.peer.to_mosaik().verify(&statement, &Signature::from_bytes(signature)).ok()?;
        Some(Self { issued_ms: u64::from_be_bytes(*issued), address })
    }
}

/// What a presence needs of its node.
pub(crate) struct Setup {
    pub network_id: UniqueId,
    pub key: NodeKey,
    pub relay: RelayMode,
    pub endpoint: iroh::Endpoint,
    pub connections: Arc<Connections>,
    pub known: Vec<PeerAddress>,
}

/// The presence of one public node. It joins in the background; nothing waits for it.
pub(crate) struct Presence {
    network_id: UniqueId,
    network: Arc<Mutex<Option<Network>>>,
    _tasks: JoinSet<()>,
}

impl Presence {
    pub(crate) fn start(setup: Setup) -> Self {
        let network = Arc::new(Mutex::new(None));
        let mut tasks = JoinSet::new();
        let network_id = setup.network_id;
        tasks.spawn(join(setup, Arc::clone(&network)));
        Self { network_id, network, _tasks: tasks }
    }

    /// The newest address the peer has signed, if one is in the catalog.
    pub(crate) fn locate(&self, peer: PeerId) -> Option<PeerAddress> {
        let catalog = lock(&self.network).as_ref()?.discovery().catalog();
        let signed = catalog.peers().flat_map(|entry| {
            let read = |ticket: &Ticket| SignedAddress::verify(&ticket.data, &self.network_id, entry.id().as_bytes());
            entry.tickets_of(ADDRESS).filter_map(read).collect::<Vec<_>>()
        });
        let newest = signed.filter(|signed| signed.address.peer == peer).max_by_key(|signed| signed.issued_ms);
        newest.map(|signed| signed.address)
    }

    /// Answers [`METHOD`].
    pub(crate) fn service(&self) -> Arc<dyn Service> {
        Arc::new(Directions(Arc::clone(&self.network)))
    }

    pub(crate) async fn stop(&self, patience: Duration) {
        let network = lock(&self.network).take();
        if let Some(network) = network {
            let _ = tokio::time::timeout(patience, network.local().endpoint().close()).await;
        }
    }
}

/// Tells public peers where this node's mosaik presence is.
struct Directions(Arc<Mutex<Option<Network>>>);

impl Service for Directions {
    fn call(&self, _: PeerId, method: String, _: Vec<u8>) -> BoxFuture<'static, Result<Vec<u8>, Fault>> {
        let address =
            lock(&self.0).as_ref().map(|network| PeerAddress::from_endpoint(&network.local().addr()).to_string());
        Box::pin(async move {
            match address {
                Some(address) if method == METHOD => Ok(address.into_bytes()),
                Some(_) => Err(Fault::new("unknown_method", format!("nodes have no method {method}"))),
                None => Err(Fault::new("not_ready", "the node is still joining")),
            }
        })
    }
}

async fn join(setup: Setup, slot: Arc<Mutex<Option<Network>>>) {
    let discovery = discovery::Config::builder().no_dht_bootstrap().with_rtt_probe_interval(PROBE_INTERVAL);
    let bind: BTreeSet<SocketAddr> =
        setup.endpoint.bound_sockets().first().map(|socket| SocketAddr::new(socket.ip(), 0)).into_iter().collect();
    let building = Network::builder(setup.network_id)
        .with_secret_key(mosaik_key(&setup.key))
        .with_relay_mode(setup.relay.clone())
        .with_addresses(bind)
        .with_discovery(discovery)
        .build();
    let network = match building.await {
        Ok(network) => network,
        Err(error) => return tracing::warn!(%error, "the node is not listed in the universe's discovery"),
    };
    // The substrate's preset publishes keys to a public DNS service and asks it about peers; ours are reached by address.
    if let Ok(lookup) = network.local().endpoint().address_lookup() {
        lookup.clear();
    }
    let discovery = network.discovery().clone();
    let mosaik_key = *network.local().id().as_bytes();
    *lock(&slot) = Some(network);
    tokio::join!(announce(&setup, &discovery, &mosaik_key), meet(&setup, &discovery));
}

/// Keeps the ticket on this node's entry equal to its current address.
async fn announce(setup: &Setup, discovery: &discovery::Discovery, mosaik_key: &[u8; 32]) {
    let mut addresses = setup.endpoint.watch_addr().stream();
    while let Some(address) = addresses.next().await {
        let signed = SignedAddress { issued_ms: now_ms(), address: PeerAddress::from_endpoint(&address) };
        let data = signed.sign(&setup.key.to_mosaik(), &setup.network_id, mosaik_key);
        discovery.replace_ticket(Ticket::new(ADDRESS, data));
    }
}

/// Asks every peer known by address where its presence is, until each has answered once, and meets it there.
async fn meet(setup: &Setup, discovery: &discovery::Discovery) {
    let mut left: Vec<(PeerId, EndpointAddr)> =
        setup.known.iter().filter_map(|address| Some((address.peer, address.to_endpoint().ok()?))).collect();
    let mut pause = Duration::from_millis(500);
    while !left.is_empty() {
        let mut strangers = Vec::new();
        for (peer, address) in left {
            let met = match ask(&setup.connections, peer, address.clone()).await {
                Some(presence) => discovery.sync_with(presence).await.is_ok(),
                None => false,
            };
            if !met {
                strangers.push((peer, address));
            }
        }
        left = strangers;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(SLOWEST);
    }
}

async fn ask(connections: &Connections, peer: PeerId, address: EndpointAddr) -> Option<EndpointAddr> {
    let call = connections.call(peer, || address, METHOD, &[]);
    match tokio::time::timeout(ASK, call).await {
        Ok(Ok(Answer::Ok(text))) => String::from_utf8(text).ok()?.parse::<PeerAddress>().ok()?.to_endpoint().ok(),
        _ => None,
    }
}

fn mosaik_key(key: &NodeKey) -> SecretKey {
    SecretKey::from_bytes(&blake3::derive_key(MOSAIK_KEY, key.expose()))
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed() -> (SecretKey, SignedAddress) {
        let key = SecretKey::from_bytes(&[3; 32]);
        let text = format!("{}@127.0.0.1:4001,http://127.0.0.1:3340/", hex::encode(key.public().as_bytes()));
        (key, SignedAddress { issued_ms: 1_700_000_000_000, address: text.parse().unwrap() })
    }

    #[test]
    fn a_signed_address_holds_for_its_network_and_peer_alone() {
        let (key, address) = signed();
        let (network, peer) = (UniqueId::from_bytes([1; 32]), [2; 32]);
        let ticket = address.sign(&key, &network, &peer);
        assert_eq!(SignedAddress::verify(&ticket, &network, &peer), Some(address.clone()));
        assert_eq!(SignedAddress::verify(&ticket, &UniqueId::from_bytes([9; 32]), &peer), None);
        assert_eq!(SignedAddress::verify(&ticket, &network, &[9; 32]), None);
        let forged = address.sign(&SecretKey::from_bytes(&[4; 32]), &network, &peer);
        assert_eq!(SignedAddress::verify(&forged, &network, &peer), None);
    }

    #[test]
    fn any_changed_byte_breaks_a_signed_address() {
        let (key, address) = signed();
        let (network, peer) = (UniqueId::from_bytes([1; 32]), [2; 32]);
        let ticket = address.sign(&key, &network, &peer);
        for position in 0..ticket.len() {
            let mut changed = ticket.to_vec();
            changed[position] ^= 1;
            assert_eq!(SignedAddress::verify(&changed, &network, &peer), None, "byte {position}");
            assert_eq!(SignedAddress::verify(&ticket[..position], &network, &peer), None);
        }
    }
}
