//! The page: loopback, token, and what it says.

use std::sync::Arc;

use compute_bridge::dashboard::Dashboard;
use compute_bridge::fleet::Fleet;
use compute_bridge::journal::Journal;
use compute_bridge::status::Status;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use zeroize::Zeroizing;

use super::harness::{FakeBackend, MemoryMarket, nothing_earned};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

async fn get(address: std::net::SocketAddr, path: &str, header: &str) -> (u16, String) {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{header}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer)
}

#[tokio::test]
async fn only_the_token_in_the_header_opens_it() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    let fleet = Fleet::new(vec![FakeBackend::new("metal")]).unwrap();
    let provider = coalition::ProviderId(coalition::UniqueId::hash(b"p"));
    let status = Status::new(provider);
    status.offerings(fleet.offerings().await);
    status.event("hello \"quoted\"");
    status.refused("no_capacity");
    status.attempt(&"metal".parse().unwrap(), Some(compute_bridge::backend::FailureKind::Capacity));
    let market = MemoryMarket::new();
    let snapshot = {
        let (status, market, journal, fleet) =
            (Arc::clone(&status), Arc::clone(&market), journal.clone(), fleet.clone());
        move || status.snapshot(market.as_ref(), &journal, &fleet)
    };
    assert_eq!(snapshot().earnings, nothing_earned());
    let page = Dashboard::start(0, Zeroizing::new(TOKEN.into()), Box::new(snapshot)).await.unwrap();
    assert!(page.address.ip().is_loopback());
    let right = format!("Authorization: Bearer {TOKEN}\r\n");
    for path in ["/api/status", "/metrics"] {
        let url = format!("{path}?token={TOKEN}&access_token={TOKEN}");
        for header in [
            "",
            "Authorization: Bearer wrong\r\n",
            "Authorization: Basic MDEy\r\n",
            "Cookie: token=0123456789abcdef0123456789abcdef\r\n",
        ] {
            let (code, body) = get(page.address, &url, header).await;
            assert_eq!(code, 401, "{path} {header:?}");
            assert!(!body.contains("grants"), "{body}");
        }
        assert_eq!(get(page.address, path, &right).await.0, 200);
    }
    let (code, html) = get(page.address, "/", "").await;
    assert!(
        code == 200 && html.contains("default-src 'none'") && !html.contains(&provider.to_string()),
        "the page holds no data"
    );
    let (_, json) = get(page.address, "/api/status", &right).await;
    let json: serde_json::Value =
        serde_json::from_str(&json[json.find('{').unwrap()..=json.rfind('}').unwrap()]).unwrap();
    assert_eq!(json["grants"]["running"], 0);
    assert_eq!(json["backends"][0]["cpu_millicores"], 8_000);
    assert_eq!(json["refusals"]["no_capacity"], 1);
    assert_eq!(json["events"][0]["text"], "hello \"quoted\"");
    let (_, metrics) = get(page.address, "/metrics", &right).await;
    for line in [
        "compute_bridge_grants{state=\"replied\"} 0",
        "compute_bridge_backend_cpu_millicores{backend=\"metal\"} 8000",
        "compute_bridge_attempts_total{backend=\"metal\",result=\"capacity\"} 1",
        "compute_bridge_refusals_total{reason=\"no_capacity\"} 1",
        "compute_bridge_revenue_micro_usd 0",
        "compute_bridge_backend_isolation{backend=\"metal\",level=\"namespaces+cgroups (root)\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is missing in\n{metrics}");
    }
    let taken = Dashboard::start(page.address.port(), Zeroizing::new(TOKEN.into()), Box::new(|| unreachable!())).await;
    let error = taken.err().unwrap().to_string();
    assert!(error.contains(&page.address.to_string()) && error.contains("dashboard.port"), "{error}");
}
