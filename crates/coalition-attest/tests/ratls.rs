//! RA-TLS handshakes: two attested sides talk; everything less is a refused connection.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout, clippy::expect_used)]

mod common;

use std::io::{Read as _, Write as _};
use std::sync::{Arc, LazyLock};

use coalition_attest::evidence::Nowhere;
use coalition_attest::ratls::{
    ChallengeBook, Claim, Context, EVIDENCE_OID, Expectations, Identity, Peer, Prover, Refused, SERVER_NAME, Side,
    Unexpected, client_config, refusal, server_config,
};
use coalition_attest::{
    CollateralSource, DevelopmentRoot, Measurements, Mrtd, Nonce, Policy, TrustRoot, VerdictCache, Verifier,
};
use common::{NOW, collateral, id, mrtd, policy, root};
use rcgen::{CertificateParams, CustomExtension, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConfig, ServerConnection};

#[derive(Debug)]
struct At(u64);

impl TimeProvider for At {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(self.0)))
    }
}

fn context(side: Side) -> Context {
    let config = if side == Side::Client { id(21) } else { id(22) };
    Context { network: id(1), config, nonce: Nonce { value: id(3), issued_s: NOW - 10 } }
}

fn identity(side: Side) -> Identity {
    identity_of(root(), mrtd(), side, &context(side))
}

fn identity_of(root: &DevelopmentRoot, mrtd: Mrtd, side: Side, context: &Context) -> Identity {
    let guest = root.guest(Measurements::of_mrtd(mrtd)).unwrap();
    let collateral = root.collateral(NOW - 3600).unwrap();
    Identity::new(&guest, Some(&collateral), side, context).unwrap()
}

/// What the tests demand of whoever is on `side`.
fn peer(side: Side) -> Peer {
    peer_with(policy(), context(side), Arc::new(Nowhere))
}

fn peer_with(policy: Policy, context: Context, collateral: Arc<dyn CollateralSource>) -> Peer {
    peer_expecting(policy, Arc::new(context), collateral)
}

fn peer_expecting(policy: Policy, expectations: Arc<dyn Expectations>, collateral: Arc<dyn CollateralSource>) -> Peer {
    let verifier = Arc::new(Verifier::new(policy));
    Peer { verifier, collateral, cache: Arc::new(VerdictCache::new(16)), expectations }
}

fn client(identity: &Identity, peer: Peer) -> ClientConfig {
    client_config(identity, Arc::new(peer), Arc::new(At(NOW))).unwrap()
}

fn server(identity: &Identity, peer: Peer) -> ServerConfig {
    server_config(identity, Arc::new(peer), Arc::new(At(NOW))).unwrap()
}

static CLIENT: LazyLock<Identity> = LazyLock::new(|| identity(Side::Client));
static SERVER: LazyLock<Identity> = LazyLock::new(|| identity(Side::Server));

/// A handshake in memory; the error is that of whoever refused first.
fn connect(
    client: impl Into<Arc<ClientConfig>>,
    server: impl Into<Arc<ServerConfig>>,
) -> Result<(ClientConnection, ServerConnection), String> {
    let mut client =
        ClientConnection::new(client.into(), SERVER_NAME.try_into().unwrap()).map_err(|e| e.to_string())?;
    let mut server = ServerConnection::new(server.into()).map_err(|e| e.to_string())?;
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        feed(&mut server, &wire).map_err(|e| format!("server: {}", text(&e)))?;
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        feed(&mut client, &wire).map_err(|e| format!("client: {}", text(&e)))?;
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok((client, server))
}

/// What a person would be shown.
fn text(error: &rustls::Error) -> String {
    refusal(error).map_or_else(|| error.to_string(), ToString::to_string)
}

fn feed<D>(
    connection: &mut impl std::ops::DerefMut<Target = rustls::ConnectionCommon<D>>,
    mut wire: &[u8],
) -> Result<(), rustls::Error> {
    while !wire.is_empty() {
        connection.read_tls(&mut wire).unwrap();
        connection.process_new_packets()?;
    }
    Ok(())
}

