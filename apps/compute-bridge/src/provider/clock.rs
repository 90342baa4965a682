//! This machine's clock against the committee's: with the wrong time grants would end too early or too late.
//!
//! The market's last entry may be old in a market where nothing happens, so its age proves nothing. A card just posted
//! does: its entry was made between the moment it was sent and now.

use std::time::Instant;

use super::{Context, WRITE};

/// Largest difference that is sold with, in milliseconds.
const MAX_SKEW_MS: u64 = 60_000;

/// What is wrong when the committee's clock said `committee_ms` at a moment between `from_ms` and `to_ms` of ours.
pub(crate) fn problem(from_ms: u64, to_ms: u64, committee_ms: u64) -> Option<String> {
    let skew_ms = if committee_ms > to_ms { committee_ms - to_ms } else { from_ms.saturating_sub(committee_ms) };
    (skew_ms > MAX_SKEW_MS).then(|| {
        let (ours, theirs) = (utc(to_ms), utc(committee_ms));
        format!(
            "this machine's clock says {ours}, the committee's {theirs}: {} s apart; nothing is sold, because grants would \
             end at the wrong time (set the clock: `timedatectl set-ntp true`)",
            skew_ms / 1_000
        )
    })
}

/// What the clocks look like before anything was posted: an entry of the future shows that ours is slow, an old one that
/// nothing has happened.
pub(super) fn suspicion(context: &Context) -> Option<String> {
    problem(0, crate::now_ms(), context.parts.market.at().time_ms)
}

/// Compares the clocks by a card that was sent at `sent_ms` and has been certified. Nothing when the market as it is seen
/// here does not have it in time.
pub(super) async fn compare(context: &Context, sent_ms: u64, sequence: u64) -> Option<Option<String>> {
    let (market, began, mut seen) = (&context.parts.market, Instant::now(), 0);
    while market.card_sequence(context.id) < sequence {
        let left = WRITE.checked_sub(began.elapsed())?;
        seen = market.changed(seen, left).await;
    }
    Some(problem(sent_ms, crate::now_ms(), market.at().time_ms))
}

/// `YYYY-MM-DD HH:MM:SS UTC`.
fn utc(unix_ms: u64) -> String {
    let (seconds, of_day) = (unix_ms / 1_000, unix_ms / 1_000 % 86_400);
    let (year, month, day) = date(seconds / 86_400);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", of_day / 3_600, of_day / 60 % 60, of_day % 60)
}

/// Date of a day counted from 1970-01-01 (H. Hinnant, "chrono-compatible low-level date algorithms").
const fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let (day, month) = (of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    (year + era * 400 + if month <= 2 { 1 } else { 0 }, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    #[test]
    fn an_hour_is_too_much_and_both_times_are_named() {
        let ahead = problem(NOW, NOW + 5_000, NOW - 3_600_000).unwrap();
        assert!(ahead.contains("2023-11-14 22:13:25 UTC") && ahead.contains("2023-11-14 21:13:20 UTC"), "{ahead}");
        assert!(ahead.contains("3600 s"), "{ahead}");
        let behind = problem(NOW, NOW + 5_000, NOW + 3_605_000).unwrap();
        assert!(behind.contains("2023-11-14 23:13:25 UTC") && behind.contains("3600 s"), "{behind}");
        for committee_ms in [NOW - 60_000, NOW, NOW + 65_000] {
            assert_eq!(problem(NOW, NOW + 5_000, committee_ms), None);
        }
    }

    #[test]
    fn dates_are_right_around_leap_days() {
        let cases = [(0, "1970-01-01"), (951_782_400, "2000-02-29"), (4_107_542_400, "2100-03-01")];
        for (seconds, expected) in cases {
            assert_eq!(utc(seconds * 1_000), format!("{expected} 00:00:00 UTC"));
        }
    }
}
