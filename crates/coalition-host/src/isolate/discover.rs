//! What this host offers, and how to say in words what it does not.

use std::process::{Command, Stdio};

use super::cgroup::Groups;
use crate::types::{Isolation, IsolationLevel, Mechanism};

/// What the kernel allowed when asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Abilities {
    /// Effective uid 0.
    pub(crate) root: bool,
    /// Mount, pid, ipc, uts and network namespaces can be made directly.
    pub(crate) namespaces: bool,
    /// User namespaces can be made, and used to make the others.
    pub(crate) user_namespaces: bool,
    /// The host uids grants are mapped to exist here: not so for the root of somebody else's user namespace.
    pub(crate) spare_uids: bool,
}

impl Abilities {
    /// Tries. Each try is a short-lived child of ours, so nothing of it stays.
    pub(crate) fn discover() -> Self {
        let root = nix::unistd::geteuid().is_root();
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        Self {
            root,
            namespaces: root && check("namespaces"),
            user_namespaces: check("user"),
            spare_uids: covers_spare_uids(&map),
        }
    }

    /// The strongest level these abilities allow.
    pub(crate) fn level(self) -> IsolationLevel {
        if self.namespaces && (self.spare_uids || !self.user_namespaces) {
            IsolationLevel::RootNamespaces
        } else if self.user_namespaces {
            IsolationLevel::UserNamespaces
        } else {
            IsolationLevel::ProcessLimits
        }
    }
}

/// Why there can be no tunnel where workloads of this level run; none when there can.
pub(crate) fn tunnel_problem(level: IsolationLevel) -> Option<String> {
    let what = match level {
        IsolationLevel::RootNamespaces => "namespaces+tunnel",
        IsolationLevel::UserNamespaces => "user+tunnel",
        IsolationLevel::ProcessLimits | IsolationLevel::Machine => {
            return Some("workloads here have no network of their own".into());
        }
    };
    let hint = "`modprobe tun`, and let the runner's user open /dev/net/tun";
    (!check(what)).then(|| format!("no tunnel can be made in a network of its own; {hint}"))
}

