//! For tests: what the doubles of all clouds share.

mod boot;

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};

pub use boot::{Boot, Sshd};

/// The next address of a machine: 127.77.x.y, where nothing else listens, by the process's number and its count of machines.
#[must_use]
pub fn next_address() -> Ipv4Addr {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let n = MADE.fetch_add(1, Ordering::Relaxed) % 254 + 1;
    let [_, _, _, own] = std::process::id().to_be_bytes();
    Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 77, own, 0)) + n)
}
