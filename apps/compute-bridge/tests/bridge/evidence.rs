//! What clouds counted, as evidence of logs: kept, shown, checked; and never waited for.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use coalition::UniqueId;
use coalition_aws_double::Fault as AwsFault;
use coalition_azure_double::Fault as AzureFault;
use coalition_cloud::{Counts, Fact, Point, Series, Telemetry, Window};
use coalition_compute::*;
use coalition_gcp_double::Fault as GcpFault;
use compute_bridge::backend::{Backend, InstanceName};
use compute_bridge::evidence::{About, EvidenceError, EvidenceStore, Shown, Taken, Untaken, find, list, verify};
use compute_bridge::journal::state::AttemptFailure;
use compute_bridge::journal::{Event, Journal, Record};
use compute_bridge::now_ms;

use super::accounts::{AzureAccount, Gcp};
use super::cloud::Cloud;
use super::harness::*;
use super::world::*;

fn name(seed: char) -> InstanceName {
    InstanceName::try_from(seed.to_string().repeat(32)).unwrap()
}

fn taken(points: u64) -> Taken {
    let one = |metric: &str, counts, value: &str| Series {
        call: "cloudwatch:GetMetricData",
        metric: metric.into(),
        statistic: "Sum",
        counts,
        period_s: 300,
        points: (0..points).map(|n| Point::of(1_767_225_600 + n * 300, value).unwrap()).collect(),
    };
    let series =
        vec![one("CPUUtilization", Counts::CpuPercent, "12.5"), one("NetworkIn", Counts::NetBytes, "1000000.5")];
    let facts = vec![Fact::of("ec2:DescribeInstances", "vcpus", Some("2")).unwrap()];
    let telemetry = Telemetry { host: "i-1".into(), facts, series };
    Taken { cloud: "EC2", region: "eu-central-1".into(), telemetry }
}

fn snapshot(grant: u8, instance: &InstanceName) -> Signed<TelemetrySnapshot> {
    let about = About {
        market: organism(),
        provider: provider(),
        grant: coalition::RequestId(UniqueId::hash(&[grant])),
        instance,
        window: Window { from_s: 1_767_225_600, to_s: 1_767_226_200 },
        metered: Some(UsageMetrics { cpu_core_seconds: 150, ram_mib_seconds: 9, net_bytes: 1_900_000 }),
    };
    taken(2).sign(&about, &signer()).unwrap()
}

#[test]
fn what_is_kept_is_listed_shown_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let store = EvidenceStore::open(dir.path()).unwrap();
    let (one, two) = (store.keep(&snapshot(1, &name('a'))).unwrap(), store.keep(&snapshot(2, &name('b'))).unwrap());
    // Another process sees the same, and so does the next start.
    assert_eq!(list(dir.path()).unwrap(), [one.clone(), two.clone()]);
    EvidenceStore::open(dir.path()).unwrap();
    assert_eq!(list(dir.path()).unwrap(), [one.clone(), two.clone()]);
    let path = dir.path().join(format!("evidence/{}.telemetry", one.digest));
    assert_eq!(one.pointer(), telemetry_pointer(provider(), &std::fs::read(&path).unwrap()));
    for wanted in [one.digest.to_string(), one.grant_id.to_string()] {
        let (kept, signed) = find(dir.path(), &wanted).unwrap();
        let shown = Shown::of(kept, signed.statement);
        // 12.5 % of two virtual CPUs for ten minutes are 150 core-seconds; the bytes are 5 % more than were metered.
        assert_eq!((shown.lines[0].cloud, shown.lines[1].cloud), (Some(150_000), Some(2_000_001)));
        let text = shown.to_string();
        let marked: Vec<&str> = text.lines().filter(|line| line.contains("DIFFERS")).collect();
        assert!(marked.len() == 1 && marked[0].starts_with("network") && marked[0].contains("5.0 % apart"), "{text}");
        assert!(text.contains("150.000 core-seconds") && text.contains("cloudwatch:GetMetricData"), "{text}");
    }
    assert!(matches!(find(dir.path(), &UniqueId::hash(b"none").to_string()), Err(EvidenceError::Unknown { .. })));
    assert!(matches!(find(dir.path(), "none"), Err(EvidenceError::Name { .. })));
    assert_eq!(verify(&path, one.digest, provider()).unwrap().statement.grant_id, one.grant_id);
    let bad = |result: Result<_, EvidenceError>| match result {
        Err(EvidenceError::Bad { source, .. }) => source,
        other => panic!("{other:?}"),
    };
    let stranger = coalition::ProviderId(UniqueId::hash(b"stranger"));
    assert!(matches!(bad(verify(&path, one.digest, stranger)), TelemetryError::Signer { .. }));
    assert!(matches!(bad(verify(&path, two.digest, provider())), TelemetryError::Digest { .. }));
    // One bit of the file, and it is no snapshot any more, under its name or its own.
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let own = UniqueId::hash(&bytes);
    assert!(!matches!(bad(verify(&path, own, provider())), TelemetryError::Digest { .. }));
    assert_eq!(list(dir.path()).unwrap(), [two]);
}

