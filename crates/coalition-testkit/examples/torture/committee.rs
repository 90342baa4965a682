//! The committee's processes: where they listen, how they are started and killed.

use std::{
    io::{BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use coalition_testkit::{key, roster};
use coalition_universe::PeerAddress;

use crate::namespaces;

/// Longest a member may take to come up.
const START: Duration = Duration::from_secs(60);

/// The organism under test.
pub const ORGANISM: [u8; 32] = [0x70; 32];

/// Addresses of everything.
#[derive(Clone)]
pub struct Places {
    pub order: Vec<SocketAddr>,
    pub nodes: Vec<SocketAddr>,
    pub relay: SocketAddr,
    pub namespaces: bool,
}

impl Places {
    pub fn loopback(members: usize) -> Self {
        // Below those the system gives to connections, for some are bound only later.
        let first = 20_000 + u16::try_from(std::process::id() % 8_000).unwrap();
        let held = (first..32_000).filter_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok());
        let held: Vec<TcpListener> = held.take(2 * members + 1).collect();
        let mut free = held.iter().map(|listener| listener.local_addr().unwrap());
        let order = free.by_ref().take(members).collect();
        let nodes = free.by_ref().take(members).collect();
        Self { order, nodes, relay: free.next().unwrap(), namespaces: false }
    }

    pub fn namespaces(members: usize) -> Self {
        let at = |host: usize, port: u16| {
            SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 77, 0, u8::try_from(host).unwrap())), port)
        };
        Self {
            order: (0..members).map(|member| at(member + 1, 7_000)).collect(),
            nodes: (0..members).map(|member| at(member + 1, 7_001)).collect(),
            relay: at(namespaces::CLIENT_HOST, 3_340),
            namespaces: true,
        }
    }

    pub fn relay_url(&self) -> String {
        format!("http://{}/", self.relay)
    }

    pub fn peer(&self, member: usize) -> PeerAddress {
        peer(member, self.nodes[member], &self.relay_url())
    }
}

/// Where a member's node is reached.
pub fn peer(member: usize, node: SocketAddr, relay: &str) -> PeerAddress {
    PeerAddress { peer: key(member, 3).peer_id(), direct: vec![node], relay: Some(relay.to_owned()) }
}

/// The processes.
pub struct Committee {
    places: Places,
    dir: PathBuf,
    /// Who is in the roster at first; the others join later.
    genesis: usize,
    state_every: u64,
    children: Vec<Option<Child>>,
    /// Length of each member's stderr before its last start.
    said_before: Vec<usize>,
}

impl Committee {
    /// Members with a state after every `state_every` entries.
    pub fn new(places: Places, dir: &Path, state_every: u64) -> Self {
        let children = places.order.iter().map(|_| None).collect();
        let (said_before, genesis) = (vec![0; places.order.len()], places.order.len());
        Self { places, dir: dir.to_owned(), genesis, state_every, children, said_before }
    }

    /// The same, of which only the first `genesis` are in the roster at first.
    #[allow(dead_code)]
    pub fn with_genesis(mut self, genesis: usize) -> Self {
        self.genesis = genesis;
        self
    }

    /// Seats at the end that were never started.
    #[allow(dead_code)]
    pub fn unused(&self) -> usize {
        (0..self.len()).rev().take_while(|member| !self.log_file(*member).exists()).count()
    }

    pub fn len(&self) -> usize {
        self.children.len()
    }

    /// Everything a member stores.
    pub fn member_dir(&self, member: usize) -> PathBuf {
        self.dir.join(format!("m{member}"))
    }

    pub fn log_dir(&self, member: usize) -> PathBuf {
        self.member_dir(member).join("logs").join("register")
    }

    pub fn is_up(&self, member: usize) -> bool {
        self.children[member].is_some()
    }

    /// What a member's process said on stderr since its last start.
    pub fn words(&self, member: usize) -> String {
        let log = std::fs::read(self.log_file(member)).unwrap_or_default();
        String::from_utf8_lossy(log.get(self.said_before[member]..).unwrap_or_default()).into_owned()
    }

    fn log_file(&self, member: usize) -> PathBuf {
        self.dir.join(format!("m{member}.log"))
    }

    /// Starts a process and waits until it takes part.
    ///
    /// # Errors
    /// Its last words, when it ended instead.
    pub fn start(&mut self, member: usize) -> Result<(), String> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_file(member)).unwrap();
        self.said_before[member] = usize::try_from(log.metadata().unwrap().len()).unwrap();
        let mut child = self.command(member).stderr(log).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(tell.send(line))));
        if told.recv_timeout(START).is_ok_and(|line| line == "ready") {
            self.children[member] = Some(child);
            return Ok(());
        }
        // Standard output is closed or silent: whatever is left of the process is of no use.
        let _ = child.kill();
        let status = child.wait().unwrap();
        Err(format!("{} ({status})", self.words(member).trim()))
    }

    fn command(&self, member: usize) -> Command {
        let program = std::env::current_exe().unwrap();
        let list = |places: &[SocketAddr]| places.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let mut command = if self.places.namespaces {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", &namespaces::member(member)]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command
            .arg("member")
            .arg(member.to_string())
            .arg(self.member_dir(member))
            .arg(list(&self.places.order))
            .arg(list(&self.places.nodes))
            .arg(self.places.relay_url())
            .arg(self.state_every.to_string())
            .arg(self.genesis.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        command
    }

    /// SIGKILL, and waits until the process is gone.
    pub fn kill(&mut self, member: usize) {
        if let Some(mut child) = self.children[member].take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// The processes that run; the benchmark beside etcd asks what they spend.
    #[allow(dead_code)]
    pub fn pids(&self) -> Vec<u32> {
        self.children.iter().flatten().map(Child::id).collect()
    }

    /// The status of a process that ended by itself.
    pub fn ended(&mut self, member: usize) -> Option<String> {
        let slot = &mut self.children[member];
        let status = slot.as_mut()?.try_wait().unwrap()?;
        *slot = None;
        Some(status.to_string())
    }

    /// A process that ended by itself, with its status.
    pub fn dead(&mut self) -> Option<(usize, String)> {
        (0..self.len()).find_map(|member| self.ended(member).map(|status| (member, status)))
    }

    /// Closes every member's stdin, which asks it to stop, and waits.
    pub fn stop_all(&mut self) -> Vec<String> {
        let mut complaints = Vec::new();
        for child in self.children.iter_mut().flatten() {
            drop(child.stdin.take());
        }
        let until = Instant::now() + START;
        for (member, slot) in self.children.iter_mut().enumerate() {
            let Some(mut child) = slot.take() else { continue };
            let status = loop {
                match child.try_wait().unwrap() {
                    Some(status) => break Some(status),
                    None if Instant::now() > until => break None,
                    None => std::thread::park_timeout(Duration::from_millis(20)),
                }
            };
            match status {
                Some(status) if status.success() => {}
                Some(status) => complaints.push(format!("member {member} stopped with {status}")),
                None => {
                    child.kill().unwrap();
                    child.wait().unwrap();
                    complaints.push(format!("member {member} did not stop when asked"));
                }
            }
        }
        complaints
    }

    pub fn roster(&self) -> coalition::Roster {
        roster(self.genesis)
    }
}

impl Drop for Committee {
    fn drop(&mut self) {
        (0..self.children.len()).for_each(|member| self.kill(member));
    }
}
