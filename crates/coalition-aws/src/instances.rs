//! Machines: making one, looking at them, ending them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coalition_cloud::one_line;

use crate::action::Action;
use crate::client::Ec2;
use crate::error::AwsError;
use crate::form::Form;
use crate::ids::InstanceId;
use crate::xml::Element;

/// Instances on one page, of 1,000 that EC2 allows: a page is an answer, and an answer has to come within the timeout.
const PAGE: &str = "200";
/// Most pages read: a hundred thousand instances.
const MAX_PAGES: usize = 500;
/// Longest console output kept, in bytes; EC2 keeps 64 KiB.
const MAX_CONSOLE: usize = 64 << 10;
/// Longest user data EC2 takes, in bytes before base64.
const MAX_USER_DATA: usize = 16 << 10;

/// A machine to make. `Debug` leaves the user data out, which may hold a key.
#[derive(Clone)]
pub struct NewInstance<'a> {
    /// At most 64 ASCII characters; the same token makes the same machine once.
    pub client_token: &'a str,
    /// `ami-…`.
    pub image: &'a str,
    /// E.g. `m6a.large`.
    pub instance_type: &'a str,
    /// `subnet-…`.
    pub subnet: &'a str,
    /// `sg-…`.
    pub security_groups: &'a [String],
    /// Whether it gets a public address.
    pub public_address: bool,
    /// What cloud-init reads.
    pub user_data: &'a [u8],
    /// On the instance, its volumes and its network interface.
    pub tags: &'a [(String, String)],
    /// The image's root device.
    pub root_device: &'a str,
    /// Size of the root volume, in GiB; encrypted, and deleted with the machine.
    pub root_gib: u32,
    /// Asks for AMD SEV-SNP.
    pub sev_snp: bool,
    /// Only asks whether it would be allowed.
    pub dry_run: bool,
}

impl std::fmt::Debug for NewInstance<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NewInstance({} of {} in {}, rest redacted)", self.instance_type, self.image, self.subnet)
    }
}

/// Where an instance is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InstanceState {
    /// Coming up.
    Pending,
    /// Up.
    Running,
    /// Going away; not billed any more.
    ShuttingDown,
    /// Gone; listed for about an hour.
    Terminated,
    /// Being stopped.
    Stopping,
    /// Stopped; its disk is still billed.
    Stopped,
}

impl InstanceState {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "pending" => Self::Pending,
            "running" => Self::Running,
            "shutting-down" => Self::ShuttingDown,
            "terminated" => Self::Terminated,
            "stopping" => Self::Stopping,
            "stopped" => Self::Stopped,
            _ => return None,
        })
    }

    /// As EC2 writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::ShuttingDown => "shutting-down",
            Self::Terminated => "terminated",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }

    /// Whether it will never run again and costs nothing.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::ShuttingDown | Self::Terminated)
    }
}

/// One machine as EC2 describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// Where it stands.
    pub state: InstanceState,
    /// E.g. `m6a.large`.
    pub instance_type: String,
    /// Address on the internet, once it has one.
    pub public_address: Option<IpAddr>,
    /// Address inside its network.
    pub private_address: Option<IpAddr>,
    /// Tags.
    pub tags: BTreeMap<String, String>,
    /// Why it is in this state, as EC2 says: a code (`Server.InsufficientInstanceCapacity`) and words.
    pub reason: Option<(String, String)>,
    /// When it was launched, as EC2 writes it.
    pub launched: Option<String>,
    /// Why and when it came into its state: `User initiated (2026-01-01 00:00:00 GMT)`.
    pub transition: Option<String>,
    /// Virtual CPUs, where EC2 tells.
    pub vcpus: Option<u32>,
}

/// What became of one instance that was to be ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Termination {
    /// Which.
    pub id: InstanceId,
    /// What it is now.
    pub state: InstanceState,
}

