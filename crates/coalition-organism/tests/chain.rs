//! The chain of configs with real engines, disks and sockets on loopback: writers and readers that follow it move from the old
//! organism to the new one under load, and those that pin the old one learn which that is.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use coalition::{CommitteeContent, OrganismRef, PublishedConfig, RetirementInstant, RetirementMarker, UniqueId};
use coalition_log::{
    evidence::Evidence,
    predecessor::{Predecessor, SUCCEEDS_KIND},
    retirement::{ApprovedRetirement, Retirement},
    successor::{Place, Successor},
};
use coalition_organism::{
    Follower, Lineage, LineageFollower, Organism, ReadError, WriteError, WriteId, random_write_id,
};
use coalition_testkit::{Carried, Committee, Notes, roster_of_generation};
use coalition_universe::Node;

const SOON: Duration = Duration::from_secs(60);

fn config(generation: u8, predecessor: Option<UniqueId>) -> PublishedConfig {
    let roster = roster_of_generation(4, generation);
    let content = CommitteeContent { service: "notes.v1".into(), roster, params: vec![], predecessor };
    PublishedConfig::builder(&format!("notes-{generation}")).organism("notes", "notes", &content).build().unwrap()
}

fn id(config: &PublishedConfig) -> UniqueId {
    config.organism("notes").unwrap().id
}

fn carried(config: &PublishedConfig) -> Vec<Carried> {
    let content = config.organism_committee("notes").unwrap();
    vec![Carried { id: id(config), predecessor: content.predecessor, ..Carried::new("notes", Notes::default) }]
}

/// What a committee's operators say of the next one.
fn successor(config: &PublishedConfig, committee: &Committee) -> Successor {
    let (_, addresses) = committee.places();
    let place = |(member, address): (u8, &coalition_universe::PeerAddress)| {
        let text = address.to_string();
        Place { member, at: text.split_once('@').unwrap().1.to_owned() }
    };
    Successor::new(config.clone(), (0..).zip(&addresses).map(place).collect()).unwrap()
}

/// A quorum of the old committee retires it in favour of the new one, at once.
async fn rotate(committee: &Committee, old: &Organism, to: UniqueId, next: Option<Successor>) {
    let reference = OrganismRef::by_stable_id("notes", to);
    let marker = RetirementMarker::rotation(RetirementInstant::AtSequence(0), reference);
    let approvals = (0..3).map(|member| committee.approval_with(member, old.id(), &marker, next.as_ref())).collect();
    let approved = ApprovedRetirement::new(&marker, approvals).with_successor(next);
    old.retire(random_write_id(), &approved, SOON).await.unwrap();
}

/// Begins the new log with the head of the old one, as one of its operators does.
async fn begin(committee: &Committee, old: (&Organism, &PublishedConfig)) {
    let node = committee.client().await;
    let new = committee.organism(&node, "notes");
    new.succeed(random_write_id(), old, SOON).await.unwrap();
}

/// What was acknowledged, and by which organism.
type Written = Vec<(UniqueId, Vec<u8>)>;

/// Writers that never stop until told, and are never restarted.
struct Load {
    go_on: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<Written>>,
}

impl Load {
    fn start(lineage: &Lineage, writers: usize) -> Self {
        let go_on = Arc::new(AtomicBool::new(true));
        let task = |writer: usize| {
            let (lineage, go_on) = (lineage.clone(), Arc::clone(&go_on));
            tokio::spawn(async move {
                let mut done = Vec::new();
                for i in 0.. {
                    if !go_on.load(Relaxed) {
                        break;
                    }
                    let text = format!("writer {writer} note {i}").into_bytes();
                    let written = lineage.write(random_write_id(), text.clone(), SOON).await.unwrap();
                    done.push((written.entries[0].organism, text));
                }
                done
            })
        };
        let tasks = (0..writers).map(task).collect();
        Self { go_on, tasks }
    }

    async fn stop(self) -> Written {
        self.go_on.store(false, Relaxed);
        let mut all = Vec::new();
        for task in self.tasks {
            all.extend(task.await.unwrap());
        }
        all
    }
}

fn reader(lineage: &Lineage) -> LineageFollower<Notes> {
    lineage.read(|link, _| Ok(Follower::start(link.organism().clone(), Notes::default()))).unwrap()
}

fn first(node: &Arc<Node>, config: &PublishedConfig) -> Organism {
    Organism::connect(Arc::clone(node), id(config), config.organism_committee("notes").unwrap().roster).unwrap()
}

