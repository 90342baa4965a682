//! How much one member keeps, and for how long.

use thiserror::Error;

/// Limits of one member. Whatever is sent to it, it holds no more than these allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberLimits {
    /// Request cells held at once, 4 KiB each.
    pub max_cells: usize,
    /// Request cells held at once from one peer.
    pub max_cells_per_peer: usize,
    /// How long a request cell waits for its grant, in milliseconds.
    pub cell_ttl_ms: u64,
    /// Replies held at once, 4 KiB each; fetched ones are remembered by name until they expire, and count.
    pub max_replies: usize,
    /// Replies one provider may post under one grant.
    pub max_replies_per_grant: usize,
    /// How long a reply waits to be fetched, in milliseconds; never beyond its grant.
    pub reply_ttl_ms: u64,
    /// Longest time anything is held on the word of a grant, in milliseconds.
    pub max_hold_ms: u64,
    /// Length of the window in which submissions are counted, in milliseconds.
    pub window_ms: u64,
    /// Submissions of one peer in one window.
    pub max_submissions_per_window: u32,
    /// Peers that may submit in one window.
    pub max_peers_per_window: usize,
}

impl Default for MemberLimits {
    /// At most about 64 MiB of cells and replies; ten minutes for a grant to be made, one hour to fetch its receipt.
    fn default() -> Self {
        Self {
            max_cells: 8_192,
            max_cells_per_peer: 4,
            cell_ttl_ms: 600_000,
            max_replies: 8_192,
            max_replies_per_grant: 2,
            reply_ttl_ms: 3_600_000,
            max_hold_ms: 7 * 24 * 3_600_000,
            window_ms: 10_000,
            max_submissions_per_window: 16,
            max_peers_per_window: 8_192,
        }
    }
}

/// A limit that would make the member useless.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the member's limit {0} is 0; nothing could ever be accepted")]
pub struct ZeroLimit(pub &'static str);

impl MemberLimits {
    /// Refuses limits of 0.
    ///
    /// # Errors
    /// [`ZeroLimit`] naming the first.
    pub fn check(&self) -> Result<(), ZeroLimit> {
        let as_u64 = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let all = [
            ("max_cells", as_u64(self.max_cells)),
            ("max_cells_per_peer", as_u64(self.max_cells_per_peer)),
            ("cell_ttl_ms", self.cell_ttl_ms),
            ("max_replies", as_u64(self.max_replies)),
            ("max_replies_per_grant", as_u64(self.max_replies_per_grant)),
            ("reply_ttl_ms", self.reply_ttl_ms),
            ("max_hold_ms", self.max_hold_ms),
            ("window_ms", self.window_ms),
            ("max_submissions_per_window", self.max_submissions_per_window.into()),
            ("max_peers_per_window", as_u64(self.max_peers_per_window)),
        ];
        all.iter().find(|(_, value)| *value == 0).map_or(Ok(()), |(name, _)| Err(ZeroLimit(name)))
    }
}
