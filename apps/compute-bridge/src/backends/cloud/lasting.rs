//! Moving the end of a host: its own dead-man's timer first, then the end of what runs on it.

use crate::backend::{Backend, FailureKind, InstanceName, MoveError};
use crate::backends::cloud_init::{NO_TIMER_TO_MOVE, moved_timer};

use super::CloudBackend;

impl CloudBackend {
    pub(super) async fn move_everything(&self, name: &InstanceName, valid_to_ms: u64) -> Result<(), MoveError> {
        let fixed = |why: String| MoveError::Fixed { backend: self.offer().clone(), why };
        if let Some(why) = self.setup.cloud.fixed_end() {
            return Err(fixed(why.to_owned()));
        }
        let machine = self.machine(name).await?.ok_or_else(|| {
            self.error(FailureKind::NotFound, format!("{} has no host of {name}", self.setup.cloud.name()))
        })?;
        let spare_s = self.setup.poweroff_after.as_secs();
        let at_s = (valid_to_ms / 1_000).saturating_add(spare_s);
        let left_s = valid_to_ms.saturating_sub(crate::now_ms()) / 1_000;
        let script = moved_timer(at_s, left_s.saturating_add(spare_s).max(1));
        match machine.on_host("moving the host's own end", &script).await? {
            (Some(0), _) => machine.move_end(name, valid_to_ms).await,
            (Some(NO_TIMER_TO_MOVE), _) => Err(fixed("no timer of the host is armed by systemd".into())),
            (status, said) => {
                let problem = format!("the host's timer was not moved (exit status {status:?}): {said}");
                Err(self.error(FailureKind::Transient, problem).into())
            }
        }
    }
}
