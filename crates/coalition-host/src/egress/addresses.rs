//! Which addresses are public, and which no rule opens. Pure. After IANA's registries of special-purpose addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The workload's address inside its tunnel, of the range for translators between a host and its link (RFC 7335): nobody's
/// neighbour has one.
pub const WORKLOAD: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 2);
/// The other end of the tunnel, where names are resolved.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 1);
/// Bits of the tunnel's network.
pub const PREFIX: u8 = 29;
/// The same for IPv6, of a private network of our own (RFC 4193).
pub const WORKLOAD_V6: Ipv6Addr = Ipv6Addr::new(0xfdc0, 0xa117, 0x1041, 0, 0, 0, 0, 2);
/// The other end, where nothing listens.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfdc0, 0xa117, 0x1041, 0, 0, 0, 0, 1);
/// Bits of the tunnel's IPv6 network.
pub const PREFIX_V6: u8 = 64;

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(a: u16, b: u16, c: u16, last: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, last), prefix)
}

/// What no rule opens: this host, its link, everybody at once, and where clouds hand out a machine's credentials.
const CLOSED_V4: [Ipv4Net; 8] = [
    v4(0, 0, 0, 0, 8),
    v4(127, 0, 0, 0, 8),
    v4(169, 254, 0, 0, 16),
    v4(224, 0, 0, 0, 3),
    // The tunnel itself; Oracle's and Alibaba's metadata; the host's agent of Azure.
    v4(192, 0, 0, 0, 29),
    v4(192, 0, 0, 192, 32),
    v4(100, 100, 100, 200, 32),
    v4(168, 63, 129, 16, 32),
];
const CLOSED_V6: [Ipv6Net; 10] = [
    v6(0, 0, 0, 0, 128),
    v6(0, 0, 0, 1, 128),
    Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96),
    v6(0xfe80, 0, 0, 0, 10),
    v6(0xff00, 0, 0, 0, 8),
    // The tunnel itself; metadata of AWS, Google, Scaleway; the site-local block that nobody routes any more.
    v6(0xfdc0, 0xa117, 0x1041, 0, 64),
    v6(0xfd00, 0xec2, 0, 0x254, 128),
    v6(0xfd20, 0xce, 0, 0x254, 128),
    v6(0xfd00, 0x42, 0, 0x42, 128),
    v6(0xfec0, 0, 0, 0, 10),
];

/// Not routed globally, beside what is closed.
const PRIVATE_V4: [Ipv4Net; 10] = [
    v4(10, 0, 0, 0, 8),
    v4(100, 64, 0, 0, 10),
    v4(172, 16, 0, 0, 12),
    v4(192, 0, 0, 0, 24),
    v4(192, 0, 2, 0, 24),
    v4(192, 88, 99, 0, 24),
    v4(192, 168, 0, 0, 16),
    v4(198, 18, 0, 0, 15),
    v4(198, 51, 100, 0, 24),
    v4(203, 0, 113, 0, 24),
];
/// Not routed globally, of the one block that is: protocol assignments with Teredo, documentation.
const PRIVATE_V6: [Ipv6Net; 3] = [v6(0x2001, 0, 0, 0, 23), v6(0x2001, 0xdb8, 0, 0, 32), v6(0x3fff, 0, 0, 0, 20)];
const GLOBAL_V6: Ipv6Net = v6(0x2000, 0, 0, 0, 3);
const NAT64: Ipv6Net = v6(0x64, 0xff9b, 0, 0, 96);
const SIX_TO_FOUR: Ipv6Net = v6(0x2002, 0, 0, 0, 16);

/// The networks that no rule opens.
pub fn closed_networks() -> impl Iterator<Item = IpNet> {
    CLOSED_V4.into_iter().map(IpNet::V4).chain(CLOSED_V6.into_iter().map(IpNet::V6))
}

/// The IPv4 address that packets to this IPv6 address end up at.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let bytes = address.octets();
    let at = |from: usize| Ipv4Addr::new(bytes[from], bytes[from + 1], bytes[from + 2], bytes[from + 3]);
    match address {
        _ if NAT64.contains(&address) => Some(at(12)),
        _ if SIX_TO_FOUR.contains(&address) => Some(at(2)),
        _ => None,
    }
}

/// Whether no rule opens this address, whatever it says.
#[must_use]
pub fn is_closed(address: IpAddr) -> bool {
    let v4_closed = |v4: Ipv4Addr| CLOSED_V4.iter().any(|network| network.contains(&v4));
    match address {
        IpAddr::V4(v4) => v4_closed(v4),
        IpAddr::V6(v6) => CLOSED_V6.iter().any(|network| network.contains(&v6)) || embedded(v6).is_some_and(v4_closed),
    }
}

