//! Real virtual machines: on KVM where it works, else emulated. Loudly skipped where QEMU, `mke2fs` or a kernel is missing;
//! `.ci/setup` brings them.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use coalition_host::machine::tools;
use coalition_host::output::Stream;
use coalition_host::state::now_unix_ms;
use coalition_host::{
    EndReason, ExitOutcome, GuestUsage, IsolationLevel, MachineSpec, Mechanism, Phase, ProbeReport, RunnerState,
};

use super::harness::{As, Grant, Host, await_some, text};

/// The guests' kernel: from `COALITION_TEST_KERNEL`, a directory with `boot` and `lib/modules`, or from where `.ci/setup`
/// puts one.
pub(crate) fn kernel() -> Option<MachineSpec> {
    let given = std::env::var_os("COALITION_TEST_KERNEL").map(PathBuf::from);
    let fetched = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/kernel"));
    [given, fetched.canonicalize().ok()].into_iter().flatten().find_map(|dir| {
        let first = |dir: PathBuf, start: &str| {
            let mut names = fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path());
            names.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start)))
        };
        let kernel = first(dir.join("boot"), "vmlinuz-")?;
        let modules = first(dir.join("lib/modules"), "")?;
        Some(MachineSpec { kernel, modules: Some(modules), overhead_mib: 288, ..MachineSpec::default() })
    })
}

/// A host that can run machines, and how.
pub(crate) fn host(kind: As) -> Option<(Host, MachineSpec)> {
    let Some(machine) = kernel() else {
        eprintln!("SKIPPED: no kernel for virtual machines here; run .ci/setup, or set COALITION_TEST_KERNEL");
        return None;
    };
    if tools::qemu().is_none() || tools::mke2fs().is_none() {
        eprintln!("SKIPPED: no qemu-system-x86_64 or no mke2fs here; run .ci/setup");
        return None;
    }
    let host = Host::new(kind)?;
    Some((host, machine))
}

fn start<'h>(host: &'h Host, machine: &MachineSpec, command: &[&str]) -> Grant<'h> {
    host.start(|spec| {
        spec.machine = Some(machine.clone());
        spec.minimum_isolation = IsolationLevel::Machine;
        spec.command = command.iter().map(|word| (*word).to_owned()).collect();
        spec.disk_mib = 64;
        spec.valid_to_unix_ms += 600_000;
    })
}

#[test]
fn a_machine_is_logged_into_limits_its_workload_and_leaves_nothing() {
    let Some((host, machine)) = host(As::Root) else { return };
    let began = Instant::now();
    let grant = start(&host, &machine, &["/bin/sh", "-c", "echo working; exit 3"]);
    eprintln!("start to ready in {:?}", began.elapsed());
    let Phase::Ready { isolation, .. } = &grant.state.as_ref().unwrap().phase else { panic!() };
    assert_eq!((isolation.level, isolation.name.as_str()), (IsolationLevel::Machine, "virtual machine"));
    assert_eq!((isolation.ram, isolation.disk), (Mechanism::Machine, Mechanism::Machine));

    let seen = grant.ssh("echo out; echo err >&2; exit 7");
    assert_eq!((seen.code, seen.out.as_str(), seen.err.as_str()), (7, "out\n", "err\n"));
    assert_eq!(text(&grant.output("--follow"), Stream::Stdout), "working\n");
    let exit = await_some("the workload's exit", Duration::from_secs(20), || match grant.status().phase {
        Phase::Ready { workload_exit, .. } => workload_exit,
        _ => None,
    });
    assert_eq!(exit, ExitOutcome::Code(3));
    let own = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_ne!(grant.ssh("uname -r").out.trim(), own.trim(), "it is the host's kernel");
    assert_eq!(
        grant.ssh("ls /sys /dev/vda 2>&1; ip link 2>/dev/null | grep -c eth0").code,
        1,
        "devices are seen inside"
    );

    // A flood of processes and a full disk stay inside.
    let seen = grant.ssh("for i in $(seq 80); do sleep 99 >/dev/null 2>&1 & done");
    assert!(seen.err.contains("fork"), "{seen:?}");
    assert_eq!(grant.ssh("kill -9 -1; echo alive").out, "alive\n");
    assert!(grant.ssh("dd if=/dev/zero of=/full bs=1M count=200 2>&1; rm -f /full").out.contains("o space"));

    let usage = metered(&grant);
    assert!(usage.disk_mib >= 1 && usage.disk_mib <= 64, "{usage:?}");
    let Phase::Ended { reason, exit, usage, .. } = grant.stop().phase else { panic!() };
    assert_eq!((reason, exit), (EndReason::Stopped, Some(ExitOutcome::Code(3))));
    assert!(usage.is_final && usage.net_bytes > 1000 && usage.guest.is_some(), "{usage:?}");
    grant.assert_no_process();
    grant.clean();
}

