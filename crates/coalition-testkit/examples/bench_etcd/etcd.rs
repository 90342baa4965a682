//! Three members of etcd as Debian ships it, with its defaults: every commit is synced.

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use crate::grpc::{Connection, bytes_field, field};

const MEMBERS: usize = 3;
/// Connections to the leader, as etcd's own benchmark opens several for many clients.
const CONNECTIONS: usize = 16;
const START: Duration = Duration::from_secs(30);

pub struct Cluster {
    members: Vec<Child>,
    connections: Vec<Connection>,
    pub committed: Arc<AtomicU64>,
}

#[derive(Clone)]
pub struct Writer(Connection);

impl Cluster {
    pub async fn start(dir: &Path) -> Result<Self, String> {
        let held: Vec<TcpListener> = (0..2 * MEMBERS).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let urls: Vec<String> = held.iter().map(|l| format!("http://{}", l.local_addr().unwrap())).collect();
        let clients: Vec<_> = held.iter().take(MEMBERS).map(|l| l.local_addr().unwrap()).collect();
        drop(held);
        let peers: Vec<String> = (0..MEMBERS).map(|i| format!("e{i}={}", urls[MEMBERS + i])).collect();
        let mut cluster = Self { members: Vec::new(), connections: Vec::new(), committed: Arc::default() };
        for i in 0..MEMBERS {
            let own = dir.join(format!("e{i}"));
            std::fs::create_dir_all(&own).map_err(|error| error.to_string())?;
            let log = std::fs::File::create(dir.join(format!("e{i}.log"))).map_err(|error| error.to_string())?;
            let member = Command::new("etcd")
                .args(["--name", &format!("e{i}"), "--log-level", "error", "--initial-cluster-state", "new"])
                .args(["--listen-client-urls", &urls[i], "--advertise-client-urls", &urls[i]])
                .args(["--listen-peer-urls", &urls[MEMBERS + i], "--initial-advertise-peer-urls", &urls[MEMBERS + i]])
                .args(["--initial-cluster", &peers.join(","), "--data-dir"])
                .arg(&own)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .map_err(|error| format!("etcd: {error}; apt-get install etcd-server"))?;
            cluster.members.push(member);
        }
        let leader = leader(&clients).await?;
        for _ in 0..CONNECTIONS {
            cluster.connections.push(Connection::open(leader).await?);
        }
        Ok(cluster)
    }

    pub fn pids(&self) -> Vec<u32> {
        self.members.iter().map(Child::id).collect()
    }

    pub fn writer(&self, number: usize) -> Writer {
        Writer(self.connections[number % self.connections.len()].clone())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}

/// The address of the member that all agree leads.
async fn leader(clients: &[std::net::SocketAddr]) -> Result<std::net::SocketAddr, String> {
    let until = Instant::now() + START;
    let mut last = String::new();
    while Instant::now() < until {
        for address in clients {
            match leads(*address).await {
                Ok(true) => return Ok(*address),
                Ok(false) => {}
                Err(reason) => last = reason,
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(format!("etcd has no leader within {} s: {last}", START.as_secs()))
}

/// Asks a member's status: its own id in the header, and whom it takes for the leader.
async fn leads(address: std::net::SocketAddr) -> Result<bool, String> {
    let status = Connection::open(address).await?.call("/etcdserverpb.Maintenance/Status", Vec::new()).await?;
    let header = field(&status, 1).and_then(|found| found.bytes).unwrap_or_default();
    let (own, leader) = (field(&header, 2), field(&status, 4));
    let (own, leader) = (own.and_then(|found| found.number), leader.and_then(|found| found.number));
    Ok(own.is_some() && own == leader)
}

impl Writer {
    pub async fn write(&self, content: Vec<u8>) -> Result<(), String> {
        // A key of its own for every value, of the length our writes' ids have.
        let key = &content[..16.min(content.len())];
        let mut request = bytes_field(1, key);
        request.extend(bytes_field(2, &content));
        self.0.call("/etcdserverpb.KV/Put", request).await.map(drop)
    }
}
