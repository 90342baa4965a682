//! The published config in its forms: round trips, verification, and what each mistake is told.

use coalition::{
    AclComposition, AclRule, CoalitionConfig, ContentParams, ModuleConfig, ModuleKind, OrganismConfig, OrganismRef,
    PublishedConfig, PublishedConfigBuilder, PublishedError, UniqueId, derived_ids,
};
use proptest::prelude::*;

use crate::model::{any_published, committee, dev_config, id};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_config_survives_both_forms(config in any_published()) {
        let from_hex = PublishedConfig::from_hex(&config.to_hex()).unwrap();
        prop_assert_eq!(&from_hex, &config);
        let toml = config.to_toml();
        let from_toml = PublishedConfig::from_toml(&toml).map_err(|e| TestCaseError::fail(format!("{e:?}\n{toml}")))?;
        prop_assert_eq!(&from_toml, &config);
        prop_assert_eq!(from_toml.to_toml(), toml);
        prop_assert_eq!(from_hex.to_bytes(), config.to_bytes());
        prop_assert_eq!(config.verify(), Ok(()));
    }

    #[test]
    fn the_borrowed_view_has_the_same_identity(config in any_published()) {
        let view = config.view();
        let borrowed = view.config();
        prop_assert_eq!(borrowed.root(), config.root());
        prop_assert_eq!(borrowed.stable_id(), config.fingerprint());
        prop_assert_eq!(borrowed.ticket_issuer_root(), config.ticket_issuer_root());
        let by_ids_alone = PublishedConfigBuilder::from_config(&borrowed).unwrap().build().unwrap();
        prop_assert_eq!(by_ids_alone.fingerprint(), config.fingerprint());
    }
}

#[test]
fn references_are_what_the_preimages_derive() {
    let config = dev_config();
    let compute = committee("compute.v1", 4).to_bytes();
    let body = ModuleConfig::new("default", ContentParams::new(&compute), AclComposition::OPEN);
    let module = config.module(ModuleKind::Compute).unwrap();
    assert_eq!(module.id, body.module_id(ModuleKind::Compute, config.root()));
    assert_eq!(module.content_hash, body.content_hash());
    let reference = body.reference(ModuleKind::Compute, config.root());
    assert_eq!(config.module_ref(ModuleKind::Compute).unwrap().as_ref(), reference);

    let unseal = committee("unseal.v1", 3).to_bytes();
    let organism = OrganismConfig {
        name: "unseal.dev",
        lattices: &[],
        organisms: &[],
        content: ContentParams::new(&unseal),
        acl: AclComposition::OPEN,
    };
    assert_eq!(config.organism("unseal").unwrap().id, organism.organism_id());
    let built = PublishedConfig::builder("x").organism_config("unseal", &organism).build().unwrap();
    assert_eq!(built.organism("unseal"), config.organism("unseal"));
    assert_eq!(config.by_id(organism.organism_id()), config.organism("unseal"));
    assert_eq!(config.by_id(id(0x22)), None, "named by id only");
}

#[test]
fn committees_come_out_as_they_went_in() {
    let config = dev_config();
    assert_eq!(config.committee(ModuleKind::Compute), Ok(committee("compute.v1", 4)));
    assert_eq!(config.organism_committee("unseal"), Ok(committee("unseal.v1", 3)));
    let missing = config.committee(ModuleKind::Atlas).unwrap_err();
    assert_eq!(missing.to_string(), "the coalition has no 'atlas'");
    let by_id_only = config.organism_committee("oracle").unwrap_err();
    assert!(by_id_only.to_string().contains("'oracle' by id only"), "{by_id_only}");

    let other = ModuleConfig::new("default", ContentParams::new(b"not a committee"), AclComposition::OPEN);
    let config = PublishedConfig::builder("c").module_config(ModuleKind::Atlas, &other).build().unwrap();
    let error = config.committee(ModuleKind::Atlas).unwrap_err();
    assert!(matches!(error, PublishedError::Committee { .. }), "{error}");
}

