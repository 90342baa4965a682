//! The snippets of chapters 15, 23, 31 and 58, as near to their text as the language allows, and what each of them lets in.
//!
//! They name Intel's root, for which nobody can make quotes here, so each is judged twice: as written it refuses development
//! quotes for their root, and the same demands under a development root admit the one peer and refuse the others.
#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub)]

extern crate coalition_surface as coalition;

use std::sync::{Arc, LazyLock};

use coalition::{Mrtd, PublishedConfig, TicketValidator, UniqueId};
use coalition_attest::{DevelopmentRoot, Measurements, Nonce, TrustRoot};
use coalition_tickets::{Bearer, Charter, Issuer, Presentation, Refused, Resources, TdxTicket};
use ed25519_dalek::SigningKey;

const NOW: u64 = 1_800_000_000;

fn id(n: u8) -> UniqueId {
    UniqueId::from_bytes([n; 32])
}

fn bearer(peer: [u8; 32]) -> Bearer {
    Bearer { network: id(1), audience: id(2), peer }
}

static ROOT: LazyLock<DevelopmentRoot> = LazyLock::new(|| DevelopmentRoot::generate().unwrap());

fn development() -> TrustRoot {
    ROOT.trust_root().unwrap()
}

/// The attestations of guests with these registers, all bound to one peer.
fn attested(bearer: &Bearer, guests: &[Measurements]) -> Presentation {
    guests.iter().fold(Presentation::empty(), |shown, measurements| {
        let guest = ROOT.guest(*measurements).unwrap();
        let nonce = Nonce { value: id(7), issued_s: NOW };
        let ticket = TdxTicket::quote(&guest, Some(ROOT.collateral(NOW).unwrap()), bearer, nonce).unwrap();
        shown.with_tdx(&ticket).unwrap()
    })
}

/// As written: under Intel's root. What this machine can quote is refused for its root, whoever shows it.
fn as_written(validator: &TicketValidator<'_>, resources: &Resources, bearer: &Bearer, shown: &Presentation) {
    let refused = validator.enforce(resources).unwrap().judge(bearer, shown, NOW).unwrap_err();
    let Refused::Attestation(verdict) = &refused else { panic!("{refused}") };
    assert_eq!(verdict.outcome.code(), Some("wrong_root"), "{refused}");
    assert!(refused.to_string().contains("root: Intel"), "{refused}");
}

/// The same demands under the development root.
fn judged(
    validator: &TicketValidator<'_>,
    resources: &Resources,
    bearer: &Bearer,
    shown: &Presentation,
) -> Result<u64, &'static str> {
    let here = validator.clone().under_root(&development());
    assert_ne!(here.fingerprint(), validator.fingerprint(), "another root is another door");
    here.enforce(resources).unwrap().judge(bearer, shown, NOW).map_err(|refused| refused.code())
}

fn issuer_key() -> SigningKey {
    SigningKey::from_bytes(&[5; 32])
}

fn charter() -> Charter {
    Charter::new(3_600, vec![issuer_key().verifying_key().to_bytes()]).unwrap()
}

/// A coalition with a ticket issuer, and a ticket of it for one peer, for ten minutes.
fn issuing() -> PublishedConfig {
    PublishedConfig::builder("ETH superchain").ticket_issuer("issuer", vec![charter().rule()]).build().unwrap()
}

fn with_ticket(shown: Presentation, config: &PublishedConfig, bearer: &Bearer) -> Presentation {
    let issuer = Issuer::of(config, &charter(), issuer_key()).unwrap();
    shown.with_issued(issuer.issue(bearer, NOW, 600).unwrap())
}

/// Chapter 15, "The searcher's TicketValidator".
#[rustfmt::skip]
mod chapter_15 {
    #![allow(unused_imports)]

    mod builder {
        pub mod testnet_1a {
            use coalition::Mrtd;
            use coalition::tee::tdx::Measurements;

            pub const TALLY_READER_MEASUREMENTS: Measurements = Measurements::of_mrtd(Mrtd([1; 48]));
            pub const OFFER_READER_MEASUREMENTS: Measurements = Measurements::of_mrtd(Mrtd([2; 48]));
            pub const ZIPNET_SEAL_MEASUREMENTS: Measurements = Measurements::of_mrtd(Mrtd([3; 48]));
            pub const UNSEAL_COMMITTEE_MEASUREMENTS: Measurements = Measurements::of_mrtd(Mrtd([4; 48]));
        }
    }

