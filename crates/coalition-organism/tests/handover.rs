//! Handovers with real engines, disks and sockets on loopback: members are swapped, added and removed under load, crash
//! around the boundary, and no reader or writer is ever restarted.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use coalition_log::evidence::Evidence;
use coalition_organism::{Follower, Organism, Standing, WriteError, random_write_id};
use coalition_testkit::{Carried, Committee, Notes};

const SOON: Duration = Duration::from_secs(60);

/// A writer that never stops until told, and is never restarted: what was acknowledged, and where.
struct Load {
    go_on: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Vec<(u64, Vec<u8>)>>,
}

impl Load {
    fn start(organism: Organism, name: &'static str) -> Self {
        let go_on = Arc::new(AtomicBool::new(true));
        let watched = Arc::clone(&go_on);
        let task = tokio::spawn(async move {
            let mut done = Vec::new();
            for i in 0.. {
                if !watched.load(Relaxed) {
                    break;
                }
                let text = format!("{name} {i}").into_bytes();
                let written = organism.write(random_write_id(), text.clone(), SOON).await.unwrap();
                done.push((written.entries[0].index, text));
            }
            done
        });
        Self { go_on, task }
    }

    async fn stop(self) -> Vec<(u64, Vec<u8>)> {
        self.go_on.store(false, Relaxed);
        self.task.await.unwrap()
    }
}

async fn standing(committee: &Committee, member: usize, expected: impl FnMut(&Standing) -> bool) {
    let mut standing = committee.member(member).unwrap().standing();
    tokio::time::timeout(SOON, standing.wait_for(expected)).await.expect("the standing in time").unwrap();
}

async fn seated(committee: &Committee, member: usize, epoch: u64) {
    standing(committee, member, |now| matches!(now, Standing::Seated { epoch: at, .. } if *at == epoch)).await;
}

async fn note(organism: &Organism, text: &str) -> u64 {
    organism.write(random_write_id(), text.into(), SOON).await.unwrap().entries[0].index
}

/// Verifies with the genesis roster alone, as somebody does who has the config and nothing else.
fn verify(organism: &Organism, file: &str) -> u64 {
    Evidence::parse(file.as_bytes()).unwrap().verify(organism.id(), organism.roster()).unwrap().epoch()
}

/// What a reader shows once it has so many notes; a member that has left may lag, so its head is no measure.
async fn shows(reader: &Follower<Notes>, count: usize) -> Vec<Vec<u8>> {
    let all = reader.wait_for(SOON, |notes| (notes.0.len() >= count).then(|| notes.0.clone())).await.unwrap();
    assert_eq!(all.len(), count);
    all
}

