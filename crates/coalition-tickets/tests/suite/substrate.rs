//! Two and three real nodes of the substrate on loopback: who is let in, and who is dropped when a ticket ends.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coalition::UniqueId;
use coalition_attest::{Nonce, Policy};
use coalition_tickets::{
    Bearer, Challenges, Issuer, Presentation, Resources, SubstrateValidator, Tdx, TdxTicket, TicketValidator,
};
use coalition_universe::Relay;
use futures::StreamExt as _;
use iroh::{RelayConfig, RelayMap, RelayMode};
use mosaik::Network;
use mosaik::streams::backoff::backoff::Backoff;
use mosaik::streams::{Consumer, Producer};
use mosaik::tickets::{ChronoDuration, EdDsa, EdDsaSigningKey, Expiration, Jwt, JwtTicketBuilder};

use crate::common::{MRTD, charter, coalition, guest, id, issuer_key, root, trust_root};

const WAIT: Duration = Duration::from_secs(150);
/// How long a quote counts at the door under test.
const AGE_S: u64 = 8;
/// How long a client may take to be let in: what is left of its ticket is enough for what the test does then.
const ENTRY_S: u64 = AGE_S / 2;

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

async fn node(relay: &Relay, network: UniqueId) -> Network {
    let mode = RelayMode::Custom(RelayMap::from(RelayConfig::new(relay.url().parse().unwrap(), None)));
    let building = Network::builder(network)
        .with_relay_mode(mode)
        .with_addresses(std::collections::BTreeSet::from(["127.0.0.1:0".parse().unwrap()]))
        .with_discovery(mosaik::discovery::Config::builder().no_dht_bootstrap())
        .build();
    Box::pin(within(building)).await.unwrap()
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(WAIT, future).await.expect("in time")
}

/// How long a consumer waits between attempts: always as long.
#[derive(Clone)]
struct Steady;

impl Backoff for Steady {
    fn next_backoff(&mut self) -> Option<Duration> {
        Some(Duration::from_millis(100))
    }
}

async fn meet(one: &Network, other: &Network) {
    within(one.discovery().sync_with(other.local().addr())).await.unwrap();
    within(other.discovery().sync_with(one.local().addr())).await.unwrap();
}

fn bearer(network: UniqueId, audience: UniqueId, node: &Network) -> Bearer {
    Bearer { network, audience, peer: *node.local().id().as_bytes() }
}

