//! The Almanac's machine and its readers' fold.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use coalition::{AlmanacTick, UniqueId};
use coalition_almanac::*;
use coalition_log::{Context, Entry, FromState, Machine, Persist, SnapshotError};
use ed25519_dalek::SigningKey;
use proptest::prelude::*;

const START_MS: u64 = 1_700_000_000_250;

fn organism() -> UniqueId {
    UniqueId::hash(b"test almanac organism")
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

struct Sim {
    machine: AlmanacMachine,
    entries: Vec<Entry>,
    cx: Context,
}

impl Sim {
    fn new(cadence_ms: u32) -> Self {
        let keys = (0..3).map(|seed| key(seed).verifying_key().to_bytes()).collect();
        let machine = AlmanacMachine::new(AlmanacParams::new(cadence_ms).unwrap(), organism(), Observers::Keys(keys));
        Self { machine, entries: vec![], cx: Context { height: 0, time_ms: START_MS, tick: 0 } }
    }

    fn batch(&mut self, time_ms: u64, commands: &[AlmanacCommand]) -> Vec<Option<String>> {
        self.cx = Context { height: self.cx.height + 1, time_ms, tick: self.machine.last_seq() };
        let mut outcomes = vec![];
        for command in commands {
            let decided = self.machine.decide(&self.cx, &command.to_bytes());
            outcomes.push(
                decided.map(|drafts| drafts.into_iter().for_each(|draft| self.commit(draft))).err().map(|r| r.code),
            );
        }
        let mut ticks = 0;
        while let Some(drafts) = self.machine.round(&self.cx) {
            ticks += drafts.len();
            drafts.into_iter().for_each(|draft| self.commit(draft));
            assert!(ticks <= 1, "at most one tick per batch");
        }
        assert!(self.machine.wake_at_ms(&self.cx).unwrap() > time_ms);
        outcomes
    }

    fn commit(&mut self, draft: coalition_log::Draft) {
        let entry = draft.into_entry(self.entries.len() as u64, Some(self.cx.tick), self.cx.time_ms);
        entry.check().unwrap();
        self.machine.evolve(&entry);
        self.entries.push(entry);
    }

    fn bodies(&self) -> Vec<AlmanacTickBody> {
        let ticks = self.entries.iter().filter(|entry| entry.kind == TICK_KIND);
        ticks.map(|entry| AlmanacTickBody::from_bytes(&entry.body).unwrap()).collect()
    }

    fn fold(&self) -> Ticks {
        let mut ticks = Ticks::new(AlmanacParams::new(1_000).unwrap());
        for entry in &self.entries {
            ticks.apply(entry).unwrap();
        }
        ticks
    }
}

fn observe(member: u8, time_ms: u64) -> AlmanacCommand {
    AlmanacCommand::Observe(Observation::sign(&key(member), &organism(), u16::from(member), time_ms))
}

#[test]
fn the_first_batch_ticks_and_the_rest_keep_the_grid() {
    let mut sim = Sim::new(1_000);
    assert_eq!(sim.machine.wake_at_ms(&sim.cx), Some(START_MS), "the first tick is due at once");
    sim.batch(START_MS, &[]);
    assert_eq!(sim.machine.wake_at_ms(&sim.cx), Some(1_700_000_001_000));
    sim.batch(1_700_000_000_999, &[]);
    assert_eq!(sim.bodies().len(), 1);
    sim.batch(1_700_000_001_040, &[]);
    assert_eq!(sim.machine.wake_at_ms(&sim.cx), Some(1_700_000_002_000), "a late tick does not push the next one back");
    sim.batch(1_700_000_009_500, &[]);
    let seqs: Vec<_> = sim.bodies().iter().map(|body| body.seq).collect();
    assert_eq!(seqs, [1, 2, 3], "seven missed cadences are not back-filled");
}

#[test]
fn readings_go_into_the_next_tick_only() {
    let mut sim = Sim::new(1_000);
    sim.batch(START_MS, &[]);
    sim.batch(START_MS + 100, &[observe(0, 5), observe(2, 7)]);
    sim.batch(START_MS + 200, &[observe(0, 6)]);
    sim.batch(START_MS + 1_000, &[]);
    sim.batch(START_MS + 2_000, &[]);
    let vectors: Vec<_> = sim.bodies().into_iter().map(|body| body.timestamps).collect();
    assert_eq!(vectors, [vec![None; 3], vec![Some(6), None, Some(7)], vec![None; 3]]);
}

#[test]
fn readings_are_refused_for_a_stated_reason() {
    let mut sim = Sim::new(1_000);
    sim.batch(START_MS, &[observe(0, 10)]);
    let stolen = Observation { member_index: 1, ..Observation::sign(&key(0), &organism(), 0, 20) };
    let unsigned = Observation { member_index: 1, time_ms: 20, signature: None };
    let elsewhere = Observation::sign(&key(1), &UniqueId::hash(b"another almanac"), 1, 20);
    let commands = [
        AlmanacCommand::Observe(stolen),
        AlmanacCommand::Observe(unsigned),
        AlmanacCommand::Observe(elsewhere),
        observe(3, 20),
        observe(0, 10),
        observe(0, 9),
        observe(0, 11),
        observe(0, 12),
        observe(0, 13),
        observe(0, 14),
        observe(0, 15),
    ];
    let codes = sim.batch(START_MS + 1, &commands);
    let expected = ["bad_signature", "bad_signature", "bad_signature", "unknown_member", "not_newer", "not_newer"];
    assert_eq!(codes.iter().map(Option::as_deref).collect::<Vec<_>>()[..6], expected.map(Some));
    assert_eq!(codes[6..], [None, None, None, None, Some("too_many_observations".to_owned())]);
    assert_eq!(sim.machine.decide(&sim.cx, b"junk").unwrap_err().code, "malformed");
}

#[test]
fn a_host_that_vouches_needs_no_signatures() {
    let params = AlmanacParams::new(1_000).unwrap();
    let machine = AlmanacMachine::new(params, organism(), Observers::Authenticated { members: 2 });
    let cx = Context { height: 1, time_ms: START_MS, tick: 0 };
    let command = |member_index| AlmanacCommand::Observe(Observation { member_index, time_ms: 1, signature: None });
    assert_eq!(machine.decide(&cx, &command(1).to_bytes()).unwrap().len(), 1);
    assert_eq!(machine.decide(&cx, &command(2).to_bytes()).unwrap_err().code, "unknown_member");
}

#[test]
fn readers_convert_between_ticks_and_time() {
    let mut sim = Sim::new(1_000);
    for n in 0..10 {
        sim.batch(1_700_000_000_000 + n * 1_000 + 30, &[]);
    }
    let ticks = sim.fold();
    let latest = ticks.latest().unwrap();
    assert_eq!((latest.tick, latest.time_ms, latest.index), (AlmanacTick(10), 1_700_000_009_030, 9));
    assert_eq!(ticks.get(AlmanacTick(1)).unwrap().time_ms, 1_700_000_000_030);
    assert!(ticks.get(AlmanacTick(0)).is_none() && ticks.get(AlmanacTick(11)).is_none());
    assert!(ticks.reached(AlmanacTick(0)) && ticks.reached(AlmanacTick(10)) && !ticks.reached(AlmanacTick(11)));
    assert_eq!(ticks.at_time_ms(1_700_000_004_029).unwrap().tick, AlmanacTick(4));
    assert_eq!(ticks.at_time_ms(1_700_000_004_030).unwrap().tick, AlmanacTick(5));
    assert!(ticks.at_time_ms(1_700_000_000_000).is_none());
    assert_eq!(ticks.time_of_ms(AlmanacTick(12)), Some(1_700_000_011_000));
    assert_eq!(ticks.time_of_ms(AlmanacTick(3)), Some(1_700_000_002_030));
    assert_eq!(ticks.expected_at_ms(1_700_000_011_500), Some(AlmanacTick(12)));
    assert_eq!(ticks.ticks_for_ms(1_001), 2);
}

#[test]
fn the_fold_is_bounded_and_may_start_anywhere() {
    let mut sim = Sim::new(1_000);
    for n in 0..50 {
        sim.batch(START_MS + n * 1_000, &[]);
    }
    let mut ticks = Ticks::with_retain(AlmanacParams::new(1_000).unwrap(), 8);
    for entry in &sim.entries[20..] {
        ticks.apply(entry).unwrap();
    }
    assert_eq!(ticks.iter().count(), 8);
    assert_eq!(ticks.time_of_ms(AlmanacTick(30)), None, "forgotten, not guessed");
    let gap = ticks.apply(&sim.entries[0]).unwrap_err();
    assert!(matches!(gap, FoldError::Sequence { last: 50, found: 1, .. }), "{gap}");
    assert_eq!(ticks.latest().unwrap().tick, AlmanacTick(50));
}

#[test]
fn golden_bytes() {
    let body = AlmanacTickBody { seq: 300, timestamps: vec![Some(1_700_000_000_250), None] };
    assert_eq!(hex::encode(body.to_bytes()), "01ac020201fad195ffbc3100");
    // The signature was made by an independent implementation over domain ‖ 32 × 0xab ‖ 0001 ‖ 0000018bcfe568fa.
    let organism = UniqueId::from_bytes([0xab; 32]);
    let command = AlmanacCommand::Observe(Observation::sign(&key(1), &organism, 1, 1_700_000_000_250));
    let signature = "a311ed59f061e4d066c93fae8a888303758cd5b912b4504b1af16ba484e12b0f8d79ffd9591b05e40460cf275eebf7c915644d2fe4f7b604f8e5c1688e705708";
    assert_eq!(hex::encode(command.to_bytes()), format!("010001fad195ffbc3101{signature}"));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic_and_never_change_anything(bytes in proptest::collection::vec(any::<u8>(), 0..300), time_ms in any::<u64>()) {
        let mut sim = Sim::new(1_000);
        sim.batch(START_MS, &[]);
        let before = sim.machine.clone();
        let cx = Context { height: 9, time_ms, tick: 1 };
        prop_assert!(sim.machine.decide(&cx, &bytes).is_err());
        let _ = (sim.machine.round(&cx), sim.machine.wake_at_ms(&cx));
        prop_assert_eq!(&before, &sim.machine);
        let mut entry = sim.entries[0].clone();
        entry.body = bytes;
        sim.machine.evolve(&entry);
        let _ = Ticks::new(AlmanacParams::new(1_000).unwrap()).apply(&entry);
    }

    #[test]
    fn sequences_grow_by_one_at_distinct_grid_cells(gaps in proptest::collection::vec(0..5_000u64, 1..60)) {
        let mut sim = Sim::new(1_000);
        let mut now = START_MS;
        for gap in gaps {
            now += gap;
            sim.batch(now, &[observe(0, now)]);
        }
        let ticks = sim.fold();
        for (expected, record) in (1..).zip(ticks.iter()) {
            prop_assert_eq!(record.tick.0, expected);
        }
        let cells: std::collections::BTreeSet<_> = ticks.iter().map(|record| record.time_ms / 1_000).collect();
        prop_assert_eq!(cells.len(), ticks.iter().count());
        let mut folded = AlmanacMachine::new(
            AlmanacParams::new(1_000).unwrap(), organism(),
            Observers::Keys((0..3).map(|seed| key(seed).verifying_key().to_bytes()).collect()),
        );
        sim.entries.iter().for_each(|entry| folded.evolve(entry));
        prop_assert_eq!(folded, sim.machine);
    }

    #[test]
    fn a_restored_machine_is_the_machine(gaps in proptest::collection::vec((0..2_500u64, 0..3u8, any::<bool>()), 1..40), cut in 0..120usize) {
        let mut sim = Sim::new(1_000);
        let mut now = START_MS;
        for (gap, member, reads) in gaps {
            now += gap;
            let commands = reads.then(|| observe(member, now));
            sim.batch(now, commands.as_slice());
        }
        let cut = cut % (sim.entries.len() + 1);
        let mut before = Sim::new(1_000).machine;
        sim.entries[..cut].iter().for_each(|entry| before.evolve(entry));
        let mut restored = Sim::new(1_000).machine;
        restored.restore(&before.snapshot()).unwrap();
        prop_assert_eq!(&restored, &before);
        prop_assert_eq!(restored.snapshot(), before.snapshot());
        sim.entries[cut..].iter().for_each(|entry| restored.evolve(entry));
        prop_assert_eq!(&restored, &sim.machine);
        // A reader that starts from the state counts on, and knows what it missed.
        let mut reader = Ticks::new(AlmanacParams::new(1_000).unwrap());
        reader.start_from(&before.snapshot()).unwrap();
        prop_assert!(reader.reached(AlmanacTick(before.last_seq())));
        for entry in &sim.entries[cut..] {
            reader.apply(entry).unwrap();
        }
        prop_assert!(reader.reached(AlmanacTick(sim.machine.last_seq())));
        let mut loaded = Ticks::new(AlmanacParams::new(1_000).unwrap());
        loaded.load(&reader.save()).unwrap();
        prop_assert_eq!(loaded.save(), reader.save());
        prop_assert_eq!(loaded.latest(), reader.latest());
    }

    #[test]
    fn arbitrary_snapshots_are_refused_or_mean_themselves(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
        let mut machine = Sim::new(1_000).machine;
        for bytes in [bytes.clone(), [&[1, 3], bytes.as_slice()].concat()] {
            if machine.restore(&bytes).is_ok() {
                prop_assert_eq!(machine.snapshot(), bytes);
            }
        }
    }
}

#[test]
fn the_snapshot_is_pinned() {
    let mut sim = Sim::new(1_000);
    sim.batch(START_MS, &[observe(1, 300)]);
    sim.batch(START_MS + 1, &[observe(2, 5), observe(2, 6)]);
    let snapshot = sim.machine.snapshot();
    assert_eq!(hex::encode(&snapshot), "0103000000 01ac020000 0106010602 0101fad195ffbc31".replace(' ', ""));
    let mut other =
        AlmanacMachine::new(AlmanacParams::new(1_000).unwrap(), organism(), Observers::Authenticated { members: 4 });
    let refused = other.restore(&snapshot).unwrap_err();
    assert!(
        matches!(&refused, SnapshotError::Contradiction(what) if what.contains('3') && what.contains('4')),
        "{refused}"
    );
}