#[test]
fn two_attested_sides_talk() {
    let (mut client, mut server) =
        connect(client(&CLIENT, peer(Side::Server)), server(&SERVER, peer(Side::Client))).unwrap();
    assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    client.writer().write_all(b"attested").unwrap();
    let mut wire = Vec::new();
    client.write_tls(&mut wire).unwrap();
    feed(&mut server, &wire).unwrap();
    let mut said = [0; 8];
    server.reader().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"attested");

    let seen = peer(Side::Client);
    let certificate = &server.peer_certificates().unwrap()[0];
    for _ in 0..2 {
        let verdict = seen.judge(certificate, Side::Client, NOW).unwrap();
        assert_eq!(verdict.guest.unwrap().measurements.mrtd, mrtd());
        assert_eq!(seen.cache.len(), 1);
    }
    assert!(matches!(seen.judge(certificate, Side::Server, NOW), Err(Refused::Verdict(_))), "not for the other side");
}

#[test]
fn sessions_are_never_resumed() {
    let client = Arc::new(client(&CLIENT, peer(Side::Server)));
    let server = Arc::new(server(&SERVER, peer(Side::Client)));
    for _ in 0..2 {
        let (client, server) = connect(Arc::clone(&client), Arc::clone(&server)).unwrap();
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(server.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[test]
fn every_wrong_peer_is_refused_by_either_side() {
    let right = context(Side::Server);
    let other_root = Policy::strict(DevelopmentRoot::generate().unwrap().trust_root().unwrap());
    let cases = [
        (policy().require_mrtd(Mrtd([1; 48])), right, "mrtd is"),
        (Policy::servers(TrustRoot::Intel), right, "the policy's root is Intel"),
        (other_root, right, "the policy's root is DEVELOPMENT ROOT"),
        (policy(), Context { network: id(9), ..right }, "another purpose or network"),
        (policy(), Context { config: id(9), ..right }, "another config hash"),
        (policy(), Context { nonce: Nonce { value: id(9), issued_s: NOW }, ..right }, "another nonce"),
        (policy(), Context { nonce: Nonce { value: id(3), issued_s: NOW - 61 }, ..right }, "61 s old"),
        (policy().min_tcb_evaluation(7), right, "could not check"),
    ];
    for (policy, demanded, reason) in cases {
        let strict = peer_with(policy.clone(), demanded, Arc::new(Nowhere));
        let refused = connect(client(&CLIENT, strict), server(&SERVER, peer(Side::Client))).unwrap_err();
        assert!(refused.starts_with("client:") && refused.contains(reason), "{refused}");
        let mut demanded = demanded;
        if demanded.config == right.config {
            demanded.config = context(Side::Client).config;
        }
        let strict = peer_with(policy, demanded, Arc::new(Nowhere));
        let refused = connect(client(&CLIENT, peer(Side::Server)), server(&SERVER, strict)).unwrap_err();
        assert!(refused.starts_with("server:") && refused.contains(reason), "{refused}");
    }
}

#[test]
fn a_quote_for_one_side_is_refused_from_the_other() {
    let mirrored = identity_of(root(), mrtd(), Side::Server, &context(Side::Client));
    let refused = connect(client(&mirrored, peer(Side::Server)), server(&SERVER, peer(Side::Client))).unwrap_err();
    assert!(refused.starts_with("server:") && refused.contains("another purpose or network"), "{refused}");
}

#[test]
fn local_collateral_comes_before_what_the_peer_brought() {
    let options = coalition_attest::dev::CollateralOptions {
        revoked: vec![coalition_attest::dev::Certificate::Platform],
        ..common::options()
    };
    let newer: Arc<dyn CollateralSource> = Arc::new(root().collateral_with(&options).unwrap());
    let informed = peer_with(policy(), context(Side::Client), newer);
    let refused = connect(client(&CLIENT, peer(Side::Server)), server(&SERVER, informed)).unwrap_err();
    assert!(refused.contains("revoked"), "{refused}");

    let stale = coalition_attest::dev::CollateralOptions { expires_s: NOW - 1, ..common::options() };
    let stale: Arc<dyn CollateralSource> = Arc::new(root().collateral_with(&stale).unwrap());
    let uninformed = peer_with(policy(), context(Side::Client), stale);
    assert!(connect(client(&CLIENT, peer(Side::Server)), server(&SERVER, uninformed)).is_ok());
}

#[test]
fn without_any_collateral_nothing_is_accepted() {
    let guest = root().guest(Measurements::of_mrtd(mrtd())).unwrap();
    let bare = Identity::new(&guest, None, Side::Client, &context(Side::Client)).unwrap();
    let refused = connect(client(&bare, peer(Side::Server)), server(&SERVER, peer(Side::Client))).unwrap_err();
    assert!(refused.contains("no usable collateral"), "{refused}");
    let informed = peer_with(policy(), context(Side::Client), Arc::new(collateral()));
    assert!(connect(client(&bare, peer(Side::Server)), server(&SERVER, informed)).is_ok());
}

/// A certificate of one's own key, with this evidence in it.
fn plain(evidence: &[&[u8]]) -> Arc<CertifiedKey> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    for content in evidence {
        params.custom_extensions.push(CustomExtension::from_oid_content(&EVIDENCE_OID, content.to_vec()));
    }
    let certificate = params.self_signed(&key).unwrap().der().clone();
    certified(certificate, &key)
}

fn certified(certificate: CertificateDer<'static>, key: &KeyPair) -> Arc<CertifiedKey> {
    let der = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let key = rustls::crypto::ring::sign::any_ecdsa_type(&der).unwrap();
    Arc::new(CertifiedKey::new(vec![certificate], key))
}

#[derive(Debug)]
struct Shows(Option<Arc<CertifiedKey>>);

impl rustls::client::ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }

    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}

