//! The forms on the wire: golden bytes, and that nothing else is read.

use coalition::tickets::AclComposition;
use coalition::{EvidencePointer, Mrtd};
use coalition_attest::{MAX_SLIM_BYTES, Nonce};
use coalition_tickets::presentation::{MAX_TDX_BYTES, MAX_TICKETS};
use coalition_tickets::tdx_ticket::Carried;
use coalition_tickets::{
    Challenges, ComputeModule, IssuedTicket, MAX_PRESENTATION_BYTES, Nonces as _, Or, Presentation, PresentationError,
    ReputationFloor, Tdx, TdxTicket, TdxTicketError, TicketValidator,
};
use proptest::prelude::*;

use crate::common::{NOW, bearer, charter, coalition, id, issuer};

fn ticket() -> TdxTicket {
    TdxTicket { nonce: Nonce { value: id(0xaa), issued_s: NOW }, carried: Carried::Slim(vec![1, 2, 3]) }
}

/// Never change one of these values without a new version of its form: docs/protocol/tickets.md.
#[test]
fn the_forms_are_these_bytes() {
    let head = format!("0102000000006b49d200{}010203", "aa".repeat(32));
    assert_eq!(hex::encode(ticket().to_bytes().unwrap()), head);
    let issued = IssuedTicket::from_ascii(b"a.b.c").unwrap();
    let pointer = EvidencePointer { organism: id(0xbb), index: 258, digest: id(0xcc) };
    let shown = Presentation::empty().with_tdx(&ticket()).unwrap().with_issued(issued).with_settlement(pointer);
    let settlement = format!("{}0000000000000102{}", "bb".repeat(32), "cc".repeat(32));
    let expected = format!("0103010000002d{head}0200000005612e622e630300000048{settlement}");
    assert_eq!(hex::encode(shown.to_bytes().unwrap()), expected);
    assert_eq!(hex::encode(Presentation::empty().to_bytes().unwrap()), "0100");
    assert_eq!(
        coalition_tickets::presentation::CLASS.to_string(),
        "02ddbd86bcb4335ab8c9fed122ee81e9f4293d5e2217b62191fe34fa505ecf31"
    );
}

#[test]
fn charters_tickets_and_rules_are_these() {
    let charter = charter(&[1, 2]);
    let config = coalition("golden", &charter);
    assert_eq!(
        charter.to_hex(),
        "0100000e10028139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b3948a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c"
    );
    assert_eq!(charter.digest().to_string(), "60be842ceda9ff4b9a286484d70ee60a3b86b024fadfffe6435298aa91945079");
    assert_eq!(
        config.ticket_issuer_root().unwrap().to_string(),
        "345c1c9392194f26ba9d77030fffe5f767c0efb35164d0cf0f7036d8055015ca"
    );
    let issued = issuer("golden", &[1, 2]).issue(&bearer(), NOW, 600).unwrap();
    assert_eq!(
        issued.as_str(),
        "eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCJ9.eyJpc3MiOiIzNDVjMWM5MzkyMTk0ZjI2YmE5ZDc3MDMwZmZmZTVmNzY3YzBlZmIzNTE2NGQwY2YwZjcwMzZkODA1NTAxNWNhIiwic3ViIjoiMDMwMzAzMDMwMzAzMDMwMzAzMDMwMzAzMDMwMzAzMDMwMzAzMDMwMzAzMDMwMzAzMDMwMzAzMDMwMzAzMDMwMyIsImF1ZCI6IjAyMDIwMjAyMDIwMjAyMDIwMjAyMDIwMjAyMDIwMjAyMDIwMjAyMDIwMjAyMDIwMjAyMDIwMjAyMDIwMjAyMDIiLCJleHAiOjE4MDAwMDA2MDAsImlhdCI6MTgwMDAwMDAwMCwibmV0IjoiMDEwMTAxMDEwMTAxMDEwMTAxMDEwMTAxMDEwMTAxMDEwMTAxMDEwMTAxMDEwMTAxMDEwMTAxMDEwMTAxMDEwMSJ9.MFFzOF2QoPJ4vA19r_l4M8Alz2aBSU5KvLRNcTEkq746gvpxhWloH3s4OcHkpJxl2-IUuOlBqXZ1o_eFgxGADw"
    );
    let validator = TicketValidator::new()
        .require_ticket(Tdx::new().require_mrtd(Mrtd([7; 48])))
        .require_ticket(ComputeModule::pin(id(5)))
        .require_ticket(Or::of([ReputationFloor::from(id(6), 0.6), ComputeModule::requester_acl(id(5))]));
    let rules: Vec<String> = validator.acl_rules().iter().map(|rule| hex::encode(rule.to_bytes())).collect();
    assert_eq!(rules[1], "0542b980a7063ef139b7f6d88c8b23ec9a524635da3f4a0a5f26779ca2607b48df");
    assert_eq!(rules[2], "05e2fe8472d41213089ecfc95ad9aaa99b87be88883ae9cbed4607fd05032fc8b2");
    assert_eq!(validator.fingerprint(), AclComposition::new(&validator.acl_rules()).fingerprint());
    assert_eq!(validator.fingerprint().to_string(), "6f90ca7d2b40c8e100145657ee455ab4138fb7d548f292ed689882059f82fc55");
    assert_eq!(
        Challenges::new([9; 32]).draw(&bearer(), NOW).value.to_string(),
        "256616c1e3ff2a7e4d835cedeba219663c9eca5f3cffab2336b5c13d660f6ef8"
    );
    assert_eq!(
        hex::encode(TdxTicket::report_data(&bearer(), id(3))),
        "88330a6a46fd7d0d944eae889be17d06868ef902ae77b881a8e4607eeea139b3b5f01e673ab7439376e42aa8d0d4dc3722fabdbd83106c7a974c24ef56ea92c6"
    );
}

