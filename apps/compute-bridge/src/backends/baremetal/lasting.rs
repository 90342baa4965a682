//! Moving the end of what runs on a machine.

use coalition_host::types::RunnerState;

use super::BareMetalBackend;
use crate::backend::{BackendError, InstanceName, MoveError};
use crate::backends::runner::{RunnerCallError, SMALL, join};

impl BareMetalBackend {
    pub(super) async fn move_deadline(&self, name: &InstanceName, valid_to_ms: u64) -> Result<(), MoveError> {
        match self.tell_end(name, valid_to_ms).await {
            Ok(()) => Ok(()),
            // Nothing to move, or nobody who would.
            Err(RunnerCallError::Refused(failure))
                if ["not_moved", "over", "no_grant"].contains(&failure.code.as_str()) =>
            {
                Err(MoveError::Fixed { backend: self.setup.name.clone(), why: failure.to_string() })
            }
            Err(error) => Err(MoveError::Failed(self.failed(&error, true))),
        }
    }

    /// Has the runner's supervisor end the instance at another time.
    async fn tell_end(&self, name: &InstanceName, valid_to_ms: u64) -> Result<(), RunnerCallError> {
        let paths = self.runner.paths(&self.ssh).await?;
        let dir = join(&paths.grants, name.as_str());
        let until = valid_to_ms.to_string();
        let _: RunnerState =
            self.runner.call(&self.ssh, "extend", &[("--dir", &dir), ("--until", &until)], SMALL, true).await?;
        Ok(())
    }

    /// Runs one line on the machine itself; answers its exit status and the end of what it complained about.
    pub(in crate::backends) async fn on_host(
        &self,
        what: &str,
        line: &str,
    ) -> Result<(Option<u32>, String), BackendError> {
        let output = self.ssh.exec_again(what, line, SMALL).await;
        let output = output.map_err(|error| self.failed(&error.into(), true))?;
        Ok((output.status, output.stderr_tail()))
    }
}
