//! When a wave of roles counts as started: every role is ready, or is done without by its committee.

use std::collections::{BTreeMap, BTreeSet};

use super::{Committee, Role};
use crate::error::CliError;

/// What a role's first start came to: its name, and why it failed if it did. A role that failed may come once more.
pub(super) type FirstStart = (String, Result<(), CliError>);

/// How far a wave is.
pub(super) struct Readiness {
    committees: BTreeMap<String, Option<Committee>>,
    ready: BTreeSet<String>,
    failed: BTreeSet<String>,
}

impl Readiness {
    pub(super) fn new(roles: &[&Role]) -> Self {
        let committees = roles.iter().map(|role| (role.name.clone(), role.committee)).collect();
        Self { committees, ready: BTreeSet::new(), failed: BTreeSet::new() }
    }

    /// Takes a role's first start into account; answers why the wave cannot be reached any more.
    pub(super) fn note(&mut self, (role, came): FirstStart) -> Result<(), CliError> {
        let committee = self.committees.get(&role).copied().flatten();
        let Err(error) = came else {
            self.failed.remove(&role);
            self.ready.insert(role);
            return Ok(());
        };
        self.failed.insert(role);
        match committee {
            Some(committee) if self.size(committee) - self.failed_of(committee).len() >= committee.quorum => Ok(()),
            Some(committee) => Err(self.lost(committee, error)),
            None => Err(error),
        }
    }

    /// Whether every role is ready, or has failed and its committee has a quorum without it.
    pub(super) fn is_reached(&self) -> bool {
        self.ready.len() + self.failed.len() == self.committees.len()
    }

    fn size(&self, committee: Committee) -> usize {
        self.committees.values().filter(|other| **other == Some(committee)).count()
    }

    fn failed_of(&self, committee: Committee) -> Vec<&str> {
        let of_it = |role: &&String| self.committees.get(*role).copied().flatten() == Some(committee);
        self.failed.iter().filter(of_it).map(String::as_str).collect()
    }

    /// Too many members of one committee failed; one that failed alone says it best itself.
    fn lost(&self, committee: Committee, last: CliError) -> CliError {
        let failed = self.failed_of(committee);
        if failed.len() == 1 {
            return last;
        }
        let (name, size, down) = (committee.name, self.size(committee), failed.join(" and "));
        let message = format!(
            "{down} did not start, and the {name} committee needs {} of its {size} members up; the last one says",
            committee.quorum
        );
        CliError::fault("role_failed", message).because(last.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(members: usize) -> Vec<Role> {
        let role =
            |name: String, committee| Role { name, kind: "x", config: "c".into(), log: "l".into(), wave: 0, committee };
        let committee = Some(Committee { name: "market", quorum: 3 });
        let mut roles: Vec<Role> = (1..=members).map(|n| role(format!("member-{n}"), committee)).collect();
        roles.push(role("host".into(), None));
        roles
    }

    fn broken(name: &str) -> FirstStart {
        (name.to_owned(), Err(CliError::fault("role_failed", format!("{name} is broken"))))
    }

    #[test]
    fn a_committee_does_without_as_many_as_its_quorum_allows() {
        let roles = wave(4);
        let mut wave = Readiness::new(&roles.iter().collect::<Vec<_>>());
        wave.note(broken("member-2")).unwrap();
        for name in ["member-1", "member-3", "host"] {
            wave.note((name.into(), Ok(()))).unwrap();
            assert!(!wave.is_reached(), "{name}");
        }
        wave.note(("member-4".into(), Ok(()))).unwrap();
        assert!(wave.is_reached());
        // It is started again all the while, and may come.
        wave.note(("member-2".into(), Ok(()))).unwrap();
        assert!(wave.is_reached());
    }

    #[test]
    fn one_more_and_all_who_failed_are_named() {
        let roles = wave(4);
        let mut wave = Readiness::new(&roles.iter().collect::<Vec<_>>());
        wave.note(broken("member-2")).unwrap();
        let lost = wave.note(broken("member-4")).unwrap_err().to_string();
        for said in ["member-2 and member-4", "market committee needs 3 of its 4", "member-4 is broken"] {
            assert!(lost.contains(said), "{said:?} is not in {lost}");
        }
    }

    #[test]
    fn what_came_back_before_the_next_one_failed_counts() {
        let roles = wave(4);
        let mut wave = Readiness::new(&roles.iter().collect::<Vec<_>>());
        wave.note(broken("member-2")).unwrap();
        wave.note(("member-2".into(), Ok(()))).unwrap();
        wave.note(broken("member-4")).unwrap();
    }

    #[test]
    fn a_role_of_no_committee_is_needed() {
        let roles = wave(4);
        let mut wave = Readiness::new(&roles.iter().collect::<Vec<_>>());
        assert_eq!(wave.note(broken("host")).unwrap_err().to_string(), "host is broken");
        // A committee of the size of its quorum spares nobody.
        let roles = super::tests::wave(3);
        let mut wave = Readiness::new(&roles.iter().collect::<Vec<_>>());
        assert_eq!(wave.note(broken("member-1")).unwrap_err().to_string(), "member-1 is broken");
    }
}
