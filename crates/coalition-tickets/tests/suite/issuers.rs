//! Issued tickets: the coalition's own, and everybody else's.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coalition::tickets::AclRule;
use coalition_tickets::issuer::IssueError;
use coalition_tickets::{
    Admission, Bearer, Charter, CharterError, IssuedTicket, Issuer, Presentation, Refused, Resources, TicketValidator,
    Unresolved,
};
use ed25519_dalek::Signer as _;

use crate::common::{NOW, bearer, charter, coalition, code, id, issuer, issuer_key};

fn recognising(name: &str, keys: &[u8]) -> Admission {
    let charter = charter(keys);
    let config = coalition(name, &charter);
    let validator = TicketValidator::new().recognise_issuer(config.ticket_issuer_root().unwrap());
    validator.enforce(&Resources::new().with_issuer(&config, charter).unwrap()).unwrap()
}

fn shown(ticket: IssuedTicket) -> Presentation {
    Presentation::empty().with_issued(ticket)
}

#[test]
fn a_ticket_of_the_coalitions_issuer_admits_its_peer_until_it_expires() {
    let admission = recognising("ours", &[1, 2]);
    let ticket = issuer("ours", &[1, 2]).issue(&bearer(), NOW, 600).unwrap();
    assert_eq!(admission.judge(&bearer(), &shown(ticket.clone()), NOW), Ok(NOW + 600));
    assert_eq!(code(admission.judge(&bearer(), &shown(ticket.clone()), NOW + 600)), "expired");
    assert_eq!(code(admission.judge(&bearer(), &shown(ticket), NOW - 61)), "not_yet");
    let second = Issuer::of(&coalition("ours", &charter(&[1, 2])), &charter(&[1, 2]), issuer_key(2)).unwrap();
    assert!(admission.judge(&bearer(), &shown(second.issue(&bearer(), NOW, 1).unwrap()), NOW).is_ok());
}

#[test]
fn a_ticket_of_somebody_else_for_somewhere_else_is_refused() {
    let admission = recognising("ours", &[1, 2]);
    let ours = issuer("ours", &[1, 2]);
    let cases = [
        ("issuer", issuer("theirs", &[1, 2]).issue(&bearer(), NOW, 600)),
        // The same coalition before it rotated its keys: another charter is another root.
        ("issuer", issuer("ours", &[1, 3]).issue(&bearer(), NOW, 600)),
        ("audience", ours.issue(&Bearer { audience: id(8), ..bearer() }, NOW, 600)),
        ("network", ours.issue(&Bearer { network: id(8), ..bearer() }, NOW, 600)),
        ("subject", ours.issue(&Bearer { peer: [8; 32], ..bearer() }, NOW, 600)),
        ("not_yet", ours.issue(&bearer(), NOW + 61, 600)),
        ("expired", ours.issue(&bearer(), NOW - 600, 600)),
    ];
    for (expected, ticket) in cases {
        assert_eq!(code(admission.judge(&bearer(), &shown(ticket.unwrap()), NOW)), expected);
    }
    assert_eq!(code(admission.judge(&bearer(), &Presentation::empty(), NOW)), "no_ticket");
}

#[test]
fn an_issuer_nobody_opted_in_to_is_not_recognised() {
    let config = coalition("ours", &charter(&[1]));
    let root = config.ticket_issuer_root().unwrap();
    let unknown = TicketValidator::new().recognise_issuer(root).enforce(&Resources::new()).unwrap_err();
    assert_eq!(unknown, Unresolved::Issuer(root));
    let theirs = coalition("theirs", &charter(&[1]));
    let resources = Resources::new().with_issuer(&theirs, charter(&[1])).unwrap();
    assert_eq!(
        TicketValidator::new().recognise_issuer(root).enforce(&resources).unwrap_err(),
        Unresolved::Issuer(root)
    );
    // A charter counts only where the config names it.
    let other = Resources::new().with_issuer(&config, charter(&[2])).err().unwrap();
    assert!(matches!(other, CharterError::Other { .. }), "{other}");
    let none = coalition::PublishedConfig::builder("none").build().unwrap();
    assert!(matches!(charter(&[1]).root_in(&none), Err(CharterError::NoIssuer(_))));
    let open = coalition::PublishedConfig::builder("open").ticket_issuer("issuer", vec![]).build().unwrap();
    assert!(matches!(charter(&[1]).root_in(&open), Err(CharterError::Other { .. })));
    let more = vec![charter(&[1]).rule(), AclRule::Issuer(id(5))];
    let more = coalition::PublishedConfig::builder("more").ticket_issuer("issuer", more).build().unwrap();
    assert!(matches!(charter(&[1]).root_in(&more), Err(CharterError::Other { .. })));
}

/// A token over these claims by this key, in whatever shape.
fn forged(header: &str, claims: &str, key: u8) -> IssuedTicket {
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(issuer_key(key).sign(signed.as_bytes()).to_bytes());
    IssuedTicket::from_ascii(format!("{signed}.{signature}").as_bytes()).unwrap()
}

