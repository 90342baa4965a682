//! Two nodes and a relay on loopback: calls, faults, panics, restarts of a peer.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{sync::Arc, time::Duration};

use coalition_universe::{CallError, Fault, Node, NodeConfig, NodeKey, PeerId, Relay, Service, UNIVERSE};
use futures::future::BoxFuture;

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

async fn node(relay: &Relay, seed: u8) -> Arc<Node> {
    Node::start(NodeConfig {
        network_id: UNIVERSE.derive("test"),
        key: NodeKey::from_bytes([seed; 32]),
        relay: relay.url(),
        bind: None,
        bootstrap: vec![],
        start_timeout: Duration::from_secs(20),
    })
    .await
    .unwrap()
}

const WAIT: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_call_each_other_and_survive_a_panic() {
    let relay = Relay::start("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let started = std::time::Instant::now();
    let (server, client) = tokio::join!(node(&relay, 1), node(&relay, 2));
    println!("two nodes up in {:?}", started.elapsed());
    server.serve(Arc::new(Echo)).unwrap();
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
