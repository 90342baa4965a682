//! The other end of a grant's tunnel: every packet is looked at here, connections are opened or refused.

use std::cell::RefCell;
use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand_core::{OsRng, RngCore};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration as StackDuration, Instant as StackInstant};
use smoltcp::wire::{HardwareAddress, IpCidr, IpListenEndpoint};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use super::addresses::{GATEWAY, GATEWAY_V6, PREFIX, PREFIX_V6};
use super::carry::carry;
use super::datagrams::Datagrams;
use super::device::Device;
use super::dns::{self, NotAsked};
use super::packet::{Seen, Unreachable, look, unreachable};
use super::policy::{Pins, decide};
use super::resolver;
use super::rules::{Rule, Transport};
use crate::ssh::Traffic;

/// Connections of a grant at one time, those that are ending included.
const CONNECTIONS: usize = 256;
/// And those of them that the host is still opening.
const OPENING: usize = 64;
/// Bytes held for each direction of a connection.
const WINDOW: usize = 256 << 10;
/// Longest a connection may take to open.
const PATIENCE: Duration = Duration::from_secs(15);
/// A workload whose kernel says nothing to this is gone.
const SILENCE: StackDuration = StackDuration::from_secs(120);
const KEEP_ALIVE: StackDuration = StackDuration::from_secs(45);
/// Packets looked at before anybody else has a turn.
const BATCH: usize = 64;
/// Longest packet that opens a connection.
const LONGEST_SYN: usize = 512;
/// Where names are resolved, on the tunnel's other end.
pub(super) const DNS_PORT: u16 = 53;

/// A grant's egress; ends with it.
pub(crate) struct Egressing {
    stop: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Egressing {
    /// Serves the other end of a tunnel on a thread of its own.
    ///
    /// # Errors
    /// No thread can be had.
    pub(crate) fn start(tun: OwnedFd, rules: Vec<Rule>, traffic: Arc<Traffic>) -> io::Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let outcome = runtime.and_then(|runtime| {
                let local = tokio::task::LocalSet::new();
                runtime.block_on(local.run_until(async move {
                    let stack = Stack::new(tun, rules, traffic)?;
                    tokio::select! {
                        outcome = drive(&stack) => outcome,
                        _ = stopped => Ok(()),
                    }
                }))
            });
            if let Err(error) = outcome {
                crate::runner::log(&format!("egress: {error}"));
            }
        };
        let thread = std::thread::Builder::new().name("egress".into()).spawn(work)?;
        Ok(Self { stop, thread })
    }

    /// Ends every connection; returns when that is done.
    pub(crate) fn shutdown(self) {
        let _ = self.stop.send(());
        // One that panicked has ended as well, and said so.
        let _ = self.thread.join();
    }
}

/// Both ends of a connection or flow: the workload's and the other.
pub(super) type Ends = (SocketAddr, SocketAddr);

/// A grant's stack; shared by the tasks of its thread.
pub(super) struct Stack {
    pub(super) inner: RefCell<Inner>,
    tun: Rc<AsyncFd<OwnedFd>>,
    /// Something is to be sent.
    pub(super) kick: Notify,
    rules: Vec<Rule>,
    pub(super) traffic: Arc<Traffic>,
    pub(super) datagrams: Datagrams,
    began: Instant,
}

/// What is borrowed for a moment, never across a wait.
pub(super) struct Inner {
    interface: Interface,
    pub(super) sockets: SocketSet<'static>,
    pub(super) device: Device,
    opening: HashSet<Ends>,
    open: HashSet<Ends>,
    pins: Pins,
}

impl Inner {
    /// Lets the TCP stack take what was presented to the device.
    fn take(&mut self, now: StackInstant) {
        self.interface.poll_ingress_single(now, &mut self.device, &mut self.sockets);
    }

    /// Sends what connections have to send.
    pub(super) fn send(&mut self, now: StackInstant) {
        self.interface.poll_maintenance(now);
        for _ in 0..BATCH {
            if self.interface.poll_egress(now, &mut self.device, &mut self.sockets) == smoltcp::iface::PollResult::None
            {
                break;
            }
        }
    }