fn check(what: &str) -> bool {
    Command::new("/proc/self/exe")
        .args(["runner", "init", "--check", what])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// First of the 65,536 host uids a grant's uids are mapped to: a slot picked by the grant's id out of a range that no
/// distribution hands out to people or services.
pub(crate) fn uid_base(grant_id: &str) -> u32 {
    let hash = blake3::hash(grant_id.as_bytes());
    let slot = u32::from(u16::from_be_bytes([hash.as_bytes()[0], hash.as_bytes()[1]])) % 4095;
    SPARE_UIDS + slot * 0x1_0000
}

/// Begin of a range that no distribution hands out to people or services; 4,095 slots of 65,536.
const SPARE_UIDS: u32 = 0x7000_0000;

/// True when the whole range is mapped in this user namespace.
fn covers_spare_uids(uid_map: &str) -> bool {
    uid_map.lines().any(|line| {
        let numbers: Vec<u64> = line.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect();
        matches!(numbers[..], [inside, _, count]
            if inside <= u64::from(SPARE_UIDS) && inside.saturating_add(count) >= 0x7fff_ffff)
    })
}

/// What a grant gets, from what the host can do.
pub(crate) fn describe(abilities: Abilities, groups: &Groups, grant_id: &str, cpu_millicores: u32) -> Isolation {
    let level = abilities.level();
    let mapped = level == IsolationLevel::RootNamespaces && abilities.user_namespaces;
    let mut isolation = Isolation {
        level,
        name: level.to_string(),
        cpu: groups.mechanism_of("cpu").unwrap_or(Mechanism::Affinity),
        ram: groups.mechanism_of("memory").unwrap_or(Mechanism::Rlimit),
        pids: groups.mechanism_of("pids").unwrap_or(Mechanism::Rlimit),
        disk: Mechanism::Sweep,
        uid_base: mapped.then(|| uid_base(grant_id)),
        losses: Vec::new(),
    };
    isolation.losses = losses(&isolation, abilities.root, cpu_millicores);
    isolation
}

fn losses(isolation: &Isolation, root: bool, cpu_millicores: u32) -> Vec<String> {
    let mut said: Vec<String> = Vec::new();
    let mut say = |text: &str| said.push(text.to_owned());
    match (isolation.level, isolation.uid_base) {
        (IsolationLevel::RootNamespaces, Some(_)) | (IsolationLevel::Machine, _) => {}
        (IsolationLevel::RootNamespaces, None) => {
            say("user namespaces are switched off here: the workload's root is the host's root, held back by dropped \
             capabilities and no_new_privs only")
        }
        (IsolationLevel::UserNamespaces, _) => {
            say("to the host, the workload is the runner's own user: a kernel flaw would give it that user's rights");
            say("only user id 0 exists inside; programs that switch to another user fail");
        }
        (IsolationLevel::ProcessLimits, _) => {
            if root {
                say("the workload runs as root of this host, held back by dropped capabilities only");
            }
            say("the workload sees the host's files and can read and change what the runner's user can");
            say("the workload sees and can signal the runner user's processes, the runner included");
            say("the workload has no network of its own, so none of its ports can be forwarded");
        }
    }
    if isolation.cpu == Mechanism::Affinity {
        let cores = cpu_millicores.div_ceil(1000);
        said.push(format!("CPU is not limited as a share: it is confined to {cores} whole core(s) by affinity, which a program can undo"));
    }
    if isolation.ram == Mechanism::Rlimit {
        said.push("memory limit is per process, not per grant".to_owned());
        said.push(
            "CPU and memory use are metered by reading /proc each second, so very short processes may be missed"
                .to_owned(),
        );
    }
    if isolation.pids == Mechanism::Rlimit {
        said.push(match (isolation.level, root) {
            (IsolationLevel::UserNamespaces, false) => "process limit is per user id inside, not per grant".to_owned(),
            (_, false) => "process limit is shared with the runner user's other processes".to_owned(),
            (_, true) => "there is no process limit: the kernel does not apply it to root".to_owned(),
        });
    }
    said.push(
        "disk use is checked every few seconds, not at each write; only single files are limited at once".to_owned(),
    );
    said
}

/// CPUs to confine a grant to when nothing limits its share: as many as its millicores round up to, spread by grant.
pub(crate) fn affinity(grant_id: &str, cpu_millicores: u32, available: &[usize]) -> Vec<usize> {
    let wanted = usize::try_from(cpu_millicores.div_ceil(1000)).unwrap_or(usize::MAX).clamp(1, available.len().max(1));
    let start = usize::from(blake3::hash(grant_id.as_bytes()).as_bytes()[2]);
    let mut chosen: Vec<usize> =
        available.iter().cycle().skip(start % available.len().max(1)).take(wanted).copied().collect();
    chosen.sort_unstable();
    chosen
}

/// CPUs we may run on.
pub(crate) fn available_cpus() -> Vec<usize> {
    let Ok(set) = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)) else { return vec![0] };
    (0..nix::sched::CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn abilities(root: bool, namespaces: bool, user_namespaces: bool) -> Abilities {
        Abilities { root, namespaces, user_namespaces, spare_uids: true }
    }

    #[test]
    fn the_root_of_a_container_without_spare_uids_uses_user_namespaces() {
        assert!(covers_spare_uids("         0          0 4294967295\n"));
        assert!(!covers_spare_uids("0 100000 65536\n") && !covers_spare_uids(""));
        let contained = Abilities { spare_uids: false, ..abilities(true, true, true) };
        assert_eq!(contained.level(), IsolationLevel::UserNamespaces);
    }

    #[test]
    fn every_weaker_host_states_more_losses() {
        let none = Groups::default();
        let mapped = describe(abilities(true, true, true), &none, "aa", 1500);
        let unmapped = describe(abilities(true, true, false), &none, "aa", 1500);
        let user = describe(abilities(false, false, true), &none, "aa", 1500);
        let bare = describe(abilities(false, false, false), &none, "aa", 1500);
        assert_eq!(mapped.name, "namespaces+cgroups (root)");
        assert_eq!(user.name, "user namespaces+rlimits (unprivileged)");
        assert_eq!(bare.name, "none: process limits only");
        assert!(mapped.uid_base.is_some() && unmapped.uid_base.is_none());
        assert!(mapped.losses.len() < unmapped.losses.len() && user.losses.len() < bare.losses.len());
        assert!(user.losses.iter().any(|l| l == "memory limit is per process, not per grant"));
        assert!(user.losses.iter().any(|l| l.contains("2 whole core(s)")));
    }

    #[test]
    fn uid_ranges_are_aligned_and_stay_below_the_sign_bit() {
        for i in 0..2000 {
            let base = uid_base(&format!("{i:08x}"));
            assert!(base >= 0x7000_0000 && base.is_multiple_of(0x1_0000) && base <= 0x7fff_ffff - 0xffff);
        }
    }

    #[test]
    fn affinity_rounds_up_and_stays_within_what_there_is() {
        assert_eq!(affinity("aa", 2500, &[3, 5]).len(), 2);
        assert_eq!(affinity("aa", 100, &[3, 5, 9]).len(), 1);
        assert!(affinity("aa", 1000, &[4]).contains(&4));
    }
}