impl rustls::server::ResolvesServerCert for Shows {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }
}

/// What both sides answer to somebody who shows this.
fn refusals(shown: &Arc<CertifiedKey>) -> [String; 2] {
    let mut forger = client(&CLIENT, peer(Side::Server));
    forger.client_auth_cert_resolver = Arc::new(Shows(Some(Arc::clone(shown))));
    let by_server = connect(forger, server(&SERVER, peer(Side::Client))).unwrap_err();
    let mut forger = server(&SERVER, peer(Side::Client));
    forger.cert_resolver = Arc::new(Shows(Some(Arc::clone(shown))));
    let by_client = connect(client(&CLIENT, peer(Side::Server)), forger).unwrap_err();
    assert!(by_server.starts_with("server:") && by_client.starts_with("client:"), "{by_server} / {by_client}");
    [by_server, by_client]
}

/// What an identity's certificate carries: version, config, nonce and evidence.
fn evidence(identity: &Identity) -> Vec<u8> {
    use x509_cert::der::Decode as _;
    let parsed = x509_cert::Certificate::from_der(identity.certificate()).unwrap();
    let oid = EVIDENCE_OID.map(|part| part.to_string()).join(".");
    let extensions = parsed.tbs_certificate().extensions().unwrap();
    extensions.iter().find(|e| e.extn_id.to_string() == oid).unwrap().extn_value.as_bytes().to_vec()
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let mut silent = client(&CLIENT, peer(Side::Server));
    silent.client_auth_cert_resolver = Arc::new(Shows(None));
    let refused = connect(silent, server(&SERVER, peer(Side::Client))).unwrap_err();
    assert_eq!(refused, "server: peer sent no certificates");
}

#[test]
fn a_certificate_without_a_quote_is_refused() {
    for refused in refusals(&plain(&[])) {
        assert!(refused.contains("carries no quote"), "{refused}");
    }
    for refused in refusals(&plain(&[&[1, 2, 3]])) {
        assert!(refused.contains("not of version 2"), "{refused}");
    }
    for refused in refusals(&plain(&[&evidence(&CLIENT)[..68]])) {
        assert!(refused.contains("no usable evidence"), "{refused}");
    }
    for length in [0, 1, 32, 64] {
        for refused in refusals(&plain(&[&evidence(&CLIENT)[..length]])) {
            assert!(refused.contains("not of version 2"), "{length} bytes: {refused}");
        }
    }
    for refused in refusals(&plain(&[&evidence(&CLIENT), &evidence(&SERVER)])) {
        assert!(refused.contains("more than one quote"), "{refused}");
    }
}

