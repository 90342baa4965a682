//! Readers and members of a real committee that start from certified states, from their own files, and behind pruned entries.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use coalition::{UniqueId, codec};
use coalition_log::{Context, Draft, Entry, Machine, Refusal, SnapshotError, state::MAX_STATE_BYTES};
use coalition_organism::{
    Contains, Fold, FoldFault, Follower, FromState, Organism, Persist, ReadError, WriteError, random_write_id,
};
use coalition_testkit::{Carried, Committee, key};
use coalition_universe::{Fault, PeerId, Service};
use futures::future::BoxFuture;

const SOON: Duration = Duration::from_secs(40);
const EVERY: u64 = 16;

/// Remembers the first bytes of every note, and how many entries it was shown itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Notes {
    heads: BTreeSet<Vec<u8>>,
    shown: u64,
}

impl Notes {
    fn take(&mut self, entry: &Entry) {
        self.heads.insert(entry.body.iter().copied().take(16).collect());
    }
}

impl Machine for Notes {
    fn decide(&self, _: &Context, command: &[u8]) -> Result<Vec<Draft>, Refusal> {
        Ok(vec![Draft::new("note", command.to_vec())])
    }

    fn round(&self, _: &Context) -> Option<Vec<Draft>> {
        None
    }

    fn evolve(&mut self, entry: &Entry) {
        self.take(entry);
    }

    fn wake_at_ms(&self, _: &Context) -> Option<u64> {
        None
    }

    fn snapshot(&self) -> Vec<u8> {
        codec::encode(&self.heads)
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), SnapshotError> {
        self.heads = codec::decode(snapshot, MAX_STATE_BYTES)?;
        Ok(())
    }
}

impl Fold for Notes {
    fn fold(&mut self, entry: &Entry) -> Result<(), FoldFault> {
        self.take(entry);
        self.shown += 1;
        Ok(())
    }
}

impl FromState for Notes {
    fn start_from(&mut self, machine: &[u8]) -> Result<(), SnapshotError> {
        self.restore(machine)
    }
}

impl Persist for Notes {
    fn save(&self) -> Vec<u8> {
        self.snapshot()
    }

    fn load(&mut self, saved: &[u8]) -> Result<(), SnapshotError> {
        self.restore(saved)
    }
}

impl Contains<str> for Notes {
    fn contains(&self, note: &str) -> bool {
        self.heads.contains(note.as_bytes())
    }
}

async fn committee() -> Committee {
    Committee::start(4, vec![Carried::new("notes", Notes::default).with_state_every(EVERY)]).await
}

/// Writes notes of these numbers, `length` bytes each.
async fn write(notes: &Organism, numbers: std::ops::Range<u64>, length: usize) {
    let mut written = Vec::new();
    for number in numbers {
        let notes = notes.clone();
        let mut text = name(number).into_bytes();
        text.resize(text.len().max(length), b'.');
        written.push(tokio::spawn(async move { notes.write(random_write_id(), text, SOON).await.unwrap() }));
        if written.len() == 64 {
            futures_of(&mut written).await;
        }
    }
    futures_of(&mut written).await;
}

async fn futures_of<T>(tasks: &mut Vec<tokio::task::JoinHandle<T>>) {
    for task in tasks.drain(..) {
        task.await.unwrap();
    }
}

fn name(number: u64) -> String {
    format!("note {number:>11}")
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("{what} did not happen"));
}

fn states(committee: &Committee, member: usize) -> Vec<PathBuf> {
    let dir = committee.member_dir(member).join("logs/notes/state");
    let files = fs::read_dir(dir).map(|files| files.map(|file| file.unwrap().path()).collect::<Vec<_>>());
    let mut files = files.unwrap_or_default();
    files.retain(|file| file.extension().is_none());
    files.sort();
    files
}

fn flip_last_byte(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(file, bytes).unwrap();
}

