//! The journal: what is on disk after any crash is a prefix of what happened, damage is named, and nothing else survives.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use coalition::AlmanacTick;
use coalition_compute::{LogEnd, RefusalReason};
use coalition_host::types::IsolationLevel;
use compute_bridge::backend::{FailureKind, InstanceName, ProvisionedInstance};
use compute_bridge::journal::state::AttemptFailure;
use compute_bridge::journal::{Event, GrantState, Journal, JournalError, Next, Outcome, Record, Stage};
use proptest::prelude::*;

use super::harness::{USED, grant_number};

fn instance(n: u8) -> InstanceName {
    InstanceName::try_from(format!("{n:032x}")).unwrap()
}

fn running(n: u8) -> Event {
    Event::Running {
        instance: Box::new(ProvisionedInstance {
            backend: "metal".parse().unwrap(),
            name: instance(n),
            host: "127.0.0.1".into(),
            port: 4_022,
            user: "root".into(),
            isolation: IsolationLevel::RootNamespaces,
            isolation_text: "namespaces".into(),
        }),
        sealed_receipt: vec![n; 300],
    }
}

fn provisioning(n: u8) -> Event {
    Event::Provisioning { backend: "metal".parse().unwrap(), instance: instance(n) }
}

/// Whole lives of a grant, without their first event.
fn lives() -> Vec<Vec<Event>> {
    let stopped = Event::Stopped { usage: USED, to: AlmanacTick(9) };
    let failed = Event::AttemptFailed(AttemptFailure::Backend { kind: FailureKind::Capacity, started: false });
    let logged = |end| Event::Closed(Outcome::Logged(end));
    vec![
        vec![
            Event::Opening,
            provisioning(1),
            running(1),
            Event::Replied,
            Event::Stopping(LogEnd::Deadline),
            Event::Metered(USED),
            stopped.clone(),
            logged(LogEnd::Deadline),
        ],
        vec![
            Event::Opening,
            provisioning(1),
            failed.clone(),
            Event::Refusing(RefusalReason::NoCapacity),
            Event::Closed(Outcome::Refused(RefusalReason::NoCapacity)),
        ],
        vec![
            Event::Opening,
            provisioning(1),
            failed,
            provisioning(2),
            Event::AttemptFailed(AttemptFailure::Interrupted),
            Event::Opening,
            provisioning(3),
            Event::Stopping(LogEnd::ProvisioningFailed),
            stopped.clone(),
            logged(LogEnd::ProvisioningFailed),
        ],
        vec![Event::Stopping(LogEnd::EndedByRequester), stopped, Event::Closed(Outcome::Lapsed)],
    ]
}

fn records(number: u8, life: &[Event]) -> Vec<Record> {
    let grant = grant_number(number, "metal", 60_000);
    let id = grant.request_id;
    let events = std::iter::once(Event::Granted(Box::new(grant))).chain(life.iter().cloned());
    events.map(|event| Record { grant: id, at_ms: 1, event }).collect()
}

fn write(dir: &Path, records: &[Record]) -> Vec<u64> {
    let journal = Journal::open(dir).unwrap();
    let file = dir.join("grants.journal");
    records
        .iter()
        .map(|record| {
            journal.append_blocking(record).unwrap();
            std::fs::metadata(&file).unwrap().len()
        })
        .collect()
}

fn states(dir: &Path) -> Result<Vec<GrantState>, JournalError> {
    let journal = Journal::open(dir)?;
    let mut all = Vec::new();
    journal.for_each(|_, state| all.push(state.clone()));
    Ok(all)
}

/// The fold of these records, without any file.
fn folded(records: &[Record]) -> Vec<GrantState> {
    let mut all = std::collections::BTreeMap::new();
    for record in records {
        let next = match &record.event {
            Event::Granted(grant) => GrantState::new(grant.as_ref().clone()),
            event => GrantState::apply(&all[&record.grant], event).unwrap(),
        };
        all.insert(record.grant, next);
    }
    all.into_values().collect()
}

