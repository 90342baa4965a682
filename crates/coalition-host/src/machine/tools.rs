//! What a host has to run virtual machines with, and what to install where something is missing.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::qemu::Accelerator;
use crate::types::{MachineProbe, MachineSpec};

/// Wait for QEMU to execute three instructions.
const KVM_LIMIT: Duration = Duration::from_secs(5);
const QEMU: [&str; 4] =
    ["/usr/bin/qemu-system-x86_64", "/usr/local/bin/qemu-system-x86_64", "/usr/bin/qemu-kvm", "/usr/libexec/qemu-kvm"];
const MKE2FS: [&str; 3] = ["/usr/sbin/mke2fs", "/sbin/mke2fs", "/usr/bin/mke2fs"];
/// What of the host QEMU needs to see to run: itself, its libraries, its firmware.
pub const HOST_PATHS: [&str; 8] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/ld.so.conf.d", "/etc/alternatives"];

fn first(paths: &[&str]) -> Option<PathBuf> {
    paths.iter().map(PathBuf::from).find(|path| path.is_file())
}

/// QEMU for this architecture, if there is one.
#[must_use]
pub fn qemu() -> Option<PathBuf> {
    if cfg!(target_arch = "x86_64") { first(&QEMU) } else { None }
}

/// `mke2fs`, if there is one.
#[must_use]
pub fn mke2fs() -> Option<PathBuf> {
    first(&MKE2FS)
}

/// KVM, if a machine on it really executes something here, else the translator and why.
#[must_use]
pub fn accelerator(qemu: &Path) -> (Accelerator, Option<String>) {
    match kvm_problem(qemu) {
        None => (Accelerator::Kvm, None),
        Some(problem) => (Accelerator::Tcg, Some(problem)),
    }
}

/// Why KVM is of no use here. A device that opens is not enough: where hypervisors are nested badly, machines are made
/// and never execute. So one is made whose firmware is three instructions that end it.
fn kvm_problem(qemu: &Path) -> Option<String> {
    if fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return Some("/dev/kvm cannot be opened".into());
    }
    let mut firmware = [0xf4_u8; 65_536];
    // At the reset vector: mov al, 0; out 0xf4, al; hlt.
    firmware[0xfff0..0xfff5].copy_from_slice(&[0xb0, 0x00, 0xe6, 0xf4, 0xf4]);
    let Ok(memory) = memory_file(&firmware) else { return Some("no memory file can be made to try it".into()) };
    let bios = format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd());
    let spawned = Command::new(qemu)
        .args(["-accel", "kvm", "-cpu", "host", "-machine", "q35", "-m", "16M", "-nodefaults", "-no-user-config"])
        .args(["-display", "none", "-no-reboot", "-bios", &bios, "-device", "isa-debug-exit,iobase=0xf4,iosize=1"])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = spawned else { return Some("qemu does not start".into()) };
    let began = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.code() == Some(1) => return None,
            Ok(Some(_)) => {
                let mut text = String::new();
                let _ = child.stderr.take().map(|e| e.take(4096).read_to_string(&mut text));
                let line = text.lines().find(|l| !l.contains("warning")).unwrap_or("qemu ended without a word").trim();
                return Some(line.chars().filter(|c| !c.is_control()).take(200).collect());
            }
            Ok(None) if began.elapsed() < KVM_LIMIT => std::thread::sleep(Duration::from_millis(5)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return Some(format!("a machine on it executed nothing within {} s", KVM_LIMIT.as_secs()));
            }
        }
    }
}