fn damaged(file: &Path, joint: &str) -> PathBuf {
    let mut name = file.file_name().unwrap().to_owned();
    name.push(joint);
    file.with_file_name(name)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_start_from_states_and_from_their_own_files() {
    let committee = committee().await;
    let client = committee.client().await;
    let notes = committee.organism(&client, "notes");
    write(&notes, 0..60, 0).await;
    let whole = Follower::spawn(notes.clone(), Notes::default());
    let size = whole.caught_up(SOON).await.unwrap();
    assert!(size > 60, "some of the {size} entries certify states");
    assert_eq!(whole.read(|notes| notes.shown), 60, "which no reader is shown");

    // A member that has not written its state yet says that it keeps none, and the log is short enough to be read whole.
    until("keeping states", || (0..4).all(|member| !states(&committee, member).is_empty())).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("notes.fold");
    let start = || Follower::start(notes.clone(), Notes::default()).from_state().kept_in(&file);
    let reader = start().spawn();
    reader.caught_up(SOON).await.unwrap();
    assert_eq!(reader.read(|notes| notes.heads.clone()), whole.read(|notes| notes.heads.clone()));
    assert!(reader.read(|notes| notes.shown) < 60, "it was not shown what the state covers");

    // Woken by what is written later; one that is dropped takes nothing with it.
    drop(reader.when().contains(name(77).as_str()));
    let when = reader.when();
    let waiting = tokio::spawn(async move { when.contains(name(77).as_str()).await });
    write(&notes, 70..78, 0).await;
    tokio::time::timeout(SOON, waiting).await.unwrap().unwrap().unwrap();
    until("keeping", || file.is_file()).await;
    let kept = fs::metadata(&file).unwrap().modified().unwrap();
    write(&notes, 78..80, 0).await;
    reader.wait_for(SOON, |notes| notes.contains(name(79).as_str()).then_some(())).await.unwrap();
    until("keeping again", || fs::metadata(&file).unwrap().modified().unwrap() > kept).await;
    let when = reader.when();
    drop(reader);
    assert!(matches!(when.contains(name(1_000).as_str()).await, Err(ReadError::Stopped { .. })));

    // What is kept is there at once, and it goes on from there.
    let again = start().spawn();
    assert!(again.certified_size() > 60 && again.read(|notes| notes.contains(name(77).as_str())));
    write(&notes, 80..82, 0).await;
    again.wait_for(SOON, |notes| notes.contains(name(81).as_str()).then_some(())).await.unwrap();
    assert!(again.read(|notes| notes.shown) <= 4);
    drop(again);

    // A damaged file is named and set aside; the certified state is there.
    flip_last_byte(&file);
    let anew = start().spawn();
    anew.caught_up(SOON).await.unwrap();
    assert!(anew.read(|notes| notes.contains(name(0).as_str()) && notes.contains(name(81).as_str())));
    assert!(damaged(&file, ".damaged").is_file());
    drop((anew, whole, client));
    committee.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_whose_head_is_gone_says_so_and_does_not_start_over() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("notes.fold");
    for numbers in [0..30, 100..140] {
        // The second committee has the first one's keys and ids, and another log.
        let committee = committee().await;
        let client = committee.client().await;
        let notes = committee.organism(&client, "notes");
        let is_second = numbers.start == 100;
        write(&notes, numbers, 0).await;
        let reader = Follower::start(notes.clone(), Notes::default()).from_state().kept_in(&file).spawn();
        if is_second {
            let error =
                reader.wait_for(SOON, |notes| notes.contains(name(100).as_str()).then_some(())).await.unwrap_err();
            assert!(matches!(error, ReadError::Forked { members: 2.., .. }), "{error}");
            assert!(file.is_file(), "the evidence is kept");
            assert!(reader.read(|notes| notes.contains(name(0).as_str())), "and what was certified can still be read");
        } else {
            reader.caught_up(SOON).await.unwrap();
            until("keeping", || file.is_file()).await;
        }
        drop((reader, client));
        committee.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_certified_histories_stop_a_reader_with_the_proof() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("notes.fold");
    for first in [0, 100] {
        // The same keys, ids and sizes, and another content.
        let committee = committee().await;
        let client = committee.client().await;
        let notes = committee.organism(&client, "notes");
        write(&notes, first..first + 10, 0).await;
        let reader = Follower::start(notes.clone(), Notes::default()).kept_in(&file).spawn();
        if first == 0 {
            assert_eq!(reader.caught_up(SOON).await.unwrap(), 10);
            until("keeping", || file.is_file()).await;
        } else {
            let found = reader.wait_for(SOON, |notes| notes.contains(name(100).as_str()).then_some(())).await;
            let Err(ReadError::Contradicted { size: 10, proofs, .. }) = found else { panic!("{found:?}") };
            assert!(proofs.len() >= 2, "more than may lie have signed both");
            assert!(reader.read(|notes| notes.contains(name(0).as_str()) && !notes.contains(name(100).as_str())));
        }
        drop((reader, client));
        committee.stop().await;
    }
}

/// A member that answers a reader's first question truly, and from then on says that nothing is new.
#[derive(Default)]
struct StandsStill {
    first: Vec<u8>,
    later: Vec<u8>,
    told: AtomicU64,
    stalled: AtomicU64,
}

impl Service for StandsStill {
    fn call(&self, _: PeerId, method: String, body: Vec<u8>) -> BoxFuture<'static, Result<Vec<u8>, Fault>> {
        let asked = postcard::from_bytes::<(UniqueId, u64, u64, u64, u32)>(&body);
        let answer = match asked {
            Ok((_, 0, 0, _, _)) if method == "organism.follow" => {
                self.told.fetch_add(1, Ordering::Relaxed);
                Ok(self.first.clone())
            }
            Ok(_) if method == "organism.follow" => {
                self.stalled.fetch_add(1, Ordering::Relaxed);
                Ok(self.later.clone())
            }
            _ => Err(Fault::new("busy", "ask another")),
        };
        Box::pin(std::future::ready(answer))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_leave_a_member_that_answers_and_never_advances() {
    let mut committee = committee().await;
    let client = committee.client().await;
    let notes = committee.organism(&client, "notes");
    write(&notes, 0..5, 0).await;
    let question = postcard::to_stdvec(&(notes.id(), 0u64, 0u64, 0u64, 1_000u32)).unwrap();
    let first = client.call(key(1, 3).peer_id(), "organism.follow", question, SOON).await.unwrap();
    // No handovers, the head, and nothing else.
    let ((none, head), _) = postcard::take_from_bytes::<(u8, String)>(&first).unwrap();
    let later = postcard::to_stdvec(&(none, head, [0u8; 3])).unwrap();
    committee.stop_member(0).await;
    let liar = committee.node(key(0, 3)).await;
    let service = Arc::new(StandsStill { first, later, ..StandsStill::default() });
    liar.serve(Arc::clone(&service) as Arc<dyn Service>);
    client.introduce(liar.address());

    // Each starts at a random member.
    let mut readers = Vec::new();
    until("a reader that asks the member that stands still", || {
        if readers.len() < 40 && service.told.load(Ordering::Relaxed) == 0 {
            readers.push(Follower::spawn(committee.organism(&client, "notes"), Notes::default()));
        }
        service.stalled.load(Ordering::Relaxed) > 0
    })
    .await;
    write(&notes, 5..8, 0).await;
    for reader in &readers {
        reader.wait_for(SOON, |notes| notes.contains(name(7).as_str()).then_some(())).await.unwrap();
    }
    drop((readers, notes));
    liar.stop().await;
    client.stop().await;
    committee.stop().await;
}

/// A member that has one head to tell, for ever.
struct Behind(Vec<u8>);

impl Service for Behind {
    fn call(&self, _: PeerId, method: String, _: Vec<u8>) -> BoxFuture<'static, Result<Vec<u8>, Fault>> {
        let is_asked = ["organism.settled", "organism.head"].contains(&method.as_str());
        let answer = if is_asked { Ok(self.0.clone()) } else { Err(Fault::new("busy", "ask another")) };
        Box::pin(std::future::ready(answer))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_a_quorum_finds_what_was_acknowledged() {
    let mut committee = committee().await;
    let client = committee.client().await;
    let notes = committee.organism(&client, "notes");
    write(&notes, 0..3, 0).await;
    let question = postcard::to_stdvec(&(notes.id(), 0u64, 1_000u32)).unwrap();
    let old = client.call(key(1, 3).peer_id(), "organism.settled", question, SOON).await.unwrap();
    write(&notes, 3..8, 0).await;
    committee.stop_member(0).await;
    let behind = committee.node(key(0, 3)).await;
    behind.serve(Arc::new(Behind(old)) as Arc<dyn Service>);
    client.introduce(behind.address());
    for number in 8..16 {
        write(&notes, number..number + 1, 0).await;
        // Whoever is asked first.
        let reader = Follower::spawn(committee.organism(&client, "notes"), Notes::default());
        let size = reader.caught_up(SOON).await.unwrap();
        assert!(reader.read(|notes| notes.contains(name(number).as_str())), "{size} entries, note {number} is missing");
    }
    committee.stop_member(1).await;
    committee.stop_member(2).await;
    let error = notes.settled_head(Duration::from_secs(3)).await.unwrap_err();
    assert!(error.to_string().contains("of the 3 members that have to answer did"), "{error}");
    let (head, why) = notes.settled_head_or_any(Duration::from_millis(300), SOON).await.unwrap();
    assert!(head.size() >= 3 && why.is_some(), "{} entries, {why:?}", head.size());
    behind.stop().await;
    client.stop().await;
    committee.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_restart_from_states_and_name_a_damaged_one() {
    let mut committee = committee().await;
    let client = committee.client().await;
    let notes = committee.organism(&client, "notes");
    write(&notes, 0..100, 0).await;
    for (member, damages) in [(0, 1), (1, 2)] {
        committee.stop_member(member).await;
        let files = states(&committee, member);
        assert_eq!(files.len(), 2);
        files.iter().rev().take(damages).for_each(|file| flip_last_byte(file));
        committee.start_member(member).await;
        for (age, file) in files.iter().rev().enumerate() {
            assert_eq!(damaged(file, ".damaged").is_file(), age < damages, "{}", file.display());
        }
    }
    // Whatever they started from, they execute alike: three of four must agree on every head.
    committee.stop_member(2).await;
    let client = committee.client().await;
    let notes = committee.organism(&client, "notes");
    write(&notes, 100..140, 0).await;
    let reader = Follower::spawn(notes.clone(), Notes::default());
    reader.caught_up(SOON).await.unwrap();
    assert_eq!(reader.read(|notes| notes.heads.len()), 140);
    drop((reader, client));
    committee.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pruned_entries_are_said_to_be_pruned_and_readers_start_behind_them() {
    let mut committee = committee().await;
    committee.retain_entries = Some(64);
    for member in 0..4 {
        committee.stop_member(member).await;
        committee.start_member(member).await;
    }
    let client = committee.client().await;
    let notes = committee.organism(&client, "notes");
    let (id, first) = (random_write_id(), name(0).into_bytes());
    notes.write(id, first.clone(), SOON).await.unwrap();
    // Enough to move entries out of the journal more than once.
    write(&notes, 1..700, 32 << 10).await;
    let pruned = |member: usize| committee.member_dir(member).join("logs/notes/pruned").is_file();
    until("pruning", || (0..4).all(pruned)).await;

    let error = notes.evidence(3, SOON).await.unwrap_err();
    let ReadError::Pruned(who) = &error else { panic!("{error}") };
    assert!(who.below >= 256 && who.by.starts_with('m') && who.at_ms > 1_700_000_000_000, "{who}");
    let size = notes.head(SOON).await.unwrap().size();
    notes.evidence(size - 1, SOON).await.unwrap();

    let from_zero = Follower::spawn(notes.clone(), Notes::default());
    let error = from_zero.caught_up(SOON).await.unwrap_err();
    assert!(matches!(&error, ReadError::Pruned(who) if who.below >= 256), "{error}");
    let from_state = Follower::start(notes.clone(), Notes::default()).from_state().spawn();
    from_state.caught_up(SOON).await.unwrap();
    assert_eq!(from_state.read(|notes| notes.heads.len()), 700);

    // A write that was pruned can't be proven any more. It is not executed again, and holds up nothing that travels with it.
    let again = notes.write(id, first, Duration::from_secs(3));
    let (again, beside) =
        tokio::join!(again, notes.write(random_write_id(), b"beside".to_vec(), Duration::from_secs(20)));
    assert!(matches!(again, Err(WriteError::Deadline { .. })), "{again:?}");
    let after = notes.write(random_write_id(), b"after".to_vec(), SOON).await.unwrap();
    assert!(after.entries[0].index <= beside.unwrap().entries[0].index + 2, "at most a state between them");

    // A pruned member restarts from its state, and without one it says what is missing.
    committee.stop_member(3).await;
    committee.start_member(3).await;
    write(&notes, 700..720, 0).await;
    from_state.wait_for(SOON, |notes| notes.contains(name(719).as_str()).then_some(())).await.unwrap();
    drop((from_zero, from_state, client));
    committee.stop().await;
}
