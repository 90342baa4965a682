//! Questions about names and their answers. Pure: bytes in; what to ask a resolver, what to tell the workload and what to remember out.
//!
//! A question that may be asked is asked anew, in our own words: nothing else of a workload's message goes anywhere.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use simple_dns::rdata::{OPT, RData};
use simple_dns::{CLASS, Name, OPCODE, Packet, PacketFlag, QCLASS, Question, RCODE};

use super::policy::rules_of_name;
use super::rules::Rule;

/// Answers by UDP without EDNS have this many bytes at most.
const PLAIN_LIMIT: u16 = 512;
/// And with EDNS this many: what passes everywhere in one piece.
const EDNS_LIMIT: u16 = 1232;
/// Longest chain of other names for one.
const CHAIN: usize = 16;

/// A question that may be asked.
#[derive(Clone, Debug)]
pub struct Asked {
    /// What to send to a resolver.
    pub packet: Vec<u8>,
    /// Rules about the name, by their places.
    pub rules: Vec<usize>,
    question: Question<'static>,
    /// The workload's number of it, and ours.
    ids: (u16, u16),
    /// Longest answer by UDP.
    limit: u16,
}

/// Why a question is not asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotAsked {
    /// No rule is about it; this is to be answered.
    Refused(Vec<u8>),
    /// It is none that we understand; this is to be answered.
    Odd(Vec<u8>),
    /// It is nothing to answer.
    Nothing,
}

/// What a resolver's message means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It is not the answer: not to our question, or not readable.
    Noise,
    /// It is the answer's beginning; all of it is to be had by TCP.
    Truncated,
    /// The answer: what the workload is told, and the addresses and how long they are good for, seconds.
    Answer(Vec<u8>, Vec<(IpAddr, u32)>),
}

/// Reads a workload's question; `id` is the number it is to be asked under.
///
/// # Errors
/// [`NotAsked`].
pub fn ask(bytes: &[u8], rules: &[Rule], id: u16) -> Result<Asked, NotAsked> {
    let Ok(packet) = Packet::parse(bytes) else {
        let [high, low, flags, ..] = bytes else { return Err(NotAsked::Nothing) };
        let query = flags & 0x80 == 0;
        return Err(if query {
            NotAsked::Odd(bare(u16::from_be_bytes([*high, *low]), None, RCODE::FormatError))
        } else {
            NotAsked::Nothing
        });
    };
    if packet.has_flags(PacketFlag::RESPONSE) {
        return Err(NotAsked::Nothing);
    }
    let ([question], OPCODE::StandardQuery) = (packet.questions.as_slice(), packet.opcode()) else {
        return Err(NotAsked::Odd(bare(packet.id(), None, RCODE::NotImplemented)));
    };
    let question = question.clone().into_owned();
    let Some(rules) = text(&question.qname).and_then(|name| rules_of_name(rules, &name)) else {
        return Err(NotAsked::Refused(bare(packet.id(), Some(question), RCODE::Refused)));
    };
    if question.qclass != QCLASS::CLASS(CLASS::IN) {
        return Err(NotAsked::Refused(bare(packet.id(), Some(question), RCODE::Refused)));
    }
    let limit = packet.opt().map(|opt| opt.udp_packet_size.clamp(PLAIN_LIMIT, EDNS_LIMIT));
    let mut ours = Packet::new_query(id);
    ours.set_flags(PacketFlag::RECURSION_DESIRED);
    ours.questions.push(question.clone());
    *ours.opt_mut() = limit.map(|size| OPT { opt_codes: Vec::new(), udp_packet_size: size, version: 0 });
    let odd = || NotAsked::Odd(bare(packet.id(), Some(question.clone()), RCODE::FormatError));
    let bytes = ours.build_bytes_vec().map_err(|_| odd())?;
    let ids = (packet.id(), id);
    Ok(Asked { packet: bytes, rules, question: question.clone(), ids, limit: limit.unwrap_or(PLAIN_LIMIT) })
}

/// A name as text in lower case; none when its labels hold what names of hosts do not.
fn text(name: &Name<'_>) -> Option<String> {
    let mut text = String::new();
    for label in name.as_bytes() {
        if !label.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'.') {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
    }
    Some(text)
}

/// An answer without anything in it.
fn bare(id: u16, question: Option<Question<'_>>, code: RCODE) -> Vec<u8> {
    let mut packet = Packet::new_reply(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED | PacketFlag::RECURSION_AVAILABLE);
    *packet.rcode_mut() = code;
    packet.questions.extend(question);
    packet.build_bytes_vec().unwrap_or_default()
}

