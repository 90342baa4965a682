//! The bare-metal backend end to end: a real runner behind a real SSH server, a real workload, OpenSSH-grade keys.

use std::sync::Arc;

use coalition::UniqueId;
use coalition_compute::LogEnd;
use coalition_shuffle::{Posture, SshAccessReceipt};
use compute_bridge::backend::*;
use compute_bridge::backends::{BareMetalBackend, BareMetalSetup};
use compute_bridge::now_ms;

use super::harness::*;
use super::ssh::Sshd;

pub(crate) struct Provisioned {
    pub(crate) instance: ProvisionedInstance,
    pub(crate) receipt: SshAccessReceipt,
}

pub(crate) async fn provision(
    backend: &BareMetalBackend,
    n: u8,
    bytes: &[u8],
    dir: &std::path::Path,
    lasts_ms: u64,
) -> Result<Provisioned, BackendError> {
    let path = dir.join(format!("image-{n}"));
    std::fs::write(&path, bytes).unwrap();
    let hash = UniqueId::from_bytes(*blake3::hash(bytes).as_bytes());
    let image = LocalImage { path, hash, size_bytes: bytes.len() as u64 };
    let mut grant = grant_number(n, "metal", lasts_ms);
    (grant.cpu_millicores, grant.ram_mib) = (500, 64);
    let (host, login) = (coalition_host::keys::generate("h"), coalition_host::keys::generate("l"));
    let public = russh::keys::PublicKey::from_openssh(&host.public_openssh).unwrap();
    let host_public = coalition_shuffle::SshHostKey(public.key_data().ed25519().unwrap().0);
    let keys = InstanceKeys { host_private: host.private_openssh, host_public, login_public: login.public_openssh };
    let workload = Workload { command: vec![], env: vec![("GREETING".into(), "good day".into())], disk_mib: 64 };
    let name = InstanceName::derive(&grant.provider, &grant.request_id, 0);
    let instance =
        backend.provision(&name, Order { grant: &grant, image: &image, workload: &workload, keys: &keys }).await?;
    let receipt = SshAccessReceipt {
        instance_host: instance.host.clone(),
        instance_port: instance.port,
        user: instance.user.clone(),
        ssh_key_private: login.private_openssh.expose().as_bytes().to_vec(),
        ssh_host_key: host_public,
        grant_id: grant.request_id,
        valid_to: grant.valid_to,
        isolation: instance.isolation_text.clone(),
        posture: Posture::NotAttested,
    };
    receipt.check().unwrap();
    Ok(Provisioned { instance, receipt })
}

