//! What there is: regions, sizes, images, and everything that was made.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use coalition_cloud::rfc3339;
use coalition_cloud_double::{Boot, next_address};
use serde_json::{Value, json};

use crate::{PROJECT, REGION};

/// Zones by region.
pub(crate) const ZONES: [(&str, &[&str]); 2] =
    [(REGION, &["europe-west4-a", "europe-west4-b", "europe-west4-c"]), ("us-central1", &["us-central1-a"])];
/// One size of machines.
pub(crate) struct Size {
    pub(crate) name: &'static str,
    pub(crate) vcpus: u32,
    pub(crate) ram_mib: u32,
    pub(crate) zones: &'static [&'static str],
    pub(crate) architecture: &'static str,
}

const fn size(name: &'static str, vcpus: u32, ram_mib: u32, zones: &'static [&'static str]) -> Size {
    Size { name, vcpus, ram_mib, zones, architecture: "X86_64" }
}

/// All sizes.
pub(crate) const SIZES: [Size; 5] = [
    size("e2-medium", 2, 4_096, &["europe-west4-a", "europe-west4-b", "europe-west4-c", "us-central1-a"]),
    size("n2d-standard-2", 2, 8_192, &["europe-west4-a", "europe-west4-b"]),
    size("c3-standard-4", 4, 16_384, &["europe-west4-a", "europe-west4-c"]),
    size("n2-standard-2", 2, 8_192, &["europe-west4-a"]),
    Size { architecture: "ARM64", ..size("t2a-standard-1", 1, 4_096, &["europe-west4-a"]) },
];

/// One image, of 10 GB.
pub(crate) struct Image {
    pub(crate) name: &'static str,
    pub(crate) family: &'static str,
    pub(crate) state: &'static str,
    pub(crate) features: &'static [&'static str],
    pub(crate) architecture: &'static str,
}

/// The project of all images, and their size in GB.
pub(crate) const IMAGE_PROJECT: &str = "double-images";
pub(crate) const IMAGE_GIB: u64 = 10;

const fn image(name: &'static str, family: &'static str, features: &'static [&'static str]) -> Image {
    Image { name, family, state: "ACTIVE", features, architecture: "X86_64" }
}

/// All images.
pub(crate) const IMAGES: [Image; 4] = [
    image("host-v1", "host", &["UEFI_COMPATIBLE", "SEV_SNP_CAPABLE", "TDX_CAPABLE"]),
    image("plain-v1", "plain", &["UEFI_COMPATIBLE"]),
    Image { state: "OBSOLETE", ..image("host-v0", "host-old", &["UEFI_COMPATIBLE"]) },
    Image { architecture: "ARM64", ..image("arm-v1", "arm", &["UEFI_COMPATIBLE"]) },
];
/// Most things on a page of a list.
const MAX_RESULTS: usize = 500;
/// Where resources' URLs begin.
pub(crate) const BASE: &str = "https://www.googleapis.com/compute/v1";

/// A machine.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) id: u64,
    pub(crate) zone: String,
    pub(crate) name: String,
    /// As it was asked for.
    pub(crate) asked: Value,
    pub(crate) status: &'static str,
    pub(crate) since: Instant,
    pub(crate) address: Option<Ipv4Addr>,
    pub(crate) vcpus: u32,
    /// When it was asked for, Unix seconds.
    pub(crate) made_s: u64,
}

/// A disk.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub(crate) id: u64,
    pub(crate) zone: String,
    pub(crate) name: String,
    pub(crate) labels: Value,
    pub(crate) description: String,
    pub(crate) gib: u64,
    pub(crate) auto_delete: bool,
    /// Name of the machine it is attached to.
    pub(crate) user: Option<String>,
}

/// What an operation does when its time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Insert,
    Delete,
    DeleteDisk,
}

/// An operation.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) zone: String,
    pub(crate) target: String,
    pub(crate) work: Work,
    pub(crate) due: Instant,
    /// When it was taken and when it was done, Unix seconds.
    pub(crate) taken_s: u64,
    pub(crate) done_s: Option<u64>,
    pub(crate) is_done: bool,
    /// Code, words, HTTP status.
    pub(crate) error: Option<(String, String, u16)>,
}

/// Everything.
pub(crate) struct World {
    pub(crate) boot: Option<Arc<dyn Boot>>,
    pub(crate) machines: BTreeMap<(String, String), Machine>,
    pub(crate) disks: BTreeMap<(String, String), Disk>,
    pub(crate) operations: BTreeMap<String, Operation>,
    /// Operations by the id of the request that began them.
    pub(crate) requests: BTreeMap<String, String>,
    pub(crate) quotas: BTreeMap<String, u32>,
    pub(crate) console: String,
    /// Disks stay behind although they should go with their machines.
    pub(crate) are_disks_kept: bool,
    pub(crate) has_no_addresses: bool,
    /// Most things on a page.
    pub(crate) page: usize,
    /// How long operations take.
    pub(crate) slowness: Duration,
    /// How far this world's clock is ahead.
    pub(crate) ahead: Duration,
    last_id: u64,
}