    use coalition::{TicketValidator, Tdx};
    use coalition::acl::{ReputationFloor, MarketSettlement};
    use builder::testnet_1a::{
        // Flashbots publishes these constants on the
        // testnet-1a release page; they are re-exported
        // from the builder crate once pinned.
        ZIPNET_SEAL_MEASUREMENTS,
        UNSEAL_COMMITTEE_MEASUREMENTS,
        OFFER_READER_MEASUREMENTS,
        TALLY_READER_MEASUREMENTS,
    };

    pub(super) fn searcher_ticket_validator()
        -> TicketValidator<'static>
    {
        TicketValidator::new()
            // ── read-side bonds ──────────────────────
            .require_ticket(
                Tdx::new().require_mrtd(
                    TALLY_READER_MEASUREMENTS
                )
            )
            .require_ticket(
                Tdx::new().require_mrtd(
                    OFFER_READER_MEASUREMENTS
                )
            )

            // ── write-side bonds ─────────────────────
            .require_ticket(
                Tdx::new().require_mrtd(
                    ZIPNET_SEAL_MEASUREMENTS
                )
            )
            .verify_peer(
                Tdx::new().require_mrtd(
                    UNSEAL_COMMITTEE_MEASUREMENTS
                )
            )

            // ── self-admission ───────────────────────
            // Once the searcher has a reputation
            // history (chapter 7), its own admission
            // policy folds a reputation floor. Omitted
            // in the first-run handshake.
            // .require_ticket(
            //     ReputationFloor::from(
            //         ACCURACY_REPUTATION_ORG, 0.55
            //     ),
            // )
    }

    /// The clause that the chapter leaves out at first.
    pub(super) fn with_floor(ACCURACY_REPUTATION_ORG: coalition::UniqueId) -> TicketValidator<'static> {
        #![allow(non_snake_case)]
        searcher_ticket_validator()
            .require_ticket(
                ReputationFloor::from(
                    ACCURACY_REPUTATION_ORG, 0.55
                ),
            )
    }
}

#[test]
fn chapter_15_admits_who_shows_all_four_images() {
    let validator = chapter_15::searcher_ticket_validator();
    let (peer, resources) = (bearer([3; 32]), Resources::new());
    let images = [1, 2, 3, 4].map(|n| Measurements::of_mrtd(Mrtd([n; 48])));
    let all = attested(&peer, &images);
    as_written(&validator, &resources, &peer, &all);
    assert!(judged(&validator, &resources, &peer, &all).is_ok());
    for missing in 0..4 {
        let mut some = images.to_vec();
        some.remove(missing);
        let shown = attested(&peer, &some);
        assert_eq!(judged(&validator, &resources, &peer, &shown), Err("register"), "without image {}", missing + 1);
    }
    let other = bearer([4; 32]);
    assert_eq!(judged(&validator, &resources, &other, &all), Err("report_data"), "the quotes of another peer");
}

#[test]
fn chapter_15_with_its_floor_wants_a_card_besides() {
    let validator = chapter_15::with_floor(id(6));
    let ledger = Arc::new(coalition_tickets::sources::Ledger::default());
    let resources = Resources::new().with_reputation(Arc::clone(&ledger) as _);
    let peer = bearer([3; 32]);
    let shown = attested(&peer, &[1, 2, 3, 4].map(|n| Measurements::of_mrtd(Mrtd([n; 48]))));
    assert_eq!(judged(&validator, &resources, &peer, &shown), Err("no_card"));
    let card = |score_ppm| coalition_tickets::sources::Card { score_ppm, until_s: NOW + 50 };
    ledger.set_card(id(6), peer.peer, card(549_999));
    assert_eq!(judged(&validator, &resources, &peer, &shown), Err("reputation"));
    ledger.set_card(id(6), peer.peer, card(550_000));
    assert_eq!(judged(&validator, &resources, &peer, &shown), Ok(NOW + 50));
}

/// Chapter 23, "The bridge's TicketValidator".
#[rustfmt::skip]
mod chapter_23 {
    #![allow(non_upper_case_globals)]

    use super::{COMPUTE_MOD, compute_cfg};
    use coalition::{TicketValidator, Tdx};
    use coalition::acl::ComputeModule;

    pub(super) fn bridge_ticket_validator()
        -> TicketValidator<'static>
    {
        TicketValidator::new()
            // Scheduler committee must run the pinned
            // TDX image. This is the bridge agreeing to
            // the module's clearing rule.
            .require_ticket(
                Tdx::new().require_mrtd(
                    COMPUTE_MOD.module_image,
                ),
            )

            // Bridge accepts grants only from the exact
            // Compute module Config fingerprint it
            // booted against. A module rotation requires
            // an explicit rebind via the retirement
            // chain; the bridge does not silently follow
            // scheduler rotations.
            .require_ticket(
                ComputeModule::pin(
                    compute_cfg.stable_id(),
                ),
            )

            // The module's own ACL gates who may request
            // grants. The bridge does not add a separate
            // requester ACL; admitting the module's is
            // enough.
            .verify_peer(
                ComputeModule::requester_acl(
                    compute_cfg.stable_id(),
                ),
            )
    }
}

