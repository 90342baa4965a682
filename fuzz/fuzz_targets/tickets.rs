#![no_main]
//! What strangers show at a door, and charters: any bytes, or a sound presentation with edits. Nobody comes in with an edited one
//! but by what was sound in it.

use std::sync::{Arc, LazyLock};

use coalition::{AclRule, PublishedConfig, UniqueId};
use coalition_attest::{
    Collateral, DevelopmentRoot, Measurements, Mrtd, Nonce, Policy, Quote, QuoteSource as _,
};
use coalition_fuzz::{damaged, key};
use coalition_tickets::{
    Admission, Bearer, Challenges, Charter, IssuedTicket, Issuer, Or, Presentation, Resources, Shown, Tdx, TdxTicket,
    TicketValidator,
};
use libfuzzer_sys::fuzz_target;

const NOW: u64 = 1_800_000_000;
const BEARER: Bearer = Bearer { network: UniqueId::from_bytes([1; 32]), audience: UniqueId::from_bytes([2; 32]), peer: [3; 32] };

struct Setting {
    collateral: Collateral,
    slim: Vec<u8>,
    /// Each alone would open the door.
    sound: [Presentation; 2],
    /// The parts of these that make them sound.
    parts: [Vec<u8>; 2],
    charter: Vec<u8>,
    door: Admission,
}

static SETTING: LazyLock<Setting> = LazyLock::new(|| {
    let root = DevelopmentRoot::generate().expect("software keys");
    let guest = root.guest(Measurements::of_mrtd(Mrtd([7; 48]))).expect("a guest");
    let challenges = Arc::new(Challenges::new([9; 32]));
    let collateral = root.collateral(NOW).expect("collateral");
    let nonce: Nonce = challenges.draw(&BEARER, NOW);
    let attested = TdxTicket::quote_slim(&guest, &BEARER, nonce).expect("a quote");
    let quote = Quote::parse(&guest.quote(&TdxTicket::report_data(&BEARER, nonce.value)).expect("a quote"));
    let charter = Charter::new(600, vec![key(0).verifying_key().to_bytes()]).expect("a charter");
    let config = PublishedConfig::builder("c").ticket_issuer("i", vec![charter.rule()]).build().expect("a config");
    let issuer = Issuer::of(&config, &charter, key(0)).expect("its issuer");
    let issued = issuer.issue(&BEARER, NOW, 600).expect("a ticket");
    let policy = Policy::servers(root.trust_root().expect("a root")).max_quote_age_s(60).expect("an age");
    let resources = Resources::new()
        .with_issuer(&config, charter.clone())
        .expect("its charter")
        .with_nonces(challenges)
        .with_collateral(Arc::new(collateral.clone()));
    let either = Or::of([Tdx::under(policy)]).or(AclRule::Issuer(config.ticket_issuer_root().expect("a root")));
    Setting {
        collateral,
        slim: quote.expect("sound").to_slim().expect("a slim form"),
        parts: [nonce.value.as_bytes().to_vec(), issued.as_str().as_bytes().to_vec()],
        sound: [
            Presentation::empty().with_tdx(&attested).expect("short"),
            Presentation::empty().with_issued(issued),
        ],
        charter: charter.to_bytes(),
        door: TicketValidator::new().require_ticket(either).enforce(&resources).expect("enforceable"),
    }
});

fn shown(bytes: &[u8], setting: &Setting) {
    let Ok(presentation) = Presentation::from_bytes(bytes) else { return };
    assert_eq!(presentation.to_bytes().expect("what was read is written"), bytes);
    let is_admitted = setting.door.judge(&BEARER, &presentation, NOW).is_ok();
    // Without the door's own nonce and without the issuer's ticket nothing opens it.
    let holds = |part: &Vec<u8>| bytes.windows(part.len()).any(|window| window == part);
    assert!(!is_admitted || setting.parts.iter().any(holds));
    for ticket in presentation.tickets() {
        if let Shown::Tdx(bytes) = ticket
            && let Ok(ticket) = TdxTicket::from_bytes(bytes)
        {
            assert_eq!(&ticket.to_bytes().expect("what was read is written"), bytes);
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&how, rest)) = data.split_first() else { return };
    let setting = &*SETTING;
    match how % 7 {
        0 => shown(rest, setting),
        which @ (1 | 2) => {
            let sound = setting.sound[usize::from(which - 1)].to_bytes().expect("sound");
            shown(&damaged(&sound, rest), setting);
        }
        3 | 4 => {
            let slim = if how % 7 == 3 { damaged(&setting.slim, rest) } else { rest.to_vec() };
            if let Ok((quote, _)) = Quote::from_slim(&slim, &setting.collateral) {
                assert_eq!(quote.to_slim().expect("a slim form"), slim);
            }
        }
        5 => {
            let bytes = damaged(&setting.charter, rest);
            if let Ok(charter) = Charter::from_bytes(&bytes) {
                assert_eq!(charter.to_bytes(), bytes);
            }
        }
        _ => {
            if let Some(ticket) = IssuedTicket::from_ascii(rest) {
                let _ = ticket.claimed();
            }
        }
    }
});
