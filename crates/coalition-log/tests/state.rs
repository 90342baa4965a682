//! Certified states: their bytes, what a reader believes of them, and the files beside the log; and pruning behind them.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "test code with small numbers")]

mod support;

use coalition_log::checkpoint::SignedCheckpoint;
use coalition_log::entry::{Entry, WriteId, leaf_hash};
use coalition_log::follow::{FollowError, Follower, StateOffer};
use coalition_log::state::{HostState, KnownWrite, STATE_KIND, StateError, StateRecord};
use coalition_log::store::{Pruned, StoreError};
use coalition_log::tree::{Hash, consistency_proof, inclusion_proof, sha256};
use proptest::prelude::*;
use support::disk::{Log, SMALL, fill};
use support::{Committee, Leaves, committee, entry, organism};

fn host_entry(index: u64) -> Entry {
    Entry { kind: "committee.retiring".into(), write_id: WriteId([1; 16]), ..entry(index) }
}

fn state() -> HostState {
    HostState {
        organism: organism(1),
        covers: 10,
        host_entries: vec![host_entry(4).encode().unwrap()],
        writes: vec![
            KnownWrite { id: WriteId([2; 16]), first: 1, count: 2 },
            KnownWrite { id: WriteId([1; 16]), first: 4, count: 1 },
        ],
        ticks: vec![(5, 1), (6, 2)],
        machine: b"machine".to_vec(),
    }
}

#[test]
fn the_bytes_of_states_and_records_are_pinned() {
    let entry = host_entry(4).encode().unwrap();
    let n = |number: u64| number.to_be_bytes();
    let expected = [
        &b"CLOGSTA\x01"[..],
        &[1; 32],
        &n(10),
        &[0, 0, 0, 1],
        &u32::try_from(entry.len()).unwrap().to_be_bytes(),
        &entry,
        &[0, 0, 0, 2],
        &[2; 16],
        &n(1),
        &n(2),
        &[1; 16],
        &n(4),
        &n(1),
        &[0, 0, 0, 2],
        &n(5),
        &n(1),
        &n(6),
        &n(2),
        &n(7),
        b"machine",
    ]
    .concat();
    let bytes = state().to_bytes().unwrap();
    assert_eq!(bytes, expected);
    assert_eq!(HostState::from_bytes(&bytes, organism(1), 10).unwrap(), state());
    let record = StateRecord::new(10, b"abc");
    assert_eq!(
        hex(&record.to_bytes()),
        "000000000000000aba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad0000000000000003"
    );
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn what_is_no_state_is_refused_by_name() {
    let refused = |state: &HostState, covers| HostState::from_bytes(&state.to_bytes().unwrap(), organism(1), covers);
    assert!(matches!(refused(&state(), 11), Err(StateError::OtherSize { found: 10, expected: 11 })));
    let other = HostState { organism: organism(2), ..state() };
    assert!(matches!(refused(&other, 10), Err(StateError::OtherOrganism { .. })));
    let write = |id: u8, first, count| KnownWrite { id: WriteId([id; 16]), first, count };
    let cases = [
        HostState { host_entries: vec![entry(4).encode().unwrap()], ..state() },
        HostState { host_entries: vec![host_entry(10).encode().unwrap()], ..state() },
        HostState { host_entries: vec![host_entry(4).encode().unwrap(); 2], ..state() },
        HostState { writes: vec![write(1, 9, 2)], ..state() },
        HostState { writes: vec![write(1, 9, 0)], ..state() },
        HostState { writes: vec![write(0, 1, 1)], ..state() },
        HostState { writes: vec![write(1, 3, 1), write(2, 2, 1)], ..state() },
        HostState { writes: vec![write(1, 3, 1), write(1, 5, 1)], ..state() },
        HostState { writes: vec![write(1, u64::MAX, 2)], ..state() },
        HostState { ticks: vec![(6, 1), (5, 2)], ..state() },
    ];
    for case in cases {
        assert!(matches!(refused(&case, 10), Err(StateError::Malformed { .. })), "{case:?}");
    }
    let longer = [state().to_bytes().unwrap(), vec![0]].concat();
    assert!(HostState::from_bytes(&longer, organism(1), 10).is_err());
}

proptest! {
    #[test]
    fn changed_bytes_are_refused_or_mean_themselves(at in any::<prop::sample::Index>(), flip in 1u8..=255, cut in any::<bool>()) {
        let mut bytes = state().to_bytes().unwrap();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= flip }
        if let Ok(parsed) = HostState::from_bytes(&bytes, organism(1), 10) {
            prop_assert_eq!(parsed.to_bytes().unwrap(), bytes);
        }
    }
}