impl Ec2 {
    /// Makes one machine. One attempt: when [`AwsError::may_have_acted`], the same token asked again tells.
    ///
    /// # Errors
    /// [`AwsError`].
    pub async fn run_instance(&self, new: &NewInstance<'_>) -> Result<Instance, AwsError> {
        let action = Action::RunInstances;
        if new.user_data.len() > MAX_USER_DATA {
            let problem = format!("{} bytes of user data; EC2 takes {MAX_USER_DATA}", new.user_data.len());
            return Err(refuse(action, "InvalidUserData", problem));
        }
        let root = self.query(action, run_form(new)).await?;
        read_run(&root).map_err(|problem| AwsError::Garbled { action, problem })
    }

    /// Whether the machine could be made, as far as permissions and parameters tell. Makes nothing.
    ///
    /// # Errors
    /// [`AwsError`] as making it would give.
    pub async fn may_run(&self, new: &NewInstance<'_>) -> Result<(), AwsError> {
        let dry = NewInstance { dry_run: true, ..new.clone() };
        match self.query(Action::RunInstances, run_form(&dry)).await {
            Err(error) if error.code() == Some("DryRunOperation") => Ok(()),
            Err(error) => Err(error),
            Ok(_) => {
                let problem = "a dry run was answered as if it had been done".to_owned();
                Err(AwsError::Garbled { action: Action::RunInstances, problem })
            }
        }
    }

    /// Every instance with these tags that is not terminated and forgotten, all pages.
    ///
    /// # Errors
    /// [`AwsError`]; nothing may be concluded then.
    pub async fn instances(&self, tags: &[(&str, &str)]) -> Result<Vec<Instance>, AwsError> {
        let action = Action::DescribeInstances;
        let mut found = Vec::new();
        let mut next = None;
        for _ in 0..MAX_PAGES {
            let root = self.query(action, list_form(tags, next.as_deref())).await?;
            let (page, token) = read_page(&root).map_err(|problem| AwsError::Garbled { action, problem })?;
            found.extend(page);
            match token {
                Some(token) => next = Some(token),
                None => return Ok(found),
            }
        }
        Err(AwsError::Garbled { action, problem: format!("there is no end after {MAX_PAGES} pages") })
    }

    /// Ends these machines. Succeeds for those that are over already.
    ///
    /// # Errors
    /// [`AwsError`]; of kind not found when one was never heard of.
    pub async fn terminate(&self, ids: &[InstanceId]) -> Result<Vec<Termination>, AwsError> {
        let action = Action::TerminateInstances;
        let mut form = Form::of(action);
        form.list("InstanceId", ids.iter().map(InstanceId::as_str));
        let root = self.query(action, form).await?;
        read_terminations(&root).map_err(|problem| AwsError::Garbled { action, problem })
    }

    /// The last lines the machine wrote to its console; EC2 has them a minute or so after the boot.
    ///
    /// # Errors
    /// [`AwsError`].
    pub async fn console(&self, id: &InstanceId) -> Result<String, AwsError> {
        let action = Action::GetConsoleOutput;
        let mut form = Form::of(action);
        form.set("InstanceId", id.as_str());
        let root = self.query(action, form).await?;
        read_console(&root).map_err(|problem| AwsError::Garbled { action, problem })
    }
}

fn refuse(action: Action, code: &str, message: String) -> AwsError {
    let kind = coalition_cloud::ErrorKind::Fatal;
    AwsError::Refused { action, kind, code: code.to_owned(), message, status: 0 }
}

