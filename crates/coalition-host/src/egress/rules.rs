//! An operator's rules: where a grant's workload may connect to. Pure: texts in, rules out.
//!
//! A rule is `WHERE[:PORTS][/tcp|/udp|/any]`. WHERE is `public`, an address, a network (both in brackets when they are IPv6 and ports
//! follow), or a host name, which with a leading `*.` stands for every name below it. PORTS is a port or `a-b`; none means all. TCP is
//! meant where nothing is said: what a rule does not say stays closed.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::addresses;

/// Most rules of one grant.
pub const MAX_RULES: usize = 256;
/// Longest text of a rule, bytes: a name has 253 at most.
const MAX_TEXT: usize = 300;

/// Where a rule leads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Every address that is routed globally; see [`addresses::is_public`].
    Public,
    /// These addresses, whatever they are.
    Network(IpNet),
    /// What this name resolves to, as far as it is public.
    Name {
        /// Lower case, without a dot at the end.
        name: String,
        /// The names below it instead of itself.
        below: bool,
    },
}

/// What is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// What a rule carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Carried {
    /// TCP alone.
    Tcp,
    /// UDP alone.
    Udp,
    /// Both.
    Any,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rule {
    /// Where it leads.
    pub place: Place,
    /// First and last port.
    pub ports: (u16, u16),
    /// What it carries.
    pub carried: Carried,
}

/// Why a text is no rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the rule {rule:?} {problem}")]
pub struct RuleError {
    /// The text, cut short.
    pub rule: String,
    /// What is wrong with it and what would be right.
    pub problem: RuleProblem,
}

/// What is wrong with a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleProblem {
    /// Nothing, or too much.
    #[error("has {0} bytes; a rule is WHERE[:PORTS][/tcp|/udp|/any] of 1 to {MAX_TEXT}, like \"public:443\"")]
    Length(usize),
    /// Neither `public` nor an address, a network or a name.
    #[error(
        "names {0:?}, which is neither public, an address, a network (10.0.7.0/24) nor a host name with a dot in it"
    )]
    Place(String),
    /// An IPv6 address or network followed by something, without brackets.
    #[error("has an IPv6 address with something behind it; write it in brackets, like \"[2001:db8::/32]:443\"")]
    Brackets,
    /// Not a port.
    #[error("has the ports {0:?}; write one from 1 to 65535, or the first and the last like \"8000-8080\"")]
    Ports(String),
    /// A network with bits set behind its prefix.
    #[error(
        "names {given}, which is an address inside a network; write {meant} for the network or {alone} for the address"
    )]
    HostBits {
        /// As given.
        given: String,
        /// The network.
        meant: String,
        /// The address.
        alone: String,
    },
    /// An address that no rule opens.
    #[error(
        "names {0}, which no rule can open: loopback, link-local and multicast addresses, and those at which clouds hand out credentials"
    )]
    Closed(String),
    /// An IPv4 address as an IPv6 one.
    #[error("names an IPv4 address in IPv6's form; write {0}")]
    Mapped(String),
}

impl Rule {
    /// Whether it covers this port of this transport.
    #[must_use]
    pub fn covers(&self, transport: Transport, port: u16) -> bool {
        let carries = match (self.carried, transport) {
            (Carried::Any, _) => true,
            (Carried::Tcp, wanted) => wanted == Transport::Tcp,
            (Carried::Udp, wanted) => wanted == Transport::Udp,
        };
        carries && (self.ports.0..=self.ports.1).contains(&port)
    }

    /// Whether it is about this name: lower case, without a dot at the end.
    #[must_use]
    pub fn is_of(&self, asked: &str) -> bool {
        match &self.place {
            Place::Name { name, below: false } => asked == name,
            Place::Name { name, below: true } => {
                asked.strip_suffix(name.as_str()).is_some_and(|front| front.ends_with('.'))
            }
            Place::Public | Place::Network(_) => false,
        }
    }
}

fn parse(text: &str) -> Result<Rule, RuleProblem> {
    if text.is_empty() || text.len() > MAX_TEXT {
        return Err(RuleProblem::Length(text.len()));
    }
    let (rest, carried) = [("/tcp", Carried::Tcp), ("/udp", Carried::Udp), ("/any", Carried::Any)]
        .into_iter()
        .find_map(|(end, carried)| text.strip_suffix(end).map(|rest| (rest, carried)))
        .unwrap_or((text, Carried::Tcp));
    let (place, ports) = split(rest)?;
    let ports = ports.map_or(Ok((1, u16::MAX)), parse_ports)?;
    Ok(Rule { place: parse_place(place)?, ports, carried })
}

