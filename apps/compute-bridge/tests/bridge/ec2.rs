//! AWS EC2 as a backend, against moto behind a proxy that fails as AWS does; machines are real SSH servers.

use std::sync::Arc;
use std::time::Duration;

use coalition::UniqueId;
use coalition_aws::{Ec2Region, InstanceState, RegionSetup};
use coalition_aws_double::Fault;
use coalition_compute::{ComputeGrant, GrantEnd, GrantStage, LogEnd};
use compute_bridge::backend::*;
use compute_bridge::backends::cloud::ledger::Size;
use compute_bridge::backends::{CloudBackend, CloudSetup};
use compute_bridge::now_ms;

use super::accounts::Job;
use super::cloud::Cloud;
use super::harness::*;
use super::world::*;

/// The image, and an account; `None`, with a word, where something is missing.
async fn cloud_and_image() -> Option<(Cloud, Vec<u8>)> {
    let cloud = Cloud::start().await?;
    let image = example_image(cloud.hosts.dir.path())?;
    Some((cloud, image))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_life_and_what_another_process_finds_of_it() {
    let Some((cloud, image)) = cloud_and_image().await else { return };
    let backend = cloud.backend();
    let offering = backend.capabilities().await;
    assert!(offering.reachable, "{}", offering.detail);
    assert!(offering.detail.contains("4 instances declared") && offering.detail.contains("quota is 32 vCPUs"));
    let sold = &offering.capabilities;
    assert_eq!((sold.max_instances, sold.instance_cpu_millicores, sold.max_cpu_millicores), (4, 4_000, 16_000));
    assert!(!sold.tdx_capable);
    let job = Job::new(&cloud.hosts, "aws", 1, &image, 120_000);
    assert_eq!(backend.can_satisfy(&job.grant), Ok(()));
    let tdx = ComputeGrant { tdx_required: true, ..job.grant.clone() };
    assert_eq!(backend.can_satisfy(&tdx), Err(Unfit::Tdx), "EC2 has none, whatever it is called");
    let running = job.run(&backend).await.unwrap();
    assert!(running.host.starts_with("127.77.") && running.backend.as_str() == "aws");
    let made = cloud.live().await;
    let [made] = made.as_slice() else { panic!("{made:?}") };
    let expected = [("coalition:bridge", provider().to_string()), ("coalition:offer", "aws".to_owned())];
    for (key, value) in expected {
        assert_eq!(made.tags[key], value);
    }
    assert_eq!(made.tags["coalition:instance"], job.name.as_str());
    assert_eq!(made.tags["coalition:grant"], job.grant.request_id.to_string());
    assert_eq!(made.instance_type, "m6a.large", "the cheapest it fits on");
    assert_eq!(held(backend.as_ref()).await, [(job.name.clone(), true)]);
    // A process with the same key and nothing else knows the machine, is let in, and reads its usage.
    let heir = cloud.backend();
    heir.adopt(&job.grant, &job.name);
    assert_eq!(heir.load(), 1);
    let exit = heir.stop(&job.name).await.unwrap().unwrap();
    assert_eq!(exit.end, LogEnd::Exited);
    assert!(exit.usage.ram_mib_seconds > 0 || exit.usage.cpu_core_seconds < 60, "{exit:?}");
    heir.terminate(&job.name).await.unwrap();
    heir.terminate(&job.name).await.unwrap();
    assert_eq!((heir.load(), heir.stop(&job.name).await.unwrap()), (0, None));
    assert!(heir.list_owned().await.unwrap().is_empty() && cloud.live().await.is_empty());
    assert_eq!(cloud.hosts.sshd.running(), 0);
    let other = CloudSetup { provider: coalition::ProviderId(UniqueId::hash(b"other")), ..cloud.setup() };
    assert!(CloudBackend::new(other).list_owned().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_is_served_metered_and_its_machine_ended() {
    let Some((cloud, image)) = cloud_and_image().await else { return };
    let mut world = World::new(vec![cloud.backend() as _]);
    world.image = image;
    let bridge = world.start();
    world.card().await;
    let requester = world.ask(201, 600);
    let receipt = world.receipt(&requester).await;
    let said = ssh_into(&receipt, world.path(), "hello; head -c 100000 /dev/zero | wc -c").await;
    assert!(String::from_utf8_lossy(&said.stdout).contains("100000"), "{said:?}");
    world.stage(&requester, "serving", |stage| *stage == GrantStage::Serving).await;
    assert_eq!(cloud.live().await.len(), 1);
    requester.end(&world.market);
    assert_eq!(world.ended(&requester).await, GrantEnd::Logged(LogEnd::EndedByRequester));
    let record = world.market.record(&requester.id()).unwrap();
    assert!(record.final_log && record.usage.net_bytes > 0, "{:?}", record.usage);
    assert!(cloud.live().await.is_empty(), "nothing is left that costs money");
    bridge.stop().await;
    // What AWS was told of the requester: nothing.
    let told: Vec<u8> = cloud.double.proxy.calls().iter().flat_map(|call| call.body.to_vec()).collect();
    for mark in requester.marks() {
        assert!(!told.windows(mark.len()).any(|window| window == mark), "{}", String::from_utf8_lossy(&mark));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_killed_at_any_time_finds_its_machines_and_ends_what_nobody_explains() {
    let Some((cloud, image)) = cloud_and_image().await else { return };
    let mut world = World::new(vec![cloud.backend() as _]);
    world.image = image;
    let bridge = world.start();
    world.card().await;
    // Killed while the machine comes up: it may be there, and the journal only says that it was about to be.
    let requester = world.ask(202, 600);
    eventually("a machine to be made", || (cloud.double.proxy.count("RunInstances") > 0).then_some(())).await;
    bridge.kill().await;
    // A machine of ours that no grant explains.
    let orphan = Job::new(&cloud.hosts, "aws", 9, b"whatever", 60_000);
    let error = orphan.run(&cloud.backend()).await.unwrap_err();
    assert_eq!((error.kind, error.remains), (FailureKind::BadImage, true), "it ran as far as its image goes: {error}");
    world.backends = vec![cloud.backend() as _];
    let bridge = world.start();
    let receipt = world.receipt(&requester).await;
    world.stage(&requester, "serving", |stage| *stage == GrantStage::Serving).await;
    for _ in 0..600 {
        if cloud.live().await.len() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let live = cloud.live().await;
    assert_eq!(live.len(), 1, "{live:?}");
    assert_eq!(live[0].public_address.unwrap().to_string(), receipt.instance_host);
    // Killed while it is served: the next process watches the same machine, which noticed nothing.
    bridge.kill().await;
    assert_eq!(ssh_into(&receipt, world.path(), "echo alive").await.stdout, b"alive\n");
    world.backends = vec![cloud.backend() as _];
    let bridge = world.start();
    requester.end(&world.market);
    assert_eq!(world.ended(&requester).await, GrantEnd::Logged(LogEnd::EndedByRequester));
    assert!(cloud.live().await.is_empty() && cloud.hosts.sshd.running() == 0);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_room_goes_to_the_next_subnet_and_then_back() {
    let Some((cloud, image)) = cloud_and_image().await else { return };
    let backend = cloud.backend();
    let full = || Fault::Refuse("InsufficientInstanceCapacity", 500);
    cloud.double.proxy.fail("RunInstances", [full()]);
    let job = Job::new(&cloud.hosts, "aws", 1, &image, 60_000);
    job.run(&backend).await.unwrap();
    let asked: Vec<String> = cloud
        .double
        .proxy
        .calls()
        .iter()
        .filter(|call| call.action == "RunInstances")
        .map(|call| call.params["NetworkInterface.1.SubnetId"].clone())
        .collect();
    assert_eq!(asked, cloud.double.moto.subnets[..2]);
    backend.terminate(&job.name).await.unwrap();
    for (faults, kind) in [
        (vec![full(), full()], FailureKind::Capacity),
        (vec![Fault::Refuse("VcpuLimitExceeded", 400)], FailureKind::Quota),
        (vec![Fault::Refuse("UnauthorizedOperation", 403)], FailureKind::Auth),
        (vec![Fault::Refuse("InvalidSubnetID.NotFound", 400)], FailureKind::NotFound),
    ] {
        cloud.double.proxy.fail("RunInstances", faults);
        let job = Job::new(&cloud.hosts, "aws", 2, b"whatever", 60_000);
        let error = job.run(&backend).await.unwrap_err();
        assert_eq!((error.kind, error.started, error.remains), (kind, false, false), "{error}");
        backend.terminate(&job.name).await.unwrap();
    }
    assert!(cloud.live().await.is_empty() && backend.load() == 0);
    // What is declared, and what the account may have, hold also against what was reserved elsewhere.
    cloud.double.proxy.quota(3);
    let small = cloud.backend();
    assert_eq!(small.capabilities().await.capabilities.max_instances, 0, "the largest size does not fit");
    small.adopt(&job.grant, &job.name);
    let error = Job::new(&cloud.hosts, "aws", 3, b"whatever", 60_000).run(&small).await.unwrap_err();
    assert_eq!(error.kind, FailureKind::Quota, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_makes_one_machine_and_throttling_none_too_few() {
    let Some((cloud, image)) = cloud_and_image().await else { return };
    let backend = cloud.backend();
    let proxy = &cloud.double.proxy;
    proxy.fail(
        "RunInstances",
        [
            Fault::LoseAnswer,
            Fault::Refuse("RequestLimitExceeded", 503),
            Fault::Garble,
            Fault::Refuse("InternalError", 500),
        ],
    );
    // And EC2 shows what it has made a little later.
    proxy.fail("DescribeInstances", [Fault::ShowNothing, Fault::ShowNothing, Fault::ShowNothing]);
    let job = Job::new(&cloud.hosts, "aws", 1, &image, 60_000);
    job.run(&backend).await.unwrap();
    assert_eq!((proxy.count("RunInstances"), cloud.live().await.len()), (5, 1));
    backend.terminate(&job.name).await.unwrap();
    // Never answered: it is not known whether there is one, so ending it looks long enough to be sure.
    proxy.fail(
        "RunInstances",
        [Fault::LoseAnswer, Fault::LoseAnswer, Fault::LoseAnswer, Fault::LoseAnswer, Fault::LoseAnswer],
    );
    let job = Job::new(&cloud.hosts, "aws", 2, &image, 60_000);
    let error = job.run(&backend).await.unwrap_err();
    assert!(error.kind == FailureKind::Transient && error.remains, "{error}");
    assert_eq!(cloud.live().await.len(), 1);
    proxy.fail("DescribeInstances", [Fault::ShowNothing, Fault::ShowNothing]);
    backend.terminate(&job.name).await.unwrap();
    assert!(cloud.live().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_that_do_not_come_up_are_typed_failures_and_ended() {
    let Some(cloud) = Cloud::start().await else { return };
    let setup = CloudSetup { boot_timeout: Duration::from_secs(3), ..cloud.setup() };
    let backend = CloudBackend::new(setup.clone());
    cloud.double.proxy.no_addresses(true);
    let job = Job::new(&cloud.hosts, "aws", 1, b"whatever", 60_000);
    let error = job.run(&backend).await.unwrap_err();
    assert!(error.kind == FailureKind::Transient && error.message.contains("no address"), "{error}");
    backend.terminate(&job.name).await.unwrap();
    cloud.double.proxy.no_addresses(false);
    // Another host key than the one it was told: somebody else's machine, or somebody in between. Nothing is sent there.
    let impostor = coalition_host::keys::generate("impostor").private_openssh.expose().to_owned();
    *cloud.hosts.sshd.impostor.lock().unwrap() = Some(impostor);
    let job = Job::new(&cloud.hosts, "aws", 2, b"whatever", 60_000);
    let error = job.run(&backend).await.unwrap_err();
    assert!(
        error.kind == FailureKind::Auth && error.message.contains("shows the host key") && error.remains,
        "{error}"
    );
    backend.terminate(&job.name).await.unwrap();
    *cloud.hosts.sshd.impostor.lock().unwrap() = None;
    // EC2 itself ends it while it comes up, and says why.
    let over = |code: &str, name: &InstanceName| {
        let tags = format!("<tagSet><item><key>coalition:instance</key><value>{name}</value></item></tagSet>");
        Fault::Answer(format!(
            "<R><reservationSet><item><instancesSet><item><instanceId>i-0123456789abcdef0</instanceId><instanceState>\
             <name>terminated</name></instanceState><stateReason><code>{code}</code><message>m</message></stateReason>{tags}\
             </item></instancesSet></item></reservationSet></R>"
        ))
    };
    let codes = [
        ("Server.InsufficientInstanceCapacity", FailureKind::Capacity),
        ("Client.VolumeLimitExceeded", FailureKind::Quota),
        ("Server.InternalError", FailureKind::Transient),
    ];
    for (n, (code, kind)) in codes.into_iter().enumerate() {
        let job = Job::new(&cloud.hosts, "aws", 10 + u8::try_from(n).unwrap(), b"whatever", 60_000);
        cloud.double.proxy.fail("DescribeInstances", [over(code, &job.name)]);
        let error = job.run(&backend).await.unwrap_err();
        assert!(error.kind == kind && error.message.contains(code), "{error}");
        backend.terminate(&job.name).await.unwrap();
    }
    assert!(cloud.live().await.is_empty() && backend.load() == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_ends_nothing_and_a_machine_that_was_ended_elsewhere_does() {
    let Some((cloud, image)) = cloud_and_image().await else { return };
    let backend = cloud.backend();
    let job = Job::new(&cloud.hosts, "aws", 1, &image, 120_000);
    let running = job.run(&backend).await.unwrap();
    let told = Arc::new(tokio::sync::Notify::new());
    let watch = tokio::spawn({
        let (backend, running, told) = (Arc::clone(&backend), running.clone(), Arc::clone(&told));
        async move { backend.watch_until_exit(&running, now_ms() + 120_000, &|_| told.notify_one()).await }
    });
    tokio::time::timeout(SOON, told.notified()).await.expect("the usage so far is told");
    cloud.double.proxy.blind(true);
    let before = cloud.double.proxy.count("DescribeInstances");
    eventually("looks in vain", || (cloud.double.proxy.count("DescribeInstances") > before + 12).then_some(())).await;
    assert!(!watch.is_finished(), "an outage is not an end");
    assert!(backend.list_owned().await.is_err() && backend.terminate(&job.name).await.is_err());
    let offering = backend.capabilities().await;
    assert!(!offering.reachable && offering.capabilities.max_instances == 0 && backend.trouble().is_some());
    cloud.double.proxy.blind(false);
    assert!(backend.capabilities().await.reachable && backend.trouble().is_none());
    // One listing without it is no end, either.
    cloud.double.proxy.fail("DescribeInstances", [Fault::ShowNothing, Fault::ShowNothing]);
    let before = cloud.double.proxy.count("DescribeInstances");
    eventually("two looks", || (cloud.double.proxy.count("DescribeInstances") > before + 3).then_some(())).await;
    assert!(!watch.is_finished(), "a few late listings are not an end");
    // Somebody ends it in AWS's own console.
    let id = cloud.live().await[0].id.clone();
    assert!(cloud.console().terminate(&[id]).await.unwrap().iter().all(|one| one.state.is_over()));
    let exit = tokio::time::timeout(SOON, watch).await.unwrap().unwrap().unwrap();
    assert_eq!(exit.end, LogEnd::BackendLost);
    assert_eq!(backend.stop(&job.name).await.unwrap(), None);
    backend.terminate(&job.name).await.unwrap();
    assert_eq!(backend.load(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_disks_with_our_tags_are_deleted() {
    let Some(cloud) = Cloud::start().await else { return };
    let backend = cloud.backend();
    let name = InstanceName::derive(&provider(), &coalition::RequestId(UniqueId::hash(b"gone")), 0);
    let disk = |id: &str, bridge: &str, instance: &str, status: &str| {
        let tag = |key: &str, value: &str| format!("<item><key>{key}</key><value>{value}</value></item>");
        format!(
            "<item><volumeId>vol-{id}</volumeId><status>{status}</status><size>8</size><tagSet>{}{}{}</tagSet></item>",
            tag("coalition:bridge", bridge),
            tag("coalition:offer", "aws"),
            tag("coalition:instance", instance)
        )
    };
    let (ours, theirs) = (provider().to_string(), "somebody".to_owned());
    // Whatever EC2 answers, only what is ours by its own tags and attached to nothing is touched.
    let listed = [
        disk("00000001", &ours, name.as_str(), "available"),
        disk("00000002", &theirs, name.as_str(), "available"),
        disk("00000003", &ours, name.as_str(), "in-use"),
        disk("00000004", &ours, "not a name", "available"),
        "<item><volumeId>vol-00000005</volumeId><status>available</status><size>8</size></item>".to_owned(),
    ];
    let answer = || Fault::Answer(format!("<R><volumeSet>{}</volumeSet></R>", listed.concat()));
    cloud.double.proxy.fail("DescribeVolumes", [answer()]);
    assert_eq!(held(backend.as_ref()).await, [(name.clone(), false)]);
    cloud.double.proxy.fail("DescribeVolumes", [answer()]);
    backend.terminate(&name).await.unwrap();
    let deleted: Vec<String> = cloud
        .double
        .proxy
        .calls()
        .iter()
        .filter(|call| call.action == "DeleteVolume")
        .map(|call| call.params["VolumeId"].clone())
        .collect();
    assert_eq!(deleted, ["vol-00000001"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_asks_everything_makes_nothing_and_makes_one_machine_when_told() {
    let Some(cloud) = Cloud::start().await else { return };
    let backend = cloud.backend();
    let plain = backend.check(false).await;
    assert!(plain.iter().all(|finding| finding.ok), "{plain:#?}");
    let told =
        |what: &str| plain.iter().find(|f| f.what.contains(what)).unwrap_or_else(|| panic!("{what}: {plain:#?}"));
    assert!(told("credentials").detail.contains("123456789012"));
    assert!(told("quota").detail.contains("4 of the largest size fit"));
    assert!(told("round trip").detail.contains("for at most $0.025 (one m6a.large, 15 min"), "{plain:#?}");
    assert_eq!(plain.iter().filter(|finding| finding.what.contains("permission to make")).count(), 4);
    assert!(cloud.live().await.is_empty() && cloud.hosts.sshd.running() == 0);
    let made = backend.check(true).await;
    let last = made.last().unwrap();
    assert!(last.ok && last.detail.contains("ended and confirmed"), "{last:?}");
    assert!(cloud.live().await.is_empty() && cloud.hosts.sshd.running() == 0);
    // Each thing that is wrong is named.
    let wrong = |change: &dyn Fn(&mut Size)| {
        let mut setup = cloud.setup();
        change(&mut setup.sizes[0]);
        CloudBackend::new(setup)
    };
    let elsewhere = Ec2Region::new(RegionSetup { image: "ami-00000000000000000".into(), ..cloud.region() }).unwrap();
    let sev_snp = Some(coalition_cloud::Confidential::SevSnp);
    let cases: [(&str, &str, CloudBackend); 4] = [
        ("image", "has no image", CloudBackend::new(CloudSetup { cloud: Arc::new(elsewhere), ..cloud.setup() })),
        ("sizes", "sold are 9000", wrong(&|size| size.cpu_millicores = 9_000)),
        ("sizes", "SEV-SNP", wrong(&|size| (size.name, size.confidential) = ("t3.2xlarge".into(), sev_snp))),
        ("sizes", "eu-central-1 has no m6a.tiny", wrong(&|size| size.name = "m6a.tiny".into())),
    ];
    for (what, words, backend) in cases {
        let findings = backend.check(true).await;
        let bad = findings.iter().find(|f| !f.ok && f.what.contains(what)).unwrap_or_else(|| panic!("{findings:#?}"));
        assert!(bad.detail.contains(words), "{bad:?}");
        assert!(findings.last().unwrap().detail.contains("not tried"));
    }
    cloud.double.proxy.fail("RunInstances", [Fault::Refuse("UnauthorizedOperation", 403)]);
    let findings = backend.check(true).await;
    let bad: Vec<_> = findings.iter().filter(|finding| !finding.ok).collect();
    assert!(bad.len() == 2 && bad[0].what.contains("permission to make a m6a.xlarge"), "{findings:#?}");
    cloud.double.proxy.fail("GetCallerIdentity", [Fault::Refuse("ExpiredToken", 403)]);
    let findings = backend.check(true).await;
    assert!(matches!(findings.as_slice(), [one] if !one.ok && one.detail.contains("ExpiredToken")), "{findings:?}");
    assert!(cloud.console().instances(&[]).await.unwrap().iter().all(|one| one.state == InstanceState::Terminated));
}

#[tokio::test(flavor = "multi_thread")]
async fn permissions_revoked_while_it_runs_end_nothing_and_are_named() {
    let Some((cloud, image)) = cloud_and_image().await else { return };
    let backend = cloud.backend();
    let job = Job::new(&cloud.hosts, "aws", 1, &image, 120_000);
    let running = job.run(&backend).await.unwrap();
    let watch = tokio::spawn({
        let (backend, running) = (Arc::clone(&backend), running.clone());
        async move { backend.watch_until_exit(&running, now_ms() + 120_000, &|_| ()).await }
    });
    let proxy = &cloud.double.proxy;
    for (code, status) in [("UnauthorizedOperation", 403), ("AuthFailure", 401)] {
        let before = proxy.count("DescribeInstances");
        proxy.fail("DescribeInstances", (0..12).map(|_| Fault::Refuse(code, status)));
        let refused = backend.list_owned().await.unwrap_err();
        assert!(refused.kind == FailureKind::Auth && refused.message.contains(code), "{refused}");
        assert!(backend.trouble().is_some_and(|trouble| trouble.contains(code)), "{code}");
        eventually("looks in vain", || (proxy.count("DescribeInstances") >= before + 12).then_some(())).await;
        assert!(!watch.is_finished(), "{code} is not an end");
    }
    assert!(backend.capabilities().await.reachable && backend.trouble().is_none(), "seen again");
    assert!(!watch.is_finished());
    backend.terminate(&job.name).await.unwrap();
    watch.abort();
    assert!(cloud.live().await.is_empty());
}
