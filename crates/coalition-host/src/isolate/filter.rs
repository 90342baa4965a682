//! A system call filter for everything in an environment: kernel interfaces a workload has no business with and that
//! have a history of flaws. A second fence behind capabilities and namespaces, not the first.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

/// Refused with EPERM: administration of the host, which no capability inside allows either, ...
const ADMINISTRATION: [libc::c_long; 26] = [
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mount,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_pivot_root,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_umount2,
    libc::SYS_unshare,
];

/// ... the newer mount interface, and interfaces whose flaws have given unprivileged users the kernel.
const ATTACK_SURFACE: [libc::c_long; 13] = [
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
];

/// A socket of any kind but those within one machine.
fn network_socket() -> Result<SeccompRule, String> {
    let family = libc::AF_UNIX.cast_unsigned().into();
    let other = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, family);
    other.and_then(|other| SeccompRule::new(vec![other])).map_err(|e| e.to_string())
}

fn program(no_network: bool) -> Result<BpfProgram, String> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(|e| e.to_string())?;
    let mut rules: BTreeMap<i64, Vec<_>> =
        ADMINISTRATION.into_iter().chain(ATTACK_SURFACE).map(|number| (number, Vec::new())).collect();
    if no_network {
        rules.insert(libc::SYS_socket, vec![network_socket()?]);
    }
    let refuse = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, architecture).map_err(|e| e.to_string())?;
    BpfProgram::try_from(filter).map_err(|e| e.to_string())
}

/// Filters this process and all its future children, for ever. Needs no privilege once `no_new_privs` is set. Programs
/// of another architecture (32-bit ones) are killed, because the same numbers mean other calls there.
pub(crate) fn apply(no_network: bool) -> Result<(), String> {
    apply_filter(&program(no_network)?).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_is_listed_once_and_the_program_compiles() {
        let mut all: Vec<_> = ADMINISTRATION.into_iter().chain(ATTACK_SURFACE).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 39);
        assert!(program(false).unwrap().len() > 39);
        assert!(program(true).unwrap().len() > program(false).unwrap().len());
    }
}