#[test]
fn invalid_committees_are_refused_when_built() {
    let mut content = committee("compute.v1", 4);
    content.service = "Compute v1".to_owned();
    let error = PublishedConfig::builder("c").module(ModuleKind::Compute, "default", &content).build().unwrap_err();
    let PublishedError::Committee { role, source } = error else {
        panic!("{error}");
    };
    assert_eq!(role, "compute");
    assert!(source.to_string().starts_with("'Compute v1' is no name"), "{source}");
}

#[test]
fn hex_mistakes_are_named() {
    let hex = dev_config().to_hex();
    let error = |text: &str| PublishedConfig::from_hex(text).unwrap_err();

    assert!(PublishedConfig::from_hex(&format!("  {hex}\n")).is_ok(), "white space around is harmless");
    assert_eq!(error(&hex.to_uppercase()), PublishedError::HexDigit { position: 3, found: 'F' });
    assert_eq!(error(&hex[..hex.len() - 1]), PublishedError::HexOdd(hex.len() - 1));
    let cut = &hex[..hex.len() - 20];
    assert_eq!(error(cut), PublishedError::Length { announced: hex.len() / 2, found: cut.len() / 2 });
    assert!(matches!(error(&format!("{hex}00")), PublishedError::Length { .. }));
    assert_eq!(error(""), PublishedError::Magic);
    assert_eq!(error(&"00".repeat(60)), PublishedError::Magic);
    let mut newer = hex.clone();
    newer.replace_range(8..10, "02");
    assert_eq!(error(&newer), PublishedError::Version(2));
    let middle = hex.len() / 2;
    let mut flipped = hex.clone();
    let other = if &hex[middle..=middle] == "0" { "1" } else { "0" };
    flipped.replace_range(middle..=middle, other);
    assert!(matches!(error(&flipped), PublishedError::Checksum { .. }));
    let huge = "0".repeat(2 * coalition::published::MAX_BINARY_BYTES + 2);
    assert!(matches!(error(&huge), PublishedError::TooLarge { .. }));
}

/// One other digit at every position, one digit removed, one doubled: all refused.
#[test]
fn every_hex_mutation_is_refused() {
    let hex = dev_config().to_hex();
    for position in 0..hex.len() {
        let digit = hex.as_bytes()[position];
        for other in *b"0f" {
            if other != digit {
                let mut changed = hex.clone().into_bytes();
                changed[position] = other;
                let changed = String::from_utf8(changed).unwrap();
                assert!(PublishedConfig::from_hex(&changed).is_err(), "digit {position}");
            }
        }
    }
    for position in (0..hex.len()).step_by(2) {
        let mut removed = hex.clone();
        removed.replace_range(position..position + 2, "");
        assert!(PublishedConfig::from_hex(&removed).is_err(), "without byte {}", position / 2);
        let mut doubled = hex.clone();
        doubled.insert_str(position, &hex[position..position + 2]);
        assert!(PublishedConfig::from_hex(&doubled).is_err(), "byte {} doubled", position / 2);
        assert!(PublishedConfig::from_hex(&hex[..position]).is_err(), "cut at {}", position / 2);
    }
}

#[test]
fn an_altered_preimage_names_both_ids() {
    let config = dev_config();
    let toml = config.to_toml();
    let module = config.module(ModuleKind::Compute).unwrap();

    let renamed = toml.replace("service = \"compute.v1\"", "service = \"compute.v2\"");
    assert_ne!(renamed, toml);
    let error = PublishedConfig::from_toml(&renamed).unwrap_err();
    let PublishedError::StableId { what, published, computed } = &error else {
        panic!("{error}");
    };
    assert_eq!((what.as_str(), *published), ("the compute module", module.id));
    assert_ne!(published, computed);
    let message = error.to_string();
    assert!(message.contains(&published.to_string()) && message.contains(&computed.to_string()), "{message}");

    // With the id left out, the pin still gives the change away.
    let line = format!("stable_id = \"{}\"\n", module.id);
    let error = PublishedConfig::from_toml(&renamed.replace(&line, "")).unwrap_err();
    assert!(
        matches!(&error, PublishedError::ContentHash { published, .. } if *published == module.content_hash),
        "{error}"
    );

    // With both left out it is a consistent config, but another coalition, and the document says which was meant.
    let pin = format!("content_hash = \"{}\"\n", module.content_hash);
    let error = PublishedConfig::from_toml(&renamed.replace(&line, "").replace(&pin, "")).unwrap_err();
    assert!(
        matches!(error, PublishedError::Fingerprint { expected, .. } if expected == config.fingerprint()),
        "{error}"
    );
}

