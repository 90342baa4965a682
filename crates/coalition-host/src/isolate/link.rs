//! Network interfaces of the current namespace: loopback, a virtual machine's card, and the tunnel whose other end is ours.
#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::egress::addresses::{GATEWAY, PREFIX, PREFIX_V6, WORKLOAD, WORKLOAD_V6};
use crate::egress::packet::MTU;

/// `libc::IFF_UP`, in the type the request has.
const IFF_UP: libc::c_short = 1;
/// `libc::AF_INET`, in the type an address has.
const AF_INET: libc::sa_family_t = 2;
/// `IFF_TUN | IFF_NO_PI`: IP packets, nothing before them.
const TUNNEL_FLAGS: libc::c_short = 0x1001;
/// Name of the tunnel inside.
const TUNNEL: &str = "egress";
/// A virtual machine's card.
const ETHERNET: &str = "eth0";
const DEVICE: &str = "/dev/net/tun";
/// `RTF_UP`: over an interface.
const ROUTE_UP: u32 = 1;
/// `RTF_UP | RTF_GATEWAY`.
const ROUTE_GATEWAY: u16 = 3;

/// `struct in6_rtmsg` of linux/ipv6_route.h, whose fields the C library's binding keeps to itself.
#[repr(C)]
struct Route6 {
    dst: [u8; 16],
    src: [u8; 16],
    gateway: [u8; 16],
    kind: u32,
    dst_len: u16,
    src_len: u16,
    metric: u32,
    info: libc::c_ulong,
    flags: u32,
    ifindex: libc::c_int,
}

/// Brings the loopback interface up.
pub(crate) fn loopback_up() -> io::Result<()> {
    let socket = ask(AddressFamily::Inet)?;
    bring_up(&socket, "lo")
}

/// Gives the network interface `eth0` an address and brings it up.
pub(crate) fn ethernet_up(address: Ipv4Addr, mask: Ipv4Addr) -> io::Result<()> {
    let socket = ask(AddressFamily::Inet)?;
    set_address(&socket, ETHERNET, address, mask)?;
    bring_up(&socket, ETHERNET)
}

/// Sends everything that has no other way to `gateway`, over `eth0`.
pub(crate) fn ethernet_route(gateway: Ipv4Addr) -> io::Result<()> {
    default_route(&ask(AddressFamily::Inet)?, ETHERNET, gateway)
}

/// Makes the interface by which everything leaves this namespace that has no other way; whoever has the descriptor is the
/// other side. IPv6 is left out where the kernel has none.
pub(crate) fn tunnel() -> Result<OwnedFd, String> {
    let at = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK).open(DEVICE);
    let file = file.map_err(at(DEVICE))?;
    let mut request = named(TUNNEL);
    request.ifr_ifru.ifru_flags = TUNNEL_FLAGS;
    // SAFETY: the kernel reads and writes within one ifreq, which this is.
    done(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })
        .map_err(at("make a tunnel"))?;
    let made = || -> io::Result<()> {
        let socket = ask(AddressFamily::Inet)?;
        let mut request = named(TUNNEL);
        request.ifr_ifru.ifru_mtu = i32::try_from(MTU).unwrap_or(i32::MAX);
        // SAFETY: as above.
        done(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFMTU as _, &raw const request) })?;
        let mask = Ipv4Addr::from(u32::MAX << (32 - u32::from(PREFIX)));
        set_address(&socket, TUNNEL, WORKLOAD, mask)?;
        bring_up(&socket, TUNNEL)?;
        default_route(&socket, TUNNEL, GATEWAY)
    };
    made().map_err(at("set the tunnel up"))?;
    let _ = address_and_route_v6(WORKLOAD_V6, PREFIX_V6);
    Ok(file.into())
}

fn ask(family: AddressFamily) -> io::Result<OwnedFd> {
    Ok(socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

fn done(rc: i32) -> io::Result<()> {
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A request about an interface; the name and its terminating zero fit.
fn named(name: &str) -> libc::ifreq {
    // SAFETY: an all-zero ifreq is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = byte.cast_signed() as libc::c_char;
    }
    request
}

fn set_address(socket: &OwnedFd, name: &str, address: Ipv4Addr, mask: Ipv4Addr) -> io::Result<()> {
    for (what, address) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, mask)] {
        let mut request = named(name);
        request.ifr_ifru.ifru_addr = inet(address);
        // SAFETY: the kernel reads one ifreq, which this is.
        done(unsafe { libc::ioctl(socket.as_raw_fd(), what as _, &raw const request) })?;
    }
    Ok(())
}

fn bring_up(socket: &OwnedFd, name: &str) -> io::Result<()> {
    let mut request = named(name);
    // SAFETY: the kernel reads and writes within one ifreq; after the first call its flags are what is in there.
    unsafe {
        done(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request))?;
        request.ifr_ifru.ifru_flags |= IFF_UP;
        done(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request))
    }
}

fn default_route(socket: &OwnedFd, name: &str, gateway: Ipv4Addr) -> io::Result<()> {
    let mut device = [0; 16];
    for (to, byte) in device.iter_mut().zip(name.bytes()) {
        *to = byte.cast_signed() as libc::c_char;
    }
    // SAFETY: an all-zero rtentry is a valid one; the device's name outlives the call.
    unsafe {
        let mut route: libc::rtentry = std::mem::zeroed();
        (route.rt_dst, route.rt_genmask) = (inet(Ipv4Addr::UNSPECIFIED), inet(Ipv4Addr::UNSPECIFIED));
        route.rt_gateway = inet(gateway);
        route.rt_flags = ROUTE_GATEWAY;
        route.rt_dev = device.as_mut_ptr();
        done(libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT as _, &raw const route))
    }
}

fn address_and_route_v6(address: Ipv6Addr, prefix: u8) -> io::Result<()> {
    let socket = ask(AddressFamily::Inet6)?;
    let mut request = named(TUNNEL);
    // SAFETY: the kernel reads and writes within each structure; an index is what it wrote into the first.
    unsafe {
        done(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX as _, &raw mut request))?;
        let ifindex = request.ifr_ifru.ifru_ifindex;
        let ifr6_addr = libc::in6_addr { s6_addr: address.octets() };
        let own = libc::in6_ifreq { ifr6_addr, ifr6_prefixlen: prefix.into(), ifr6_ifindex: ifindex };
        done(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFADDR as _, &raw const own))?;
        let route = Route6 { flags: ROUTE_UP, metric: 1, ifindex, ..std::mem::zeroed() };
        done(libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT as _, &raw const route))
    }
}

fn inet(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, octet) in data[2..6].iter_mut().zip(address.octets()) {
        *to = octet.cast_signed() as libc::c_char;
    }
    libc::sockaddr { sa_family: AF_INET, sa_data: data }
}
