//! Rules of egress on real grants: what they open, what they never open, and that they hold under load.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use coalition_host::state::now_unix_ms;
use coalition_host::{Egress, Phase, ProbeReport, RunnerState};

use super::harness::{As, Grant, Host, Seen, await_some};
use super::outside::{METADATA, NEIGHBOUR, OTHER, OWN, Outside, PUBLIC, RESOLVER, web};

fn rules(texts: &[&str]) -> Egress {
    Egress::Rules(texts.iter().map(|text| text.parse().unwrap()).collect())
}

/// A line of shell that fetches `ADDRESS:PORT/N` and says how many bytes came.
fn line(at: &str) -> String {
    let (place, path) = at.split_once('/').unwrap_or((at, "2"));
    let (address, port) = place.split_once(':').unwrap();
    format!("printf 'GET /{path} HTTP/0.9\\r\\n\\r\\n' | busybox nc -w 20 {address} {port} | wc -c")
}

/// Answers what a workload gets there.
fn fetch(grant: &Grant<'_>, at: &str) -> Seen {
    grant.ssh(&line(at))
}

fn assert_refused(grant: &Grant<'_>, at: &str) {
    let began = Instant::now();
    let seen = fetch(grant, at);
    assert_eq!(seen.out.trim(), "0", "{at}: {seen:?}");
    assert!(seen.err.contains("refused"), "{at}: {seen:?}");
    assert!(began.elapsed() < Duration::from_secs(10), "{at}: only after {:?}", began.elapsed());
}

fn losses(grant: &Grant<'_>) -> Vec<String> {
    let Phase::Ready { isolation, .. } = grant.status().phase else { panic!() };
    isolation.losses
}