/// Burns CPU inside and compares three readings: the guest's, the host's cgroup's, and ours of QEMU's process.
fn metered(grant: &Grant<'_>) -> GuestUsage {
    let inside = |at: Option<GuestUsage>| at.map_or(0, |usage| usage.cpu_core_ms);
    let init = grant.state.as_ref().unwrap().init.as_ref().unwrap().pid;
    let ours = || -> u64 {
        let all = coalition_host::proc::all();
        coalition_host::proc::descendants(init, &all).iter().map(|p| p.cpu_ticks * 10).sum()
    };
    let before = grant.usage();
    let (ours_before, began) = (ours(), Instant::now());
    grant.ssh("timeout 4 sh -c 'while :; do :; done'");
    let took = u64::try_from(began.elapsed().as_millis()).unwrap();
    let after = await_some("the burning in both counters", Duration::from_secs(20), || {
        let now = grant.usage();
        let late = now.updated_unix_ms > before.updated_unix_ms + took + 1_000;
        (late && inside(now.guest) > inside(before.guest) + 2_000).then_some(now)
    });
    let (host, guest) = (after.cpu_core_ms - before.cpu_core_ms, inside(after.guest) - inside(before.guest));
    let independent = ours() - ours_before;
    eprintln!("in {took} ms: host's cgroup {host} ms, guest {guest} ms, QEMU's process {independent} ms");
    // A guest's clock runs on while its host gives the processor to others, so its own reading may be above what it got.
    assert!(guest <= took + 2_000, "one processor ran {guest} ms within {took} ms");
    assert!(host.abs_diff(independent) <= independent / 20 + 1_200, "{host} ms metered, {independent} ms seen");
    after.guest.unwrap()
}

#[test]
fn a_machines_deadline_moves_and_needs_nobody_and_a_killed_supervisor_takes_it_along() {
    let Some((host, machine)) = host(As::User) else { return };
    let grant = start(&host, &machine, &[]);
    let supervisor = grant.state.as_ref().unwrap().supervisor.pid;
    assert_eq!(grant.ssh("id -u").out, "0\n");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(supervisor), nix::sys::signal::Signal::SIGKILL).unwrap();
    await_some("lost", Duration::from_secs(10), || {
        matches!(grant.status(), RunnerState { phase: Phase::Lost { .. }, .. }).then_some(())
    });
    await_some("the end of its processes", Duration::from_secs(10), || grant.processes().is_empty().then_some(()));
    assert!(matches!(grant.stop().phase, Phase::Ended { reason: EndReason::Lost, .. }));
    grant.clean();

    let grant = start(&host, &machine, &[]);
    let until = |unix_ms: u64| -> RunnerState {
        host.answer(&["extend", "--dir", grant.dir_text(), "--until", &unix_ms.to_string()]).unwrap()
    };
    // Nearer, so that the guest's own timer is near too: it fires five seconds after the end, if the host has not.
    let first = now_unix_ms() + 8_000;
    assert_eq!(until(first).valid_to_unix_ms, first);
    let second = first + 16_000;
    let moved = until(second);
    assert!(moved.valid_to_unix_ms == second && now_unix_ms() < first, "not in time to show anything: {moved:?}");
    let guests_timer = first + 5_000;
    await_some("the first end, and the guest's timer", Duration::from_secs(30), || {
        (now_unix_ms() > guests_timer + 1_500).then_some(())
    });
    assert_eq!(grant.ssh("echo alive").out, "alive\n");
    let (reason, _, usage) = grant.await_end(Duration::from_secs(60));
    assert_eq!(reason, EndReason::Deadline);
    assert!(usage.updated_unix_ms >= second, "{} ms early", second - usage.updated_unix_ms);
    let late = usage.updated_unix_ms - second;
    assert!(late < 3_000, "{late} ms late");
    let over = host.answer::<RunnerState>(&["extend", "--dir", grant.dir_text(), "--until", "99999999999999"]);
    assert_eq!(over.unwrap_err().code, "over");
    grant.assert_no_process();
    grant.clean();
}

#[test]
fn a_bad_image_is_named_by_the_guest_and_a_bad_kernel_by_the_host() {
    let Some((host, machine)) = host(As::Root) else { return };
    let hostile = host.temp.path().join("hostile.tar");
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Block);
    header.set_size(0);
    header.set_mode(0o666);
    tar.append_data(&mut header, "disk", std::io::empty()).unwrap();
    let bytes = tar.into_inner().unwrap();
    fs::write(&hostile, &bytes).unwrap();
    let grant = host.prepare(|spec| {
        spec.machine = Some(machine.clone());
        spec.image = hostile.clone();
        spec.image_blake3 = blake3::hash(&bytes).to_hex().to_string();
        spec.image_size_bytes = bytes.len() as u64;
    });
    let failure = host.answer::<RunnerState>(&["start", "--dir", grant.dir_text()]).unwrap_err();
    assert_eq!(failure.code, "image_entry_refused", "{failure}");
    grant.clean();

    let none = MachineSpec { kernel: "/nonexistent/vmlinuz".into(), ..machine };
    let grant = host.prepare(|spec| spec.machine = Some(none.clone()));
    let failure = host.answer::<RunnerState>(&["start", "--dir", grant.dir_text()]).unwrap_err();
    assert!(failure.message.contains("/nonexistent/vmlinuz"), "{failure}");
    grant.clean();
    let asked = serde_json::to_string(&none).unwrap();
    let probe: ProbeReport = host.answer(&["probe", "--machine", &asked]).unwrap();
    assert!(probe.machine.unwrap().missing[0].contains("apt-get install linux-image"), "what to install is not said");
}