/// A try was interrupted and its machine counted; then another machine ran, of which the cloud told nothing: the log is of that one.
#[test]
fn a_log_points_to_the_machine_that_ran() {
    let dir = tempfile::tempdir().unwrap();
    let (store, journal) = (EvidenceStore::open(dir.path()).unwrap(), Journal::open(dir.path()).unwrap());
    let id = coalition::RequestId(UniqueId::hash(&[1]));
    let wrote =
        |event: Event| store.of_log(&journal.append_blocking(&Record { grant: id, at_ms: now_ms(), event }).unwrap());
    let tried = |machine: char| Event::Provisioning { backend: "metal".parse().unwrap(), instance: name(machine) };
    wrote(Event::Granted(Box::new(ComputeGrant { request_id: id, ..grant("metal", 600_000) })));
    wrote(Event::Opening);
    assert_eq!(wrote(tried('a')), None);
    let first = store.keep(&snapshot(1, &name('a'))).unwrap();
    assert_eq!(wrote(Event::AttemptFailed(AttemptFailure::Interrupted)), Some(first), "where none ran, what was tried");
    assert_eq!(wrote(tried('b')), None);
    let second = store.keep(&snapshot(1, &name('b'))).unwrap();
    store.keep(&snapshot(2, &name('b'))).unwrap();
    assert_eq!(store.of_log(&journal.get(&id).unwrap()), Some(second));
}

#[test]
fn what_is_old_or_too_much_goes_and_what_does_not_fit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = EvidenceStore::open(dir.path()).unwrap();
    let mut old = snapshot(1, &name('a')).statement;
    old.taken_ms = now_ms() - 91 * 86_400_000;
    store.keep(&Signed::sign(old, &signer(), &organism()).unwrap()).unwrap();
    assert_eq!(list(dir.path()).unwrap().len(), 1, "by its own clock it is new");
    let young = store.keep(&snapshot(2, &name('b'))).unwrap();
    assert_eq!(list(dir.path()).unwrap(), [young]);
    let about = |instance| About {
        market: organism(),
        provider: provider(),
        grant: coalition::RequestId(UniqueId::hash(b"g")),
        instance,
        window: Window { from_s: 0, to_s: 1 },
        metered: None,
    };
    let instance = name('c');
    let empty = Taken { telemetry: Telemetry { series: vec![], ..taken(1).telemetry }, ..taken(1) };
    assert!(matches!(empty.sign(&about(&instance), &signer()), Err(Untaken::Nothing)));
    assert!(matches!(taken(1_000).sign(&about(&instance), &signer()), Err(Untaken::Unfit(_))));
}

fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(program()).args(arguments).output().unwrap();
    (output.status.code(), [output.stdout, output.stderr].concat().iter().map(|byte| char::from(*byte)).collect())
}

#[test]
fn the_program_checks_anybodys_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let kept = EvidenceStore::open(dir.path()).unwrap().keep(&snapshot(1, &name('a'))).unwrap();
    let path = dir.path().join(format!("evidence/{}.telemetry", kept.digest));
    let (file, digest) = (path.to_str().unwrap(), kept.digest.to_string());
    let (code, said) = run(&["evidence", "verify", file, &digest, &provider().to_string()]);
    assert!(code == Some(0) && said.contains("ok") && said.contains("EC2"), "{said}");
    let (code, said) = run(&["--json", "evidence", "verify", file, &digest, &provider().to_string()]);
    let told: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &told["verified"], &told["snapshot"]["cloud"]), (Some(0), &true.into(), &"EC2".into()));
    let (code, said) = run(&["evidence", "verify", file, &digest, &digest]);
    assert!(code == Some(5) && said.contains("expected is"), "{code:?} {said}");
    let (code, said) = run(&["evidence", "verify", file, "abc", &digest]);
    assert!(code == Some(2) && said.contains("64 hex digits"), "{code:?} {said}");
}