/// A log of `size` entries of which `covers` certifies the state `state`.
struct Server {
    committee: Committee,
    entries: Vec<Vec<u8>>,
    leaves: Leaves,
}

impl Server {
    fn new(size: u64, covers: u64, state: &[u8]) -> Self {
        let record = StateRecord::new(covers, state);
        let one = |index| match index == covers {
            true => Entry { kind: STATE_KIND.into(), body: record.to_bytes(), ..entry(index) },
            false => entry(index),
        };
        let entries: Vec<Vec<u8>> = (0..size).map(|index| one(index).encode().unwrap()).collect();
        let leaves = Leaves(entries.iter().map(|bytes| leaf_hash(bytes)).collect());
        Self { committee: committee(1, 4), entries, leaves }
    }

    fn size(&self) -> u64 {
        self.entries.len() as u64
    }

    fn head(&self) -> SignedCheckpoint {
        self.committee.certify(self.size(), self.leaves.root(self.entries.len())).note().clone()
    }

    fn follower(&self) -> Follower {
        let mut follower = Follower::new(self.committee.organism, &self.committee.roster).unwrap();
        follower.accept_head(&self.head(), &[]).unwrap();
        follower
    }

    /// Entry, path, peaks and proof of an offer.
    fn offer(&self, covers: u64) -> (Vec<u8>, Vec<Hash>, Vec<Hash>, Vec<Hash>) {
        (
            self.entries[covers as usize].clone(),
            inclusion_proof(&self.leaves, covers, self.size()).unwrap(),
            self.leaves.frontier(covers as usize).peaks().to_vec(),
            consistency_proof(&self.leaves, covers, self.size()).unwrap(),
        )
    }
}

fn offered<'a>((entry, path, peaks, proof): &'a (Vec<u8>, Vec<Hash>, Vec<Hash>, Vec<Hash>)) -> StateOffer<'a> {
    StateOffer { entry, path, peaks, proof }
}

#[test]
fn a_reader_goes_on_behind_a_certified_state() {
    for (size, covers) in [(1, 0), (5, 4), (100, 37), (100, 64), (300, 256)] {
        let server = Server::new(size, covers, b"state");
        let mut follower = server.follower();
        let start = follower.accept_state(&offered(&server.offer(covers))).unwrap();
        assert_eq!(*start.record(), StateRecord::new(covers, b"state"));
        assert_eq!(follower.next_index(), 0, "nothing moves before the bytes are here");
        follower.start_from(start);
        let rest = follower.accept_entries(covers, &server.entries[covers as usize..], &[]).unwrap();
        assert_eq!(rest.len() as u64, size - covers);
    }
}

#[test]
fn nothing_uncertified_passes_for_a_state() {
    let (server, good) = (Server::new(100, 37, b"state"), Server::new(100, 37, b"state").offer(37));
    let refused = |offer| server.follower().accept_state(&offered(&offer)).unwrap_err();
    let not_one = refused(server.offer(36));
    assert!(matches!(not_one, FollowError::NotAState { index: 36 }), "{not_one}");
    let forged = Server::new(100, 37, b"other").offer(37);
    assert!(matches!(
        refused((forged.0, good.1.clone(), good.2.clone(), good.3.clone())),
        FollowError::UncertifiedState { .. }
    ));
    let mut moved = Entry::decode(&good.0).unwrap();
    moved.index = 38;
    moved.body = StateRecord::new(38, b"state").to_bytes();
    assert!(matches!(
        refused((moved.encode().unwrap(), good.1.clone(), good.2.clone(), good.3.clone())),
        FollowError::UncertifiedState { .. }
    ));
    for peaks in [vec![], good.2[1..].to_vec(), [good.2.clone(), vec![Hash([0; 32])]].concat(), vec![Hash([7; 32]); 3]]
    {
        assert!(matches!(
            refused((good.0.clone(), good.1.clone(), peaks, good.3.clone())),
            FollowError::NotTheTree { covers: 37, .. }
        ));
    }
    assert!(matches!(
        refused((good.0.clone(), good.1.clone(), good.2.clone(), vec![])),
        FollowError::NotTheTree { .. }
    ));
    let mut ahead = server.follower();
    ahead.accept_entries(0, &server.entries[..40], &consistency_proof(&server.leaves, 40, 100).unwrap()).unwrap();
    assert!(matches!(ahead.accept_state(&offered(&good)), Err(FollowError::StateBehind { covers: 37, next: 40 })));
}

