//! Hosts in Google's words: what is asked for, and what is listed.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coalition_cloud::{Confidential, ErrorKind, Host, HostState, NewHost, Owner, one_line};
use google_cloud_compute_v1::model::{
    AccessConfig, AttachedDisk, AttachedDiskInitializeParams, ConfidentialInstanceConfig, Duration, Instance, Metadata,
    NetworkInterface, Scheduling, ShieldedInstanceConfig, Tags, access_config, attached_disk,
    confidential_instance_config::ConfidentialInstanceType, metadata::Items, scheduling,
};

use crate::names::{Placed, description, host_name, is_resource_name, label, labels, mark, whole};

/// The shortest and the longest that Compute Engine ends a host after by itself, seconds: 30 s to 120 days.
const RUN_S: std::ops::RangeInclusive<u64> = 30..=10_368_000;
/// Longest user data, in bytes; the interface's own limit.
const MAX_USER_DATA: usize = 16 << 10;
/// The oldest processors that have SEV-SNP.
const SNP_PLATFORM: &str = "AMD Milan";

/// What all hosts of one offer have in common.
#[derive(Clone, Debug)]
pub(crate) struct Common {
    pub(crate) image: String,
    pub(crate) subnetwork: String,
    pub(crate) network_tags: Vec<String>,
    pub(crate) public_address: bool,
    pub(crate) disk_type: String,
    pub(crate) secure_boot: bool,
}

/// The request's body.
pub(crate) fn body(common: &Common, new: &NewHost<'_>) -> Result<Instance, String> {
    let name = host_name(&new.marks.instance);
    if !is_resource_name(&name) || !is_resource_name(new.size) {
        return Err(format!("{name:?} of size {:?} cannot be named", one_line(new.size, 80)));
    }
    if new.user_data.len() > MAX_USER_DATA {
        return Err(format!("{} bytes of user data; at most {MAX_USER_DATA} are taken", new.user_data.len()));
    }
    if !RUN_S.contains(&new.longest_s) {
        let (least, most) = (RUN_S.start(), RUN_S.end());
        return Err(format!("it may exist for {} s; Compute Engine takes {least} to {most} s", new.longest_s));
    }
    let zone = new.place;
    let mut instance = Instance::new()
        .set_name(&name)
        .set_machine_type(format!("zones/{zone}/machineTypes/{}", new.size))
        .set_labels(labels(new.marks))
        .set_metadata(Metadata::new().set_items(metadata(new)))
        .set_disks([disk(common, new, &name)])
        .set_network_interfaces([network(common)])
        .set_scheduling(scheduling(new.longest_s)?)
        .set_shielded_instance_config(
            ShieldedInstanceConfig::new()
                .set_enable_secure_boot(common.secure_boot)
                .set_enable_vtpm(true)
                .set_enable_integrity_monitoring(true),
        );
    if !common.network_tags.is_empty() {
        instance = instance.set_tags(Tags::new().set_items(common.network_tags.iter()));
    }
    if let Some(kind) = new.confidential {
        let kind = match kind {
            Confidential::Tdx => ConfidentialInstanceType::Tdx,
            Confidential::SevSnp => ConfidentialInstanceType::SevSnp,
        };
        if kind == ConfidentialInstanceType::SevSnp {
            instance = instance.set_min_cpu_platform(SNP_PLATFORM);
        }
        let config = ConfidentialInstanceConfig::new().set_confidential_instance_type(kind);
        instance = instance.set_confidential_instance_config(config);
    }
    Ok(instance)
}

/// What cloud-init reads, whose host it is, and that nobody else's keys get in: not the project's, not those of OS Login, no
/// shell on the serial port.
fn metadata(new: &NewHost<'_>) -> Vec<Items> {
    let item = |key: &str, value: &str| Items::new().set_key(key).set_value(value);
    let mut items = match std::str::from_utf8(new.user_data) {
        Ok(text) => vec![item("user-data", text)],
        Err(_) => vec![item("user-data", &STANDARD.encode(new.user_data)), item("user-data-encoding", "base64")],
    };
    items.extend([
        item("block-project-ssh-keys", "TRUE"),
        item("enable-oslogin", "FALSE"),
        item("serial-port-enable", "FALSE"),
    ]);
    items.extend(whole(new.marks).iter().map(|(key, value)| item(key, value)));
    items
}

