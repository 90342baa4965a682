//! `runner probe`: what this host offers.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statvfs::statvfs;

use super::Options;
use super::unit::{self, Own, Systemd};
use crate::error::{Result, RunnerError};
use crate::isolate::cgroup::{self, Groups, Hierarchies, Limits};
use crate::isolate::discover::{Abilities, available_cpus, describe, tunnel_problem};
use crate::machine::boot::{BootFiles, COMMAND_LINE};
use crate::machine::tools;
use crate::state::now_unix_ms;
use crate::types::{BootReport, FORMAT_VERSION, MachineSpec, ProbeReport, Supervision, parse_answer};
use crate::units::{self, Unit};

/// Longest that a unit may take to probe.
const PROBE_LIMIT: Duration = Duration::from_secs(60);

/// Finds out; `dir` is where grants would live (the temporary directory when not given). Where grants are units of
/// systemd's, a unit is what finds out: what it may do is what grants may.
pub(super) fn probe(options: &Options) -> Result<ProbeReport> {
    if let Some(name) = &options.unit {
        Own::enter(name);
        return Ok(look(options));
    }
    let systemd = Systemd::find();
    let asked = systemd.and_then(|systemd| ask_unit(&systemd, options).map_err(Some));
    Ok(asked.unwrap_or_else(|problem| {
        let mut report = look(options);
        report.supervision = Supervision { manager: None, problem };
        report.isolation.losses.extend(unit::loss(&report.supervision));
        report
    }))
}

/// Has a unit probe.
fn ask_unit(systemd: &Systemd, options: &Options) -> std::result::Result<ProbeReport, String> {
    let temporary = std::env::temp_dir().join(format!("coalition-probe-{}", std::process::id()));
    let failed = |e: std::io::Error| format!("{}: {e}", temporary.display());
    fs::DirBuilder::new().mode(0o700).create(&temporary).map_err(failed)?;
    let line = probing(options, temporary.join("answer")).and_then(|unit| {
        let mut answer = systemd.start(&unit)?;
        unit::first_line(&mut answer).ok_or_else(|| format!("{} ended without an answer", unit.name))
    });
    fs::remove_dir_all(&temporary).map_err(failed)?;
    let mut report: ProbeReport = parse_answer(&line?).map_err(|failure| failure.to_string())?;
    report.supervision = Supervision { manager: Some(systemd.manager), problem: None };
    Ok(report)
}

fn probing(options: &Options, output: PathBuf) -> std::result::Result<Unit, String> {
    let name = units::of_probe(std::process::id());
    let mut command = [&unit::own_program()?, "runner", "probe", "--unit", &name].map(str::to_owned).to_vec();
    if let Some(dir) = &options.dir {
        let dir = dir.to_str().ok_or_else(|| format!("{dir:?} is not UTF-8"))?;
        command.extend(["--dir", dir].map(str::to_owned));
    }
    if let Some(machine) = &options.machine {
        let json = serde_json::to_string(machine).map_err(|e| e.to_string())?;
        command.extend(["--machine".to_owned(), json]);
    }
    let (description, log) = ("coalition: what grants get on this host".to_owned(), "/dev/null".into());
    Ok(Unit { name, description, command, env: unit::variables(), output, log, lasts: PROBE_LIMIT })
}

/// What this very process may do.
fn look(options: &Options) -> ProbeReport {
    let (dir, machine) = (options.dir.as_deref(), options.machine.as_ref());
    let abilities = Abilities::discover();
    let (cgroup_v1, cgroup_v2) = cgroup::usable(abilities.root);
    let name = format!("probe-{}", std::process::id());
    let limits = Limits { cpu_millicores: 1000, ram_mib: 64, pids_max: 16 };
    let groups = Groups::create(&Hierarchies::discover(), abilities.root, &name, limits);
    let mut isolation = describe(abilities, &groups, "00000000", 1000);
    groups.remove();
    // The range depends on the grant.
    isolation.uid_base = None;
    let system = nix::sys::utsname::uname().ok();
    let text = |value: Option<&std::ffi::OsStr>| value.map(|v| v.to_string_lossy().into_owned()).unwrap_or_default();
    let temporary = std::env::temp_dir();
    ProbeReport {
        version: FORMAT_VERSION,
        hostname: text(system.as_ref().map(|u| u.nodename())),
        arch: text(system.as_ref().map(|u| u.machine())),
        kernel: text(system.as_ref().map(|u| u.release())),
        root: abilities.root,
        user_namespaces: abilities.user_namespaces,
        isolation,
        supervision: Supervision::default(),
        cgroup_v1,
        cgroup_v2,
        cpu_millicores: u32::try_from(available_cpus().len()).unwrap_or(1).saturating_mul(1000),
        ram_mib: meminfo("MemTotal:"),
        ram_available_mib: meminfo("MemAvailable:"),
        disk_available_mib: disk_available_mib(dir.unwrap_or(&temporary)),
        clock_unix_ms: now_unix_ms(),
        egress_problem: tunnel_problem(abilities.level()),
        machine: machine.map(tools::probe),
    }
}

/// Writes what machines here are started from into a directory, and says what a TDX guest would measure of it: what
/// `coalition attest predict` is to be given.
pub(super) fn boot_files(dir: &Path, machine: Option<&MachineSpec>) -> Result<BootReport> {
    let machine = machine.ok_or_else(|| RunnerError::Usage("--machine JSON is missing".into()))?;
    let files = BootFiles::write(dir, machine)?;
    Ok(BootReport {
        version: FORMAT_VERSION,
        kernel: files.kernel,
        initrd: files.initrd,
        command_line: COMMAND_LINE.to_owned(),
        firmware: machine.firmware.clone(),
        memory_added_mib: files.guest_mib,
    })
}

fn meminfo(key: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(key));
    line.and_then(|l| l.split_ascii_whitespace().next()).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn disk_available_mib(dir: &Path) -> u64 {
    statvfs(dir).map_or(0, |s| s.blocks_available().saturating_mul(s.fragment_size()) >> 20)
}