impl Asked {
    /// What a workload is told when nobody answers.
    #[must_use]
    pub fn failure(&self) -> Vec<u8> {
        bare(self.ids.0, Some(self.question.clone()), RCODE::ServerFailure)
    }

    /// Reads a resolver's message.
    #[must_use]
    pub fn hear(&self, bytes: &[u8]) -> Heard {
        let Ok(packet) = Packet::parse(bytes) else { return Heard::Noise };
        let same = |question: &Question<'_>| {
            u16::from(question.qtype) == u16::from(self.question.qtype)
                && text(&question.qname) == text(&self.question.qname)
        };
        let ours = packet.id() == self.ids.1 && packet.has_flags(PacketFlag::RESPONSE);
        if !ours || !matches!(packet.questions.as_slice(), [question] if same(question)) {
            return Heard::Noise;
        }
        if packet.has_flags(PacketFlag::TRUNCATION) {
            return Heard::Truncated;
        }
        let mut answer = bytes.to_vec();
        answer[..2].copy_from_slice(&self.ids.0.to_be_bytes());
        Heard::Answer(answer, self.addresses(&packet))
    }

    /// The answer as it goes by UDP: all of it, or the word that it is to be had by TCP.
    #[must_use]
    pub fn by_udp(&self, answer: Vec<u8>) -> Vec<u8> {
        if answer.len() <= usize::from(self.limit) {
            return answer;
        }
        let mut packet = Packet::new_reply(self.ids.0);
        packet.set_flags(PacketFlag::TRUNCATION | PacketFlag::RECURSION_DESIRED | PacketFlag::RECURSION_AVAILABLE);
        packet.questions.push(self.question.clone());
        packet.build_bytes_vec().unwrap_or_default()
    }

    /// The addresses of the name that was asked about, also by way of other names for it; nobody else's.
    fn addresses(&self, packet: &Packet<'_>) -> Vec<(IpAddr, u32)> {
        let mut names: Vec<(String, u32)> =
            text(&self.question.qname).map(|name| (name, u32::MAX)).into_iter().collect();
        let mut at = 0;
        while at < names.len().min(CHAIN) {
            let (name, ttl) = names[at].clone();
            for record in &packet.answers {
                if let RData::CNAME(other) = &record.rdata
                    && text(&record.name).as_deref() == Some(name.as_str())
                    && let Some(other) = text(&other.0)
                    && !names.iter().any(|(known, _)| *known == other)
                {
                    names.push((other, ttl.min(record.ttl)));
                }
            }
            at += 1;
        }
        let found = packet.answers.iter().filter_map(|record| {
            let address = match &record.rdata {
                RData::A(a) => IpAddr::V4(Ipv4Addr::from(a.address)),
                RData::AAAA(aaaa) => IpAddr::V6(Ipv6Addr::from(aaaa.address)),
                _ => return None,
            };
            let owner = text(&record.name)?;
            let (_, ttl) = names.iter().find(|(name, _)| *name == owner)?;
            Some((address, record.ttl.min(*ttl)))
        });
        found.collect()
    }
}