/// Where, and the ports behind it.
fn split(text: &str) -> Result<(&str, Option<&str>), RuleProblem> {
    if let Some(inner) = text.strip_prefix('[') {
        let (place, rest) = inner.split_once(']').ok_or(RuleProblem::Brackets)?;
        return match rest.strip_prefix(':') {
            _ if rest.is_empty() => Ok((place, None)),
            Some(ports) => Ok((place, Some(ports))),
            None => Err(RuleProblem::Brackets),
        };
    }
    match text.split_once(':') {
        None => Ok((text, None)),
        Some((place, ports)) if !ports.contains(':') => Ok((place, Some(ports))),
        Some(_) if text.parse::<IpAddr>().is_ok() || text.parse::<IpNet>().is_ok() => Ok((text, None)),
        Some(_) => Err(RuleProblem::Brackets),
    }
}

fn parse_ports(text: &str) -> Result<(u16, u16), RuleProblem> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0 && !text.starts_with('+'));
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (port(first), port(last)) {
        (Some(first), Some(last)) if first <= last => Ok((first, last)),
        _ => Err(RuleProblem::Ports(text.to_owned())),
    }
}

fn parse_place(text: &str) -> Result<Place, RuleProblem> {
    if text == "public" {
        return Ok(Place::Public);
    }
    if let Some(network) = text.parse::<IpAddr>().ok().map(IpNet::from).or_else(|| text.parse().ok()) {
        return check_network(text, network).map(Place::Network);
    }
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix('.').unwrap_or(&lower);
    let (name, below) = lower.strip_prefix("*.").map_or((lower, false), |name| (name, true));
    if is_name(name) {
        Ok(Place::Name { name: name.to_owned(), below })
    } else {
        Err(RuleProblem::Place(text.to_owned()))
    }
}

fn check_network(given: &str, network: IpNet) -> Result<IpNet, RuleProblem> {
    if let IpNet::V6(v6) = network
        && v6.prefix_len() >= 96
        && let Some(v4) = v6.addr().to_ipv4_mapped()
    {
        let prefix = v6.prefix_len() - 96;
        return Err(RuleProblem::Mapped(if prefix == 32 { v4.to_string() } else { format!("{v4}/{prefix}") }));
    }
    if network.trunc() != network {
        let (meant, alone) = (network.trunc().to_string(), network.addr().to_string());
        return Err(RuleProblem::HostBits { given: given.to_owned(), meant, alone });
    }
    match addresses::closed_networks().find(|closed| closed.contains(&network)) {
        Some(_) => Err(RuleProblem::Closed(given.to_owned())),
        None => Ok(network),
    }
}

/// A host name of two labels or more. The last is not a number: that would be an address gone wrong.
fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= 253
        && name.contains('.')
        && name.split('.').all(label)
        && !last.bytes().all(|byte| byte.is_ascii_digit())
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        parse(text).map_err(|problem| RuleError { rule: text.chars().take(80).collect(), problem })
    }
}

impl TryFrom<String> for Rule {
    type Error = RuleError;

    fn try_from(text: String) -> Result<Self, RuleError> {
        text.parse()
    }
}

