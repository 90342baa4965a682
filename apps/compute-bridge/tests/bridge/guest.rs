//! A host with systemd, really booted: the small Debian that `.ci/systemd-guest` makes, under QEMU on loopback.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use coalition_host::machine::qemu::Accelerator;
use coalition_host::machine::tools;
use compute_bridge::ssh::{LoginKey, SshHost, SshTarget};

/// Longest wait for anything in a guest that may be emulated on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);
/// One command in it.
const COMMAND: Duration = Duration::from_secs(90);

/// The guest. What it writes to its disk is gone with it.
pub(crate) struct Guest {
    qemu: Child,
    dir: tempfile::TempDir,
    port: u16,
    host_key: String,
    root: SshHost,
}

impl Guest {
    /// Boots it; none, having said why, where there is none.
    pub(crate) async fn boot() -> Option<Self> {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
        let made = target.join("systemd-guest");
        let kernel = std::fs::read_dir(target.join("kernel/boot")).ok().and_then(|found| {
            found.flatten().map(|f| f.path()).find(|path| path.to_string_lossy().contains("/vmlinuz-"))
        });
        let (Some(kernel), Some(qemu), true) = (kernel, tools::qemu(), made.join("made").exists()) else {
            eprintln!(
                "SKIPPED: no kernel, qemu-system-x86_64 or Debian with systemd here; run .ci/setup and .ci/systemd-guest"
            );
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let (host_key, login) = (read(&made.join("host.key.pub")), read(&made.join("login.key")));
        super::harness::write_key(&dir.path().join("login.key"), &login);
        let arguments = arguments(&kernel, &made.join("disk"), dir.path(), port, tools::accelerator(&qemu).0);
        let log = std::fs::File::create(dir.path().join("qemu.log")).unwrap();
        let qemu = Command::new(qemu).args(arguments).stdin(Stdio::null()).stderr(log).spawn().unwrap();
        let root = SshHost::new(target_of(dir.path(), port, &host_key, "root"));
        let guest = Self { qemu, dir, port, host_key, root };
        guest.until("its boot", "systemctl is-system-running | grep -Ex 'running|degraded'").await;
        Some(guest)
    }

    /// How this user is reached.
    pub(crate) fn target(&self, user: &str) -> SshTarget {
        target_of(self.dir.path(), self.port, &self.host_key, user)
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs a line as root; its output, if it succeeds.
    pub(crate) async fn try_run(&self, line: &str) -> Result<String, String> {
        let done = self.root.exec_again("a test", line, COMMAND).await.map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&done.stdout).trim().to_owned();
        if done.status == Some(0) { Ok(said) } else { Err(format!("{:?}: {said} {}", done.status, done.stderr_tail())) }
    }

    /// Runs a line as root, which has to succeed.
    pub(crate) async fn run(&self, line: &str) -> String {
        self.try_run(line).await.unwrap_or_else(|problem| panic!("{line}: {problem}"))
    }

    /// Waits until a line succeeds.
    pub(crate) async fn until(&self, what: &str, line: &str) -> String {
        let began = std::time::Instant::now();
        loop {
            match self.try_run(line).await {
                Ok(said) => return said,
                Err(problem) if began.elapsed() > PATIENCE => {
                    panic!("{what} did not happen within {PATIENCE:?}: {problem}\n{}", self.console())
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(300)).await,
            }
        }
    }

    /// Leads a port of ours to one of the guest's.
    pub(crate) fn forward(&self, to: u16) -> u16 {
        let from = free_port();
        let line = format!("hostfwd_add net tcp:127.0.0.1:{from}-10.0.2.15:{to}");
        self.tell(&format!(r#"{{"execute":"human-monitor-command","arguments":{{"command-line":"{line}"}}}}"#));
        from
    }

    /// The button on its front.
    pub(crate) fn reset(&self) {
        self.tell(r#"{"execute":"system_reset"}"#);
    }

    /// One command to QEMU: each answer is a line, events apart.
    fn tell(&self, command: &str) {
        let stream = UnixStream::connect(self.dir.path().join("qmp")).unwrap();
        stream.set_read_timeout(Some(COMMAND)).unwrap();
        let mut answers = BufReader::new(stream.try_clone().unwrap()).lines();
        for line in [r#"{"execute":"qmp_capabilities"}"#, command] {
            writeln!(&stream, "{line}").unwrap();
            let answer = answers.find(|line| line.as_ref().is_ok_and(|line| line.contains("\"return\"")));
            assert_eq!(answer.unwrap().unwrap().replace("\\r\\n", "").replace("\"\"", "{}"), r#"{"return": {}}"#);
        }
    }

    fn console(&self) -> String {
        let text = std::fs::read(self.dir.path().join("console")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        text.lines().rev().take(20).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn target_of(dir: &Path, port: u16, host_key: &str, user: &str) -> SshTarget {
    SshTarget {
        host: "127.0.0.1".into(),
        port,
        user: user.into(),
        key: LoginKey::File(dir.join("login.key")),
        host_key: host_key.trim().parse().unwrap(),
    }
}

/// Its disk is one that the kernel knows without modules; there is no initial file system.
fn arguments(kernel: &Path, disk: &Path, dir: &Path, port: u16, accelerator: Accelerator) -> Vec<String> {
    let (accelerator, cpu) = match accelerator {
        Accelerator::Kvm => ("kvm", "host"),
        Accelerator::Tcg => ("tcg,thread=multi", "max"),
    };
    let path = |path: PathBuf| path.display().to_string();
    let pairs = [
        ("-accel", accelerator.to_owned()),
        ("-cpu", cpu.to_owned()),
        ("-machine", "q35".to_owned()),
        ("-smp", "2".to_owned()),
        ("-m", "1024".to_owned()),
        ("-display", "none".to_owned()),
        ("-kernel", path(kernel.into())),
        ("-append", "root=/dev/nvme0n1 rw console=ttyS0 net.ifnames=0 mitigations=off random.trust_cpu=on".to_owned()),
        ("-drive", format!("if=none,id=disk,format=raw,cache=unsafe,file={}", disk.display())),
        ("-device", "nvme,drive=disk,serial=root".to_owned()),
        ("-netdev", format!("user,id=net,ipv6=off,restrict=on,hostfwd=tcp:127.0.0.1:{port}-10.0.2.15:22")),
        ("-device", "virtio-net-pci,netdev=net,romfile=".to_owned()),
        ("-device", "virtio-rng-pci".to_owned()),
        ("-serial", format!("file:{}", path(dir.join("console")))),
        ("-qmp", format!("unix:{},server=on,wait=off", path(dir.join("qmp")))),
    ];
    let flags = ["-nodefaults", "-no-user-config", "-snapshot"].map(str::to_owned);
    flags.into_iter().chain(pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value])).collect()
}
