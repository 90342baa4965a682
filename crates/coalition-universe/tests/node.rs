//! Two nodes and a relay on loopback: calls, faults, panics, restarts of a peer.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use coalition_universe::{
    CallError, Fault, MAX_BODY_BYTES, Node, NodeConfig, NodeKey, PeerAddress, PeerId, Relay, Service, UNIVERSE,
};
use futures::future::{BoxFuture, join_all};

struct Echo;

impl Service for Echo {
    fn call(&self, caller: PeerId, method: String, body: Vec<u8>) -> BoxFuture<'static, Result<Vec<u8>, Fault>> {
        Box::pin(async move {
            match method.as_str() {
                "echo" => Ok(body),
                "whoami" => Ok(caller.as_bytes().to_vec()),
                "panic" => panic!("asked to"),
                _ => Err(Fault::new("unknown_method", format!("no method {method}"))),
            }
        })
    }
}

fn config(relay: &Relay, seed: u8) -> NodeConfig {
    NodeConfig {
        network_id: UNIVERSE.derive("test"),
        key: NodeKey::from_bytes([seed; 32]),
        relay: relay.url(),
        bind: None,
        bootstrap: vec![],
        public: false,
        start_timeout: Duration::from_secs(20),
    }
}

async fn node(relay: &Relay, seed: u8) -> Arc<Node> {
    Node::start(config(relay, seed)).await.unwrap()
}

async fn relay() -> Relay {
    Relay::start("127.0.0.1:0".parse().unwrap()).await.unwrap()
}

const WAIT: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_call_each_other_and_survive_a_panic() {
    let relay = relay().await;
    let started = std::time::Instant::now();
    let (server, client) = tokio::join!(node(&relay, 1), node(&relay, 2));
    println!("two nodes up in {:?}", started.elapsed());
    assert!(server.address().relay.is_some(), "{:?}", server.address());
    server.serve(Arc::new(Echo));
    client.introduce(server.address());
    let peer = server.peer_id();

    let first = std::time::Instant::now();
    assert_eq!(client.call(peer, "echo", b"hi".to_vec(), WAIT).await.unwrap(), b"hi");
    println!("first call {:?}", first.elapsed());
    let many = std::time::Instant::now();
    for _ in 0..20 {
        client.call(peer, "echo", vec![0; 1024], WAIT).await.unwrap();
    }
    println!("call {:?}", many.elapsed() / 20);

    assert_eq!(client.call(peer, "whoami", vec![], WAIT).await.unwrap(), client.peer_id().as_bytes());
    let refused = client.call(peer, "nonsense", vec![], WAIT).await.unwrap_err();
    assert!(matches!(&refused, CallError::Refused(fault) if fault.code == "unknown_method"), "{refused}");
    let died = client.call(peer, "panic", vec![], WAIT).await.unwrap_err();
    assert!(matches!(&died, CallError::Refused(fault) if fault.code == "internal"), "{died}");
    assert_eq!(client.call(peer, "echo", b"still".to_vec(), WAIT).await.unwrap(), b"still");

    server.stop().await;
    let gone = client.call(peer, "echo", vec![], Duration::from_secs(2)).await.unwrap_err();
    assert!(!matches!(gone, CallError::Refused(_)), "{gone}");
    client.stop().await;
    relay.stop().await;
}

#[tokio::test]
async fn a_missing_relay_is_named() {
    let error = Node::start(NodeConfig {
        network_id: UNIVERSE,
        key: NodeKey::generate(),
        relay: "http://127.0.0.1:9".into(),
        bind: None,
        bootstrap: vec![],
        public: true,
        start_timeout: Duration::from_secs(1),
    })
    .await
    .err()
    .unwrap();
    assert!(error.to_string().contains("http://127.0.0.1:9 did not answer within 1 s"), "{error}");
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = Relay::start(address).await.err().unwrap().to_string();
    assert!(error.contains(&address.to_string()), "{error}");
}

/// Counts the calls that run and those that were dropped before they ended.
#[derive(Default)]
struct Waiting {
    running: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
}

