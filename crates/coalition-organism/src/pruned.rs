//! How a member says that it no longer has an entry: below which index, since when, and who dropped them.

use coalition_universe::Fault;

const CODE: &str = "pruned";

/// Whether a refusal says that what was asked for is dropped.
pub(crate) fn is_pruned(fault: &Fault) -> bool {
    fault.code == CODE
}

/// Entries a member dropped. One member's word; another may have them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("entries below {below} were pruned by {by} at {at_ms} ms since the Unix epoch")]
pub struct Pruned {
    /// First index it still has.
    pub below: u64,
    /// When it dropped the last of them, Unix milliseconds by its own clock.
    pub at_ms: u64,
    /// Its name in the roster.
    pub by: String,
}

impl Pruned {
    /// The refusal that says so.
    pub(crate) fn to_fault(&self) -> Fault {
        Fault::new(CODE, self.to_string())
    }

    /// What a refusal of this member says, if it says this, of itself, and nothing else.
    pub(crate) fn from_fault(fault: &Fault, member: &str) -> Option<Self> {
        let text = fault.message.strip_prefix("entries below ")?.strip_suffix(" ms since the Unix epoch")?;
        let (below, text) = text.split_once(" were pruned by ")?;
        let (by, at_ms) = text.rsplit_once(" at ")?;
        let pruned = Self { below: below.parse().ok()?, at_ms: at_ms.parse().ok()?, by: by.to_owned() };
        (fault.code == CODE && pruned.by == member && pruned.to_fault() == *fault).then_some(pruned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_is_pinned_and_read_back() {
        let pruned = Pruned { below: 4_096, at_ms: 1_700_000_000_000, by: "m1 at home".into() };
        let text = "entries below 4096 were pruned by m1 at home at 1700000000000 ms since the Unix epoch";
        assert_eq!(pruned.to_fault(), Fault::new("pruned", text));
        assert_eq!(Pruned::from_fault(&pruned.to_fault(), "m2"), None, "of another member");
        assert_eq!(Pruned::from_fault(&pruned.to_fault(), "m1 at home"), Some(pruned));
        for (code, text) in [("behind", text), ("pruned", ""), ("pruned", &text.replace("4096", "04096"))] {
            assert_eq!(Pruned::from_fault(&Fault::new(code, text), "m1 at home"), None, "{code}: {text}");
        }
    }
}
