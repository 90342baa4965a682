//! Azure as one of the clouds.

use std::time::Duration;

use async_trait::async_trait;
use coalition_cloud::{
    Cloud, CloudError, ErrorKind, Host, HostState, Image, Leftover, Moment, NewHost, Owner, Quota, SizeInfo, Telemetry,
    Window,
};

use crate::client::Azure;

/// How long Azure may not show what it has just made, when the setup does not say.
const SETTLE: Duration = Duration::from_secs(60);
/// How long an ending may take: a minute or two as a rule, with everything that is deleted along.
const END: Duration = Duration::from_secs(600);

#[async_trait]
impl Cloud for Azure {
    fn name(&self) -> &'static str {
        "Azure"
    }

    fn region(&self) -> &str {
        &self.setup().region
    }

    fn places(&self) -> &[String] {
        &self.setup().places
    }

    fn settle(&self) -> Duration {
        self.setup().settle.unwrap_or(SETTLE)
    }

    fn end_patience(&self) -> Duration {
        END
    }

    async fn identity(&self) -> Result<String, CloudError> {
        Ok(self.look_at_account().await?)
    }

    async fn image(&self) -> Result<Image, CloudError> {
        let (region, name) = (&self.setup().region, self.image_name());
        let missing = || CloudError::new(ErrorKind::NotFound, format!("{region} has no image {name}"));
        self.look_at_image().await?.ok_or_else(missing)
    }

    async fn quota(&self) -> Quota {
        let unknown = |error| Quota { vcpus: None, text: format!("the subscription's quota is unknown ({error})") };
        self.look_at_quota().await.unwrap_or_else(unknown)
    }

    async fn sizes(&self, names: &[&str]) -> Result<Vec<SizeInfo>, CloudError> {
        Ok(self.look_at_sizes(names).await?)
    }

    async fn create(&self, new: &NewHost<'_>) -> Result<Host, CloudError> {
        Ok(self.make(new).await?)
    }

    async fn may_create(&self, new: &NewHost<'_>) -> Result<String, CloudError> {
        Ok(self.judge(new).await?)
    }

    async fn hosts(&self, owner: Owner<'_>, instance: Option<&str>) -> Result<Vec<Host>, CloudError> {
        match instance {
            Some(instance) => Ok(self.host_of(owner, instance).await?.into_iter().collect()),
            None => Ok(self.hosts_of(owner).await?),
        }
    }

    async fn end(&self, id: &str) -> Result<HostState, CloudError> {
        Ok(self.finish(id).await?)
    }

    async fn leftovers(&self, owner: Owner<'_>, instance: Option<&str>) -> Result<Vec<Leftover>, CloudError> {
        Ok(self.left_behind(owner, instance).await?)
    }

    async fn remove(&self, leftover: &Leftover) -> Result<(), CloudError> {
        Ok(self.delete(leftover).await?)
    }

    async fn console(&self, id: &str) -> Result<String, CloudError> {
        Ok(self.console_of(id).await?)
    }

    fn telemetry_moment(&self) -> Moment {
        // With the machine goes all that was counted of it.
        Moment::BeforeEnd
    }

    async fn telemetry(&self, _owner: Owner<'_>, instance: &str, window: Window) -> Result<Telemetry, CloudError> {
        Ok(self.counted(instance, window).await?)
    }

    async fn may_read_telemetry(&self, window: Window) -> Result<String, CloudError> {
        match self.metrics("c-nobody", window).await {
            // Whoever may not ask is not told that there is no such machine.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            asked => drop(asked?),
        }
        Ok("Microsoft.Insights/metrics/read is permitted; counted every minute".into())
    }
}
