//! EC2 as one of the clouds.

use std::time::Duration;

use async_trait::async_trait;
use coalition_cloud::{
    Cloud, CloudError, Confidential, ErrorKind, Host, HostState, Image, Leftover, Marks, Moment, NewHost, Owner, Quota,
    SizeInfo, Telemetry, Window,
};

use crate::catalogue::{ImageInfo, TypeInfo};
use crate::client::{Ec2, EndpointError, Setup};
use crate::error::{AwsError, kind_of};
use crate::ids::{IdError, InstanceId, VolumeId};
use crate::instances::{Instance, InstanceState, NewInstance};
use crate::metrics;

/// Tags on everything that is made.
pub mod tag {
    /// [`Marks::bridge`](coalition_cloud::Marks). Least-privilege policies name it.
    pub const BRIDGE: &str = "coalition:bridge";
    /// The coalition's fingerprint.
    pub const COALITION: &str = "coalition:coalition";
    /// The grant.
    pub const GRANT: &str = "coalition:grant";
    /// The instance's name in the bridge's journal.
    pub const INSTANCE: &str = "coalition:instance";
    /// The offer it was sold as.
    pub const OFFER: &str = "coalition:offer";
    /// When it switches itself off, Unix seconds.
    pub const UNTIL: &str = "coalition:until";
}

/// How long EC2 may not show what it has just made.
const SETTLE: Duration = Duration::from_secs(30);
/// How long EC2 is asked to confirm an end: it does so within the answer.
const END: Duration = Duration::from_secs(30);

/// An instance that does not exist.
const NOBODY: &str = "i-00000000000000000";

/// What hosts in a region are made of.
#[derive(Clone)]
pub struct RegionSetup {
    /// The API and the credentials.
    pub api: Setup,
    /// `ami-…`.
    pub image: String,
    /// Subnets, tried in this order when there is no room.
    pub subnets: Vec<String>,
    /// Security groups of every host.
    pub security_groups: Vec<String>,
    /// Hosts get no address on the internet.
    pub private_addresses: bool,
    /// Which of the account's quotas counts.
    pub quota_code: String,
    /// How long EC2 may not show what it has just made; half a minute when absent.
    pub settle: Option<Duration>,
}

/// One region of an AWS account.
pub struct Ec2Region {
    ec2: Ec2,
    setup: RegionSetup,
    root_device: tokio::sync::OnceCell<String>,
}

impl Ec2Region {
    /// A region; nothing is contacted yet.
    ///
    /// # Errors
    /// [`EndpointError`] when the region or the endpoint cannot be used.
    pub fn new(setup: RegionSetup) -> Result<Self, EndpointError> {
        Ok(Self { ec2: Ec2::new(setup.api.clone())?, setup, root_device: tokio::sync::OnceCell::new() })
    }

    /// The client below, for what only EC2 has.
    #[must_use]
    pub const fn client(&self) -> &Ec2 {
        &self.ec2
    }

    async fn described(&self) -> Result<ImageInfo, CloudError> {
        let (id, region) = (&self.setup.image, self.ec2.region());
        let missing = || format!("{region} has no image {id}; images belong to one region");
        self.ec2.image(id).await?.ok_or_else(|| CloudError::new(ErrorKind::NotFound, missing()))
    }

    /// The image's root device: of an image it never changes.
    async fn root_device(&self) -> Result<&str, CloudError> {
        let ask = || async { Ok(self.described().await?.root_device) };
        self.root_device.get_or_try_init(ask).await.map(String::as_str)
    }