/// What a bridge pins of a module besides its config: an image's measurement, which no config holds.
struct ComputePins {
    module_image: Mrtd,
}

const COMPUTE_MOD: ComputePins = ComputePins { module_image: Mrtd([0x23; 48]) };

/// A market with two members, whose own rules demand a ticket of the superchain's issuer.
static MARKET: LazyLock<PublishedConfig> = LazyLock::new(|| {
    use coalition::{
        AclComposition, AclRule, CommitteeContent, ContentParams, ModuleConfig, ModuleKind, Roster, RosterMember,
    };
    let key = |n: u8| SigningKey::from_bytes(&[n; 32]).verifying_key().to_bytes();
    let member = |n: u8| RosterMember {
        name: format!("m{n}"),
        checkpoint_key: key(n),
        consensus_key: key(n + 1),
        peer_id: key(n + 2),
    };
    let roster = Roster::new(vec![member(10), member(20)]).unwrap();
    let content = CommitteeContent { service: "compute.v1".into(), roster, params: Vec::new(), predecessor: None };
    let (content, rules) = (content.to_bytes(), [AclRule::Issuer(issuing().ticket_issuer_root().unwrap())]);
    let body = ModuleConfig::new("compute", ContentParams::new(&content), AclComposition::new(&rules));
    PublishedConfig::builder("bridge-β").module_config(ModuleKind::Compute, &body).build().unwrap()
});

/// The module a bridge booted against.
struct BootedModule;

impl BootedModule {
    fn stable_id(&self) -> UniqueId {
        MARKET.module_ref(coalition::ModuleKind::Compute).unwrap().stable_id
    }
}

#[allow(non_upper_case_globals)]
static compute_cfg: BootedModule = BootedModule;

#[test]
fn chapter_23_admits_members_of_the_pinned_module_in_its_image() {
    let validator = chapter_23::bridge_ticket_validator();
    let resources = Resources::new().with_config(&MARKET).with_issuer(&issuing(), charter()).unwrap();
    let member = bearer(SigningKey::from_bytes(&[12; 32]).verifying_key().to_bytes());
    let image = [Measurements::of_mrtd(COMPUTE_MOD.module_image)];
    let all = |who: &Bearer| with_ticket(attested(who, &image), &issuing(), who);
    as_written(&validator, &resources, &member, &all(&member));
    assert_eq!(judged(&validator, &resources, &member, &all(&member)), Ok(NOW + 600));
    let outsider = bearer([3; 32]);
    assert_eq!(judged(&validator, &resources, &outsider, &all(&outsider)), Err("not_seated"));
    let other = with_ticket(attested(&member, &[Measurements::of_mrtd(Mrtd([0x24; 48]))]), &issuing(), &member);
    assert_eq!(judged(&validator, &resources, &member, &other), Err("register"), "another image");
    assert_eq!(
        judged(&validator, &resources, &member, &attested(&member, &image)),
        Err("no_ticket"),
        "the module's own"
    );
}

/// Chapter 31, "Composing the TicketValidator".
#[rustfmt::skip]
mod chapter_31 {
    #![allow(unused_imports)]

    use coalition::{AclComposition, AclRule, Mrtd, UniqueId};
    use coalition::tee::tdx::Measurements;

    mod searcher_alpha {
        use super::*;

        pub const SELF_ACL: AclComposition<'static> = AclComposition::new(&[
            AclRule::Reputation { organism: UniqueId::from_bytes([6; 32]), floor_ppm: 500_000 },
        ]);
    }

    const fn release(n: u8) -> Measurements {
        let mut measurements = Measurements::of_mrtd(Mrtd([n; 48]));
        measurements.rtmr[2].0 = [n + 1; 48];
        measurements
    }

    pub(super) const ORACLE_MEASUREMENTS: Measurements = release(0x31);
    pub(super) const MR_OLD: Measurements = ORACLE_MEASUREMENTS;
    pub(super) const MR_NEW: Measurements = release(0x41);

    use coalition::tickets::{TicketValidator, And, Or};
    use coalition::tee::tdx::AdmitsMeasurements;

    pub fn oracle_consumer_validator()
        -> TicketValidator<'static>
    {
        TicketValidator::compose(
            // Consumer's own ACL for who runs this searcher.
            searcher_alpha::SELF_ACL,
            // Admits any peer whose self-quote matches the
            // oracle's published Measurements.
            AdmitsMeasurements::equal(ORACLE_MEASUREMENTS),
        )
    }

    /// The same, across a rotation.
    pub(super) fn rotating() -> TicketValidator<'static> {
        TicketValidator::compose(searcher_alpha::SELF_ACL, AdmitsMeasurements::in_set(&[MR_OLD, MR_NEW]))
    }
}