#[test]
fn ids_may_be_left_out_of_toml() {
    let config = dev_config();
    let computed: String = config
        .to_toml()
        .lines()
        .filter(|line| !line.starts_with("fingerprint") && !line.starts_with("content_hash"))
        .filter(|line| !line.starts_with("stable_id") || line.contains(&id(0x22).to_string()))
        .map(|line| format!("{line}\n"))
        .collect();
    assert_eq!(PublishedConfig::from_toml(&computed), Ok(config));
}

#[test]
fn a_handwritten_toml_reads() {
    let member = crate::model::member("a");
    let text = format!(
        r#"
        schema_version = 1
        instance_name = "handmade"

        [modules.almanac]
        name = "default"
        acl = [{{ issuer = "{issuer}" }}, {{ reputation = {{ organism = "{issuer}", floor_ppm = 5 }} }}]

        [modules.almanac.committee]
        service = "almanac.v1"

        [[modules.almanac.committee.roster]]
        name = "a"
        checkpoint_key = "{}"
        consensus_key = "{}"
        peer_id = "{}"

        [[organisms]]
        role = "oracle"
        stable_id = "{issuer}"
        "#,
        UniqueId::from_bytes(member.checkpoint_key),
        UniqueId::from_bytes(member.consensus_key),
        UniqueId::from_bytes(member.peer_id),
        issuer = id(1),
    );
    let config = PublishedConfig::from_toml(&text).unwrap();
    let almanac = config.module(ModuleKind::Almanac).unwrap();
    assert_eq!(almanac.acl[0], AclRule::Issuer(id(1)));
    assert_eq!(config.committee(ModuleKind::Almanac).unwrap().roster.members(), [member]);
    assert_eq!(config.module_ref(ModuleKind::Almanac).unwrap().content_hash, Some(almanac.content_hash));
    assert_eq!(config.organism_refs().next().unwrap().content_hash, None);
}

/// The whole chain of an error as a user would read it.
fn told(text: &str) -> String {
    let error = PublishedConfig::from_toml(text).unwrap_err();
    let mut told = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        told.push_str(": ");
        told.push_str(&cause.to_string());
        source = cause.source();
    }
    told
}

#[test]
fn toml_mistakes_name_the_key() {
    let head = "schema_version = 1\ninstance_name = \"c\"\n";
    let cases: [(&str, &[&str]); 13] = [
        ("latices = []", &["unknown field `latices`", "lattices"]),
        ("lattices = [\"12\"]", &["lattices", "64 hexadecimal digits", "2 characters"]),
        ("fingerprint = \"xyz\"", &["fingerprint", "'x' at position 0"]),
        ("retirement_policy = \"never\"", &["never", "conservative"]),
        ("[modules.clock]", &["unknown field `clock`", "almanac"]),
        ("[modules.atlas]\nnam = \"x\"", &["unknown field `nam`"]),
        ("[modules.atlas]\nname = \"x\"", &["modules.atlas", "'content' or 'committee'"]),
        ("[modules.atlas]", &["atlas", "stable_id"]),
        ("[modules.atlas]\nname = \"x\"\ncontent = \"0\"", &["content", "even number"]),
        (
            "[modules.atlas]\nname=\"x\"\ncontent=\"00\"\n[modules.atlas.committee]\nservice=\"s\"\nroster=[]",
            &["roster", "1 to 64 members, this one has 0"],
        ),
        ("[[organisms]]\nrole = \"o\"", &["organism 'o'", "stable_id"]),
        ("[[organisms]]\nstable_id = \"00\"", &["stable_id", "64 hexadecimal digits"]),
        ("[[organisms]]\nrole = \"\"\nname=\"n\"\ncontent=\"\"", &["an organism's role", "1 to 255 bytes"]),
    ];
    for (body, expected) in cases {
        let told = told(&format!("{head}{body}\n"));
        for part in expected {
            assert!(told.contains(part), "{body}: '{part}' is missing in: {told}");
        }
    }
    assert!(told("instance_name = \"c\"").contains("missing field `schema_version`"));
    assert!(told("schema_version = 2\ninstance_name = \"c\"").contains("version 2 of the identity rules"));
    assert!(told("no toml").contains("not valid in its TOML form"));
}

