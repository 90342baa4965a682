//! A committee that admits writers by ticket, with real engines and sockets on loopback: who gets in, who does not, who has to go.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use coalition::{Mrtd, PublishedConfig, Roster, UniqueId};
use coalition_attest::{DevelopmentGuest, DevelopmentRoot, Measurements, Policy};
use coalition_organism::{Organism, TicketSource, WriteError, random_write_id};
use coalition_testkit::{Carried, Committee, Notes};
use coalition_tickets::{Bearer, Charter, Issuer, Nonce, Or, Presentation, Resources, Tdx, TdxTicket, TicketValidator};
use coalition_universe::Node;
use ed25519_dalek::SigningKey;
use futures::future::BoxFuture;

const SOON: Duration = Duration::from_secs(60);
const MRTD: Mrtd = Mrtd([7; 48]);

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Shows tickets of the coalition's issuer that last so many seconds.
struct Issued {
    issuer: Issuer,
    lifetime_s: AtomicU64,
    shown: AtomicUsize,
}

impl TicketSource for Issued {
    fn present(&self, bearer: Bearer, _: Nonce) -> BoxFuture<'static, Result<Presentation, String>> {
        self.shown.fetch_add(1, SeqCst);
        let ticket = self.issuer.issue(&bearer, now_s(), self.lifetime_s.load(SeqCst)).map_err(|e| e.to_string());
        Box::pin(async move { Ok(Presentation::empty().with_issued(ticket?)) })
    }
}

/// Shows a fresh attestation of its guest each time, and leaves it where a thief finds it.
struct Attested {
    root: Arc<DevelopmentRoot>,
    guest: DevelopmentGuest,
    last: Arc<Mutex<Presentation>>,
}

impl TicketSource for Attested {
    fn present(&self, bearer: Bearer, challenge: Nonce) -> BoxFuture<'static, Result<Presentation, String>> {
        let collateral = self.root.collateral(now_s()).unwrap();
        let ticket = TdxTicket::quote(&self.guest, Some(collateral), &bearer, challenge).unwrap();
        let shown = Presentation::empty().with_tdx(&ticket).unwrap();
        *self.last.lock().unwrap() = shown.clone();
        Box::pin(async move { Ok(shown) })
    }
}

/// Shows what somebody else has shown.
struct Thief(Arc<Mutex<Presentation>>);

impl TicketSource for Thief {
    fn present(&self, _: Bearer, _: Nonce) -> BoxFuture<'static, Result<Presentation, String>> {
        let shown = self.0.lock().unwrap().clone();
        Box::pin(async move { Ok(shown) })
    }
}

struct Setting {
    committee: Committee,
    issuer: Issuer,
    root: Arc<DevelopmentRoot>,
}

/// Four members whose notes are for attested peers and for holders of the coalition's tickets.
async fn setting() -> Setting {
    let key = SigningKey::from_bytes(&[1; 32]);
    let charter = Charter::new(3_600, vec![key.verifying_key().to_bytes()]).unwrap();
    let config = PublishedConfig::builder("ours").ticket_issuer("issuer", vec![charter.rule()]).build().unwrap();
    let root = Arc::new(DevelopmentRoot::generate().unwrap());
    let policy = Policy::servers(root.trust_root().unwrap()).require_mrtd(MRTD).max_quote_age_s(3_600).unwrap();
    let validator = TicketValidator::new().require_ticket(
        Or::of([Tdx::under(policy)]).or(coalition::AclRule::Issuer(config.ticket_issuer_root().unwrap())),
    );
    let resources = Resources::new().with_issuer(&config, charter.clone()).unwrap();
    let notes = Carried::new("notes", Notes::default).with_door(validator, resources);
    let issuer = Issuer::of(&config, &charter, key).unwrap();
    Setting { committee: Committee::start(4, vec![notes]).await, issuer, root }
}

