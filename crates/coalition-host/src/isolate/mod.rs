//! Everything that asks the Linux kernel for isolation: namespaces, mounts, cgroups, limits, and the first process of
//! an environment.

pub(crate) mod cgroup;
pub(crate) mod control;
pub(crate) mod discover;
pub(crate) mod filter;
pub(crate) mod init;
pub(crate) mod launch;
pub(crate) mod link;
pub(crate) mod mounts;
pub(crate) mod proto;
pub(crate) mod pty;
pub(crate) mod sys;