#[test]
fn a_stolen_quote_is_refused() {
    let [by_server, _] = refusals(&plain(&[&evidence(&CLIENT)]));
    assert!(by_server.contains("another public key"), "{by_server}");
    let [_, by_client] = refusals(&plain(&[&evidence(&SERVER)]));
    assert!(by_client.contains("another public key"), "{by_client}");
}

#[test]
fn a_stolen_certificate_is_refused() {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let [by_server, _] = refusals(&certified(CLIENT.certificate().clone(), &key));
    assert!(by_server.contains("BadSignature"), "{by_server}");
    let [_, by_client] = refusals(&certified(SERVER.certificate().clone(), &key));
    assert!(by_client.contains("BadSignature"), "{by_client}");
}

#[test]
fn older_tls_is_refused() {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let old_client = ClientConfig::builder_with_details(Arc::clone(&provider), Arc::new(At(NOW)))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let refused = connect(old_client, server(&SERVER, peer(Side::Client))).unwrap_err();
    assert!(refused.starts_with("server:") && refused.contains("incompatible"), "{refused}");

    let shown = plain(&[]);
    let old_server = ServerConfig::builder_with_details(provider, Arc::new(At(NOW)))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Shows(Some(shown))));
    assert!(connect(client(&CLIENT, peer(Side::Server)), old_server).is_err());
}

/// What a side is that has a nonce for each bond: on one side of one network, with one config.
fn prover(side: Side) -> Prover {
    prover_of(root(), side)
}

fn prover_of(root: &DevelopmentRoot, side: Side) -> Prover {
    let context = context(side);
    Prover {
        source: Arc::new(root.guest(Measurements::of_mrtd(mrtd())).unwrap()),
        collateral: Some(root.collateral(NOW - 3600).unwrap()),
        side,
        network: context.network,
        config: context.config,
    }
}

fn book() -> Arc<ChallengeBook> {
    Arc::new(ChallengeBook::new(id(1), 60, 16))
}

fn challenged(book: &Arc<ChallengeBook>) -> Peer {
    peer_expecting(policy(), Arc::clone(book) as _, Arc::new(Nowhere))
}

fn config_of(side: Side) -> coalition::UniqueId {
    context(side).config
}

#[test]
fn each_client_has_its_own_nonce_at_one_listener() {
    let book = book();
    let listener = Arc::new(server(&SERVER, challenged(&book)));
    let prover = prover(Side::Client);
    let nonces = [0, 1].map(|_| book.draw(config_of(Side::Client), NOW - 5).unwrap());
    let identities = nonces.map(|nonce| prover.identity(nonce.value).unwrap());
    assert_ne!(identities[0].certificate(), identities[1].certificate());
    for identity in &identities {
        let connected = connect(client(identity, peer(Side::Server)), Arc::clone(&listener)).unwrap();
        let certificate = &connected.1.peer_certificates().unwrap()[0];
        let verdict = challenged(&book).judge(certificate, Side::Client, NOW).unwrap();
        assert_eq!(verdict.quote_age_s, Some(5), "after the handshake it can still be judged");
    }
    // The same certificates once more: their quotes are true, their keys are proved, their nonces are used.
    for identity in &identities {
        let refused = connect(client(identity, peer(Side::Server)), Arc::clone(&listener)).unwrap_err();
        assert!(refused.starts_with("server:") && refused.contains("has served another connection"), "{refused}");
    }
    // Another key and another quote over a used nonce are no better.
    let again = prover.identity(nonces[0].value).unwrap();
    let refused = connect(client(&again, peer(Side::Server)), listener).unwrap_err();
    assert!(refused.contains("has served another connection"), "{refused}");
}

