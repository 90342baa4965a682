//! Whether a connection may be made. Pure: rules, what names were resolved to, and a clock value in; a verdict out.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use super::addresses::{is_closed, is_public};
use super::rules::{Place, Rule, Transport};

/// Most addresses remembered.
const MAX_PINS: usize = 4096;
/// An address is good for its name at least this long: programs connect a little after they resolved.
const LEAST_MS: u64 = 30_000;
/// And at most this long, whatever the name's zone says.
const MOST_MS: u64 = 24 * 3600 * 1000;

/// What names were resolved to, until when.
#[derive(Debug, Default)]
pub struct Pins(HashMap<IpAddr, Vec<Pin>>);

#[derive(Clone, Copy, Debug)]
struct Pin {
    /// Place in the list of rules.
    rule: usize,
    until_ms: u64,
}

impl Pins {
    /// Remembers that a name of the rules at these places resolves to `address` for `ttl_sec` seconds from now.
    pub fn add(&mut self, rules: &[usize], address: IpAddr, ttl_sec: u32, now_ms: u64) {
        let until_ms = now_ms.saturating_add((u64::from(ttl_sec) * 1000).clamp(LEAST_MS, MOST_MS));
        if self.0.len() >= MAX_PINS && !self.0.contains_key(&address) {
            self.make_room(now_ms);
        }
        let pins = self.0.entry(address).or_default();
        for rule in rules {
            match pins.iter_mut().find(|pin| pin.rule == *rule) {
                Some(pin) => pin.until_ms = pin.until_ms.max(until_ms),
                None => pins.push(Pin { rule: *rule, until_ms }),
            }
        }
    }

    /// Forgets what is over, else whatever is over first.
    fn make_room(&mut self, now_ms: u64) {
        let last = |pins: &[Pin]| pins.iter().map(|pin| pin.until_ms).max().unwrap_or(0);
        self.0.retain(|_, pins| last(pins) > now_ms);
        if self.0.len() >= MAX_PINS
            && let Some(first) = self.0.iter().min_by_key(|(_, pins)| last(pins)).map(|(address, _)| *address)
        {
            self.0.remove(&first);
        }
    }

    fn holds(&self, rule: usize, address: IpAddr, now_ms: u64) -> bool {
        let pins = self.0.get(&address).map_or(&[][..], Vec::as_slice);
        pins.iter().any(|pin| pin.rule == rule && pin.until_ms > now_ms)
    }
}

/// Why a connection is not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No rule opens this address.
    Closed,
    /// It is this host's own, and no rule names exactly it.
    Own,
    /// It is not public, and no rule names it or its network.
    NotPublic,
    /// It is public, and no rule leads there.
    NoRule,
}

/// Whether the rules let a workload reach `to`. `own`: whether it is an address of this host.
///
/// # Errors
/// [`Refusal`].
pub fn decide(
    rules: &[Rule],
    pins: &Pins,
    (to, transport): (SocketAddr, Transport),
    own: bool,
    now_ms: u64,
) -> Result<(), Refusal> {
    let address = to.ip();
    if is_closed(address) {
        return Err(Refusal::Closed);
    }
    let public = is_public(address) && !own;
    let opens = |(at, rule): (usize, &Rule)| match &rule.place {
        _ if !rule.covers(transport, to.port()) => false,
        Place::Network(network) => {
            network.contains(&address) && (!own || network.prefix_len() == network.max_prefix_len())
        }
        Place::Public => public,
        Place::Name { .. } => public && pins.holds(at, address, now_ms),
    };
    match rules.iter().enumerate().any(opens) {
        true => Ok(()),
        false if own => Err(Refusal::Own),
        false if !public => Err(Refusal::NotPublic),
        false => Err(Refusal::NoRule),
    }
}