#[test]
fn a_record_is_of_its_own_place_and_length() {
    let good = |index| Entry { kind: STATE_KIND.into(), body: StateRecord::new(8, b"s").to_bytes(), ..entry(index) };
    assert_eq!(StateRecord::of(&good(8)), Some(StateRecord::new(8, b"s")));
    assert_eq!(StateRecord::of(&good(9)), None);
    assert_eq!(StateRecord::of(&Entry { kind: "log.other".into(), ..good(8) }), None);
    let endless = StateRecord { length: u64::MAX, ..StateRecord::new(8, b"s") };
    assert_eq!(StateRecord::of(&Entry { body: endless.to_bytes(), ..good(8) }), None);
    let record = StateRecord::new(8, b"s");
    assert!(record.check(b"s").is_ok());
    assert!(matches!(record.check(b"t"), Err(StateError::Digest { .. })));
    assert!(matches!(record.check(b"ss"), Err(StateError::Length { found: 2, certified: 1 })));
    assert_eq!(sha256(b"s"), record.digest);
}

#[test]
fn the_last_two_states_are_kept_and_a_bad_one_is_set_aside() {
    let (log, mut store) = Log::filled(SMALL, 300);
    assert_eq!(store.states().list().unwrap(), [0; 0]);
    let states = store.states();
    let unfinished = states.path(150).with_extension("new");
    for covers in [100, 200, 300] {
        store.put_state(covers, &covers.to_be_bytes()).unwrap();
        assert!(!unfinished.exists(), "what a crash left of one that was being written");
        std::fs::write(&unfinished, b"half a st").unwrap();
    }
    assert_eq!(states.list().unwrap(), [300, 200]);
    assert_eq!(states.read(200).unwrap(), 200u64.to_be_bytes());
    assert_eq!(states.read_part(200, 6, 100).unwrap(), [0, 200]);
    assert_eq!(states.read_part(200, 900, 100).unwrap(), [0; 0]);
    assert!(matches!(states.read(100), Err(StoreError::Read { .. })));
    let aside = states.set_aside(300).unwrap();
    assert!(aside.is_file() && states.list().unwrap() == [200]);
    drop(store);
    assert_eq!(log.open().states().list().unwrap(), [200]);
}

#[test]
fn pruned_entries_are_gone_and_everything_about_them_still_proves() {
    let (log, mut store) = Log::filled(SMALL, 3_000);
    store.rotate().unwrap();
    assert_eq!(store.prune(100, 1).unwrap(), None, "less than a bundle");
    let pruned = Pruned { below: 1_024, at_ms: 77 };
    assert_eq!(store.prune(1_100, 77).unwrap(), Some(pruned));
    assert_eq!(store.prune(1_100, 78).unwrap(), Some(pruned), "nothing more to drop");
    let check = |store: &coalition_log::store::Store| {
        assert_eq!(store.pruned(), Some(pruned));
        let refused = store.entry(1_023).unwrap_err();
        assert!(matches!(refused, StoreError::Pruned { index: 1_023, below: 1_024, at_ms: 77 }), "{refused}");
        assert!(!refused.is_fatal());
        assert!(store.entries(0..10, 100).is_err());
        assert_eq!(store.entry(1_024).unwrap(), entry(1_024));
        let leaves = Leaves::of_entries(3_000);
        for index in [0, 1_023, 2_999] {
            assert_eq!(store.inclusion_proof(index, 3_000).unwrap(), inclusion_proof(&leaves, index, 3_000).unwrap());
        }
        assert_eq!(store.frontier_at(777).unwrap(), leaves.frontier(777));
        assert_eq!(store.consistency_proof(777, 3_000).unwrap(), consistency_proof(&leaves, 777, 3_000).unwrap());
    };
    check(&store);
    assert!(!log.path("tile/entries/003").exists() && log.path("tile/entries/004").exists());
    drop(store);
    // A crash before the last bundle was removed: opening finishes it.
    std::fs::write(log.path("tile/entries/003"), b"left over").unwrap();
    let mut store = log.open();
    assert!(!log.path("tile/entries/003").exists());
    check(&store);
    fill(&mut store, 3_300, 50);
    store.rotate().unwrap();
    assert_eq!(store.prune(u64::MAX, 99).unwrap(), Some(Pruned { below: 3_072, at_ms: 99 }), "never beyond the tiles");
    drop(store);
    for text in ["", "coalition-log-pruned/1\nbelow 1025\nat 1\n", "coalition-log-pruned/2\nbelow 1024\nat 1\n"] {
        std::fs::write(log.path("pruned"), text).unwrap();
        assert!(matches!(log.try_open(), Err(StoreError::Malformed { .. })), "{text:?}");
    }
}