#[test]
fn both_sides_draw_and_use_up_nonces() {
    let (of_client, of_server) = (book(), book());
    let bond = || {
        // Each book is the other side's: it says what that side has to quote.
        let to_quote = of_client.draw(config_of(Side::Server), NOW).unwrap();
        let server_identity = prover(Side::Server).identity(to_quote.value).unwrap();
        let to_quote = of_server.draw(config_of(Side::Client), NOW).unwrap();
        let client_identity = prover(Side::Client).identity(to_quote.value).unwrap();
        (client(&client_identity, challenged(&of_client)), server(&server_identity, challenged(&of_server)))
    };
    let (first, second) = (bond(), bond());
    let (first_client, first_server) = (Arc::new(first.0), Arc::new(first.1));
    connect(Arc::clone(&first_client), Arc::clone(&first_server)).unwrap();
    let (second_client, second_server) = (Arc::new(second.0), Arc::new(second.1));
    let refused = connect(Arc::clone(&second_client), Arc::clone(&first_server)).unwrap_err();
    assert!(refused.starts_with("client:") && refused.contains("has served another connection"), "{refused}");
    // The client refused before it showed anything, so its own nonce is not used up.
    connect(second_client, Arc::clone(&second_server)).unwrap();
    let (third, _) = bond();
    let refused = connect(third, second_server).unwrap_err();
    assert!(refused.starts_with("client:") && refused.contains("has served another connection"), "{refused}");
}

#[test]
fn unknown_old_and_borrowed_nonces_are_refused() {
    let book = book();
    let listener = Arc::new(server(&SERVER, challenged(&book)));
    let attempt = |identity: &Identity| {
        let refused = connect(client(identity, peer(Side::Server)), Arc::clone(&listener)).unwrap_err();
        assert!(refused.starts_with("server:"), "{refused}");
        refused
    };
    let unknown = prover(Side::Client).identity(id(77)).unwrap();
    assert!(attempt(&unknown).contains("not one that was drawn here"));
    let old = book.draw(config_of(Side::Client), NOW - 61).unwrap();
    assert!(attempt(&prover(Side::Client).identity(old.value).unwrap()).contains("61 s old"));
    let of_another_config = book.draw(id(99), NOW).unwrap();
    let refused = attempt(&prover(Side::Client).identity(of_another_config.value).unwrap());
    assert!(refused.contains("another config hash"), "{refused}");
    let network = Prover { network: id(9), ..prover(Side::Client) };
    let nonce = book.draw(config_of(Side::Client), NOW).unwrap();
    assert!(attempt(&network.identity(nonce.value).unwrap()).contains("another purpose or network"));
    // A refused quote uses up nothing.
    let sound = prover(Side::Client).identity(nonce.value).unwrap();
    connect(client(&sound, peer(Side::Server)), Arc::clone(&listener)).unwrap();
    // Nothing that was drawn for clients serves a server.
    let nonce = book.draw(config_of(Side::Server), NOW).unwrap();
    let mirrored = Prover { side: Side::Client, ..prover(Side::Server) }.identity(nonce.value).unwrap();
    let refused = connect(client(&CLIENT, challenged(&book)), server(&mirrored, peer(Side::Client))).unwrap_err();
    assert!(refused.starts_with("client:") && refused.contains("another purpose or network"), "{refused}");
}

#[test]
fn a_copy_of_a_certificate_uses_up_no_nonce() {
    let book = book();
    let nonce = book.draw(config_of(Side::Client), NOW).unwrap();
    let own = prover(Side::Client).identity(nonce.value).unwrap();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut thief = client(&CLIENT, peer(Side::Server));
    thief.client_auth_cert_resolver = Arc::new(Shows(Some(certified(own.certificate().clone(), &key))));
    let refused = connect(thief, server(&SERVER, challenged(&book))).unwrap_err();
    assert!(refused.contains("BadSignature"), "{refused}");
    connect(client(&own, peer(Side::Server)), server(&SERVER, challenged(&book))).unwrap();
}

