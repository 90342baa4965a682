//! The SSH client against our own server, a server that misbehaves on purpose, and Debian's sshd.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use compute_bridge::backend::FailureKind;
use compute_bridge::ssh::{LoginKey, SshError, SshHost, SshTarget, file_blake3, quote};

use super::harness::{Host, SOON, eventually, write_key};

/// What every server must do for us.
async fn behaves(ssh: &SshHost, dir: &Path) {
    let output = ssh.exec("a test", "printf out; printf err >&2; exit 7", SOON).await.unwrap();
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice(), output.status),
        (&b"out"[..], &b"err"[..], Some(7))
    );
    assert_eq!(output.stderr_tail(), "err");
    let odd = "a 'quoted' $HOME \"x\" \\ `ls`";
    let echoed = ssh.exec("a test", &format!("printf %s {}", quote(odd)), SOON).await.unwrap();
    assert_eq!(String::from_utf8(echoed.stdout).unwrap(), odd);
    let killed = ssh.exec("a test", "kill -9 $$", SOON).await.unwrap();
    assert!(
        killed.status.is_none_or(|status| status != 0) && killed.signal.is_none_or(|signal| signal.contains("KILL"))
    );

    let local = dir.join("payload");
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| u8::try_from(i % 249).unwrap()).collect();
    std::fs::write(&local, &bytes).unwrap();
    let home = ssh.home(SOON).await.unwrap();
    let below = format!("bridge-test-{}/deep/er", std::process::id());
    ssh.make_dirs(&home, &below, SOON).await.unwrap();
    ssh.make_dirs(&home, &below, SOON).await.unwrap();
    let remote = format!("{home}/{below}/payload");
    let sent = ssh.upload(&local, &remote, 0o640, SOON).await.unwrap();
    assert_eq!((sent.hash, sent.size_bytes), (blake3::hash(&bytes), 3_000_000));
    assert_eq!(ssh.remote_blake3(&remote, SOON).await.unwrap(), (blake3::hash(&bytes), 3_000_000));
    assert_eq!(file_blake3(&local).await.unwrap(), (blake3::hash(&bytes), 3_000_000));
    assert_eq!(ssh.size_of(&remote, SOON).await.unwrap(), Some(3_000_000));
    let mode = ssh.exec("a test", &format!("stat -c %a {}", quote(&remote)), SOON).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&mode.stdout).trim(), "640");
    // A second upload replaces the first, and nothing half-written stays.
    std::fs::write(&local, b"short").unwrap();
    ssh.upload(&local, &remote, 0o600, SOON).await.unwrap();
    ssh.write_file(&format!("{home}/{below}/small"), b"secret", SOON).await.unwrap();
    let mut names: Vec<_> =
        ssh.list_files(&format!("{home}/{below}"), SOON).await.unwrap().into_iter().map(|f| (f.0, f.1)).collect();
    names.sort();
    assert_eq!(names, [("payload".to_owned(), 5), ("small".to_owned(), 6)]);
    ssh.remove_file(&remote, SOON).await.unwrap();
    ssh.remove_file(&remote, SOON).await.unwrap();
    assert_eq!(ssh.size_of(&remote, SOON).await.unwrap(), None);
    assert!(matches!(ssh.upload(&dir.join("missing"), &remote, 0o600, SOON).await, Err(SshError::Local { .. })));
    let top = format!("{home}/bridge-test-{}", std::process::id());
    ssh.exec("a test", &format!("rm -rf {}", quote(&top)), SOON).await.unwrap();

    let many = (0..20).map(|i| async move {
        let output = ssh.exec("a test", &format!("sleep 0.05; echo {i}"), SOON).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), i.to_string());
    });
    futures::future::join_all(many).await;
    let late = ssh.exec("sleeping", "sleep 30", Duration::from_millis(200)).await.unwrap_err();
    assert!(matches!(&late, SshError::Deadline { waited_ms: 200, what, .. } if what == "sleeping"), "{late}");
    assert_eq!(late.kind(), FailureKind::Transient);
    // A late command does not spoil the connection.
    assert_eq!(ssh.exec("a test", "true", SOON).await.unwrap().status, Some(0));
}