    /// What does not live in the request itself: token, tags, root device.
    async fn prepared(&self, new: &NewHost<'_>) -> Result<Prepared<'_>, CloudError> {
        if new.confidential == Some(Confidential::Tdx) {
            let problem = format!("{} cannot run under Intel TDX: EC2 has none", new.size);
            return Err(CloudError::new(ErrorKind::Fatal, problem));
        }
        let place = self.setup.subnets.iter().position(|subnet| subnet == new.place);
        let token = format!("{}-{}", new.marks.instance, place.unwrap_or(self.setup.subnets.len()));
        Ok(Prepared { token, tags: tags(new.marks), root_device: self.root_device().await? })
    }

    fn request<'a>(&'a self, new: &'a NewHost<'_>, prepared: &'a Prepared<'_>) -> NewInstance<'a> {
        NewInstance {
            client_token: &prepared.token,
            image: &self.setup.image,
            instance_type: new.size,
            subnet: new.place,
            security_groups: &self.setup.security_groups,
            public_address: !self.setup.private_addresses,
            user_data: new.user_data,
            tags: &prepared.tags,
            root_device: prepared.root_device,
            root_gib: new.disk_gib,
            sev_snp: new.confidential == Some(Confidential::SevSnp),
            dry_run: false,
        }
    }

    async fn size(&self, name: &str) -> Result<Option<SizeInfo>, CloudError> {
        match self.ec2.instance_types(&[name]).await {
            Ok(known) => Ok(known.into_iter().find(|size| size.name == name).map(SizeInfo::from)),
            Err(error) if is_unknown_size(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn is_unknown_size(error: &AwsError) -> bool {
    error.kind() == ErrorKind::NotFound || error.code() == Some("InvalidInstanceType")
}

struct Prepared<'a> {
    token: String,
    tags: Vec<(String, String)>,
    root_device: &'a str,
}

fn tags(marks: &Marks) -> Vec<(String, String)> {
    let pairs = [
        ("Name", format!("coalition {}", marks.offer)),
        (tag::BRIDGE, marks.bridge.clone()),
        (tag::COALITION, marks.coalition.clone()),
        (tag::GRANT, marks.grant.clone()),
        (tag::INSTANCE, marks.instance.clone()),
        (tag::OFFER, marks.offer.clone()),
        (tag::UNTIL, marks.until_s.to_string()),
    ];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn filters<'a>(owner: Owner<'a>, instance: Option<&'a str>) -> Vec<(&'static str, &'a str)> {
    let mut tags = vec![(tag::BRIDGE, owner.bridge), (tag::OFFER, owner.offer)];
    tags.extend(instance.map(|name| (tag::INSTANCE, name)));
    tags
}

impl From<AwsError> for CloudError {
    fn from(error: AwsError) -> Self {
        let (kind, message, may_have_acted) = (error.kind(), error.to_string(), error.may_have_acted());
        let source: Option<Box<dyn std::error::Error + Send + Sync>> = match error {
            AwsError::Unreachable { source, .. } | AwsError::Unanswered { source, .. } => Some(source),
            AwsError::Credentials { source, .. } => Some(Box::new(source)),
            AwsError::Refused { .. } | AwsError::Garbled { .. } => None,
        };
        Self { kind, message, may_have_acted, source }
    }
}

impl From<InstanceState> for HostState {
    fn from(state: InstanceState) -> Self {
        match state {
            InstanceState::Pending => Self::Coming,
            InstanceState::Running => Self::Running,
            InstanceState::Stopping => Self::Stopping,
            InstanceState::Stopped => Self::Stopped,
            // Not billed from the moment it shuts down; what is tagged and stays behind is found by itself.
            InstanceState::ShuttingDown | InstanceState::Terminated => Self::Over,
        }
    }
}

impl From<TypeInfo> for SizeInfo {
    fn from(size: TypeInfo) -> Self {
        let confidential = if size.sev_snp { vec![Confidential::SevSnp] } else { Vec::new() };
        Self { name: size.name, vcpus: size.vcpus, ram_mib: size.ram_mib, confidential }
    }
}

impl From<ImageInfo> for Image {
    fn from(image: ImageInfo) -> Self {
        Self {
            unusable: (image.state != "available").then(|| image.state.clone()),
            architecture: if image.architecture == "arm64" { "aarch64".into() } else { image.architecture },
            disk_gib: image.root_gib,
            id: image.id,
        }
    }
}

/// The host an instance is; `None` for one without the mark of its name.
fn host(instance: Instance) -> Option<Host> {
    let name = instance.tags.get(tag::INSTANCE)?.clone();
    let reason = instance.reason.map(|(code, words)| (kind_of(&code, 400), format!("{code} {words}")));
    Some(Host {
        id: instance.id.to_string(),
        instance: name,
        state: instance.state.into(),
        size: instance.instance_type,
        public_address: instance.public_address,
        private_address: instance.private_address,
        since_s: instance.launched.as_deref().and_then(coalition_cloud::unix_s),
        reason,
    })
}

fn no_id(error: &IdError) -> CloudError {
    CloudError::new(ErrorKind::NotFound, error.to_string())
}

#[async_trait]
impl Cloud for Ec2Region {
    fn name(&self) -> &'static str {
        "EC2"
    }

    fn region(&self) -> &str {
        self.ec2.region()
    }

    fn places(&self) -> &[String] {
        &self.setup.subnets
    }

    fn settle(&self) -> Duration {
        self.setup.settle.unwrap_or(SETTLE)
    }

    fn end_patience(&self) -> Duration {
        END
    }

    async fn identity(&self) -> Result<String, CloudError> {
        let caller = self.ec2.caller().await?;
        Ok(format!("account {}, {}", caller.account, caller.arn))
    }

    async fn image(&self) -> Result<Image, CloudError> {
        Ok(self.described().await?.into())
    }

    async fn quota(&self) -> Quota {
        match self.ec2.quota(&self.setup.quota_code).await {
            Ok(vcpus) => Quota { vcpus: Some(vcpus), text: format!("the account's quota is {vcpus} vCPUs") },
            Err(error) => Quota { vcpus: None, text: format!("the account's quota is unknown ({error})") },
        }
    }

    async fn sizes(&self, names: &[&str]) -> Result<Vec<SizeInfo>, CloudError> {
        match self.ec2.instance_types(names).await {
            Ok(known) => return Ok(known.into_iter().map(SizeInfo::from).collect()),
            // One unknown name fails them all.
            Err(error) if is_unknown_size(&error) => {}
            Err(error) => return Err(error.into()),
        }
        let mut known = Vec::new();
        for name in names {
            known.extend(self.size(name).await?);
        }
        Ok(known)
    }

    async fn create(&self, new: &NewHost<'_>) -> Result<Host, CloudError> {
        let prepared = self.prepared(new).await?;
        let made = self.ec2.run_instance(&self.request(new, &prepared)).await?;
        // The answer to a creation need not repeat the tags.
        let mut made = made;
        made.tags.entry(tag::INSTANCE.to_owned()).or_insert_with(|| new.marks.instance.clone());
        let id = made.id.clone();
        host(made).ok_or_else(|| CloudError::new(ErrorKind::Fatal, format!("{id} has no name")))
    }

    async fn may_create(&self, new: &NewHost<'_>) -> Result<String, CloudError> {
        let prepared = self.prepared(new).await?;
        self.ec2.may_run(&self.request(new, &prepared)).await?;
        Ok("granted (a dry run)".into())
    }

    async fn hosts(&self, owner: Owner<'_>, instance: Option<&str>) -> Result<Vec<Host>, CloudError> {
        let found = self.ec2.instances(&filters(owner, instance)).await?;
        Ok(found.into_iter().filter_map(host).collect())
    }

    async fn end(&self, id: &str) -> Result<HostState, CloudError> {
        let id: InstanceId = id.parse().map_err(|error| no_id(&error))?;
        let ended = self.ec2.terminate(std::slice::from_ref(&id)).await?;
        // An answer that does not tell is no confirmation.
        let state = ended.into_iter().find(|one| one.id == id).map(|one| one.state.into());
        Ok(state.unwrap_or(HostState::Stopping))
    }

    async fn leftovers(&self, owner: Owner<'_>, instance: Option<&str>) -> Result<Vec<Leftover>, CloudError> {
        let found = self.ec2.detached_volumes(&filters(owner, instance)).await?;
        let leftover = |volume: crate::volumes::Volume| {
            let instance = volume.tags.get(tag::INSTANCE)?.clone();
            Some(Leftover { id: volume.id.to_string(), what: "disk", instance })
        };
        Ok(found.into_iter().filter_map(leftover).collect())
    }

    async fn remove(&self, leftover: &Leftover) -> Result<(), CloudError> {
        let id: VolumeId = leftover.id.parse().map_err(|error| no_id(&error))?;
        Ok(self.ec2.delete_volume(&id).await?)
    }

    async fn console(&self, id: &str) -> Result<String, CloudError> {
        let id: InstanceId = id.parse().map_err(|error| no_id(&error))?;
        Ok(self.ec2.console(&id).await?)
    }

    fn telemetry_moment(&self) -> Moment {
        // Instances are described for about an hour after their end, and CloudWatch keeps what it counted.
        Moment::AfterEnd
    }

    async fn telemetry(&self, owner: Owner<'_>, instance: &str, window: Window) -> Result<Telemetry, CloudError> {
        let found = self.ec2.instances(&filters(owner, Some(instance))).await?;
        let newest = found.into_iter().max_by(|a, b| a.launched.cmp(&b.launched));
        let unknown =
            || CloudError::new(ErrorKind::NotFound, format!("EC2 describes no instance of {instance} (any more)"));
        let newest = newest.ok_or_else(unknown)?;
        let series = self.ec2.metrics(&newest.id, window).await?;
        Ok(metrics::telemetry(&newest, series))
    }

    async fn may_read_telemetry(&self, window: Window) -> Result<String, CloudError> {
        let id: InstanceId = NOBODY.parse().map_err(|error| no_id(&error))?;
        self.ec2.metrics(&id, window).await?;
        Ok("cloudwatch:GetMetricData is permitted; basic monitoring counts every five minutes".into())
    }
}