struct OnDrop(Arc<AtomicUsize>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Service for Waiting {
    fn call(&self, _: PeerId, _: String, _: Vec<u8>) -> BoxFuture<'static, Result<Vec<u8>, Fault>> {
        let (running, dropped) = (Arc::clone(&self.running), OnDrop(Arc::clone(&self.dropped)));
        Box::pin(async move {
            let _dropped = dropped;
            running.fetch_add(1, Ordering::SeqCst);
            std::future::pending().await
        })
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let poll = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(WAIT, poll).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_gives_up_ends_its_call() {
    let relay = relay().await;
    let (server, client) = tokio::join!(node(&relay, 3), node(&relay, 4));
    let service = Waiting::default();
    let (running, dropped) = (Arc::clone(&service.running), Arc::clone(&service.dropped));
    server.serve(Arc::new(service));
    client.introduce(server.address());
    let late = client.call(server.peer_id(), "wait", vec![], Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(late, CallError::Timeout { waited_ms: 1_000, .. }), "{late}");
    until("the call to run", || running.load(Ordering::SeqCst) == 1).await;
    until("the call to end", || dropped.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_peer_is_reached_again() {
    let relay = relay().await;
    let client = node(&relay, 6).await;
    let (config_1, config_2) = (config(&relay, 5), config(&relay, 5));
    // On a runtime of its own, which dies without a goodbye, as a killed process does.
    let doomed = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let server = doomed.spawn(Node::start(config_1)).await.unwrap().unwrap();
    server.serve(Arc::new(Echo));
    let (peer, address) = (server.peer_id(), server.address());
    client.introduce(address.clone());
    client.call(peer, "echo", vec![], WAIT).await.unwrap();
    drop(server);
    doomed.shutdown_background();

    let bind = address.direct.first().copied();
    let back = async {
        loop {
            if let Ok(node) = Node::start(NodeConfig { bind, ..config_2.clone() }).await {
                return node;
            }
        }
    };
    let again = tokio::time::timeout(WAIT, back).await.expect("the port is free again");
    again.serve(Arc::new(Echo));
    let reached = async { while client.call(peer, "echo", b"back".to_vec(), Duration::from_secs(2)).await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(10), reached).await.expect("reached within ten seconds");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_fresh_clients_at_once_are_answered() {
    let relay = relay().await;
    let server = node(&relay, 7).await;
    server.serve(Arc::new(Echo));
    let clients = join_all((10..50).map(|seed| node(&relay, seed))).await;
    let started = std::time::Instant::now();
    let calls = clients.iter().map(|client| async {
        client.introduce(server.address());
        join_all((0..50).map(|_| client.call(server.peer_id(), "echo", vec![1; 4096], WAIT))).await
    });
    for answer in join_all(calls).await.into_iter().flatten() {
        assert_eq!(answer.unwrap(), [1; 4096]);
    }
    println!("40 clients, 50 calls each: {:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_body_comes_through_and_a_larger_one_does_not() {
    let relay = relay().await;
    let (server, client) = tokio::join!(node(&relay, 51), node(&relay, 52));
    server.serve(Arc::new(Echo));
    client.introduce(server.address());
    let body: Vec<u8> = (0..MAX_BODY_BYTES).map(|i| u8::try_from(i % 251).unwrap()).collect();
    assert_eq!(client.call(server.peer_id(), "echo", body.clone(), WAIT).await.unwrap(), body);
    let larger = client.call(server.peer_id(), "echo", vec![0; MAX_BODY_BYTES + 1], WAIT).await.unwrap_err();
    assert!(matches!(larger, CallError::TooLarge { bytes } if bytes == MAX_BODY_BYTES + 1), "{larger}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_of_another_universe_is_not_answered() {
    let relay = relay().await;
    let other = NodeConfig { network_id: UNIVERSE.derive("other"), ..config(&relay, 54) };
    let (server, client) = tokio::join!(node(&relay, 53), Node::start(other));
    server.serve(Arc::new(Echo));
    let client = client.unwrap();
    client.introduce(server.address());
    let error = client.call(server.peer_id(), "echo", vec![], WAIT).await.unwrap_err();
    assert!(matches!(error, CallError::Transport { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_public_peer_that_moved_is_found_again_and_a_private_one_is_in_no_list() {
    let relay = relay().await;
    let hub = Node::start(NodeConfig { public: true, ..config(&relay, 60) }).await.unwrap();
    hub.serve(Arc::new(Echo));
    let knows_hub = |seed| NodeConfig { public: true, bootstrap: vec![hub.address()], ..config(&relay, seed) };
    let (moving, watching) = tokio::join!(Node::start(knows_hub(61)), Node::start(knows_hub(62)));
    let (moving, watching) = (moving.unwrap(), watching.unwrap());
    let private = Node::start(NodeConfig { public: false, ..knows_hub(63) }).await.unwrap();
    private.call(hub.peer_id(), "echo", vec![], WAIT).await.unwrap();
    let peer = moving.peer_id();
    let first = moving.address();
    until("the peer to be listed", || watching.locate(peer).as_ref() == Some(&first)).await;
    moving.stop().await;
    drop(moving);

    let moved = Node::start(knows_hub(61)).await.unwrap();
    moved.serve(Arc::new(Echo));
    let second = moved.address();
    assert_ne!(first.direct, second.direct);
    until("the new address to be listed", || watching.locate(peer).as_ref() == Some(&second)).await;
    assert_eq!(watching.call(peer, "echo", b"found".to_vec(), WAIT).await.unwrap(), b"found");
    assert_eq!(watching.locate(private.peer_id()), None);
    assert_eq!(hub.locate(private.peer_id()), None);
    assert_eq!(private.locate(peer), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strangers_address_is_used_once_and_never_replaces_a_known_one() {
    let relay = relay().await;
    let (server, client) = tokio::join!(node(&relay, 61), node(&relay, 62));
    server.serve(Arc::new(Echo));
    let address = server.address();
    let elsewhere = PeerAddress { relay: Some("http://192.0.2.1:1".into()), ..address.clone() };
    assert_eq!(client.call_at(&elsewhere, "echo", b"hi".to_vec(), WAIT).await.unwrap(), b"hi");
    // Another node that was only told where the peer is not still has the address it was introduced with.
    let second = node(&relay, 63).await;
    second.introduce(address.clone());
    let nowhere = PeerAddress { direct: vec!["127.0.0.1:9".parse().unwrap()], relay: None, ..address };
    assert_eq!(second.call_at(&nowhere, "echo", b"hi".to_vec(), WAIT).await.unwrap(), b"hi");
    assert_eq!(second.call(server.peer_id(), "echo", b"hi".to_vec(), WAIT).await.unwrap(), b"hi");
}