/// The places of the rules about a name; none when it may not even be resolved.
///
/// With `public` open every name may be: whoever may talk to everybody needs no names to carry secrets out. Where only names and
/// networks are open, questions about other names would be a way out of its own, so they are refused.
#[must_use]
pub fn rules_of_name(rules: &[Rule], name: &str) -> Option<Vec<usize>> {
    let about: Vec<usize> = rules.iter().enumerate().filter(|(_, rule)| rule.is_of(name)).map(|(at, _)| at).collect();
    let any = rules.iter().any(|rule| rule.place == Place::Public);
    (any || !about.is_empty()).then_some(about)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(texts: &[&str]) -> Vec<Rule> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn tcp(to: &str) -> (SocketAddr, Transport) {
        (to.parse().unwrap(), Transport::Tcp)
    }

    #[test]
    fn each_rule_opens_what_it_says_and_no_more() {
        let (rules, pins) =
            (rules(&["public:443", "10.0.7.0/24:5432", "1.1.1.1:53/udp", "192.168.1.9"]), Pins::default());
        let verdict = |to: &str| decide(&rules, &pins, tcp(to), false, 0);
        assert_eq!(verdict("93.184.216.34:443"), Ok(()));
        assert_eq!(verdict("[2606:4700::1111]:443"), Ok(()));
        assert_eq!(verdict("93.184.216.34:80"), Err(Refusal::NoRule));
        assert_eq!(verdict("10.0.7.9:5432"), Ok(()));
        assert_eq!(verdict("10.0.7.9:443"), Err(Refusal::NotPublic));
        assert_eq!(verdict("10.0.8.9:5432"), Err(Refusal::NotPublic));
        assert_eq!(verdict("192.168.1.9:1"), Ok(()));
        assert_eq!(verdict("1.1.1.1:53"), Err(Refusal::NoRule));
        assert_eq!(decide(&rules, &pins, ("1.1.1.1:53".parse().unwrap(), Transport::Udp), false, 0), Ok(()));
        for closed in
            ["169.254.169.254:443", "127.0.0.1:443", "[::1]:443", "[::ffff:93.184.216.34]:443", "192.0.0.1:443"]
        {
            assert_eq!(verdict(closed), Err(Refusal::Closed), "{closed}");
        }
    }

    #[test]
    fn everything_is_still_not_the_host_nor_a_clouds_credentials() {
        let (rules, pins) = (rules(&["0.0.0.0/0", "::/0", "public/any", "10.0.0.5:80"]), Pins::default());
        assert_eq!(decide(&rules, &pins, tcp("169.254.169.254:80"), false, 0), Err(Refusal::Closed));
        assert_eq!(decide(&rules, &pins, tcp("[fd00:ec2::254]:80"), false, 0), Err(Refusal::Closed));
        assert_eq!(decide(&rules, &pins, tcp("127.0.0.1:80"), false, 0), Err(Refusal::Closed));
        assert_eq!(decide(&rules, &pins, tcp("10.0.0.6:80"), false, 0), Ok(()));
        assert_eq!(decide(&rules, &pins, tcp("10.0.0.6:80"), true, 0), Err(Refusal::Own));
        assert_eq!(decide(&rules, &pins, tcp("93.184.216.34:80"), true, 0), Err(Refusal::Own));
        assert_eq!(decide(&rules, &pins, tcp("10.0.0.5:80"), true, 0), Ok(()));
        assert_eq!(decide(&rules, &pins, tcp("10.0.0.5:81"), true, 0), Err(Refusal::Own));
    }

    #[test]
    fn a_name_opens_its_addresses_for_their_time_and_its_ports_only() {
        let rules = rules(&["crates.io:443", "*.debian.org:80"]);
        let mut pins = Pins::default();
        let there = "93.184.216.34".parse().unwrap();
        assert_eq!(decide(&rules, &pins, tcp("93.184.216.34:443"), false, 0), Err(Refusal::NoRule));
        pins.add(&rules_of_name(&rules, "crates.io").unwrap(), there, 300, 1_000);
        assert_eq!(decide(&rules, &pins, tcp("93.184.216.34:443"), false, 300_999), Ok(()));
        assert_eq!(decide(&rules, &pins, tcp("93.184.216.34:443"), false, 301_000), Err(Refusal::NoRule));
        assert_eq!(decide(&rules, &pins, tcp("93.184.216.34:80"), false, 1_000), Err(Refusal::NoRule));
        // An answer without a life is good for long enough to connect, and one for ever is not.
        pins.add(&[1], there, 0, 400_000);
        assert_eq!(decide(&rules, &pins, tcp("93.184.216.34:80"), false, 429_999), Ok(()));
        assert_eq!(decide(&rules, &pins, tcp("93.184.216.34:80"), false, 430_000), Err(Refusal::NoRule));
        pins.add(&[1], there, u32::MAX, 500_000);
        assert_eq!(decide(&rules, &pins, tcp("93.184.216.34:80"), false, 500_000 + MOST_MS), Err(Refusal::NoRule));
    }

    #[test]
    fn a_name_that_resolves_to_somebody_private_opens_nothing() {
        let mut rules = rules(&["evil.example"]);
        let mut pins = Pins::default();
        let places = ["10.0.0.1:80", "127.0.0.1:80", "169.254.169.254:80", "192.0.0.1:80", "[fd00::1]:80", "[::1]:80"];
        for to in places {
            pins.add(&[0], to.parse::<SocketAddr>().unwrap().ip(), 300, 0);
            assert!(decide(&rules, &pins, tcp(to), false, 1).is_err(), "{to}");
        }
        pins.add(&[0], "93.184.216.34".parse().unwrap(), 300, 0);
        assert_eq!(decide(&rules, &pins, tcp("93.184.216.34:80"), true, 1), Err(Refusal::Own));
        // Unless another rule names that address.
        rules.push("10.0.0.1:80".parse().unwrap());
        assert_eq!(decide(&rules, &pins, tcp("10.0.0.1:80"), false, 1), Ok(()));
    }

    #[test]
    fn names_that_may_be_asked_about() {
        let named = rules(&["crates.io:443", "*.debian.org:80", "10.0.0.0/8"]);
        assert_eq!(rules_of_name(&named, "crates.io"), Some(vec![0]));
        assert_eq!(rules_of_name(&named, "deb.debian.org"), Some(vec![1]));
        assert_eq!(rules_of_name(&named, "secrets.evil.example"), None);
        assert_eq!(rules_of_name(&rules(&["public:443"]), "anything.example"), Some(vec![]));
        assert_eq!(rules_of_name(&rules(&["10.0.0.0/8"]), "anything.example"), None);
    }

    #[test]
    fn pins_are_bounded_and_the_shortest_lived_goes_first() {
        let rules = rules(&["a.example"]);
        let mut pins = Pins::default();
        for number in 0..u32::try_from(MAX_PINS).unwrap() + 50 {
            pins.add(&[0], IpAddr::V4((0x0800_0000 + number).into()), 60 + number, 0);
        }
        assert_eq!(pins.0.len(), MAX_PINS);
        assert_eq!(decide(&rules, &pins, tcp("8.0.0.1:80"), false, 1), Err(Refusal::NoRule));
        assert_eq!(decide(&rules, &pins, tcp("8.0.16.9:80"), false, 1), Ok(()));
    }

    proptest! {
        /// Names never open what `public` does not.
        #[test]
        fn no_name_opens_what_is_not_public(bits in any::<u32>(), port in 1u16.., own in any::<bool>()) {
            let (rules, mut pins) = (rules(&["public/any", "a.example/any"]), Pins::default());
            let to = SocketAddr::new(IpAddr::V4(bits.into()), port);
            pins.add(&[1], to.ip(), 300, 0);
            let verdict = decide(&rules, &pins, (to, Transport::Tcp), own, 1);
            prop_assert_eq!(verdict.is_ok(), is_public(to.ip()) && !own);
        }
    }
}
