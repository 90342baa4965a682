//! The provider loop on the committee's real machine: every way a grant can go, crashes at every record, privacy.

use std::sync::Arc;

use coalition_compute::{GrantEnd, GrantStage, LogEnd, RefusalReason, RequestStage, UsageMetrics};
use compute_bridge::backend::{Backend, FailureKind, InstanceName};
use compute_bridge::backends::BareMetalBackend;
use compute_bridge::fleet::Fleet;
use compute_bridge::journal::{Journal, Outcome};

use super::harness::*;
use super::world::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_request_becomes_a_machine_and_a_certified_log() {
    let (world, backend) = fable();
    let bridge = world.start();
    world.card().await;
    let requester = world.ask(1, 600);
    let receipt = world.receipt(&requester).await;
    assert_eq!((receipt.instance_port, receipt.grant_id), (2_222, requester.id()));
    world.stage(&requester, "serving", |stage| *stage == GrantStage::Serving).await;
    assert_eq!(backend.running.lock().unwrap().len(), 1);
    requester.end(&world.market);
    assert_eq!(world.ended(&requester).await, GrantEnd::Logged(LogEnd::EndedByRequester));
    assert_eq!(bridge.closed(&requester).await, Outcome::Logged(LogEnd::EndedByRequester));
    let record = world.market.record(&requester.id()).unwrap();
    assert_eq!((record.usage, record.log_count, record.final_log), (USED, 1, true));
    assert!(no_instances(&backend));
    let earned = world.market.read(|fold| fold.earnings(provider()));
    assert_eq!((earned.grants_logged, earned.usage), (1, USED));
    let snapshot = bridge.status.snapshot(world.market.as_ref(), &bridge.journal, &bridge.fleet);
    assert_eq!((snapshot.grants["closed"], snapshot.backends[0].attempts["ok"]), (1, 1));
    assert!(snapshot.card_live && !snapshot.card_stale);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deadline_and_an_exit_are_logged_as_what_they_are() {
    let (world, backend) = fable();
    let bridge = world.start();
    world.card().await;
    let short = world.ask(1, 1);
    assert_eq!(world.ended(&short).await, GrantEnd::Logged(LogEnd::Deadline));
    *backend.exits.lock().unwrap() = Some(LogEnd::Exited);
    let exits = world.ask(2, 600);
    assert_eq!(world.ended(&exits).await, GrantEnd::Logged(LogEnd::Exited));
    *backend.exits.lock().unwrap() = None;
    let lost = world.ask(3, 600);
    world.receipt(&lost).await;
    backend.running.lock().unwrap().clear();
    assert_eq!(world.ended(&lost).await, GrantEnd::Logged(LogEnd::BackendLost));
    bridge.stop().await;
}

fn another_peer() -> coalition_universe::PeerId {
    coalition_universe::NodeKey::from_bytes([9; 32]).peer_id()
}

/// What is refused, and with which reason.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_served_is_given_back_with_its_reason() {
    let (world, backend) = fable();
    let bridge = world.start();
    world.card().await;
    type Change = fn(&mut coalition_shuffle::WorkloadSpec);
    let cases: [(u8, Change, RefusalReason); 9] = [
        (1, |w| w.image_hash = coalition::UniqueId::hash(b"another image"), RefusalReason::EnvelopeMismatch),
        (2, |w| w.cpu_millicores = 501, RefusalReason::EnvelopeMismatch),
        (3, |w| w.ram_mib = 65, RefusalReason::EnvelopeMismatch),
        (4, |w| w.requested_region = Some("mars".into()), RefusalReason::EnvelopeMismatch),
        (5, |w| w.image_size_bytes -= 1, RefusalReason::ImageMismatch),
        (6, |w| w.disk_mib = 100_000, RefusalReason::NoCapacity),
        (7, |w| w.image_size_bytes = 2 << 30, RefusalReason::ImageTooLarge),
        (
            8,
            |w| w.image_pointer = format!("{0}@127.0.0.1:9 {0}@127.0.0.1:8", another_peer()).into_bytes(),
            RefusalReason::ImageUnavailable,
        ),
        (9, |w| w.image_pointer = b"nowhere".to_vec(), RefusalReason::ImageUnavailable),
    ];
    for (seed, change, reason) in cases {
        let requester = requester(&world.market, seed, IMAGE, 600, change);
        requester.submit(&world.market, &world.channel);
        assert_eq!(bridge.closed(&requester).await, Outcome::Refused(reason), "case {seed}");
        // Given back means open to others.
        let request = world.market.read(|fold| fold.view().state().requests().get(&requester.id()).cloned()).unwrap();
        assert_eq!(request.stage, RequestStage::Open);
    }
    let sealed = requester(&world.market, 20, IMAGE, 600, |_| {});
    sealed.submit(&world.market, &MemoryChannel::default());
    assert_eq!(bridge.closed(&sealed).await, Outcome::Refused(RefusalReason::EnvelopeUnavailable));
    *backend.provision_fails.lock().unwrap() = Some((FailureKind::Capacity, false));
    let full = world.ask(21, 600);
    assert_eq!(bridge.closed(&full).await, Outcome::Refused(RefusalReason::NoCapacity));
    *backend.provision_fails.lock().unwrap() = Some((FailureKind::Auth, false));
    let locked = world.ask(22, 600);
    assert_eq!(bridge.closed(&locked).await, Outcome::Refused(RefusalReason::BackendFailed));
    *backend.provision_fails.lock().unwrap() = Some((FailureKind::TooLarge, false));
    let large = world.ask(23, 600);
    assert_eq!(bridge.closed(&large).await, Outcome::Refused(RefusalReason::ImageTooLarge));
    assert_eq!(*backend.created.lock().unwrap(), 3, "nothing was created for what was refused before");
    let refusals = bridge.status.snapshot(world.market.as_ref(), &bridge.journal, &bridge.fleet).refusals;
    assert_eq!(refusals["envelope_mismatch"], 4);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_started_workload_that_failed_is_logged_with_empty_usage() {
    let (world, backend) = fable();
    *backend.provision_fails.lock().unwrap() = Some((FailureKind::Fatal, true));
    let bridge = world.start();
    world.card().await;
    let requester = world.ask(1, 600);
    assert_eq!(world.ended(&requester).await, GrantEnd::Logged(LogEnd::ProvisioningFailed));
    assert_eq!(world.market.record(&requester.id()).unwrap().usage, UsageMetrics::default());
    assert!(no_instances(&backend));
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blindness_of_the_bridge_ends_nothing() {
    let (world, backend) = fable();
    let bridge = world.start();
    world.card().await;
    let requester = world.ask(1, 600);
    world.receipt(&requester).await;
    *backend.visible.lock().unwrap() = false;
    eventually("the card to sell nothing", || {
        let card = world.market.read(|fold| fold.view().state().providers().get(&provider())?.card.clone())?;
        (card.card.offers[0].capabilities.max_instances == 0).then_some(())
    })
    .await;
    assert_eq!(bridge.journal.get(&requester.id()).unwrap().stage.name(), "replied");
    assert_eq!(backend.running.lock().unwrap().len(), 1);
    requester.end(&world.market);
    eventually("the bridge to try to stop it twice", || (*backend.unheard.lock().unwrap() >= 2).then_some(())).await;
    assert_eq!(bridge.journal.get(&requester.id()).unwrap().stage.name(), "stopping", "unseen is not gone");
    *backend.visible.lock().unwrap() = true;
    assert_eq!(world.ended(&requester).await, GrantEnd::Logged(LogEnd::EndedByRequester));
    assert!(no_instances(&backend));
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_never_heard_of_again_is_logged_as_lost_with_the_usage_seen() {
    let (world, backend) = fable();
    let bridge = world.start();
    world.card().await;
    let requester = world.serving(1, 3).await;
    *backend.visible.lock().unwrap() = false;
    assert_eq!(world.ended(&requester).await, GrantEnd::Logged(LogEnd::BackendLost));
    assert_eq!(world.market.record(&requester.id()).unwrap().usage, SO_FAR);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_market_delays_the_log_and_loses_nothing() {
    let (world, _backend) = fable();
    let bridge = world.start();
    world.card().await;
    let requester = world.ask(1, 2);
    world.receipt(&requester).await;
    world.market.set_online(false);
    eventually("the log to be due", || {
        (bridge.journal.get(&requester.id())?.stage.name() == "log_pending").then_some(())
    })
    .await;
    bridge.kill().await;
    world.market.set_online(true);
    let bridge = world.start();
    assert_eq!(bridge.closed(&requester).await, Outcome::Logged(LogEnd::Deadline));
    assert_eq!(world.market.record(&requester.id()).unwrap().usage, USED);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_of_a_retired_market_still_ends_and_leaves_nothing_running() {
    let (world, backend) = fable();
    let bridge = world.start();
    world.card().await;
    let requester = world.ask(1, 2);
    world.receipt(&requester).await;
    world.market.retire();
    assert_eq!(bridge.closed(&requester).await, Outcome::Lapsed, "nobody can take its log any more");
    assert!(backend.running.lock().unwrap().is_empty());
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_bridge_goes_on_where_it_stood_and_keeps_healthy_work() {
    let (world, backend) = fable();
    let bridge = world.start();
    world.card().await;
    let requester = world.serving(1, 600).await;
    let before = backend.running.lock().unwrap().clone();
    bridge.kill().await;
    let bridge = world.start();
    world.card().await;
    // A stray that appeared with the new bridge marks the time: once the sweep destroys it, the grace period is over for all.
    let stray = InstanceName::try_from("f".repeat(32)).unwrap();
    backend.running.lock().unwrap().insert(stray.clone());
    eventually("the sweep", || backend.terminated.lock().unwrap().contains(&stray).then_some(())).await;
    assert_eq!(*backend.running.lock().unwrap(), before);
    assert_eq!(world.channel.replies.lock().unwrap()[&requester.id()].len(), 1, "one receipt, sent once");
    requester.end(&world.market);
    assert_eq!(world.ended(&requester).await, GrantEnd::Logged(LogEnd::EndedByRequester));
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_journal_adopts_what_serves_and_destroys_what_nobody_explains() {
    let (world, backend) = fable();
    let bridge = world.start();
    world.card().await;
    let requester = world.serving(1, 600).await;
    let served = backend.running.lock().unwrap().clone();
    bridge.kill().await;
    std::fs::remove_file(world.path().join("grants.journal")).unwrap();
    let stray = InstanceName::try_from("f".repeat(32)).unwrap();
    backend.running.lock().unwrap().insert(stray.clone());
    let bridge = world.start();
    eventually("the stray to be destroyed", || (*backend.running.lock().unwrap() == served).then_some(())).await;
    assert!(backend.terminated.lock().unwrap().contains(&stray));
    requester.end(&world.market);
    assert_eq!(world.ended(&requester).await, GrantEnd::Logged(LogEnd::EndedByRequester));
    assert!(no_instances(&backend));
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_journal_waits_for_a_machine_that_cannot_be_seen() {
    let (hidden, open) = (FakeBackend::new("metal"), FakeBackend::in_region("spare", "local"));
    let world = World::new(vec![Arc::clone(&hidden) as _, Arc::clone(&open) as _]);
    let bridge = world.start();
    world.card().await;
    let (serving, unstated) = (world.ask(1, 600), world.ask(2, 600));
    world.receipt(&serving).await;
    world.stage(&serving, "serving", |stage| *stage == GrantStage::Serving).await;
    world.receipt(&unstated).await;
    bridge.kill().await;
    let running = |backend: &FakeBackend| backend.running.lock().unwrap().len();
    let before = running(&hidden) + running(&open);
    assert_eq!(before, 2);
    let name = InstanceName::derive(&provider(), &serving.id(), 0);
    let (held, seen) = if hidden.running.lock().unwrap().contains(&name) { (&hidden, &open) } else { (&open, &hidden) };
    std::fs::remove_file(world.path().join("grants.journal")).unwrap();
    *held.visible.lock().unwrap() = false;
    let stray = InstanceName::try_from("f".repeat(32)).unwrap();
    seen.running.lock().unwrap().insert(stray.clone());
    let bridge = world.start();
    eventually("the sweep of the other", || seen.terminated.lock().unwrap().contains(&stray).then_some(())).await;
    assert!(bridge.journal.get(&serving.id()).is_none(), "nobody can say yet that it is lost");
    *held.visible.lock().unwrap() = true;
    for requester in [&serving, &unstated] {
        eventually("the grant to be adopted", || {
            (bridge.journal.get(&requester.id())?.stage.name() == "replied").then_some(())
        })
        .await;
    }
    assert_eq!(running(&hidden) + running(&open), 2);
    for requester in [&serving, &unstated] {
        requester.end(&world.market);
        assert_eq!(world.ended(requester).await, GrantEnd::Logged(LogEnd::EndedByRequester));
        assert_eq!(world.market.record(&requester.id()).unwrap().usage, USED);
    }
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_removed_delay_no_log_and_are_swept() {
    let (world, backend) = fable();
    let bridge = world.start();
    world.card().await;
    let requester = world.ask(1, 600);
    world.receipt(&requester).await;
    *backend.unremovable.lock().unwrap() = true;
    requester.end(&world.market);
    assert_eq!(bridge.closed(&requester).await, Outcome::Logged(LogEnd::EndedByRequester));
    assert_eq!(world.market.record(&requester.id()).unwrap().usage, USED);
    *backend.unremovable.lock().unwrap() = false;
    eventually("the sweep to remove the rest", || no_instances(&backend).then_some(())).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_stops_and_logs_everything_and_takes_the_card_away() {
    let (mut world, backend) = fable();
    world.drain = true;
    let bridge = world.start();
    world.card().await;
    let all: Vec<_> = (1..=3).map(|seed| world.ask(seed, 600)).collect();
    for requester in &all {
        world.receipt(requester).await;
    }
    bridge.stop().await;
    for requester in &all {
        assert_eq!(world.ended(requester).await, GrantEnd::Logged(LogEnd::Draining));
    }
    assert!(no_instances(&backend));
    assert!(world.market.read(|fold| fold.view().state().providers()[&provider()].card.is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_at_once_each_end_in_exactly_one_way() {
    let (world, backend) = fable();
    let bridge = world.start();
    world.card().await;
    let all: Vec<_> = (1..=20).map(|seed| world.ask(seed, 2)).collect();
    for requester in &all {
        assert!(matches!(world.ended(requester).await, GrantEnd::Logged(_)));
        assert!(backend.running.lock().unwrap().len() <= 8);
    }
    assert!(no_instances(&backend));
    bridge.stop().await;
}

/// One whole grant with power lost after `bytes` of the journal, then a second life; the world must not be able to tell.
async fn life_with_power_loss(bytes: u64) -> u64 {
    let (world, backend) = fable();
    let first = world.start_losing_power(Some(bytes));
    let has_card = async {
        world.card().await;
        world.ask(1, 600)
    };
    let requester = has_card.await;
    // Whichever comes first: the power loss, or the receipt and then the end.
    let lived = async {
        eventually("receipt or power loss", || {
            (requester.receipt(&world.channel).is_some() || first.is_over()).then_some(())
        })
        .await;
        if !first.is_over() {
            requester.end(&world.market);
        }
        eventually("end or power loss", || {
            let closed = first.journal.get(&requester.id()).is_some_and(|state| state.is_closed());
            (closed || first.is_over()).then_some(())
        })
        .await;
    };
    lived.await;
    first.kill().await;
    let second = world.start();
    world.receipt(&requester).await;
    if world.market.record(&requester.id()).is_some_and(|record| record.ending_ms.is_none() && record.is_live()) {
        requester.end(&world.market);
    }
    assert_eq!(
        world.ended(&requester).await,
        GrantEnd::Logged(LogEnd::EndedByRequester),
        "power lost after {bytes} bytes"
    );
    assert_eq!(second.closed(&requester).await, Outcome::Logged(LogEnd::EndedByRequester));
    let record = world.market.record(&requester.id()).unwrap();
    assert_eq!((record.log_count, record.usage), (1, USED), "power lost after {bytes} bytes");
    eventually("nothing to be left", || no_instances(&backend).then_some(())).await;
    second.stop().await;
    std::fs::metadata(world.path().join("grants.journal")).unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn power_loss_at_every_record_and_inside_each_comes_to_the_same_end() {
    // The sizes of the records of one undisturbed life.
    let (world, _backend) = fable();
    let bridge = world.start();
    world.card().await;
    let requester = world.ask(1, 600);
    world.receipt(&requester).await;
    requester.end(&world.market);
    bridge.closed(&requester).await;
    bridge.kill().await;
    let file = std::fs::read(world.path().join("grants.journal")).unwrap();
    let mut cuts = Vec::new();
    let mut at = 4;
    while at < file.len() {
        let length = u32::from_be_bytes(file[at..at + 4].try_into().unwrap()) as usize;
        let next = at + 8 + length + 32;
        // Just before a record, inside its head, inside its payload, one byte short of whole.
        cuts.extend([at, at + 5, at + 8 + length / 2, next - 1].map(|cut| cut as u64 - 4));
        at = next;
    }
    assert_eq!(at, file.len());
    assert_eq!(
        cuts.len(),
        4 * 9,
        "nine records: granted, opening, provisioning, running, replied, stopping, metered, stopped, closed"
    );
    for group in cuts.chunks(6) {
        futures::future::join_all(group.iter().map(|cut| life_with_power_loss(*cut))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_real_machine_with_nothing_of_the_requester_on_disk_or_in_the_log() {
    let log = captured_log();
    let host = Host::start().await;
    let Some(image) = example_image(host.dir.path()) else { return };
    let backend = Arc::new(BareMetalBackend::new(host.setup()));
    let world = World { image, ..World::new(vec![Arc::clone(&backend) as _]) };
    let bridge = world.start();
    world.card().await;
    let requester = world.ask(1, 600);
    let receipt = world.receipt(&requester).await;
    let said = ssh_into(
        &receipt,
        host.dir.path(),
        "echo $SECRET_OF_REQUESTER; dd if=/dev/zero of=/tmp/x bs=1M count=5 2>/dev/null; hello",
    )
    .await;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("a-requester-private-value") && said.contains("hello from"), "{said}");
    // Mid-life, the bridge's disk, log entries and status know nothing of the requester.
    let snapshot = bridge.status.snapshot(world.market.as_ref(), &bridge.journal, &bridge.fleet);
    let shown = serde_json::to_vec(&snapshot).unwrap();
    let metrics = compute_bridge::dashboard::prometheus(&snapshot).into_bytes();
    let mut seen = vec![("status", shown), ("metrics", metrics), ("certified log", world.market.bytes())];
    for file in files_below(world.path()) {
        seen.push(("disk", std::fs::read(file).unwrap()));
    }
    seen.push(("log", log.lock().unwrap().clone()));
    let (_, logged) = seen.last().unwrap();
    assert!(String::from_utf8_lossy(logged).contains("the receipt is posted"), "the log was captured");
    for mark in requester.marks() {
        for (place, bytes) in &seen {
            assert!(
                !bytes.windows(mark.len()).any(|window| window == mark),
                "{place} holds {:?}",
                String::from_utf8_lossy(&mark)
            );
        }
    }
    bridge.kill().await;
    let bridge = world.start();
    assert_eq!(ssh_into(&receipt, host.dir.path(), "echo still here").await.stdout, b"still here\n");
    requester.end(&world.market);
    assert_eq!(world.ended(&requester).await, GrantEnd::Logged(LogEnd::EndedByRequester));
    let used = world.market.record(&requester.id()).unwrap().usage;
    assert!(used.net_bytes > 0, "{used:?}");
    assert_eq!(std::fs::read_dir(host.grants_dir()).unwrap().count(), 0, "nothing is left on the host");
    bridge.stop().await;
    Backend::close(backend.as_ref()).await;
}

fn sells(world: &World) -> bool {
    let sold = |fold: &compute_bridge::market::MarketFold| {
        let card = fold.view().state().providers().get(&provider())?.card.as_ref()?;
        Some(card.card.offers.iter().any(|offer| offer.capabilities.max_instances > 0))
    };
    world.market.read(sold).unwrap_or(false)
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_clock_an_hour_off_nothing_is_sold_and_both_times_are_named() {
    let (world, _backend) = fable();
    world.market.set_clock_ahead_by(-3_600_000);
    let bridge = world.start();
    world.card().await;
    let problem = || bridge.status.snapshot(world.market.as_ref(), &bridge.journal, &bridge.fleet).card_problem;
    let text = eventually("the problem", problem).await;
    assert!(text.contains(" s apart") && text.matches(" UTC").count() == 2, "{text}");
    eventually("a card that sells nothing", || (!sells(&world)).then_some(())).await;
    world.market.set_clock_ahead_by(0);
    eventually("the card to sell again", || sells(&world).then_some(())).await;
    eventually("the problem to go", || problem().is_none().then_some(())).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_market_where_nothing_happened_for_an_hour_proves_no_clock_wrong() {
    let (world, _backend) = fable();
    world.market.set_clock_ahead_by(-3_600_000);
    let bridge = world.start();
    world.card().await;
    bridge.kill().await;
    world.market.take_clock_away();
    world.market.set_clock_ahead_by(0);
    let bridge = world.start();
    eventually("the card to sell", || sells(&world).then_some(())).await;
    let problem = || bridge.status.snapshot(world.market.as_ref(), &bridge.journal, &bridge.fleet).card_problem;
    eventually("no problem", || problem().is_none().then_some(())).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_machine_keeps_its_grants_and_holds_up_the_start_until_they_end() {
    let (mut world, old) = fable();
    let bridge = world.start();
    world.card().await;
    let requester = world.ask(1, 600);
    world.receipt(&requester).await;
    bridge.kill().await;

    let journal = Journal::open(world.path()).unwrap();
    let open = journal.open_grants();
    let valid_to_ms = open[0].1.grant.valid_to_ms;
    drop(journal);
    let renamed = FakeBackend::new("metal-2");
    let fleet = |backend: &Arc<FakeBackend>| Fleet::new(vec![Arc::clone(backend) as _]).unwrap();
    let refused = fleet(&renamed).check_open(&open, valid_to_ms - 9_500).unwrap_err().to_string();
    assert!(refused.contains(&format!("{} on metal for 10 s more", requester.id())), "{refused}");
    assert_eq!(fleet(&renamed).check_open(&open, valid_to_ms), Ok(()), "nothing runs any more");
    assert_eq!(fleet(&old).check_open(&open, valid_to_ms - 9_500), Ok(()));

    // And whoever gets past that: its name still explains the instance.
    let stray = InstanceName::try_from("f".repeat(32)).unwrap();
    *renamed.running.lock().unwrap() = old.running.lock().unwrap().clone();
    renamed.running.lock().unwrap().insert(stray.clone());
    world.backends = vec![Arc::clone(&renamed) as _];
    let bridge = world.start();
    eventually("the sweep", || renamed.terminated.lock().unwrap().contains(&stray).then_some(())).await;
    assert_eq!(*renamed.terminated.lock().unwrap(), [stray]);
    bridge.kill().await;
}
