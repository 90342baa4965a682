use std::time::{Duration, Instant};

use coalition_host::output::Stream;
use coalition_host::{EndReason, Mechanism, Phase};

use super::harness::{As, Host, await_some, text};

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

#[test]
fn who_forks_without_end_hurts_nobody_else() {
    for host in Host::each().into_iter().filter(|h| h.kind != As::Bare) {
        let neighbour = host.start(|_| {});
        let grant = host.start(|spec| {
            spec.pids_max = 30;
            spec.command = ["/bin/sh", "-c", "f() { f | f & }; f"].map(str::to_owned).to_vec();
        });
        let began = Instant::now();
        assert_eq!(neighbour.ssh("echo well").out, "well\n", "{:?}", host.kind);
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}: {:?}", host.kind, began.elapsed());
        let Phase::Ended { reason, usage, .. } = grant.stop().phase else { panic!() };
        assert_eq!(reason, EndReason::Stopped);
        assert!(usage.samples > 0);
        grant.assert_no_process();
        grant.clean();
        neighbour.clean();
    }
}

/// What a shell's `time` says of its child: user and system time, milliseconds.
fn time_ms(text: &str) -> u64 {
    let seconds = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let (minutes, seconds) = line.trim().trim_end_matches('s').split_once('m').unwrap();
        let (whole, thousandths) = seconds.trim().split_once('.').unwrap_or((seconds.trim(), "0"));
        let number = |text: &str| text.trim().parse::<u64>().unwrap();
        number(minutes) * 60_000 + number(whole) * 1_000 + number(&format!("{thousandths:0<3}")[..3])
    };
    seconds("user") + seconds("sys")
}

fn within_two_percent(what: &str, measured: u64, independent: u64) {
    let differ = measured.abs_diff(independent);
    assert!(differ * 50 <= independent, "{what}: metered {measured}, counted independently {independent}");
    eprintln!("{what}: metered {measured}, counted independently {independent}");
}

/// CPU against what the kernel tells the workload's own shell; network against what the client counted.
#[test]
fn metering_agrees_with_others_who_count() {
    for host in Host::each().into_iter().filter(|h| h.kind != As::Bare) {
        let burn = "time sh -c 'i=0; while [ $i -lt 4000000 ]; do i=$((i+1)); done'; exec sleep 1000";
        let grant = host.start(|spec| spec.command = ["/bin/sh", "-c", burn].map(str::to_owned).to_vec());
        let data = vec![7u8; 5 << 20];
        let mut peer = 0;
        for _ in 0..2 {
            let seen = grant.ssh_with(&[], "cat", &data);
            assert_eq!(seen.out.len(), data.len());
            peer += 2 * data.len() as u64;
        }
        let spent = await_some("the end of the burning", Duration::from_secs(120), || {
            let seen = grant.output("");
            let said = text(&seen, Stream::Stderr);
            peer += seen.iter().map(|record| record.encode().len() as u64).sum::<u64>();
            said.contains("sys").then(|| time_ms(&said))
        });
        let Phase::Ended { usage, .. } = grant.stop().phase else { panic!() };
        assert!(spent > 800, "{spent} ms is too little to compare");
        // The two `cat` and the shells around them are in the grant's time and not in the burning's.
        within_two_percent(&format!("{:?}: CPU ms", host.kind), usage.cpu_core_ms, spent);
        within_two_percent(&format!("{:?}: network bytes", host.kind), usage.net_bytes, peer);
        grant.clean();
    }
}
