//! The steps of a member's batch loop, for one organism.

/// Between any two of them a crash fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Execute,
    Write,
    Sync,
    Answer,
    Guard,
    GuardSync,
    Sign,
    Send,
    Own,
    Reached,
    State,
    StateSync,
}

impl Stage {
    pub(super) const fn crash(self) -> &'static str {
        match self {
            Self::Execute => "crash: before executing",
            Self::Write => "crash: executed, not written",
            Self::Sync => "crash: written, not synced",
            Self::Answer => "crash: synced, not answered",
            Self::Guard => "crash: answered, guard not written",
            Self::GuardSync => "crash: guard written, not synced",
            Self::Sign => "crash: guard synced, not signed",
            Self::Send => "crash: signed, not sent",
            Self::Own => "crash: sent, not counted",
            Self::Reached => "crash: counted, not published",
            Self::State => "crash: certified, state not written",
            Self::StateSync => "crash: state written, not synced",
        }
    }

    /// Whether the batch loop holds the store.
    pub(super) const fn is_locked(self) -> bool {
        matches!(self, Self::Sync | Self::GuardSync | Self::Sign | Self::StateSync)
    }
}