fn claims(ticket: &IssuedTicket) -> String {
    let claims = ticket.as_str().split('.').nth(1).unwrap();
    String::from_utf8(URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap()
}

const HEADER: &str = r#"{"alg":"EdDSA","typ":"JWT"}"#;

#[test]
fn only_the_canonical_text_signed_by_a_chartered_key_counts() {
    let admission = recognising("ours", &[1]);
    let sound = issuer("ours", &[1]).issue(&bearer(), NOW, 600).unwrap();
    let text = claims(&sound);
    assert_eq!(forged(HEADER, &text, 1), sound);
    let judge = |ticket: IssuedTicket| code(admission.judge(&bearer(), &shown(ticket), NOW));
    assert_eq!(judge(forged(HEADER, &text, 4)), "signature");
    assert_eq!(judge(forged(r#"{"alg":"none","typ":"JWT"}"#, &text, 1)), "malformed");
    assert_eq!(judge(forged(r#"{"alg":"HS256","typ":"JWT"}"#, &text, 1)), "malformed");
    assert_eq!(judge(forged(HEADER, &text.replace('{', "{ "), 1)), "malformed");
    assert_eq!(judge(forged(HEADER, &text.replace('}', r#","admin":true}"#), 1)), "malformed");
    assert_eq!(judge(forged(HEADER, &text.replace("0303", "03AA").to_uppercase(), 1)), "malformed");
    assert_eq!(judge(forged(HEADER, "[]", 1)), "malformed");
    // A chartered key that ignores the charter: an hour is the longest there is.
    let long = text.replace(&(NOW + 600).to_string(), &(NOW + 3_601).to_string());
    assert_eq!(judge(forged(HEADER, &long, 1)), "lifetime");
    let endless = text.replace(&(NOW + 600).to_string(), &u64::MAX.to_string());
    assert_eq!(judge(forged(HEADER, &endless, 1)), "lifetime");
    for bad in ["", ".", "..", "a.b.c", "é"] {
        let ticket = IssuedTicket::from_ascii(bad.as_bytes());
        assert!(ticket.is_none_or(|ticket| judge(ticket) == "malformed"), "{bad}");
    }
    assert!(IssuedTicket::from_ascii(&[b'a'; 1_025]).is_none());
}

#[test]
fn every_changed_character_of_a_ticket_is_refused() {
    let admission = recognising("ours", &[1]);
    let sound = issuer("ours", &[1]).issue(&bearer(), NOW, 600).unwrap();
    for at in 0..sound.as_str().len() {
        let mut changed = sound.as_str().as_bytes().to_vec();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let ticket = IssuedTicket::from_ascii(&changed).unwrap();
        assert!(admission.judge(&bearer(), &shown(ticket), NOW).is_err(), "character {at}");
    }
}

#[test]
fn an_issuer_keeps_to_its_charter() {
    let charter = charter(&[1]);
    let config = coalition("ours", &charter);
    let stranger = Issuer::of(&config, &charter, issuer_key(2)).unwrap_err();
    assert!(matches!(stranger, IssueError::NotInCharter(_)), "{stranger}");
    let issuer = Issuer::of(&config, &charter, issuer_key(1)).unwrap();
    for seconds in [0, 3_601] {
        assert!(matches!(issuer.issue(&bearer(), NOW, seconds), Err(IssueError::Lifetime { .. })));
    }
    assert!(!format!("{issuer:?}").contains(&hex::encode([1; 32])));
}

#[test]
fn charters_are_strict() {
    let good = charter(&[1, 2, 3]);
    assert_eq!(Charter::from_hex(&good.to_hex()).unwrap(), good);
    assert_eq!(charter(&[3, 1, 2]), good, "order does not matter to whoever writes one");
    let mut bytes = good.to_bytes();
    assert!(matches!(Charter::from_bytes(&bytes[..bytes.len() - 1]), Err(CharterError::Bytes)));
    bytes[0] = 2;
    assert!(matches!(Charter::from_bytes(&bytes), Err(CharterError::Bytes)));
    let mut bytes = good.to_bytes();
    bytes[6..].rotate_left(32);
    assert!(matches!(Charter::from_bytes(&bytes), Err(CharterError::Order)));
    let twice = vec![issuer_key(1).verifying_key().to_bytes(); 2];
    assert!(matches!(Charter::new(1, twice), Err(CharterError::Order)));
    assert!(matches!(Charter::new(1, vec![]), Err(CharterError::Keys(0))));
    assert!(matches!(Charter::new(0, vec![issuer_key(1).verifying_key().to_bytes()]), Err(CharterError::Lifetime)));
    let mut weak = [0; 32];
    weak[0] = 1;
    assert!(matches!(Charter::new(1, vec![weak]), Err(CharterError::Key(_))));
    assert!(matches!(Charter::from_hex("zz"), Err(CharterError::Hex(_))));
    assert!(matches!(Refused::Signature.code(), "signature"));
}
