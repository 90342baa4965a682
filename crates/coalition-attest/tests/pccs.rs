//! Collateral fetched from a service: a whole one, and one that fails in each possible way.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout, clippy::expect_used)]

mod common;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt as _;

use coalition_attest::dev::{CollateralOptions, GuestOptions};
use coalition_attest::pccs::http::HttpFetch;
use coalition_attest::pccs::{Answer, Fetch, Pccs, PccsError, Service, fetch_into};
use coalition_attest::{Collateral, CollateralError, CollateralKey, Directory, Origin, Quote, Verifier};
use common::{collateral, expect, judge, policy, quote, root};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

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
    service_of(&collateral())
}

fn service_of(collateral: &Collateral) -> Canned {
    let json: serde_json::Value = serde_json::from_str(&collateral.to_json()).unwrap();
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

fn directory() -> (tempfile::TempDir, Directory) {
    let place = tempfile::tempdir().unwrap();
    let directory = Directory::new(place.path().join("collateral"));
    (place, directory)
}

#[tokio::test]
async fn what_is_fetched_judges_from_the_directory() {
    let (_place, directory) = directory();
    let pccs = Pccs::new("http://service", service());
    let stored = pccs.store(key(), &directory).await.unwrap();
    assert_eq!(stored.path, directory.file(key()));
    assert!(stored.path.ends_with("de7e10000000-platform.json"), "{}", stored.path.display());
    assert_eq!((stored.claimed.issued_s, stored.claimed.tcb_evaluation), (common::NOW - 3600, 1));
    assert_eq!(stored.claimed.next_update_s, common::NOW - 3600 + 30 * 86_400);
    assert_eq!(std::fs::metadata(&stored.path).unwrap().permissions().mode() & 0o7777, 0o644);
    let verdict = Verifier::new(policy()).verify(&quote(GuestOptions::default()), &directory, &expect(), common::NOW);
    assert!(verdict.is_valid(), "{verdict}");
    assert!(stored.changed && !pccs.store(key(), &directory).await.unwrap().changed, "the same bytes again");
    let left: Vec<_> = std::fs::read_dir(stored.path.parent().unwrap()).unwrap().collect();
    assert_eq!(left.len(), 1, "nothing beside it");
}

#[tokio::test]
async fn a_failed_fetch_leaves_the_directory_alone() {
    let (_place, directory) = directory();
    let parts: Vec<_> = service().0.into_keys().collect();
    for part in &parts {
        let mut canned = service();
        canned.0.get_mut(part).unwrap().body = b"<html>".to_vec();
        assert!(Pccs::new("http://service", canned).store(key(), &directory).await.is_err());
        assert!(!directory.file(key()).exists());
    }
    let sound = Pccs::new("http://service", service()).store(key(), &directory).await.unwrap();
    let bytes = std::fs::read(&sound.path).unwrap();
    for part in parts {
        let mut canned = service();
        canned.0.remove(part);
        assert!(Pccs::new("http://service", canned).store(key(), &directory).await.is_err());
        assert_eq!(std::fs::read(&sound.path).unwrap(), bytes);
    }
}

#[tokio::test]
async fn older_collateral_and_that_of_another_platform_are_not_stored() {
    let (_place, directory) = directory();
    let newest = CollateralOptions { evaluation: 5, ..common::options() };
    let store = |options: CollateralOptions| {
        let pccs = Pccs::new("http://service", service_of(&root().collateral_with(&options).unwrap()));
        let directory = directory.clone();
        async move { pccs.store(key(), &directory).await }
    };
    store(newest.clone()).await.unwrap();
    let bytes = std::fs::read(directory.file(key())).unwrap();
    let earlier = CollateralOptions { issued_s: newest.issued_s - 1, ..newest.clone() };
    for older in [earlier, CollateralOptions { evaluation: 4, ..newest.clone() }] {
        let error = store(older).await.unwrap_err();
        assert!(matches!(error, PccsError::Older { stored: (5, _), .. }), "{error}");
        assert!(error.to_string().contains("de7e10000000-platform.json"), "{error}");
    }
    let error = store(CollateralOptions { fmspc: [1; 6], ..newest.clone() }).await.unwrap_err();
    assert!(matches!(&error, PccsError::AnotherPlatform { found, .. } if found == "010101010101"), "{error}");
    assert_eq!(std::fs::read(directory.file(key())).unwrap(), bytes);
    let newer = CollateralOptions { issued_s: newest.issued_s + 1, ..newest };
    assert!(store(newer.clone()).await.unwrap().changed);
    // What is no collateral is replaced by anything sound.
    std::fs::write(directory.file(key()), "{}").unwrap();
    assert!(store(CollateralOptions { evaluation: 1, ..newer }).await.unwrap().changed);
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_named() {
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("file"), "").unwrap();
    let directory = Directory::new(place.path().join("file"));
    let error = Pccs::new("http://service", service()).store(key(), &directory).await.unwrap_err();
    assert!(matches!(&error, PccsError::Store(CollateralError::File { .. })), "{error:?}");
}

#[test]
fn addresses_are_checked_before_anything_is_asked() {
    let long = format!("https://{}", "a".repeat(2_000));
    let bad =
        ["", "pccs", "file:///etc/passwd", "ftp://a", "https://a/?q=1", "https://a/#f", "https://", long.as_str()];
    for bad in bad {
        let error = Service::at(bad).unwrap_err();
        assert!(matches!(error, PccsError::Address { .. }) && error.to_string().len() < 300, "{bad}: {error}");
        assert!(Service::intel().with_root_crl(bad).is_err(), "{bad}");
    }
    let error = Service::at("https://me:secret@pccs.example").unwrap_err();
    assert!(!error.to_string().contains("secret") && !format!("{error:?}").contains("secret"), "{error}");
    assert_eq!(Service::at("https://pccs.example:8081/").unwrap().url(), "https://pccs.example:8081/");
    assert!(Service::intel().url().starts_with("https://"));
}

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
            // Who reads no further than it wants to closes early.
            if stream.write_all(head.as_bytes()).await.is_ok() {
                let _ = stream.write_all(&answer.body).await;
            }
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
    let (_place, directory) = directory();
    let stored = fetch_into(&Service::at(&base).unwrap(), key(), &directory).await.unwrap();
    assert_eq!(stored.collateral.digest(), direct.digest());
    task.abort();
    let _ = task.await;
    let error = Pccs::new(&base, fetch).collateral(key()).await.unwrap_err();
    assert!(matches!(error, PccsError::Fetch { .. }), "{error}");
    let error = fetch_into(&Service::at(&base).unwrap(), key(), &directory).await.unwrap_err();
    assert!(error.to_string().contains(&base), "{error}");
}