impl From<Rule> for String {
    fn from(rule: Rule) -> Self {
        rule.to_string()
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all_ports = self.ports == (1, u16::MAX);
        match &self.place {
            Place::Public => f.write_str("public")?,
            Place::Name { name, below } => write!(f, "{}{name}", if *below { "*." } else { "" })?,
            Place::Network(network) => {
                let alone = network.prefix_len() == network.max_prefix_len();
                let text = if alone { network.addr().to_string() } else { network.to_string() };
                let brackets = !all_ports && network.addr().is_ipv6();
                if brackets { write!(f, "[{text}]")? } else { f.write_str(&text)? }
            }
        }
        match self.ports {
            _ if all_ports => {}
            (first, last) if first == last => write!(f, ":{first}")?,
            (first, last) => write!(f, ":{first}-{last}")?,
        }
        f.write_str(match self.carried {
            Carried::Tcp => "",
            Carried::Udp => "/udp",
            Carried::Any => "/any",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(text: &str) -> Rule {
        text.parse().unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn rules_are_read_and_printed_the_same() {
        for (given, printed) in [
            ("public", "public"),
            ("public:443", "public:443"),
            ("public/udp", "public/udp"),
            ("public:1-65535/any", "public/any"),
            ("Crates.IO:443/tcp", "crates.io:443"),
            ("*.debian.org.:80", "*.debian.org:80"),
            ("10.0.7.0/24:5432", "10.0.7.0/24:5432"),
            ("10.0.0.0/8/udp", "10.0.0.0/8/udp"),
            ("1.1.1.1:53/udp", "1.1.1.1:53/udp"),
            ("1.1.1.1/32", "1.1.1.1"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("2001:db8::7/udp", "2001:db8::7/udp"),
            ("[2001:DB8::/32]:443-444/any", "[2001:db8::/32]:443-444/any"),
            ("[::/0]", "::/0"),
        ] {
            assert_eq!(rule(given).to_string(), printed);
            assert_eq!(rule(printed), rule(given));
        }
    }

    #[test]
    fn bad_rules_are_named_with_the_fix() {
        for (given, told) in [
            ("", "a rule is WHERE"),
            ("publc:443", "\"publc\", which is neither public"),
            ("10.0.0.256", "neither public, an address"),
            ("*", "neither public"),
            ("*.*.org", "neither public"),
            ("a..b", "neither public"),
            ("http://crates.io", "the ports \"//crates.io\""),
            ("crates.io:0", "one from 1 to 65535"),
            ("crates.io:+80", "one from 1 to 65535"),
            ("crates.io:", "the ports \"\""),
            ("crates.io:90-80", "the first and the last"),
            ("crates.io:80/sctp", "the ports \"80/sctp\""),
            ("2001:db8::1:443:", "in brackets"),
            ("[2001:db8::1]443", "in brackets"),
            ("[2001:db8::1", "in brackets"),
            ("10.0.7.1/24", "write 10.0.7.0/24 for the network or 10.0.7.1 for the address"),
            ("::ffff:10.0.0.1", "write 10.0.0.1"),
            ("[::ffff:10.0.0.0/104]:80", "write 10.0.0.0/8"),
            ("127.0.0.1:80", "no rule can open"),
            ("127.0.0.0/16", "no rule can open"),
            ("169.254.169.254:80", "no rule can open"),
            ("[fe80::1]:80", "no rule can open"),
            ("224.0.0.0/4/udp", "no rule can open"),
        ] {
            let error = given.parse::<Rule>().unwrap_err();
            let text = error.to_string();
            assert!(text.contains(told) && text.contains(&format!("{given:?}")), "{given}: {text}");
        }
    }

    #[test]
    fn names_ports_and_transports_are_kept_apart() {
        let below = rule("*.debian.org:80-81");
        assert!(below.is_of("deb.debian.org") && below.is_of("a.b.debian.org"));
        assert!(!below.is_of("debian.org") && !below.is_of("notdebian.org") && !below.is_of("debian.org.evil.example"));
        assert!(rule("debian.org").is_of("debian.org") && !rule("debian.org").is_of("deb.debian.org"));
        assert!(
            below.covers(Transport::Tcp, 81) && !below.covers(Transport::Tcp, 82) && !below.covers(Transport::Udp, 80)
        );
        assert!(rule("public/udp").covers(Transport::Udp, 9) && !rule("public/udp").covers(Transport::Tcp, 9));
        assert!(rule("public/any").covers(Transport::Udp, 9) && rule("public/any").covers(Transport::Tcp, 9));
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_read_is_printed_the_same(text in "[-a-z0-9.:/*\\[\\]]{0,40}|\\PC{0,20}") {
            if let Ok(rule) = text.parse::<Rule>() {
                prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
            }
        }

        #[test]
        fn a_networks_rule_is_read_back(bits in any::<u32>(), prefix in 0u8..=32, port in 1u16.., udp in any::<bool>()) {
            let network = ipnet::Ipv4Net::new(bits.into(), prefix).unwrap().trunc();
            let text = format!("{network}:{port}{}", if udp { "/udp" } else { "" });
            match text.parse::<Rule>() {
                Ok(rule) => {
                    prop_assert_eq!(&rule.place, &Place::Network(IpNet::V4(network)));
                    let covered = rule.covers(if udp { Transport::Udp } else { Transport::Tcp }, port);
                    prop_assert!(covered);
                }
                Err(error) => prop_assert!(matches!(error.problem, RuleProblem::Closed(_)), "{error}"),
            }
        }
    }
}
