//! Collateral fetched from a service: a whole one, and one that fails in each possible way.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout, clippy::expect_used)]

mod common;

use std::collections::BTreeMap;
use std::convert::Infallible;

use coalition_attest::dev::GuestOptions;
use coalition_attest::pccs::{Answer, Fetch, Pccs, PccsError};
use coalition_attest::{CollateralKey, Origin, Quote};
use common::{collateral, judge, policy, quote};

/// Answers by the part of the address that names the document.
#[derive(Clone)]
struct Canned(BTreeMap<&'static str, Answer>);

impl Fetch for Canned {
    type Error = Infallible;

    async fn get(&self, url: &str) -> Result<Answer, Infallible> {
        assert!(url.starts_with("http://service/") && !url.contains("//tdx") && !url.contains("//sgx"), "{url}");
        let found = self.0.iter().find(|(part, _)| url.contains(*part));
        Ok(found.map_or_else(|| Answer { status: 404, ..Answer::default() }, |(_, answer)| answer.clone()))
    }
}

fn encoded(chain: &str) -> String {
    chain
        .bytes()
        .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

fn service() -> Canned {
    let json: serde_json::Value = serde_json::from_str(&collateral().to_json()).unwrap();
    let text = |name: &str| json[name].as_str().unwrap().to_owned();
    let answer = |header: &str, chain: &str, body: Vec<u8>| Answer {
        status: 200,
        headers: vec![("content-type".into(), "x".into()), (header.to_owned(), encoded(&text(chain)))],
        body,
    };
    let signed = |name: &str, document: &str| {
        let (signed, signature) = (text(document), text(&format!("{document}_signature")));
        format!("{{\"{name}\":{signed},\"signature\":\"{signature}\"}}").into_bytes()
    };
    let pck_crl = hex::decode(text("pck_crl")).unwrap();
    Canned(BTreeMap::from([
        (
            "/sgx/certification/v4/pckcrl?ca=platform",
            answer("SGX-PCK-CRL-Issuer-Chain", "pck_crl_issuer_chain", pck_crl),
        ),
        (
            "/tdx/certification/v4/tcb?fmspc=DE7E10000000",
            answer("tcb-info-issuer-chain", "tcb_info_issuer_chain", signed("tcbInfo", "tcb_info")),
        ),
        (
            "/tdx/certification/v4/qe/identity",
            answer(
                "SGX-Enclave-Identity-Issuer-Chain",
                "qe_identity_issuer_chain",
                signed("enclaveIdentity", "qe_identity"),
            ),
        ),
        (
            "/sgx/certification/v4/rootcacrl",
            Answer { status: 200, headers: vec![], body: text("root_ca_crl").into_bytes() },
        ),
    ]))
}

fn key() -> CollateralKey {
    Quote::parse(&quote(GuestOptions::default())).unwrap().collateral_key().unwrap()
}

#[tokio::test]
async fn fetched_collateral_judges_a_quote() {
    let fetched = Pccs::new("http://service/", service()).collateral(key()).await.unwrap();
    assert_eq!((fetched.origin(), fetched.origin().is_offline()), (Origin::Pccs, false));
    let verdict = judge(policy(), &quote(GuestOptions::default()), &fetched);
    assert!(verdict.is_valid(), "{verdict}");
    assert!(verdict.to_string().contains("collateral fetched"), "{verdict}");
}

#[tokio::test]
async fn the_roots_list_may_come_from_elsewhere() {
    let mut canned = service();
    let mut list = canned.0.remove("/sgx/certification/v4/rootcacrl").unwrap();
    list.body = hex::decode(&list.body).unwrap();
    canned.0.insert("/elsewhere/root.der", list);
    let without = Pccs::new("http://service", canned.clone()).collateral(key()).await.unwrap_err();
    assert!(matches!(without, PccsError::Status { status: 404, .. }), "{without}");
    let with = Pccs::new("http://service", canned).root_crl_url("http://service/elsewhere/root.der");
    assert!(judge(policy(), &quote(GuestOptions::default()), &with.collateral(key()).await.unwrap()).is_valid());
}

#[tokio::test]
async fn each_missing_or_wrong_part_is_named() {
    let parts: Vec<_> = service().0.into_keys().collect();
    for part in parts {
        let mut canned = service();
        canned.0.get_mut(part).unwrap().status = 500;
        let error = Pccs::new("http://service", canned).collateral(key()).await.unwrap_err();
        assert!(matches!(error, PccsError::Status { status: 500, .. }) && error.to_string().contains(part), "{error}");
        let mut canned = service();
        canned.0.get_mut(part).unwrap().body = b"<html>".to_vec();
        let error = Pccs::new("http://service", canned).collateral(key()).await.unwrap_err();
        assert!(matches!(error, PccsError::Answer { .. }), "{error}");
        let mut canned = service();
        canned.0.get_mut(part).unwrap().body = vec![b' '; coalition_attest::pccs::MAX_ANSWER_BYTES + 1];
        assert!(Pccs::new("http://service", canned).collateral(key()).await.is_err());
        if !part.contains("rootcacrl") {
            for bad in ["", "%zz", "%", "%ff%fe"] {
                let mut canned = service();
                canned.0.get_mut(part).unwrap().headers = vec![("SGX-PCK-CRL-Issuer-Chain".into(), bad.into())];
                let fetched = Pccs::new("http://service", canned).collateral(key()).await;
                assert!(fetched.is_err() || bad.is_empty(), "{part} {bad}");
            }
        }
    }
}

#[cfg(feature = "http")]
mod http {
    use coalition_attest::pccs::http::HttpFetch;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Serves the canned answers over real HTTP on loopback until dropped.
    async fn serve(canned: Canned) -> (String, tokio::task::JoinHandle<()>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = vec![0; 4096];
                let read = stream.read(&mut request).await.unwrap();
                let line = String::from_utf8_lossy(&request[..read]).lines().next().unwrap_or_default().to_owned();
                let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
                let answer = canned.get(&format!("http://service{path}")).await.unwrap();
                let mut head = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", answer.status);
                answer.headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
                head.push_str(&format!("content-length: {}\r\n\r\n", answer.body.len()));
                stream.write_all(head.as_bytes()).await.unwrap();
                stream.write_all(&answer.body).await.unwrap();
            }
        });
        (base, task)
    }

    #[tokio::test]
    async fn collateral_comes_over_http() {
        let canned = service();
        let (base, task) = serve(canned.clone()).await;
        let fetch = HttpFetch::new().unwrap();
        let fetched = Pccs::new(&base, fetch.clone()).collateral(key()).await.unwrap();
        let direct = Pccs::new("http://service", canned).collateral(key()).await.unwrap();
        assert_eq!(fetched.digest(), direct.digest());
        task.abort();
        let _ = task.await;
        let error = Pccs::new(&base, fetch).collateral(key()).await.unwrap_err();
        assert!(matches!(error, PccsError::Fetch { .. }), "{error}");
    }
}
