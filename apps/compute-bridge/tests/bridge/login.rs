//! A requester's own SSH key, from its envelope to a login with OpenSSH's client.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use coalition_compute::RefusalReason;
use coalition_shuffle::SshAccessReceipt;
use compute_bridge::backend::Backend;
use compute_bridge::backends::BareMetalBackend;
use compute_bridge::journal::Outcome;

use super::harness::*;
use super::world::*;

/// Ends up in a requester's key by default, and names a person.
const COMMENT: &str = "ada@her-own-laptop";

fn has_openssh() -> bool {
    Command::new("ssh-keygen").arg("-?").output().is_ok() && Command::new("ssh").arg("-V").output().is_ok()
}

/// A key of this type as `ssh-keygen` makes it: its file, and the line for `authorized_keys`.
fn keygen(dir: &Path, kind: &str) -> (PathBuf, String) {
    let path = dir.join(format!("own-{kind}"));
    let made = Command::new("ssh-keygen").args(["-q", "-N", "", "-C", COMMENT, "-t", kind, "-f"]).arg(&path).status();
    assert!(made.unwrap().success());
    let line = std::fs::read_to_string(path.with_extension("pub")).unwrap().trim().to_owned();
    (path, line)
}

/// OpenSSH's own client, with this key and no other.
async fn openssh(receipt: &SshAccessReceipt, dir: &Path, key: &Path, command: &str) -> Output {
    let known_hosts = dir.join(format!("known-{}", receipt.instance_port));
    std::fs::write(&known_hosts, format!("{}\n", receipt.known_hosts_line())).unwrap();
    let mut ssh = tokio::process::Command::new("ssh");
    ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=yes"])
        .args(["-o", "IdentityAgent=none", "-o", &format!("UserKnownHostsFile={}", known_hosts.display())])
        .arg("-i")
        .arg(key)
        .args(["-p", &receipt.instance_port.to_string(), "-l", &receipt.user, &receipt.instance_host, command])
        .stdin(Stdio::null());
    tokio::time::timeout(SOON, ssh.output()).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requesters_own_key_is_the_one_that_logs_in() {
    if !has_openssh() {
        eprintln!("skipped: openssh-client is not installed");
        return;
    }
    let host = Host::start().await;
    let Some(image) = example_image(host.dir.path()) else { return };
    let backend = Arc::new(BareMetalBackend::new(host.setup()));
    let world = World { image, ..World::new(vec![Arc::clone(&backend) as _]) };
    let bridge = world.start();
    world.card().await;
    let keys = tempfile::tempdir().unwrap();
    let (_, stranger) = (keygen(keys.path(), "rsa"), keys.path().join("own-rsa"));
    for (seed, kind) in [(1, "ed25519"), (2, "ecdsa")] {
        let (own, line) = keygen(keys.path(), kind);
        let requester = world.ask_for(seed, 600, |workload| workload.ssh_authorized_key = Some(line));
        let receipt = world.receipt(&requester).await;
        assert!(receipt.ssh_key_private.is_empty(), "no private key is made for a requester with its own");
        let said = openssh(&receipt, keys.path(), &own, "echo in as $(id -un)").await;
        assert!(said.status.success(), "{kind}: {}", String::from_utf8_lossy(&said.stderr));
        assert!(String::from_utf8_lossy(&said.stdout).starts_with("in as "), "{said:?}");
        let other = openssh(&receipt, keys.path(), &stranger, "true").await;
        assert_eq!(other.status.code(), Some(255), "a key nobody named logs in: {other:?}");
        // The comment names its owner, and stays with the owner.
        for place in [world.path(), &host.dir.path().join("root")] {
            for file in files_below(place) {
                let Ok(bytes) = std::fs::read(&file) else { continue };
                let holds = bytes.windows(COMMENT.len()).any(|window| window == COMMENT.as_bytes());
                assert!(!holds, "{} holds the key's comment", file.display());
            }
        }
        requester.end(&world.market);
        world.ended(&requester).await;
    }
    bridge.stop().await;
    Backend::close(backend.as_ref()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_could_never_log_in_is_refused_before_anything_is_started() {
    let (world, backend) = fable();
    let bridge = world.start();
    world.card().await;
    let mut lines = vec!["ssh-ed25519 AAAAnonsense".to_owned(), "ssh-dss AAAAB3NzaC1kc3MAAAAA".to_owned()];
    let keys = tempfile::tempdir().unwrap();
    if has_openssh() {
        // A good key of a type the machines' server does not check.
        lines.push(keygen(keys.path(), "rsa").1);
    }
    for (seed, line) in (1..).zip(lines) {
        let requester = world.ask_for(seed, 600, |workload| workload.ssh_authorized_key = Some(line.clone()));
        assert_eq!(bridge.closed(&requester).await, Outcome::Refused(RefusalReason::Other), "{line}");
    }
    assert_eq!(*backend.created.lock().unwrap(), 0);
    bridge.stop().await;
}