/// Hosts whose workloads can have a tunnel: root's, and an ordinary user's who may open the device. This machine's own may be
/// root's alone, so the test puts one there that is not; only it sees that.
fn hosts() -> Vec<Host> {
    let mut hosts: Vec<Host> = Host::new(As::Root).into_iter().collect();
    if let Some(host) = Host::new(As::User) {
        let node = host.temp.path().join("tun");
        let (kind, mode) = (nix::sys::stat::SFlag::S_IFCHR, nix::sys::stat::Mode::from_bits_truncate(0o666));
        nix::sys::stat::mknod(&node, kind, mode, nix::sys::stat::makedev(10, 200)).unwrap();
        std::fs::set_permissions(&node, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        let none = None::<&str>;
        nix::mount::mount(Some(&node), "/dev/net/tun", none, nix::mount::MsFlags::MS_BIND, none).unwrap();
        hosts.push(host);
    }
    hosts
}

#[test]
fn rules_open_what_they_say_and_count_what_passes() {
    let Some(outside) = Outside::new() else { return };
    let (there, beside) = (outside.web(&format!("{PUBLIC}:8080")), outside.web(&format!("{PUBLIC}:8081")));
    let (neighbour, metadata) = (outside.web(&format!("{NEIGHBOUR}:8080")), outside.web(&format!("{METADATA}:80")));
    let own = web(std::net::TcpListener::bind("0.0.0.0:8080").unwrap());
    for host in hosts() {
        let probe: ProbeReport = host.answer(&["probe"]).unwrap();
        assert_eq!(probe.egress_problem, None);
        let grant = host.start(|spec| spec.egress = rules(&[&format!("{PUBLIC}:8080"), "10.0.7.0/24"]));
        assert!(
            losses(&grant)[0].contains(&format!("may connect to {PUBLIC}:8080, 10.0.7.0/24")),
            "{:?}",
            losses(&grant)
        );
        assert_eq!(grant.ssh("cat /etc/resolv.conf").out, "nameserver 192.0.0.1\n");

        let (before, received) = (there.all.load(Ordering::SeqCst), there.received.load(Ordering::SeqCst));
        assert_eq!(fetch(&grant, &format!("{PUBLIC}:8080/5000000")).out.trim(), "5000000");
        let sent = grant.ssh(&format!("dd if=/dev/zero bs=100k count=30 2>/dev/null | nc {PUBLIC} 8080; echo sent"));
        assert_eq!(sent.out, "sent\n", "{sent:?}");
        assert_eq!(there.all.load(Ordering::SeqCst), before + 2);
        await_some("all that was sent", Duration::from_secs(10), || {
            (there.received.load(Ordering::SeqCst) - received >= 3_072_000).then_some(())
        });
        for closed in [
            format!("{PUBLIC}:8081"),
            format!("{OTHER}:8080"),
            format!("{NEIGHBOUR}:8080"),
            format!("{OWN}:8080"),
            format!("{METADATA}:80"),
            "192.0.0.1:8080".into(),
        ] {
            assert_refused(&grant, &closed);
        }
        assert!(grant.ssh(&format!("ping -c 1 -W 5 {PUBLIC}")).code != 0, "somebody else answered");

        // The end moves as ever, and takes the way out along.
        let until = (now_unix_ms() + 300_000).to_string();
        let moved: RunnerState = host.answer(&["extend", "--dir", grant.dir_text(), "--until", &until]).unwrap();
        assert_eq!(moved.valid_to_unix_ms.to_string(), until);
        assert_eq!(fetch(&grant, &format!("{PUBLIC}:8080/7")).out.trim(), "7");
        let Phase::Ended { usage, .. } = grant.stop().phase else { panic!() };
        let counted = 5_000_000 + 3_072_000_u64;
        let differ = usage.net_bytes.abs_diff(counted);
        eprintln!(
            "{:?}: {} bytes metered, {counted} carried, {} refused",
            host.kind, usage.net_bytes, usage.egress_refused
        );
        assert!(differ * 50 <= counted, "{} bytes metered, {counted} carried", usage.net_bytes);
        assert!(usage.egress_refused >= 6, "{usage:?}");
        grant.assert_no_process();
        grant.clean();
    }
    for (name, visitors) in [("8081", beside), ("neighbour", neighbour), ("metadata", metadata), ("own", own)] {
        assert_eq!(visitors.all.load(Ordering::SeqCst), 0, "somebody came to {name}");
    }
}

#[test]
fn names_open_their_addresses_once_resolved_and_never_private_ones() {
    let Some(outside) = Outside::new() else { return };
    let Some(host) = Host::new(As::Root) else { return };
    let asked = outside.resolver(&[
        ("good.example", PUBLIC, 300),
        ("deb.good.example", OTHER, 300),
        ("evil.example", NEIGHBOUR, 300),
        ("cloud.example", METADATA, 300),
        ("self.example", OWN, 300),
    ]);
    for at in [PUBLIC, OTHER] {
        outside.web(&format!("{at}:80"));
    }
    let (neighbour, metadata) = (outside.web(&format!("{NEIGHBOUR}:80")), outside.web(&format!("{METADATA}:80")));
    let own = web(std::net::TcpListener::bind(format!("{OWN}:80")).unwrap());
    let grant = host.start(|spec| {
        let resolver = format!("{RESOLVER}:53/udp");
        spec.egress =
            rules(&["good.example:80", "*.good.example", "evil.example", "cloud.example", "self.example", &resolver]);
    });
    assert_refused(&grant, &format!("{PUBLIC}:80/5"));
    for (name, at) in [("good.example", PUBLIC), ("deb.good.example", OTHER)] {
        let seen = grant.ssh(&format!("nslookup {name}"));
        assert!(seen.out.contains(at), "{seen:?}");
        assert_eq!(fetch(&grant, &format!("{at}:80/5")).out.trim(), "5");
    }
    // Its port is that of its rule.
    assert_refused(&grant, &format!("{PUBLIC}:81"));
    for (name, at) in [("evil.example", NEIGHBOUR), ("cloud.example", METADATA), ("self.example", OWN)] {
        let seen = grant.ssh(&format!("nslookup {name}"));
        assert!(seen.out.contains(at), "{seen:?}");
        assert_refused(&grant, &format!("{at}:80/5"));
    }
    // What no rule names is not even asked about, and a resolver elsewhere is out of reach; that of a rule is not.
    let before = asked.load(Ordering::SeqCst);
    let seen = grant.ssh("nslookup c2VjcmV0.other.example");
    assert!(seen.code != 0 && seen.out.contains("REFUSED"), "{seen:?}");
    assert_eq!(asked.load(Ordering::SeqCst), before);
    let told = || grant.ssh("awk '/^Icmp: [0-9]/ { print $5 }' /proc/net/snmp").out.trim().parse::<u64>().unwrap();
    let before_datagrams = told();
    assert!(grant.ssh(&format!("nslookup good.example {OTHER}")).code != 0);
    assert!(told() > before_datagrams, "nobody was told that datagrams go nowhere");
    let seen = grant.ssh(&format!("nslookup unheard.example {RESOLVER}"));
    assert!(asked.load(Ordering::SeqCst) > before, "{seen:?}");
    for (name, visitors) in [("the neighbour", neighbour), ("the metadata", metadata), ("the host", own)] {
        assert_eq!(visitors.all.load(Ordering::SeqCst), 0, "somebody came to {name}");
    }
    grant.clean();
}

#[test]
fn everything_is_still_not_the_host_itself_nor_a_clouds_credentials() {
    let Some(outside) = Outside::new() else { return };
    let Some(host) = Host::new(As::Root) else { return };
    let metadata = outside.web(&format!("{METADATA}:80"));
    outside.web(&format!("{NEIGHBOUR}:80"));
    outside.web(&format!("{PUBLIC}:80"));
    let own = web(std::net::TcpListener::bind("0.0.0.0:80").unwrap());
    let grant = host.start(|spec| spec.egress = rules(&["0.0.0.0/0", "::/0", "public/any"]));
    for open in [NEIGHBOUR, PUBLIC] {
        assert_eq!(fetch(&grant, &format!("{open}:80/9")).out.trim(), "9");
    }
    for closed in [METADATA, OWN] {
        assert_refused(&grant, &format!("{closed}:80/9"));
    }
    assert_eq!((metadata.all.load(Ordering::SeqCst), own.all.load(Ordering::SeqCst)), (0, 0));
    grant.clean();
    // Exactly that one, when the operator says so.
    let grant = host.start(|spec| spec.egress = rules(&[&format!("{OWN}:80")]));
    assert_eq!(fetch(&grant, &format!("{OWN}:80/9")).out.trim(), "9");
    grant.clean();
}

#[test]
fn a_flood_of_connections_stays_bounded_and_passes() {
    let Some(outside) = Outside::new() else { return };
    let Some(host) = Host::new(As::Root) else { return };
    let there = outside.web(&format!("{PUBLIC}:80"));
    let grant = host.start(|spec| {
        (spec.egress, spec.pids_max, spec.ram_mib) = (rules(&["public"]), 700, 512);
    });
    // Each holds its connection until its input ends.
    let flood = format!(
        "mkfifo /tmp/f; exec 2>/dev/null; sleep 60 >/tmp/f & for i in $(seq 400); do nc {PUBLIC} 80 </tmp/f >/dev/null & done; echo begun"
    );
    assert_eq!(grant.ssh(&flood).out, "begun\n");
    let refused = || grant.usage().egress_refused;
    await_some("refusals of what is too much", Duration::from_secs(30), || (refused() >= 100).then_some(()));
    assert!((200..=256).contains(&there.most()), "{} connections at one time", there.most());
    let supervisor = grant.state.as_ref().unwrap().supervisor.pid;
    let descriptors = std::fs::read_dir(format!("/proc/{supervisor}/fd")).unwrap().count();
    assert!(descriptors < 400, "{descriptors} descriptors");
    assert_eq!(grant.ssh("killall sleep nc; echo alive").out, "alive\n");
    await_some("room again", Duration::from_secs(30), || {
        (fetch(&grant, &format!("{PUBLIC}:80/5")).out.trim() == "5").then_some(())
    });
    grant.clean();
}

#[test]
fn one_connection_is_quick_and_a_limit_of_bandwidth_holds_on_every_way() {
    let Some(outside) = Outside::new() else { return };
    let Some(host) = Host::new(As::Root) else { return };
    outside.web(&format!("{PUBLIC}:80"));
    let timed = |grant: &Grant<'_>, bytes: u64| {
        let began = Instant::now();
        assert_eq!(fetch(grant, &format!("{PUBLIC}:80/{bytes}")).out.trim(), bytes.to_string());
        began.elapsed()
    };
    let direct = {
        let began = Instant::now();
        let got =
            std::process::Command::new("sh").arg("-c").arg(line(&format!("{PUBLIC}:80/200000000"))).output().unwrap();
        assert_eq!(got.stdout, b"200000000\n");
        began.elapsed()
    };
    let grant = host.start(|spec| spec.egress = rules(&["public:80"]));
    let took = timed(&grant, 200_000_000);
    let rate = |took: Duration| 200_000 / u64::try_from(took.as_millis().max(1)).unwrap();
    eprintln!("one connection: {} MB/s through the tunnel, {} MB/s without", rate(took), rate(direct));
    assert!(rate(took) >= 10, "only {} MB/s", rate(took));
    grant.clean();

    // 5,000,000 bytes a second, whichever way they go.
    let grant = host.start(|spec| (spec.egress, spec.network_mbit) = (rules(&["public:80"]), Some(40)));
    let allowed = |bytes: u64, took: Duration, what: &str| {
        let least = Duration::from_millis((bytes / 5_000).saturating_sub(200));
        eprintln!("{what}: {bytes} bytes in {took:?}");
        assert!(took >= least, "{what}: {bytes} bytes in {took:?}");
        assert!(took <= least * 2 + Duration::from_secs(3), "{what}: {bytes} bytes in {took:?}");
    };
    allowed(12_000_000, timed(&grant, 12_000_000), "egress");
    let (data, began) = (vec![7; 5_000_000], Instant::now());
    assert_eq!(grant.ssh_with(&[], "cat", &data).out.len(), data.len());
    allowed(10_000_000, began.elapsed(), "SSH");
    let began = Instant::now();
    let four = format!("for i in 1 2 3 4; do {} & done; wait", line(&format!("{PUBLIC}:80/3000000")));
    assert_eq!(grant.ssh(&four).out, "3000000\n".repeat(4));
    allowed(12_000_000, began.elapsed(), "four at once");
    grant.clean();
}