/// Whether this address is routed globally.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    if is_closed(address) {
        return false;
    }
    let v4_public = |v4: Ipv4Addr| !PRIVATE_V4.iter().any(|network| network.contains(&v4));
    match address {
        IpAddr::V4(v4) => v4_public(v4),
        IpAddr::V6(v6) => match embedded(v6) {
            Some(v4) => v4_public(v4),
            None => GLOBAL_V6.contains(&v6) && !PRIVATE_V6.iter().any(|network| network.contains(&v6)),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// First and last of what `public` must refuse, and the neighbours that it must not.
    #[test]
    fn golden_what_is_not_public() {
        for (first, last) in [
            ("0.0.0.0", "0.255.255.255"),
            ("10.0.0.0", "10.255.255.255"),
            ("100.64.0.0", "100.127.255.255"),
            ("127.0.0.0", "127.255.255.255"),
            ("169.254.0.0", "169.254.255.255"),
            ("172.16.0.0", "172.31.255.255"),
            ("192.0.0.0", "192.0.0.255"),
            ("192.0.2.0", "192.0.2.255"),
            ("192.88.99.0", "192.88.99.255"),
            ("192.168.0.0", "192.168.255.255"),
            ("198.18.0.0", "198.19.255.255"),
            ("198.51.100.0", "198.51.100.255"),
            ("203.0.113.0", "203.0.113.255"),
            ("168.63.129.16", "168.63.129.16"),
            ("224.0.0.0", "255.255.255.255"),
        ] {
            let (first, last): (Ipv4Addr, Ipv4Addr) = (first.parse().unwrap(), last.parse().unwrap());
            for address in [first, last] {
                assert!(!is_public(address.into()), "{address}");
                let [a, b, c, d] = address.octets().map(u16::from);
                let (high, low) = (a << 8 | b, c << 8 | d);
                for v6 in [
                    Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, high, low),
                    Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
                    Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                    Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
                ] {
                    assert!(!is_public(v6.into()), "{v6}");
                }
            }
            let outside = [u32::from(first).checked_sub(1), u32::from(last).checked_add(1)];
            for address in outside.into_iter().flatten().map(Ipv4Addr::from) {
                assert!(is_public(address.into()), "{address}");
            }
        }
    }

    #[test]
    fn golden_ipv6() {
        for (text, public) in [
            ("2606:4700:4700::1111", true),
            ("2a00:1450::1", true),
            ("64:ff9b::1.1.1.1", true),
            ("2002:101:101::1", true),
            ("::", false),
            ("::1", false),
            ("::ffff:1.1.1.1", false),
            ("64:ff9b:1::1", false),
            ("64:ff9b::10.0.0.1", false),
            ("64:ff9b::169.254.169.254", false),
            ("100::1", false),
            ("2001::1", false),
            ("2001:2::1", false),
            ("2001:1ff:ffff::", false),
            ("2001:200::1", true),
            ("2001:db8::1", false),
            ("2002:7f00:1::1", false),
            ("2002:a9fe:a9fe::1", false),
            ("3fff::1", false),
            ("3fff:1000::1", true),
            ("5f00::1", false),
            ("fc00::1", false),
            ("fd00:ec2::254", false),
            ("fdc0:a117:1041::1", false),
            ("fe80::1", false),
            ("fec0::1", false),
            ("ff02::1", false),
        ] {
            assert_eq!(is_public(text.parse().unwrap()), public, "{text}");
        }
    }

    #[test]
    fn golden_closed() {
        for (text, closed) in [
            ("169.254.169.254", true),
            ("127.0.0.1", true),
            ("0.0.0.0", true),
            ("224.0.0.251", true),
            ("255.255.255.255", true),
            ("192.0.0.1", true),
            ("168.63.129.16", true),
            ("100.100.100.200", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("64:ff9b::a9fe:a9fe", true),
            ("2002:7f00:1::", true),
            ("fd00:ec2::254", true),
            ("10.0.0.1", false),
            ("100.64.0.1", false),
            ("192.168.1.1", false),
            ("fd00::1", false),
            ("1.1.1.1", false),
        ] {
            assert_eq!(is_closed(text.parse().unwrap()), closed, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_the_standard_library_calls_special_is_not_public(bits in any::<u32>()) {
            let address = Ipv4Addr::from(bits);
            let special = address.is_private() || address.is_loopback() || address.is_link_local()
                || address.is_multicast() || address.is_broadcast() || address.is_documentation() || address.is_unspecified();
            prop_assert!(!special || !is_public(address.into()));
        }

        #[test]
        fn what_is_closed_is_not_public(bits in any::<u128>(), low in any::<bool>()) {
            let address = Ipv6Addr::from(if low { bits >> 64 } else { bits });
            prop_assert!(!is_closed(address.into()) || !is_public(address.into()));
        }
    }
}
