//! Signals that ask a command to stop: it cleans up and then ends.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Context, Result};

/// Ctrl-C, `kill`, and a terminal that was closed; all three mean the same. While this lives none of them ends the process
/// by itself.
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl StopSignals {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the runtime cannot install a handler.
    pub fn listen() -> Result<Self> {
        let failed = || "cannot listen for signals".to_owned();
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).or_fault("runtime", failed)?,
            terminate: signal(SignalKind::terminate()).or_fault("runtime", failed)?,
            hangup: signal(SignalKind::hangup()).or_fault("runtime", failed)?,
        })
    }

    /// Resolves when one of them has arrived since [`StopSignals::listen`].
    pub async fn received(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => (),
            _ = self.terminate.recv() => (),
            _ = self.hangup.recv() => (),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::sys::signal::{Signal, raise};

    use super::*;

    #[tokio::test]
    async fn each_of_the_three_is_a_request_to_stop() {
        for which in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            let mut stop = StopSignals::listen().unwrap();
            assert!(tokio::time::timeout(Duration::from_millis(50), stop.received()).await.is_err(), "none was sent");
            raise(which).unwrap();
            tokio::time::timeout(Duration::from_secs(10), stop.received()).await.unwrap();
        }
    }
}
