//! How an organism's log begins when its config names a predecessor. Pure; a fold of the log like everything else.

use coalition::UniqueId;
use coalition_log::{
    Draft, Entry, Refusal,
    predecessor::{Predecessor, PredecessorError, SUCCEEDS_KIND},
};

use crate::error::describe;

/// Code of every refusal of a log that has not begun.
pub(crate) const NOT_BEGUN_CODE: &str = "not_begun";

/// Whether a log may be written to yet. One without a predecessor always may.
#[derive(Clone, Debug, Default)]
pub(crate) struct Beginning {
    predecessor: Option<UniqueId>,
    has_begun: bool,
}

impl Beginning {
    /// Of a log whose config names `predecessor`.
    pub(crate) const fn after(predecessor: Option<UniqueId>) -> Self {
        Self { predecessor, has_begun: false }
    }

    /// Takes one of the host's own entries.
    pub(crate) fn fold(&mut self, entry: &Entry) {
        self.has_begun |= entry.kind == SUCCEEDS_KIND;
    }

    /// Whether the predecessor's head has yet to come; nothing but that and handovers of the roster is written until then.
    pub(crate) const fn is_awaited(&self) -> bool {
        self.predecessor.is_some() && !self.has_begun
    }

    /// What a command gets before the log has begun.
    pub(crate) fn refusal(&self) -> Refusal {
        let predecessor = self.predecessor.map(|id| id.to_string()).unwrap_or_default();
        let message =
            format!("this log begins with a head of its predecessor {predecessor}, which nobody has committed yet");
        Refusal::new(NOT_BEGUN_CODE, message)
    }

    /// What the command "succeed" writes.
    pub(crate) fn succeed(&self, command: &[u8]) -> Result<Vec<Draft>, Refusal> {
        let Some(expected) = self.predecessor else {
            return Err(Refusal::new("no_predecessor", "this organism's config names no predecessor"));
        };
        if self.has_begun {
            return Err(Refusal::new("already_begun", "this log has begun with its predecessor's head already"));
        }
        let predecessor = Predecessor::from_bytes(command);
        let predecessor = predecessor.map_err(|error| Refusal::new("malformed", describe(&error)))?;
        predecessor.verify(expected).map_err(|error| refused(&error))?;
        Ok(vec![Draft::new(SUCCEEDS_KIND, predecessor.to_bytes())])
    }
}

fn refused(error: &PredecessorError) -> Refusal {
    let code = match error {
        PredecessorError::OtherOrganism { .. } | PredecessorError::OtherLog { .. } => "other_predecessor",
        PredecessorError::NotCertified(_) => "not_certified",
        _ => "bad_predecessor",
    };
    Refusal::new(code, describe(error))
}
