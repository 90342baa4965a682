//! Extensions of grants: every end is moved before the market is told, and a crash anywhere comes to the same end.

use coalition_compute::*;
use compute_bridge::journal::{Outcome, Stage};

use super::harness::*;
use super::world::*;

/// A served grant of ten minutes.
async fn served(world: &World) -> Requester {
    world.card().await;
    world.serving(1, 600).await
}

async fn answered(world: &World, requester: &Requester, number: usize) -> GrantRecord {
    eventually("the answer", || {
        world.market.record(&requester.id()).filter(|record| record.extras.answered.len() >= number)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_is_longer_once_everything_that_ends_it_was_moved() {
    let (world, backend) = fable();
    let bridge = world.start();
    let requester = served(&world).await;
    let before = world.market.record(&requester.id()).unwrap().grant;
    for number in 1..=2_u32 {
        requester.extend(&world.market, number, 120);
        let record = answered(&world, &requester, number as usize).await;
        let longer = before.valid_to_ms + u64::from(number) * 120_000;
        assert_eq!((record.grant.valid_to_ms, record.extras.extended_sec), (longer, number * 120));
        assert_eq!(backend.ends.lock().unwrap().values().copied().collect::<Vec<_>>(), [longer]);
        eventually("the journal to know", || {
            let state = bridge.journal.get(&requester.id())?;
            let is_back = matches!(state.stage, Stage::Replied { .. }) && state.grant.valid_to_ms == longer;
            (is_back && state.grant == record.grant).then_some(())
        })
        .await;
    }
    requester.end(&world.market);
    assert_eq!(world.ended(&requester).await, GrantEnd::Logged(LogEnd::EndedByRequester));
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_cannot_says_so_and_the_grant_ends_when_it_would_have() {
    let (world, backend) = fable();
    *backend.fixed.lock().unwrap() = true;
    let bridge = world.start();
    let requester = served(&world).await;
    let before = world.market.record(&requester.id()).unwrap().grant;
    requester.extend(&world.market, 1, 120);
    let record = answered(&world, &requester, 1).await;
    let declined = ExtensionAnswer::Declined(DeclineReason::CannotExtend);
    assert_eq!((record.extras.answered[0].answer, &record.grant), (declined, &before));
    // It runs on, and may be asked again.
    *backend.fixed.lock().unwrap() = false;
    requester.extend(&world.market, 2, 60);
    let record = answered(&world, &requester, 2).await;
    assert_eq!(record.grant.valid_to_ms, before.valid_to_ms + 60_000);
    assert_eq!(world.market.count("compute.extension_answered"), 2);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_in_the_middle_of_an_extension_ends_the_grant() {
    let (world, backend) = fable();
    let bridge = world.start();
    let requester = served(&world).await;
    *backend.visible.lock().unwrap() = false;
    requester.extend(&world.market, 1, 120);
    eventually("the extension to be under way", || {
        let state = bridge.journal.get(&requester.id())?;
        matches!(state.stage, Stage::Extending { .. }).then_some(())
    })
    .await;
    requester.end(&world.market);
    *backend.visible.lock().unwrap() = true;
    assert_eq!(world.ended(&requester).await, GrantEnd::Logged(LogEnd::EndedByRequester));
    assert_eq!(bridge.closed(&requester).await, Outcome::Logged(LogEnd::EndedByRequester));
    assert_eq!(world.market.count("compute.extension_answered"), 0);
    eventually("nothing to be left", || no_instances(&backend).then_some(())).await;
    bridge.stop().await;
}

/// An extension during which power is lost after `bytes` of the journal, then a second life.
async fn extended_with_power_loss(bytes: u64) {
    let (world, backend) = fable();
    let first = world.start_losing_power(Some(bytes));
    let requester = served(&world).await;
    let before = world.market.record(&requester.id()).unwrap().grant;
    requester.extend(&world.market, 1, 120);
    eventually("the power to be lost", || first.is_over().then_some(())).await;
    first.kill().await;
    let second = world.start();
    let record = answered(&world, &requester, 1).await;
    let longer = before.valid_to_ms + 120_000;
    assert_eq!(record.grant.valid_to_ms, longer, "power lost after {bytes} bytes");
    assert_eq!(backend.ends.lock().unwrap().values().copied().collect::<Vec<_>>(), [longer]);
    eventually("the journal to know", || {
        let state = second.journal.get(&requester.id())?;
        (matches!(state.stage, Stage::Replied { .. }) && state.grant.valid_to_ms == longer).then_some(())
    })
    .await;
    assert_eq!(world.market.count("compute.extension_answered"), 1, "power lost after {bytes} bytes");
    assert_eq!(*backend.created.lock().unwrap(), 1, "the machine that ran runs on");
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn power_loss_at_every_record_of_an_extension_comes_to_the_same_end() {
    let (world, _backend) = fable();
    let bridge = world.start();
    let requester = served(&world).await;
    requester.extend(&world.market, 1, 120);
    answered(&world, &requester, 1).await;
    eventually("the extension to be closed", || {
        let state = bridge.journal.get(&requester.id())?;
        matches!(state.stage, Stage::Replied { .. }).then_some(())
    })
    .await;
    bridge.kill().await;
    let file = std::fs::read(world.path().join("grants.journal")).unwrap();
    let mut ends = vec![4];
    while let Some(at) = ends.last().copied().filter(|at| *at < file.len()) {
        let length = u32::from_be_bytes(file[at..at + 4].try_into().unwrap()) as usize;
        ends.push(at + 8 + length + 32);
    }
    // Granted, opening, provisioning, running, replied; then extending, moved, extended.
    assert_eq!(ends.len(), 9);
    let cuts = ends[5..].windows(2).flat_map(|record| [record[0], record[1] - 1]).map(|cut| cut as u64 - 4);
    futures::future::join_all(cuts.map(extended_with_power_loss)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_journal_in_the_middle_of_an_extension_loses_nothing() {
    let (world, backend) = fable();
    let bridge = world.start();
    let requester = served(&world).await;
    bridge.kill().await;
    requester.extend(&world.market, 1, 120);
    std::fs::remove_file(world.path().join("grants.journal")).unwrap();
    let bridge = world.start();
    let record = answered(&world, &requester, 1).await;
    assert_eq!(record.extras.extended_sec, 120);
    assert_eq!(backend.ends.lock().unwrap().values().copied().collect::<Vec<_>>(), [record.grant.valid_to_ms]);
    bridge.stop().await;
}
