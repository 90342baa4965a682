//! Pushing, verifying and fetching content over loopback, beside `scp` to a real sshd in the same run.
//!
//! `cargo run --release -p coalition-content --example bench_content -- [MB…]`; needs OpenSSH's server and client.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::float_arithmetic,
    clippy::cast_possible_truncation
)]

use std::fs::File;
use std::io::{BufWriter, Write};
use std::net::TcpListener;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use coalition_content::Content;
use coalition_content::client::StoreClient;
use coalition_content::fetch::{Source, SourceError, fetch};
use coalition_content::service::{ContentService, Policy};
use coalition_content::store::{Limits, Store};
use coalition_content::tree::Outline;
use coalition_universe::{Node, NodeConfig, NodeKey, UNIVERSE};

const SIZES_MB: [u64; 3] = [1, 200, 2_000];
const PATIENCE: Duration = Duration::from_secs(600);

struct Remote(StoreClient);

#[async_trait]
impl Source for Remote {
    async fn slice(&self, content: Content, range: Range<u64>, _: Duration) -> Result<Vec<u8>, SourceError> {
        self.0.slice(content, range).await.map_err(|error| SourceError::Later(error.to_string()))
    }
}

async fn node(seed: u8) -> Arc<Node> {
    let config = NodeConfig {
        network_id: UNIVERSE.derive("content bench"),
        key: NodeKey::from_bytes([seed; 32]),
        relay: "http://127.0.0.1:9/".into(),
        bind: None,
        bootstrap: vec![],
        public: false,
        start_timeout: PATIENCE,
    };
    Node::start(config).await.unwrap()
}

/// Bytes that do not compress.
fn make(path: &Path, bytes: u64) {
    let mut out = BufWriter::new(File::create(path).unwrap());
    let mut source = blake3::Hasher::new().update(b"bench").finalize_xof();
    let mut block = vec![0; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        source.fill(&mut block);
        let count = left.min(block.len() as u64) as usize;
        out.write_all(&block[..count]).unwrap();
        left -= count as u64;
    }
    out.flush().unwrap();
}

/// Debian's sshd on a loopback port, with keys made for this run.
struct Sshd {
    child: Child,
    port: u16,
    dir: PathBuf,
}

impl Sshd {
    fn start(dir: &Path) -> Self {
        for key in ["host", "user"] {
            let made =
                Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.join(key)).status();
            assert!(made.unwrap().success());
        }
        std::fs::copy(dir.join("user.pub"), dir.join("authorized")).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {0}/host\nAuthorizedKeysFile {0}/authorized\nStrictModes no\n\
             UsePAM no\nPidFile none\nSubsystem sftp internal-sftp\n",
            dir.display()
        );
        std::fs::write(dir.join("config"), config).unwrap();
        let _ = std::fs::create_dir_all("/run/sshd");
        let child =
            Command::new("/usr/sbin/sshd").arg("-D").arg("-f").arg(dir.join("config")).stderr(Stdio::null()).spawn();
        let sshd = Self { child: child.unwrap(), port, dir: dir.into() };
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "sshd does not listen");
            std::thread::yield_now();
        }
        sshd
    }

    fn copy(&self, from: &Path, to: &Path) -> Duration {
        let began = Instant::now();
        let copied = Command::new("scp")
            .args([
                "-q",
                "-P",
                &self.port.to_string(),
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "UserKnownHostsFile=/dev/null",
            ])
            .args(["-o", "LogLevel=ERROR", "-i"])
            .arg(self.dir.join("user"))
            .arg(from)
            .arg(format!("{}@127.0.0.1:{}", std::env::var("USER").unwrap_or_else(|_| "root".into()), to.display()))
            .status();
        assert!(copied.unwrap().success(), "scp failed");
        began.elapsed()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::main(flavor = "multi_thread")]
async fn main() {
    let asked: Vec<u64> = std::env::args().skip(1).map(|mb| mb.parse().unwrap()).collect();
    let sizes = if asked.is_empty() { SIZES_MB.to_vec() } else { asked };
    let dir = tempfile::tempdir().unwrap();
    let sshd = Sshd::start(dir.path());
    println!("|    MB | hash s | push s | fetch s | check s | scp s | push/scp | fetch/scp |");
    println!("|------:|-------:|-------:|--------:|--------:|------:|---------:|----------:|");
    for mb in sizes {
        Box::pin(one(dir.path(), &sshd, mb)).await;
    }
}

async fn one(dir: &Path, sshd: &Sshd, mb: u64) {
    let (server, pusher, reader) = tokio::join!(node(1), node(2), node(3));
    let (there, here) = (dir.join(format!("store-{mb}")), dir.join(format!("cache-{mb}")));
    let open = |dir: &Path| Store::open(dir, Limits::of(1 << 40)).unwrap();
    let policy = Policy { anyone_bytes: 1 << 40, anyone_total_bytes: 1 << 40, ..Policy::default() };
    server.serve(Arc::new(ContentService::new(open(&there), policy)));
    let path = dir.join(format!("image-{mb}"));
    make(&path, mb * 1_000_000);
    let began = Instant::now();
    let outline = Arc::new(Outline::read(File::open(&path).unwrap(), mb * 1_000_000).unwrap());
    let hash = began.elapsed();
    let (file, store) = (Arc::new(File::open(&path).unwrap()), StoreClient::new(pusher, server.address()));
    let began = Instant::now();
    store.push(&outline, &file, PATIENCE, |_| ()).await.unwrap();
    let push = began.elapsed();
    let (cache, remote) = (open(&here), Remote(StoreClient::new(reader, server.address())));
    let began = Instant::now();
    fetch(&cache, outline.content(), &[&remote], PATIENCE, |_| ()).await.unwrap();
    let fetched = began.elapsed();
    let began = Instant::now();
    cache.check(outline.content().hash()).unwrap();
    let check = began.elapsed();
    let scp = sshd.copy(&path, &dir.join("scp-copy"));
    let s = |took: Duration| took.as_secs_f64();
    println!(
        "| {mb:>5} | {:>6.2} | {:>6.2} | {:>7.2} | {:>7.2} | {:>5.2} | {:>8.2} | {:>9.2} |",
        s(hash),
        s(push),
        s(fetched),
        s(check),
        s(scp),
        s(push) / s(scp),
        s(fetched) / s(scp)
    );
    server.stop().await;
    for dir in [there, here] {
        std::fs::remove_dir_all(dir).unwrap();
    }
}