/// A file that is nowhere but in memory.
///
/// # Errors
/// The kernel's.
pub fn memory_file(bytes: &[u8]) -> std::io::Result<fs::File> {
    let fd = nix::sys::memfd::memfd_create(c"coalition", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    let mut file = fs::File::from(fd);
    file.write_all(bytes)?;
    Ok(file)
}

/// Why no TDX guest can be started here.
#[must_use]
pub fn tdx_problem(qemu: &Path, firmware: Option<&Path>) -> Option<String> {
    let parameter = fs::read_to_string("/sys/module/kvm_intel/parameters/tdx").ok();
    let objects = Command::new(qemu).args(["-object", "help"]).env_clear().stdin(Stdio::null()).output();
    let objects = objects.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    tdx_judged(parameter.as_deref(), &objects, firmware.is_some_and(Path::is_file))
}

/// As [`tdx_problem`], of what was read: kvm_intel's parameter, QEMU's list of objects, and whether the firmware is there. Pure.
fn tdx_judged(parameter: Option<&str>, objects: &str, firmware: bool) -> Option<String> {
    let problem = match parameter.map(str::trim) {
        Some("Y" | "1") if !objects.split_ascii_whitespace().any(|word| word == "tdx-guest") => {
            "this qemu knows no tdx-guest object; version 10.1 is the first that does"
        }
        Some("Y" | "1") if !firmware => "its firmware is not there; give an OVMF built for TDX as `firmware`",
        Some("Y" | "1") => return None,
        Some(_) => "kvm_intel has TDX switched off; enable it in the BIOS and load kvm_intel with tdx=1",
        None => {
            "kvm_intel has no TDX (/sys/module/kvm_intel/parameters/tdx is missing); it needs Linux 6.16 and a processor that has it"
        }
    };
    Some(problem.to_owned())
}

/// What is here and what is missing, for who asks before any grant.
#[must_use]
pub fn probe(spec: &MachineSpec) -> MachineProbe {
    let mut missing = Vec::new();
    let qemu = qemu();
    if qemu.is_none() {
        missing.push("qemu is not installed: `apt-get install --no-install-recommends qemu-system-x86`".to_owned());
    }
    if mke2fs().is_none() {
        missing.push("mke2fs is not installed: `apt-get install e2fsprogs`".to_owned());
    }
    if fs::File::open(&spec.kernel).is_err() {
        let path = spec.kernel.display();
        missing.push(format!("the machines' kernel {path} cannot be read: `apt-get install linux-image-cloud-amd64`"));
    }
    if let Some(dir) = spec.modules.as_ref().filter(|dir| !dir.join("modules.dep").is_file()) {
        missing.push(format!("{} has no modules.dep: give the kernel's directory below /lib/modules", dir.display()));
    }
    let (accelerator, problem) = qemu.as_deref().map_or((Accelerator::Tcg, None), accelerator);
    let tdx_problem = spec.tdx.as_ref().and_then(|_| tdx_problem(qemu.as_deref()?, spec.firmware.as_deref()));
    missing.extend(tdx_problem.map(|problem| format!("no TDX guests: {problem}")));
    MachineProbe { kvm: accelerator == Accelerator::Kvm, kvm_problem: problem, missing }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tdx_takes_kernel_qemu_and_firmware() {
        let known = "List of user creatable objects:\n  sev-guest\n  tdx-guest\n";
        assert_eq!(tdx_judged(Some("Y\n"), known, true), None);
        for (parameter, objects, firmware, word) in [
            (None, known, true, "missing"),
            (Some("N\n"), known, true, "switched off"),
            (Some("Y\n"), "  sev-guest\n", true, "10.1"),
            (Some("Y\n"), known, false, "firmware"),
        ] {
            let problem = tdx_judged(parameter, objects, firmware).unwrap();
            assert!(problem.contains(word), "{problem}");
        }
    }

    #[test]
    fn a_host_says_what_to_install() {
        let spec = MachineSpec { kernel: "/nonexistent/vmlinuz".into(), ..MachineSpec::default() };
        let found = probe(&spec);
        assert!(found.missing.iter().any(|m| m.contains("/nonexistent/vmlinuz") && m.contains("apt-get")), "{found:?}");
        assert_eq!(found.kvm, qemu().is_some() && found.kvm_problem.is_none());
    }
}
