//! Virtual machines as what a backend sells: really booted, on KVM or emulated. Loudly skipped where QEMU, `mke2fs` or a kernel
//! is missing; `.ci/setup` brings them.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use coalition_attest::predict::{DirectBoot, KernelImage};
use coalition_host::machine::boot::{BootFiles, declared};
use coalition_host::machine::qemu::{Accelerator, Machine, System};
use coalition_host::machine::tools;
use coalition_host::types::{BootReport, IsolationLevel, MachineSpec};
use compute_bridge::backend::Backend;
use compute_bridge::backends::{BareMetalBackend, BareMetalSetup, HostSetup};

use super::baremetal::provision;
use super::harness::*;

/// The guests' kernel: from `COALITION_TEST_KERNEL`, a directory with `boot` and `lib/modules`, or from where `.ci/setup`
/// puts one.
fn kernel() -> Option<MachineSpec> {
    let given = std::env::var_os("COALITION_TEST_KERNEL").map(PathBuf::from);
    let fetched = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/kernel"));
    let found = [given, fetched.canonicalize().ok()].into_iter().flatten().find_map(|dir| {
        let first = |dir: PathBuf, start: &str| {
            let mut names = std::fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path());
            names.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start)))
        };
        let kernel = first(dir.join("boot"), "vmlinuz-")?;
        let modules = first(dir.join("lib/modules"), "")?;
        // The program that is installed is the bridge itself, which is large.
        Some(MachineSpec { kernel, modules: Some(modules), overhead_mib: 512, ..MachineSpec::default() })
    });
    if found.is_none() || tools::qemu().is_none() || tools::mke2fs().is_none() {
        eprintln!("SKIPPED: no kernel, qemu-system-x86_64 or mke2fs for virtual machines here; run .ci/setup");
        return None;
    }
    found
}

