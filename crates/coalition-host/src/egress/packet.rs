//! Packets of a tunnel: what one is, and the few that are made by hand. Pure, and the workload's bytes are hostile.

use std::net::{IpAddr, SocketAddr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, Icmpv6DstUnreachable, Icmpv6Packet, Icmpv6Repr, IpAddress,
    IpProtocol, IpRepr, IpVersion, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr, TcpPacket, UdpPacket, UdpRepr,
};

use super::addresses::{GATEWAY, GATEWAY_V6};

/// Largest packet: room for one segment of nearly 64 KiB, because every packet costs a system call.
pub const MTU: usize = 65_520;
const HOP_LIMIT: u8 = 64;
/// Bytes of a refused packet's payload that its sender is shown.
const QUOTED: usize = 64;
const UDP_HEADER: usize = 8;

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen<'p> {
    /// Of a connection from the workload to somebody.
    Tcp {
        /// The workload's end.
        from: SocketAddr,
        /// The other end.
        to: SocketAddr,
        /// Whether it begins one.
        opens: bool,
    },
    /// A datagram.
    Udp {
        /// The workload's end.
        from: SocketAddr,
        /// The other end.
        to: SocketAddr,
        /// What is in it.
        payload: &'p [u8],
    },
    /// Something that is not carried, and whose sender is to be told so.
    Uncarried,
}

/// Why a packet goes nowhere, as its sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// It may not.
    Prohibited,
    /// Nobody is there.
    Port,
}

struct Parts<'p> {
    ip: IpRepr,
    payload: &'p [u8],
}

/// Takes an IP packet apart; none when it is damaged, a fragment, or from or to nobody in particular.
fn parts(packet: &[u8]) -> Option<Parts<'_>> {
    // smoltcp looks at the first byte without looking whether there is one.
    packet.first()?;
    let (ip, payload) = match IpVersion::of_packet(packet).ok()? {
        IpVersion::Ipv4 => {
            let packet = Ipv4Packet::new_checked(packet).ok()?;
            if packet.more_frags() || packet.frag_offset() != 0 {
                return None;
            }
            (IpRepr::Ipv4(Ipv4Repr::parse(&packet, &ChecksumCapabilities::ignored()).ok()?), packet.payload())
        }
        IpVersion::Ipv6 => {
            let packet = Ipv6Packet::new_checked(packet).ok()?;
            (IpRepr::Ipv6(Ipv6Repr::parse(&packet).ok()?), packet.payload())
        }
    };
    (ip.src_addr().is_unicast() && ip.dst_addr().is_unicast()).then_some(Parts { ip, payload })
}

/// What a packet is; none for what is passed over in silence.
#[must_use]
pub fn look(packet: &[u8]) -> Option<Seen<'_>> {
    let Parts { ip, payload } = parts(packet)?;
    let (source, target): (IpAddr, IpAddr) = (ip.src_addr().into(), ip.dst_addr().into());
    match ip.next_header() {
        IpProtocol::Tcp => {
            let tcp = TcpPacket::new_checked(payload).ok()?;
            let (from, to) = (SocketAddr::new(source, tcp.src_port()), SocketAddr::new(target, tcp.dst_port()));
            let opens = tcp.syn() && !tcp.ack() && !tcp.rst() && !tcp.fin();
            (from.port() != 0 && to.port() != 0).then_some(Seen::Tcp { from, to, opens })
        }
        IpProtocol::Udp => {
            let udp = UdpPacket::new_checked(payload).ok()?;
            let (from, to) = (SocketAddr::new(source, udp.src_port()), SocketAddr::new(target, udp.dst_port()));
            (from.port() != 0 && to.port() != 0).then_some(Seen::Udp { from, to, payload: udp.payload() })
        }
        // A question by ping; errors and the kernel's own chatter are passed over.
        IpProtocol::Icmp if payload.first() != Some(&8) => None,
        IpProtocol::Icmpv6 if payload.first() != Some(&128) => None,
        _ => Some(Seen::Uncarried),
    }
}

/// A datagram; none when it does not fit, or its ends are of two kinds.
#[must_use]
pub fn datagram(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
    let (source, target) = (IpAddress::from(from.ip()), IpAddress::from(to.ip()));
    if from.is_ipv4() != to.is_ipv4() {
        return None;
    }
    let ip = IpRepr::new(source, target, IpProtocol::Udp, UDP_HEADER + payload.len(), HOP_LIMIT);
    let header = ip.header_len();
    let mut packet = vec![0; header + UDP_HEADER + payload.len()];
    if packet.len() > MTU {
        return None;
    }
    let all = ChecksumCapabilities::default();
    ip.emit(&mut packet[..], &all);
    let udp = UdpRepr { src_port: from.port(), dst_port: to.port() };
    let mut inner = UdpPacket::new_unchecked(&mut packet[header..]);
    udp.emit(&mut inner, &source, &target, payload.len(), |room| room.copy_from_slice(payload), &all);
    Some(packet)
}