#[test]
fn a_claim_must_be_that_of_the_quote() {
    // A true quote and its true key, under a certificate that claims another nonce.
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
    let Context { network, config, nonce } = context(Side::Client);
    let binding =
        coalition_attest::Binding { purpose: "ra-tls/client", network, key: &spki, config, nonce: nonce.value };
    let guest = root().guest(Measurements::of_mrtd(mrtd())).unwrap();
    let quote = coalition_attest::QuoteSource::quote(&guest, &binding.report_data()).unwrap();
    let evidence = coalition_attest::Evidence { quote, collateral: Some(collateral()) }.to_bytes().unwrap();
    let showing = |claimed: coalition::UniqueId| {
        let content = [&[2], config.as_bytes().as_slice(), claimed.as_bytes(), &evidence].concat();
        let mut params = CertificateParams::default();
        params.custom_extensions.push(CustomExtension::from_oid_content(&EVIDENCE_OID, content));
        let mut shown = client(&CLIENT, peer(Side::Server));
        let certificate = params.self_signed(&key).unwrap().der().clone();
        shown.client_auth_cert_resolver = Arc::new(Shows(Some(certified(certificate, &key))));
        connect(shown, server(&SERVER, peer(Side::Client)))
    };
    assert!(showing(nonce.value).is_ok());
    let refused = showing(id(88)).unwrap_err();
    assert!(refused.contains("claims another config or nonce"), "{refused}");
}

#[test]
fn an_intel_quote_is_refused_where_the_policy_names_a_development_root() {
    let Some((quote, collateral)) = common::vector("tdx_quote") else { return };
    let evidence = coalition_attest::Evidence { quote, collateral: Some(collateral) }.to_bytes().unwrap();
    for side in [Side::Client, Side::Server] {
        let Context { config, nonce, .. } = context(side);
        let content = [&[2], config.as_bytes().as_slice(), nonce.value.as_bytes(), &evidence].concat();
        let by = refusals(&plain(&[&content]));
        for refused in by {
            assert!(refused.contains("the policy's root is DEVELOPMENT ROOT"), "{refused}");
            assert!(refused.contains("Intel SGX Root CA"), "{refused}");
        }
        let key = &plain(&[&content]).cert[0];
        let Err(Refused::Verdict(not)) = peer(side).judge(key, side, NOW) else { panic!("refused for its root") };
        assert_eq!(not.0.outcome.code(), Some("wrong_root"));
    }
}

#[test]
fn a_closure_decides_by_the_claim() {
    let welcome = config_of(Side::Client);
    let by_config = move |claim: &Claim, now_s: u64| {
        assert_eq!((claim.side, now_s), (Side::Client, NOW));
        let nonce = Nonce { value: claim.nonce, issued_s: NOW };
        let context = Context { network: id(1), config: claim.config, nonce };
        if claim.config == welcome { Ok(context) } else { Err(Unexpected::Config(claim.config)) }
    };
    let listener = Arc::new(server(&SERVER, peer_expecting(policy(), Arc::new(by_config), Arc::new(Nowhere))));
    let shown = prover(Side::Client).identity(id(50)).unwrap();
    connect(client(&shown, peer(Side::Server)), Arc::clone(&listener)).unwrap();
    let other = Prover { config: id(98), ..prover(Side::Client) }.identity(id(51)).unwrap();
    let refused = connect(client(&other, peer(Side::Server)), listener).unwrap_err();
    assert!(refused.contains("which is not expected here"), "{refused}");
}

#[test]
fn nothing_less_passes_where_nonces_are_drawn() {
    let book = book();
    let refuse = |client: ClientConfig| connect(client, server(&SERVER, challenged(&book))).unwrap_err();
    let mut silent = client(&CLIENT, peer(Side::Server));
    silent.client_auth_cert_resolver = Arc::new(Shows(None));
    assert_eq!(refuse(silent), "server: peer sent no certificates");
    let mut bare = client(&CLIENT, peer(Side::Server));
    bare.client_auth_cert_resolver = Arc::new(Shows(Some(plain(&[]))));
    assert!(refuse(bare).contains("carries no quote"));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let old = ClientConfig::builder_with_details(provider, Arc::new(At(NOW)))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    assert!(refuse(old).contains("incompatible"));
    // A quote of another development root, over a nonce that was drawn here.
    let nonce = book.draw(config_of(Side::Client), NOW).unwrap();
    let stranger = prover_of(&DevelopmentRoot::generate().unwrap(), Side::Client).identity(nonce.value).unwrap();
    assert!(refuse(client(&stranger, peer(Side::Server))).contains("the policy's root is DEVELOPMENT ROOT"));
    assert_eq!(book.len(), 1);
}