/// An attestation in the slim form, as it stands in a discovery entry.
fn attested(bearer: &Bearer, nonce: Nonce) -> Presentation {
    let ticket = TdxTicket::quote_slim(guest(), bearer, nonce).unwrap();
    Presentation::empty().with_tdx(&ticket).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_is_dropped_when_its_attestation_ends_and_comes_back_with_a_fresh_one() {
    let relay = Relay::start("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (network, audience) = (UniqueId::random(), id(2));
    let (server, client, thief) = tokio::join!(node(&relay, network), node(&relay, network), node(&relay, network));
    let challenges = Arc::new(Challenges::new([7; 32]));
    let policy = Policy::servers(trust_root()).require_mrtd(MRTD).max_quote_age_s(AGE_S).unwrap();
    let resources = Resources::new()
        .with_nonces(Arc::clone(&challenges) as _)
        .with_collateral(Arc::new(root().collateral(now_s()).unwrap()));
    let admission = TicketValidator::new().require_ticket(Tdx::under(policy)).enforce(&resources).unwrap();
    let validator = SubstrateValidator::new(network, audience, Arc::new(admission));
    let producer =
        server.streams().producer::<u64>().with_stream_id(audience).require_ticket(validator.clone()).build().unwrap();

    let own = bearer(network, audience, &client);
    let fresh = |now| attested(&own, challenges.draw(&own, now));
    let consumer = client.streams().consumer::<u64>().with_stream_id(audience).with_backoff(Steady).build();
    let mut stream = Stream { ends: [&server, &client], producer, consumer };
    let drawn = stream.carries(41, fresh).await;

    // The thief shows the client's own ticket, which is true and holds.
    let shown = attested(&own, challenges.draw(&own, now_s()));
    thief.discovery().add_ticket(shown.to_ticket().unwrap());
    meet(&server, &thief).await;
    let _stolen = thief.streams().consumer::<u64>().with_stream_id(audience).with_backoff(Steady).build();
    let entry = server.discovery().catalog().get(&thief.local().id()).unwrap().clone();
    let (result, said) = logged(|| entry.validate_ticket(&validator));
    assert!(result.is_err(), "a true quote of another peer");
    assert!(said.contains("a ticket is refused") && said.contains("reason=\"nonce\""), "{said}");
    assert!(said.contains(&audience.to_string()), "{said}");
    for key in [thief.local().id().to_string(), hex::encode(thief.local().id().as_bytes())] {
        assert!(!said.contains(&key[..8]), "who it was about is not written down: {said}");
    }

    let producer = stream.producer.clone();
    within(producer.when().unsubscribed()).await;
    assert!(now_s() > drawn + AGE_S, "dropped before its time: {} s", now_s() - drawn);
    assert_eq!(producer.consumers().count(), 0, "neither the client nor the thief");

    stream.carries(42, fresh).await;
}

/// What a call writes to the log.
fn logged<T>(call: impl FnOnce() -> T) -> (T, String) {
    #[derive(Clone, Default)]
    struct Lines(Arc<std::sync::Mutex<Vec<u8>>>);
    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let result = tracing::subscriber::with_default(subscriber, call);
    let said = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    (result, said)
}

/// A stream from a server to a client.
struct Stream<'a> {
    ends: [&'a Network; 2],
    producer: Producer<u64>,
    consumer: Consumer<u64>,
}

impl Stream<'_> {
    /// Has the client show fresh tickets until it hears a value; the substrate takes its time between attempts. Answers when the
    /// oldest ticket was made that may have let it in.
    async fn carries(&mut self, value: u64, fresh: impl Fn(u64) -> Presentation) -> u64 {
        let carried = async {
            let mut before = None;
            loop {
                let made = now_s();
                self.ends[1].discovery().replace_ticket(fresh(made).to_ticket().unwrap());
                meet(self.ends[0], self.ends[1]).await;
                if tokio::time::timeout(Duration::from_secs(ENTRY_S), self.hears(value)).await.is_ok() {
                    return before.unwrap_or(made);
                }
                before = Some(made);
            }
        };
        within(carried).await
    }

    /// Says a value until it is heard. Not with `send`, which is not woken when the producer comes online: its future for that lives
    /// for one poll only.
    async fn hears(&mut self, value: u64) {
        loop {
            let _ = self.producer.try_send(value);
            let heard = tokio::time::timeout(Duration::from_millis(100), self.consumer.next()).await;
            if heard == Ok(Some(value)) {
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issued_ticket_is_the_substrates_own_jwt_and_ends_there_too() {
    let relay = Relay::start("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (network, audience) = (UniqueId::random(), id(2));
    let (server, client) = tokio::join!(node(&relay, network), node(&relay, network));
    let charter = charter(&[1]);
    let config = coalition("ours", &charter);
    let root = config.ticket_issuer_root().unwrap();
    let issuer = Issuer::of(&config, &charter, issuer_key(1)).unwrap();
    let (own, now) = (bearer(network, audience, &client), now_s());
    let ticket = issuer.issue(&own, now, AGE_S).unwrap();

    // The substrate's builder writes the same text, byte for byte.
    let at = |seconds: u64| {
        let Expiration::At(epoch) = Expiration::already_expired() else { panic!("a time") };
        epoch + ChronoDuration::seconds(i64::try_from(seconds).unwrap() - epoch.timestamp())
    };
    let built = JwtTicketBuilder::new(EdDsaSigningKey::from_bytes([1; 32]))
        .issuer(hex::encode(root.as_bytes()))
        .audience(hex::encode(audience.as_bytes()))
        .expires_at(Expiration::At(at(now + AGE_S)))
        .issued_at(at(now))
        .claim("net", hex::encode(network.as_bytes()))
        .build(&client.local().id());
    assert_eq!(String::from_utf8_lossy(built.data()), ticket.as_str());

    let admission = TicketValidator::new()
        .recognise_issuer(root)
        .enforce(&Resources::new().with_issuer(&config, charter).unwrap())
        .unwrap();
    let validator = SubstrateValidator::new(network, audience, Arc::new(admission));
    let producer =
        server.streams().producer::<u64>().with_stream_id(audience).require_ticket(validator).build().unwrap();
    client.discovery().add_ticket(ticket.to_ticket());
    meet(&server, &client).await;
    let key = EdDsa::new(issuer_key(1).verifying_key().to_bytes());
    let theirs =
        Jwt::with_key(key).allow_issuer(hex::encode(root.as_bytes())).allow_audience(hex::encode(audience.as_bytes()));
    let entry = server.discovery().catalog().get(&client.local().id()).unwrap().clone();
    assert!(entry.validate_ticket(&theirs).is_ok(), "a plain node of the substrate recognises the issuer, too");

    let consumer = client.streams().consumer::<u64>().with_stream_id(audience).with_backoff(Steady).build();
    let mut stream = Stream { ends: [&server, &client], producer, consumer };
    let fresh = |now| Presentation::empty().with_issued(issuer.issue(&own, now, AGE_S).unwrap());
    let made = stream.carries(7, fresh).await;
    within(stream.producer.when().unsubscribed()).await;
    assert!(now_s() >= made + AGE_S);
}
