//! Credentials that are missing, wrong, ended, replaced; and tokens that are.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::{Arc, Mutex};

use coalition_azure::*;
use coalition_azure_double::{CLIENT, Double, Fault, SECRET, TENANT};
use coalition_cloud::{Cloud, CloudError, ErrorKind};
use common::*;

fn with(double: &Double, credentials: CredentialSource) -> Azure {
    Azure::new(Setup { credentials, ..setup(double) }).unwrap()
}

fn application_of(tenant: &'static str, client: &'static str, secret: &'static str) -> CredentialSource {
    Arc::new(move || Credentials::client_secret(tenant, client, secret))
}

/// Nothing was done, and no secret is told.
fn check(error: &CloudError, kind: ErrorKind, words: &str) {
    assert_eq!((error.kind, error.may_have_acted), (kind, false), "{error}");
    let shown = format!("{error} {error:?}");
    assert!(shown.contains(words) && !shown.contains("s3cr") && !shown.contains("token-"), "{shown}");
}

#[tokio::test]
async fn each_wrong_part_is_told_and_no_secret_is() {
    let double = Double::start(&ROLES, None).await;
    let marks = marks(1);
    let other = "01234567-89ab-cdef-0123-456789abcdef";
    for (tenant, client, secret, words) in [
        (other, CLIENT, SECRET, "AADSTS90002"),
        (TENANT, other, SECRET, "AADSTS700016"),
        (TENANT, CLIENT, "s3cr~et-of-another", "AADSTS7000215"),
    ] {
        let azure = with(&double, application_of(tenant, client, secret));
        check(&azure.identity().await.unwrap_err(), ErrorKind::Auth, words);
        check(&azure.create(&new_host(&marks)).await.unwrap_err(), ErrorKind::Auth, words);
    }
    let azure = with(&double, application());
    double.expire_secret(true);
    check(&azure.hosts(OWNER, None).await.unwrap_err(), ErrorKind::Auth, "AADSTS7000222");
    double.expire_secret(false);
    assert!(azure.hosts(OWNER, None).await.is_ok());
    let unreadable: CredentialSource =
        Arc::new(|| Err(CredentialsError::Unavailable("azure.secret: others may read it; chmod 600".into())));
    let azure = with(&double, unreadable);
    check(&azure.create(&new_host(&marks)).await.unwrap_err(), ErrorKind::Auth, "chmod 600");
    check(&azure.identity().await.unwrap_err(), ErrorKind::Auth, "chmod 600");
    // Who repeats the secret to us is not repeated.
    let repeats = format!("{{\"error\":\"x\",\"error_codes\":[1],\"error_description\":\"no {SECRET} here\"}}");
    double.fail("token", [Fault::Answer(401, repeats)]);
    let azure = with(&double, application());
    check(&azure.hosts(OWNER, None).await.unwrap_err(), ErrorKind::Auth, "no (the secret) here");
    assert_eq!(double.machines().len(), 0);
}

#[tokio::test]
async fn trouble_of_the_token_endpoint_is_no_refusal() {
    let double = Double::start(&ROLES, None).await;
    let marks = marks(1);
    let kinds = [
        (Fault::Refuse("x", 503), ErrorKind::Transient),
        (Fault::Refuse("x", 429), ErrorKind::Throttled),
        (Fault::LoseAnswer, ErrorKind::Transient),
        (Fault::Garble, ErrorKind::Transient),
        (Fault::Answer(200, "x".repeat(2 << 20)), ErrorKind::Transient),
        (Fault::Answer(200, "[]".into()), ErrorKind::Transient),
        (Fault::Answer(500, "<html>".into()), ErrorKind::Transient),
    ];
    for (fault, kind) in kinds {
        double.fail("token", [fault]);
        let azure = with(&double, application());
        check(&azure.create(&new_host(&marks)).await.unwrap_err(), kind, "no token to ask with");
    }
    // A reading call asks again.
    double.fail("token", [Fault::Refuse("x", 503), Fault::LoseAnswer]);
    assert!(with(&double, application()).hosts(OWNER, None).await.is_ok());
    let nobody = Addresses {
        endpoint: Some("https://127.0.0.1:9".into()),
        authority: Some("https://127.0.0.1:9".into()),
        ..Addresses::default()
    };
    let azure = Azure::new(Setup { addresses: nobody, ..setup(&double) }).unwrap();
    check(&azure.create(&new_host(&marks)).await.unwrap_err(), ErrorKind::Transient, "cannot be reached");
    // Tokens are got and the Resource Manager is not there: nothing was asked.
    let half = Addresses { endpoint: Some("https://127.0.0.1:9".into()), ..setup(&double).addresses };
    let azure = Azure::new(Setup { addresses: half, ..setup(&double) }).unwrap();
    check(&azure.create(&new_host(&marks)).await.unwrap_err(), ErrorKind::Transient, "so nothing was asked");
    assert_eq!(double.machines().len(), 0);
}

