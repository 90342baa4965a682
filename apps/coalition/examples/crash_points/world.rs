//! A coalition of real processes, a bridge that is killed and started again, EC2's double and a host of the operator's own.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use coalition_aws::{CredentialSource, Credentials, Ec2, Setup};
use coalition_aws_double::{Double, Moto, Phase, REGION};
use coalition_cloud_double::{Boot, Sshd};
use serde_json::Value;

use crate::{
    hosts::{Machines, Rack, Wrapper, grants_below},
    trigger::Trigger,
};

const POLICY: &str = include_str!("../../../../docs/permissions/aws.json");
/// Longest anything here may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);
const STEP: Duration = Duration::from_millis(20);

pub struct World {
    pub trigger: Arc<Trigger>,
    pub double: Double,
    pub machines: Arc<Machines>,
    pub rack: Rack,
    pub dir: PathBuf,
    program: PathBuf,
    up: Child,
    bridge: Option<Child>,
    watching: Arc<AtomicBool>,
    restarts: usize,
}

impl Drop for World {
    fn drop(&mut self) {
        self.watching.store(false, Ordering::SeqCst);
        for child in self.bridge.iter_mut().chain([&mut self.up]) {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
            let _ = child.wait();
        }
    }
}

impl World {
    /// `None`, with a word, where moto or sshd is missing.
    pub async fn start(dir: &Path, program: &Path) -> Option<Self> {
        let trigger = Arc::new(Trigger::default());
        let sshd = Sshd::new()?;
        let wrapper = Wrapper::install(dir, program, &trigger);
        let machines = Arc::new(Machines { sshd, root: dir.join("cloud"), program: program.to_owned() });
        let double = Double::start(POLICY, Some(Arc::clone(&machines) as Arc<dyn Boot>)).await?;
        let told = Arc::clone(&trigger);
        double.proxy.watcher().set(move |action, phase| {
            let phase = match phase {
                Phase::Before => "before",
                Phase::During => "during",
                Phase::After => "after",
            };
            told.reach(&format!("api {action} {phase}"));
        });
        let rack = Rack::start(dir).await;
        let up = start_coalition(dir, program);
        let watching = Arc::new(AtomicBool::new(true));
        let mut world = Self {
            trigger,
            double,
            machines,
            rack,
            dir: dir.to_owned(),
            program: program.to_owned(),
            up,
            bridge: None,
            watching,
            restarts: 0,
        };
        world.write_boot_file(&wrapper.path);
        world.watch_journal();
        world.start_bridge();
        world.until("the bridge's offers", || (world.offers() == 2).then_some(()));
        Some(world)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        command(&self.dir, &self.program, arguments)
    }

    /// The last JSON line of a command's answer, and whether it succeeded.
    pub fn ask(&self, arguments: &[&str]) -> (bool, Value) {
        let output = self.command(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let last = text.lines().last().unwrap_or("null");
        (output.status.success(), serde_json::from_str(last).unwrap_or(Value::Null))
    }

    fn offers(&self) -> usize {
        let (_, market) = self.ask(&["--json", "market"]);
        let offers = market["offers"].as_array().cloned().unwrap_or_default();
        offers
            .iter()
            .filter(|offer| ["crash-cloud", "crash-rack"].iter().any(|own| offer.to_string().contains(own)))
            .count()
    }

    fn write_boot_file(&self, runner: &Path) {
        let home = self.dir.join("home");
        let text = fs::read_to_string(home.join("roles/bridge.toml")).unwrap();
        let mut boot: toml::Table = text.parse().unwrap();
        let own = |name: &str| toml::Value::from(self.dir.join(name).display().to_string());
        boot.insert("coalition".into(), home.join("coalition.hex").display().to_string().into());
        boot.insert("key_file".into(), own("bridge.key"));
        boot.insert("data_dir".into(), own("bridge-data"));
        let keys = &self.double.moto.keys;
        let credentials =
            format!("[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n", keys.id, keys.secret);
        let path = self.dir.join("aws.credentials");
        fs::write(&path, credentials).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let section = format!(
            r#"
            [provider]
            capacity_refresh_sec = 5
            watch_interval_sec = 1
            orphan_grace_sec = 2
            on_shutdown = "drain"
            [baremetal]
            runner = {runner:?}
            [[baremetal.machines]]
            name = "rack"
            host = "127.0.0.1"
            port = {port}
            user = "bridge"
            ssh_key_path = {login:?}
            host_key = {host_key:?}
            region = "crash-rack"
            cpu_millicores = 2000
            ram_mib = 1024
            listen = "127.0.0.1"
            rates = {{ core_hour = "0.02", gib_hour = "0.004" }}
            [[aws]]
            name = "cloud"
            region = "crash-cloud"
            aws_region = "{REGION}"
            endpoint = {endpoint:?}
            credentials_file = "aws.credentials"
            image = "{image}"
            subnets = [{subnet:?}]
            security_groups = [{group:?}]
            max_instances = 4
            ssh_port = {ssh_port}
            dir = {root:?}
            runner = {runner:?}
            minimum_isolation = "process_limits"
            rates = {{ core_hour = "0.02", gib_hour = "0.004" }}
            sizes = [{{ size = "m6a.large", cpu_millicores = 2000, ram_mib = 7500, price_hour = "0.001" }}]
            "#,
            port = self.rack.server.local_addr.port(),
            login = self.rack.login_key,
            host_key = self.rack.server.host_public_key,
            endpoint = self.double.proxy.endpoint,
            image = Moto::IMAGE,
            subnet = self.double.moto.subnets[0],
            group = self.double.moto.security_group,
            ssh_port = self.machines.sshd.port,
            root = self.machines.root,
        );
        boot.extend(section.parse::<toml::Table>().unwrap());
        fs::write(self.dir.join("bridge.toml"), boot.to_string()).unwrap();
    }

    /// Every growth of the journal is a point: a state has just become durable, or is about to.
    fn watch_journal(&self) {
        let (path, trigger) = (self.dir.join("bridge-data/grants.journal"), Arc::clone(&self.trigger));
        let watching = Arc::clone(&self.watching);
        std::thread::spawn(move || {
            let mut known = 0;
            while watching.load(Ordering::SeqCst) {
                let length = fs::metadata(&path).map_or(0, |meta| meta.len());
                if length > known {
                    trigger.reach("journal grew");
                }
                known = length;
                std::thread::park_timeout(Duration::from_micros(200));
            }
        });
    }

    fn start_bridge(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("bridge.log")).unwrap();
        let boot = self.dir.join("bridge.toml");
        let mut command = self.command(&["run", "bridge", boot.to_str().unwrap()]);
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.trigger.aim_at(i32::try_from(child.id()).unwrap());
        self.bridge = Some(child);
    }

