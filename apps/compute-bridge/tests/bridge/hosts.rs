//! Real SSH hosts of ours on loopback, and images for them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use coalition::RateQ64;
use coalition_compute::DeclaredRates;
use coalition_host::keys;
use coalition_host::sshd::{self, HostSshd, HostSshdConfig};
use coalition_host::types::IsolationLevel;
use coalition_shuffle::SshAccessReceipt;
use compute_bridge::backends::{BareMetalSetup, HostSetup};
use compute_bridge::ssh::{LoginKey, SshTarget};

use super::harness::SOON;

/// The program with the hidden subcommand `runner`.
pub(crate) fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_compute-bridge"))
}

/// Writes a private key file as an operator would.
pub(crate) fn write_key(path: &Path, text: &str) {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// A host of ours on loopback with a directory of its own.
pub(crate) struct Host {
    pub(crate) server: Option<HostSshd>,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) target: SshTarget,
    config: HostSshdConfig,
}

impl Host {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (host, login) = (keys::generate("host"), keys::generate("login"));
        let key_path = dir.path().join("login.key");
        write_key(&key_path, login.private_openssh.expose());
        let root_dir = dir.path().join("root");
        std::fs::create_dir(&root_dir).unwrap();
        let mut config = HostSshdConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            host_key: host.private_openssh,
            authorized_keys: vec![login.public_openssh],
            root_dir,
            env: vec![],
        };
        let server = sshd::serve(config.clone()).await.unwrap();
        config.listen = server.local_addr;
        let target = SshTarget {
            host: "127.0.0.1".into(),
            port: server.local_addr.port(),
            user: "bridge".into(),
            key: LoginKey::File(key_path),
            host_key: server.host_public_key.parse().unwrap(),
        };
        Self { server: Some(server), dir, target, config }
    }

    pub(crate) async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown().await;
        }
    }

    pub(crate) async fn restart(&mut self) {
        self.server = Some(sshd::serve(self.config.clone()).await.unwrap());
    }

    pub(crate) fn grants_dir(&self) -> PathBuf {
        self.dir.path().join("root/.coalition-host/owner/grants")
    }

    pub(crate) fn setup(&self) -> BareMetalSetup {
        BareMetalSetup { listen: Some("127.0.0.1".parse().unwrap()), ..setup_for(self.target.clone()) }
    }
}

/// A machine that is reached there.
pub(crate) fn setup_for(target: SshTarget) -> BareMetalSetup {
    BareMetalSetup {
        guest: None,
        name: "metal".parse().unwrap(),
        target,
        region: "local".parse().unwrap(),
        cpu_millicores: 2_000,
        ram_mib: 512,
        max_instances: 4,
        rates: DeclaredRates { core_hour: "0.02".parse().unwrap(), gib_hour: RateQ64::ZERO },
        public_host: "127.0.0.1".into(),
        listen: None,
        host: host_setup(".coalition-host"),
    }
}

/// How the tests' workloads are run, in this directory of a host.
pub(crate) fn host_setup(dir: &str) -> HostSetup {
    HostSetup {
        dir: dir.into(),
        owner: "owner".into(),
        minimum_isolation: IsolationLevel::ProcessLimits,
        egress: Default::default(),
        network_mbit: None,
        pids_max: 64,
        program: Some(program()),
        image_timeout: SOON,
        start_timeout: SOON,
        watch_interval: Duration::from_millis(100),
        machine: None,
    }
}

/// The example image, or `None` with a word when this machine lacks a static busybox.
pub(crate) fn example_image(dir: &Path) -> Option<Vec<u8>> {
    let path = dir.join("example.tar");
    match coalition_host::image::make_example(&path) {
        Ok(_) => Some(std::fs::read(path).unwrap()),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// Runs a command in the workload with the receipt, over an SSH session of its own.
pub(crate) async fn ssh_into(receipt: &SshAccessReceipt, dir: &Path, command: &str) -> compute_bridge::ssh::ExecOutput {
    let key_path = dir.join(format!("receipt-{}.key", receipt.instance_port));
    write_key(&key_path, std::str::from_utf8(&receipt.ssh_key_private).unwrap());
    let target = SshTarget {
        host: receipt.instance_host.clone(),
        port: receipt.instance_port,
        user: receipt.user.clone(),
        key: LoginKey::File(key_path),
        host_key: receipt.ssh_host_key.to_openssh().parse().unwrap(),
    };
    compute_bridge::ssh::SshHost::new(target).exec("a command", command, SOON).await.unwrap()
}