#[test]
fn chapter_31_admits_the_published_measurements_and_during_a_rotation_both() {
    use chapter_31::{MR_NEW, MR_OLD, ORACLE_MEASUREMENTS};
    let ledger = Arc::new(coalition_tickets::sources::Ledger::default());
    let peer = bearer([3; 32]);
    let card = coalition_tickets::sources::Card { score_ppm: 500_000, until_s: NOW + 900 };
    ledger.set_card(id(6), peer.peer, card);
    let resources = Resources::new().with_reputation(ledger);
    let (one, both) = (chapter_31::oracle_consumer_validator(), chapter_31::rotating());
    let shown = attested(&peer, &[ORACLE_MEASUREMENTS]);
    as_written(&one, &resources, &peer, &shown);
    assert_eq!(judged(&one, &resources, &peer, &shown), Ok(NOW + 900));
    // Not the initial content alone: every register counts.
    let same_image = attested(&peer, &[Measurements::of_mrtd(ORACLE_MEASUREMENTS.mrtd)]);
    assert_eq!(judged(&one, &resources, &peer, &same_image), Err("register"));
    let stranger = bearer([4; 32]);
    assert_eq!(judged(&one, &resources, &stranger, &attested(&stranger, &[ORACLE_MEASUREMENTS])), Err("no_card"));

    assert_eq!(judged(&one, &resources, &peer, &attested(&peer, &[MR_NEW])), Err("register"));
    for release in [MR_OLD, MR_NEW] {
        assert_eq!(judged(&both, &resources, &peer, &attested(&peer, &[release])), Ok(NOW + 900));
    }
    let neither = attested(&peer, &[Measurements::of_mrtd(Mrtd([0x51; 48]))]);
    assert_eq!(judged(&both, &resources, &peer, &neither), Err("none_of"));
}

/// Chapter 58, "How components opt in".
#[rustfmt::skip]
mod chapter_58 {
    use super::ETH_SUPERCHAIN;
    use coalition::{Mrtd, Tdx, TicketValidator};

    pub(super) fn component(organism_mrtd: Mrtd) -> Option<TicketValidator<'static>> {
        let validator = TicketValidator::new()
            .recognise_issuer(ETH_SUPERCHAIN.ticket_issuer_root()?)
            .require_ticket(Tdx::new().require_mrtd(organism_mrtd));
        Some(validator)
    }
}

static ETH_SUPERCHAIN: LazyLock<PublishedConfig> = LazyLock::new(issuing);

#[test]
fn chapter_58_admits_who_has_a_ticket_and_the_image() {
    let mrtd = Mrtd([0x58; 48]);
    let validator = chapter_58::component(mrtd).unwrap();
    let resources = Resources::new().with_issuer(&ETH_SUPERCHAIN, charter()).unwrap();
    let peer = bearer([3; 32]);
    let quoted = || attested(&peer, &[Measurements::of_mrtd(mrtd)]);
    let both = with_ticket(quoted(), &ETH_SUPERCHAIN, &peer);
    as_written(&validator, &resources, &peer, &both);
    assert_eq!(judged(&validator, &resources, &peer, &both), Ok(NOW + 600));
    assert_eq!(judged(&validator, &resources, &peer, &quoted()), Err("no_ticket"));
    let of_another = with_ticket(quoted(), &ETH_SUPERCHAIN, &bearer([4; 32]));
    assert_eq!(judged(&validator, &resources, &peer, &of_another), Err("subject"));
    let ticket_alone = with_ticket(Presentation::empty(), &ETH_SUPERCHAIN, &peer);
    assert_eq!(judged(&validator, &resources, &peer, &ticket_alone), Err("no_ticket"));
    // Another coalition's issuer, with the same keys, is another root.
    let elsewhere =
        PublishedConfig::builder("another").ticket_issuer("issuer", vec![charter().rule()]).build().unwrap();
    let foreign = with_ticket(quoted(), &elsewhere, &peer);
    assert_eq!(judged(&validator, &resources, &peer, &foreign), Err("issuer"));
}