    /// The workload's side of a connection that it has asked for with `syn`.
    fn accept(&mut self, ends: Ends, syn: &[u8], now: StackInstant) -> Option<SocketHandle> {
        let buffer = || tcp::SocketBuffer::new(vec![0; WINDOW]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_timeout(Some(SILENCE));
        socket.set_keep_alive(Some(KEEP_ALIVE));
        let endpoint = IpListenEndpoint { addr: Some(ends.1.ip().into()), port: ends.1.port() };
        socket.listen(endpoint).ok()?;
        let handle = self.sockets.add(socket);
        self.device.present_other(syn);
        self.take(now);
        if self.sockets.get::<tcp::Socket<'_>>(handle).state() == tcp::State::Listen {
            // It was no proper beginning after all.
            self.sockets.remove(handle);
            return None;
        }
        self.open.insert(ends);
        Some(handle)
    }

    /// Forgets a connection. One that has not ended in an orderly way is reset.
    pub(super) fn forget(&mut self, handle: SocketHandle, ends: Ends, now: StackInstant) {
        self.send(now);
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        if !matches!(socket.state(), tcp::State::Closed | tcp::State::TimeWait) {
            socket.abort();
            self.send(now);
        }
        self.sockets.remove(handle);
        self.open.remove(&ends);
    }
}

/// What a stack looks like from the workload: every address is here, and nothing is between.
fn interface(device: &mut Device, now: StackInstant) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = OsRng.next_u64();
    let mut interface = Interface::new(config, device, now);
    interface.set_any_ip(true);
    interface.update_ip_addrs(|own| {
        let _ = own.push(IpCidr::new(GATEWAY.into(), PREFIX));
        let _ = own.push(IpCidr::new(GATEWAY_V6.into(), PREFIX_V6));
    });
    interface
}

/// Whether an address is this host's own: then the kernel would also speak from it.
fn is_own(address: IpAddr) -> bool {
    let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let source = std::net::UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == address)
}

impl Stack {
    fn new(tun: OwnedFd, rules: Vec<Rule>, traffic: Arc<Traffic>) -> io::Result<Rc<Self>> {
        let tun = Rc::new(crate::isolate::sys::watch_fd(tun)?);
        let mut device = Device::new(Rc::clone(&tun));
        let interface = interface(&mut device, StackInstant::ZERO);
        let inner = Inner {
            interface,
            sockets: SocketSet::new(Vec::new()),
            device,
            opening: HashSet::new(),
            open: HashSet::new(),
            pins: Pins::default(),
        };
        let (kick, datagrams, began) = (Notify::new(), Datagrams::default(), Instant::now());
        Ok(Rc::new(Self { inner: RefCell::new(inner), tun, kick, rules, traffic, datagrams, began }))
    }