#[test]
fn every_life_ends_with_nothing_to_do_and_every_step_before_has_a_next_one() {
    for life in lives() {
        let records = records(0, &life);
        for upto in 1..=records.len() {
            let state = folded(&records[..upto]).remove(0);
            assert_eq!(state.next() == Next::Nothing, upto == records.len(), "{:?}", state.stage);
        }
    }
}

#[test]
fn intent_comes_first_so_that_a_name_on_a_backend_is_always_explained() {
    let records = records(0, &lives()[0]);
    let stage = |upto: usize| folded(&records[..upto]).remove(0);
    // From the intent on until the instance is confirmed gone, the journal names it.
    for upto in 3..=7 {
        assert_eq!(stage(upto).instance().map(|(_, name)| name.clone()), Some(instance(1)), "after record {upto}");
    }
    assert!(stage(2).instance().is_none() && stage(8).instance().is_none());
}

#[test]
fn a_cut_at_every_byte_leaves_exactly_the_records_before_it() {
    for life in lives() {
        let dir = tempfile::tempdir().unwrap();
        let records = records(0, &life);
        let ends = write(dir.path(), &records);
        let whole = std::fs::read(dir.path().join("grants.journal")).unwrap();
        for cut in 0..=whole.len() {
            let crashed = tempfile::tempdir().unwrap();
            std::fs::write(crashed.path().join("grants.journal"), &whole[..cut]).unwrap();
            let survived = ends.iter().filter(|end| **end <= cut as u64).count();
            assert_eq!(states(crashed.path()).unwrap(), folded(&records[..survived]), "cut at byte {cut}");
        }
    }
}

#[test]
fn a_tail_of_zeros_is_a_torn_write() {
    let dir = tempfile::tempdir().unwrap();
    let records = records(0, &lives()[0]);
    let ends = write(dir.path(), &records);
    let path = dir.path().join("grants.journal");
    let whole = std::fs::read(&path).unwrap();
    let start = usize::try_from(ends[ends.len() - 2]).unwrap();
    for kept in 0..whole.len() - start - 1 {
        let mut torn = whole.clone();
        torn[start + kept..].fill(0);
        if torn == whole {
            continue;
        }
        let crashed = tempfile::tempdir().unwrap();
        std::fs::write(crashed.path().join("grants.journal"), &torn).unwrap();
        let found = states(crashed.path()).unwrap();
        assert_eq!(found, folded(&records[..records.len() - 1]), "zeros from byte {kept}");
    }
}

#[test]
fn damage_anywhere_before_the_tail_is_named_and_never_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let records = records(0, &lives()[0]);
    let ends = write(dir.path(), &records);
    let path = dir.path().join("grants.journal");
    let whole = std::fs::read(&path).unwrap();
    let last = usize::try_from(ends[ends.len() - 2]).unwrap();
    for at in (0..last).step_by(3) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x40;
        std::fs::write(&path, &damaged).unwrap();
        match states(dir.path()) {
            Err(JournalError::Damaged { offset, path: named, .. }) => {
                assert!(offset <= at as u64 && named == path);
                let record_start = ends.iter().rev().find(|end| **end <= at as u64).copied().unwrap_or(4);
                assert!(at < 4 || offset == record_start, "byte {at} named as {offset}, not {record_start}");
            }
            other => panic!("a changed byte {at} was answered with {other:?}"),
        }
        // The evidence is left as it was found.
        assert_eq!(std::fs::read(&path).unwrap(), damaged);
    }
    // Records exchanged, repeated or dropped are damage as well.
    let parts: Vec<&[u8]> = std::iter::once(4)
        .chain(ends.iter().copied())
        .collect::<Vec<_>>()
        .windows(2)
        .map(|w| &whole[usize::try_from(w[0]).unwrap()..usize::try_from(w[1]).unwrap()])
        .collect();
    for order in [vec![0, 2, 1, 3], vec![0, 1, 1, 2], vec![0, 2, 3]] {
        let bytes: Vec<u8> =
            b"CBJ1".iter().copied().chain(order.iter().flat_map(|i| parts[*i].iter().copied())).collect();
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(states(dir.path()), Err(JournalError::Damaged { .. })), "{order:?}");
    }
}