fn run_form(new: &NewInstance<'_>) -> Form {
    let mut form = Form::of(Action::RunInstances);
    form.set("ImageId", new.image);
    form.set("InstanceType", new.instance_type);
    form.set("MinCount", "1");
    form.set("MaxCount", "1");
    form.set("ClientToken", new.client_token);
    form.set("InstanceInitiatedShutdownBehavior", "terminate");
    form.set("UserData", &STANDARD.encode(new.user_data));
    form.set("MetadataOptions.HttpTokens", "required");
    form.set("MetadataOptions.HttpPutResponseHopLimit", "1");
    form.set("MetadataOptions.HttpEndpoint", "enabled");
    form.set("NetworkInterface.1.DeviceIndex", "0");
    form.set("NetworkInterface.1.SubnetId", new.subnet);
    form.list("NetworkInterface.1.SecurityGroupId", new.security_groups.iter().map(String::as_str));
    form.set("NetworkInterface.1.AssociatePublicIpAddress", if new.public_address { "true" } else { "false" });
    form.set("NetworkInterface.1.DeleteOnTermination", "true");
    form.set("BlockDeviceMapping.1.DeviceName", new.root_device);
    form.set("BlockDeviceMapping.1.Ebs.DeleteOnTermination", "true");
    form.set("BlockDeviceMapping.1.Ebs.Encrypted", "true");
    form.set("BlockDeviceMapping.1.Ebs.VolumeSize", &new.root_gib.to_string());
    form.set("BlockDeviceMapping.1.Ebs.VolumeType", "gp3");
    if new.sev_snp {
        form.set("CpuOptions.AmdSevSnp", "enabled");
    }
    for (n, kind) in ["instance", "volume", "network-interface"].into_iter().enumerate() {
        let prefix = format!("TagSpecification.{}", n + 1);
        form.set(&format!("{prefix}.ResourceType"), kind);
        for (i, (key, value)) in new.tags.iter().enumerate() {
            form.set(&format!("{prefix}.Tag.{}.Key", i + 1), key);
            form.set(&format!("{prefix}.Tag.{}.Value", i + 1), value);
        }
    }
    if new.dry_run {
        form.set("DryRun", "true");
    }
    form
}

fn list_form(tags: &[(&str, &str)], next: Option<&str>) -> Form {
    let mut form = Form::of(Action::DescribeInstances);
    for (i, (key, value)) in tags.iter().enumerate() {
        form.filter(i + 1, &format!("tag:{key}"), [*value]);
    }
    form.set("MaxResults", PAGE);
    if let Some(next) = next {
        form.set("NextToken", next);
    }
    form
}

/// One page of descriptions and the token of the next.
pub(crate) fn read_page(root: &Element) -> Result<(Vec<Instance>, Option<String>), String> {
    let listed = root.child("reservationSet").ok_or("it has no reservationSet")?;
    let items = listed.children.iter().filter(|child| child.name == "item");
    let page: Result<Vec<Instance>, String> =
        items.flat_map(|reservation| reservation.items("instancesSet")).map(read_instance).collect();
    Ok((page?, root.text_at(&["nextToken"]).map(ToOwned::to_owned)))
}

/// The one instance that was made.
pub(crate) fn read_run(root: &Element) -> Result<Instance, String> {
    let made: Vec<&Element> = root.items("instancesSet").collect();
    match made.as_slice() {
        [one] => read_instance(one),
        other => Err(format!("it tells of {} instances, asked was one", other.len())),
    }
}

fn read_instance(item: &Element) -> Result<Instance, String> {
    let id: InstanceId = item.text_at(&["instanceId"]).unwrap_or_default().parse().map_err(|e| format!("{e}"))?;
    let state = item.text_at(&["instanceState", "name"]).unwrap_or_default();
    let state = InstanceState::parse(state).ok_or_else(|| format!("{id} has the state {:?}", one_line(state, 40)))?;
    let address = |name: &str| item.text_at(&[name]).and_then(|text| text.parse().ok());
    let tag = |tag: &Element| {
        Some((tag.text_at(&["key"])?.to_owned(), tag.text_at(&["value"]).unwrap_or_default().to_owned()))
    };
    let reason = item.at(&["stateReason"]).map(|reason| {
        let text = |name: &str| one_line(reason.text_at(&[name]).unwrap_or_default(), 200);
        (text("code"), text("message"))
    });
    let line = |name: &str| item.text_at(&[name]).map(|text| one_line(text, 100));
    let count = |name: &str| item.text_at(&["cpuOptions", name])?.parse::<u32>().ok();
    Ok(Instance {
        launched: line("launchTime"),
        transition: line("reason"),
        vcpus: count("coreCount").zip(count("threadsPerCore")).map(|(cores, threads)| cores.saturating_mul(threads)),
        id,
        state,
        instance_type: one_line(item.text_at(&["instanceType"]).unwrap_or_default(), 40),
        public_address: address("ipAddress"),
        private_address: address("privateIpAddress"),
        tags: item.items("tagSet").filter_map(tag).collect(),
        reason: reason.filter(|(code, _)| !code.is_empty()),
    })
}

