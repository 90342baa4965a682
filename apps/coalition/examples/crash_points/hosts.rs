//! Hosts the bridge logs in to: one of its operator's own, and those of the EC2 double. On both, every call of the runner goes
//! through a script that says so first and waits until it may go on.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Write},
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use coalition_cloud_double::{Boot, Sshd};
use coalition_host::{
    keys,
    sshd::{self, HostSshd, HostSshdConfig},
};
use nix::{sys::stat::Mode, unistd::mkfifo};

use crate::trigger::Trigger;

/// The script that stands between the bridge and its runner.
pub struct Wrapper {
    pub path: PathBuf,
}

impl Wrapper {
    /// Writes it, and answers what it says from now on.
    pub fn install(dir: &Path, program: &Path, trigger: &Arc<Trigger>) -> Self {
        let (ask, go, lock) = (dir.join("ask"), dir.join("go"), dir.join("lock"));
        for fifo in [&ask, &go] {
            mkfifo(fifo, Mode::S_IRWXU).unwrap();
        }
        let path = dir.join("runner.sh");
        let script = format!(
            "#!/bin/sh\n\
             # $2 is the verb. One call at a time says where it stands and waits for leave.\n\
             point() {{ ( flock 9; echo \"ssh runner $1\" > '{ask}'; read -r leave < '{go}' ) 9> '{lock}'; }}\n\
             point \"$2 before\"\n\
             '{program}' \"$@\"\n\
             code=$?\n\
             point \"$2 during\"\n\
             exit $code\n",
            ask = ask.display(),
            go = go.display(),
            lock = lock.display(),
            program = program.display(),
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        // Open for both, so that neither end ever sees the other's close.
        let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path).unwrap();
        let (asked, mut leave) = (open(&ask), open(&go));
        let trigger = Arc::clone(trigger);
        std::thread::spawn(move || listen(asked, &mut leave, &trigger));
        Self { path }
    }
}

fn listen(asked: File, leave: &mut File, trigger: &Trigger) {
    for line in BufReader::new(asked).lines().map_while(Result::ok) {
        trigger.reach(&line);
        let _ = leave.write_all(b"go\n");
    }
}

/// A host of the operator's own.
pub struct Rack {
    pub server: HostSshd,
    pub login_key: PathBuf,
    pub root: PathBuf,
}

impl Rack {
    pub async fn start(dir: &Path) -> Self {
        let (host, login) = (keys::generate("rack"), keys::generate("bridge"));
        let login_key = dir.join("rack.key");
        fs::write(&login_key, login.private_openssh.expose()).unwrap();
        fs::set_permissions(&login_key, fs::Permissions::from_mode(0o600)).unwrap();
        let root = dir.join("rack");
        fs::create_dir(&root).unwrap();
        let config = HostSshdConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            host_key: host.private_openssh,
            authorized_keys: vec![login.public_openssh],
            root_dir: root.clone(),
            env: vec![],
        };
        Self { server: sshd::serve(config).await.unwrap(), login_key, root }
    }
}

/// What the double boots: real SSH servers; and what switching one off takes with it.
pub struct Machines {
    pub sshd: Sshd,
    /// Directory of the bridge on every machine: they all are this one.
    pub root: PathBuf,
    pub program: PathBuf,
}

impl Boot for Machines {
    fn boot(&self, id: &str, address: Ipv4Addr, user_data: &[u8]) {
        self.sshd.boot(id, address, user_data);
    }

    fn power_off(&self, id: &str) {
        self.sshd.power_off(id);
        for grant in grants_below(&self.root) {
            for verb in ["stop", "clean"] {
                let _ = Command::new(&self.program).args(["runner", verb, "--dir"]).arg(&grant).output();
            }
        }
    }
}

/// Directories of grants below a bridge's directory on a host: `OWNER/grants/NAME`.
pub fn grants_below(root: &Path) -> Vec<PathBuf> {
    let list = |dir: &Path| -> Vec<PathBuf> {
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    list(root).iter().flat_map(|owner| list(&owner.join("grants"))).collect()
}
