use super::harness::{As, Host};

#[test]
fn nothing_of_the_host_is_in_sight() {
    for host in Host::each().into_iter().filter(|h| h.kind != As::Bare) {
        let secret = host.temp.path().join("secret");
        std::fs::write(&secret, "the host's secret").unwrap();
        let grant = host.start(|_| {});
        let path = secret.display();
        let script = format!(
            "cat {path} /../../..{path} /proc/1/root{path} /proc/self/root{path}; \
             ls /proc/1/root /proc/1/fd /proc/1/cwd; head -c 4 /proc/1/exe; cat /proc/1/environ; \
             ps | grep -c ''; hostname"
        );
        let seen = grant.ssh(&script);
        assert!(!seen.out.contains("secret") && !seen.out.contains("ELF"), "{seen:?}");
        assert!(seen.out.ends_with(&format!("grant-{}\n", &grant.spec.grant_id[..8])), "{seen:?}");
        let inside: usize = seen.out.lines().rev().nth(1).unwrap().parse().unwrap();
        assert!(inside < 10, "{inside} processes in sight");
        let mounts = grant.ssh("cat /proc/self/mountinfo").out;
        assert!(!mounts.contains(host.temp.path().to_str().unwrap()) || mounts.lines().count() < 25, "{mounts}");
        grant.clean();
    }
}

#[test]
fn root_inside_has_no_power_over_the_host() {
    for host in Host::each().into_iter().filter(|h| h.kind != As::Bare) {
        let grant = host.start(|_| {});
        let attempts = [
            "mount -t tmpfs none /root",
            "mount -t proc none /root",
            "mount -o remount,rw,dev /",
            "umount /proc",
            "mknod /root/sda b 8 0",
            "hostname owned",
            "chroot /proc/1/root true",
            "nsenter -t 1 -m true",
            "unshare -m true",
            "unshare -U true",
            "echo 1 > /proc/sys/kernel/panic",
            "echo b > /proc/sysrq-trigger",
            "kill -9 1 && sleep 0.2 && ! kill -0 1",
            "ip link set lo down",
            "insmod /bin/busybox",
            "swapon /bin/busybox",
            "date -s 2001-01-01; test $(date +%Y) = 2001",
            "dd if=/dev/mem of=/dev/null bs=1 count=1",
            "echo x > /proc/1/mem",
            "echo x >> /proc/1/exe",
            "renice -n -5 -p $$",
        ];
        for attempt in attempts {
            let seen = grant.ssh(&format!("({attempt}) >/dev/null 2>&1 && echo BROKE OUT"));
            assert!(!seen.out.contains("BROKE OUT"), "{:?}: {attempt}", host.kind);
        }
        assert_eq!(grant.ssh("echo alive").out, "alive\n");
        grant.clean();
    }
}

#[test]
fn set_uid_programs_gain_nothing_and_privileges_are_gone() {
    for host in Host::each().into_iter().filter(|h| h.kind != As::Bare) {
        let grant = host.start(|_| {});
        let status = grant.ssh("cat /proc/self/status").out;
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
        let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:\t")).unwrap();
        let effective = u64::from_str_radix(effective.trim(), 16).unwrap();
        assert!(status.contains("Seccomp:\t2"), "{status}");
        // SYS_MODULE 16, SYS_RAWIO 17, SYS_PTRACE 19, SYS_ADMIN 21, NET_ADMIN 12, NET_RAW 13, MKNOD 27, BPF 39.
        for dangerous in [12, 13, 16, 17, 19, 21, 27, 39] {
            assert_eq!(effective & (1 << dangerous), 0, "capability {dangerous}");
        }
        if host.kind == As::Root {
            let map = grant.ssh("cat /proc/self/uid_map").out;
            let outside: u32 = map.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
            assert!(outside >= 0x7000_0000, "{map}");
            let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(grant.dir.join("rootfs/bin")).unwrap());
            assert_eq!(owner, outside);
            // Other users exist inside, and are other users outside.
            let seen = grant.ssh("touch /tmp/x && chown 65534 /tmp/x && ls -ln /tmp/x");
            assert!(seen.out.contains(" 65534 "), "{seen:?}");
        }
        grant.clean();
    }
}

#[test]
fn two_grants_do_not_see_each_other() {
    for host in Host::each().into_iter().filter(|h| h.kind != As::Bare) {
        let (one, two) = (host.start(|_| {}), host.start(|_| {}));
        assert_eq!(one.ssh("echo mine > /tmp/x; echo mine > /root/x; sleep 60 >/dev/null 2>&1 & echo ok").out, "ok\n");
        let seen = two.ssh("cat /tmp/x /root/x; ps; ls /dev/shm");
        assert!(!seen.out.contains("mine") && !seen.out.contains("sleep 60"), "{seen:?}");
        one.clean();
        assert_eq!(two.ssh("echo alive").out, "alive\n");
        two.clean();
    }
}

