//! Which of what is there goes when room is needed. Pure.

/// What may go, in the order in which it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// A copy that was found damaged.
    Damaged,
    /// An upload nobody goes on with.
    Abandoned,
    /// Content nobody holds.
    Unheld,
}

/// One thing that may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item<K> {
    pub(super) key: K,
    pub(super) rank: Rank,
    /// Last use, Unix milliseconds.
    pub(super) used_ms: u64,
    pub(super) bytes: u64,
}

/// What goes so that `needed` more bytes fit beside `total` into `capacity`; nothing goes when that is not enough. The error is how
/// many bytes could be free.
pub(super) fn choose<K: Ord>(mut items: Vec<Item<K>>, total: u64, needed: u64, capacity: u64) -> Result<Vec<K>, u64> {
    items.sort_by(|a, b| (a.rank, a.used_ms, &a.key).cmp(&(b.rank, b.used_ms, &b.key)));
    let mut left = total;
    let mut going = Vec::new();
    for item in items {
        if left.saturating_add(needed) <= capacity {
            break;
        }
        left = left.saturating_sub(item.bytes);
        going.push(item.key);
    }
    if left.saturating_add(needed) <= capacity { Ok(going) } else { Err(capacity.saturating_sub(left)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(key: u8, rank: Rank, used_ms: u64) -> Item<u8> {
        Item { key, rank, used_ms, bytes: 10 }
    }

    #[test]
    fn damaged_goes_first_then_abandoned_then_the_least_recently_used() {
        let items = || {
            vec![
                item(1, Rank::Unheld, 5),
                item(2, Rank::Unheld, 3),
                item(3, Rank::Abandoned, 9),
                item(4, Rank::Damaged, 99),
            ]
        };
        assert_eq!(choose(items(), 40, 10, 100), Ok(vec![]));
        assert_eq!(choose(items(), 40, 10, 40), Ok(vec![4]));
        assert_eq!(choose(items(), 40, 35, 40), Ok(vec![4, 3, 2, 1]));
        assert_eq!(choose(items(), 40, 15, 40), Ok(vec![4, 3]));
        assert_eq!(choose(items(), 60, 21, 40), Err(20), "20 bytes are held, so nothing goes");
        assert_eq!(choose(items(), u64::MAX, 1, 40), Err(0));
    }
}
