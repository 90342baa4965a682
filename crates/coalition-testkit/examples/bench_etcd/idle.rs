//! What a system costs that nobody writes to, and how fast the first write after that is.

use std::time::Duration;

use crate::load::{self, System};

/// Pause before each of the writes that come after nothing.
const PAUSE: Duration = Duration::from_secs(3);
const WRITES: usize = 10;

/// What a system does in a second of which nobody asks for anything.
#[derive(Clone, Copy)]
pub struct Idle {
    /// Percent of a core, for each member.
    pub cpu: f64,
    /// Sent over loopback by everybody, for each member, in KB.
    pub sent: f64,
    /// Writes after a pause: the median and the slowest, in milliseconds.
    pub first: (f64, f64),
}

/// Leaves a system alone for so long. `beside` is what others that are idle, too, send in a second meanwhile, in KB.
pub async fn measure(system: &System, length: Duration, beside: f64) -> Result<Idle, String> {
    // Everybody is connected to everybody, and what that took is over.
    load::run(system, 1, Duration::from_secs(60), 20).await?;
    tokio::time::sleep(PAUSE).await;
    let before = load::spent(system);
    tokio::time::sleep(length).await;
    let spent = load::spent(system) - before;
    let (seconds, members) = (length.as_secs_f64(), system.members() as f64);
    let mut took = Vec::new();
    for _ in 0..WRITES {
        tokio::time::sleep(PAUSE).await;
        took.push(load::run(system, 1, Duration::from_secs(60), 1).await?.percentile(50));
    }
    took.sort_unstable_by(f64::total_cmp);
    Ok(Idle {
        cpu: spent.cpu_us as f64 / 1e4 / seconds / members,
        sent: (spent.sent as f64 / 1e3 / seconds - beside) / members,
        first: (took[WRITES / 2], took[WRITES - 1]),
    })
}