/// A whole life on this backend, whatever SSH server is in front of it.
async fn whole_life(setup: BareMetalSetup, dir: &std::path::Path, image: &[u8]) {
    let backend = BareMetalBackend::new(setup);
    let offering = backend.capabilities().await;
    assert!(offering.reachable, "{}", offering.detail);
    assert_eq!(offering.capabilities.max_cpu_millicores, 2_000);
    assert!(offering.isolation.is_some());
    let one = provision(&backend, 1, image, dir, 120_000).await.unwrap();
    let said = ssh_into(&one.receipt, dir, "echo $GREETING; ls /; hello").await;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("good day") && said.contains("hello from"), "{said}");
    assert_eq!(held(&backend).await, [(one.instance.name.clone(), true)]);
    let exit = backend.stop(&one.instance.name).await.unwrap().unwrap();
    assert!(exit.usage.net_bytes > 0, "{exit:?}");
    assert_eq!(held(&backend).await, [(one.instance.name.clone(), false)]);
    backend.terminate(&one.instance.name).await.unwrap();
    backend.terminate(&one.instance.name).await.unwrap();
    assert_eq!(backend.stop(&one.instance.name).await.unwrap(), None);
    assert!(backend.list_owned().await.unwrap().is_empty());
    backend.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_from_image_to_nothing_left() {
    let host = Host::start().await;
    let Some(image) = example_image(host.dir.path()) else { return };
    whole_life(host.setup(), host.dir.path(), &image).await;
    assert_eq!(std::fs::read_dir(host.grants_dir()).unwrap().count(), 0);
    // The runner was installed once, under its hash, and a second bridge process finds it there.
    let bin = host.dir.path().join("root/.coalition-host/bin");
    let program = std::fs::read(program()).unwrap();
    let installed: Vec<_> = std::fs::read_dir(&bin).unwrap().map(|e| e.unwrap()).collect();
    assert_eq!(installed.len(), 1);
    assert_eq!(installed[0].file_name().to_str().unwrap(), format!("runner-{}", blake3::hash(&program).to_hex()));
    let before = installed[0].metadata().unwrap().modified().unwrap();
    assert!(BareMetalBackend::new(host.setup()).capabilities().await.reachable);
    assert_eq!(installed[0].metadata().unwrap().modified().unwrap(), before, "it was uploaded again");
    // Exchanged on the host, it is put right before it is run.
    std::fs::write(installed[0].path(), vec![0; program.len()]).unwrap();
    assert!(BareMetalBackend::new(host.setup()).capabilities().await.reachable);
    assert_eq!(std::fs::read(installed[0].path()).unwrap(), program);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_behind_debians_sshd() {
    let Some(sshd) = Sshd::start().await else { return };
    let Some(image) = example_image(sshd.dir.path()) else { return };
    let host = Host::start().await;
    let base = sshd.dir.path().join("base");
    let setup =
        BareMetalSetup { target: sshd.target.clone(), host: host_setup(base.to_str().unwrap()), ..host.setup() };
    whole_life(setup, sshd.dir.path(), &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hosts_own_timer_ends_it_and_the_watch_says_so() {
    let host = Host::start().await;
    let Some(image) = example_image(host.dir.path()) else { return };
    let backend = BareMetalBackend::new(host.setup());
    let one = provision(&backend, 2, &image, host.dir.path(), 4_000).await.unwrap();
    let exit = backend.watch_until_exit(&one.instance, now_ms() + 4_000, &|_| ()).await.unwrap();
    assert_eq!(exit.end, LogEnd::Deadline);
    backend.terminate(&one.instance.name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blind_bridge_waits_and_a_host_that_forgot_is_a_loss() {
    let mut host = Host::start().await;
    let Some(image) = example_image(host.dir.path()) else { return };
    let backend = Arc::new(BareMetalBackend::new(host.setup()));
    let one = provision(&backend, 3, &image, host.dir.path(), 120_000).await.unwrap();
    let told = Arc::new(tokio::sync::Notify::new());
    let watch = tokio::spawn({
        let (backend, instance, told) = (Arc::clone(&backend), one.instance.clone(), Arc::clone(&told));
        async move { backend.watch_until_exit(&instance, now_ms() + 120_000, &|_| told.notify_one()).await }
    });
    tokio::time::timeout(SOON, told.notified()).await.expect("the usage so far is told");
    host.stop().await;
    eventually("the backend to notice", || backend.trouble()).await;
    assert!(!backend.capabilities().await.reachable);
    assert_eq!(backend.capabilities().await.capabilities.max_cpu_millicores, 0, "what cannot be seen is not sold");
    assert!(backend.list_owned().await.is_err() && backend.terminate(&one.instance.name).await.is_err());
    assert!(!watch.is_finished(), "blindness is not an end");
    // The workload does not care.
    assert_eq!(ssh_into(&one.receipt, host.dir.path(), "echo alive").await.stdout, b"alive\n");
    host.restart().await;
    eventually("the backend to see again", || backend.trouble().is_none().then_some(())).await;
    assert!(!watch.is_finished());
    // A machine that cannot read its own files for a while has not lost the workload.
    let dir = host.grants_dir().join(one.instance.name.as_str());
    std::fs::rename(dir.join("state.json"), dir.join("aside")).unwrap();
    std::fs::create_dir(dir.join("state.json")).unwrap();
    eventually("the backend to be blind", || backend.trouble()).await;
    assert!(!watch.is_finished(), "an error on the machine is not an end");
    std::fs::remove_dir(dir.join("state.json")).unwrap();
    std::fs::rename(dir.join("aside"), dir.join("state.json")).unwrap();
    eventually("the backend to see again", || backend.trouble().is_none().then_some(())).await;
    assert!(!watch.is_finished());
    // A watch that looks between its end and its removal sees the end: only one that comes later finds nothing for certain.
    watch.abort();
    backend.terminate(&one.instance.name).await.unwrap();
    let lost = backend.watch_until_exit(&one.instance, now_ms() + 120_000, &|_| ()).await.unwrap_err();
    assert_eq!(lost.kind, FailureKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_typed_and_leave_nothing() {
    let host = Host::start().await;
    let backend = BareMetalBackend::new(host.setup());
    let broken = provision(&backend, 4, b"this is no archive", host.dir.path(), 60_000).await.err().unwrap();
    assert_eq!((broken.kind, broken.started), (FailureKind::BadImage, false), "{broken}");
    let name = InstanceName::derive(&grant_number(4, "metal", 0).provider, &grant_number(4, "metal", 0).request_id, 0);
    backend.terminate(&name).await.unwrap();
    assert_eq!(std::fs::read_dir(host.grants_dir()).unwrap().count(), 0);
    let late = provision(&backend, 5, b"whatever", host.dir.path(), 0).await.err().unwrap();
    assert_eq!(late.kind, FailureKind::Fatal, "{late}");
    // More than the machine has is a lack of room, found without asking it.
    let small = BareMetalBackend::new(BareMetalSetup { cpu_millicores: 400, ..host.setup() });
    let full = provision(&small, 6, b"whatever", host.dir.path(), 60_000).await.err().unwrap();
    assert_eq!((full.kind, full.started), (FailureKind::Capacity, false), "{full}");
    let other = coalition_host::keys::generate("x").public_openssh.parse().unwrap();
    let mut target = host.target.clone();
    target.host_key = other;
    let spoofed = BareMetalBackend::new(BareMetalSetup { target, ..host.setup() });
    let error = provision(&spoofed, 7, b"whatever", host.dir.path(), 60_000).await.err().unwrap();
    assert_eq!((error.kind, error.started), (FailureKind::Auth, false), "{error}");
    let mut strict = host.setup();
    strict.host.minimum_isolation = coalition_host::types::IsolationLevel::RootNamespaces;
    let offering = BareMetalBackend::new(strict).capabilities().await;
    assert!(
        offering.capabilities.max_instances > 0 || offering.detail.contains("isolates only"),
        "{}",
        offering.detail
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn left_overs_of_an_interrupted_start_are_found_and_removed() {
    let host = Host::start().await;
    let backend = BareMetalBackend::new(host.setup());
    assert!(backend.capabilities().await.reachable);
    let name = InstanceName::try_from("0123456789abcdef0123456789abcdef".to_owned()).unwrap();
    let dir = host.grants_dir().join(name.as_str());
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("spec.json.part-00"), "half a secret").unwrap();
    // What nobody made as a grant is nobody's to remove, whatever it looks like.
    let others = ["disk.img", "0123456789ABCDEF0123456789ABCDEF", "0123456789abcdef0123456789abcdef0"];
    others.iter().for_each(|other| std::fs::create_dir(host.grants_dir().join(other)).unwrap());
    let listed = backend.list_owned().await.unwrap();
    let [left] = listed.as_slice() else { panic!("{listed:?}") };
    assert_eq!((&left.name, left.running), (&name, false));
    // Where the file system knows when it was made, it is that old.
    if let Ok(born) = std::fs::metadata(&dir).unwrap().created() {
        let born_s = born.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(left.since_ms, Some(born_s * 1_000));
    }
    backend.terminate(&name).await.unwrap();
    assert!(!dir.exists());
    assert!(others.iter().all(|other| host.grants_dir().join(other).exists()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_image_on_the_machine_is_sent_again() {
    let host = Host::start().await;
    let Some(image) = example_image(host.dir.path()) else { return };
    let backend = BareMetalBackend::new(host.setup());
    let one = provision(&backend, 8, &image, host.dir.path(), 60_000).await.unwrap();
    backend.terminate(&one.instance.name).await.unwrap();
    let images = host.dir.path().join("root/.coalition-host/images");
    let copy = std::fs::read_dir(&images).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&copy).unwrap();
    bytes[1_000] ^= 1;
    std::fs::write(&copy, bytes).unwrap();
    let two = provision(&backend, 9, &image, host.dir.path(), 60_000).await.unwrap();
    assert_eq!(std::fs::read(&copy).unwrap(), image);
    backend.terminate(&two.instance.name).await.unwrap();
}

/// One file of zeros as a tar, without a library: a header whose checksum is right, the content, and the end.
fn tar_of_zeros(name: &[u8; 5], bytes: usize) -> Vec<u8> {
    let mut tar = vec![0; 512 + bytes.next_multiple_of(512) + 1_024];
    tar[..5].copy_from_slice(name);
    for (at, value) in [(100, 0o644), (108, 0), (116, 0), (136, 0)] {
        tar[at..at + 7].copy_from_slice(format!("{value:07o}").as_bytes());
    }
    tar[124..135].copy_from_slice(format!("{bytes:011o}").as_bytes());
    tar[156] = b'0';
    tar[257..265].copy_from_slice(b"ustar\x0000");
    tar[148..156].fill(b' ');
    let sum: u32 = tar[..512].iter().map(|b| u32::from(*b)).sum();
    tar[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    tar
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_no_host_takes_is_told_from_one_that_others_may_take() {
    let host = Host::start().await;
    let backend = BareMetalBackend::new(host.setup());
    let mut disk = vec![0; 2_048];
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let hostile = tar_of_zeros(b"../up", 9);
    let text: &[u8] = b"neither a tar nor anything else that is known to be one, and long enough";
    let cases: [(u8, &[u8], FailureKind, &str); 4] = [
        (1, &hostile, FailureKind::BadImage, "../up"),
        (2, text, FailureKind::BadImage, "not a tar"),
        (3, b"QFI\xfb and so on", FailureKind::BadImage, "qcow2"),
        (4, &disk, FailureKind::Unsuited, "virtual machine"),
    ];
    for (number, image, kind, told) in cases {
        let error = provision(&backend, number, image, host.dir.path(), 60_000).await.err().unwrap();
        assert_eq!((error.kind, error.started, error.remains), (kind, false, false), "{error}");
        assert!(error.message.contains(told), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_larger_than_its_disk_is_told_apart_and_nothing_was_started() {
    let host = Host::start().await;
    let backend = BareMetalBackend::new(host.setup());
    let error = provision(&backend, 9, &tar_of_zeros(b"zeros", 65 << 20), host.dir.path(), 60_000).await.err().unwrap();
    assert_eq!((error.kind, error.started), (FailureKind::TooLarge, false), "{error}");
    let mut small = grant_number(1, "metal", 60_000);
    for (cpu_millicores, ram_mib) in [(9, 64), (500, 7)] {
        (small.cpu_millicores, small.ram_mib) = (cpu_millicores, ram_mib);
        assert_eq!(backend.can_satisfy(&small), Err(Unfit::TooSmall { cpu_millicores, ram_mib }));
    }
    (small.cpu_millicores, small.ram_mib) = (10, 8);
    assert_eq!(backend.can_satisfy(&small), Ok(()));
}