fn setup(host: &Host, machine: &MachineSpec) -> BareMetalSetup {
    let usual = host.setup();
    let patient = Duration::from_secs(200);
    let inner = HostSetup {
        machine: Some(machine.clone()),
        minimum_isolation: IsolationLevel::Machine,
        start_timeout: patient,
        ..usual.host.clone()
    };
    BareMetalSetup { host: inner, ..usual }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_sold_reached_and_gone() {
    let Some(machine) = kernel() else { return };
    let host = Host::start().await;
    let Some(image) = example_image(host.dir.path()) else { return };
    let backend = BareMetalBackend::new(setup(&host, &machine));
    let offering = backend.capabilities().await;
    assert_eq!(offering.isolation, Some(IsolationLevel::Machine), "{}", offering.detail);
    assert!(offering.detail.starts_with("virtual machines"), "{}", offering.detail);
    let one = provision(&backend, 1, &image, host.dir.path(), 600_000).await.unwrap();
    assert_eq!(one.instance.isolation, IsolationLevel::Machine);
    assert!(one.receipt.isolation.starts_with("virtual machine"), "{}", one.receipt.isolation);
    let said = ssh_into(&one.receipt, host.dir.path(), "echo $GREETING; uname -r").await;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let own = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert!(said.starts_with("good day\n") && !said.contains(own.trim()), "{said}");
    let exit = backend.stop(&one.instance.name).await.unwrap().unwrap();
    assert!(exit.usage.net_bytes > 0 && exit.usage.cpu_core_seconds > 0, "{exit:?}");
    backend.terminate(&one.instance.name).await.unwrap();
    assert!(backend.list_owned().await.unwrap().is_empty());
    backend.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_or_too_much_is_said_and_nothing_is_sold() {
    let host = Host::start().await;
    let missing = MachineSpec { kernel: "/nonexistent/vmlinuz".into(), overhead_mib: 288, ..MachineSpec::default() };
    let found = BareMetalBackend::new(setup(&host, &missing)).check(false).await;
    assert!(!found[0].ok && found[0].detail.contains("/nonexistent/vmlinuz"), "{found:?}");
    assert!(found[0].detail.contains("apt-get install"), "{found:?}");
    let Some(machine) = kernel() else { return };
    let all = BareMetalSetup { ram_mib: 1 << 30, ..setup(&host, &machine) };
    let offering = BareMetalBackend::new(all).capabilities().await;
    assert_eq!(offering.capabilities.max_instances, 0);
    assert!(offering.detail.contains("sell less"), "{}", offering.detail);
}

/// What `coalition attest predict` is given is what a TDX guest is started with: kernel, initial file system and command line
/// of QEMU's own arguments predict the same registers as the files that the runner writes out.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_predicted_is_what_is_run() {
    let Some(machine) = kernel() else { return };
    let dir = tempfile::tempdir().unwrap();
    let asked = serde_json::to_string(&machine).unwrap();
    let output = Command::new(program())
        .args(["runner", "boot-files", "--machine", &asked, "--dir", dir.path().to_str().unwrap()])
        .output()
        .unwrap();
    let report: BootReport = coalition_host::parse_answer(String::from_utf8(output.stdout).unwrap().trim()).unwrap();
    let predicted = registers(
        report.kernel.to_str().unwrap(),
        report.initrd.to_str().unwrap(),
        &report.command_line,
        report.memory_added_mib + 1_024,
    );
    let spec = coalition_host::WorkloadSpec { grant_id: "00112233".into(), ..plain_spec() };
    let line = Machine {
        program: "/usr/bin/qemu-system-x86_64".into(),
        accelerator: Accelerator::Kvm,
        cpus: 1,
        memory_mib: report.memory_added_mib + 1_024,
        system: System::Ours(BootFiles::boot(dir.path())),
        firmware: Some("/usr/share/ovmf/OVMF.fd".into()),
        disks: vec![],
        console_fd: 103,
        tdx: Some(declared(&spec, "ssh-ed25519 AAAA comment", 4050)),
        egress: false,
    }
    .arguments();
    let after = |name: &str| line.iter().skip_while(|word| *word != name).nth(1).unwrap().as_str();
    let memory = after("-m").trim_end_matches('M').parse().unwrap();
    assert_eq!(registers(after("-kernel"), after("-initrd"), after("-append"), memory), predicted);
    let others = registers(after("-kernel"), after("-initrd"), "console=ttyS0", memory);
    assert!(others.0 == predicted.0 && others.1 != predicted.1, "the command line is measured");
    // The same guest for another grant declares another configuration; comments of keys are nobody's business.
    let other = coalition_host::WorkloadSpec { grant_id: "44556677".into(), ..spec.clone() };
    let of = |spec| declared(spec, "ssh-ed25519 AAAA", 4050).mr_config_id;
    assert_ne!(of(&other), of(&spec));
    assert_eq!(of(&spec), declared(&spec, "ssh-ed25519 AAAA comment", 4050).mr_config_id);
}

fn registers(kernel: &str, initrd: &str, command_line: &str, ram_mib: u64) -> (String, String) {
    let (kernel, initrd) = (std::fs::read(kernel).unwrap(), std::fs::read(initrd).unwrap());
    let image = KernelImage::Loaded { ram_mib };
    let boot = DirectBoot { kernel: &kernel, image, initrd: &initrd, command_line };
    (boot.rtmr1().unwrap().to_string(), boot.rtmr2().to_string())
}

fn plain_spec() -> coalition_host::WorkloadSpec {
    coalition_host::WorkloadSpec {
        version: 1,
        grant_id: String::new(),
        image: "image".into(),
        image_blake3: "00".repeat(32),
        image_size_bytes: 1,
        cpu_millicores: 1_000,
        ram_mib: 1_024,
        disk_mib: 64,
        pids_max: 64,
        valid_to_unix_ms: 1,
        ssh_listen: "127.0.0.1:0".parse().unwrap(),
        ssh_host_key: coalition_host::SecretText::default(),
        ssh_authorized_key: "ssh-ed25519 BBBB me".into(),
        command: vec![],
        env: std::collections::BTreeMap::new(),
        minimum_isolation: IsolationLevel::ProcessLimits,
        egress: Default::default(),
        network_mbit: None,
        machine: None,
    }
}