#[tokio::test]
async fn redirects_are_not_followed_and_long_answers_are_cut() {
    let mut canned = service();
    let first = "/sgx/certification/v4/pckcrl?ca=platform";
    canned.0.get_mut(first).unwrap().status = 302;
    canned.0.get_mut(first).unwrap().headers.push(("location".into(), "/sgx/certification/v4/rootcacrl".into()));
    let (base, task) = serve(canned).await;
    let (_place, directory) = directory();
    let error = fetch_into(&Service::at(&base).unwrap(), key(), &directory).await.unwrap_err();
    assert!(matches!(error, PccsError::Status { status: 302, .. }), "{error}");
    task.abort();

    let mut canned = service();
    canned.0.get_mut(first).unwrap().body = vec![b' '; 16 * coalition_attest::pccs::MAX_ANSWER_BYTES];
    let (base, task) = serve(canned).await;
    let answer = HttpFetch::new().unwrap().get(&format!("{base}{first}")).await.unwrap();
    assert!(answer.body.len() < 2 * coalition_attest::pccs::MAX_ANSWER_BYTES, "{}", answer.body.len());
    let error = fetch_into(&Service::at(&base).unwrap(), key(), &directory).await.unwrap_err();
    assert!(error.to_string().contains("too long"), "{error}");
    task.abort();
}