async fn write(organism: &Organism, text: &str) -> Result<u64, WriteError> {
    let committed = organism.write(random_write_id(), text.as_bytes().to_vec(), SOON).await?;
    Ok(committed.entries[0].index)
}

fn refused(result: Result<u64, WriteError>) -> String {
    match result {
        Err(WriteError::NotAdmitted { reason }) => reason,
        other => panic!("{other:?}"),
    }
}

fn on(node: &Arc<Node>, roster: &Roster) -> Organism {
    Organism::connect(Arc::clone(node), UniqueId::hash(b"notes"), roster.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_committee_admits_writers_by_ticket() {
    let Setting { mut committee, issuer, root } = setting().await;

    // Without tickets: refused at once, not at the deadline, and nothing is ordered.
    let stranger = committee.client().await;
    let open = committee.organism(&stranger, "notes");
    let began = Instant::now();
    let reason = refused(write(&open, "no").await);
    assert!(reason.contains("no tickets to show"), "{reason}");
    assert!(began.elapsed() < SOON / 2);

    // An attested peer is in.
    let attested = committee.client().await;
    let guest = root.guest(Measurements::of_mrtd(MRTD)).unwrap();
    let last = Arc::new(Mutex::new(Presentation::empty()));
    let source = Attested { root: Arc::clone(&root), guest, last: Arc::clone(&last) };
    let writer = committee.organism(&attested, "notes").showing(Arc::new(source));
    assert_eq!(write(&writer, "first").await.unwrap(), 0);
    assert_eq!(write(&writer, "second").await.unwrap(), 1);

    // A thief with its true ticket is not; neither is another measurement, nor an issuer nobody recognises.
    let thief = committee.organism(&stranger, "notes").showing(Arc::new(Thief(last)));
    let reason = refused(write(&thief, "stolen").await);
    assert!(reason.contains("nonce is not one of this door"), "{reason}");
    let other = root.guest(Measurements::of_mrtd(Mrtd([8; 48]))).unwrap();
    let source = Attested { root: Arc::clone(&root), guest: other, last: Arc::default() };
    let other = committee.organism(&stranger, "notes").showing(Arc::new(source));
    let reason = refused(write(&other, "other").await);
    assert!(reason.contains("the policy requires"), "{reason}");

    // Reading is open to everybody, and shows that none of the refused writes was ordered.
    let head = open.head(SOON).await.unwrap();
    assert_eq!(head.size(), 2);

    // The committee's own need no ticket.
    let member = Arc::clone(committee.node_of(0).unwrap());
    assert_eq!(write(&on(&member, &committee.roster), "ours").await.unwrap(), 2);

    // A ticket that ends: in, out, and in again with a new one.
    let visitor = committee.client().await;
    let tickets = Arc::new(Issued { issuer, lifetime_s: AtomicU64::new(3), shown: AtomicUsize::new(0) });
    let writer = committee.organism(&visitor, "notes").showing(Arc::clone(&tickets) as _);
    assert_eq!(write(&writer, "visit").await.unwrap(), 3);
    let shown = tickets.shown.load(SeqCst);
    // From now on the issuer refuses: zero seconds are no ticket.
    tickets.lifetime_s.store(0, SeqCst);
    let ended = async {
        loop {
            match write(&writer, "more").await {
                Ok(_) => {}
                other => return refused(other),
            }
        }
    };
    let reason = tokio::time::timeout(SOON, ended).await.unwrap();
    assert!(reason.contains("0 s were asked for"), "{reason}");
    assert!(tickets.shown.load(SeqCst) > shown);
    tickets.lifetime_s.store(600, SeqCst);
    let back = write(&writer, "back").await.unwrap();

    // A member that starts again knows nobody; the writer shows its ticket again by itself.
    for member in 0..4 {
        committee.stop_member(member).await;
        committee.start_member(member).await;
    }
    assert!(write(&writer, "again").await.unwrap() > back);
    committee.stop().await;
}
