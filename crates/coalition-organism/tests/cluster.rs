//! A committee of four real members on loopback: it serves with one member gone, the member catches up, and a stop of
//! all four loses nothing.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use coalition::codec;
use coalition::{AlmanacTick, OrganismRef, RetirementInstant, RetirementMarker, UniqueId};
use coalition_almanac::{AlmanacMachine, AlmanacParams, AlmanacTickBody, Observers, TICK_KIND, Ticks};
use coalition_log::{
    Context, Draft, Entry, Machine, Refusal, SnapshotError,
    retirement::ApprovedRetirement,
    state::{MAX_STATE_BYTES, STATE_EVERY},
};
use coalition_organism::{
    Fold, FoldFault, Follower, FromState, Organism, Persist, ReadError, WriteError, random_write_id,
};
use coalition_testkit::{Carried, Committee};

#[path = "../examples/guestbook.rs"]
#[allow(dead_code)]
mod guestbook;

const SOON: Duration = Duration::from_secs(30);

/// Keeps what it is told, in order; refuses an empty command.
#[derive(Default)]
struct Notes(Vec<Vec<u8>>, Vec<Option<u64>>);

impl Machine for Notes {
    fn decide(&self, _: &Context, command: &[u8]) -> Result<Vec<Draft>, Refusal> {
        if command.is_empty() {
            return Err(Refusal::new("empty", "nothing to note"));
        }
        Ok(vec![Draft::new("note", command.to_vec())])
    }

    fn round(&self, _: &Context) -> Option<Vec<Draft>> {
        None
    }

    fn evolve(&mut self, entry: &Entry) {
        self.fold(entry).unwrap();
    }

    fn wake_at_ms(&self, _: &Context) -> Option<u64> {
        None
    }

    fn snapshot(&self) -> Vec<u8> {
        self.save()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), SnapshotError> {
        self.load(snapshot)
    }
}

impl Persist for Notes {
    fn save(&self) -> Vec<u8> {
        codec::encode(&(&self.0, &self.1))
    }

    fn load(&mut self, saved: &[u8]) -> Result<(), SnapshotError> {
        (self.0, self.1) = codec::decode(saved, MAX_STATE_BYTES)?;
        Ok(())
    }
}

impl FromState for Notes {
    fn start_from(&mut self, machine: &[u8]) -> Result<(), SnapshotError> {
        self.load(machine)
    }
}

impl Fold for Notes {
    fn fold(&mut self, entry: &Entry) -> Result<(), FoldFault> {
        self.0.push(entry.body.clone());
        self.1.push(entry.tick);
        Ok(())
    }
}

fn tick_of(entry: &Entry) -> Option<u64> {
    (entry.kind == TICK_KIND).then(|| AlmanacTickBody::from_bytes(&entry.body).ok().map(|body| body.seq)).flatten()
}

fn almanac() -> Carried {
    let id = UniqueId::hash(b"almanac");
    let params = AlmanacParams::new(200).unwrap();
    let machine = move |roster: &coalition::Roster| {
        let keys = roster.members().iter().map(|member| member.checkpoint_key).collect();
        Box::new(AlmanacMachine::new(params, id, Observers::Keys(keys))) as Box<dyn Machine>
    };
    Carried {
        id,
        name: "almanac",
        machine: Box::new(machine),
        clock: Some(tick_of),
        state_every: STATE_EVERY,
        predecessor: None,
        door: None,
    }
}