/// A grant that ran on this backend: what its log points to, and what the operator is told.
async fn one_grant(world: &World, bridge: &Bridge, seed: u8) -> (Option<coalition::EvidencePointer>, String) {
    let requester = world.ask(seed, 600);
    world.receipt(&requester).await;
    world.stage(&requester, "serving", |stage| *stage == GrantStage::Serving).await;
    requester.end(&world.market);
    assert_eq!(world.ended(&requester).await, GrantEnd::Logged(LogEnd::EndedByRequester));
    let page = bridge.status.snapshot(world.market.as_ref(), &bridge.journal, &bridge.fleet);
    let told: Vec<String> = page.events.into_iter().map(|event| event.text).collect();
    (world.market.last_log(&requester.id()).evidence, told.join("\n"))
}

/// Refused, throttled, late: the log comes without, and the operator's page says why. Cgroups are named after instances, and those
/// after seeds, which must be no other test's.
async fn does_without(backend: Arc<dyn Backend>, dir: &Path, seeds: u8, break_it: &dyn Fn(usize)) {
    let Some(image) = example_image(dir) else { return };
    let mut world = World::new(vec![backend]);
    world.image = image;
    let bridge = world.start();
    world.card().await;
    for (n, why) in WHYS.iter().enumerate() {
        break_it(n);
        let (evidence, told) = one_grant(&world, &bridge, seeds + u8::try_from(n).unwrap()).await;
        assert_eq!(evidence, None, "{why}");
        assert!(told.contains(&format!("ended without evidence: {why}")), "{why}: {told}");
    }
    break_it(WHYS.len());
    let (evidence, told) = one_grant(&world, &bridge, seeds + 9).await;
    let evidence = evidence.unwrap_or_else(|| panic!("{told}"));
    assert_eq!(evidence.organism, telemetry_store(provider()));
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_end_waits_for_a_cloud_that_does_not_answer() {
    let (world, backend) = fable();
    *backend.silent_api.lock().unwrap() = true;
    let bridge = world.start();
    world.card().await;
    let begun = std::time::Instant::now();
    let (evidence, told) = one_grant(&world, &bridge, 1).await;
    assert_eq!(evidence, None);
    assert!(told.contains("ended without evidence: the cloud does not tell within 4 s"), "{told}");
    assert!(begun.elapsed() < SOON && no_instances(&backend));
    bridge.stop().await;
}

const WHYS: [&str; 3] = [
    "the cloud does not tell (auth)",
    "the cloud does not tell (throttled)",
    "the cloud has counted nothing of it yet",
];

#[tokio::test(flavor = "multi_thread")]
async fn logs_of_ec2_do_without_what_it_does_not_tell() {
    let Some(aws) = Cloud::start().await else { return };
    let break_it = |n: usize| {
        let (refused, throttled) =
            (AwsFault::Refuse("AccessDeniedException", 400), AwsFault::Refuse("ThrottlingException", 400));
        let faults = [vec![refused], vec![throttled; 3], vec![AwsFault::ShowNothing]];
        aws.double.proxy.fail("GetMetricData", faults.get(n).cloned().unwrap_or_default());
    };
    does_without(aws.backend(), aws.hosts.dir.path(), 150, &break_it).await;
    assert!(aws.live().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_of_google_cloud_do_without_what_it_does_not_tell() {
    let Some(gcp) = Gcp::start().await else { return };
    let break_it = |n: usize| {
        // Three questions at once, of which the first that fails ends the others.
        gcp.double.forget_faults();
        let faults = [GcpFault::Refuse("forbidden", 403), GcpFault::Throttle(0), GcpFault::ShowNothing];
        gcp.double.fail("timeSeries.list", faults.get(n).map(|fault| vec![fault.clone(); 9]).unwrap_or_default());
    };
    does_without(gcp.backend(), gcp.hosts.dir.path(), 160, &break_it).await;
    assert_eq!(gcp.left(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_of_azure_do_without_what_it_does_not_tell() {
    let Some(azure) = AzureAccount::start().await else { return };
    let break_it = |n: usize| {
        let refused = AzureFault::Refuse("AuthorizationFailed", 403);
        let faults = [vec![refused], vec![AzureFault::Throttle(0); 3], vec![AzureFault::ShowNothing]];
        azure.double.fail("Microsoft.Insights/metrics/read", faults.get(n).cloned().unwrap_or_default());
    };
    does_without(azure.backend(), azure.hosts.dir.path(), 170, &break_it).await;
    assert_eq!(azure.left(), 0);
}
