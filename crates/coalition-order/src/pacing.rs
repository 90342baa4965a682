//! When a proposer ends its turn. Pure.

/// How long a proposer waits for new commands while the last ones are not final yet: their finality may have got
/// lost with a message, and then rides on the next batch.
const SETTLE_MS: u64 = 200;
/// How long waiting commands gather more while the last ones are not final yet. Under load this lets a batch carry what
/// arrived during the one before, instead of half of it twice as often; a batch costs much more than a command.
const GATHER_MS: u64 = 25;

/// What a proposer that holds its turn sees.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    /// Its clock, in milliseconds since the Unix epoch.
    pub(crate) now_ms: u64,
    /// When its turn began, by the same clock.
    pub(crate) began_ms: u64,
    /// Time of the batch it builds on.
    pub(crate) parent_ms: u64,
    /// Longest it may hold its turn.
    pub(crate) heartbeat_ms: u64,
    /// What waits to be ordered.
    pub(crate) waiting: Waiting,
    /// Whether an ancestor with commands is not final yet.
    pub(crate) unsettled: bool,
    /// Time for which the consumer wants a batch.
    pub(crate) wake_at_ms: Option<u64>,
}

/// The commands that a proposer could propose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// None.
    Nothing,
    /// Some.
    Commands,
    /// As many as a batch takes.
    FullBatch,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Propose now.
    Propose,
    /// Wait for this time or for something to change.
    WaitUntil(u64),
}

/// Decides. A wake-up counts only until a batch with that time or a later one exists.
pub(crate) fn pace(turn: &Turn) -> Pace {
    let hold = match (turn.waiting, turn.unsettled) {
        (Waiting::FullBatch, _) | (Waiting::Commands, false) => return Pace::Propose,
        (Waiting::Commands, true) => turn.heartbeat_ms.min(GATHER_MS),
        (Waiting::Nothing, true) => turn.heartbeat_ms.min(SETTLE_MS),
        (Waiting::Nothing, false) => turn.heartbeat_ms,
    };
    let mut until = turn.began_ms.saturating_add(hold);
    if let Some(wake) = turn.wake_at_ms.filter(|wake| *wake > turn.parent_ms) {
        until = until.min(wake);
    }
    // A clock that was set back must not make the turn last for ever.
    if turn.now_ms >= until || turn.now_ms < turn.began_ms { Pace::Propose } else { Pace::WaitUntil(until) }
}

/// The time of a batch: the proposer's clock, but always after its parent.
pub(crate) fn batch_time(now_ms: u64, parent_ms: u64) -> u64 {
    now_ms.max(parent_ms.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Turn = Turn {
        now_ms: 10_000,
        began_ms: 10_000,
        parent_ms: 9_000,
        heartbeat_ms: 1_000,
        waiting: Waiting::Nothing,
        unsettled: false,
        wake_at_ms: None,
    };

    #[test]
    fn idle_waits_for_the_heartbeat() {
        assert_eq!(pace(&IDLE), Pace::WaitUntil(11_000));
        assert_eq!(pace(&Turn { now_ms: 10_999, ..IDLE }), Pace::WaitUntil(11_000));
        assert_eq!(pace(&Turn { now_ms: 11_000, ..IDLE }), Pace::Propose);
    }

    #[test]
    fn commands_end_the_turn_at_once() {
        assert_eq!(pace(&Turn { waiting: Waiting::Commands, ..IDLE }), Pace::Propose);
    }

    #[test]
    fn commands_gather_until_the_last_ones_are_final() {
        let gathering = Turn { waiting: Waiting::Commands, unsettled: true, ..IDLE };
        assert_eq!(pace(&gathering), Pace::WaitUntil(10_025));
        assert_eq!(pace(&Turn { now_ms: 10_025, ..gathering }), Pace::Propose);
        assert_eq!(pace(&Turn { unsettled: false, ..gathering }), Pace::Propose);
        assert_eq!(pace(&Turn { waiting: Waiting::FullBatch, ..gathering }), Pace::Propose);
        assert_eq!(pace(&Turn { heartbeat_ms: 10, ..gathering }), Pace::WaitUntil(10_010));
    }

    #[test]
    fn unsettled_commands_shorten_the_wait() {
        assert_eq!(pace(&Turn { unsettled: true, ..IDLE }), Pace::WaitUntil(10_200));
        assert_eq!(pace(&Turn { unsettled: true, heartbeat_ms: 50, ..IDLE }), Pace::WaitUntil(10_050));
    }

    #[test]
    fn wake_up_is_honoured_once() {
        assert_eq!(pace(&Turn { wake_at_ms: Some(10_300), ..IDLE }), Pace::WaitUntil(10_300));
        assert_eq!(pace(&Turn { wake_at_ms: Some(9_500), ..IDLE }), Pace::Propose, "overdue");
        let served = Turn { wake_at_ms: Some(9_500), parent_ms: 9_500, ..IDLE };
        assert_eq!(pace(&served), Pace::WaitUntil(11_000), "a batch of that time exists");
        assert_eq!(pace(&Turn { wake_at_ms: Some(99_000), ..IDLE }), Pace::WaitUntil(11_000), "heartbeat is sooner");
    }

    #[test]
    fn a_clock_set_back_does_not_hold_the_turn() {
        assert_eq!(pace(&Turn { now_ms: 5_000, ..IDLE }), Pace::Propose);
    }

    #[test]
    fn time_is_strictly_monotonic() {
        assert_eq!(batch_time(10, 5), 10);
        assert_eq!(batch_time(10, 10), 11);
        assert_eq!(batch_time(3, 10), 11);
    }
}