/// Several that install the same file at one time: whoever has put it finds it there at every moment from then on.
async fn is_shared(target: &SshTarget, dir: &Path) {
    let local = dir.join("shared");
    let bytes = vec![7; 500_000];
    std::fs::write(&local, &bytes).unwrap();
    let remote = dir.join("shared-there").to_str().unwrap().to_owned();
    for _ in 0..5 {
        let all = (0..6).map(|_| async {
            let ssh = SshHost::new(target.clone());
            ssh.upload(&local, &remote, 0o700, SOON * 3).await.unwrap();
            for _ in 0..3 {
                let there = ssh.remote_blake3(&remote, SOON * 3).await.expect("nobody takes it away");
                assert_eq!(there, (blake3::hash(&bytes), 500_000));
            }
        });
        futures::future::join_all(all).await;
        std::fs::write(&remote, b"damaged").unwrap();
    }
    std::fs::remove_file(&remote).unwrap();
    let left: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains(".part-")), "{left:?}");
}

/// What every client must refuse.
async fn refuses(target: &SshTarget, dir: &Path) {
    let other = coalition_host::keys::generate("other");
    let wrong = SshTarget { host_key: other.public_openssh.parse().unwrap(), ..target.clone() };
    let error = SshHost::new(wrong.clone()).connect().await.unwrap_err();
    let SshError::HostKey { pinned, presented, .. } = &error else { panic!("{error}") };
    assert!(pinned.contains(&wrong.host_key.fingerprint()) && presented.contains("SHA256:"), "{error}");
    assert!(presented.contains(&target.host_key.fingerprint()) || !presented.contains("ed25519"), "{error}");
    assert_eq!(error.kind(), FailureKind::Auth);

    let key_path = dir.join("other.key");
    write_key(&key_path, other.private_openssh.expose());
    let stranger = SshTarget { key: LoginKey::File(key_path), ..target.clone() };
    let error = SshHost::new(stranger).connect().await.unwrap_err();
    assert!(matches!(&error, SshError::Refused { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("SHA256:") && text.contains("authorized_keys") && text.contains("other.key"), "{text}");
    assert_eq!(error.kind(), FailureKind::Auth);

    let key_path = dir.join("not-a-key");
    write_key(&key_path, "hello");
    let error =
        SshHost::new(SshTarget { key: LoginKey::File(key_path), ..target.clone() }).connect().await.unwrap_err();
    assert!(matches!(error, SshError::KeyFile { .. }), "{error}");

    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = SshHost::new(SshTarget { port: closed, ..target.clone() }).connect().await.unwrap_err();
    assert!(
        matches!(&error, SshError::Connect { .. }) && error.to_string().contains(&format!("127.0.0.1:{closed}")),
        "{error}"
    );
    assert_eq!(error.kind(), FailureKind::Transient);
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_server() {
    let host = Host::start().await;
    behaves(&SshHost::new(host.target.clone()), host.dir.path()).await;
    is_shared(&host.target, &host.dir.path().join("root")).await;
    refuses(&host.target, host.dir.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_in_the_middle_is_noticed_and_found_again() {
    let mut host = Host::start().await;
    let ssh = std::sync::Arc::new(SshHost::new(host.target.clone()));
    ssh.connect().await.unwrap();
    let begun = host.dir.path().join("begun");
    let waiting = tokio::spawn({
        let ssh = std::sync::Arc::clone(&ssh);
        let command = format!("touch {}; sleep 60", begun.display());
        async move { ssh.exec("a long command", &command, SOON * 3).await }
    });
    eventually("the command to run", || begun.exists().then_some(())).await;
    let stopped = Instant::now();
    host.stop().await;
    let error = waiting.await.unwrap().unwrap_err();
    assert!(error.is_lost_connection(), "{error}");
    assert!(stopped.elapsed() < Duration::from_secs(10));
    assert_eq!(ssh.exec("a test", "true", SOON).await.unwrap_err().kind(), FailureKind::Transient);
    host.restart().await;
    assert_eq!(ssh.exec_again("a test", "echo back", SOON).await.unwrap().stdout, b"back\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_speaks_costs_a_deadline_only() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = Host::start().await;
    let target = SshTarget { port: listener.local_addr().unwrap().port(), ..host.target.clone() };
    let error = SshHost::new(target).exec("a test", "true", Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(error, SshError::Deadline { waited_ms: 300, .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn output_without_end_is_cut_off() {
    let host = Host::start().await;
    let ssh = SshHost::new(host.target.clone());
    let error = ssh.exec("a flood", "head -c 20000000 /dev/zero", SOON).await.unwrap_err();
    assert!(matches!(error, SshError::TooMuchOutput { .. }), "{error}");
    assert_eq!(ssh.exec("a test", "true", SOON).await.unwrap().status, Some(0));
}

/// Debian's sshd on loopback, ended by its process id.
pub(crate) struct Sshd {
    child: Child,
    pub(crate) target: SshTarget,
    pub(crate) dir: tempfile::TempDir,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Sshd {
    /// Starts it, or says why not.
    pub(crate) async fn start() -> Option<Self> {
        Self::start_with("").await
    }

    /// With one more line of configuration.
    pub(crate) async fn start_with(extra: &str) -> Option<Self> {
        let program = PathBuf::from("/usr/sbin/sshd");
        if !program.exists() {
            eprintln!("skipped: openssh-server is not installed");
            return None;
        }
        let me = nix::unistd::User::from_uid(nix::unistd::getuid()).unwrap().unwrap();
        if me.shell.ends_with("nologin") || me.shell.ends_with("false") {
            eprintln!("skipped: {} has no login shell", me.name);
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (host, login) = (coalition_host::keys::generate("host"), coalition_host::keys::generate("login"));
        write_key(&at("host.key"), host.private_openssh.expose());
        write_key(&at("login.key"), login.private_openssh.expose());
        write_key(&at("authorized"), &format!("{}\n", login.public_openssh));
        if nix::unistd::geteuid().is_root() {
            let _ = std::fs::create_dir_all("/run/sshd");
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\nStrictModes no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n\
             {}\n\
             Subsystem sftp internal-sftp\n",
            at("host.key").display(),
            at("authorized").display(),
            extra,
        );
        std::fs::write(at("sshd_config"), config).unwrap();
        let mut child = Command::new(program)
            .args(["-D", "-e", "-f"])
            .arg(at("sshd_config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(at("log")).unwrap())
            .spawn()
            .unwrap();
        let user = me.name;
        let target = SshTarget {
            host: "127.0.0.1".into(),
            port,
            user,
            key: LoginKey::File(at("login.key")),
            host_key: host.public_openssh.parse().unwrap(),
        };
        for _ in 0..500 {
            if let Some(ended) = child.try_wait().unwrap() {
                let log = std::fs::read_to_string(at("log")).unwrap_or_default();
                eprintln!("skipped: sshd does not start here ({ended}): {log}");
                return None;
            }
            if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return Some(Self { child, target, dir });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("sshd does not listen");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn debians_sshd() {
    let Some(sshd) = Sshd::start().await else { return };
    behaves(&SshHost::new(sshd.target.clone()), sshd.dir.path()).await;
    is_shared(&sshd.target, sshd.dir.path()).await;
    refuses(&sshd.target, sshd.dir.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_at_once_than_a_stock_sshd_has_sessions_for_wait_for_each_other() {
    let Some(sshd) = Sshd::start().await else { return };
    let ssh = SshHost::new(sshd.target.clone());
    let home = sshd.dir.path().to_str().unwrap();
    let all = (0..40).map(|i| {
        let ssh = &ssh;
        async move {
            if i % 2 == 0 {
                ssh.write_file(&format!("{home}/many-{i}"), b"x", SOON * 3).await.unwrap();
            } else {
                ssh.exec("a test", "sleep 0.1", SOON * 3).await.unwrap();
            }
        }
    });
    futures::future::join_all(all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_channel_to_spare_is_a_passing_trouble_before_anything_ran() {
    let Some(sshd) = Sshd::start_with("MaxSessions 0").await else { return };
    let error = SshHost::new(sshd.target.clone()).exec("a test", "true", SOON).await.unwrap_err();
    assert!(matches!(error, SshError::NoChannel { .. }), "{error}");
    assert!(error.is_before_anything() && error.kind() == FailureKind::Transient);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_behind_a_stock_sshd_is_a_lack_of_room() {
    let Some(sshd) = Sshd::start().await else { return };
    let ssh = SshHost::new(sshd.target.clone());
    let small = sshd.dir.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let options = Some("size=64k");
    if let Err(errno) = nix::mount::mount(Some("tmpfs"), &small, Some("tmpfs"), nix::mount::MsFlags::empty(), options) {
        eprintln!("skipped: no tmpfs can be mounted here ({errno})");
        return;
    }
    let local = sshd.dir.path().join("large");
    std::fs::write(&local, vec![1; 1 << 20]).unwrap();
    let full = ssh.upload(&local, small.join("copy").to_str().unwrap(), 0o600, SOON).await;
    let missing = ssh.upload(&local, small.join("no/such/place").to_str().unwrap(), 0o600, SOON).await;
    nix::mount::umount(&small).unwrap();
    assert_eq!(full.unwrap_err().kind(), FailureKind::Capacity);
    assert_eq!(missing.unwrap_err().kind(), FailureKind::Fatal);
}
