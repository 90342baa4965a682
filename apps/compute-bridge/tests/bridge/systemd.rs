//! Grants as units on a host that systemd runs: one guest, booted once, in one test that goes through what happens to hosts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use coalition_compute::LogEnd;
use coalition_host::types::{IsolationLevel, Mechanism, ServiceManager};
use coalition_host::units;
use compute_bridge::backend::*;
use compute_bridge::backends::{BareMetalBackend, BareMetalSetup, HostSetup};
use compute_bridge::now_ms;

use super::baremetal::{Provisioned, provision};
use super::guest::{Guest, PATIENCE};
use super::harness::*;

/// A user's login on the guest, as a host of a bridge's.
struct Site<'a> {
    guest: &'a Guest,
    user: &'static str,
    image: &'a [u8],
    backend: Arc<BareMetalBackend>,
}

impl<'a> Site<'a> {
    fn new(guest: &'a Guest, user: &'static str, image: &'a [u8]) -> Self {
        let usual = setup_for(guest.target(user));
        // The runner alone is a tenth of the bridge, and a guest may be emulated.
        let runner = program().with_file_name("coalition-runner");
        let host = HostSetup {
            program: Some(if runner.exists() { runner } else { program() }),
            watch_interval: Duration::from_secs(1),
            start_timeout: PATIENCE,
            image_timeout: PATIENCE,
            ..usual.host.clone()
        };
        let backend = Arc::new(BareMetalBackend::new(BareMetalSetup { max_instances: 9, host, ..usual }));
        Self { guest, user, image, backend }
    }

    async fn grant(&self, number: u8, lasts: Duration) -> Provisioned {
        let lasts_ms = u64::try_from(lasts.as_millis()).unwrap();
        provision(&self.backend, number, self.image, self.guest.dir(), lasts_ms).await.unwrap()
    }

    /// What `systemctl` of the user's manager says.
    async fn systemctl(&self, words: &str) -> String {
        self.guest.run(&self.line(words)).await
    }

    fn line(&self, words: &str) -> String {
        match self.user {
            "root" => format!("systemctl {words}"),
            user => format!(
                "setpriv --reuid {user} --regid {user} --clear-groups env XDG_RUNTIME_DIR=/run/user/$(id -u {user}) \
                 systemctl --user {words}"
            ),
        }
    }

    async fn property(&self, one: &Provisioned, name: &str) -> String {
        self.systemctl(&format!("show {} --property={name} --value", unit(one))).await
    }

    /// The group of the grant's unit.
    async fn group(&self, one: &Provisioned) -> String {
        format!("/sys/fs/cgroup{}", self.property(one, "ControlGroup").await)
    }

    /// Waits until nothing of the grant is left but its files: no unit, no group, no process.
    async fn is_gone(&self, one: &Provisioned) {
        let (name, unit) = (&one.instance.name, unit(one));
        let state = self.line(&format!("show {unit} --property=ActiveState --value"));
        let line = format!(
            "test \"$({state})\" = inactive && test -z \"$(find /sys/fs/cgroup -name '*{name}*')\" && \
             ! grep -lsz COALITION_GRANT={name} /proc/[0-9]*/environ"
        );
        self.guest.until(&format!("the end of {unit}"), &line).await;
    }

    /// What a command in the grant says, by the way the requester has.
    async fn inside(&self, one: &Provisioned, command: &str) -> String {
        let mut receipt = one.receipt.clone();
        receipt.instance_port = self.guest.forward(one.instance.port);
        let done = ssh_into(&receipt, self.guest.dir(), command).await;
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    }

    async fn remove(&self, one: &Provisioned) {
        self.backend.terminate(&one.instance.name).await.unwrap();
        self.is_gone(one).await;
        let dir = format!("~{}/.coalition-host/owner/grants/{}", self.user, one.instance.name);
        self.guest.run(&format!("test ! -e {dir}")).await;
    }
}