#[test]
fn oversized_and_malformed_bytes_are_named() {
    let read = |bytes: &[u8]| Presentation::from_bytes(bytes).unwrap_err();
    assert_eq!(read(&[]), PresentationError::Length("head"));
    assert_eq!(read(&[2, 0]), PresentationError::Version(2));
    assert_eq!(read(&[1, 9]), PresentationError::TooMany(9));
    assert_eq!(read(&[1, 0, 0]), PresentationError::Length("end"));
    assert_eq!(read(&[1, 1, 1, 0]), PresentationError::Length("ticket"));
    assert_eq!(read(&[1, 1, 7, 0, 0, 0, 0]), PresentationError::Kind(7));
    assert_eq!(read(&[1, 1, 2, 0, 0, 0, 1]), PresentationError::Length("ticket"));
    assert_eq!(read(&[1, 1, 2, 0, 0, 0, 1, 0xff]), PresentationError::Text);
    assert_eq!(read(&[1, 1, 3, 0, 0, 0, 1, 0]), PresentationError::Length("settlement pointer"));
    // A length that lies costs nothing: the limit of the kind is checked before anything is taken.
    let lying = [1, 1, 1, 0xff, 0xff, 0xff, 0xff];
    let found = u32::MAX as usize;
    assert_eq!(read(&lying), PresentationError::TicketTooLong { kind: 1, found, max: MAX_TDX_BYTES });
    assert_eq!(
        read(&vec![1; MAX_PRESENTATION_BYTES + 1]),
        PresentationError::TooLong { found: MAX_PRESENTATION_BYTES + 1 }
    );
    let many = (0..=MAX_TICKETS).fold(Presentation::empty(), |shown, _| shown.with_tdx(&ticket()).unwrap());
    assert_eq!(many.to_bytes(), Err(PresentationError::TooMany(9)));
    assert!(matches!(TdxTicket::from_bytes(&[1; 41]), Err(TdxTicketError::Truncated)));
    assert!(matches!(TdxTicket::from_bytes(&[2; 42]), Err(TdxTicketError::Version(2))));
    assert!(matches!(TdxTicket::from_bytes(&[[1, 3].as_slice(), &[0; 40]].concat()), Err(TdxTicketError::Form(3))));
    let long = TdxTicket { carried: Carried::Slim(vec![0; MAX_SLIM_BYTES + 1]), ..ticket() };
    assert!(matches!(long.to_bytes(), Err(TdxTicketError::TooLong { .. })));
}

fn presentations() -> impl Strategy<Value = Presentation> {
    let tdx = (any::<[u8; 32]>(), any::<u64>(), any::<bool>(), prop::collection::vec(any::<u8>(), 0..300));
    let tdx = tdx.prop_map(|(value, issued_s, slim, data)| {
        let nonce = Nonce { value: coalition::UniqueId::from_bytes(value), issued_s };
        let carried = if slim { Carried::Slim(data) } else { Carried::Evidence(data) };
        Presentation::empty().with_tdx(&TdxTicket { nonce, carried }).unwrap()
    });
    let issued = "[a-zA-Z0-9._-]{0,80}"
        .prop_map(|text| Presentation::empty().with_issued(IssuedTicket::from_ascii(text.as_bytes()).unwrap()));
    let settlement = (any::<[u8; 32]>(), any::<u64>()).prop_map(|(digest, index)| {
        let digest = coalition::UniqueId::from_bytes(digest);
        Presentation::empty().with_settlement(EvidencePointer { organism: id(1), index, digest })
    });
    prop_oneof![Just(Presentation::empty()), tdx, issued, settlement]
}

proptest! {
    #[test]
    fn presentations_round_trip(shown in presentations()) {
        let bytes = shown.to_bytes().unwrap();
        prop_assert_eq!(Presentation::from_bytes(&bytes).unwrap(), shown);
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_have_one_reading(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(shown) = Presentation::from_bytes(&bytes) {
            prop_assert_eq!(shown.to_bytes().unwrap(), bytes.clone());
        }
        if let Ok(ticket) = TdxTicket::from_bytes(&bytes) {
            prop_assert_eq!(ticket.to_bytes().unwrap(), bytes);
        }
    }

    #[test]
    fn a_challenge_is_dated_for_its_bearer_and_time_alone(secret in any::<[u8; 32]>(), at in any::<u64>(), other in any::<u64>()) {
        let challenges = Challenges::new(secret);
        let nonce = challenges.draw(&bearer(), at);
        prop_assert!(challenges.is_dated(&bearer(), &nonce));
        prop_assert_eq!(challenges.is_dated(&bearer(), &Nonce { issued_s: other, ..nonce }), other == at);
        let elsewhere = coalition_tickets::Bearer { audience: id(9), ..bearer() };
        prop_assert!(!challenges.is_dated(&elsewhere, &nonce));
    }
}