fn carried() -> Vec<Carried> {
    vec![Carried::new("notes", Notes::default).with_state_every(8), Carried::new("others", Notes::default)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_swapped_added_and_removed_under_load() {
    let mut committee = Committee::start(4, carried()).await;
    let client = committee.client().await;
    let (notes, others) = (committee.organism(&client, "notes"), committee.organism(&client, "others"));
    let reader = Follower::spawn(notes.clone(), Notes::default());
    let first = note(&notes, "before").await;
    note(&others, "beside").await;
    let before = notes.evidence(first, SOON).await.unwrap().to_text();
    assert_eq!(verify(&notes, &before), 0);
    let load = Load::start(notes.clone(), "load");

    // Too few, and for one organism only.
    let swap = ([0, 1, 2, 3], [0, 1, 2, 4]);
    let few = committee.handover(1, (&swap.0, &swap.1), &[0, 1]);
    let refused = notes.hand_over(random_write_id(), &few, SOON).await.unwrap_err();
    assert!(matches!(&refused, WriteError::Refused(refusal) if refusal.code == "not_approved"), "{refused}");
    let all = committee.handover(1, (&swap.0, &swap.1), &[0, 1, 2]);
    let refused = notes.hand_over(random_write_id(), &all[..1], SOON).await.unwrap_err();
    assert!(matches!(&refused, WriteError::Refused(refusal) if refusal.code == "not_all_organisms"), "{refused}");

    // Swap: 4 waits, then takes the place of 3.
    assert_eq!(committee.add_seat(), 4);
    committee.start_member(4).await;
    assert!(matches!(*committee.member(4).unwrap().standing().borrow(), Standing::Following { .. }));
    let id = random_write_id();
    let handed = notes.hand_over(id, &all, SOON).await.unwrap();
    assert_eq!(notes.hand_over(id, &all, SOON).await.unwrap(), handed, "the same write, the same answer");
    for member in [0, 1, 2, 4] {
        seated(&committee, member, 1).await;
    }
    standing(&committee, 3, |now| matches!(now, Standing::Left { epoch: 1 })).await;
    for member in [0, 3, 4] {
        let rosters = committee.member(member).unwrap().rosters();
        assert_eq!(rosters.len(), 2);
        assert!(rosters.iter().all(|(_, roster)| *roster == committee.roster_of(&[0, 1, 2, 4])), "member {member}");
    }
    committee.stop_member(3).await;
    let second = note(&notes, "after the swap").await;
    assert!(second > handed.entries[0].index);
    let after = notes.evidence(second, SOON).await.unwrap().to_text();
    assert_eq!((verify(&notes, &before), verify(&notes, &after)), (0, 1));
    assert_eq!(notes.committee().roster(), &committee.roster_of(&[0, 1, 2, 4]));

    // The newcomer is needed now: without 0 the quorum is 1, 2 and 4.
    committee.drop_member(0).await;
    note(&notes, "with the newcomer").await;
    committee.start_member(0).await;
    seated(&committee, 0, 1).await;

    // Add, then remove.
    assert_eq!(committee.add_seat(), 5);
    committee.start_member(5).await;
    let add = committee.handover(2, (&[0, 1, 2, 4], &[0, 1, 2, 4, 5]), &[0, 1, 3].map(|seat| [0, 1, 2, 4][seat]));
    others.hand_over(random_write_id(), &add, SOON).await.unwrap();
    seated(&committee, 5, 2).await;
    note(&others, "five").await;
    let remove = committee.handover(3, (&[0, 1, 2, 4, 5], &[1, 2, 4, 5]), &[1, 2, 4, 5]);
    notes.hand_over(random_write_id(), &remove, SOON).await.unwrap();
    standing(&committee, 0, |now| matches!(now, Standing::Left { epoch: 3 })).await;
    seated(&committee, 5, 3).await;
    let last = note(&notes, "after all").await;
    let after = notes.evidence(last, SOON).await.unwrap().to_text();
    assert_eq!(verify(&notes, &after), 3);

    let written = load.stop().await;
    assert!(written.len() > 5, "the load wrote {}", written.len());
    for (index, text) in [written.first(), written.last()].into_iter().flatten() {
        assert_eq!(&notes.evidence(*index, SOON).await.unwrap().claimed_entry().body, text);
    }
    let shown = shows(&reader, written.len() + 4).await;
    assert_eq!(
        written.iter().filter(|(_, text)| shown.iter().filter(|s| *s == text).count() == 1).count(),
        written.len()
    );
    // A reader that starts now sees the same, from the genesis roster.
    let fresh = committee.client().await;
    let late = Follower::spawn(committee.organism(&fresh, "notes"), Notes::default());
    assert_eq!(shows(&late, shown.len()).await, shown);
    committee.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_around_the_boundary_lose_nothing() {
    let mut committee = Committee::start(4, carried()).await;
    let client = committee.client().await;
    let (notes, others) = (committee.organism(&client, "notes"), committee.organism(&client, "others"));
    let reader = Follower::spawn(notes.clone(), Notes::default());
    note(&others, "beside").await;
    let load = Load::start(notes.clone(), "load");
    let rosters = [[0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 5, 4], [6, 1, 5, 4]];
    for (epoch, step) in (1u64..).zip(rosters.windows(2)) {
        let newcomer = committee.add_seat();
        // A member that sleeps through the handover, one that crashes in it, and a newcomer that crashes while it reads.
        committee.drop_member(step[0][1]).await;
        committee.start_member(newcomer).await;
        let approvals = committee.handover(epoch, (&step[0], &step[1]), &step[0][..3]);
        let asked = {
            let notes = notes.clone();
            tokio::spawn(async move { notes.hand_over(random_write_id(), &approvals, SOON).await })
        };
        committee.drop_member(newcomer).await;
        committee.start_member(newcomer).await;
        asked.await.unwrap().unwrap();
        committee.drop_member(step[0][2]).await;
        committee.start_member(step[0][2]).await;
        committee.start_member(step[0][1]).await;
        for member in step[1] {
            seated(&committee, member, epoch).await;
        }
        note(&notes, "in between").await;
    }
    // Everybody at once, right after it.
    for member in rosters[3] {
        committee.drop_member(member).await;
    }
    for member in rosters[3] {
        committee.start_member(member).await;
    }
    let client = committee.client().await;
    let again = committee.organism(&client, "notes");
    let last = note(&again, "after all").await;
    let written = load.stop().await;
    let late = Follower::spawn(again.clone(), Notes::default());
    let shown = shows(&late, written.len() + 4).await;
    for (_, text) in &written {
        assert_eq!(shown.iter().filter(|shown| *shown == text).count(), 1, "{}", String::from_utf8_lossy(text));
    }
    assert_eq!(verify(&again, &again.evidence(last, SOON).await.unwrap().to_text()), 3);
    assert_eq!(shows(&reader, shown.len()).await, shown);
    committee.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_left_of_the_genesis_roster() {
    let mut committee = Committee::start(4, carried()).await;
    let client = committee.client().await;
    let notes = committee.organism(&client, "notes");
    note(&notes, "early").await;
    let rosters = [[0, 1, 2, 3], [4, 1, 2, 3], [4, 5, 2, 3], [4, 5, 6, 3], [4, 5, 6, 7]];
    for (epoch, step) in (1u64..).zip(rosters.windows(2)) {
        let newcomer = committee.add_seat();
        committee.start_member(newcomer).await;
        let approvals = committee.handover(epoch, (&step[0], &step[1]), &step[0][1..]);
        notes.hand_over(random_write_id(), &approvals, SOON).await.unwrap();
        for member in step[1] {
            seated(&committee, member, epoch).await;
        }
    }
    for member in rosters[0] {
        committee.drop_member(member).await;
    }
    // A client and a newcomer that know the config, and where everybody is.
    let fresh = committee.client().await;
    let late = committee.organism(&fresh, "notes");
    note(&late, "late").await;
    assert_eq!(late.committee().roster(), &committee.roster_of(&rosters[4]));
    let reader = Follower::spawn(committee.organism(&committee.client().await, "notes"), Notes::default());
    assert_eq!(shows(&reader, 2).await, [b"early".to_vec(), b"late".to_vec()]);
    let newcomer = committee.add_seat();
    committee.start_member(newcomer).await;
    let next = [newcomer, 5, 6, 7];
    let approvals = committee.handover(5, (&rosters[4], &next), &rosters[4][1..]);
    late.hand_over(random_write_id(), &approvals, SOON).await.unwrap();
    seated(&committee, newcomer, 5).await;
    committee.drop_member(4).await;
    committee.drop_member(5).await;
    note(&late, "with the newcomer").await;
    committee.stop().await;
}

async fn kept(file: &Path, magic: &[u8]) {
    let writing = async {
        while !std::fs::read(file).is_ok_and(|bytes| bytes.starts_with(magic)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, writing).await.expect("the fold is kept in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_disk_is_replaced_and_readers_start_behind_handovers() {
    let mut committee = Committee::start(4, carried()).await;
    let client = committee.client().await;
    let notes = committee.organism(&client, "notes");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("fold");
    let keeping = |committee: &Committee, node| {
        let organism = committee.organism(node, "notes");
        Follower::start(organism, Notes::default()).kept_in(&file).spawn()
    };
    let early = keeping(&committee, &client);
    for i in 0..20 {
        note(&notes, &format!("early {i}")).await;
    }
    kept(&file, b"CLOGFOL\x01").await;
    drop(early);

    // A member that lost its disk has lost its word, too: it comes back as a new one, under new keys.
    committee.drop_member(3).await;
    std::fs::remove_dir_all(committee.member_dir(3)).unwrap();
    assert_eq!(committee.add_seat(), 4);
    committee.start_member(4).await;
    let replace = committee.handover(1, (&[0, 1, 2, 3], &[0, 1, 2, 4]), &[0, 1, 2]);
    notes.hand_over(random_write_id(), &replace, SOON).await.unwrap();
    for member in [0, 1, 2, 4] {
        seated(&committee, member, 1).await;
    }
    for i in 0..20 {
        note(&notes, &format!("middle {i}")).await;
    }
    assert_eq!(committee.add_seat(), 5);
    committee.start_member(5).await;
    let swap = committee.handover(2, (&[0, 1, 2, 4], &[5, 1, 2, 4]), &[1, 2, 4]);
    notes.hand_over(random_write_id(), &swap, SOON).await.unwrap();
    for member in [5, 1, 2, 4] {
        seated(&committee, member, 2).await;
    }
    let last = note(&notes, "late 0").await;
    for i in 1..20 {
        note(&notes, &format!("late {i}")).await;
    }
    let states = committee.member_dir(4).join("logs/notes/state");
    assert!(std::fs::read_dir(states).unwrap().count() > 0, "a member that joined keeps states");

    // Readers that know the config alone: from the first entry, from a state, and from a fold kept before the handovers.
    let full = Follower::spawn(committee.organism(&committee.client().await, "notes"), Notes::default());
    let all = shows(&full, 60).await;
    let organism = committee.organism(&committee.client().await, "notes");
    let behind = Follower::start(organism, Notes::default()).from_state().spawn();
    assert_eq!(shows(&behind, 60).await, all);
    assert_eq!(behind.organism().committee().roster(), &committee.roster_of(&[5, 1, 2, 4]));
    let node = committee.client().await;
    let again = keeping(&committee, &node);
    assert_eq!(shows(&again, 60).await, all);
    kept(&file, b"CLOGFOL\x02").await;
    drop(again);

    // The kept fold knows the members that nobody introduced, and members start from their states.
    for member in [5, 1, 2, 4] {
        committee.stop_member(member).await;
    }
    for member in [5, 1, 2, 4] {
        committee.start_member(member).await;
        seated(&committee, member, 2).await;
    }
    let after = note(&committee.organism(&committee.client().await, "notes"), "after all").await;
    let again = keeping(&committee, &committee.client().await);
    shows(&again, 61).await;
    assert_eq!(again.organism().committee().epoch(), 2);
    for index in [last, after] {
        assert_eq!(verify(&notes, &notes.evidence(index, SOON).await.unwrap().to_text()), 2);
    }
    committee.stop().await;
}