/// The only disk. It is found by its labels and by its description should it stay behind.
fn disk(common: &Common, new: &NewHost<'_>, name: &str) -> AttachedDisk {
    let owner = Owner { bridge: &new.marks.bridge, offer: &new.marks.offer };
    AttachedDisk::new()
        .set_boot(true)
        .set_auto_delete(true)
        .set_type(attached_disk::Type::Persistent)
        .set_initialize_params(
            AttachedDiskInitializeParams::new()
                .set_disk_name(name)
                .set_source_image(&common.image)
                .set_disk_size_gb(new.disk_gib)
                .set_disk_type(format!("zones/{}/diskTypes/{}", new.place, common.disk_type))
                .set_labels(labels(new.marks))
                .set_description(description(owner, &new.marks.instance)),
        )
}

fn network(common: &Common) -> NetworkInterface {
    let interface = NetworkInterface::new().set_subnetwork(&common.subnetwork);
    if !common.public_address {
        return interface;
    }
    let access = AccessConfig::new().set_type(access_config::Type::OneToOneNat).set_name("External NAT");
    interface.set_access_configs([access])
}

/// Nothing is moved or started again, and Compute Engine deletes the host by itself when its time is up.
fn scheduling(longest_s: u64) -> Result<Scheduling, String> {
    let seconds = i64::try_from(longest_s).map_err(|_| "it may exist for too long".to_owned())?;
    Ok(Scheduling::new()
        .set_on_host_maintenance(scheduling::OnHostMaintenance::Terminate)
        .set_automatic_restart(false)
        .set_provisioning_model(scheduling::ProvisioningModel::Standard)
        .set_max_run_duration(Duration::new().set_seconds(seconds))
        .set_instance_termination_action(scheduling::InstanceTerminationAction::Delete))
}

/// A host that was asked for and of which nothing more is known.
pub(crate) fn coming(new: &NewHost<'_>) -> Host {
    let id = Placed { zone: new.place.to_owned(), name: host_name(&new.marks.instance) };
    Host {
        id: id.to_string(),
        instance: new.marks.instance.clone(),
        state: HostState::Coming,
        size: new.size.to_owned(),
        public_address: None,
        private_address: None,
        since_s: None,
        reason: None,
    }
}

/// The last part of a resource's URL.
pub(crate) fn last(url: Option<&String>) -> &str {
    url.and_then(|url| url.rsplit('/').next()).unwrap_or_default()
}

/// A listed instance as a host of this owner; `None` when it is another's. Labels are cut short, so the whole marks in its
/// metadata decide.
pub(crate) fn read(region: &str, owner: Owner<'_>, instance: &Instance) -> Result<Option<Host>, String> {
    let items = instance.metadata.as_ref().map(|metadata| metadata.items.as_slice()).unwrap_or_default();
    let item = |key: &str| items.iter().find(|item| item.key.as_deref() == Some(key))?.value.as_deref();
    let labelled = |key: &str, value: &str| instance.labels.get(key).is_some_and(|has| *has == label(value));
    let is_own = labelled(mark::BRIDGE, owner.bridge)
        && labelled(mark::OFFER, owner.offer)
        && item(mark::BRIDGE) == Some(owner.bridge)
        && item(mark::OFFER) == Some(owner.offer);
    let Some(name) = item(mark::INSTANCE).filter(|name| is_own && labelled(mark::INSTANCE, name)) else {
        return Ok(None);
    };
    let id = format!("{}/{}", last(instance.zone.as_ref()), instance.name.as_deref().unwrap_or_default());
    let id = Placed::parse(region, &id).map_err(|error| error.to_string())?;
    if id.name != host_name(name) {
        return Ok(None);
    }
    let status = instance.status.as_ref().and_then(|status| status.name()).unwrap_or_default();
    let state = state(status).ok_or_else(|| format!("{id} has the status {:?}", one_line(status, 40)))?;
    let interface = instance.network_interfaces.first();
    let address = |text: Option<&String>| text.and_then(|text| text.parse::<IpAddr>().ok());
    let words = instance.status_message.as_deref().filter(|words| !words.is_empty());
    Ok(Some(Host {
        id: id.to_string(),
        instance: name.to_owned(),
        state,
        size: one_line(last(instance.machine_type.as_ref()), 63),
        public_address: address(interface.and_then(|nic| nic.access_configs.first()?.nat_ip.as_ref())),
        private_address: address(interface.and_then(|nic| nic.network_ip.as_ref())),
        since_s: instance.creation_timestamp.as_deref().and_then(coalition_cloud::unix_s),
        reason: words.map(|words| (ErrorKind::Transient, one_line(words, 200))),
    }))
}

