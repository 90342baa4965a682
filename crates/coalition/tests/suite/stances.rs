//! Political-theory fingerprints fold every field, and the predicates say what the text says.

use coalition::political_theory::{
    CompositionForm, ConsentEvidence, ConsentModel, DecisionRule, Delegation, DelegationScope, FranchiseScope,
    Legitimacy, PoliticalStance, Revocability, SovereigntyClaim,
};
use coalition::{AlmanacTick, EvidencePointer, MemberId, Mrtd, UniqueId};

use crate::model::id;

/// Every value of every field, the rest at its default.
fn stances() -> Vec<PoliticalStance> {
    let base = PoliticalStance::DEFAULT;
    let mut all = Vec::new();
    for consent in [ConsentModel::Voluntary, ConsentModel::Tacit, ConsentModel::Delegated, ConsentModel::Compulsory] {
        all.push(PoliticalStance { consent, ..base });
    }
    for decision_rule in [
        DecisionRule::SingleOperator,
        DecisionRule::Supermajority { threshold_bps: 6_667 },
        DecisionRule::Supermajority { threshold_bps: 6_668 },
        DecisionRule::Unanimity,
        DecisionRule::Sortition { seats: 6_667 },
    ] {
        all.push(PoliticalStance { decision_rule, ..base });
    }
    for bits in (0..32).filter(|bits| *bits != base.legitimacy.bits()) {
        let legitimacy = Legitimacy::composed(bits);
        all.push(PoliticalStance { legitimacy, ..base });
    }
    for franchise in [
        FranchiseScope::Ticketed { issuer: id(1) },
        FranchiseScope::Attested { measurements: Mrtd([1; 48]) },
        FranchiseScope::Reputed { organism: id(1), floor_ppm: 0 },
        FranchiseScope::External { description: id(1) },
    ] {
        all.push(PoliticalStance { franchise, ..base });
    }
    for composition in [CompositionForm::MultiOperator, CompositionForm::Nested] {
        all.push(PoliticalStance { composition, ..base });
    }
    for sovereignty in [SovereigntyClaim::Shared, SovereigntyClaim::Absolute] {
        all.push(PoliticalStance { sovereignty, ..base });
    }
    all
}

fn assert_distinct(ids: &[UniqueId]) {
    let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
    assert_eq!(distinct.len(), ids.len());
}

#[test]
fn stance_fingerprints_fold_every_field() {
    assert_distinct(&stances().iter().map(PoliticalStance::fingerprint).collect::<Vec<_>>());
    assert_eq!(PoliticalStance::default(), PoliticalStance::DEFAULT);
}

#[test]
fn only_compulsion_and_absolute_sovereignty_break_consistency() {
    for stance in stances() {
        let breaks = stance.consent == ConsentModel::Compulsory || stance.sovereignty == SovereigntyClaim::Absolute;
        assert_eq!(stance.is_substrate_consistent(), !breaks, "{stance:?}");
    }
    let default = PoliticalStance::DEFAULT;
    assert!(default.consent.is_substrate_enforced());
    assert!(default.decision_rule.is_substrate_enforced());
    assert!(default.legitimacy.is_substrate_enforced());
    assert!(default.franchise.is_substrate_enforced());
    assert!(default.composition.is_substrate_enforced());
    assert!(default.sovereignty.is_substrate_enforced());
    assert!(!SovereigntyClaim::Shared.is_substrate_enforced());
    assert!(!Revocability::Irrevocable.is_substrate_enforced());
}

#[test]
fn legitimacy_keeps_only_known_grounds() {
    let all = Legitimacy::composed(u8::MAX);
    assert_eq!(all.bits(), 0b1_1111);
    assert!(all.has(Legitimacy::CONSENT_BIT | Legitimacy::PROVENANCE_BIT));
    assert!(!Legitimacy::CONSENT.has(Legitimacy::ATTESTATION_BIT));
    assert!(!Legitimacy::composed(Legitimacy::EXTERNAL_BIT).is_substrate_enforced());
}

#[test]
fn delegations_and_consent_evidence_fold_every_field() {
    let base = Delegation {
        delegator: MemberId::from_stable_id(id(1)),
        delegate: MemberId::from_stable_id(id(2)),
        scope: DelegationScope::Publication,
        revocability: Revocability::AtWill,
    };
    let with = |revocability| Delegation { revocability, ..base };
    let scoped = |scope| Delegation { scope, ..base };
    let delegations = [
        base,
        Delegation { delegator: base.delegate, delegate: base.delegator, ..base },
        scoped(DelegationScope::TicketIssuance),
        scoped(DelegationScope::Compute),
        with(Revocability::AtTick(AlmanacTick(0))),
        with(Revocability::AtTick(AlmanacTick(1))),
        with(Revocability::ByDelegate),
        with(Revocability::Irrevocable),
    ];
    assert_distinct(&delegations.map(|d| d.fingerprint()));
    let commit = |organism, index, digest| ConsentEvidence::Commit(EvidencePointer { organism, index, digest });
    let evidence = [
        ConsentEvidence::SelfQuote(id(1)),
        ConsentEvidence::Ticket(id(1)),
        commit(id(1), 1, id(2)),
        commit(id(2), 1, id(1)),
        commit(id(1), 2, id(2)),
    ];
    assert_distinct(&evidence.map(|e| e.fingerprint()));
    assert!(evidence[2].is_substrate_enforced() && !evidence[0].is_substrate_enforced());
}
