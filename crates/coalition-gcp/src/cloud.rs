//! Compute Engine in the words of [`coalition_cloud`].

use std::time::Duration;

use async_trait::async_trait;
use coalition_cloud::{
    Cloud, CloudError, ErrorKind, Host, HostState, Image, Leftover, Moment, NewHost, Owner, Quota, SizeInfo, Telemetry,
    Window, one_line,
};

use crate::action::Action;
use crate::catalogue::{architecture, feature, has_feature, read_image, read_quota, read_size, word};
use crate::engine::ComputeEngine;
use crate::error::GcpError;
use crate::names::is_resource_name;

/// How long an end may take until Compute Engine says that it is over: hosts are given 90 s to shut down.
const END_PATIENCE: Duration = Duration::from_secs(300);

fn garbled(action: Action) -> impl Fn(String) -> CloudError {
    move |problem| GcpError::Garbled { action, problem }.into()
}

#[async_trait]
impl Cloud for ComputeEngine {
    fn name(&self) -> &'static str {
        "Compute Engine"
    }

    fn region(&self) -> &str {
        &self.setup.region
    }

    fn places(&self) -> &[String] {
        &self.setup.zones
    }

    fn settle(&self) -> Duration {
        self.setup.settle
    }

    fn end_patience(&self) -> Duration {
        END_PATIENCE
    }

    async fn identity(&self) -> Result<String, CloudError> {
        let email = self.email().await?;
        self.region_facts().await?;
        Ok(format!("project {}, {email}", self.setup.project))
    }

    async fn image(&self) -> Result<Image, CloudError> {
        let image = self.image_facts().await?;
        read_image(&self.setup.image, &image).map_err(garbled(Action::GetImage))
    }

    async fn quota(&self) -> Quota {
        match self.region_facts().await {
            Ok(region) => read_quota(&self.setup.quota_metrics, &region),
            Err(error) => Quota { vcpus: None, text: format!("the region's quota is unknown ({error})") },
        }
    }

    async fn sizes(&self, names: &[&str]) -> Result<Vec<SizeInfo>, CloudError> {
        let mut sizes = Vec::new();
        for name in names.iter().filter(|name| is_resource_name(name)) {
            for zone in &self.setup.zones {
                if let Some(machine) = self.machine_type(zone, name).await? {
                    sizes.push(read_size(name, &machine).map_err(garbled(Action::GetMachineType))?);
                    break;
                }
            }
        }
        Ok(sizes)
    }

    fn fixed_end(&self) -> Option<&'static str> {
        Some(
            "Compute Engine deletes it when its maximum run duration is over, which only a stopped machine can have changed",
        )
    }

    async fn create(&self, new: &NewHost<'_>) -> Result<Host, CloudError> {
        Ok(self.make(new).await?)
    }

    async fn may_create(&self, new: &NewHost<'_>) -> Result<String, CloudError> {
        let fatal = |problem: String| CloudError::new(ErrorKind::Fatal, problem);
        let (zone, size) = (new.place, new.size);
        if !self.setup.zones.iter().any(|known| known == zone) || !is_resource_name(size) {
            let (zone, size) = (one_line(zone, 80), one_line(size, 80));
            return Err(fatal(format!("{size:?} in {zone:?} cannot be asked for")));
        }
        let Some(machine) = self.machine_type(zone, size).await? else {
            return Err(CloudError::new(ErrorKind::NotFound, format!("{zone} has no machine type {size}")));
        };
        let known = read_size(size, &machine).map_err(garbled(Action::GetMachineType))?;
        let image = self.image_facts().await?;
        let read = read_image(&self.setup.image, &image).map_err(garbled(Action::GetImage))?;
        if let Some(state) = read.unusable {
            return Err(fatal(format!("the image {} is {state}", read.id)));
        }
        let theirs = architecture(machine.architecture.as_ref().and_then(|known| known.name()));
        if theirs != read.architecture {
            return Err(fatal(format!("{size} is {theirs}, the image {} is for {}", read.id, read.architecture)));
        }
        if let Some(kind) = new.confidential {
            if !known.confidential.contains(&kind) {
                return Err(fatal(format!("{size} does not run under {}", word(kind))));
            }
            if !has_feature(&image, feature(kind)) {
                return Err(fatal(format!("the image {} is not declared {}", read.id, feature(kind))));
            }
        }
        Ok("size and image looked up; Compute Engine has no dry run, so whether it may be made shows when it is".into())
    }

    async fn hosts(&self, owner: Owner<'_>, instance: Option<&str>) -> Result<Vec<Host>, CloudError> {
        Ok(self.list(owner, instance).await?)
    }

    async fn end(&self, id: &str) -> Result<HostState, CloudError> {
        let is_over = self.end_one(id).await?;
        Ok(if is_over { HostState::Over } else { HostState::Stopping })
    }

    async fn leftovers(&self, owner: Owner<'_>, instance: Option<&str>) -> Result<Vec<Leftover>, CloudError> {
        Ok(self.detached(owner, instance).await?)
    }

    async fn remove(&self, leftover: &Leftover) -> Result<(), CloudError> {
        Ok(self.delete_disk(&leftover.id).await?)
    }

    async fn console(&self, id: &str) -> Result<String, CloudError> {
        Ok(self.serial(id).await?)
    }

    fn telemetry_moment(&self) -> Moment {
        // Cloud Monitoring goes by the host's name, and the operations know when it was made and deleted.
        Moment::AfterEnd
    }

    async fn telemetry(&self, _owner: Owner<'_>, instance: &str, window: Window) -> Result<Telemetry, CloudError> {
        Ok(self.counted(instance, window).await?)
    }

    async fn may_read_telemetry(&self, window: Window) -> Result<String, CloudError> {
        self.try_counted(window).await?;
        Ok("monitoring.timeSeries.list and compute.zoneOperations.list are permitted; counted every minute".into())
    }
}
