//! What the simulation found, each as a test of its own.

use coalition_log::{
    checkpoint::{Checkpoint, SignedCheckpoint},
    tree::Hash,
};

use super::committee::Committee;
use crate::certifier::{Certifier, Progress, Stragglers};

fn head(committee: &Committee, root: u8) -> Checkpoint {
    Checkpoint { organism: committee.organisms[0], size: 5, root: Hash([root; 32]) }
}

fn sign(committee: &Committee, member: usize, head: Checkpoint) -> SignedCheckpoint {
    let line = committee.cosigner(member, 0).sign(&head, 1).unwrap();
    SignedCheckpoint { checkpoint: head, signatures: vec![line] }
}

fn take(certifier: &mut Certifier, note: &SignedCheckpoint) -> Vec<Progress> {
    note.signatures.iter().map(|line| certifier.cosigned(note.checkpoint, line.clone()).unwrap()).collect()
}

/// The guilty member's position, if the progress proves one.
fn guilty(committee: &Committee, progress: &[Progress]) -> Vec<usize> {
    let proofs = progress.iter().filter_map(|progress| match progress {
        Progress::Equivocated(proofs) => Some(proofs),
        Progress::Waiting | Progress::Certified(_) => None,
    });
    proofs.flatten().map(|proof| proof.verify(&committee.verifiers[0]).unwrap().position).collect()
}

#[test]
fn a_contradiction_counts_after_the_certificate_too() {
    let committee = Committee::of(4);
    let (truth, lie) = (head(committee, 1), head(committee, 2));
    let mut certifier = Certifier::new(committee.verifiers[0].clone(), None);
    for member in [0, 1, 3] {
        take(&mut certifier, &sign(committee, member, truth));
    }
    assert_eq!(certifier.certified_size(), 5);
    assert_eq!(guilty(committee, &take(&mut certifier, &sign(committee, 3, lie))), [3]);
}

#[test]
fn a_certificate_contradicts_what_its_signers_told_this_member() {
    let committee = Committee::of(4);
    let (truth, lie) = (head(committee, 1), head(committee, 2));
    let signatures = [0, 1, 3].map(|member| sign(committee, member, truth).signatures.remove(0)).to_vec();
    let certificate = SignedCheckpoint { checkpoint: truth, signatures };
    let mut certifier = Certifier::new(committee.verifiers[0].clone(), None);
    take(&mut certifier, &sign(committee, 3, lie));
    assert!(certifier.learned(&certificate).unwrap().is_some());
    assert_eq!(guilty(committee, &take(&mut certifier, &certificate)), [3]);
}

#[test]
fn a_member_that_repeats_itself_lacks_the_certificate() {
    let organism = Committee::of(4).organisms[0];
    let mut stragglers = Stragglers::default();
    assert!(!stragglers.missed(1, organism, 5, None), "there is none to send");
    assert!(stragglers.missed(1, organism, 5, Some(5)), "it repeats itself");
    assert!(!stragglers.missed(2, organism, 5, Some(5)), "its own first line may just be late");
    assert!(stragglers.missed(2, organism, 4, Some(5)), "it is behind");
    assert!(!stragglers.missed(2, organism, 6, Some(5)), "it is ahead");
}