#[test]
fn the_file_is_private_and_forgets_receipts_when_it_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("grants.journal");
    write(dir.path(), &records(0, &lives()[0]));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let contains = |needle: &[u8]| std::fs::read(&path).unwrap().windows(needle.len()).any(|w| w == needle);
    assert!(contains(&[1; 300]));
    let before = states(dir.path()).unwrap();
    assert!(!contains(&[1; 300]), "a delivered receipt stays on disk");
    assert_eq!(states(dir.path()).unwrap(), before);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_full_disk_stops_the_journal_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    let records = records(0, &lives()[0]);
    journal.append_blocking(&records[0]).unwrap();
    journal.lose_power_after(5);
    let error = journal.append_blocking(&records[1]).unwrap_err();
    assert!(matches!(error, JournalError::Io { .. }) && error.to_string().contains("the bridge stops"), "{error}");
    assert!(matches!(journal.append_blocking(&records[1]), Err(JournalError::Stopped)));
    // Nothing of the failed record counts, here or after a restart.
    assert_eq!(journal.get(&records[0].grant).unwrap().stage, Stage::Seen);
    drop(journal);
    assert_eq!(states(dir.path()).unwrap(), folded(&records[..1]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Several grants interleaved, a crash at any byte, twice: the second life goes on exactly where the first was cut.
    #[test]
    fn interleaved_lives_survive_two_crashes(picks in proptest::collection::vec(0_usize..4, 1..5), order in any::<u64>(), cut in 0.0_f64..1.0) {
        let mut queues: Vec<Vec<Record>> = picks.iter().enumerate()
            .map(|(i, life)| records(u8::try_from(i).unwrap(), &lives()[*life])).collect();
        let mut all = Vec::new();
        let mut seed = order;
        while queues.iter().any(|q| !q.is_empty()) {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let count = queues.len();
            let queue = &mut queues[usize::try_from(seed >> 33).unwrap() % count];
            if !queue.is_empty() { all.push(queue.remove(0)); }
        }
        let dir = tempfile::tempdir().unwrap();
        let ends = write(dir.path(), &all);
        let path = dir.path().join("grants.journal");
        let whole = std::fs::read(&path).unwrap();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, clippy::float_arithmetic)]
        let at = (cut * whole.len() as f64) as usize;
        std::fs::write(&path, &whole[..at]).unwrap();
        let survived = ends.iter().filter(|end| **end <= at as u64).count();
        prop_assert_eq!(states(dir.path()).unwrap(), folded(&all[..survived]));
        // The rest is written again by the second life, on the compacted file.
        write(dir.path(), &all[survived..]);
        prop_assert_eq!(states(dir.path()).unwrap(), folded(&all));
    }

    /// No sequence of events, however wrong, reaches a state without a next step or loses an instance.
    #[test]
    fn wrong_orders_are_refused_and_change_nothing(steps in proptest::collection::vec((0_usize..4, 0_usize..10), 1..40)) {
        let mut state = GrantState::new(grant_number(0, "metal", 60_000));
        for (life, step) in steps {
            let lives = lives();
            let Some(event) = lives[life].get(step) else { continue };
            let before = state.clone();
            match state.apply(event) {
                Ok(next) => {
                    // An instance leaves the books only by being undone or confirmed gone.
                    let gone = matches!(event, Event::AttemptFailed(_) | Event::Stopped { .. });
                    prop_assert!(before.instance().is_none() || next.instance().is_some() || gone);
                    prop_assert!(!before.is_closed());
                    state = next;
                }
                Err(_) => prop_assert_eq!(&state, &before),
            }
        }
    }
}