#[test]
fn limits_are_enforced() {
    let twice = PublishedConfig::builder("c").lattice(id(1)).lattice(id(1)).build();
    assert!(matches!(twice, Err(PublishedError::Duplicate { id: d, .. }) if d == id(1)));
    let same = OrganismRef::by_stable_id("a", id(1));
    let twice = PublishedConfig::builder("c").organism_ref(same).organism_ref(same).build();
    assert!(matches!(twice, Err(PublishedError::Duplicate { .. })));

    let floor = AclRule::Reputation { organism: id(1), floor_ppm: 1_000_001 };
    let error = PublishedConfig::builder("c").ticket_issuer("i", vec![floor]).build();
    assert!(matches!(error, Err(PublishedError::Floor { found: 1_000_001, .. })));
    let rules = vec![AclRule::Issuer(id(1)); 65];
    let error = PublishedConfig::builder("c").ticket_issuer("i", rules).build();
    assert!(matches!(error, Err(PublishedError::TooMany { found: 65, max: 64, .. })));

    let large = vec![0; coalition::published::MAX_CONTENT_BYTES + 1];
    let module = ModuleConfig::new("m", ContentParams::new(&large), AclComposition::OPEN);
    let error = PublishedConfig::builder("c").module_config(ModuleKind::Atlas, &module).build();
    assert!(matches!(error, Err(PublishedError::TooMany { unit: "bytes", .. })));

    for name in ["", "a\nb", &"x".repeat(256)] {
        let error = PublishedConfig::builder(name).build().unwrap_err();
        assert!(matches!(error, PublishedError::Name { .. }), "{error}");
        assert!(!error.to_string().contains('\n'));
    }
    let other_rules = CoalitionConfig { coalition_seed: id(1), ..CoalitionConfig::empty("c") };
    let error = PublishedConfigBuilder::from_config(&other_rules).unwrap_err();
    assert!(matches!(error, PublishedError::Seed { .. }));
}

#[test]
fn another_fingerprint_names_both() {
    let config = dev_config();
    assert_eq!(config.expect_fingerprint(config.fingerprint()), Ok(()));
    let message = config.expect_fingerprint(id(1)).unwrap_err().to_string();
    assert!(message.contains(&id(1).to_string()), "{message}");
    assert!(message.contains(&config.fingerprint().to_string()), "{message}");
}

#[test]
fn derived_ids_list_everything_once_with_a_label() {
    let config = dev_config();
    let ids = derived_ids(&config);
    let labels: Vec<_> = ids.iter().map(|id| id.label.as_str()).collect();
    assert_eq!(
        labels,
        [
            "coalition",
            "root",
            "tickets root",
            "lattice 0",
            "module almanac",
            "module almanac / content",
            "module almanac / committee",
            "module almanac / roster",
            "module compute",
            "module compute / content",
            "module compute / committee",
            "module compute / roster",
            "organism unseal",
            "organism unseal / content",
            "organism unseal / committee",
            "organism unseal / roster",
            "organism oracle",
        ]
    );
    let get = |label: &str| ids.iter().find(|id| id.label == label).unwrap();
    assert_eq!(get("coalition").id, config.fingerprint());
    assert_eq!(get("root").id, config.root());
    let compute = config.module(ModuleKind::Compute).unwrap();
    assert_eq!(get("module compute").id, compute.id);
    assert_eq!(get("module compute / committee").id, compute.committee_id());
    let short = get("organism oracle").member.unwrap();
    assert!(id(0x22).to_string().starts_with(&short.to_string()));
}
