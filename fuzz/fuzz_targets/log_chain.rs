#![no_main]
//! What a log says of the config after it and of the one before it: one form each, and nothing that no quorum signed. The first
//! byte says which is read; odd ones damage one that holds.

use std::sync::LazyLock;

use coalition::{CommitteeContent, OrganismRef, PublishedConfig, RetirementInstant, RetirementMarker, UniqueId};
use coalition_fuzz::{damaged, key, roster};
use coalition_log::{
    checkpoint::{Checkpoint, Cosigner, RosterVerifier},
    predecessor::Predecessor,
    retirement::ApprovedRetirement,
    successor::{Place, Successor},
    tree::Hash,
};
use libfuzzer_sys::fuzz_target;

fn config(name: &str, predecessor: Option<UniqueId>) -> PublishedConfig {
    let content = CommitteeContent { service: "fuzz.v1".into(), roster: roster(), params: vec![], predecessor };
    PublishedConfig::builder(name).organism("fuzz", "fuzz", &content).build().expect("a small config")
}

fn id(config: &PublishedConfig) -> UniqueId {
    config.organism("fuzz").expect("it is published").id
}

static OLD: LazyLock<PublishedConfig> = LazyLock::new(|| config("old", None));
static NEW: LazyLock<PublishedConfig> = LazyLock::new(|| config("new", Some(id(&OLD))));
static VERIFIER: LazyLock<RosterVerifier> =
    LazyLock::new(|| RosterVerifier::new(id(&OLD), &roster()).expect("a roster"));

static ANNOUNCED: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let place = Place { member: 1, at: "127.0.0.1:1".into() };
    let next = Successor::new(NEW.clone(), vec![place]).expect("it is small");
    let to = OrganismRef::by_stable_id("fuzz", id(&NEW));
    let marker = RetirementMarker::rotation(RetirementInstant::AtSequence(1), to);
    let approve = |i: u8| ApprovedRetirement::approve_with(&key(i), i, id(&OLD), &marker, Some(&next));
    let approved = ApprovedRetirement::new(&marker, (0..3).map(approve).collect());
    approved.with_successor(Some(next.clone())).to_bytes()
});

static SUCCEEDED: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let checkpoint = Checkpoint { organism: id(&OLD), size: 9, root: Hash([3; 32]) };
    let mut assembly = VERIFIER.assemble(checkpoint).expect("same organism");
    for i in 0..3 {
        let line = Cosigner::new(id(&OLD), &format!("m{i}"), key(i)).sign(&checkpoint, 1).expect("same organism");
        assembly.add(line).expect("a member's");
    }
    let head = assembly.certificate().expect("a quorum");
    Predecessor::new(OLD.clone(), vec![], &head).expect("it is small").to_bytes()
});

fuzz_target!(|data: &[u8]| {
    let Some((&which, rest)) = data.split_first() else { return };
    let announced = if which % 4 == 1 { damaged(&ANNOUNCED, rest) } else { rest.to_vec() };
    if let Ok(approved) = ApprovedRetirement::from_bytes(&announced) {
        assert_eq!(approved.to_bytes(), announced);
        assert!(approved.verify(&VERIFIER).is_err() || announced == *ANNOUNCED, "nobody approved that");
    }
    let succeeded = if which % 4 == 3 { damaged(&SUCCEEDED, rest) } else { rest.to_vec() };
    if let Ok(predecessor) = Predecessor::from_bytes(&succeeded) {
        assert_eq!(predecessor.to_bytes(), succeeded);
        assert!(predecessor.verify(id(&OLD)).is_err() || succeeded == *SUCCEEDED, "nobody certified that");
    }
    if let Ok(successor) = Successor::from_bytes(rest) {
        assert_eq!(successor.to_bytes(), rest);
    }
});