/// The resolvers that a `resolv.conf` names, at most three.
#[must_use]
pub fn resolvers(text: &str) -> Vec<IpAddr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok())?
    });
    named.take(3).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use simple_dns::rdata::{A, CNAME};
    use simple_dns::{ResourceRecord, TYPE};

    use super::*;

    fn rules(texts: &[&str]) -> Vec<Rule> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn question(name: &str) -> Vec<u8> {
        let mut packet = Packet::new_query(7);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        let name = Name::new_unchecked(name).into_owned();
        packet.questions.push(Question::new(name, TYPE::A.into(), CLASS::IN.into(), false));
        packet.build_bytes_vec().unwrap()
    }

    /// A resolver's answer to what was asked: other names, and addresses by owner.
    fn answer(asked: &Asked, others: &[(&str, &str)], addresses: &[(&str, [u8; 4], u32)]) -> Vec<u8> {
        let parsed = Packet::parse(&asked.packet).unwrap();
        let mut packet = Packet::new_reply(parsed.id());
        packet.questions.push(parsed.questions[0].clone());
        for (from, to) in others {
            let record = RData::CNAME(CNAME(Name::new_unchecked(to)));
            packet.answers.push(ResourceRecord::new(Name::new_unchecked(from), CLASS::IN, 100, record));
        }
        for (name, address, ttl) in addresses {
            let record = RData::A(A { address: u32::from_be_bytes(*address) });
            packet.answers.push(ResourceRecord::new(Name::new_unchecked(name), CLASS::IN, *ttl, record));
        }
        packet.build_bytes_vec_compressed().unwrap()
    }

    #[test]
    fn a_question_goes_out_in_our_words_and_its_answer_comes_back_under_its_number() {
        let rules = rules(&["public:443", "crates.io:80", "CRATES.io"]);
        let asked = ask(&question("Crates.io"), &rules, 99).unwrap();
        assert_eq!(asked.rules, [1, 2]);
        let sent = Packet::parse(&asked.packet).unwrap();
        assert!(sent.id() == 99 && sent.has_flags(PacketFlag::RECURSION_DESIRED) && sent.opt().is_none());
        let came = answer(
            &asked,
            &[("crates.io", "cdn.example")],
            &[("cdn.example", [9, 9, 9, 9], 300), ("other.example", [8; 4], 5)],
        );
        let Heard::Answer(told, found) = asked.hear(&came) else { panic!() };
        assert_eq!(found, [(IpAddr::V4([9, 9, 9, 9].into()), 100)]);
        assert_eq!((&told[..2], &told[2..]), (&[0, 7][..], &came[2..]));
        assert_eq!(asked.by_udp(told.clone()), told);
    }

    #[test]
    fn names_of_no_rule_are_refused() {
        let rules = rules(&["*.debian.org:80", "10.0.0.0/8"]);
        let Err(NotAsked::Refused(told)) = ask(&question("c2VjcmV0.evil.example"), &rules, 1) else { panic!() };
        let told = Packet::parse(&told).unwrap();
        assert_eq!((told.id(), told.rcode(), told.questions.len()), (7, RCODE::Refused, 1));
        assert!(ask(&question("deb.debian.org"), &rules, 1).is_ok());
    }

    #[test]
    fn nothing_but_the_answer_is_taken_for_it() {
        let asked = ask(&question("a.example"), &rules(&["public"]), 5).unwrap();
        let right = answer(&asked, &[], &[("a.example", [9; 4], 60)]);
        let mut number = right.clone();
        number[1] ^= 1;
        let mut query = right.clone();
        query[2] &= 0x7f;
        let other = ask(&question("b.example"), &rules(&["public"]), 5).unwrap();
        for wrong in [number, query, answer(&other, &[], &[("a.example", [9; 4], 60)]), right[..20].to_vec(), vec![]] {
            assert_eq!(asked.hear(&wrong), Heard::Noise);
        }
        let mut cut = right;
        cut[2] |= 2;
        assert_eq!(asked.hear(&cut), Heard::Truncated);
        let told = Packet::parse(&asked.failure()).unwrap().rcode();
        assert_eq!(told, RCODE::ServerFailure);
        let long = Packet::parse(&asked.by_udp(vec![0; 513])).unwrap().has_flags(PacketFlag::TRUNCATION);
        assert!(long);
    }

    #[test]
    fn what_is_no_question_is_told_so_or_nothing() {
        let rules = rules(&["public"]);
        assert!(matches!(ask(b"", &rules, 1), Err(NotAsked::Nothing)));
        assert!(matches!(ask(b"\0\x07\x01\0\0\x01", &rules, 1), Err(NotAsked::Odd(_))));
        let mut response = question("a.example");
        response[2] |= 0x80;
        assert!(matches!(ask(&response, &rules, 1), Err(NotAsked::Nothing)));
        let mut dotted = question("axb.example");
        dotted[14] = b'.';
        assert!(matches!(ask(&dotted, &rules, 1), Err(NotAsked::Refused(_))));
    }

    #[test]
    fn resolvers_are_read_as_the_c_library_does() {
        let text = "# nameserver 1.2.3.4\nsearch lan\nnameserver 127.0.0.53\nnameserver  ::1\nnameserver fe80::1%eth0\nnameserver\n";
        assert_eq!(resolvers(text), ["127.0.0.53".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..60, byte in any::<u8>()) {
            let rules = rules(&["public", "a.example"]);
            let _ = ask(&bytes, &rules, 1);
            let asked = ask(&question("a.example"), &rules, 1).unwrap();
            let _ = asked.hear(&bytes);
            let mut changed = answer(&asked, &[("a.example", "b.example")], &[("b.example", [9; 4], 60)]);
            let index = at % changed.len();
            changed[index] = byte;
            let _ = asked.hear(&changed);
        }
    }
}
