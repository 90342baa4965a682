//! What "booting" means here: an SSH server on the machine's loopback address, set up as its user data says.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

/// Is told of machines.
pub trait Boot: Send + Sync + 'static {
    /// A machine was made, at this address, with this user data.
    fn boot(&self, id: &str, address: Ipv4Addr, user_data: &[u8]);
    /// A machine was ended.
    fn power_off(&self, id: &str);
}

/// Debian's `sshd`, one per machine, all on the same port of different loopback addresses. Reads of the user data what
/// cloud-init would: the host key and who may log in.
pub struct Sshd {
    /// The port of all machines.
    pub port: u16,
    dir: tempfile::TempDir,
    running: Mutex<BTreeMap<String, Child>>,
    /// Replaces the host key of machines made from now on: they come up with another one than they were told.
    pub impostor: Mutex<Option<String>>,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, mut child) in std::mem::take(&mut *running) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Sshd {
    const PROGRAM: &'static str = "/usr/sbin/sshd";

    /// Ready to boot; `None`, with a word, where there is no sshd, or where its user cannot be root.
    #[allow(clippy::print_stderr)]
    #[must_use]
    pub fn new() -> Option<Self> {
        if !Path::new(Self::PROGRAM).exists() {
            eprintln!("skipped: openssh-server is not installed");
            return None;
        }
        let me = Command::new("id").arg("-u").output().map(|output| output.stdout).unwrap_or_default();
        if me.as_slice() != b"0\n" {
            eprintln!("skipped: machines are logged in to as root, and only root's sshd lets root in");
            return None;
        }
        let _ = fs::create_dir_all("/run/sshd");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let port = listener.local_addr().expect("it has an address").port();
        let dir = tempfile::tempdir().expect("there is room for files");
        Some(Self { port, dir, running: Mutex::default(), impostor: Mutex::default() })
    }

    /// Machines that are up.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Writes the server's files; answers its configuration.
    fn prepare(&self, id: &str, address: Ipv4Addr, user_data: &[u8]) -> PathBuf {
        let dir = self.dir.path().join(id);
        fs::create_dir(&dir).expect("an instance boots once");
        let text = String::from_utf8(user_data.to_vec()).expect("user data is text");
        let json = text.strip_prefix("#cloud-config\n").expect("user data is a cloud-config");
        let config: Value = serde_json::from_str(json).expect("the cloud-config is JSON, which is YAML");
        let own = config["ssh_keys"]["ed25519_private"].as_str().expect("it pins a host key").to_owned();
        let impostor = self.impostor.lock().unwrap_or_else(PoisonError::into_inner).clone();
        private(&dir.join("host.key"), &impostor.unwrap_or(own));
        let logins: Vec<&str> =
            config["ssh_authorized_keys"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        private(&dir.join("authorized"), &format!("{}\n", logins.join("\n")));
        let text = format!(
            "Port {}\nListenAddress {address}\nHostKey {d}/host.key\nAuthorizedKeysFile {d}/authorized\nPidFile none\n\
             UsePAM no\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n",
            self.port,
            d = dir.display(),
        );
        let path = dir.join("sshd_config");
        fs::write(&path, text).expect("a file can be written");
        path
    }
}

impl Boot for Sshd {
    fn boot(&self, id: &str, address: Ipv4Addr, user_data: &[u8]) {
        let config = self.prepare(id, address, user_data);
        let log = fs::File::create(config.with_file_name("log")).expect("a file can be written");
        let child = Command::new(Self::PROGRAM)
            .args(["-D", "-e", "-f"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("sshd can be started");
        self.running.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), child);
    }

    fn power_off(&self, id: &str) {
        let taken = self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        let Some(mut child) = taken else { return };
        // The sessions it has open are children of its own, each of a connection; they end with their sockets.
        let sessions = Command::new("pgrep").args(["-P", &child.id().to_string()]).output();
        let _ = child.kill();
        let _ = child.wait();
        for pid in String::from_utf8_lossy(&sessions.map(|output| output.stdout).unwrap_or_default()).lines() {
            let _ = Command::new("kill").args(["-9", pid]).status();
        }
    }
}

fn private(path: &Path, text: &str) {
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).expect("a file can be made");
    file.write_all(text.as_bytes()).expect("a file can be written");
}
