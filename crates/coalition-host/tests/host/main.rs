//! Real grants on this machine, driven as a provider and a requester would: the runner as a process, OpenSSH's own
//! clients. Tests that need what is not there (root, a static busybox, an SSH client) say so and pass.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::expect_used)]

mod access;
mod egress;
mod escape;
mod harness;
mod images;
mod lifecycle;
mod limits;
mod loss;
mod machine;
mod oci;
mod outside;
mod own;
mod sessions;
mod sshd;
