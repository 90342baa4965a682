//! What a development coalition is made from, apart from its keys: kept in `devnet.toml`. Pure.

use std::net::SocketAddr;

use coalition::RateQ64;
use coalition_compute::Region;
use serde::{Deserialize, Serialize};

/// Members of the committee that runs Almanac and Compute: the least that survives one that lies.
pub const MEMBERS: usize = 4;
/// How many of them must be up.
pub const MEMBERS_QUORUM: usize = MEMBERS - (MEMBERS - 1) / 3;
/// Members of the unseal committee.
pub const UNSEAL_MEMBERS: usize = 3;
/// Unseal members that open a cell together.
pub const UNSEAL_THRESHOLD: u8 = 2;
/// Milliseconds between two Almanac ticks.
pub const ALMANAC_CADENCE_MS: u32 = 1_000;

/// Version of the file.
const VERSION: u8 = 1;

/// A development coalition: one machine, loopback only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this file; 1.
    pub version: u8,
    /// Name of the coalition.
    pub name: String,
    /// What the bridge sells.
    pub sale: Sale,
    /// Where everything listens.
    pub ports: Ports,
}

/// What the bridge of a development coalition sells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sale {
    /// The region it offers.
    pub region: Region,
    /// USD per core and hour.
    pub core_hour: RateQ64,
    /// USD per GiB of memory and hour.
    pub gib_hour: RateQ64,
    /// CPU for all grants together, in thousandths of a core.
    pub cpu_millicores: u32,
    /// Memory for all grants together, in MiB.
    pub ram_mib: u32,
    /// Whether the market admits only attested providers and its machines count as development guests.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub attested: bool,
}

/// Loopback ports, chosen free at the first start and kept. None of them is part of the coalition's identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ports {
    /// TCP: the relay.
    pub relay: u16,
    /// TCP: the SSH server that stands for a host.
    pub host: u16,
    /// UDP: the committee members' nodes.
    pub member_nodes: [u16; MEMBERS],
    /// TCP: the committee members' ordering engines.
    pub member_orders: [u16; MEMBERS],
    /// UDP: the unseal members' nodes.
    pub unseal_nodes: [u16; UNSEAL_MEMBERS],
    /// UDP: the content store's node; 0 in a coalition that was made without one.
    #[serde(default)]
    pub store: u16,
}

/// How a port is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A TCP listener.
    Tcp,
    /// A UDP socket.
    Udp,
}

/// How many ports of each kind a development coalition needs: TCP, UDP.
pub const PORTS_NEEDED: (usize, usize) = (2 + MEMBERS, MEMBERS + UNSEAL_MEMBERS + 1);

impl Manifest {
    /// A manifest of this version.
    #[must_use]
    pub const fn new(name: String, sale: Sale, ports: Ports) -> Self {
        Self { version: VERSION, name, sale, ports }
    }

    /// Whether this software reads its version.
    #[must_use]
    pub const fn is_known_version(&self) -> bool {
        self.version == VERSION
    }
}

impl Ports {
    /// Distributes free ports over the roles; `None` unless there are [`PORTS_NEEDED`].
    #[must_use]
    pub fn assign(tcp: &[u16], udp: &[u16]) -> Option<Self> {
        if (tcp.len(), udp.len()) != PORTS_NEEDED {
            return None;
        }
        let (member_nodes, udp) = udp.split_at(MEMBERS);
        let (unseal_nodes, store) = udp.split_at(UNSEAL_MEMBERS);
        Some(Self {
            relay: tcp[0],
            host: tcp[1],
            member_nodes: member_nodes.try_into().ok()?,
            member_orders: tcp[2..].try_into().ok()?,
            unseal_nodes: unseal_nodes.try_into().ok()?,
            store: *store.first()?,
        })
    }

    /// Every port with the role that uses it.
    #[must_use]
    pub fn all(&self) -> Vec<(String, Transport, SocketAddr)> {
        let mut all = vec![
            ("relay".to_owned(), Transport::Tcp, loopback(self.relay)),
            ("host".to_owned(), Transport::Tcp, loopback(self.host)),
        ];
        for (i, (node, order)) in self.member_nodes.iter().zip(&self.member_orders).enumerate() {
            all.push((member_name(i), Transport::Udp, loopback(*node)));
            all.push((member_name(i), Transport::Tcp, loopback(*order)));
        }
        for (i, node) in self.unseal_nodes.iter().enumerate() {
            all.push((unseal_name(i), Transport::Udp, loopback(*node)));
        }
        all.push((STORE.to_owned(), Transport::Udp, loopback(self.store)));
        all
    }
}

/// The loopback address with this port.
#[must_use]
pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Name of the committee member at this place in the roster, from 0.
#[must_use]
pub fn member_name(index: usize) -> String {
    format!("member-{}", index + 1)
}

/// Name of the unseal member at this place in its roster, from 0.
#[must_use]
pub fn unseal_name(index: usize) -> String {
    format!("unseal-{}", index + 1)
}

/// Name of the content store.
pub const STORE: &str = "store";

/// Every role in the order in which they start: each needs only what comes before it.
#[must_use]
pub fn role_names() -> Vec<String> {
    let mut names = vec!["relay".to_owned(), "host".to_owned()];
    names.extend((0..MEMBERS).map(member_name));
    names.extend((0..UNSEAL_MEMBERS).map(unseal_name));
    names.push(STORE.to_owned());
    names.push("bridge".to_owned());
    names
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> Manifest {
        let (tcp, udp): (Vec<u16>, Vec<u16>) = ((40_001..40_007).collect(), (50_001..50_009).collect());
        let sale = Sale {
            region: "local".parse().unwrap(),
            core_hour: "0.02".parse().unwrap(),
            gib_hour: "0.004".parse().unwrap(),
            cpu_millicores: 2_000,
            ram_mib: 4_096,
            attested: false,
        };
        Manifest::new("dev".into(), sale, Ports::assign(&tcp, &udp).unwrap())
    }

    #[test]
    fn survives_its_file() {
        let manifest = sample();
        let text = toml::to_string(&manifest).unwrap();
        assert_eq!(toml::from_str::<Manifest>(&text).unwrap(), manifest);
    }

    #[test]
    fn every_role_has_its_own_ports() {
        let all = sample().ports.all();
        assert_eq!(all.len(), PORTS_NEEDED.0 + PORTS_NEEDED.1);
        let distinct: std::collections::BTreeSet<_> = all.iter().map(|(_, _, address)| address).collect();
        assert_eq!(distinct.len(), all.len());
        let roles = role_names();
        assert!(all.iter().all(|(role, ..)| roles.contains(role)));
        assert_eq!(Ports::assign(&[1, 2], &[3]), None);
    }
}
