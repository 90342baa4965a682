//! Google Cloud and Azure as backends, against our doubles; machines are real SSH servers. What all clouds share is tested
//! against EC2's double in `ec2.rs`; here is what differs, and all four classes of backends behind one bridge.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use coalition_azure_double::Fault as AzureFault;
use coalition_compute::{GrantEnd, GrantStage, LogEnd};
use coalition_gcp_double::Fault as GcpFault;
use compute_bridge::backend::*;
use compute_bridge::backends::{BareMetalBackend, BareMetalSetup, CloudBackend, CloudSetup};
use compute_bridge::evidence::find;
use compute_bridge::inventory::{CostBasis, Standing, look, take};
use compute_bridge::now_ms;

use super::accounts::{AzureAccount, Gcp, Hosts, Job};
use super::cloud::Cloud;
use super::harness::*;
use super::world::*;

const INSERT: &str = "instances.insert";
const LIST: &str = "instances.aggregatedList";
const PUT: &str = "Microsoft.Compute/virtualMachines/write";
const READ: &str = "Microsoft.Compute/virtualMachines/read";

/// From offer to nothing left, with another process that takes over in the middle.
async fn whole_life(hosts: &Hosts, backend: &dyn Fn() -> Arc<CloudBackend>, left: &dyn Fn() -> usize) {
    let Some(image) = example_image(hosts.dir.path()) else { return };
    let first = backend();
    let offering = first.capabilities().await;
    assert!(offering.reachable, "{}", offering.detail);
    let sold = &offering.capabilities;
    assert_eq!((sold.max_instances, sold.instance_cpu_millicores, sold.tdx_capable), (4, 2_000, false), "{offering:?}");
    let job = Job::new(hosts, first.name().as_str(), 1, &image, 120_000);
    assert_eq!(first.can_satisfy(&job.grant), Ok(()));
    let running = job.run(&first).await.unwrap();
    assert!(running.host.starts_with("127.77."), "{running:?}");
    assert_eq!(held(first.as_ref()).await, [(job.name.clone(), true)]);
    // What no grant explains has an age and a cost all the same: the cloud tells since when, and of which size.
    let backends: Vec<Arc<dyn Backend>> = vec![first.clone()];
    let found = take(&BTreeMap::new(), &look(&backends).await, &BTreeSet::new(), now_ms() + 3_600_000);
    let [orphan] = found.items.as_slice() else { panic!("{found:?}") };
    assert_eq!((orphan.standing, orphan.cost_basis), (Standing::Orphaned, Some(CostBasis::SizePrice)));
    assert!(orphan.age_sec.is_some_and(|age| (3_600..3_700).contains(&age)), "{orphan:?}");
    // A tenth of a dollar an hour.
    assert_eq!(orphan.cost_hour.unwrap().0, 100_000);
    assert!((100_000..103_000).contains(&orphan.cost_so_far.unwrap().0), "{orphan:?}");
    let heir = backend();
    heir.adopt(&job.grant, &job.name);
    let exit = heir.stop(&job.name).await.unwrap().unwrap();
    assert_eq!(exit.end, LogEnd::Exited);
    heir.terminate(&job.name).await.unwrap();
    heir.terminate(&job.name).await.unwrap();
    assert_eq!((heir.load(), heir.stop(&job.name).await.unwrap()), (0, None));
    assert!(heir.list_owned().await.unwrap().is_empty());
    assert_eq!((left(), hosts.sshd.running()), (0, 0), "nothing that costs money");
    let findings = backend().check(true).await;
    assert!(findings.iter().all(|finding| finding.ok), "{findings:#?}");
    assert!(findings.last().unwrap().detail.contains("ended and confirmed"), "{findings:#?}");
    assert_eq!((left(), hosts.sshd.running()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_life_on_google_cloud() {
    let Some(gcp) = Gcp::start().await else { return };
    whole_life(&gcp.hosts, &|| gcp.backend(), &|| gcp.left()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_life_on_azure() {
    let Some(azure) = AzureAccount::start().await else { return };
    whole_life(&azure.hosts, &|| azure.backend(), &|| azure.left()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn google_cloud_without_room_and_with_lost_answers() {
    let Some(gcp) = Gcp::start().await else { return };
    let Some(image) = example_image(gcp.hosts.dir.path()) else { return };
    let backend = gcp.backend();
    // The lack of machines shows in the operation; the next zone has one.
    let full = || GcpFault::FailOperation("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", 503);
    gcp.double.fail(INSERT, [full()]);
    let job = Job::new(&gcp.hosts, "gcp", 1, &image, 60_000);
    job.run(&backend).await.unwrap();
    let asked: Vec<String> =
        gcp.double.calls().into_iter().filter(|call| call.action == INSERT).map(|call| call.path).collect();
    assert!(
        asked.len() == 2 && asked[0].contains("europe-west4-a") && asked[1].contains("europe-west4-b"),
        "{asked:?}"
    );
    backend.terminate(&job.name).await.unwrap();
    // Each try is another instance: what failed once under a request's id fails again under it.
    for (n, faults, kind) in [
        (2, vec![full(), full()], FailureKind::Capacity),
        (3, vec![GcpFault::FailOperation("QUOTA_EXCEEDED", 403)], FailureKind::Quota),
        (4, vec![GcpFault::Refuse("forbidden", 403)], FailureKind::Auth),
    ] {
        gcp.double.fail(INSERT, faults);
        let job = Job::new(&gcp.hosts, "gcp", n, b"whatever", 60_000);
        let error = job.run(&backend).await.unwrap_err();
        assert_eq!((error.kind, error.started), (kind, false), "{error}");
        backend.terminate(&job.name).await.unwrap();
    }
    gcp.double.fail(INSERT, [GcpFault::LoseAnswer, GcpFault::Throttle(0), GcpFault::Garble]);
    gcp.double.fail(LIST, [GcpFault::ShowNothing, GcpFault::ShowNothing]);
    let job = Job::new(&gcp.hosts, "gcp", 5, &image, 60_000);
    job.run(&backend).await.unwrap();
    assert_eq!(gcp.double.machines().len(), 1, "asked for four times, made once");
    backend.terminate(&job.name).await.unwrap();
    assert_eq!((gcp.left(), backend.load()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn azure_without_room_and_with_lost_answers() {
    let Some(azure) = AzureAccount::start().await else { return };
    let Some(image) = example_image(azure.hosts.dir.path()) else { return };
    let backend = azure.backend();
    for (faults, kind) in [
        (vec![AzureFault::Refuse("OperationNotAllowed", 409)], FailureKind::Quota),
        (vec![AzureFault::Refuse("AuthorizationFailed", 403)], FailureKind::Auth),
        (
            vec![AzureFault::FailLater("AllocationFailed"), AzureFault::FailLater("AllocationFailed")],
            FailureKind::Capacity,
        ),
    ] {
        azure.double.fail(PUT, faults);
        let job = Job::new(&azure.hosts, "azure", 2, b"whatever", 60_000);
        let error = job.run(&backend).await.unwrap_err();
        assert_eq!((error.kind, error.started), (kind, false), "{error}");
        backend.terminate(&job.name).await.unwrap();
        assert_eq!(azure.left(), 0, "a failed machine is there, and goes");
    }
    azure.double.fail(PUT, [AzureFault::LoseAnswer, AzureFault::Throttle(0), AzureFault::Garble]);
    azure.double.fail(READ, [AzureFault::ShowNothing]);
    let job = Job::new(&azure.hosts, "azure", 3, &image, 60_000);
    job.run(&backend).await.unwrap();
    assert_eq!(azure.double.machines().len(), 1, "asked for four times, made once");
    backend.terminate(&job.name).await.unwrap();
    assert_eq!((azure.left(), backend.load()), (0, 0));
}

/// An outage is no end; a machine that was deleted behind our back, or switched itself off, is one.
async fn ends_only_when_over(
    hosts: &Hosts,
    backend: &Arc<CloudBackend>,
    blind: &dyn Fn(bool),
    off: &dyn Fn(&InstanceName),
) {
    let Some(image) = example_image(hosts.dir.path()) else { return };
    let job = Job::new(hosts, backend.name().as_str(), 1, &image, 120_000);
    let running = job.run(backend).await.unwrap();
    let watch = tokio::spawn({
        let (backend, running) = (Arc::clone(backend), running.clone());
        async move { backend.watch_until_exit(&running, now_ms() + 120_000, &|_| {}).await }
    });
    blind(true);
    assert!(backend.list_owned().await.is_err() && backend.terminate(&job.name).await.is_err());
    let offering = backend.capabilities().await;
    assert!(!offering.reachable && offering.capabilities.max_instances == 0 && backend.trouble().is_some());
    assert!(!watch.is_finished(), "an outage is not an end");
    blind(false);
    assert!(backend.capabilities().await.reachable);
    off(&job.name);
    let exit = tokio::time::timeout(SOON, watch).await.unwrap().unwrap().unwrap();
    assert_eq!(exit.end, LogEnd::BackendLost);
    backend.terminate(&job.name).await.unwrap();
    assert_eq!(backend.load(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_google_cloud_ends_nothing_and_a_stopped_machine_is_deleted() {
    let Some(gcp) = Gcp::start().await else { return };
    let off = |name: &InstanceName| gcp.double.stop_machine(&format!("c-{name}"), true);
    ends_only_when_over(&gcp.hosts, &gcp.backend(), &|is| gcp.double.blind(is), &off).await;
    assert_eq!(gcp.left(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_azure_ends_nothing_and_a_stopped_machine_is_deleted() {
    let Some(azure) = AzureAccount::start().await else { return };
    let off = |name: &InstanceName| azure.double.power(&format!("c-{name}"), "stopped");
    ends_only_when_over(&azure.hosts, &azure.backend(), &|is| azure.double.blind(is), &off).await;
    assert_eq!(azure.left(), 0);
}

/// One bridge, one card, four classes of machines: each grant is served where it was asked for, metered, ended and logged.
#[tokio::test(flavor = "multi_thread")]
async fn four_backends_behind_one_identity() {
    let (Some(aws), Some(gcp), Some(azure)) = (Cloud::start().await, Gcp::start().await, AzureAccount::start().await)
    else {
        return;
    };
    let host = Host::start().await;
    let Some(image) = example_image(host.dir.path()) else { return };
    let there = |setup: CloudSetup, region: &str| {
        Arc::new(CloudBackend::new(CloudSetup { region: region.parse().unwrap(), ..setup })) as Arc<dyn Backend>
    };
    let metal = BareMetalSetup { region: "rack".parse().unwrap(), ..host.setup() };
    let mut world = World::new(vec![
        Arc::new(BareMetalBackend::new(metal)),
        there(aws.setup(), "aws"),
        there(gcp.setup("gcp"), "gcp"),
        there(azure.setup("azure"), "azure"),
    ]);
    world.image = image;
    let bridge = world.start();
    world.card().await;
    let regions = ["rack", "aws", "gcp", "azure"];
    let offered = eventually("all four on one card", || {
        let card = world.market.read(|fold| fold.view().state().providers()[&provider()].card.clone())?;
        let free: BTreeMap<String, u32> =
            card.card.offers.iter().map(|offer| (offer.name.to_string(), offer.capabilities.max_instances)).collect();
        (free.len() == 4 && free.values().all(|free| *free > 0)).then_some(free)
    })
    .await;
    assert_eq!(offered.keys().map(String::as_str).collect::<Vec<_>>(), ["aws", "azure", "gcp", "metal"]);
    let asked: Vec<_> = (0..8_u8)
        .map(|n| {
            let region = regions[usize::from(n) % 4];
            let requester = requester_in(region, &world.market, 210 + n, &world.image, 600, |_| {});
            requester.submit(&world.market, &world.channel);
            (region, requester)
        })
        .collect();
    for (region, requester) in &asked {
        let receipt = world.receipt(requester).await;
        let said = ssh_into(&receipt, world.path(), "head -c 100000 /dev/zero | wc -c").await;
        assert!(String::from_utf8_lossy(&said.stdout).contains("100000"), "{region}: {said:?}");
        world.stage(requester, "serving", |stage| *stage == GrantStage::Serving).await;
    }
    assert_eq!((aws.live().await.len(), gcp.double.machines().len(), azure.double.machines().len()), (2, 2, 2));
    for (region, requester) in &asked {
        requester.end(&world.market);
        assert_eq!(world.ended(requester).await, GrantEnd::Logged(LogEnd::EndedByRequester), "{region}");
        let record = world.market.record(&requester.id()).unwrap();
        assert_eq!((record.grant.region.as_str(), record.grant.provider), (*region, provider()));
        assert!(record.final_log && record.usage.net_bytes > 0, "{region}: {:?}", record.usage);
        // Clouds count, too; the operator's own machine is nobody else's.
        let log = world.market.last_log(&requester.id());
        assert_eq!(log.evidence.is_some(), *region != "rack", "{region}: {:?}", log.evidence);
        if let Some(evidence) = log.evidence {
            let (kept, signed) = find(world.path(), &evidence.digest.to_string()).unwrap();
            let about = &signed.statement;
            assert_eq!((kept.pointer(), about.grant_id, about.metered), (evidence, requester.id(), Some(log.usage)));
            assert!(about.cpu_core_ms().is_some() && about.net_bytes().is_some(), "{region}: {about:?}");
        }
    }
    bridge.stop().await;
    assert!(aws.live().await.is_empty());
    assert_eq!((gcp.left(), azure.left()), (0, 0));
    assert_eq!(std::fs::read_dir(host.grants_dir()).unwrap().count(), 0);
    let switched_on = [&aws.hosts, &gcp.hosts, &azure.hosts].map(|hosts| hosts.sshd.running());
    assert_eq!(switched_on, [0, 0, 0]);
}