/// What a status means. An instance that is over is not listed any more; one that is `TERMINATED` still has its disk.
fn state(status: &str) -> Option<HostState> {
    Some(match status {
        "RUNNING" => HostState::Running,
        "PENDING" | "PROVISIONING" | "STAGING" | "REPAIRING" => HostState::Coming,
        "PENDING_STOP" | "STOPPING" | "SUSPENDING" | "DEPROVISIONING" => HostState::Stopping,
        "TERMINATED" | "STOPPED" | "SUSPENDED" => HostState::Stopped,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use coalition_cloud::Marks;

    fn marks() -> Marks {
        Marks {
            bridge: "ab".repeat(32),
            offer: "gcp".into(),
            instance: "0123456789abcdef0123456789abcdef".into(),
            coalition: "c".repeat(64),
            grant: "none: a check".into(),
            until_s: 7,
        }
    }

    fn common() -> Common {
        Common {
            image: "projects/debian-cloud/global/images/family/debian-12".into(),
            subnetwork: "projects/my-project/regions/us-east1/subnetworks/hosts".into(),
            network_tags: vec!["hosts".into()],
            public_address: true,
            disk_type: "pd-balanced".into(),
            secure_boot: false,
        }
    }

    fn new<'a>(marks: &'a Marks, user_data: &'a [u8]) -> NewHost<'a> {
        let (confidential, place) = (Some(Confidential::SevSnp), "us-east1-b");
        NewHost { marks, place, size: "n2d-standard-2", confidential, user_data, disk_gib: 20, longest_s: 900 }
    }

    #[test]
    fn what_is_made_is_read_back_as_ours_and_as_nobody_elses() {
        let marks = marks();
        let mut made = body(&common(), &new(&marks, b"#cloud-config\n{}")).unwrap();
        made = made.set_zone("https://www.googleapis.com/compute/v1/projects/my-project/zones/us-east1-b");
        made = made.set_status(google_cloud_compute_v1::model::instance::Status::Running);
        let owner = Owner { bridge: &marks.bridge, offer: "gcp" };
        let host = read("us-east1", owner, &made).unwrap().unwrap();
        assert_eq!(
            (host.id.as_str(), host.state),
            ("us-east1-b/c-0123456789abcdef0123456789abcdef", HostState::Running)
        );
        assert_eq!((host.size.as_str(), host.instance.as_str()), ("n2d-standard-2", marks.instance.as_str()));
        let other = format!("{}00", "ab".repeat(31));
        for stranger in [Owner { bridge: &other, ..owner }, Owner { offer: "gcp2", ..owner }] {
            assert_eq!(read("us-east1", stranger, &made).unwrap(), None, "{stranger:?}");
        }
        let odd = made.clone().set_status("DREAMING");
        assert!(read("us-east1", owner, &odd).unwrap_err().contains("DREAMING"));
        assert!(read("us-west1", owner, &made).is_err());
        assert_eq!(read("us-east1", owner, &Instance::new()).unwrap(), None);
        assert_eq!(read("us-east1", owner, &made.set_name("c-another")).unwrap(), None);
    }

    #[test]
    fn what_cannot_be_asked_is_refused_with_both_values() {
        let marks = marks();
        let good = new(&marks, b"x");
        let problem = |new: NewHost<'_>| body(&common(), &new).unwrap_err();
        assert!(problem(NewHost { longest_s: 29, ..good }).contains("29 s; Compute Engine takes 30 to"));
        assert!(problem(NewHost { size: "n2d/../x", ..good }).contains("n2d/../x"));
        let much = vec![b'a'; MAX_USER_DATA + 1];
        assert!(problem(NewHost { user_data: &much, ..good }).contains("16385 bytes"));
        let odd = Marks { instance: "A/b".into(), ..marks.clone() };
        assert!(body(&common(), &NewHost { marks: &odd, ..good }).is_err());
        // Bytes that are no text are said to be base64.
        let packed = body(&common(), &NewHost { user_data: b"\x1f\x8b", ..good }).unwrap();
        let items = packed.metadata.unwrap().items;
        let item =
            |key: &str| items.iter().find(|item| item.key.as_deref() == Some(key)).unwrap().value.clone().unwrap();
        assert_eq!((item("user-data").as_str(), item("user-data-encoding").as_str()), ("H4s=", "base64"));
    }

    #[test]
    fn every_status_has_its_state() {
        for (status, expected) in [
            ("PROVISIONING", HostState::Coming),
            ("RUNNING", HostState::Running),
            ("DEPROVISIONING", HostState::Stopping),
            ("TERMINATED", HostState::Stopped),
        ] {
            assert_eq!(state(status), Some(expected));
        }
        assert_eq!(state(""), None);
    }
}