#[tokio::test]
async fn a_stranger_in_azures_place_gets_no_secret() {
    let double = Double::start(&ROLES, None).await;
    let other = Double::start(&ROLES, None).await;
    // The certificate of another authority: neither the secret nor anything else is sent.
    let addresses = Addresses { extra_root: Some(other.root.clone()), ..setup(&double).addresses };
    let azure = Azure::new(Setup { addresses, ..setup(&double) }).unwrap();
    let error = azure.hosts(OWNER, None).await.unwrap_err();
    check(&error, ErrorKind::Transient, "cannot be reached");
    assert_eq!(double.calls().len(), 0);
    for root in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let addresses = Addresses { extra_root: Some(root.into()), ..setup(&double).addresses };
        assert!(Azure::new(Setup { addresses, ..setup(&double) }).is_err(), "{root:?}");
    }
}

#[tokio::test]
async fn tokens_are_kept_while_they_are_good_and_replaced_when_they_are_not() {
    let double = Double::start(&ROLES, None).await;
    let azure = with(&double, application());
    let marks = marks(1);
    for _ in 0..3 {
        azure.hosts(OWNER, None).await.unwrap();
    }
    assert_eq!(double.tokens_given(), 1);
    // Taken back before its end: the call is repeated with another, also one that makes something.
    double.tokens(3_600, true);
    azure.create(&new_host(&marks)).await.unwrap();
    assert_eq!((double.tokens_given(), double.count(PUT), double.machines().len()), (2, 2, 1));
    // Tokens that are no good from the start end in a refusal, not in a circle.
    double.tokens(0, true);
    let error = azure.hosts(OWNER, None).await.unwrap_err();
    check(&error, ErrorKind::Auth, "ExpiredAuthenticationToken");
    assert_eq!(double.tokens_given(), 3);
    // Near its end a token is replaced beforehand.
    double.tokens(60, true);
    azure.hosts(OWNER, None).await.unwrap();
    let before = double.tokens_given();
    let calls = double.calls().len();
    azure.hosts(OWNER, None).await.unwrap();
    assert_eq!(
        (double.tokens_given(), double.calls().len()),
        (before + 2, calls + 4),
        "each of the two calls gets its own"
    );
}

#[tokio::test]
async fn what_an_operator_replaces_counts_from_the_next_token() {
    let double = Double::start(&ROLES, None).await;
    let held: Arc<Mutex<&'static str>> = Arc::new(Mutex::new("s3cr~et-of-yesterday"));
    let source = Arc::clone(&held);
    let azure = with(&double, Arc::new(move || Credentials::client_secret(TENANT, CLIENT, *source.lock().unwrap())));
    check(&azure.hosts(OWNER, None).await.unwrap_err(), ErrorKind::Auth, "AADSTS7000215");
    *held.lock().unwrap() = SECRET;
    assert!(azure.hosts(OWNER, None).await.is_ok());
}

#[tokio::test]
async fn managed_identities_ask_the_metadata_service() {
    let double = Double::start(&ROLES, None).await;
    for client in [None, Some(CLIENT)] {
        let azure = with(&double, Arc::new(move || Credentials::managed_identity(client)));
        let who = azure.identity().await.unwrap();
        assert!(who.contains("managed identity"), "{who}");
    }
    let asked = double.calls().into_iter().filter(|call| call.name == "metadata").collect::<Vec<_>>();
    assert_eq!(asked.len(), 2);
    assert!(
        asked[0].path.contains("resource=https%3A%2F%2Fmanagement.azure.com") && asked[1].path.contains(CLIENT),
        "{asked:?}"
    );
    let stranger =
        with(&double, Arc::new(|| Credentials::managed_identity(Some("01234567-89ab-cdef-0123-456789abcdef"))));
    check(&stranger.identity().await.unwrap_err(), ErrorKind::Auth, "not been assigned");
    assert_eq!(double.count("token"), 0);
}