impl World {
    pub(crate) fn new(boot: Option<Arc<dyn Boot>>) -> Self {
        let quotas = [("CPUS", 24), ("N2D_CPUS", 8), ("C3_CPUS", 8)];
        Self {
            boot,
            machines: BTreeMap::new(),
            disks: BTreeMap::new(),
            operations: BTreeMap::new(),
            requests: BTreeMap::new(),
            quotas: quotas.map(|(metric, vcpus)| (metric.to_owned(), vcpus)).into(),
            console: "[    0.000000] Linux version 6.1\n".into(),
            are_disks_kept: false,
            has_no_addresses: false,
            page: MAX_RESULTS,
            slowness: Duration::from_millis(20),
            ahead: Duration::ZERO,
            last_id: 7_000_000_000_000_000_000,
        }
    }

    pub(crate) fn now(&self) -> Instant {
        Instant::now() + self.ahead
    }

    pub(crate) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Begins an operation.
    pub(crate) fn begin(&mut self, work: Work, zone: &str, target: &str, takes: Duration) -> Operation {
        let id = self.next_id();
        let name = format!("operation-{id}-5f1e2d3c4b5a6-{:08x}", id % 0xffff_ffff);
        let (zone, target, due) = (zone.to_owned(), target.to_owned(), self.now() + takes);
        let (taken_s, name_of) = (now_s(), name.clone());
        let operation = Operation {
            id,
            name: name_of,
            zone,
            target,
            work,
            due,
            taken_s,
            done_s: None,
            is_done: false,
            error: None,
        };
        self.operations.insert(name, operation.clone());
        operation
    }

    /// Does what is due.
    pub(crate) fn settle(&mut self) {
        let now = self.now();
        let is_due = |operation: &&Operation| !operation.is_done && operation.due <= now;
        let mut due: Vec<Operation> = self.operations.values().filter(is_due).cloned().collect();
        due.sort_by_key(|operation| (operation.due, operation.id));
        for operation in due {
            self.finish(&operation);
            if let Some(kept) = self.operations.get_mut(&operation.name) {
                kept.is_done = true;
                kept.done_s = Some(now_s());
            }
        }
        self.expire(now);
    }

    fn finish(&mut self, operation: &Operation) {
        let at = (operation.zone.clone(), operation.target.clone());
        match operation.work {
            Work::Insert if operation.error.is_some() => {
                self.machines.remove(&at);
                self.disks.retain(|_, disk| (&disk.zone, disk.user.as_ref()) != (&at.0, Some(&at.1)));
            }
            Work::Insert => self.start(&at),
            Work::Delete => self.remove(&at),
            Work::DeleteDisk => drop(self.disks.remove(&at)),
        }
    }

    fn start(&mut self, at: &(String, String)) {
        let Some(machine) = self.machines.get_mut(at).filter(|machine| machine.status == "PROVISIONING") else {
            return;
        };
        let address = next_address();
        machine.status = "RUNNING";
        machine.address = Some(address);
        let items = machine.asked["metadata"]["items"].as_array().cloned().unwrap_or_default();
        let user_data = items.iter().find(|item| item["key"] == "user-data").and_then(|item| item["value"].as_str());
        if let Some(boot) = &self.boot {
            boot.boot(&machine.id.to_string(), address, user_data.unwrap_or_default().as_bytes());
        }
    }

    /// The machine switches off.
    pub(crate) fn power_off(&self, machine: &Machine) {
        if let (Some(boot), Some(_)) = (&self.boot, machine.address) {
            boot.power_off(&machine.id.to_string());
        }
    }

    fn remove(&mut self, at: &(String, String)) {
        let are_kept = self.are_disks_kept;
        self.machines.remove(at);
        let is_of = |disk: &Disk| (&disk.zone, disk.user.as_ref()) == (&at.0, Some(&at.1));
        self.disks.retain(|_, disk| !is_of(disk) || are_kept || !disk.auto_delete);
        for disk in self.disks.values_mut().filter(|disk| is_of(disk)) {
            disk.user = None;
        }
    }

    /// Ends machines that have run as long as they may.
    fn expire(&mut self, now: Instant) {
        let is_over = |machine: &&Machine| {
            let scheduling = &machine.asked["scheduling"];
            let longest = number(&scheduling["maxRunDuration"]["seconds"]);
            longest.is_some_and(|seconds| now.saturating_duration_since(machine.since) >= Duration::from_secs(seconds))
        };
        let over: Vec<Machine> = self.machines.values().filter(is_over).cloned().collect();
        for machine in over {
            self.power_off(&machine);
            self.remove(&(machine.zone, machine.name));
        }
    }