/// Tells the sender of a packet that it goes nowhere; none when it is nothing to answer.
#[must_use]
pub fn unreachable(packet: &[u8], why: Unreachable) -> Option<Vec<u8>> {
    let Parts { ip, payload } = parts(packet)?;
    let data = &payload[..payload.len().min(QUOTED)];
    let all = ChecksumCapabilities::default();
    match ip {
        IpRepr::Ipv4(header) => {
            let reason = match why {
                Unreachable::Prohibited => Icmpv4DstUnreachable::CommProhibited,
                Unreachable::Port => Icmpv4DstUnreachable::PortUnreachable,
            };
            let icmp = Icmpv4Repr::DstUnreachable { reason, header, data };
            let (mut packet, at) = enclose(GATEWAY.into(), header.src_addr.into(), IpProtocol::Icmp, icmp.buffer_len());
            icmp.emit(&mut Icmpv4Packet::new_unchecked(&mut packet[at..]), &all);
            Some(packet)
        }
        IpRepr::Ipv6(header) => {
            let reason = match why {
                Unreachable::Prohibited => Icmpv6DstUnreachable::AdminProhibit,
                Unreachable::Port => Icmpv6DstUnreachable::PortUnreachable,
            };
            let icmp = Icmpv6Repr::DstUnreachable { reason, header, data };
            let (mut packet, at) =
                enclose(GATEWAY_V6.into(), header.src_addr.into(), IpProtocol::Icmpv6, icmp.buffer_len());
            let mut inner = Icmpv6Packet::new_unchecked(&mut packet[at..]);
            icmp.emit(&GATEWAY_V6, &header.src_addr, &mut inner, &all);
            Some(packet)
        }
    }
}

/// A packet with room for so many bytes, and where they begin.
fn enclose(source: IpAddress, target: IpAddress, protocol: IpProtocol, length: usize) -> (Vec<u8>, usize) {
    let ip = IpRepr::new(source, target, protocol, length, HOP_LIMIT);
    let mut packet = vec![0; ip.header_len() + length];
    ip.emit(&mut packet[..], &ChecksumCapabilities::default());
    (packet, ip.header_len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ends(v6: bool) -> (SocketAddr, SocketAddr) {
        match v6 {
            false => ("192.0.0.2:4000".parse().unwrap(), "9.9.9.9:53".parse().unwrap()),
            true => ("[fdc0:a117:1041::2]:4000".parse().unwrap(), "[2620:fe::9]:53".parse().unwrap()),
        }
    }

    #[test]
    fn a_datagram_is_seen_as_it_was_made_and_its_sender_told_where_it_ended() {
        for (from, to) in [ends(false), ends(true)] {
            let packet = datagram(from, to, b"question").unwrap();
            assert_eq!(look(&packet), Some(Seen::Udp { from, to, payload: b"question" }));
            for why in [Unreachable::Prohibited, Unreachable::Port] {
                let told = unreachable(&packet, why).unwrap();
                let inner = parts(&told).unwrap();
                assert_eq!(IpAddr::from(inner.ip.dst_addr()), from.ip());
                // An error is never answered by another one.
                assert_eq!(look(&told), None);
            }
            assert_eq!(datagram(from, to, &vec![0; MTU]), None);
        }
        assert_eq!(datagram(ends(false).0, ends(true).1, b""), None);
    }

    #[test]
    fn fragments_and_what_is_for_everybody_are_passed_over() {
        let (from, to) = ends(false);
        let mut fragment = datagram(from, to, b"question").unwrap();
        fragment[6] |= 0x20;
        assert_eq!(look(&fragment), None);
        for everybody in ["224.0.0.251:5353", "255.255.255.255:67", "0.0.0.0:80", "9.9.9.9:0"] {
            assert_eq!(look(&datagram(from, everybody.parse().unwrap(), b"x").unwrap()), None, "{everybody}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..36, byte in any::<u8>(), v6 in any::<bool>()) {
            let (from, to) = ends(v6);
            let mut changed = datagram(from, to, b"question").unwrap();
            changed[at] = byte;
            for packet in [&bytes, &changed] {
                let _ = look(packet);
                let _ = unreachable(packet, Unreachable::Prohibited);
            }
        }
    }
}