    /// Starts the bridge again once it was killed. That it ends by itself is a failure.
    pub fn keep_up(&mut self) -> bool {
        let Some(status) = self.bridge.as_mut().and_then(|bridge| bridge.try_wait().unwrap()) else { return false };
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(status.signal(), Some(9), "the bridge ended by itself ({status}); see {}", self.dir.display());
        self.restarts += 1;
        self.start_bridge();
        true
    }

    /// Runs a command to its end, starting the bridge again meanwhile; `struck` is told of each new start.
    pub fn run(&mut self, arguments: &[&str], mut struck: impl FnMut(&Trigger)) -> (bool, Vec<Value>) {
        let mut child = self.command(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let reader = std::thread::spawn(move || {
            let lines = out.lines().map_while(Result::ok);
            lines.filter_map(|line| serde_json::from_str(&line).ok()).collect::<Vec<Value>>()
        });
        let until = Instant::now() + PATIENCE * 2;
        let status = loop {
            if self.keep_up() {
                struck(&self.trigger);
            }
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < until, "{arguments:?} does not end");
            std::thread::park_timeout(STEP);
        };
        (status.success(), reader.join().unwrap())
    }

    /// Waits, starting the bridge again meanwhile.
    pub fn settle<T>(&mut self, what: &str, mut look: impl FnMut(&Self) -> Option<T>) -> Result<T, String> {
        let until = Instant::now() + PATIENCE;
        loop {
            self.keep_up();
            if let Some(found) = look(self) {
                return Ok(found);
            }
            if Instant::now() >= until {
                return Err(format!("waited {} s in vain for {what}", PATIENCE.as_secs()));
            }
            std::thread::park_timeout(STEP * 5);
        }
    }

    fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(Instant::now() < until, "waited in vain for {what}; see {}", self.dir.display());
            std::thread::park_timeout(STEP * 5);
        }
    }

    /// What there is that costs something or could run: EC2's instances, their servers, directories of grants on the hosts.
    pub async fn left(&self) -> Vec<String> {
        let instances = self.console().instances(&[]).await.unwrap();
        let live = instances.iter().filter(|one| !one.state.is_over()).map(|one| format!("instance {}", one.id));
        let rack = self.rack.root.join(".coalition-host");
        let grants = grants_below(&rack).into_iter().chain(grants_below(&self.machines.root));
        let mut left: Vec<String> = live.chain(grants.map(|path| path.display().to_string())).collect();
        left.extend((0..self.machines.sshd.running()).map(|_| "a machine that is switched on".to_owned()));
        left
    }

    /// Somebody else with the same account.
    fn console(&self) -> Ec2 {
        let keys = self.double.moto.keys.clone();
        let credentials: CredentialSource = Arc::new(move || Credentials::new(&keys.id, &keys.secret, None));
        // Past the proxy: nobody counts these calls.
        let endpoint = Some(self.double.moto.endpoint.clone());
        let setup = Setup { region: REGION.into(), endpoint, credentials, timeout: PATIENCE, pause: STEP };
        Ec2::new(setup).unwrap()
    }

    pub const fn restarts(&self) -> usize {
        self.restarts
    }
}

fn command(dir: &Path, program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(dir).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", dir);
    command.env("COALITION_HOME", dir.join("home")).stdin(Stdio::null()).stderr(Stdio::null());
    command
}

fn start_coalition(dir: &Path, program: &Path) -> Child {
    let log = fs::File::create(dir.join("up.log")).unwrap();
    let mut up = command(dir, program, &["--json", "up"]).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
    let lines = BufReader::new(up.stdout.take().unwrap()).lines();
    let (said, is_up) = std::sync::mpsc::channel();
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(said.send(line))));
    let until = Instant::now() + PATIENCE;
    while let Ok(line) = is_up.recv_timeout(until.saturating_duration_since(Instant::now())) {
        if serde_json::from_str::<Value>(&line).is_ok_and(|value| value["up"] == true) {
            // The rest is read and thrown away, so that it never waits for its reader.
            std::thread::spawn(move || while is_up.recv().is_ok() {});
            return up;
        }
    }
    let _ = up.kill();
    let _ = up.wait();
    panic!("the coalition does not come up; see {}", dir.display());
}
