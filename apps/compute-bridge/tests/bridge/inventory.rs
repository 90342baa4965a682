//! The inventory: what runs is held against the journal, and what is stated of it against the log.

use std::sync::Arc;
use std::time::Duration;

use coalition_compute::*;
use compute_bridge::backend::{Backend, InstanceName};
use compute_bridge::inventory::{CostBasis, Standing, look, take};

use super::harness::*;
use super::world::*;

fn stating() -> (World, Arc<FakeBackend>, Arc<FakeBackend>) {
    let (near, far) = (FakeBackend::new("metal"), FakeBackend::in_region("far", "elsewhere"));
    let mut world = World::new(vec![Arc::clone(&near) as _, Arc::clone(&far) as _]);
    world.inventory_interval = Duration::from_millis(200);
    (world, near, far)
}

/// The next statement that satisfies `wanted`.
async fn stated(world: &World, what: &str, wanted: impl Fn(&StateInventory) -> bool) -> (StateInventory, bool) {
    eventually(what, || {
        let _ = world.market.execute(None);
        world.market.read(|fold| {
            let last = fold.view().inventory(&provider())?;
            wanted(&last.stated).then(|| (last.stated.clone(), last.agrees))
        })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stated_agrees_with_the_log_through_a_grants_life() {
    let (world, near, far) = stating();
    let bridge = world.start();
    world.card().await;
    let (first, agrees) = stated(&world, "an empty inventory", |stated| stated.open == 0).await;
    assert_eq!((first.owned, first.adopted, first.orphaned, first.blind, agrees), (0, 0, 0, 0, true));
    let requester = world.ask(1, 600);
    world.receipt(&requester).await;
    let (held, agrees) = stated(&world, "one with the grant", |stated| stated.owned == 1).await;
    assert_eq!((held.open, held.orphaned, agrees), (1, 0, true));
    assert_eq!(held.grants, open_grants_digest([requester.id()]));
    // A blind backend is said to be blind, and what ran on the other is still counted.
    *far.visible.lock().unwrap() = false;
    let (blind, agrees) = stated(&world, "one with a blind backend", |stated| stated.blind == 1).await;
    assert_eq!((blind.owned, agrees), (1, true));
    *near.visible.lock().unwrap() = false;
    let (blinder, agrees) = stated(&world, "one with both blind", |stated| stated.blind == 2).await;
    assert_eq!((blinder.open, blinder.owned, agrees), (1, 0, true), "the grant is open, seen or not");
    (*near.visible.lock().unwrap(), *far.visible.lock().unwrap()) = (true, true);
    requester.end(&world.market);
    bridge.closed(&requester).await;
    let (_, agrees) = stated(&world, "an empty one again", |stated| stated.open == 0).await;
    assert!(agrees);
    bridge.stop().await;
    // Every statement of this life agreed, whatever was under way.
    assert_eq!(world.market.count("compute.inventory"), world.market.agreeing());
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_are_counted_and_found_again_instances_are_adopted() {
    let (mut world, near, _far) = stating();
    world.inventory_interval = Duration::from_secs(3_600);
    let bridge = world.start();
    world.card().await;
    let requester = world.serving(1, 600).await;
    bridge.kill().await;
    std::fs::remove_file(world.path().join("grants.journal")).unwrap();
    world.inventory_interval = Duration::from_millis(100);
    *near.unremovable.lock().unwrap() = true;
    near.running.lock().unwrap().insert(InstanceName::try_from("e".repeat(32)).unwrap());
    let bridge = world.start();
    let (found, agrees) = stated(&world, "an adopted one and an orphan", |stated| stated.orphaned == 1).await;
    let (found, agrees) = match found.adopted {
        1 => (found, agrees),
        _ => stated(&world, "the adopted one", |stated| stated.adopted == 1).await,
    };
    assert_eq!((found.open, found.owned, found.orphaned, agrees), (1, 1, 1, true));
    // The same as an operator sees it.
    let open = bridge.journal.open_grants().into_iter().collect();
    let backends: Vec<Arc<dyn Backend>> = vec![near];
    let list = take(&open, &look(&backends).await, &std::collections::BTreeSet::new(), compute_bridge::now_ms());
    let adopted = list.items.iter().find(|item| item.standing == Standing::Adopted).unwrap();
    assert_eq!((adopted.grant, adopted.cost_basis), (Some(requester.id()), Some(CostBasis::PostedRate)));
    // Half a core at 0.02 USD per core-hour.
    assert_eq!(adopted.cost_hour.unwrap().0, 10_000);
    assert!(adopted.age_sec.unwrap() < 60 && !list.is_clean());
    let text = list.to_string();
    assert!(text.contains("(the posted rate)") && text.contains("1 adopted, 1 orphaned; 0 backends blind"), "{text}");
    bridge.stop().await;
}
