//! The interface.

use std::time::Duration;

use async_trait::async_trait;

use crate::{CloudError, Host, HostState, Image, Leftover, Moment, NewHost, Owner, Quota, SizeInfo, Telemetry, Window};

/// One region of one account.
///
/// Reading calls and endings repeat themselves a few times when the cloud is busy or cannot be reached. [`Cloud::create`]
/// never does: what to do about a host that may or may not have been made is its caller's decision.
#[async_trait]
pub trait Cloud: Send + Sync + 'static {
    /// What operators call it: "EC2", "Compute Engine", "Azure".
    fn name(&self) -> &'static str;

    /// The region as the cloud calls it.
    fn region(&self) -> &str;

    /// Where in the region hosts are made: subnets or zones. At least one, tried in this order when there is no room.
    fn places(&self) -> &[String];

    /// How long something just made may not be listed.
    fn settle(&self) -> Duration;

    /// How long an ending may take until the cloud says that it is over.
    fn end_patience(&self) -> Duration;

    /// Who the credentials belong to, for the operator. Fails when they are refused.
    async fn identity(&self) -> Result<String, CloudError>;

    /// The image hosts are made of. Where the region has none of that name:
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound), and the message names it.
    async fn image(&self) -> Result<Image, CloudError>;

    /// What the account may hold. Never fails: a quota that cannot be read is unknown, and its text says why.
    async fn quota(&self) -> Quota;

    /// What the sizes of these names have; those that the region does not have are left out.
    async fn sizes(&self, names: &[&str]) -> Result<Vec<SizeInfo>, CloudError>;

    /// Makes one host; answers when the cloud has taken the request, or, where the lack of room only shows later, when it is known that
    /// there is room. One attempt: where
    /// [`CloudError::may_have_acted`], the same asked again tells.
    async fn create(&self, new: &NewHost<'_>) -> Result<Host, CloudError>;

    /// Whether the host could be made, as far as the cloud tells without making it; answers how that was found out.
    async fn may_create(&self, new: &NewHost<'_>) -> Result<String, CloudError>;

    /// Why the cloud itself ends a host at the time it was made with, whatever happens; nothing where only the host's own timer does,
    /// which can be moved.
    fn fixed_end(&self) -> Option<&'static str> {
        None
    }

    /// Every host with these marks, or the one of this instance. May list what is over, and what has just been made late.
    async fn hosts(&self, owner: Owner<'_>, instance: Option<&str>) -> Result<Vec<Host>, CloudError>;

    /// Ends one host, with all that is deleted with it; answers what it is now. One that is over already is no failure; one
    /// that the cloud has never heard of is [`ErrorKind::NotFound`](crate::ErrorKind::NotFound).
    async fn end(&self, id: &str) -> Result<HostState, CloudError>;

    /// What hosts with these marks left behind, attached to nothing. Never anything without the marks.
    async fn leftovers(&self, owner: Owner<'_>, instance: Option<&str>) -> Result<Vec<Leftover>, CloudError>;

    /// Deletes what a host left behind; what is gone already is no failure.
    async fn remove(&self, leftover: &Leftover) -> Result<(), CloudError>;

    /// What the host wrote to its console so far; empty when the cloud has none.
    async fn console(&self, id: &str) -> Result<String, CloudError>;

    /// When the cloud has the most to tell of a host that ends.
    fn telemetry_moment(&self) -> Moment;

    /// What the cloud's own API counted of the host of this instance, and says of it. A host that the cloud does not know is
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound); one of which nothing is counted yet has no series.
    async fn telemetry(&self, owner: Owner<'_>, instance: &str, window: Window) -> Result<Telemetry, CloudError>;

    /// Whether these credentials may read telemetry, asked about a host that does not exist; answers what was permitted.
    async fn may_read_telemetry(&self, window: Window) -> Result<String, CloudError>;
}