/// Where rules cannot be enforced they open nothing, and that is said.
#[test]
fn without_a_tunnel_rules_open_nothing_and_that_is_said() {
    let Some(outside) = Outside::new() else { return };
    let there = outside.web(&format!("{PUBLIC}:80"));
    let none = None::<&str>;
    nix::mount::mount(Some("/dev/null"), "/dev/net/tun", none, nix::mount::MsFlags::MS_BIND, none).unwrap();
    for host in Host::each() {
        let probe: ProbeReport = host.answer(&["probe"]).unwrap();
        assert!(probe.egress_problem.is_some(), "{:?}", host.kind);
        let grant = host.start(|spec| spec.egress = rules(&["public:80"]));
        assert!(
            losses(&grant).iter().any(|loss| loss.contains("rules of egress open nothing")),
            "{:?}",
            losses(&grant)
        );
        let seen = fetch(&grant, &format!("{PUBLIC}:80/5"));
        assert_eq!(seen.out.trim(), "0", "{:?}: {seen:?}", host.kind);
        assert!(seen.err.contains("unreachable") || seen.err.contains("not permitted"), "{:?}: {seen:?}", host.kind);
        grant.clean();
    }
    assert_eq!(there.all.load(Ordering::SeqCst), 0);
}

/// The walls are around QEMU, so a machine's rules are the same ones.
#[test]
fn a_machine_reaches_what_the_rules_allow_and_nothing_else() {
    let Some(outside) = Outside::new() else { return };
    let Some((host, machine)) = super::machine::host(As::Root) else { return };
    outside.resolver(&[("good.example", PUBLIC, 300)]);
    let (_, beside) = (outside.web(&format!("{PUBLIC}:80")), outside.web(&format!("{PUBLIC}:81")));
    let metadata = outside.web(&format!("{METADATA}:80"));
    let own = web(std::net::TcpListener::bind("0.0.0.0:80").unwrap());
    let grant = host.start(|spec| {
        (spec.machine, spec.egress) = (Some(machine.clone()), rules(&["good.example:80"]));
        spec.valid_to_unix_ms += 600_000;
    });
    assert!(losses(&grant).iter().any(|loss| loss.contains("may connect to good.example:80")), "{:?}", losses(&grant));
    let seen = grant.ssh("nslookup good.example");
    assert!(seen.out.contains(PUBLIC) && seen.out.contains("10.0.2.3"), "{seen:?}");
    assert_eq!(fetch(&grant, &format!("{PUBLIC}:80/300000")).out.trim(), "300000");
    // 10.0.2.2 is the loopback of where QEMU runs: nothing but this machine's own SSH server is behind it.
    for closed in [
        format!("{PUBLIC}:81"),
        format!("{METADATA}:80"),
        format!("{OWN}:80"),
        "10.0.2.2:80".into(),
        "10.0.2.2:22".into(),
    ] {
        assert_refused(&grant, &closed);
    }
    let scan = "for p in $(seq 2200 2240); do nc -w 1 10.0.2.2 $p </dev/null >/dev/null 2>&1 && echo $p; done";
    assert_eq!(grant.ssh(scan).out, "2222\n");
    let visitors = [beside, metadata, own].map(|visitors| visitors.all.load(Ordering::SeqCst));
    assert_eq!(visitors, [0; 3]);
    let Phase::Ended { usage, .. } = grant.stop().phase else { panic!() };
    assert!(usage.net_bytes > 300_000 && usage.egress_refused >= 3, "{usage:?}");
    grant.clean();
}