fn unit(one: &Provisioned) -> String {
    units::of_grant(one.instance.name.as_str())
}

/// A watch as the bridge keeps one, and the CPU seconds it has seen.
fn watch(site: &Site<'_>, one: &Provisioned) -> (tokio::task::JoinHandle<Exit>, Arc<AtomicU64>) {
    let (backend, instance, seen) = (Arc::clone(&site.backend), one.instance.clone(), Arc::new(AtomicU64::new(0)));
    let told = Arc::clone(&seen);
    let watch = tokio::spawn(async move {
        let note = |usage: coalition_compute::UsageMetrics| told.store(usage.cpu_core_seconds, Ordering::Relaxed);
        backend.watch_until_exit(&instance, now_ms() + 3_600_000, &note).await.unwrap()
    });
    (watch, seen)
}

async fn ended(what: &str, watch: tokio::task::JoinHandle<Exit>) -> Exit {
    tokio::time::timeout(PATIENCE, watch).await.unwrap_or_else(|_| panic!("{what}: the watch goes on")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_are_units_of_a_host_that_systemd_runs() {
    let dir = tempfile::tempdir().unwrap();
    let Some(image) = example_image(dir.path()) else { return };
    let began = Instant::now();
    let Some(guest) = Guest::boot().await else { return };
    let step = |what: &str| eprintln!("{:>4} s: {what}", began.elapsed().as_secs());
    step("booted");
    let root = Site::new(&guest, "root", &image);
    // The last of three timers is systemd's; these two grants are to meet it, long after the others are looked at.
    let extended = root.grant(1, Duration::from_secs(60)).await;
    root.backend.move_end(&extended.instance.name, now_ms() + 3_600_000).await.unwrap();
    let (hung, hung_since) = (root.grant(2, Duration::from_secs(60)).await, Instant::now());
    guest.run(&format!("kill -STOP {}", root.property(&hung, "MainPID").await)).await;
    step("one is extended, one hangs");
    let lasting = root.grant(3, Duration::from_secs(3_600)).await;
    a_grant_is_a_unit(&root, &lasting).await;
    let (lasts, seen) = watch(&root, &lasting);
    step("a grant is a unit");
    a_killed_supervisor_leaves_nothing(&root).await;
    step("a supervisor was killed");
    a_unit_that_outlives_its_directory_is_found(&root).await;
    step("a directory was removed");
    a_logout_ends_nothing(&root, &lasting).await;
    step("sshd was restarted, everybody logged out");
    where_systemd_refuses_grants_go_without(&root).await;
    step("systemd refused");
    a_user_has_units_as_long_as_it_lingers(&Site::new(&guest, "bridge", &image)).await;
    step("a user's units");

    root.is_gone(&hung).await;
    assert!(hung_since.elapsed() > Duration::from_secs(60), "before its end");
    guest.run(&format!("journalctl --unit={} | grep -q 'runtime time limit'", unit(&hung))).await;
    root.remove(&hung).await;
    assert_eq!(
        root.property(&extended, "ActiveState").await,
        "active",
        "its first end has passed, and systemd's grace"
    );
    assert_eq!(root.inside(&extended, "echo here").await, "here");
    root.remove(&extended).await;
    step("the last timer");

    assert!(!lasts.is_finished());
    eventually("usage to be seen", || (seen.load(Ordering::Relaxed) > 0).then_some(())).await;
    guest.run("sync").await;
    guest.reset();
    let exit = ended("a reset host", lasts).await;
    assert_eq!(exit.end, LogEnd::BackendLost, "the machine is another one after a boot");
    assert!(exit.usage.cpu_core_seconds > 0 && exit.usage.net_bytes > 0, "{exit:?}");
    root.remove(&lasting).await;
    assert!(root.backend.list_owned().await.unwrap().is_empty());
    assert_eq!(root.systemctl("show 'coalition-*' --property=Id,ActiveState").await.matches("=active").count(), 0);
    step("reset");
}

async fn a_grant_is_a_unit(site: &Site<'_>, one: &Provisioned) {
    let probe = site.backend.probe().await.unwrap();
    assert_eq!((probe.supervision.manager, &probe.supervision.problem), (Some(ServiceManager::System), &None));
    assert_eq!((probe.isolation.level, probe.isolation.ram), (IsolationLevel::RootNamespaces, Mechanism::CgroupV2));
    assert_eq!(probe.cgroup_v2, ["cpu", "memory", "pids"]);
    let offering = site.backend.capabilities().await;
    assert!(offering.detail.ends_with("grants are units of the host's systemd"), "{}", offering.detail);
    assert!(!one.receipt.isolation.contains("systemd"), "{}", one.receipt.isolation);

    let expected = [
        ("ActiveState", "active"),
        ("Slice", "coalition.slice"),
        ("Delegate", "yes"),
        ("KillMode", "mixed"),
        ("OOMPolicy", "continue"),
        ("TasksMax", "infinity"),
    ];
    for (name, value) in expected {
        assert_eq!(site.property(one, name).await, value, "{name}");
    }
    let described = site.property(one, "Description").await;
    assert!(described.ends_with(&format!("in {}", dir_in_guest(one))), "{described}");
    assert!(site.property(one, "StatusText").await.starts_with("SSH on "));
    // Nobody is in the unit's own group; supervisor and workload are in groups below; ours at the top is not there.
    let (group, main) = (site.group(one).await, site.property(one, "MainPID").await);
    assert_eq!(site.guest.run(&format!("cat {group}/cgroup.procs")).await, "");
    assert_eq!(site.guest.run(&format!("cat {group}/supervisor/cgroup.procs")).await, main);
    let limits = format!("cd {group}/{} && cat memory.max cpu.max pids.max", one.instance.name);
    assert_eq!(site.guest.run(&limits).await, "67108864\n50000 100000\n65");
    site.guest.run("test ! -e /sys/fs/cgroup/coalition").await;

    // Who runs out of memory is killed alone, and what is used is counted.
    let said = site.inside(one, "dd if=/dev/zero of=/dev/null bs=200M count=1; echo $?; echo $GREETING").await;
    assert_eq!(said, "137\ngood day");
    let oom = format!("grep -c 'oom_kill [1-9]' {group}/{}/memory.events", one.instance.name);
    assert_eq!(site.guest.run(&oom).await, "1");
    site.inside(one, "timeout 4 sh -c 'while :; do :; done'").await;
    assert_eq!(site.property(one, "ActiveState").await, "active");
}

/// A grant's directory on the guest, whose root is the bridge's login.
fn dir_in_guest(one: &Provisioned) -> String {
    format!("/root/.coalition-host/owner/grants/{}", one.instance.name)
}

async fn a_killed_supervisor_leaves_nothing(site: &Site<'_>) {
    let one = site.grant(4, Duration::from_secs(3_600)).await;
    let (watch, _) = watch(site, &one);
    site.guest.run(&format!("kill -9 {}", site.property(&one, "MainPID").await)).await;
    // Before anybody settles anything.
    site.is_gone(&one).await;
    assert_eq!(ended("a killed supervisor", watch).await.end, LogEnd::BackendLost);
    site.remove(&one).await;
}

async fn a_unit_that_outlives_its_directory_is_found(site: &Site<'_>) {
    let one = site.grant(5, Duration::from_secs(3_600)).await;
    let dir = dir_in_guest(&one);
    site.guest.run(&format!("until rm -rf {dir} 2>/dev/null; do :; done; test ! -e {dir}")).await;
    assert_eq!(site.property(&one, "ActiveState").await, "active");
    let held = held(&*site.backend).await;
    assert!(held.contains(&(one.instance.name.clone(), true)), "{held:?}");
    site.remove(&one).await;
}

async fn a_logout_ends_nothing(site: &Site<'_>, one: &Provisioned) {
    let main = site.property(one, "MainPID").await;
    let started = "systemctl show ssh --property=ActiveEnterTimestampMonotonic --value";
    let before = site.guest.run(started).await;
    let cut = "systemd-run --quiet --collect --unit=cut sh -c 'systemctl restart ssh; loginctl terminate-user root'";
    let _ = site.guest.try_run(cut).await;
    let done = format!("! systemctl --quiet is-active cut && test $({started}) -gt {before}");
    site.guest.until("a restart of sshd", &done).await;
    assert_eq!(site.property(one, "MainPID").await, main);
    eventually_held(site, one).await;
    assert_eq!(site.inside(one, "echo here").await, "here");
}

/// Waits until the bridge sees the grant run.
async fn eventually_held(site: &Site<'_>, one: &Provisioned) {
    let until = Instant::now() + PATIENCE;
    loop {
        let listed = site.backend.list_owned().await;
        if listed.is_ok_and(|all| all.iter().any(|owned| owned.name == one.instance.name && owned.running)) {
            return;
        }
        assert!(Instant::now() < until, "the bridge does not find its grant again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn where_systemd_refuses_grants_go_without(site: &Site<'_>) {
    let refuse = "printf '#!/bin/sh\\necho as the test has it >&2\\nexit 1\\n' > /usr/local/bin/systemd-run && \
                  chmod 755 /usr/local/bin/systemd-run";
    site.guest.run(refuse).await;
    let probe = site.backend.probe().await.unwrap();
    assert_eq!(probe.supervision.manager, None);
    assert_eq!(probe.supervision.problem.as_deref(), Some("systemd-run: as the test has it"));
    let one = site.grant(6, Duration::from_secs(3_600)).await;
    assert!(one.receipt.isolation.contains("grants are not units of it: systemd-run: as the test has it"));
    assert_eq!(site.property(&one, "LoadState").await, "not-found");
    assert_eq!(site.inside(&one, "echo here").await, "here");
    site.remove(&one).await;
    site.guest.run("rm /usr/local/bin/systemd-run").await;
}

async fn a_user_has_units_as_long_as_it_lingers(site: &Site<'_>) {
    let probe = site.backend.probe().await.unwrap();
    assert_eq!((probe.supervision.manager, probe.supervision.problem), (Some(ServiceManager::User), None));
    assert_eq!((probe.isolation.level, probe.isolation.ram), (IsolationLevel::UserNamespaces, Mechanism::CgroupV2));
    let one = site.grant(7, Duration::from_secs(3_600)).await;
    let group = site.group(&one).await;
    assert!(group.contains("/user@") && group.contains("/coalition.slice/"), "{group}");
    assert_eq!(site.guest.run(&format!("cat {group}/{}/memory.max", one.instance.name)).await, "67108864");
    assert_eq!(site.inside(&one, "echo $GREETING").await, "good day");
    // The manager stops, as all do when a host shuts down: nobody asked for this grant's end.
    let (watch, _) = watch(site, &one);
    site.guest.run("systemctl stop user@$(id -u bridge).service").await;
    let exit = ended("a stopped manager", watch).await;
    assert_eq!(exit.end, LogEnd::BackendLost, "{exit:?}");
    assert!(exit.usage.net_bytes > 0, "its last word is whole: {exit:?}");
    site.backend.terminate(&one.instance.name).await.unwrap();

    site.guest.run("rm /var/lib/systemd/linger/bridge").await;
    let probe = site.backend.probe().await.unwrap();
    assert_eq!(probe.supervision.manager, None);
    assert!(probe.supervision.problem.unwrap().contains("loginctl enable-linger bridge"));
    assert!(probe.isolation.losses.iter().any(|loss| loss.contains("lingering is off for bridge")));
}