/// What a new reader shows once it has so many notes. One member's head is no measure: it may lag behind.
async fn all(organism: &Organism, count: usize) -> Vec<Vec<u8>> {
    let reader = Follower::spawn(organism.clone(), Notes::default());
    reader.wait_for(SOON, |notes| (notes.0.len() >= count).then(|| notes.0.clone())).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_and_readers_follow_the_chain_under_load() {
    let old_config = config(0, None);
    let new_config = config(1, Some(id(&old_config)));
    let old = Committee::start_generation(4, 0, carried(&old_config)).await;
    // This client is given the old members alone, and is never told of the others.
    let node = old.client().await;
    let organism = first(&node, &old_config);
    let lineage = Lineage::follow(organism.clone());
    let following = reader(&lineage);
    let pinned = Follower::spawn(organism.clone(), Notes::default());
    let load = Load::start(&lineage, 4);
    following.wait_for(SOON, |notes| (notes.0.len() > 20).then_some(())).await.unwrap();

    // The new deployment comes up beside the old one. Before it has begun it takes nothing.
    let new = Committee::start_generation(4, 1, carried(&new_config)).await;
    let beside = new.organism(&new.client().await, "notes");
    let early = beside.write(random_write_id(), b"early".to_vec(), SOON).await.unwrap_err();
    assert!(matches!(&early, WriteError::Refused(refusal) if refusal.code == "not_begun"), "{early}");
    begin(&new, (&organism, &old_config)).await;
    let again = beside.succeed(random_write_id(), (&organism, &old_config), SOON).await.unwrap_err();
    assert!(matches!(&again, WriteError::Refused(refusal) if refusal.code == "already_begun"), "{again}");

    let waiting = tokio::spawn({
        let pinned = pinned.when();
        async move { pinned.holds(|_| false).await }
    });
    rotate(&old, &organism, id(&new_config), Some(successor(&new_config, &new))).await;
    let moves = following.moved(0).await.unwrap();
    assert_eq!((moves[0].from, moves[0].to), (id(&old_config), id(&new_config)));
    assert_eq!(moves[0].config.to_hex(), new_config.to_hex());
    following.wait_for(SOON, |notes| (notes.0.len() > 20).then_some(())).await.unwrap();
    let written = load.stop().await;

    // Nothing acknowledged is lost or doubled, and it is where the acknowledgement says.
    let by = |config| written.iter().filter(|(by, _)| *by == id(config)).count();
    let in_old = all(&organism, by(&old_config)).await;
    let in_new = all(&beside, by(&new_config)).await;
    let count = |notes: &[Vec<u8>], text: &[u8]| notes.iter().filter(|note| *note == text).count();
    for (by, text) in &written {
        let places = (count(&in_old, text), count(&in_new, text));
        let expected = if *by == id(&old_config) { (1, 0) } else { (0, 1) };
        assert_eq!(places, expected, "{}", String::from_utf8_lossy(text));
    }
    assert_eq!(in_old.len() + in_new.len(), written.len());
    assert!(in_old.len() > 20 && in_new.len() > 20);
    let shown =
        following.wait_for(SOON, |notes| (notes.0.len() >= in_new.len()).then(|| notes.0.clone())).await.unwrap();
    assert_eq!(shown, in_new, "the fold began anew");

    // Who pins the old one gets the successor, config and all.
    let is_new = |retirement: &Retirement| {
        retirement.successor() == Some(id(&new_config))
            && retirement.config().is_some_and(|next| next.config().to_hex() == new_config.to_hex())
    };
    let read = waiting.await.unwrap().unwrap_err();
    assert!(matches!(&read, ReadError::Retired(retirement) if is_new(retirement)), "{read}");
    let write = organism.write(random_write_id(), b"late".to_vec(), SOON).await.unwrap_err();
    assert!(matches!(&write, WriteError::Retired(retirement) if is_new(retirement)), "{write}");

    // Who has the new config alone can walk back.
    let evidence = beside.evidence(0, SOON).await.unwrap().to_text();
    let verified = Evidence::parse(evidence.as_bytes()).unwrap().verify(beside.id(), beside.roster()).unwrap();
    assert_eq!(verified.entry().kind, SUCCEEDS_KIND);
    let named = Predecessor::of(verified.entry()).unwrap().verify(id(&old_config)).unwrap();
    assert!(named.size() > 0 && named.size() <= organism.head(SOON).await.unwrap().size());
    drop((following, pinned));
    old.stop().await;
    new.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_may_start_after_the_end_and_retries_write_once() {
    let old_config = config(0, None);
    let new_config = config(1, Some(id(&old_config)));
    let mut old = Committee::start_generation(4, 0, carried(&old_config)).await;
    let node = old.client().await;
    let organism = first(&node, &old_config);
    let lineage = Lineage::follow(organism.clone());
    let settled = WriteId([1; 16]);
    let first_answer = lineage.write(settled, b"settled".to_vec(), SOON).await.unwrap();

    // The new members have addresses before they have begun.
    let new = Committee::start_generation(4, 1, carried(&new_config)).await;
    rotate(&old, &organism, id(&new_config), Some(successor(&new_config, &new))).await;
    let following = reader(&lineage);
    // Sent when the old log is over and the new one has not begun: it waits, and loses nothing.
    let waiting = tokio::spawn({
        let lineage = lineage.clone();
        async move { lineage.write(WriteId([2; 16]), b"between".to_vec(), SOON).await }
    });
    following.moved(0).await.unwrap();
    // The old committee has stopped for want of a quorum, and still answers: nothing has to be ordered any more.
    let size = organism.head(SOON).await.unwrap().size();
    for member in [2, 3] {
        let over = || old.member(member).unwrap().status()[0].certified == size;
        let there = async {
            while !over() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(SOON, there).await.expect("the member has the last certificate in time");
    }
    old.stop_member(0).await;
    old.stop_member(1).await;
    begin(&new, (&organism, &old_config)).await;
    assert_eq!(waiting.await.unwrap().unwrap().entries[0].organism, id(&new_config));
    following.wait_for(SOON, |notes| (notes.0 == [b"between"]).then_some(())).await.unwrap();
    let named = lineage.current().organism().evidence(0, SOON).await.unwrap();
    let named = Predecessor::of(named.claimed_entry()).unwrap().verify(id(&old_config)).unwrap();
    assert_eq!(named.size(), organism.head(SOON).await.unwrap().size(), "the head that ended it");

    assert_eq!(lineage.write(settled, b"settled".to_vec(), SOON).await.unwrap(), first_answer, "asked again, the same");

    // A retry by another process finds what is in the old log there, and writes the rest to the new one, once.
    let again = Lineage::follow(organism.clone());
    assert_eq!(again.write_again(settled, b"settled".to_vec(), SOON).await.unwrap(), first_answer);
    let late = again.write_again(WriteId([3; 16]), b"late".to_vec(), SOON).await.unwrap();
    assert_eq!(late.entries[0].organism, id(&new_config));
    assert_eq!(again.write_again(WriteId([3; 16]), b"late".to_vec(), SOON).await.unwrap(), late);
    assert_eq!(again.newest(SOON).await.unwrap().organism().id(), id(&new_config));
    assert_eq!(all(lineage.current().organism(), 2).await, [b"between".to_vec(), b"late".to_vec()]);

    // One step further: who knows the first config alone takes both.
    let third_config = config(2, Some(id(&new_config)));
    let third = Committee::start_generation(4, 2, carried(&third_config)).await;
    let second = lineage.current().organism().clone();
    begin(&third, (&second, &new_config)).await;
    rotate(&new, &second, id(&third_config), Some(successor(&third_config, &third))).await;
    following.moved(1).await.unwrap();
    let far = Lineage::follow(organism.clone());
    let reading = reader(&far);
    assert_eq!(far.write_again(WriteId([3; 16]), b"late".to_vec(), SOON).await.unwrap(), late);
    assert_eq!(far.write_again(settled, b"settled".to_vec(), SOON).await.unwrap(), first_answer);
    let last = far.write(WriteId([4; 16]), b"last".to_vec(), SOON).await.unwrap();
    assert_eq!(last.entries[0].organism, id(&third_config));
    for reader in [&following, &reading] {
        reader.wait_for(SOON, |notes| (notes.0 == [b"last"]).then_some(())).await.unwrap();
        let steps: Vec<UniqueId> = reader.moves().iter().map(|moved| moved.to).collect();
        assert_eq!(steps, [id(&new_config), id(&third_config)]);
    }
    drop((following, reading));
    third.stop().await;
    old.stop().await;
    new.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_ends_where_no_config_is_named() {
    let old_config = config(0, None);
    let old = Committee::start_generation(4, 0, carried(&old_config)).await;
    let node = old.client().await;
    let organism = first(&node, &old_config);
    let lineage = Lineage::follow(organism.clone());
    let following = reader(&lineage);
    let nowhere = UniqueId::from_bytes([9; 32]);
    rotate(&old, &organism, nowhere, None).await;
    let write = lineage.write(random_write_id(), b"late".to_vec(), SOON).await.unwrap_err();
    assert!(matches!(&write, WriteError::Retired(retirement) if retirement.successor() == Some(nowhere)), "{write}");
    let read = following.wait_for(SOON, |notes| (!notes.0.is_empty()).then_some(())).await.unwrap_err();
    assert!(matches!(read, ReadError::Retired(_)), "{read}");
    assert!(following.moved(0).await.is_err() && following.moves().is_empty() && following.end().is_some());
    drop(following);
    old.stop().await;
}