    /// Virtual CPUs in use of a metric's family in a region.
    pub(crate) fn in_use(&self, metric: &str) -> u32 {
        let counted = self.machines.values().filter(|machine| {
            let size = machine.asked["machineType"].as_str().unwrap_or_default();
            metric_of(size.rsplit('/').next().unwrap_or_default()) == metric && machine.zone.starts_with(REGION)
        });
        counted.map(|machine| machine.vcpus).sum()
    }
}

/// Unix seconds.
pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs()
}

/// The quota in which a size counts.
pub(crate) fn metric_of(size: &str) -> String {
    let family = size.split('-').next().unwrap_or_default().to_ascii_uppercase();
    if family == "E2" { "CPUS".to_owned() } else { format!("{family}_CPUS") }
}

/// A number, also one written as text.
pub(crate) fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// The region of a zone; `None` when there is no such zone.
pub(crate) fn region_of(zone: &str) -> Option<&'static str> {
    ZONES.iter().find(|(_, zones)| zones.contains(&zone)).map(|(region, _)| *region)
}

pub(crate) fn zone_url(zone: &str) -> String {
    format!("{BASE}/projects/{PROJECT}/zones/{zone}")
}

impl Machine {
    /// As the API shows it.
    pub(crate) fn shown(&self, has_no_addresses: bool) -> Value {
        let mut shown = self.asked.clone();
        let zone = zone_url(&self.zone);
        let size = self.asked["machineType"].as_str().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        let host = self.id % 62_500;
        let interface = &mut shown["networkInterfaces"][0];
        interface["kind"] = "compute#networkInterface".into();
        interface["name"] = "nic0".into();
        interface["networkIP"] = format!("10.164.{}.{}", host / 250, host % 250).into();
        if let Some(access) = interface.get_mut("accessConfigs").and_then(|list| list.get_mut(0)) {
            access["kind"] = "compute#accessConfig".into();
            if let Some(address) = self.address.filter(|_| !has_no_addresses) {
                access["natIP"] = address.to_string().into();
            }
        }
        let disk = shown["disks"][0].as_object_mut().expect("the disk was checked");
        disk.remove("initializeParams");
        disk.insert("kind".into(), "compute#attachedDisk".into());
        disk.insert("source".into(), format!("{zone}/disks/{}", self.name).into());
        let own = json!({
            "kind": "compute#instance",
            "id": self.id.to_string(),
            "status": self.status,
            "zone": zone,
            "machineType": format!("{zone}/machineTypes/{size}"),
            "selfLink": format!("{zone}/instances/{}", self.name),
            "creationTimestamp": rfc3339(self.made_s),
            "labelFingerprint": "42WmSpB8rSM=",
        });
        let own = own.as_object().cloned().unwrap_or_default();
        shown.as_object_mut().expect("an instance is an object").extend(own);
        shown
    }
}

impl Disk {
    /// As the API shows it.
    pub(crate) fn shown(&self) -> Value {
        let zone = zone_url(&self.zone);
        let mut shown = json!({
            "kind": "compute#disk",
            "id": self.id.to_string(),
            "name": self.name,
            "status": "READY",
            "sizeGb": self.gib.to_string(),
            "labels": self.labels,
            "description": self.description,
            "zone": zone,
            "type": format!("{zone}/diskTypes/pd-balanced"),
            "selfLink": format!("{zone}/disks/{}", self.name),
        });
        if let Some(user) = &self.user {
            shown["users"] = json!([format!("{zone}/instances/{user}")]);
        }
        shown
    }
}

impl Operation {
    /// As the API shows it.
    pub(crate) fn shown(&self) -> Value {
        let zone = zone_url(&self.zone);
        let (verb, kind) = match self.work {
            Work::Insert => ("insert", "instances"),
            Work::Delete => ("delete", "instances"),
            Work::DeleteDisk => ("delete", "disks"),
        };
        let mut shown = json!({
            "kind": "compute#operation",
            "id": self.id.to_string(),
            "name": self.name,
            "operationType": verb,
            "status": if self.is_done { "DONE" } else { "RUNNING" },
            "progress": if self.is_done { 100 } else { 0 },
            "zone": zone,
            "targetLink": format!("{zone}/{kind}/{}", self.target),
            "user": crate::EMAIL,
            "insertTime": rfc3339(self.taken_s),
            "startTime": rfc3339(self.taken_s),
            "selfLink": format!("{zone}/operations/{}", self.name),
        });
        if let Some(done_s) = self.done_s {
            shown["endTime"] = rfc3339(done_s).into();
        }
        if let (true, Some((code, words, status))) = (self.is_done, &self.error) {
            shown["error"] = json!({ "errors": [{ "code": code, "message": words }] });
            shown["httpErrorStatusCode"] = (*status).into();
            shown["httpErrorMessage"] = "FAILED".into();
        }
        shown
    }
}