/// What became of each instance.
pub(crate) fn read_terminations(root: &Element) -> Result<Vec<Termination>, String> {
    let one = |item: &Element| {
        let id = item.text_at(&["instanceId"]).unwrap_or_default().parse().map_err(|e| format!("{e}"))?;
        let state = item.text_at(&["currentState", "name"]).unwrap_or_default();
        let state =
            InstanceState::parse(state).ok_or_else(|| format!("{id} has the state {:?}", one_line(state, 40)))?;
        Ok(Termination { id, state })
    };
    root.items("instancesSet").map(one).collect()
}

/// The console's text, newest part.
pub(crate) fn read_console(root: &Element) -> Result<String, String> {
    let Some(output) = root.text_at(&["output"]) else { return Ok(String::new()) };
    let packed: String = output.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let bytes = STANDARD.decode(packed).map_err(|_| "its output is not base64".to_owned())?;
    let newest = bytes.get(bytes.len().saturating_sub(MAX_CONSOLE)..).unwrap_or_default();
    Ok(String::from_utf8_lossy(newest).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xml::parse;

    const ONE: &str = "<item><instanceId>i-0123456789abcdef0</instanceId><instanceState><code>16</code><name>running</name>\
        </instanceState><instanceType>t3.micro</instanceType><ipAddress>192.0.2.7</ipAddress><privateIpAddress>10.0.0.1</privateIpAddress>\
        <stateReason><code>Server.InternalError</code><message>x</message></stateReason>\
        <tagSet><item><key>a</key><value>b &amp; c</value></item><item><key>empty</key><value/></item></tagSet></item>";

    #[test]
    fn pages_and_runs_are_read() {
        let text = format!(
            "<?xml version='1.0'?><DescribeInstancesResponse xmlns='http://ec2'><reservationSet><item><instancesSet>{ONE}\
             </instancesSet></item></reservationSet><nextToken>n</nextToken></DescribeInstancesResponse>"
        );
        let (page, next) = read_page(&parse(text.as_bytes()).unwrap()).unwrap();
        assert_eq!(next.as_deref(), Some("n"));
        let [one] = page.as_slice() else { panic!("{page:?}") };
        assert_eq!(one.state, InstanceState::Running);
        assert_eq!((one.tags["a"].as_str(), one.tags["empty"].as_str()), ("b & c", ""));
        assert_eq!(one.public_address, Some("192.0.2.7".parse().unwrap()));
        assert_eq!(one.reason.as_ref().unwrap().0, "Server.InternalError");
        let run = format!("<RunInstancesResponse><instancesSet>{ONE}</instancesSet></RunInstancesResponse>");
        assert_eq!(&read_run(&parse(run.as_bytes()).unwrap()).unwrap(), one);
        let two = format!("<RunInstancesResponse><instancesSet>{ONE}{ONE}</instancesSet></RunInstancesResponse>");
        assert!(read_run(&parse(two.as_bytes()).unwrap()).is_err());
    }

    #[test]
    fn what_says_nothing_is_no_empty_list() {
        // An empty list would be taken for "there is nothing"; an answer of another shape must not.
        assert!(read_page(&parse(b"<html/>").unwrap()).is_err());
        assert!(read_page(&parse(b"<r><reservationSet/></r>").unwrap()).unwrap().0.is_empty());
        let odd = ONE.replace(">running<", ">dreaming<");
        let text = format!("<r><reservationSet><item><instancesSet>{odd}</instancesSet></item></reservationSet></r>");
        assert!(read_page(&parse(text.as_bytes()).unwrap()).unwrap_err().contains("dreaming"));
    }
}