    pub(super) fn now(&self) -> StackInstant {
        StackInstant::from_micros(i64::try_from(self.began.elapsed().as_micros()).unwrap_or(i64::MAX))
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether the workload may reach this; counted when not.
    pub(super) fn allows(&self, to: SocketAddr, transport: Transport) -> bool {
        let own = is_own(to.ip());
        let allowed = decide(&self.rules, &self.inner.borrow().pins, (to, transport), own, self.now_ms()).is_ok();
        if !allowed {
            self.traffic.refuse();
        }
        allowed
    }

    /// Answers a workload's question about a name; none when there is nothing to answer.
    pub(super) async fn answer(&self, question: &[u8], by_udp: bool) -> Option<Vec<u8>> {
        let id = u16::try_from(OsRng.next_u32() >> 16).unwrap_or_default();
        let asked = match dns::ask(question, &self.rules, id) {
            Ok(asked) => asked,
            Err(NotAsked::Refused(answer)) => {
                self.traffic.refuse();
                return Some(answer);
            }
            Err(NotAsked::Odd(answer)) => return Some(answer),
            Err(NotAsked::Nothing) => return None,
        };
        let Some((answer, addresses)) = resolver::resolve(&asked).await else { return Some(asked.failure()) };
        let now_ms = self.now_ms();
        let mut inner = self.inner.borrow_mut();
        for (address, ttl) in addresses.into_iter().filter(|_| !asked.rules.is_empty()) {
            inner.pins.add(&asked.rules, address, ttl, now_ms);
        }
        Some(if by_udp { asked.by_udp(answer) } else { answer })
    }

    /// Reads packets until there are none or others should have a turn; true for the latter.
    fn read(self: &Rc<Self>) -> io::Result<bool> {
        for _ in 0..BATCH {
            let read = self.tun.try_io(Interest::READABLE, |_| self.inner.borrow_mut().device.read());
            match read {
                Ok(length) => self.look_at(length),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Decides about the packet that was read last.
    fn look_at(self: &Rc<Self>, length: usize) {
        let mut inner = self.inner.borrow_mut();
        match look(inner.device.packet(length)) {
            None => {}
            Some(Seen::Tcp { from, to, opens }) => {
                if opens && !inner.open.contains(&(from, to)) {
                    let syn = (length <= LONGEST_SYN).then(|| inner.device.packet(length).to_vec());
                    drop(inner);
                    return syn.into_iter().for_each(|syn| self.begin((from, to), syn));
                }
                inner.device.present(length);
                inner.take(self.now());
            }
            Some(Seen::Udp { from, to, payload }) => {
                let payload = payload.to_vec();
                drop(inner);
                if let Err(why) = self.pass_on((from, to), payload) {
                    self.tell_unreachable(length, why);
                }
            }
            Some(Seen::Uncarried) => {
                drop(inner);
                self.traffic.refuse();
                self.tell_unreachable(length, Unreachable::Prohibited);
            }
        }
    }

    /// Tells the sender of the packet that was read last.
    fn tell_unreachable(&self, length: usize, why: Unreachable) {
        let inner = self.inner.borrow();
        unreachable(inner.device.packet(length), why).iter().for_each(|told| inner.device.send(told));
    }

    /// A workload asks for a connection. It gets one when the host has got one, or is reset: what it sees is what there is.
    fn begin(self: &Rc<Self>, ends: Ends, syn: Vec<u8>) {
        let (opening, others) = {
            let inner = self.inner.borrow();
            if inner.opening.contains(&ends) {
                // Again, because it has had no answer yet.
                return;
            }
            (inner.opening.len(), inner.open.len())
        };
        let dns = ends.1 == SocketAddr::from((GATEWAY, DNS_PORT));
        let room = opening < OPENING && opening + others < CONNECTIONS;
        if !room {
            self.traffic.refuse();
        }
        if !room || (!dns && !self.allows(ends.1, Transport::Tcp)) {
            return self.reset(&syn);
        }
        self.inner.borrow_mut().opening.insert(ends);
        tokio::task::spawn_local(open(Rc::clone(self), ends, syn, dns));
    }

    /// Has the stack answer a packet of no connection, which is a reset.
    fn reset(&self, syn: &[u8]) {
        let mut inner = self.inner.borrow_mut();
        inner.device.present_other(syn);
        inner.take(self.now());
    }
}

async fn open(stack: Rc<Stack>, ends: Ends, syn: Vec<u8>, dns: bool) {
    let connected = match dns {
        true => None,
        false => Some(timeout(PATIENCE, TcpStream::connect(ends.1)).await),
    };
    let handle = {
        let mut inner = stack.inner.borrow_mut();
        inner.opening.remove(&ends);
        let works = connected.as_ref().is_none_or(|connected| matches!(connected, Ok(Ok(_))));
        works.then(|| inner.accept(ends, &syn, stack.now())).flatten()
    };
    stack.kick.notify_one();
    let Some(handle) = handle else { return stack.reset(&syn) };
    match connected {
        Some(Ok(Ok(stream))) => {
            let _ = stream.set_nodelay(true);
            let _ = nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::KeepAlive, &true);
            carry(Rc::clone(&stack), handle, stream).await;
        }
        _ => {
            let (ours, theirs) = tokio::io::duplex(usize::from(u16::MAX));
            tokio::join!(carry(Rc::clone(&stack), handle, ours), answer_stream(&stack, theirs));
        }
    }
    stack.inner.borrow_mut().forget(handle, ends, stack.now());
}

/// Answers the questions of one connection, one after the other.
async fn answer_stream(stack: &Stack, mut stream: tokio::io::DuplexStream) {
    while let Ok(question) = resolver::read_message(&mut stream).await {
        let Some(answer) = stack.answer(&question, false).await else { return };
        if resolver::write_message(&mut stream, &answer).await.is_err() {
            return;
        }
    }
}

/// Moves packets until the interface is gone.
async fn drive(stack: &Rc<Stack>) -> io::Result<()> {
    loop {
        let more = stack.read()?;
        let delay = {
            let now = stack.now();
            let inner = &mut *stack.inner.borrow_mut();
            inner.send(now);
            inner.interface.poll_delay(now, &inner.sockets)
        };
        if more || delay == Some(StackDuration::ZERO) {
            tokio::task::yield_now().await;
            continue;
        }
        let wait = delay.map_or(Duration::from_secs(3600), |delay| Duration::from_micros(delay.total_micros()));
        tokio::select! {
            ready = stack.tun.readable() => drop(ready?),
            () = stack.kick.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}