#[test]
fn files_our_caller_left_open_do_not_reach_the_workload() {
    for host in Host::each() {
        let secret = host.temp.path().join("secret");
        std::fs::write(&secret, "the caller's secret").unwrap();
        let mut grant = host.prepare(|_| {});
        let runner = host.command();
        let mut words: Vec<String> = vec!["exec 9<\"$0\"; exec \"$@\"".into(), secret.display().to_string()];
        words.push(runner.get_program().to_str().unwrap().to_owned());
        words.extend(runner.get_args().map(|a| a.to_str().unwrap().to_owned()));
        words.extend(["runner", "start", "--dir", grant.dir_text()].map(str::to_owned));
        let output = std::process::Command::new("sh").arg("-c").args(words).output().unwrap();
        let state = coalition_host::parse_answer(std::str::from_utf8(&output.stdout).unwrap().trim_end()).unwrap();
        grant.ready(state);
        let seen = grant.ssh("cat <&9; for i in /proc/self/fd/*; do echo $i; done");
        assert!(!seen.out.contains("secret") && !seen.out.contains("fd/9\n"), "{:?}: {seen:?}", host.kind);
        grant.clean();
    }
}

/// One who looks around finds itself and nobody else: not the host, not a neighbour, not the address at which clouds hand
/// out a machine's credentials.
#[test]
fn the_network_has_nobody_else_in_it() {
    for host in Host::each().into_iter().filter(|h| h.kind != As::Bare) {
        let open = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port = open.local_addr().unwrap().port();
        let neighbour = host.start(|spec| {
            spec.command = ["/bin/sh", "-c", "exec nc -l -p 9000"].map(str::to_owned).to_vec();
        });
        let grant = host.start(|_| {});
        // An address of the host that others reach it at, if it has one.
        let outside = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let own = outside.connect("192.0.2.1:9").and_then(|()| outside.local_addr()).map(|a| a.ip().to_string());
        let own = own.unwrap_or_else(|_| "127.0.0.2".into());
        let places = [
            ("127.0.0.1".to_owned(), port),
            (own.clone(), port),
            (own, neighbour.port()),
            ("127.0.0.1".into(), 9000),
            ("169.254.169.254".into(), 80),
            ("10.0.0.1".into(), 22),
            ("192.0.2.1".into(), 443),
        ];
        for (address, port) in places {
            let seen = grant.ssh(&format!("echo x | nc -w 2 {address} {port} && echo REACHED"));
            assert!(!seen.out.contains("REACHED"), "{:?}: {address}:{port}: {seen:?}", host.kind);
            assert!(seen.err.contains("unreachable") || seen.err.contains("refused"), "no answer at all: {seen:?}");
        }
        let seen =
            grant.ssh("ls /sys/class/net 2>/dev/null; tail -n +3 /proc/net/dev | cut -d: -f1; cat /proc/net/route");
        let interfaces: Vec<&str> = seen.out.lines().map(str::trim).filter(|line| !line.starts_with("Iface")).collect();
        assert_eq!(interfaces, ["lo"], "{seen:?}");
        open.set_nonblocking(true).unwrap();
        assert!(open.accept().is_err(), "somebody came");
        grant.clean();
        neighbour.clean();
    }
}

/// A host that cannot give a workload a network of its own lets it use none, unless its provider says otherwise.
#[test]
fn where_the_network_is_the_hosts_it_is_not_the_workloads() {
    let Some(host) = Host::new(As::Bare) else { return };
    let open = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = open.local_addr().unwrap().port();
    let dial = format!("echo x | nc -w 2 127.0.0.1 {port} && echo REACHED");
    let closed = host.start(|_| {});
    let seen = closed.ssh(&dial);
    assert!(!seen.out.contains("REACHED") && seen.err.contains("not permitted"), "{seen:?}");
    // Nor by way of our own SSH server, which does run in the host's network.
    let seen = closed.ssh_with(&["-W", &format!("127.0.0.1:{port}")], "", b"x");
    assert!(seen.code != 0 && seen.out.is_empty(), "{seen:?}");
    open.set_nonblocking(true).unwrap();
    assert!(open.accept().is_err(), "somebody came");
    closed.clean();
    let opened = host.start(|spec| spec.egress = coalition_host::Egress::Host);
    open.set_nonblocking(false).unwrap();
    // Hangs up at once, which is when `nc` ends.
    let host_service = std::thread::spawn(move || drop(open.accept().unwrap()));
    let seen = opened.ssh(&dial);
    assert!(seen.out.contains("REACHED"), "{seen:?}");
    let coalition_host::Phase::Ready { isolation, .. } = opened.status().phase else { panic!() };
    assert!(isolation.losses.iter().any(|loss| loss.contains("may use the host's network")), "{isolation:?}");
    host_service.join().unwrap();
    opened.clean();
}
