use std::time::{Duration, Instant};

use coalition_host::{EndReason, Mechanism, Phase};

use super::harness::{As, Host};

#[test]
fn memory_beyond_the_limit_is_refused_or_kills_only_its_user() {
    for host in Host::each() {
        let grant = host.start(|spec| spec.ram_mib = 48);
        // busybox dd allocates its whole block at once and touches it.
        let seen = grant.ssh("dd if=/dev/zero of=/dev/null bs=200M count=1 2>&1; echo rc=$?");
        assert!(!seen.out.contains("rc=0"), "{:?}: {seen:?}", host.kind);
        assert_eq!(grant.ssh("echo alive").out, "alive\n");
        let seen = grant.ssh("dd if=/dev/zero of=/dev/null bs=8M count=1 2>/dev/null; echo rc=$?");
        assert_eq!(seen.out, "rc=0\n");
        grant.clean();
    }
}

#[test]
fn the_process_limit_holds() {
    for host in Host::each().into_iter().filter(|h| h.kind != As::Bare) {
        let grant = host.start(|spec| spec.pids_max = 12);
        let seen = grant.ssh("for i in $(seq 40); do sleep 99 >/dev/null 2>&1 & done");
        assert!(seen.err.contains("fork"), "{:?}: {seen:?}", host.kind);
        let sleeping = grant.ssh("exec ps").out.lines().filter(|l| l.contains("sleep 99")).count();
        assert!((6..=12).contains(&sleeping), "{:?}: {sleeping}", host.kind);
        grant.clean();
    }
}

#[test]
fn a_share_of_a_core_is_a_share() {
    let Some(host) = Host::new(As::Root) else { return };
    let grant = host.start(|spec| spec.cpu_millicores = 300);
    let Phase::Ready { isolation, .. } = &grant.state.as_ref().unwrap().phase else { panic!() };
    if !matches!(isolation.cpu, Mechanism::CgroupV1 | Mechanism::CgroupV2) {
        eprintln!("skipped: no cpu controller here");
        return;
    }
    let before = grant.usage().cpu_core_ms;
    let began = Instant::now();
    let seen = grant.ssh("for i in 1 2 3; do timeout 3 sh -c 'while :; do :; done' & done; wait; echo done");
    let took = u64::try_from(began.elapsed().as_millis()).unwrap();
    assert!(seen.out.contains("done"));
    let Phase::Ended { usage, .. } = grant.stop().phase else { panic!() };
    let used = usage.cpu_core_ms - before;
    let fair = took * 300 / 1000;
    assert!(used <= fair + fair / 4 + 150, "{used} ms of CPU in {took} ms at 0.3 cores");
    assert!(used > 300, "{used} ms of CPU in {took} ms: was anything metered?");
    grant.clean();
}

#[test]
fn use_is_metered() {
    for host in Host::each() {
        let grant = host.start(|_| {});
        let seen = grant.ssh("timeout 2 sh -c 'while :; do :; done'; dd if=/dev/zero of=/dev/null bs=20M count=400 2>/dev/null; echo done");
        assert!(seen.out.contains("done"), "{seen:?}");
        let Phase::Ended { usage, .. } = grant.stop().phase else { panic!() };
        assert!(usage.cpu_core_ms >= 500, "{:?}: {usage:?}", host.kind);
        assert!(usage.ram_mib_ms > 0 && usage.ram_peak_mib >= 1, "{:?}: {usage:?}", host.kind);
        grant.clean();
    }
}

#[test]
fn too_much_disk_ends_the_grant() {
    let Some(host) = Host::each().into_iter().next() else { return };
    let grant = host.start(|spec| spec.disk_mib = 8);
    let seen = grant.ssh("dd if=/dev/zero of=/root/one bs=1M count=20 2>&1; ls -l /root/one");
    assert!(!seen.out.contains("20971520"), "{seen:?}");
    grant.ssh("for i in 1 2 3 4; do dd if=/dev/zero of=/root/f$i bs=1M count=4 2>/dev/null; done");
    let (reason, detail, _) = grant.await_end(Duration::from_secs(30));
    assert_eq!(reason, EndReason::DiskExceeded);
    assert!(detail.unwrap().contains("8 granted"));
    grant.clean();
}