async fn note(organism: &Organism, text: &str) -> u64 {
    organism.write(random_write_id(), text.into(), SOON).await.unwrap().entries[0].index
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_members_serve_through_loss_and_restart() {
    let mut committee = Committee::start(4, vec![almanac(), Carried::new("notes", Notes::default)]).await;
    let client = committee.client().await;
    let notes = committee.organism(&client, "notes");
    let reader = Follower::spawn(notes.clone(), Notes::default());
    let clock = Follower::spawn(committee.organism(&client, "almanac"), Ticks::new(AlmanacParams::new(200).unwrap()));
    clock.wait_for(SOON, |clock| clock.reached(AlmanacTick(3)).then_some(())).await.unwrap();

    // An empty log has a certificate too: a reader knows that it has seen everything.
    assert_eq!(reader.caught_up(SOON).await.unwrap(), 0);

    // Idempotence: the same id writes once, whoever answers.
    let id = random_write_id();
    let first = notes.write(id, b"one".to_vec(), SOON).await.unwrap();
    let again = notes.write(id, b"one".to_vec(), SOON).await.unwrap();
    assert_eq!(first, again);
    let refused = notes.write(random_write_id(), vec![], SOON).await.unwrap_err();
    assert!(matches!(refused, WriteError::Refused(refusal) if refusal.code == "empty"));

    // Many at once, all in exactly one place.
    let writes = (0..200).map(|i| {
        let notes = notes.clone();
        tokio::spawn(async move { note(&notes, &format!("burst {i}")).await })
    });
    let mut places = Vec::new();
    for write in writes {
        places.push(write.await.unwrap());
    }
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), 200);

    // One member gone: service goes on.
    committee.stop_member(1).await;
    for i in 0..5 {
        note(&notes, &format!("without m1 {i}")).await;
    }
    let size = reader.caught_up(SOON).await.unwrap();
    assert_eq!(size, 206);

    // It comes back and catches up.
    committee.start_member(1).await;
    let caught_up = async {
        loop {
            let status = committee.member(1).unwrap().status();
            if status.iter().any(|organism| organism.name == "notes" && organism.certified == 206) {
                return;
            }
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, caught_up).await.expect("the member catches up");
    let before = reader.read(|notes| notes.0.clone());
    assert!(reader.read(|notes| notes.1.iter().all(Option::is_some)), "entries carry the Almanac's tick");
    drop((reader, clock));

    // All four stop and start: nothing is lost, and the old write is still known.
    for member in 0..4 {
        committee.stop_member(member).await;
    }
    for member in 0..4 {
        committee.start_member(member).await;
    }
    let client = committee.client().await;
    let notes = committee.organism(&client, "notes");
    assert_eq!(notes.write(id, b"one".to_vec(), SOON).await.unwrap(), first);
    note(&notes, "after").await;
    let reader = Follower::spawn(notes.clone(), Notes::default());
    reader.caught_up(SOON).await.unwrap();
    let after = reader.read(|notes| notes.0.clone());
    assert_eq!(after[..206], before[..]);
    assert_eq!(after[206..], [b"after".to_vec()]);

    // Evidence resolves and verifies; an index nobody certified is named.
    let proof = notes.evidence(206, SOON).await.unwrap();
    assert_eq!(proof.verify(notes.id(), notes.roster()).unwrap().entry().body, b"after");
    let beyond = notes.evidence(10_000, SOON).await.unwrap_err().to_string();
    assert!(beyond.contains("10000") && beyond.contains("207"), "{beyond}");
    drop(client);
    committee.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retired_organism_takes_nothing_more_and_names_its_successor() {
    let mut committee = Committee::start(4, vec![Carried::new("notes", Notes::default)]).await;
    let client = committee.client().await;
    let notes = committee.organism(&client, "notes");
    let reader = Follower::spawn(notes.clone(), Notes::default());
    note(&notes, "one").await;
    assert_eq!(notes.retirement(SOON).await.unwrap(), None);

    let successor = UniqueId::from_bytes([5; 32]);
    let marker =
        RetirementMarker::rotation(RetirementInstant::AtSequence(2), OrganismRef::by_stable_id("notes", successor));
    let approvals = |members: &[usize]| {
        let approvals = members.iter().map(|&member| committee.approval(member, notes.id(), &marker)).collect();
        ApprovedRetirement::new(&marker, approvals)
    };
    let two = notes.retire(random_write_id(), &approvals(&[0, 1]), SOON).await.unwrap_err();
    assert!(matches!(&two, WriteError::Refused(refusal) if refusal.code == "not_approved"), "{two}");
    notes.retire(random_write_id(), &approvals(&[0, 1, 3]), SOON).await.unwrap();
    reader.caught_up(SOON).await.unwrap();
    assert!(matches!(reader.retirement(), Some((_, false))), "announced, not in effect");

    note(&notes, "the last").await;
    let refused = notes.write(random_write_id(), b"too late".to_vec(), SOON).await.unwrap_err();
    let WriteError::Retired(retirement) = refused else { panic!("{refused}") };
    assert_eq!((retirement.successor(), retirement.marker()), (Some(successor), marker));
    let waited = reader.wait_for(SOON, |notes| (notes.0.len() > 2).then_some(())).await.unwrap_err();
    assert!(matches!(&waited, ReadError::Retired(r) if r.successor() == Some(successor)), "{waited}");
    assert_eq!(reader.read(|notes| notes.0.clone()), [b"one".to_vec(), b"the last".to_vec()]);

    // A restart of everybody, and a reader from the beginning, find the same end.
    for member in 0..4 {
        committee.stop_member(member).await;
        committee.start_member(member).await;
    }
    let client = committee.client().await;
    let notes = committee.organism(&client, "notes");
    assert_eq!(notes.retirement(SOON).await.unwrap().unwrap().successor(), Some(successor));
    let again = notes.write(random_write_id(), b"still too late".to_vec(), SOON).await.unwrap_err();
    assert!(matches!(again, WriteError::Retired(_)), "{again}");
    let head = notes.head(SOON).await.unwrap().size();
    assert_eq!(head, 4, "two notes, the announcement, the last entry");
    committee.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_example_runs() {
    guestbook::run().await.unwrap();
    let lines = include_str!("../examples/guestbook.rs").lines().count();
    assert!(lines < 120, "the example has {lines} lines");
}
