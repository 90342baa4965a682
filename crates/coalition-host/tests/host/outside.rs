//! A host and what is outside of it, as network namespaces of their own: nothing here touches the machine's network.
//!
//!     grant ── tunnel ── supervisor on the host, 10.77.0.1 ══ cable ══ 10.77.0.2, outside: 93.184.216.34, 9.9.9.9, 169.254.169.254, …

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use simple_dns::rdata::{A, RData};
use simple_dns::{CLASS, Packet, PacketFlag, ResourceRecord};

use super::harness::{has, is_root};

/// Somebody on the Internet, and a neighbour of that one.
pub(crate) const PUBLIC: &str = "93.184.216.34";
pub(crate) const OTHER: &str = "93.184.216.35";
/// A resolver on the Internet, which the host uses.
pub(crate) const RESOLVER: &str = "9.9.9.9";
/// The host's own address, and its neighbour's.
pub(crate) const OWN: &str = "10.77.0.1";
pub(crate) const NEIGHBOUR: &str = "10.77.0.2";
/// Where clouds hand out credentials.
pub(crate) const METADATA: &str = "169.254.169.254";

type Job = Box<dyn FnOnce() + Send>;

/// The world outside. The thread that made it is on the host from then on, and so is whatever it starts.
pub(crate) struct Outside {
    jobs: Sender<Job>,
    _files: tempfile::TempDir,
}

fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Outside {
    /// None, having said why, where there is no root or no `ip`.
    pub(crate) fn new() -> Option<Self> {
        if !is_root() || !has("ip") {
            eprintln!("skipped: network namespaces need root and iproute2 here");
            return None;
        }
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let files = tempfile::tempdir().unwrap();
        let resolv = files.path().join("resolv.conf");
        std::fs::write(&resolv, format!("nameserver {RESOLVER}\n")).unwrap();
        mount(Some(&resolv), "/etc/resolv.conf", none, MsFlags::MS_BIND, none).unwrap();
        let (jobs, work) = channel::<Job>();
        let (tell, told) = channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tell.send(nix::unistd::gettid()).unwrap();
            work.into_iter().for_each(|job| job());
        });
        ip(&format!("link add cable type veth peer name cable netns {}", told.recv().unwrap()));
        for words in ["link set lo up", "link set cable up", "addr add 10.77.0.1/24 dev cable"] {
            ip(words);
        }
        let outside = Self { jobs, _files: files };
        outside.there(|| {
            ip("link set lo up");
            ip("link set cable up");
            ip("addr add 10.77.0.2/24 dev cable");
            for address in [PUBLIC, OTHER, RESOLVER, METADATA] {
                ip(&format!("addr add {address}/32 dev lo"));
            }
        });
        ip("route add default via 10.77.0.2");
        Some(outside)
    }

    /// Does something out there.
    pub(crate) fn there<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = channel();
        self.jobs.send(Box::new(move || drop(tell.send(work())))).unwrap();
        told.recv().unwrap()
    }

    pub(crate) fn listen(&self, at: &str) -> TcpListener {
        let at = at.to_owned();
        self.there(move || TcpListener::bind(&*at).unwrap())
    }

    /// A web server of the first kind (HTTP 0.9): `/N` is N bytes. Answers who came.
    pub(crate) fn web(&self, at: &str) -> Arc<Visitors> {
        web(self.listen(at))
    }

    /// The resolver: each of these names has this address, for this many seconds; no other name has any. Counts questions.
    pub(crate) fn resolver(&self, names: &'static [(&'static str, &'static str, u32)]) -> Arc<AtomicUsize> {
        let at = format!("{RESOLVER}:53");
        let socket = self.there(move || UdpSocket::bind(&*at).unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        std::thread::spawn(move || {
            let mut piece = [0; 1500];
            while let Ok((length, who)) = socket.recv_from(&mut piece) {
                count.fetch_add(1, Ordering::SeqCst);
                let _ = socket.send_to(&answer(&piece[..length], names), who);
            }
        });
        asked
    }
}

fn answer(question: &[u8], names: &[(&str, &str, u32)]) -> Vec<u8> {
    let asked = Packet::parse(question).unwrap();
    let mut answer = Packet::new_reply(asked.id());
    answer.set_flags(PacketFlag::RECURSION_AVAILABLE);
    let question = asked.questions[0].clone();
    let name = question.qname.to_string().to_lowercase();
    for (_, address, ttl) in names.iter().filter(|(known, ..)| *known == name && u16::from(question.qtype) == 1) {
        let address = address.parse::<std::net::Ipv4Addr>().unwrap();
        let data = RData::A(A { address: address.into() });
        answer.answers.push(ResourceRecord::new(question.qname.clone(), CLASS::IN, *ttl, data));
    }
    answer.questions.push(question);
    answer.build_bytes_vec().unwrap()
}

/// Who came to a server.
#[derive(Default)]
pub(crate) struct Visitors {
    now: AtomicUsize,
    most: AtomicUsize,
    pub(crate) all: AtomicUsize,
    pub(crate) received: AtomicU64,
}

impl Visitors {
    pub(crate) fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }
}

/// Serves until the test is over.
pub(crate) fn web(listener: TcpListener) -> Arc<Visitors> {
    let visitors = Arc::<Visitors>::default();
    let seen = Arc::clone(&visitors);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let seen = Arc::clone(&seen);
            seen.all.fetch_add(1, Ordering::SeqCst);
            let now = seen.now.fetch_add(1, Ordering::SeqCst) + 1;
            seen.most.fetch_max(now, Ordering::SeqCst);
            std::thread::spawn(move || {
                let _ = serve(stream, &seen.received);
                seen.now.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    visitors
}

/// One request; whoever asks for nothing is listened to until its end.
fn serve(mut stream: TcpStream, received: &AtomicU64) -> std::io::Result<()> {
    let (mut head, mut piece) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        let length = stream.read(&mut piece)?;
        if length == 0 {
            return Ok(());
        }
        received.fetch_add(length as u64, Ordering::SeqCst);
        if head.len() < 4096 {
            head.extend_from_slice(&piece[..length]);
        }
        if head.starts_with(b"GET ") && head.ends_with(b"\r\n\r\n") {
            break;
        }
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let wanted = text.split(' ').nth(1).and_then(|path| path.trim_start_matches('/').parse().ok()).unwrap_or(2);
    let body = vec![b'x'; 256 << 10];
    let mut left: usize = wanted;
    while left > 0 {
        let now = left.min(body.len());
        stream.write_all(&body[..now])?;
        left -= now;
    }
    // Whoever asked closes first, so that nothing is cut off.
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    while stream.read(&mut piece)? > 0 {}
    Ok(())
}
