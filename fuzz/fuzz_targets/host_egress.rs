#![no_main]
//! Egress: the texts of rules, which come from an operator; packets, questions about names, and what resolvers answer, which come from
//! anybody. The first byte says which.

use coalition_host::egress::dns::{Heard, ask};
use coalition_host::egress::packet::{MTU, Seen, Unreachable, datagram, look, unreachable};
use coalition_host::egress::rules::Rule;
use libfuzzer_sys::fuzz_target;

fn rule(text: &str) {
    if let Ok(rule) = text.parse::<Rule>() {
        assert_eq!(rule.to_string().parse::<Rule>().as_ref(), Ok(&rule), "what is printed is read");
    }
}

fn packet(bytes: &[u8]) {
    if let Some(Seen::Udp { from, to, payload }) = look(bytes)
        && let Some(again) = datagram(from, to, payload)
    {
        assert_eq!(look(&again), Some(Seen::Udp { from, to, payload }));
    }
    for why in [Unreachable::Prohibited, Unreachable::Port] {
        assert!(unreachable(bytes, why).is_none_or(|told| told.len() < MTU && look(&told).is_none()));
    }
}

fn names(question: &[u8], answer: &[u8]) {
    let rules = ["*.a.example", "b.example:80", "public"].map(|text| text.parse::<Rule>().expect("a good rule"));
    let Ok(asked) = ask(question, &rules, 7) else { return };
    if let Heard::Answer(told, _) = asked.hear(answer) {
        assert_eq!((told.len(), &told[2..]), (answer.len(), &answer[2..]));
        assert!(asked.by_udp(told).len() <= 1232);
    }
    assert!(!asked.failure().is_empty());
}

fuzz_target!(|data: &[u8]| {
    let Some((&which, rest)) = data.split_first() else { return };
    match which % 3 {
        0 => std::str::from_utf8(rest).into_iter().for_each(rule),
        1 => packet(rest),
        _ => {
            let cut = rest.first().map_or(0, |at| usize::from(*at) + 1).min(rest.len());
            let (question, answer) = rest.split_at(cut);
            names(question.get(1..).unwrap_or_default(), answer);
        }
    }
});
